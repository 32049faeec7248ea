use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use firn_io::Env;
use firn_io::clock::ManualClock;
use firn_io::exec::{Executor, Stepper};
use firn_io::fs::Fs;
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::rng::{Rng, SeededEntropy};

use crate::batch::{BatchReader, Condition, Requirement, WriteBatch};
use crate::external::apply::{Applier, Change, Outcome};
use crate::external::state::ExternalLog;
use crate::key::{NamespaceId, SeqNo};
use crate::options::Options;
use crate::version::edit::Applied;
use crate::watch::{Step as WatchStep, WatchOptions};
use crate::{Db, Error, ScanOptions, WriteOptions};

mod refill;

#[derive(Debug, Default)]
struct FakeLog {
    synced: AtomicU64,
    flushed: AtomicU64,
}

impl ExternalLog for FakeLog {
    fn sync_to(&self, index: u64) -> firn_io::Result<()> {
        self.synced.fetch_max(index, Ordering::Relaxed);
        Ok(())
    }

    fn flushed(&self, applied: Applied) {
        assert!(self.synced.load(Ordering::Relaxed) >= applied.index);
        self.flushed.fetch_max(applied.index, Ordering::Relaxed);
    }
}

struct Node {
    disk: MemFs,
    exec: Arc<Stepper>,
    log: Arc<FakeLog>,
    db: Db,
    applier: Applier,
}

fn options() -> Options {
    Options {
        memory_bytes: 8 << 20,
        memtable_bytes: Some(16 << 10),
        ballast_bytes: 0,
        min_blob_bytes: 600,
        ..Options::default()
    }
}

const DIR: &str = "/db";

impl Node {
    fn open(disk: MemFs, seed: u64) -> Self {
        Self::open_as(disk, seed, options())
    }

    fn open_as(disk: MemFs, seed: u64, options: Options) -> Self {
        Self::open_on(Arc::new(disk.clone()), disk, seed, options)
    }

    /// On what stands before the disk.
    fn open_on(fs: Arc<dyn Fs>, disk: MemFs, seed: u64, options: Options) -> Self {
        let clock = Arc::new(ManualClock::new(7));
        let exec = Arc::new(Stepper::new(seed, clock.clone()));
        let env = Env {
            fs,
            clock,
            entropy: Arc::new(SeededEntropy::new(seed)),
            exec: exec.clone(),
        };
        let log = Arc::new(FakeLog::default());
        let opened = Db::open_external(env, DIR, options, log.clone());
        let (db, applier) = opened.expect("it opens");
        Self {
            disk,
            exec,
            log,
            db,
            applier,
        }
    }

    fn next(&self) -> usize {
        self.applier.applied().0.map_or(0, |at| at.index as usize)
    }

    /// Everything that readers see, with versions and expiries.
    fn contents(&self) -> Vec<String> {
        let mut out = Vec::new();
        for namespace in self.db.namespaces() {
            out.push(format!("{} {:?}", namespace.name(), namespace.id()));
            let mut scan = self.db.scan(&namespace, ScanOptions::default()).unwrap();
            while scan.next().unwrap() {
                let entry = self.db.get_entry(&namespace, scan.key()).unwrap().unwrap();
                out.push(format!("{:?} {entry:?}", scan.key()));
            }
        }
        out
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Requirement>, WriteBatch),
    Create(String),
    Drop(String),
}

#[derive(Clone, Debug)]
struct Entry {
    time_ms: u64,
    steps: Vec<Step>,
}

fn apply(node: &Node, index: usize, entry: &mut Entry) -> Vec<Outcome> {
    try_apply(node, index, entry).unwrap()
}

fn try_apply(node: &Node, index: usize, entry: &mut Entry) -> Result<Vec<Outcome>, Error> {
    let mut sealed = Vec::new();
    for step in &mut entry.steps {
        sealed.push(match step {
            Step::Write(_, batch) => batch.seal(SeqNo::ZERO).to_vec(),
            _ => Vec::new(),
        });
    }
    let changes: Vec<Change<'_>> = entry
        .steps
        .iter()
        .zip(&sealed)
        .map(|(step, bytes)| match step {
            Step::Write(requirements, _) => Change::Write {
                requirements,
                batch: BatchReader::new(bytes).unwrap(),
            },
            Step::Create(name) => Change::CreateNamespace(name),
            Step::Drop(name) => Change::DropNamespace(name),
        })
        .collect();
    let position = Applied {
        term: 1,
        index: index as u64,
    };
    let owner = format!("owner {index}").into_bytes().into();
    node.applier
        .apply(position, entry.time_ms, Some(owner), &changes)
}

fn history(rng: &mut Rng, len: usize) -> Vec<Entry> {
    let mut time_ms = 1000;
    let key = |rng: &mut Rng| format!("k{:02}", rng.below(40)).into_bytes();
    (0..len)
        .map(|_| {
            time_ms += rng.below(50);
            // A leader whose clock is behind.
            let told = time_ms - rng.below(40);
            let steps = (0..rng.between(0, 3))
                .map(|_| match rng.below(12) {
                    0 => Step::Create(format!("n{}", rng.below(3))),
                    1 => Step::Drop(format!("n{}", rng.below(3))),
                    _ => {
                        let namespace = NamespaceId(rng.below(5) as u32);
                        let mut batch = WriteBatch::new();
                        for _ in 0..rng.between(1, 4) {
                            let value = vec![rng.below(256) as u8; rng.below(900) as usize];
                            let key = key(rng);
                            match rng.below(8) {
                                0 => batch.delete(namespace, &key),
                                1 => batch.delete_range(namespace, &key, b"k99"),
                                2 | 3 => batch.put_expiring(
                                    namespace,
                                    &key,
                                    &value,
                                    time_ms + rng.below(200),
                                ),
                                _ => batch.put(NamespaceId(0), &key, &value),
                            }
                            .unwrap();
                        }
                        let mut requirements = Vec::new();
                        if rng.one_in(2) {
                            let condition = match rng.below(2) {
                                0 => Condition::Absent,
                                _ => Condition::Exists,
                            };
                            requirements.push(Requirement {
                                namespace: NamespaceId(0),
                                key: key(rng),
                                condition,
                            });
                        }
                        Step::Write(requirements, batch)
                    }
                })
                .collect();
            Entry {
                time_ms: told,
                steps,
            }
        })
        .collect()
}

/// A database that crashes, flushes and compacts at any time goes through the same states, and gives
/// the same answers, as one that never does.
#[test]
fn replay_after_crashes_gives_the_same_state_at_every_entry() {
    for seed in 0..30 {
        let mut rng = Rng::new(seed);
        let mut entries = history(&mut rng, 150);
        let calm = Node::open(MemFs::new(), 1);
        let mut wanted = Vec::new();
        for (index, entry) in entries.iter_mut().enumerate() {
            let outcomes = apply(&calm, index + 1, entry);
            wanted.push((outcomes, calm.contents()));
        }
        let mut node = Node::open(MemFs::new(), seed);
        let mut crashes = 0;
        while node.next() < entries.len() {
            let index = node.next();
            let outcomes = apply(&node, index + 1, &mut entries[index]);
            assert_eq!(outcomes, wanted[index].0, "seed {seed}, entry {index}");
            for _ in 0..rng.below(3) {
                node.exec.run_one();
            }
            if rng.one_in(15) {
                node.applier.flush_soon().unwrap();
            }
            if rng.one_in(30) {
                assert_eq!(node.contents(), wanted[index].1, "seed {seed}, {index}");
            }
            if rng.one_in(25) && crashes < 12 {
                crashes += 1;
                let modes = [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn];
                let disk = node.disk.crash(rng.next_u64(), modes[rng.index(3)]);
                let known = node.log.flushed.load(Ordering::Relaxed);
                node.exec.clear();
                std::mem::forget(node.db);
                node = Node::open(disk, rng.next_u64());
                let (applied, owner) = node.applier.applied();
                let index = applied.map_or(0, |at| at.index);
                assert!(index >= known, "what was flushed is there");
                if index > 0 {
                    assert_eq!(*owner, *format!("owner {index}").as_bytes());
                    let wanted = &wanted[index as usize - 1].1;
                    assert_eq!(&node.contents(), wanted, "seed {seed}, at {index}");
                }
            }
        }
        assert_eq!(node.contents(), wanted[entries.len() - 1].1, "seed {seed}");
        // A copy goes through the same as well, namespaces that come later included.
        let copy = Path::new("/copy");
        node.db.checkpoint(copy).unwrap();
        let report = node.db.verify().unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        node.db.close().unwrap();
    }
}

#[test]
fn a_checkpoint_is_the_state_after_one_entry() {
    let mut rng = Rng::new(5);
    let mut entries = history(&mut rng, 120);
    let node = Node::open(MemFs::new(), 1);
    let reference = Node::open(MemFs::new(), 2);
    for (index, entry) in entries.iter_mut().enumerate().take(60) {
        apply(&node, index + 1, &mut entry.clone());
        apply(&reference, index + 1, entry);
    }
    node.db.checkpoint(Path::new("/copy")).unwrap();
    for (index, entry) in entries.iter_mut().enumerate().take(90).skip(60) {
        apply(&node, index + 1, &mut entry.clone());
        node.exec.run_all();
    }
    let clock = Arc::new(ManualClock::new(7));
    let env = Env {
        fs: Arc::new(node.disk.clone()),
        exec: Arc::new(Stepper::new(3, clock.clone())),
        entropy: Arc::new(SeededEntropy::new(3)),
        clock,
    };
    let log = Arc::new(FakeLog::default());
    let (db, applier) = Db::open_external(env, "/copy", options(), log.clone()).unwrap();
    assert_eq!(applier.applied().0.unwrap().index, 60);
    let copy = Node {
        disk: node.disk.clone(),
        exec: Arc::clone(&node.exec),
        log,
        db,
        applier,
    };
    assert_eq!(copy.contents(), reference.contents());
    for (index, entry) in entries.iter_mut().enumerate().skip(60) {
        let wanted = apply(&reference, index + 1, &mut entry.clone());
        assert_eq!(apply(&copy, index + 1, entry), wanted);
    }
    assert_eq!(copy.contents(), reference.contents());
}

fn world(disk: &MemFs) -> Env {
    let clock = Arc::new(ManualClock::new(7));
    Env {
        fs: Arc::new(disk.clone()),
        exec: Arc::new(Stepper::new(1, clock.clone())),
        entropy: Arc::new(SeededEntropy::new(1)),
        clock,
    }
}

#[test]
fn nobody_else_writes() {
    let disk = MemFs::new();
    let node = Node::open(disk.clone(), 1);
    let batch = || {
        let mut batch = WriteBatch::new();
        batch.put(NamespaceId(0), b"k", b"v").unwrap();
        batch
    };
    let refused = node.db.write(batch(), &WriteOptions::default());
    assert!(matches!(refused, Err(Error::Closed(_))), "{refused:?}");
    assert!(node.db.create_namespace("n").is_err());
    let mut entry = Entry {
        time_ms: 9,
        steps: vec![Step::Write(Vec::new(), batch())],
    };
    apply(&node, 3, &mut entry);
    assert_eq!(node.db.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    let again = node
        .applier
        .apply(Applied { term: 1, index: 3 }, 9, None, &[]);
    assert!(again.is_err(), "an entry is applied once");
    node.db.close().unwrap();
    drop(node);
    // Nor as a database with a log of its own, once it belongs to a cluster.
    let opened = Db::open_with(world(&disk), DIR, options());
    assert!(matches!(opened, Err(Error::InvalidArgument(_))));
    let read_only = Options {
        read_only: true,
        ..options()
    };
    let db = Db::open_with(world(&disk), DIR, read_only).unwrap();
    assert_eq!(db.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_database_with_unflushed_writes_of_its_own_is_refused() {
    let disk = MemFs::new();
    let db = Db::open_with(world(&disk), DIR, options()).unwrap();
    db.put(b"k", b"v").unwrap();
    let crashed = disk.fork();
    db.close().unwrap();
    let log = || Arc::new(FakeLog::default());
    let refused = Db::open_external(world(&crashed), DIR, options(), log());
    assert!(matches!(refused, Err(Error::InvalidArgument(_))));
    let (db, applier) = Db::open_external(world(&disk), DIR, options(), log()).unwrap();
    assert_eq!(db.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(applier.applied().0, None);
}

/// An entry of two writes, the second of which asks for a key whose table is damaged: nothing of it gets
/// into the files, whatever is closed, flushed or copied afterwards.
#[test]
fn an_entry_that_failed_half_way_is_not_kept() {
    let put = |key: &[u8], required: Option<&[u8]>| {
        let mut batch = WriteBatch::new();
        batch.put(NamespaceId(0), key, &[7; 300]).unwrap();
        let requirement = required.map(|key| Requirement {
            namespace: NamespaceId(0),
            key: key.to_vec(),
            condition: Condition::Exists,
        });
        Step::Write(requirement.into_iter().collect(), batch)
    };
    let entry = |steps| Entry { time_ms: 9, steps };
    let node = Node::open(MemFs::new(), 1);
    apply(&node, 1, &mut entry(vec![put(b"k", None)]));
    node.db.close().unwrap();
    let disk = node.disk.fork();
    let files = disk.files();
    let table = files
        .iter()
        .find(|path| path.extension() == Some("sst".as_ref()));
    disk.flip_bit(table.unwrap(), 100, 3).unwrap();
    let node = Node::open(disk, 2);
    let before = node.applier.applied();
    let mut sealed = Vec::new();
    let steps = vec![put(b"new", None), put(b"other", Some(b"k"))];
    for step in steps {
        let Step::Write(requirements, mut batch) = step else {
            unreachable!("only writes");
        };
        sealed.push((requirements, batch.seal(SeqNo::ZERO).to_vec()));
    }
    let changes: Vec<Change<'_>> = sealed
        .iter()
        .map(|(requirements, bytes)| Change::Write {
            requirements,
            batch: BatchReader::new(bytes).unwrap(),
        })
        .collect();
    let position = Applied { term: 1, index: 2 };
    let failed = node.applier.apply(position, 9, None, &changes);
    assert!(failed.is_err_and(|error| error.is_corruption()));
    let again = node.applier.apply(position, 9, None, &changes);
    assert!(matches!(again, Err(Error::Closed(_))), "{again:?}");
    assert!(!node.applier.flush_soon().unwrap());
    assert!(node.applier.checkpoint(Path::new("/copy")).is_err());
    node.db.close().unwrap();
    let after = Node::open(node.disk.fork(), 3);
    assert_eq!(after.applier.applied(), before);
    assert_eq!(last_version(&after), 1);
    let tables = |disk: &MemFs| {
        disk.files()
            .iter()
            .filter(|f| f.extension() == Some("sst".as_ref()))
            .count()
    };
    assert_eq!(tables(&after.disk), 1);
}

/// What a watch from `next` on tells now, in words, by version; `next` is moved behind it.
fn told(node: &Node, next: &mut u64) -> Vec<(u64, String)> {
    let mut watch = node.db.watch(WatchOptions::from(SeqNo(*next))).unwrap();
    let mut out = Vec::new();
    loop {
        match watch.step().unwrap() {
            WatchStep::Batch(batch) => {
                let told = batch.events().map(|event| {
                    let (namespace, change) = (event.namespace, event.change);
                    (event.version.0, format!("{namespace} {change:?}"))
                });
                out.extend(told);
            }
            WatchStep::Passed => panic!("nothing is filtered"),
            WatchStep::CaughtUp => break,
        }
    }
    *next = watch.next_version().0;
    out
}

fn last_version(node: &Node) -> u64 {
    let now = node.db.watch(WatchOptions::default()).unwrap();
    now.next_version().0 - 1
}

#[test]
fn watches_of_two_copies_tell_the_same_across_crashes() {
    for seed in 0..10 {
        let mut rng = Rng::new(seed ^ 0xfeed);
        let mut entries = history(&mut rng, 100);
        let calm = Node::open(MemFs::new(), 1);
        let mut node = Node::open(MemFs::new(), seed);
        let (mut at, mut of_node, mut written) = (1, Vec::new(), 0);
        while node.next() < entries.len() {
            let index = node.next();
            if calm.next() == index {
                for outcome in apply(&calm, index + 1, &mut entries[index].clone()) {
                    written += match outcome {
                        Outcome::Written { first, last } if first <= last => last.0 - first.0 + 1,
                        Outcome::Dropped => 1,
                        _ => 0,
                    };
                }
            }
            apply(&node, index + 1, &mut entries[index]);
            node.exec.run_one();
            let behind = node.next() < calm.next();
            if !behind && rng.one_in(4) {
                of_node.extend(told(&node, &mut at));
            }
            if rng.one_in(20) {
                let disk = node.disk.crash(rng.next_u64(), CrashMode::DropUnsynced);
                node.exec.clear();
                std::mem::forget(node.db);
                node = Node::open(disk, rng.next_u64());
                // It was told more than this copy has after the crash, and not more than others have.
                let version = last_version(&node);
                if version + 1 < at {
                    let ahead = node.db.watch(WatchOptions::from(SeqNo(at)));
                    assert!(matches!(ahead, Err(Error::InvalidArgument(_))), "{ahead:?}");
                } else if version >= at {
                    let old = node.db.watch(WatchOptions::from(SeqNo(at)));
                    assert!(matches!(old, Err(Error::WatchTooOld { .. })), "{old:?}");
                    of_node.extend(told(&calm, &mut at));
                }
            }
        }
        of_node.extend(told(&node, &mut at));
        let mut from = 1;
        let of_calm = told(&calm, &mut from);
        assert_eq!(of_node, of_calm, "seed {seed}");
        let versions = of_calm.iter().map(|(version, _)| *version);
        assert!(versions.eq(1..=written), "seed {seed}");
        assert_eq!(written, last_version(&calm));
        node.db.close().unwrap();
    }
}

#[test]
fn watches_reach_back_as_far_as_memory_was_granted() {
    let node = Node::open(MemFs::new(), 1);
    let write = |at: usize, len: usize| {
        let mut batch = WriteBatch::new();
        batch.put(NamespaceId(0), b"k", &vec![1; len]).unwrap();
        let mut entry = Entry {
            time_ms: 9,
            steps: vec![Step::Write(Vec::new(), batch)],
        };
        apply(&node, at, &mut entry);
    };
    let mut slow = node.db.watch(WatchOptions::default()).unwrap();
    let mut filtered = node.db.watch(WatchOptions::default().prefix(b"x")).unwrap();
    let woken = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&woken);
    assert!(matches!(slow.step(), Ok(WatchStep::CaughtUp)));
    slow.on_ready(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    for at in 1..=100 {
        write(at, 4 << 10);
    }
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    // 8 MiB of memory: an eighth of a MiB for this.
    let oldest = node.db.oldest_watchable().unwrap();
    assert!((50..90).contains(&oldest.0), "{oldest}");
    let too_old = slow.step();
    assert!(
        matches!(&too_old, Err(Error::WatchTooOld { wanted: 1, oldest: o }) if *o == oldest.0),
        "{too_old:?}"
    );
    assert!(filtered.step().is_err());
    let opened = node.db.watch(WatchOptions::from(SeqNo(oldest.0 - 1)));
    assert!(matches!(opened, Err(Error::WatchTooOld { .. })));
    let mut from = oldest.0;
    assert_eq!(told(&node, &mut from).len() as u64, 101 - oldest.0);
    let stats = node.db.stats().watch;
    assert!(
        (100 << 10..=128 << 10).contains(&stats.memory_bytes),
        "{stats:?}"
    );
    // One that is larger than all of it is told to who is there.
    let mut near = node.db.watch(WatchOptions::default()).unwrap();
    write(101, 300 << 10);
    assert!(matches!(near.step(), Ok(WatchStep::Batch(_))));
    assert_eq!(node.db.oldest_watchable().unwrap(), SeqNo(101));
    node.db.close().unwrap();
    assert!(matches!(near.step(), Err(Error::Closed(_))));
}
