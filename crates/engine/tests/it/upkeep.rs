//! Background work as writers and owners meet it: stalls that end, jobs that fail, namespaces that
//! go, checkpoints, closing in the middle of something.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, OnceLock, Weak};
use std::time::Duration;

use firn_engine::{
    Db, Error, Event, EventListener, Options, ScanOptions, WatchOptions, WriteBatch, WriteOptions,
};

use firn_io::fs::fault::{Fault, FaultFs, OpKind, Rule};
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::fs::os::OsFs;
use firn_io::fs::{Fs, OpenMode};

use crate::world::{World, tiny};

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// Puts this many keys.
fn fill(db: &Db, keys: u64) {
    let space = db.default_namespace();
    for number in 0..keys {
        let mut batch = WriteBatch::new();
        batch.put(&space, &key(number), &[7; 100]).unwrap();
        db.write(batch, &WriteOptions::buffered()).unwrap();
    }
}

fn faulty(seed: u64) -> (World, Arc<FaultFs>) {
    let disk = MemFs::new();
    let inner: Arc<dyn Fs> = Arc::new(disk.clone());
    let faults = Arc::new(FaultFs::new(inner, seed));
    (World::through(disk, faults.clone(), seed), faults)
}

/// Lets time pass, and what is due with it happen.
fn pass(world: &World, time: Duration) {
    for _ in 0..time.as_millis() / 100 {
        world.clock.advance(Duration::from_millis(100));
        world.step(u64::MAX);
    }
}

/// A database of two tables that overlap.
fn two_tables(world: &World) -> Db {
    let options = Options {
        l0_compaction_trigger: 4,
        ..tiny()
    };
    let db = world.open(options).unwrap();
    for round in 0..2 {
        for number in 0..40 {
            db.put(&key(2 * number + round), b"value").unwrap();
        }
        db.flush().unwrap();
    }
    db.wait_idle().unwrap();
    db
}

/// They do so much earlier where nothing is written meanwhile.
#[test]
fn reads_have_tables_merged_early_while_nothing_is_written() {
    for writes in [true, false] {
        let world = World::new(7);
        let db = two_tables(&world);
        let space = db.default_namespace();
        let sources = || db.stats().levels.iter().map(|l| l.files).sum::<u64>();
        for _ in 0..3 {
            assert_eq!(sources(), 2);
            for number in 0..64 {
                if writes && number % 8 == 0 {
                    db.put(&key(number), b"another").unwrap();
                }
                assert!(db.scan(&space, ScanOptions::all()).unwrap().next().unwrap());
            }
            world.clock.advance(Duration::from_millis(100));
            world.step(u64::MAX);
        }
        assert_eq!(sources(), if writes { 2 } else { 1 });
    }
}

/// Scans and point reads over two tables that overlap make one of them, and then no more.
#[test]
fn reads_that_ask_several_tables_have_them_merged() {
    for scans in [true, false] {
        let world = World::new(7);
        let db = two_tables(&world);
        let space = db.default_namespace();
        let sources = || db.stats().levels.iter().map(|l| l.files).sum::<u64>();
        assert_eq!(sources(), 2);
        let read = |times: usize| {
            for _ in 0..times {
                if scans {
                    let mut scan = db.scan(&space, ScanOptions::all()).unwrap();
                    assert!(scan.next().unwrap());
                } else {
                    assert!(db.get(&key(2)).unwrap().is_some());
                }
            }
            world.step(u64::MAX);
        };
        read(64);
        assert_eq!(sources(), 2, "too early");
        read(if scans { 1 << 10 } else { 1 << 16 });
        assert_eq!(sources(), 1, "scans: {scans}");
        let compactions = db.stats().counters.compactions;
        read(1 << 14);
        assert_eq!(db.stats().counters.compactions, compactions);
        assert_eq!(
            db.scan(&space, ScanOptions::all())
                .unwrap()
                .into_iter()
                .count(),
            80
        );
    }
}

/// A flush waits for the log where a power loss could else leave more of one write than of another, or
/// where somebody still waits for a write to be durable; and only there.
#[test]
fn a_flush_waits_for_the_log_where_it_must() {
    struct Case {
        name: &'static str,
        changefeed_bytes: u64,
        other_namespace: bool,
        pending: bool,
        watched: bool,
        waits: bool,
    }
    let case = |name, waits| Case {
        name,
        changefeed_bytes: 0,
        other_namespace: false,
        pending: false,
        watched: false,
        waits,
    };
    let cases = [
        case("one namespace", false),
        Case {
            other_namespace: true,
            ..case("another namespace needs the log", true)
        },
        Case {
            pending: true,
            ..case("a durable write that waits", true)
        },
        Case {
            watched: true,
            ..case("a watch that is open", true)
        },
        Case {
            changefeed_bytes: 1 << 20,
            ..case("segments kept for watches", true)
        },
    ];
    for case in cases {
        let world = World::new(1);
        let options = Options {
            background_sync: None,
            changefeed_bytes: case.changefeed_bytes,
            ..tiny()
        };
        let db = world.open(options).unwrap();
        let other = db.create_namespace("other").unwrap();
        let main = db.default_namespace();
        let buffered = WriteOptions::buffered();
        let put = |ns, key: &[u8], options: &WriteOptions| {
            let mut batch = WriteBatch::new();
            batch.put(ns, key, b"value").unwrap();
            db.submit(batch, options).unwrap()
        };
        let watch = db.watch(WatchOptions::default()).unwrap();
        let watch = case.watched.then_some(watch);
        if case.other_namespace {
            let _ = put(&other, b"first", &buffered);
        }
        let _ = put(&main, b"key", &buffered);
        if case.pending {
            let _ = put(&main, b"key", &WriteOptions::sync());
        }
        let before = db.stats().counters.log_syncs;
        db.flush().unwrap();
        let waited = db.stats().counters.log_syncs > before;
        assert_eq!(waited, case.waits, "{}", case.name);
        drop(watch);
        // What was flushed is durable either way.
        let after = World::on(world.disk.crash(1, CrashMode::DropUnsynced), 1);
        let db = after.open(tiny()).unwrap();
        assert_eq!(db.get(b"key").unwrap().as_deref(), Some(&b"value"[..]));
        db.put(b"key", b"newer").unwrap();
        assert_eq!(db.get(b"key").unwrap().as_deref(), Some(&b"newer"[..]));
        db.close().unwrap();
        assert!(after.open(tiny()).unwrap().verify().unwrap().is_clean());
    }
}

#[test]
fn a_stall_over_many_small_memtables_ends() {
    let world = World::new(1);
    let options = Options {
        max_write_delay: Some(Duration::from_secs(60)),
        ..tiny()
    };
    let db = world.open(options).unwrap();
    let mut batch = WriteBatch::new();
    for number in 0..40 {
        let space = db.create_namespace(&format!("space{number}")).unwrap();
        batch.put(&space, b"key", &[7; 4000]).unwrap();
    }
    db.write(batch, &WriteOptions::sync()).unwrap();
    // No memtable is full, all together are: more than one must be flushed before there is room.
    db.put(b"after", b"1").unwrap();
    let memtables = db.stats().memory.memtables;
    assert!(memtables < 4 * (16 << 10), "{memtables} bytes");
}

/// Whoever asks for a flush hears how that one went, not how the one before did.
#[test]
fn a_flush_that_is_asked_for_does_not_answer_with_an_old_error() {
    let (world, faults) = faulty(4);
    let db = world.open(tiny()).unwrap();
    db.put(b"key", b"1").unwrap();
    faults.add_rule(
        Rule::new(Fault::NoSpace)
            .on(OpKind::Write)
            .path_ends(".sst"),
    );
    for _ in 0..2 {
        let error = db.flush().unwrap_err();
        assert!(error.is_out_of_space(), "{error}");
    }
    faults.clear_rules();
    // No time has passed: the retry is not due yet.
    db.flush().unwrap();
    db.checkpoint(Path::new("/copy")).unwrap();
    assert_eq!(db.get(b"key").unwrap().as_deref(), Some(&b"1"[..]));
}

#[test]
fn a_compaction_that_fails_holds_up_no_flush() {
    let (world, faults) = faulty(2);
    let db = world.open(tiny()).unwrap();
    let space = db.create_namespace("space").unwrap();
    faults.add_rule(Rule::new(Fault::Io).on(OpKind::Read).path_ends(".sst"));
    for number in 0..1500u64 {
        let mut batch = WriteBatch::new();
        batch.put(&space, &key(number % 100), &[7; 200]).unwrap();
        db.write(batch, &WriteOptions::sync())
            .unwrap_or_else(|e| panic!("put {number}: {e}"));
        world.step(2);
    }
    db.flush().unwrap();
    assert!(db.stats().background_error.is_some());
    assert!(db.wait_idle().is_err());
    // What failed is gone: nothing is wrong any more once that was noticed.
    db.drop_namespace("space").unwrap();
    pass(&world, Duration::from_secs(60));
    assert_eq!(db.stats().background_error, None);
    db.wait_idle().unwrap();
}

/// Fills a small disk, has `delete` make room, which is told how many keys there are, and waits.
fn make_room_by(delete: impl Fn(&World, &Db, u64)) {
    let world = World::new(3);
    world.disk.set_capacity(4 << 20);
    let options = Options {
        ballast_bytes: 1 << 20,
        ..tiny()
    };
    let db = world.open(options).unwrap();
    let mut number = 0u64;
    let error = loop {
        match db.put(&key(number), &[number as u8; 3000]) {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
        world.step(3);
        assert!(number < 100_000, "the disk never filled up");
    };
    assert!(matches!(error, Error::DiskFull(_)), "{error}");
    pass(&world, Duration::from_secs(5));
    assert!(db.stats().disk_full);
    delete(&world, &db, number);
    pass(&world, Duration::from_secs(50));
    db.put(b"again", b"1")
        .unwrap_or_else(|e| panic!("{e}; {} bytes used", world.disk.used_bytes()));
}

#[test]
fn a_range_delete_makes_room_on_a_disk_that_is_full() {
    make_room_by(|_, db, _| {
        let mut batch = WriteBatch::new();
        let space = db.default_namespace();
        batch.delete_range(&space, &[], &[0xff]).unwrap();
        db.write(batch, &WriteOptions::sync()).unwrap();
    });
}

#[test]
fn a_few_deletes_make_room_on_a_disk_that_is_full() {
    make_room_by(|world, db, keys| {
        for number in 0..keys / 4 {
            db.delete(&key(number)).unwrap();
            if number % 50 == 0 {
                pass(world, Duration::from_millis(500));
            }
        }
    });
}

#[test]
fn a_drop_that_fails_keeps_what_was_written() {
    let (world, faults) = faulty(4);
    let db = world.open(tiny()).unwrap();
    let space = db.create_namespace("space").unwrap();
    let mut batch = WriteBatch::new();
    batch.put(&space, b"key", b"value").unwrap();
    db.write(batch, &WriteOptions::sync()).unwrap();
    faults.add_rule(
        Rule::new(Fault::Io)
            .on(OpKind::Write)
            .path_contains("MANIFEST")
            .times(1),
    );
    db.drop_namespace("space").unwrap_err();
    assert!(matches!(
        db.namespace("space"),
        Err(Error::NamespaceNotFound(_))
    ));
    // Log that only the namespace needs must stay as long as a restart may find it.
    for number in 0..500u64 {
        db.put(&key(number), &[7; 100]).unwrap();
        world.step(2);
    }
    db.flush().unwrap();
    {
        let crashed = World::on(world.disk.fork(), 4);
        let db = crashed.open(tiny()).unwrap();
        if let Ok(space) = db.namespace("space") {
            let found = db.get_in(&space, b"key").unwrap();
            assert_eq!(found.as_deref(), Some(&b"value"[..]));
        }
    }
    // It can be tried again.
    db.drop_namespace("space").unwrap();
    db.create_namespace("space").unwrap();
    let space = db.namespace("space").unwrap();
    assert!(db.get_in(&space, b"key").unwrap().is_none());
}

/// Holds a compaction up until the database is being closed.
#[derive(Default)]
struct HoldUp {
    db: OnceLock<Weak<Db>>,
    begun: AtomicBool,
    closed: AtomicBool,
    ended_late: AtomicBool,
}

impl EventListener for HoldUp {
    fn on_event(&self, event: &Event) {
        match event {
            Event::CompactionBegin { .. } => {
                self.begun.store(true, Ordering::SeqCst);
                while let Some(db) = self.db.get().and_then(Weak::upgrade)
                    && db.get(b"key").is_ok()
                {
                    std::thread::yield_now();
                }
            }
            Event::CompactionEnd { .. } => {
                let late = self.closed.load(Ordering::SeqCst);
                self.ended_late.fetch_or(late, Ordering::SeqCst);
            }
            _ => {}
        }
    }
}

#[test]
fn close_waits_for_a_compaction_that_somebody_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let db = Arc::new(Db::open(dir.path().join("db"), tiny()).unwrap());
    fill(&db, 2000);
    db.wait_idle().unwrap();
    // One file in L0 is compacted by nobody else.
    fill(&db, 50);
    let listener = Arc::new(HoldUp::default());
    listener.db.set(Arc::downgrade(&db)).unwrap();
    db.set_listener(listener.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let space = db.default_namespace();
            match db.compact_range(&space, None, None) {
                Ok(()) | Err(Error::Closed(_)) => {}
                Err(error) => panic!("{error}"),
            }
        });
        while !listener.begun.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        db.close().unwrap();
        listener.closed.store(true, Ordering::SeqCst);
    });
    assert!(!listener.ended_late.load(Ordering::SeqCst));
    assert!(matches!(
        db.compact_range(&db.default_namespace(), None, None),
        Err(Error::Closed(_))
    ));
}

#[test]
fn options_of_any_size_are_taken() {
    let world = World::new(5);
    let options = Options {
        memtable_bytes: Some(usize::MAX),
        cache_bytes: None,
        sstable_bytes: Some(u64::MAX),
        log_segment_bytes: Some(64 << 10),
        log_bytes: Some(u64::MAX),
        ..tiny()
    };
    let db = world.open(options).unwrap();
    fill(&db, 1000);
    db.flush().unwrap();
    assert!(db.get(&key(999)).unwrap().is_some());
    db.close().unwrap();
    db.close().unwrap();
    assert!(matches!(db.get(&key(999)), Err(Error::Closed(_))));
}

#[test]
fn two_checkpoints_of_one_name_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path().join("db"), tiny()).unwrap();
    fill(&db, 3000);
    let copy = |round: u32| dir.path().join(format!("copy{round}"));
    for round in 0..4 {
        let barrier = Barrier::new(2);
        let made = std::thread::scope(|scope| {
            let checkpoint = || {
                barrier.wait();
                db.checkpoint(&copy(round)).is_ok()
            };
            let other = scope.spawn(checkpoint);
            u32::from(checkpoint()) + u32::from(other.join().unwrap())
        });
        assert_eq!(made, 1);
        check(&copy(round));
    }
    let report = db.verify().unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
}

#[test]
fn a_checkpoint_removes_a_half_made_one_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path().join("db"), tiny()).unwrap();
    fill(&db, 3000);
    let (copy, partial) = (dir.path().join("copy"), dir.path().join("copy.partial"));
    // Somebody's directory of that name stays as it is.
    let fs = OsFs::new();
    fs.create_dir_all(&partial.join("theirs")).unwrap();
    fs.open(&partial.join("file"), OpenMode::CreateNew).unwrap();
    db.checkpoint(&copy).unwrap_err();
    for left in ["file", "theirs"] {
        assert!(fs.exists(&partial.join(left)).unwrap());
    }
    assert!(!fs.exists(&copy).unwrap());
    // What a checkpoint left that was cut short goes.
    fs.remove_dir(&partial.join("theirs")).unwrap();
    db.checkpoint(&copy).unwrap();
    assert!(!fs.exists(&partial).unwrap());
    check(&copy);
}

fn check(dir: &Path) {
    let db = Db::open(dir, tiny()).unwrap();
    for number in 0..3000u64 {
        assert!(db.get(&key(number)).unwrap().is_some());
    }
}
