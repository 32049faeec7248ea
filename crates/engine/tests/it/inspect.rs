//! Inspection shows what is there, of sound and of damaged files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use firn_engine::inspect::{FileRole, Inspection, Item, inspect, walk};
use firn_io::fs::mem::MemFs;
use firn_io::rng::Rng;

use crate::verify::{sample, verify};
use crate::world::{DIR, World, tiny};

fn describe(disk: &MemFs, path: &Path) -> Inspection {
    inspect(&World::on(disk.clone(), 1).env, path).unwrap()
}

/// How many parts of each kind a walk meets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parts {
    edits: u64,
    blocks: u64,
    entries: u64,
    range_tombstones: u64,
    blobs: u64,
    blob_bytes: u64,
    records: u64,
    operations: u64,
    problems: u64,
}

fn count(disk: &MemFs, path: &Path) -> Parts {
    let mut parts = Parts::default();
    let env = World::on(disk.clone(), 1).env;
    walk(&env, path, &mut |item| {
        match item {
            Item::Edit { .. } => parts.edits += 1,
            Item::RangeTombstone(_) => parts.range_tombstones += 1,
            Item::Block { number, .. } => {
                assert_eq!(number, parts.blocks + parts.problems);
                parts.blocks += 1;
            }
            Item::Entry { .. } => parts.entries += 1,
            Item::BlobRecord { stored_bytes, .. } => {
                parts.blobs += 1;
                parts.blob_bytes += stored_bytes;
            }
            Item::LogRecord { .. } => parts.records += 1,
            Item::Operation { .. } => parts.operations += 1,
            Item::Problem(problem) => {
                assert_eq!(problem.path, path);
                parts.problems += 1;
            }
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    parts
}

#[test]
fn descriptions_and_walks_agree() {
    let (disk, written) = sample(2, &tiny());
    let Inspection::Directory(directory) = describe(&disk, Path::new(DIR)) else {
        panic!("not a directory")
    };
    assert!(directory.problems.is_empty());
    let names: Vec<&str> = directory.namespaces.iter().map(|ns| &*ns.name).collect();
    assert_eq!(
        names,
        written.keys().map(|name| &**name).collect::<Vec<_>>()
    );
    let report = verify(&disk);
    let in_state: u64 = directory
        .namespaces
        .iter()
        .flat_map(|ns| ns.levels.iter().flatten())
        .map(|f| f.entry_count)
        .sum();
    assert_eq!(in_state, report.entries);

    let mut entries = 0;
    let mut seen = Vec::new();
    for file in directory.files.iter().filter(|file| file.in_use) {
        seen.push(file.role);
        let problems = match file.role {
            FileRole::Current => {
                let Inspection::Current(id) = describe(&disk, &file.path) else {
                    panic!()
                };
                assert_eq!(Some(id), directory.manifest);
                continue;
            }
            FileRole::Manifest => {
                let Inspection::Manifest(manifest) = describe(&disk, &file.path) else {
                    panic!()
                };
                assert_eq!(count(&disk, &file.path).edits, manifest.edits);
                manifest.problems
            }
            FileRole::Sstable => {
                let Inspection::Sstable(table) = describe(&disk, &file.path) else {
                    panic!()
                };
                let properties = table.properties.as_ref().unwrap();
                let parts = count(&disk, &file.path);
                assert_eq!(parts.entries, properties.entry_count());
                assert_eq!(parts.blocks, properties.block_count);
                assert!(properties.namespace.is_some());
                entries += parts.entries;
                table.problems
            }
            FileRole::Blob => {
                let Inspection::Blob(blob) = describe(&disk, &file.path) else {
                    panic!()
                };
                let parts = count(&disk, &file.path);
                assert_eq!(parts.blobs, blob.value_count);
                assert!(parts.blob_bytes < blob.value_bytes);
                Vec::new()
            }
            FileRole::LogSegment => {
                let Inspection::LogSegment(log) = describe(&disk, &file.path) else {
                    panic!()
                };
                let parts = count(&disk, &file.path);
                assert_eq!(
                    (parts.records, parts.operations),
                    (log.records, log.operations)
                );
                assert!(log.operations == 0 || log.seqnos.is_some());
                log.problems
            }
            _ => continue,
        };
        assert!(problems.is_empty(), "{problems:?}");
    }
    assert_eq!(entries, report.entries);
    for role in [
        FileRole::Manifest,
        FileRole::Sstable,
        FileRole::Blob,
        FileRole::LogSegment,
    ] {
        assert!(seen.contains(&role), "no {}", role.as_str());
    }
}

#[test]
fn a_walk_can_be_broken_off() {
    let (disk, _) = sample(2, &tiny());
    let env = World::on(disk.clone(), 1).env;
    for path in disk.files() {
        let mut calls = 0;
        let result = walk(&env, &path, &mut |_| {
            calls += 1;
            ControlFlow::Break(())
        });
        assert!(calls <= 1, "{}", path.display());
        assert!(result.is_ok() || calls == 0);
    }
}

#[test]
fn damage_is_shown_and_never_panics() {
    let (disk, _) = sample(3, &tiny());
    let mut rng = Rng::new(1);
    let all: Vec<PathBuf> = disk.files();
    for path in &all {
        let bytes = disk.read_file(path).unwrap();
        if bytes.is_empty() {
            continue;
        }
        for _ in 0..60 {
            let damaged = disk.fork();
            let at = rng.below(bytes.len() as u64);
            if rng.one_in(4) {
                damaged.write_file(path, &bytes[..at as usize]).unwrap();
            } else {
                damaged.flip_bit(path, at, rng.below(8) as u8).unwrap();
            }
            let env = World::on(damaged.clone(), 1).env;
            let described = inspect(&env, path);
            let mut problems = 0;
            let walked = walk(&env, path, &mut |item| {
                problems += u32::from(matches!(item, Item::Problem(_)));
                ControlFlow::Continue(())
            });
            if path.extension().is_some_and(|e| e == "sst") {
                assert!(described.is_ok() && walked.is_ok() && problems > 0);
            }
            inspect(&env, Path::new(DIR)).unwrap();
        }
    }
}

#[test]
fn what_is_no_database_is_refused() {
    let world = World::new(1);
    world.env.fs.create_dir_all(Path::new("/empty")).unwrap();
    world.disk.write_file("/empty/notes.txt", b"text").unwrap();
    for path in ["/empty", "/empty/notes.txt", "/none", "/empty/000001.sst"] {
        assert!(inspect(&world.env, Path::new(path)).is_err(), "{path}");
        assert!(
            walk(&world.env, Path::new(path), &mut |_| ControlFlow::Continue(
                ()
            ))
            .is_err()
        );
    }
}
