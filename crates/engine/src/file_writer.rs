//! Writes a file from its start to its end in large pieces: what writers of SSTables and blob files share.
//!
//! A piece begins and ends at multiples of its size, but for the last one and where something is appended
//! that is longer than a piece. The kernel keeps what is written at once in as large
//! units as begin at multiples of *their* size (large folios), and a read of a few kilobytes finds its place
//! among few large ones a tenth to a seventh faster than among many small ones, as long as the file stays in
//! memory. Nor is a page that two pieces share written to the disk twice.
//!
//! Whoever writes gives way after every [`TURN_BYTES`]: flushes and compactions are the only work that keeps a
//! processor for many milliseconds, and where they and writers share one, writers would wait for the
//! kernel's tick (4 ms as a rule). Writers do the same (see `commit`), so that none gets much less than its
//! share.

use std::sync::Arc;

use firn_io::exec::give_way;
use firn_io::fs::File;

use crate::error::Result;

/// About half a millisecond of a compaction.
const TURN_BYTES: u64 = 64 << 10;

/// A file that is being written.
pub(crate) struct FileWriter {
    pub(crate) file: Arc<dyn File>,
    /// What was appended and not yet written.
    pub(crate) buf: Vec<u8>,
    /// Where `buf` begins in the file.
    written: u64,
    piece: usize,
    /// Where the present turn ends.
    turn_ends: u64,
}

impl FileWriter {
    /// Writes an empty file in pieces of `piece` bytes.
    pub(crate) fn new(file: Arc<dyn File>, piece: usize) -> Self {
        Self {
            file,
            buf: Vec::new(),
            written: 0,
            piece,
            turn_ends: TURN_BYTES,
        }
    }

    /// Where the next byte goes.
    pub(crate) fn position(&self) -> u64 {
        self.written + self.buf.len() as u64
    }

    /// Writes what fills pieces, if there is that much.
    #[inline]
    pub(crate) fn write_pieces(&mut self) -> Result<()> {
        if self.position() >= self.turn_ends {
            self.turn_ends = self.position() + TURN_BYTES;
            give_way();
        }
        if self.buf.len() < self.piece {
            return Ok(());
        }
        let end = self.position();
        let end = end - end % self.piece as u64;
        // Between the two is at least the end of a piece, since there are as many bytes as one has.
        self.write_until((end - self.written) as usize)
    }

    /// Writes everything.
    pub(crate) fn write_all(&mut self) -> Result<()> {
        self.write_until(self.buf.len())
    }

    fn write_until(&mut self, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.file.write_at(&self.buf[..len], self.written)?;
        self.file.start_writeback(self.written, len as u64);
        self.written += len as u64;
        self.buf.drain(..len);
        // After something giant it shrinks back.
        self.buf.shrink_to(2 * self.piece);
        Ok(())
    }

    /// Appends bytes; many are not copied.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() < self.piece {
            self.buf.extend_from_slice(bytes);
            return self.write_pieces();
        }
        self.write_all()?;
        self.file.write_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Writes everything and syncs the file; returns its length.
    pub(crate) fn finish(&mut self) -> Result<u64> {
        self.write_all()?;
        self.file.sync_data()?;
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests {
    use firn_io::fs::fault::{Fault, FaultFs, OpKind, Rule};
    use firn_io::fs::mem::MemFs;
    use firn_io::fs::{Fs, OpenMode};
    use parking_lot::Mutex;

    use super::*;

    const PIECE: usize = 64;

    /// Offset and length of each write.
    type Writes = Arc<Mutex<Vec<(u64, u64)>>>;

    /// A writer to a file of memory, what it writes, and the disk.
    fn writer() -> (FileWriter, Writes, FaultFs) {
        let fs = FaultFs::new(Arc::new(MemFs::new()), 1);
        let writes = Writes::default();
        let seen = Arc::clone(&writes);
        fs.set_after_hook(Box::new(move |_, op| {
            if op.kind == OpKind::Write {
                seen.lock().push((op.offset, op.len));
            }
        }));
        let file = fs.open("/file".as_ref(), OpenMode::CreateNew).unwrap();
        (FileWriter::new(file, PIECE), writes, fs)
    }

    fn content(fs: &FaultFs) -> Vec<u8> {
        let file = fs.open("/file".as_ref(), OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
        bytes
    }

    #[test]
    fn pieces_are_aligned_and_nothing_is_lost() {
        let (mut writer, writes, fs) = writer();
        let mut all = Vec::new();
        for n in 0..60_u8 {
            let part = vec![n; 1 + usize::from(n) % 37];
            assert_eq!(writer.position(), all.len() as u64);
            all.extend_from_slice(&part);
            if n % 2 == 0 {
                writer.append(&part).unwrap();
            } else {
                writer.buf.extend_from_slice(&part);
                writer.write_pieces().unwrap();
            }
            assert!(writer.buf.len() < PIECE);
        }
        for (offset, len) in writes.lock().drain(..) {
            assert_eq!((offset % PIECE as u64, len % PIECE as u64), (0, 0));
        }
        // Something long goes out at once, and the pieces behind it are aligned again.
        let long = vec![200; 3 * PIECE + 5];
        writer.append(&long).unwrap();
        all.extend_from_slice(&long);
        assert!(writer.buf.is_empty());
        writes.lock().clear();
        for n in 0..20 {
            writer.append(&[n; 30]).unwrap();
            all.extend_from_slice(&[n; 30]);
        }
        let ends: Vec<u64> = writes.lock().drain(..).map(|(at, len)| at + len).collect();
        assert!(ends.len() > 5 && ends.iter().all(|end| end % PIECE as u64 == 0));
        assert_eq!(writer.finish().unwrap(), all.len() as u64);
        assert_eq!(content(&fs), all);
    }

    #[test]
    fn a_failed_write_may_be_tried_again() {
        let (mut writer, _, fs) = writer();
        writer.append(&[1; 50]).unwrap();
        fs.add_rule(Rule::new(Fault::NoSpace).on(OpKind::Write));
        writer.append(&[2; 50]).unwrap_err();
        assert_eq!(writer.position(), 100);
        fs.clear_rules();
        assert_eq!(writer.finish().unwrap(), 100);
        assert_eq!(content(&fs), [[1; 50], [2; 50]].concat());
    }
}
