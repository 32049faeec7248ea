//! Which files to compact next: a pure decision from a [`Version`] to a [`Plan`], without I/O.
//!
//! # The shape of a tree
//!
//! L0 holds flushed memtables, which overlap. The levels below are sorted runs. The last level has
//! most of the data and its size sets the targets of those above it, each smaller by
//! [`PickOptions::level_ratio`] (RocksDB's idea of dynamic level sizes): at most a ratio's share of
//! the data lies above the last level, whatever the size of the tree. L0 is compacted into the *base
//! level*, the first whose target is at most [`PickOptions::base_bytes`]; a small tree has L0 and the
//! last level only. No level between L0 and the base level has files.
//!
//! # What is picked, in this order
//!
//! 1. *Size.* The level with the highest score: L0 by the number of files and by bytes, the others
//!    by bytes over target. Files that are being compacted do not count. From L0 go the oldest files
//!    and what overlaps them; from another level goes the file that overlaps the least of the next
//!    level for its size, files with many tombstones preferred.
//! 2. *Tombstones.* A file that consists mostly of tombstones goes down, or is rewritten without
//!    them if no older data lies below it. Files of L0 go to the base level as soon as they would
//!    meet no more than `ENTRIES_PER_TOMBSTONE` entries there for each of their tombstones.
//! 3. *Reads.* What reads have lost by asking several sources (see `read_debt`) is compared with what
//!    taking one of them away costs, and it goes when the loss has come to that: rent or buy, as in
//!    LevelDB's compaction by seeks, which gave each file a number of seeks in vain. It goes `PATIENCE`
//!    times as early where little is written beside the reads: if they would lose as much again by the time
//!    that writes have made another source like it.
//! 4. *Blob garbage.* A table that refers to a blob file with too much garbage is rewritten in its
//!    place, which moves the live values.
//!
//! A file that overlaps nothing in the output level is moved without being rewritten.
//!
//! # Why it ends
//!
//! Without flushes, picking and running comes to an end: a plan of the first kind, one for reads, or
//! a tombstone file that goes down, takes entries to a deeper level. A rewrite in place happens only if all
//! entries are visible to the oldest snapshot and nothing lies below, so that every tombstone in
//! the file can be and is dropped; or if the file refers to a blob file to be collected, after which
//! it does not.
//!
//! # Why several may run
//!
//! The invariant to keep: *for every user key each entry in a level is newer than every entry in a
//! deeper level*, and the files of a level do not overlap. A plan knows of running ones only by the
//! marks on their inputs; where they will write cannot be seen. These rules suffice:
//!
//! * **R1.** No input is marked.
//! * **R2.** The hull of the inputs from L0 does not overlap the hull of marked files of L0.
//! * **R3.** With a file from L0 go all older files of L0 that overlap the hull; all files of the
//!   output level that overlap the inputs are inputs.
//! * **R4.** The inputs leave no gap: the hull of those from L0, or of the one file that a plan from
//!   a deeper level began with, together with the ranges of the others, is one interval. (A plan
//!   that moves several files of L0 is several plans carried out at once.) What is written lies
//!   inside it; call it the range of the plan.
//! * **R5.** A plan leads from L0 to a level with only empty levels between, or from a level to the
//!   next, or to the same.
//!
//! *Claim: the ranges of running plans with the same output level do not overlap.* Say `P` starts
//! while `C` runs, both write to `q`, and a key is in both ranges. By R4 it lies in a piece (a file,
//! or a hull in L0) of each.
//!
//! * Two files of one level do not overlap; two hulls in L0 do not by R2.
//! * If the piece of `C` is a file of `q`, the piece of `P` above it makes that file an input of `P`
//!   (R3), which R1 forbids.
//! * If the piece of `P` is a file of `q` under an upper piece of `C`: if it was there when `C`
//!   began, it is an input of `C` (R3), which R1 forbids. If it came later, the plan that wrote it ran
//!   beside `C` with the same output level, and did not overlap, by induction.
//! * If `P` comes from L0 and `C` from `q - 1`: that level has files, so `P` may not lead to `q` (R5).
//! * If `C` comes from L0 and `P` from `q - 1`: that level was empty when `C` began (R5). What is in it
//!   came from L0 later, disjoint from the hull of `C` by R2, and by R4 stays so when merged.
//!
//! *Claim: newer stays above older.* `P` could take an entry below an older one of the same key only
//! if the older one is in flight from L0 (R2 forbids that), or is in a file that `P` passes by: in L0
//! (R3), in the output level (R3), or between (R5). The older one may be in a file that runs from
//! `P`'s output level downwards: it is still there, so it would be an input of `P`. And what a plan
//! finds empty below its range stays empty of older data: whatever is to come there is visible now,
//! in a file that overlaps, or in L0 (R2).
//!
//! A crash changes nothing here: marks and plans live in memory only.

use std::sync::Arc;

use crate::key::{FileId, SeqNo};
use crate::options::LEVELS;
use crate::read_debt::ReadLoss;
use crate::version::{FileMeta, KeyRange, LevelFile, Version};

/// The deepest level.
const LAST: usize = LEVELS - 1;
/// A plan grows by choice only up to this many SSTables' bytes.
const MAX_TABLES: u64 = 25;
/// A file that overlaps more than this many SSTables' bytes of the level below its new one is
/// rewritten and cut rather than moved, so that its next compaction is not that large.
const MAX_GRANDPARENT_TABLES: u64 = 10;
/// Fewer tombstones than this are not worth a compaction.
const MIN_TOMBSTONES: u64 = 64;
/// A range tombstone hinders readers as much as this many tombstones.
const RANGE_TOMBSTONE_WEIGHT: u64 = 64;
/// How urgent tombstones are: less than any level that is over its size.
const TOMBSTONE_SCORE: f64 = 0.5;
/// L0 goes down because of its tombstones if it has one for so many entries that are rewritten.
const ENTRIES_PER_TOMBSTONE: u64 = 4;
/// How urgent it is to spare reads a source.
const READ_SCORE: f64 = 0.375;
/// What a compaction costs beside what it moves, as bytes: files are made, the manifest is synced.
const JOB_BYTES: u64 = 1 << 20;
/// The share of a compaction's price after whose loss one looks at how much is written.
const PATIENCE: u64 = 32;
/// How urgent blob garbage is.
const BLOB_SCORE: f64 = 0.25;

/// How a compaction is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlanKind {
    /// The files change their level and nothing is read or written.
    Move,
    /// The files are merged and written anew.
    Merge,
}

/// Why a compaction is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// L0 has too many files or bytes.
    L0,
    /// A level is over its size.
    LevelSize,
    /// A file is mostly tombstones.
    Tombstones,
    /// Reads have to ask too many sources.
    Reads,
    /// A blob file is mostly garbage.
    BlobGarbage,
    /// Somebody asked for it.
    Manual,
}

impl Reason {
    /// Its name, for events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L0 => "L0 is full",
            Self::LevelSize => "level size",
            Self::Tombstones => "tombstones",
            Self::Reads => "reads",
            Self::BlobGarbage => "blob garbage",
            Self::Manual => "manual",
        }
    }
}

/// A compaction to run.
#[derive(Debug)]
pub struct Plan<T = ()> {
    /// The level it starts from.
    pub level: usize,
    /// The level it writes to.
    pub output_level: usize,
    /// The files by level, upper level first; those of L0 newest first, others by key.
    pub inputs: Vec<(usize, Vec<Arc<LevelFile<T>>>)>,
    /// The files of the level below the output that overlap the inputs, by key.
    pub grandparents: Vec<Arc<LevelFile<T>>>,
    /// Whether the files are merged or only change their level.
    pub kind: PlanKind,
    /// Why it is due.
    pub reason: Reason,
    /// No level below the output has a file that overlaps the inputs.
    pub bottommost: bool,
    /// How urgent it is: over 1 if a level is over its size.
    pub score: f64,
    /// Whether it spares reads more than it costs, whatever the reason.
    pub spares_reads: bool,
}

impl<T> Plan<T> {
    /// All inputs.
    pub fn files(&self) -> impl Iterator<Item = &Arc<LevelFile<T>>> {
        self.inputs.iter().flat_map(|(_, files)| files)
    }

    /// All inputs, with their levels.
    pub fn files_with_levels(&self) -> impl Iterator<Item = (usize, &Arc<LevelFile<T>>)> {
        self.inputs
            .iter()
            .flat_map(|(level, files)| files.iter().map(|file| (*level, file)))
    }
}

/// How the picker is set.
#[derive(Clone, Copy, Debug)]
pub struct PickOptions {
    /// Number of L0 files that starts a compaction.
    pub l0_trigger: usize,
    /// Size ratio between levels, at least 2.
    pub level_ratio: u64,
    /// Largest target of the base level, and bytes of L0 that start a compaction.
    pub base_bytes: u64,
    /// Target size of an SSTable.
    pub sstable_bytes: u64,
    /// Share of a blob file that must be garbage before its live values are moved.
    pub blob_garbage_ratio: f64,
    /// The disk is full: no tombstone waits for company, in L0 nor below, since each may be what
    /// frees space.
    pub reclaim: bool,
    /// What reads lose in this tree by asking several sources.
    pub reads: ReadLoss,
}

/// The most urgent compaction of a tree that can start now; `None` if there is none.
/// `oldest_snapshot` is the oldest number that must stay readable. The caller must keep marks and
/// version from changing until it has marked the plan's inputs.
pub fn pick<T, B>(
    version: &Version<T, B>,
    options: &PickOptions,
    oldest_snapshot: SeqNo,
) -> Option<Plan<T>> {
    let picker = Picker::new(version, options, oldest_snapshot);
    let mut held = None;
    for (level, score) in picker.due() {
        let plan = match level {
            0 => picker.plan_l0(Reason::L0, score),
            _ if held == Some(level) => None,
            _ => picker.plan_level(level, Reason::LevelSize, score),
        };
        if let Some(mut plan) = plan {
            plan.spares_reads = level == 0 && picker.spares_reads(&plan);
            return Some(plan);
        }
        if level == 0 {
            // L0 waits for compactions of the base level. New ones there would let it starve.
            held = Some(picker.base);
        }
    }
    picker
        .plan_tombstones(held)
        .or_else(|| picker.plan_reads(held))
        .or_else(|| picker.plan_blob_garbage(held))
}

/// One step of compacting everything from `start` (inclusive) to `end` (exclusive): takes what
/// `level` has in that range down, to the last level if there is nothing below it; in the level that
/// has the last of it, rewrites what carries tombstones or refers to blob files to be collected.
/// `None` if there is nothing to do in this level. REQUIRES: no other compaction of the tree runs.
pub fn pick_range<T, B>(
    version: &Version<T, B>,
    options: &PickOptions,
    level: usize,
    start: Option<&[u8]>,
    end: Option<&[u8]>,
) -> Option<Plan<T>> {
    if level >= LEVELS {
        return None;
    }
    let picker = Picker::new(version, options, SeqNo::MAX);
    let range = KeyRange::of_user(start, end);
    let (upper, hull) = if level == 0 {
        let files = version.files(0);
        let chosen = files
            .iter()
            .map(|file| range.overlaps_file(&file.meta))
            .collect();
        let mut group = Group::new(files, chosen)?;
        group.close();
        (group.files(), group.hull)
    } else {
        let mut upper = version.overlapping(level, &range);
        if level == LAST {
            // One run without gaps, from the first to the last file that gains by it.
            let gains = |file: &Arc<LevelFile<T>>| {
                file.meta.tombstones() > 0 || picker.refers_to_garbage(&file.meta)
            };
            let first = upper.iter().position(gains)?;
            let last = upper.iter().rposition(gains)?;
            upper = upper[first..=last].to_vec();
        }
        let hull = hull_of(&upper)?;
        (upper, hull)
    };
    let output_level = if picker.nothing_below(level, &hull) {
        LAST
    } else if level == 0 {
        picker.base
    } else {
        level + 1
    };
    let lower = match output_level == level {
        true => Vec::new(),
        false => version.overlapping(output_level, &hull),
    };
    if upper
        .iter()
        .chain(&lower)
        .any(|file| file.is_being_compacted())
    {
        return None;
    }
    // What goes to the bottom is rewritten even if it could move: who asks for a compaction wants
    // what expired or was overwritten to be gone.
    let may_move = output_level < LAST && level > 0;
    Some(picker.plan(
        level,
        output_level,
        upper,
        lower,
        Reason::Manual,
        1.0,
        may_move,
    ))
}

/// About how many bytes compaction must read, level by level, until every level is within its size.
pub fn debt_bytes<T, B>(version: &Version<T, B>, options: &PickOptions) -> u64 {
    let picker = Picker::new(version, options, SeqNo::ZERO);
    let level_bytes = |level: usize| version.levels()[level].bytes();
    let mut debt = 0u64;
    let mut incoming = 0u64;
    if level_bytes(0) >= picker.targets[0] || version.files(0).len() >= options.l0_trigger.max(1) {
        incoming = level_bytes(0);
        debt = incoming.saturating_add(level_bytes(picker.base));
    }
    for level in picker.base..LAST {
        let bytes = level_bytes(level).saturating_add(incoming);
        incoming = bytes.saturating_sub(picker.targets[level]);
        if incoming > 0 {
            let share = incoming as f64 / bytes as f64;
            let overlapped = (level_bytes(level + 1) as f64 * share) as u64;
            debt = debt.saturating_add(incoming).saturating_add(overlapped);
        }
    }
    debt
}

fn hull_of<T>(files: &[Arc<LevelFile<T>>]) -> Option<KeyRange> {
    KeyRange::hull(files.iter().map(|file| &file.meta))
}

fn bytes_of<T>(files: &[Arc<LevelFile<T>>]) -> u64 {
    files
        .iter()
        .map(|file| file.meta.file_bytes)
        .fold(0, u64::saturating_add)
}

/// Whether a file is mostly tombstones, and has at least `min` of them.
fn is_dense(meta: &FileMeta, min: u64) -> bool {
    let ranges = meta
        .range_tombstone_count
        .saturating_mul(RANGE_TOMBSTONE_WEIGHT);
    let tombstones = meta.tombstone_count.saturating_add(ranges);
    tombstones >= min && tombstones.saturating_mul(2) > meta.entry_count.saturating_add(ranges)
}

/// Files of L0 that go together.
struct Group<'a, T> {
    all: &'a [Arc<LevelFile<T>>],
    chosen: Vec<bool>,
    hull: KeyRange,
}

impl<T> Clone for Group<'_, T> {
    fn clone(&self) -> Self {
        Self {
            all: self.all,
            chosen: self.chosen.clone(),
            hull: self.hull.clone(),
        }
    }
}

impl<'a, T> Group<'a, T> {
    fn new(all: &'a [Arc<LevelFile<T>>], chosen: Vec<bool>) -> Option<Self> {
        let files = all.iter().zip(&chosen).filter(|(_, chosen)| **chosen);
        let hull = KeyRange::hull(files.map(|(file, _)| &file.meta))?;
        Some(Self { all, chosen, hull })
    }

    fn add(&mut self, at: usize) {
        self.chosen[at] = true;
        self.hull.extend(&self.all[at].meta);
    }

    /// Adds every file that is older than one of the group and overlaps its hull (R3).
    fn close(&mut self) {
        let newest = self
            .chosen
            .iter()
            .position(|&chosen| chosen)
            .unwrap_or(self.all.len());
        let mut grew = true;
        while std::mem::take(&mut grew) {
            for at in newest..self.all.len() {
                if !self.chosen[at] && self.hull.overlaps_file(&self.all[at].meta) {
                    self.add(at);
                    grew = true;
                }
            }
        }
    }

    fn files(&self) -> Vec<Arc<LevelFile<T>>> {
        let chosen = self
            .all
            .iter()
            .zip(&self.chosen)
            .filter(|(_, chosen)| **chosen);
        chosen.map(|(file, _)| Arc::clone(file)).collect()
    }
}

struct Picker<'a, T, B> {
    version: &'a Version<T, B>,
    options: &'a PickOptions,
    oldest_snapshot: SeqNo,
    /// Where L0 is compacted to.
    base: usize,
    /// Bytes that each level should have at most.
    targets: [u64; LEVELS],
    /// The blob files whose live values should be moved, ascending. The condition is that of the
    /// merge, so that a table which is rewritten because of one no longer refers to it.
    garbage: Vec<FileId>,
}

impl<'a, T, B> Picker<'a, T, B> {
    fn new(version: &'a Version<T, B>, options: &'a PickOptions, oldest_snapshot: SeqNo) -> Self {
        let ratio = options.level_ratio.max(2);
        let base_bytes = options.base_bytes.max(1);
        // As a rule the last level is the largest. It is not while a tree grows or heals.
        let largest = version.levels()[1..]
            .iter()
            .map(|level| level.bytes())
            .max()
            .unwrap_or(0);

        let mut targets = [u64::MAX; LEVELS];
        targets[0] = base_bytes;
        let mut target = largest;
        for level in (1..LAST).rev() {
            target /= ratio;
            targets[level] = target.max(base_bytes / ratio).max(1);
        }
        let mut base = LAST;
        let mut target = largest;
        while base > 1 && target > base_bytes {
            base -= 1;
            target /= ratio;
        }
        let occupied = (1..LEVELS).find(|&level| !version.levels()[level].is_empty());
        let over = |garbage: f64| garbage > options.blob_garbage_ratio;
        let garbage = version
            .blobs()
            .iter()
            .filter(|blob| over(blob.garbage_ratio()));
        let garbage = garbage.map(|blob| blob.file.meta.id).collect();
        let base = base.min(occupied.unwrap_or(LAST));
        Self {
            version,
            options,
            oldest_snapshot,
            base,
            targets,
            garbage,
        }
    }

    /// The levels that are over their size with their scores, the most urgent first.
    fn due(&self) -> Vec<(usize, f64)> {
        let mut due = Vec::new();
        for level in 0..LAST {
            let idle = self
                .version
                .files(level)
                .iter()
                .filter(|file| !file.is_being_compacted());
            let reclaim = level == 0
                && self.options.reclaim
                && idle.clone().any(|file| file.meta.tombstones() > 0);
            let (count, bytes) = idle.fold((0usize, 0u64), |(count, bytes), file| {
                (count + 1, bytes.saturating_add(file.meta.file_bytes))
            });
            let mut score = bytes as f64 / self.targets[level] as f64;
            if level == 0 {
                score = score.max(count as f64 / self.options.l0_trigger.max(1) as f64);
            }
            if reclaim {
                score = score.max(1.0);
            }
            if score > 1.0 || (level == 0 && score >= 1.0) {
                due.push((level, score));
            }
        }
        due.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        due
    }

    /// The oldest files of L0 and what overlaps them, to the base level.
    fn plan_l0(&self, reason: Reason, score: f64) -> Option<Plan<T>> {
        let files = self.version.files(0);
        let marked = files.iter().filter(|file| file.is_being_compacted());
        let busy = KeyRange::hull(marked.map(|file| &file.meta));
        let is_free = |range: &KeyRange| busy.as_ref().is_none_or(|busy| !busy.overlaps(range));
        for seed in (0..files.len()).rev() {
            let Some(group) = self.group(seed, &is_free) else {
                continue;
            };
            let lower = self.version.overlapping(self.base, &group.hull);
            if lower.iter().any(|file| file.is_being_compacted()) {
                continue;
            }
            let mut upper = group.files();
            let movable = |file: &Arc<LevelFile<T>>| self.is_movable(&file.meta, self.base);
            let may_move = upper.len() == 1 && upper.iter().all(movable);
            if may_move {
                // More that can move goes with it, in one edit.
                for at in (0..seed).rev() {
                    let range = KeyRange::of_file(&files[at].meta);
                    let mut older = files[at + 1..].iter();
                    if is_free(&range)
                        && !older.any(|file| range.overlaps_file(&file.meta))
                        && movable(&files[at])
                    {
                        upper.insert(0, Arc::clone(&files[at]));
                    }
                }
            }
            return Some(self.plan(0, self.base, upper, lower, reason, score, may_move));
        }
        None
    }

    /// The file at `seed` with all that must go with it and newer files that overlap it, as long as
    /// the group is not too large; `None` if what must go with it cannot.
    fn group(&self, seed: usize, is_free: &impl Fn(&KeyRange) -> bool) -> Option<Group<'a, T>> {
        let files = self.version.files(0);
        let mut group = Group::new(files, (0..files.len()).map(|at| at == seed).collect())?;
        group.close();
        if !is_free(&group.hull) {
            return None;
        }
        let limit = self.options.sstable_bytes.saturating_mul(MAX_TABLES);
        for at in (0..seed).rev() {
            if group.chosen[at] || !group.hull.overlaps_file(&files[at].meta) {
                continue;
            }
            let mut larger = group.clone();
            larger.add(at);
            larger.close();
            if !is_free(&larger.hull) || bytes_of(&larger.files()) > limit {
                break;
            }
            group = larger;
        }
        Some(group)
    }

    /// The file of a level that costs least to take down for what it brings.
    fn plan_level(&self, level: usize, reason: Reason, score: f64) -> Option<Plan<T>> {
        let next = self.version.files(level + 1);
        let mut first = 0;
        let mut best: Option<(f64, &Arc<LevelFile<T>>)> = None;
        for file in self.version.files(level) {
            let meta = &file.meta;
            while next
                .get(first)
                .is_some_and(|lower| lower.meta.ends_before(&meta.smallest))
            {
                first += 1;
            }
            let lower = next[first..].iter();
            let mut lower = lower.take_while(|lower| !meta.ends_before(&lower.meta.smallest));
            let overlap = lower.try_fold(0u64, |sum, lower| {
                (!lower.is_being_compacted()).then(|| sum.saturating_add(lower.meta.file_bytes))
            });
            let Some(overlap) = overlap.filter(|_| !file.is_being_compacted()) else {
                continue;
            };
            let tombstones = meta.tombstones() as f64 / meta.entry_count.max(1) as f64;
            let gain = meta.file_bytes.max(1) as f64 * (1.0 + 3.0 * tombstones.min(1.0));
            let cost = overlap as f64 / gain;
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, file));
            }
        }
        self.down(level, best?.1, reason, score)
    }

    /// A file of a level and what it overlaps of the next one, if none of it is being compacted;
    /// and more files of the level if that adds none of the next.
    fn down(
        &self,
        level: usize,
        file: &Arc<LevelFile<T>>,
        reason: Reason,
        score: f64,
    ) -> Option<Plan<T>> {
        let is_marked = |files: &[Arc<LevelFile<T>>]| files.iter().any(|f| f.is_being_compacted());
        let mut upper = vec![Arc::clone(file)];
        let lower = self
            .version
            .overlapping(level + 1, &KeyRange::of_file(&file.meta));
        if is_marked(&upper) || is_marked(&lower) {
            return None;
        }
        if let Some(mut hull) = hull_of(&lower) {
            hull.extend(&file.meta);
            let more = self.version.overlapping(level, &hull);
            let limit = self.options.sstable_bytes.saturating_mul(MAX_TABLES);
            if more.len() > 1
                && !is_marked(&more)
                && bytes_of(&more).saturating_add(bytes_of(&lower)) <= limit
                && let Some(hull) = hull_of(&more)
                && self.version.overlapping(level + 1, &hull).len() == lower.len()
            {
                upper = more;
            }
        }
        Some(self.plan(level, level + 1, upper, lower, reason, score, true))
    }

    /// A file that is mostly tombstones, all of which every snapshot sees: before that they cannot
    /// be dropped.
    fn plan_tombstones(&self, held: Option<usize>) -> Option<Plan<T>> {
        if held.is_none()
            && let Some(plan) = self.plan_l0_tombstones()
        {
            return Some(plan);
        }
        for level in (1..LEVELS).filter(|&level| held != Some(level)) {
            for file in self.version.files(level) {
                if file.is_being_compacted() || !self.is_dense_and_settled(&file.meta) {
                    continue;
                }
                let (reason, score) = (Reason::Tombstones, TOMBSTONE_SCORE);
                if self.nothing_below(level, &KeyRange::of_file(&file.meta)) {
                    return Some(self.in_place(level, file, reason, score));
                }
                if let Some(plan) = self.down(level, file, reason, score) {
                    return Some(plan);
                }
            }
        }
        None
    }

    /// L0, if the entries that are rewritten are few for its tombstones.
    fn plan_l0_tombstones(&self) -> Option<Plan<T>> {
        let weigh = |meta: &FileMeta| {
            let ranges = meta.range_tombstone_count;
            let ranges = ranges.saturating_mul(RANGE_TOMBSTONE_WEIGHT);
            meta.tombstone_count.saturating_add(ranges)
        };
        let settled = |file: &&Arc<LevelFile<T>>| file.meta.max_seqno <= self.oldest_snapshot;
        let tombstones = |files: &[Arc<LevelFile<T>>]| {
            let settled = files.iter().filter(settled);
            settled.map(|f| weigh(&f.meta)).fold(0, u64::saturating_add)
        };
        if tombstones(self.version.files(0)) < MIN_TOMBSTONES {
            return None;
        }
        let plan = self.plan_l0(Reason::Tombstones, TOMBSTONE_SCORE)?;
        let (_, upper) = plan.inputs.first()?;
        let entries = plan.files().map(|file| file.meta.entry_count);
        let entries = entries.fold(0, u64::saturating_add);
        let tombstones = tombstones(upper);
        let enough = tombstones >= MIN_TOMBSTONES
            && tombstones.saturating_mul(ENTRIES_PER_TOMBSTONE) >= entries;
        enough.then_some(plan)
    }

    /// What takes a source away from reads for no more than they have lost to it: L0, or else a part
    /// of the uppermost level.
    fn plan_reads(&self, held: Option<usize>) -> Option<Plan<T>> {
        if self.options.reads.debt == 0 || held.is_some() {
            return None;
        }
        let mut occupied = (0..LEVELS).filter(|&level| !self.version.levels()[level].is_empty());
        let level = occupied.next()?;
        if occupied.next().is_none() && (level > 0 || self.version.files(0).len() == 1) {
            return None;
        }
        let mut plan = match level {
            0 => self.plan_l0(Reason::Reads, READ_SCORE),
            _ => self.plan_level(level, Reason::Reads, READ_SCORE),
        }?;
        plan.spares_reads = self.spares_reads(&plan);
        plan.spares_reads.then_some(plan)
    }

    /// Whether reads have lost, or are about to lose, what a plan costs that begins in the uppermost level.
    fn spares_reads(&self, plan: &Plan<T>) -> bool {
        let price = plan.files().map(|file| file.meta.file_bytes);
        let price = price.fold(JOB_BYTES, u64::saturating_add);
        let ReadLoss { debt, per_write } = self.options.reads;
        // So many writes make the next source.
        let upper = plan.inputs.first().map_or(&[][..], |(_, files)| files);
        let upper = match plan.level {
            0 => &upper[..upper.len().min(1)],
            _ => upper,
        };
        let writes: u64 = upper.iter().map(|file| file.meta.entry_count).sum();
        let lasts = debt >= price / PATIENCE && per_write.saturating_mul(writes) >= price;
        price <= debt || lasts
    }

    /// A table that refers to a blob file to be collected. Those of L0 have their turn soon.
    fn plan_blob_garbage(&self, held: Option<usize>) -> Option<Plan<T>> {
        if self.garbage.is_empty() {
            return None;
        }
        for level in (1..LEVELS).rev().filter(|&level| held != Some(level)) {
            let mut files = self.version.files(level).iter();
            let due = files.find(|f| !f.is_being_compacted() && self.refers_to_garbage(&f.meta));
            if let Some(file) = due {
                return Some(self.in_place(level, file, Reason::BlobGarbage, BLOB_SCORE));
            }
        }
        None
    }

    fn in_place(
        &self,
        level: usize,
        file: &Arc<LevelFile<T>>,
        reason: Reason,
        score: f64,
    ) -> Plan<T> {
        self.plan(
            level,
            level,
            vec![Arc::clone(file)],
            Vec::new(),
            reason,
            score,
            false,
        )
    }

    fn is_dense_and_settled(&self, meta: &FileMeta) -> bool {
        let min = if self.options.reclaim {
            1
        } else {
            MIN_TOMBSTONES
        };
        meta.max_seqno <= self.oldest_snapshot && is_dense(meta, min)
    }

    fn refers_to_garbage(&self, meta: &FileMeta) -> bool {
        !self.garbage.is_empty()
            && meta
                .blob_refs
                .iter()
                .any(|r| self.garbage.binary_search(&r.file).is_ok())
    }

    fn nothing_below(&self, level: usize, range: &KeyRange) -> bool {
        let mut deeper = self.version.levels()[level + 1..].iter();
        deeper.all(|level| level.overlapping(range).is_empty())
    }

    /// Whether a file can go to a level as it is.
    fn is_movable(&self, meta: &FileMeta, output_level: usize) -> bool {
        let range = KeyRange::of_file(meta);
        if !self.version.levels()[output_level]
            .overlapping(&range)
            .is_empty()
            || self.refers_to_garbage(meta)
            || (self.is_dense_and_settled(meta) && self.nothing_below(output_level, &range))
        {
            return false;
        }
        let limit = self
            .options
            .sstable_bytes
            .saturating_mul(MAX_GRANDPARENT_TABLES);
        bytes_of(&self.grandparents(output_level, &range)) <= limit
    }

    fn grandparents(&self, output_level: usize, range: &KeyRange) -> Vec<Arc<LevelFile<T>>> {
        match output_level < LAST {
            true => self.version.overlapping(output_level + 1, range),
            false => Vec::new(),
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "a constructor of one call's length each"
    )]
    fn plan(
        &self,
        level: usize,
        output_level: usize,
        upper: Vec<Arc<LevelFile<T>>>,
        lower: Vec<Arc<LevelFile<T>>>,
        reason: Reason,
        score: f64,
        may_move: bool,
    ) -> Plan<T> {
        let movable = |file: &Arc<LevelFile<T>>| self.is_movable(&file.meta, output_level);
        let moves = may_move && lower.is_empty() && upper.iter().all(movable);
        let files = upper.iter().chain(&lower).map(|file| &file.meta);
        let hull = KeyRange::hull(files).unwrap_or_else(KeyRange::all);
        let mut inputs = vec![(level, upper)];
        if !lower.is_empty() {
            inputs.push((output_level, lower));
        }
        Plan {
            level,
            output_level,
            inputs,
            grandparents: self.grandparents(output_level, &hull),
            kind: if moves {
                PlanKind::Move
            } else {
                PlanKind::Merge
            },
            reason,
            bottommost: self.nothing_below(output_level, &hull),
            score,
            spares_reads: false,
        }
    }
}

#[cfg(test)]
mod tests;
