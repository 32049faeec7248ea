//! Disks that err: errors on any call, no space at any point, short and flipped reads, flipped bits
//! and cut files. Never a panic, a hang, a wrong answer or a silent loss; errors name the file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use firn_engine::{Db, Error, Options, ScanOptions, WriteBatch, WriteOptions};
use firn_io::exec::Executor;
use firn_io::fs::Fs;
use firn_io::fs::fault::{Fault, FaultFs, OpKind, Rule, Verdict};
use firn_io::fs::mem::MemFs;
use firn_io::rng::Rng;

use crate::world::{DIR, World, tiny};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

fn key(number: u64) -> Vec<u8> {
    format!("key{number:03}").into_bytes()
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = if rng.one_in(8) {
        700
    } else {
        20 + rng.below(100)
    };
    let mut value = vec![0; len as usize];
    rng.fill_bytes(&mut value);
    value
}

/// What a write may have left of each key: the values that the key may have.
#[derive(Default)]
struct Possible(BTreeMap<Vec<u8>, Vec<Option<Vec<u8>>>>);

impl Possible {
    fn acknowledged(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.0.insert(key, vec![value]);
    }

    fn in_doubt(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.0.entry(key).or_insert_with(|| vec![None]).push(value);
    }

    fn check(&self, key: &[u8], found: Option<&[u8]>, context: &str) {
        let none = vec![None];
        let allowed = self.0.get(key).unwrap_or(&none);
        assert!(
            allowed.iter().any(|value| value.as_deref() == found),
            "{context}: {} is not what was written",
            key.escape_ascii()
        );
    }
}

/// A fixed history of puts, deletes, flushes, compactions and reads on a disk that may fail at any
/// moment. Answers are checked; errors are let pass.
fn history(world: &World, db: &Db, possible: &mut Possible, seed: u64, context: &str) {
    let mut rng = Rng::new(seed);
    let ns = db.default_namespace();
    for step in 0..220 {
        let key = key(rng.below(60));
        let value = value(&mut rng);
        let delete = rng.one_in(5);
        let mut batch = WriteBatch::new();
        let new = if delete {
            batch.delete(&ns, &key).unwrap();
            None
        } else {
            batch.put(&ns, &key, &value).unwrap();
            Some(value)
        };
        match db.write(batch, &WriteOptions::sync()) {
            Ok(_) => possible.acknowledged(key, new),
            Err(error) => {
                assert!(
                    !error.is_corruption() || context.contains("read"),
                    "{context}: {error}"
                );
                possible.in_doubt(key, new);
            }
        }
        if rng.one_in(2) {
            world.step(1);
        }
        match step % 40 {
            13 => drop(db.flush()),
            29 => drop(db.compact_range(&ns, None, None)),
            _ => {}
        }
        let probe = self::key(rng.below(60));
        match db.get(&probe) {
            Ok(found) => possible.check(&probe, found.as_deref(), context),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        if step % 25 == 7 {
            check_scan(db, possible, context);
        }
    }
}

/// Every answer of a scan is allowed, and a scan that ends has missed nothing that must be there.
fn check_scan(db: &Db, possible: &Possible, context: &str) {
    let Ok(mut scan) = db.scan(&db.default_namespace(), ScanOptions::all()) else {
        return;
    };
    let mut seen = Map::new();
    loop {
        match scan.next() {
            Ok(true) => {
                possible.check(scan.key(), Some(scan.value()), context);
                seen.insert(scan.key().to_vec(), scan.value().to_vec());
            }
            Ok(false) => break,
            Err(_) => return,
        }
    }
    for key in possible.0.keys().filter(|key| !seen.contains_key(*key)) {
        possible.check(key, None, context);
    }
}

fn faulty(seed: u64) -> (World, Arc<FaultFs>) {
    let disk = MemFs::new();
    let inner: Arc<dyn Fs> = Arc::new(disk.clone());
    let faults = Arc::new(FaultFs::new(inner, seed));
    let losing = disk.clone();
    faults.set_lose_unsynced(Box::new(move |path| {
        let _ = losing.lose_unsynced(path);
    }));
    (World::through(disk, faults.clone(), seed), faults)
}

fn reopen_and_check(disk: MemFs, possible: &Possible, context: &str) {
    let world = World::on(disk, 7);
    let db = world
        .open(tiny())
        .unwrap_or_else(|e| panic!("{context}: cannot be opened: {e}"));
    for key in (0..60).map(key) {
        let found = db.get(&key).unwrap_or_else(|e| panic!("{context}: {e}"));
        possible.check(&key, found.as_deref(), context);
    }
    let report = db.verify().unwrap();
    assert!(report.is_clean(), "{context}: {:?}", report.problems);
}

/// How many operations the history takes when nothing fails.
fn length(seed: u64, options: &Options) -> u64 {
    let (world, faults) = faulty(seed);
    let db = world.open(options.clone()).unwrap();
    history(&world, &db, &mut Possible::default(), seed, "no fault");
    db.close().unwrap();
    faults.op_count()
}

fn fail_at(operation: u64, count: u64, seed: u64, fault: Fault, options: &Options) {
    let context = format!("{fault:?} at operation {operation} ({count} times), seed {seed}");
    let (world, faults) = faulty(seed);
    let hit = Arc::new(AtomicU64::new(0));
    let hits = Arc::clone(&hit);
    faults.set_hook(Box::new(move |number, info| {
        // Stores to a mapping cannot fail.
        let may_fail = info.kind != OpKind::MapWrite && info.kind != OpKind::Lock;
        if number >= operation && may_fail && hits.load(Ordering::Relaxed) < count {
            hits.fetch_add(1, Ordering::Relaxed);
            return Verdict::Fail(fault);
        }
        Verdict::Proceed
    }));
    let mut possible = Possible::default();
    match world.open(options.clone()) {
        Ok(db) => {
            history(&world, &db, &mut possible, seed, &context);
            let _ = db.close();
        }
        Err(error) => assert!(!error.to_string().is_empty(), "{context}"),
    }
    world.step(u64::MAX);
    // What the process left is what the next one finds, with the fault gone.
    reopen_and_check(world.disk.fork(), &possible, &context);
}

fn step_of(total: u64) -> u64 {
    let wanted = std::env::var("FIRN_FAULT_POINTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(150);
    (total / wanted).max(1)
}

#[test]
fn an_error_at_any_operation_loses_nothing_that_was_acknowledged() {
    for (seed, mapped) in [(1, true), (2, false)] {
        let options = Options {
            log_mapped: mapped,
            ..tiny()
        };
        let total = length(seed, &options);
        for operation in (0..total).step_by(step_of(total) as usize) {
            fail_at(operation, 1, seed, Fault::Io, &options);
            fail_at(operation, 5, seed, Fault::LostSync, &options);
        }
    }
}

#[test]
fn short_and_flipped_reads_are_found() {
    let options = tiny();
    let total = length(3, &options);
    for operation in (0..total).step_by(step_of(total) as usize) {
        for fault in [Fault::ShortRead, Fault::FlippedRead] {
            let (world, faults) = faulty(3);
            faults.set_hook(Box::new(move |number, info| {
                if number >= operation && info.kind == OpKind::Read && number < operation + 40 {
                    return Verdict::Fail(fault);
                }
                Verdict::Proceed
            }));
            let context = format!("{fault:?} read from operation {operation}");
            let mut possible = Possible::default();
            if let Ok(db) = world.open(options.clone()) {
                history(&world, &db, &mut possible, 3, &context);
                let _ = db.close();
            }
            world.step(u64::MAX);
            reopen_and_check(world.disk.fork(), &possible, &context);
        }
    }
}

#[test]
fn a_full_disk_refuses_puts_takes_deletes_and_recovers_by_itself() {
    let options = tiny();
    let total = length(4, &options);
    for operation in (0..total).step_by(step_of(total) as usize) {
        let context = format!("no space from operation {operation}");
        let (world, faults) = faulty(4);
        let Ok(db) = world.open(options.clone()) else {
            panic!("{context}")
        };
        let from = faults.op_count() + operation;
        faults.set_hook(Box::new(move |number, info| {
            let takes_space = matches!(
                info.kind,
                OpKind::Write | OpKind::Allocate | OpKind::Create | OpKind::Link | OpKind::SetLen
            );
            // What is allocated has its space, and every segment of the log is.
            let has_space =
                info.kind == OpKind::Write && info.path.extension() == Some("wal".as_ref());
            if number >= from && takes_space && !has_space {
                return Verdict::Fail(Fault::NoSpace);
            }
            Verdict::Proceed
        }));
        let mut possible = Possible::default();
        history(&world, &db, &mut possible, 4, &context);
        // Space is back: without a restart, writes are taken again.
        faults.clear_hooks();
        let mut tries = 0;
        loop {
            match db.put(b"key000", b"again") {
                Ok(_) => break,
                Err(Error::DiskFull(_)) if tries < 1000 => {
                    tries += 1;
                    if !world.exec.run_one() {
                        world.clock.advance(std::time::Duration::from_millis(100));
                    }
                }
                Err(error) => panic!("{context}: {error}"),
            }
        }
        possible.acknowledged(b"key000".to_vec(), Some(b"again".to_vec()));
        db.wait_idle().unwrap_or_else(|e| panic!("{context}: {e}"));
        check_scan(&db, &possible, &context);
        db.close().unwrap_or_else(|e| panic!("{context}: {e}"));
        drop(db);
        world.step(u64::MAX);
        reopen_and_check(world.disk.fork(), &possible, &context);
    }
}

#[test]
fn while_the_disk_is_full_deletes_are_taken() {
    // Deletes live on the reserve, which is one segment of the log.
    let options = Options {
        log_segment_bytes: Some(64 << 10),
        ..tiny()
    };
    let (world, faults) = faulty(5);
    let db = world.open(options).unwrap();
    let ns = db.default_namespace();
    for number in 0..50 {
        db.put(&key(number), &[7; 100]).unwrap();
    }
    faults.add_rule(
        Rule::new(Fault::NoSpace)
            .on(OpKind::Allocate)
            .on(OpKind::Create),
    );
    let mut number = 50;
    let error = loop {
        match db.put(&key(number), &[7; 1000]) {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
        world.step(3);
        assert!(number < 10_000, "the disk never filled up");
    };
    assert!(matches!(error, Error::DiskFull(_)), "{error}");
    assert!(db.stats().disk_full);
    for number in 0..50 {
        let mut batch = WriteBatch::new();
        batch.delete(&ns, &key(number)).unwrap();
        db.write(batch, &WriteOptions::sync())
            .unwrap_or_else(|e| panic!("delete {number}: {e}"));
    }
    assert_eq!(db.get(&key(1)).unwrap(), None);
    assert!(matches!(db.put(b"k", b"v"), Err(Error::DiskFull(_))));
}

#[test]
fn a_failed_sync_poisons_and_says_why() {
    let (world, faults) = faulty(6);
    let db = world.open(tiny()).unwrap();
    db.put(b"before", b"1").unwrap();
    faults.add_rule(
        Rule::new(Fault::LostSync)
            .on(OpKind::Sync)
            .path_ends(".wal")
            .times(1),
    );
    let error = db.put(b"lost", b"2").unwrap_err();
    assert!(matches!(error, Error::Poisoned(_)), "{error}");
    assert!(error.to_string().contains(".wal"), "{error}");
    // Later writes are refused too, with the same reason, though the disk would now work.
    let error = db.put(b"after", b"3").unwrap_err();
    assert!(matches!(error, Error::Poisoned(_)), "{error}");
    assert_eq!(db.get(b"before").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(
        db.get(b"lost").unwrap(),
        None,
        "a write that was refused is not seen"
    );
    assert!(db.stats().poisoned.is_some());
    drop(db);
    let world = World::on(world.disk.fork(), 6);
    let db = world.open(tiny()).unwrap();
    assert_eq!(db.get(b"before").unwrap().as_deref(), Some(&b"1"[..]));
    db.put(b"after", b"3").unwrap();
}

#[test]
fn a_log_that_has_no_space_to_be_overwritten_fails_and_says_so() {
    let (world, faults) = faulty(6);
    let db = world.open(tiny()).unwrap();
    let rule = Rule::new(Fault::NoSpace).on(OpKind::Write);
    let mut taken = 0;
    let mut armed = false;
    let error = loop {
        // Once the log is synced often, records are written by calls.
        if taken == 1000 && !std::mem::replace(&mut armed, true) {
            faults.add_rule(rule.clone().path_ends(".wal").times(1));
        }
        assert!(taken < 2000, "nothing was written by a call");
        match db.put(&key(taken), &[7; 50]) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        while world.exec.run_one() {}
    };
    assert!(taken >= 1000);
    assert!(matches!(error, Error::Poisoned(_)), "{error}");
    assert!(error.to_string().contains("No space left"), "{error}");
    let error = db.put(b"after", b"3").unwrap_err();
    assert!(
        matches!(error, Error::Poisoned(_)),
        "no space would help: {error}"
    );
    drop(db);
    let world = World::on(world.disk.fork(), 6);
    let db = world.open(tiny()).unwrap();
    for number in 0..taken {
        let found = db.get(&key(number)).unwrap();
        assert_eq!(found.as_deref(), Some(&[7; 50][..]), "{number}");
    }
    assert_eq!(db.get(&key(taken)).unwrap(), None);
    db.put(b"after", b"3").unwrap();
}

/// A small closed database with every kind of file.
fn small() -> (MemFs, Map) {
    let world = World::new(9);
    let options = Options {
        log_segment_bytes: Some(64 << 10),
        ..tiny()
    };
    let db = world.open(options).unwrap();
    let mut rng = Rng::new(9);
    let mut map = Map::new();
    for number in 0..40 {
        let value = value(&mut rng);
        db.put(&key(number), &value).unwrap();
        map.insert(key(number), value);
        if number % 15 == 14 {
            db.flush().unwrap();
        }
    }
    // Idle for a while, the log marks how far it is durable: from then on damage of the very last
    // record cannot be taken for a torn write.
    world.clock.advance(Duration::from_secs(2));
    world.step(100);
    let disk = world.disk.fork();
    (disk, map)
}

/// Opens and reads everything: right answers or errors that name a file.
fn read_all(disk: MemFs, map: &Map, context: &str) {
    let world = World::on(disk, 9);
    let db = match world.open(tiny()) {
        Ok(db) => db,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(DIR), "{context}: {text}");
            return;
        }
    };
    for (key, value) in map {
        match db.get(key) {
            Ok(found) => assert_eq!(
                found.as_deref(),
                Some(&value[..]),
                "{context}: a wrong answer for {}",
                key.escape_ascii()
            ),
            Err(error) => assert!(error.to_string().contains(DIR), "{context}: {error}"),
        }
    }
    let mut scan = match db.scan(&db.default_namespace(), ScanOptions::all()) {
        Ok(scan) => scan,
        Err(error) => {
            assert!(error.to_string().contains(DIR), "{context}: {error}");
            return;
        }
    };
    let mut expected = map.iter();
    loop {
        match scan.next() {
            Ok(true) => {
                let (key, value) = expected.next().unwrap();
                assert_eq!(
                    (scan.key(), scan.value()),
                    (&key[..], &value[..]),
                    "{context}"
                );
            }
            Ok(false) => {
                assert!(
                    expected.next().is_none(),
                    "{context}: the scan lost keys silently"
                );
                break;
            }
            Err(error) => {
                assert!(error.to_string().contains(DIR), "{context}: {error}");
                break;
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_any_byte_is_found() {
    let (disk, map) = small();
    let mut rng = Rng::new(1);
    for path in disk.files() {
        let len = disk.read_file(&path).unwrap().len() as u64;
        // Log segments are mostly unused; their first part and a sample of the rest will do.
        let is_log = path.extension().is_some_and(|e| e == "wal");
        for offset in 0..len {
            if is_log && offset > 12_000 && !rng.one_in(500) {
                continue;
            }
            let damaged = disk.fork();
            damaged.flip_bit(&path, offset, rng.below(8) as u8).unwrap();
            read_all(
                damaged,
                &map,
                &format!("bit flipped at {offset} of {}", path.display()),
            );
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_found() {
    let (disk, map) = small();
    for path in disk.files() {
        let bytes = disk.read_file(&path).unwrap();
        let step = if bytes.len() > 20_000 { 997 } else { 13 };
        for len in (0..bytes.len()).step_by(step) {
            let damaged = disk.fork();
            damaged.write_file(&path, &bytes[..len]).unwrap();
            read_all(damaged, &map, &format!("{} cut to {len}", path.display()));
        }
    }
}
