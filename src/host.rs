//! The command's own door to the machine: the user's files, the clock of the load generator, what
//! `/proc` and `/sys` tell. The database goes through `firn_io`; nothing here touches its files but the
//! lock, which readers share.
#![allow(
    clippy::disallowed_methods,
    reason = "files that belong to the user, and wall time of a benchmark, are not the database's"
)]

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::exit::{Failure, Result};

fn named(path: &Path) -> impl Fn(io::Error) -> Failure {
    let path = path.to_path_buf();
    move |error| Failure::usage(format!("{}: {error}", path.display()))
}

/// Shares the lock of a database until the process ends: others may read its files too, but nobody
/// may change them meanwhile. `false` if a process has them open that may. Where the lock cannot be
/// opened, as in a copy on a read-only disk, nobody else can write either.
pub(crate) fn share_lock(path: &Path) -> bool {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let Ok(file) = File::open(path) else {
        return true;
    };
    if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        return false;
    }
    HELD.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(file);
    true
}

/// Opens the file that the user names; `-` is stdin.
pub(crate) fn open_input(path: &Path) -> Result<BufReader<Box<dyn Read>>> {
    const BUFFER: usize = 256 << 10;
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let file = File::open(path).map_err(named(path))?;
        if file.metadata().map_err(named(path))?.is_dir() {
            return Err(Failure::usage(format!("{} is a directory", path.display())));
        }
        Box::new(file)
    };
    Ok(BufReader::with_capacity(BUFFER, input))
}

/// The length of a plain file, for progress; `None` for a pipe.
pub(crate) fn input_len(path: &Path) -> Option<u64> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata.is_file().then_some(metadata.len())
}

/// Reads a whole file of the user, at most `limit` bytes of it; `-` is stdin.
pub(crate) fn read_input(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open_input(path)?
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes);
    read.map_err(named(path))?;
    if bytes.len() > limit {
        let message = format!("{}: longer than the limit of {limit} bytes", path.display());
        return Err(Failure::new(crate::exit::Exit::Refused, message));
    }
    Ok(bytes)
}

/// A file for `write`. What is there already and is no plain file (a pipe, a device) is written to
/// as it is. Anything else is a new file: it takes its name only when `write` has ended well and the
/// bytes are on the disk, so that a broken export is never taken for a whole one. A symbolic link
/// stays, and what it leads to is replaced; a file that is replaced passes its permissions on.
pub(crate) fn create_output(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    const BUFFER: usize = 256 << 10;
    let there = std::fs::metadata(path).ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        let file = OpenOptions::new().write(true).open(path);
        let mut out = io::BufWriter::with_capacity(BUFFER, file.map_err(named(path))?);
        write(&mut out)?;
        return Ok(out.flush()?);
    }
    let target = target_of(path)?;
    let (partial, file) = Partial::create(&target)?;
    if let Some(there) = there {
        let kept = file.set_permissions(there.permissions());
        kept.map_err(named(&partial.0))?;
    }
    let mut out = io::BufWriter::with_capacity(BUFFER, file);
    write(&mut out)?;
    let file = out
        .into_inner()
        .map_err(|e| named(&partial.0)(e.into_error()))?;
    file.sync_all().map_err(named(&partial.0))?;
    std::fs::rename(&partial.0, &target).map_err(named(&target))
}

/// Where a chain of symbolic links leads, also if nothing is there.
fn target_of(path: &Path) -> Result<PathBuf> {
    const LONGEST: usize = 40;
    let mut target = path.to_path_buf();
    for _ in 0..LONGEST {
        let Ok(next) = std::fs::read_link(&target) else {
            return Ok(target);
        };
        // What is relative is so to where the link is.
        target = target.parent().unwrap_or(Path::new("")).join(next);
    }
    Err(Failure::usage(format!(
        "{}: more than {LONGEST} symbolic links",
        path.display()
    )))
}

/// Calls `each` when the user, the terminal or the system ends the process, which then ends as a
/// shell expects. A signal that was ignored when the process
/// began (by `nohup`, or in the background of a script) stays ignored. Where signals cannot be
/// caught, they end the process without a call.
pub(crate) fn on_end(each: impl FnOnce() + Send + 'static) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let path = Path::new("signals");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(named(path))?;
    let ignored = ignored_signals();
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let entered = runtime.enter();
    let mut caught = Vec::new();
    for kind in kinds {
        let bit = 1 << (kind.as_raw_value() - 1);
        if ignored & bit == 0
            && let Ok(signal) = signal(kind)
        {
            caught.push((kind, signal));
        }
    }
    drop(entered);
    if caught.is_empty() {
        return Ok(());
    }
    let wait = move || {
        let kind = runtime.block_on(std::future::poll_fn(|cx| {
            for (kind, signal) in &mut caught {
                if signal.poll_recv(cx).is_ready() {
                    return Poll::Ready(*kind);
                }
            }
            Poll::Pending
        }));
        each();
        // What a shell says of a process that the signal killed.
        std::process::exit(128 + kind.as_raw_value());
    };
    std::thread::Builder::new()
        .name("firn-signals".into())
        .spawn(wait)
        .map_err(named(path))?;
    Ok(())
}

/// A bit for each signal that the process ignores; the lowest is that of signal 1.
fn ignored_signals() -> u64 {
    let status = kernel("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// A file that is there only while it is written: an error or a signal (Ctrl-C) removes it.
struct Partial(PathBuf);

impl Partial {
    /// Makes a file beside `target`, with a name that nothing else has.
    fn create(target: &Path) -> Result<(Self, File)> {
        let Some(name) = target.file_name() else {
            let message = format!("{}: this is no name for a file", target.display());
            return Err(Failure::usage(message));
        };
        // Held while a file is made, so that a signal finds either none or its name.
        let made = Arc::new(Mutex::new(None::<PathBuf>));
        let ours = Arc::clone(&made);
        on_end(move || {
            if let Some(path) = &*ours.lock().unwrap_or_else(PoisonError::into_inner) {
                let _ = std::fs::remove_file(path);
            }
        })?;
        let process = std::process::id();
        for attempt in 0..1000_u32 {
            let mut partial = name.to_os_string();
            partial.push(format!(".{process}-{attempt}.partial"));
            let path = target.with_file_name(partial);
            let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    *made = Some(path.clone());
                    return Ok((Self(path), file));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(named(&path)(e)),
            }
        }
        let message = format!("{}: no free name for a part of it", target.display());
        Err(Failure::usage(message))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // There is none if it has got its name.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes a small file, making its directory.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(named(dir))?;
    }
    std::fs::write(path, bytes).map_err(named(path))
}

/// A file found by [`walk`].
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
}

/// What [`walk`] did not give.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    number: u64,
    first: PathBuf,
}

impl LeftOut {
    /// Tells of it, if there was anything.
    pub(crate) fn note(&self) {
        if self.number > 0 {
            let number = crate::text::count(self.number);
            let first = self.first.display();
            crate::output::note(format_args!(
                "{number} names that lead to no plain file were left out, the first is {first}"
            ));
        }
    }
}

/// Calls `each` with every plain file under `root`, in the order of names. Symbolic links to plain
/// files count as such; those to directories are not followed, so that the walk ends.
pub(crate) fn walk(root: &Path, each: &mut dyn FnMut(Found) -> Result<()>) -> Result<LeftOut> {
    let mut left = LeftOut::default();
    walk_into(root, each, &mut left)?;
    Ok(left)
}

fn walk_into(
    root: &Path,
    each: &mut dyn FnMut(Found) -> Result<()>,
    left: &mut LeftOut,
) -> Result<()> {
    let mut names: Vec<_> = std::fs::read_dir(root)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(named(root))?
        .into_iter()
        .map(|entry| entry.path())
        .collect();
    names.sort();
    for path in names {
        let itself = std::fs::symlink_metadata(&path).map_err(named(&path))?;
        if itself.is_dir() {
            walk_into(&path, each, left)?;
            continue;
        }
        // A link may lead nowhere.
        let behind = std::fs::metadata(&path).ok();
        match behind.filter(std::fs::Metadata::is_file) {
            Some(file) => each(Found {
                path,
                len: file.len(),
            })?,
            None => {
                if left.number == 0 {
                    left.first = path;
                }
                left.number += 1;
            }
        }
    }
    Ok(())
}

/// A text file of the kernel, trimmed; `None` where there is no such file.
pub(crate) fn kernel(path: &str) -> Option<String> {
    std::fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// An absolute path, with symbolic links resolved if the path exists.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .unwrap_or(path.to_path_buf())
}

/// Now, for measuring.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits until `until` with the precision that an open-loop load generator needs: sleeps for most
/// of it, spins for the rest.
pub(crate) fn wait_until(until: Instant) {
    const SPIN: Duration = Duration::from_micros(60);
    loop {
        let Some(left) = until.checked_duration_since(Instant::now()) else {
            return;
        };
        if left > SPIN {
            std::thread::sleep(left - SPIN);
        } else {
            std::hint::spin_loop();
        }
    }
}

/// A directory that is removed with all its files when it is dropped.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    /// Makes one under `$TMPDIR` (or `/tmp`).
    pub(crate) fn new(prefix: &str) -> Result<Self> {
        let base = std::env::temp_dir();
        for attempt in 0..1000_u32 {
            let path = base.join(format!("{prefix}-{}-{attempt}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(named(&path)(e)),
            }
        }
        Err(Failure::usage(format!(
            "no free name for a directory in {}",
            base.display()
        )))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nothing is lost if it stays: it is in the directory for such files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The environment as text pairs; variables that are not text cannot be settings.
pub(crate) fn environment() -> Vec<(String, String)> {
    let text = |s: std::ffi::OsString| OsStr::to_str(&s).map(str::to_owned);
    std::env::vars_os()
        .filter_map(|(name, value)| Some((text(name)?, text(value)?)))
        .collect()
}
