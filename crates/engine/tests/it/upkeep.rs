//! Background work as writers and owners meet it: stalls that end, jobs that fail, namespaces that
//! go, checkpoints, closing in the middle of something.

use std::path::Path;
use std::sync::Barrier;

use firn_engine::Db;

use crate::world::tiny;

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
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
