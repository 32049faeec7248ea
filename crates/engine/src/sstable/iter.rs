//! Walks the entries of an SSTable in both directions.
//!
//! The iterator holds its current block, so that a move inside of it touches nothing shared. Blocks
//! come from the block cache; where one is missing and the walk is sequential, a window of several is
//! read from the file by one call, which doubles the longer the walk lasts, and the kernel is asked
//! to have the next large one ready. Blocks of a window are decoded without asking the cache.
//!
//! What a walk reads is decoded into a buffer of the iterator, and copied into the cache if that wants
//! it; a long walk puts nothing into a cache that is full. A reader that asks for no caching
//! (compaction, verification of copies) goes past the cache from the start. The buffers of iterators
//! that ended serve the next ones of their thread.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use firn_io::fs::Advice;

use crate::cache::Block;
use crate::error::Result;
use crate::iterator::InternalIterator;
use crate::key::Trailer;
use crate::sstable::block::{BlockBuf, Entry, Layout, View, block_bytes};
use crate::sstable::reader::Table;

/// The first and the largest window, in bytes.
const MIN_WINDOW_BYTES: usize = 4 << 10;
const MAX_WINDOW_BYTES: usize = 256 << 10;
/// Windows from this size on are announced to the kernel.
const ANNOUNCED_BYTES: usize = 64 << 10;
/// A walk over more blocks than this is long.
const LONG_WALK_BLOCKS: u32 = 128;

/// How an iterator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// Look into the block cache, and put what was read there. Without it the cache is neither
    /// asked nor filled.
    pub fill_cache: bool,
    /// Read this many bytes at once from the first block on; 0: only where the walk turns out to be
    /// sequential.
    pub readahead_bytes: usize,
    /// Read at least this many bytes where a seek meets a block that is not in the cache.
    pub seek_bytes: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            fill_cache: true,
            readahead_bytes: 0,
            seek_bytes: 0,
        }
    }
}

impl ReadOptions {
    /// For reading a table once from front to back.
    pub fn sequential(readahead_bytes: usize) -> Self {
        Self {
            fill_cache: false,
            readahead_bytes,
            seek_bytes: 0,
        }
    }
}

/// The block that an iterator stands in.
enum Current {
    /// One of the cache.
    Shared(Block),
    /// The one in the iterator's own buffer.
    Own,
}

/// See the module's page.
pub struct TableIter {
    table: Arc<Table>,
    options: ReadOptions,
    current: Current,
    buf: BlockBuf,
    /// The number of the current block; `usize::MAX` if there is none.
    block_no: usize,
    /// Of the current block.
    layout: Layout,
    i: usize,
    valid: bool,
    entry: Entry,
    key: Vec<u8>,
    /// Bytes of the file, some blocks long (the buffer may be longer), and where they start.
    ahead: Vec<u8>,
    ahead_len: usize,
    ahead_offset: u64,
    /// How many bytes the next window has; 0 where the walk is not sequential.
    window: usize,
    /// Sequential moves from block to block, in the direction `forward`.
    run: u32,
    forward: bool,
}

impl fmt::Debug for TableIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TableIter({:?}, block {}, entry {})",
            self.table, self.block_no, self.i
        )
    }
}

/// What iterators leave to the next.
#[derive(Default)]
struct Buffers {
    buf: BlockBuf,
    ahead: Vec<u8>,
    key: Vec<u8>,
}

/// So many are kept in each thread, if they are not larger than that.
const POOLED: usize = 8;
const POOLED_BYTES: usize = 32 << 10;

thread_local! {
    static POOL: RefCell<Vec<Buffers>> = const { RefCell::new(Vec::new()) };
}

impl Drop for TableIter {
    fn drop(&mut self) {
        let mut buf = std::mem::take(&mut self.buf);
        buf.clear();
        let ahead = std::mem::take(&mut self.ahead);
        let key = std::mem::take(&mut self.key);
        if buf.memory_bytes().max(ahead.capacity()).max(key.capacity()) > POOLED_BYTES {
            return;
        }
        // While a thread ends there is no pool.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < POOLED {
                pool.push(Buffers { buf, ahead, key });
            }
        });
    }
}

impl TableIter {
    pub(crate) fn new(table: Arc<Table>, options: ReadOptions) -> Self {
        let Buffers { buf, ahead, key } = POOL
            .try_with(|pool| pool.borrow_mut().pop().unwrap_or_default())
            .unwrap_or_default();
        Self {
            table,
            options,
            current: Current::Own,
            buf,
            block_no: usize::MAX,
            layout: Layout::default(),
            i: 0,
            valid: false,
            entry: Entry::default(),
            key,
            ahead,
            ahead_len: 0,
            ahead_offset: 0,
            window: 0,
            run: 0,
            forward: true,
        }
    }

    /// The table that it walks.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    #[inline]
    fn image(&self) -> &[u8] {
        match &self.current {
            Current::Shared(block) => block.image(),
            Current::Own => self.buf.image(),
        }
    }

    /// The current block.
    #[inline]
    fn view(&self) -> View<'_> {
        View::new(self.image())
    }

    /// The entry after the one that it stands on.
    #[inline]
    fn entry_after(&self) -> Entry {
        let bytes = block_bytes(self.image());
        self.layout.entry_from(bytes, self.i + 1, self.entry.end)
    }

    fn blocks(&self) -> usize {
        self.table.index().len()
    }

    /// Makes block `no` the current one. After an error there is none.
    fn load(&mut self, no: usize, forward: bool) -> Result<()> {
        if self.block_no == no {
            return Ok(());
        }
        self.valid = false;
        let before = std::mem::replace(&mut self.block_no, usize::MAX);
        let next = if forward {
            before.wrapping_add(1)
        } else {
            before.wrapping_sub(1)
        };
        // A first block is no sequence (and MAX + 1 is 0).
        if no == next && before != usize::MAX && forward == self.forward {
            self.run = self.run.saturating_add(1);
            self.window = self.window.max(MIN_WINDOW_BYTES);
        } else {
            self.run = 0;
            self.window = 0;
        }
        self.forward = forward;
        let (offset, len) = self.table.index().block(no);
        if !self.is_ahead(offset, len) {
            if self.options.fill_cache
                && let Some(block) = self.table.cached(no)
            {
                self.current = Current::Shared(block);
                self.loaded(no);
                return Ok(());
            }
            self.read_ahead(no, offset, len)?;
        } else if self.options.fill_cache && self.run < LONG_WALK_BLOCKS {
            let table = &self.table;
            table.cache().prefetch_admission(table.id(), offset);
        }
        let from = (offset - self.ahead_offset) as usize;
        let bytes = &self.ahead[from..from + len];
        self.current = Current::Own;
        self.table.decode_block(bytes, offset, &mut self.buf)?;
        if self.options.fill_cache {
            let (cache, id, image) = (self.table.cache(), self.table.id(), self.buf.image());
            let keep = if self.run < LONG_WALK_BLOCKS {
                cache.admits(id, offset, image)
            } else {
                cache.has_room(id, offset, image)
            };
            if keep {
                let hint = self.table.index().hint(no);
                cache.insert(id, offset, hint, Block::new(image));
            }
        }
        self.loaded(no);
        Ok(())
    }

    fn loaded(&mut self, no: usize) {
        self.block_no = no;
        self.layout = Layout::of(self.image());
    }

    /// Whether the stored bytes of a block are in the window.
    fn is_ahead(&self, offset: u64, len: usize) -> bool {
        let end = self.ahead_offset + self.ahead_len as u64;
        self.ahead_offset <= offset && offset + len as u64 <= end
    }

    /// Reads the stored bytes of a block, and maybe of those that follow in the direction of the
    /// walk.
    fn read_ahead(&mut self, no: usize, offset: u64, len: usize) -> Result<()> {
        let index = self.table.index();
        let end = offset + len as u64;
        let window = match self.run {
            0 => self.options.seek_bytes,
            _ => self.window,
        };
        let window = window.max(self.options.readahead_bytes);
        self.window = (2 * self.window).min(MAX_WINDOW_BYTES);
        let (mut from, mut to) = (offset, end);
        if window > len {
            if self.forward {
                to = index.end_within(no, offset + window as u64);
            } else {
                from = index.start_within(no, end.saturating_sub(window as u64));
            }
        }
        let wanted = (to - from) as usize;
        if self.ahead.len() < wanted {
            self.ahead.resize(wanted, 0);
        }
        self.ahead_len = 0;
        self.ahead_offset = from;
        let result = self.table.read_data(&mut self.ahead[..wanted], from);
        if result.is_ok() {
            self.ahead_len = wanted;
        }
        if result.is_ok() && window >= ANNOUNCED_BYTES {
            let next = if self.forward {
                to..to + window as u64
            } else {
                from.saturating_sub(window as u64)..from
            };
            let next = next.start..next.end.min(index.data_end());
            if next.start < next.end {
                let (file, len) = (self.table.file(), next.end - next.start);
                file.advise(next.start, len, Advice::WillNeed);
            }
        }
        result
    }

    /// Stands on entry `i` of the current block.
    #[inline]
    fn stand(&mut self, i: usize) {
        self.i = i;
        let mut key = std::mem::take(&mut self.key);
        let view = self.view();
        let entry = view.entry(i);
        view.key_into(i, &entry, &mut key);
        self.key = key;
        self.entry = entry;
        self.valid = true;
    }

    /// Stands on `entry`, whose shared bytes the key before begins with.
    #[inline]
    fn step(&mut self, entry: Entry) {
        self.key.truncate(entry.shared);
        let image = match &self.current {
            Current::Shared(block) => block.image(),
            Current::Own => self.buf.image(),
        };
        let suffix = &block_bytes(image)[entry.suffix..entry.value];
        self.key.extend_from_slice(suffix);
        self.entry = entry;
    }

    #[inline(never)]
    fn next_block(&mut self) -> Result<()> {
        self.valid = false;
        let no = self.block_no + 1;
        if no < self.blocks() {
            self.load(no, true)?;
            self.stand(0);
        }
        Ok(())
    }

    #[inline(never)]
    fn prev_block(&mut self) -> Result<()> {
        self.valid = false;
        if let Some(no) = self.block_no.checked_sub(1) {
            self.load(no, false)?;
            self.stand(self.layout.count() - 1);
        }
        Ok(())
    }
}

impl InternalIterator for TableIter {
    #[inline]
    fn valid(&self) -> bool {
        self.valid
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.valid = false;
        if self.blocks() > 0 {
            self.load(0, true)?;
            self.stand(0);
        }
        Ok(())
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.valid = false;
        if let Some(last) = self.blocks().checked_sub(1) {
            self.load(last, false)?;
            self.stand(self.layout.count() - 1);
        }
        Ok(())
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.valid = false;
        let no = self.table.index().find(key);
        if no < self.blocks() {
            self.load(no, true)?;
            let i = self.view().lower_bound(key, u64::MAX);
            if i < self.layout.count() {
                self.stand(i);
            } else {
                self.next_block()?;
            }
        }
        Ok(())
    }

    fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        self.valid = false;
        let Some(last) = self.blocks().checked_sub(1) else {
            return Ok(());
        };
        self.load(self.table.index().find(key).min(last), false)?;
        match self.view().lower_bound(key, u64::MAX).checked_sub(1) {
            Some(i) => self.stand(i),
            None => self.prev_block()?,
        }
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        if self.i + 1 >= self.layout.count() {
            return self.next_block();
        }
        let entry = self.entry_after();
        self.i += 1;
        self.step(entry);
        Ok(())
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        let Some(i) = self.i.checked_sub(1) else {
            return self.prev_block();
        };
        let entry = self.layout.entry(block_bytes(self.image()), i);
        if entry.shared == self.entry.shared {
            // The shared bytes are here already (or there are none).
            self.i = i;
            self.step(entry);
        } else {
            self.stand(i);
        }
        Ok(())
    }

    #[inline]
    fn key(&self) -> &[u8] {
        &self.key
    }

    #[inline]
    fn trailer(&self) -> Trailer {
        Trailer(self.entry.trailer)
    }

    #[inline]
    fn value(&self) -> &[u8] {
        &block_bytes(self.image())[self.entry.value..self.entry.end]
    }

    fn next_key(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        let mut steps = 0;
        loop {
            let (i, entry) = if self.i + 1 < self.layout.count() {
                (self.i + 1, self.entry_after())
            } else {
                let no = self.block_no + 1;
                if no >= self.blocks() {
                    self.valid = false;
                    return Ok(());
                }
                self.load(no, true)?;
                self.valid = true;
                (0, self.view().entry(0))
            };
            // What it shares with its restart point, the current key has too; a restart point
            // shares nothing.
            let suffix = &block_bytes(self.image())[entry.suffix..entry.value];
            // Keys that are neighbours mostly differ in their last byte, which spares the call of a
            // comparison.
            let same = self
                .key
                .get(entry.shared..)
                .is_some_and(|present| present.last() == suffix.last() && present == suffix);
            self.i = i;
            if !same {
                self.step(entry);
                return Ok(());
            }
            self.entry = entry;
            steps += 1;
            if steps == 4 {
                // Many versions: jump to the oldest of them in this block.
                steps = 0;
                let end = self.view().lower_bound(&self.key, 0);
                if end > self.i + 1 {
                    self.i = end - 1;
                    self.entry = self.view().entry(self.i);
                }
            }
        }
    }
}
