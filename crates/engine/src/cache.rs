//! The block cache: decoded blocks of SSTables, shared by all tables of a database.
//!
//! The key is (file, offset of the block in it); file numbers are never used again, so an entry can
//! never be wrong, only useless, and blocks of removed files simply age out. The value is a
//! reference-counted [`Block`], so that what a reader holds outlives its eviction. The weight of an
//! entry is the memory it takes, and the sum of weights stays below the capacity, which may be
//! changed while the cache is in use (the memory budget shifts between memtables and cache).
//!
//! # How it works
//!
//! Keys are spread over shards, each behind a lock of its own with an equal part of the capacity. A
//! hit takes the lock for reading, probes a table of small integers (linear probing), clones the
//! block and notes the use in a counter of two bits. The entries of a shard wait in a queue, in the
//! order in which they came; at its end one that was used gets another round, others are evicted.
//!
//! *Hints.* Whoever asks again and again for the same blocks keeps a [`Hint`] for each: the slot in
//! which it was, or that it is not here. It saves the probe, which is a wait for memory, and a block
//! that is not here costs no wait for the index. A hint may be out of date, never wrong: what
//! is in the slot says which block it is.
//!
//! *Admission.* As long as there is room everything is kept. Then only what is read for the second
//! time within about as many misses as there are entries: a block that was not found leaves a
//! fingerprint among the *ghosts*, a table in which newer ones overwrite older ones, and is kept when
//! it comes again (the ghost queue of Johnson and Shasha, *2Q*, VLDB 1994, without the first queue).
//! So a scan, or reads all over a data set far larger than the cache, push out nothing that is used
//! again and again; and the miss of a block that would not be used again costs no allocation, no
//! eviction and no write to memory that is not in the processor's caches.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};

use crate::key::FileId;
use crate::prefetch::{prefetch_lines, prefetch_span};

/// Memory that a block takes beside its bytes: the allocation's own, and its share of the tables.
const WEIGHT_BESIDE: usize = 32 + 64;

/// So much of the end of a block is fetched ahead: the index that is searched first lies there, eight
/// bytes for each entry.
const INDEX_BYTES: usize = 256;

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

    /// Has the memory fetched that a user of the block reads first.
    #[inline]
    fn prefetch(&self) {
        let image = self.image();
        // The reference counts lie before the image.
        prefetch_span(image.as_ptr().wrapping_sub(16), 64);
        let index = image.len().saturating_sub(INDEX_BYTES);
        prefetch_span(image.as_ptr().wrapping_add(index), INDEX_BYTES);
    }

    /// Memory that it takes, in bytes.
    pub fn weight(&self) -> usize {
        self.0.len() + WEIGHT_BESIDE
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

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    file: FileId,
    offset: u64,
}

impl Key {
    /// Mixes the two numbers by multiplication; their bits need no stronger hash.
    #[inline]
    fn hash(self) -> u64 {
        let mix = |state: u64, n: u64| {
            let product =
                u128::from(state ^ n ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
            product as u64 ^ (product >> 64) as u64
        };
        mix(mix(0, self.file.0), self.offset)
    }
}

/// Where one block is in the cache, kept by the table whose block it is. It is changed only under the
/// lock of the block's shard.
#[derive(Debug, Default)]
pub struct Hint(AtomicU16);

/// What a [`Hint`] says, when it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hinted {
    /// Nothing: the shard's index knows.
    Unknown,
    /// It was in this slot.
    Slot(usize),
    /// It is not here, unless somebody with another hint for it has put it here.
    Absent,
}

impl Hint {
    /// The default.
    const UNKNOWN: u16 = 0;
    const ABSENT: u16 = u16::MAX;

    #[inline]
    fn read(&self) -> Hinted {
        match self.0.load(Ordering::Relaxed) {
            Self::UNKNOWN => Hinted::Unknown,
            Self::ABSENT => Hinted::Absent,
            slot => Hinted::Slot(usize::from(slot - 1)),
        }
    }

    /// Notes where the block is. A slot whose number is too great for it is not remembered.
    #[inline]
    fn note(&self, slot: Option<usize>) {
        let new = match slot {
            None => Self::ABSENT,
            Some(slot) => match u16::try_from(slot + 1) {
                Ok(number) if number != Self::ABSENT => number,
                _ => Self::UNKNOWN,
            },
        };
        // Written only when it changes: readers on all cores share this line.
        if self.0.load(Ordering::Relaxed) != new {
            self.0.store(new, Ordering::Relaxed);
        }
    }
}

/// An entry of a shard, or a free place for one.
struct Slot {
    key: Key,
    /// `None` where the place is free.
    block: Option<Block>,
    /// The part of the hash that the index holds.
    tag: u32,
    /// Uses since it was inserted or last got another round, at most [`MAX_USES`].
    uses: AtomicU8,
}

/// More uses are not told apart.
const MAX_USES: u8 = 3;
/// Ghosts that share a row.
const GHOST_ROW: usize = 4;
/// A place in the index without an entry.
const FREE: u64 = 0;

/// See the module's page.
struct Shard {
    capacity: u64,
    /// The weight of all entries.
    weight: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Where the slots are: (tag, number of the slot + 1), at the first free place from the tag's
    /// own on. Its length is a power of two, and at most three quarters are taken.
    index: Vec<u64>,
    /// The slots of all entries, the next to be judged first.
    queue: VecDeque<u32>,
    /// Tags of what was not found and not kept, the newest of each row first; the row is told by the
    /// tag.
    ghosts: Vec<[AtomicU32; GHOST_ROW]>,
}

impl Shard {
    fn new(capacity: u64) -> Self {
        Self {
            capacity,
            weight: 0,
            slots: Vec::new(),
            free: Vec::new(),
            index: vec![FREE; 64],
            queue: VecDeque::new(),
            ghosts: no_ghosts(64),
        }
    }

    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[inline]
    fn mask(&self) -> usize {
        self.index.len() - 1
    }

    /// The slots with a tag, in the order in which they are probed.
    #[inline]
    fn probe(&self, tag: u32) -> impl Iterator<Item = usize> {
        let mask = self.mask();
        let mut place = tag as usize & mask;
        std::iter::from_fn(move || {
            loop {
                let entry = self.index[place];
                if entry == FREE {
                    return None;
                }
                place = (place + 1) & mask;
                if (entry >> 32) as u32 == tag {
                    return Some((entry as u32 - 1) as usize);
                }
            }
        })
    }

    /// The slot of a key.
    #[inline]
    fn find(&self, key: Key, tag: u32) -> Option<usize> {
        self.probe(tag).find(|&slot| self.slots[slot].key == key)
    }

    /// The slot of a key, for one that has a guess which it is; without one it is probed for, unless
    /// the hint says that this is in vain.
    #[inline]
    fn confirm(&self, guess: Option<usize>, key: Key, tag: u32, hint: &Hint) -> Option<usize> {
        let guess = guess.filter(|&slot| {
            let slot = self.slots.get(slot);
            slot.is_some_and(|slot| slot.key == key && slot.block.is_some())
        });
        let slot = match guess {
            Some(slot) => Some(slot),
            None if hint.read() == Hinted::Absent => return None,
            None => self.find(key, tag),
        };
        hint.note(slot);
        slot
    }

    #[inline]
    fn get(&self, key: Key, tag: u32, hint: &Hint) -> Option<Block> {
        let guess = match hint.read() {
            Hinted::Slot(slot) => Some(slot),
            Hinted::Unknown | Hinted::Absent => None,
        };
        let Some(slot) = self.confirm(guess, key, tag, hint) else {
            self.prefetch_admission(tag);
            return None;
        };
        if let Some(block) = &self.slots[slot].block {
            block.prefetch();
        }
        self.take(slot)
    }

    /// Has the memory fetched that [`admits`](Self::admits) reads next of a block that is not here: it
    /// is read from its file meanwhile.
    #[inline]
    fn prefetch_admission(&self, tag: u32) {
        prefetch_lines(self.ghosts_of(tag), 1);
        if let Some(&slot) = self.queue.front() {
            self.prefetch_slot(slot as usize);
        }
    }

    /// Has the memory of a slot fetched, if there is that slot.
    #[inline]
    fn prefetch_slot(&self, slot: usize) {
        if let Some(slot) = self.slots.get(slot) {
            // It may lie across two lines.
            prefetch_lines(&slot.key, 1);
            prefetch_lines(&slot.block, 1);
        }
    }

    /// Has the memory fetched that an insertion with this tag will touch, and of the block that is likely
    /// evicted for it.
    #[inline]
    fn prefetch_insertion(&self, tag: u32) {
        prefetch_lines(&self.index[tag as usize & self.mask()], 1);
        let front = self.queue.front().map(|&slot| &self.slots[slot as usize]);
        if let Some(slot) = front
            && let Some(block) = &slot.block
        {
            prefetch_lines(&self.index[slot.tag as usize & self.mask()], 1);
            // Its counts, and what the allocator has behind it.
            let image = block.image();
            prefetch_span(image.as_ptr().wrapping_sub(16), 1);
            prefetch_span(image.as_ptr().wrapping_add(image.len() + 8), 1);
        }
    }

    /// The block of a slot, whose use is noted.
    #[inline]
    fn take(&self, slot: usize) -> Option<Block> {
        let slot = &self.slots[slot];
        let uses = slot.uses.load(Ordering::Relaxed);
        // Written only when it changes: readers on all cores share this line.
        if uses < MAX_USES {
            slot.uses.store(uses + 1, Ordering::Relaxed);
        }
        slot.block.clone()
    }

    fn index_insert(&mut self, tag: u32, slot: u32) {
        let mask = self.mask();
        let mut place = tag as usize & mask;
        while self.index[place] != FREE {
            place = (place + 1) & mask;
        }
        self.index[place] = u64::from(tag) << 32 | u64::from(slot + 1);
    }

    /// Takes the entry of a slot out of the index, and moves those behind it up, so that no probe
    /// ends before them.
    fn index_remove(&mut self, tag: u32, slot: u32) {
        let mask = self.mask();
        let wanted = u64::from(tag) << 32 | u64::from(slot + 1);
        let mut hole = tag as usize & mask;
        while self.index[hole] != wanted {
            if self.index[hole] == FREE {
                debug_assert!(false, "a slot is not in the index");
                return;
            }
            hole = (hole + 1) & mask;
        }
        let mut place = hole;
        loop {
            place = (place + 1) & mask;
            let entry = self.index[place];
            if entry == FREE {
                break;
            }
            let home = (entry >> 32) as usize & mask;
            // It may move to the hole unless its home lies behind the hole.
            if place.wrapping_sub(home) & mask >= place.wrapping_sub(hole) & mask {
                self.index[hole] = entry;
                hole = place;
            }
        }
        self.index[hole] = FREE;
    }

    fn grow_index(&mut self) {
        let len = 2 * self.index.len();
        let old = std::mem::replace(&mut self.index, vec![FREE; len]);
        for entry in old.into_iter().filter(|&entry| entry != FREE) {
            self.index_insert((entry >> 32) as u32, entry as u32 - 1);
        }
        // As many as entries and more, which lie in rows of a few: some are lost early.
        self.ghosts = no_ghosts(len);
    }

    /// Puts a block in; returns its slot, unless it does not fit. What had to go is appended to
    /// `evicted`, to be dropped without the lock.
    fn insert(
        &mut self,
        key: Key,
        tag: u32,
        block: Block,
        evicted: &mut Vec<Block>,
    ) -> Option<usize> {
        let weight = block.weight() as u64;
        if weight > self.capacity {
            return None;
        }
        if let Some(slot) = self.find(key, tag) {
            return Some(slot);
        }
        self.evict_to(self.capacity - weight, evicted);
        if 4 * (self.len() + 1) > 3 * self.index.len() {
            self.grow_index();
        }
        let new = Slot {
            key,
            block: Some(block),
            tag,
            uses: AtomicU8::new(0),
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = new;
                slot
            }
            None => {
                self.slots.push(new);
                // Far fewer than 2^32 blocks fit into any memory: each weighs at least 100 bytes.
                (self.slots.len() - 1) as u32
            }
        };
        self.index_insert(tag, slot);
        self.weight += weight;
        self.queue.push_back(slot);
        Some(slot as usize)
    }

    /// Evicts until the weight is at most `weight`.
    fn evict_to(&mut self, weight: u64, evicted: &mut Vec<Block>) {
        while self.weight > weight {
            let Some(slot) = self.queue.pop_front() else {
                break;
            };
            let entry = &mut self.slots[slot as usize];
            let uses = entry.uses.get_mut();
            if *uses > 0 {
                *uses -= 1;
                self.queue.push_back(slot);
                continue;
            }
            let (tag, block) = (entry.tag, entry.block.take());
            self.weight -= block.as_ref().map_or(0, Block::weight) as u64;
            evicted.extend(block);
            self.free.push(slot);
            self.index_remove(tag, slot);
        }
    }

    /// Whether a block of `weight` that was not found is to be kept; if not, a ghost of it is.
    #[inline]
    fn admits(&self, tag: u32, weight: u64) -> bool {
        if self.weight + weight <= self.capacity {
            return true;
        }
        let mut newer = tag;
        for ghost in self.ghosts_of(tag) {
            let older = ghost.load(Ordering::Relaxed);
            // Readers that do this at the same time may lose a ghost: that costs one more miss.
            ghost.store(newer, Ordering::Relaxed);
            if older == tag {
                self.prefetch_insertion(tag);
                return true;
            }
            newer = older;
        }
        false
    }

    /// The row of ghosts with this tag, if there is one.
    #[inline]
    fn ghosts_of(&self, tag: u32) -> &[AtomicU32; GHOST_ROW] {
        // By other bits than the index: keys that are neighbours there are not here.
        &self.ghosts[(tag >> 16 ^ tag << 16) as usize % self.ghosts.len()]
    }
}

fn no_ghosts(count: usize) -> Vec<[AtomicU32; GHOST_ROW]> {
    (0..count.div_ceil(GHOST_ROW))
        .map(|_| Default::default())
        .collect()
}

/// How far the lookup of one of several blocks has come, see [`BlockCache::get_many`].
struct Lookup<'c> {
    shard: RwLockReadGuard<'c, Shard>,
    key: Key,
    tag: u32,
    hint: &'c Hint,
    slot: Option<usize>,
}

impl Lookup<'_> {
    /// Has the memory of the slot fetched.
    fn prefetch(&self) {
        if let Some(slot) = self.slot {
            self.shard.prefetch_slot(slot);
        }
    }
}

/// So many blocks are looked up side by side: about as many as the processor can wait for.
const TOGETHER: usize = 16;

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
    /// As many as a power of two.
    shards: Box<[RwLock<Shard>]>,
    counts: [Counts; STRIPES],
}

/// A shard has at least this capacity, if there is more than one: a block is kept only by a shard
/// that it fits into.
const MIN_SHARD_BYTES: u64 = 2 << 20;
/// There are more than this only so that none is larger than [`MAX_SHARD_BYTES`].
const MAX_SHARDS: u64 = 64;
/// So that all slots have numbers that fit into a [`Hint`], unless blocks are far below their usual
/// size.
const MAX_SHARD_BYTES: u64 = 64 << 20;
/// That many are enough for a terabyte.
const MOST_SHARDS: u64 = 16 << 10;

impl BlockCache {
    /// A cache that holds at most `capacity_bytes`; 0 holds nothing.
    pub fn new(capacity_bytes: u64) -> Self {
        let most = capacity_bytes.div_ceil(MAX_SHARD_BYTES).next_power_of_two();
        let most = most.clamp(MAX_SHARDS, MOST_SHARDS);
        let shards = (capacity_bytes / MIN_SHARD_BYTES).clamp(1, most);
        let shards = 1 << shards.ilog2();
        let cache = Self {
            shards: (0..shards).map(|_| RwLock::new(Shard::new(0))).collect(),
            counts: Default::default(),
        };
        cache.set_capacity(capacity_bytes);
        cache
    }

    /// The shard of a hash, and the tag in it.
    #[inline]
    fn shard(&self, hash: u64) -> (&RwLock<Shard>, u32) {
        let shard = (hash >> 32) as usize & (self.shards.len() - 1);
        (&self.shards[shard], hash as u32)
    }

    /// The block at `offset` of `file`, if it is here.
    #[inline]
    pub fn get(&self, file: FileId, offset: u64, hint: &Hint) -> Option<Block> {
        let found = self.look(file, offset, hint);
        let hits = u64::from(found.is_some());
        self.count(offset, hits, 1 - hits);
        found
    }

    /// [`get`](Self::get) without counting.
    #[inline]
    fn look(&self, file: FileId, offset: u64, hint: &Hint) -> Option<Block> {
        let key = Key { file, offset };
        let (shard, tag) = self.shard(key.hash());
        shard.read().get(key, tag, hint)
    }

    /// Counts lookups, one of which was of this offset.
    #[inline]
    fn count(&self, offset: u64, hits: u64, misses: u64) {
        // Any spread will do: one hot block is better counted in one place than all in one.
        let counts = &self.counts[(offset >> 10) as usize % STRIPES];
        for (count, n) in [(&counts.hits, hits), (&counts.misses, misses)] {
            if n > 0 {
                count.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    /// [`get`](Self::get) for several blocks of one file, told by offsets. Each step of a lookup is done for up to
    /// [`TOGETHER`] of them before the next, so that the processor waits for the memory of many at
    /// once. `found` gets what was found, with its place among the blocks, in their order.
    pub(crate) fn get_many(
        &self,
        file: FileId,
        blocks: &[(u64, &Hint)],
        mut found: impl FnMut(usize, Option<Block>),
    ) {
        for (chunk, blocks) in blocks.chunks(TOGETHER).enumerate() {
            let mut lookups: [Option<Lookup<'_>>; TOGETHER] = [const { None }; TOGETHER];
            for (lookup, &(offset, hint)) in lookups.iter_mut().zip(blocks) {
                let key = Key { file, offset };
                let (shard, tag) = self.shard(key.hash());
                // Without waiting: a writer may wait for a shard that is locked here for another block.
                *lookup = shard.try_read().map(|shard| {
                    let slot = match hint.read() {
                        Hinted::Slot(slot) => Some(slot),
                        Hinted::Absent => None,
                        Hinted::Unknown => {
                            prefetch_lines(&shard.index[tag as usize & shard.mask()], 1);
                            None
                        }
                    };
                    let lookup = Lookup {
                        shard,
                        key,
                        tag,
                        hint,
                        slot,
                    };
                    lookup.prefetch();
                    lookup
                });
            }
            for lookup in lookups.iter_mut().flatten() {
                if lookup.hint.read() == Hinted::Unknown {
                    lookup.slot = lookup.shard.probe(lookup.tag).next();
                    lookup.prefetch();
                }
            }
            for lookup in lookups.iter_mut().flatten() {
                let (key, tag, hint) = (lookup.key, lookup.tag, lookup.hint);
                lookup.slot = lookup.shard.confirm(lookup.slot, key, tag, hint);
                let slot = lookup.slot.map(|slot| &lookup.shard.slots[slot]);
                if let Some(block) = slot.and_then(|slot| slot.block.as_ref()) {
                    block.prefetch();
                }
            }
            // No lock is held any more when what was found is told.
            let taken = lookups.map(|lookup| {
                lookup.map(|Lookup { shard, slot, .. }| slot.and_then(|slot| shard.take(slot)))
            });
            let (mut hits, mut misses) = (0, 0);
            for (i, (block, &(offset, hint))) in taken.into_iter().zip(blocks).enumerate() {
                let block = match block {
                    Some(block) => block,
                    None => self.look(file, offset, hint),
                };
                match block {
                    Some(_) => hits += 1,
                    None => misses += 1,
                }
                found(TOGETHER * chunk + i, block);
            }
            self.count(blocks[0].0, hits, misses);
        }
    }

    /// Keeps `block` for later, maybe pushing out others.
    pub fn insert(&self, file: FileId, offset: u64, hint: &Hint, block: Block) {
        let key = Key { file, offset };
        let (shard, tag) = self.shard(key.hash());
        let mut evicted = Vec::new();
        let mut shard = shard.write();
        let slot = shard.insert(key, tag, block, &mut evicted);
        hint.note(slot);
        drop(shard);
    }

    /// Has the memory fetched that [`admits`](Self::admits) reads, for a block that is about to be read. (A
    /// [`get`](Self::get) that found nothing did so, but what it had fetched may be gone again.)
    pub(crate) fn prefetch_admission(&self, file: FileId, offset: u64) {
        let (shard, tag) = self.shard(Key { file, offset }.hash());
        shard.read().prefetch_admission(tag);
    }

    /// Whether a block that was not found should be kept, as the page says.
    #[inline]
    pub(crate) fn admits(&self, file: FileId, offset: u64, image: &[u8]) -> bool {
        let (shard, tag) = self.shard(Key { file, offset }.hash());
        let weight = (image.len() + WEIGHT_BESIDE) as u64;
        shard.read().admits(tag, weight)
    }

    /// Whether it would push nothing out.
    pub(crate) fn has_room(&self, file: FileId, offset: u64, image: &[u8]) -> bool {
        let (shard, _) = self.shard(Key { file, offset }.hash());
        let weight = (image.len() + WEIGHT_BESIDE) as u64;
        let shard = shard.read();
        shard.weight + weight <= shard.capacity
    }

    /// Counts a read of data blocks from a file.
    pub(crate) fn count_read(&self, offset: u64, bytes: usize) {
        let counts = &self.counts[(offset >> 10) as usize % STRIPES];
        counts.reads.fetch_add(1, Ordering::Relaxed);
        counts.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Changes the capacity; a smaller one evicts at once.
    pub fn set_capacity(&self, capacity_bytes: u64) {
        let part = capacity_bytes / self.shards.len() as u64;
        for shard in &self.shards {
            let mut evicted = Vec::new();
            let mut shard = shard.write();
            shard.capacity = part;
            shard.evict_to(part, &mut evicted);
            drop(shard);
        }
    }

    /// Removes everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.write();
            let empty = Shard::new(shard.capacity);
            let full = std::mem::replace(&mut *shard, empty);
            drop(shard);
            drop(full);
        }
    }

    /// Counters and sizes.
    pub fn stats(&self) -> CacheStats {
        let sum = |pick: fn(&Counts) -> &AtomicU64| {
            self.counts
                .iter()
                .map(|c| pick(c).load(Ordering::Relaxed))
                .sum()
        };
        let mut stats = CacheStats {
            hits: sum(|c| &c.hits),
            misses: sum(|c| &c.misses),
            reads: sum(|c| &c.reads),
            read_bytes: sum(|c| &c.read_bytes),
            ..CacheStats::default()
        };
        for shard in &self.shards {
            let shard = shard.read();
            stats.bytes += shard.weight;
            stats.capacity_bytes += shard.capacity;
            stats.blocks += shard.len() as u64;
        }
        stats
    }
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockCache({:?})", self.stats())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Keeps a block without a hint that lasts.
    fn put(cache: &BlockCache, file: u64, offset: u64, block: Block) {
        cache.insert(FileId(file), offset, &Hint::default(), block);
    }

    fn get(cache: &BlockCache, file: u64, offset: u64) -> Option<Block> {
        cache.get(FileId(file), offset, &Hint::default())
    }

    fn block(len: usize) -> Block {
        Block::new(&vec![7; len])
    }

    #[test]
    fn holds_what_fits_and_counts() {
        let cache = BlockCache::new(1 << 20);
        assert!(get(&cache, 1, 0).is_none());
        put(&cache, 1, 0, block(4000));
        put(&cache, 2, 0, block(100));
        assert_eq!(get(&cache, 1, 0).map(|b| b.image().len()), Some(4000));
        assert_eq!(get(&cache, 2, 0).map(|b| b.image().len()), Some(100));
        assert!(get(&cache, 1, 1).is_none());
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
            put(&cache, i % 7, i * 4096, block(4096));
            assert!(cache.stats().bytes <= 1 << 20);
        }
        let before = cache.stats().bytes;
        assert!(before > 1 << 19);
        cache.set_capacity(1 << 18);
        assert!(cache.stats().bytes <= 1 << 18);
        cache.set_capacity(1 << 20);
        for i in 0..2000 {
            put(&cache, 9, i * 4096, block(4096));
        }
        assert!(cache.stats().bytes > 1 << 19);
    }

    #[test]
    fn a_hint_follows_its_block() {
        let cache = BlockCache::new(1 << 20);
        let (file, hint) = (FileId(1), Hint::default());
        assert!(cache.get(file, 0, &hint).is_none());
        assert!(hint.read() == Hinted::Absent);
        cache.insert(file, 0, &hint, block(1000));
        assert!(hint.read() == Hinted::Slot(0));
        assert!(cache.get(file, 0, &hint).is_some());
        // Another takes its place.
        cache.set_capacity(0);
        cache.set_capacity(1 << 20);
        put(&cache, 2, 0, block(1000));
        assert!(hint.read() == Hinted::Slot(0));
        assert!(cache.get(file, 0, &hint).is_none());
        assert!(hint.read() == Hinted::Absent);
        // Its new slot is told, also to one who comes too late to put it in.
        let late = Hint::default();
        for hint in [&hint, &late] {
            cache.insert(file, 0, hint, block(1000));
            assert!(hint.read() == Hinted::Slot(1));
        }
        cache.clear();
        assert!(cache.get(file, 0, &hint).is_none());
        // The slot of one that was evicted is free.
        put(&cache, 1, 0, block(1000));
        cache.set_capacity(0);
        hint.note(Some(0));
        assert!(cache.get(file, 0, &hint).is_none());
        // A slot that no hint can name is found without one.
        for (slot, hinted) in [
            (65_533, Hinted::Slot(65_533)),
            (65_534, Hinted::Unknown),
            (1 << 20, Hinted::Unknown),
        ] {
            hint.note(Some(slot));
            assert!(hint.read() == hinted);
        }
    }

    #[test]
    fn shards_are_neither_small_nor_large() {
        for (capacity, shards) in [
            (0, 1),
            (4 << 20, 2),
            (1 << 30, 64),
            (5 << 30, 128),
            (8 << 30, 128),
            (u64::MAX / 4, MOST_SHARDS as usize),
        ] {
            assert_eq!(BlockCache::new(capacity).shards.len(), shards, "{capacity}");
        }
    }

    #[test]
    fn nothing_is_kept_without_capacity() {
        let cache = BlockCache::new(0);
        put(&cache, 1, 0, block(10));
        assert!(get(&cache, 1, 0).is_none());
    }

    #[test]
    fn several_are_found_as_one_by_one() {
        let cache = BlockCache::new(8 << 20);
        // Every third is here, and another file's of the same offset is not confused with it.
        for i in 0..300 {
            put(&cache, 1 + i % 3, i * 4096, block(1 + i as usize));
        }
        let offsets: Vec<u64> = (0..300).rev().map(|i| i * 4096).collect();
        let one = |offset| get(&cache, 1, offset).map(|b| b.image().len());
        let expected: Vec<_> = offsets.iter().map(|&o| one(o)).enumerate().collect();
        let hints: Vec<Hint> = offsets.iter().map(|_| Hint::default()).collect();
        let blocks: Vec<_> = offsets.iter().copied().zip(&hints).collect();
        // Without hints, with them, and with hints that lead to other blocks.
        for round in 0..3 {
            if round == 2 {
                for (i, hint) in hints.iter().enumerate() {
                    hint.note(Some(i * 7 % 300));
                }
            }
            let before = cache.stats();
            let mut told = Vec::new();
            cache.get_many(FileId(1), &blocks, |i, found| {
                told.push((i, found.map(|b| b.image().len())));
            });
            assert_eq!(told, expected);
            let after = cache.stats();
            assert_eq!(
                (after.hits - before.hits, after.misses - before.misses),
                (100, 200)
            );
        }
        cache.get_many(FileId(1), &[], |_, _| panic!("nothing was asked for"));
    }

    /// Those whose shard is locked are found when it is free again.
    #[test]
    fn several_beside_writers() {
        let cache = BlockCache::new(4 << 20);
        assert_eq!(cache.shards.len(), 2);
        let offsets: Vec<u64> = (0..64).map(|i| i * 4096).collect();
        for (i, &offset) in offsets.iter().enumerate() {
            put(&cache, 1, offset, block(1 + i));
        }
        let hint = Hint::default();
        let blocks: Vec<_> = offsets.iter().map(|&offset| (offset, &hint)).collect();
        let locked = cache.shards[0].write();
        std::thread::scope(|scope| {
            let (asks, asked) = std::sync::mpsc::channel();
            let (cache, blocks) = (&cache, &blocks);
            let reader = scope.spawn(move || {
                asks.send(()).unwrap();
                let mut told = Vec::new();
                cache.get_many(FileId(1), blocks, |i, found| {
                    told.push((i, found.map(|b| b.image().len())));
                });
                told
            });
            asked.recv().unwrap();
            // It waits, but does not keep the other shard meanwhile.
            for _ in 0..1000 {
                let longest = std::time::Duration::from_secs(60);
                assert!(cache.shards[1].try_write_for(longest).is_some());
            }
            drop(locked);
            let all = (0..offsets.len()).map(|i| (i, Some(1 + i)));
            assert_eq!(reader.join().unwrap(), all.collect::<Vec<_>>());
        });
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (64, 0));
    }

    /// A shard's parts agree with each other.
    fn check(shard: &Shard) {
        let slots = shard.queue.iter().map(|&i| &shard.slots[i as usize]);
        let weights = slots.map(|s| s.block.as_ref().unwrap().weight() as u64);
        assert_eq!(weights.sum::<u64>(), shard.weight);
        assert!(shard.weight <= shard.capacity);
        assert_eq!(shard.queue.len(), shard.len());
        assert_eq!(
            shard.index.iter().filter(|&&e| e != FREE).count(),
            shard.len()
        );
        for (i, slot) in shard.slots.iter().enumerate() {
            if slot.block.is_some() {
                assert_eq!(shard.find(slot.key, slot.tag), Some(i));
                let first = shard.probe(slot.tag).next().unwrap();
                let hint = Hint::default();
                assert_eq!(
                    shard.confirm(Some(first), slot.key, slot.tag, &hint),
                    Some(i)
                );
            } else {
                assert!(shard.free.contains(&(i as u32)));
            }
        }
    }

    proptest! {
        #[test]
        fn parts_agree_and_nothing_false_is_found(
            ops in proptest::collection::vec((0_u64..120, 0_u32..40, 0_u8..20), 1..600),
            tags in 1_u32..40,
        ) {
            // Few tags, so that many keys share their place.
            let tag = |n: u64| (n as u32 % tags).wrapping_mul(0x4000_0001);
            let mut shard = Shard::new(5000);
            let hints: Vec<Hint> = (0..120).map(|_| Hint::default()).collect();
            for (n, len, op) in ops {
                let key = Key { file: FileId(n), offset: 2 * n };
                match op {
                    0 => {
                        shard.capacity = 1000 + 100 * u64::from(len);
                        shard.evict_to(shard.capacity, &mut Vec::new());
                    }
                    1..10 => {
                        let block = Block::new(&vec![n as u8; len as usize]);
                        let slot = shard.insert(key, tag(n), block, &mut Vec::new());
                        hints[n as usize].note(slot);
                    }
                    _ => {
                        let here = shard.find(key, tag(n)).is_some();
                        let found = shard.get(key, tag(n), &hints[n as usize]);
                        prop_assert_eq!(found.is_some(), here);
                        if let Some(block) = found {
                            prop_assert!(block.image().iter().all(|&b| b == n as u8));
                        }
                    }
                }
                check(&shard);
            }
        }
    }

    #[test]
    fn only_what_comes_again_pushes_out() {
        let cache = BlockCache::new(8 << 20);
        // What readers do: returns whether the block was there.
        let read = |file: u64, i: u64| {
            let (file, offset) = (FileId(file), i << 10);
            let block = block(1000);
            let hint = Hint::default();
            let found = cache.get(file, offset, &hint).is_some();
            if !found && cache.admits(file, offset, block.image()) {
                cache.insert(file, offset, &hint, block);
            }
            found
        };
        for round in 0..3 {
            let found = (0..2000).filter(|&i| read(1, i)).count();
            assert!(round == 0 || found == 2000);
        }
        // A scan that fills the cache and goes on.
        for i in 0..100_000 {
            assert!(!read(2, i));
        }
        let kept = (0..2000).filter(|&i| read(1, i)).count();
        assert_eq!(kept, 2000);
        // Other blocks become the ones that are used.
        for _ in 0..8 {
            (0..6000).for_each(|i| {
                read(3, i);
            });
        }
        let found = (0..6000).filter(|&i| read(3, i)).count();
        assert!(found > 5400, "{found} of 6000");
    }

    #[test]
    fn a_slice_outlives_eviction_and_skips() {
        let cache = BlockCache::new(1 << 20);
        put(&cache, 1, 0, Block::new(b"abcdef"));
        let slice = BlockSlice::new(get(&cache, 1, 0).unwrap(), 1, 5);
        cache.clear();
        assert_eq!(&*slice, b"bcde");
        assert_eq!(&*slice.clone().skip(2), b"de");
        assert_eq!(&*slice.skip(9), b"");
    }
}
