//! What a database asks of a disk.
//!
//! # Durability words
//!
//! * Bytes written to a [`File`] are *visible* at once to every reader of that file, also through
//!   other handles, and survive the death of the process. They are *durable* (survive power loss)
//!   only after [`File::sync_data`] on it returned `Ok`.
//! * A created, renamed, linked or removed name is visible at once and durable only after
//!   [`Fs::sync_dir`] on its directory. A file whose directory entry is not durable may vanish with
//!   power even if its bytes were synced.
//! * A failed sync says nothing about which bytes reached the disk, and the kernel may have thrown
//!   the unwritten ones away: repeating it proves nothing. Callers treat it as final.
//!
//! Implementations: `os` (the real one), `mem` (in memory, can lose power), and the wrappers
//! `fault` (fails by rule) and `trace` (records every call for golden files).

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};

pub mod fault;
pub mod mem;
pub mod os;
pub mod trace;

/// How [`Fs::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading only.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A new file, for reading and writing; an error of kind `AlreadyExists` if there is one.
    CreateNew,
    /// A file for reading and writing, emptied if it exists, made if not.
    Create,
}

/// How a range of a file will be used, so that the kernel may read ahead or drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// It is about to be read.
    WillNeed,
    /// It is read front to back.
    Sequential,
    /// It is read in no order.
    Random,
    /// It will not be read again soon: its pages may be dropped from the page cache.
    DontNeed,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The last component of the path.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Its length in bytes; 0 for a directory.
    pub len: u64,
}

/// The directory that has the name `path`: `.` for a bare name, `None` for a root.
pub fn parent_of(path: &Path) -> Option<&Path> {
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    })
}

/// Space of the file system that holds a path, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that an ordinary process may still allocate.
    pub available: u64,
    /// The size of the file system.
    pub total: u64,
}

/// A file system.
pub trait Fs: Send + Sync + Debug {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>>;
    /// Makes a directory and its missing parents; no error if it is there.
    fn create_dir_all(&self, path: &Path) -> Result<()>;
    /// Makes a directory and its missing parents, durable on return: every directory on the way that
    /// was missing, and `path` itself even if it was there, has its name synced in its parent.
    fn create_dir_durable(&self, path: &Path) -> Result<()> {
        let mut unsynced = vec![path];
        let mut above = path;
        while let Some(parent) = parent_of(above) {
            if self.exists(parent)? {
                break;
            }
            unsynced.push(parent);
            above = parent;
        }
        self.create_dir_all(path)?;
        for made in unsynced.into_iter().rev() {
            if let Some(parent) = parent_of(made) {
                self.sync_dir(parent)?;
            }
        }
        Ok(())
    }
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> Result<()>;
    /// Removes a directory with everything in it. After an error some of it may be gone.
    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        for entry in self.list(path)? {
            let inner = path.join(&entry.name);
            if entry.is_dir {
                self.remove_dir_all(&inner)?;
            } else {
                self.remove_file(&inner)?;
            }
        }
        self.remove_dir(path)
    }
    /// Gives a file or directory another name, atomically replacing a file that has it.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Gives a file a second name.
    fn hard_link(&self, existing: &Path, new: &Path) -> Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>>;
    /// Whether a file or directory has this name.
    fn exists(&self, path: &Path) -> Result<bool>;
    /// Makes creations, renames, links and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
    /// Takes the advisory lock on `path` (made if missing) for this process until the guard drops.
    /// An error of kind `WouldBlock` if another holder has it.
    fn lock(&self, path: &Path) -> Result<Box<dyn FileLock>>;
    /// How much room the file system of `path` has.
    fn space(&self, path: &Path) -> Result<Space>;
}

/// Held while a directory is open; dropping it releases the lock.
pub trait FileLock: Send + Sync + Debug {}

/// An open file. Offsets are explicit, so that one handle serves many threads.
pub trait File: Send + Sync + Debug {
    /// The path it was opened by, for error messages.
    fn path(&self) -> &Path;
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// Fills `buf` from `offset` if all of it is in the kernel's memory; `false` if that cannot be
    /// known, or something went wrong: then [`File::read_at`] will tell.
    fn read_at_once(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }
    /// Writes all of `buf` at `offset`, growing the file as needed. After an error any part of
    /// the range may have been written.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;
    /// The same with `len` zeros, and in a way that suits a later [`map`](File::map).
    fn write_zeros(&self, offset: u64, len: u64) -> Result<()> {
        const ZEROS: &[u8] = &[0; 256 << 10];
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let part = (end - at).min(ZEROS.len() as u64);
            self.write_at(&ZEROS[..part as usize], at)?;
            at += part;
        }
        Ok(())
    }
    /// The length in bytes.
    fn len(&self) -> Result<u64>;
    /// Whether it holds no byte.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file or grows it with zeros.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Reserves disk blocks for the first `len` bytes and grows the file to at least `len`, so that
    /// later writes there cannot run out of space.
    fn allocate(&self, len: u64) -> Result<()>;
    /// Makes all bytes written so far (also through a [`MappedFile`]) and the length durable.
    fn sync_data(&self) -> Result<()>;
    /// Tells the kernel how a range will be used (`len` 0: to the end). Never an error: it is
    /// advice.
    fn advise(&self, offset: u64, len: u64, advice: Advice);
    /// Starts writing a range back to the disk without waiting, so that a later sync is short and
    /// dirty pages do not pile up. Promises nothing.
    fn start_writeback(&self, offset: u64, len: u64);
    /// Maps the first `len` bytes, which must be allocated, for writing. `None` where the file
    /// system cannot; the caller then uses [`File::write_at`].
    fn map(&self, len: u64) -> Result<Option<Box<dyn MappedFile>>>;

    /// Fills `buf` from `offset`; an error of kind `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.read_at(buf, offset)?;
        if read < buf.len() {
            let detail = format!("wanted {} bytes, the file ended after {read}", buf.len());
            let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, detail);
            return Err(Error::at("read", self.path(), offset, source));
        }
        Ok(())
    }
}

/// The first bytes of a file, mapped for writing: a store here costs no system call, is visible to
/// readers of the file at once, survives the death of the process, and becomes durable with the
/// next [`File::sync_data`].
pub trait MappedFile: Send + Sync + Debug {
    /// Copies `bytes` to `offset`. Panics if the range is outside of the mapping (a programmer's
    /// error). At most one thread writes a byte at a time: callers hold a lock around it.
    fn write(&self, offset: u64, bytes: &[u8]);
    /// Has the first `bytes` (all, if there are fewer) ready to be stored to, so that the first store
    /// to each of their pages does not wait for the file system. The kernel takes these pages for
    /// changed from now on and writes them with the next sync, though their content is what it was.
    /// A hint: where it is not understood nothing happens.
    fn prepare(&self, bytes: u64);
    /// The number of mapped bytes.
    fn len(&self) -> u64;
    /// Whether nothing is mapped.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
