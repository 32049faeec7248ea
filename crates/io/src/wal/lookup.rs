//! Reading single records of an open log back by their positions, while it is appended to.
//!
//! A record may be looked up from the moment its append returned, and until [`Log::remove_before`]
//! gave its segment up. What was appended is seen at once, whether it went through a mapping or not:
//! both are the same pages of the same file.
//!
//! [`Log::remove_before`]: crate::wal::Log::remove_before

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fs::{File, Fs, OpenMode};
use crate::wal::record::{FRAME_HEADER_BYTES, FrameKey, Lsn, frame_bytes};
use crate::wal::segment::{FileName, SegmentHeader};

/// How many segments stay open.
const OPEN_SEGMENTS: usize = 4;

/// Where the records of one append begin, given the position that it returned and the lengths of
/// the payloads, in order.
pub fn starts_of(end: Lsn, payload_bytes: impl DoubleEndedIterator<Item = u64>) -> Vec<Lsn> {
    let mut at = u64::from(end.offset());
    let mut starts: Vec<Lsn> = payload_bytes
        .rev()
        .map(|len| {
            at = at.saturating_sub(frame_bytes(len));
            Lsn::new(end.segment(), at as u32)
        })
        .collect();
    starts.reverse();
    starts
}

#[derive(Debug)]
struct Open {
    number: u32,
    file: Arc<dyn File>,
    key: FrameKey,
    capacity: u64,
}

/// Looks records up. For one thread at a time.
#[derive(Debug)]
pub struct Lookup {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    /// The segment used last is the last one.
    open: Vec<Open>,
}

impl Lookup {
    /// For the log in `dir`.
    pub fn new(fs: Arc<dyn Fs>, dir: impl Into<PathBuf>) -> Self {
        Self {
            fs,
            dir: dir.into(),
            open: Vec::new(),
        }
    }

    /// The kind and the payload of the record that begins at `start` and has a payload of `len`
    /// bytes.
    ///
    /// # Errors
    /// There is no such record there: damage, with file and offset. The disk failed.
    pub fn read(&mut self, start: Lsn, len: u32) -> Result<(u8, Vec<u8>)> {
        let open = self.segment(start.segment())?;
        let offset = u64::from(start.offset());
        let damaged = |detail: String| Error::corruption(open.file.path(), offset, detail);
        let total = FRAME_HEADER_BYTES + len as usize;
        if offset + total as u64 > open.capacity {
            return Err(damaged(format!(
                "a record of {len} bytes does not fit here"
            )));
        }
        let mut bytes = vec![0; total];
        open.file.read_exact_at(&mut bytes, offset)?;
        let header = open.key.decode(start.offset(), &bytes);
        let Some(header) = header.filter(|header| header.len == len) else {
            return Err(damaged(format!("here should be a record of {len} bytes")));
        };
        if !open.key.is_valid(start.offset(), &bytes) {
            return Err(damaged("the record's checksum is wrong".into()));
        }
        bytes.drain(..FRAME_HEADER_BYTES);
        Ok((header.kind, bytes))
    }

    fn segment(&mut self, number: u32) -> Result<&Open> {
        if let Some(at) = self.open.iter().position(|open| open.number == number) {
            let last = self.open.len() - 1;
            self.open.swap(at, last);
        } else {
            let path = FileName::Segment(number).path(&self.dir);
            let file = self.fs.open(&path, OpenMode::Read)?;
            let header = SegmentHeader::read(&*file, number)?;
            if self.open.len() >= OPEN_SEGMENTS {
                self.open.remove(0);
            }
            self.open.push(Open {
                number,
                key: header.key(),
                capacity: header.capacity,
                file,
            });
        }
        // Put there just now.
        self.open.last().ok_or_else(|| {
            let source = std::io::Error::other("no segment is open");
            Error::new("read", &self.dir, source)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::ManualClock;
    use crate::env::Env;
    use crate::exec::Stepper;
    use crate::fs::mem::MemFs;
    use crate::rng::{Rng, SeededEntropy};
    use crate::wal::{Entry, Log, LogOptions};

    #[test]
    fn records_are_found_where_they_were_put() {
        for mapped in [false, true] {
            let disk = MemFs::new();
            let clock = Arc::new(ManualClock::new(0));
            let env = Env {
                fs: Arc::new(disk.clone()),
                exec: Arc::new(Stepper::new(1, clock.clone())),
                entropy: Arc::new(SeededEntropy::new(1)),
                clock,
            };
            let options = LogOptions {
                segment_bytes: 4 << 10,
                mapped,
                ..LogOptions::default()
            };
            let dir = Path::new("/log");
            let (log, _) = Log::open::<Error>(env, dir, options, |_| Ok(())).unwrap();
            let mut rng = Rng::new(3);
            let mut lookup = Lookup::new(Arc::new(disk.clone()), dir);
            let mut known = Vec::new();
            for kind in 1..150 {
                let payloads: Vec<Vec<u8>> = (0..rng.between(1, 3))
                    .map(|_| vec![kind; rng.below(700) as usize])
                    .collect();
                let parts: Vec<[&[u8]; 1]> = payloads.iter().map(|p| [p.as_slice()]).collect();
                let entries: Vec<_> = parts.iter().map(|parts| Entry { kind, parts }).collect();
                let end = log.append_many(&entries, false).unwrap();
                let lens = payloads.iter().map(|p| p.len() as u64);
                for (start, payload) in starts_of(end, lens).into_iter().zip(payloads) {
                    known.push((start, kind, payload));
                }
                let (start, kind, payload) = &known[rng.index(known.len())];
                let found = lookup.read(*start, payload.len() as u32).unwrap();
                assert_eq!(found, (*kind, payload.clone()));
            }
            let (start, _, payload) = &known[7];
            let len = payload.len() as u32;
            assert!(lookup.read(*start, len + 1).unwrap_err().is_corruption());
            assert!(lookup.read(*start, u32::MAX).unwrap_err().is_corruption());
            let path = FileName::Segment(start.segment()).path(dir);
            disk.flip_bit(&path, u64::from(start.offset()) + 18, 3)
                .unwrap();
            let error = lookup.read(*start, len).unwrap_err();
            assert!(error.is_corruption());
            assert_eq!(error.offset, Some(u64::from(start.offset())));
        }
    }
}
