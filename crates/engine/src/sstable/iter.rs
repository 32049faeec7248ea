//! Walks the entries of an SSTable in both directions.
//!
//! The iterator holds its current block, so that a move inside of it touches nothing shared. Blocks
//! come from the block cache; where they are missing and the walk is sequential, several are read
//! from the file by one call, more the longer the walk lasts. A reader that asks for no caching
//! (compaction, verification of copies) goes past the cache and decodes every block into the same
//! buffers.

use std::fmt;
use std::sync::Arc;

use crate::cache::{Block, BlockSlice};
use crate::error::Result;
use crate::iterator::InternalIterator;
use crate::key::Trailer;
use crate::sstable::block::Entry;
use crate::sstable::reader::Table;

/// Sequential moves from block to block before several are read at once.
const SEQUENTIAL_BLOCKS: u32 = 2;
/// The first and the largest such read, in bytes.
const MIN_READAHEAD_BYTES: usize = 16 << 10;
const MAX_READAHEAD_BYTES: usize = 256 << 10;

/// How an iterator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// Look into the block cache, and put what was read there. Without it the cache is neither
    /// asked nor filled.
    pub fill_cache: bool,
    /// Read this many bytes at once from the first block on; 0: only where the walk turns out to be
    /// sequential.
    pub readahead_bytes: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            fill_cache: true,
            readahead_bytes: 0,
        }
    }
}

impl ReadOptions {
    /// For reading a table once from front to back.
    pub fn sequential(readahead_bytes: usize) -> Self {
        Self {
            fill_cache: false,
            readahead_bytes,
        }
    }
}

/// See the module's page.
pub struct TableIter {
    table: Arc<Table>,
    options: ReadOptions,
    block: Arc<Block>,
    /// The number of `block`; `usize::MAX` if there is none.
    block_no: usize,
    i: usize,
    valid: bool,
    entry: Entry,
    key: Vec<u8>,
    /// Bytes of the file, some blocks long, and where they start.
    ahead: Vec<u8>,
    ahead_offset: u64,
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

impl TableIter {
    pub(crate) fn new(table: Arc<Table>, options: ReadOptions) -> Self {
        Self {
            table,
            options,
            block: Arc::default(),
            block_no: usize::MAX,
            i: 0,
            valid: false,
            entry: Entry::default(),
            key: Vec::new(),
            ahead: Vec::new(),
            ahead_offset: 0,
            run: 0,
            forward: true,
        }
    }

    /// The table that it walks.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The value as a slice that outlives the next move. REQUIRES: valid.
    pub fn value_slice(&self) -> BlockSlice {
        BlockSlice::new(Arc::clone(&self.block), self.entry.value, self.entry.end)
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
        self.run = if no == next && before != usize::MAX && forward == self.forward {
            self.run.saturating_add(1)
        } else {
            0
        };
        self.forward = forward;
        let (offset, len) = self.table.index().block(no);
        if self.options.fill_cache
            && let Some(block) = self.table.cache().get(self.table.id(), offset)
        {
            self.block = block;
            self.block_no = no;
            return Ok(());
        }
        self.read_ahead(no)?;
        let from = (offset - self.ahead_offset) as usize;
        let bytes = &self.ahead[from..from + len];
        if self.options.fill_cache {
            let mut block = Block::default();
            self.table.decode_block(bytes, offset, &mut block)?;
            self.block = Arc::new(block);
            self.table
                .cache()
                .insert(self.table.id(), offset, Arc::clone(&self.block));
        } else {
            // The buffers of the block before serve again, unless somebody holds a slice of it.
            if Arc::get_mut(&mut self.block).is_none() {
                self.block = Arc::default();
            }
            if let Some(block) = Arc::get_mut(&mut self.block) {
                self.table.decode_block(bytes, offset, block)?;
            }
        }
        self.block_no = no;
        Ok(())
    }

    /// Has the stored bytes of block `no`, and maybe of those that follow in the direction of the
    /// walk, in `ahead`.
    fn read_ahead(&mut self, no: usize) -> Result<()> {
        let index = self.table.index();
        let (offset, len) = index.block(no);
        let end = offset + len as u64;
        if self.ahead_offset <= offset && end <= self.ahead_offset + self.ahead.len() as u64 {
            return Ok(());
        }
        let window = if self.options.readahead_bytes > 0 {
            self.options.readahead_bytes
        } else if self.run >= SEQUENTIAL_BLOCKS {
            (MIN_READAHEAD_BYTES << (self.run - SEQUENTIAL_BLOCKS).min(8)).min(MAX_READAHEAD_BYTES)
        } else {
            0
        };
        let (mut from, mut to) = (offset, end);
        if window > len {
            if self.forward {
                to = to.max(index.last_boundary(offset + window as u64));
            } else {
                from = from.min(index.first_boundary(end.saturating_sub(window as u64)));
            }
        }
        self.ahead.resize((to - from) as usize, 0);
        self.ahead_offset = from;
        let result = self.table.read_data(&mut self.ahead, from);
        if result.is_err() {
            self.ahead.clear();
        }
        result
    }

    /// Stands on entry `i` of the current block.
    #[inline]
    fn stand(&mut self, i: usize) {
        self.i = i;
        self.entry = self.block.entry(i);
        self.block.key_into(i, &self.entry, &mut self.key);
        self.valid = true;
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
            self.stand(self.block.count as usize - 1);
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
            self.stand(self.block.count as usize - 1);
        }
        Ok(())
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.valid = false;
        let no = self.table.index().find(key);
        if no < self.blocks() {
            self.load(no, true)?;
            let i = self.block.lower_bound(key, u64::MAX);
            if i < self.block.count as usize {
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
        match self.block.lower_bound(key, u64::MAX).checked_sub(1) {
            Some(i) => self.stand(i),
            None => self.prev_block()?,
        }
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        if self.i + 1 >= self.block.count as usize {
            return self.next_block();
        }
        self.i += 1;
        self.entry = self.block.entry_at(self.entry.end);
        // The key before shares at least as much with the restart point as this one.
        self.key.truncate(self.entry.shared);
        self.key.extend_from_slice(self.block.suffix(&self.entry));
        Ok(())
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        let Some(i) = self.i.checked_sub(1) else {
            return self.prev_block();
        };
        let shared = self.entry.shared;
        self.i = i;
        self.entry = self.block.entry(i);
        if self.entry.shared == shared {
            // The shared bytes are here already (or there are none).
            self.key.truncate(shared);
            self.key.extend_from_slice(self.block.suffix(&self.entry));
        } else {
            self.block.key_into(i, &self.entry, &mut self.key);
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
        self.block.value(&self.entry)
    }

    fn next_key(&mut self) -> Result<()> {
        debug_assert!(self.valid);
        let mut steps = 0;
        loop {
            let count = self.block.count as usize;
            let (i, entry) = if self.i + 1 < count {
                let entry = self.block.entry_at(self.entry.end);
                (self.i + 1, entry)
            } else {
                let no = self.block_no + 1;
                if no >= self.blocks() {
                    self.valid = false;
                    return Ok(());
                }
                self.load(no, true)?;
                self.valid = true;
                (0, self.block.entry(0))
            };
            // What it shares with its restart point, the current key has too; a restart point
            // shares nothing.
            let same = self.key.get(entry.shared..) == Some(self.block.suffix(&entry));
            self.i = i;
            self.entry = entry;
            if !same {
                self.key.truncate(entry.shared);
                self.key.extend_from_slice(self.block.suffix(&entry));
                return Ok(());
            }
            steps += 1;
            if steps == 4 {
                // Many versions: jump to the oldest of them in this block.
                steps = 0;
                let end = self.block.lower_bound(&self.key, 0);
                if end > self.i + 1 {
                    self.i = end - 1;
                    self.entry = self.block.entry(self.i);
                }
            }
        }
    }
}
