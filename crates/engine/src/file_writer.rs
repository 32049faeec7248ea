//! Writes a file from its start to its end in large pieces: what writers of SSTables and blob files share.
//!
//! A piece begins and ends at multiples of its size. The kernel keeps what is written at once in as large
//! units as begin at multiples of *their* size (large folios), and a read of a few kilobytes finds its place
//! among few large ones a tenth to a seventh faster than among many small ones, as long as the file stays in
//! memory. Nor is a page that two pieces share written to the disk twice.

use std::sync::Arc;

use firn_io::fs::File;

use crate::error::Result;

/// A file that is being written.
pub(crate) struct FileWriter {
    pub(crate) file: Arc<dyn File>,
    /// What was appended and not yet written.
    pub(crate) buf: Vec<u8>,
    /// Where `buf` begins in the file.
    pub(crate) written: u64,
    piece: usize,
}

impl FileWriter {
    /// Writes an empty file in pieces of `piece` bytes.
    pub(crate) fn new(file: Arc<dyn File>, piece: usize) -> Self {
        Self {
            file,
            buf: Vec::new(),
            written: 0,
            piece,
        }
    }

    /// Where the next byte goes.
    pub(crate) fn position(&self) -> u64 {
        self.written + self.buf.len() as u64
    }

    /// Writes what fills pieces, if there is that much.
    #[inline]
    pub(crate) fn write_pieces(&mut self) -> Result<()> {
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
