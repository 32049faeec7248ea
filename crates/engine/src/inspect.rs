//! Inspection: what a database directory or one of its files consists of, in types, for people and
//! scripts who want to look inside. It changes nothing and takes no lock.
//!
//! [`inspect`] describes: of a directory, the state that its manifest leads to and every file in it;
//! of a file, what its header, footer or properties say. [`walk`] goes through a file and hands out
//! each part in order: edits of a manifest, blocks, entries and range tombstones of an SSTable,
//! records of a blob file or of a log segment. Damage is among what is found, not an error, and what
//! can be read behind it follows.
//!
//! A file is recognized by its name, as `names` tells. The numbers in the names of blob files,
//! manifests and log segments are part of their checksums, so a renamed file shows as damaged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use firn_io::Env;
use firn_io::fs::OpenMode;
use firn_io::wal::{self, Lsn};

use crate::batch::{BatchReader, Operation};
use crate::blob::BlobFile;
use crate::core::RECORD_BATCH;
use crate::error::{Error, Result};
use crate::key::{FileId, Kind, NamespaceId, SeqNo};
use crate::names::{self, FileKind};
use crate::range_del::RangeTombstone;
use crate::sstable::Properties;
use crate::sstable::salvage::{Parts, Walk};
use crate::verify::{Problem, State, live_files, no_purger};
use crate::version::edit::{Applied, VersionEdit};
use crate::version::manifest;
use crate::version::set::VersionSet;
use crate::version::{BlobMeta, FileMeta};

/// What a path is and what it consists of.
#[derive(Clone, Debug)]
pub enum Inspection {
    /// A database directory.
    Directory(Directory),
    /// A CURRENT file: the manifest that it names.
    Current(FileId),
    /// A manifest.
    Manifest(Manifest),
    /// An SSTable.
    Sstable(Box<Sstable>),
    /// A blob file.
    Blob(BlobMeta),
    /// A segment of the log.
    LogSegment(LogSegment),
}

/// A database directory.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// The manifest that CURRENT names, if it can be read.
    pub manifest: Option<FileId>,
    /// The namespaces, by number.
    pub namespaces: Vec<NamespaceFiles>,
    /// No SSTable has a later operation.
    pub last_seqno: SeqNo,
    /// The lowest log position that recovery needs.
    pub log_start: Option<Lsn>,
    /// The last replicated command that the SSTables have.
    pub applied: Option<Applied>,
    /// Every file in the directory and in the log's, by path.
    pub files: Vec<FoundFile>,
    /// Why parts of this are missing.
    pub problems: Vec<Problem>,
}

/// The files of a namespace, by its manifest.
#[derive(Clone, Debug)]
pub struct NamespaceFiles {
    /// Its number.
    pub id: NamespaceId,
    /// Its name.
    pub name: String,
    /// Its SSTables have all its operations up to here.
    pub flushed: SeqNo,
    /// The SSTables of each level: L0 newest first, others by key.
    pub levels: Vec<Vec<FileMeta>>,
    /// Its blob files.
    pub blobs: Vec<BlobMeta>,
}

/// A file in a database directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFile {
    /// Where it is.
    pub path: PathBuf,
    /// What its name says that it is.
    pub role: FileRole,
    /// Its length.
    pub bytes: u64,
    /// The database needs it. `false`: it is left over, and the next open may remove it.
    pub in_use: bool,
}

/// What a file in a database directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileRole {
    /// CURRENT, or one that was being written.
    Current,
    /// A manifest.
    Manifest,
    /// An SSTable.
    Sstable,
    /// A blob file.
    Blob,
    /// A segment of the log.
    LogSegment,
    /// A log file that waits for its use.
    LogSpare,
    /// The lock.
    Lock,
    /// Reserved space.
    Ballast,
    /// None of ours.
    Other,
}

impl FileRole {
    /// A word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Manifest => "manifest",
            Self::Sstable => "sstable",
            Self::Blob => "blob",
            Self::LogSegment => "log",
            Self::LogSpare => "log-spare",
            Self::Lock => "lock",
            Self::Ballast => "ballast",
            Self::Other => "other",
        }
    }
}

/// What a manifest says in sum; [`walk`] gives its edits.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// Its number.
    pub id: FileId,
    /// Its length.
    pub file_bytes: u64,
    /// Edits in it.
    pub edits: u64,
    /// Where the last of them ends.
    pub end: u64,
    /// Bytes behind it: a write that was under way when the power failed.
    pub torn_bytes: u64,
    /// Where it is damaged.
    pub problems: Vec<Problem>,
}

/// What an SSTable says of itself; [`walk`] gives its blocks, range tombstones and entries.
#[derive(Clone, Debug, Default)]
pub struct Sstable {
    /// Its number.
    pub id: FileId,
    /// Its length.
    pub file_bytes: u64,
    /// Its properties, if they can be read.
    pub properties: Option<Properties>,
    /// Data blocks.
    pub data: Part,
    /// The filter, if there is one.
    pub filter: Option<Part>,
    /// The range tombstones, if there are any.
    pub range_tombstones: Option<Part>,
    /// The index.
    pub index: Option<Part>,
    /// Where it is damaged, but for its data.
    pub problems: Vec<Problem>,
}

/// Where a part of a file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Where it begins.
    pub offset: u64,
    /// Its length as stored.
    pub bytes: u64,
}

/// A segment of the log, in sum; [`walk`] gives its records.
#[derive(Clone, Debug, Default)]
pub struct LogSegment {
    /// Its number.
    pub number: u32,
    /// Its length.
    pub file_bytes: u64,
    /// Records in it.
    pub records: u64,
    /// Operations in them.
    pub operations: u64,
    /// The least and the greatest sequence number.
    pub seqnos: Option<(SeqNo, SeqNo)>,
    /// Where it is damaged.
    pub problems: Vec<Problem>,
}

/// A part of a file, in the order in which [`walk`] meets it.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    /// An edit of a manifest.
    Edit {
        /// Where its frame starts.
        offset: u64,
        /// What it says.
        edit: VersionEdit,
    },
    /// A range tombstone of an SSTable. They come before the entries.
    RangeTombstone(RangeTombstone),
    /// A data block of an SSTable. Its entries follow.
    Block {
        /// Its number, from 0.
        number: u64,
        /// Where it is.
        offset: u64,
    },
    /// An entry of an SSTable.
    Entry {
        /// Its key.
        key: &'a [u8],
        /// When it was written.
        seqno: SeqNo,
        /// What it says.
        kind: Kind,
        /// The stored value, in the form that the kind prescribes.
        value: &'a [u8],
    },
    /// A record of a blob file.
    BlobRecord {
        /// Where it is.
        offset: u64,
        /// The user key.
        key: &'a [u8],
        /// Bytes of the value as stored.
        stored_bytes: u64,
        /// Bytes of the value.
        value_bytes: u64,
        /// How it is compressed, by number (see [`crate::options::Compression`]).
        compression: u8,
    },
    /// A record of a log segment. If it is a batch, its operations follow.
    LogRecord {
        /// Where it is.
        start: Lsn,
        /// Its kind, by number.
        kind: u8,
        /// Bytes of its payload.
        bytes: u64,
    },
    /// An operation of a batch in the log.
    Operation {
        /// Its sequence number.
        seqno: SeqNo,
        /// What it does.
        operation: Operation<'a>,
    },
    /// Something that is damaged.
    Problem(Problem),
}

/// Whether a walk goes on.
pub type Flow = std::ops::ControlFlow<()>;

/// What a path names.
enum Target {
    Current,
    Manifest(FileId),
    Sstable(FileId),
    Blob(FileId),
    LogSegment(u32),
}

fn target(path: &Path) -> Result<Target> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    if name == names::CURRENT {
        return Ok(Target::Current);
    }
    if let Some(number) = segment_number(name) {
        return Ok(Target::LogSegment(number));
    }
    match names::parse(name) {
        Some(FileKind::Manifest(id)) => Ok(Target::Manifest(id)),
        Some(FileKind::Sstable(id)) => Ok(Target::Sstable(id)),
        Some(FileKind::Blob(id)) => Ok(Target::Blob(id)),
        None => {
            let what = path.display();
            Err(Error::InvalidArgument(format!(
                "{what} does not have the name of a database file"
            )))
        }
    }
}

/// The number of a log segment of this name.
fn segment_number(name: &str) -> Option<u32> {
    let digits = name
        .strip_suffix(".wal")
        .filter(|digits| digits.len() == 16)?;
    u32::try_from(u64::from_str_radix(digits, 16).ok()?).ok()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Describes a database directory or a file of one.
///
/// Errors: the path does not exist or is nothing of a database; the disk refuses to read it; a blob
/// file or CURRENT that cannot be read at all. Other damage is in the description.
pub fn inspect(env: &Env, path: &Path) -> Result<Inspection> {
    if let Ok(listing) = env.fs.list(path) {
        crate::verify::check_is_database(&listing, path)?;
        return directory(env, path).map(Inspection::Directory);
    }
    Ok(match target(path)? {
        Target::Current => Inspection::Current(manifest::read_current(&*env.fs, parent(path))?),
        Target::Manifest(id) => Inspection::Manifest(describe_manifest(env, path, id)?),
        Target::Sstable(id) => Inspection::Sstable(Box::new(describe_table(env, path, id)?)),
        Target::Blob(id) => {
            let blob = BlobFile::open(env.fs.open(path, OpenMode::Read)?, id)?;
            let summary = blob.summary();
            Inspection::Blob(BlobMeta {
                id,
                file_bytes: summary.file_bytes,
                value_count: summary.count,
                value_bytes: summary.record_bytes,
            })
        }
        Target::LogSegment(number) => Inspection::LogSegment(describe_segment(env, path, number)?),
    })
}

/// Goes through a file and gives `each` its parts in order, until `each` breaks.
///
/// Errors: the path is no file of a database, or cannot be opened.
pub fn walk(env: &Env, path: &Path, each: &mut dyn FnMut(Item<'_>) -> Flow) -> Result<()> {
    // That `each` broke off is known to it.
    let _ = match target(path)? {
        Target::Current => {
            let detail = "CURRENT has no parts: it names a manifest".to_string();
            return Err(Error::InvalidArgument(detail));
        }
        Target::Manifest(id) => walk_manifest(env, path, id, each)?,
        Target::Sstable(id) => walk_table(env, path, id, each)?,
        Target::Blob(id) => walk_blob(env, path, id, each)?,
        Target::LogSegment(number) => walk_segment(env, path, number, each)?,
    };
    Ok(())
}

fn directory(env: &Env, dir: &Path) -> Result<Directory> {
    let mut out = Directory::default();
    let mut live: Option<BTreeSet<FileId>> = None;
    match manifest::read_current(&*env.fs, dir) {
        Ok(id) => {
            out.manifest = Some(id);
            let versions = VersionSet::recover_manifest(env.clone(), dir, id, no_purger());
            match versions {
                Ok(versions) => {
                    let state = State::of(&versions);
                    live = Some(live_files(&state));
                    out.last_seqno = state.last_seqno;
                    out.log_start = state.log_start;
                    out.applied = state.applied;
                    let mut trees = state.trees.into_iter();
                    out.namespaces = state
                        .names
                        .into_iter()
                        .filter_map(|(id, name)| {
                            let tree = trees.next()?;
                            let flushed = state.flushed.get(&id).copied().unwrap_or_default();
                            let (levels, blobs) = (tree.levels, tree.blobs);
                            Some(NamespaceFiles {
                                id,
                                name,
                                flushed,
                                levels,
                                blobs,
                            })
                        })
                        .collect();
                }
                Err(error) => {
                    let path = dir.join(names::manifest_name(id));
                    out.problems.push(Problem::of(error, &path));
                }
            }
        }
        Err(error) => out
            .problems
            .push(Problem::of(error, &dir.join(names::CURRENT))),
    }
    for entry in env.fs.list(dir)?.into_iter().filter(|entry| !entry.is_dir) {
        let named = |id: &FileId| live.as_ref().is_none_or(|live| live.contains(id));
        let (role, in_use) = match (names::parse(&entry.name), entry.name.as_str()) {
            (Some(FileKind::Sstable(id)), _) => (FileRole::Sstable, named(&id)),
            (Some(FileKind::Blob(id)), _) => (FileRole::Blob, named(&id)),
            (Some(FileKind::Manifest(id)), _) => (FileRole::Manifest, out.manifest == Some(id)),
            (None, names::CURRENT) => (FileRole::Current, true),
            (None, names::CURRENT_TMP) => (FileRole::Current, false),
            (None, names::LOCK) => (FileRole::Lock, true),
            (None, names::BALLAST) => (FileRole::Ballast, true),
            (None, _) => (FileRole::Other, false),
        };
        out.files.push(FoundFile {
            path: dir.join(&entry.name),
            role,
            bytes: entry.len,
            in_use,
        });
    }
    let wal = dir.join(names::WAL_DIR);
    if env.fs.exists(&wal)? {
        for entry in env.fs.list(&wal)? {
            let (role, in_use) = match segment_number(&entry.name) {
                Some(number) => {
                    let first = out.log_start.map_or(0, Lsn::segment);
                    (FileRole::LogSegment, number >= first)
                }
                None if entry.name.ends_with(".spare") => (FileRole::LogSpare, true),
                None => (FileRole::Other, false),
            };
            let path = wal.join(&entry.name);
            out.files.push(FoundFile {
                path,
                role,
                bytes: entry.len,
                in_use,
            });
        }
    }
    out.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}

// ---- manifests ----------------------------------------------------------------------------------

fn describe_manifest(env: &Env, path: &Path, id: FileId) -> Result<Manifest> {
    let file_bytes = env.fs.open(path, OpenMode::Read)?.len()?;
    let mut out = Manifest {
        id,
        file_bytes,
        ..Manifest::default()
    };
    let mut edits = 0;
    let read = manifest::read(&*env.fs, parent(path), id, |_, _| {
        edits += 1;
        Ok(())
    });
    match read {
        Ok(report) => {
            out.end = report.end;
            out.torn_bytes = report.torn_bytes;
        }
        Err(error) => out.problems.push(Problem::of(error, path)),
    }
    out.edits = edits;
    Ok(out)
}

fn walk_manifest(
    env: &Env,
    path: &Path,
    id: FileId,
    each: &mut dyn FnMut(Item<'_>) -> Flow,
) -> Result<Flow> {
    env.fs.open(path, OpenMode::Read)?;
    let mut flow = Flow::Continue(());
    let read = manifest::read(&*env.fs, parent(path), id, |offset, edit| {
        flow = each(Item::Edit { offset, edit });
        if flow.is_break() {
            Err(broken_off())
        } else {
            Ok(())
        }
    });
    match read {
        Err(error) if flow.is_continue() => Ok(each(Item::Problem(Problem::of(error, path)))),
        _ => Ok(flow),
    }
}

/// Ends a walk that can only be ended by an error.
fn broken_off() -> Error {
    Error::Closed("the walk was broken off")
}

// ---- SSTables -----------------------------------------------------------------------------------

fn open_parts(env: &Env, path: &Path, id: FileId) -> Result<Parts> {
    Parts::read(env.fs.open(path, OpenMode::Read)?, id)
}

fn describe_table(env: &Env, path: &Path, id: FileId) -> Result<Sstable> {
    let mut parts = open_parts(env, path, id)?;
    let mut out = Sstable {
        id,
        file_bytes: parts.file_bytes,
        ..Sstable::default()
    };
    if let Some(footer) = &parts.footer {
        let part = |handle: crate::sstable::footer::Handle| Part {
            offset: handle.offset,
            bytes: handle.len,
        };
        out.data = Part {
            offset: 0,
            bytes: footer.data_bytes(),
        };
        out.filter = footer.filter.map(part);
        out.range_tombstones = footer.range_tombstones.map(part);
        out.index = Some(part(footer.index));
    } else if let Some(&(offset, len)) = parts.blocks.last() {
        out.data = Part {
            offset: 0,
            bytes: offset + len as u64,
        };
    }
    let damage = std::mem::take(&mut parts.damage);
    out.problems = damage
        .into_iter()
        .map(|error| Problem::of(error, path))
        .collect();
    out.properties = parts.properties;
    Ok(out)
}

fn walk_table(
    env: &Env,
    path: &Path,
    id: FileId,
    each: &mut dyn FnMut(Item<'_>) -> Flow,
) -> Result<Flow> {
    let mut parts = open_parts(env, path, id)?;
    let mut flow = Flow::Continue(());
    for error in std::mem::take(&mut parts.damage) {
        if flow.is_continue() {
            flow = each(Item::Problem(Problem::of(error, path)));
        }
    }
    let tombstones = parts.range_tombstones.clone().unwrap_or_default();
    for tombstone in tombstones.iter_raw() {
        if flow.is_continue() {
            flow = each(Item::RangeTombstone(tombstone.to_owned()));
        }
    }
    let mut walk = Walk::new(parts);
    let mut block = None;
    while flow.is_continue() {
        let mut damage = Vec::new();
        let more = walk.next(&mut |error| damage.push(error));
        for error in damage {
            if flow.is_continue() {
                flow = each(Item::Problem(Problem::of(error, path)));
            }
        }
        if !more || flow.is_break() {
            break;
        }
        if block != Some(walk.offset()) {
            block = Some(walk.offset());
            flow = each(Item::Block {
                number: walk.number(),
                offset: walk.offset(),
            });
        }
        if let Some(kind) = walk.trailer().kind()
            && flow.is_continue()
        {
            let seqno = walk.trailer().seqno();
            flow = each(Item::Entry {
                key: walk.key(),
                seqno,
                kind,
                value: walk.value(),
            });
        }
    }
    Ok(flow)
}

// ---- blob files ---------------------------------------------------------------------------------

fn walk_blob(
    env: &Env,
    path: &Path,
    id: FileId,
    each: &mut dyn FnMut(Item<'_>) -> Flow,
) -> Result<Flow> {
    let file = env.fs.open(path, OpenMode::Read)?;
    if let Err(error) = BlobFile::open(file.clone(), id)
        && each(Item::Problem(Problem::of(error, path))).is_break()
    {
        return Ok(Flow::Break(()));
    }
    let blob = BlobFile::salvage(file, id)?;
    let mut records = blob.records();
    loop {
        let flow = match records.next() {
            Ok(Some(record)) => each(Item::BlobRecord {
                offset: record.offset,
                key: record.key,
                stored_bytes: record.stored.len() as u64,
                value_bytes: u64::from(record.value_len),
                compression: record.compression,
            }),
            Ok(None) => return Ok(Flow::Continue(())),
            // Where the next record starts cannot be known.
            Err(error) => return Ok(each(Item::Problem(Problem::of(error, path)))),
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
}

// ---- the log ------------------------------------------------------------------------------------

/// Reads the records of one segment. What follows in other segments is looked at only to tell damage
/// from the end of the log.
fn read_segment(
    env: &Env,
    path: &Path,
    number: u32,
    mut each: impl FnMut(&wal::Record<'_>) -> Flow,
) -> Result<Vec<Problem>> {
    env.fs.open(path, OpenMode::Read)?;
    let from = Some(Lsn::new(number, 0));
    let mut ended = false;
    let report = wal::reader::verify::<Error>(&*env.fs, parent(path), from, |record| {
        if !ended && record.start.segment() == number && each(&record).is_break() {
            ended = true;
        }
        Ok(())
    })?;
    let problems = report
        .problems
        .into_iter()
        .map(|error| Problem::of(error.into(), path));
    Ok(problems.filter(|problem| problem.path == path).collect())
}

fn describe_segment(env: &Env, path: &Path, number: u32) -> Result<LogSegment> {
    let file_bytes = env.fs.open(path, OpenMode::Read)?.len()?;
    let mut out = LogSegment {
        number,
        file_bytes,
        ..LogSegment::default()
    };
    let problems = read_segment(env, path, number, |record| {
        out.records += 1;
        if record.kind == RECORD_BATCH
            && let Ok(batch) = BatchReader::new(record.payload)
            && batch.count > 0
        {
            let last = SeqNo(batch.base.0 + u64::from(batch.count) - 1);
            out.operations += u64::from(batch.count);
            let (first, before) = out.seqnos.unwrap_or((batch.base, last));
            out.seqnos = Some((first.min(batch.base), before.max(last)));
        }
        Flow::Continue(())
    })?;
    out.problems = problems;
    Ok(out)
}

fn walk_segment(
    env: &Env,
    path: &Path,
    number: u32,
    each: &mut dyn FnMut(Item<'_>) -> Flow,
) -> Result<Flow> {
    let mut flow = Flow::Continue(());
    let problems = read_segment(env, path, number, |record| {
        flow = walk_record(path, record, each);
        flow
    })?;
    for problem in problems {
        if flow.is_continue() {
            flow = each(Item::Problem(problem));
        }
    }
    Ok(flow)
}

fn walk_record(
    path: &Path,
    record: &wal::Record<'_>,
    each: &mut dyn FnMut(Item<'_>) -> Flow,
) -> Flow {
    let bytes = record.payload.len() as u64;
    each(Item::LogRecord {
        start: record.start,
        kind: record.kind,
        bytes,
    })?;
    if record.kind != RECORD_BATCH {
        return Flow::Continue(());
    }
    let problem = |detail: &str| {
        let offset = Some(u64::from(record.start.offset()));
        Item::Problem(Problem {
            path: path.to_path_buf(),
            offset,
            detail: detail.to_string(),
        })
    };
    let batch = match BatchReader::new(record.payload) {
        Ok(batch) => batch,
        Err(detail) => return each(problem(detail)),
    };
    let mut seqno = batch.base;
    for operation in batch.operations() {
        match operation {
            Ok(operation) => each(Item::Operation { seqno, operation })?,
            Err(detail) => return each(problem(detail)),
        }
        seqno.0 += 1;
    }
    Flow::Continue(())
}
