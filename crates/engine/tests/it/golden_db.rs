//! A database as the first version of the format wrote it, in `golden_db/`: today's code must open
//! it, find it sound and read every key; and as long as no version was raised it writes the same
//! bytes.
//!
//! `golden_db/` is made by `UPDATE=1 cargo test -p firn-engine --test it golden_db`. Do so for a new
//! version of the format only, and into a new directory: the old one must stay readable.
#![allow(
    clippy::disallowed_methods,
    reason = "reads what is checked in, with the source"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use firn_engine::{Db, Options, ScanOptions, WriteBatch, WriteOptions};
use firn_io::fs::Fs;
use firn_io::fs::mem::MemFs;

use crate::world::{DIR, World, tiny};

/// The version of this crate that wrote the files: SSTables name it.
const WRITER: &str = "0.1.0";
/// After every test's clock.
const EXPIRY_MS: u64 = 4_000_000_000_000;

type Content = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

fn options() -> Options {
    Options {
        memtable_bytes: Some(64 << 10),
        log_segment_bytes: Some(4 << 10),
        log_mapped: false,
        ballast_bytes: 4 << 10,
        ..tiny()
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden_db")
}

/// Every kind of file and of entry.
fn build() -> MemFs {
    let world = World::new(1);
    let db = world.open(options()).unwrap();
    let main = db.default_namespace();
    let other = db.create_namespace("other").unwrap();
    let mut batch = WriteBatch::new();
    for key in 0..60 {
        let value = format!("value of {key}, value of {key}");
        let key = format!("user/{key:03}");
        batch.put(&main, key.as_bytes(), value.as_bytes()).unwrap();
    }
    batch.put(&main, b"large", &[b'x'; 2000]).unwrap();
    batch
        .put_expiring(&main, b"later", b"gone one day", EXPIRY_MS)
        .unwrap();
    batch.put(&other, b"", b"the empty key").unwrap();
    db.write(batch, &WriteOptions::sync()).unwrap();
    db.flush().unwrap();
    let mut batch = WriteBatch::new();
    batch.delete(&main, b"user/001").unwrap();
    batch.delete_range(&main, b"user/01", b"user/02").unwrap();
    db.write(batch, &WriteOptions::sync()).unwrap();
    db.flush().unwrap();
    // Only in the log.
    db.put(b"key", b"in the log").unwrap();
    db.put(b"user/000", b"newer").unwrap();
    world.exec.run_all();
    world.disk.fork()
}

fn expected() -> Content {
    let mut main = BTreeMap::new();
    for key in (0..60).filter(|key| *key != 1 && !(10..20).contains(key)) {
        let value = format!("value of {key}, value of {key}").into_bytes();
        main.insert(format!("user/{key:03}").into_bytes(), value);
    }
    main.insert(b"large".to_vec(), vec![b'x'; 2000]);
    main.insert(b"later".to_vec(), b"gone one day".to_vec());
    main.insert(b"key".to_vec(), b"in the log".to_vec());
    main.insert(b"user/000".to_vec(), b"newer".to_vec());
    let other = BTreeMap::from([(Vec::new(), b"the empty key".to_vec())]);
    BTreeMap::from([("default".into(), main), ("other".into(), other)])
}

fn content(db: &Db) -> Content {
    let mut content = Content::new();
    for ns in db.namespaces() {
        let map = content.entry(ns.name().to_owned()).or_default();
        let mut scan = db.scan(&ns, ScanOptions::default()).unwrap();
        while scan.next().unwrap() {
            map.insert(scan.key().to_vec(), scan.value().to_vec());
        }
    }
    content
}

/// The files of a database by their path in it.
fn files(disk: &MemFs) -> BTreeMap<String, Vec<u8>> {
    let named = |path: PathBuf| {
        let name = path.strip_prefix(DIR).ok()?.to_str()?.to_owned();
        Some((name, disk.read_file(&path).unwrap()))
    };
    disk.files().into_iter().filter_map(named).collect()
}

fn recorded(dir: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            recorded(&path, &format!("{name}/"), found);
        } else {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn golden_db_is_read_and_written_as_ever() {
    if std::env::var_os("UPDATE").is_some() {
        for (name, bytes) in files(&build()) {
            let path = directory().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        return;
    }
    let mut golden = BTreeMap::new();
    recorded(&directory(), "", &mut golden);
    for kind in [".sst", ".blob", ".wal", ".spare", "CURRENT", "MANIFEST"] {
        assert!(golden.keys().any(|name| name.contains(kind)), "no {kind}");
    }

    let disk = MemFs::new();
    disk.create_dir_all(Path::new(DIR).join("wal").as_ref())
        .unwrap();
    for (name, bytes) in &golden {
        disk.write_file(Path::new(DIR).join(name), bytes).unwrap();
    }
    let world = World::on(disk, 2);
    let report = firn_engine::verify_dir(&world.env, Path::new(DIR), &mut |_| {}).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let db = world.open(options()).unwrap();
    assert_eq!(content(&db), expected());

    // The version of the writer is in the SSTables and their checksums.
    if env!("CARGO_PKG_VERSION") == WRITER {
        for (name, bytes) in files(&build()) {
            let same = golden.remove(&name).is_some_and(|then| then == bytes);
            assert!(same, "{name} is not written as it was");
        }
        assert!(golden.is_empty(), "not written any more: {golden:?}");
    }
}
