//! The files of the log: their names, their headers, how they are made, recycled and removed.
//!
//! ```text
//! 0000000000000007.wal     segment 7
//! 0000000000000003.spare   a file that is allocated and waits for a number of its own
//! 0000000000000008.tmp     a file in the making; removed at the next opening
//! ```
//!
//! A segment's header, in its first 64 bytes:
//!
//! ```text
//! +0   magic     8 bytes  "FIRNWAL\n"
//! +8   version   u32      1
//! +12  flags     u32      0
//! +16  number    u64      as in the name
//! +24  previous  u64      the number of the segment before it, 0 for the first
//! +32  capacity  u64      bytes of the file, all allocated
//! +40  salt      u64      by chance; part of every frame's checksum
//! +48  zeros
//! +60  crc       u32      masked CRC-32C of the 60 bytes before
//! ```
//!
//! A file becomes a segment in this order: allocate, fill with zeros (a fresh file, if syncs are
//! frequent: the first sync of blocks that are merely reserved has metadata to write), write the
//! header, sync the file, rename it to its number, sync the directory. Only then is a frame written
//! to it. So under the name of a segment there is always a file of full length with a valid header,
//! and after power loss at any step there is either no such name or a segment without frames.
//! Anything else is damage.
//!
//! A segment is given up by renaming it to a spare, or removing it, and syncing the directory
//! before the file is touched again. No number is used twice: a new one is greater than every
//! number in a name.
//!
//! The last spare is the reserve: it is taken only by those who ask for it, when the disk is full.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::checksum;
use crate::codec;
use crate::error::{Error, Result};
use crate::fs::{Advice, File, Fs, MappedFile, OpenMode};
use crate::rng::Entropy;
use crate::wal::record::FrameKey;

/// Bytes of a segment before its first frame.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 64;
/// Bytes that are kept free at the end of a segment for its end frame (24), and for the 8 bytes by
/// which a filler may be longer than the range it was meant for.
pub(crate) const END_RESERVE_BYTES: u64 = 32;
/// The size of the first segment and of a fresh reserve; later segments grow by
/// [`GROWTH`] up to the configured size, so that a small database stays small and opens fast.
pub(crate) const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// How much larger than its predecessor a segment may be.
pub(crate) const GROWTH: u64 = 4;

const MAGIC: &[u8; 8] = b"FIRNWAL\n";
const VERSION: u32 = 1;
/// So many zeros are written and synced before the next ones are.
const ZEROS_BYTES: u64 = 1 << 20;
/// The small segments up to this size that a log begins with are filled with zeros whether syncs are
/// frequent or not, which is not known then.
const ZEROED_BYTES: u64 = 1 << 20;

/// A segment that was filled but for this much counts as written: a few syncs do not matter.
const UNFILLED_BYTES: u64 = 64 << 10;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u32,
    pub(crate) previous: u32,
    pub(crate) capacity: u64,
    pub(crate) salt: u64,
}

impl SegmentHeader {
    pub(crate) fn key(&self) -> FrameKey {
        FrameKey::new(self.number, self.salt)
    }

    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES as usize] {
        let mut out = [0; SEGMENT_HEADER_BYTES as usize];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&u64::from(self.number).to_le_bytes());
        out[24..32].copy_from_slice(&u64::from(self.previous).to_le_bytes());
        out[32..40].copy_from_slice(&self.capacity.to_le_bytes());
        out[40..48].copy_from_slice(&self.salt.to_le_bytes());
        let crc = checksum::mask(checksum::crc32c(&out[..60]));
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(path: &Path, bytes: &[u8; SEGMENT_HEADER_BYTES as usize]) -> Result<Self> {
        let u32_at = |offset| codec::get_u32(bytes, offset).unwrap_or(0);
        let u64_at = |offset| codec::get_u64(bytes, offset).unwrap_or(0);
        if checksum::mask(checksum::crc32c(&bytes[..60])) != u32_at(60) {
            return Err(Error::corruption(
                path,
                0,
                "the segment header's checksum is wrong",
            ));
        }
        if bytes[..8] != *MAGIC {
            return Err(Error::corruption(path, 0, "this is not a log segment"));
        }
        if u32_at(8) != VERSION || u32_at(12) != 0 {
            let detail = format!("log format {} is not known to this version", u32_at(8));
            let source = std::io::Error::new(std::io::ErrorKind::Unsupported, detail);
            return Err(Error::at("decode", path, 8, source));
        }
        let number = |offset| {
            u32::try_from(u64_at(offset))
                .map_err(|_| Error::corruption(path, offset as u64, "segment number too large"))
        };
        let header = Self {
            number: number(16)?,
            previous: number(24)?,
            capacity: u64_at(32),
            salt: u64_at(40),
        };
        let sizes = SEGMENT_HEADER_BYTES + END_RESERVE_BYTES..=u64::from(u32::MAX);
        if !sizes.contains(&header.capacity) {
            return Err(Error::corruption(path, 32, "impossible segment size"));
        }
        Ok(header)
    }

    /// Reads and checks the header of segment `number`, and the length of its file.
    pub(crate) fn read(file: &dyn File, number: u32) -> Result<Self> {
        let path = file.path();
        let len = file.len()?;
        if len < SEGMENT_HEADER_BYTES {
            return Err(Error::corruption(
                path,
                len,
                "the segment ends inside of its header",
            ));
        }
        let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let header = Self::decode(path, &bytes)?;
        if header.number != number {
            let detail = format!("segment {number} says that it is {}", header.number);
            return Err(Error::corruption(path, 16, detail));
        }
        if len < header.capacity {
            // Its full length was durable before its first frame: this is no torn tail.
            let detail = format!(
                "the segment ends here and should have {} bytes",
                header.capacity
            );
            return Err(Error::corruption(path, len, detail));
        }
        Ok(header)
    }
}

/// The kinds of files in a log's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileName {
    Segment(u32),
    Spare(u32),
    Temp(u32),
}

impl FileName {
    /// What `name` is; `None` for files that are not the log's.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (number, extension) = name.split_once('.')?;
        let is_number = number.len() == 16
            && number
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_number {
            return None;
        }
        let number = u32::try_from(u64::from_str_radix(number, 16).ok()?).ok()?;
        match extension {
            "wal" => Some(Self::Segment(number)),
            "spare" => Some(Self::Spare(number)),
            "tmp" => Some(Self::Temp(number)),
            _ => None,
        }
    }

    pub(crate) fn path(self, dir: &Path) -> PathBuf {
        dir.join(match self {
            Self::Segment(number) => format!("{number:016x}.wal"),
            Self::Spare(number) => format!("{number:016x}.spare"),
            Self::Temp(number) => format!("{number:016x}.tmp"),
        })
    }
}

/// What is in a log's directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Number and file length, ascending.
    pub(crate) segments: Vec<(u32, u64)>,
    pub(crate) spares: Vec<(u32, u64)>,
    pub(crate) temps: Vec<u32>,
}

impl Listing {
    pub(crate) fn read(fs: &dyn Fs, dir: &Path) -> Result<Self> {
        let mut listing = Self::default();
        for entry in fs.list(dir)? {
            match FileName::parse(&entry.name) {
                Some(FileName::Segment(number)) => listing.segments.push((number, entry.len)),
                Some(FileName::Spare(number)) => listing.spares.push((number, entry.len)),
                Some(FileName::Temp(number)) => listing.temps.push(number),
                None => {}
            }
        }
        listing.segments.sort_unstable();
        Ok(listing)
    }

    pub(crate) fn has_segment(&self, number: u32) -> bool {
        self.segments
            .binary_search_by_key(&number, |segment| segment.0)
            .is_ok()
    }

    /// The greatest number in any name; 0 if there is none.
    pub(crate) fn last_number(&self) -> u32 {
        let numbers = self.segments.iter().chain(&self.spares).map(|file| file.0);
        numbers.chain(self.temps.iter().copied()).max().unwrap_or(0)
    }
}

/// Writes from this size on go by a system call even where the segment is mapped: a fault for each of
/// their pages costs more.
pub(crate) const CALL_BYTES: usize = 8 << 10;

/// So much of a new mapped segment is made ready for stores. When a log goes on in it the one before is
/// synced, and while the file system's journal is being written the first store to a page waits for it,
/// 2 to 4 ms: by the end of that a fast writer has filled some of these bytes. Not where the log is synced
/// often: there all of them would be written by the next sync. Nor where appends go by calls, which need
/// no page made ready: with values of 64 KiB this took a quarter of a writer's time.
const READY_BYTES: u64 = 2 << 20;

/// A file that is a segment before the current one, or a spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) number: u32,
    pub(crate) bytes: u64,
    /// As [`Segment::is_written`].
    pub(crate) is_written: bool,
}

impl Kept {
    /// A file that an opening log has found. Most were filled, or made of zeros: if this one was not, the
    /// syncs in it take longer.
    pub(crate) fn found(&(number, bytes): &(u32, u64)) -> Self {
        Self {
            number,
            bytes,
            is_written: true,
        }
    }
}

/// A segment that is or will be written.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) key: FrameKey,
    pub(crate) file: Arc<dyn File>,
    map: Option<Box<dyn MappedFile>>,
    /// Made of the reserve: only those who may use it may write here.
    pub(crate) is_reserve: bool,
    /// All of its blocks are known to have been written before, if only with zeros: a sync has no
    /// metadata to write.
    pub(crate) is_written: bool,
}

impl Segment {
    pub(crate) fn new(
        header: SegmentHeader,
        file: Arc<dyn File>,
        mapped: bool,
        is_reserve: bool,
    ) -> Result<Self> {
        let map = if mapped {
            file.map(header.capacity)?
        } else {
            None
        };
        Ok(Self {
            header,
            key: header.key(),
            file,
            map,
            is_reserve,
            is_written: false,
        })
    }

    /// What it is when the log has gone on in another one, having filled it up to `end`.
    pub(crate) fn kept(&self, end: u64) -> Kept {
        let is_filled = end > SEGMENT_HEADER_BYTES && end + UNFILLED_BYTES >= self.header.capacity;
        Kept {
            number: self.header.number,
            bytes: self.header.capacity,
            is_written: self.is_written || is_filled,
        }
    }

    pub(crate) fn is_mapped(&self) -> bool {
        self.map.is_some()
    }

    /// Has its beginning ready for stores, if it is mapped.
    fn prepare(&self, bytes: u64) {
        if let Some(map) = &self.map {
            map.prepare(bytes);
        }
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        match &self.map {
            Some(map) if bytes.len() < CALL_BYTES => {
                map.write(offset, bytes);
                Ok(())
            }
            _ => self.file.write_at(bytes, offset),
        }
    }
}

/// Why there is no new segment.
#[derive(Debug)]
pub(crate) struct PrepareError {
    pub(crate) error: Error,
    /// A sync failed: it is not known what the disk holds, and trying again proves nothing.
    pub(crate) is_final: bool,
}

/// The error of a step that may be tried again, with other files.
impl From<Error> for PrepareError {
    fn from(error: Error) -> Self {
        Self {
            error,
            is_final: false,
        }
    }
}

fn sync_failed(error: Error) -> PrepareError {
    let is_final = !error.is_out_of_space();
    PrepareError { error, is_final }
}

/// Makes segments and takes them back. Its owner locks it for as long as the directory changes.
#[derive(Debug)]
pub(crate) struct Pool {
    fs: Arc<dyn Fs>,
    entropy: Arc<dyn Entropy>,
    dir: PathBuf,
    segment_bytes: u64,
    mapped: bool,
    limits: SpareLimits,
    usage: Usage,
    next_number: u32,
    spares: Vec<Kept>,
    /// Bytes of the spares, for those who must not wait for a file that is being made.
    spare_bytes: Arc<AtomicU64>,
}

/// How a log is used, by which its next segments are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// It is synced often: then written blocks are worth keeping and making.
    pub(crate) synced_often: bool,
    /// Short records are stored through a mapping. Not if each sync finds a few of them: it has to take the
    /// permission to write from their pages, for which it interrupts the other processors, and the next
    /// store to each has to ask for it again. A call for each record is less work.
    pub(crate) maps: bool,
    /// Its records are so long that they go by system calls.
    pub(crate) appends_long: bool,
}

impl Usage {
    /// Of a log that has no records yet. Its first segment is small: it may as well have everything.
    pub(crate) const UNKNOWN: Self = Self {
        synced_often: true,
        maps: true,
        appends_long: false,
    };

    pub(crate) fn new(synced_often: bool, appends_long: bool) -> Self {
        Self {
            synced_often,
            maps: !synced_often,
            appends_long,
        }
    }
}

/// How many spares are kept, at least 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpareLimits {
    /// If the log is seldom synced.
    pub(crate) seldom: usize,
    /// If it is synced often.
    pub(crate) often: usize,
}

impl Pool {
    pub(crate) fn new(
        fs: Arc<dyn Fs>,
        entropy: Arc<dyn Entropy>,
        dir: &Path,
        segment_bytes: u64,
        mapped: bool,
        limits: SpareLimits,
        listing: &Listing,
    ) -> Result<Self> {
        let mut pool = Self {
            fs,
            entropy,
            dir: dir.to_path_buf(),
            segment_bytes,
            mapped,
            limits,
            usage: Usage::new(false, false),
            next_number: listing.last_number() + 1,
            spares: Vec::new(),
            spare_bytes: Arc::default(),
        };
        for &number in &listing.temps {
            pool.fs.remove_file(&FileName::Temp(number).path(dir))?;
        }
        for spare in listing.spares.iter().map(Kept::found) {
            if pool.spares.len() < pool.spare_limit()
                && spare.bytes >= SEGMENT_HEADER_BYTES + END_RESERVE_BYTES
            {
                pool.spares.push(spare);
            } else {
                pool.fs
                    .remove_file(&FileName::Spare(spare.number).path(dir))?;
            }
        }
        pool.note_spares();
        Ok(pool)
    }

    fn spare_limit(&self) -> usize {
        let SpareLimits { seldom, often } = self.limits;
        if self.usage.synced_often {
            often
        } else {
            seldom
        }
        .max(1)
    }

    /// Says how the log is used now.
    pub(crate) fn set_usage(&mut self, usage: Usage) {
        self.usage = usage;
    }

    /// Where the bytes of the spares are told.
    pub(crate) fn spare_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.spare_bytes)
    }

    fn note_spares(&self) {
        let bytes = self.spares.iter().map(|spare| spare.bytes).sum();
        self.spare_bytes.store(bytes, Ordering::Relaxed);
    }

    fn take_number(&mut self) -> Result<u32> {
        let number = self.next_number;
        self.next_number = number.checked_add(1).ok_or_else(|| {
            let source = std::io::Error::other("the log has no segment numbers left");
            Error::new("create", &self.dir, source)
        })?;
        Ok(number)
    }

    /// A durable segment without frames that follows `previous`, of at least `required` bytes and
    /// if possible `wanted`. The reserve is taken if it is allowed and nothing else is left.
    pub(crate) fn prepare(
        &mut self,
        previous: u32,
        required: u64,
        wanted: u64,
        use_reserve: bool,
    ) -> std::result::Result<Segment, PrepareError> {
        let fits = |spare: &Kept| spare.bytes >= required && spare.bytes <= u64::from(u32::MAX);
        let largest = |spares: &[Kept], serves: &dyn Fn(&Kept) -> bool| {
            let fitting = spares.iter().enumerate();
            fitting
                .filter(|(_, spare)| fits(spare) && serves(spare))
                .max_by_key(|(_, spare)| spare.bytes)
                .map(|(index, _)| index)
        };
        // To write zeros into one that was left early is no less work than to make a new one.
        let serves: &dyn Fn(&Kept) -> bool = if self.usage.synced_often {
            &|spare| spare.is_written && spare.bytes >= wanted
        } else {
            &|_| true
        };
        if self.spares.len() > 1
            && let Some(index) = largest(&self.spares, serves)
        {
            return self.prepare_spare(index, previous, false);
        }
        match self.prepare_fresh(previous, required.max(wanted)) {
            Err(failed) if use_reserve && failed.error.is_out_of_space() => {
                match largest(&self.spares, &|_| true) {
                    Some(index) => self.prepare_spare(index, previous, true),
                    None => Err(failed),
                }
            }
            result => result,
        }
    }

    fn prepare_spare(
        &mut self,
        index: usize,
        previous: u32,
        is_reserve: bool,
    ) -> std::result::Result<Segment, PrepareError> {
        let spare = self.spares[index];
        let path = FileName::Spare(spare.number).path(&self.dir);
        let file = self.fs.open(&path, OpenMode::ReadWrite)?;
        // Its old pages are about to be overwritten bit by bit: better to have them in memory.
        file.advise(0, spare.bytes, Advice::WillNeed);
        let segment = self.finish(file, &path, previous, spare.bytes, is_reserve);
        // Whatever happened to it, it is no spare any more; a left-over is found when opening.
        self.spares.remove(index);
        self.note_spares();
        let mut segment = segment?;
        segment.is_written = spare.is_written;
        Ok(segment)
    }

    fn prepare_fresh(
        &mut self,
        previous: u32,
        capacity: u64,
    ) -> std::result::Result<Segment, PrepareError> {
        let path = FileName::Temp(self.next_number).path(&self.dir);
        let made = self.make_file(&path, capacity).map_err(PrepareError::from);
        let made = made.and_then(|(file, is_written)| {
            let mut segment = self.finish(file, &path, previous, capacity, false)?;
            segment.is_written = is_written;
            Ok(segment)
        });
        if made.is_err() {
            // Best effort: gives the space back. The next opening tries again.
            let _ = self.fs.remove_file(&path);
        }
        made
    }

    /// An allocated file full of zeros, and whether they were written rather than their blocks merely
    /// reserved, so that a sync of the log later has no metadata to write: if the log is synced often, or the
    /// file is small.
    fn make_file(&self, path: &Path, capacity: u64) -> Result<(Arc<dyn File>, bool)> {
        let file = self.fs.open(path, OpenMode::Create)?;
        file.allocate(capacity)?;
        // A segment made to fit one huge record is written once: zeros would double the work.
        let is_small = capacity <= ZEROED_BYTES && capacity < self.segment_bytes;
        let write = (self.usage.synced_often || is_small) && capacity <= self.segment_bytes;
        let mut offset = 0;
        while write && offset < capacity {
            let len = (capacity - offset).min(ZEROS_BYTES);
            file.write_zeros(offset, len)?;
            offset += len;
            if offset < capacity {
                // So that a sync of the log waits for a piece of this at most, not for all of it.
                // If it fails the file is given up, and nothing was promised of it.
                file.sync_data()?;
            }
        }
        Ok((file, write))
    }

    fn finish(
        &mut self,
        file: Arc<dyn File>,
        path: &Path,
        previous: u32,
        capacity: u64,
        is_reserve: bool,
    ) -> std::result::Result<Segment, PrepareError> {
        let salt = self.entropy.next_u64();
        let header = SegmentHeader {
            number: self.take_number()?,
            previous,
            capacity,
            salt,
        };
        file.write_at(&header.encode(), 0)?;
        file.sync_data().map_err(sync_failed)?;
        let named = FileName::Segment(header.number).path(&self.dir);
        self.fs.rename(path, &named)?;
        self.fs.sync_dir(&self.dir).map_err(sync_failed)?;
        // Opened again for its errors to name it as it is now called.
        let file = self.fs.open(&named, OpenMode::ReadWrite)?;
        let segment = Segment::new(header, file, self.mapped && self.usage.maps, is_reserve)?;
        if !self.usage.synced_often && !self.usage.appends_long {
            segment.prepare(READY_BYTES);
        }
        Ok(segment)
    }

    /// Gives up segment `number`: from the return on it is not found under its number any more,
    /// whatever happens. The file is kept as a spare if one is wanted. One that is not synced is wanted as
    /// the reserve, or in place of a smaller one, alone: to use it again would first write all of it to the
    /// disk, for nothing, and to drop it writes nothing.
    pub(crate) fn retire(&mut self, segment: Kept, is_synced: bool) -> Result<()> {
        let Kept { number, bytes, .. } = segment;
        let path = FileName::Segment(number).path(&self.dir);
        let is_full_size = bytes == self.segment_bytes;
        let smaller = self
            .spares
            .iter()
            .position(|spare| spare.bytes < self.segment_bytes);
        let replaces = smaller.filter(|_| is_full_size && self.spares.len() >= self.spare_limit());
        let has_room = self.spares.len() < self.spare_limit();
        let is_wanted = is_synced || self.usage.synced_often || self.spares.is_empty();
        let is_useful = is_full_size || (self.spares.is_empty() && bytes <= self.segment_bytes);
        if replaces.is_some() || (is_wanted && has_room && is_useful) {
            self.fs
                .rename(&path, &FileName::Spare(number).path(&self.dir))?;
            self.fs.sync_dir(&self.dir)?;
            if let Some(index) = replaces {
                let old = self.spares.remove(index);
                self.spares.push(segment);
                self.fs
                    .remove_file(&FileName::Spare(old.number).path(&self.dir))?;
            } else {
                self.spares.push(segment);
            }
            self.note_spares();
            return Ok(());
        }
        self.fs.remove_file(&path)?;
        self.fs.sync_dir(&self.dir)
    }

    /// Makes the reserve if there is no spare. No error if there is no room for it.
    pub(crate) fn ensure_reserve(&mut self) -> Result<()> {
        if !self.spares.is_empty() {
            return Ok(());
        }
        let capacity = FIRST_SEGMENT_BYTES.min(self.segment_bytes);
        let number = self.take_number()?;
        let temp = FileName::Temp(number).path(&self.dir);
        let made = self
            .make_file(&temp, capacity)
            .and_then(|(file, is_written)| {
                file.sync_data()?;
                self.fs
                    .rename(&temp, &FileName::Spare(number).path(&self.dir))?;
                self.fs.sync_dir(&self.dir)?;
                Ok(is_written)
            });
        match made {
            Ok(is_written) => {
                self.spares.push(Kept {
                    number,
                    bytes: capacity,
                    is_written,
                });
                self.note_spares();
                Ok(())
            }
            Err(error) => {
                // Best effort, as in `prepare_fresh`.
                let _ = self.fs.remove_file(&temp);
                if error.is_out_of_space() {
                    Ok(())
                } else {
                    Err(error)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_header() {
        let header = SegmentHeader {
            number: 7,
            previous: 5,
            capacity: 1 << 20,
            salt: 0x0102_0304,
        };
        let bytes = header.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = concat!(
            "4649524e57414c0a010000000000000007000000000000000500000000000000",
            "00001000000000000403020100000000000000000000000000000000562ff64e"
        );
        assert_eq!(hex, golden);
        let path = Path::new("x");
        assert_eq!(SegmentHeader::decode(path, &bytes).unwrap(), header);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                SegmentHeader::decode(path, &bad)
                    .unwrap_err()
                    .is_corruption()
            );
        }
    }

    #[test]
    fn names() {
        for name in [
            FileName::Segment(1),
            FileName::Spare(0xabcdef),
            FileName::Temp(u32::MAX),
        ] {
            let path = name.path(Path::new("d"));
            assert_eq!(
                FileName::parse(path.file_name().unwrap().to_str().unwrap()),
                Some(name)
            );
        }
        for name in [
            "",
            "LOCK",
            "1.wal",
            "000000000000000A.wal",
            "0000000000000001.sst",
        ] {
            assert_eq!(FileName::parse(name), None);
        }
        assert_eq!(FileName::parse("0000000100000000.wal"), None);
    }
}
