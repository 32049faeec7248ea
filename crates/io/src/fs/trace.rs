//! A file system that writes down what is done to it.
//!
//! [`TraceFs`] passes everything on and records one line for each call that changes what is visible
//! or what is durable, with paths relative to a root. A test compares the lines with a golden file,
//! so that the order of writes, syncs and renames cannot change unnoticed:
//!
//! ```text
//! create-dir db
//! create db/000001.log
//! allocate db/000001.log 65536
//! map-write db/000001.log 0 +120
//! sync db/000001.log
//! rename db/CURRENT.tmp -> db/CURRENT
//! sync-dir db
//! ```
//!
//! Writes that continue one another become one line, if the calls do: with [`Detail::Full`] only
//! stores to a mapping (how many of them make a record is not worth a line), with
//! [`Detail::Folded`] all writes to one file, and offsets and lengths are left out, so that the
//! lines do not depend on sizes. A call that failed has ` failed` behind it.

use std::fmt::{self, Debug};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Result;
use crate::fs::{Advice, DirEntry, File, FileLock, Fs, MappedFile, OpenMode, Space};

/// How much a trace tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Every write with its offset and length.
    Full,
    /// Successive writes to a file as one line without numbers.
    Folded,
}

/// A run of writes that the next one may continue.
struct Writes {
    verb: &'static str,
    path: String,
    start: u64,
    end: u64,
}

#[derive(Default)]
struct Lines {
    done: Vec<String>,
    open: Option<Writes>,
}

struct Shared {
    inner: Arc<dyn Fs>,
    root: PathBuf,
    detail: Detail,
    lines: Mutex<Lines>,
}

/// A file system that writes down what is done to it. A clone is another handle to the same one.
#[derive(Clone)]
pub struct TraceFs {
    shared: Arc<Shared>,
}

impl TraceFs {
    /// Stands before `inner` and shows paths relative to `root`.
    pub fn new(inner: Arc<dyn Fs>, root: impl Into<PathBuf>, detail: Detail) -> Self {
        let shared = Shared {
            inner,
            root: root.into(),
            detail,
            lines: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Adds a line of the caller's own, to tell the phases of a test apart.
    pub fn note(&self, line: impl Into<String>) {
        self.shared.push(line.into());
    }

    /// Takes the lines recorded so far, each ended by a newline.
    pub fn take(&self) -> String {
        let mut lines = self.shared.lines.lock();
        self.shared.close(&mut lines);
        let mut text = String::new();
        for line in lines.done.drain(..) {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

impl Debug for TraceFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceFs")
            .field("inner", &self.inner)
            .field("root", &self.root)
            .field("detail", &self.detail)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn show(&self, path: &Path) -> String {
        let relative = path.strip_prefix(&self.root).unwrap_or(path);
        if relative.as_os_str().is_empty() {
            ".".into()
        } else {
            relative.display().to_string()
        }
    }

    fn close(&self, lines: &mut Lines) {
        if let Some(Writes {
            verb,
            path,
            start,
            end,
        }) = lines.open.take()
        {
            lines.done.push(match self.detail {
                Detail::Full => format!("{verb} {path} {start} +{}", end - start),
                Detail::Folded => format!("{verb} {path}"),
            });
        }
    }

    fn push(&self, line: String) {
        let mut lines = self.lines.lock();
        self.close(&mut lines);
        lines.done.push(line);
    }

    /// Records a call after it was made, and passes its result on.
    fn called<T>(&self, result: Result<T>, line: impl FnOnce() -> String) -> Result<T> {
        let failed = if result.is_err() { " failed" } else { "" };
        self.push(line() + failed);
        result
    }

    fn wrote(&self, verb: &'static str, path: &Path, offset: u64, len: u64) {
        let path = self.show(path);
        let mut lines = self.lines.lock();
        if let Some(open) = &mut lines.open
            && (open.verb, &open.path) == (verb, &path)
        {
            let continues = open.end == offset && verb == "map-write";
            if continues || self.detail == Detail::Folded {
                open.end = offset + len;
                return;
            }
        }
        self.close(&mut lines);
        lines.open = Some(Writes {
            verb,
            path,
            start: offset,
            end: offset + len,
        });
    }

    fn number(&self, value: u64) -> String {
        match self.detail {
            Detail::Full => format!(" {value}"),
            Detail::Folded => String::new(),
        }
    }
}

impl Fs for TraceFs {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let shared = &self.shared;
        let opened = shared.inner.open(path, mode);
        let inner = match mode {
            OpenMode::Read | OpenMode::ReadWrite => opened?,
            OpenMode::CreateNew | OpenMode::Create => {
                shared.called(opened, || format!("create {}", shared.show(path)))?
            }
        };
        Ok(Arc::new(TraceFile {
            inner,
            shared: Arc::clone(shared),
        }))
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        let shared = &self.shared;
        let line = || format!("create-dir {}", shared.show(path));
        shared.called(shared.inner.create_dir_all(path), line)
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        let shared = &self.shared;
        let line = || format!("remove {}", shared.show(path));
        shared.called(shared.inner.remove_file(path), line)
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        let shared = &self.shared;
        let line = || format!("remove-dir {}", shared.show(path));
        shared.called(shared.inner.remove_dir(path), line)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let shared = &self.shared;
        let line = || format!("rename {} -> {}", shared.show(from), shared.show(to));
        shared.called(shared.inner.rename(from, to), line)
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> Result<()> {
        let shared = &self.shared;
        let line = || format!("link {} -> {}", shared.show(existing), shared.show(new));
        shared.called(shared.inner.hard_link(existing, new), line)
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        self.shared.inner.list(dir)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.shared.inner.exists(path)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let shared = &self.shared;
        shared.called(shared.inner.sync_dir(dir), || {
            format!("sync-dir {}", shared.show(dir))
        })
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn FileLock>> {
        let shared = &self.shared;
        shared.called(shared.inner.lock(path), || {
            format!("lock {}", shared.show(path))
        })
    }

    fn space(&self, path: &Path) -> Result<Space> {
        self.shared.inner.space(path)
    }
}

#[derive(Debug)]
struct TraceFile {
    inner: Arc<dyn File>,
    shared: Arc<Shared>,
}

impl TraceFile {
    fn name(&self) -> String {
        self.shared.show(self.inner.path())
    }
}

impl File for TraceFile {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let result = self.inner.write_at(buf, offset);
        let len = buf.len() as u64;
        if result.is_ok() {
            self.shared.wrote("write", self.inner.path(), offset, len);
            return result;
        }
        self.shared.called(result, || match self.shared.detail {
            Detail::Full => format!("write {} {offset} +{len}", self.name()),
            Detail::Folded => format!("write {}", self.name()),
        })
    }

    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let shared = &self.shared;
        let line = || format!("set-len {}{}", self.name(), shared.number(len));
        shared.called(self.inner.set_len(len), line)
    }

    fn allocate(&self, len: u64) -> Result<()> {
        let shared = &self.shared;
        let line = || format!("allocate {}{}", self.name(), shared.number(len));
        shared.called(self.inner.allocate(len), line)
    }

    fn sync_data(&self) -> Result<()> {
        self.shared
            .called(self.inner.sync_data(), || format!("sync {}", self.name()))
    }

    fn advise(&self, offset: u64, len: u64, advice: Advice) {
        self.inner.advise(offset, len, advice);
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.inner.start_writeback(offset, len);
        self.shared.push(match self.shared.detail {
            Detail::Full => format!("start-writing {} {offset} +{len}", self.name()),
            Detail::Folded => format!("start-writing {}", self.name()),
        });
    }

    fn map(&self, len: u64) -> Result<Option<Box<dyn MappedFile>>> {
        let Some(inner) = self.inner.map(len)? else {
            return Ok(None);
        };
        let path = self.inner.path().to_path_buf();
        Ok(Some(Box::new(TraceMap {
            inner,
            path,
            shared: Arc::clone(&self.shared),
        })))
    }
}

#[derive(Debug)]
struct TraceMap {
    inner: Box<dyn MappedFile>,
    path: PathBuf,
    shared: Arc<Shared>,
}

impl MappedFile for TraceMap {
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.inner.write(offset, bytes);
        self.shared
            .wrote("map-write", &self.path, offset, bytes.len() as u64);
    }

    fn prepare(&self, bytes: u64) {
        self.inner.prepare(bytes);
        let name = self.shared.show(&self.path);
        self.shared.push(format!("map-prepare {name}"));
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::mem::MemFs;

    fn run(detail: Detail) -> String {
        let fs = TraceFs::new(Arc::new(MemFs::new()), "/base", detail);
        let at = |name: &str| Path::new("/base").join(name);
        fs.create_dir_all(&at("db")).unwrap();
        fs.sync_dir(&at("")).unwrap();
        let file = fs.open(&at("db/1.log"), OpenMode::CreateNew).unwrap();
        file.allocate(4096).unwrap();
        let map = file.map(4096).unwrap().unwrap();
        map.write(0, &[1; 7]);
        map.write(7, &[2; 100]);
        map.write(200, &[2; 1]);
        file.sync_data().unwrap();
        file.write_at(&[3; 5], 0).unwrap();
        file.write_at(&[3; 5], 5).unwrap();
        file.read_exact_at(&mut [0; 10], 0).unwrap();
        file.set_len(10).unwrap();
        fs.note("# names");
        fs.rename(&at("db/1.log"), &at("db/2.log")).unwrap();
        fs.hard_link(&at("db/2.log"), &at("db/3.log")).unwrap();
        fs.remove_file(&at("db/2.log")).unwrap();
        fs.remove_file(&at("db/2.log")).unwrap_err();
        fs.open(&at("db/3.log"), OpenMode::Read)
            .unwrap()
            .write_at(b"x", 3)
            .unwrap_err();
        fs.sync_dir(Path::new("/")).unwrap();
        let text = fs.take();
        assert_eq!(fs.take(), "");
        text
    }

    #[test]
    fn one_line_per_change() {
        let expected = "\
create-dir db
sync-dir .
create db/1.log
allocate db/1.log 4096
map-write db/1.log 0 +107
map-write db/1.log 200 +1
sync db/1.log
write db/1.log 0 +5
write db/1.log 5 +5
set-len db/1.log 10
# names
rename db/1.log -> db/2.log
link db/2.log -> db/3.log
remove db/2.log
remove db/2.log failed
write db/3.log 3 +1 failed
sync-dir /
";
        assert_eq!(run(Detail::Full), expected);
    }

    #[test]
    fn folded_lines_have_no_numbers() {
        let expected = "\
create-dir db
sync-dir .
create db/1.log
allocate db/1.log
map-write db/1.log
sync db/1.log
write db/1.log
set-len db/1.log
# names
rename db/1.log -> db/2.log
link db/2.log -> db/3.log
remove db/2.log
remove db/2.log failed
write db/3.log failed
sync-dir /
";
        assert_eq!(run(Detail::Folded), expected);
    }
}
