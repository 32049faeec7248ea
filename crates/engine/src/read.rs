//! Reads: one key, several keys, ranges.
//!
//! A point read walks the sources of a tree from the newest to the oldest (active memtable,
//! immutable memtables, L0 files by age, one file of each deeper level) and stops at the first that
//! knows the key. Filters rule most tables out for the price of one cache line. Range tombstones of
//! a source apply to everything in older sources and, by sequence number, in the same one.
//!
//! What reads lose because they have to ask several tables is estimated from one of 64, and summed up
//! for each tree: once the sum reaches the price of a compaction that takes one away, it is picked
//! (see `compaction::pick`).
//!
//! A read loads the tree's picture first and the published number second: what the number allows is
//! then in the picture, and nothing in the picture can go away under it (see `snapshot`).

use std::cell::Cell;
use std::ops::{Bound, Range};
use std::sync::Arc;

use arc_swap::Guard;
use firn_io::exec::Priority;

use crate::blob::{BlobFile, BlobPointer};
use crate::core::{Core, Now};
use crate::error::{Error, Result};
use crate::iterator::InternalIterator;
use crate::key::{Kind, SeqNo, Trailer, prefix_end};
use crate::memtable::MemtableIter;
use crate::merge::concat::{ConcatIter, RunSource};
use crate::merge::merging::MergingIter;
use crate::merge::visible::{Moved, View, VisibleIter};
use crate::names;
use crate::options::LEVELS;
use crate::range_del::RangeTombstones;
use crate::sstable::{ReadOptions, Table, TableIter, Way, key_hash};
use crate::tree::{Levels, TableFile, TableSlot, Tree, TreeState};
use crate::value::{Entry, Value};
use crate::version::{KeyRange, Level};

/// The newest version of a key, before its value is made.
#[derive(Debug)]
pub enum Found<'a> {
    /// In a memtable of the picture.
    Memtable(Trailer, &'a [u8]),
    /// In a table.
    Table(Trailer, Value),
}

/// So many tables are asked side by side.
const TOGETHER: usize = 4;

/// A table that a point read asks.
struct Candidate<'s> {
    file: &'s Arc<TableFile>,
    open: Option<Guard<Option<Arc<Table>>>>,
}

impl<'s> Candidate<'s> {
    /// Has the memory of the filter fetched.
    #[inline]
    fn new(file: &'s Arc<TableFile>, hash: u64) -> Self {
        let open = file.table().map(TableSlot::borrow_unnoted);
        let candidate = Self { file, open };
        if let Some(table) = candidate.table() {
            table.prefetch_filter(hash);
        }
        candidate
    }

    /// The table, if it is open.
    #[inline]
    fn table(&self) -> Option<&Table> {
        self.open.as_ref()?.as_deref()
    }

    #[inline]
    fn way(&self, key: &[u8]) -> Option<Way> {
        self.table().map(|table| table.way(key))
    }
}

/// The most that [`EXPECTED`] says.
const EXPECTATION: i8 = 4;

thread_local! {
    /// Whether the filters of the oldest tables let pass most of the keys that this thread looked for, in
    /// whatever tree: above zero if so. Then their index is searched while the line of the filter is waited for, for
    /// nothing if that says no.
    static EXPECTED: Cell<i8> = const { Cell::new(0) };
}

impl Found<'_> {
    fn trailer(&self) -> Trailer {
        match self {
            Self::Memtable(trailer, _) | Self::Table(trailer, _) => *trailer,
        }
    }

    fn raw(&self) -> &[u8] {
        match self {
            Self::Memtable(_, value) => value,
            Self::Table(_, value) => value,
        }
    }
}

impl Core {
    /// The newest version of `key` at or before `snapshot` that no range tombstone covers; a point
    /// tombstone is returned as such.
    fn newest<'a>(
        &self,
        state: &'a TreeState,
        key: &[u8],
        snapshot: SeqNo,
        probed: &mut u64,
    ) -> Result<Option<Found<'a>>> {
        let mut covered = SeqNo::ZERO;
        let uncovered = |trailer: Trailer, covered: SeqNo| trailer.seqno() > covered;

        let waiting = state.immutables.iter().map(|i| &i.memtable);
        for memtable in std::iter::once(&state.active).chain(waiting) {
            if memtable.has_range_tombstones() {
                let tombstones = memtable.range_tombstones();
                covered = covered.max(tombstones.covering(key, snapshot).unwrap_or_default());
            }
            if let Some((trailer, value)) = memtable.get(key, snapshot) {
                let found = Found::Memtable(trailer, value);
                return Ok(uncovered(trailer, covered).then_some(found));
            }
        }
        if state.levels.is_empty() {
            return Ok(None);
        }
        let hash = key_hash(key);
        // Of L0 it is not asked whether a file's range has the key: the filter costs no more than that.
        let deeper = &state.levels.levels()[1..LEVELS];
        let deeper = deeper.iter().filter_map(|level| level.find(key));
        let mut files = state.levels.files(0).iter().chain(deeper).peekable();
        loop {
            // Their filters are waited for together.
            let mut candidates = [const { None }; TOGETHER];
            let mut count = 0_usize;
            for (candidate, file) in candidates.iter_mut().zip(&mut files) {
                *candidate = Some(Candidate::new(file, hash));
                count += 1;
            }
            let Some(last) = count.checked_sub(1) else {
                return Ok(None);
            };
            // And so is the index of the oldest one, which most likely has the key.
            let is_oldest = count < TOGETHER || files.peek().is_none();
            let mut way = match &candidates[last] {
                Some(candidate) if is_oldest && EXPECTED.get() > 0 => candidate.way(key),
                _ => None,
            };
            for (i, candidate) in candidates.iter().flatten().enumerate() {
                *probed += 1;
                let way = if i == last { way.take() } else { None };
                let (passed, found) =
                    self.probe(candidate, key, hash, way, snapshot, &mut covered)?;
                if i == last && is_oldest {
                    let step = if passed { 1 } else { -1 };
                    EXPECTED.set((EXPECTED.get() + step).clamp(-EXPECTATION, EXPECTATION));
                }
                if let Some(found) = found {
                    return Ok(uncovered(found.trailer(), covered).then_some(found));
                }
            }
        }
    }

    /// Asks one table, and raises `covered` by its range tombstones. Returns whether its filter let the
    /// key pass, too.
    #[inline]
    fn probe(
        &self,
        candidate: &Candidate<'_>,
        key: &[u8],
        hash: u64,
        way: Option<Way>,
        snapshot: SeqNo,
        covered: &mut SeqNo,
    ) -> Result<(bool, Option<Found<'static>>)> {
        let opened;
        let table: &Table = match candidate.table() {
            Some(table) => {
                if let Some(slot) = candidate.file.table() {
                    slot.note_use();
                }
                table
            }
            None => {
                opened = self.table(candidate.file)?;
                &opened
            }
        };
        let tombstones = table.range_tombstones();
        if !tombstones.is_empty() {
            *covered = (*covered).max(tombstones.covering(key, snapshot).unwrap_or_default());
        }
        if !table.may_contain(hash) {
            return Ok((false, None));
        }
        let way = way.unwrap_or_else(|| table.way(key));
        let entry = table.get_on(way, key, snapshot)?;
        let found = entry.map(|entry| Found::Table(entry.trailer, entry.value.into()));
        Ok((true, found))
    }

    /// Reads a key of a tree in a picture of it, at a sequence number.
    pub fn get_at(
        self: &Arc<Self>,
        tree: &Tree,
        state: &TreeState,
        key: &[u8],
        snapshot: SeqNo,
    ) -> Result<Option<Entry>> {
        let count = self.observer.counters.reading.read();
        let mut probed = 0;
        let found = self
            .newest(state, key, snapshot, &mut probed)
            .inspect_err(|e| self.note_error(e))?;
        if probed > 1 && count.is_multiple_of(SAMPLE) {
            self.note_read_loss(tree, SAMPLE * GET_LOSS_BYTES * (probed - 1));
        }
        let Some(found) = found else { return Ok(None) };
        let now = Now::new(&self.env);
        let entry = self.materialize(&state.levels, key, found, &now);
        let entry = entry.inspect_err(|e| self.note_error(e))?;
        if entry.is_some() {
            self.observer.counters.reading.hit();
        }
        Ok(entry)
    }

    /// Reads a key as it is now.
    pub fn get_now(self: &Arc<Self>, tree: &Tree, key: &[u8]) -> Result<Option<Entry>> {
        self.check_tree(tree)?;
        let state = tree.state();
        let snapshot = self.snapshots.published();
        self.get_at(tree, &state, key, snapshot)
    }

    /// Notes what reads lost because they had to ask several tables, and looks for a compaction that
    /// ends that if it has become worth it.
    #[cold]
    pub(crate) fn note_read_loss(self: &Arc<Self>, tree: &Tree, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let now_ms = self.env.clock.monotonic().as_millis() as u64;
        let newest = self.snapshots.published();
        if tree.read_debt.add(bytes, newest, now_ms)
            && let Some(schedule) = self.schedule
        {
            let weak = Arc::downgrade(self);
            let look = move || {
                if let Some(core) = weak.upgrade() {
                    schedule(&core);
                }
            };
            self.env.exec.submit(Priority::Low, Box::new(look));
        }
    }

    /// Reads a key as it is now, or at `at_least` if that is later: possibly what is not published
    /// yet.
    pub fn get_at_least(
        self: &Arc<Self>,
        tree: &Tree,
        key: &[u8],
        at_least: SeqNo,
    ) -> Result<Option<Entry>> {
        self.check_tree(tree)?;
        // The picture first: what it lost by then, something published by then had replaced.
        let state = tree.state();
        let snapshot = self.snapshots.published().max(at_least);
        self.get_at(tree, &state, key, snapshot)
    }

    /// The version of `key` at `snapshot`, without its value; `None` if it does not exist.
    pub fn version_at(
        &self,
        state: &TreeState,
        key: &[u8],
        snapshot: SeqNo,
    ) -> Result<Option<SeqNo>> {
        let Some(found) = self.newest(state, key, snapshot, &mut 0)? else {
            return Ok(None);
        };
        let trailer = found.trailer();
        let kind = stored_kind(&self.dir, trailer)?;
        let exists = match kind {
            Kind::Delete => false,
            _ if kind.is_expiring() => {
                split_expiry(&self.dir, found.raw())?.0 > Now::new(&self.env).unix_ms()
            }
            _ => true,
        };
        Ok(exists.then_some(trailer.seqno()))
    }

    /// Whether the memtables of a picture know anything of `key` (its own entries or a range
    /// tombstone over it).
    pub fn memtables_know(&self, state: &TreeState, key: &[u8]) -> bool {
        let waiting = state.immutables.iter().map(|i| &i.memtable);
        std::iter::once(&state.active)
            .chain(waiting)
            .any(|memtable| {
                memtable.latest_seqno(key).is_some()
                    || (memtable.has_range_tombstones()
                        && memtable
                            .range_tombstones()
                            .covering(key, SeqNo::MAX)
                            .is_some())
            })
    }

    /// Makes what the user gets of a version: nothing for a tombstone or an expired value, the blob
    /// for a pointer.
    pub(crate) fn materialize(
        &self,
        levels: &Levels,
        key: &[u8],
        found: Found<'_>,
        now: &Now<'_>,
    ) -> Result<Option<Entry>> {
        let trailer = found.trailer();
        let kind = stored_kind(&self.dir, trailer)?;
        if kind == Kind::Delete {
            return Ok(None);
        }
        let mut skip = 0;
        let mut expires_at_ms = None;
        if kind.is_expiring() {
            let (expiry, _) = split_expiry(&self.dir, found.raw())?;
            if expiry <= now.unix_ms() {
                return Ok(None);
            }
            skip = 8;
            expires_at_ms = Some(expiry);
        }
        let value = if kind.is_blob() {
            self.read_blob(levels, key, &found.raw()[skip..])?
        } else {
            match found {
                Found::Memtable(_, raw) => Value::copied(&raw[skip..]),
                Found::Table(_, value) => value.skip(skip),
            }
        };
        Ok(Some(Entry {
            value,
            version: trailer.seqno(),
            expires_at_ms,
        }))
    }

    /// Reads a value that is stored in a blob file.
    fn read_blob(&self, levels: &Levels, key: &[u8], pointer: &[u8]) -> Result<Value> {
        let pointer = BlobPointer::decode(pointer)
            .ok_or_else(|| Error::corruption(&self.dir, 0, "a blob pointer does not decode"))?;
        Ok(Value::from(
            self.blob(levels, &pointer)?.read(&pointer, key)?,
        ))
    }

    /// The open blob file that a pointer leads to.
    pub fn blob<'l>(&self, levels: &'l Levels, pointer: &BlobPointer) -> Result<&'l BlobFile> {
        let path = names::blob_path(&self.dir, pointer.file);
        let Some(blob) = levels.blob(pointer.file) else {
            return Err(Error::corruption(
                path,
                pointer.offset,
                "a blob file is missing",
            ));
        };
        blob.reader_or_open(|meta| {
            let file = self.env.fs.open(&path, firn_io::fs::OpenMode::Read)?;
            BlobFile::open(file, meta.id)
        })
    }

    /// Opens a scan at `snapshot` over a picture that the scan keeps.
    pub fn scan_at(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        state: Arc<TreeState>,
        snapshot: SeqNo,
        pin: Option<SeqNo>,
        options: ScanOptions,
    ) -> Result<Scan> {
        let now_ms = self.env.clock.unix_ms();
        self.scan_when(tree, state, snapshot, pin, options, now_ms)
            .inspect_err(|e| self.note_error(e))
    }

    /// The same regardless of what has expired.
    pub fn scan_regardless(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        state: Arc<TreeState>,
        snapshot: SeqNo,
        pin: Option<SeqNo>,
        options: ScanOptions,
    ) -> Result<Scan> {
        self.scan_when(tree, state, snapshot, pin, options, 0)
            .inspect_err(|e| self.note_error(e))
    }

    fn scan_when(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        state: Arc<TreeState>,
        snapshot: SeqNo,
        pin: Option<SeqNo>,
        options: ScanOptions,
        now_ms: u64,
    ) -> Result<Scan> {
        let count = self.observer.counters.reading.scan();
        let mut sources = Vec::with_capacity(4);
        let mut tombstones = Vec::new();
        let waiting = state.immutables.iter().map(|i| &i.memtable);
        for memtable in std::iter::once(&state.active).chain(waiting) {
            let has_tombstones = memtable.has_range_tombstones();
            if has_tombstones {
                tombstones.push((sources.len(), memtable.range_tombstones()));
            }
            if has_tombstones || !memtable.is_empty() {
                sources.push(Source::Memtable(memtable.iter()));
            }
        }
        let (range, bounds) = Bounds::take(options.start, options.end);
        for file in state.levels.files(0) {
            if range.overlaps_file(&file.meta) {
                let table = self.table(file)?;
                if !table.range_tombstones().is_empty() {
                    tombstones.push((sources.len(), Arc::clone(table.range_tombstones())));
                }
                sources.push(Source::Table(table.iter(ReadOptions::default())));
            }
        }
        let levels = state.levels.levels();
        let deepest = (1..LEVELS).rev().find(|&level| !levels[level].is_empty());
        for (number, level) in levels.iter().enumerate().skip(1) {
            let part = level.overlapping(&range);
            if part.is_empty() {
                continue;
            }
            if level.has_range_tombstones() {
                let files = level.files()[part.clone()].iter();
                let mut covering = Vec::new();
                for file in files.filter(|f| f.meta.range_tombstone_count > 0) {
                    covering.push(Arc::clone(self.table(file)?.range_tombstones()));
                }
                let sets: Vec<&RangeTombstones> = covering.iter().map(|t| &**t).collect();
                match sets.len() {
                    0 => {}
                    1 => tombstones.push((sources.len(), covering.swap_remove(0))),
                    _ => tombstones.push((sources.len(), Arc::new(RangeTombstones::merge(&sets)))),
                }
            }
            let mut read = ReadOptions::default();
            if deepest == Some(number) {
                // Most of what the scan will return is here: soon it will need the next block too.
                read.seek_bytes = SEEK_BYTES;
            }
            let files = RunFiles::Level(Arc::clone(level), part);
            let run = Run::new(Arc::clone(self), files, read);
            sources.push(Source::Level(ConcatIter::new(run)));
        }
        let tables = sources.iter().filter(|s| !matches!(s, Source::Memtable(_)));
        let lost = tables.count().saturating_sub(1) as u64;
        if lost > 0 && count.is_multiple_of(SAMPLE) {
            self.note_read_loss(tree, SAMPLE * SCAN_LOSS_BYTES * lost);
        }
        let (start, end) = bounds.give_back(range);
        let view = View {
            snapshot,
            now_ms,
            start,
            end,
            reverse: options.reverse,
        };
        let merge = MergingIter::with_tombstones(sources, tombstones, snapshot);
        let inner = VisibleIter::new(merge, view);
        Ok(Scan {
            core: Arc::clone(self),
            tree: Arc::clone(tree),
            state,
            inner,
            pin,
            keys_only: options.keys_only,
            blob: None,
            entries: 0,
        })
    }
}

/// One read of so many is looked at for what it lost.
const SAMPLE: u64 = 64;
/// What a point read loses to a table that it asks in vain, and a scan to one more source, as bytes of
/// compaction. Estimates from two cores at 2.8 GHz, lz4 and 100-byte values: a byte takes a background
/// thread some 4 ns; a filter that says no costs a read some 0.03 us; a source costs a scan of ten entries
/// 2 us (it took 9 us over three sources and 6 over one). These are four times as much, because the reader
/// is waited for and the background is not. They decide when work is done, never what a read returns.
pub(crate) const GET_LOSS_BYTES: u64 = 32;
const SCAN_LOSS_BYTES: u64 = 2 << 10;

/// What a seek in the deepest level reads from its file, where the cache has nothing.
const SEEK_BYTES: usize = 2 << 10;

/// Of which kind the bounds of a scan are, while a [`KeyRange`] has their keys.
struct Bounds {
    start_excluded: bool,
    has_start: bool,
}

impl Bounds {
    /// A range that contains every key of a scan, by which files are chosen, made of its bounds.
    fn take(start: Bound<Vec<u8>>, end: Bound<Vec<u8>>) -> (KeyRange, Self) {
        let bounds = Self {
            start_excluded: matches!(start, Bound::Excluded(_)),
            // No key comes before the empty one.
            has_start: match &start {
                Bound::Included(key) => !key.is_empty(),
                Bound::Excluded(_) => true,
                Bound::Unbounded => false,
            },
        };
        let end_exclusive = matches!(end, Bound::Excluded(_));
        let key = |bound| match bound {
            Bound::Included(key) | Bound::Excluded(key) => Some(key),
            Bound::Unbounded => None,
        };
        let range = KeyRange {
            start: key(start).unwrap_or_default(),
            end: key(end),
            end_exclusive,
        };
        (range, bounds)
    }

    /// The bounds that [`take`](Self::take) was given.
    fn give_back(&self, range: KeyRange) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        let start = match (self.has_start, self.start_excluded) {
            (false, _) => Bound::Unbounded,
            (true, true) => Bound::Excluded(range.start),
            (true, false) => Bound::Included(range.start),
        };
        let end = match (range.end, range.end_exclusive) {
            (None, _) => Bound::Unbounded,
            (Some(end), true) => Bound::Excluded(end),
            (Some(end), false) => Bound::Included(end),
        };
        (start, end)
    }
}

/// The kind in a stored trailer.
fn stored_kind(dir: &std::path::Path, trailer: Trailer) -> Result<Kind> {
    trailer
        .kind()
        .ok_or_else(|| Error::corruption(dir, 0, "an entry has an unknown kind"))
}

/// Splits the expiry from a stored value.
fn split_expiry<'a>(dir: &std::path::Path, raw: &'a [u8]) -> Result<(u64, &'a [u8])> {
    let (expiry, rest) = raw
        .split_first_chunk::<8>()
        .ok_or_else(|| Error::corruption(dir, 0, "an expiring value is shorter than its expiry"))?;
    Ok((u64::from_le_bytes(*expiry), rest))
}

/// Which keys a scan returns, and how.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// Where the range starts.
    pub start: Bound<Vec<u8>>,
    /// Where it ends.
    pub end: Bound<Vec<u8>>,
    /// From the end to the start.
    pub reverse: bool,
    /// Leave values out; large values are then not read at all.
    pub keys_only: bool,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self::all()
    }
}

impl ScanOptions {
    /// Every key.
    pub fn all() -> Self {
        Self {
            start: Bound::Unbounded,
            end: Bound::Unbounded,
            reverse: false,
            keys_only: false,
        }
    }

    /// From `start` (inclusive) to `end` (exclusive).
    pub fn range(start: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        let (start, end) = (Bound::Included(start.into()), Bound::Excluded(end.into()));
        Self {
            start,
            end,
            ..Self::all()
        }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let end = prefix_end(prefix).map_or(Bound::Unbounded, Bound::Excluded);
        Self {
            start: Bound::Included(prefix.to_vec()),
            end,
            ..Self::all()
        }
    }

    /// The same, from the end to the start.
    #[must_use]
    pub fn reverse(self) -> Self {
        Self {
            reverse: true,
            ..self
        }
    }

    /// The same, without values.
    #[must_use]
    pub fn keys_only(self) -> Self {
        Self {
            keys_only: true,
            ..self
        }
    }
}

/// Files in key order that do not overlap.
#[derive(Debug)]
pub enum RunFiles {
    /// Some of a level, which costs the same however many they are.
    Level(Arc<Level<TableSlot>>, Range<usize>),
    /// These.
    List(Vec<Arc<TableFile>>),
}

/// Files as a sorted run.
pub struct Run {
    core: Arc<Core>,
    files: RunFiles,
    options: ReadOptions,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Run {
    /// A run of these files.
    pub fn new(core: Arc<Core>, files: RunFiles, options: ReadOptions) -> Self {
        Self {
            core,
            files,
            options,
        }
    }

    #[inline]
    fn files(&self) -> &[Arc<TableFile>] {
        match &self.files {
            RunFiles::Level(level, part) => &level.files()[part.clone()],
            RunFiles::List(files) => files,
        }
    }
}

impl RunSource for Run {
    type Iter = TableIter;

    fn len(&self) -> usize {
        self.files().len()
    }

    fn smallest(&self, index: usize) -> &[u8] {
        &self.files()[index].meta.smallest
    }

    fn largest(&self, index: usize) -> (&[u8], bool) {
        let meta = &self.files()[index].meta;
        (&meta.largest, meta.largest_exclusive)
    }

    fn open(&mut self, index: usize) -> Result<TableIter> {
        let table = self.core.table(&self.files()[index])?;
        Ok(table.iter(self.options))
    }
}

/// One source of a scan.
#[allow(
    clippy::large_enum_variant,
    reason = "few exist at a time, and a box would cost every step a cache miss"
)]
pub enum Source {
    /// A memtable.
    Memtable(MemtableIter),
    /// An L0 file.
    Table(TableIter),
    /// A deeper level.
    Level(ConcatIter<Run>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memtable(_) => "Memtable",
            Self::Table(_) => "Table",
            Self::Level(_) => "Level",
        })
    }
}

macro_rules! each {
    ($self:expr, $source:ident => $call:expr) => {
        match $self {
            Source::Memtable($source) => $call,
            Source::Table($source) => $call,
            Source::Level($source) => $call,
        }
    };
}

impl InternalIterator for Source {
    #[inline]
    fn valid(&self) -> bool {
        each!(self, s => s.valid())
    }
    fn seek_to_first(&mut self) -> Result<()> {
        each!(self, s => s.seek_to_first())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        each!(self, s => s.seek_to_last())
    }
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        each!(self, s => s.seek(key))
    }
    fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        each!(self, s => s.seek_before(key))
    }
    #[inline]
    fn next(&mut self) -> Result<()> {
        each!(self, s => s.next())
    }
    #[inline]
    fn prev(&mut self) -> Result<()> {
        each!(self, s => s.prev())
    }
    #[inline]
    fn key(&self) -> &[u8] {
        each!(self, s => s.key())
    }
    #[inline]
    fn trailer(&self) -> Trailer {
        each!(self, s => s.trailer())
    }
    #[inline]
    fn value(&self) -> &[u8] {
        each!(self, s => s.value())
    }
    #[inline]
    fn next_key(&mut self) -> Result<()> {
        each!(self, s => s.next_key())
    }
}

/// A scan over a range of keys at one instant, in one direction. It keeps the memtables and files
/// that it reads alive until it is dropped.
pub struct Scan {
    core: Arc<Core>,
    tree: Arc<Tree>,
    state: Arc<TreeState>,
    inner: VisibleIter<MergingIter<Source>>,
    pin: Option<SeqNo>,
    keys_only: bool,
    /// The present value, if it was read from a blob file.
    blob: Option<Value>,
    entries: u64,
}

impl Scan {
    /// Advances; `false` at the end. Must be called before the first entry. After an error the scan
    /// may be continued by [`Scan::seek`] only.
    #[allow(
        clippy::should_implement_trait,
        reason = "a lending iterator, which Iterator cannot be"
    )]
    pub fn next(&mut self) -> Result<bool> {
        self.blob = None;
        let more = self.inner.next().inspect_err(|e| self.core.note_error(e))?;
        if more {
            self.take()?;
        }
        Ok(more)
    }

    /// Lets [`Scan::next_allowed`] make so many steps in all, see [`VisibleIter::allow`].
    pub(crate) fn allow(&mut self, steps: u64) -> Result<()> {
        let allowed = self.inner.allow(steps);
        allowed.inspect_err(|e| self.core.note_error(e))
    }

    /// See [`VisibleIter::next_allowed`].
    pub(crate) fn next_allowed(&mut self) -> Result<Moved> {
        self.blob = None;
        let moved = self.inner.next_allowed();
        let moved = moved.inspect_err(|e| self.core.note_error(e))?;
        if moved == Moved::Found {
            self.take()?;
        }
        Ok(moved)
    }

    /// Has the present entry.
    #[inline]
    fn take(&mut self) -> Result<()> {
        self.entries += 1;
        if self.inner.kind().is_blob() && !self.keys_only {
            let (key, pointer) = (self.inner.key(), self.inner.raw_value());
            let value = self.core.read_blob(&self.state.levels, key, pointer);
            self.blob = Some(value.inspect_err(|e| self.core.note_error(e))?);
        }
        Ok(())
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        self.inner.key()
    }

    /// The value; empty if only keys were asked for.
    pub fn value(&self) -> &[u8] {
        match &self.blob {
            Some(value) => value,
            None if self.keys_only => &[],
            None => self.inner.raw_value(),
        }
    }

    /// The sequence number of the operation that wrote it.
    pub fn version(&self) -> SeqNo {
        self.inner.trailer().seqno()
    }

    /// When it ceases to exist, in Unix milliseconds, if ever.
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.inner.expires_at_ms()
    }

    /// Continues elsewhere: the following [`Scan::next`] goes to the first key at or after `key` (at
    /// or before it in a reverse scan) that is inside of the bounds.
    pub fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.blob = None;
        self.inner
            .seek(key)
            .inspect_err(|e| self.core.note_error(e))
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        self.core.observer.counters.reading.entries(self.entries);
        if let Some(seqno) = self.pin {
            self.core.snapshots.unpin(seqno);
        }
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan")
            .field("namespace", &self.tree.name)
            .finish_non_exhaustive()
    }
}

impl IntoIterator for Scan {
    type Item = Result<(Vec<u8>, Vec<u8>)>;
    type IntoIter = Pairs;

    fn into_iter(self) -> Pairs {
        Pairs {
            scan: self,
            ended: false,
        }
    }
}

/// A scan as an iterator of copies. Ends after an error.
#[derive(Debug)]
pub struct Pairs {
    scan: Scan,
    ended: bool,
}

impl Iterator for Pairs {
    type Item = Result<(Vec<u8>, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.scan.next() {
            Ok(true) => Some(Ok((self.scan.key().to_vec(), self.scan.value().to_vec()))),
            Ok(false) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}
