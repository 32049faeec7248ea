//! Faults with a script. Names begin with the number that `docs/testing.md` lists them by; those that
//! need no script are found by seeds (see `seeds.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use firn_engine::batch::Condition;
use firn_engine::key::{NamespaceId, SeqNo};
use firn_engine::watch::{Step as WatchStep, WatchOptions};
use firn_engine::{Change, Outcome, ScanOptions, WriteBatch};
use firn_io::fs::Fs;
use firn_io::fs::fault::{Fault, OpKind, Rule};
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_replica::message::{Answer, Refusal, Request, VoteRequest};
use firn_replica::types::Vote;
use firn_replica::{Error, LogId, MemberChange, NodeId, ReadLevel, Replicator, Role, Write};
use firn_sim::client::{Load, LoadSettings};
use firn_sim::clock::EPOCH_MS;
use firn_sim::cluster::{Cluster, Settings, is_corruption, member, put};
use firn_sim::damage::{Target, files};
use firn_sim::stage;
use tokio::time::{Instant, sleep, timeout};

/// Runs a script to its end, without a panic of anybody.
pub(crate) fn simulate<T>(work: impl Future<Output = T>) -> T {
    let (result, panics) = stage::simulate(work);
    assert_eq!(panics, Vec::<String>::new());
    result.expect("no panic")
}

pub(crate) async fn booted(seed: u64, nodes: u64) -> (Cluster, NodeId) {
    booted_with(seed, nodes, Settings::default()).await
}

pub(crate) async fn booted_with(seed: u64, nodes: u64, settings: Settings) -> (Cluster, NodeId) {
    let mut cluster = Cluster::new(seed, nodes, settings);
    cluster.boot().await;
    let leader = cluster.wait_for_leader().await.unwrap();
    (cluster, leader)
}

pub(crate) fn follower_of(cluster: &Cluster, leader: NodeId) -> NodeId {
    *cluster.alive().iter().find(|&&id| id != leader).unwrap()
}

pub(crate) async fn fill(cluster: &Cluster, through: NodeId, keys: u64) {
    for n in 0..keys {
        let key = format!("key{n:05}").into_bytes();
        let write = put(&key, &[b'v'; 300], None);
        cluster.node(through).propose(write).await.unwrap();
    }
}

/// Everything heals; nothing that clients were told was wrong.
pub(crate) async fn finish(mut cluster: Cluster, load: Load) {
    cluster.heal();
    let mut history = load.end().await;
    cluster.settle().await.unwrap();
    let leader = cluster.wait_for_leader().await.unwrap();
    let db = cluster.node(leader).db();
    let (violations, undecided) = history.finish(|key| {
        let entry = db.get_entry(&db.default_namespace(), key);
        let entry = entry.map_err(|error| error.to_string())?;
        Ok(entry.map(|entry| (entry.value.to_vec(), entry.version)))
    });
    assert_eq!(violations, Vec::<String>::new());
    assert_eq!(undecided, 0);
    assert!(history.counts.writes > 5, "{:?}", history.counts);
    assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
}

pub(crate) fn load(cluster: &mut Cluster) -> Load {
    Load::start(cluster, LoadSettings::default())
}

async fn replace(cluster: &mut Cluster, old: NodeId, new: NodeId) {
    cluster.destroy(old);
    cluster.add_machine(new);
    cluster.start(new).await.unwrap();
    let node = cluster.node(cluster.wait_for_leader().await.unwrap());
    let remove = MemberChange::Remove([old].into());
    change(&node, remove).await;
    change(&node, MemberChange::AddLearner(new, member(new))).await;
    promote(&node, new).await;
}

/// Changes members, and tries again while another change is on its way or a node is behind.
pub(crate) async fn change(node: &firn_replica::Node, change: MemberChange) {
    let mut tries = 0;
    while let Err(error) = node.change_members(change.clone()).await {
        tries += 1;
        assert!(tries < 100, "{error}: {:?}", node.status());
        sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn promote(node: &firn_replica::Node, id: NodeId) {
    change(node, MemberChange::Promote([id].into())).await;
}

#[test]
fn a_cluster_elects_writes_and_reads_everywhere() {
    for nodes in [1, 3, 5] {
        simulate(async {
            let (mut cluster, _) = booted(nodes, nodes).await;
            for id in 1..=nodes {
                let node = cluster.node(id);
                let key = format!("from {id}").into_bytes();
                let absent = || put(&key, b"v", Some(Condition::Absent));
                let outcome = node.propose(absent()).await.unwrap().outcome;
                assert!(matches!(outcome, Outcome::Written { .. }), "{outcome:?}");
                for level in [ReadLevel::Linearizable, ReadLevel::Lease] {
                    let reader = match level {
                        ReadLevel::Lease => cluster.wait_for_leader().await.unwrap(),
                        _ => id % nodes + 1,
                    };
                    let reader = cluster.node(reader);
                    let point = reader.read_barrier(level).await.unwrap();
                    assert_eq!(point.db.get(&key).unwrap().as_deref(), Some(&b"v"[..]));
                    reader.confirm_lease(&point).await.unwrap();
                }
                let outcome = node.propose(absent()).await.unwrap().outcome;
                assert!(matches!(outcome, Outcome::ConditionFailed { index: 0, .. }));
            }
            let made = cluster.node(1).propose(Write::create_namespace("n")).await;
            assert!(matches!(made.unwrap().outcome, Outcome::Created(_)));
            cluster.settle().await.unwrap();
            for id in 1..=nodes {
                assert!(cluster.node(id).db().namespace("n").is_ok());
                cluster.node(id).shutdown().await.unwrap();
            }
            assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
        });
    }
}

#[test]
fn s01_leader_kill() {
    for nodes in [3, 5] {
        simulate(async {
            let (mut cluster, mut leader) = booted(100 + nodes, nodes).await;
            let load = load(&mut cluster);
            for _ in 0..4 {
                sleep(Duration::from_millis(700)).await;
                cluster.kill(leader, None);
                let begin = Instant::now();
                let next = loop {
                    match cluster.leader() {
                        Some(next) => break next,
                        None => sleep(Duration::from_millis(2)).await,
                    }
                };
                let most = cluster.settings.timing.election_max * 2;
                let took = begin.elapsed();
                // Two nodes may stand at once, which takes one more round.
                assert!(took < most * 2, "{took:?}");
                sleep(Duration::from_millis(300)).await;
                cluster.start(leader).await.unwrap();
                leader = next;
            }
            finish(cluster, load).await;
        });
    }
}

#[test]
fn s05_bitrot_log_middle() {
    simulate(async {
        let (mut cluster, leader) = booted(5, 3).await;
        let load = load(&mut cluster);
        fill(&cluster, leader, 150).await;
        let hurt = follower_of(&cluster, leader);
        cluster.kill(hurt, None);
        let disk = cluster.machines[&hurt].disk.clone();
        let old = files(&disk, Target::Log)[1].clone();
        disk.flip_bit(&old, 3000, 2).unwrap();
        let log = |disk: &MemFs| -> Vec<Vec<u8>> {
            let segments = disk
                .files()
                .into_iter()
                .filter(|f| f.extension() == Some("wal".as_ref()));
            segments.map(|f| disk.read_file(f).unwrap()).collect()
        };
        let before = log(&disk);
        let error = cluster.start(hurt).await.unwrap_err();
        assert!(is_corruption(&error), "{error}");
        let name = old.file_name().unwrap().to_string_lossy().into_owned();
        assert!(error.to_string().contains(&name), "{error} names no {name}");
        let disk = cluster.machines[&hurt].disk.clone();
        assert!(before == log(&disk), "no log is shortened");
        replace(&mut cluster, hurt, 4).await;
        finish(cluster, load).await;
    });
}

#[test]
fn s06_bitrot_sstable() {
    simulate(async {
        let (mut cluster, leader) = booted(6, 3).await;
        fill(&cluster, leader, 300).await;
        let hurt = follower_of(&cluster, leader);
        cluster.settle().await.unwrap();
        cluster.kill(hurt, None);
        let disk = cluster.machines[&hurt].disk.clone();
        let tables = files(&disk, Target::Tables);
        let bytes = |file: &PathBuf| disk.read_file(file).unwrap().len();
        let table = tables.iter().max_by_key(|file| bytes(file)).unwrap();
        disk.flip_bit(table, bytes(table) as u64 / 2, 1).unwrap();
        // Where the block is may be read when the node starts.
        let Ok(()) = cluster.start(hurt).await else {
            return;
        };
        cluster.heal();
        sleep(Duration::from_millis(500)).await;
        let node = cluster.node(hurt);
        let (mut wrong, mut errors) = (0, 0);
        for n in 0..300 {
            let key = format!("key{n:05}").into_bytes();
            match node.db().get(&key) {
                Ok(value) => wrong += u64::from(value.as_deref() != Some(&[b'v'; 300][..])),
                Err(_) => errors += 1,
            }
        }
        assert_eq!(wrong, 0, "{errors} errors");
        assert!(node.content_hash().is_err() || errors == 0);
        let healthy = follower_of(&cluster, hurt);
        assert!(cluster.node(healthy).content_hash().is_ok());
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

#[test]
fn s07_bitrot_names() {
    simulate(async {
        let (mut cluster, leader) = booted(7, 3).await;
        fill(&cluster, leader, 200).await;
        let hurt = follower_of(&cluster, leader);
        cluster.kill(hurt, None);
        let whole = cluster.machines[&hurt].disk.clone();
        let named = files(&whole, Target::Names);
        assert!(named.len() >= 3, "{named:?}");
        for path in named {
            for is_lost in [false, true] {
                let disk = whole.fork();
                if is_lost {
                    disk.remove_file(&path).unwrap();
                } else {
                    disk.flip_bit(&path, 12, 3).unwrap();
                }
                cluster.machines.get_mut(&hurt).unwrap().disk = disk;
                let error = cluster.start(hurt).await;
                let error = error.expect_err(&path.to_string_lossy());
                assert!(is_corruption(&error), "{}: {error}", path.display());
            }
        }
        cluster.machines.get_mut(&hurt).unwrap().disk = whole.fork();
        cluster.start(hurt).await.unwrap();
        cluster.settle().await.unwrap();
    });
}

/// A bit in another block on each node: what one lacks the others have.
#[test]
fn s09_fsync_eio_once() {
    simulate(async {
        let (mut cluster, leader) = booted(41, 3).await;
        let load = load(&mut cluster);
        sleep(Duration::from_millis(500)).await;
        let rule = Rule::new(Fault::LostSync)
            .on(OpKind::Sync)
            .path_ends(".wal");
        cluster.faults(leader).unwrap().add_rule(rule.times(1));
        let lost = cluster.node(leader);
        sleep(Duration::from_secs(2)).await;
        let status = lost.status();
        assert_eq!(status.role, Role::Stopped);
        assert!(status.failure.is_some());
        assert!(lost.propose(put(b"k", b"v", None)).await.is_err());
        let other = follower_of(&cluster, leader);
        let written = cluster.node(other).propose(put(b"k", b"v", None)).await;
        written.unwrap();
        // Its disk lost what was not synced; what it had promised it still has.
        cluster.kill(leader, Some(CrashMode::DropUnsynced));
        cluster.start(leader).await.unwrap();
        finish(cluster, load).await;
    });
}

#[test]
fn s10_enospc() {
    simulate(async {
        let (mut cluster, leader) = booted(10, 3).await;
        let load = load(&mut cluster);
        for room in [0, 4 << 10, 20 << 10, 60 << 10] {
            for id in [leader, follower_of(&cluster, leader)] {
                let disk = &cluster.machines[&id].disk;
                disk.set_capacity(disk.used_bytes() + room);
                let other = *cluster.alive().iter().rfind(|&&other| other != id).unwrap();
                for n in 0..40_u8 {
                    // The others go on, once they know that it left.
                    let _ = cluster
                        .node(other)
                        .propose(put(&[n], &[n; 900], None))
                        .await;
                }
                let written = cluster.node(other).propose(put(b"k", b"v", None)).await;
                written.unwrap();
                cluster.heal();
                // A flush that met the full disk may be told to the node only now, with its next snapshot:
                // then it stops, and is started again here.
                sleep(Duration::from_secs(4)).await;
                cluster.revive(id).await.unwrap();
                sleep(Duration::from_millis(500)).await;
            }
        }
        finish(cluster, load).await;
    });
}

#[test]
fn s10_a_leader_that_cannot_flush_stops_and_another_leads() {
    simulate(async {
        let (mut cluster, leader) = booted(110, 3).await;
        let other = follower_of(&cluster, leader);
        let rule = Rule::new(Fault::NoSpace).on(OpKind::Write);
        let faults = cluster.faults(leader).unwrap();
        faults.add_rule(rule.path_ends(".sst"));
        let mut refused = 0;
        for n in 0..400_u32 {
            let key = format!("key{n:05}").into_bytes();
            let value: Vec<u8> = (0..900).map(|at| (at * n) as u8).collect();
            let written = cluster.node(other).propose(put(&key, &value, None)).await;
            refused += u32::from(written.is_err());
        }
        assert!(refused > 0, "its memtables are larger than this");
        assert!(refused < 10, "{refused}");
        let status = cluster.node(leader).status();
        assert_eq!(status.role, Role::Stopped);
        let failure = status.failure.unwrap();
        assert!(failure.contains("flush fails"), "{failure}");
        assert_ne!(cluster.node(other).status().leader, Some(leader));
        cluster.heal();
        cluster.revive(leader).await.unwrap();
        cluster.settle().await.unwrap();
        let found = cluster.node(leader).db().get(b"key00399").unwrap();
        assert!(found.is_some(), "it has what the others wrote");
    });
}

#[test]
fn s11_slow_disk_leader() {
    simulate(async {
        let (mut cluster, leader) = booted(11, 3).await;
        let load = load(&mut cluster);
        let term = cluster.node(leader).status().term;
        for slow in [50, 500, 2000] {
            cluster.machines[&leader]
                .log_ms
                .store(slow, Ordering::Relaxed);
            sleep(Duration::from_secs(4)).await;
            let follower = follower_of(&cluster, leader);
            let written = cluster.node(follower).propose(put(b"k", b"v", None)).await;
            written.unwrap();
        }
        let now = cluster.node(follower_of(&cluster, leader)).status().term;
        assert!(now <= term + 2, "from term {term} to {now}");
        finish(cluster, load).await;
    });
}

/// A follower dies at every operation on its disk, one after the other, while it takes writes,
/// flushes, compacts, makes snapshots, purges and is sent snapshots.
#[test]
fn s12_s13_crash_at_every_io() {
    simulate(async {
        let (mut cluster, leader) = booted(12, 3).await;
        let load = load(&mut cluster);
        let victim = follower_of(&cluster, leader);
        let modes = [CrashMode::DropUnsynced, CrashMode::Torn, CrashMode::KeepAll];
        for round in 0..120_u64 {
            let fault = cluster.faults(victim).unwrap();
            fault.fail_from(fault.op_count() + round);
            let node = cluster.node(victim);
            tokio::spawn(async move { node.snapshot().await });
            if round % 4 == 0 {
                let leader = cluster.wait_for_leader().await.unwrap();
                let node = cluster.node(leader);
                tokio::spawn(async move { node.snapshot().await });
            }
            sleep(Duration::from_millis(60)).await;
            cluster.kill(victim, Some(modes[round as usize % 3]));
            cluster.verify(victim).unwrap();
            if round % 10 == 9 {
                // Long enough that it needs a snapshot.
                let leader = cluster.wait_for_leader().await.unwrap();
                fill(&cluster, leader, 60).await;
                cluster.node(leader).snapshot().await.unwrap();
            }
            cluster.start(victim).await.unwrap();
        }
        assert!(cluster.watcher.snapshots() > 0);
        finish(cluster, load).await;
    });
}

#[test]
fn s14_purge_vs_snapshot() {
    simulate(async {
        let (mut cluster, leader) = booted(3, 3).await;
        let away = follower_of(&cluster, leader);
        cluster.kill(away, None);
        fill(&cluster, leader, 400).await;
        cluster.node(leader).snapshot().await.unwrap();
        sleep(Duration::from_secs(4)).await;
        let purged = cluster.node(leader).status().purged.unwrap().index;
        assert!(purged > 200, "{purged}");
        cluster.start(away).await.unwrap();
        cluster.settle().await.unwrap();
        let node = cluster.node(away);
        assert!(node.status().purged.unwrap().index >= purged);
        // And again after a restart, from what was installed.
        cluster.kill(away, Some(CrashMode::DropUnsynced));
        cluster.start(away).await.unwrap();
        cluster.settle().await.unwrap();
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

#[test]
fn s15_a_damaged_snapshot_is_refused() {
    simulate(async {
        let (mut cluster, leader) = booted(15, 3).await;
        let away = follower_of(&cluster, leader);
        cluster.kill(away, None);
        fill(&cluster, leader, 400).await;
        let disk = cluster.machines[&leader].disk.clone();
        // The whole table, so that no compaction can take it away unseen.
        for table in files(&disk, Target::Tables) {
            let len = disk.read_file(&table).unwrap().len() as u64;
            for at in (100..len).step_by(1000) {
                disk.flip_bit(&table, at, 5).unwrap();
            }
        }
        let _ = cluster.node(leader).snapshot().await;
        sleep(Duration::from_secs(4)).await;
        cluster.start(away).await.unwrap();
        sleep(Duration::from_secs(3)).await;
        let node = cluster.node(away);
        assert!(node.content_hash().is_ok(), "damage does not spread");
        assert_eq!(node.status().failure, None);
        // Who cannot bring others up to date does not lead.
        let damaged = cluster.node(leader).status();
        assert_eq!(damaged.role, Role::Stopped, "{damaged:?}");
        let next = cluster.wait_for_leader().await.unwrap();
        let written = cluster.node(next).propose(put(b"k", b"v", None)).await;
        written.unwrap();
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

#[test]
fn s16_isolate_leader() {
    simulate(async {
        let (mut cluster, leader) = booted(21, 3).await;
        let first = cluster.node(leader).propose(put(b"k", b"1", None)).await;
        first.unwrap();
        cluster.part(&[leader].into());
        let alone = cluster.node(leader);
        let write = tokio::spawn({
            let alone = alone.clone();
            async move { alone.propose(put(b"k", b"2", None)).await }
        });
        let read = alone.read_barrier(ReadLevel::Linearizable).await;
        assert!(read.is_err(), "{read:?}");
        assert!(write.await.unwrap().is_err());
        let lease = alone.read_barrier(ReadLevel::Lease).await;
        assert!(lease.is_err(), "its lease is over: {lease:?}");
        assert!(alone.read_barrier(ReadLevel::Stale).await.is_ok());
        let other = follower_of(&cluster, leader);
        let written = cluster.node(other).propose(put(b"k", b"3", None)).await;
        assert!(written.is_ok(), "the majority goes on: {written:?}");
        cluster.settle().await.unwrap();
        let value = alone.db().get(b"k").unwrap();
        assert_eq!(value.as_deref(), Some(&b"3"[..]));
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

#[test]
fn s17_bridge() {
    simulate(async {
        let (mut cluster, leader) = booted(17, 5).await;
        let load = load(&mut cluster);
        // The leader reaches one node, which reaches all; these elect somebody else.
        let bridge = follower_of(&cluster, leader);
        for id in 1..=5 {
            if id != leader && id != bridge {
                cluster.net.cut(leader, id);
                cluster.net.cut(id, leader);
            }
        }
        let others: Vec<NodeId> = (1..=5)
            .filter(|id| ![leader, bridge].contains(id))
            .collect();
        sleep(Duration::from_secs(5)).await;
        for &id in &others {
            let written = cluster.node(id).propose(put(b"k", b"v", None)).await;
            assert!(written.is_ok(), "node {id}: {written:?}");
        }
        finish(cluster, load).await;
    });
}

#[test]
fn s18_one_way() {
    for hears_nobody in [true, false] {
        simulate(async {
            let (mut cluster, leader) = booted(18, 3).await;
            let load = load(&mut cluster);
            let term = cluster.node(leader).status().term;
            for id in (1..=3).filter(|&id| id != leader) {
                if hears_nobody {
                    cluster.net.cut(id, leader);
                } else {
                    cluster.net.cut(leader, id);
                }
            }
            sleep(Duration::from_secs(5)).await;
            let other = follower_of(&cluster, leader);
            let written = cluster.node(other).propose(put(b"k", b"v", None)).await;
            assert!(written.is_ok(), "{written:?}");
            let now = cluster.node(other).status().term;
            assert!(now <= term + 4, "from term {term} to {now}");
            finish(cluster, load).await;
        });
    }
}

/// A leader that stood still between being allowed to read and having read.
#[test]
fn s21_process_pause() {
    simulate(async {
        let (mut cluster, leader) = booted(22, 3).await;
        let old = cluster.node(leader);
        old.propose(put(b"k", b"1", None)).await.unwrap();
        let pace = cluster.pace(leader).unwrap();
        let reader = old.clone();
        let read = pace.spawn(async move {
            let point = reader.read_barrier(ReadLevel::Lease).await?;
            sleep(Duration::from_millis(1)).await;
            let value = point.db.get(b"k").map_err(Error::Engine)?;
            reader.confirm_lease(&point).await?;
            Ok::<_, Error>(value.map(|value| value.to_vec()))
        });
        sleep(Duration::from_micros(500)).await;
        pace.pause();
        let other = follower_of(&cluster, leader);
        let begin = Instant::now();
        let written = loop {
            let write = put(b"k", b"2", None);
            match cluster.node(other).propose(write).await {
                Ok(written) => break written,
                Err(_) => assert!(begin.elapsed() < Duration::from_secs(10)),
            }
        };
        assert!(written.id.term > 1);
        pace.resume();
        let read = read.await.unwrap();
        assert!(
            read.is_err() || read.as_ref().is_ok_and(|v| v.as_deref() == Some(b"2")),
            "a stale answer: {read:?}"
        );
        cluster.settle().await.unwrap();
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

/// Who gave leadership away has no lease any more, however recently a majority answered: the next leader
/// does not wait for its end.
#[test]
fn a_leader_that_hands_over_has_no_lease() {
    simulate(async {
        let (mut cluster, leader) = booted(23, 3).await;
        let old = cluster.node(leader);
        old.propose(put(b"k", b"1", None)).await.unwrap();
        let point = old.read_barrier(ReadLevel::Lease).await.unwrap();
        assert!(point.lease_term.is_some());
        // It is heard and hears nobody: not who leads, and not its own end.
        for id in (1..=3).filter(|&id| id != leader) {
            cluster.net.cut(id, leader);
        }
        let begin = Instant::now();
        let next = follower_of(&cluster, leader);
        let handing_over = tokio::spawn({
            let old = old.clone();
            async move { old.transfer(next).await }
        });
        while cluster.node(next).status().role != Role::Leader {
            sleep(Duration::from_millis(1)).await;
        }
        let written = cluster.node(next).propose(put(b"k", b"2", None)).await;
        written.unwrap();
        let took = begin.elapsed();
        assert!(took < Duration::from_millis(500), "it is over anyway");
        let read = old.read_barrier(ReadLevel::Lease).await;
        let stale = read.is_ok_and(|point| point.lease_term.is_some());
        assert!(!stale, "it reads by the lease that it gave away");
        let _ = handing_over.await;
        cluster.settle().await.unwrap();
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

/// The same where consensus hands over by itself, since the leader is no member any more. Nobody tells it
/// who leads now.
#[test]
fn a_leader_that_was_removed_has_no_lease() {
    simulate(async {
        let (cluster, leader) = booted(24, 3).await;
        let old = cluster.node(leader);
        old.propose(put(b"k", b"1", None)).await.unwrap();
        let removing = tokio::spawn({
            let old = old.clone();
            async move {
                old.change_members(MemberChange::Remove([leader].into()))
                    .await
            }
        });
        let others: Vec<NodeId> = (1..=3).filter(|&id| id != leader).collect();
        let next = loop {
            let leads = |&&id: &&NodeId| cluster.node(id).status().role == Role::Leader;
            if let Some(&next) = others.iter().find(leads) {
                break next;
            }
            sleep(Duration::from_micros(100)).await;
        };
        let mut reads = 0;
        for turn in 0..200_u32 {
            let value = turn.to_string();
            let writer = cluster.node(next);
            let written = writer.propose(put(b"k", value.as_bytes(), None)).await;
            written.unwrap();
            // It may have ended by then.
            let read = timeout(Duration::from_millis(1), old.read_barrier(ReadLevel::Lease)).await;
            if let Ok(Ok(point)) = read
                && point.lease_term.is_some()
            {
                reads += 1;
            }
        }
        assert_eq!(reads, 0, "reads by a lease of who does not lead");
        let _ = removing.await;
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

/// The leader goes by a lease of a follower that is started again meanwhile, and cannot be reached since.
/// Another node has not heard of the leader for long: it wants to lead, and needs that follower's vote.
#[test]
fn a_lease_outlives_a_restart_of_who_granted_it() {
    for seed in 25..35 {
        simulate(async {
            let (mut cluster, leader) = booted(seed, 3).await;
            let old = cluster.node(leader);
            old.propose(put(b"k", b"1", None)).await.unwrap();
            let others: Vec<NodeId> = (1..=3).filter(|&id| id != leader).collect();
            let (granter, rival) = (others[0], others[1]);
            let away = async |id: NodeId| {
                cluster.net.cut(leader, id);
                cluster.net.cut(id, leader);
            };
            away(rival).await;
            sleep(Duration::from_secs(1)).await;
            let point = old.read_barrier(ReadLevel::Lease).await.unwrap();
            assert!(point.lease_term.is_some(), "the granter hears it");
            away(granter).await;
            cluster.kill(granter, None);
            cluster.start(granter).await.unwrap();
            let next = loop {
                let leads = |&&id: &&NodeId| cluster.node(id).status().role == Role::Leader;
                if let Some(&next) = others.iter().find(leads) {
                    break next;
                }
                sleep(Duration::from_millis(1)).await;
            };
            let written = cluster.node(next).propose(put(b"k", b"2", None)).await;
            written.unwrap();
            let read = timeout(Duration::from_millis(1), old.read_barrier(ReadLevel::Lease)).await;
            let stale = matches!(read, Ok(Ok(point)) if point.lease_term.is_some());
            assert!(!stale, "seed {seed}: two leaders, one of them by a lease");
            cluster.settle().await.unwrap();
            assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
        });
    }
}

/// A node that is started again votes when no lease can be left that it granted, and not before; at
/// once if it granted none, or if the lead is handed over.
#[test]
fn who_starts_again_votes_when_no_lease_can_be_left() {
    simulate(async {
        let (mut cluster, leader) = booted(35, 3).await;
        fill(&cluster, leader, 5).await;
        let granter = follower_of(&cluster, leader);
        let most = cluster.settings.timing.election_max;
        // What anybody knows of it is what it answers here.
        for id in 1..=3 {
            cluster.part(&[id].into());
        }
        let mut term = cluster.node(leader).status().term;
        let mut ask = async |node: firn_replica::Node, real: bool, transfer: bool| {
            term += 1;
            let (node_of_rival, committed) = (9, false);
            let asked = VoteRequest {
                vote: Vote {
                    term,
                    node: node_of_rival,
                    committed,
                },
                last: Some(LogId { term, index: 1000 }),
                transfer,
            };
            let request = match real {
                true => Request::Vote(asked),
                false => Request::PreVote(asked),
            };
            match Answer::decode(&node.handle(request.encode().into()).await) {
                Ok(Answer::Vote(answer)) => answer.granted,
                other => panic!("{other:?}"),
            }
        };
        let begin = Instant::now();
        cluster.kill(granter, None);
        cluster.start(granter).await.unwrap();
        let node = cluster.node(granter);
        let started = Instant::now();
        for wait in [Duration::ZERO, most / 2, most - Duration::from_millis(1)] {
            tokio::time::sleep_until(begin + wait).await;
            assert!(!ask(node.clone(), false, false).await, "after {wait:?}");
            assert!(!ask(node.clone(), true, false).await, "after {wait:?}");
        }
        tokio::time::sleep_until(started + most + Duration::from_millis(2)).await;
        assert!(ask(node.clone(), false, false).await, "it would vote now");
        assert_eq!(node.status().role, Role::Follower);

        // The leader that handed over has no lease.
        cluster.kill(granter, None);
        cluster.start(granter).await.unwrap();
        let node = cluster.node(granter);
        assert!(!ask(node.clone(), true, false).await);
        assert!(ask(node, true, true).await, "leadership is handed over");

        // It voted for somebody of whom it never heard as a leader: nobody has a lease of it.
        cluster.kill(granter, None);
        cluster.start(granter).await.unwrap();
        assert!(ask(cluster.node(granter), true, false).await);

        // Who led granted none.
        cluster.kill(leader, None);
        cluster.start(leader).await.unwrap();
        assert!(ask(cluster.node(leader), true, false).await);
    });
}

/// What nodes promised before a power cut costs no more than the time of one election after it.
#[test]
fn after_a_power_cut_somebody_leads_soon() {
    for (nodes, most) in [(1, 100), (3, 600), (5, 600)] {
        for seed in 0..20 {
            let took = simulate(async {
                let (mut cluster, leader) = booted(seed, nodes).await;
                fill(&cluster, leader, 5).await;
                for id in 1..=nodes {
                    cluster.kill(id, Some(CrashMode::DropUnsynced));
                }
                for id in 1..=nodes {
                    cluster.start(id).await.unwrap();
                }
                let begin = Instant::now();
                cluster.wait_for_leader().await.unwrap();
                begin.elapsed()
            });
            assert!(
                took < Duration::from_millis(most),
                "seed {seed}, {nodes} nodes: {took:?}"
            );
        }
    }
}

#[test]
fn s22_wallclock_jump() {
    simulate(async {
        let (mut cluster, leader) = booted(31, 3).await;
        let node = cluster.node(leader);
        let write = |key: &[u8], expires: u64| {
            let mut batch = WriteBatch::new();
            batch
                .put_expiring(NamespaceId(0), key, b"v", expires)
                .unwrap();
            Write::batch(&mut batch)
        };
        let (soon, late) = (EPOCH_MS + 8_000, EPOCH_MS + 7_200_000);
        node.propose(write(b"soon", soon)).await.unwrap();
        node.propose(write(b"late", late)).await.unwrap();
        let read = async |id: NodeId, key: &[u8]| {
            let node = cluster.node(id);
            let point = node.read_barrier(ReadLevel::Linearizable).await.unwrap();
            point.db.get(key).unwrap().is_some()
        };
        assert!(read(leader, b"soon").await);
        sleep(Duration::from_secs(10)).await;
        // The first read lets time pass; all nodes agree where it went.
        read(leader, b"soon").await;
        sleep(Duration::from_secs(1)).await;
        for id in 1..=3 {
            assert!(!read(id, b"soon").await, "on node {id}");
            assert!(read(id, b"late").await, "on node {id}");
        }
        // Back by an hour: what is gone stays gone. Forth by an hour: what has two stays.
        for jump in [-3_600_000_i64, 3_600_000] {
            for machine in cluster.machines.values() {
                machine.wall.store(jump, Ordering::Relaxed);
            }
            node.propose(put(b"k", b"v", None)).await.unwrap();
            read(leader, b"soon").await;
            sleep(Duration::from_secs(2)).await;
            for id in 1..=3 {
                assert!(!read(id, b"soon").await, "on node {id} after {jump}");
                assert!(read(id, b"late").await, "on node {id} after {jump}");
            }
        }
        cluster.settle().await.unwrap();
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

#[test]
fn s26_member_replace() {
    simulate(async {
        let (mut cluster, leader) = booted(11, 3).await;
        let load = load(&mut cluster);
        sleep(Duration::from_secs(1)).await;
        cluster.add_machine(4);
        cluster.start(4).await.unwrap();
        let node = cluster.node(leader);
        let join = MemberChange::AddLearner(4, member(4));
        change(&node, join.clone()).await;
        let again = node.change_members(join).await;
        assert!(again.is_err(), "a number is used once");
        // A learner is a read replica.
        let replica = cluster.node(4);
        assert!(replica.read_barrier(ReadLevel::Linearizable).await.is_ok());
        assert_eq!(replica.status().role, Role::Learner);
        promote(&node, 4).await;
        assert_eq!(node.status().voters(), [1, 2, 3, 4].into());
        // Leading goes over to the new one, and the old one leaves.
        node.transfer(4).await.unwrap();
        assert_eq!(cluster.wait_for_leader().await.unwrap(), 4);
        let remove = || MemberChange::Remove([leader].into());
        let not_here = node.change_members(remove()).await;
        assert!(matches!(
            not_here,
            Err(Error::NotLeader { leader: Some(4) })
        ));
        let new = cluster.node(4);
        change(&new, remove()).await;
        assert!(!new.status().membership.nodes.contains_key(&leader));
        cluster.destroy(leader);
        // Of the three that are left, one is down: nobody may leave who is needed.
        let others: Vec<NodeId> = (1..=3).filter(|&id| id != leader).collect();
        cluster.kill(others[0], None);
        sleep(Duration::from_secs(2)).await;
        let needed = MemberChange::Remove([others[1]].into());
        let refused = new.change_members(needed).await;
        assert!(
            matches!(refused, Err(Error::InvalidArgument(_))),
            "{refused:?}"
        );
        cluster.start(others[0]).await.unwrap();
        finish(cluster, load).await;
    });
}

/// The leader dies when both sets of voters count, and nobody asks again.
#[test]
fn s26_a_change_that_lost_its_leader_is_ended() {
    simulate(async {
        let (mut cluster, leader) = booted(26, 3).await;
        cluster.add_machine(4);
        cluster.start(4).await.unwrap();
        let node = cluster.node(leader);
        change(&node, MemberChange::AddLearner(4, member(4))).await;
        sleep(Duration::from_millis(500)).await;
        let changing = node.clone();
        tokio::spawn(async move {
            changing
                .change_members(MemberChange::Promote([4].into()))
                .await
        });
        let is_joint = |status: firn_replica::Status| status.membership.voters.len() == 2;
        for _ in 0..10_000 {
            let follower = follower_of(&cluster, leader);
            if is_joint(cluster.node(follower).status()) {
                break;
            }
            sleep(Duration::from_micros(50)).await;
        }
        cluster.kill(leader, None);
        let begin = Instant::now();
        loop {
            let statuses = cluster.statuses();
            let are_four = |status: &firn_replica::Status| {
                status.membership.voters.len() == 1 && status.voters().len() == 4
            };
            if statuses.iter().all(are_four) {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "{statuses:?}");
            sleep(Duration::from_millis(20)).await;
        }
        cluster.settle().await.unwrap();
    });
}

#[test]
#[cfg_attr(
    debug_assertions,
    ignore = "the consensus library panics in builds with debug assertions where it refuses in others"
)]
fn s27_id_reuse() {
    simulate(async {
        let (mut cluster, leader) = booted(27, 3).await;
        let load = load(&mut cluster);
        fill(&cluster, leader, 50).await;
        // Another number than the directory's.
        let hurt = follower_of(&cluster, leader);
        cluster.kill(hurt, None);
        let disk = cluster.machines[&hurt].disk.clone();
        cluster.add_machine(9);
        cluster.machines.get_mut(&9).unwrap().disk = disk.fork();
        let error = cluster.start(9).await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("belongs to node {hurt}")),
            "{error}"
        );
        cluster.machines.remove(&9);
        // It comes back empty, as if it were new: the others go on without it.
        cluster.machines.get_mut(&hurt).unwrap().disk = Default::default();
        cluster.start(hurt).await.unwrap();
        sleep(Duration::from_secs(3)).await;
        let leader = cluster.wait_for_leader().await.unwrap();
        assert_ne!(leader, hurt);
        let written = cluster.node(leader).propose(put(b"k", b"v", None)).await;
        written.unwrap();
        replace(&mut cluster, hurt, 4).await;
        finish(cluster, load).await;
    });
}

#[test]
#[cfg_attr(
    debug_assertions,
    ignore = "the consensus library panics in builds with debug assertions where it refuses in others"
)]
fn s28_disk_swap_rollback() {
    simulate(async {
        let (mut cluster, leader) = booted(28, 3).await;
        let load = load(&mut cluster);
        fill(&cluster, leader, 50).await;
        let hurt = follower_of(&cluster, leader);
        let backup = cluster.machines[&hurt]
            .disk
            .crash(1, CrashMode::DropUnsynced);
        fill(&cluster, leader, 50).await;
        sleep(Duration::from_millis(200)).await;
        cluster.kill(hurt, None);
        cluster.machines.get_mut(&hurt).unwrap().disk = backup;
        cluster.start(hurt).await.unwrap();
        sleep(Duration::from_secs(3)).await;
        let leader = cluster.wait_for_leader().await.unwrap();
        let written = cluster.node(leader).propose(put(b"k", b"v", None)).await;
        written.unwrap();
        replace(&mut cluster, hurt, 4).await;
        finish(cluster, load).await;
    });
}

#[test]
fn s29_learner_never_counts() {
    simulate(async {
        let (mut cluster, leader) = booted(29, 3).await;
        for id in [4, 5] {
            cluster.add_machine(id);
            cluster.start(id).await.unwrap();
            let join = MemberChange::AddLearner(id, member(id));
            change(&cluster.node(leader), join).await;
        }
        sleep(Duration::from_millis(500)).await;
        let voters: BTreeSet<NodeId> = (1..=3).filter(|&id| id != leader).collect();
        cluster.part(&voters);
        let written = cluster.node(leader).propose(put(b"k", b"v", None)).await;
        assert!(written.is_err(), "one voter and two learners: {written:?}");
        // Nor does one get a vote that cannot be heard of.
        cluster.heal();
        let leader = cluster.wait_for_leader().await.unwrap();
        cluster.kill(5, None);
        fill(&cluster, leader, 1200).await;
        let node = cluster.node(leader);
        let promoted = node.change_members(MemberChange::Promote([5].into())).await;
        assert!(
            matches!(promoted, Err(Error::InvalidArgument(_))),
            "{promoted:?}"
        );
        cluster.settle().await.unwrap();
    });
}

#[test]
fn s36_follower_forward_loop() {
    simulate(async {
        let (cluster, leader) = booted(36, 3).await;
        let follower = follower_of(&cluster, leader);
        // Somebody takes it for the leader.
        let request = Request::Propose(vec![put(b"k", b"v", None)]).encode();
        let answer = cluster.node(follower).handle(request.into()).await;
        let answer = Answer::decode(&answer).unwrap();
        assert!(
            matches!(answer, Answer::Refused(Refusal::NotLeader(Some(id))) if id == leader),
            "{answer:?}"
        );
        let answer = cluster
            .node(follower)
            .handle(Request::ReadIndex.encode().into())
            .await;
        assert!(matches!(
            Answer::decode(&answer).unwrap(),
            Answer::Refused(_)
        ));
    });
}

/// What changes said of the keys.
#[derive(Default)]
struct Told {
    next: u64,
    keys: BTreeMap<Vec<u8>, (Vec<u8>, u64)>,
}

impl Told {
    /// Takes what a node has to tell until `end`; whether it had anything to say at all.
    async fn listen(&mut self, node: &firn_replica::Node, end: Instant) -> bool {
        let barrier = timeout(
            Duration::from_secs(1),
            node.read_barrier(ReadLevel::Linearizable),
        );
        let Ok(Ok(point)) = barrier.await else {
            return false;
        };
        // It was started since, and knows nothing of before; or it is being replaced.
        let Ok(mut watch) = point.db.watch(WatchOptions::from(SeqNo(self.next))) else {
            return false;
        };
        let mut has_heard = false;
        loop {
            match watch.step() {
                Ok(WatchStep::Batch(batch)) => {
                    has_heard = true;
                    for event in batch.events() {
                        self.take(event.version.0, event.change);
                    }
                }
                Ok(WatchStep::Passed) => {}
                Ok(WatchStep::CaughtUp) if Instant::now() < end => {
                    sleep(Duration::from_millis(5)).await;
                }
                Ok(WatchStep::CaughtUp) => return true,
                Err(_) => return has_heard,
            }
        }
    }

    fn take(&mut self, version: u64, change: Change<'_>) {
        assert_eq!(version, self.next, "each version once, in order");
        self.next += 1;
        match change {
            Change::Put { key, value, .. } => {
                self.keys.insert(key.to_vec(), (value.to_vec(), version));
            }
            Change::Delete { key } => {
                self.keys.remove(key);
            }
            Change::DeleteRange { start, end } => {
                self.keys.retain(|key, _| **key < *start || **key >= *end);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn s37_changes_across_leaders() {
    simulate(async {
        let (mut cluster, mut leader) = booted(37, 3).await;
        let load = load(&mut cluster);
        let mut told = Told {
            next: 1,
            ..Told::default()
        };
        let mut heard = BTreeSet::new();
        for round in 0..9 {
            let id = [leader, leader % 3 + 1, (leader + 1) % 3 + 1][round % 3];
            let node = cluster.node(id);
            let end = Instant::now() + Duration::from_millis(300);
            if told.listen(&node, end).await {
                heard.insert(id);
            }
            drop(node);
            cluster.kill(leader, (round % 2 == 0).then_some(CrashMode::DropUnsynced));
            leader = cluster.wait_for_leader().await.unwrap();
            sleep(Duration::from_millis(100)).await;
            for id in 1..=3 {
                cluster.revive(id).await.unwrap();
            }
            // Before others forget what it was not told of yet.
            let node = cluster.node(leader);
            assert!(
                told.listen(&node, Instant::now()).await,
                "the new leader knows"
            );
        }
        assert_eq!(heard.len(), 3, "{heard:?}");
        cluster.heal();
        load.end().await;
        cluster.settle().await.unwrap();
        let node = cluster.node(cluster.wait_for_leader().await.unwrap());
        assert!(told.listen(&node, Instant::now()).await);
        assert!(told.next > 100, "{} versions", told.next);
        let db = node.db();
        let namespace = db.default_namespace();
        let mut scan = db.scan(&namespace, ScanOptions::default()).unwrap();
        let mut there = BTreeMap::new();
        while scan.next().unwrap() {
            let entry = db.get_entry(&namespace, scan.key()).unwrap().unwrap();
            there.insert(scan.key().to_vec(), (entry.value.to_vec(), entry.version.0));
        }
        assert!(
            there == told.keys,
            "{} keys and {}",
            there.len(),
            told.keys.len()
        );
        assert_eq!(cluster.watcher.violations(), Vec::<String>::new());
    });
}

#[test]
fn s38_overload() {
    simulate(async {
        let settings = Settings {
            queue_bytes: 64 << 10,
            ..Settings::default()
        };
        let (mut cluster, leader) = booted_with(38, 3, settings).await;
        let term = cluster.node(leader).status().term;
        for machine in cluster.machines.values() {
            machine.log_ms.store(100, Ordering::Relaxed);
        }
        let mut tasks = Vec::new();
        for n in 0..1000_u64 {
            let node = cluster.node(1 + n % 3);
            tasks.push(tokio::spawn(async move {
                let write = put(&n.to_le_bytes(), &[7; 1000], None);
                node.propose(write).await
            }));
        }
        let (mut done, mut overloaded) = (0, 0);
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => done += 1,
                Err(Error::Overloaded) => overloaded += 1,
                Err(_) => {}
            }
        }
        assert!(
            done > 50 && overloaded > 300,
            "{done} done, {overloaded} refused"
        );
        assert_eq!(
            cluster.node(leader).status().term,
            term,
            "elections are quiet"
        );
        cluster.heal();
        let written = cluster.node(leader).propose(put(b"k", b"v", None)).await;
        written.unwrap();
        cluster.settle().await.unwrap();
    });
}

#[test]
fn s40_minority_disk_loss() {
    simulate(async {
        let (mut cluster, leader) = booted(40, 5).await;
        let load = load(&mut cluster);
        fill(&cluster, leader, 200).await;
        let lost: Vec<NodeId> = (1..=5).filter(|&id| id != leader).take(2).collect();
        for &id in &lost {
            cluster.kill(id, None);
        }
        replace(&mut cluster, lost[0], 6).await;
        replace(&mut cluster, lost[1], 7).await;
        let voters = cluster
            .node(cluster.wait_for_leader().await.unwrap())
            .status()
            .voters();
        assert_eq!(voters.len(), 5);
        finish(cluster, load).await;
    });
}

#[test]
fn a_node_that_stands_still_is_missed_and_comes_back() {
    simulate(async {
        let (mut cluster, leader) = booted(50, 3).await;
        let load = load(&mut cluster);
        let pace: Arc<_> = cluster.pace(leader).unwrap();
        pace.pause();
        sleep(Duration::from_secs(2)).await;
        let other = follower_of(&cluster, leader);
        let node = cluster.node(other);
        let write = node.propose(put(b"k", b"v", None));
        let written = timeout(Duration::from_secs(2), write).await;
        written.expect("in time").unwrap();
        pace.resume();
        sleep(Duration::from_secs(1)).await;
        assert_ne!(cluster.node(leader).status().role, Role::Leader);
        let root = Path::new(firn_sim::cluster::ROOT);
        assert!(cluster.machines[&leader].disk.exists(root).unwrap());
        finish(cluster, load).await;
    });
}
