//! Damage to files at rest: what a disk may do to bytes that it promised to keep.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use firn_io::fs::Fs;
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::rng::Rng;
use firn_io::wal::reader::scan;
use firn_io::wal::{Lsn, Record};

use crate::cluster::ROOT;

/// Which files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Segments of the log.
    Log,
    /// Tables and blobs.
    Tables,
    /// The manifest, CURRENT, HOME.
    Names,
}

/// The files of a kind.
pub fn files(disk: &MemFs, target: Target) -> Vec<PathBuf> {
    let ends = |path: &Path, end: &str| path.to_string_lossy().ends_with(end);
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let in_snapshot = |path: &Path| path.to_string_lossy().contains("/snapshots/");
    let all = disk.files().into_iter().filter(|path| !in_snapshot(path));
    let found = all.filter(|path| match target {
        Target::Log => ends(path, ".wal"),
        Target::Tables => ends(path, ".sst") || ends(path, ".blob"),
        Target::Names => name(path).is_some_and(|name| {
            name == "HOME" || name == "CURRENT" || name.starts_with("MANIFEST")
        }),
    });
    found.collect()
}

/// Up to where a log is known to be durable even if the power goes now. Damage behind may look like a
/// tail that was never synced, and that is the one kind that cannot be told apart (see
/// `firn_io::wal::reader`). `None` if the log is damaged already, or there is none.
fn stated(disk: &MemFs) -> Option<Lsn> {
    let left = disk.crash(0, CrashMode::DropUnsynced);
    let segments = files(&left, Target::Log);
    let dir = segments.first()?.parent()?;
    let nothing = |_: Record<'_>| Ok::<(), firn_io::Error>(());
    let report = scan(&left, dir, None, nothing).ok()?;
    Some(report.stated)
}

/// The files of a kind, and up to where damage to each must be recognized.
fn within_reach(disk: &MemFs, target: Target) -> Option<Vec<(PathBuf, u64)>> {
    let files = files(disk, target).into_iter();
    if target != Target::Log {
        return Some(files.map(|path| (path, u64::MAX)).collect());
    }
    let stated = stated(disk)?;
    let limit = |path: &Path| {
        let number = u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok()?;
        match number.cmp(&u64::from(stated.segment())) {
            Ordering::Less => Some(u64::MAX),
            Ordering::Equal => Some(u64::from(stated.offset())),
            Ordering::Greater => None,
        }
    };
    Some(
        files
            .filter_map(|path| limit(&path).map(|end| (path, end)))
            .collect(),
    )
}

/// Flips a bit, or puts a page of the file over another one. Says what it did; `None` if there is no
/// such file.
pub fn rot(disk: &MemFs, target: Target, rng: &mut Rng) -> Option<String> {
    let files = within_reach(disk, target)?;
    let (path, end) = files.get(rng.index(files.len()))?;
    let bytes = disk.read_file(path).ok()?;
    let used = bytes.iter().rposition(|&byte| byte != 0)? as u64 + 1;
    let used = used.min(*end);
    let shown = path
        .strip_prefix(ROOT)
        .unwrap_or(path)
        .display()
        .to_string();
    let pages = used.div_ceil(4096);
    if pages > 1 && rng.one_in(3) {
        let (from, to) = (rng.below(pages - 1), rng.below(pages - 1));
        disk.misdirect(path, from * 4096, to * 4096, 4096).ok()?;
        return Some(format!("{shown}: page {from} over page {to}"));
    }
    let at = rng.below(used);
    disk.flip_bit(path, at, rng.below(8) as u8).ok()?;
    Some(format!("{shown}: a bit at {at}"))
}

/// Whether there is anything on this disk.
pub fn is_empty(disk: &MemFs) -> bool {
    !disk.exists(Path::new(ROOT)).unwrap_or(false)
}
