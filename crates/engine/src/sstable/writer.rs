//! Writes an SSTable front to back.
//!
//! 1. Entries go into a data block; a full block is compressed, sealed, and appended to a buffer.
//! 2. The buffer goes to the file in large writes, and the kernel is told to start writing them to
//!    the disk, so that the sync at the end is short.
//! 3. [`TableWriter::finish`] appends filter, range tombstones, index, properties and footer, and
//!    syncs the file. The table exists for others only when a version edit names it: a crash before
//!    that leaves a file that recovery removes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use firn_io::codec::{put_bytes, put_u64, put_varint_u64};
use firn_io::fs::File;

use crate::error::{Error, Result};
use crate::file_writer::FileWriter;
use crate::key::{FileId, Kind, NamespaceId, SeqNo, Trailer};
use crate::options::{Compression, MAX_KEY_BYTES, MAX_VALUE_BYTES, Options};
use crate::range_del::RangeTombstone;
use crate::sstable::block::{BlockBuilder, common_prefix};
use crate::sstable::filter::{Filter, Hashes, key_hash};
use crate::sstable::footer::{Footer, Handle};
use crate::sstable::index::{IndexBuilder, separator};
use crate::sstable::properties::Properties;
use crate::sstable::stored::{Compressor, seal_raw};

/// Bytes collected before a write.
const WRITE_BYTES: usize = 256 << 10;

/// A block of fewer entries than this may grow beyond the size that blocks have, so that an index
/// does not have an entry for every value of middling size...
const MIN_BLOCK_ENTRIES: u32 = 4;
/// ...up to this multiple.
const BLOCK_GROWTH: usize = 4;

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Uncompressed bytes of a data block, about; of one with less than four entries up to four times
    /// as many. At most 4 MiB.
    pub block_bytes: usize,
    /// Entries between restart points.
    pub restart_interval: usize,
    /// Filter bits per key; 0 for no filter.
    pub filter_bits_per_key: u32,
    /// Compression of data blocks.
    pub compression: Compression,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self::from_options(&Options::default(), false)
    }
}

impl TableOptions {
    /// Those of a database, for the bottom level or another.
    pub fn from_options(options: &Options, bottom: bool) -> Self {
        Self {
            block_bytes: options.block_bytes,
            restart_interval: options.restart_interval,
            filter_bits_per_key: options.filter_bits_per_key,
            compression: match options.bottom_compression {
                Some(compression) if bottom => compression,
                _ => options.compression,
            },
        }
    }
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableSummary {
    /// Length of the file.
    pub file_bytes: u64,
    /// Length of the data blocks in it.
    pub data_bytes: u64,
    /// All entries, tombstones included, range tombstones not.
    pub entry_count: u64,
    /// Entries that are tombstones.
    pub tombstone_count: u64,
    /// Range tombstones.
    pub range_tombstone_count: u64,
    /// The smallest key of entries and range tombstones.
    pub smallest: Vec<u8>,
    /// The largest key of entries and ends of range tombstones.
    pub largest: Vec<u8>,
    /// Whether `largest` itself is outside: it is the end of a range tombstone and no entry's key.
    pub largest_exclusive: bool,
    /// The least sequence number.
    pub min_seqno: SeqNo,
    /// The greatest sequence number.
    pub max_seqno: SeqNo,
    /// Bytes of user keys before compression.
    pub raw_key_bytes: u64,
    /// Bytes of stored values before compression.
    pub raw_value_bytes: u64,
    /// Blob files pointed into: file, pointers, bytes.
    pub blob_refs: Vec<(FileId, u64, u64)>,
}

/// See the module's page.
pub struct TableWriter {
    out: FileWriter,
    options: TableOptions,
    compressor: Compressor,
    block: BlockBuilder,
    /// The stored length of the block that awaits its separator; 0 if none does.
    pending_len: u64,
    index: IndexBuilder,
    hashes: Hashes,
    last_key: Vec<u8>,
    last_trailer: u64,
    smallest_key: Vec<u8>,
    room: Vec<u8>,
    tombstones: Vec<RangeTombstone>,
    blob_refs: BTreeMap<FileId, (u64, u64)>,
    properties: Properties,
    entry_count: u64,
    min_seqno: u64,
    max_seqno: u64,
}

impl fmt::Debug for TableWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TableWriter({}, {} entries)",
            self.out.file.path().display(),
            self.entry_count
        )
    }
}

impl TableWriter {
    /// A writer to `file`, which is empty and open for writing. An error if this build does not
    /// know the compression.
    pub fn new(file: Arc<dyn File>, options: TableOptions) -> Result<Self> {
        let options = TableOptions {
            block_bytes: options.block_bytes.clamp(64, 4 << 20),
            restart_interval: options.restart_interval.clamp(1, 1 << 20),
            filter_bits_per_key: options.filter_bits_per_key.min(64),
            compression: options.compression,
        };
        let mut out = FileWriter::new(file, WRITE_BYTES);
        out.buf.reserve(WRITE_BYTES + 2 * options.block_bytes);
        Ok(Self {
            out,
            options,
            compressor: Compressor::new(options.compression)?,
            block: BlockBuilder::new(options.restart_interval as u32),
            pending_len: 0,
            index: IndexBuilder::default(),
            hashes: Hashes::default(),
            last_key: Vec::new(),
            last_trailer: 0,
            smallest_key: Vec::new(),
            room: Vec::new(),
            tombstones: Vec::new(),
            blob_refs: BTreeMap::new(),
            properties: Properties::default(),
            entry_count: 0,
            min_seqno: u64::MAX,
            max_seqno: 0,
        })
    }

    /// Appends an entry. An error if it does not come after the one before, or if its key or value
    /// is longer than any may be.
    pub fn add(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<()> {
        if key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES + 64 {
            return Err(too_long(key.len(), value.len()));
        }
        let Some(kind) = trailer.kind() else {
            return Err(Error::InvalidArgument(format!(
                "an entry of no kind: {:#x}",
                trailer.0
            )));
        };
        let first = self.entry_count == 0;
        let common = common_prefix(key, &self.last_key);
        let same_key = !first && common == key.len() && common == self.last_key.len();
        let in_order = first
            || match (key.get(common), self.last_key.get(common)) {
                (Some(now), Some(last)) => now > last,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => trailer.0 < self.last_trailer,
            };
        if !in_order {
            return Err(self.out_of_order(key, trailer));
        }
        let most = BLOCK_GROWTH * self.options.block_bytes;
        if self.block.len() + value.len() > most && !self.block.is_empty() {
            // A large value gets a block of its own, not one with small entries in front.
            self.finish_block()?;
        }
        if self.pending_len > 0 {
            let separator = separator(&self.last_key, key, &mut self.room);
            self.index.add(separator, self.pending_len);
            self.pending_len = 0;
        }
        self.block.add(key, trailer.0, value);
        if !same_key {
            if self.options.filter_bits_per_key > 0 {
                self.hashes.push(key_hash(key));
            }
            self.properties.key_count += 1;
            self.last_key.truncate(common);
            self.last_key.extend_from_slice(&key[common..]);
            if first {
                self.smallest_key.extend_from_slice(key);
            }
        }
        self.last_trailer = trailer.0;
        self.entry_count += 1;
        self.properties.kinds[kind as usize] += 1;
        self.properties.raw_key_bytes += key.len() as u64;
        self.properties.raw_value_bytes += value.len() as u64;
        self.min_seqno = self.min_seqno.min(trailer.seqno().0);
        self.max_seqno = self.max_seqno.max(trailer.seqno().0);
        let len = self.block.len();
        if len >= self.options.block_bytes
            && (self.block.count() >= MIN_BLOCK_ENTRIES || len >= most)
        {
            self.finish_block()?;
        }
        Ok(())
    }

    #[cold]
    fn out_of_order(&self, key: &[u8], trailer: Trailer) -> Error {
        Error::InvalidArgument(format!(
            "{}: entry {key:?} {trailer:?} does not come after {:?} {:?}",
            self.out.file.path().display(),
            self.last_key,
            Trailer(self.last_trailer)
        ))
    }

    /// Adds a range tombstone; in any order, before, between or after entries. An empty range is
    /// ignored.
    pub fn add_range_tombstone(&mut self, tombstone: RangeTombstone) -> Result<()> {
        if tombstone.start.len() > MAX_KEY_BYTES || tombstone.end.len() > MAX_KEY_BYTES {
            return Err(too_long(tombstone.start.len().max(tombstone.end.len()), 0));
        }
        if tombstone.start < tombstone.end {
            self.min_seqno = self.min_seqno.min(tombstone.seqno.0);
            self.max_seqno = self.max_seqno.max(tombstone.seqno.0);
            self.tombstones.push(tombstone);
        }
        Ok(())
    }

    /// Notes which namespace the table is for, so that repair knows.
    pub fn set_namespace(&mut self, id: NamespaceId, name: &str) {
        self.properties.namespace = Some((id, name.to_string()));
    }

    /// Notes that an entry points to `bytes` bytes in a blob file.
    pub fn add_blob_ref(&mut self, file: FileId, bytes: u64) {
        let (count, sum) = self.blob_refs.entry(file).or_default();
        *count += 1;
        *sum += bytes;
    }

    /// About how long the file would be if it were finished now.
    pub fn estimated_bytes(&self) -> u64 {
        let written = self.out.position();
        let filter = self.hashes.len() as u64 * u64::from(self.options.filter_bits_per_key) / 8;
        written + self.block.len() as u64 + filter + self.index.bytes() as u64
    }

    /// Whether neither an entry nor a range tombstone was added.
    pub fn is_empty(&self) -> bool {
        self.entry_count == 0 && self.tombstones.is_empty()
    }

    /// Entries added.
    pub fn entry_count(&self) -> u64 {
        self.entry_count
    }

    fn finish_block(&mut self) -> Result<()> {
        let position = self.out.position();
        let bytes = self.block.finish(&self.last_key);
        self.pending_len = self.compressor.store(bytes, position, &mut self.out.buf) as u64;
        self.block.clear();
        self.out.write_pieces()
    }

    /// Appends a block that is not compressed. It is not copied if it is long: there are filters of many
    /// megabytes.
    fn append_block(&mut self, bytes: &[u8]) -> Result<Handle> {
        let offset = self.out.position();
        self.out.append(bytes)?;
        self.out.append(&seal_raw(bytes, offset))?;
        Ok(Handle {
            offset,
            len: self.out.position() - offset,
        })
    }

    /// Writes what is left and syncs the file (not its directory). A table without entries and
    /// range tombstones is a valid table.
    pub fn finish(mut self) -> Result<TableSummary> {
        if !self.block.is_empty() {
            self.finish_block()?;
        }
        if self.pending_len > 0 {
            self.index.add(&self.last_key, self.pending_len);
        }
        let data_bytes = self.out.position();
        let mut footer = Footer::default();
        if self.options.filter_bits_per_key > 0 && self.entry_count > 0 {
            let filter = Filter::build(&self.hashes, self.options.filter_bits_per_key).encode();
            footer.filter = Some(self.append_block(&filter)?);
        }
        if !self.tombstones.is_empty() {
            let bytes = encode_range_tombstones(&self.tombstones);
            footer.range_tombstones = Some(self.append_block(&bytes)?);
        }
        let index = self.index.finish();
        if index.len() > u32::MAX as usize {
            let (max, actual) = (u64::from(u32::MAX), index.len() as u64);
            return Err(Error::LimitExceeded {
                limit: "index_bytes",
                max,
                actual,
            });
        }
        footer.index = self.append_block(&index)?;

        let mut properties = std::mem::take(&mut self.properties);
        let any = !self.is_empty();
        properties.seqnos = any.then_some((SeqNo(self.min_seqno), SeqNo(self.max_seqno)));
        properties.range_tombstone_count = self.tombstones.len() as u64;
        properties.block_count = self.index.len() as u64;
        properties.data_bytes = data_bytes;
        properties.blob_refs = self
            .blob_refs
            .iter()
            .map(|(&file, &(count, bytes))| (file, count, bytes))
            .collect();
        properties.compression = self.options.compression as u64;
        properties.block_bytes = self.options.block_bytes as u64;
        properties.restart_interval = self.options.restart_interval as u64;
        properties.filter_bits_per_key = u64::from(self.options.filter_bits_per_key);
        properties.writer = concat!("firn-engine ", env!("CARGO_PKG_VERSION")).into();
        if self.entry_count > 0 {
            let smallest = std::mem::take(&mut self.smallest_key);
            properties.keys = Some((smallest, std::mem::take(&mut self.last_key)));
        }
        footer.properties = self.append_block(&properties.encode())?;
        self.out.buf.extend_from_slice(&footer.encode());
        let file_bytes = self.out.finish()?;

        let (smallest, largest, largest_exclusive) = bounds(&properties, &self.tombstones);
        Ok(TableSummary {
            file_bytes,
            data_bytes,
            entry_count: self.entry_count,
            tombstone_count: properties.kinds[Kind::Delete as usize],
            range_tombstone_count: properties.range_tombstone_count,
            smallest,
            largest,
            largest_exclusive,
            min_seqno: properties.seqnos.map_or(SeqNo::ZERO, |(min, _)| min),
            max_seqno: properties.seqnos.map_or(SeqNo::ZERO, |(_, max)| max),
            raw_key_bytes: properties.raw_key_bytes,
            raw_value_bytes: properties.raw_value_bytes,
            blob_refs: properties.blob_refs,
        })
    }
}

#[cold]
fn too_long(key: usize, value: usize) -> Error {
    if key > MAX_KEY_BYTES {
        let (max, actual) = (MAX_KEY_BYTES as u64, key as u64);
        Error::LimitExceeded {
            limit: "key_bytes",
            max,
            actual,
        }
    } else {
        let (max, actual) = (MAX_VALUE_BYTES as u64, value as u64);
        Error::LimitExceeded {
            limit: "value_bytes",
            max,
            actual,
        }
    }
}

/// The smallest key, the largest key or end, and whether the latter is exclusive.
pub(crate) fn bounds(
    properties: &Properties,
    tombstones: &[RangeTombstone],
) -> (Vec<u8>, Vec<u8>, bool) {
    let start = tombstones.iter().map(|t| &t.start).min();
    let end = tombstones.iter().map(|t| &t.end).max();
    let (mut smallest, mut largest) = match &properties.keys {
        Some((smallest, largest)) => (Some(smallest), Some(largest)),
        None => (None, None),
    };
    if let Some(start) = start
        && smallest.is_none_or(|s| start < s)
    {
        smallest = Some(start);
    }
    let mut exclusive = false;
    if let Some(end) = end
        && largest.is_none_or(|l| end > l)
    {
        largest = Some(end);
        exclusive = true;
    }
    (
        smallest.cloned().unwrap_or_default(),
        largest.cloned().unwrap_or_default(),
        exclusive,
    )
}

/// The range tombstone block:
///
/// ```text
/// count varint | (start length varint, start, end length varint, end, sequence number u64)*
/// ```
pub(crate) fn encode_range_tombstones(tombstones: &[RangeTombstone]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint_u64(&mut out, tombstones.len() as u64);
    for tombstone in tombstones {
        put_bytes(&mut out, &tombstone.start);
        put_bytes(&mut out, &tombstone.end);
        put_u64(&mut out, tombstone.seqno.0);
    }
    out
}
