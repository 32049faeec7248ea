//! The picker against a toy tree in which plans run beside each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::version::tests::{build, meta};
use crate::version::{BlobMeta, BlobRef, VersionBuilder};

fn options() -> PickOptions {
    PickOptions {
        l0_trigger: 3,
        level_ratio: 3,
        base_bytes: 2500,
        sstable_bytes: 1000,
        blob_garbage_ratio: 0.5,
        reclaim: false,
        reads: ReadLoss::default(),
    }
}

fn ids(plan: &Plan) -> Vec<(usize, Vec<u64>)> {
    let numbers = |files: &[Arc<LevelFile>]| files.iter().map(|f| f.meta.id.0).collect();
    plan.inputs
        .iter()
        .map(|(level, files)| (*level, numbers(files)))
        .collect()
}

fn pick_of(files: &[(usize, FileMeta)]) -> Option<Plan> {
    pick(&build(files).unwrap(), &options(), SeqNo(1000))
}

fn wide(id: u64, level_one_bytes: u64) -> FileMeta {
    FileMeta {
        file_bytes: level_one_bytes,
        ..meta(id, "a", "z", (1, 1))
    }
}

fn dense(mut file: FileMeta) -> FileMeta {
    file.entry_count = 100;
    file.tombstone_count = 90;
    file
}

#[test]
fn nothing_is_due_in_a_tree_within_its_sizes() {
    assert!(pick_of(&[]).is_none());
    let two = [
        (0, meta(3, "a", "c", (5, 6))),
        (0, meta(2, "a", "c", (3, 4))),
    ];
    assert!(pick_of(&two).is_none());
    assert!(pick_of(&[(6, wide(1, 1 << 40))]).is_none());
    assert_eq!(debt_bytes(&build(&two).unwrap(), &options()), 0);
}

#[test]
fn l0_goes_to_the_base_level_with_everything_that_overlaps() {
    let l0 = [
        (0, meta(9, "a", "c", (9, 9))),
        (0, meta(8, "b", "m", (8, 8))),
        (0, meta(7, "l", "n", (7, 7))),
    ];
    let plan = pick_of(&l0).unwrap();
    assert_eq!(
        (plan.output_level, plan.kind, plan.bottommost),
        (6, PlanKind::Merge, true)
    );
    assert_eq!(ids(&plan), [(0, vec![9, 8, 7])]);
    let mut files = l0.to_vec();
    files.push((6, wide(1, 2000)));
    assert_eq!(
        ids(&pick_of(&files).unwrap()),
        [(0, vec![9, 8, 7]), (6, vec![1])]
    );
    assert_eq!(debt_bytes(&build(&files).unwrap(), &options()), 5000);
    // The last level has outgrown L0: one level between takes the load from it.
    files[3].1.file_bytes = 7000;
    let plan = pick_of(&files).unwrap();
    assert_eq!(
        (plan.output_level, plan.bottommost, plan.grandparents.len()),
        (5, false, 1)
    );
    assert_eq!(ids(&plan), [(0, vec![9, 8, 7])]);
    // A level that has files is never passed by.
    files.push((
        4,
        FileMeta {
            file_bytes: 500,
            ..meta(2, "x", "y", (2, 2))
        },
    ));
    assert_eq!(pick_of(&files).unwrap().output_level, 4);
}

#[test]
fn files_that_overlap_nothing_are_moved_together() {
    let mut files = vec![
        (0, meta(9, "a", "b", (9, 9))),
        (0, meta(8, "c", "d", (8, 8))),
        (0, meta(7, "e", "f", (7, 7))),
        (6, meta(1, "g", "h", (1, 1))),
    ];
    let plan = pick_of(&files).unwrap();
    assert_eq!((plan.kind, plan.output_level), (PlanKind::Move, 6));
    assert_eq!(ids(&plan), [(0, vec![9, 8, 7])]);
    // Not over an older one, not onto another.
    files[0].1 = meta(9, "c", "d", (9, 9));
    files[2].1 = meta(7, "g", "i", (7, 7));
    let plan = pick_of(&files).unwrap();
    assert_eq!(
        (plan.kind, ids(&plan)),
        (PlanKind::Merge, vec![(0, vec![7]), (6, vec![1])])
    );
    files[2].1 = meta(7, "e", "f", (7, 7));
    let plan = pick_of(&files).unwrap();
    assert_eq!(
        (plan.kind, ids(&plan)),
        (PlanKind::Move, vec![(0, vec![8, 7])])
    );
}

#[test]
fn a_backlog_is_taken_in_parts_from_its_old_end() {
    let files: Vec<_> = (1..=40)
        .map(|id| (0, meta(id, "a", "z", (id * 10, id * 10 + 9))))
        .collect();
    let plan = pick_of(&files).unwrap();
    assert_eq!(ids(&plan), [(0, (1..=25).rev().collect())]);
}

#[test]
fn a_level_over_its_size_sheds_what_costs_least() {
    let mut files = vec![
        (5, meta(11, "a", "c", (5, 5))),
        (5, meta(12, "d", "f", (5, 5))),
        (5, meta(13, "g", "i", (5, 5))),
        (6, meta(1, "a", "b", (1, 1))),
        (6, meta(2, "c", "e", (1, 1))),
        (
            6,
            FileMeta {
                file_bytes: 900,
                ..meta(3, "h", "i", (1, 1))
            },
        ),
    ];
    let plan = pick_of(&files).unwrap();
    assert_eq!(ids(&plan), [(5, vec![13]), (6, vec![3])]);
    assert_eq!(
        (plan.kind, plan.reason),
        (PlanKind::Merge, Reason::LevelSize)
    );
    // Another file of the level comes along if it adds nothing below.
    files[5].1.largest = b"m"[..].into();
    files.push((5, meta(14, "k", "m", (5, 5))));
    assert_eq!(
        ids(&pick_of(&files).unwrap()),
        [(5, vec![13, 14]), (6, vec![3])]
    );
    files.remove(5);
    let plan = pick_of(&files).unwrap();
    assert_eq!(
        (plan.kind, ids(&plan)),
        (PlanKind::Move, vec![(5, vec![13])])
    );
}

#[test]
fn a_file_over_too_much_is_rewritten_not_moved() {
    let above = FileMeta {
        file_bytes: 3000,
        ..meta(1, "a", "z", (2, 2))
    };
    let mut files = [(4, above), (6, wide(2, 9_000))];
    assert_eq!(pick_of(&files).unwrap().kind, PlanKind::Move);
    files[1].1.file_bytes = 11_000;
    let plan = pick_of(&files).unwrap();
    assert_eq!(
        (plan.kind, plan.level, plan.output_level),
        (PlanKind::Merge, 4, 5)
    );
    assert_eq!(
        (ids(&plan), plan.grandparents.len()),
        (vec![(4, vec![1])], 1)
    );
}

#[test]
fn tombstones_go_when_every_snapshot_sees_them() {
    let files = [
        (6, dense(meta(1, "a", "c", (5, 8)))),
        (6, meta(2, "d", "e", (1, 1))),
    ];
    let version = build(&files).unwrap();
    assert!(pick(&version, &options(), SeqNo(7)).is_none());
    let plan = pick(&version, &options(), SeqNo(8)).unwrap();
    assert_eq!(
        (plan.level, plan.output_level, plan.kind),
        (6, 6, PlanKind::Merge)
    );
    assert_eq!((ids(&plan), plan.bottommost), (vec![(6, vec![1])], true));
    // With older data below they go down to it.
    let plan = pick_of(&[
        (4, dense(meta(1, "a", "c", (5, 8)))),
        (6, meta(2, "c", "e", (1, 1))),
    ]);
    let plan = plan.unwrap();
    assert_eq!((plan.output_level, plan.kind), (5, PlanKind::Move));
    let plan = pick_of(&[
        (5, dense(meta(1, "a", "c", (5, 8)))),
        (6, meta(2, "c", "e", (1, 1))),
    ]);
    assert_eq!(ids(&plan.unwrap()), [(5, vec![1]), (6, vec![2])]);
    // Nothing below the next level: they are dropped on the way.
    let moved = [
        (
            4,
            FileMeta {
                file_bytes: 3000,
                ..dense(meta(1, "a", "c", (5, 8)))
            },
        ),
        (6, wide(2, 3000)),
    ];
    let mut moved = moved.to_vec();
    moved[1].1.smallest = b"x"[..].into();
    let plan = pick_of(&moved).unwrap();
    assert_eq!(
        (plan.reason, plan.kind),
        (Reason::LevelSize, PlanKind::Merge)
    );
    // A range tombstone alone is reason enough, a few tombstones are not.
    let mut range = meta(1, "a", "c", (5, 8));
    (range.entry_count, range.range_tombstone_count) = (0, 1);
    assert!(pick_of(&[(6, range.clone())]).is_some());
    (
        range.entry_count,
        range.tombstone_count,
        range.range_tombstone_count,
    ) = (63, 63, 0);
    assert!(pick_of(&[(6, range)]).is_none());
}

#[test]
fn tombstones_of_l0_go_where_they_meet_few_entries() {
    let dense_l0 = dense(meta(9, "a", "m", (9, 9)));
    let tombstones = dense_l0.tombstone_count;
    let below = |entries| FileMeta {
        entry_count: entries,
        ..meta(1, "a", "z", (1, 1))
    };
    let few = 4 * tombstones - dense_l0.entry_count;
    let plan = pick_of(&[(0, dense_l0.clone()), (6, below(few))]).unwrap();
    assert_eq!(plan.reason, Reason::Tombstones);
    assert_eq!(ids(&plan), [(0, vec![9]), (6, vec![1])]);
    assert!(pick_of(&[(0, dense_l0.clone()), (6, below(few + 1))]).is_none());
    // A snapshot that does not see them would keep them.
    let version = build(&[(0, dense_l0), (6, below(few))]).unwrap();
    assert!(pick(&version, &options(), SeqNo(8)).is_none());
}

#[test]
fn reads_buy_a_source_less_when_they_have_lost_its_price() {
    let pick_for = |files: &[(usize, FileMeta)], debt| {
        let reads = ReadLoss { debt, per_write: 0 };
        let options = PickOptions { reads, ..options() };
        pick(&build(files).unwrap(), &options, SeqNo::MAX)
    };
    let sized = |file_bytes, file| FileMeta { file_bytes, ..file };
    let mut files = vec![
        (0, sized(100, meta(9, "a", "m", (9, 9)))),
        (0, sized(100, meta(8, "c", "z", (8, 8)))),
        (6, sized(700, meta(1, "b", "y", (1, 1)))),
    ];
    let price = JOB_BYTES + 900;
    assert!(pick_for(&files, 0).is_none());
    assert!(pick_for(&files, price - 1).is_none());
    let plan = pick_for(&files, price).unwrap();
    assert_eq!(plan.reason, Reason::Reads);
    assert_eq!(ids(&plan), [(0, vec![9, 8]), (6, vec![1])]);
    // One source is the least there can be.
    assert!(pick_for(&files[..1], u64::MAX).is_none());
    assert!(pick_for(&files[2..], u64::MAX).is_none());
    assert!(pick_for(&[], u64::MAX).is_none());
    // Without L0 the uppermost level goes, in parts.
    files[0].0 = 5;
    files[0].1.largest = b"b"[..].into();
    files[1].0 = 5;
    assert!(pick_for(&files, price - 1).is_none());
    let plan = pick_for(&files, price).unwrap();
    assert_eq!((plan.level, plan.output_level), (5, 6));
}

#[test]
fn reads_buy_early_where_little_is_written() {
    let mut newest = meta(9, "a", "m", (9, 9));
    (newest.file_bytes, newest.entry_count) = (100, 20);
    let mut below = meta(1, "b", "y", (1, 1));
    below.file_bytes = 60;
    let price: u64 = JOB_BYTES + 160;
    let least = price.div_ceil(20);
    let pick_for = |level, debt, per_write| {
        let reads = ReadLoss { debt, per_write };
        let version = build(&[(level, newest.clone()), (6, below.clone())]).unwrap();
        pick(&version, &PickOptions { reads, ..options() }, SeqNo::MAX)
    };
    for level in [0, 5] {
        // Twenty writes make another one like it, by when reads would have lost the price.
        let plan = pick_for(level, price / PATIENCE, least).unwrap();
        assert_eq!(plan.reason, Reason::Reads);
        assert!(pick_for(level, price / PATIENCE, least - 1).is_none());
        assert!(pick_for(level, price / PATIENCE - 1, u64::MAX).is_none());
        assert!(pick_for(level, price, 0).is_some());
    }
}

#[test]
fn a_full_l0_is_prompt_where_reads_lose_more_than_it_costs() {
    let mut files: Vec<_> = (7..10)
        .map(|id| (0, meta(id, "a", "z", (id, id))))
        .collect();
    files.reverse();
    let bytes: u64 = files.iter().map(|(_, file)| file.file_bytes).sum();
    let price = JOB_BYTES + bytes;
    let pick_for = |debt| {
        let reads = ReadLoss { debt, per_write: 0 };
        let options = PickOptions { reads, ..options() };
        let plan = pick(&build(&files).unwrap(), &options, SeqNo::MAX).unwrap();
        assert_eq!(plan.reason, Reason::L0);
        plan.spares_reads
    };
    assert!(pick_for(price));
    assert!(!pick_for(price - 1));
}

#[test]
fn tables_leave_blob_files_that_are_garbage() {
    let mut builder = VersionBuilder::<(), ()>::new(Arc::new(Version::empty()), None);
    let refers = |id, key: &str, file, bytes| {
        let mut table = FileMeta {
            file_bytes: 500,
            ..meta(id, key, key, (1, 1))
        };
        table.blob_refs.push(BlobRef {
            file: FileId(file),
            count: 1,
            bytes,
        });
        table
    };
    for (level, table) in [
        (0, refers(1, "a", 101, 10)),
        (5, refers(2, "b", 102, 60)),
        (6, refers(3, "c", 101, 30)),
    ] {
        builder.add_file(level, table).unwrap();
    }
    for id in [101, 102] {
        let blob = BlobMeta {
            id: FileId(id),
            file_bytes: 200,
            value_count: 9,
            value_bytes: 100,
        };
        builder.add_blob(blob).unwrap();
    }
    let version = builder.finish().unwrap().version;
    let plan = pick(&version, &options(), SeqNo::ZERO).unwrap();
    assert_eq!(
        (plan.reason, plan.kind),
        (Reason::BlobGarbage, PlanKind::Merge)
    );
    assert_eq!((ids(&plan), plan.output_level), (vec![(6, vec![3])], 6));
    version.files(6)[0]
        .being_compacted
        .store(true, Ordering::Release);
    assert!(pick(&version, &options(), SeqNo::ZERO).is_none());
    version.files(6)[0]
        .being_compacted
        .store(false, Ordering::Release);
    let plan = pick_range(&version, &options(), 6, None, None).unwrap();
    assert_eq!(ids(&plan), [(6, vec![3])]);
}

#[test]
fn a_range_is_taken_down_to_the_last_level() {
    let l0 = |id: u64, from: &str, to: &str| (0, meta(id, from, to, (id, id)));
    let files = [
        l0(9, "a", "c"),
        l0(8, "x", "y"),
        l0(7, "c", "m"),
        (6, meta(1, "k", "p", (1, 1))),
    ];
    let version = build(&files).unwrap();
    let step = |level, start: &str, end: &str| {
        pick_range(
            &version,
            &options(),
            level,
            Some(start.as_bytes()),
            Some(end.as_bytes()),
        )
    };
    let plan = step(0, "a", "b").unwrap();
    assert_eq!(
        (ids(&plan), plan.output_level),
        (vec![(0, vec![9, 7]), (6, vec![1])], 6)
    );
    assert_eq!(
        ids(&step(0, "d", "e").unwrap()),
        [(0, vec![7]), (6, vec![1])]
    );
    let plan = step(0, "x", "z").unwrap();
    assert_eq!(
        (plan.kind, plan.bottommost, plan.output_level),
        (PlanKind::Merge, true, 6)
    );
    assert!(step(0, "q", "r").is_none() && step(6, "a", "z").is_none());
    assert!(step(3, "a", "z").is_none() && step(7, "a", "z").is_none());

    let files = [
        (4, meta(9, "a", "c", (9, 9))),
        (4, meta(8, "x", "y", (9, 9))),
        (6, dense(meta(1, "a", "b", (1, 1)))),
        (6, meta(2, "c", "d", (1, 1))),
        (6, dense(meta(3, "e", "f", (1, 1)))),
        (6, meta(4, "g", "h", (1, 1))),
    ];
    let version = build(&files).unwrap();
    let all = |level| pick_range(&version, &options(), level, None, None);
    let plan = all(4).unwrap();
    assert_eq!((ids(&plan), plan.output_level), (vec![(4, vec![9, 8])], 5));
    assert_eq!(plan.kind, PlanKind::Move);
    let plan = pick_range(&version, &options(), 4, Some(b"d"), None).unwrap();
    assert_eq!((ids(&plan), plan.output_level), (vec![(4, vec![8])], 6));
    assert_eq!(ids(&all(6).unwrap()), [(6, vec![1, 2, 3])]);
}

/// An entry: key, sequence number, whether it is a tombstone.
type Entry = (u16, u64, bool);

const ENTRY_BYTES: u64 = 20;

fn key(number: u16) -> Box<[u8]> {
    format!("{number:05}").into_bytes().into()
}

/// A database in miniature: real versions, and files as lists of entries.
struct World {
    version: Arc<Version>,
    contents: BTreeMap<FileId, Vec<Entry>>,
    running: Vec<Plan>,
    next_file: u64,
    last_seqno: u64,
    snapshots: Vec<u64>,
    /// Per key its entries, oldest first.
    history: BTreeMap<u16, Vec<(u64, bool)>>,
}

impl World {
    fn new() -> Self {
        Self {
            version: Arc::new(Version::empty()),
            contents: BTreeMap::new(),
            running: Vec::new(),
            next_file: 1,
            last_seqno: 0,
            snapshots: Vec::new(),
            history: BTreeMap::new(),
        }
    }

    fn options() -> PickOptions {
        PickOptions {
            l0_trigger: 3,
            level_ratio: 3,
            base_bytes: 1000,
            sstable_bytes: 400,
            blob_garbage_ratio: 0.5,
            reclaim: false,
            reads: ReadLoss::default(),
        }
    }

    fn oldest(&self) -> SeqNo {
        SeqNo(
            self.snapshots
                .iter()
                .copied()
                .min()
                .unwrap_or(self.last_seqno),
        )
    }

    /// A file whose range is wider than its keys by `slack`, as with range tombstones.
    fn file(&mut self, entries: Vec<Entry>, slack: u16) -> FileMeta {
        let id = FileId(self.next_file);
        self.next_file += 1;
        let seqnos = || entries.iter().map(|e| SeqNo(e.1));
        let meta = FileMeta {
            id,
            file_bytes: ENTRY_BYTES * entries.len() as u64,
            raw_bytes: 0,
            entry_count: entries.len() as u64,
            // Weighed up, for the sake of `MIN_TOMBSTONES`.
            tombstone_count: entries.iter().filter(|e| e.2).count() as u64,
            range_tombstone_count: entries.iter().filter(|e| e.2).count() as u64,
            smallest: key(entries[0].0),
            largest: key(entries.last().unwrap().0 + slack),
            largest_exclusive: slack > 0,
            min_seqno: seqnos().min().unwrap(),
            max_seqno: seqnos().max().unwrap(),
            blob_refs: Vec::new(),
        };
        self.contents.insert(id, entries);
        meta
    }

    fn flush(&mut self, start: u16, stride: u16, count: u16, deletes: u16, slack: u16) {
        let entries: Vec<Entry> = (0..count)
            .map(|i| {
                self.last_seqno += 1;
                (start + i * stride, self.last_seqno, i * 7 % 10 < deletes)
            })
            .collect();
        for &(key, seqno, deleted) in &entries {
            self.history.entry(key).or_default().push((seqno, deleted));
        }
        let meta = self.file(entries, slack);
        self.apply(|builder| builder.add_file(0, meta));
    }

    fn apply(&mut self, edit: impl FnOnce(&mut VersionBuilder) -> Result<(), String>) {
        let mut builder = VersionBuilder::new(self.version.clone(), None);
        edit(&mut builder).unwrap();
        self.version = Arc::new(builder.finish().unwrap().version);
    }

    fn begin(&mut self, plan: Plan) {
        let mut seen = BTreeSet::new();
        for (level, file) in plan.files_with_levels() {
            assert!(
                !file.being_compacted.swap(true, Ordering::AcqRel),
                "{file:?} twice"
            );
            assert!(seen.insert(file.meta.id));
            assert!(
                self.version
                    .files(level)
                    .iter()
                    .any(|f| Arc::ptr_eq(f, file))
            );
        }
        assert!(!seen.is_empty());
        self.running.push(plan);
    }

    fn end(&mut self, at: usize) {
        let plan = self.running.swap_remove(at);
        let mut outputs = Vec::new();
        if plan.kind == PlanKind::Move {
            assert!(plan.level < plan.output_level);
            outputs.extend(plan.files().map(|file| file.meta.clone()));
        } else {
            for entries in self.merge(&plan) {
                outputs.push(self.file(entries, 0));
            }
        }
        self.apply(|builder| {
            for (level, file) in plan.files_with_levels() {
                builder.remove_file(level, file.meta.id)?;
            }
            outputs
                .into_iter()
                .try_for_each(|meta| builder.add_file(plan.output_level, meta))
        });
        plan.files()
            .for_each(|file| file.being_compacted.store(false, Ordering::Release));
        self.check();
    }

    /// What a merge writes, cut into files of several sizes.
    fn merge(&self, plan: &Plan) -> Vec<Vec<Entry>> {
        let mut entries: Vec<Entry> = plan
            .files()
            .flat_map(|file| self.contents[&file.meta.id].clone())
            .collect();
        entries.sort_by_key(|&(key, seqno, _)| (key, std::cmp::Reverse(seqno)));
        let oldest = self.oldest().0;
        let mut kept: Vec<Entry> = Vec::new();
        let mut hidden = None;
        for (key, seqno, deleted) in entries {
            if hidden == Some(key) {
                continue;
            }
            if seqno <= oldest {
                hidden = Some(key);
                if deleted && plan.bottommost {
                    continue;
                }
            }
            kept.push((key, seqno, deleted));
        }
        let mut files: Vec<Vec<Entry>> = Vec::new();
        for entry in kept {
            let size = 5 + (self.next_file as usize + files.len()) % 15;
            match files.last_mut() {
                Some(file) if file.len() < size || file.last().unwrap().0 == entry.0 => {
                    file.push(entry);
                }
                _ => files.push(vec![entry]),
            }
        }
        files
    }

    /// Newer above older, and nothing lost or come back.
    fn check(&self) {
        self.version.check().unwrap();
        let mut by_key: BTreeMap<u16, Vec<(u64, bool)>> = BTreeMap::new();
        for level in 0..LEVELS {
            let mut here: BTreeMap<u16, Vec<(u64, bool)>> = BTreeMap::new();
            for file in self.version.files(level) {
                let mut entries = self.contents[&file.meta.id].clone();
                entries.sort_by_key(|&(key, seqno, _)| (key, std::cmp::Reverse(seqno)));
                for (key, seqno, deleted) in entries {
                    here.entry(key).or_default().push((seqno, deleted));
                }
            }
            for (key, entries) in here {
                by_key.entry(key).or_default().extend(entries);
            }
        }
        let mut readers = self.snapshots.clone();
        readers.push(self.last_seqno);
        for (key, history) in &self.history {
            let tree = by_key.remove(key).unwrap_or_default();
            assert!(tree.windows(2).all(|w| w[0].0 > w[1].0), "{key}: {tree:?}");
            for &at in &readers {
                let want = history.iter().rev().find(|e| e.0 <= at).filter(|e| !e.1);
                let found = tree.iter().find(|e| e.0 <= at).filter(|e| !e.1);
                assert_eq!(found, want, "key {key} at {at}: {:?}", self.version);
            }
        }
    }

    fn pick(&self) -> Option<Plan> {
        // Whatever reads have lost, it must be sound and come to an end.
        let mut options = Self::options();
        options.reads.debt = [0, JOB_BYTES + 500, u64::MAX][self.last_seqno as usize % 3];
        options.reads.per_write = [0, 10, u64::MAX][self.last_seqno as usize / 3 % 3];
        pick(&self.version, &options, self.oldest())
    }

    /// With nothing running: to the fixed point.
    fn settle(&mut self) {
        let mut steps = 0;
        while let Some(plan) = self.pick() {
            steps += 1;
            assert!(steps < 2000, "{plan:?} {:?}", self.version);
            self.begin(plan);
            self.end(0);
        }
        let (version, options) = (&self.version, Self::options());
        assert!(version.files(0).len() < options.l0_trigger);
        let picker = Picker::new(version, &options, self.oldest());
        for level in 0..LAST {
            assert!(version.levels()[level].bytes() <= picker.targets[level]);
        }
        let settled = |f: &FileMeta| picker.is_dense_and_settled(f);
        assert!(
            !version
                .all_files()
                .any(|(level, f)| level > 0 && settled(&f.meta))
        );
        assert_eq!(debt_bytes(version, &options), 0);
    }

    /// As the user's compaction does it.
    fn compact_range(&mut self, start: u16, end: u16) {
        let (start, end) = (key(start), key(end));
        let range = KeyRange::of_user(Some(&start), Some(&end));
        for level in 0..LEVELS {
            let options = Self::options();
            let plan = pick_range(&self.version, &options, level, Some(&start), Some(&end));
            if let Some(plan) = plan {
                self.begin(plan);
                self.end(0);
            }
            if level < LAST {
                assert!(self.version.overlapping(level, &range).is_empty());
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Flush {
        start: u16,
        stride: u16,
        count: u16,
        deletes: u16,
        slack: u16,
    },
    Begin,
    End(usize),
    Snapshot,
    Release(usize),
    CompactRange(u16, u16),
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let flush = (
        0u16..700,
        1u16..20,
        1u16..25,
        0u16..=10,
        prop_oneof![Just(0u16), 0u16..200],
    )
        .prop_map(|(start, stride, count, deletes, slack)| Step::Flush {
            start,
            stride,
            count,
            deletes: if deletes < 5 { 0 } else { deletes },
            slack,
        });
    prop_oneof![
        12 => flush,
        14 => Just(Step::Begin),
        10 => any::<usize>().prop_map(Step::End),
        1 => Just(Step::Snapshot),
        1 => any::<usize>().prop_map(Step::Release),
        1 => (0u16..900, 1u16..900).prop_map(|(a, b)| Step::CompactRange(a, a + b)),
        1 => Just(Step::Settle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Flushes and up to three compactions at a time, in any order.
    #[test]
    fn any_schedule_keeps_the_order_and_comes_to_an_end(
        steps in proptest::collection::vec(step(), 1..250),
    ) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Flush { start, stride, count, deletes, slack } => {
                    world.flush(start, stride, count, deletes, slack);
                    world.check();
                }
                Step::Begin => {
                    if world.running.len() < 3 && let Some(plan) = world.pick() {
                        world.begin(plan);
                    }
                }
                Step::End(at) => {
                    if !world.running.is_empty() {
                        world.end(at % world.running.len());
                    }
                }
                Step::Snapshot => world.snapshots.push(world.last_seqno),
                Step::Release(at) => {
                    if !world.snapshots.is_empty() {
                        let at = at % world.snapshots.len();
                        world.snapshots.swap_remove(at);
                    }
                }
                Step::CompactRange(start, end) => {
                    while !world.running.is_empty() {
                        world.end(0);
                    }
                    world.compact_range(start, end);
                }
                Step::Settle => {
                    while !world.running.is_empty() {
                        world.end(0);
                    }
                    world.settle();
                }
            }
        }
        while !world.running.is_empty() {
            world.end(0);
        }
        world.settle();
        world.snapshots.clear();
        world.settle();
    }
}
