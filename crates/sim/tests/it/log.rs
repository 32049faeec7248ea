//! What the log costs on disk, and how much of it there is.

use std::sync::Arc;
use std::time::Duration;

use firn_engine::{Outcome, WriteBatch};
use firn_io::fs::fault::OpKind;
use firn_io::fs::mem::MemFs;
use firn_io::rng::Rng;
use firn_replica::{MemberChange, NodeId, Replicator, Write};
use firn_sim::cluster::{Cluster, Settings, member, put};
use firn_sim::net::{CALM, Weather};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use crate::scenarios::{booted, booted_with, change, fill, follower_of, promote, simulate};

/// What a node did to its disk: the kind, the file, where and how much.
type Trace = Arc<Mutex<Vec<(OpKind, String, u64, u64)>>>;

fn traced(cluster: &Cluster, id: NodeId) -> Trace {
    let trace = Trace::default();
    let seen = Arc::clone(&trace);
    let faults = cluster.faults(id).unwrap();
    faults.set_after_hook(Box::new(move |_, op| {
        if op.kind.is_mutation() {
            let path = op.path.display().to_string();
            seen.lock().push((op.kind, path, op.offset, op.len));
        }
    }));
    trace
}

/// An entry is one write of the log on each node, where the one before ended, and at most one sync; many
/// entries together share them. Nothing else is written.
#[test]
fn entries_cost_one_write_and_one_sync_each_at_most() {
    simulate(async {
        let settings = Settings {
            mapped: false,
            segment_bytes: 1 << 20,
            log_bytes: 4 << 20,
            memtable_bytes: 1 << 20,
            ..Settings::default()
        };
        let (mut cluster, leader) = booted_with(41, 3, settings).await;
        fill(&cluster, leader, 3).await;
        sleep(Duration::from_millis(500)).await;
        let node = cluster.node(leader);
        let traces: Vec<Trace> = (1..=3).map(|id| traced(&cluster, id)).collect();
        let entries = 30;
        for n in 0..entries {
            node.propose(put(&[n], b"v", None)).await.unwrap();
        }
        // Before the logs are idle and leave a marker.
        sleep(Duration::from_millis(100)).await;
        for trace in &traces {
            let trace = std::mem::take(&mut *trace.lock());
            let mut at = None;
            let (mut writes, mut syncs) = (0, 0);
            for (kind, path, offset, len) in &trace {
                assert!(path.ends_with(".wal"), "{kind:?} of {path}");
                match kind {
                    OpKind::Write => {
                        writes += 1;
                        assert!(at.is_none_or(|at| at == *offset), "{trace:?}");
                        at = Some(offset + len);
                    }
                    OpKind::Sync => syncs += 1,
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(writes, entries, "{trace:?}");
            assert!(
                (1..=writes).contains(&syncs),
                "{syncs} syncs of {writes} writes"
            );
        }
        let many: Vec<_> = (0..200_u64)
            .map(|n| {
                let node = node.clone();
                tokio::spawn(async move {
                    let write = put(&n.to_le_bytes(), b"v", None);
                    node.propose(write).await
                })
            })
            .collect();
        for write in many {
            write.await.unwrap().unwrap();
        }
        for trace in &traces {
            let trace = trace.lock();
            let count = |wanted| trace.iter().filter(|op| op.0 == wanted).count();
            let (writes, syncs) = (count(OpKind::Write), count(OpKind::Sync));
            assert!(
                writes < 20 && syncs <= writes,
                "{writes} writes, {syncs} syncs"
            );
        }
        cluster.settle().await.unwrap();
    });
}

/// The size of each node's log on disk.
fn log_sizes(cluster: &Cluster) -> Vec<(NodeId, u64)> {
    let size = |disk: &MemFs| {
        let log = disk.files().into_iter();
        let log = log.filter(|path| path.starts_with("/node/raft"));
        log.map(|path| disk.read_file(path).unwrap().len() as u64)
            .sum()
    };
    let machines = cluster.machines.iter();
    machines.map(|(&id, m)| (id, size(&m.disk))).collect()
}

/// Entries that stay for followers that were away for a moment do not keep more log than there may be.
#[test]
fn the_log_is_bounded_where_entries_are_large() {
    simulate(async {
        let settings = Settings {
            kept_entries: 10_000,
            ..Settings::default()
        };
        let (mut cluster, leader) = booted_with(43, 3, settings).await;
        let node = cluster.node(leader);
        for n in 0..300_u32 {
            let write = put(&n.to_le_bytes(), &[7; 4 << 10], None);
            node.propose(write).await.unwrap();
            if n % 30 < 29 {
                continue;
            }
            // A snapshot, and then what it has goes.
            sleep(Duration::from_secs(4)).await;
            for (id, bytes) in log_sizes(&cluster) {
                assert!(bytes < 300 << 10, "node {id}, entry {n}: {bytes} bytes");
            }
        }
        cluster.settle().await.unwrap();
    });
}

/// A node that joins gets one snapshot and then what was written meanwhile, although that is more than the
/// log keeps otherwise.
#[test]
fn a_node_joins_beside_a_load_of_large_entries() {
    simulate(async {
        let (mut cluster, leader) = booted(44, 3).await;
        let node = cluster.node(leader);
        // Nothing that can be compressed: it takes seconds to send.
        let mut rng = Rng::new(44);
        let mut large = move |n: u32| {
            let value: Vec<u8> = (0..512)
                .flat_map(|_| rng.next_u64().to_le_bytes())
                .collect();
            put(&n.to_le_bytes(), &value, None)
        };
        for n in 0..200 {
            node.propose(large(n)).await.unwrap();
        }
        // A snapshot, and then what it has goes.
        sleep(Duration::from_secs(4)).await;
        cluster.net.set_weather(Weather {
            most_ms: 60,
            ..CALM
        });
        let through = node.clone();
        let writer = tokio::spawn(async move {
            for n in 0.. {
                through.propose(large(n % 200)).await.unwrap();
                sleep(Duration::from_millis(200)).await;
            }
        });
        let before = cluster.watcher.snapshots();
        let old = follower_of(&cluster, leader);
        cluster.destroy(old);
        cluster.add_machine(4);
        cluster.start(4).await.unwrap();
        change(&node, MemberChange::Remove([old].into())).await;
        change(&node, MemberChange::AddLearner(4, member(4))).await;
        let level = async {
            loop {
                let status = node.status();
                let has = status.progress.get(&4).copied().flatten();
                if has.is_some_and(|has| has + 5 > status.last_index.unwrap_or(0)) {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(30), level).await.unwrap();
        assert_eq!(cluster.watcher.snapshots() - before, 1);
        promote(&node, 4).await;
        assert!(!writer.is_finished());
        writer.abort();
        cluster.settle().await.unwrap();
    });
}

/// A namespace that was written once does not keep the log of all that came after.
#[test]
fn the_log_is_bounded_beside_an_idle_namespace() {
    simulate(async {
        let (mut cluster, leader) = booted(42, 3).await;
        let node = cluster.node(leader);
        let made = node.propose(Write::create_namespace("idle")).await.unwrap();
        let Outcome::Created(idle) = made.outcome else {
            panic!("{made:?}");
        };
        let mut batch = WriteBatch::new();
        batch.put(idle, b"once", b"and never again").unwrap();
        node.propose(Write::batch(&mut batch)).await.unwrap();
        let mut most = 0;
        for round in 0..10 {
            fill(&cluster, leader, 300).await;
            for (id, bytes) in log_sizes(&cluster) {
                assert!(bytes < 300 << 10, "node {id}, round {round}: {bytes} bytes");
                most = most.max(bytes);
            }
        }
        // A megabyte was written, and more log than is kept at once.
        assert!(most > 48 << 10, "{most}");
        cluster.settle().await.unwrap();
        for id in 1..=3 {
            let db = cluster.node(id).db();
            let idle = db.namespace("idle").unwrap();
            assert!(db.get_entry(&idle, b"once").unwrap().is_some());
        }
    });
}
