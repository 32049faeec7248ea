//! Reads an SSTable: point lookups, and the blocks that iterators walk.
//!
//! [`Table::open`] reads and checks the footer, the index, the filter, the range tombstones and the
//! properties, and keeps them. Data blocks are read when they are needed, checked, decompressed,
//! indexed (see `sstable::block`) and put into the block cache.
//!
//! [`Table::get`] asks the filter (one cache line), finds the block in the index (integers in a
//! row), takes it from the cache, and searches it (integers again). What it returns is a slice of
//! the cached block: nothing is copied.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use firn_io::codec::Reader;
use firn_io::fs::{Advice, File};

use crate::cache::{Block, BlockCache, BlockSlice};
use crate::error::{Error, Result};
use crate::key::{FileId, SeqNo, Trailer};
use crate::options::MAX_KEY_BYTES;
use crate::range_del::{RangeTombstone, RangeTombstones};
use crate::sstable::block::{BlockBuf, Found, MAX_BLOCK_BYTES, View, in_image};
use crate::sstable::filter::Filter;
use crate::sstable::footer::{BadFooter, FOOTER_BYTES, Footer, Handle};
use crate::sstable::index::Index;
use crate::sstable::iter::{ReadOptions, TableIter};
use crate::sstable::properties::Properties;
use crate::sstable::salvage::{Parts, Walk};
use crate::sstable::stored::{self, Bad};
use crate::sstable::writer::bounds;

/// What a search for one key in a block came to; see [`Found`].
pub(crate) enum Search {
    Entry(TableEntry),
    Nothing,
    PastEnd,
}

impl Block {
    /// Looks for a key in a shared block; a value that is found is a slice of it.
    #[inline]
    pub(crate) fn search(self, key: &[u8], newest: u64) -> Search {
        let found = View::new(self.image()).get(key, newest);
        self.into_search(found)
    }

    /// The first step of [`search`](Self::search): the entries that may be of a key. Has the memory
    /// fetched that the second step reads.
    #[inline]
    pub(crate) fn candidates(&self, key: &[u8]) -> (usize, usize) {
        let view = View::new(self.image());
        let range = view.candidates(key);
        view.prefetch(range);
        range
    }

    /// The second step, among the [`candidates`](Self::candidates) of the same key in this block.
    #[inline]
    pub(crate) fn search_among(self, range: (usize, usize), key: &[u8], newest: u64) -> Search {
        let found = View::new(self.image()).get_among(range, key, newest);
        self.into_search(found)
    }

    #[inline]
    fn into_search(self, found: Found) -> Search {
        match found {
            Found::Entry(entry) => {
                let (start, end) = in_image(&entry);
                Search::Entry(TableEntry {
                    trailer: Trailer(entry.trailer),
                    value: TableValue::Slice(BlockSlice::new(self, start, end)),
                })
            }
            Found::Nothing => Search::Nothing,
            Found::PastEnd => Search::PastEnd,
        }
    }
}

/// Looks for a key in an image that is not kept; a value that is found is copied.
fn search_image(image: &[u8], key: &[u8], newest: u64) -> Search {
    let view = View::new(image);
    match view.get(key, newest) {
        Found::Entry(entry) => Search::Entry(TableEntry {
            trailer: Trailer(entry.trailer),
            value: TableValue::Copy(view.value(&entry).into()),
        }),
        Found::Nothing => Search::Nothing,
        Found::PastEnd => Search::PastEnd,
    }
}

/// The greatest trailer that a reader at `snapshot` sees.
#[inline]
pub(crate) const fn newest_trailer(snapshot: SeqNo) -> u64 {
    snapshot.0 << 8 | 0xff
}

/// Stored bytes beyond this are not kept for the next block.
const KEPT_SCRATCH_BYTES: usize = 1 << 20;

/// How far a search has come in a table, see [`Table::way`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way(std::result::Result<usize, usize>);

/// What a thread reads blocks into.
#[derive(Default)]
struct Scratch {
    stored: Vec<u8>,
    buf: BlockBuf,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// An entry found by [`Table::get`].
#[derive(Clone, Debug)]
pub struct TableEntry {
    /// Sequence number and kind.
    pub trailer: Trailer,
    /// The stored value.
    pub value: TableValue,
}

/// A stored value. Dereferences to its bytes.
#[derive(Clone, Debug)]
pub enum TableValue {
    /// A slice of a block that is in the cache.
    Slice(BlockSlice),
    /// A copy from a block that is not.
    Copy(Box<[u8]>),
}

impl std::ops::Deref for TableValue {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Slice(slice) => slice,
            Self::Copy(bytes) => bytes,
        }
    }
}

/// What [`Table::verify`] counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCheck {
    /// Entries read.
    pub entries: u64,
    /// Data blocks read.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// An open SSTable. Threads share it freely.
pub struct Table {
    file: Arc<dyn File>,
    id: FileId,
    cache: Arc<BlockCache>,
    index: Index,
    filter: Option<Filter>,
    range_tombstones: Arc<RangeTombstones>,
    properties: Properties,
    smallest: Vec<u8>,
    largest: Vec<u8>,
    largest_exclusive: bool,
    file_bytes: u64,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({}, {} bytes)", self.id, self.file_bytes)
    }
}

pub(crate) fn bad(file: &dyn File, offset: u64, why: Bad) -> Error {
    match why {
        Bad::Damaged(detail) => Error::corruption(file.path(), offset, detail),
        Bad::Unsupported(detail) => Error::UnsupportedFormat(format!(
            "{} at offset {offset}: {detail}",
            file.path().display()
        )),
    }
}

/// Reads exactly `buf.len()` bytes; a file that ends before is damaged.
pub(crate) fn read_exact(file: &dyn File, buf: &mut [u8], offset: u64) -> Result<()> {
    let read = file.read_at(buf, offset)?;
    if read < buf.len() {
        let detail = format!("the file ends {} bytes early", buf.len() - read);
        return Err(Error::corruption(file.path(), offset, detail));
    }
    Ok(())
}

/// Reads and checks the footer of a file of this length.
pub(crate) fn read_footer(file: &dyn File, file_bytes: u64) -> Result<Footer> {
    let Some(offset) = file_bytes.checked_sub(FOOTER_BYTES as u64) else {
        let detail = "the file is too short for an SSTable";
        return Err(Error::corruption(file.path(), 0, detail));
    };
    let mut bytes = [0; FOOTER_BYTES];
    read_exact(file, &mut bytes, offset)?;
    Footer::decode(&bytes, file_bytes).map_err(|why| match why {
        BadFooter::Damaged(detail) => Error::corruption(file.path(), offset, detail),
        BadFooter::Version(version) => Error::UnsupportedFormat(format!(
            "{} has format version {version}",
            file.path().display()
        )),
    })
}

/// Reads a block that is not data.
pub(crate) fn read_meta(file: &dyn File, handle: Handle) -> Result<Vec<u8>> {
    // The footer was checked against the length of the file.
    let mut bytes = vec![0; handle.len as usize];
    read_exact(file, &mut bytes, handle.offset)?;
    let (payload, compression) =
        stored::open(&bytes, handle.offset).map_err(|why| bad(file, handle.offset, why))?;
    if compression == 0 {
        let len = payload.len();
        bytes.truncate(len);
        return Ok(bytes);
    }
    let mut out = Vec::new();
    stored::unpack(payload, compression, MAX_BLOCK_BYTES, &mut out)
        .map_err(|why| bad(file, handle.offset, why))?;
    Ok(out)
}

pub(crate) fn decode_range_tombstones(
    bytes: &[u8],
) -> std::result::Result<Vec<RangeTombstone>, &'static str> {
    const BAD: &str = "the range tombstones are malformed";
    let mut reader = Reader::new(bytes);
    let count = reader.varint_u64().ok_or(BAD)?;
    // One has at least ten bytes.
    if count > reader.remaining() as u64 / 10 {
        return Err(BAD);
    }
    let mut tombstones = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let start = reader.bytes().ok_or(BAD)?;
        let end = reader.bytes().ok_or(BAD)?;
        let seqno = SeqNo(reader.u64().ok_or(BAD)?);
        if start >= end || end.len() > MAX_KEY_BYTES || seqno > SeqNo::MAX {
            return Err(BAD);
        }
        tombstones.push(RangeTombstone {
            start: start.to_vec(),
            end: end.to_vec(),
            seqno,
        });
    }
    if reader.is_empty() {
        Ok(tombstones)
    } else {
        Err(BAD)
    }
}

impl Table {
    /// Opens a finished table. Every byte that is not data is read and checked.
    pub fn open(file: Arc<dyn File>, id: FileId, cache: Arc<BlockCache>) -> Result<Self> {
        let file_bytes = file.len()?;
        let footer = read_footer(&*file, file_bytes)?;
        let damaged =
            |handle: Handle, detail| Error::corruption(file.path(), handle.offset, detail);

        let properties = Properties::decode(&read_meta(&*file, footer.properties)?)
            .map_err(|detail| damaged(footer.properties, detail))?;
        let index = Index::decode(&read_meta(&*file, footer.index)?, footer.data_bytes())
            .map_err(|detail| damaged(footer.index, detail))?;
        let filter = match footer.filter {
            Some(handle) => Some(
                Filter::decode(&read_meta(&*file, handle)?)
                    .map_err(|detail| damaged(handle, detail))?,
            ),
            None => None,
        };
        let tombstones = match footer.range_tombstones {
            Some(handle) => decode_range_tombstones(&read_meta(&*file, handle)?)
                .map_err(|detail| damaged(handle, detail))?,
            None => Vec::new(),
        };
        if properties.block_count != index.len() as u64
            || properties.keys.is_some() != (index.len() > 0)
            || properties.range_tombstone_count != tombstones.len() as u64
            || properties.data_bytes != footer.data_bytes()
        {
            let detail = "the properties do not fit the other blocks";
            return Err(damaged(footer.properties, detail));
        }
        let (smallest, largest, largest_exclusive) = bounds(&properties, &tombstones);
        file.advise(0, footer.data_bytes(), Advice::Random);
        Ok(Self {
            id,
            cache,
            index,
            filter,
            range_tombstones: Arc::new(RangeTombstones::from_unfragmented(tombstones)),
            properties,
            smallest,
            largest,
            largest_exclusive,
            file_bytes,
            file,
        })
    }

    /// Its file's number.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Its file.
    pub fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// What it contains.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The smallest key of entries and range tombstones.
    pub fn smallest(&self) -> &[u8] {
        &self.smallest
    }

    /// The largest key of entries and ends of range tombstones, and whether it is exclusive.
    pub fn largest(&self) -> (&[u8], bool) {
        (&self.largest, self.largest_exclusive)
    }

    /// Its range tombstones.
    pub fn range_tombstones(&self) -> &Arc<RangeTombstones> {
        &self.range_tombstones
    }

    /// Memory that it holds besides the block cache, in bytes.
    pub fn pinned_bytes(&self) -> usize {
        self.index.memory_bytes()
            + self.filter.as_ref().map_or(0, Filter::memory_bytes)
            + self.range_tombstones.memory_bytes()
            + size_of::<Self>()
    }

    /// Whether the key with this hash (see [`key_hash`](crate::sstable::filter::key_hash)) may have
    /// an entry; `false` is certain.
    #[inline]
    pub fn may_contain(&self, hash: u64) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.may_contain(hash))
    }

    /// Has the memory fetched that [`may_contain`](Self::may_contain) reads.
    #[inline]
    pub(crate) fn prefetch_filter(&self, hash: u64) {
        if let Some(filter) = &self.filter {
            filter.prefetch(hash);
        }
    }

    /// The newest entry of `key` that a reader at `snapshot` sees; `hash` is its
    /// [`key_hash`](crate::sstable::filter::key_hash). Does not look at range tombstones.
    #[inline]
    pub fn get(&self, key: &[u8], hash: u64, snapshot: SeqNo) -> Result<Option<TableEntry>> {
        if self.may_contain(hash) {
            self.get_unfiltered(key, snapshot)
        } else {
            Ok(None)
        }
    }

    /// The first part of a search for a key, through the upper steps of the index. Has the memory fetched
    /// that the second part reads first.
    #[inline]
    pub(crate) fn way(&self, key: &[u8]) -> Way {
        Way(self.index.descend(key))
    }

    /// As [`get`](Self::get), for a key that [`may_contain`](Self::may_contain) has let pass.
    pub fn get_unfiltered(&self, key: &[u8], snapshot: SeqNo) -> Result<Option<TableEntry>> {
        self.get_on(self.way(key), key, snapshot)
    }

    /// [`get_unfiltered`](Self::get_unfiltered) on from the [`way`](Self::way) of the same key.
    pub(crate) fn get_on(
        &self,
        Way(way): Way,
        key: &[u8],
        snapshot: SeqNo,
    ) -> Result<Option<TableEntry>> {
        let newest = newest_trailer(snapshot);
        let mut i = self.index.find_on(way, key);
        while i < self.index.len() {
            let found = match self.cached(i) {
                Some(block) => block.search(key, newest),
                None => {
                    let mut found = Search::Nothing;
                    let keys = std::iter::once(key);
                    self.search_uncached(i, keys, newest, true, &mut |search| found = search)?;
                    found
                }
            };
            match found {
                Search::Entry(entry) => return Ok(Some(entry)),
                // All versions in this block are too new; there may be more in the next.
                Search::PastEnd if self.index.separator_is(i, key) => {
                    i = self.skip_versions(i + 1, key, newest)?;
                }
                Search::PastEnd | Search::Nothing => break,
            }
        }
        Ok(None)
    }

    /// From block `low` on, which starts with a version of `key` or after all of them: a block
    /// before which all versions are newer than `newest`, and whose next block starts with none
    /// that is. (A key with very many versions fills many blocks.)
    #[cold]
    fn skip_versions(&self, mut low: usize, key: &[u8], newest: u64) -> Result<usize> {
        // The last block that can start with a version of the key is the first whose separator is
        // after it.
        let after = self.index.find(&[key, &[0]].concat());
        let mut high = after.min(self.index.len().saturating_sub(1));
        while low < high {
            let middle = (low + high).div_ceil(2);
            let starts_newer = |image: &[u8]| {
                let block = View::new(image);
                let first = block.entry(0);
                block.suffix(&first) == key && first.trailer > newest
            };
            let starts_newer = match self.cached(middle) {
                Some(block) => starts_newer(block.image()),
                None => self
                    .with_block(middle, true, starts_newer)?
                    .unwrap_or(false),
            };
            if starts_newer {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Ok(low)
    }

    /// An iterator over the entries.
    pub fn iter(self: &Arc<Self>, options: ReadOptions) -> TableIter {
        TableIter::new(Arc::clone(self), options)
    }

    /// About how many bytes of the file are before `key`.
    pub fn approximate_offset_of(&self, key: &[u8]) -> u64 {
        let i = self.index.find(key);
        if i < self.index.len() {
            self.index.block(i).0
        } else {
            self.index.data_end()
        }
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    /// Block `i`, if the cache has it.
    #[inline]
    pub(crate) fn cached(&self, i: usize) -> Option<Block> {
        let (offset, _) = self.index.block(i);
        self.cache.get(self.id, offset, self.index.hint(i))
    }

    /// Reads block `i`, which is not in the cache, searches it for each key, and puts it into the cache
    /// if that wants it. `false` if it would have to wait for the disk and is not to `wait`.
    #[inline(never)]
    pub(crate) fn search_uncached<'k>(
        &self,
        i: usize,
        keys: impl Iterator<Item = &'k [u8]>,
        newest: u64,
        wait: bool,
        found: &mut impl FnMut(Search),
    ) -> Result<bool> {
        let done = self.with_block(i, wait, |image| {
            let offset = self.index.block(i).0;
            if self.cache.admits(self.id, offset, image) {
                let block = Block::new(image);
                self.cache
                    .insert(self.id, offset, self.index.hint(i), block.clone());
                keys.for_each(|key| found(block.clone().search(key, newest)));
            } else {
                keys.for_each(|key| found(search_image(image, key, newest)));
            }
        })?;
        Ok(done.is_some())
    }

    /// Reads block `i` from the file into buffers of this thread and gives `f` its image. `None` if it
    /// would have to wait for the disk and is not to `wait`.
    fn with_block<T>(&self, i: usize, wait: bool, f: impl FnOnce(&[u8]) -> T) -> Result<Option<T>> {
        let (offset, len) = self.index.block(i);
        SCRATCH.with_borrow_mut(|Scratch { stored, buf }| {
            if stored.len() > KEPT_SCRATCH_BYTES {
                *stored = Vec::new();
            }
            if stored.len() < len {
                stored.resize(len, 0);
            }
            let bytes = &mut stored[..len];
            if wait {
                self.read_data(bytes, offset)?;
            } else if self.file.read_at_once(bytes, offset)? {
                self.cache.count_read(offset, len);
            } else {
                return Ok(None);
            }
            self.decode_block(bytes, offset, buf)?;
            Ok(Some(f(buf.image())))
        })
    }

    /// Checks and decodes the stored bytes of the block at `offset`.
    pub(crate) fn decode_block(&self, bytes: &[u8], offset: u64, buf: &mut BlockBuf) -> Result<()> {
        buf.clear();
        stored::open(bytes, offset)
            .and_then(|(payload, compression)| buf.unpack(payload, compression))
            .map_err(|why| bad(&*self.file, offset, why))
    }

    /// Reads a range of the data blocks.
    pub(crate) fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.cache.count_read(offset, buf.len());
        read_exact(&*self.file, buf, offset)
    }

    /// Reads the whole table from the file, past the cache, and checks all that can be checked (see
    /// `sstable::salvage`); the first damage is the error. `progress` is told the bytes read since
    /// the last call.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<TableCheck> {
        let mut parts = Parts::read(Arc::clone(&self.file), self.id)?;
        if !parts.damage.is_empty() {
            return Err(parts.damage.swap_remove(0));
        }
        let mut walk = Walk::new(parts);
        let mut error = None;
        let mut told = 0;
        while error.is_none()
            && walk.next(&mut |e| {
                error.get_or_insert(e);
            })
        {
            if walk.bytes() > told {
                progress(walk.bytes() - told);
                told = walk.bytes();
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        progress(walk.bytes() - told);
        Ok(TableCheck {
            entries: walk.entries(),
            blocks: walk.blocks(),
            bytes: walk.bytes(),
        })
    }
}
