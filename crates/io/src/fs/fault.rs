//! A file system that fails as it is told.
//!
//! [`FaultFs`] stands before any other file system and counts every operation from 0. Before an
//! operation is passed on, these are asked in turn; the first that objects decides:
//!
//! 1. [`FaultFs::fail_from`]: from this number on everything fails, as if the disk were pulled or
//!    the process dead. Stores to mappings, which cannot fail, do nothing.
//! 2. The hook ([`FaultFs::set_hook`]): a closure that sees the number and the operation. It may
//!    also just look, for instance to take a crash image of a [`MemFs`](crate::fs::mem::MemFs)
//!    below before every operation that changes something.
//! 3. The rules ([`FaultFs::add_rule`]), in the order in which they were added.
//!
//! A failed operation does not reach the disk, except as its [`Fault`] says. What is counted: all
//! calls of [`Fs`] and [`File`] except for advice, write-back and path, and stores to mappings.
//! Without rules and hooks an operation costs one atomic addition and one load.

use std::fmt::{self, Debug};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Result};
use crate::fs::{Advice, DirEntry, File, FileLock, Fs, MappedFile, OpenMode, Space};
use crate::rng::Rng;

/// What kind of operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// [`Fs::open`] of a file that must exist.
    Open,
    /// [`Fs::open`] that makes or empties a file.
    Create,
    /// [`File::read_at`].
    Read,
    /// [`File::write_at`].
    Write,
    /// [`File::set_len`].
    SetLen,
    /// [`File::allocate`].
    Allocate,
    /// [`File::sync_data`].
    Sync,
    /// [`File::map`].
    Map,
    /// [`MappedFile::write`]: can be seen, not failed.
    MapWrite,
    /// [`Fs::create_dir_all`].
    CreateDir,
    /// [`Fs::remove_file`].
    Remove,
    /// [`Fs::remove_dir`].
    RemoveDir,
    /// [`Fs::rename`].
    Rename,
    /// [`Fs::hard_link`].
    Link,
    /// [`Fs::sync_dir`].
    SyncDir,
    /// [`Fs::lock`].
    Lock,
    /// [`Fs::list`].
    List,
    /// [`Fs::exists`], [`Fs::space`], [`File::len`].
    Query,
}

impl OpKind {
    /// Whether it changes what is visible or what is durable.
    pub fn is_mutation(self) -> bool {
        !matches!(
            self,
            Self::Open | Self::Read | Self::Map | Self::Lock | Self::List | Self::Query
        )
    }
}

/// One operation, before or after it is done.
#[derive(Clone, Copy, Debug)]
pub struct OpInfo<'a> {
    /// Its kind.
    pub kind: OpKind,
    /// The file or directory; for renames and links, the existing one.
    pub path: &'a Path,
    /// The new name, for renames and links.
    pub to: Option<&'a Path>,
    /// The first byte, for reads and writes; 0 otherwise.
    pub offset: u64,
    /// The bytes read, written, allocated, mapped or cut to; 0 otherwise.
    pub len: u64,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An I/O error (`EIO`).
    Io,
    /// The disk is full (`ENOSPC`).
    NoSpace,
    /// An error of another kind.
    Error(ErrorKind),
    /// A read gets only the first half of the bytes, as if the file ended there. Another operation
    /// fails with `Io`.
    ShortRead,
    /// A read gets its bytes with one bit flipped, chosen by the seed. Another operation fails with
    /// `Io`.
    FlippedRead,
    /// The first half of a write is done, then it fails with `Io`. Another operation fails with
    /// `Io` at once.
    TornWrite,
    /// The bytes that a sync should have made durable are dropped (by
    /// [`FaultFs::set_lose_unsynced`]), then it fails with `Io`. Another operation fails with `Io`.
    LostSync,
}

/// What the hook says of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on (to the rules, then to the disk).
    Proceed,
    /// It fails.
    Fail(Fault),
}

/// Which operations fail and how. Everything that is not restricted matches.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    kinds: Vec<OpKind>,
    path_contains: Option<String>,
    path_ends: Option<String>,
    skip: u64,
    times: u64,
    probability: f64,
}

impl Rule {
    /// Every operation fails in this way.
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            kinds: Vec::new(),
            path_contains: None,
            path_ends: None,
            skip: 0,
            times: u64::MAX,
            probability: 1.0,
        }
    }

    /// Only operations of this kind, or of one of these if called again.
    #[must_use]
    pub fn on(mut self, kind: OpKind) -> Self {
        self.kinds.push(kind);
        self
    }

    /// Only where the path, or the new name, contains this.
    #[must_use]
    pub fn path_contains(mut self, part: impl Into<String>) -> Self {
        self.path_contains = Some(part.into());
        self
    }

    /// Only where the path, or the new name, ends with this.
    #[must_use]
    pub fn path_ends(mut self, end: impl Into<String>) -> Self {
        self.path_ends = Some(end.into());
        self
    }

    /// The first `count` matching operations succeed.
    #[must_use]
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Only `count` operations fail, then the rule is spent.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.times = count;
        self
    }

    /// Each fails with this probability, by the seed.
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    fn matches(&self, op: &OpInfo<'_>) -> bool {
        // A store to a mapping is no call and cannot fail.
        op.kind != OpKind::MapWrite
            && (self.kinds.is_empty() || self.kinds.contains(&op.kind))
            && [Some(op.path), op.to].into_iter().flatten().any(|path| {
                let path = path.to_string_lossy();
                self.path_contains
                    .as_ref()
                    .is_none_or(|part| path.contains(part))
                    && self
                        .path_ends
                        .as_ref()
                        .is_none_or(|end| path.ends_with(end))
            })
    }
}

/// Sees an operation before it is done, with its number, and decides.
pub type Hook = Box<dyn Fn(u64, &OpInfo<'_>) -> Verdict + Send + Sync>;

/// Sees an operation after it was done (not if it was failed), with its number.
pub type AfterHook = Box<dyn Fn(u64, &OpInfo<'_>) + Send + Sync>;

/// Drops the unsynced bytes of a file.
pub type LoseUnsynced = Box<dyn Fn(&Path) + Send + Sync>;

#[derive(Default)]
struct Plan {
    hook: Option<Hook>,
    after: Option<AfterHook>,
    lose_unsynced: Option<LoseUnsynced>,
}

struct Shared {
    inner: Arc<dyn Fs>,
    /// The number of the next operation.
    next: AtomicU64,
    faults: AtomicU64,
    fail_from: AtomicU64,
    /// Whether there is a hook or a rule to ask.
    armed: AtomicBool,
    plan: RwLock<Plan>,
    rules: Mutex<(Vec<Rule>, Rng)>,
}

/// A file system that fails as it is told. A clone is another handle to the same one.
#[derive(Clone)]
pub struct FaultFs {
    shared: Arc<Shared>,
}

impl FaultFs {
    /// Stands before `inner`; `seed` decides what is left to chance.
    pub fn new(inner: Arc<dyn Fs>, seed: u64) -> Self {
        let shared = Shared {
            inner,
            next: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            fail_from: AtomicU64::new(u64::MAX),
            armed: AtomicBool::new(false),
            plan: RwLock::default(),
            rules: Mutex::new((Vec::new(), Rng::new(seed))),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// How many operations were begun, failed ones included.
    pub fn op_count(&self) -> u64 {
        self.shared.next.load(Ordering::SeqCst)
    }

    /// How many operations were failed by a rule, a hook or [`FaultFs::fail_from`].
    pub fn fault_count(&self) -> u64 {
        self.shared.faults.load(Ordering::SeqCst)
    }

    /// Fails every operation with this number or a greater one with an I/O error. `u64::MAX` ends
    /// it.
    pub fn fail_from(&self, number: u64) {
        self.shared.fail_from.store(number, Ordering::SeqCst);
    }

    /// Adds a rule behind those that are there.
    pub fn add_rule(&self, rule: Rule) {
        self.shared.rules.lock().0.push(rule);
        self.shared.armed.store(true, Ordering::SeqCst);
    }

    /// Removes all rules; hooks and [`FaultFs::fail_from`] stay.
    pub fn clear_rules(&self) {
        self.shared.rules.lock().0.clear();
    }

    /// Sets what is asked before each operation, instead of any earlier hook. The hook may use the
    /// file system below, not this one. Its verdict on a [`OpKind::MapWrite`] counts as `Proceed`.
    pub fn set_hook(&self, hook: Hook) {
        self.shared.plan.write().hook = Some(hook);
        self.shared.armed.store(true, Ordering::SeqCst);
    }

    /// Sets what is told after each operation, instead of any earlier one.
    pub fn set_after_hook(&self, hook: AfterHook) {
        self.shared.plan.write().after = Some(hook);
        self.shared.armed.store(true, Ordering::SeqCst);
    }

    /// Removes both hooks.
    pub fn clear_hooks(&self) {
        let mut plan = self.shared.plan.write();
        plan.hook = None;
        plan.after = None;
    }

    /// Sets how [`Fault::LostSync`] drops bytes, for instance by
    /// [`MemFs::lose_unsynced`](crate::fs::mem::MemFs::lose_unsynced).
    pub fn set_lose_unsynced(&self, lose: LoseUnsynced) {
        self.shared.plan.write().lose_unsynced = Some(lose);
    }
}

impl Debug for FaultFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultFs")
            .field("inner", &self.inner)
            .field("next", &self.next)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

/// An operation on the whole file, or on a name.
fn plain(kind: OpKind, path: &Path) -> OpInfo<'_> {
    OpInfo {
        kind,
        path,
        to: None,
        offset: 0,
        len: 0,
    }
}

fn source_of(fault: Fault) -> io::Error {
    match fault {
        Fault::NoSpace => io::Error::from_raw_os_error(libc::ENOSPC),
        Fault::Error(kind) => io::Error::from(kind),
        Fault::Io | Fault::ShortRead | Fault::FlippedRead | Fault::TornWrite | Fault::LostSync => {
            io::Error::from_raw_os_error(libc::EIO)
        }
    }
}

impl Shared {
    /// Counts the operation and answers its number and how it must fail, if so.
    fn begin(&self, op: &OpInfo<'_>) -> (u64, Option<Fault>) {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let fault = self.decide(number, op);
        if fault.is_some() {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        (number, fault)
    }

    fn decide(&self, number: u64, op: &OpInfo<'_>) -> Option<Fault> {
        if number >= self.fail_from.load(Ordering::SeqCst) {
            return Some(Fault::Io);
        }
        if !self.armed.load(Ordering::SeqCst) {
            return None;
        }
        if let Some(hook) = &self.plan.read().hook
            && let Verdict::Fail(fault) = hook(number, op)
            && op.kind != OpKind::MapWrite
        {
            return Some(fault);
        }
        let (rules, rng) = &mut *self.rules.lock();
        for rule in rules {
            if rule.times == 0 || !rule.matches(op) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rng.chance(rule.probability) {
                rule.times -= 1;
                return Some(rule.fault);
            }
        }
        None
    }

    fn after(&self, number: u64, op: &OpInfo<'_>) {
        if self.armed.load(Ordering::SeqCst)
            && let Some(after) = &self.plan.read().after
        {
            after(number, op);
        }
    }

    /// An operation that either is done or fails.
    fn run<T>(
        &self,
        op: &OpInfo<'_>,
        name: &'static str,
        action: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let (number, fault) = self.begin(op);
        if let Some(fault) = fault {
            return Err(Error::new(name, op.path, source_of(fault)));
        }
        let result = action();
        self.after(number, op);
        result
    }

    fn lose_unsynced(&self, path: &Path) {
        if let Some(lose) = &self.plan.read().lose_unsynced {
            lose(path);
        }
    }

    fn flip_a_bit(&self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            let rng = &mut self.rules.lock().1;
            bytes[rng.index(bytes.len())] ^= 1 << rng.below(8);
        }
    }
}

impl Fs for FaultFs {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let (kind, name) = match mode {
            OpenMode::Read | OpenMode::ReadWrite => (OpKind::Open, "open"),
            OpenMode::CreateNew | OpenMode::Create => (OpKind::Create, "create"),
        };
        let shared = &self.shared;
        let inner = shared.run(&plain(kind, path), name, || shared.inner.open(path, mode))?;
        Ok(Arc::new(FaultFile {
            inner,
            shared: Arc::clone(shared),
        }))
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        let op = plain(OpKind::CreateDir, path);
        self.shared.run(&op, "create directory", || {
            self.shared.inner.create_dir_all(path)
        })
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        let op = plain(OpKind::Remove, path);
        self.shared
            .run(&op, "remove", || self.shared.inner.remove_file(path))
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        let op = plain(OpKind::RemoveDir, path);
        self.shared.run(&op, "remove directory", || {
            self.shared.inner.remove_dir(path)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let op = OpInfo {
            to: Some(to),
            ..plain(OpKind::Rename, from)
        };
        self.shared
            .run(&op, "rename", || self.shared.inner.rename(from, to))
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> Result<()> {
        let op = OpInfo {
            to: Some(new),
            ..plain(OpKind::Link, existing)
        };
        self.shared
            .run(&op, "link", || self.shared.inner.hard_link(existing, new))
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        self.shared.run(&plain(OpKind::List, dir), "list", || {
            self.shared.inner.list(dir)
        })
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.shared.run(&plain(OpKind::Query, path), "look up", || {
            self.shared.inner.exists(path)
        })
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let op = plain(OpKind::SyncDir, dir);
        self.shared
            .run(&op, "sync directory", || self.shared.inner.sync_dir(dir))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn FileLock>> {
        self.shared.run(&plain(OpKind::Lock, path), "lock", || {
            self.shared.inner.lock(path)
        })
    }

    fn space(&self, path: &Path) -> Result<Space> {
        let op = plain(OpKind::Query, path);
        self.shared
            .run(&op, "query space", || self.shared.inner.space(path))
    }
}

#[derive(Debug)]
struct FaultFile {
    inner: Arc<dyn File>,
    shared: Arc<Shared>,
}

impl FaultFile {
    fn op(&self, kind: OpKind, offset: u64, len: u64) -> OpInfo<'_> {
        OpInfo {
            kind,
            path: self.inner.path(),
            to: None,
            offset,
            len,
        }
    }
}

impl File for FaultFile {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let op = self.op(OpKind::Read, offset, buf.len() as u64);
        let (number, fault) = self.shared.begin(&op);
        let read = match fault {
            None => self.inner.read_at(buf, offset),
            Some(Fault::ShortRead) => {
                let half = buf.len() / 2;
                self.inner.read_at(&mut buf[..half], offset)
            }
            Some(Fault::FlippedRead) => {
                let read = self.inner.read_at(buf, offset)?;
                self.shared.flip_a_bit(&mut buf[..read]);
                Ok(read)
            }
            Some(fault) => return Err(Error::at("read", op.path, offset, source_of(fault))),
        };
        self.shared.after(number, &op);
        read
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let op = self.op(OpKind::Write, offset, buf.len() as u64);
        let (number, fault) = self.shared.begin(&op);
        if let Some(fault) = fault {
            if fault == Fault::TornWrite {
                self.inner.write_at(&buf[..buf.len() / 2], offset)?;
            }
            return Err(Error::at("write", op.path, offset, source_of(fault)));
        }
        let result = self.inner.write_at(buf, offset);
        self.shared.after(number, &op);
        result
    }

    fn len(&self) -> Result<u64> {
        self.shared
            .run(&self.op(OpKind::Query, 0, 0), "query length", || {
                self.inner.len()
            })
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let op = self.op(OpKind::SetLen, 0, len);
        self.shared
            .run(&op, "set length", || self.inner.set_len(len))
    }

    fn allocate(&self, len: u64) -> Result<()> {
        let op = self.op(OpKind::Allocate, 0, len);
        self.shared
            .run(&op, "allocate", || self.inner.allocate(len))
    }

    fn sync_data(&self) -> Result<()> {
        let op = self.op(OpKind::Sync, 0, 0);
        let (number, fault) = self.shared.begin(&op);
        if let Some(fault) = fault {
            if fault == Fault::LostSync {
                self.shared.lose_unsynced(op.path);
            }
            return Err(Error::new("sync", op.path, source_of(fault)));
        }
        let result = self.inner.sync_data();
        self.shared.after(number, &op);
        result
    }

    fn advise(&self, offset: u64, len: u64, advice: Advice) {
        self.inner.advise(offset, len, advice);
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.inner.start_writeback(offset, len);
    }

    fn map(&self, len: u64) -> Result<Option<Box<dyn MappedFile>>> {
        let op = self.op(OpKind::Map, 0, len);
        let Some(inner) = self.shared.run(&op, "map", || self.inner.map(len))? else {
            return Ok(None);
        };
        let path = self.inner.path().to_path_buf();
        Ok(Some(Box::new(FaultMap {
            inner,
            path,
            shared: Arc::clone(&self.shared),
        })))
    }
}

#[derive(Debug)]
struct FaultMap {
    inner: Box<dyn MappedFile>,
    path: PathBuf,
    shared: Arc<Shared>,
}

impl MappedFile for FaultMap {
    fn write(&self, offset: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        let op = OpInfo {
            offset,
            len,
            ..plain(OpKind::MapWrite, &self.path)
        };
        // Only `fail_from` answers with a fault here: the process is dead and stores nothing.
        let (number, fault) = self.shared.begin(&op);
        if fault.is_none() {
            self.inner.write(offset, bytes);
            self.shared.after(number, &op);
        }
    }

    fn prepare(&self, bytes: u64) {
        self.inner.prepare(bytes);
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::mem::{CrashMode, MemFs};

    fn p(path: &str) -> &Path {
        Path::new(path)
    }

    fn disk() -> (MemFs, FaultFs) {
        let mem = MemFs::new();
        mem.write_file("/d/old", &[1; 100]).unwrap();
        let fault = FaultFs::new(Arc::new(mem.clone()), 1);
        (mem, fault)
    }

    /// Some of everything; stops at the first error.
    fn script(fs: &dyn Fs) -> Result<()> {
        let file = fs.open(p("/d/tmp"), OpenMode::CreateNew)?;
        file.allocate(4096)?;
        file.write_at(b"hello", 0)?;
        if let Some(map) = file.map(4096)? {
            map.write(5, b" world");
        }
        file.sync_data()?;
        file.read_exact_at(&mut [0; 11], 0)?;
        fs.rename(p("/d/tmp"), p("/d/new"))?;
        fs.sync_dir(p("/d"))?;
        fs.remove_file(p("/d/old"))
    }

    #[test]
    fn each_operation_counts_once_and_can_be_the_last() {
        let (_, fault) = disk();
        script(&fault).unwrap();
        let total = fault.op_count();
        assert_eq!(total, 10);
        for n in 0..total {
            let (mem, fault) = disk();
            fault.fail_from(n);
            let result = script(&fault);
            if n == 4 {
                // The store to the mapping: it cannot tell, the sync after it does.
                assert_eq!(result.unwrap_err().op, "sync");
                assert_eq!(
                    mem.read_file("/d/tmp").unwrap()[..11],
                    *b"hello\0\0\0\0\0\0"
                );
            } else {
                result.unwrap_err();
                assert_eq!(fault.op_count(), n + 1);
            }
            assert_eq!(fault.fault_count(), fault.op_count() - n);
            assert!(mem.exists(p("/d/old")).unwrap());
            fault.fail_from(u64::MAX);
            fault.remove_file(p("/d/old")).unwrap();
        }
    }

    #[test]
    fn a_hook_takes_a_crash_image_at_every_change() {
        let (mem, fault) = disk();
        let images = Arc::new(Mutex::new(Vec::new()));
        let (below, taken) = (mem.clone(), Arc::clone(&images));
        fault.set_hook(Box::new(move |number, op| {
            if op.kind.is_mutation() {
                let image = below.crash(number, CrashMode::DropUnsynced);
                taken.lock().push((op.kind, image.files().len()));
            }
            Verdict::Proceed
        }));
        let stored = Arc::new(Mutex::new(Vec::new()));
        let (below, seen) = (mem.clone(), Arc::clone(&stored));
        fault.set_after_hook(Box::new(move |number, op| {
            if op.kind == OpKind::MapWrite {
                let bytes = below.read_file(op.path).unwrap();
                seen.lock()
                    .push((number, op.offset, op.len, bytes[..11].to_vec()));
            }
        }));
        script(&fault).unwrap();
        use OpKind::{Allocate, Create, MapWrite, Remove, Rename, Sync, SyncDir, Write};
        let kinds = [
            Create, Allocate, Write, MapWrite, Sync, Rename, SyncDir, Remove,
        ];
        let counts = [1, 1, 1, 1, 1, 1, 1, 2];
        assert_eq!(
            *images.lock(),
            kinds.into_iter().zip(counts).collect::<Vec<_>>()
        );
        assert_eq!(*stored.lock(), [(4, 5, 6, b"hello world".to_vec())]);
        fault.clear_hooks();
        fault.exists(p("/d")).unwrap();
        assert_eq!(images.lock().len(), 8);
    }

    #[test]
    fn rules_match_by_kind_path_and_number() {
        let (_, fault) = disk();
        let rule = Rule::new(Fault::NoSpace)
            .on(OpKind::Write)
            .path_ends(".log");
        fault.add_rule(rule.skip(1).times(2));
        fault.add_rule(
            Rule::new(Fault::Io)
                .on(OpKind::Rename)
                .path_contains("/target"),
        );
        let log = fault.open(p("/d/1.log"), OpenMode::Create).unwrap();
        let sst = fault.open(p("/d/1.sst"), OpenMode::Create).unwrap();
        log.write_at(b"a", 0).unwrap();
        sst.write_at(b"a", 0).unwrap();
        for _ in 0..2 {
            let error = log.write_at(b"b", 7).unwrap_err();
            assert!(error.is_out_of_space());
            assert_eq!(
                (error.op, error.path.as_path(), error.offset),
                ("write", p("/d/1.log"), Some(7))
            );
        }
        log.write_at(b"b", 0).unwrap();
        assert_eq!(
            fault.rename(p("/d/1.log"), p("/d/target")).unwrap_err().op,
            "rename"
        );
        assert_eq!(fault.fault_count(), 3);
        fault.clear_rules();
        fault.rename(p("/d/1.log"), p("/d/target")).unwrap();
    }

    #[test]
    fn chance_is_by_the_seed() {
        let run = |seed| {
            let fault = FaultFs::new(Arc::new(MemFs::new()), seed);
            fault.add_rule(Rule::new(Fault::Io).probability(0.3));
            (0..200)
                .map(|_| fault.exists(p("/")).is_ok())
                .collect::<Vec<_>>()
        };
        let ok = run(5).iter().filter(|&&ok| ok).count();
        assert!((100..180).contains(&ok), "{ok}");
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    #[test]
    fn reads_come_short_or_flipped() {
        let (_, fault) = disk();
        let file = fault.open(p("/d/old"), OpenMode::Read).unwrap();
        fault.add_rule(Rule::new(Fault::ShortRead).on(OpKind::Read).times(1));
        fault.add_rule(Rule::new(Fault::FlippedRead).on(OpKind::Read).times(1));
        let error = file.read_exact_at(&mut [0; 100], 0).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::UnexpectedEof);
        let mut bytes = [0; 100];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let flipped: u32 = bytes.iter().map(|byte| (byte ^ 1).count_ones()).sum();
        assert_eq!(flipped, 1);
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [1; 100]);
    }

    #[test]
    fn writes_tear_and_syncs_lose() {
        let (mem, fault) = disk();
        let below = mem.clone();
        fault.set_lose_unsynced(Box::new(move |path| below.lose_unsynced(path).unwrap()));
        let file = fault.open(p("/d/old"), OpenMode::ReadWrite).unwrap();
        fault.add_rule(Rule::new(Fault::TornWrite).on(OpKind::Write).times(1));
        file.write_at(&[2; 10], 0).unwrap_err();
        assert_eq!(
            mem.read_file("/d/old").unwrap()[..10],
            [2, 2, 2, 2, 2, 1, 1, 1, 1, 1]
        );
        fault.add_rule(Rule::new(Fault::LostSync).on(OpKind::Sync).times(1));
        file.sync_data().unwrap_err();
        // The next sync succeeds and proves nothing.
        file.sync_data().unwrap();
        assert_eq!(mem.read_file("/d/old").unwrap(), [1; 100]);
    }
}
