//! Running a compaction: read the inputs as one sorted stream, drop what no reader needs, write the
//! outputs, swap them in.
//!
//! The inputs are marked while they are being compacted, so that several compactions of a tree never
//! share a file. Nothing changes for readers before the manifest edit that takes the inputs out and
//! the outputs in; a crash or an error before it leaves orphans at worst, and the inputs as they
//! were. Files that are out of the manifest are removed when the last reader lets go of them.
//!
//! Blob files are collected here too. What no SSTable refers to any more is garbage; an input whose
//! pointer leads into a file with more garbage than allowed has that value moved to a new blob file.
//! A blob file that nothing refers to leaves with the edit that took the last reference.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::blob::BlobPointer;
use crate::compaction::drop::{Decision, DropFilter, DropReason, surviving_range_tombstones};
use crate::compaction::output::{OutputOptions, Outputs, Place, bad_value};
use crate::compaction::pick::{self, Plan, PlanKind, Reason};
use crate::core::Core;
use crate::error::Result;
use crate::event::Event;
use crate::iterator::InternalIterator;
use crate::key::{FileId, Kind, Trailer};
use crate::merge::concat::ConcatIter;
use crate::merge::merging::MergingIter;
use crate::options::LEVELS;
use crate::range_del::RangeTombstones;
use crate::read::{Run, RunFiles, Source};
use crate::read_debt::ReadLoss;
use crate::sstable::ReadOptions;
use crate::tree::{Levels, TableFile, TableSlot, Tree};
use crate::version::KeyRange;
use crate::version::edit::{Op, VersionEdit};

/// How much of an input is read at once.
const READAHEAD_BYTES: usize = 256 << 10;

/// A compaction that was decided, with its inputs marked.
#[derive(Debug)]
pub struct Job {
    tree: Arc<Tree>,
    plan: Plan<TableSlot>,
    levels: Arc<Levels>,
}

impl Job {
    fn new(tree: Arc<Tree>, plan: Plan<TableSlot>, levels: Arc<Levels>) -> Self {
        for file in plan.files() {
            file.being_compacted.store(true, Ordering::Release);
        }
        Self { tree, plan, levels }
    }

    /// Whether what it compacts is gone.
    pub fn is_obsolete(&self) -> bool {
        self.tree.is_dropped()
    }

    /// Whether it spares reads more than it costs.
    pub fn spares_reads(&self) -> bool {
        self.plan.spares_reads
    }

    /// Takes the marks back.
    pub fn release(&self) {
        for file in self.plan.files() {
            file.being_compacted.store(false, Ordering::Release);
        }
    }
}

/// Decides the most urgent compaction of any tree and marks its inputs. Under the work lock.
pub fn pick(core: &Arc<Core>) -> Option<Job> {
    let oldest_snapshot = core.snapshots.oldest();
    let mut best: Option<(Arc<Tree>, Plan<TableSlot>, Arc<Levels>)> = None;
    for tree in core.trees.load().iter() {
        if tree.is_dropped() {
            continue;
        }
        let levels = Arc::clone(&tree.state().levels);
        let mut options = pick_options(core);
        options.reads = tree.read_debt.loss();
        let plan = pick::pick(&levels, &options, oldest_snapshot);
        if let Some(plan) = plan
            && best
                .as_ref()
                .is_none_or(|(_, best, _)| plan.score > best.score)
        {
            best = Some((Arc::clone(tree), plan, levels));
        }
    }
    let (tree, plan, levels) = best?;
    if plan.level == 0 || plan.reason == Reason::Reads {
        tree.read_debt.settle();
    }
    Some(Job::new(tree, plan, levels))
}

/// Runs a job. Its marks are the caller's to take back.
pub fn run(core: &Arc<Core>, job: &Job) -> Result<()> {
    let (tree, plan) = (&job.tree, &job.plan);
    if tree.is_dropped() {
        return Ok(());
    }
    if plan.kind == PlanKind::Move {
        let mut ops = Vec::new();
        for (level, file) in plan.files_with_levels() {
            ops.push(Op::RemoveFile {
                namespace: tree.id,
                level,
                id: file.meta.id,
            });
            let meta = file.meta.clone();
            ops.push(Op::AddFile {
                namespace: tree.id,
                level: plan.output_level,
                meta,
            });
        }
        core.versions.apply(VersionEdit::of(ops))?;
        tree.update(|state| state.levels = core.versions.current(tree.id));
        core.observer.counters.trivial_moves.add(1);
        return Ok(());
    }
    let started = core.env.clock.monotonic();
    let read_bytes = plan.files().map(|file| file.meta.file_bytes).sum();
    core.observer.emit(Event::CompactionBegin {
        namespace: tree.id,
        level: plan.level,
        output_level: plan.output_level,
        input_bytes: read_bytes,
        reason: plan.reason.as_str(),
    });
    let merged = merge(core, job)?;
    let namespace = tree.id;
    let write_bytes = merged.written.bytes;
    let mut ops = Vec::new();
    for (level, file) in plan.files_with_levels() {
        ops.push(Op::RemoveFile {
            namespace,
            level,
            id: file.meta.id,
        });
    }
    ops.extend(
        merged
            .written
            .blobs
            .into_iter()
            .map(|meta| Op::AddBlob { namespace, meta }),
    );
    let level = plan.output_level;
    let tables = merged.written.tables.into_iter();
    ops.extend(tables.map(|meta| Op::AddFile {
        namespace,
        level,
        meta,
    }));
    core.versions.apply(VersionEdit::of(ops))?;
    tree.update(|state| state.levels = core.versions.current(tree.id));

    core.shrink_tables();

    let counters = &core.observer.counters;
    counters.compactions.add(1);
    counters.compaction_read_bytes.add(read_bytes);
    counters.compaction_write_bytes.add(write_bytes);
    counters.compaction_dropped_entries.add(merged.dropped);
    counters.expired_dropped.add(merged.expired);
    let micros = core
        .env
        .clock
        .monotonic()
        .saturating_sub(started)
        .as_micros() as u64;
    core.observer.emit(Event::CompactionEnd {
        namespace: tree.id,
        output_level: plan.output_level,
        read_bytes,
        write_bytes,
        dropped_entries: merged.dropped,
        micros,
    });
    Ok(())
}

/// What a merge produced.
#[derive(Default)]
struct Merged {
    written: crate::compaction::output::Written,
    dropped: u64,
    expired: u64,
}

fn merge(core: &Arc<Core>, job: &Job) -> Result<Merged> {
    let plan = &job.plan;
    let (mut input, tombstones) = open_inputs(core, plan)?;
    let visible_at = core.snapshots.visible_at();
    let below = Below::new(&job.levels, plan.output_level, plan.bottommost);
    let now_ms = core.droppable_ms();
    let mut filter = DropFilter::new(&visible_at, &tombstones, now_ms, |key: &[u8]| {
        below.is_empty_at(key)
    });
    let options = OutputOptions {
        table: core.settings.table_options(plan.bottommost),
        table_bytes: core.settings.sstable_bytes,
        min_blob_bytes: core.settings.given.min_blob_bytes,
        namespace: job.tree.id,
        namespace_name: Arc::clone(&job.tree.name),
    };
    let surviving = surviving_range_tombstones(&tombstones, &visible_at, |start, end| {
        below.is_empty_over(start, end)
    });
    let mut outputs = Outputs::new(Place::of(core), options, surviving);
    let mut grandparents = Grandparents::new(plan, core.settings.sstable_bytes);
    let collected = blobs_to_collect(core, &job.levels);
    let mut merged = Merged::default();
    let mut since_check = 0u32;

    input.seek_to_first()?;
    while input.valid() {
        since_check += 1;
        if since_check == 4096 {
            since_check = 0;
            if core.closed.load(Ordering::Relaxed) || job.tree.is_dropped() {
                return Err(crate::core::closing());
            }
        }
        let (key, trailer, value) = (input.key(), input.trailer(), input.value());
        let kind = trailer
            .kind()
            .ok_or_else(|| bad_value(core, "an unknown kind"))?;
        let decision = filter.decide(key, trailer, value)?;
        match decision {
            Decision::Keep => {
                if grandparents.should_cut(key, &outputs) {
                    outputs.cut_before(key)?;
                }
                if kind.is_blob() {
                    let (expiry, pointer) = pointer_of(core, trailer, value)?;
                    if collected.contains(&pointer.file) {
                        let moved = move_blob(core, &job.levels, key, &pointer, &mut outputs)?;
                        outputs.add_pointer(key, trailer, expiry, &moved)?;
                    } else {
                        outputs.add_pointer(key, trailer, expiry, &pointer)?;
                    }
                } else {
                    outputs.add(key, trailer, value)?;
                }
            }
            Decision::KeepAsDelete => {
                outputs.add(key, Trailer::new(trailer.seqno(), Kind::Delete), &[])?;
            }
            Decision::Drop(reason) => {
                merged.dropped += 1;
                merged.expired += u64::from(reason == DropReason::Expired);
            }
        }
        input.next()?;
    }
    merged.written = outputs.finish()?;
    core.observer
        .counters
        .blob_bytes_written
        .add(merged.written.blob_value_bytes);
    Ok(merged)
}

/// The inputs as one stream, newest source first, and all their range tombstones.
fn open_inputs(
    core: &Arc<Core>,
    plan: &Plan<TableSlot>,
) -> Result<(MergingIter<Source>, RangeTombstones)> {
    let mut children = Vec::new();
    let mut tombstones = Vec::new();
    for (level, files) in &plan.inputs {
        for file in files
            .iter()
            .filter(|file| file.meta.range_tombstone_count > 0)
        {
            tombstones.push(Arc::clone(core.table(file)?.range_tombstones()));
        }
        if *level == 0 {
            for file in files {
                children.push(Source::Table(
                    core.table(file)?
                        .iter(ReadOptions::sequential(READAHEAD_BYTES)),
                ));
            }
        } else if !files.is_empty() {
            let run = Run::new(
                Arc::clone(core),
                RunFiles::List(files.clone()),
                ReadOptions::sequential(READAHEAD_BYTES),
            );
            children.push(Source::Level(ConcatIter::new(run)));
        }
    }
    let sets: Vec<&RangeTombstones> = tombstones.iter().map(|set| &**set).collect();
    let all = RangeTombstones::merge(&sets);
    // The merge itself applies no tombstones: what they cover may still be needed by a snapshot.
    Ok((MergingIter::new(children), all))
}

/// Splits a stored blob value into its expiry and its pointer.
pub(crate) fn pointer_of<'v>(
    core: &Core,
    trailer: Trailer,
    value: &'v [u8],
) -> Result<(&'v [u8], BlobPointer)> {
    let expiring = trailer.kind().is_some_and(|kind| kind.is_expiring());
    let (expiry, encoded) = value
        .split_at_checked(if expiring { 8 } else { 0 })
        .ok_or_else(|| bad_value(core, "an expiry cut short"))?;
    let pointer = BlobPointer::decode(encoded)
        .ok_or_else(|| bad_value(core, "a blob pointer that does not decode"))?;
    Ok((expiry, pointer))
}

/// Copies a live value out of a blob file that is to be collected.
fn move_blob(
    core: &Arc<Core>,
    levels: &Levels,
    key: &[u8],
    pointer: &BlobPointer,
    outputs: &mut Outputs<'_>,
) -> Result<BlobPointer> {
    let value = core.blob(levels, pointer)?.read(pointer, key)?;
    core.observer
        .counters
        .blob_bytes_relocated
        .add(value.len() as u64);
    outputs.write_blob(key, &value)
}

/// The blob files whose garbage is over the limit.
fn blobs_to_collect(core: &Core, levels: &Levels) -> Vec<FileId> {
    let ratio = core.settings.given.blob_garbage_ratio;
    let over = levels
        .blobs()
        .iter()
        .filter(|blob| blob.garbage_ratio() > ratio);
    over.map(|blob| blob.file.meta.id).collect()
}

/// Whether older data of a key can exist below the output level.
struct Below<'a> {
    levels: &'a Levels,
    output_level: usize,
    bottommost: bool,
}

impl<'a> Below<'a> {
    fn new(levels: &'a Levels, output_level: usize, bottommost: bool) -> Self {
        Self {
            levels,
            output_level,
            bottommost,
        }
    }

    /// Data of a key sinks through the output level, so what is below now is all there will be
    /// while the inputs are marked.
    fn is_empty_at(&self, key: &[u8]) -> bool {
        self.bottommost
            || (self.output_level + 1..LEVELS)
                .all(|level| self.levels.levels()[level].find(key).is_none())
    }

    /// The same of the keys from `start` to `end` (exclusive).
    fn is_empty_over(&self, start: &[u8], end: &[u8]) -> bool {
        self.bottommost
            || (self.output_level + 1..LEVELS).all(|level| {
                let range = KeyRange::of_user(Some(start), Some(end));
                self.levels.levels()[level].overlapping(&range).is_empty()
            })
    }
}

/// Where to cut outputs so that none overlaps too much of the level below it: compacting it further
/// down would otherwise rewrite all of that at once.
struct Grandparents<'a> {
    files: &'a [Arc<TableFile>],
    next: usize,
    overlapped_bytes: u64,
    limit: u64,
}

impl<'a> Grandparents<'a> {
    fn new(plan: &'a Plan<TableSlot>, sstable_bytes: u64) -> Self {
        Self {
            files: &plan.grandparents,
            next: 0,
            overlapped_bytes: 0,
            limit: sstable_bytes.saturating_mul(10),
        }
    }

    /// Whether the present output should end before `key`.
    fn should_cut(&mut self, key: &[u8], outputs: &Outputs<'_>) -> bool {
        while let Some(file) = self.files.get(self.next)
            && *file.meta.largest < *key
        {
            self.overlapped_bytes += file.meta.file_bytes;
            self.next += 1;
        }
        if self.overlapped_bytes > self.limit && outputs.table_has(1) {
            self.overlapped_bytes = 0;
            return true;
        }
        false
    }
}

/// How the picker is set.
fn pick_options(core: &Core) -> pick::PickOptions {
    let settings = &core.settings;
    pick::PickOptions {
        l0_trigger: settings.given.l0_compaction_trigger,
        level_ratio: settings.given.level_ratio,
        base_bytes: (settings.memtable_bytes as u64).saturating_mul(4),
        sstable_bytes: settings.sstable_bytes,
        blob_garbage_ratio: settings.given.blob_garbage_ratio,
        reclaim: core.disk_full.load(Ordering::Relaxed),
        reads: ReadLoss::default(),
    }
}

/// Compacts a range level by level, from the top down to the last level with data. Other compaction
/// is paused by the caller.
pub fn compact_range(
    core: &Arc<Core>,
    tree: &Arc<Tree>,
    start: Option<&[u8]>,
    end: Option<&[u8]>,
) -> Result<()> {
    let range = KeyRange::of_user(start, end);
    let mut from_level = 0;
    while let Some(level) = (from_level..LEVELS)
        .find(|&level| !tree.state().levels.overlapping(level, &range).is_empty())
    {
        let levels = Arc::clone(&tree.state().levels);
        let Some(plan) = pick::pick_range(&levels, &pick_options(core), level, start, end) else {
            from_level = level + 1;
            continue;
        };
        from_level = plan.output_level.max(level + 1);
        let last = level == LEVELS - 1 || plan.output_level == level;
        let job = Job::new(Arc::clone(tree), plan, levels);
        let result = run_counted(core, &job);
        job.release();
        result?;
        if last {
            break;
        }
    }
    Ok(())
}

/// Runs a job on the caller's thread, counted like those in the background: closing waits for it.
fn run_counted(core: &Arc<Core>, job: &Job) -> Result<()> {
    counted(core, || run(core, job))
}

/// Does what compacts or is like it on the caller's thread. Closing waits for it.
pub(crate) fn counted<T>(core: &Core, work: impl FnOnce() -> Result<T>) -> Result<T> {
    {
        let mut work = core.work.lock();
        core.check_open()?;
        work.compactions += 1;
        core.note_jobs(&work);
    }
    let result = work();
    {
        let mut work = core.work.lock();
        work.compactions -= 1;
        core.note_jobs(&work);
    }
    core.work_done.notify_all();
    result
}

/// How far behind the background is, for pacing.
pub fn load(core: &Core) -> crate::compaction::pacing::Load {
    let mut load = crate::compaction::pacing::Load::default();
    for tree in core.trees.load().iter() {
        let state = tree.state();
        load.l0_files = load.l0_files.max(state.levels.files(0).len());
        for immutable in &state.immutables {
            load.waiting_memtable_bytes += immutable.memtable.memory_bytes() as u64;
        }
    }
    load.debt_bytes = debt(core);
    load
}

/// Bytes that compaction still has to move for every level to be within its size.
pub fn debt(core: &Core) -> u64 {
    let options = pick_options(core);
    core.trees
        .load()
        .iter()
        .map(|tree| pick::debt_bytes(&tree.state().levels, &options))
        .sum()
}
