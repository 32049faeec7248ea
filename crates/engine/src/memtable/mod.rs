//! The newest entries of one namespace, sorted, in memory, until they are flushed to an SSTable.
//!
//! A [`Memtable`] maps each user key to the list of its versions, newest first. Its parts:
//!
//! 1. `arena`: memory that only grows, in which keys, values and tree nodes lie; it is what
//!    [`Memtable::memory_bytes`] counts and what is freed as a whole.
//! 2. `btree`: the order of the keys; inserts take a short lock, reads take none and never wait.
//! 3. `load`: many entries at once into an empty one, sorted on the way.
//! 4. `pool`: memory of flushed memtables, for the next ones.
//! 5. Here: range tombstones beside the entries, the counters, and the iterator.
//!
//! Readers see every insert that returned before they began (an iterator: before its last seek),
//! and perhaps later ones; which entries are *visible* is decided above by sequence number.
//!
//! Invariants: a (key, sequence number) is there at most once; versions of a key are in descending
//! order of sequence number, in whatever order they arrived; nothing is removed.
//!
//! After a crash nothing of it is left: it is built again from the WAL.

mod arena;
mod btree;
mod load;
mod pool;

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::error::Result;
use crate::iterator::InternalIterator;
use crate::key::{Kind, SeqNo, Trailer};
use crate::memtable::btree::{Cursor, Tree};

pub(crate) use crate::memtable::btree::many::Way;
use crate::range_del::{RangeTombstone, RangeTombstones};

pub use self::load::{Loader, Run};
pub use self::pool::ChunkPool;

/// Keys in a leaf: four cache lines.
const LEAF: usize = 15;
/// Children of an inner node.
const INNER: usize = 63;

/// A sorted table in memory. Inserts and reads may come from any number of threads.
#[derive(Debug)]
pub struct Memtable {
    tree: Arc<Tree<LEAF, INNER>>,
    ranges: Ranges,
}

impl Default for Memtable {
    fn default() -> Self {
        Self::new()
    }
}

impl Memtable {
    /// An empty memtable. Allocates its first few KiB at the first insert.
    pub fn new() -> Self {
        Self::of(None)
    }

    /// The same with the memory of others that were dropped.
    pub fn in_pool(pool: &Arc<ChunkPool>) -> Self {
        Self::of(Some(Arc::clone(pool)))
    }

    fn of(pool: Option<Arc<ChunkPool>>) -> Self {
        Self {
            tree: Arc::new(Tree::new(pool)),
            ranges: Ranges::default(),
        }
    }

    /// Adds a version of a key. Versions may come in any order. If the key has one of the same
    /// sequence number already, that one stays and nothing is added.
    ///
    /// # Panics
    ///
    /// If key or value are 4 GiB or longer.
    pub fn insert(&self, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) {
        self.tree.insert(key, seqno, kind, [value, &[]]);
    }

    /// [`insert`](Self::insert) of a value given in two parts.
    ///
    /// # Panics
    ///
    /// If key or value are 4 GiB or longer.
    pub fn insert_parts(&self, key: &[u8], seqno: SeqNo, kind: Kind, value: [&[u8]; 2]) {
        self.tree.insert(key, seqno, kind, value);
    }

    /// The newest version of a key at or below `snapshot`, a tombstone included. Range tombstones
    /// are not looked at. The time grows with the logarithm of the number of newer versions.
    #[inline]
    pub fn get(&self, key: &[u8], snapshot: SeqNo) -> Option<(Trailer, &[u8])> {
        let entry = self.tree.head(key)?.visible(snapshot)?;
        Some((entry.trailer(), entry.value()))
    }

    /// [`get`](Self::get) for many keys, which is faster than one by one. `found` is told of each, by its
    /// place in `keys`; `ways` is room to work in.
    pub(crate) fn get_many<'a>(
        &'a self,
        keys: &[&[u8]],
        snapshot: SeqNo,
        ways: &mut Vec<Way>,
        mut found: impl FnMut(usize, Option<(Trailer, &'a [u8])>),
    ) {
        self.tree.heads(keys, ways, |at, head| {
            let entry = head.and_then(|head| head.visible(snapshot));
            found(at, entry.map(|entry| (entry.trailer(), entry.value())));
        });
    }

    /// The sequence number of the newest version of a key. Range tombstones are not looked at.
    pub fn latest_seqno(&self, key: &[u8]) -> Option<SeqNo> {
        Some(self.tree.head(key)?.seqno())
    }

    /// Bytes of memory allocated for keys, values and their order, used or not yet used, and those
    /// of range tombstones.
    pub fn memory_bytes(&self) -> usize {
        self.tree.memory_bytes() + self.ranges.bytes()
    }

    /// Number of entries, all versions and tombstones counted, range tombstones not.
    pub fn entry_count(&self) -> usize {
        self.tree.entry_count()
    }

    /// Number of user keys.
    pub fn key_count(&self) -> usize {
        self.tree.key_count()
    }

    /// Number of entries that are tombstones.
    pub fn tombstone_count(&self) -> usize {
        self.tree.tombstone_count()
    }

    /// Whether it has neither entries nor range tombstones.
    pub fn is_empty(&self) -> bool {
        self.entry_count() == 0 && !self.has_range_tombstones()
    }

    /// The smallest sequence number of an entry or range tombstone.
    pub fn min_seqno(&self) -> Option<SeqNo> {
        [self.tree.seqnos(), self.ranges.seqnos()]
            .into_iter()
            .flatten()
            .map(|(min, _)| min)
            .min()
    }

    /// The greatest sequence number of an entry or range tombstone.
    pub fn max_seqno(&self) -> Option<SeqNo> {
        [self.tree.seqnos(), self.ranges.seqnos()]
            .into_iter()
            .flatten()
            .map(|(_, max)| max)
            .max()
    }

    /// An iterator over all entries. It keeps their memory alive.
    pub fn iter(self: &Arc<Self>) -> MemtableIter {
        MemtableIter {
            cursor: Cursor::new(Arc::clone(&self.tree)),
        }
    }

    /// Adds a range tombstone: entries of `[start, end)` with smaller sequence numbers are deleted.
    /// An empty range is ignored.
    pub fn add_range_tombstone(&self, start: &[u8], end: &[u8], seqno: SeqNo) {
        if start < end {
            let (start, end) = (start.to_vec(), end.to_vec());
            self.ranges.add(RangeTombstone { start, end, seqno });
        }
    }

    /// Whether it has range tombstones: one load. Ask this first.
    #[inline]
    pub fn has_range_tombstones(&self) -> bool {
        self.ranges.any()
    }

    /// The range tombstones. The first call after one was added fragments them anew.
    pub fn range_tombstones(&self) -> Arc<RangeTombstones> {
        self.ranges.get()
    }
}

/// The range tombstones as they came, and as a fragmented set that is made when it is asked for.
#[derive(Debug, Default)]
struct Ranges {
    /// Written under the lock of `list`.
    count: std::sync::atomic::AtomicUsize,
    bytes: std::sync::atomic::AtomicUsize,
    list: parking_lot::Mutex<Vec<RangeTombstone>>,
    fragmented: ArcSwap<Fragmented>,
}

#[derive(Debug, Default)]
struct Fragmented {
    /// How many of the list it has.
    count: usize,
    set: Arc<RangeTombstones>,
}

impl Ranges {
    fn any(&self) -> bool {
        self.count.load(std::sync::atomic::Ordering::Acquire) > 0
    }

    fn bytes(&self) -> usize {
        self.bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn add(&self, tombstone: RangeTombstone) {
        let bytes = tombstone.start.len() + tombstone.end.len() + size_of::<RangeTombstone>();
        let mut list = self.list.lock();
        list.push(tombstone);
        // Twice: the fragmented set has copies of the bounds.
        self.bytes
            .fetch_add(2 * bytes, std::sync::atomic::Ordering::Relaxed);
        self.count
            .store(list.len(), std::sync::atomic::Ordering::Release);
    }

    fn get(&self) -> Arc<RangeTombstones> {
        let count = self.count.load(std::sync::atomic::Ordering::Acquire);
        let fragmented = self.fragmented.load();
        if fragmented.count >= count {
            return Arc::clone(&fragmented.set);
        }
        let list = self.list.lock();
        // Another thread may have done it while this one waited for the lock.
        let fragmented = self.fragmented.load();
        if fragmented.count == list.len() {
            return Arc::clone(&fragmented.set);
        }
        let set = Arc::new(RangeTombstones::from_unfragmented(list.clone()));
        let new = Fragmented {
            count: list.len(),
            set: Arc::clone(&set),
        };
        self.fragmented.store(Arc::new(new));
        set
    }

    fn seqnos(&self) -> Option<(SeqNo, SeqNo)> {
        if !self.any() {
            return None;
        }
        let list = self.list.lock();
        let seqnos = || list.iter().map(|tombstone| tombstone.seqno);
        Some((seqnos().min()?, seqnos().max()?))
    }
}

/// Walks the entries of a memtable in both directions. Its moves do not fail.
#[derive(Debug)]
pub struct MemtableIter {
    cursor: Cursor<LEAF, INNER>,
}

impl MemtableIter {
    /// To the newest entry of the user key before the current one. REQUIRES: valid. The way
    /// backwards for those who look for visible versions: unlike
    /// [`prev`](InternalIterator::prev) it does not visit all versions.
    pub fn prev_key(&mut self) {
        self.cursor.prev_key();
    }

    /// To the newest version at or below `snapshot` among the current entry and the older ones of
    /// its key; false, without a move, if there is none. REQUIRES: valid. Logarithmic in the
    /// number of versions passed over.
    pub fn seek_version(&mut self, snapshot: SeqNo) -> bool {
        self.cursor.seek_version(snapshot)
    }
}

impl InternalIterator for MemtableIter {
    #[inline]
    fn valid(&self) -> bool {
        self.cursor.entry().is_some()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.cursor.seek_to_first();
        Ok(())
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.cursor.seek_to_last();
        Ok(())
    }
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.cursor.seek(key);
        Ok(())
    }
    fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        self.cursor.seek_before(key);
        Ok(())
    }
    #[inline]
    fn next(&mut self) -> Result<()> {
        self.cursor.next();
        Ok(())
    }
    #[inline]
    fn prev(&mut self) -> Result<()> {
        self.cursor.prev();
        Ok(())
    }
    #[inline]
    fn key(&self) -> &[u8] {
        self.cursor.entry().map_or(&[], |entry| entry.key())
    }
    #[inline]
    fn trailer(&self) -> Trailer {
        self.cursor
            .entry()
            .map_or(Trailer(0), |entry| entry.trailer())
    }
    #[inline]
    fn value(&self) -> &[u8] {
        self.cursor.entry().map_or(&[], |entry| entry.value())
    }
    #[inline]
    fn next_key(&mut self) -> Result<()> {
        self.cursor.next_key();
        Ok(())
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
