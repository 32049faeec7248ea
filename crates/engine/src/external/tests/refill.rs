//! Damaged tables made whole by another copy.

use std::path::PathBuf;

use super::*;
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
    assert!(node.db.has_damages());

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
    assert!(!node.db.has_damages());
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
