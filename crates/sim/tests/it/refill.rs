//! Damaged tables that other nodes refill, and nodes of two builds, of which one cannot.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firn_engine::{Event, EventListener};
use firn_io::fs::mem::CrashMode;
use firn_replica::{NodeId, Replicator};
use firn_sim::cluster::{Cluster, put};
use firn_sim::damage::{Target, files};
use tokio::time::sleep;

use crate::scenarios::{booted, fill, finish, load, simulate};

/// Damages the largest table of a node, at so many fifths of it, and has the node notice.
fn damage(cluster: &Cluster, id: NodeId, fifths: u64) {
    let disk = &cluster.machines[&id].disk;
    let bytes = |file: &PathBuf| disk.read_file(file).unwrap().len();
    let tables = files(disk, Target::Tables);
    let table = tables.iter().max_by_key(|file| bytes(file)).unwrap();
    let at = bytes(table) as u64 * fifths / 5;
    disk.flip_bit(table, at, 1).unwrap();
    assert_eq!(problems(cluster, id).len(), 1);
}

/// What a node finds damaged.
fn problems(cluster: &Cluster, id: NodeId) -> Vec<String> {
    let report = cluster.node(id).db().verify().unwrap();
    report.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn s08_bitrot_everywhere_different() {
    simulate(async {
        let (mut cluster, leader) = booted(8, 3).await;
        fill(&cluster, leader, 300).await;
        cluster.settle().await.unwrap();
        for id in 1..=3 {
            cluster.node(id).snapshot().await.unwrap();
        }
        sleep(Duration::from_secs(2)).await;
        for id in 1..=3 {
            damage(&cluster, id, id);
        }
        // Entries go on meanwhile.
        sleep(Duration::from_secs(1)).await;
        let leader = cluster.wait_for_leader().await.unwrap();
        let other = put(b"other", b"value", None);
        cluster.node(leader).propose(other).await.unwrap();
        sleep(Duration::from_secs(10)).await;
        cluster.settle().await.unwrap();
        let sound = |cluster: &Cluster| {
            for id in 1..=3 {
                let node = cluster.node(id);
                assert_eq!(problems(cluster, id), Vec::<String>::new(), "node {id}");
                for n in 0..300 {
                    let key = format!("key{n:05}").into_bytes();
                    let value = node.db().get(&key).unwrap();
                    assert_eq!(value.as_deref(), Some(&[b'v'; 300][..]), "node {id}, {n}");
                }
            }
            let hashes = (1..=3).map(|id| cluster.node(id).content_hash().unwrap());
            assert_eq!(BTreeSet::from_iter(hashes).len(), 1);
        };
        sound(&cluster);
        for id in 1..=3 {
            let counters = cluster.node(id).db().stats().counters;
            assert_eq!(counters.tables_refilled, 1, "node {id}");
        }
        // It lasts.
        for id in 1..=3 {
            cluster.kill(id, Some(CrashMode::DropUnsynced));
        }
        for id in 1..=3 {
            cluster.start(id).await.unwrap();
        }
        cluster.settle().await.unwrap();
        sound(&cluster);
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

/// Why tables are not refilled.
#[derive(Default)]
struct Reasons(Mutex<Vec<String>>);

impl EventListener for Reasons {
    fn on_event(&self, event: &Event) {
        if let Event::TableNotRefilled { reason, .. } = event {
            self.0.lock().unwrap().push(reason.clone());
        }
    }
}

/// Whoever has what a node lacks comes back later. That it is waited for is told once.
#[test]
fn s08_bitrot_while_alone() {
    simulate(async {
        let (mut cluster, leader) = booted(9, 3).await;
        fill(&cluster, leader, 300).await;
        cluster.settle().await.unwrap();
        let node = cluster.node(1);
        node.snapshot().await.unwrap();
        sleep(Duration::from_secs(2)).await;
        let reasons = Arc::new(Reasons::default());
        node.db().set_listener(Arc::clone(&reasons) as _);
        for id in 2..=3 {
            cluster.kill(id, None);
        }
        damage(&cluster, 1, 2);
        sleep(Duration::from_secs(100)).await;
        let told = reasons.0.lock().unwrap().clone();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("no other node"), "{told:?}");
        for id in 2..=3 {
            cluster.start(id).await.unwrap();
        }
        sleep(Duration::from_secs(200)).await;
        let db = cluster.node(1).db();
        assert_eq!(db.stats().counters.tables_refilled, 1);
        assert!(db.verify().unwrap().is_clean());
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

/// Another build runs on a node, after a power cut at that.
async fn change_build(cluster: &mut Cluster, id: NodeId, is_older: bool) {
    cluster.kill(id, Some(CrashMode::DropUnsynced));
    cluster.net.set_older(id, is_older);
    cluster.start(id).await.unwrap();
    cluster.wait_for_leader().await.unwrap();
}

/// Under load from one build to the next, with a step back. Nodes of the newer one refill each other; nothing else
/// happens between them and one of the older.
#[test]
fn s39_two_builds() {
    simulate(async {
        let (mut cluster, leader) = booted(39, 3).await;
        for id in 1..=3 {
            cluster.net.set_older(id, true);
        }
        fill(&cluster, leader, 300).await;
        cluster.settle().await.unwrap();
        for id in 1..=3 {
            cluster.node(id).snapshot().await.unwrap();
        }
        sleep(Duration::from_secs(2)).await;
        for id in 1..=3 {
            damage(&cluster, id, id);
        }
        let load = load(&mut cluster);
        sleep(Duration::from_secs(5)).await;
        let damaged = |cluster: &Cluster| -> Vec<NodeId> {
            (1..=3)
                .filter(|&id| !problems(cluster, id).is_empty())
                .collect()
        };
        assert_eq!(damaged(&cluster), [1, 2, 3], "none of them can");
        change_build(&mut cluster, 1, false).await;
        assert_eq!(damaged(&cluster), [1, 2, 3]);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(damaged(&cluster), [1, 2, 3], "nobody answers it");
        change_build(&mut cluster, 2, false).await;
        assert_eq!(damaged(&cluster), [1, 2, 3]);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(damaged(&cluster), [3], "each has what the other lacks");
        // Back, and forth.
        change_build(&mut cluster, 1, true).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(damaged(&cluster), [3]);
        change_build(&mut cluster, 1, false).await;
        change_build(&mut cluster, 3, false).await;
        assert_eq!(damaged(&cluster), [3]);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(damaged(&cluster), Vec::<NodeId>::new());
        finish(cluster, load).await;
    });
}
