//! How writes come together into entries.

use std::sync::Arc;
use std::time::Duration;

use firn_io::rng::Rng;
use firn_replica::{Error, Replicator};
use firn_sim::cluster::put;
use tokio::time::{Instant, sleep, timeout};

use crate::scenarios::{booted, follower_of, simulate};

/// Clients that write again some time after their answer came, in `millis` (drawn anew each time). Returns
/// writes in an entry, and the longest that one waited for its answer.
fn clients(count: u64, millis: std::ops::Range<u64>) -> (f64, Duration) {
    simulate(async {
        let (cluster, leader) = booted(count, 3).await;
        let node = cluster.node(leader);
        node.propose(put(b"first", b"v", None)).await.unwrap();
        let before = node.counts();
        let mut writers = Vec::new();
        for id in 0..count {
            let (node, millis) = (Arc::new(node.clone()), millis.clone());
            writers.push(tokio::spawn(async move {
                let mut rng = Rng::new(id);
                let mut longest = Duration::ZERO;
                for n in 0..200_u64 {
                    let micros = rng.between(millis.start * 1000, millis.end * 1000 - 1);
                    sleep(Duration::from_micros(micros)).await;
                    let begun = Instant::now();
                    let key = format!("{id} {n}").into_bytes();
                    node.propose(put(&key, b"v", None)).await.unwrap();
                    longest = longest.max(begun.elapsed());
                }
                longest
            }));
        }
        let mut longest = Duration::ZERO;
        for writer in writers {
            longest = longest.max(writer.await.unwrap());
        }
        let after = node.counts();
        assert_eq!(after.writes - before.writes, count * 200);
        let entries = (after.entries - before.entries) as f64;
        ((count * 200) as f64 / entries, longest)
    })
}

#[test]
fn clients_that_wait_for_their_answers_share_entries() {
    let (writes, longest) = clients(32, 0..1);
    assert!(writes > 24.0, "{writes} writes an entry, {longest:?}");
}

#[test]
fn clients_that_take_their_time_are_not_held_up() {
    // One after the other, as one alone would be.
    let (_, alone) = clients(1, 0..1);
    let (writes, longest) = clients(32, 0..100);
    assert!(
        writes < 8.0 && longest < alone * 4,
        "{writes} writes an entry, {longest:?} and {alone:?}"
    );
}

/// What queued up at a leader that was cut off goes to the one that leads then, rather than to its own log.
#[test]
fn what_queued_up_while_a_leader_was_cut_off_is_not_proposed_by_it() {
    simulate(async {
        let (mut cluster, old) = booted(7, 3).await;
        let node = cluster.node(old);
        node.propose(put(b"first", b"v", None)).await.unwrap();
        cluster.part(&[old].into());
        let entries = node.counts().entries;
        let mut waiting = Vec::new();
        for n in 0..64_u8 {
            let node = node.clone();
            let write = async move { node.propose(put(&[n], b"v", None)).await };
            waiting.push(tokio::spawn(write));
            sleep(Duration::from_millis(1)).await;
        }
        let other = cluster.node(follower_of(&cluster, old));
        let led = async {
            while other.status().leader.is_none_or(|leader| leader == old) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), led).await.unwrap();
        cluster.heal();
        for result in waiting {
            match result.await.unwrap() {
                Ok(_) | Err(Error::Unknown(_) | Error::NotLeader { .. } | Error::NoQuorum) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let proposed = node.counts().entries - entries;
        assert!(proposed <= 2, "{proposed} entries");
        cluster.settle().await.unwrap();
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

/// A client that was told that nobody knows what became of its write does not see it minutes later.
#[test]
fn what_nobody_waits_for_any_more_is_not_written() {
    simulate(async {
        let (mut cluster, old) = booted(8, 3).await;
        let node = cluster.node(old);
        node.propose(put(b"first", b"v", None)).await.unwrap();
        cluster.part(&[old].into());
        let mut waiting = Vec::new();
        for n in 0..16_u8 {
            let node = node.clone();
            let write = async move { node.propose(put(&[n], b"old", None)).await };
            waiting.push(tokio::spawn(write));
            sleep(Duration::from_millis(1)).await;
        }
        for result in waiting {
            let told = result.await.unwrap();
            assert!(told.is_err(), "{told:?}");
        }
        let other = cluster.node(follower_of(&cluster, old));
        for n in 0..16_u8 {
            other.propose(put(&[n], b"new", None)).await.unwrap();
        }
        cluster.heal();
        node.propose(put(b"last", b"v", None)).await.unwrap();
        cluster.settle().await.unwrap();
        for n in 0..16_u8 {
            let value = other.db().get(&[n]).unwrap();
            assert_eq!(value.as_deref(), Some(&b"new"[..]), "{n}");
        }
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}
