//! Background work as writers and owners meet it: stalls that end, jobs that fail, namespaces that
//! go, checkpoints, closing in the middle of something.

use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use firn_engine::{Db, Error, Options, WriteBatch, WriteOptions};

use firn_io::fs::Fs;
use firn_io::fs::fault::{Fault, FaultFs, OpKind, Rule};
use firn_io::fs::mem::MemFs;

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

#[test]
fn deletes_make_room_on_a_disk_that_is_full() {
    let world = World::new(3);
    world.disk.set_capacity(4 << 20);
    let options = Options {
        ballast_bytes: 1 << 20,
        ..tiny()
    };
    let db = world.open(options).unwrap();
    let space = db.default_namespace();
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
    let mut batch = WriteBatch::new();
    batch.delete_range(&space, &[], &[0xff]).unwrap();
    db.write(batch, &WriteOptions::sync()).unwrap();
    for _ in 0..50 {
        pass(&world, Duration::from_secs(1));
        // The first fails while the flush of what was written before does.
        let _ = db.compact_range(&space, None, None);
    }
    db.put(b"again", b"1")
        .unwrap_or_else(|e| panic!("{e}; {} bytes used", world.disk.used_bytes()));
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

fn check(dir: &Path) {
    let db = Db::open(dir, tiny()).unwrap();
    for number in 0..3000u64 {
        assert!(db.get(&key(number)).unwrap().is_some());
    }
}
