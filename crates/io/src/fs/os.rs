#![allow(
    clippy::disallowed_methods,
    reason = "this file is the door to the disk"
)]
#![allow(
    unsafe_code,
    reason = "system calls that the standard library does not offer; mappings"
)]
//! The real disk, through the operating system.
//!
//! Files are opened with `O_CLOEXEC` and read and written at explicit offsets (`pread`, `pwrite`),
//! whole buffers at a time: short transfers and `EINTR` are repeated here. Durability is
//! `fdatasync` for a file and `fsync` for a directory. Neither is ever repeated after a failure.
//!
//! On Linux, space is reserved by `fallocate`, write-back is started by `sync_file_range`, and
//! [`File::map`] maps shared memory over the page cache: `fdatasync` also writes what was stored
//! there. Elsewhere reservation writes zeros, advice and write-back do nothing, and nothing is
//! mapped.
//!
//! A mapping outlives its file handle. What was stored leaves the process's page tables after a while
//! and stays in the page cache, so that a mapped file does not count as memory. Storing into it when
//! the disk cannot give the page (damage, or the file was cut behind our back) raises `SIGBUS`, which
//! ends the process; the log survives that like a power loss. Mapped ranges are therefore allocated
//! first.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::{Advice, DirEntry, File, FileLock, Fs, MappedFile, OpenMode, Space};

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsFs;

impl OsFs {
    /// The file system.
    pub fn new() -> Self {
        Self
    }
}

/// Names `op` and `path` in an error of the operating system.
fn on<T>(op: &'static str, path: &Path, result: io::Result<T>) -> Result<T> {
    result.map_err(|source| Error::new(op, path, source))
}

impl Fs for OsFs {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true);
        let op = match mode {
            OpenMode::Read => "open",
            OpenMode::ReadWrite => {
                options.write(true);
                "open"
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
                "create"
            }
            OpenMode::Create => {
                options.write(true).create(true).truncate(true);
                "create"
            }
        };
        let file = on(op, path, options.open(path))?;
        Ok(Arc::new(OsFile {
            file,
            path: path.to_path_buf(),
        }))
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        on("create directory", path, fs::create_dir_all(path))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        on("remove", path, fs::remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        on("remove directory", path, fs::remove_dir(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        on("rename", from, fs::rename(from, to))
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> Result<()> {
        on("link", new, fs::hard_link(existing, new))
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in on("list", dir, fs::read_dir(dir))? {
            let entry = on("list", dir, entry)?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed since: as if listed a moment later.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::new("list", &entry.path(), error)),
            };
            let is_dir = metadata.is_dir();
            entries.push(DirEntry {
                // Our own names are ASCII; a foreign one need only be recognizable.
                name: entry.file_name().to_string_lossy().into_owned(),
                is_dir,
                len: if is_dir { 0 } else { metadata.len() },
            });
        }
        entries.sort_unstable();
        Ok(entries)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        on("look up", path, path.try_exists())
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let handle = on("open directory", dir, fs::File::open(dir))?;
        on("sync directory", dir, handle.sync_all())
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn FileLock>> {
        Ok(Box::new(OsLock::acquire(path)?))
    }

    fn space(&self, path: &Path) -> Result<Space> {
        on("query space", path, sys::space(path))
    }
}

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    path: PathBuf,
}

impl File for OsFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::at("read", &self.path, offset, error)),
            }
        }
        Ok(done)
    }

    fn read_at_once(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        Ok(sys::read_at_once(&self.file, buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        // Repeats short writes and interrupted ones.
        self.file
            .write_all_at(buf, offset)
            .map_err(|error| Error::at("write", &self.path, offset, error))
    }

    /// Page by page: the page cache holds what came by one call in one piece where it can, and a store
    /// through a mapping makes all of that piece dirty, which the next sync then writes. In a file
    /// filled by one call of 8 MiB each record of 1,000 bytes made a sync write 2 MiB and take 660 us,
    /// instead of 5 KiB and 95 us (Linux 6.18, ext4).
    fn write_zeros(&self, mut offset: u64, len: u64) -> Result<()> {
        const ZEROS: &[u8] = &[0; 4096];
        let end = offset.saturating_add(len);
        while offset < end {
            let len = (4096 - offset % 4096).min(end - offset);
            self.write_at(&ZEROS[..len as usize], offset)?;
            offset += len;
        }
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        on("query length", &self.path, self.file.metadata()).map(|metadata| metadata.len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        on("set length", &self.path, self.file.set_len(len))
    }

    fn allocate(&self, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        match sys::allocate(&self.file, len) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                let from = self.len()?;
                self.write_zeros(from, len.saturating_sub(from))
            }
            result => on("allocate", &self.path, result),
        }
    }

    fn sync_data(&self) -> Result<()> {
        on("sync", &self.path, self.file.sync_data())
    }

    fn advise(&self, offset: u64, len: u64, advice: Advice) {
        sys::advise(&self.file, offset, len, advice);
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        sys::start_writeback(&self.file, offset, len);
    }

    fn map(&self, len: u64) -> Result<Option<Box<dyn MappedFile>>> {
        if len > self.len()? {
            let source = io::Error::new(ErrorKind::InvalidInput, "mapping beyond the file's end");
            return Err(Error::new("map", &self.path, source));
        }
        on("map", &self.path, sys::map(&self.file, len))
    }
}

/// The files locked by this process, as device and inode number.
///
/// `flock` alone conflicts between two handles of one process on a local disk, but not on network
/// file systems, where it is emulated by locks that belong to the process and that closing any
/// handle of the file releases. So a second attempt is refused before the file is opened.
static LOCKED: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

#[derive(Debug)]
struct OsLock {
    /// Closing it releases the lock.
    file: Option<fs::File>,
    id: (u64, u64),
}

impl OsLock {
    fn acquire(path: &Path) -> Result<Self> {
        let busy = || Error::new("lock", path, io::Error::from(ErrorKind::WouldBlock));
        let id_of = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
        let mut locked = LOCKED.lock();
        if let Ok(metadata) = fs::metadata(path)
            && locked.contains(&id_of(&metadata))
        {
            return Err(busy());
        }
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = on("lock", path, options.open(path))?;
        let id = id_of(&on("lock", path, file.metadata())?);
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(busy()),
            Err(fs::TryLockError::Error(error)) => return Err(Error::new("lock", path, error)),
        }
        locked.insert(id);
        Ok(Self {
            file: Some(file),
            id,
        })
    }
}

impl Drop for OsLock {
    fn drop(&mut self) {
        let mut locked = LOCKED.lock();
        self.file = None;
        locked.remove(&self.id);
    }
}

impl FileLock for OsLock {}

#[cfg(target_os = "linux")]
mod sys {
    use std::ffi::CString;
    use std::fs;
    use std::io::{self, ErrorKind};
    use std::mem::MaybeUninit;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::ptr::{self, NonNull};

    use parking_lot::Mutex;

    use crate::fs::{Advice, MappedFile, Space};

    fn offset(value: u64) -> io::Result<libc::off_t> {
        libc::off_t::try_from(value).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))
    }

    pub(super) fn space(path: &Path) -> io::Result<Space> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut stat = MaybeUninit::<libc::statvfs>::zeroed();
        let stat = loop {
            // SAFETY: `path` ends with a zero byte and `stat` is valid for writes of its type.
            if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } == 0 {
                // SAFETY: zeroed bytes are a valid `statvfs` (it holds integers only), and the
                // call has filled it.
                break unsafe { stat.assume_init() };
            }
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        };
        let unit = stat.f_frsize;
        Ok(Space {
            available: stat.f_bavail.saturating_mul(unit),
            total: stat.f_blocks.saturating_mul(unit),
        })
    }

    /// Reserves blocks; an error of kind `Unsupported` where the file system has no such call.
    pub(super) fn allocate(file: &fs::File, len: u64) -> io::Result<()> {
        let len = offset(len)?;
        loop {
            // SAFETY: the descriptor is open for the duration of the call; no memory is passed.
            if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
                    return Err(io::Error::from(ErrorKind::Unsupported));
                }
                _ => return Err(error),
            }
        }
    }

    /// Whether all of `buf` could be filled without waiting for the disk.
    pub(super) fn read_at_once(file: &fs::File, buf: &mut [u8], start: u64) -> bool {
        let Ok(start) = offset(start) else {
            return false;
        };
        let part = libc::iovec {
            iov_base: buf.as_mut_ptr().cast(),
            iov_len: buf.len(),
        };
        // SAFETY: the descriptor is open for the duration of the call; `part` is one vector that
        // describes `buf`, which is borrowed for writing as long. Not run under Miri, which has no
        // such call.
        let read = unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, start, libc::RWF_NOWAIT) };
        usize::try_from(read).is_ok_and(|read| read == buf.len())
    }

    pub(super) fn advise(file: &fs::File, start: u64, len: u64, advice: Advice) {
        let advice = match advice {
            Advice::WillNeed => libc::POSIX_FADV_WILLNEED,
            Advice::Sequential => libc::POSIX_FADV_SEQUENTIAL,
            Advice::Random => libc::POSIX_FADV_RANDOM,
            Advice::DontNeed => libc::POSIX_FADV_DONTNEED,
        };
        if let (Ok(start), Ok(len)) = (offset(start), offset(len)) {
            // SAFETY: the descriptor is open for the duration of the call; no memory is passed.
            // The result is ignored: it is advice.
            let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), start, len, advice) };
        }
    }

    pub(super) fn start_writeback(file: &fs::File, start: u64, len: u64) {
        if let (Ok(start), Ok(len)) = (offset(start), offset(len)) {
            let flags = libc::SYNC_FILE_RANGE_WRITE;
            // SAFETY: the descriptor is open for the duration of the call; no memory is passed.
            // The result is ignored: an error of write-back is reported by the next sync.
            let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, flags) };
        }
    }

    pub(super) fn map(file: &fs::File, len: u64) -> io::Result<Option<Box<dyn MappedFile>>> {
        let Some(size) = usize::try_from(len).ok().filter(|&size| size > 0) else {
            return Ok(None);
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory;
        // the descriptor is open.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, access, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // The file system cannot map.
                Some(libc::ENODEV) => Ok(None),
                _ => Err(error),
            };
        }
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            return Ok(None);
        };
        Ok(Some(Box::new(OsMap {
            region: Mutex::new(Region {
                start,
                size,
                released: 0,
            }),
            len,
        })))
    }

    /// Stores this far behind the last one are taken out of the process.
    const RELEASE_BYTES: usize = 256 << 10;

    /// So much is made ready by one call, which holds a lock of the process that every new mapping takes,
    /// such as the memory of a memtable: with 2 MiB a call a writer waited 4 to 8 ms for it.
    const PREPARE_BYTES: usize = 64 << 10;

    /// `size` bytes of shared memory at `start`, owned by this value, unmapped on drop.
    #[derive(Debug)]
    struct Region {
        start: NonNull<u8>,
        size: usize,
        /// Up to here the process holds no pages, unless somebody stored there again.
        released: usize,
    }

    impl Region {
        /// Takes what lies before `end` out of the process's page tables, now and then: a file that
        /// is written front to back would otherwise count as the process's memory, all of it. The
        /// bytes stay in the page cache, as if they had come by `pwrite`.
        fn release(&mut self, end: usize) {
            if end < self.released + RELEASE_BYTES {
                return;
            }
            let upto = end - end % RELEASE_BYTES;
            // SAFETY: whole pages of the mapping (`released` and `upto` are multiples of their size,
            // `upto` is at most `size`). It is a shared mapping of a file: bytes stored there stay
            // in the file, and the next access maps its page again. The result is ignored: the
            // pages then stay.
            let _ = unsafe {
                let start = self.start.as_ptr().add(self.released).cast();
                libc::madvise(start, upto - self.released, libc::MADV_DONTNEED)
            };
            self.released = upto;
        }
    }

    // SAFETY: the mapping belongs to the process, not to a thread, and nothing else holds the
    // pointer.
    unsafe impl Send for Region {}

    impl Drop for Region {
        fn drop(&mut self) {
            // SAFETY: exactly the range that `mmap` returned, owned by `self`, unmapped once.
            let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
        }
    }

    #[derive(Debug)]
    struct OsMap {
        /// Callers write a byte from one thread at a time, but a promise in words does not make a
        /// safe function sound. The lock is theirs alone and costs a few nanoseconds.
        region: Mutex<Region>,
        len: u64,
    }

    impl MappedFile for OsMap {
        fn write(&self, offset: u64, bytes: &[u8]) {
            let end = offset.checked_add(bytes.len() as u64);
            let in_range = end.is_some_and(|end| end <= self.len);
            assert!(
                in_range,
                "{} bytes at {offset} to a mapping of {}",
                bytes.len(),
                self.len
            );
            let mut region = self.region.lock();
            // SAFETY: the range is inside of the mapping (checked above: `len` is the region's
            // size, so `offset` fits into a usize), which is writable and lives as long as
            // `region`. The lock makes this the only access, no reference to these bytes is ever
            // made, and so `bytes` cannot overlap them.
            unsafe {
                let to = region.start.as_ptr().add(offset as usize);
                ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
            }
            region.release(offset as usize + bytes.len());
        }

        fn prepare(&self, bytes: u64) {
            let region = self.region.lock();
            let size = region
                .size
                .min(usize::try_from(bytes).unwrap_or(usize::MAX));
            for at in (0..size).step_by(PREPARE_BYTES) {
                // SAFETY: a part of the mapping, which is the region's own. Pages are mapped, no byte
                // changes. Kernels before 5.14 do not know the advice, and a page that cannot be made
                // ready now is met again by the store.
                let failed = unsafe {
                    let start = region.start.as_ptr().add(at).cast();
                    libc::madvise(
                        start,
                        PREPARE_BYTES.min(size - at),
                        libc::MADV_POPULATE_WRITE,
                    )
                } != 0;
                if failed {
                    break;
                }
            }
        }

        fn len(&self) -> u64 {
            self.len
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    use std::fs;
    use std::io::{self, ErrorKind};
    use std::path::Path;

    use crate::fs::{Advice, MappedFile, Space};

    /// Unknown here, so never a reason to refuse a write.
    pub(super) fn space(path: &Path) -> io::Result<Space> {
        fs::metadata(path)?;
        Ok(Space {
            available: u64::MAX,
            total: u64::MAX,
        })
    }

    pub(super) fn allocate(_: &fs::File, _: u64) -> io::Result<()> {
        Err(io::Error::from(ErrorKind::Unsupported))
    }

    pub(super) fn read_at_once(_: &fs::File, _: &mut [u8], _: u64) -> bool {
        false
    }

    pub(super) fn advise(_: &fs::File, _: u64, _: u64, _: Advice) {}

    pub(super) fn start_writeback(_: &fs::File, _: u64, _: u64) {}

    pub(super) fn map(_: &fs::File, _: u64) -> io::Result<Option<Box<dyn MappedFile>>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_writes_and_lengths() {
        let dir = tempfile::tempdir().unwrap();
        let fs = OsFs::new();
        let path = dir.path().join("a");
        let file = fs.open(&path, OpenMode::CreateNew).unwrap();
        file.write_at(b"hello", 10).unwrap();
        assert_eq!(file.len().unwrap(), 15);
        let mut buf = [9; 8];
        assert_eq!(file.read_at(&mut buf, 10).unwrap(), 5);
        assert_eq!(&buf, b"hello\x09\x09\x09");
        file.read_exact_at(&mut buf, 4).unwrap();
        assert_eq!(&buf, b"\0\0\0\0\0\0he");
        file.allocate(0).unwrap();
        file.allocate(100_000).unwrap();
        assert_eq!(file.len().unwrap(), 100_000);
        file.allocate(10).unwrap();
        assert_eq!(file.len().unwrap(), 100_000);
        file.start_writeback(0, 0);
        for advice in [
            Advice::WillNeed,
            Advice::Sequential,
            Advice::Random,
            Advice::DontNeed,
        ] {
            file.advise(0, 0, advice);
            file.advise(u64::MAX, 1, advice);
        }
        file.sync_data().unwrap();
        fs.sync_dir(dir.path()).unwrap();
        assert_eq!(fs.open(&path, OpenMode::Create).unwrap().len().unwrap(), 0);
        let space = fs.space(dir.path()).unwrap();
        assert!(space.available <= space.total && space.total > 0);
    }

    #[test]
    fn zeros_are_written_where_nothing_reserves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = OsFile {
            file: fs::File::create_new(&path).unwrap(),
            path,
        };
        file.write_at(b"abc", 0).unwrap();
        file.write_zeros(3, 150_000).unwrap();
        file.write_zeros(150_003, 0).unwrap();
        assert_eq!(file.len().unwrap(), 150_003);
        let mut bytes = vec![1; 150_003];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 150_003);
        assert!(bytes.starts_with(b"abc\0") && bytes[3..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn errors_name_operation_path_and_offset() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let error = OsFs.open(&path, OpenMode::Read).unwrap_err();
        assert!(error.is_not_found());
        assert!(
            error
                .to_string()
                .starts_with(&format!("open {}: ", path.display()))
        );
        fs::write(&path, b"x").unwrap();
        let file = OsFs.open(&path, OpenMode::Read).unwrap();
        let error = file.write_at(b"y", 7).unwrap_err();
        assert_eq!((error.op, error.offset), ("write", Some(7)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_mapping_is_seen_through_the_file_and_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = OsFs.open(&path, OpenMode::CreateNew).unwrap();
        assert!(file.map(4096).is_err(), "beyond the end");
        file.allocate(10_000).unwrap();
        assert!(file.map(0).unwrap().is_none());
        let map = file.map(10_000).unwrap().unwrap();
        // What is made ready keeps its content.
        map.write(5000, b"before");
        map.prepare(u64::MAX);
        map.prepare(0);
        let mut kept = [0; 6];
        file.read_exact_at(&mut kept, 5000).unwrap();
        assert_eq!(&kept, b"before");
        map.write(9_995, b"world");
        let mut buf = [0; 5];
        file.read_exact_at(&mut buf, 9_995).unwrap();
        assert_eq!(&buf, b"world");
        file.sync_data().unwrap();
        drop(file);
        map.write(0, b"hello");
        drop(map);
        assert_eq!(fs::read(&path).unwrap()[..5], *b"hello");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_stored_stays_in_the_file_and_not_in_the_process() {
        const LEN: usize = 8 << 20;
        let dir = tempfile::tempdir().unwrap();
        let file = OsFs
            .open(&dir.path().join("a"), OpenMode::CreateNew)
            .unwrap();
        file.allocate(LEN as u64).unwrap();
        let map = file.map(LEN as u64).unwrap().unwrap();
        let byte = |at: usize| (at / 1000 % 251) as u8 + 1;
        for at in (0..LEN).step_by(1000) {
            map.write(at as u64, &vec![byte(at); 1000.min(LEN - at)]);
        }
        // Below what was given back, too.
        map.write(5000, b"again");
        let mut bytes = vec![0; LEN];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes[5000..5005], b"again");
        bytes[5000..5005].fill(byte(5000));
        assert!(bytes.iter().enumerate().all(|(at, &b)| b == byte(at)));
        // What the process holds of this file, in KiB.
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let path = file.path().to_string_lossy().into_owned();
        let ours = maps.lines().skip_while(|line| !line.ends_with(&path));
        let mut ours = ours.filter_map(|line| line.strip_prefix("Rss:"));
        let held = ours.next().unwrap().trim().trim_end_matches(" kB");
        assert!(held.parse::<u64>().unwrap() <= 1024, "{held}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    #[should_panic(expected = "to a mapping of 4096")]
    fn a_store_outside_of_the_mapping_panics() {
        let dir = tempfile::tempdir().unwrap();
        let file = OsFs
            .open(&dir.path().join("a"), OpenMode::CreateNew)
            .unwrap();
        file.allocate(4096).unwrap();
        file.map(4096).unwrap().unwrap().write(4095, b"ab");
    }

    #[test]
    fn a_lock_has_one_holder_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let lock = OsFs.lock(&path).unwrap();
        let refused = OsFs.lock(&path).unwrap_err();
        assert_eq!(refused.source.kind(), ErrorKind::WouldBlock);
        // The same file by another name is the same lock.
        let link = dir.path().join("LINK");
        fs::hard_link(&path, &link).unwrap();
        assert!(OsFs.lock(&link).is_err());
        // Another file is not.
        drop(OsFs.lock(&dir.path().join("OTHER")).unwrap());
        // Another open of the file finds the kernel's lock, as another process would.
        let file = fs::File::open(&path).unwrap();
        assert!(matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)));
        drop(lock);
        file.try_lock().unwrap();
        let refused = OsFs.lock(&path).unwrap_err();
        assert_eq!(refused.source.kind(), ErrorKind::WouldBlock);
        drop(file);
        drop(OsFs.lock(&path).unwrap());
    }
}
