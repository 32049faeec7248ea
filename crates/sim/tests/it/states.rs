//! What is read and watched while the state of a node stands still, or is replaced by a snapshot.

use std::sync::atomic::Ordering;
use std::time::Duration;

use firn_engine::Error;
use firn_engine::key::SeqNo;
use firn_engine::watch::{Step, Watch, WatchOptions};
use firn_replica::{ReadLevel, Replicator};
use firn_sim::cluster::{Settings, put};
use tokio::time::sleep;

use crate::scenarios::{booted_with, fill, follower_of, simulate};

/// The leader's engine takes nothing more until it has flushed, which it does not: entries are committed
/// that are not applied there. Whoever reads now must be told of them.
#[test]
fn a_read_waits_for_what_is_committed_and_not_applied() {
    simulate(async {
        let settings = Settings {
            request_timeout: Duration::from_secs(600),
            ..Settings::default()
        };
        let (mut cluster, leader) = booted_with(51, 3, settings).await;
        let (node, other) = (
            cluster.node(leader),
            cluster.node(follower_of(&cluster, leader)),
        );
        let work_ms = &cluster.machines[&leader].work_ms;
        work_ms.store(60_000, Ordering::Relaxed);
        let mut writes = Vec::new();
        for n in 0..200_u32 {
            let node = node.clone();
            writes.push(tokio::spawn(async move {
                let key = format!("key{n:05}").into_bytes();
                node.propose(put(&key, &[b'v'; 1000], None)).await
            }));
            // Not all in one entry.
            sleep(Duration::from_millis(5)).await;
        }
        sleep(Duration::from_millis(200)).await;
        let status = node.status();
        let applied = status.applied.unwrap().index;
        let committed = status.committed.unwrap().index;
        assert!(applied < committed, "it applied all: {status:?}");
        let key = (0..200).map(|n| format!("key{n:05}")).find(|key| {
            let there =
                |node: &firn_replica::Node| node.db().get(key.as_bytes()).unwrap().is_some();
            there(&other) && !there(&node)
        });
        let key = key.expect("a key that is committed and not applied by the leader");
        let ask = |level| {
            let node = node.clone();
            tokio::spawn(async move { node.read_barrier(level).await })
        };
        let reads = [ask(ReadLevel::Linearizable), ask(ReadLevel::Lease)];
        let point = other.read_barrier(ReadLevel::Linearizable).await.unwrap();
        assert!(point.index.unwrap() >= committed, "{point:?}");
        assert!(point.db.get(key.as_bytes()).unwrap().is_some());
        sleep(Duration::from_millis(200)).await;
        let waiting = reads.iter().filter(|read| !read.is_finished()).count();
        assert_eq!(
            node.status().applied.unwrap().index,
            applied,
            "it stands still"
        );
        assert_eq!(waiting, 2, "a read that did not wait for what is committed");

        work_ms.store(1, Ordering::Relaxed);
        for read in reads {
            let point = read.await.unwrap().unwrap();
            assert!(point.index.unwrap() >= committed, "{point:?}");
            assert!(point.db.get(key.as_bytes()).unwrap().is_some());
        }
        for write in writes {
            write.await.unwrap().unwrap();
        }
        cluster.settle().await.unwrap();
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

/// Takes all that a watch has to tell now.
fn listen(watch: &mut Watch, next: &mut u64) -> Result<(), Error> {
    loop {
        match watch.step()? {
            Step::Batch(batch) => {
                for event in batch.events() {
                    assert_eq!(event.version.0, *next, "each version once, in order");
                    *next += 1;
                }
            }
            Step::Passed => {}
            Step::CaughtUp => return Ok(()),
        }
    }
}

/// A watch is open while a snapshot replaces the state of its node: it was told everything up to where it
/// ends, and who goes on from there is told that what comes next is not known here.
#[test]
fn a_watch_ends_where_a_snapshot_replaces_its_state() {
    simulate(async {
        let (mut cluster, leader) = booted_with(52, 3, Settings::default()).await;
        let away = follower_of(&cluster, leader);
        fill(&cluster, leader, 20).await;
        cluster.settle().await.unwrap();
        let node = cluster.node(away);
        let mut watch = node.db().watch(WatchOptions::from(SeqNo(1))).unwrap();
        let mut next = 1;
        listen(&mut watch, &mut next).unwrap();
        let told = next;
        assert!(told > 20, "{told}");
        cluster.part(&[away].into());
        fill(&cluster, leader, 400).await;
        cluster.node(leader).snapshot().await.unwrap();
        sleep(Duration::from_secs(4)).await;
        let purged = cluster.node(leader).status().purged.unwrap().index;
        assert!(purged > node.status().last_index.unwrap(), "{purged}");
        listen(&mut watch, &mut next).unwrap();
        assert_eq!(next, told, "it is cut off");
        cluster.settle().await.unwrap();
        assert!(
            node.status().purged.unwrap().index >= purged,
            "by a snapshot"
        );

        let ended = listen(&mut watch, &mut next).unwrap_err();
        assert!(matches!(ended, Error::Closed(_)), "{ended}");
        assert_eq!(next, told, "nothing is told after what it lacks");
        match node.db().watch(WatchOptions::from(SeqNo(told))) {
            Err(Error::WatchTooOld { wanted, oldest }) => {
                assert!(wanted == told && oldest >= told + 400, "{wanted} {oldest}");
            }
            other => panic!("{other:?}"),
        }
        // From now on it tells again.
        let mut watch = node.db().watch(WatchOptions::default()).unwrap();
        next = watch.next_version().0;
        let begin = next;
        fill(&cluster, leader, 3).await;
        cluster.settle().await.unwrap();
        listen(&mut watch, &mut next).unwrap();
        assert!(next >= begin + 3, "from {begin} to {next}");
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}
