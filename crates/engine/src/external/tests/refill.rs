//! Damaged tables made whole by another copy.

use std::io::ErrorKind;
use std::path::PathBuf;

use firn_io::fs::fault::{Fault, FaultFs, OpKind, Rule, Verdict};

use parking_lot::Mutex;

use super::*;
use crate::event::{Event, EventListener};
use crate::key::FileId;
use crate::refill::{Damage, RangeView, Refill};
use crate::version::KeyRange;

/// Tables of many small blocks.
fn many_blocks() -> Options {
    Options {
        block_bytes: 512,
        l0_compaction_trigger: 3,
        ..options()
    }
}

fn tables(disk: &MemFs) -> Vec<PathBuf> {
    let mut files = disk.files();
    files.retain(|path| path.starts_with(DIR) && path.extension() == Some("sst".as_ref()));
    files
}

fn has_damages(node: &Node) -> bool {
    !node.db.damaged_files().is_empty()
}

/// What `other` has where a table is damaged, asked for in small portions.
fn views(other: &Node, damage: &Damage, most: usize) -> Result<Vec<RangeView>, Error> {
    let mut views = Vec::new();
    for range in &damage.ranges {
        let mut rest = Some(range.clone());
        while let Some(range) = rest.take() {
            let view = other.db.view(damage.namespace, range.clone(), most)?;
            let next = view.next.clone();
            rest = next.map(|start| KeyRange { start, ..range });
            views.push(view);
        }
    }
    Ok(views)
}

/// What becomes of a history in one run.
#[derive(Debug, Default)]
struct Tally {
    refilled: u64,
    entries: u64,
    /// An entry asked for what was damaged, which is the end of a node.
    stopped: u64,
}

/// Random damage to the tables of one copy, which another mends while entries go on being applied; then crashes, and
/// the entries behind the files again.
fn mend(seed: u64, tally: &mut Tally) {
    let mut rng = Rng::new(seed);
    let mut entries = history(&mut rng, 200);
    let calm = Node::open(MemFs::new(), 1);
    let mut wanted = Vec::new();
    for (index, entry) in entries.iter_mut().enumerate() {
        let outcomes = apply(&calm, index + 1, entry);
        wanted.push((outcomes, calm.contents()));
    }
    let other = Node::open_as(MemFs::new(), seed + 1, many_blocks());
    let mut node = Node::open_as(MemFs::new(), seed, many_blocks());
    let damaged_at = rng.between(30, 120) as usize;
    let asked_at = damaged_at + rng.below(30) as usize;
    for (index, entry) in entries.iter_mut().enumerate().take(asked_at) {
        for (node, upto) in [(&other, asked_at), (&node, damaged_at)] {
            if index < upto {
                apply(node, index + 1, entry);
                if rng.one_in(8) {
                    node.applier.flush_soon().unwrap();
                }
                for _ in 0..rng.below(4) {
                    node.exec.run_one();
                }
            }
        }
    }
    node.applier.flush_soon().unwrap();
    node.exec.run_all();
    let there = tables(&node.disk);
    let Some(path) = (!there.is_empty()).then(|| &there[rng.index(there.len())]) else {
        return;
    };
    let len = node.disk.read_file(path).unwrap().len() as u64;
    for _ in 0..rng.between(1, 3) {
        let bit = rng.below(8) as u8;
        node.disk.flip_bit(path, rng.below(len), bit).unwrap();
    }
    assert!(!node.db.verify().unwrap().is_clean());
    assert!(has_damages(&node));

    let damages = node.db.damages().unwrap();
    assert_eq!(damages.len(), 1, "seed {seed}");
    let damage = &damages[0];
    let Ok(views) = views(&other, damage, rng.between(1, 4000) as usize) else {
        return; // Its namespace is dropped by then.
    };
    let ahead = rng.below(20) as usize;
    let mut upto = damaged_at + rng.below(3) as usize;
    let mut held = rng.one_in(4).then(|| node.db.snapshot());
    loop {
        while node.next() < upto.min(entries.len()) {
            let index = node.next();
            match try_apply(&node, index + 1, &mut entries[index]) {
                Ok(outcomes) => assert_eq!(outcomes, wanted[index].0, "seed {seed}, {index}"),
                Err(error) => {
                    assert!(error.is_corruption(), "{error}");
                    tally.stopped += 1;
                    return;
                }
            }
        }
        match node.db.refill(damage, &views).unwrap() {
            Refill::Done(count) => {
                let newest = held.as_ref().map(|snapshot| snapshot.seqno());
                assert!(newest.is_none_or(
                    |newest| newest >= views.iter().map(|v| v.seqno).max().unwrap_or_default()
                ));
                tally.refilled += 1;
                tally.entries += count;
                break;
            }
            Refill::Busy => {
                // A snapshot that is older than the files is let go when nothing else is in the way.
                if !node.exec.run_one() {
                    held.take().expect("nothing runs");
                }
            }
            Refill::NotYet => {
                upto = (asked_at + ahead).max(node.next());
                node.applier.flush_soon().unwrap();
                // Some of what waits for the flush.
                for _ in 0..rng.below(30) {
                    node.exec.run_one();
                }
            }
            // Its blocks were sound, and compaction has merged it; or its namespace was dropped.
            Refill::Gone => return,
        }
    }
    assert_eq!(node.db.damages().unwrap(), []);
    assert!(!has_damages(&node));
    assert_eq!(node.contents(), wanted[node.next() - 1].1, "seed {seed}");
    let report = node.db.verify().unwrap();
    assert!(report.is_clean(), "seed {seed}: {:?}", report.problems);
    drop(held);
    node.exec.run_all();
    assert_eq!(node.db.refill(damage, &views).unwrap(), Refill::Gone);

    let mut crashes = 0;
    while node.next() < entries.len() {
        if crashes == 0 || (rng.one_in(25) && crashes < 4) {
            crashes += 1;
            let modes = [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn];
            let disk = node.disk.crash(rng.next_u64(), modes[rng.index(3)]);
            node.exec.clear();
            std::mem::forget(node.db);
            node = Node::open_as(disk, rng.next_u64(), many_blocks());
            let index = node.next();
            if index > 0 {
                assert_eq!(
                    node.contents(),
                    wanted[index - 1].1,
                    "seed {seed}, at {index}"
                );
            }
        }
        let index = node.next();
        let outcomes = apply(&node, index + 1, &mut entries[index]);
        assert_eq!(outcomes, wanted[index].0, "seed {seed}, entry {index}");
        for _ in 0..rng.below(4) {
            node.exec.run_one();
        }
    }
    assert_eq!(node.contents(), wanted[entries.len() - 1].1, "seed {seed}");
    node.exec.run_all();
    let report = node.db.verify().unwrap();
    assert!(report.is_clean(), "seed {seed}: {:?}", report.problems);
}

#[test]
fn a_damaged_table_is_made_whole_by_another_copy() {
    let mut tally = Tally::default();
    for seed in 0..200 {
        mend(seed, &mut tally);
    }
    assert!(tally.refilled > 60 && tally.entries > 40, "{tally:?}");
}

fn put_all(batch: &mut WriteBatch, keys: std::ops::Range<u32>) {
    for number in keys {
        let key = format!("k{number:04}").into_bytes();
        batch
            .put(NamespaceId(0), &key, &[number as u8; 60])
            .unwrap();
    }
}

fn write(node: &Node, index: usize, batch: WriteBatch) {
    let mut entry = Entry {
        time_ms: 5,
        steps: vec![Step::Write(Vec::new(), batch)],
    };
    apply(node, index, &mut entry);
}

/// Two copies, one on a disk that fails as it is told, whose only table is this.
fn two_copies() -> (Node, Node, FaultFs, PathBuf) {
    let disk = MemFs::new();
    let fs = FaultFs::new(Arc::new(disk.clone()), 1);
    let options = Options {
        // Each read is one of the disk.
        cache_bytes: Some(0),
        ..many_blocks()
    };
    let node = Node::open_on(Arc::new(fs.clone()), disk, 1, options);
    let other = Node::open_as(MemFs::new(), 2, many_blocks());
    for node in [&node, &other] {
        let mut batch = WriteBatch::new();
        put_all(&mut batch, 0..100);
        write(node, 1, batch);
        node.applier.flush_soon().unwrap();
        node.exec.run_all();
    }
    let path = tables(&node.disk).remove(0);
    (node, other, fs, path)
}

/// Reads that touch this byte of the file fail.
fn cannot_read(fs: &FaultFs, path: &Path, at: u64, fault: Fault) {
    let path = path.to_path_buf();
    fs.set_hook(Box::new(move |_, op| {
        let meets = op.offset <= at && at < op.offset + op.len;
        match op.kind == OpKind::Read && op.path == path && meets {
            true => Verdict::Fail(fault),
            false => Verdict::Proceed,
        }
    }));
}

fn read_all(node: &Node) -> Result<usize, Error> {
    let default = node.db.default_namespace();
    let mut scan = node.db.scan(&default, ScanOptions::default())?;
    let mut count = 0;
    while scan.next()? {
        count += 1;
    }
    Ok(count)
}

#[test]
fn a_sector_that_cannot_be_read_is_refilled() {
    // In a block, and in what a table is opened by.
    for from_end in [false, true] {
        let (node, other, fs, path) = two_copies();
        let len = node.disk.read_file(&path).unwrap().len() as u64;
        let at = if from_end { len - 9 } else { len / 2 };
        if !from_end {
            assert_eq!(read_all(&node).unwrap(), 100);
        }
        cannot_read(&fs, &path, at, Fault::Io);
        assert!(matches!(read_all(&node), Err(Error::Io(_))));
        assert!(has_damages(&node));
        assert_eq!(node.db.stats().counters.corruptions, 1);
        let damages = node.db.damages().unwrap();
        assert_eq!(damages.len(), 1);
        let views = views(&other, &damages[0], 1000).unwrap();
        let Refill::Done(entries) = node.db.refill(&damages[0], &views).unwrap() else {
            panic!("there is nothing to wait for");
        };
        // Without its footer nobody knows where the blocks are, but for those that can be guessed.
        assert!((1..20).contains(&entries) || from_end, "{entries}");
        assert!(!has_damages(&node));
        assert_eq!(node.contents(), other.contents());
        assert!(node.db.verify().unwrap().is_clean());
    }
}

#[test]
fn a_disk_that_could_not_be_read_for_a_moment_does_no_harm() {
    // For so long: one read, until the table is looked at, until it is written anew.
    for reads in 0..3 {
        let (node, other, fs, path) = two_copies();
        assert_eq!(read_all(&node).unwrap(), 100);
        let len = node.disk.read_file(&path).unwrap().len() as u64;
        cannot_read(&fs, &path, len / 2, Fault::Io);
        assert!(read_all(&node).is_err() && has_damages(&node));
        if reads == 0 {
            fs.clear_hooks();
        }
        let damages = node.db.damages().unwrap();
        assert_eq!(damages.len(), reads.min(1));
        assert_eq!(has_damages(&node), reads > 0);
        if let Some(damage) = damages.first() {
            let views = views(&other, damage, 1000).unwrap();
            if reads == 1 {
                fs.clear_hooks();
            }
            let refilled = node.db.refill(damage, &views).unwrap();
            assert!(matches!(refilled, Refill::Done(count) if (count == 0) == (reads == 1)));
        }
        assert!(!has_damages(&node));
        assert_eq!(node.contents(), other.contents());
        assert!(node.db.verify().unwrap().is_clean());
    }
}

#[test]
fn only_tables_that_cannot_be_read_are_noted() {
    let (node, _, fs, path) = two_copies();
    let file = path.to_string_lossy().into_owned();
    let read = |fault| Rule::new(fault).on(OpKind::Read);
    let kinds = [ErrorKind::TimedOut, ErrorKind::OutOfMemory];
    for fault in kinds.map(Fault::Error).into_iter().chain([Fault::NoSpace]) {
        fs.add_rule(read(fault).path_contains(&file));
        assert!(read_all(&node).is_err());
        fs.clear_rules();
    }
    let is_noted = |node: &Node| has_damages(node) || node.db.stats().counters.corruptions > 0;
    assert!(!is_noted(&node));
    // A flush that cannot write, of a new table and of the manifest.
    for part in [".sst", "MANIFEST"] {
        let (node, _, fs, _) = two_copies();
        let mut batch = WriteBatch::new();
        put_all(&mut batch, 0..10);
        write(&node, 2, batch);
        fs.add_rule(Rule::new(Fault::Io).on(OpKind::Write).path_contains(part));
        fs.add_rule(Rule::new(Fault::Io).on(OpKind::Sync).path_contains(part));
        node.applier.flush_soon().unwrap();
        while node.exec.run_one() {}
        assert!(node.db.stats().counters.background_failures > 0, "{part}");
        assert!(!is_noted(&node), "{part}");
    }
}

#[test]
fn a_lost_range_tombstone_over_many_keys_is_one_again() {
    let (node, other, _, path) = two_copies();
    for node in [&node, &other] {
        let mut batch = WriteBatch::new();
        batch
            .delete_range(NamespaceId(0), b"k0010", b"k0090")
            .unwrap();
        put_all(&mut batch, 40..41);
        write(node, 2, batch);
        node.applier.flush_soon().unwrap();
        // But no compaction, which would merge the two.
        while node.db.stats().levels[0].files < 2 {
            assert!(node.exec.run_one());
        }
    }
    let path = tables(&node.disk).into_iter().find(|other| *other != path);
    let path = path.unwrap();
    let mut bytes = node.disk.read_file(&path).unwrap();
    bytes.truncate(10);
    node.disk.write_file(&path, &bytes).unwrap();
    assert!(!node.db.verify().unwrap().is_clean());
    let damage = node.db.damages().unwrap().remove(0);
    let views = views(&other, &damage, 1 << 20).unwrap();
    // What was put, and the last key of each side of it: not each of the others.
    let refilled = loop {
        match node.db.refill(&damage, &views).unwrap() {
            // A merge, which cannot read it either.
            Refill::Busy => assert!(node.exec.run_one()),
            refilled => break refilled,
        }
    };
    assert_eq!(refilled, Refill::Done(3));
    assert_eq!(node.contents(), other.contents());
    assert!(node.db.verify().unwrap().is_clean());
}

#[test]
fn a_view_of_what_was_deleted_comes_in_portions() {
    let (_, other, ..) = two_copies();
    let mut batch = WriteBatch::new();
    for number in 0..99 {
        let key = format!("k{number:04}").into_bytes();
        batch.delete(NamespaceId(0), &key).unwrap();
    }
    write(&other, 2, batch);
    let mut range = KeyRange {
        start: Vec::new(),
        end: None,
        end_exclusive: false,
    };
    let mut portions = 0;
    let found = loop {
        let view = other
            .db
            .view(NamespaceId(0), range.clone(), 1 << 20)
            .unwrap();
        portions += 1;
        match view.next {
            Some(next) => {
                assert!(view.entries.is_empty() && next > range.start);
                assert_eq!(view.range.end.as_ref(), Some(&next));
                range.start = next;
            }
            None => break view.entries,
        }
    };
    assert_eq!(portions, 99 / 8 + 1);
    assert_eq!(found.len(), 1);
}

/// What was told of damage that is not mended.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl EventListener for Told {
    fn on_event(&self, event: &Event) {
        if let Event::TableNotRefilled { .. } = event {
            self.0.lock().push(event.to_string());
        }
    }
}

#[test]
fn why_a_table_is_not_refilled_is_told_once_for_each_reason() {
    let (node, _, _, path) = two_copies();
    let told = Arc::new(Told::default());
    node.db.set_listener(Arc::clone(&told) as _);
    node.disk.flip_bit(&path, 30, 1).unwrap();
    assert!(!node.db.verify().unwrap().is_clean());
    let damage = node.db.damages().unwrap().remove(0);
    for reason in ["one", "one", "other", "other", "one"] {
        node.db.note_not_refilled(&damage, reason);
    }
    let gone = Damage {
        file: FileId(1000),
        ..damage
    };
    node.db.note_not_refilled(&gone, "one");
    let told = told.0.lock();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].contains(&*path.to_string_lossy()) && told[0].ends_with(": one"));
}

#[test]
fn nothing_is_taken_from_a_table_that_is_another_one() {
    let stranger = Node::open_as(MemFs::new(), 3, many_blocks());
    let mut batch = WriteBatch::new();
    // Nothing that the table could not have, by its keys and numbers.
    put_all(&mut batch, 1..2);
    put_all(&mut batch, 90..100);
    batch
        .delete_range(NamespaceId(0), b"k0010", b"k0020")
        .unwrap();
    write(&stranger, 1, batch);
    stranger.applier.flush_soon().unwrap();
    while tables(&stranger.disk).is_empty() {
        assert!(stranger.exec.run_one());
    }
    let wrong = tables(&stranger.disk).remove(0);
    let mut wrong = stranger.disk.read_file(&wrong).unwrap();
    for way in ["read", "verified", "without its footer"] {
        let (node, other, _, path) = two_copies();
        if way == "without its footer" {
            wrong.pop();
        }
        node.disk.write_file(&path, &wrong).unwrap();
        if way == "read" {
            assert!(read_all(&node).unwrap_err().is_corruption());
        } else {
            let problems = node.db.verify().unwrap().problems;
            assert!(!problems.is_empty() && problems.iter().all(|problem| problem.path == path));
        }
        let damages = node.db.damages().unwrap();
        assert_eq!(damages.len(), 1, "{way}");
        let views = views(&other, &damages[0], 1000).unwrap();
        let refilled = node.db.refill(&damages[0], &views).unwrap();
        assert_eq!(refilled, Refill::Done(100), "{way}");
        assert_eq!(node.contents(), other.contents(), "{way}");
        assert!(node.db.verify().unwrap().is_clean(), "{way}");
    }
}
