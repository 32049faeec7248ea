//! Blob files: large values beside the tree, so that compaction moves pointers instead of them.
//!
//! # The file
//!
//! ```text
//! header, 16 bytes   magic "FIRNBLB" 0 | format version u32 | CRC-32C of the 12 bytes before, masked, u32
//! record*
//! footer, 32 bytes   magic "FIRNEND" 0 | record count u64 | value bytes u64, uncompressed |
//!                    zeros u32 | CRC-32C u32
//! ```
//!
//! A record (all lengths in bytes):
//!
//! ```text
//!  0  crc32c           u32   over what follows in the record, seeded, masked
//!  4  key length       u32
//!  8  stored length    u32
//! 12  value length     u32
//! 16  compression      u8    0 none, 1 LZ4, 2 Zstd
//! 17  key, then the stored value
//! ```
//!
//! The checksums of records and footer are seeded with the number of the file and the offset in it
//! (both u64), so that a record that the disk delivers from another place is refused. The key is
//! there for garbage collection, which asks the tree whether the record is still the one pointed to,
//! and for verification and repair. A value is stored uncompressed where compression saves less
//! than an eighth.
//!
//! A tree's entry holds a [`BlobPointer`], encoded:
//!
//! ```text
//! file varint | offset varint | stored length varint | value length varint
//! ```
//!
//! # Life
//!
//! 1. [`BlobWriter`] writes the file front to back, once; [`BlobWriter::finish`] syncs it. It must
//!    be durable before a table that points into it is named by a version edit; a crash before
//!    leaves a file that nobody knows, which recovery removes.
//! 2. [`BlobFile::read`] reads one value with one call, checks it and that its key is the one asked
//!    for.
//! 3. [`BlobFile::records`] walks all records, for garbage collection and verification. A file
//!    without a (valid) footer was not finished: opening it is an error, and [`BlobFile::salvage`]
//!    walks what there is, for repair.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use firn_io::checksum::{crc32c, crc32c_append, mask};
use firn_io::codec::{Reader, get_u32, put_u32, put_u64, put_varint_u32, put_varint_u64};
use firn_io::fs::{Advice, File};

use crate::error::{Error, Result};
use crate::file_writer::FileWriter;
use crate::key::FileId;
use crate::names::{BLOB_MAGIC, FORMAT_VERSION};
use crate::options::{Compression, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::sstable::stored::{Bad, Compressor, decompress};

#[cfg(test)]
mod tests;

const HEADER_BYTES: u64 = 16;
const FOOTER_BYTES: u64 = 32;
const FOOTER_MAGIC: [u8; 8] = *b"FIRNEND\0";
const RECORD_HEAD_BYTES: usize = 17;
/// Bytes collected before a write.
const WRITE_BYTES: usize = 512 << 10;
/// Bytes read at once when walking records.
const WALK_BYTES: usize = 512 << 10;

/// A thread does not keep more than this for its next compressed record.
const STORED_KEPT_BYTES: usize = 256 << 10;

thread_local! {
    /// Where a compressed record is read to. Memory that was used before is neither zeroed nor faulted in
    /// again.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlobPointer {
    /// The blob file.
    pub file: FileId,
    /// Where its record starts.
    pub offset: u64,
    /// Bytes of the value as stored.
    pub stored_len: u32,
    /// Bytes of the value.
    pub value_len: u32,
}

impl BlobPointer {
    /// The longest encoding.
    pub const MAX_ENCODED_BYTES: usize = 30;

    /// Appends the encoded pointer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint_u64(out, self.file.0);
        put_varint_u64(out, self.offset);
        put_varint_u32(out, self.stored_len);
        put_varint_u32(out, self.value_len);
    }

    /// Decodes a pointer; `None` if the bytes are not exactly one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let pointer = Self {
            file: FileId(reader.varint_u64()?),
            offset: reader.varint_u64()?,
            stored_len: reader.varint_u32()?,
            value_len: reader.varint_u32()?,
        };
        reader.is_empty().then_some(pointer)
    }

    /// Bytes of the whole record, for a key of this length.
    pub fn record_bytes(&self, key_len: usize) -> u64 {
        (RECORD_HEAD_BYTES + key_len) as u64 + u64::from(self.stored_len)
    }
}

/// A value that was read. Dereferences to its bytes.
#[derive(Clone)]
pub struct BlobValue {
    /// The value, maybe after the head of its record: it is used where it was read.
    bytes: Vec<u8>,
    start: usize,
}

impl BlobValue {
    /// The bytes on their own, moved to the front of their buffer.
    pub fn into_vec(mut self) -> Vec<u8> {
        self.bytes.drain(..self.start);
        self.bytes
    }
}

impl std::ops::Deref for BlobValue {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl AsRef<[u8]> for BlobValue {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for BlobValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobValue({} bytes)", self.len())
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobSummary {
    /// Records.
    pub count: u64,
    /// Bytes of all records; what garbage is measured against.
    pub record_bytes: u64,
    /// Bytes of values, uncompressed.
    pub value_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
}

fn seal(file: FileId, offset: u64, bytes: &[u8]) -> u32 {
    let seed = crc32c_append(crc32c(&file.0.to_le_bytes()), &offset.to_le_bytes());
    mask(crc32c_append(seed, bytes))
}

fn header() -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(&BLOB_MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let crc = mask(crc32c(&header[..12]));
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Writes a blob file front to back.
pub struct BlobWriter {
    out: FileWriter,
    id: FileId,
    compressor: Compressor,
    summary: BlobSummary,
}

impl fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobWriter({}, {:?})", self.id, self.summary)
    }
}

impl BlobWriter {
    /// A writer to `file`, which is empty, is open for writing, and has the number `id`. An error
    /// if this build does not know the compression.
    pub fn new(file: Arc<dyn File>, id: FileId, compression: Compression) -> Result<Self> {
        let compressor = Compressor::new(compression)?;
        let mut out = FileWriter::new(file, WRITE_BYTES);
        out.append(&header())?;
        Ok(Self {
            out,
            id,
            compressor,
            summary: BlobSummary::default(),
        })
    }

    /// Appends a value and returns the pointer to it.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<BlobPointer> {
        if key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES {
            let key_too_long = key.len() > MAX_KEY_BYTES;
            return Err(Error::LimitExceeded {
                limit: if key_too_long {
                    "key_bytes"
                } else {
                    "value_bytes"
                },
                max: if key_too_long {
                    MAX_KEY_BYTES
                } else {
                    MAX_VALUE_BYTES
                } as u64,
                actual: if key_too_long { key.len() } else { value.len() } as u64,
            });
        }
        let (compression, stored) = self
            .compressor
            .compress(value)
            .unwrap_or((Compression::None, value));
        Self::append(
            &mut self.out,
            self.id,
            (key, stored, value.len() as u32, compression as u8),
            &mut self.summary,
        )
    }

    /// Appends the record of another file as it is, without compressing again.
    pub fn add_record(&mut self, record: &BlobRecord<'_>) -> Result<BlobPointer> {
        Self::append(
            &mut self.out,
            self.id,
            (
                record.key,
                record.stored,
                record.value_len,
                record.compression,
            ),
            &mut self.summary,
        )
    }

    fn append(
        writer: &mut FileWriter,
        id: FileId,
        (key, stored, value_len, compression): (&[u8], &[u8], u32, u8),
        summary: &mut BlobSummary,
    ) -> Result<BlobPointer> {
        let offset = writer.position();
        let out = &mut writer.buf;
        let start = out.len();
        // Lengths are below 4 GiB by the limits on keys and values.
        let stored_len = stored.len() as u32;
        put_u32(out, 0);
        put_u32(out, key.len() as u32);
        put_u32(out, stored_len);
        put_u32(out, value_len);
        out.push(compression);
        out.extend_from_slice(key);
        out.extend_from_slice(stored);
        let crc = seal(id, offset, &out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        summary.count += 1;
        summary.record_bytes += (out.len() - start) as u64;
        summary.value_bytes += u64::from(value_len);
        writer.write_pieces()?;
        Ok(BlobPointer {
            file: id,
            offset,
            stored_len,
            value_len,
        })
    }

    /// Bytes so far; the length of the file will be a footer more.
    pub fn bytes(&self) -> u64 {
        self.out.position()
    }

    /// Records so far.
    pub fn count(&self) -> u64 {
        self.summary.count
    }

    /// Writes what is left and syncs the file (not its directory).
    pub fn finish(mut self) -> Result<BlobSummary> {
        let offset = self.bytes();
        let out = &mut self.out.buf;
        let start = out.len();
        out.extend_from_slice(&FOOTER_MAGIC);
        put_u64(out, self.summary.count);
        put_u64(out, self.summary.value_bytes);
        put_u32(out, 0);
        let crc = seal(self.id, offset, &out[start..]);
        put_u32(out, crc);
        self.summary.file_bytes = self.out.finish()?;
        Ok(self.summary)
    }
}

/// A record, checked, as it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobRecord<'a> {
    /// Where it is.
    pub offset: u64,
    /// The user key.
    pub key: &'a [u8],
    /// The stored value.
    pub stored: &'a [u8],
    /// Length of the value, uncompressed.
    pub value_len: u32,
    /// How it is compressed, by number.
    pub compression: u8,
}

impl BlobRecord<'_> {
    /// The pointer to it, in a file of this number.
    pub fn pointer(&self, file: FileId) -> BlobPointer {
        let stored_len = self.stored.len() as u32;
        BlobPointer {
            file,
            offset: self.offset,
            stored_len,
            value_len: self.value_len,
        }
    }
}

/// Lengths of a record, read from its head.
struct Head {
    key_len: usize,
    stored_len: usize,
    value_len: u32,
}

impl Head {
    /// `None` if the lengths are beyond all limits.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let head = Self {
            key_len: get_u32(bytes, 4)? as usize,
            stored_len: get_u32(bytes, 8)? as usize,
            value_len: get_u32(bytes, 12)?,
        };
        let sane = head.key_len <= MAX_KEY_BYTES
            && head.value_len as usize <= MAX_VALUE_BYTES
            && head.stored_len <= head.value_len as usize;
        sane.then_some(head)
    }

    fn record_bytes(&self) -> usize {
        RECORD_HEAD_BYTES + self.key_len + self.stored_len
    }
}

/// An open blob file. Threads share it freely.
#[derive(Debug)]
pub struct BlobFile {
    file: Arc<dyn File>,
    id: FileId,
    /// Where the records end.
    end: u64,
    summary: BlobSummary,
}

impl BlobFile {
    /// Opens a finished file. Checks header and footer.
    pub fn open(file: Arc<dyn File>, id: FileId) -> Result<Self> {
        let file_bytes = file.len()?;
        let damaged = |offset, detail: &str| Error::corruption(file.path(), offset, detail);
        check_header(&*file)?;
        let Some(end) = file_bytes
            .checked_sub(FOOTER_BYTES)
            .filter(|&end| end >= HEADER_BYTES)
        else {
            return Err(damaged(0, "the file is too short for a blob file"));
        };
        let mut footer = [0; FOOTER_BYTES as usize];
        read_exact(&*file, &mut footer, end)?;
        let mut reader = Reader::new(&footer);
        let cut = || damaged(end, "the footer is cut off");
        let magic = reader.array::<8>().ok_or_else(cut)?;
        let count = reader.u64().ok_or_else(cut)?;
        let value_bytes = reader.u64().ok_or_else(cut)?;
        let _zeros = reader.u32().ok_or_else(cut)?;
        let crc = reader.u32().ok_or_else(cut)?;
        if magic != FOOTER_MAGIC {
            return Err(damaged(
                end,
                "the file does not end as a finished blob file does",
            ));
        }
        if crc != seal(id, end, &footer[..FOOTER_BYTES as usize - 4]) {
            return Err(damaged(end, "the checksum of the footer does not match"));
        }
        file.advise(0, 0, Advice::Random);
        let record_bytes = end - HEADER_BYTES;
        let summary = BlobSummary {
            count,
            record_bytes,
            value_bytes,
            file_bytes,
        };
        Ok(Self {
            file,
            id,
            end,
            summary,
        })
    }

    /// Opens a file of which only the records count, for repair: header and footer may be damaged.
    pub fn salvage(file: Arc<dyn File>, id: FileId) -> Result<Self> {
        let file_bytes = file.len()?;
        match Self::open(Arc::clone(&file), id) {
            Err(Error::Corruption { .. }) => {
                let summary = BlobSummary {
                    file_bytes,
                    ..BlobSummary::default()
                };
                Ok(Self {
                    file,
                    id,
                    end: file_bytes,
                    summary,
                })
            }
            other => other,
        }
    }

    /// Its number.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Its file.
    pub fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// What it contains.
    pub fn summary(&self) -> BlobSummary {
        self.summary
    }

    fn damaged(&self, offset: u64, detail: &str) -> Error {
        Error::corruption(self.file.path(), offset, detail)
    }

    fn unusable(&self, offset: u64, why: Bad) -> Error {
        match why {
            Bad::Damaged(detail) => self.damaged(offset, detail),
            Bad::Unsupported(detail) => Error::UnsupportedFormat(format!(
                "{} at offset {offset}: {detail}",
                self.file.path().display()
            )),
        }
    }

    /// The value that `pointer` points to, whose key must be `key`.
    pub fn read(&self, pointer: &BlobPointer, key: &[u8]) -> Result<BlobValue> {
        let offset = pointer.offset;
        let len = pointer.record_bytes(key.len());
        self.check_inside(pointer, key)?;
        if pointer.stored_len < pointer.value_len {
            // Compressed: what is read is not what is returned.
            return STORED.with_borrow_mut(|stored| {
                if stored.len() < len as usize {
                    stored.resize(len as usize, 0);
                }
                let bytes = &mut stored[..len as usize];
                let value = read_exact(&*self.file, bytes, offset)
                    .and_then(|()| self.checked(bytes, pointer, key))
                    .and_then(|record| self.value(&record));
                if stored.len() > STORED_KEPT_BYTES {
                    *stored = Vec::new();
                }
                Ok(BlobValue {
                    bytes: value?,
                    start: 0,
                })
            });
        }
        let mut bytes = vec![0; len as usize];
        read_exact(&*self.file, &mut bytes, offset)?;
        let record = self.checked(&bytes, pointer, key)?;
        if record.compression == Compression::None as u8 {
            return Ok(BlobValue {
                bytes,
                start: RECORD_HEAD_BYTES + key.len(),
            });
        }
        Ok(BlobValue {
            bytes: self.value(&record)?,
            start: 0,
        })
    }

    /// The record that `pointer` leads to, of which these are the bytes.
    fn checked<'a>(
        &self,
        bytes: &'a [u8],
        pointer: &BlobPointer,
        key: &[u8],
    ) -> Result<BlobRecord<'a>> {
        let record = self.check(bytes, pointer.offset)?;
        if record.key != key
            || record.stored.len() != pointer.stored_len as usize
            || record.value_len != pointer.value_len
        {
            return Err(self.damaged(pointer.offset, "the record is not the one pointed to"));
        }
        Ok(record)
    }

    /// Checks that `pointer` leads to a record of `key` with its lengths, without reading the value:
    /// [`BlobFile::verify`] checks that.
    pub fn check_pointer(&self, pointer: &BlobPointer, key: &[u8]) -> Result<()> {
        let offset = pointer.offset;
        self.check_inside(pointer, key)?;
        let mut bytes = vec![0; RECORD_HEAD_BYTES + key.len()];
        read_exact(&*self.file, &mut bytes, offset)?;
        let fits = Head::decode(&bytes).is_some_and(|head| {
            head.key_len == key.len()
                && head.stored_len == pointer.stored_len as usize
                && head.value_len == pointer.value_len
        });
        if !fits || bytes[RECORD_HEAD_BYTES..] != *key {
            return Err(self.damaged(offset, "the record is not the one pointed to"));
        }
        Ok(())
    }

    fn check_inside(&self, pointer: &BlobPointer, key: &[u8]) -> Result<()> {
        let offset = pointer.offset;
        let end = offset.checked_add(pointer.record_bytes(key.len()));
        let inside = offset >= HEADER_BYTES
            && end.is_some_and(|end| end <= self.end)
            && pointer.file == self.id;
        if !inside {
            return Err(self.damaged(offset, "a pointer points outside of the blob file"));
        }
        Ok(())
    }

    /// The value of a record.
    pub fn value(&self, record: &BlobRecord<'_>) -> Result<Vec<u8>> {
        if record.compression == Compression::None as u8 {
            return Ok(record.stored.to_vec());
        }
        let mut out = Vec::new();
        let len = record.value_len as usize;
        decompress(
            record.stored,
            record.compression,
            len,
            MAX_VALUE_BYTES,
            &mut out,
        )
        .map_err(|why| self.unusable(record.offset, why))?;
        Ok(out)
    }

    /// Checks the bytes of one record.
    fn check<'a>(&self, bytes: &'a [u8], offset: u64) -> Result<BlobRecord<'a>> {
        let head = Head::decode(bytes).filter(|head| head.record_bytes() == bytes.len());
        let (Some(head), Some(crc)) = (head, get_u32(bytes, 0)) else {
            return Err(self.damaged(offset, "the lengths of the record are wrong"));
        };
        if crc != seal(self.id, offset, &bytes[4..]) {
            return Err(self.damaged(offset, "the checksum of the record does not match"));
        }
        let compression = bytes[RECORD_HEAD_BYTES - 1];
        let (key, stored) = bytes[RECORD_HEAD_BYTES..].split_at(head.key_len);
        if compression == Compression::None as u8 && stored.len() != head.value_len as usize {
            return Err(self.damaged(offset, "the lengths of the record are wrong"));
        }
        Ok(BlobRecord {
            offset,
            key,
            stored,
            value_len: head.value_len,
            compression,
        })
    }

    /// Walks the records from the first on.
    pub fn records(&self) -> BlobRecords<'_> {
        BlobRecords {
            blob: self,
            buf: Vec::new(),
            buf_offset: HEADER_BYTES,
            next: HEADER_BYTES,
            seen: BlobSummary::default(),
        }
    }

    /// Reads the whole file and checks every record, that values decompress, and that the footer
    /// counts right. `progress` is told the bytes read since the last call. Returns the number of
    /// records.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<u64> {
        Self::open(Arc::clone(&self.file), self.id)?;
        let mut records = self.records();
        while let Some(record) = records.next()? {
            self.value(&record)?;
            let bytes = RECORD_HEAD_BYTES + record.key.len() + record.stored.len();
            progress(bytes as u64);
        }
        let seen = records.seen;
        if (seen.count, seen.value_bytes) != (self.summary.count, self.summary.value_bytes) {
            return Err(self.damaged(self.end, "the footer does not count right"));
        }
        progress(HEADER_BYTES + FOOTER_BYTES);
        Ok(seen.count)
    }
}

fn check_header(file: &dyn File) -> Result<()> {
    let mut bytes = [0; HEADER_BYTES as usize];
    read_exact(file, &mut bytes, 0)?;
    if bytes == header() {
        return Ok(());
    }
    let version = get_u32(&bytes, 8).unwrap_or(0);
    let crc_fits = get_u32(&bytes, 12) == Some(mask(crc32c(&bytes[..12])));
    if bytes[..8] == BLOB_MAGIC && crc_fits && version > FORMAT_VERSION {
        let detail = format!("{} has format version {version}", file.path().display());
        return Err(Error::UnsupportedFormat(detail));
    }
    Err(Error::corruption(
        file.path(),
        0,
        "the header is not that of a blob file",
    ))
}

fn read_exact(file: &dyn File, buf: &mut [u8], offset: u64) -> Result<()> {
    let read = file.read_at(buf, offset)?;
    if read < buf.len() {
        let detail = format!("the file ends {} bytes early", buf.len() - read);
        return Err(Error::corruption(file.path(), offset, detail));
    }
    Ok(())
}

/// See [`BlobFile::records`].
#[derive(Debug)]
pub struct BlobRecords<'a> {
    blob: &'a BlobFile,
    buf: Vec<u8>,
    buf_offset: u64,
    next: u64,
    seen: BlobSummary,
}

impl BlobRecords<'_> {
    /// The next record, or `None` after the last. After damage it stays where it is: where a
    /// damaged record ends cannot be known.
    #[allow(
        clippy::should_implement_trait,
        reason = "a record borrows from the walk's buffer"
    )]
    pub fn next(&mut self) -> Result<Option<BlobRecord<'_>>> {
        let (blob, offset) = (self.blob, self.next);
        if offset == blob.end {
            return Ok(None);
        }
        self.fill(RECORD_HEAD_BYTES)?;
        let from = (offset - self.buf_offset) as usize;
        let head = Head::decode(&self.buf[from..])
            .ok_or_else(|| blob.damaged(offset, "the lengths of the record are wrong"))?;
        let len = head.record_bytes();
        self.fill(len)?;
        let from = (offset - self.buf_offset) as usize;
        let record = blob.check(&self.buf[from..from + len], offset)?;
        self.next += len as u64;
        self.seen.count += 1;
        self.seen.record_bytes += len as u64;
        self.seen.value_bytes += u64::from(record.value_len);
        Ok(Some(record))
    }

    /// Has `len` bytes from `next` on in the buffer.
    fn fill(&mut self, len: usize) -> Result<()> {
        let need = self.next + len as u64;
        if need > self.blob.end {
            return Err(self.blob.damaged(self.next, "a record is cut off"));
        }
        if self.next < self.buf_offset || need > self.buf_offset + self.buf.len() as u64 {
            let read = (len.max(WALK_BYTES) as u64).min(self.blob.end - self.next);
            self.buf.resize(read as usize, 0);
            self.buf_offset = self.next;
            if let Err(error) = read_exact(&*self.blob.file, &mut self.buf, self.next) {
                self.buf.clear();
                return Err(error);
            }
        }
        Ok(())
    }
}
