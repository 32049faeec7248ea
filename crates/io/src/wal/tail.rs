//! Reading the log while it is written, record by record, from any position on.
//!
//! A [`Tail`] reads the files, not the writer's memory: what an append copied into a mapping is what
//! a read of the file finds. It is told up to where it may read, and never looks at a byte behind
//! that: the caller gives a position up to which records are whole (everything before
//! [`Log::appended`]), and durable if that matters to it (before [`Log::synced`]).
//!
//! **Segments go while they are read.** A segment may be given up and its file made into another
//! segment at any time; a reader holds nothing back. The log says that a segment is given up before
//! it touches the file, and a tail asks after each read: bytes that were read before the answer "in
//! use" are those of the segment. If it was given up, [`TailError::Gone`] is the answer.
//!
//! A place without a valid frame before the limit is damage, as everything up to there was whole.

use std::sync::Arc;

use crate::codec;
use crate::error::Error;
use crate::fs::{File, OpenMode};
use crate::wal::reader::Record;
use crate::wal::record::{
    FRAME_HEADER_BYTES, FrameKey, KIND_END, KIND_FILLER, Lsn, MAX_KIND, frame_bytes,
};
use crate::wal::segment::{FileName, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::wal::writer::Log;

/// Bytes read at a time, if so many may be read.
const CHUNK_BYTES: u64 = 256 << 10;
/// Memory that is kept between reads.
const KEPT_BYTES: usize = 1 << 20;

/// Why there is no next record.
#[derive(Debug)]
pub enum TailError {
    /// The segment was given up.
    Gone,
    /// The disk failed, or the log is damaged.
    Failed(Error),
}

impl From<Error> for TailError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A segment that is being read.
struct Source {
    file: Arc<dyn File>,
    header: SegmentHeader,
    key: FrameKey,
}

/// A position in an open log, and a buffer of what follows.
pub struct Tail {
    at: Lsn,
    source: Option<Source>,
    buf: Vec<u8>,
    /// The offset of the first byte in `buf`, and how many bytes of it were read.
    buf_offset: u64,
    buf_len: usize,
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// A record's place in the buffer.
struct Found {
    start: Lsn,
    kind: u8,
    payload: std::ops::Range<usize>,
}

impl Tail {
    /// Begins at `at`: where a record begins or ended, or offset 0 for the beginning of a segment.
    pub fn new(at: Lsn) -> Self {
        Self {
            at,
            source: None,
            buf: Vec::new(),
            buf_offset: 0,
            buf_len: 0,
        }
    }

    /// Where the next record begins, or shortly before.
    pub fn at(&self) -> Lsn {
        self.at
    }

    /// Lets go of the buffer; what was in it and is wanted still is read again.
    pub fn rest(&mut self) {
        (self.buf, self.buf_len) = (Vec::new(), 0);
    }

    /// The next record, if it ends at or before `limit`.
    ///
    /// # Errors
    /// See [`TailError`]; the position stays where it is.
    pub fn next(&mut self, log: &Log, limit: Lsn) -> Result<Option<Record<'_>>, TailError> {
        let Some(found) = self.find(log, limit)? else {
            return Ok(None);
        };
        Ok(Some(Record {
            start: found.start,
            end: self.at,
            kind: found.kind,
            payload: &self.buf[found.payload],
        }))
    }

    fn find(&mut self, log: &Log, limit: Lsn) -> Result<Option<Found>, TailError> {
        if self.buf.len() > KEPT_BYTES {
            self.rest();
        }
        loop {
            let number = self.at.segment();
            if self.at >= limit {
                return Ok(None);
            }
            let (key, capacity) = self.open(log)?;
            let bound = if limit.segment() == number {
                capacity.min(u64::from(limit.offset()))
            } else {
                capacity
            };
            let offset = u64::from(self.at.offset()).max(SEGMENT_HEADER_BYTES);
            if limit.segment() == number && offset >= bound {
                return Ok(None);
            }
            let damaged = |this: &Self, offset: u64| {
                let detail =
                    format!("no valid record here, although the log is written up to {limit}");
                this.corruption(offset, detail)
            };
            let header = self.bytes(log, offset, FRAME_HEADER_BYTES as u64, bound)?;
            let header = header.and_then(|range| key.decode(offset as u32, &self.buf[range]));
            let Some(header) = header else {
                return Err(damaged(self, offset));
            };
            let len = FRAME_HEADER_BYTES as u64 + u64::from(header.len);
            let whole = self.bytes(log, offset, len, bound)?;
            let valid = whole.filter(|range| key.is_valid(offset as u32, &self.buf[range.clone()]));
            let Some(range) = valid else {
                return Err(damaged(self, offset));
            };
            let payload = range.start + FRAME_HEADER_BYTES..range.end;
            let end = offset + frame_bytes(u64::from(header.len));
            match header.kind {
                KIND_END => {
                    let next = codec::get_u64(&self.buf[payload], 0)
                        .and_then(|next| u32::try_from(next).ok())
                        .filter(|&next| next > number);
                    let Some(next) = next else {
                        return Err(self.corruption(offset, "impossible next segment".into()));
                    };
                    self.at = Lsn::new(next, SEGMENT_HEADER_BYTES as u32);
                    self.source = None;
                }
                kind if kind > KIND_FILLER => {
                    let detail = format!("records of kind {kind} are not known to this version");
                    return Err(self.corruption(offset, detail));
                }
                kind => {
                    self.at = Lsn::new(number, end as u32);
                    if kind <= MAX_KIND {
                        let start = Lsn::new(number, offset as u32);
                        return Ok(Some(Found {
                            start,
                            kind,
                            payload,
                        }));
                    }
                }
            }
        }
    }

    fn corruption(&self, offset: u64, detail: String) -> TailError {
        let path = self.source.as_ref().map(|source| source.file.path());
        TailError::Failed(Error::corruption(
            path.unwrap_or("".as_ref()),
            offset,
            detail,
        ))
    }

    /// Sees to it that the segment of the position is open.
    fn open(&mut self, log: &Log) -> Result<(FrameKey, u64), TailError> {
        let number = self.at.segment();
        if let Some(source) = &self.source {
            return Ok((source.key, source.header.capacity));
        }
        self.buf_len = 0;
        let path = FileName::Segment(number).path(log.path());
        let opened = log.fs().open(&path, OpenMode::Read).and_then(|file| {
            let header = SegmentHeader::read(&*file, number)?;
            Ok((file, header))
        });
        if log.is_given_up(number) {
            return Err(TailError::Gone);
        }
        let (file, header) = opened?;
        let key = header.key();
        self.source = Some(Source { file, header, key });
        Ok((key, header.capacity))
    }

    /// Where in the buffer the `len` bytes at `offset` are; `None` if they reach beyond `bound`.
    fn bytes(
        &mut self,
        log: &Log,
        offset: u64,
        len: u64,
        bound: u64,
    ) -> Result<Option<std::ops::Range<usize>>, TailError> {
        if offset + len > bound {
            return Ok(None);
        }
        let skip = offset
            .checked_sub(self.buf_offset)
            .map(|skip| skip as usize);
        let len = len as usize;
        if let Some(start) = skip.filter(|start| start + len <= self.buf_len) {
            return Ok(Some(start..start + len));
        }
        let Some(source) = &self.source else {
            return Ok(None); // Not reached: the caller has opened it.
        };
        let wanted = (len as u64).max(CHUNK_BYTES).min(bound - offset) as usize;
        if self.buf.len() < wanted {
            self.buf.resize(wanted, 0);
        }
        self.buf_len = 0;
        let read = source.file.read_exact_at(&mut self.buf[..wanted], offset);
        if log.is_given_up(self.at.segment()) {
            return Err(TailError::Gone);
        }
        read?;
        (self.buf_offset, self.buf_len) = (offset, wanted);
        Ok(Some(0..len))
    }
}
