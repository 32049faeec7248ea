//! Reading the log: replay, and the decision between a torn tail and damage.
//!
//! Segments are read front to back in chunks of a megabyte; a payload is handed out as a slice of
//! the chunk. An end frame leads from a segment to the next one. Replay that starts inside of a
//! segment begins there if it finds a frame, otherwise at the segment's first frame, so that a start
//! beyond the end of the log is recognized as such.
//!
//! At the first frame that is not valid, at offset `o` of segment `S`, the log ends or is damaged.
//! Every frame states how far the log was known to be synced when the frame was made, so:
//!
//! 1. All offsets of `S` behind `o`, and then all segments with higher numbers, are searched for
//!    valid frames.
//! 2. If one of them states that the log was synced beyond `o`, the frame at `o` had been durable:
//!    this is damage, an error that names file and offset.
//! 3. Otherwise nobody was ever told that the frame at `o` is durable, or the disk lost it in the
//!    last batch before a power loss: a torn tail. The log ends at `o`; what is behind is discarded,
//!    even if valid, so that what remains is always a prefix of what was appended.
//!
//! The same holds for the end frame at the end of a segment. A segment's header, length and
//! name were durable before its first frame, so a bad header, a short file or a missing segment is
//! always damage.
//!
//! What cannot be told apart: damage to the last batch that was synced, before any later frame
//! stated so. The writer therefore leaves a marker when it falls idle and when it is closed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec;
use crate::error::{Error, Result};
use crate::fs::{Advice, File, Fs, OpenMode};
use crate::wal::record::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKey, KIND_END, KIND_FILLER, KIND_MARKER, Lsn, MAX_KIND,
    frame_bytes,
};
use crate::wal::segment::{FileName, Listing, SEGMENT_HEADER_BYTES, SegmentHeader};

const CHUNK_BYTES: usize = 1 << 20;

/// One record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends: the position that its append returned.
    pub end: Lsn,
    /// What the writer called it (1 to [`MAX_KIND`]).
    pub kind: u8,
    /// What the writer gave.
    pub payload: &'a [u8],
}

/// What a scan of a log found.
#[derive(Debug, Default)]
pub struct ScanReport {
    /// Segments read.
    pub segments: u64,
    /// Bytes of valid frames read.
    pub bytes: u64,
    /// Records handed out.
    pub records: u64,
    /// Bytes behind the end of the log that had been written and never synced: cut off.
    pub torn_bytes: u64,
    /// Where the log ends; `Lsn::ZERO` if there is none.
    pub end: Lsn,
    /// The greatest position that any frame states to be synced: damage before it is recognized.
    pub stated: Lsn,
    /// Damage, in order of position. Only [`verify`] reports more than none: others stop at it.
    pub problems: Vec<Error>,
}

/// Reads the log in `dir` from `from` on (all of it if `None`) and hands every record to `f`,
/// without modifying anything.
///
/// # Errors
/// Damage ([`Error::is_corruption`]) at the first place that is damaged, failed reads, and whatever
/// `f` returns. A torn tail is not an error. The records before the damage have been handed out.
pub fn scan<E: From<Error>>(
    fs: &dyn Fs,
    dir: &Path,
    from: Option<Lsn>,
    f: impl FnMut(Record<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<ScanReport, E> {
    Ok(walk(fs, dir, from, false, f)?.report)
}

/// As [`scan`], but damage is noted in [`ScanReport::problems`] and stepped over: the next readable
/// record follows.
///
/// # Errors
/// Failed reads, and whatever `f` returns.
pub fn verify<E: From<Error>>(
    fs: &dyn Fs,
    dir: &Path,
    from: Option<Lsn>,
    f: impl FnMut(Record<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<ScanReport, E> {
    Ok(walk(fs, dir, from, true, f)?.report)
}

/// A segment that the log runs through.
#[derive(Debug)]
pub(crate) struct ChainSegment {
    pub(crate) header: SegmentHeader,
    /// The end of its last valid frame.
    pub(crate) end: u64,
}

/// What recovery needs to know.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) report: ScanReport,
    pub(crate) listing: Listing,
    /// In order; the last one is the tail.
    pub(crate) chain: Vec<ChainSegment>,
    /// Where in the first of them reading began.
    pub(crate) began: u64,
    /// In the tail, the end of the last valid frame behind the end of the log, or of what looks
    /// like the beginning of one.
    pub(crate) stale_end: u64,
}

/// A valid frame.
#[derive(Clone, Copy, Debug)]
struct Frame {
    offset: u64,
    header: FrameHeader,
}

impl Frame {
    fn end(&self) -> u64 {
        self.offset + frame_bytes(u64::from(self.header.len))
    }
}

/// Reads the frames of one segment.
struct SegmentReader {
    file: Arc<dyn File>,
    header: SegmentHeader,
    key: FrameKey,
    buf: Vec<u8>,
    /// The offset of the first byte in `buf`.
    buf_offset: u64,
    /// How many bytes of `buf` are the file's.
    buf_len: usize,
}

impl SegmentReader {
    fn open(fs: &dyn Fs, dir: &Path, number: u32, buf: Vec<u8>) -> Result<Self> {
        let path = FileName::Segment(number).path(dir);
        let file = fs.open(&path, OpenMode::Read)?;
        let header = SegmentHeader::read(&*file, number)?;
        file.advise(0, 0, Advice::Sequential);
        Ok(Self {
            key: header.key(),
            header,
            file,
            buf,
            buf_offset: 0,
            buf_len: 0,
        })
    }

    fn corruption(&self, offset: u64, detail: impl Into<String>) -> Error {
        Error::corruption(self.file.path(), offset, detail)
    }

    /// The `len` bytes at `offset`, which lie inside of the segment.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        let in_buf = offset
            .checked_sub(self.buf_offset)
            .map(|skip| skip as usize);
        let start = match in_buf.filter(|start| start + len <= self.buf_len) {
            Some(start) => start,
            None => {
                let rest = self.header.capacity.saturating_sub(offset);
                let wanted = (len.max(CHUNK_BYTES) as u64).min(rest) as usize;
                if self.buf.len() < wanted {
                    self.buf.resize(wanted, 0);
                }
                self.buf_len = 0;
                self.file.read_exact_at(&mut self.buf[..wanted], offset)?;
                self.buf_offset = offset;
                self.buf_len = wanted;
                0
            }
        };
        self.buf
            .get(start..start + len)
            .filter(|_| start + len <= self.buf_len)
            .ok_or_else(|| {
                Error::corruption(
                    self.file.path(),
                    offset,
                    "a frame reaches beyond its segment",
                )
            })
    }

    /// The header at `offset` if it looks like one of a frame that fits into the segment.
    fn header_at(&mut self, offset: u64) -> Result<Option<FrameHeader>> {
        if offset + FRAME_HEADER_BYTES as u64 > self.header.capacity {
            return Ok(None);
        }
        let key = self.key;
        let header = key.decode(offset as u32, self.bytes(offset, FRAME_HEADER_BYTES)?);
        let room = self.header.capacity - offset;
        Ok(header.filter(|header| frame_bytes(u64::from(header.len)) <= room))
    }

    /// The frame at `offset`, if there is a valid one.
    fn frame_at(&mut self, offset: u64) -> Result<Option<Frame>> {
        let Some(header) = self.header_at(offset)? else {
            return Ok(None);
        };
        let key = self.key;
        let bytes = self.bytes(offset, FRAME_HEADER_BYTES + header.len as usize)?;
        let is_valid = key.is_valid(offset as u32, bytes);
        Ok(is_valid.then_some(Frame { offset, header }))
    }

    fn payload(&mut self, frame: &Frame) -> Result<&[u8]> {
        let len = FRAME_HEADER_BYTES + frame.header.len as usize;
        Ok(&self.bytes(frame.offset, len)?[FRAME_HEADER_BYTES..])
    }

    /// The first valid frame at or behind `offset`.
    fn next_valid(&mut self, mut offset: u64) -> Result<Option<Frame>> {
        while offset + FRAME_HEADER_BYTES as u64 <= self.header.capacity {
            // Zeros and most garbage are passed over without leaving the chunk.
            self.bytes(offset, FRAME_HEADER_BYTES)?;
            let start = (offset - self.buf_offset) as usize;
            let key = self.key;
            let headers = self.buf[start..self.buf_len]
                .windows(FRAME_HEADER_BYTES)
                .step_by(8);
            let mut skipped = 0;
            let mut is_candidate = false;
            for bytes in headers {
                let is_zero = codec::get_u64(bytes, 8) == Some(0);
                if !is_zero && key.decode((offset + skipped) as u32, bytes).is_some() {
                    is_candidate = true;
                    break;
                }
                skipped += 8;
            }
            offset += skipped;
            if is_candidate {
                if let Some(frame) = self.frame_at(offset)? {
                    return Ok(Some(frame));
                }
                offset += 8;
            }
        }
        Ok(None)
    }
}

/// What follows a place without a valid frame.
enum Broken {
    /// The log ends there.
    Torn { stale_end: u64 },
    /// It is damage: `stated` is beyond it. Reading can go on in this segment at `resume`.
    Damaged { stated: Lsn, resume: Option<u64> },
}

struct Walker<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    listing: &'a Listing,
}

impl Walker<'_> {
    /// Decides what the missing frame at `offset` means.
    fn judge(&self, reader: &mut SegmentReader, offset: u64) -> Result<Broken> {
        let header = reader.header;
        let here = Lsn::new(header.number, offset as u32);
        // A frame whose header arrived and whose payload did not.
        let mut stale_end = match reader.header_at(offset)? {
            Some(header) => offset + frame_bytes(u64::from(header.len)),
            None => offset,
        };
        let mut resume = None;
        let mut stated = Lsn::ZERO;
        let mut at = offset + 8;
        while let Some(frame) = reader.next_valid(at)? {
            resume.get_or_insert(frame.offset);
            stale_end = stale_end.max(frame.end());
            stated = stated.max(frame.header.synced.position(header.number, header.previous));
            if stated > here {
                return Ok(Broken::Damaged { stated, resume });
            }
            at = frame.end();
        }
        for &(number, _) in self
            .listing
            .segments
            .iter()
            .filter(|file| file.0 > header.number)
        {
            let buf = std::mem::take(&mut reader.buf);
            reader.buf_len = 0;
            let mut later = SegmentReader::open(self.fs, self.dir, number, buf)?;
            let mut at = SEGMENT_HEADER_BYTES;
            while let Some(frame) = later.next_valid(at)? {
                let later = later.header;
                stated = frame.header.synced.position(later.number, later.previous);
                if stated > here {
                    return Ok(Broken::Damaged { stated, resume });
                }
                at = frame.end();
            }
            reader.buf = later.buf;
        }
        Ok(Broken::Torn { stale_end })
    }
}

/// Where in a segment the first frame is missing of those that should lead to the one at `until`; `None` if
/// they do.
pub(crate) fn gap_before(fs: &dyn Fs, dir: &Path, number: u32, until: u64) -> Result<Option<u64>> {
    let mut reader = SegmentReader::open(fs, dir, number, Vec::new())?;
    let mut at = SEGMENT_HEADER_BYTES;
    while at < until {
        match reader.frame_at(at)? {
            Some(frame) if frame.end() <= until => at = frame.end(),
            _ => return Ok(Some(at)),
        }
    }
    Ok(None)
}

/// Reads the log. With `tolerant`, damage is noted and stepped over, otherwise it is the end.
pub(crate) fn walk<E: From<Error>>(
    fs: &dyn Fs,
    dir: &Path,
    from: Option<Lsn>,
    tolerant: bool,
    mut f: impl FnMut(Record<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<Walk, E> {
    let listing = Listing::read(fs, dir)?;
    let from = from.unwrap_or(Lsn::ZERO);
    let mut walk = Walk::default();
    let walker = Walker {
        fs,
        dir,
        listing: &listing,
    };
    let missing = |number: u32, detail: &str| -> Error {
        let path: PathBuf = FileName::Segment(number).path(dir);
        Error::corruption(&path, 0, detail)
    };
    let problem = |report: &mut ScanReport, error: Error| -> Result<()> {
        if tolerant && error.is_corruption() {
            report.problems.push(error);
            Ok(())
        } else {
            Err(error)
        }
    };
    let following = |number: u32| {
        listing
            .segments
            .iter()
            .map(|file| file.0)
            .find(|&candidate| candidate > number)
    };

    let mut next = if from == Lsn::ZERO {
        listing.segments.first().map(|file| file.0)
    } else {
        Some(from.segment())
    };
    let mut previous: Option<u32> = None;
    let mut buf = Vec::new();
    while let Some(number) = next.take() {
        if !listing.has_segment(number) {
            problem(&mut walk.report, missing(number, "the segment is missing"))?;
            next = following(number);
            previous = None;
            continue;
        }
        let opened = SegmentReader::open(fs, dir, number, std::mem::take(&mut buf));
        let mut reader = match opened {
            Ok(reader) => reader,
            Err(error) => {
                problem(&mut walk.report, error)?;
                next = following(number);
                previous = None;
                continue;
            }
        };
        let header = reader.header;
        if let Some(previous) = previous
            && header.previous != previous
        {
            let detail = format!("it follows segment {} and not {previous}", header.previous);
            let error = reader.corruption(24, detail);
            problem(&mut walk.report, error)?;
        }
        walk.report.segments += 1;
        walk.stale_end = 0;
        let mut offset = SEGMENT_HEADER_BYTES;
        let start = u64::from(from.offset());
        if number == from.segment()
            && start > offset
            && start.is_multiple_of(8)
            && reader.frame_at(start)?.is_some()
        {
            offset = start;
        }
        if walk.chain.is_empty() {
            walk.began = offset;
        }
        loop {
            let Some(frame) = reader.frame_at(offset)? else {
                let broken = match walker.judge(&mut reader, offset) {
                    Ok(broken) => broken,
                    Err(error) => {
                        problem(&mut walk.report, error)?;
                        next = following(number);
                        break;
                    }
                };
                match broken {
                    Broken::Torn { stale_end } => {
                        walk.stale_end = stale_end;
                        walk.report.torn_bytes += stale_end - offset;
                        break;
                    }
                    Broken::Damaged { stated, resume } => {
                        let detail = format!(
                            "no valid record here, although the log was synced up to {stated}"
                        );
                        let error = reader.corruption(offset, detail);
                        problem(&mut walk.report, error)?;
                        match resume {
                            Some(resume) => {
                                offset = resume;
                                continue;
                            }
                            None => {
                                next = following(number);
                                break;
                            }
                        }
                    }
                }
            };
            let start = Lsn::new(number, offset as u32);
            offset = frame.end();
            let end = Lsn::new(number, offset as u32);
            walk.report.bytes += frame.end() - frame.offset;
            let stated = frame.header.synced.position(number, header.previous);
            walk.report.stated = walk.report.stated.max(stated);
            match frame.header.kind {
                KIND_END => {
                    let payload = reader.payload(&frame)?;
                    let successor = codec::get_u64(payload, 0)
                        .and_then(|number| u32::try_from(number).ok())
                        .filter(|&successor| successor > number);
                    if successor.is_none() {
                        let error = reader.corruption(frame.offset, "impossible next segment");
                        problem(&mut walk.report, error)?;
                    }
                    next = successor.or_else(|| following(number));
                    previous = successor.map(|_| number);
                    break;
                }
                KIND_MARKER | KIND_FILLER => {}
                kind if kind <= MAX_KIND => {
                    if start >= from {
                        let payload = reader.payload(&frame)?;
                        f(Record {
                            start,
                            end,
                            kind,
                            payload,
                        })?;
                        walk.report.records += 1;
                    }
                }
                kind => {
                    let detail = format!("records of kind {kind} are not known to this version");
                    let error = reader.corruption(frame.offset, detail);
                    problem(&mut walk.report, error)?;
                }
            }
        }
        walk.report.end = Lsn::new(number, offset as u32);
        walk.chain.push(ChainSegment {
            header,
            end: offset,
        });
        buf = reader.buf;
    }
    walk.listing = listing;
    Ok(walk)
}
