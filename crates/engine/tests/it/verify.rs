//! Verification finds every damage, names the file, and finds nothing where there is none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firn_engine::key::NamespaceId;
use firn_engine::names;
use firn_engine::version::FileMeta;
use firn_engine::version::edit::{Op, VersionEdit};
use firn_engine::version::set::VersionSet;
use firn_engine::{
    Db, Error, Namespace, Options, VerifyProgress, VerifyReport, WriteBatch, WriteOptions,
    verify_dir,
};
use firn_io::fs::Fs;
use firn_io::fs::fault::{Fault, FaultFs, OpKind, Rule};
use firn_io::fs::mem::MemFs;
use firn_io::rng::Rng;

use crate::world::{DIR, START_MS, World, tiny};

/// By namespace, what a reader must find.
pub(crate) type Contents = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

pub(crate) fn key(number: u64) -> Vec<u8> {
    format!("key{number:04}").into_bytes()
}

/// A closed database with every kind of file and entry: SSTables in some levels, blob files, range
/// tombstones, expiries, two namespaces, and a log with operations that are not flushed.
pub(crate) fn sample(seed: u64, options: &Options) -> (MemFs, Contents) {
    let world = World::new(seed);
    let db = world.open(options.clone()).unwrap();
    let spaces = [
        db.default_namespace(),
        db.create_namespace("other").unwrap(),
    ];
    let mut contents = Contents::new();
    let mut rng = Rng::new(seed);
    for round in 0..6 {
        for _ in 0..40 {
            write(&db, &spaces, &mut contents, &mut rng, 80);
        }
        match round {
            1 | 3 => {
                db.flush().unwrap();
                db.compact_range(&spaces[0], None, None).unwrap();
            }
            5 => {}
            _ => db.flush().unwrap(),
        }
    }
    db.wait_idle().unwrap();
    for _ in 0..30 {
        write(&db, &spaces, &mut contents, &mut rng, 80);
    }
    db.sync().unwrap();
    // As a killed process leaves it: what is not flushed is in the log.
    (world.disk.fork(), contents)
}

/// A closed database in which compaction has made levels of many files as it saw fit, so that files
/// of different levels have operations of the same time.
pub(crate) fn layered(seed: u64) -> (MemFs, Contents) {
    let world = World::new(seed);
    let db = world.open(tiny()).unwrap();
    let spaces = [
        db.default_namespace(),
        db.create_namespace("other").unwrap(),
    ];
    let mut contents = Contents::new();
    let mut rng = Rng::new(seed);
    for _ in 0..5000 {
        write(&db, &spaces, &mut contents, &mut rng, 3000);
        world.step(rng.below(2));
    }
    db.wait_idle().unwrap();
    for _ in 0..30 {
        write(&db, &spaces, &mut contents, &mut rng, 3000);
    }
    db.sync().unwrap();
    (world.disk.fork(), contents)
}

fn write(db: &Db, spaces: &[Namespace], contents: &mut Contents, rng: &mut Rng, keys: u64) {
    let ns = &spaces[rng.index(spaces.len())];
    let map = contents.entry(ns.name().to_string()).or_default();
    let key = key(rng.below(keys));
    let mut batch = WriteBatch::new();
    match rng.below(12) {
        0 => {
            batch.delete(ns, &key).unwrap();
            map.remove(&key);
        }
        1 => {
            let from = rng.below(keys);
            let (start, end) = (self::key(from), self::key(from + 1 + rng.below(8)));
            batch.delete_range(ns, &start, &end).unwrap();
            map.retain(|k, _| *k < start || *k >= end);
        }
        n => {
            let len = if rng.one_in(6) {
                700
            } else {
                rng.below(if keys > 80 { 300 } else { 60 })
            };
            let mut value = vec![0; len as usize];
            rng.fill_bytes(&mut value);
            if n == 2 {
                batch
                    .put_expiring(ns, &key, &value, START_MS + 1_000_000_000)
                    .unwrap();
            } else {
                batch.put(ns, &key, &value).unwrap();
            }
            map.insert(key, value);
        }
    }
    db.write(batch, &WriteOptions::sync()).unwrap();
}

pub(crate) fn verify(disk: &MemFs) -> VerifyReport {
    let world = World::on(disk.clone(), 1);
    verify_dir(&world.env, Path::new(DIR), &mut |_| {}).unwrap()
}

/// What the data files hold by their own account, read through the public API.
fn entries_of(disk: &MemFs) -> usize {
    let world = World::on(disk.fork(), 1);
    let db = world
        .open(Options {
            read_only: true,
            ..tiny()
        })
        .unwrap();
    db.stats()
        .levels
        .iter()
        .map(|level| level.files as usize)
        .sum()
}

#[test]
fn a_sound_database_is_clean_and_counted() {
    for seed in 0..8 {
        let (disk, _) = if seed < 4 {
            sample(seed, &tiny())
        } else {
            layered(seed)
        };
        let before: Vec<_> = disk.files();
        let mut last = VerifyProgress::default();
        let world = World::on(disk.clone(), 1);
        let report = verify_dir(&world.env, Path::new(DIR), &mut |now| {
            assert!(now.bytes_done >= last.bytes_done && now.bytes_done <= now.bytes_total);
            last = *now;
        })
        .unwrap();
        assert!(report.is_clean(), "{:?}", report.problems);
        assert_eq!(last.bytes_done, last.bytes_total);
        assert_eq!(last.files_done, last.files_total);
        assert_eq!(disk.files(), before, "verification changes nothing");
        assert!(report.log_operations >= 30);
        assert!(entries_of(&disk) > 0, "there are SSTables");
    }
}

#[test]
fn entries_and_files_are_counted_right() {
    let world = World::new(1);
    let db = world
        .open(Options {
            min_blob_bytes: 100,
            ..tiny()
        })
        .unwrap();
    for number in 0..50 {
        db.put(&key(number), &[7; 20]).unwrap();
    }
    db.put(&key(50), &[8; 200]).unwrap();
    db.delete(&key(51)).unwrap();
    db.flush().unwrap();
    for number in 60..70 {
        db.put(&key(number), b"in the log").unwrap();
    }
    let online = db.verify().unwrap();
    assert!(online.is_clean(), "{:?}", online.problems);
    assert_eq!(online.entries, 52);
    db.sync().unwrap();
    let offline = verify(&world.disk.fork());
    assert!(offline.is_clean(), "{:?}", offline.problems);
    assert_eq!(offline.entries, 52);
    assert!(offline.log_operations >= 10);
    // CURRENT, manifest, one SSTable, one blob file, at least one segment.
    assert!(offline.files >= 5, "{offline:?}");
}

#[test]
fn a_database_in_use_is_locked_and_none_is_none() {
    let world = World::new(1);
    let none = verify_dir(&world.env, Path::new("/nothing"), &mut |_| {});
    assert!(none.is_err());
    world.env.fs.create_dir_all(Path::new("/empty")).unwrap();
    let empty = verify_dir(&world.env, Path::new("/empty"), &mut |_| {}).unwrap_err();
    assert!(empty.to_string().contains("no database"), "{empty}");
    let db = world.open(tiny()).unwrap();
    let locked = verify_dir(&world.env, Path::new(DIR), &mut |_| {}).unwrap_err();
    assert!(matches!(locked, Error::Locked(_)), "{locked}");
    db.close().unwrap();
    assert!(verify(&world.disk).is_clean());
}

/// The files of a database whose damage must be found.
fn live(disk: &MemFs) -> Vec<PathBuf> {
    let orphans = verify(disk).notes;
    let uninteresting = |path: &Path| {
        // Neither has content that anybody reads.
        let name = path.file_name().unwrap().to_str().unwrap();
        name == "LOCK" || name == "BALLAST" || name.ends_with(".spare") || name.ends_with(".tmp")
    };
    let files = disk.files().into_iter();
    files
        .filter(|p| !uninteresting(p) && !orphans.iter().any(|o| o.path == *p))
        .collect()
}

/// Bytes that nothing reads, by file: the unused rest of log segments behind the last frame, the
/// padding between frames, and what lies behind the last sealed edit of a manifest.
fn is_found(disk: &MemFs, path: &Path, offset: u64, bit: u8) -> bool {
    let damaged = disk.fork();
    damaged.flip_bit(path, offset, bit).unwrap();
    let report = verify(&damaged);
    if report.is_clean() {
        return false;
    }
    assert!(
        report.problems.iter().any(|problem| problem.path == path),
        "byte {offset} of {}: the problems name other files: {:?}",
        path.display(),
        report.problems
    );
    true
}

#[test]
fn a_flipped_bit_in_any_byte_is_found_and_its_file_named() {
    let options = Options {
        log_segment_bytes: Some(64 << 10),
        ..tiny()
    };
    let (disk, _) = sample(3, &options);
    let mut rng = Rng::new(7);
    let mut kinds = BTreeMap::<String, u32>::new();
    for path in live(&disk) {
        let bytes = disk.read_file(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let kind = name.rsplit(['.', '-']).next().unwrap().to_string();
        let is_log = kind == "wal";
        let is_manifest = name.starts_with("MANIFEST");
        *kinds
            .entry(if is_manifest { "manifest".into() } else { kind })
            .or_default() += 1;
        let used = bytes
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        // A seal, which is written and not synced, ends a manifest: an empty frame of nine bytes.
        let sealed = if is_manifest {
            bytes.len() - 9
        } else {
            bytes.len()
        };
        for offset in 0..bytes.len() {
            if is_log && (offset >= used || !rng.one_in(4)) && !rng.one_in(2000) {
                continue;
            }
            if !is_log && !is_manifest && !rng.one_in(3) {
                continue;
            }
            let found = is_found(&disk, &path, offset as u64, rng.below(8) as u8);
            if is_log {
                // The last record that was synced may be taken for one that was not (the reader's
                // page tells); padding, and zeros behind the end, are never read.
                continue;
            }
            assert!(
                found || offset >= sealed,
                "byte {offset} of {} unnoticed",
                path.display()
            );
        }
    }
    for kind in ["sst", "blob", "wal", "manifest", "CURRENT"] {
        assert!(
            kinds.contains_key(kind),
            "the sample has no {kind}: {kinds:?}"
        );
    }
}

/// Of the log all but the unsynced tail, the padding and the unused rest is found.
#[test]
fn a_flipped_bit_in_a_record_of_the_log_is_found() {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    for number in 0..40 {
        db.put(
            &key(number),
            format!("value {number} of the log").as_bytes(),
        )
        .unwrap();
    }
    db.sync().unwrap();
    let disk = world.disk.fork();
    let path = disk
        .files()
        .into_iter()
        .find(|p| p.extension().is_some_and(|e| e == "wal"))
        .unwrap();
    let bytes = disk.read_file(&path).unwrap();
    let needle = b"value 39 of the log";
    let last = bytes
        .windows(needle.len())
        .position(|w| w == needle)
        .unwrap();
    let end = last - 60;
    let mut unnoticed = 0;
    for (offset, &byte) in bytes.iter().enumerate().take(end) {
        if !is_found(&disk, &path, offset as u64, (offset % 8) as u8) {
            unnoticed += 1;
            assert_eq!(byte, 0, "byte {offset} is no padding");
        }
    }
    // At most seven bytes of padding for each frame.
    assert!(
        unnoticed <= 7 * 41,
        "{unnoticed} bytes of {end} go unnoticed"
    );
}

#[test]
fn missing_and_cut_files_are_found() {
    let (disk, _) = sample(5, &tiny());
    for path in live(&disk) {
        let is_log = path.extension().is_some_and(|e| e == "wal");
        let bytes = disk.read_file(&path).unwrap();
        // A manifest cut between two edits is a sound manifest of an earlier time.
        let is_manifest = path.to_str().unwrap().contains("MANIFEST");
        let half = if is_manifest { 40 } else { bytes.len() / 2 };
        let almost = if is_manifest { 20 } else { bytes.len() - 1 };
        let lengths = [0, 1, half, almost];
        for len in lengths {
            let damaged = disk.fork();
            damaged.write_file(&path, &bytes[..len]).unwrap();
            let report = verify(&damaged);
            assert!(
                report.problems.iter().any(|p| p.path == path),
                "{} cut to {len}: {:?}",
                path.display(),
                report.problems
            );
        }
        let damaged = disk.fork();
        World::on(damaged.clone(), 1)
            .env
            .fs
            .remove_file(&path)
            .unwrap();
        let report = verify(&damaged);
        assert!(!report.is_clean(), "{} is missing", path.display());
        let by_name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            report
                .problems
                .iter()
                .any(|p| p.path == path || p.detail.contains(by_name))
                || is_log,
            "{} is missing: {:?}",
            path.display(),
            report.problems
        );
    }
}

#[test]
fn all_damage_of_all_files_is_reported_at_once() {
    let (disk, _) = sample(6, &tiny());
    let data: Vec<PathBuf> = live(&disk)
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "sst" || e == "blob"))
        .collect();
    assert!(data.len() > 3);
    for path in &data {
        disk.flip_bit(path, 40, 3).unwrap();
    }
    let report = verify(&disk);
    for path in &data {
        assert!(
            report.problems.iter().any(|p| p.path == *path),
            "{}",
            path.display()
        );
    }
}

#[test]
fn orphans_are_notes() {
    let (disk, _) = sample(2, &tiny());
    let before = verify(&disk).notes.len();
    let sst = disk
        .files()
        .into_iter()
        .find(|p| p.extension().is_some_and(|e| e == "sst"))
        .unwrap();
    let bytes = disk.read_file(&sst).unwrap();
    disk.write_file("/db/999999.sst", &bytes[..bytes.len() / 2])
        .unwrap();
    disk.write_file("/db/CURRENT.tmp", b"MANIF").unwrap();
    let report = verify(&disk);
    assert!(report.is_clean(), "{:?}", report.problems);
    assert_eq!(report.notes.len(), before + 2, "{:?}", report.notes);
}

#[test]
fn a_database_is_verified_while_it_is_written() {
    for seed in 0..3 {
        let world = World::new(seed);
        let db = world.open(tiny()).unwrap();
        let spaces = [
            db.default_namespace(),
            db.create_namespace("other").unwrap(),
        ];
        let mut contents = Contents::new();
        let mut rng = Rng::new(seed);
        for _ in 0..40 {
            for _ in 0..20 {
                write(&db, &spaces, &mut contents, &mut rng, 80);
            }
            world.step(rng.below(4));
            let report = db.verify().unwrap();
            assert!(report.is_clean(), "{:?}", report.problems);
        }
    }
}

#[test]
fn damage_is_found_while_the_database_is_open() {
    let (disk, _) = sample(1, &tiny());
    let world = World::on(disk, 1);
    let db = world.open(tiny()).unwrap();
    let sst = live_sst(&world.disk, &db);
    world.disk.flip_bit(&sst, 20, 1).unwrap();
    let report = db.verify().unwrap();
    assert!(
        report.problems.iter().any(|p| p.path == sst),
        "{:?}",
        report.problems
    );
}

fn live_sst(disk: &MemFs, db: &Db) -> PathBuf {
    db.wait_idle().unwrap();
    let orphans = verify_notes(disk);
    disk.files()
        .into_iter()
        .find(|p| p.extension().is_some_and(|e| e == "sst") && !orphans.contains(p))
        .unwrap()
}

fn verify_notes(disk: &MemFs) -> Vec<PathBuf> {
    verify(&disk.fork())
        .notes
        .into_iter()
        .map(|note| note.path)
        .collect()
}

/// Two tables that each have a version of one key, with the levels of the two exchanged.
pub(crate) fn upside_down() -> MemFs {
    let world = World::new(1);
    let db = world.open(tiny()).unwrap();
    let ns = db.default_namespace();
    for round in [b"old".as_slice(), b"new"] {
        for number in 0..20 {
            db.put(&key(number), round).unwrap();
        }
        db.flush().unwrap();
        if round == b"old" {
            db.compact_range(&ns, None, None).unwrap();
        }
    }
    db.close().unwrap();
    drop(db);
    world.step(u64::MAX);
    let env = world.env.clone();
    let set: VersionSet<(), ()> =
        VersionSet::open(env, Path::new(DIR), Arc::new(|_, _| {})).unwrap();
    let namespace = NamespaceId::default();
    let files: Vec<_> = set
        .current(namespace)
        .all_files()
        .map(|(level, file)| (level, file.meta.clone()))
        .collect();
    assert_eq!(files.len(), 2, "{files:?}");
    let mut ops = Vec::new();
    for (level, meta) in &files {
        ops.push(Op::RemoveFile {
            namespace,
            level: *level,
            id: meta.id,
        });
    }
    for ((_, meta), (level, _)) in files.iter().zip(files.iter().rev()) {
        ops.push(Op::AddFile {
            namespace,
            level: *level,
            meta: meta.clone(),
        });
    }
    set.apply(VersionEdit::of(ops)).unwrap();
    world.disk.clone()
}

#[test]
fn older_data_above_newer_data_is_found() {
    let disk = upside_down();
    let report = verify(&disk);
    let told = report
        .problems
        .iter()
        .filter(|p| p.detail.contains("is newer than what is in L0"));
    assert_eq!(told.count(), 20, "{:?}", report.problems);
    assert_eq!(report.problems.len(), 20);
}

#[test]
fn a_manifest_that_says_wrong_things_of_a_table_is_found() {
    let (disk, _) = sample(1, &tiny());
    let namespace = NamespaceId::default();
    type Change = fn(&mut FileMeta);
    let changes: [(&str, Change); 8] = [
        ("entries", |meta| meta.entry_count += 1),
        ("tombstones", |meta| {
            meta.tombstone_count = meta.entry_count - 1
        }),
        ("range tombstones", |meta| meta.range_tombstone_count += 1),
        ("uncompressed bytes", |meta| meta.raw_bytes -= 1),
        ("least operation", |meta| meta.min_seqno.0 = 0),
        ("greatest operation", |meta| meta.max_seqno = meta.min_seqno),
        ("smallest key", |meta| meta.smallest = b"".as_slice().into()),
        ("length", |meta| meta.file_bytes += 1),
    ];
    for (what, change) in changes {
        let disk = disk.fork();
        let world = World::on(disk.clone(), 1);
        let set: VersionSet<(), ()> =
            VersionSet::open(world.env.clone(), Path::new(DIR), Arc::new(|_, _| {})).unwrap();
        let version = set.current(namespace);
        let (level, file) = version.all_files().next().unwrap();
        let mut meta = file.meta.clone();
        let (id, level) = (meta.id, level);
        change(&mut meta);
        // A file cannot change in one edit.
        let blobs: Vec<_> = version
            .blobs()
            .iter()
            .map(|blob| blob.file.meta.clone())
            .collect();
        set.apply(VersionEdit::of(vec![Op::RemoveFile {
            namespace,
            level,
            id,
        }]))
        .unwrap();
        let known: Vec<_> = set
            .current(namespace)
            .blobs()
            .iter()
            .map(|blob| blob.file.meta.id)
            .collect();
        let mut ops: Vec<Op> = blobs
            .into_iter()
            .filter(|blob| !known.contains(&blob.id))
            .map(|meta| Op::AddBlob { namespace, meta })
            .collect();
        ops.push(Op::AddFile {
            namespace,
            level,
            meta,
        });
        set.apply(VersionEdit::of(ops)).unwrap();
        drop(set);
        let report = verify(&disk);
        let path = names::sstable_path(Path::new(DIR), id);
        assert!(
            report
                .problems
                .iter()
                .any(|p| p.path == path && p.detail.starts_with(what)),
            "{what}: {:?}",
            report.problems
        );
    }
}

#[test]
fn a_file_that_the_disk_refuses_to_read_is_a_problem() {
    let (disk, _) = sample(2, &tiny());
    for path in live(&disk) {
        for kind in [OpKind::Read, OpKind::Open] {
            let inner: Arc<dyn Fs> = Arc::new(disk.fork());
            let faults = Arc::new(FaultFs::new(inner, 1));
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            faults.add_rule(Rule::new(Fault::Io).on(kind).path_ends(name));
            let world = World::through(disk.clone(), faults, 1);
            let report = verify_dir(&world.env, Path::new(DIR), &mut |_| {}).unwrap();
            assert!(
                report.problems.iter().any(|p| p.path == path),
                "{kind:?} of {}: {:?}",
                path.display(),
                report.problems
            );
        }
    }
}
