//! Background work as writers and owners meet it: stalls that end, jobs that fail, namespaces that
//! go, checkpoints, closing in the middle of something.

use std::path::Path;
use std::sync::Barrier;
use std::time::Duration;

use firn_engine::{Db, Options, WriteBatch, WriteOptions};

use crate::world::{World, tiny};

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
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
fn two_checkpoints_of_one_name_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(dir.path().join("db"), tiny()).unwrap();
    for number in 0..3000u64 {
        db.put(&key(number), &[7; 100]).unwrap();
    }
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
