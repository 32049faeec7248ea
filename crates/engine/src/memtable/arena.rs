//! The memory of a memtable: chunks that only grow and are freed together, and the layout of the
//! entries in them.
//!
//! An [`Arena`] hands out memory from two bump pointers, one for entries (aligned to 8 bytes), one
//! for tree nodes (aligned to 256). Chunks start small, so that a thousand nearly empty namespaces
//! are cheap, and grow to 1 MiB; what is large against the current chunk size gets a chunk of its
//! own. Nothing is freed before the arena is dropped, and dropping it walks chunks, not entries. All
//! but small chunks are the system's pages, so that the memory of a flushed memtable leaves the
//! process: the general allocator would keep it, in pieces. Those of the most frequent size come from
//! a pool and go back there, if there is one.
//!
//! An entry is written once, before it is published, and not changed after (except `next`):
//!
//! ```text
//!            +-------------+-------------+-------------+
//!            |    depth    |    jump     |    next     |       only in versions over another
//!            +-------------+-------------+-------------+
//!  Entry --> | seqno 56  . flags 3 . kind 5            |       trailer
//!            | key_len u32        | value_len u32      |
//!            +-----------------------------------------+
//!            | key bytes (or their address)            |
//!            | value bytes (or their address)          |
//!            +-----------------------------------------+
//! ```
//!
//! All versions of a key form a list, newest first. The first version to arrive has no links; each
//! version put over another has `next`, the next older one, and `jump`, one much older, so that
//! the version visible to an old snapshot is found in a logarithmic number of steps however hot the
//! key is (E. W. Myers, "An applicative random-access stack", 1983; `depth` decides where `jump`
//! goes). When an older version arrives below one without links, that one gets a *twin*: an entry
//! with links that says the same by pointing at the same bytes, and takes its place.
//!
//! Invariants: `next` and `jump` lead to strictly smaller sequence numbers of the same key; `jump`
//! leads only to entries with links (or to the entry itself, which means nowhere).
#![allow(
    unsafe_code,
    reason = "a bump allocator and inline, variable-length entries"
)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cmp::Ordering as Order;
use std::fmt;
use std::marker::PhantomData;
use std::mem::{align_of, size_of};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use firn_io::pages::{PAGE_BYTES, Pages};

use crate::key::{SeqNo, Trailer};
use crate::memtable::pool::{ChunkPool, POOLED_BYTES};
use crate::sync::{AtomicPtr, Ordering, Written};

/// Alignment of tree nodes: the low eight bits of their addresses are free for tags.
pub(super) const NODE_ALIGN: usize = 256;
const ENTRY_ALIGN: usize = 8;
/// Chunk sizes stop growing here.
const MAX_CHUNK: usize = POOLED_BYTES;
/// First chunk for entries and for nodes.
const MIN_ENTRY_CHUNK: usize = 4 << 10;
const MIN_NODE_CHUNK: usize = 256;
/// Chunks from this size on are pages of the system.
const PAGES_CHUNK: usize = 64 << 10;
/// Keys up to this length are copied into each version; longer ones are pointed at.
const COPY_KEY: usize = 32;

/// The version has `Links` before its header.
const LINKED: u64 = 0x80;
/// Key and value are not in the entry but at the two addresses that follow the header.
const TWIN: u64 = 0x40;
/// The key is not in the entry but at the address that follows the header.
const KEY_ELSEWHERE: u64 = 0x20;
const FLAGS: u64 = LINKED | TWIN | KEY_ELSEWHERE;

#[repr(C)]
pub(super) struct Header {
    trailer: u64,
    key_len: u32,
    value_len: u32,
    /// Takes no room.
    written: Written,
}

#[repr(C)]
struct Links {
    depth: u64,
    jump: *const Header,
    next: AtomicPtr<Header>,
}

/// Where the next allocation of one alignment comes from.
struct Bump {
    free: *mut u8,
    left: usize,
    allocated: usize,
    min_chunk: usize,
    /// What is larger than this share of a chunk gets its own.
    large_share: usize,
}

/// Memory for many entries or nodes, freed with the arena.
enum Chunk {
    Heap(NonNull<u8>, Layout),
    /// Gives them back when it is dropped.
    Pages(Pages),
}

/// Memory that only grows. Not shared: the tree's writer owns it.
pub(super) struct Arena {
    chunks: Chunks,
    entries: Bump,
    nodes: Bump,
}

struct Chunks {
    all: Vec<Chunk>,
    pool: Option<Arc<ChunkPool>>,
}

// SAFETY: the raw pointers are to memory that the arena owns alone; nothing is tied to a thread.
unsafe impl Send for Arena {}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("chunks", &self.chunks.all.len())
            .field("allocated", &self.allocated())
            .finish()
    }
}

impl Bump {
    const fn new(min_chunk: usize, large_share: usize) -> Self {
        Self {
            free: ptr::null_mut(),
            left: 0,
            allocated: 0,
            min_chunk,
            large_share,
        }
    }
}

impl Arena {
    /// With a pool its chunks come from there, as far as it has some.
    pub(super) fn new(pool: Option<Arc<ChunkPool>>) -> Self {
        Self {
            chunks: Chunks {
                all: Vec::new(),
                pool,
            },
            entries: Bump::new(MIN_ENTRY_CHUNK, 8),
            nodes: Bump::new(MIN_NODE_CHUNK, 1),
        }
    }

    /// Bytes of all chunks.
    pub(super) fn allocated(&self) -> usize {
        self.entries.allocated + self.nodes.allocated
    }

    /// Uninitialized memory for a tree node of type `T`.
    pub(super) fn node<T>(&mut self) -> NonNull<T> {
        const { assert!(align_of::<T>() == NODE_ALIGN) };
        Self::take(
            &mut self.chunks,
            &mut self.nodes,
            size_of::<T>(),
            NODE_ALIGN,
        )
        .cast()
    }

    /// `size` uninitialized bytes, aligned to 8.
    fn entry(&mut self, size: usize) -> NonNull<u8> {
        let size = size.next_multiple_of(ENTRY_ALIGN);
        Self::take(&mut self.chunks, &mut self.entries, size, ENTRY_ALIGN)
    }

    /// `size` must be a multiple of `align`, which is the same in all calls for one bump.
    #[inline]
    fn take(chunks: &mut Chunks, bump: &mut Bump, size: usize, align: usize) -> NonNull<u8> {
        if size > bump.left {
            let chunk_size = (bump.allocated / 4).next_power_of_two();
            let chunk_size = chunk_size.clamp(bump.min_chunk, MAX_CHUNK);
            let large = size > chunk_size / bump.large_share;
            let bytes = if large { size } else { chunk_size };
            let (chunk, bytes) = chunks.add(bytes, align);
            bump.allocated += bytes;
            if large {
                return chunk;
            }
            bump.free = chunk.as_ptr();
            bump.left = bytes;
        }
        let taken = bump.free;
        // SAFETY: `size <= left` bytes follow `free` in the current chunk; `free` stays aligned
        // because every size is a multiple of the alignment. It is not null, because `left > 0`
        // (no size is 0: headers and nodes are not empty).
        unsafe {
            bump.free = taken.add(size);
            bump.left -= size;
            NonNull::new_unchecked(taken)
        }
    }

    /// The first version of a key, without links.
    pub(super) fn first(
        &mut self,
        key: &[u8],
        trailer: Trailer,
        value: [&[u8]; 2],
    ) -> NonNull<Header> {
        let (key_len, value_len) = lengths(key, value);
        let entry = self.entry(size_of::<Header>() + key.len() + value[0].len() + value[1].len());
        // SAFETY: the allocation is large enough for the header, the key and the value and aligned
        // for the header; nobody else knows of it yet.
        unsafe {
            let header = entry.cast::<Header>();
            header.write(Header {
                trailer: trailer.0,
                key_len,
                value_len,
                written: Written::now(),
            });
            copy(copy(copy(header.add(1).cast(), key), value[0]), value[1]);
            header
        }
    }

    /// A version with links, to be put over `next`, an entry of the same key.
    pub(super) fn over(
        &mut self,
        next: Entry<'_>,
        trailer: Trailer,
        value: [&[u8]; 2],
    ) -> NonNull<Header> {
        let key = next.key();
        let (key_len, value_len) = lengths(key, value);
        let elsewhere = key.len() > COPY_KEY;
        let key_bytes = if elsewhere {
            size_of::<*const u8>()
        } else {
            key.len()
        };
        let bytes = key_bytes + value[0].len() + value[1].len();
        let entry = self.entry(size_of::<Links>() + size_of::<Header>() + bytes);
        let flags = if elsewhere {
            LINKED | KEY_ELSEWHERE
        } else {
            LINKED
        };
        // SAFETY: the allocation is large enough for links, header, key (or its address) and value;
        // links and header are aligned to 8 and of sizes that are multiples of 8.
        unsafe {
            let header = link(entry, next);
            header.write(Header {
                trailer: trailer.0 | flags,
                key_len,
                value_len,
                written: Written::now(),
            });
            let rest = header.add(1);
            let rest = if elsewhere {
                rest.cast::<*const u8>().write(key.as_ptr());
                rest.cast::<*const u8>().add(1).cast()
            } else {
                copy(rest.cast(), key)
            };
            copy(copy(rest, value[0]), value[1]);
            header
        }
    }

    /// An entry that says the same as `of`, which has no links, and has `next` below it.
    pub(super) fn twin(&mut self, of: Entry<'_>, next: Entry<'_>) -> NonNull<Header> {
        let entry =
            self.entry(size_of::<Links>() + size_of::<Header>() + 2 * size_of::<*const u8>());
        // SAFETY: as in `over`, with two addresses after the header. The bytes they lead to live as
        // long as the arena.
        unsafe {
            let header = link(entry, next);
            let old = of.header();
            let trailer = old.trailer | LINKED | TWIN;
            header.write(Header {
                trailer,
                key_len: old.key_len,
                value_len: old.value_len,
                written: Written::now(),
            });
            let addresses = header.add(1).cast::<*const u8>();
            addresses.write(of.key().as_ptr());
            addresses.add(1).write(of.value().as_ptr());
            header
        }
    }
}

impl Chunks {
    /// A new chunk of at least `bytes`, with arbitrary content, and how many it has.
    #[cold]
    fn add(&mut self, bytes: usize, align: usize) -> (NonNull<u8>, usize) {
        // Cannot fail: `bytes` is at most two u32 lengths and a header, `align` a power of two.
        #[allow(clippy::expect_used, reason = "sizes are bounded by two u32 lengths")]
        let layout = Layout::from_size_align(bytes, align).expect("chunk layout");
        const { assert!(NODE_ALIGN <= PAGE_BYTES) };
        if bytes >= PAGES_CHUNK {
            let pooled = match &self.pool {
                Some(pool) if bytes == POOLED_BYTES => pool.take(),
                _ => None,
            };
            let Some(pages) = pooled.or_else(|| Pages::new(bytes)) else {
                handle_alloc_error(layout)
            };
            let chunk = (pages.start(), pages.len());
            self.all.push(Chunk::Pages(pages));
            return chunk;
        }
        // SAFETY: `bytes` is not 0.
        let memory = unsafe { alloc(layout) };
        let Some(memory) = NonNull::new(memory) else {
            handle_alloc_error(layout)
        };
        self.all.push(Chunk::Heap(memory, layout));
        (memory, bytes)
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        let mut pooled = Vec::new();
        for chunk in self.all.drain(..) {
            match chunk {
                // SAFETY: allocated by `add` with this layout, freed only here.
                Chunk::Heap(memory, layout) => unsafe { dealloc(memory.as_ptr(), layout) },
                Chunk::Pages(pages) if pages.len() == POOLED_BYTES => pooled.push(pages),
                Chunk::Pages(_) => {}
            }
        }
        if let Some(pool) = &self.pool
            && !pooled.is_empty()
        {
            pool.give(pooled);
        }
    }
}

/// # Panics
///
/// If key or value are 4 GiB or longer. Batches refuse far shorter ones.
fn lengths(key: &[u8], value: [&[u8]; 2]) -> (u32, u32) {
    let value_len = value[0].len() + value[1].len();
    assert!(
        key.len() <= u32::MAX as usize && value_len <= u32::MAX as usize,
        "entry too long"
    );
    (key.len() as u32, value_len as u32)
}

/// Copies `bytes` to `to` and returns where they end.
///
/// # Safety
///
/// `to` must be valid for writes of that many bytes.
unsafe fn copy(to: NonNull<u8>, bytes: &[u8]) -> NonNull<u8> {
    // SAFETY: the caller's promise; `bytes` cannot overlap memory that was just allocated.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len());
        to.add(bytes.len())
    }
}

/// Writes the links of a new version over `next` at `entry` and returns where its header goes.
///
/// # Safety
///
/// `entry` must be valid for writes of the links and the header, and aligned to 8.
unsafe fn link(entry: NonNull<u8>, next: Entry<'_>) -> NonNull<Header> {
    // SAFETY: the caller's promise.
    unsafe {
        let links = entry.cast::<Links>();
        let header = links.add(1).cast::<Header>();
        let (depth, jump) = match next.links() {
            // The first with links: nowhere to jump.
            None => (0, header.as_ptr().cast_const()),
            Some(below) => {
                // Two equal jumps in a row become one; otherwise the shortest jump there is.
                let near = Entry::from_raw(NonNull::new_unchecked(below.jump.cast_mut()));
                let (near_depth, far) = near
                    .links()
                    .map_or((0, below.jump), |links| (links.depth, links.jump));
                let far_depth = Entry::from_raw(NonNull::new_unchecked(far.cast_mut()))
                    .links()
                    .map_or(0, |links| links.depth);
                let equal =
                    below.depth.wrapping_sub(near_depth) == near_depth.wrapping_sub(far_depth);
                (
                    below.depth + 1,
                    if equal {
                        far
                    } else {
                        next.raw().as_ptr().cast_const()
                    },
                )
            }
        };
        links.write(Links {
            depth,
            jump,
            next: AtomicPtr::new(next.raw().as_ptr()),
        });
        header
    }
}

/// An entry in an arena that lives at least as long as `'a`.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    header: NonNull<Header>,
    arena: PhantomData<&'a Arena>,
}

impl<'a> Entry<'a> {
    /// # Safety
    ///
    /// `header` must come from an arena that lives at least as long as `'a`, and the writing of the
    /// entry must happen before this call: either in this thread, or in another that stored the
    /// pointer with release order into the place from which it was loaded with acquire order.
    #[inline]
    pub(super) const unsafe fn from_raw(header: NonNull<Header>) -> Self {
        Self {
            header,
            arena: PhantomData,
        }
    }

    #[inline]
    pub(super) const fn raw(self) -> NonNull<Header> {
        self.header
    }

    #[inline]
    fn header(self) -> &'a Header {
        // SAFETY: `from_raw`'s promise; headers do not change once written.
        let header = unsafe { self.header.as_ref() };
        header.written.check();
        header
    }

    #[inline]
    fn links(self) -> Option<&'a Links> {
        if self.header().trailer & LINKED == 0 {
            return None;
        }
        // SAFETY: an entry with this flag was written by `link`, right after its links, in one
        // allocation from which the pointer to the header is derived. Of the links only `next`
        // changes, which is atomic.
        Some(unsafe { self.header.cast::<Links>().sub(1).as_ref() })
    }

    #[inline]
    pub(super) fn trailer(self) -> Trailer {
        Trailer(self.header().trailer & !FLAGS)
    }

    #[inline]
    pub(super) fn seqno(self) -> SeqNo {
        self.trailer().seqno()
    }

    #[inline]
    pub(super) fn key(self) -> &'a [u8] {
        let header = self.header();
        // SAFETY: the key's bytes, or the address of bytes that live as long as the arena, follow
        // the header in its allocation and do not change.
        unsafe {
            let rest = self.header.add(1);
            let bytes = if header.trailer & (TWIN | KEY_ELSEWHERE) == 0 {
                rest.cast::<u8>().as_ptr().cast_const()
            } else {
                rest.cast::<*const u8>().read()
            };
            std::slice::from_raw_parts(bytes, header.key_len as usize)
        }
    }

    #[inline]
    pub(super) fn value(self) -> &'a [u8] {
        let header = self.header();
        // SAFETY: after the key (or its address) come the value's bytes, or in a twin their
        // address.
        unsafe {
            let rest = self.header.add(1).cast::<u8>();
            let bytes = if header.trailer & (TWIN | KEY_ELSEWHERE) == 0 {
                rest.add(header.key_len as usize).as_ptr().cast_const()
            } else if header.trailer & TWIN == 0 {
                rest.add(size_of::<*const u8>()).as_ptr().cast_const()
            } else {
                rest.cast::<*const u8>().add(1).read()
            };
            std::slice::from_raw_parts(bytes, header.value_len as usize)
        }
    }

    /// The next older version of the key.
    #[inline]
    pub(super) fn next(self) -> Option<Self> {
        let next = NonNull::new(self.links()?.next.load(Ordering::Acquire))?;
        // SAFETY: `next` was published with release order and is of the same arena.
        Some(unsafe { Self::from_raw(next) })
    }

    /// Puts `next` below this version.
    ///
    /// REQUIRES: the entry has links; one writer at a time.
    pub(super) fn set_next(self, next: Entry<'_>) {
        if let Some(links) = self.links() {
            links.next.store(next.raw().as_ptr(), Ordering::Release);
        }
    }

    /// Whether it can have older versions below it.
    pub(super) fn is_linked(self) -> bool {
        self.links().is_some()
    }

    /// The newest version at or below `snapshot`, of this one and those below it.
    #[inline]
    pub(super) fn visible(self, snapshot: SeqNo) -> Option<Self> {
        let mut entry = self;
        while entry.seqno() > snapshot {
            let links = entry.links()?;
            // SAFETY: `jump` is of the same arena, not null, and was written before this entry was
            // published.
            let jump = unsafe { Self::from_raw(NonNull::new_unchecked(links.jump.cast_mut())) };
            entry = if jump.header != entry.header && jump.seqno() > snapshot {
                jump
            } else {
                entry.next()?
            };
        }
        Some(entry)
    }

    /// Orders `key` against this entry's key.
    #[inline]
    pub(super) fn cmp_key(self, key: &[u8]) -> Order {
        key.cmp(self.key())
    }
}
