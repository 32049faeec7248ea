//! Repair: what can be read is kept, what cannot is told, and a crash in the middle costs nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use firn_engine::{Db, Options, RepairReport, ScanOptions, WriteBatch, WriteOptions, repair_dir};
use firn_io::fs::Fs;
use firn_io::fs::fault::{FaultFs, Verdict};
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::rng::Rng;

use crate::verify::{Contents, key, layered, sample, upside_down, verify};
use crate::world::{DIR, World, tiny};

fn repair(disk: &MemFs) -> RepairReport {
    let world = World::on(disk.clone(), 1);
    repair_dir(&world.env, Path::new(DIR), &tiny(), &mut |_| {}).unwrap()
}

/// Everything in a database that must open and be sound.
fn contents(disk: &MemFs, context: &str) -> Contents {
    let report = verify(disk);
    assert!(report.is_clean(), "{context}: {:?}", report.problems);
    let world = World::on(disk.fork(), 1);
    let db = world
        .open(tiny())
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let contents = read(&db);
    // It goes on working, and what it writes then is sound too.
    db.put(b"after", b"repair").unwrap();
    db.flush().unwrap();
    for ns in db.namespaces() {
        db.compact_range(&ns, None, None)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
    }
    let report = db.verify().unwrap();
    assert!(
        report.is_clean(),
        "{context}, after compaction: {:?}",
        report.problems
    );
    let mut expected = contents.clone();
    expected
        .entry("default".into())
        .or_default()
        .insert(b"after".to_vec(), b"repair".to_vec());
    assert_eq!(
        differences(&read(&db), &expected),
        [],
        "{context}: compaction changed something"
    );
    contents
}

fn read(db: &Db) -> Contents {
    db.namespaces()
        .iter()
        .map(|ns| {
            let scan = db.scan(ns, ScanOptions::all()).unwrap();
            (
                ns.name().to_string(),
                scan.into_iter().map(|pair| pair.unwrap()).collect(),
            )
        })
        .collect()
}

fn files(disk: &MemFs, end: &str) -> Vec<PathBuf> {
    let unused: Vec<PathBuf> = verify(disk)
        .notes
        .into_iter()
        .map(|note| note.path)
        .collect();
    let matches = |p: &PathBuf| {
        let name = p.file_name().unwrap().to_str().unwrap();
        (name.ends_with(end) || name.starts_with(end)) && !unused.contains(p)
    };
    disk.files().into_iter().filter(matches).collect()
}

fn remove(disk: &MemFs, path: &Path) {
    World::on(disk.clone(), 1).env.fs.remove_file(path).unwrap();
}

fn one(disk: &MemFs, end: &str) -> PathBuf {
    files(disk, end).pop().unwrap_or_else(|| panic!("no {end}"))
}

/// The keys whose value is not what was written.
fn differences(found: &Contents, written: &Contents) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (name, map) in written {
        let there = found.get(name).cloned().unwrap_or_default();
        let keys = map.keys().chain(there.keys());
        all.extend(
            keys.filter(|k| map.get(*k) != there.get(*k))
                .map(|k| (name.clone(), k.clone())),
        );
    }
    all
}

#[test]
fn what_is_sound_stays_as_it_is() {
    let (disk, written) = sample(1, &tiny());
    let image = |disk: &MemFs| -> BTreeMap<PathBuf, Vec<u8>> {
        disk.files()
            .into_iter()
            .map(|p| (p.clone(), disk.read_file(&p).unwrap()))
            .collect()
    };
    let before = image(&disk);
    let report = repair(&disk);
    assert!(!report.changed && report.losses.is_empty());
    assert!(report.tables_kept > 0 && report.entries_kept > 0);
    assert_eq!(image(&disk), before);
    assert_eq!(differences(&contents(&disk, "sound"), &written), []);
}

#[test]
fn a_lost_or_garbled_current_costs_nothing() {
    for seed in 0..3 {
        let (disk, written) = sample(seed, &tiny());
        for content in [
            None,
            Some(&b""[..]),
            Some(b"MANIFEST-999999\n"),
            Some(b"garbage"),
        ] {
            let disk = disk.fork();
            match content {
                Some(bytes) => disk.write_file("/db/CURRENT", bytes).unwrap(),
                None => remove(&disk, Path::new("/db/CURRENT")),
            }
            let report = repair(&disk);
            assert!(report.losses.is_empty(), "{:?}", report.losses);
            assert!(report.changed);
            assert_eq!(
                differences(&contents(&disk, "CURRENT"), &written),
                [],
                "seed {seed}, {content:?}"
            );
            assert!(!repair(&disk).changed, "the second time nothing is to do");
        }
    }
}

#[test]
fn without_a_manifest_tables_and_log_have_everything() {
    let (mut kept, mut merged) = (0, 0);
    for seed in 0..8 {
        let (disk, written) = if seed < 5 {
            sample(seed, &tiny())
        } else {
            layered(seed)
        };
        // Files that wait for their removal would be found again.
        for path in verify(&disk).notes {
            remove(&disk, &path.path);
        }
        let manifest = one(&disk, "MANIFEST");
        let bytes = disk.read_file(&manifest).unwrap();
        for damage in 0..4 {
            let disk = disk.fork();
            match damage {
                0 => remove(&disk, &manifest),
                1 => disk.flip_bit(&manifest, 3, 1).unwrap(),
                2 => disk.flip_bit(&manifest, bytes.len() as u64 / 2, 1).unwrap(),
                _ => {
                    remove(&disk, &manifest);
                    remove(&disk, Path::new("/db/CURRENT"));
                }
            }
            let context = format!("seed {seed}, damage {damage}");
            let report = repair(&disk);
            kept += report.tables_kept;
            merged += report.tables_rewritten;
            assert!(report.losses.is_empty(), "{context}: {:?}", report.losses);
            let found = contents(&disk, &context);
            assert_eq!(differences(&found, &written), [], "{context}");
            assert!(!repair(&disk).changed, "{context}");
        }
    }
    assert!(
        kept > 0 && merged > 0,
        "both ways are taken: {kept}, {merged}"
    );
}

#[test]
fn of_a_damaged_table_all_but_the_damaged_block_is_kept() {
    for (disk, written) in [sample(2, &tiny()), layered(2)] {
        damage_each_table(&disk, &written);
    }
}

fn damage_each_table(disk: &MemFs, written: &Contents) {
    let mut rng = Rng::new(3);
    let mut lossless = 0;
    let tables = files(disk, ".sst");
    // Of many tables some will do.
    for path in tables.iter().step_by(1 + tables.len() / 8) {
        let len = disk.read_file(path).unwrap().len() as u64;
        let mut offsets: Vec<u64> = (0..12).map(|_| rng.below(len)).collect();
        offsets.extend([len - 1, len - 40, len - 100]);
        for offset in offsets {
            let disk = disk.fork();
            disk.flip_bit(path, offset, rng.below(8) as u8).unwrap();
            let context = format!("byte {offset} of {}", path.display());
            let report = repair(&disk);
            assert!(report.changed, "{context}");
            let found = contents(&disk, &context);
            let wrong = differences(&found, written);
            if report.losses.is_empty() {
                lossless += 1;
                assert_eq!(wrong, [], "{context}: a silent loss");
            }
            // A block of 256 bytes has few entries; range tombstones cover many keys.
            let only_blocks = report
                .losses
                .iter()
                .all(|loss| loss.detail.contains("keys "));
            assert!(
                !only_blocks || wrong.len() < 40,
                "{context}: {} are lost",
                wrong.len()
            );
            let lost = Path::new(DIR).join("lost").join(path.file_name().unwrap());
            assert!(
                disk.read_file(&lost).is_ok(),
                "{context}: the damaged file is kept"
            );
            assert!(!repair(&disk).changed, "{context}");
        }
    }
    assert!(
        lossless > 5,
        "damage outside of the data costs nothing: {lossless}"
    );
}

#[test]
fn a_missing_table_is_told_with_its_keys() {
    let (disk, written) = sample(4, &tiny());
    for path in files(&disk, ".sst") {
        let disk = disk.fork();
        remove(&disk, &path);
        let report = repair(&disk);
        let context = path.display().to_string();
        assert_eq!(report.tables_lost, 1, "{context}");
        let told = report.losses.iter().find(|loss| loss.path == path).unwrap();
        assert!(told.detail.contains("keys from"), "{told}");
        let found = contents(&disk, &context);
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            written.keys().collect::<Vec<_>>()
        );
        assert!(!repair(&disk).changed);
    }
}

#[test]
fn a_table_that_is_another_one_is_lost_and_its_entries_come_to_nobody() {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    let spaces = [
        db.default_namespace(),
        db.create_namespace("other").unwrap(),
    ];
    let mut paths = Vec::new();
    for (space, from) in spaces.iter().zip([0, 100]) {
        let mut batch = WriteBatch::new();
        for number in from..from + 20 {
            batch.put(space.id(), &key(number), b"value").unwrap();
        }
        db.write(batch, &WriteOptions::default()).unwrap();
        db.flush().unwrap();
        paths.push(one(&world.disk.fork(), ".sst"));
    }
    db.close().unwrap();
    drop(db);
    let disk = world.disk.fork();
    let written = contents(&disk.fork(), "whole");
    disk.write_file(&paths[0], &disk.read_file(&paths[1]).unwrap())
        .unwrap();
    let found = verify(&disk).problems;
    let of_it = found.iter().all(|problem| problem.path == paths[0]);
    assert!(of_it && !found.is_empty(), "{paths:?} {found:?}");
    let report = repair(&disk);
    assert_eq!((report.tables_lost, report.tables_kept), (1, 1));
    assert!(
        report.losses[0].detail.contains("another table"),
        "{report:?}"
    );
    let found = contents(&disk, "repaired");
    assert!(found["default"].is_empty());
    assert_eq!(found["other"], written["other"]);
    assert!(!repair(&disk).changed);
}

#[test]
fn values_of_a_lost_blob_file_are_told_key_by_key_and_never_replaced_by_older_ones() {
    for missing in [true, false] {
        let (disk, written) = sample(5, &tiny());
        let blobs = files(&disk, ".blob");
        assert!(!blobs.is_empty());
        for path in blobs {
            let disk = disk.fork();
            if missing {
                remove(&disk, &path);
            } else {
                let len = disk.read_file(&path).unwrap().len() as u64;
                disk.flip_bit(&path, len / 2, 1).unwrap();
            }
            let context = format!("{} (missing: {missing})", path.display());
            let report = repair(&disk);
            let found = contents(&disk, &context);
            for (name, key) in differences(&found, &written) {
                assert_eq!(
                    found[&name].get(&key),
                    None,
                    "{context}: an old value came to light"
                );
                let shown = format!("\"{}\"", key.escape_ascii());
                assert!(
                    report
                        .losses
                        .iter()
                        .any(|loss| loss.detail.contains(&shown)),
                    "{context}: {shown} is missing silently"
                );
            }
            assert!(!repair(&disk).changed, "{context}");
        }
    }
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// A database all of whose data is in the log, and the state after each write.
fn logged() -> (MemFs, Vec<Map>) {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    let mut map = BTreeMap::new();
    let mut states = vec![map.clone()];
    for number in 0..60 {
        let key = key(number % 25);
        let value = format!("value {number} of the log").into_bytes();
        db.put(&key, &value).unwrap();
        map.insert(key, value);
        states.push(map.clone());
    }
    db.sync().unwrap();
    (world.disk.fork(), states)
}

#[test]
fn a_log_is_cut_at_its_damage() {
    let (disk, states) = logged();
    let segment = one(&disk, ".wal");
    let bytes = disk.read_file(&segment).unwrap();
    for number in [0_usize, 1, 17, 40, 55] {
        let needle = format!("value {number} of the log").into_bytes();
        let at = bytes
            .windows(needle.len())
            .position(|w| *w == needle[..])
            .unwrap();
        let disk = disk.fork();
        disk.flip_bit(&segment, at as u64, 2).unwrap();
        let report = repair(&disk);
        let context = format!("record {number}");
        assert_eq!(
            report.log_operations_kept, number as u64,
            "{context}: {report:?}"
        );
        assert_eq!(report.log_operations_lost, 59 - number as u64, "{context}");
        assert_eq!(report.losses.len(), 1, "{context}");
        assert_eq!(report.losses[0].path, segment, "{context}");
        assert_eq!(
            contents(&disk, &context)["default"],
            states[number],
            "{context}"
        );
        assert!(
            disk.files().iter().any(|p| p.starts_with("/db/lost/wal")),
            "{context}"
        );
        assert!(!repair(&disk).changed, "{context}");
    }
}

#[test]
fn a_damaged_log_over_tables_keeps_the_tables() {
    let (disk, written) = sample(3, &tiny());
    for segment in files(&disk, ".wal") {
        let disk = disk.fork();
        disk.write_file(&segment, b"no log").unwrap();
        let report = repair(&disk);
        assert!(!report.losses.is_empty());
        let found = contents(&disk, "log");
        assert_eq!(found.len(), written.len());
        assert!(!found["default"].is_empty());
        assert!(!repair(&disk).changed);
    }
}

/// Several things that are wrong at once.
fn damages() -> Vec<(&'static str, MemFs)> {
    let (disk, _) = sample(6, &tiny());
    for note in verify(&disk).notes {
        remove(&disk, &note.path);
    }
    let garbled = |path: PathBuf, offset: u64| {
        let disk = disk.fork();
        disk.flip_bit(&path, offset, 3).unwrap();
        disk
    };
    let without = |path: PathBuf| {
        let disk = disk.fork();
        remove(&disk, &path);
        disk
    };
    let (log, _) = logged();
    let segment = one(&log, ".wal");
    log.flip_bit(&segment, 2000, 1).unwrap();
    let all = disk.fork();
    remove(&all, &one(&all, "MANIFEST"));
    all.flip_bit(one(&disk, ".sst"), 30, 1).unwrap();
    all.flip_bit(one(&disk, ".blob"), 300, 1).unwrap();
    vec![
        ("CURRENT", without("/db/CURRENT".into())),
        ("manifest", without(one(&disk, "MANIFEST"))),
        ("garbled manifest", garbled(one(&disk, "MANIFEST"), 300)),
        ("table", garbled(one(&disk, ".sst"), 30)),
        ("blob", garbled(one(&disk, ".blob"), 300)),
        ("log", log),
        ("all", all),
    ]
}

#[test]
fn a_crash_at_any_operation_of_a_repair_costs_nothing() {
    for (name, damaged) in damages() {
        // What the damage left is durable.
        let damaged = damaged.crash(1, CrashMode::KeepAll);
        let whole = damaged.fork();
        repair(&whole);
        let expected = contents(&whole, name);
        let images = Arc::new(Mutex::new(Vec::new()));
        let disk = damaged.fork();
        let inner: Arc<dyn Fs> = Arc::new(disk.clone());
        let faults = Arc::new(FaultFs::new(inner, 1));
        let (sink, watched) = (Arc::clone(&images), disk.clone());
        faults.set_hook(Box::new(move |number, info| {
            if info.kind.is_mutation() {
                for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn] {
                    sink.lock()
                        .unwrap()
                        .push((number, watched.crash(number, mode)));
                }
            }
            Verdict::Proceed
        }));
        let world = World::through(disk, faults, 1);
        repair_dir(&world.env, Path::new(DIR), &tiny(), &mut |_| {}).unwrap();
        let images = std::mem::take(&mut *images.lock().unwrap());
        assert!(images.len() > 10, "{name}: {} images", images.len());
        for (number, image) in images {
            let context = format!("{name}, operation {number}");
            repair(&image);
            assert_eq!(
                differences(&contents(&image, &context), &expected),
                [],
                "{context}"
            );
        }
    }
}

#[test]
fn an_error_in_the_middle_of_a_repair_costs_nothing() {
    use firn_io::fs::fault::Fault;
    for (name, damaged) in damages() {
        let whole = damaged.fork();
        repair(&whole);
        let expected = contents(&whole, name);
        let mut operation = 0;
        loop {
            let disk = damaged.fork();
            let inner: Arc<dyn Fs> = Arc::new(disk.clone());
            let faults = Arc::new(FaultFs::new(inner, 1));
            faults.set_hook(Box::new(move |number, info| {
                if number == operation && info.kind.is_mutation() {
                    return Verdict::Fail(Fault::NoSpace);
                }
                Verdict::Proceed
            }));
            let world = World::through(disk.clone(), faults.clone(), 1);
            let result = repair_dir(&world.env, Path::new(DIR), &tiny(), &mut |_| {});
            let context = format!("{name}, no space at operation {operation}");
            if result.is_err() {
                repair(&disk);
                assert_eq!(
                    differences(&contents(&disk, &context), &expected),
                    [],
                    "{context}"
                );
            }
            operation += 3;
            if operation > faults.op_count() {
                break;
            }
        }
    }
}

#[test]
fn a_tree_whose_levels_are_upside_down_is_merged() {
    let disk = upside_down();
    let report = repair(&disk);
    assert!(report.changed && report.losses.is_empty(), "{report:?}");
    let found = contents(&disk, "upside down");
    assert_eq!(found["default"].len(), 20);
    assert!(found["default"].values().all(|value| value == b"new"));
}

#[test]
fn a_repair_of_nothing_or_of_what_is_in_use_is_refused() {
    let world = World::new(1);
    world.env.fs.create_dir_all(Path::new("/empty")).unwrap();
    assert!(repair_dir(&world.env, Path::new("/empty"), &tiny(), &mut |_| {}).is_err());
    assert!(world.disk.files().is_empty());
    let db = world.open(tiny()).unwrap();
    assert!(repair_dir(&world.env, Path::new(DIR), &Options::default(), &mut |_| {}).is_err());
    drop(db);
}
