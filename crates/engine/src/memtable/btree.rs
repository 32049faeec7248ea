//! The sorted structure of a memtable: a B+-tree in which readers take no lock and never wait.
//!
//! **Shape.** Leaves hold up to `L` user keys, inner nodes up to `I` children. Beside each pointer
//! stands a *window*: eight bytes of the key as a big-endian integer, so that most comparisons touch
//! no key. A node's window starts after `skip` bytes that all its keys share.
//!
//! **Leaf.** Slots are filled in order of arrival and never change their key while the leaf lives;
//! one word, `order`, holds the number of keys and their sorted order, four bits each. Storing it
//! publishes a new key (the permutation word of Masstree: Mao, Kohler, Morris, EuroSys 2012). A new
//! version of a key replaces the slot's pointer to the head of the key's list.
//!
//! **Inner node.** Its separators never change. Its child pointers change only to a node that has
//! taken over exactly the same range of keys.
//!
//! **Split.** The writer builds the new leaves, a new copy of the inner node above them (and above
//! that, as far as splits reach), and publishes them all by one store of one child pointer or of
//! the root. The replaced nodes still say what they said, so a reader inside one goes on.
//!
//! **Reuse.** Replaced nodes are used again for new ones, of the same type. So that a reader cannot
//! be fooled, each life of a node has a number, its *generation*, which is also in the low bits of
//! every pointer to it. A reader that has read what it wanted checks that the node's generation is
//! still the pointer's, and starts again at the root if not, which means that a writer has split
//! nodes meanwhile: it never waits for a writer that stands still. A node is not used again once
//! its generations are used up, so a number never means two lives.
//!
//! **Memory order.** A reuse stores the new generation, then a release fence, then the node's other
//! fields; a reader loads fields, then an acquire fence, then the generation. If it read any field
//! of the new life, it sees the new generation. Nodes and entries are published by release stores
//! and reached by acquire loads. All node fields are atomics; entries are not written after
//! publication, but for `next`, an atomic.
//!
//! What a reader sees: each insert that returned before the reader's call (for a cursor: before its
//! last seek) and any of the later ones.
#![allow(
    unsafe_code,
    reason = "nodes are shared with readers that take no lock"
)]

pub(crate) mod many;

use std::collections::VecDeque;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use std::cmp::Ordering as Order;

use crate::key::{Kind, SeqNo, Trailer, window};
use crate::memtable::arena::{Arena, Entry, Header};
use crate::memtable::pool::ChunkPool;
use crate::prefetch::{prefetch_lines, prefetch_span};
use crate::sync::{
    AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Mutex, Ordering, before_retry, fence,
};

/// So much of an entry is fetched: its header, a short key and a short value.
const ENTRY_BYTES: usize = 192;
/// Most slots in a leaf: the order word has room for fifteen and their number.
const MAX_LEAF: usize = 15;
/// Most children of an inner node.
const MAX_INNER: usize = 63;
/// Levels of inner nodes. A level is added when the root has no room, so that each multiplies the
/// number of leaves by half a node's children at least: with four children, the least allowed, by
/// two.
const MAX_HEIGHT: usize = 24;
/// The generation that is a node's last.
const LAST_GENERATION: u32 = 127;
/// Replaced nodes rest until this many others were replaced, so that readers seldom meet a reuse.
const RESTING: usize = if cfg!(all(test, loom)) { 0 } else { 4 };
/// In an inner node's skip: that a search must first compare the skipped bytes.
const VERIFY: u32 = 1 << 31;

#[repr(C, align(256))]
struct Leaf<const L: usize> {
    generation: AtomicU32,
    skip: AtomicU32,
    /// Bits 60 to 63: the number of keys. Bits 4i to 4i+3: the slot of the i-th smallest.
    order: AtomicU64,
    window: [AtomicU64; L],
    entry: [AtomicPtr<Header>; L],
}

#[repr(C, align(256))]
struct Inner<const I: usize> {
    generation: AtomicU32,
    skip: AtomicU32,
    len: AtomicUsize,
    /// `window[i]` and `separator[i]`: the smallest key below `child[i]`. Those of 0 are not used:
    /// the first child has no lower bound here.
    window: [AtomicU64; I],
    separator: [AtomicPtr<Header>; I],
    child: [AtomicPtr<u8>; I],
}

/// A pointer to a node: bit 0 tells a leaf, bits 1 to 7 are the generation.
type Link = *mut u8;

fn link_to_leaf<const L: usize>(leaf: &Leaf<L>) -> Link {
    let generation = leaf.generation.load(Ordering::Relaxed) as usize;
    ptr::from_ref(leaf)
        .cast_mut()
        .cast::<u8>()
        .map_addr(|a| a | generation << 1 | 1)
}

fn link_to_inner<const I: usize>(inner: &Inner<I>) -> Link {
    let generation = inner.generation.load(Ordering::Relaxed) as usize;
    ptr::from_ref(inner)
        .cast_mut()
        .cast::<u8>()
        .map_addr(|a| a | generation << 1)
}

fn is_leaf(link: Link) -> bool {
    link.addr() & 1 != 0
}

fn generation(link: Link) -> u32 {
    (link.addr() as u32 & 0xff) >> 1
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn order_len(order: u64) -> usize {
    (order >> 60) as usize
}

/// The slot of the key of this rank.
fn order_slot(order: u64, rank: usize) -> usize {
    (order >> (4 * rank)) as usize & 0xf
}

/// `order` with the next free slot put at `rank`.
fn order_insert(order: u64, rank: usize) -> u64 {
    let len = order_len(order);
    let slots = order & !(0xf << 60);
    let below = slots & ((1 << (4 * rank)) - 1);
    // `rank` is at most 14: a full leaf gets no insert.
    let above = (slots >> (4 * rank)) << (4 * rank + 4);
    let slots = (below | (len as u64) << (4 * rank) | above) & !(0xf << 60);
    slots | (len as u64 + 1) << 60
}

/// The order of `len` keys whose slots are sorted.
fn order_sorted(len: usize) -> u64 {
    0x0edc_ba98_7654_3210 & ((1 << (4 * len)) - 1) | (len as u64) << 60
}

/// Where a key is, or belongs, in a leaf.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Number of keys in the leaf that are smaller.
    rank: usize,
    /// The key's slot and newest version, if the leaf has the key.
    found: Option<(usize, Entry<'a>)>,
}

impl<const L: usize> Leaf<L> {
    fn empty() -> Self {
        Self {
            generation: AtomicU32::new(0),
            skip: AtomicU32::new(0),
            order: AtomicU64::new(0),
            window: std::array::from_fn(|_| AtomicU64::new(0)),
            entry: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        }
    }

    /// The newest version of the key in a slot. `None` only in a node that is being used again, or
    /// in a slot that never was in use.
    #[inline]
    fn entry(&self, slot: usize) -> Option<Entry<'_>> {
        let entry = NonNull::new(self.entry.get(slot)?.load(Ordering::Acquire))?;
        // SAFETY: entries are stored with release order after they were written, and are of the
        // tree's arena, which outlives the node that lies in it.
        Some(unsafe { Entry::from_raw(entry) })
    }

    #[inline]
    fn at(&self, order: u64, rank: usize) -> Option<Entry<'_>> {
        self.entry(order_slot(order, rank))
    }

    /// `None` if the node is being used again.
    #[inline]
    fn find(&self, order: u64, key: &[u8]) -> Option<Place<'_>> {
        let len = order_len(order).min(L);
        let wanted = window(key, self.skip.load(Ordering::Relaxed) as usize);
        let (mut less, mut equal) = (0, 0_u32);
        for (slot, window) in self.window[..len].iter().enumerate() {
            let window = window.load(Ordering::Relaxed);
            less += usize::from(window < wanted);
            equal |= u32::from(window == wanted) << slot;
        }
        if equal == 0 {
            return Some(Place {
                rank: less,
                found: None,
            });
        }
        // Keys with equal windows are neighbours in the order: a binary search among them.
        let (mut low, mut high) = (less, less + equal.count_ones() as usize);
        while low < high {
            let middle = usize::midpoint(low, high);
            let slot = order_slot(order, middle);
            let entry = self.entry(slot)?;
            match entry.cmp_key(key) {
                Order::Equal => {
                    return Some(Place {
                        rank: middle,
                        found: Some((slot, entry)),
                    });
                }
                Order::Less => high = middle,
                Order::Greater => low = middle + 1,
            }
        }
        Some(Place {
            rank: low,
            found: None,
        })
    }

    /// Fills the next free slot and publishes it at `rank`. Writer only; not when full.
    fn push(&self, order: u64, rank: usize, key: &[u8], entry: NonNull<Header>) {
        let window = window(key, self.skip.load(Ordering::Relaxed) as usize);
        self.push_window(order, rank, window, entry);
    }

    /// The same with the key's window in this leaf.
    fn push_window(&self, order: u64, rank: usize, window: u64, entry: NonNull<Header>) {
        let slot = order_len(order);
        self.window[slot].store(window, Ordering::Relaxed);
        self.entry[slot].store(entry.as_ptr(), Ordering::Release);
        self.order
            .store(order_insert(order, rank), Ordering::Release);
    }
}

impl<const I: usize> Inner<I> {
    fn empty() -> Self {
        Self {
            generation: AtomicU32::new(0),
            skip: AtomicU32::new(0),
            len: AtomicUsize::new(0),
            window: std::array::from_fn(|_| AtomicU64::new(0)),
            separator: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            child: std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        }
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed).min(I)
    }

    #[inline]
    fn separator(&self, index: usize) -> Option<Entry<'_>> {
        let entry = NonNull::new(self.separator.get(index)?.load(Ordering::Acquire))?;
        // SAFETY: as in `Leaf::entry`.
        Some(unsafe { Entry::from_raw(entry) })
    }

    /// The index of the child in whose range `key` is. Some index if the node is being used again.
    #[inline]
    fn find(&self, key: &[u8]) -> usize {
        let len = self.len();
        if len < 2 {
            return 0;
        }
        let skip = self.skip.load(Ordering::Relaxed);
        if skip & VERIFY != 0 {
            // All separators share the skipped bytes; does the key?
            let skip = (skip & !VERIFY) as usize;
            let Some(first) = self.separator(1) else {
                return 0;
            };
            let (first, bytes) = (first.key(), &key[..skip.min(key.len())]);
            match bytes.cmp(&first[..skip.min(first.len())]) {
                Order::Less => return 0,
                Order::Greater => return len - 1,
                Order::Equal => {}
            }
        }
        let wanted = window(key, (skip & !VERIFY) as usize);
        // The last child whose separator's window is smaller, in two passes: how many of every eighth
        // are, and how many behind the last of these. Within a pass no comparison waits for another,
        // and none is a branch.
        let smaller = |i: usize| {
            let less = self.window[i].load(Ordering::Relaxed) < wanted;
            usize::from(i < len) & usize::from(less)
        };
        let mut base = 0;
        for i in (8..I).step_by(8) {
            base += 8 * smaller(i);
        }
        let mut near = 0;
        for i in base + 1..(base + 8).min(I) {
            near += smaller(i);
        }
        base += near;
        let mut ties = base + 1;
        while ties < len && self.window[ties].load(Ordering::Relaxed) == wanted {
            ties += 1;
        }
        // Among separators with the same window: the last that is not greater than the key.
        let (mut low, mut high) = (base, ties - 1);
        while low < high {
            let middle = (low + high).div_ceil(2);
            let Some(separator) = self.separator(middle) else {
                return 0;
            };
            if separator.cmp_key(key) == Order::Less {
                high = middle - 1;
            } else {
                low = middle;
            }
        }
        low
    }
}

/// An entry for [`Tree::load`].
#[derive(Clone, Copy)]
pub(super) struct Sorted {
    pub(super) entry: NonNull<Header>,
    /// Differs only if the key differs.
    pub(super) window: u64,
    /// The window at the key's beginning.
    pub(super) first_window: u64,
}

/// What entries for [`Tree::load`] are, those counted that are there twice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) tombstones: usize,
    pub(super) min_seqno: u64,
    pub(super) max_seqno: u64,
}

/// One step of a descent: the inner node, and which child was taken.
#[derive(Clone, Copy)]
struct Step {
    inner: Link,
    index: usize,
}

const NO_STEP: Step = Step {
    inner: ptr::null_mut(),
    index: 0,
};

/// The bounds of the keys below a node: separators above it.
#[derive(Clone, Copy)]
struct Bounds<'a> {
    low: Option<Entry<'a>>,
    high: Option<Entry<'a>>,
}

impl Bounds<'_> {
    /// The number of leading bytes that all keys between the bounds share.
    fn shared(&self) -> usize {
        match (self.low, self.high) {
            (Some(low), Some(high)) => common_prefix(low.key(), high.key()),
            _ => 0,
        }
    }
}

/// What only the writer that holds the lock may touch.
struct Writer<const L: usize, const I: usize> {
    arena: Arena,
    resting_leaves: VecDeque<NonNull<Leaf<L>>>,
    resting_inners: VecDeque<NonNull<Inner<I>>>,
    /// The rightmost leaf and the greatest key in it: ascending inserts need no descent.
    last: Option<(NonNull<Leaf<L>>, NonNull<Header>)>,
}

// SAFETY: its pointers are to nodes and entries of the arena that it owns.
unsafe impl<const L: usize, const I: usize> Send for Writer<L, I> {}

/// Counters that readers may see at any time. Written under the lock.
struct Counters {
    entries: AtomicUsize,
    keys: AtomicUsize,
    tombstones: AtomicUsize,
    min_seqno: AtomicU64,
    max_seqno: AtomicU64,
    bytes: AtomicUsize,
}

/// The tree; `L` is at most 15, `I` at most 63, both at least 2.
pub(super) struct Tree<const L: usize, const I: usize> {
    root: AtomicPtr<u8>,
    counters: Counters,
    writer: Mutex<Writer<L, I>>,
}

impl<const L: usize, const I: usize> fmt::Debug for Tree<L, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("entries", &self.entry_count())
            .finish_non_exhaustive()
    }
}

impl<const L: usize, const I: usize> Tree<L, I> {
    pub(super) fn new(pool: Option<Arc<ChunkPool>>) -> Self {
        const { assert!(2 <= L && L <= MAX_LEAF && 4 <= I && I <= MAX_INNER) };
        Self {
            root: AtomicPtr::new(ptr::null_mut()),
            counters: Counters {
                entries: AtomicUsize::new(0),
                keys: AtomicUsize::new(0),
                tombstones: AtomicUsize::new(0),
                min_seqno: AtomicU64::new(u64::MAX),
                max_seqno: AtomicU64::new(0),
                bytes: AtomicUsize::new(0),
            },
            writer: Mutex::new(Writer {
                arena: Arena::new(pool),
                resting_leaves: VecDeque::new(),
                resting_inners: VecDeque::new(),
                last: None,
            }),
        }
    }

    pub(super) fn entry_count(&self) -> usize {
        self.counters.entries.load(Ordering::Relaxed)
    }

    pub(super) fn key_count(&self) -> usize {
        self.counters.keys.load(Ordering::Relaxed)
    }

    pub(super) fn tombstone_count(&self) -> usize {
        self.counters.tombstones.load(Ordering::Relaxed)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.counters.bytes.load(Ordering::Relaxed)
    }

    /// The smallest and the greatest sequence number.
    pub(super) fn seqnos(&self) -> Option<(SeqNo, SeqNo)> {
        let min = self.counters.min_seqno.load(Ordering::Relaxed);
        let max = self.counters.max_seqno.load(Ordering::Relaxed);
        (min <= max).then_some((SeqNo(min), SeqNo(max)))
    }

    /// The leaf that a link leads to.
    #[inline]
    fn leaf(&self, link: Link) -> &Leaf<L> {
        debug_assert!(is_leaf(link));
        // SAFETY: links come from the root or a validated child pointer; this one says leaf. The
        // node's memory holds leaves until the arena is dropped with `self`. All fields are atomic.
        unsafe { &*link.map_addr(|a| a & !0xff).cast::<Leaf<L>>() }
    }

    /// The inner node that a link leads to.
    #[inline]
    fn inner(&self, link: Link) -> &Inner<I> {
        debug_assert!(!is_leaf(link));
        // SAFETY: as in `leaf`, with inner nodes.
        unsafe { &*link.map_addr(|a| a & !0xff).cast::<Inner<I>>() }
    }

    #[inline]
    fn entry(&self, raw: NonNull<Header>) -> Entry<'_> {
        // SAFETY: raw pointers that writer and cursors keep were got from entries of this tree,
        // which live as long as it.
        unsafe { Entry::from_raw(raw) }
    }

    /// Whether all that was loaded from the leaf before this call was of the life of `link`.
    #[inline]
    fn leaf_unchanged(&self, link: Link) -> bool {
        fence(Ordering::Acquire);
        self.leaf(link).generation.load(Ordering::Relaxed) == generation(link)
    }

    /// Child `index` of an inner node; `None` if the node was used again, or has no such child.
    #[inline]
    fn child(&self, inner: Link, index: usize) -> Option<Link> {
        let node = self.inner(inner);
        let child = node.child.get(index)?.load(Ordering::Acquire);
        fence(Ordering::Acquire);
        let unchanged = node.generation.load(Ordering::Relaxed) == generation(inner);
        (unchanged && !child.is_null()).then_some(child)
    }

    /// The newest version of `key`.
    #[inline]
    pub(super) fn head(&self, key: &[u8]) -> Option<Entry<'_>> {
        'restart: loop {
            let mut link = self.root.load(Ordering::Acquire);
            if link.is_null() {
                return None;
            }
            while !is_leaf(link) {
                let index = self.inner(link).find(key);
                let Some(child) = self.child(link, index) else {
                    before_retry();
                    continue 'restart;
                };
                link = child;
            }
            let leaf = self.leaf(link);
            let place = leaf.find(leaf.order.load(Ordering::Acquire), key);
            match place {
                Some(place) if self.leaf_unchanged(link) => return Some(place.found?.1),
                _ => before_retry(),
            }
        }
    }

    /// Adds a version of a key. One that is there already (same key, same sequence number) stays.
    pub(super) fn insert(&self, key: &[u8], seqno: SeqNo, kind: Kind, value: [&[u8]; 2]) {
        let trailer = Trailer::new(seqno, kind);
        let mut writer = self.writer.lock();
        if self.insert_locked(&mut writer, key, trailer, value) {
            let counters = &self.counters;
            let add = |counter: &AtomicUsize, n: usize| {
                counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
            };
            add(&counters.entries, 1);
            add(&counters.tombstones, usize::from(kind == Kind::Delete));
            if seqno.0 < counters.min_seqno.load(Ordering::Relaxed) {
                counters.min_seqno.store(seqno.0, Ordering::Relaxed);
            }
            if seqno.0 > counters.max_seqno.load(Ordering::Relaxed) {
                counters.max_seqno.store(seqno.0, Ordering::Relaxed);
            }
        }
        self.counters
            .bytes
            .store(writer.arena.allocated(), Ordering::Relaxed);
    }

    /// Writes an entry that nobody sees until it is given to [`Tree::load`].
    pub(super) fn write_entry(
        &self,
        key: &[u8],
        seqno: SeqNo,
        kind: Kind,
        value: &[u8],
    ) -> NonNull<Header> {
        let trailer = Trailer::new(seqno, kind);
        let mut writer = self.writer.lock();
        writer.arena.first(key, trailer, [value, &[]])
    }

    /// Puts entries into the tree, which takes no other writes meanwhile. Of those with the same
    /// key and sequence number the first counts. Looks at few of the entries: they lie all over the
    /// memory.
    ///
    /// # Safety
    ///
    /// The entries must be what `write_entry` of this tree returned, each given once.
    ///
    /// REQUIRES: ascending keys, ascending trailers for a key, and the tree was empty before
    /// (else each entry is inserted, and copied).
    pub(super) unsafe fn load(&self, sorted: impl Iterator<Item = Sorted>, counts: &Counts) {
        let mut writer = self.writer.lock();
        let writer = &mut *writer;
        let was_empty = self.root.load(Ordering::Relaxed).is_null();
        let (mut entries, mut tombstones) = (0, counts.tombstones);
        // The first version of the latest key, and its versions so far, newest first.
        let mut latest: Option<(Sorted, Entry<'_>)> = None;
        for sorted in sorted {
            let entry = self.entry(sorted.entry);
            if !was_empty {
                let (key, value) = (entry.key(), [entry.value(), &[]]);
                let is_new = self.insert_locked(writer, key, entry.trailer(), value);
                entries += usize::from(is_new);
                continue;
            }
            if let Some((first, head)) = &mut latest {
                if first.window == sorted.window && head.key() == entry.key() {
                    if head.seqno() == entry.seqno() {
                        tombstones -= usize::from(entry.trailer().kind() == Some(Kind::Delete));
                        continue;
                    }
                    *head = self.entry(writer.arena.twin(entry, *head));
                    entries += 1;
                    continue;
                }
                self.append(writer, first.first_window, *head);
            }
            latest = Some((sorted, entry));
            entries += 1;
        }
        if let Some((first, head)) = latest {
            self.append(writer, first.first_window, head);
        }
        let counters = &self.counters;
        let add = |counter: &AtomicUsize, n: usize| {
            counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        };
        add(&counters.entries, entries);
        add(&counters.tombstones, tombstones);
        let min = counters.min_seqno.load(Ordering::Relaxed);
        let max = counters.max_seqno.load(Ordering::Relaxed);
        let (min, max) = (min.min(counts.min_seqno), max.max(counts.max_seqno));
        counters.min_seqno.store(min, Ordering::Relaxed);
        counters.max_seqno.store(max, Ordering::Relaxed);
        counters
            .bytes
            .store(writer.arena.allocated(), Ordering::Relaxed);
    }

    /// Adds a key that is greater than all others.
    /// `first_window` is the window at the key's beginning.
    fn append(&self, writer: &mut Writer<L, I>, first_window: u64, entry: Entry<'_>) {
        self.count_key();
        if let Some((leaf, _)) = writer.last {
            // SAFETY: the rightmost leaf is in use, in this tree's arena.
            let leaf = unsafe { leaf.as_ref() };
            let order = leaf.order.load(Ordering::Relaxed);
            if order_len(order) < L {
                let window = match leaf.skip.load(Ordering::Relaxed) {
                    0 => first_window,
                    skip => window(entry.key(), skip as usize),
                };
                leaf.push_window(order, order_len(order), window, entry.raw());
                writer.last = Some((NonNull::from(leaf), entry.raw()));
                return;
            }
        }
        let mut link = self.root.load(Ordering::Relaxed);
        if link.is_null() {
            let leaf = self.new_leaf(writer, 0, &[entry.raw()]);
            writer.last = Some((NonNull::from(leaf), entry.raw()));
            self.root.store(link_to_leaf(leaf), Ordering::Release);
            return;
        }
        let mut path = [NO_STEP; MAX_HEIGHT];
        let mut height = 0;
        while !is_leaf(link) {
            let inner = self.inner(link);
            let index = inner.len().saturating_sub(1);
            path[height] = Step { inner: link, index };
            height += 1;
            link = inner.child[index].load(Ordering::Relaxed);
        }
        self.split(writer, &path[..height], link, L, entry.raw());
    }

    fn insert_locked(
        &self,
        writer: &mut Writer<L, I>,
        key: &[u8],
        trailer: Trailer,
        value: [&[u8]; 2],
    ) -> bool {
        if let Some((leaf, last)) = writer.last
            && self.entry(last).cmp_key(key) == Order::Greater
        {
            // SAFETY: the rightmost leaf is in use, in this tree's arena.
            let leaf = unsafe { leaf.as_ref() };
            let order = leaf.order.load(Ordering::Relaxed);
            if order_len(order) < L {
                let entry = writer.arena.first(key, trailer, value);
                leaf.push(order, order_len(order), key, entry);
                writer.last = Some((NonNull::from(leaf), entry));
                self.count_key();
                return true;
            }
        }
        // The lock is held: no node changes or is used again during the descent.
        let mut link = self.root.load(Ordering::Relaxed);
        if link.is_null() {
            let entry = writer.arena.first(key, trailer, value);
            let leaf = self.new_leaf(writer, 0, &[entry]);
            writer.last = Some((NonNull::from(leaf), entry));
            self.root.store(link_to_leaf(leaf), Ordering::Release);
            self.count_key();
            return true;
        }
        let mut path = [NO_STEP; MAX_HEIGHT];
        let mut height = 0;
        while !is_leaf(link) {
            let inner = self.inner(link);
            let index = inner.find(key);
            path[height] = Step { inner: link, index };
            height += 1;
            link = inner.child[index].load(Ordering::Relaxed);
        }
        let leaf = self.leaf(link);
        let order = leaf.order.load(Ordering::Relaxed);
        let Some(place) = leaf.find(order, key) else {
            // Not reached: every slot that `order` names is filled.
            return false;
        };
        if let Some((slot, head)) = place.found {
            return self.insert_version(writer, &leaf.entry[slot], head, trailer, value);
        }
        let entry = writer.arena.first(key, trailer, value);
        if order_len(order) < L {
            leaf.push(order, place.rank, key, entry);
        } else {
            self.split(writer, &path[..height], link, place.rank, entry);
        }
        self.count_key();
        true
    }

    fn count_key(&self) {
        let keys = &self.counters.keys;
        keys.store(keys.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Puts a version into the list of versions whose newest, `head`, stands in `slot`.
    fn insert_version(
        &self,
        writer: &mut Writer<L, I>,
        slot: &AtomicPtr<Header>,
        head: Entry<'_>,
        trailer: Trailer,
        value: [&[u8]; 2],
    ) -> bool {
        // Almost always the new one is the newest. Else find the two between which it belongs.
        let (mut above, mut below) = (None, Some(head));
        while let Some(entry) = below
            && entry.seqno() > trailer.seqno()
        {
            above = Some(entry);
            below = entry.next();
        }
        if below.is_some_and(|entry| entry.seqno() == trailer.seqno()) {
            return false;
        }
        let new = match below {
            Some(below) => writer.arena.over(below, trailer, value),
            None => writer.arena.first(head.key(), trailer, value),
        };
        let new = self.entry(new);
        match above {
            None => slot.store(new.raw().as_ptr(), Ordering::Release),
            Some(above) if above.is_linked() => above.set_next(new),
            Some(above) => {
                // The oldest has no room for a link: its twin takes its place.
                let twin = self.entry(writer.arena.twin(above, new));
                let mut over = None;
                let mut entry = head;
                while entry.raw() != above.raw() {
                    over = Some(entry);
                    let Some(next) = entry.next() else { break };
                    entry = next;
                }
                match over {
                    None => slot.store(twin.raw().as_ptr(), Ordering::Release),
                    Some(over) => over.set_next(twin),
                }
            }
        }
        true
    }

    /// A leaf with these entries, in order, at most `L`. Not published.
    fn new_leaf<'a>(
        &'a self,
        writer: &mut Writer<L, I>,
        skip: usize,
        entries: &[NonNull<Header>],
    ) -> &'a Leaf<L> {
        let leaf = if writer.resting_leaves.len() > RESTING
            && let Some(leaf) = writer.resting_leaves.pop_front()
        {
            // SAFETY: a leaf of this tree's arena; its fields are atomic.
            let leaf = unsafe { leaf.as_ref() };
            let generation = leaf.generation.load(Ordering::Relaxed);
            leaf.generation.store(generation + 1, Ordering::Relaxed);
            // Who reads anything stored below sees the new generation.
            fence(Ordering::Release);
            leaf
        } else {
            let memory = writer.arena.node::<Leaf<L>>();
            // SAFETY: memory for a leaf, known to nobody else; it lives as long as the tree.
            unsafe {
                memory.write(Leaf::empty());
                memory.as_ref()
            }
        };
        leaf.skip.store(skip as u32, Ordering::Relaxed);
        for (slot, &entry) in entries.iter().enumerate() {
            let window = window(self.entry(entry).key(), skip);
            leaf.window[slot].store(window, Ordering::Relaxed);
            leaf.entry[slot].store(entry.as_ptr(), Ordering::Release);
        }
        leaf.order
            .store(order_sorted(entries.len()), Ordering::Release);
        leaf
    }

    /// An inner node with these children (the first one's separator is not used), at most `I`.
    /// Not published.
    fn new_inner<'a>(
        &'a self,
        writer: &mut Writer<L, I>,
        bounds: &Bounds<'_>,
        children: &[(*mut Header, Link)],
    ) -> &'a Inner<I> {
        let inner = if writer.resting_inners.len() > RESTING
            && let Some(inner) = writer.resting_inners.pop_front()
        {
            // SAFETY: an inner node of this tree's arena; its fields are atomic.
            let inner = unsafe { inner.as_ref() };
            let generation = inner.generation.load(Ordering::Relaxed);
            inner.generation.store(generation + 1, Ordering::Relaxed);
            // Who reads anything stored below sees the new generation.
            fence(Ordering::Release);
            inner
        } else {
            let memory = writer.arena.node::<Inner<I>>();
            // SAFETY: memory for an inner node, known to nobody else; it lives as long as the tree.
            unsafe {
                memory.write(Inner::empty());
                memory.as_ref()
            }
        };
        // All keys that come here share `shared` bytes. If the separators share so much more that
        // windows after those bytes tell nothing apart, skip what they share, and verify it.
        let shared = bounds.shared();
        let mut skip = shared as u32;
        let key = |index: usize| {
            let (separator, _): (*mut Header, Link) = *children.get(index)?;
            Some(self.entry(NonNull::new(separator)?).key())
        };
        if let (Some(first), Some(last)) = (key(1), key(children.len() - 1))
            && window(first, shared) == window(last, shared)
            && children.len() > 2
        {
            skip = common_prefix(first, last) as u32 | VERIFY;
        }
        inner.skip.store(skip, Ordering::Relaxed);
        let skip = (skip & !VERIFY) as usize;
        for (index, &(separator, child)) in children.iter().enumerate() {
            if let Some(separator) = NonNull::new(separator).filter(|_| index > 0) {
                let window = window(self.entry(separator).key(), skip);
                inner.window[index].store(window, Ordering::Relaxed);
                inner.separator[index].store(separator.as_ptr(), Ordering::Release);
            }
            inner.child[index].store(child, Ordering::Release);
        }
        inner.len.store(children.len(), Ordering::Release);
        inner
    }

    /// The bounds of the keys below the last node that `path` leads to.
    fn bounds(&self, path: &[Step]) -> Bounds<'_> {
        let mut bounds = Bounds {
            low: None,
            high: None,
        };
        for step in path {
            let inner = self.inner(step.inner);
            if step.index > 0 {
                bounds.low = inner.separator(step.index);
            }
            if step.index + 1 < inner.len() {
                bounds.high = inner.separator(step.index + 1);
            }
        }
        bounds
    }

    /// Adds an entry of a new key, at `rank`, to a full leaf.
    fn split(
        &self,
        writer: &mut Writer<L, I>,
        path: &[Step],
        leaf_link: Link,
        rank: usize,
        entry: NonNull<Header>,
    ) {
        let leaf = self.leaf(leaf_link);
        let order = leaf.order.load(Ordering::Relaxed);
        let bounds = self.bounds(path);
        let new = self.entry(entry);
        // Runs of ascending (descending) keys: the old leaf stays, full, and the new key starts a
        // new one. Told by the leaf's two latest keys, or by the end of the tree.
        let ascending = rank == L
            && (bounds.high.is_none()
                || order_slot(order, L - 1) == L - 1 && order_slot(order, L - 2) == L - 2);
        let descending =
            rank == 0 && order_slot(order, 0) == L - 1 && order_slot(order, 1) == L - 2;
        let (left, separator, right, replaced) = if ascending {
            let shared = Bounds {
                low: Some(new),
                high: bounds.high,
            }
            .shared();
            let right = self.new_leaf(writer, shared, &[entry]);
            (leaf_link, entry, link_to_leaf(right), false)
        } else if descending && let Some(first) = leaf.at(order, 0) {
            let shared = Bounds {
                low: bounds.low,
                high: Some(first),
            }
            .shared();
            let left = self.new_leaf(writer, shared, &[entry]);
            (link_to_leaf(left), first.raw(), leaf_link, false)
        } else {
            let mut all = [entry; MAX_LEAF + 1];
            for place in (0..L).filter_map(|i| Some((i, leaf.at(order, i)?))) {
                all[place.0 + usize::from(place.0 >= rank)] = place.1.raw();
            }
            let middle = L.div_ceil(2);
            let separator = self.entry(all[middle]);
            let shared = Bounds {
                low: bounds.low,
                high: Some(separator),
            }
            .shared();
            let left = self.new_leaf(writer, shared, &all[..middle]);
            let shared = Bounds {
                low: Some(separator),
                high: bounds.high,
            }
            .shared();
            let right = self.new_leaf(writer, shared, &all[middle..=L]);
            (
                link_to_leaf(left),
                separator.raw(),
                link_to_leaf(right),
                true,
            )
        };
        if bounds.high.is_none() {
            // The rightmost leaf was split: the right one is the rightmost now.
            let last = self.leaf(right);
            let order = last.order.load(Ordering::Relaxed);
            writer.last = last
                .at(order, order_len(order) - 1)
                .map(|entry| (NonNull::from(last), entry.raw()));
        }
        let replaced_inners = self.publish(writer, path, left, separator, right);
        // Only now: a node that readers can still reach from the root must not be used again.
        if replaced && leaf.generation.load(Ordering::Relaxed) < LAST_GENERATION {
            writer.resting_leaves.push_back(NonNull::from(leaf));
        }
        for step in replaced_inners {
            let inner = self.inner(step.inner);
            if inner.generation.load(Ordering::Relaxed) < LAST_GENERATION {
                writer.resting_inners.push_back(NonNull::from(inner));
            }
        }
    }

    /// Puts `left` and, from `separator` on, `right` in the place of the child that `path` leads
    /// to. Returns the inner nodes that were replaced.
    fn publish<'p>(
        &self,
        writer: &mut Writer<L, I>,
        mut path: &'p [Step],
        mut left: Link,
        mut separator: NonNull<Header>,
        mut right: Link,
    ) -> Vec<&'p Step> {
        let mut replaced = Vec::new();
        while let Some((step, above)) = path.split_last() {
            path = above;
            let inner = self.inner(step.inner);
            let (len, index) = (inner.len(), step.index);
            let old_child = inner.child[index].load(Ordering::Relaxed);
            let bounds = self.bounds(above);
            if len == I && index == len - 1 && left == old_child && bounds.high.is_none() {
                // Ascending keys: the full node stays and a new one starts.
                let bounds = Bounds {
                    low: Some(self.entry(separator)),
                    high: None,
                };
                let new = self.new_inner(writer, &bounds, &[(ptr::null_mut(), right)]);
                (left, right) = (step.inner, link_to_inner(new));
                continue;
            }
            replaced.push(step);
            let mut children = [(ptr::null_mut(), ptr::null_mut()); MAX_INNER + 1];
            for (i, child) in children[..=len].iter_mut().enumerate() {
                *child = match i.cmp(&(index + 1)) {
                    Order::Equal => (separator.as_ptr(), right),
                    order => {
                        let old = i - usize::from(order == Order::Greater);
                        let link = inner.child[old].load(Ordering::Relaxed);
                        let link = if old == index { left } else { link };
                        (inner.separator[old].load(Ordering::Relaxed), link)
                    }
                };
            }
            if len < I {
                let new = link_to_inner(self.new_inner(writer, &bounds, &children[..=len]));
                match above.last() {
                    None => self.root.store(new, Ordering::Release),
                    Some(step) => {
                        self.inner(step.inner).child[step.index].store(new, Ordering::Release);
                    }
                }
                return replaced;
            }
            let middle = len.div_ceil(2);
            let Some(up) = NonNull::new(children[middle].0) else {
                // Not reached: only the first child has no separator, and `middle` is not 0.
                return Vec::new();
            };
            let low = Bounds {
                low: bounds.low,
                high: Some(self.entry(up)),
            };
            left = link_to_inner(self.new_inner(writer, &low, &children[..middle]));
            let high = Bounds {
                low: Some(self.entry(up)),
                high: bounds.high,
            };
            right = link_to_inner(self.new_inner(writer, &high, &children[middle..=len]));
            separator = up;
        }
        let bounds = Bounds {
            low: None,
            high: None,
        };
        let children = [(ptr::null_mut(), left), (separator.as_ptr(), right)];
        let root = self.new_inner(writer, &bounds, &children);
        self.root.store(link_to_inner(root), Ordering::Release);
        replaced
    }
}

/// A position in a tree, which it keeps alive.
///
/// It holds a copy of the current leaf's pointers and the path to it. Where a node on the path was
/// used again meanwhile, it finds its way from the root by the last key it saw.
pub(super) struct Cursor<const L: usize, const I: usize> {
    tree: Arc<Tree<L, I>>,
    /// The inner nodes from the root to the leaf, and the child taken in each.
    path: [Step; MAX_HEIGHT],
    height: usize,
    /// The leaf's keys in order: the newest version of each when it was visited.
    heads: [Option<NonNull<Header>>; L],
    len: usize,
    position: usize,
    /// The current version of the key at `position`; `None`: not valid.
    current: Option<NonNull<Header>>,
    /// If `newer_known`: the versions of the current key that are newer than the current, newest
    /// first.
    newer: Vec<NonNull<Header>>,
    newer_known: bool,
    /// While it goes forward from leaf to leaf: entries of the next one, in any order, for their memory to be
    /// fetched, one at each step. Some may be null, or of a leaf that is no longer there.
    ahead: [*const Header; L],
    is_ahead: bool,
}

// SAFETY: its raw pointers are into the tree, which it keeps alive and which may be shared between
// threads.
unsafe impl<const L: usize, const I: usize> Send for Cursor<L, I> {}

impl<const L: usize, const I: usize> fmt::Debug for Cursor<L, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("current", &self.entry().map(Entry::trailer))
            .finish()
    }
}

/// Where to descend to, and which of a leaf's keys to stand on.
#[derive(Clone, Copy)]
enum Target<'a> {
    First,
    Last,
    /// The first key at or after this one.
    At(&'a [u8]),
}

impl<const L: usize, const I: usize> Cursor<L, I> {
    pub(super) fn new(tree: Arc<Tree<L, I>>) -> Self {
        Self {
            tree,
            path: [NO_STEP; MAX_HEIGHT],
            height: 0,
            heads: [None; L],
            len: 0,
            position: 0,
            current: None,
            newer: Vec::new(),
            newer_known: false,
            ahead: [ptr::null(); L],
            is_ahead: false,
        }
    }

    #[inline]
    pub(super) fn entry(&self) -> Option<Entry<'_>> {
        self.current.map(|raw| self.tree.entry(raw))
    }

    /// Descends below `link`, which is at depth `height` of the path, and copies the leaf. `None`
    /// if a node was used again.
    fn descend(&mut self, mut link: Link, target: Target<'_>) -> Option<()> {
        while !is_leaf(link) {
            let inner = self.tree.inner(link);
            let index = match target {
                Target::First => 0,
                Target::Last => inner.len().saturating_sub(1),
                Target::At(key) => inner.find(key),
            };
            let child = self.tree.child(link, index)?;
            *self.path.get_mut(self.height)? = Step { inner: link, index };
            self.height += 1;
            link = child;
        }
        let leaf = self.tree.leaf(link);
        let order = leaf.order.load(Ordering::Acquire);
        let len = order_len(order).min(L);
        for (rank, head) in self.heads[..len].iter_mut().enumerate() {
            *head = Some(leaf.at(order, rank)?.raw());
        }
        let position = match target {
            Target::First => 0,
            Target::Last => len.checked_sub(1)?,
            Target::At(key) => leaf.find(order, key)?.rank,
        };
        if !self.tree.leaf_unchanged(link) {
            return None;
        }
        (self.len, self.position) = (len, position);
        Some(())
    }

    /// Descends from the root. Afterwards `position` may be `len`: after the leaf's last key.
    /// False if the tree is empty.
    fn descend_from_root(&mut self, target: Target<'_>) -> bool {
        self.is_ahead = false;
        loop {
            self.height = 0;
            let root = self.tree.root.load(Ordering::Acquire);
            if root.is_null() {
                (self.len, self.position) = (0, 0);
                return false;
            }
            if self.descend(root, target).is_some() {
                return true;
            }
            before_retry();
        }
    }

    /// To the leaf beside the current one. `None` if a node was used again; else whether there is
    /// one. The leaf's copy is replaced only if so.
    fn step_leaf(&mut self, forward: bool) -> Option<bool> {
        let mut depth = self.height;
        while let Some(above) = depth.checked_sub(1) {
            let Step { inner, index } = self.path[above];
            let len = self.tree.inner(inner).len();
            // Validates `len`, too: loaded before.
            self.tree.child(inner, index)?;
            let beside = if forward {
                Some(index + 1)
            } else {
                index.checked_sub(1)
            };
            if let Some(beside) = beside.filter(|&beside| beside < len) {
                let child = self.tree.child(inner, beside)?;
                self.path[above].index = beside;
                self.height = depth;
                self.descend(child, if forward { Target::First } else { Target::Last })?;
                return Some(true);
            }
            depth = above;
        }
        Some(false)
    }

    /// To the first key of the next leaf, or to no key.
    #[cold]
    fn next_leaf(&mut self) {
        let Some(last) = self.len.checked_sub(1).and_then(|last| self.heads[last]) else {
            return self.current = None;
        };
        loop {
            match self.step_leaf(true) {
                Some(true) => {
                    self.look_ahead();
                    break self.stand();
                }
                Some(false) => break self.current = None,
                None => {}
            }
            before_retry();
            // Lost the way. The first key after `last` may be in this leaf or the next.
            let tree = Arc::clone(&self.tree);
            let key = tree.entry(last).key();
            self.descend_from_root(Target::At(key));
            // Keys never go away: it stands on `last`.
            self.position += 1;
            if self.position < self.len {
                break self.stand();
            }
        }
    }

    /// Notes what the leaf after this one has, and has the one after that fetched: entries lie where they
    /// came, and whoever reads all of them (a flush) would wait for the memory of each.
    fn look_ahead(&mut self) {
        self.ahead = [ptr::null(); L];
        self.is_ahead = true;
        let Some(above) = self.height.checked_sub(1) else {
            return;
        };
        let Step { inner, index } = self.path[above];
        let len = self.tree.inner(inner).len();
        let child = |index| (index < len).then(|| self.tree.child(inner, index))?;
        if let Some(beside) = child(index + 1) {
            // It may be used again meanwhile: then what is fetched is of no use.
            let entries = &self.tree.leaf(beside).entry;
            for (ahead, entry) in self.ahead.iter_mut().zip(entries) {
                *ahead = entry.load(Ordering::Relaxed);
            }
        }
        if let Some(behind) = child(index + 2) {
            prefetch_lines(self.tree.leaf(behind), 1);
        }
    }

    /// To the last key of the previous leaf, or to no key. Returns whether there is one.
    #[cold]
    fn previous_leaf(&mut self) -> bool {
        self.is_ahead = false;
        let Some(first) = self.heads[0].filter(|_| self.len > 0) else {
            return false;
        };
        loop {
            if let Some(found) = self.step_leaf(false) {
                break found;
            }
            before_retry();
            let tree = Arc::clone(&self.tree);
            let key = tree.entry(first).key();
            self.descend_from_root(Target::At(key));
            if self.position > 0 {
                self.position -= 1;
                break true;
            }
        }
    }

    /// To the newest version of the key at `position`, which is less than `len`.
    #[inline]
    fn stand(&mut self) {
        self.current = self.heads[self.position];
        self.newer.clear();
        self.newer_known = false;
        if self.is_ahead && !self.ahead[self.position].is_null() {
            prefetch_span(self.ahead[self.position].cast(), ENTRY_BYTES);
        }
    }

    /// To the oldest version of the key at `position`, which is less than `len`.
    fn stand_on_oldest(&mut self) {
        self.stand();
        let Some(mut raw) = self.current else { return };
        self.newer_known = true;
        while let Some(older) = self.tree.entry(raw).next() {
            self.newer.push(raw);
            raw = older.raw();
        }
        self.current = Some(raw);
    }

    pub(super) fn seek_to_first(&mut self) {
        if self.descend_from_root(Target::First) {
            self.stand()
        } else {
            self.current = None
        }
    }

    pub(super) fn seek_to_last(&mut self) {
        if self.descend_from_root(Target::Last) {
            self.stand_on_oldest();
        } else {
            self.current = None;
        }
    }

    pub(super) fn seek(&mut self, key: &[u8]) {
        if !self.descend_from_root(Target::At(key)) {
            self.current = None;
        } else if self.position < self.len {
            self.stand();
        } else {
            self.next_leaf();
        }
    }

    pub(super) fn seek_before(&mut self, key: &[u8]) {
        if self.descend_from_root(Target::At(key)) && self.step_back() {
            self.stand_on_oldest();
        } else {
            self.current = None;
        }
    }

    /// Moves `position` to the key before; false if there is none.
    fn step_back(&mut self) -> bool {
        if self.position > 0 {
            self.position -= 1;
            true
        } else {
            self.previous_leaf()
        }
    }

    pub(super) fn next(&mut self) {
        let Some(current) = self.current else { return };
        if let Some(older) = self.tree.entry(current).next().map(Entry::raw) {
            if self.newer_known {
                self.newer.push(current);
            }
            self.current = Some(older);
        } else {
            self.next_key();
        }
    }

    pub(super) fn next_key(&mut self) {
        if self.current.is_none() {
            return;
        }
        self.position += 1;
        if self.position < self.len {
            self.stand();
        } else {
            self.next_leaf();
        }
    }

    pub(super) fn prev(&mut self) {
        let Some(current) = self.current else { return };
        if !self.newer_known {
            // The list may have changed below its head since, but not among the versions that are
            // newer than the current by their numbers, other than by late arrivals.
            let seqno = self.tree.entry(current).seqno();
            let mut above = self.heads[self.position];
            while let Some(raw) = above.filter(|&raw| self.tree.entry(raw).seqno() > seqno) {
                self.newer.push(raw);
                above = self.tree.entry(raw).next().map(Entry::raw);
            }
            self.newer_known = true;
        }
        if let Some(newer) = self.newer.pop() {
            self.current = Some(newer);
        } else if self.step_back() {
            self.stand_on_oldest();
        } else {
            self.current = None;
        }
    }

    /// To the newest version of the key before the current one.
    pub(super) fn prev_key(&mut self) {
        if self.current.is_none() {
            return;
        }
        if self.step_back() {
            self.stand()
        } else {
            self.current = None
        }
    }

    /// To the newest version at or below `snapshot` among the current one and those below it.
    /// False, without a move, if there is none.
    pub(super) fn seek_version(&mut self, snapshot: SeqNo) -> bool {
        let Some(current) = self.current else {
            return false;
        };
        let Some(visible) = self.tree.entry(current).visible(snapshot).map(Entry::raw) else {
            return false;
        };
        if visible != current {
            self.current = Some(visible);
            self.newer.clear();
            self.newer_known = false;
        }
        true
    }
}
