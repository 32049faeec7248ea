//! What the trees consist of: immutable pictures of the levels, how they change, and how the change
//! is made durable.
//!
//! A [`Version`] is one namespace's tree at one moment: for every level its SSTables, and the blob
//! files that they refer to. It never changes; readers hold an `Arc` of it for as long as they like.
//! A flush or compaction describes its effect as a [`VersionEdit`](crate::version::edit::VersionEdit),
//! which [`crate::version::set::VersionSet`] first logs to the manifest
//! ([`crate::version::manifest`]) and then applies, publishing the next version.
//!
//! # Invariants of a version ([`Version::check`])
//!
//! * L0: files in order of age, newest first. Two files whose key ranges overlap have disjoint
//!   ranges of sequence numbers, so that the first of them that knows a key has the newest entry.
//! * L1 and below: files in key order whose key ranges do not overlap. All entries of a user key
//!   in such a level are in one file.
//! * For every user key, each entry in a level is newer than every entry in a deeper level.
//!   (Not visible in the metadata; [`crate::compaction::pick`] keeps it.)
//! * Every blob file that an SSTable refers to is in the version. A blob file to which no SSTable
//!   refers any more leaves the version by itself, with the edit that took the last reference.
//!
//! # The life of a file
//!
//! Files are shared between successive versions through `Arc`. An edit that removes a file marks it
//! obsolete once the manifest no longer needs it; when the last version that has it goes away, the
//! drop calls the [`Purger`], which deletes it. A process that dies in between leaves an orphan,
//! which recovery finds because no version has it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, OnceLock};

use crate::key::{FileId, SeqNo, window};
use crate::options::LEVELS;
use crate::range_del::RangeTombstones;
use crate::sstable::{self, Properties};

pub mod edit;
pub mod manifest;
pub mod set;

/// Which kind of data file a number belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileClass {
    /// An SSTable.
    Sstable,
    /// A blob file.
    Blob,
}

/// Called with a file that nobody refers to any more. It runs inside a drop, on any thread: it
/// must only queue the deletion.
pub type Purger = Arc<dyn Fn(FileId, FileClass) + Send + Sync>;

/// What an SSTable takes from a blob file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// The blob file.
    pub file: FileId,
    /// Number of values.
    pub count: u64,
    /// Their bytes, in the measure of [`BlobMeta::value_bytes`].
    pub bytes: u64,
}

/// What the manifest knows about an SSTable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMeta {
    /// Its number, which names the file.
    pub id: FileId,
    /// Its length on disk.
    pub file_bytes: u64,
    /// Keys and values before compression, in bytes.
    pub raw_bytes: u64,
    /// Number of entries, tombstones included, range tombstones not.
    pub entry_count: u64,
    /// Number of entries that are tombstones.
    pub tombstone_count: u64,
    /// Number of range tombstones.
    pub range_tombstone_count: u64,
    /// The smallest user key of an entry or start of a range tombstone.
    pub smallest: Box<[u8]>,
    /// The greatest user key of an entry or end of a range tombstone.
    pub largest: Box<[u8]>,
    /// `largest` is the end of a range tombstone, which itself is not in the file's range.
    pub largest_exclusive: bool,
    /// The smallest sequence number in it, range tombstones included.
    pub min_seqno: SeqNo,
    /// The greatest sequence number in it, range tombstones included.
    pub max_seqno: SeqNo,
    /// The blob files it refers to, by ascending number.
    pub blob_refs: Vec<BlobRef>,
}

impl FileMeta {
    /// That of a table with these contents.
    pub(crate) fn of_table(
        id: FileId,
        file_bytes: u64,
        properties: &Properties,
        tombstones: &RangeTombstones,
    ) -> Self {
        let raw: Vec<_> = tombstones
            .iter_raw()
            .map(|tombstone| tombstone.to_owned())
            .collect();
        let (smallest, largest, largest_exclusive) = sstable::writer::bounds(properties, &raw);
        let (min_seqno, max_seqno) = properties.seqnos.unwrap_or_default();
        let refs = properties.blob_refs.iter();
        Self {
            id,
            file_bytes,
            raw_bytes: properties
                .raw_key_bytes
                .saturating_add(properties.raw_value_bytes),
            entry_count: properties.entry_count(),
            tombstone_count: properties.tombstone_count(),
            range_tombstone_count: properties.range_tombstone_count,
            smallest: smallest.into(),
            largest: largest.into(),
            largest_exclusive,
            min_seqno,
            max_seqno,
            blob_refs: refs
                .map(|&(file, count, bytes)| BlobRef { file, count, bytes })
                .collect(),
        }
    }

    /// Whether every key of the file is before `key`.
    #[inline]
    pub fn ends_before(&self, key: &[u8]) -> bool {
        match self.largest[..].cmp(key) {
            Ordering::Less => true,
            Ordering::Equal => self.largest_exclusive,
            Ordering::Greater => false,
        }
    }

    /// Whether the key range has `key`.
    #[inline]
    pub fn covers(&self, key: &[u8]) -> bool {
        self.smallest[..] <= *key && !self.ends_before(key)
    }

    /// Whether the two key ranges have a key in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.ends_before(&other.smallest) && !other.ends_before(&self.smallest)
    }

    /// Whether `self` has every sequence number after those of `older`.
    pub fn is_newer_than(&self, older: &Self) -> bool {
        self.min_seqno > older.max_seqno
    }

    /// Tombstones of both sorts.
    pub fn tombstones(&self) -> u64 {
        self.tombstone_count
            .saturating_add(self.range_tombstone_count)
    }

    /// Whether the fields can be true together.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("SSTable {}: {what}", self.id));
        match self.smallest.cmp(&self.largest) {
            Ordering::Greater => return wrong("the smallest key is after the largest"),
            Ordering::Equal if self.largest_exclusive => return wrong("the key range is empty"),
            _ => {}
        }
        if self.min_seqno > self.max_seqno || self.max_seqno > SeqNo::MAX {
            return wrong("impossible sequence numbers");
        }
        if self.tombstone_count > self.entry_count {
            return wrong("more tombstones than entries");
        }
        if self
            .blob_refs
            .windows(2)
            .any(|pair| pair[0].file >= pair[1].file)
        {
            return wrong("blob references out of order");
        }
        Ok(())
    }
}

/// What the manifest knows about a blob file. Which part of it is garbage follows from the
/// references of the live SSTables and is not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobMeta {
    /// Its number, which names the file.
    pub id: FileId,
    /// Its length on disk.
    pub file_bytes: u64,
    /// Number of values written to it.
    pub value_count: u64,
    /// Bytes of those values.
    pub value_bytes: u64,
}

/// A range of user keys, in which `end` may be in (as in most files) or out (as in ranges that
/// users give, and in files that end with a range tombstone).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub start: Vec<u8>,
    /// The last key; `None` for no limit.
    pub end: Option<Vec<u8>>,
    /// Whether `end` itself is out.
    pub end_exclusive: bool,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> Self {
        Self {
            start: Vec::new(),
            end: None,
            end_exclusive: false,
        }
    }

    /// From `start` (all keys if `None`) to before `end` (to the last key if `None`).
    pub fn of_user(start: Option<&[u8]>, end: Option<&[u8]>) -> Self {
        Self {
            start: start.unwrap_or_default().to_vec(),
            end: end.map(<[u8]>::to_vec),
            end_exclusive: end.is_some(),
        }
    }

    /// The range of an SSTable.
    pub fn of_file(meta: &FileMeta) -> Self {
        Self {
            start: meta.smallest.to_vec(),
            end: Some(meta.largest.to_vec()),
            end_exclusive: meta.largest_exclusive,
        }
    }

    /// Whether every key of the range is before `key`.
    pub fn ends_before(&self, key: &[u8]) -> bool {
        match &self.end {
            None => false,
            Some(end) => match end[..].cmp(key) {
                Ordering::Less => true,
                Ordering::Equal => self.end_exclusive,
                Ordering::Greater => false,
            },
        }
    }

    /// Whether the two have a key in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.ends_before(&other.start) && !other.ends_before(&self.start)
    }

    /// Whether it and the file's range have a key in common.
    pub fn overlaps_file(&self, meta: &FileMeta) -> bool {
        !self.ends_before(&meta.smallest) && !meta.ends_before(&self.start)
    }

    /// Whether the file's range lies inside.
    pub fn contains_file(&self, meta: &FileMeta) -> bool {
        self.start[..] <= meta.smallest[..]
            && match &self.end {
                None => true,
                Some(end) => match end[..].cmp(&meta.largest) {
                    Ordering::Greater => true,
                    Ordering::Equal => !self.end_exclusive || meta.largest_exclusive,
                    Ordering::Less => false,
                },
            }
    }

    /// Grows it to contain the file's range.
    pub fn extend(&mut self, meta: &FileMeta) {
        if meta.smallest[..] < self.start[..] {
            self.start = meta.smallest.to_vec();
        }
        if !self.contains_file(meta) {
            self.end = Some(meta.largest.to_vec());
            self.end_exclusive = meta.largest_exclusive;
        }
    }

    /// The smallest range that contains all the files; `None` if there are none.
    pub fn hull<'a>(files: impl IntoIterator<Item = &'a FileMeta>) -> Option<Self> {
        let mut files = files.into_iter();
        let mut hull = Self::of_file(files.next()?);
        files.for_each(|meta| hull.extend(meta));
        Some(hull)
    }
}

/// An SSTable that some version has. `T` is what reads it: see [`LevelFile::table`].
pub struct LevelFile<T = ()> {
    /// What the manifest knows about it.
    pub meta: FileMeta,
    /// An input of a running compaction: no other may take it. Set and cleared by
    /// [`crate::compaction::run`] under the work lock.
    pub being_compacted: AtomicBool,
    table: OnceLock<T>,
    obsolete: AtomicBool,
    purger: Option<Purger>,
}

impl<T> LevelFile<T> {
    /// A file that `purger` is told of when it is obsolete and no longer used.
    pub fn new(meta: FileMeta, purger: Option<Purger>) -> Self {
        Self {
            meta,
            being_compacted: AtomicBool::new(false),
            table: OnceLock::new(),
            obsolete: AtomicBool::new(false),
            purger,
        }
    }

    /// Its opened table, if somebody opened it. One atomic load.
    #[inline]
    pub fn table(&self) -> Option<&T> {
        self.table.get()
    }

    /// Its opened table; opens it with `open` the first time. Two threads that meet here may both
    /// open it; one result is dropped.
    pub fn table_or_open<E>(&self, open: impl FnOnce(&FileMeta) -> Result<T, E>) -> Result<&T, E> {
        if let Some(table) = self.table.get() {
            return Ok(table);
        }
        let table = open(&self.meta)?;
        Ok(self.table.get_or_init(|| table))
    }

    /// Whether a running compaction has it as an input.
    pub fn is_being_compacted(&self) -> bool {
        self.being_compacted.load(Acquire)
    }

    /// Has the file deleted when its last user is gone.
    pub fn mark_obsolete(&self) {
        self.obsolete.store(true, Release);
    }

    /// Whether [`LevelFile::mark_obsolete`] was called.
    pub fn is_obsolete(&self) -> bool {
        self.obsolete.load(Acquire)
    }
}

impl<T> Drop for LevelFile<T> {
    fn drop(&mut self) {
        // The table goes first, so that the file is closed before it is deleted.
        self.table.take();
        if *self.obsolete.get_mut()
            && let Some(purger) = &self.purger
        {
            purger(self.meta.id, FileClass::Sstable);
        }
    }
}

impl<T> fmt::Debug for LevelFile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.meta.largest_exclusive {
            ')'
        } else {
            ']'
        };
        write!(
            f,
            "{}[{:?}, {:?}{end} {}..={}",
            self.meta.id,
            self.meta.smallest.escape_ascii().to_string(),
            self.meta.largest.escape_ascii().to_string(),
            self.meta.min_seqno,
            self.meta.max_seqno
        )
    }
}

/// A blob file that some version has. `B` is what reads it.
pub struct BlobFile<B = ()> {
    /// What the manifest knows about it.
    pub meta: BlobMeta,
    reader: OnceLock<B>,
    obsolete: AtomicBool,
    purger: Option<Purger>,
}

impl<B> BlobFile<B> {
    /// A file that `purger` is told of when it is obsolete and no longer used.
    pub fn new(meta: BlobMeta, purger: Option<Purger>) -> Self {
        Self {
            meta,
            reader: OnceLock::new(),
            obsolete: AtomicBool::new(false),
            purger,
        }
    }

    /// Its reader; opens it with `open` the first time. Two threads that meet here may both open
    /// it; one result is dropped.
    pub fn reader_or_open<E>(&self, open: impl FnOnce(&BlobMeta) -> Result<B, E>) -> Result<&B, E> {
        if let Some(reader) = self.reader.get() {
            return Ok(reader);
        }
        let reader = open(&self.meta)?;
        Ok(self.reader.get_or_init(|| reader))
    }

    /// Has the file deleted when its last user is gone.
    pub fn mark_obsolete(&self) {
        self.obsolete.store(true, Release);
    }
}

impl<B> Drop for BlobFile<B> {
    fn drop(&mut self) {
        self.reader.take();
        if *self.obsolete.get_mut()
            && let Some(purger) = &self.purger
        {
            purger(self.meta.id, FileClass::Blob);
        }
    }
}

impl<B> fmt::Debug for BlobFile<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.meta.fmt(f)
    }
}

/// A blob file as one version sees it.
pub struct BlobState<B = ()> {
    /// The file.
    pub file: Arc<BlobFile<B>>,
    /// Number of SSTables of the version that refer to it.
    pub table_count: u64,
    /// Number of values that SSTables of the version refer to.
    pub live_count: u64,
    /// Bytes of those values.
    pub live_bytes: u64,
}

impl<B> BlobState<B> {
    fn new(file: Arc<BlobFile<B>>) -> Self {
        Self {
            file,
            table_count: 0,
            live_count: 0,
            live_bytes: 0,
        }
    }

    /// Bytes of values that no SSTable refers to.
    pub fn garbage_bytes(&self) -> u64 {
        self.file.meta.value_bytes.saturating_sub(self.live_bytes)
    }

    /// The share of the value bytes that is garbage, 0 to 1.
    pub fn garbage_ratio(&self) -> f64 {
        let total = self.file.meta.value_bytes;
        if total == 0 {
            0.0
        } else {
            self.garbage_bytes() as f64 / total as f64
        }
    }
}

impl<B> Clone for BlobState<B> {
    fn clone(&self) -> Self {
        Self {
            file: self.file.clone(),
            ..*self
        }
    }
}

impl<B> fmt::Debug for BlobState<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} live {}/{}",
            self.file, self.live_count, self.live_bytes
        )
    }
}

/// The files of one level, and an index of their ends for searching.
///
/// All keys of the level's bounds share `common` bytes; `ends` holds for every file the eight bytes
/// of its largest key after those, as an integer that orders like the bytes, and `starts` those of its
/// smallest. A search touches these dense arrays and only among equal prefixes the keys themselves.
pub struct Level<T = ()> {
    files: Vec<Arc<LevelFile<T>>>,
    common: Box<[u8]>,
    ends: Box<[u64]>,
    starts: Box<[u64]>,
    bytes: u64,
    has_range_tombstones: bool,
    sorted: bool,
}

/// Among so many files and fewer, those that end before a key are counted: without branches that the
/// processor would guess wrong, that is faster than halving.
const COUNTED: usize = 32;

/// Orders two strings of the same length, which are usually equal and not long.
///
/// Not by a comparison of slices as long as it can be helped: the C library's reads 32 bytes with a mask,
/// and where an empty slice's pointer leads nowhere, an EPYC took some 80 ns to find that nothing of them
/// was wanted.
#[inline]
fn order_of_heads(a: &[u8], b: &[u8]) -> Ordering {
    match (a.last_chunk::<8>(), b.last_chunk::<8>()) {
        (Some(end_a), Some(end_b)) if a.len() <= 16 => {
            let same_end = u64::from_le_bytes(*end_a) == u64::from_le_bytes(*end_b);
            if same_end && window(a, 0) == window(b, 0) {
                return Ordering::Equal;
            }
            a.cmp(b)
        }
        (None, None) => window(a, 0).cmp(&window(b, 0)),
        _ => a.cmp(b),
    }
}

impl<T> Level<T> {
    /// Puts the files into the order of level `number`: L0 newest first, others by key.
    fn new(number: usize, mut files: Vec<Arc<LevelFile<T>>>) -> Self {
        let bytes = files
            .iter()
            .map(|f| f.meta.file_bytes)
            .fold(0, u64::saturating_add);
        let has_range_tombstones = files.iter().any(|f| f.meta.range_tombstone_count > 0);
        if number == 0 {
            files.sort_by_key(|file| std::cmp::Reverse((file.meta.max_seqno, file.meta.id)));
            return Self {
                files,
                common: [].into(),
                ends: [].into(),
                starts: [].into(),
                bytes,
                has_range_tombstones,
                sorted: false,
            };
        }
        files.sort_by(|a, b| a.meta.smallest.cmp(&b.meta.smallest));
        let common: Box<[u8]> = match (files.first(), files.last()) {
            (Some(first), Some(last)) => {
                let (a, b) = (&first.meta.smallest, &last.meta.largest);
                let len = a.iter().zip(b.iter()).take_while(|(x, y)| x == y).count();
                a[..len].into()
            }
            _ => [].into(),
        };
        let prefix_of = |key: &[u8]| window(key, common.len());
        let ends = files.iter().map(|f| prefix_of(&f.meta.largest)).collect();
        let starts = files.iter().map(|f| prefix_of(&f.meta.smallest));
        let starts = starts.collect();
        Self {
            files,
            common,
            ends,
            starts,
            bytes,
            has_range_tombstones,
            sorted: true,
        }
    }

    /// The files: L0 newest first, other levels by key.
    #[inline]
    pub fn files(&self) -> &[Arc<LevelFile<T>>] {
        &self.files
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The length of all files on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether any of the files holds range tombstones.
    #[inline]
    pub fn has_range_tombstones(&self) -> bool {
        self.has_range_tombstones
    }

    /// The position of the first file that does not end before `key`. REQUIRES: not L0.
    #[inline]
    pub fn position(&self, key: &[u8]) -> usize {
        match self.look_up(key) {
            Ok((low, wanted)) => self.among_equal(low, wanted, key),
            Err(outside) => outside,
        }
    }

    /// How many files end before `key` by their prefixes, and the key's own prefix; or else the
    /// position of a key that does not begin as all others do.
    #[inline]
    fn look_up(&self, key: &[u8]) -> Result<(usize, u64), usize> {
        debug_assert!(self.sorted || self.files.is_empty());
        let head = key.len().min(self.common.len());
        match order_of_heads(&key[..head], &self.common[..head]) {
            Ordering::Less => return Err(0),
            Ordering::Greater => return Err(self.files.len()),
            // A key that ends inside the common bytes is before all of them, or equal to all.
            Ordering::Equal if key.len() < self.common.len() => return Err(0),
            Ordering::Equal => {}
        }
        let wanted = window(key, head);
        let low = if self.ends.len() <= COUNTED {
            self.ends.iter().filter(|&&end| end < wanted).count()
        } else {
            self.ends.partition_point(|&end| end < wanted)
        };
        Ok((low, wanted))
    }

    /// The position of the first file from `low` on that does not end before `key`, whose prefix is
    /// `wanted`; no file from `low` on ends before it by its prefix.
    #[inline]
    fn among_equal(&self, low: usize, wanted: u64, key: &[u8]) -> usize {
        if self.ends.get(low) != Some(&wanted) {
            return low;
        }
        let equal = self.ends[low..].partition_point(|&end| end == wanted);
        low + self.files[low..low + equal].partition_point(|f| f.meta.ends_before(key))
    }

    /// The one file whose range has `key`. REQUIRES: not L0.
    #[inline]
    pub fn find(&self, key: &[u8]) -> Option<&Arc<LevelFile<T>>> {
        if self.files.is_empty() {
            return None;
        }
        let (low, wanted) = match self.look_up(key) {
            Ok(found) => found,
            Err(outside) => {
                let file = self.files.get(outside)?;
                return (file.meta.smallest[..] <= *key).then_some(file);
            }
        };
        let at = self.among_equal(low, wanted, key);
        let file = self.files.get(at)?;
        let starts = match self.starts[at].cmp(&wanted) {
            Ordering::Equal => file.meta.smallest[..] <= *key,
            order => order.is_lt(),
        };
        starts.then_some(file)
    }

    /// The positions of the files that overlap `range`. REQUIRES: not L0.
    pub fn overlapping(&self, range: &KeyRange) -> Range<usize> {
        let start = self.position(&range.start);
        let count = self.files[start..].partition_point(|f| !range.ends_before(&f.meta.smallest));
        start..start + count
    }
}

impl<T> fmt::Debug for Level<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.files).finish()
    }
}

/// One namespace's tree at one moment. See the module's page.
pub struct Version<T = (), B = ()> {
    levels: [Arc<Level<T>>; LEVELS],
    blobs: Arc<[BlobState<B>]>,
}

impl<T, B> Version<T, B> {
    /// A tree without files.
    pub fn empty() -> Self {
        Self {
            levels: std::array::from_fn(|number| Arc::new(Level::new(number, Vec::new()))),
            blobs: Arc::new([]),
        }
    }

    /// The levels, L0 first.
    #[inline]
    pub fn levels(&self) -> &[Arc<Level<T>>; LEVELS] {
        &self.levels
    }

    /// The files of level `number`: L0 newest first, other levels by key.
    #[inline]
    pub fn files(&self, number: usize) -> &[Arc<LevelFile<T>>] {
        &self.levels[number].files
    }

    /// All SSTables, with their levels.
    pub fn all_files(&self) -> impl Iterator<Item = (usize, &Arc<LevelFile<T>>)> {
        self.levels
            .iter()
            .enumerate()
            .flat_map(|(n, level)| level.files.iter().map(move |f| (n, f)))
    }

    /// The blob files, by ascending number.
    pub fn blobs(&self) -> &[BlobState<B>] {
        &self.blobs
    }

    /// The blob file with this number.
    pub fn blob(&self, id: FileId) -> Option<&Arc<BlobFile<B>>> {
        let at = self
            .blobs
            .binary_search_by_key(&id, |blob| blob.file.meta.id)
            .ok()?;
        Some(&self.blobs[at].file)
    }

    /// The files of a level that overlap `range`, in the level's order.
    pub fn overlapping(&self, number: usize, range: &KeyRange) -> Vec<Arc<LevelFile<T>>> {
        let level = &self.levels[number];
        if number == 0 {
            level
                .files
                .iter()
                .filter(|f| range.overlaps_file(&f.meta))
                .cloned()
                .collect()
        } else {
            level.files[level.overlapping(range)].to_vec()
        }
    }

    /// Bytes of all SSTables on disk.
    pub fn table_bytes(&self) -> u64 {
        self.levels
            .iter()
            .map(|level| level.bytes)
            .fold(0, u64::saturating_add)
    }

    /// Bytes of all blob files on disk.
    pub fn blob_bytes(&self) -> u64 {
        self.blobs
            .iter()
            .map(|b| b.file.meta.file_bytes)
            .fold(0, u64::saturating_add)
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.is_empty())
    }

    /// Checks the invariants of the module's page that the metadata shows.
    pub fn check(&self) -> Result<(), String> {
        let mut ids = std::collections::BTreeSet::new();
        for (number, file) in self.all_files() {
            file.meta.check()?;
            if !ids.insert(file.meta.id) {
                return Err(format!(
                    "SSTable {} is in the tree twice (L{number})",
                    file.meta.id
                ));
            }
        }
        for number in 0..LEVELS {
            self.check_level(number)?;
        }
        Ok(())
    }

    fn check_level(&self, number: usize) -> Result<(), String> {
        let files = &self.levels[number].files;
        let clash = |a: &LevelFile<T>, b: &LevelFile<T>| {
            Err(format!("L{number}: SSTables {a:?} and {b:?} overlap"))
        };
        if number == 0 {
            for (i, newer) in files.iter().enumerate() {
                for older in &files[i + 1..] {
                    if !newer.meta.is_newer_than(&older.meta) && newer.meta.overlaps(&older.meta) {
                        return clash(newer, older);
                    }
                }
            }
            return Ok(());
        }
        for pair in files.windows(2) {
            if !pair[0].meta.ends_before(&pair[1].meta.smallest) {
                return clash(&pair[0], &pair[1]);
            }
        }
        Ok(())
    }
}

impl<T, B> fmt::Debug for Version<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (number, level) in self
            .levels
            .iter()
            .enumerate()
            .filter(|(_, l)| !l.is_empty())
        {
            map.entry(&format_args!("L{number}"), level);
        }
        map.entry(&"blobs", &self.blobs).finish()
    }
}

/// Makes the next version out of one: files are removed and added one by one, then
/// [`VersionBuilder::finish`] sorts and checks. Levels that nobody touches are shared.
pub struct VersionBuilder<T = (), B = ()> {
    base: Arc<Version<T, B>>,
    levels: [Option<BTreeMap<FileId, Arc<LevelFile<T>>>>; LEVELS],
    blobs: Option<BTreeMap<FileId, BlobState<B>>>,
    removed: BTreeMap<FileId, Arc<LevelFile<T>>>,
    purger: Option<Purger>,
}

/// What [`VersionBuilder::finish`] made.
pub struct Built<T = (), B = ()> {
    /// The next version.
    pub version: Version<T, B>,
    /// The SSTables that it no longer has.
    pub removed: Vec<Arc<LevelFile<T>>>,
    /// The blob files that it no longer has.
    pub removed_blobs: Vec<Arc<BlobFile<B>>>,
}

impl<T, B> VersionBuilder<T, B> {
    /// Starts from `base`; files that it makes have the given purger.
    pub fn new(base: Arc<Version<T, B>>, purger: Option<Purger>) -> Self {
        Self {
            base,
            levels: std::array::from_fn(|_| None),
            blobs: None,
            removed: BTreeMap::new(),
            purger,
        }
    }

    fn level(&mut self, number: usize) -> &mut BTreeMap<FileId, Arc<LevelFile<T>>> {
        self.levels[number].get_or_insert_with(|| {
            self.base.levels[number]
                .files
                .iter()
                .map(|f| (f.meta.id, f.clone()))
                .collect()
        })
    }

    fn blobs(&mut self) -> &mut BTreeMap<FileId, BlobState<B>> {
        self.blobs.get_or_insert_with(|| {
            self.base
                .blobs
                .iter()
                .map(|b| (b.file.meta.id, b.clone()))
                .collect()
        })
    }

    /// Takes a file out of a level.
    pub fn remove_file(&mut self, number: usize, id: FileId) -> Result<(), String> {
        if number >= LEVELS {
            return Err(format!("there is no level {number}"));
        }
        match self.level(number).remove(&id) {
            Some(file) => {
                self.removed.insert(id, file);
                Ok(())
            }
            None => Err(format!(
                "SSTable {id} is not in L{number}, so it cannot be removed"
            )),
        }
    }

    /// Puts a file into a level. A file that was removed before, in the same build, moves.
    pub fn add_file(&mut self, number: usize, meta: FileMeta) -> Result<(), String> {
        if number >= LEVELS {
            return Err(format!("there is no level {number}"));
        }
        meta.check()?;
        let id = meta.id;
        let there = |n: usize| match &self.levels[n] {
            Some(files) => files.contains_key(&id),
            None => self.base.levels[n].files.iter().any(|f| f.meta.id == id),
        };
        if let Some(n) = (0..LEVELS).find(|&n| there(n)) {
            return Err(format!("SSTable {id} is in L{n} already"));
        }
        let file = match self.removed.remove(&id) {
            Some(file) if file.meta == meta => file,
            Some(_) => return Err(format!("SSTable {id} moves and changes")),
            None => Arc::new(LevelFile::new(meta, self.purger.clone())),
        };
        self.level(number).insert(id, file);
        Ok(())
    }

    /// Adds a blob file.
    pub fn add_blob(&mut self, meta: BlobMeta) -> Result<(), String> {
        let (id, purger) = (meta.id, self.purger.clone());
        let blobs = self.blobs();
        if blobs.contains_key(&id) {
            return Err(format!("blob file {id} is there already"));
        }
        blobs.insert(id, BlobState::new(Arc::new(BlobFile::new(meta, purger))));
        Ok(())
    }

    /// Sorts, counts blob references, checks. The error says what is inconsistent.
    pub fn finish(mut self) -> Result<Built<T, B>, String> {
        let mut levels = self.base.levels.clone();
        let touched: Vec<usize> = (0..LEVELS).filter(|&n| self.levels[n].is_some()).collect();
        for &number in &touched {
            let files = self.levels[number].take().unwrap_or_default();
            levels[number] = Arc::new(Level::new(number, files.into_values().collect()));
        }
        let mut version = Version {
            levels,
            blobs: self.base.blobs.clone(),
        };
        for number in touched {
            version.check_level(number)?;
        }
        let removed_blobs = self.finish_blobs(&mut version)?;
        Ok(Built {
            version,
            removed: self.removed.into_values().collect(),
            removed_blobs,
        })
    }

    fn finish_blobs(
        &mut self,
        version: &mut Version<T, B>,
    ) -> Result<Vec<Arc<BlobFile<B>>>, String> {
        if self.blobs.is_none() && self.base.blobs.is_empty() {
            if let Some((_, file)) = version
                .all_files()
                .find(|(_, file)| !file.meta.blob_refs.is_empty())
            {
                return Err(format!(
                    "SSTable {} refers to a missing blob file",
                    file.meta.id
                ));
            }
            return Ok(Vec::new());
        }
        let mut blobs = std::mem::take(self.blobs());
        for blob in blobs.values_mut() {
            *blob = BlobState::new(blob.file.clone());
        }
        for (_, file) in version.all_files() {
            for r in &file.meta.blob_refs {
                let Some(blob) = blobs.get_mut(&r.file) else {
                    let id = file.meta.id;
                    return Err(format!(
                        "SSTable {id} refers to missing blob file {}",
                        r.file
                    ));
                };
                blob.table_count += 1;
                blob.live_count = blob.live_count.saturating_add(r.count);
                blob.live_bytes = blob.live_bytes.saturating_add(r.bytes);
            }
        }
        let (live, dead): (Vec<_>, Vec<_>) =
            blobs.into_values().partition(|blob| blob.table_count > 0);
        version.blobs = live.into();
        Ok(dead.into_iter().map(|blob| blob.file).collect())
    }
}

impl<T, B> fmt::Debug for VersionBuilder<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VersionBuilder")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl<T, B> fmt::Debug for Built<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Built")
            .field("version", &self.version)
            .field("removed", &self.removed)
            .field("removed_blobs", &self.removed_blobs)
            .finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// A file without tombstones whose keys are `smallest..=largest`.
    pub(crate) fn meta(id: u64, smallest: &str, largest: &str, seqnos: (u64, u64)) -> FileMeta {
        FileMeta {
            id: FileId(id),
            file_bytes: 1000,
            raw_bytes: 2000,
            entry_count: 10,
            tombstone_count: 0,
            range_tombstone_count: 0,
            smallest: smallest.as_bytes().into(),
            largest: largest.as_bytes().into(),
            largest_exclusive: false,
            min_seqno: SeqNo(seqnos.0),
            max_seqno: SeqNo(seqnos.1),
            blob_refs: Vec::new(),
        }
    }

    pub(crate) fn build(files: &[(usize, FileMeta)]) -> Result<Version, String> {
        let mut builder = VersionBuilder::new(Arc::new(Version::empty()), None);
        for (level, meta) in files {
            builder.add_file(*level, meta.clone())?;
        }
        let version = builder.finish()?.version;
        version.check()?;
        Ok(version)
    }

    #[test]
    fn l0_is_newest_first_and_others_by_key() {
        let version = build(&[
            (0, meta(1, "a", "z", (1, 5))),
            (0, meta(2, "a", "z", (6, 9))),
            (2, meta(4, "m", "p", (0, 0))),
            (2, meta(3, "a", "c", (0, 0))),
        ])
        .unwrap();
        let ids = |n| {
            version
                .files(n)
                .iter()
                .map(|f| f.meta.id.0)
                .collect::<Vec<_>>()
        };
        assert_eq!((ids(0), ids(2)), (vec![2, 1], vec![3, 4]));
    }

    #[test]
    fn inconsistencies_are_named() {
        let overlap = [
            (1, meta(1, "a", "c", (1, 1))),
            (1, meta(2, "c", "d", (1, 1))),
        ];
        assert!(build(&overlap).unwrap_err().contains("overlap"));
        let mut exclusive = overlap.clone();
        exclusive[0].1.largest_exclusive = true;
        build(&exclusive).unwrap();
        let l0 = [
            (0, meta(1, "a", "c", (1, 5))),
            (0, meta(2, "b", "d", (5, 9))),
        ];
        assert!(build(&l0).unwrap_err().contains("overlap"));
        let twice = [
            (1, meta(1, "a", "c", (1, 1))),
            (2, meta(1, "a", "c", (1, 1))),
        ];
        assert!(build(&twice).unwrap_err().contains("already"));
        assert!(build(&[(7, meta(1, "a", "b", (1, 1)))]).is_err());
        assert!(build(&[(1, meta(1, "b", "a", (1, 1)))]).is_err());
        assert!(build(&[(1, meta(1, "a", "b", (2, 1)))]).is_err());
        let mut refers = meta(1, "a", "b", (1, 1));
        refers.blob_refs.push(BlobRef {
            file: FileId(9),
            count: 1,
            bytes: 1,
        });
        assert!(build(&[(1, refers)]).unwrap_err().contains("missing blob"));
        let mut builder = VersionBuilder::<(), ()>::new(Arc::new(Version::empty()), None);
        assert!(
            builder
                .remove_file(1, FileId(3))
                .unwrap_err()
                .contains("not in L1")
        );
    }

    #[test]
    fn a_removed_file_is_purged_after_its_last_user() {
        let purged = Arc::new(Mutex::new(Vec::new()));
        let seen = purged.clone();
        let purger: Purger = Arc::new(move |id, class| seen.lock().unwrap().push((id, class)));
        let mut builder =
            VersionBuilder::<(), ()>::new(Arc::new(Version::empty()), Some(purger.clone()));
        let mut file = meta(1, "a", "b", (1, 1));
        file.blob_refs.push(BlobRef {
            file: FileId(2),
            count: 3,
            bytes: 30,
        });
        builder.add_file(0, file.clone()).unwrap();
        let blob = BlobMeta {
            id: FileId(2),
            file_bytes: 99,
            value_count: 4,
            value_bytes: 40,
        };
        builder.add_blob(blob).unwrap();
        let first = Arc::new(builder.finish().unwrap().version);
        assert_eq!(first.blobs()[0].garbage_bytes(), 10);

        let mut builder = VersionBuilder::new(first.clone(), Some(purger.clone()));
        builder.remove_file(0, FileId(1)).unwrap();
        builder.add_file(3, file).unwrap();
        let moved = builder.finish().unwrap();
        assert!(moved.removed.is_empty() && moved.removed_blobs.is_empty());
        assert!(Arc::ptr_eq(&moved.version.files(3)[0], &first.files(0)[0]));

        let mut builder = VersionBuilder::new(Arc::new(moved.version), Some(purger));
        builder.remove_file(3, FileId(1)).unwrap();
        let built = builder.finish().unwrap();
        built.removed.iter().for_each(|f| f.mark_obsolete());
        built.removed_blobs.iter().for_each(|b| b.mark_obsolete());
        drop(built);
        assert!(
            purged.lock().unwrap().is_empty(),
            "the first version is still held"
        );
        drop(first);
        let mut purged = purged.lock().unwrap().clone();
        purged.sort();
        assert_eq!(
            purged,
            [
                (FileId(1), FileClass::Sstable),
                (FileId(2), FileClass::Blob)
            ]
        );
    }

    proptest! {
        #[test]
        fn search_agrees_with_a_walk(
            bounds in proptest::collection::btree_set("[ab]{0,12}", 0..24),
            common in "[ab]{0,10}",
            exclusive: u32,
            probes in proptest::collection::vec("[ab]{0,24}", 1..20),
        ) {
            let bounds: Vec<String> = bounds.iter().map(|b| format!("{common}{b}")).collect();
            let files: Vec<_> = bounds.chunks_exact(2).enumerate().map(|(i, pair)| {
                let mut m = meta(i as u64 + 1, &pair[0], &pair[1], (1, 1));
                m.largest_exclusive = exclusive >> i & 1 == 1;
                (1, m)
            }).collect();
            let version = build(&files).unwrap();
            let level = &version.levels()[1];
            let mut probes = probes;
            probes.extend(bounds.clone());
            for (i, key) in probes.iter().enumerate() {
                let key = key.as_bytes();
                let want = files.iter().position(|(_, m)| !m.ends_before(key)).unwrap_or(files.len());
                prop_assert_eq!(level.position(key), want);
                let found = level.find(key).map(|f| f.meta.id);
                let want = files.iter().find(|(_, m)| m.covers(key)).map(|(_, m)| m.id);
                prop_assert_eq!(found, want);
                let other = probes[(i * 7 + 3) % probes.len()].as_bytes();
                let range = KeyRange {
                    start: key.min(other).to_vec(),
                    end: Some(key.max(other).to_vec()),
                    end_exclusive: i % 2 == 0 && key != other,
                };
                let found: Vec<_> = version.overlapping(1, &range).iter().map(|f| f.meta.id).collect();
                let want: Vec<_> = files.iter().filter(|(_, m)| range.overlaps_file(m)).map(|(_, m)| m.id).collect();
                prop_assert_eq!(found, want);
            }
        }
    }
}
