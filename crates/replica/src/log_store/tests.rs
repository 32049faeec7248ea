use std::sync::atomic::{AtomicUsize, Ordering};

use firn_io::clock::ManualClock;
use firn_io::exec::{Executor, Stepper};
use firn_io::fs::fault::{Fault, FaultFs, OpKind, Rule};
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::fs::{Fs, OpenMode};
use firn_io::rng::{Rng, SeededEntropy};

use super::*;
use crate::types::{Member, Membership};

const DIR: &str = "/raft";

fn world(fs: Arc<dyn Fs>, seed: u64) -> (Env, Arc<Stepper>) {
    let clock = Arc::new(ManualClock::new(0));
    let exec = Arc::new(Stepper::new(seed, clock.clone()));
    let env = Env {
        fs,
        exec: exec.clone(),
        entropy: Arc::new(SeededEntropy::new(seed)),
        clock,
    };
    (env, exec)
}

fn options() -> LogStoreOptions {
    LogStoreOptions {
        segment_bytes: 4 << 10,
        mapped: true,
        cache_bytes: 2 << 10,
    }
}

fn open(fs: Arc<dyn Fs>, seed: u64) -> (Result<LogStore>, Arc<Stepper>) {
    let (env, exec) = world(fs, seed);
    let store = LogStore::open(env, Path::new(DIR), 1, None, &options());
    (store, exec)
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    let payload = match index % 7 {
        0 => Payload::Blank,
        1 => Payload::Membership(Membership {
            voters: vec![[1].into()],
            nodes: [(
                1,
                Member {
                    address: format!("a:{index}"),
                    ..Member::default()
                },
            )]
            .into(),
        }),
        _ => Payload::Command(vec![index as u8; len].into()),
    };
    Entry {
        id: LogId { term, index },
        payload,
    }
}

fn ignore() -> Flushed {
    Box::new(|_| ())
}

fn vote(term: u64) -> Vote {
    Vote {
        term,
        node: 1,
        committed: false,
    }
}

fn all(store: &LogStore) -> Vec<Entry> {
    store.entries(0, u64::MAX, usize::MAX).unwrap()
}

/// What a log should be.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Model {
    fn of(store: &LogStore) -> Self {
        Self {
            vote: store.vote(),
            purged: store.bounds().0,
            entries: all(store),
        }
    }

    fn next(&self) -> u64 {
        let purged = self.purged.map_or(0, |id| id.index + 1);
        self.entries.last().map_or(purged, |e| e.id.index + 1)
    }
}

/// Random histories with crashes: what is found is one of the states that the log went through, none
/// older than the last one of which it was said that it is durable.
#[test]
fn what_a_crash_leaves_is_a_state_that_was() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let mut disk = MemFs::new();
        let mut model = Model::default();
        let mut term = 1;
        for _ in 0..6 {
            let (store, exec) = open(Arc::new(disk.clone()), rng.next_u64());
            let store = store.unwrap();
            assert_eq!(Model::of(&store), model, "seed {seed}");
            // All states since the opening, and the newest one that is durable.
            let mut states = vec![model.clone()];
            let durable = Arc::new(AtomicUsize::new(0));
            for _ in 0..rng.between(5, 40) {
                let next = model.next();
                let new: Vec<Entry> = (next..next + rng.between(1, 4))
                    .map(|index| entry(term, index, rng.below(300) as usize))
                    .collect();
                let what = rng.below(10);
                if what > 4 {
                    // A crash can cut between the entries of one append.
                    for some in 1..new.len() {
                        let mut between = model.clone();
                        between.entries.extend(new[..some].iter().cloned());
                        states.push(between);
                    }
                }
                let at = states.len();
                let seen = Arc::clone(&durable);
                let flushed: Flushed = Box::new(move |result| {
                    result.unwrap();
                    seen.fetch_max(at, Ordering::Relaxed);
                });
                match what {
                    0 => {
                        term += 1;
                        model.vote = Some(vote(term));
                        store.save_vote(vote(term), flushed).unwrap();
                    }
                    1 if !model.entries.is_empty() => {
                        let keep = rng.index(model.entries.len());
                        let index = model.entries[keep].id.index;
                        model.entries.truncate(keep + 1);
                        store.truncate_after(Some(index)).unwrap();
                    }
                    2 if !model.entries.is_empty() => {
                        let upto = model.entries[rng.index(model.entries.len())].id;
                        model.purged = Some(upto);
                        model.entries.retain(|entry| entry.id > upto);
                        store.purge(upto).unwrap();
                    }
                    3 if rng.one_in(6) => {
                        let upto = LogId {
                            term,
                            index: model.next() + rng.below(5),
                        };
                        model.purged = Some(upto);
                        model.entries.clear();
                        store.purge(upto).unwrap();
                    }
                    4 => {
                        for _ in 0..rng.below(4) {
                            exec.run_one();
                        }
                        continue;
                    }
                    1..=3 => continue,
                    _ => {
                        store.set_committed(model.entries.last().map(|entry| entry.id));
                        model.entries.extend(new.iter().cloned());
                        store.append(new, flushed).unwrap();
                    }
                }
                assert_eq!(Model::of(&store), model, "seed {seed}");
                states.push(model.clone());
            }
            let modes = [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn];
            let known = durable.load(Ordering::Relaxed);
            disk = disk.crash(rng.next_u64(), modes[rng.index(3)]);
            exec.clear();
            let (after, _) = open(Arc::new(disk.clone()), rng.next_u64());
            let after = Model::of(&after.unwrap());
            let found = states.iter().rposition(|state| *state == after);
            assert!(
                found.is_some_and(|found| found >= known),
                "seed {seed}: {after:?} at {found:?}, durable {known}"
            );
            model = after;
        }
    }
}

#[test]
fn one_sync_covers_what_came_meanwhile() {
    let (store, exec) = open(Arc::new(MemFs::new()), 1);
    let store = store.unwrap();
    while exec.run_one() {}
    let before = store.stats().syncs;
    let done = Arc::new(AtomicUsize::new(0));
    for index in 0..50 {
        let done = Arc::clone(&done);
        let flushed: Flushed = Box::new(move |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        store.append(vec![entry(1, index, 9)], flushed).unwrap();
    }
    assert_eq!(done.load(Ordering::Relaxed), 0, "nothing is durable yet");
    assert_eq!(all(&store).len(), 50, "and all can be read");
    exec.run_one();
    while exec.run_one() {}
    assert_eq!(done.load(Ordering::Relaxed), 50);
    let syncs = store.stats().syncs - before;
    assert!((1..=2).contains(&syncs), "{syncs} syncs");
}

#[test]
fn segments_are_given_up_after_a_purge_and_the_vote_stays() {
    let disk = MemFs::new();
    let (store, exec) = open(Arc::new(disk.clone()), 1);
    let store = store.unwrap();
    store.save_vote(vote(3), ignore()).unwrap();
    for index in 0..400 {
        store.append(vec![entry(3, index, 200)], ignore()).unwrap();
        if index % 20 == 0 {
            exec.run_all();
        }
        if index % 50 == 49 {
            let upto = LogId {
                term: 3,
                index: index - 10,
            };
            store.purge(upto).unwrap();
        }
    }
    exec.run_all();
    assert!(store.stats().segments < 12, "{:?}", store.stats());
    store.sync().unwrap();
    drop(store);
    let (store, _) = open(Arc::new(disk.crash(1, CrashMode::DropUnsynced)), 2);
    let store = store.unwrap();
    assert_eq!(store.vote(), Some(vote(3)));
    assert_eq!(
        store.bounds().0,
        Some(LogId {
            term: 3,
            index: 389
        })
    );
    let left: Vec<u64> = all(&store).iter().map(|entry| entry.id.index).collect();
    assert_eq!(left, (390..400).collect::<Vec<u64>>());
    let one = store.entries(392, 400, 1).unwrap();
    assert_eq!(one, [entry(3, 392, 200)], "at least one, however small");
}

#[test]
fn a_gap_is_never_appended() {
    let (store, _) = open(Arc::new(MemFs::new()), 1);
    let store = store.unwrap();
    store.append(vec![entry(1, 5, 9)], ignore()).unwrap();
    for index in [0, 5, 7] {
        assert!(store.append(vec![entry(1, index, 9)], ignore()).is_err());
    }
    let upto = LogId { term: 2, index: 20 };
    store.purge(upto).unwrap();
    assert!(store.append(vec![entry(2, 6, 9)], ignore()).is_err());
    store.append(vec![entry(2, 21, 9)], ignore()).unwrap();
    assert_eq!(store.id_at(20), Some(upto));
    assert_eq!(store.id_at(19), None);
}

/// Opens a log of which one thing is wrong.
fn refused(change: impl FnOnce(&MemFs), node: NodeId, applied: Option<LogId>) -> String {
    let disk = MemFs::new();
    let (store, exec) = open(Arc::new(disk.clone()), 1);
    let store = store.unwrap();
    for index in 0..60 {
        store.append(vec![entry(1, index, 200)], ignore()).unwrap();
        exec.run_all();
    }
    store.close().unwrap();
    let before = disk.crash(1, CrashMode::DropUnsynced);
    change(&before);
    let kept = before.fork();
    let (env, _) = world(Arc::new(before.clone()), 2);
    let error = LogStore::open(env, Path::new(DIR), node, applied, &options());
    let error = error.expect_err("it must not be opened").to_string();
    for path in kept.files() {
        assert_eq!(
            kept.read_file(&path).unwrap(),
            before.read_file(&path).unwrap()
        );
    }
    error
}

#[test]
fn a_log_that_cannot_be_trusted_is_refused_and_left_alone() {
    let first = "/raft/0000000000000001.wal";
    let error = refused(|disk| disk.flip_bit(first, 900, 1).unwrap(), 1, None);
    assert!(error.contains("0001.wal"), "{error}");
    let error = refused(|disk| disk.remove_file(Path::new(first)).unwrap(), 1, None);
    assert!(!error.is_empty());
    let error = refused(|_| (), 2, None);
    assert!(error.contains("of node 1, not of node 2"), "{error}");
    let ahead = Some(LogId { term: 1, index: 60 });
    let error = refused(|_| (), 1, ahead);
    assert!(error.contains("ends at 1.59"), "{error}");
    let disk = MemFs::new();
    let (env, _) = world(Arc::new(disk), 2);
    let lost = LogStore::open(env, Path::new(DIR), 1, ahead, &options());
    assert!(lost.unwrap_err().to_string().contains("is empty"));
}

#[test]
fn damage_to_the_last_entry_that_was_read_is_no_torn_tail() {
    let disk = MemFs::new();
    let (env, exec) = world(Arc::new(disk.clone()), 1);
    let uncached = LogStoreOptions {
        cache_bytes: 0,
        ..options()
    };
    let store = LogStore::open(env, Path::new(DIR), 1, None, &uncached).unwrap();
    store.append(vec![entry(1, 0, 9)], ignore()).unwrap();
    let last_two = vec![entry(1, 1, 200), entry(1, 2, 200)];
    store.append(last_two, ignore()).unwrap();
    // No time passes: once idle, it would leave a marker anyway.
    exec.run_all();
    let first = "/raft/0000000000000001.wal";
    let bytes = disk.read_file(first).unwrap();
    let last = bytes.iter().rposition(|&byte| byte == 2).unwrap() as u64;
    disk.flip_bit(first, last, 3).unwrap();
    let torn = disk.crash(1, CrashMode::DropUnsynced);
    assert_eq!(all(&open(Arc::new(torn), 2).0.unwrap()).len(), 2);
    let error = store.entries(2, 3, 1).unwrap_err().to_string();
    assert!(error.contains("checksum is wrong"), "{error}");
    exec.run_all();
    let told = disk.crash(1, CrashMode::DropUnsynced);
    let error = open(Arc::new(told), 2).0.unwrap_err().to_string();
    assert!(error.contains("no valid record here"), "{error}");
}

#[test]
fn a_failed_sync_is_told_to_all_and_is_final() {
    let disk = MemFs::new();
    let fault = Arc::new(FaultFs::new(Arc::new(disk), 1));
    let (store, exec) = open(fault.clone(), 1);
    let store = store.unwrap();
    store.append(vec![entry(1, 0, 9)], ignore()).unwrap();
    exec.run_all();
    fault.add_rule(Rule::new(Fault::Io).on(OpKind::Sync).times(1));
    let failed = Arc::new(AtomicUsize::new(0));
    for index in 1..4 {
        let failed = Arc::clone(&failed);
        let flushed: Flushed = Box::new(move |result| {
            failed.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
        });
        store.append(vec![entry(1, index, 9)], flushed).unwrap();
    }
    exec.run_all();
    assert_eq!(failed.load(Ordering::Relaxed), 3);
    assert!(store.append(vec![entry(1, 4, 9)], ignore()).is_err());
    assert!(store.save_vote(vote(9), ignore()).is_err());
    assert!(store.sync().is_err());
    // The file system is used, so that the trait's import is too.
    assert!(fault.open(Path::new("/none"), OpenMode::Read).is_err());
}

#[test]
fn small_entries_do_not_keep_what_they_were_received_in() {
    let (store, _exec) = open(Arc::new(MemFs::new()), 1);
    let store = store.unwrap();
    let received = Bytes::from(vec![7; 256 << 10]);
    let entry = Entry {
        id: LogId { term: 1, index: 1 },
        payload: Payload::Command(received.slice(100..200)),
    };
    store.append(vec![entry.clone()], ignore()).unwrap();
    assert_eq!(store.entries(1, 2, usize::MAX).unwrap(), [entry]);
    assert!(received.is_unique());
}

#[test]
fn the_newest_entries_that_fit_are_told() {
    let mut index = Index::default();
    assert_eq!(index.last_beyond(0, 0), None);
    for n in 5..15 {
        index.push(entry(1, n, 10), Lsn(n), 100);
    }
    assert_eq!(index.last_beyond(1000, 0), None);
    assert_eq!(index.last_beyond(999, 0), Some(5));
    assert_eq!(index.last_beyond(300, 0), Some(11));
    assert_eq!(index.last_beyond(299, 0), Some(12));
    assert_eq!(index.last_beyond(0, 0), Some(14));
    // It need not be known exactly if it is not after that.
    assert_eq!(index.last_beyond(300, 10), Some(11));
    assert_eq!(index.last_beyond(300, 11), None);
    index.purge(LogId { term: 1, index: 8 });
    assert_eq!(index.last_beyond(300, 0), Some(11));
    assert_eq!(index.last_beyond(600, 0), None);
}
