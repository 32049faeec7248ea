//! Several keys of one table at once.
//!
//! One lookup is a chain of steps, each of which waits for memory: a line of the filter, one of the
//! index, a slot of the cache, the block. For many keys each step is done for all of them before the
//! next, so that the processor has many of these waits under way at the same time.
//!
//! Blocks that are not in the cache are read in the order of the file. Those that the kernel has in
//! memory come first; it is asked for all the others together before the first is waited for, so that
//! a disk serves them side by side.

use firn_io::fs::Advice;

use crate::cache::Block;
use crate::error::Result;
use crate::key::SeqNo;
use crate::sstable::reader::{Search, Table, TableEntry, newest_trailer};

/// A key that is looked for.
#[derive(Debug)]
pub(crate) struct Wanted<'k> {
    pub(crate) key: &'k [u8],
    /// Its [`key_hash`](crate::sstable::filter::key_hash).
    pub(crate) hash: u64,
    /// What was found.
    pub(crate) found: Option<TableEntry>,
    /// What [`Index::descend`](crate::sstable::index::Index::descend) said; `Err(NONE)` if the filter
    /// has let the key pass by.
    way: std::result::Result<usize, usize>,
    /// Which block may have it, and that block, if it is cached.
    block: usize,
    cached: Option<Block>,
    /// Where in it.
    candidates: (usize, usize),
}

/// No block has it.
const NONE: usize = usize::MAX;

impl<'k> Wanted<'k> {
    pub(crate) fn new(key: &'k [u8], hash: u64) -> Self {
        Self {
            key,
            hash,
            found: None,
            way: Err(NONE),
            block: NONE,
            cached: None,
            candidates: (0, 0),
        }
    }
}

impl Table {
    /// For each key, which must ascend, the newest entry that a reader at `snapshot` sees; as
    /// [`Table::get`] for one. Does not look at range tombstones.
    pub(crate) fn get_many(&self, wanted: &mut [Wanted<'_>], snapshot: SeqNo) -> Result<()> {
        let newest = newest_trailer(snapshot);
        let index = self.index();
        for w in wanted.iter() {
            self.prefetch_filter(w.hash);
        }
        for w in wanted.iter_mut() {
            w.way = match self.may_contain(w.hash) {
                true => index.descend(w.key),
                false => Err(NONE),
            };
        }
        let mut asked = Vec::with_capacity(wanted.len());
        let mut blocks = Vec::with_capacity(wanted.len());
        for (i, w) in wanted.iter_mut().enumerate() {
            w.block = index.find_on(w.way, w.key);
            if w.block < index.len() {
                asked.push(i);
                blocks.push((index.block(w.block).0, index.hint(w.block)));
            }
        }
        let mut missing = Vec::new();
        self.cache().get_many(self.id(), &blocks, |i, block| {
            let w = &mut wanted[asked[i]];
            match block {
                Some(block) => {
                    w.candidates = block.candidates(w.key);
                    w.cached = Some(block);
                }
                None => missing.push((w.block, asked[i])),
            }
        });
        for w in wanted.iter_mut() {
            if let Some(block) = w.cached.take() {
                let found = block.search_among(w.candidates, w.key, newest);
                self.take(w, found, snapshot)?;
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let waits = self.read_missing(wanted, &missing, snapshot, false)?;
        if waits.len() > 1 {
            for &(block, _) in &waits {
                let (offset, len) = self.index().block(block);
                self.file().advise(offset, len as u64, Advice::WillNeed);
            }
        }
        self.read_missing(wanted, &waits, snapshot, true)?;
        Ok(())
    }

    /// Notes what the search in the right block came to.
    fn take(&self, w: &mut Wanted<'_>, found: Search, snapshot: SeqNo) -> Result<()> {
        w.found = match found {
            Search::Entry(entry) => Some(entry),
            // There are more versions in the next block.
            Search::PastEnd if self.index().separator_is(w.block, w.key) => {
                self.get_unfiltered(w.key, snapshot)?
            }
            Search::PastEnd | Search::Nothing => None,
        };
        Ok(())
    }

    /// Reads these blocks and searches each for the key with the number beside it. Returns those that
    /// are not in the kernel's memory, unless it is to `wait` for them.
    fn read_missing(
        &self,
        wanted: &mut [Wanted<'_>],
        missing: &[(usize, usize)],
        snapshot: SeqNo,
        wait: bool,
    ) -> Result<Vec<(usize, usize)>> {
        let newest = newest_trailer(snapshot);
        let mut waits = Vec::new();
        // Neighbours may be in the same block.
        for same in missing.chunk_by(|(a, _), (b, _)| a == b) {
            let block = same[0].0;
            let mut found = Vec::with_capacity(same.len());
            let keys = same.iter().map(|&(_, i)| wanted[i].key);
            let mut push = |search| found.push(search);
            let cache = self.cache();
            cache.prefetch_admission(self.id(), self.index().block(block).0);
            if !self.search_uncached(block, keys, newest, wait, &mut push)? {
                waits.extend_from_slice(same);
                continue;
            }
            for (&(_, i), found) in same.iter().zip(found) {
                self.take(&mut wanted[i], found, snapshot)?;
            }
        }
        Ok(waits)
    }
}
