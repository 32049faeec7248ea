//! The block cache: decoded blocks of SSTables, shared by all tables of a database.
//!
//! The key is (file, offset of the block in it); file numbers are never used again, so an entry can
//! never be wrong, only useless, and blocks of removed files simply age out. The value is a
//! reference-counted [`Block`], so that what a reader holds outlives its eviction. The weight of an
//! entry is the memory it takes, and the sum of weights stays below the capacity, which may be
//! changed while the cache is in use (the memory budget shifts between memtables and cache).
//!
//! The replacement policy is that of the quick_cache crate (S3-FIFO-like: one long scan does not
//! push out what is used again and again).

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};

use crate::key::FileId;

/// A decoded data block, shared. What is in it and how it is searched is told in `sstable::block`.
#[derive(Clone)]
pub struct Block(Arc<[u8]>);

impl Block {
    /// A copy of what `sstable::block` made of a block.
    pub(crate) fn new(image: &[u8]) -> Self {
        Self(image.into())
    }

    /// What `sstable::block` made of a block.
    #[inline]
    pub(crate) fn image(&self) -> &[u8] {
        &self.0
    }

    /// Memory that it takes, in bytes.
    pub fn weight(&self) -> usize {
        // With the allocation's own share and that of the cache's table.
        self.0.len() + 32 + 64
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.0.len())
    }
}

/// Bytes inside a cached block, which they keep alive.
#[derive(Clone)]
pub struct BlockSlice {
    block: Block,
    start: u32,
    end: u32,
}

impl BlockSlice {
    /// The bytes from `start` to `end` of the image of `block`; they must be inside.
    pub(crate) fn new(block: Block, start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= block.0.len());
        // Blocks are far smaller than 4 GiB (see `sstable::block::MAX_BLOCK_BYTES`).
        Self {
            block,
            start: start as u32,
            end: end as u32,
        }
    }

    /// The same bytes without the first `n` (all of them if it is shorter).
    #[must_use]
    pub fn skip(mut self, n: usize) -> Self {
        self.start = self.end.min(
            self.start
                .saturating_add(u32::try_from(n).unwrap_or(u32::MAX)),
        );
        self
    }
}

impl std::ops::Deref for BlockSlice {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.block.0[self.start as usize..self.end as usize]
    }
}

impl AsRef<[u8]> for BlockSlice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for BlockSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    file: FileId,
    offset: u64,
}

/// Mixes the two numbers of a key by multiplication; their bits need no stronger hash.
#[derive(Clone, Copy, Default)]
struct Mix(u64);

impl BuildHasher for Mix {
    type Hasher = Self;
    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    #[inline]
    fn write_u64(&mut self, n: u64) {
        let product = u128::from(self.0 ^ n ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

#[derive(Clone, Copy)]
struct Weighter;

impl quick_cache::Weighter<Key, Block> for Weighter {
    fn weight(&self, _: &Key, block: &Block) -> u64 {
        block.weight() as u64
    }
}

/// How many pairs of counters there are, so that threads rarely share a cache line.
const STRIPES: usize = 8;

#[derive(Default)]
#[repr(align(64))]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

/// What the cache has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Lookups that found their block.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Reads of data blocks from files, by this cache's users: each may bring several blocks.
    pub reads: u64,
    /// Bytes that these brought, as stored.
    pub read_bytes: u64,
    /// Memory held now.
    pub bytes: u64,
    /// The most memory it may hold.
    pub capacity_bytes: u64,
    /// Blocks held now.
    pub blocks: u64,
}

/// The cache. See the module's page.
pub struct BlockCache {
    cache: Cache<Key, Block, Weighter, Mix, DefaultLifecycle<Key, Block>>,
    counts: [Counts; STRIPES],
}

impl BlockCache {
    /// A cache that holds at most `capacity_bytes`; 0 holds nothing.
    pub fn new(capacity_bytes: u64) -> Self {
        // The estimate of the number of entries sizes tables: blocks are about 5 KiB with their
        // index. It also bounds the number of shards.
        let blocks = (capacity_bytes / (5 << 10)).clamp(64, 1 << 24) as usize;
        let cache = Cache::with(
            blocks,
            capacity_bytes,
            Weighter,
            Mix::default(),
            Default::default(),
        );
        Self {
            cache,
            counts: Default::default(),
        }
    }

    /// The block at `offset` of `file`, if it is here.
    #[inline]
    pub fn get(&self, file: FileId, offset: u64) -> Option<Block> {
        let found = self.cache.get(&Key { file, offset });
        // Any spread will do: one hot block is better counted in one place than all in one.
        let counts = &self.counts[(offset >> 12) as usize % STRIPES];
        let count = if found.is_some() {
            &counts.hits
        } else {
            &counts.misses
        };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps `block` for later, maybe pushing out others.
    pub fn insert(&self, file: FileId, offset: u64, block: Block) {
        self.cache.insert(Key { file, offset }, block);
    }

    /// Whether `bytes` more would push nothing out.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        // Capacity and weight are kept by shard, and never quite even.
        let used = self.cache.weight().saturating_add(bytes as u64);
        used < self.cache.capacity() - self.cache.capacity() / 8
    }

    /// Counts a read of data blocks from a file.
    pub(crate) fn count_read(&self, offset: u64, bytes: usize) {
        let counts = &self.counts[(offset >> 12) as usize % STRIPES];
        counts.reads.fetch_add(1, Ordering::Relaxed);
        counts.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Changes the capacity; a smaller one evicts at once.
    pub fn set_capacity(&self, capacity_bytes: u64) {
        self.cache.set_capacity(capacity_bytes);
    }

    /// Removes everything.
    pub fn clear(&self) {
        self.cache.clear();
    }

    /// Counters and sizes.
    pub fn stats(&self) -> CacheStats {
        let sum = |pick: fn(&Counts) -> &AtomicU64| {
            self.counts
                .iter()
                .map(|c| pick(c).load(Ordering::Relaxed))
                .sum()
        };
        CacheStats {
            hits: sum(|c| &c.hits),
            misses: sum(|c| &c.misses),
            reads: sum(|c| &c.reads),
            read_bytes: sum(|c| &c.read_bytes),
            bytes: self.cache.weight(),
            capacity_bytes: self.cache.capacity(),
            blocks: self.cache.len() as u64,
        }
    }
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockCache({:?})", self.stats())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(len: usize) -> Block {
        Block::new(&vec![7; len])
    }

    #[test]
    fn holds_what_fits_and_counts() {
        let cache = BlockCache::new(1 << 20);
        assert!(cache.get(FileId(1), 0).is_none());
        cache.insert(FileId(1), 0, block(4000));
        cache.insert(FileId(2), 0, block(100));
        assert_eq!(cache.get(FileId(1), 0).map(|b| b.image().len()), Some(4000));
        assert_eq!(cache.get(FileId(2), 0).map(|b| b.image().len()), Some(100));
        assert!(cache.get(FileId(1), 1).is_none());
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.blocks), (2, 2, 2));
        assert!(stats.bytes >= 4100);
        cache.clear();
        assert_eq!(cache.stats().bytes, 0);
    }

    #[test]
    fn the_capacity_is_never_exceeded_and_may_change() {
        let cache = BlockCache::new(1 << 20);
        for i in 0..2000 {
            cache.insert(FileId(i % 7), i * 4096, block(4096));
            assert!(cache.stats().bytes <= 1 << 20);
        }
        let before = cache.stats().bytes;
        assert!(before > 1 << 19);
        cache.set_capacity(1 << 18);
        assert!(cache.stats().bytes <= 1 << 18);
        cache.set_capacity(1 << 20);
        for i in 0..2000 {
            cache.insert(FileId(9), i * 4096, block(4096));
        }
        assert!(cache.stats().bytes > 1 << 19);
    }

    #[test]
    fn nothing_is_kept_without_capacity() {
        let cache = BlockCache::new(0);
        cache.insert(FileId(1), 0, block(10));
        assert!(cache.get(FileId(1), 0).is_none());
    }

    #[test]
    fn a_slice_outlives_eviction_and_skips() {
        let cache = BlockCache::new(1 << 20);
        cache.insert(
            FileId(1),
            0,
            Block::new(b"abcdef"),
        );
        let slice = BlockSlice::new(cache.get(FileId(1), 0).unwrap(), 1, 5);
        cache.clear();
        assert_eq!(&*slice, b"bcde");
        assert_eq!(&*slice.clone().skip(2), b"de");
        assert_eq!(&*slice.skip(9), b"");
    }
}
