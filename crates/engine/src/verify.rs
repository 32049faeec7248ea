//! Verification: reads every file of a database and checks every checksum and every invariant that
//! can be checked, of an open database ([`verify_open`]) or of files that no process has open
//! ([`verify_dir`]). It changes nothing.
//!
//! 1. CURRENT and the manifest it names: all edits, and the versions they lead to
//!    ([`Version::check`]).
//! 2. Each tree, all its levels merged into one stream, so that every SSTable is read once, front to
//!    back. Of each table: every block's checksum, the order of entries, separators, filter, that
//!    its properties and the manifest count and bound it right, and that its pointers lead to records
//!    in blob files of the version. Of the stream: that what a level says of a key is newer than what
//!    deeper levels say, range tombstones included.
//! 3. Each blob file: every record's checksum, that values decompress, that the footer and the
//!    manifest count right.
//! 4. The log: every record's checksum, that batches decode and follow each other.
//!
//! Damage is collected and checking goes on behind it; a file that the disk refuses to read is a
//! problem too. If the manifest cannot be used, tables and blob files are checked each by itself.
//! Files that no manifest names are no problem: a crash leaves them and the next open removes them.
//! [`VerifyReport::notes`] lists them.
//!
//! Memory: a chunk and an index for each L0 file and each level, the range tombstones of a tree, and
//! the list of files.
//!
//! What a database in use does meanwhile does not disturb: the versions looked at are pinned, and of
//! the log only what was appended before and is still needed after counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firn_io::Env;
use firn_io::fs::OpenMode;
use firn_io::wal::{self, Lsn};

use crate::batch::BatchReader;
use crate::blob::{BlobFile, BlobPointer};
use crate::core::{Core, RECORD_BATCH, RECORD_DROP};
use crate::error::{Error, Result};
use crate::feed::DropRecord;
use crate::key::{FileId, Kind, NamespaceId, SeqNo, Trailer};
use crate::names::{self, FileKind};
use crate::range_del::RangeTombstones;
use crate::sstable::salvage::{Parts, Walk, show_key};
use crate::version::edit::Applied;
use crate::version::set::VersionSet;
use crate::version::{BlobMeta, FileMeta, Purger, Version, manifest};

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes, if that is known.
    pub offset: Option<u64>,
    /// What is wrong there.
    pub detail: String,
}

impl Problem {
    pub(crate) fn new(path: impl Into<PathBuf>, detail: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            offset: None,
            detail: detail.into(),
        }
    }

    /// What an error says; `path` is the file in question if the error does not name one.
    pub(crate) fn of(error: Error, path: &Path) -> Self {
        match error {
            Error::Corruption {
                path,
                offset,
                detail,
            } => Self {
                path,
                offset: Some(offset),
                detail,
            },
            Error::Io(error) => {
                let detail = format!("cannot {}: {}", error.op, error.source);
                Self {
                    path: error.path,
                    offset: error.offset,
                    detail,
                }
            }
            other => Self::new(path, other.to_string()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Entries of SSTables, tombstones included, range tombstones not.
    pub entries: u64,
    /// Operations in the log. Those that were flushed since are among the entries too.
    pub log_operations: u64,
    /// Everything that is wrong; of one file at most the first hundred.
    pub problems: Vec<Problem>,
    /// What is as it may be and yet worth a look: files that nothing refers to.
    pub notes: Vec<Problem>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// How far a verification or repair is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Files that are done.
    pub files_done: u64,
    /// Files to do.
    pub files_total: u64,
    /// Bytes that are done.
    pub bytes_done: u64,
    /// Bytes to do.
    pub bytes_total: u64,
}

/// Verifies an open database while it is in use. Errors: none but those of a bug; problems are in
/// the report.
pub fn verify_open(core: &Arc<Core>) -> Result<VerifyReport> {
    let mut ignore = |_: &VerifyProgress| {};
    let mut checker = Checker::new(&core.env, &core.dir, &mut ignore);
    checker.check_manifest_in_use();
    let trees = core.trees.load_full();
    let pinned: Vec<_> = trees
        .iter()
        .map(|tree| Arc::clone(&tree.state().levels))
        .collect();
    let files: Vec<TreeFiles> = trees
        .iter()
        .zip(&pinned)
        .map(|(tree, levels)| TreeFiles::of(tree.id, levels))
        .collect();
    for tree in &files {
        checker.check_tree(tree);
    }
    for blob in files.iter().flat_map(|tree| &tree.blobs) {
        checker.check_blob(blob);
    }
    checker.check_log_in_use(core)?;
    Ok(checker.findings.report)
}

/// Verifies the files in `dir`, which no process may have open for writing. `progress` is called
/// after every few hundred kilobytes.
///
/// Errors: there is no database in `dir`, or another process has it open.
pub fn verify_dir(
    env: &Env,
    dir: &Path,
    progress: &mut dyn FnMut(&VerifyProgress),
) -> Result<VerifyReport> {
    let _lock = lock_if_there(env, dir)?;
    Ok(check_dir(env, dir, None, progress)?.report)
}

/// Takes the lock of a database, without leaving a trace in a directory that has none.
fn lock_if_there(env: &Env, dir: &Path) -> Result<Option<Box<dyn firn_io::fs::FileLock>>> {
    let path = dir.join(names::LOCK);
    if !env.fs.exists(&path)? {
        return Ok(None);
    }
    match lock(env, dir) {
        Ok(lock) => Ok(Some(lock)),
        // A medium that cannot be written cannot be locked, and need not be.
        Err(Error::Io(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes the lock of a database.
pub(crate) fn lock(env: &Env, dir: &Path) -> Result<Box<dyn firn_io::fs::FileLock>> {
    env.fs.lock(&dir.join(names::LOCK)).map_err(|error| {
        if error.source.kind() == std::io::ErrorKind::WouldBlock {
            Error::Locked(dir.to_path_buf())
        } else {
            error.into()
        }
    })
}

/// What a verification found, for repair.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) report: VerifyReport,
    /// The state that the manifest leads to, if it can be used.
    pub(crate) state: Option<State>,
    /// SSTables of which something cannot be used as it is.
    pub(crate) bad_tables: BTreeSet<FileId>,
    /// Those of them that are other tables than the manifest says: nothing in them belongs there.
    pub(crate) foreign_tables: BTreeSet<FileId>,
    /// Blob files that cannot be used as they are.
    pub(crate) bad_blobs: BTreeSet<FileId>,
    /// Trees in which older data is above newer data.
    pub(crate) disordered: BTreeSet<NamespaceId>,
    /// The log cannot be replayed.
    pub(crate) bad_log: bool,
    /// Something is of a format that this build does not know: nothing may be repaired.
    pub(crate) unsupported: Option<Error>,
}

/// What a manifest leads to.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) manifest_id: FileId,
    pub(crate) names: BTreeMap<NamespaceId, String>,
    pub(crate) trees: Vec<TreeFiles>,
    pub(crate) flushed: BTreeMap<NamespaceId, SeqNo>,
    pub(crate) last_seqno: SeqNo,
    pub(crate) log_start: Option<Lsn>,
    pub(crate) log_whole_from: Option<Lsn>,
    pub(crate) next_namespace: NamespaceId,
    pub(crate) applied: Option<Applied>,
}

/// The files of one tree.
#[derive(Debug)]
pub(crate) struct TreeFiles {
    pub(crate) id: NamespaceId,
    pub(crate) levels: Vec<Vec<FileMeta>>,
    pub(crate) blobs: Vec<BlobMeta>,
}

impl TreeFiles {
    fn of<T, B>(id: NamespaceId, version: &Version<T, B>) -> Self {
        let files = |level: &Arc<crate::version::Level<T>>| {
            level.files().iter().map(|file| file.meta.clone()).collect()
        };
        Self {
            id,
            levels: version.levels().iter().map(files).collect(),
            blobs: version
                .blobs()
                .iter()
                .map(|blob| blob.file.meta.clone())
                .collect(),
        }
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &FileMeta> {
        self.levels.iter().flatten()
    }
}

impl State {
    pub(crate) fn of(versions: &VersionSet<(), ()>) -> Self {
        let names: BTreeMap<_, _> = versions.namespaces().into_iter().collect();
        let ids = names.keys().copied();
        Self {
            manifest_id: versions.manifest_id(),
            trees: ids
                .clone()
                .map(|id| TreeFiles::of(id, &versions.current(id)))
                .collect(),
            flushed: ids.map(|id| (id, versions.flushed_seqno(id))).collect(),
            last_seqno: versions.last_seqno(),
            log_start: versions.log_start(),
            log_whole_from: versions.log_whole_from(),
            next_namespace: versions.next_namespace(),
            applied: versions.applied(),
            names,
        }
    }
}

/// Nothing is ever removed by who only looks.
pub(crate) fn no_purger() -> Purger {
    Arc::new(|_, _| {})
}

/// An error if nothing in a directory is ours.
pub(crate) fn check_is_database(listing: &[firn_io::fs::DirEntry], dir: &Path) -> Result<()> {
    let is_ours = |name: &str| {
        name == names::CURRENT || name == names::WAL_DIR || names::parse(name).is_some()
    };
    if listing.iter().any(|entry| is_ours(&entry.name)) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "there is no database in {}",
        dir.display()
    )))
}

/// Verifies a directory, by the manifest that CURRENT names or by the given one.
pub(crate) fn check_dir(
    env: &Env,
    dir: &Path,
    manifest: Option<FileId>,
    progress: &mut dyn FnMut(&VerifyProgress),
) -> Result<Findings> {
    let listing = env.fs.list(dir)?;
    check_is_database(&listing, dir)?;
    let mut checker = Checker::new(env, dir, progress);
    match manifest {
        Some(id) => checker.read_manifest(id, &listing),
        None => checker.read_state(&listing),
    }
    checker.count_work(&listing);
    match checker.findings.state.take() {
        Some(state) => {
            checker.check_state(&state, &listing);
            checker.check_log(state.log_start);
            checker.findings.state = Some(state);
        }
        None => {
            checker.check_files(&listing);
            checker.check_log(None);
        }
    }
    // Of log segments only what is used is read.
    checker.done.bytes_done = checker.done.bytes_total;
    checker.done.files_done = checker.done.files_total;
    checker.tell();
    Ok(checker.findings)
}

/// Of one file no more problems than this are kept.
const MAX_PROBLEMS: usize = 100;
/// Blob files held open while pointers are checked.
const MAX_OPEN_BLOBS: usize = 64;
/// The progress is told after so many bytes.
const PROGRESS_BYTES: u64 = 256 << 10;
/// So often a file that changes while it is read is read again.
const TRIES: usize = 5;

struct Checker<'a> {
    env: &'a Env,
    dir: &'a Path,
    progress: &'a mut dyn FnMut(&VerifyProgress),
    done: VerifyProgress,
    told_bytes: u64,
    findings: Findings,
    counts: BTreeMap<PathBuf, usize>,
    /// The blob files of the present tree; a file that cannot be opened is `None`.
    blobs: BTreeMap<FileId, Option<BlobFile>>,
    /// The blob files that pointers of the present tree may lead to.
    known_blobs: BTreeSet<FileId>,
}

impl<'a> Checker<'a> {
    fn new(env: &'a Env, dir: &'a Path, progress: &'a mut dyn FnMut(&VerifyProgress)) -> Self {
        Self {
            env,
            dir,
            progress,
            done: VerifyProgress::default(),
            told_bytes: 0,
            findings: Findings::default(),
            counts: BTreeMap::new(),
            blobs: BTreeMap::new(),
            known_blobs: BTreeSet::new(),
        }
    }

    // ---- the report -----------------------------------------------------------------------------

    fn problem(&mut self, problem: Problem) {
        let count = self.counts.entry(problem.path.clone()).or_default();
        *count += 1;
        if *count <= MAX_PROBLEMS {
            self.findings.report.problems.push(problem);
        }
    }

    fn error(&mut self, error: Error, path: &Path) {
        if matches!(error, Error::UnsupportedFormat(_)) {
            self.findings.unsupported.get_or_insert(error.duplicate());
        }
        self.problem(Problem::of(error, path));
    }

    fn table_error(&mut self, id: FileId, error: Error) {
        self.findings.bad_tables.insert(id);
        self.error(error, &names::sstable_path(self.dir, id));
    }

    fn table_problem(&mut self, id: FileId, offset: Option<u64>, detail: String) {
        self.findings.bad_tables.insert(id);
        self.problem(Problem {
            path: names::sstable_path(self.dir, id),
            offset,
            detail,
        });
    }

    fn note(&mut self, path: PathBuf, detail: &str) {
        self.findings.report.notes.push(Problem::new(path, detail));
    }

    fn read_bytes(&mut self, bytes: u64) {
        self.findings.report.bytes += bytes;
        self.done.bytes_done += bytes;
        self.done.bytes_total = self.done.bytes_total.max(self.done.bytes_done);
        if self.done.bytes_done - self.told_bytes >= PROGRESS_BYTES {
            self.tell();
        }
    }

    fn file_done(&mut self) {
        self.findings.report.files += 1;
        self.done.files_done += 1;
        self.done.files_total = self.done.files_total.max(self.done.files_done);
    }

    fn tell(&mut self) {
        self.told_bytes = self.done.bytes_done;
        (self.progress)(&self.done);
    }

    /// What there is to do.
    fn count_work(&mut self, listing: &[firn_io::fs::DirEntry]) {
        let live = self.findings.state.as_ref().map(live_files);
        for entry in listing {
            let counts = match names::parse(&entry.name) {
                Some(FileKind::Sstable(id) | FileKind::Blob(id)) => {
                    live.as_ref().is_none_or(|live| live.contains(&id))
                }
                _ => false,
            };
            if counts {
                self.done.files_total += 1;
                self.done.bytes_total += entry.len;
            }
        }
        let log = self
            .env
            .fs
            .list(&self.dir.join(names::WAL_DIR))
            .unwrap_or_default();
        for entry in log.iter().filter(|entry| entry.name.ends_with(".wal")) {
            self.done.files_total += 1;
            self.done.bytes_total += entry.len;
        }
    }

    // ---- CURRENT and manifest -------------------------------------------------------------------

    /// Reads the state of a directory that nobody changes.
    fn read_state(&mut self, listing: &[firn_io::fs::DirEntry]) {
        let current = self.dir.join(names::CURRENT);
        match self.env.fs.exists(&current) {
            Ok(true) => {}
            Ok(false) => {
                self.problem(Problem::new(current, "it is missing: run repair"));
                return;
            }
            Err(error) => {
                self.error(error.into(), &current);
                return;
            }
        }
        let id = match manifest::read_current(&*self.env.fs, self.dir) {
            Ok(id) => id,
            Err(error) => {
                self.error(error, &current);
                return;
            }
        };
        let name = names::manifest_name(id);
        if !listing.iter().any(|entry| entry.name == name) {
            self.problem(Problem::new(
                current,
                format!("it names {name}, which is missing"),
            ));
            return;
        }
        self.file_done();
        self.read_bytes(name.len() as u64 + 1);
        self.read_manifest(id, listing);
    }

    /// Reads the state that a manifest leads to.
    fn read_manifest(&mut self, id: FileId, listing: &[firn_io::fs::DirEntry]) {
        let name = names::manifest_name(id);
        match VersionSet::recover_manifest(self.env.clone(), self.dir, id, no_purger()) {
            Ok(versions) => self.findings.state = Some(State::of(&versions)),
            Err(error) => self.error(error, &self.dir.join(&name)),
        }
        self.file_done();
        self.read_bytes(
            listing
                .iter()
                .find(|entry| entry.name == name)
                .map_or(0, |e| e.len),
        );
    }

    /// Reads CURRENT and the manifest while they may be written.
    fn check_manifest_in_use(&mut self) {
        let mut tries = 0;
        let (result, id) = loop {
            let id = manifest::read_current(&*self.env.fs, self.dir);
            let versions: Result<VersionSet<(), ()>> =
                VersionSet::recover_read_only(self.env.clone(), self.dir, no_purger());
            tries += 1;
            // An edit that is half written, or a manifest that was replaced: look again.
            if versions.is_ok() || tries == TRIES {
                break (versions.map(drop), id);
            }
        };
        if let Err(error) = result {
            self.error(error, &self.dir.join(names::CURRENT));
        }
        self.file_done();
        self.file_done();
        if let Ok(id) = id {
            let path = self.dir.join(names::manifest_name(id));
            let len = self
                .env
                .fs
                .open(&path, OpenMode::Read)
                .and_then(|file| file.len());
            self.read_bytes(len.unwrap_or(0));
        }
    }

    // ---- all files ------------------------------------------------------------------------------

    fn check_state(&mut self, state: &State, listing: &[firn_io::fs::DirEntry]) {
        let manifest = self.dir.join(names::manifest_name(state.manifest_id));
        for tree in &state.trees {
            for meta in tree.tables() {
                if meta.max_seqno > state.last_seqno {
                    let detail = format!(
                        "SSTable {} has operation {}, and the last one is said to be {}",
                        meta.id, meta.max_seqno, state.last_seqno
                    );
                    self.problem(Problem::new(&manifest, detail));
                }
            }
            self.check_tree(tree);
        }
        for blob in state.trees.iter().flat_map(|tree| &tree.blobs) {
            self.check_blob(blob);
        }
        let live = live_files(state);
        for entry in listing {
            let orphan = match names::parse(&entry.name) {
                Some(FileKind::Sstable(id) | FileKind::Blob(id)) => !live.contains(&id),
                Some(FileKind::Manifest(id)) => id != state.manifest_id,
                None => entry.name == names::CURRENT_TMP,
            };
            if orphan {
                let path = self.dir.join(&entry.name);
                self.note(path, "nothing refers to it; the next open removes it");
            }
        }
    }

    /// Checks each file by itself: nobody knows which of them belong to the database.
    fn check_files(&mut self, listing: &[firn_io::fs::DirEntry]) {
        let ids = |class: fn(FileKind) -> Option<FileId>| -> Vec<(FileId, u64)> {
            let numbered = listing
                .iter()
                .filter_map(|e| Some((class(names::parse(&e.name)?)?, e)));
            numbered.map(|(id, entry)| (id, entry.len)).collect()
        };
        let tables = ids(|kind| match kind {
            FileKind::Sstable(id) => Some(id),
            _ => None,
        });
        let blobs = ids(|kind| match kind {
            FileKind::Blob(id) => Some(id),
            _ => None,
        });
        self.known_blobs = blobs.iter().map(|&(id, _)| id).collect();
        self.blobs.clear();
        for (id, _) in tables {
            let mut source = Source::new(0, vec![TableFile { id, meta: None }], self.dir);
            while source.advance(self) {}
        }
        self.blobs.clear();
        for (id, file_bytes) in blobs {
            self.check_blob_file(id, file_bytes, None);
        }
    }

    // ---- trees ----------------------------------------------------------------------------------

    /// Reads all levels of a tree as one stream.
    fn check_tree(&mut self, tree: &TreeFiles) {
        self.known_blobs = tree.blobs.iter().map(|blob| blob.id).collect();
        self.blobs.clear();
        let known = |meta: &FileMeta| TableFile {
            id: meta.id,
            meta: Some(meta.clone()),
        };
        let mut sources = Vec::new();
        for (level, files) in tree
            .levels
            .iter()
            .enumerate()
            .filter(|(_, files)| !files.is_empty())
        {
            if level == 0 {
                let each = files
                    .iter()
                    .map(|meta| Source::new(0, vec![known(meta)], self.dir));
                sources.extend(each);
            } else {
                sources.push(Source::new(
                    level,
                    files.iter().map(known).collect(),
                    self.dir,
                ));
            }
        }
        let mut merge = Merge::default();
        for (rank, source) in sources.iter_mut().enumerate() {
            source.load_tombstones(self);
            if source.advance(self) {
                merge.order.push(rank);
            }
        }
        merge
            .order
            .sort_by(|&a, &b| Source::compare(&sources, a, b));
        let mut group = Group::default();
        while let Some(&rank) = merge.order.first() {
            let source = &sources[rank];
            let (key, trailer) = source.entry();
            if group.key != key || group.ranks.is_empty() {
                group.check_tombstones(self, tree.id, &sources);
                group.begin(key);
            }
            group.add(self, tree.id, &sources, rank, trailer);
            let more = sources[rank].advance(self);
            merge.moved(&sources, more);
        }
        group.check_tombstones(self, tree.id, &sources);
        self.blobs.clear();
    }

    /// A deeper level is newer than a shallower one.
    fn disorder(&mut self, tree: NamespaceId, newer: &Source, older: &Source, key: &[u8]) {
        self.findings.disordered.insert(tree);
        let detail = format!(
            "L{} has something of key {} that is newer than what is in L{} ({})",
            older.level,
            show_key(key),
            newer.level,
            newer.describe()
        );
        let path = older.path.clone();
        let offset = older.table.as_ref().map(|table| table.walk.offset());
        self.problem(Problem {
            path,
            offset,
            detail,
        });
    }

    /// Checks that a pointer leads to a record. Returns the pointer.
    fn check_pointer(
        &mut self,
        key: &[u8],
        pointer: &BlobPointer,
    ) -> std::result::Result<(), String> {
        let id = pointer.file;
        if !self.known_blobs.contains(&id) {
            return Err(format!("blob file {id}, which does not belong to the tree"));
        }
        if !self.blobs.contains_key(&id) {
            if self.blobs.len() >= MAX_OPEN_BLOBS {
                self.blobs.pop_first();
            }
            let path = names::blob_path(self.dir, id);
            let file = self.env.fs.open(&path, OpenMode::Read).map_err(Error::from);
            let blob = file.and_then(|file| BlobFile::open(file, id));
            self.blobs.insert(id, blob.ok());
        }
        match self.blobs.get(&id) {
            Some(Some(blob)) => blob.check_pointer(pointer, key).map_err(|error| {
                format!(
                    "offset {} of blob file {id}, and there: {error}",
                    pointer.offset
                )
            }),
            _ => Err(format!("blob file {id}, which cannot be read")),
        }
    }

    // ---- blob files -----------------------------------------------------------------------------

    fn check_blob(&mut self, meta: &BlobMeta) {
        self.check_blob_file(meta.id, meta.file_bytes, Some(meta));
    }

    fn check_blob_file(&mut self, id: FileId, file_bytes: u64, meta: Option<&BlobMeta>) {
        let path = names::blob_path(self.dir, id);
        let before = self.findings.report.bytes;
        let result = self.env.fs.open(&path, OpenMode::Read).map_err(Error::from).and_then(|file| {
            let blob = BlobFile::open(file, id)?;
            let summary = blob.summary();
            if let Some(meta) = meta
                && (meta.file_bytes, meta.value_count, meta.value_bytes)
                    != (summary.file_bytes, summary.count, summary.record_bytes)
            {
                let detail = format!(
                    "the manifest says {} bytes with {} values of {} bytes, the file says {}, {}, {}",
                    meta.file_bytes,
                    meta.value_count,
                    meta.value_bytes,
                    summary.file_bytes,
                    summary.count,
                    summary.record_bytes
                );
                return Err(Error::corruption(&path, summary.file_bytes, detail));
            }
            blob.verify(&mut |bytes| self.read_bytes(bytes))
        });
        if let Err(error) = result {
            self.findings.bad_blobs.insert(id);
            self.error(error, &path);
        }
        let read = self.findings.report.bytes - before;
        self.done.bytes_done += file_bytes.saturating_sub(read);
        self.file_done();
    }

    // ---- the log --------------------------------------------------------------------------------

    /// Reads the log of a directory that nobody changes.
    fn check_log(&mut self, from: Option<Lsn>) {
        let dir = self.dir.join(names::WAL_DIR);
        if from.is_none() && matches!(self.env.fs.exists(&dir), Ok(false)) {
            return;
        }
        let found = LogCheck::read(self.env, &dir, from);
        match found {
            Ok(log) => {
                self.count_log(&log);
                for problem in log.problems {
                    self.findings.bad_log = true;
                    self.problem(problem);
                }
            }
            Err(error) => {
                self.findings.bad_log = true;
                self.error(error, &dir);
            }
        }
    }

    fn count_log(&mut self, log: &LogCheck) {
        self.findings.report.log_operations += log.operations;
        for _ in 0..log.report.segments {
            self.file_done();
        }
        self.read_bytes(log.report.bytes);
    }

    /// Reads the log while it is written.
    fn check_log_in_use(&mut self, core: &Arc<Core>) -> Result<()> {
        let Some(log) = &core.log else {
            self.check_log(core.versions.log_start());
            return Ok(());
        };
        let dir = self.dir.join(names::WAL_DIR);
        let mut tries = 0;
        loop {
            tries += 1;
            let appended = log.appended();
            let from = core.log_needed_from(None)?;
            let found = LogCheck::read(self.env, &dir, Some(from));
            let needed = core.log_needed_from(None)?;
            let mut found = match found {
                Ok(found) => found,
                // Segments that are no longer needed are removed while they are read.
                Err(error) if tries == TRIES => {
                    self.error(error, &dir);
                    return Ok(());
                }
                Err(_) => continue,
            };
            let counts = |lsn: Lsn| lsn < appended && lsn.segment() >= needed.segment();
            found.problems.retain(|problem| match lsn_of(problem) {
                Some(lsn) => counts(lsn),
                None => true,
            });
            let end = found.report.end;
            if found.problems.is_empty() && end < appended && counts(end) {
                let detail = format!("the log ends at {end}, but was written up to {appended}");
                found.problems.push(Problem::new(&dir, detail));
            }
            self.count_log(&found);
            for problem in found.problems {
                self.problem(problem);
            }
            return Ok(());
        }
    }
}

/// SSTables and blob files of a state.
pub(crate) fn live_files(state: &State) -> BTreeSet<FileId> {
    let tables = state
        .trees
        .iter()
        .flat_map(TreeFiles::tables)
        .map(|meta| meta.id);
    let blobs = state
        .trees
        .iter()
        .flat_map(|tree| &tree.blobs)
        .map(|meta| meta.id);
    tables.chain(blobs).collect()
}

// ---- one table, one level -----------------------------------------------------------------------

/// An SSTable, and what the manifest says of it if there is one.
struct TableFile {
    id: FileId,
    meta: Option<FileMeta>,
}

/// A table that is being read.
struct OpenTable {
    id: FileId,
    meta: Option<FileMeta>,
    walk: Walk,
    /// By blob file: pointers and bytes.
    blob_refs: BTreeMap<FileId, (u64, u64)>,
    counted_bytes: u64,
    problems_before: usize,
}

/// An L0 file, or the files of a level one after another.
struct Source {
    level: usize,
    dir: PathBuf,
    files: std::vec::IntoIter<TableFile>,
    table: Option<OpenTable>,
    /// The file that is or was open last.
    path: PathBuf,
    tombstones: RangeTombstones,
    has_tombstones: bool,
}

impl Source {
    fn new(level: usize, files: Vec<TableFile>, dir: &Path) -> Self {
        let has = |meta: &FileMeta| meta.range_tombstone_count > 0;
        let has_tombstones = files.iter().filter_map(|file| file.meta.as_ref()).any(has);
        Self {
            level,
            dir: dir.to_path_buf(),
            files: files.into_iter(),
            table: None,
            path: PathBuf::new(),
            tombstones: RangeTombstones::default(),
            has_tombstones,
        }
    }

    fn describe(&self) -> String {
        self.path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// The entry it stands on.
    fn entry(&self) -> (&[u8], Trailer) {
        match &self.table {
            Some(table) => (table.walk.key(), table.walk.trailer()),
            None => (&[], Trailer(0)),
        }
    }

    /// Which of two sources comes first.
    fn compare(sources: &[Self], a: usize, b: usize) -> std::cmp::Ordering {
        let ((key_a, trailer_a), (key_b, trailer_b)) = (sources[a].entry(), sources[b].entry());
        key_a
            .cmp(key_b)
            .then_with(|| trailer_b.cmp(&trailer_a))
            .then_with(|| a.cmp(&b))
    }

    /// Reads the range tombstones of all its files, which cover keys between their entries.
    fn load_tombstones(&mut self, checker: &Checker<'_>) {
        if !self.has_tombstones {
            return;
        }
        let mut sets = Vec::new();
        for file in self.files.as_slice() {
            if file
                .meta
                .as_ref()
                .is_some_and(|meta| meta.range_tombstone_count > 0)
            {
                // Failures are reported when the file is read.
                let path = names::sstable_path(&self.dir, file.id);
                let Ok(handle) = checker.env.fs.open(&path, OpenMode::Read) else {
                    continue;
                };
                let Ok(parts) = Parts::read(handle, file.id) else {
                    continue;
                };
                if file
                    .meta
                    .as_ref()
                    .is_none_or(|meta| !is_foreign(meta, &parts))
                {
                    sets.extend(parts.range_tombstones);
                }
            }
        }
        self.tombstones =
            RangeTombstones::merge(&sets.iter().map(|set| &**set).collect::<Vec<_>>());
    }

    /// To the next entry; `false` at the end. Problems go to the checker.
    fn advance(&mut self, checker: &mut Checker<'_>) -> bool {
        loop {
            let Some(table) = &mut self.table else {
                match self.files.next() {
                    Some(file) => {
                        self.path = names::sstable_path(&self.dir, file.id);
                        self.table = OpenTable::open(file, &self.path, checker);
                        continue;
                    }
                    None => return false,
                }
            };
            if table.next(checker) {
                return true;
            }
            if let Some(table) = self.table.take() {
                table.finish(checker);
            }
        }
    }
}

impl OpenTable {
    fn open(file: TableFile, path: &Path, checker: &mut Checker<'_>) -> Option<Self> {
        let TableFile { id, meta } = file;
        let handle = checker
            .env
            .fs
            .open(path, OpenMode::Read)
            .map_err(Error::from);
        let mut parts = match handle.and_then(|handle| Parts::read(handle, id)) {
            Ok(parts) => parts,
            Err(error) => {
                checker.table_error(id, error);
                checker.file_done();
                return None;
            }
        };
        let problems_before = checker.findings.report.problems.len();
        for error in std::mem::take(&mut parts.damage) {
            checker.table_error(id, error);
        }
        if let Some(meta) = &meta {
            check_meta(checker, meta, &parts);
            if is_foreign(meta, &parts) {
                checker.findings.foreign_tables.insert(id);
                checker.file_done();
                return None;
            }
        }
        Some(Self {
            id,
            meta,
            walk: Walk::new(parts),
            blob_refs: BTreeMap::new(),
            counted_bytes: 0,
            problems_before,
        })
    }

    fn next(&mut self, checker: &mut Checker<'_>) -> bool {
        let id = self.id;
        let more = self.walk.next(&mut |error| checker.table_error(id, error));
        let bytes = self.walk.bytes();
        if bytes != self.counted_bytes {
            checker.read_bytes(bytes - self.counted_bytes);
            self.counted_bytes = bytes;
        }
        if more {
            checker.findings.report.entries += 1;
            if let Err(detail) = self.check_entry(checker) {
                checker.table_problem(id, Some(self.walk.offset()), detail);
            }
        }
        more
    }

    fn check_entry(&mut self, checker: &mut Checker<'_>) -> std::result::Result<(), String> {
        let (key, trailer) = (self.walk.key(), self.walk.trailer());
        if let Some(meta) = &self.meta {
            if !meta.covers(key) {
                let key = show_key(key);
                return Err(format!("key {key} is outside of what the manifest says"));
            }
            let seqno = trailer.seqno();
            if seqno < meta.min_seqno || seqno > meta.max_seqno {
                return Err(format!(
                    "operation {seqno} is outside of what the manifest says"
                ));
            }
        }
        let pointer = pointer_of(trailer.kind(), self.walk.value())
            .map_err(|what| format!("key {}: {what}", show_key(key)))?;
        if let Some(pointer) = pointer {
            let (count, bytes) = self.blob_refs.entry(pointer.file).or_default();
            *count += 1;
            *bytes += pointer.record_bytes(key.len());
            checker
                .check_pointer(key, &pointer)
                .map_err(|what| format!("key {} points to {what}", show_key(key)))?;
        }
        Ok(())
    }

    /// Compares what was read with the metadata.
    fn finish(self, checker: &mut Checker<'_>) {
        checker.file_done();
        if checker.findings.report.problems.len() > self.problems_before {
            return;
        }
        let refs: Vec<(FileId, u64, u64)> = self
            .blob_refs
            .iter()
            .map(|(&file, &(count, bytes))| (file, count, bytes))
            .collect();
        let said = self
            .walk
            .parts()
            .properties
            .as_ref()
            .map(|properties| &properties.blob_refs);
        if said.is_some_and(|said| *said != refs) {
            let detail = "the blob references of the properties do not fit the entries".to_string();
            checker.table_problem(self.id, None, detail);
        }
    }
}

/// What an entry's value points to, if its kind says that it does; an error if the value is not of
/// its kind's form.
pub(crate) fn pointer_of(
    kind: Option<Kind>,
    value: &[u8],
) -> std::result::Result<Option<BlobPointer>, &'static str> {
    let Some(kind) = kind else {
        return Err("an entry of no known kind");
    };
    let skip = if kind.is_expiring() { 8 } else { 0 };
    let Some(rest) = value.get(skip..) else {
        return Err("an expiry is cut short");
    };
    if kind == Kind::Delete && !value.is_empty() {
        return Err("a tombstone has a value");
    }
    if !kind.is_blob() {
        return Ok(None);
    }
    match BlobPointer::decode(rest) {
        Some(pointer) => Ok(Some(pointer)),
        None => Err("a blob pointer does not decode"),
    }
}

/// Compares what the manifest says of a table with what the table says.
fn check_meta(checker: &mut Checker<'_>, meta: &FileMeta, parts: &Parts) {
    let mut differ = |what: &str, manifest: String, table: String| {
        let detail = format!("{what}: the manifest says {manifest}, the file {table}");
        checker.table_problem(meta.id, None, detail);
    };
    if parts.file_bytes != meta.file_bytes {
        differ(
            "length",
            meta.file_bytes.to_string(),
            parts.file_bytes.to_string(),
        );
    }
    let (Some(properties), Some(tombstones)) = (&parts.properties, &parts.range_tombstones) else {
        return;
    };
    let said = FileMeta::of_table(meta.id, parts.file_bytes, properties, tombstones);
    let numbers = [
        ("entries", meta.entry_count, said.entry_count),
        ("tombstones", meta.tombstone_count, said.tombstone_count),
        (
            "range tombstones",
            meta.range_tombstone_count,
            said.range_tombstone_count,
        ),
        ("uncompressed bytes", meta.raw_bytes, said.raw_bytes),
        ("least operation", meta.min_seqno.0, said.min_seqno.0),
        ("greatest operation", meta.max_seqno.0, said.max_seqno.0),
    ];
    for (what, manifest, table) in numbers {
        if manifest != table {
            differ(what, manifest.to_string(), table.to_string());
        }
    }
    if meta.smallest != said.smallest {
        differ(
            "smallest key",
            show_key(&meta.smallest),
            show_key(&said.smallest),
        );
    }
    if (&meta.largest, meta.largest_exclusive) != (&said.largest, said.largest_exclusive) {
        differ(
            "largest key",
            show_key(&meta.largest),
            show_key(&said.largest),
        );
    }
    if meta.blob_refs != said.blob_refs {
        differ(
            "blob files",
            format!("{:?}", meta.blob_refs),
            format!("{:?}", said.blob_refs),
        );
    }
}

/// Whether a file holds another table than the manifest says, sound as it may be: something was written to the wrong
/// place.
pub(crate) fn is_foreign(meta: &FileMeta, parts: &Parts) -> bool {
    // Without its footer the other parts are guessed; whole they agree in all.
    let (Some(_), Some(properties), Some(tombstones)) =
        (&parts.footer, &parts.properties, &parts.range_tombstones)
    else {
        return false;
    };
    *meta != FileMeta::of_table(meta.id, parts.file_bytes, properties, tombstones)
}

// ---- all levels ---------------------------------------------------------------------------------

/// The sources in the order in which their entries come.
#[derive(Default)]
struct Merge {
    order: Vec<usize>,
}

impl Merge {
    /// Puts the first source to its place after it moved.
    fn moved(&mut self, sources: &[Source], more: bool) {
        if !more {
            self.order.remove(0);
            return;
        }
        let mut at = 0;
        while at + 1 < self.order.len()
            && Source::compare(sources, self.order[at + 1], self.order[at]).is_lt()
        {
            self.order.swap(at, at + 1);
            at += 1;
        }
    }
}

/// Everything that is said of one key, newest first.
#[derive(Default)]
struct Group {
    key: Vec<u8>,
    /// Rank of the source, its newest and its oldest entry.
    ranks: Vec<(usize, Trailer, Trailer)>,
}

impl Group {
    fn begin(&mut self, key: &[u8]) {
        self.key.clear();
        self.key.extend_from_slice(key);
        self.ranks.clear();
    }

    /// Entries come newest first, so ranks must ascend.
    fn add(
        &mut self,
        checker: &mut Checker<'_>,
        tree: NamespaceId,
        sources: &[Source],
        rank: usize,
        trailer: Trailer,
    ) {
        match self.ranks.last_mut() {
            Some((last, _, oldest)) if *last == rank => *oldest = trailer,
            Some(&mut (last, _, oldest)) => {
                if rank < last || oldest.seqno() == trailer.seqno() {
                    let (newer, older) = (rank.min(last), rank.max(last));
                    checker.disorder(tree, &sources[newer], &sources[older], &self.key);
                }
                self.ranks.push((rank, trailer, trailer));
            }
            None => self.ranks.push((rank, trailer, trailer)),
        }
    }

    /// A range tombstone is newer than entries of deeper sources and older than those of shallower
    /// ones.
    fn check_tombstones(&self, checker: &mut Checker<'_>, tree: NamespaceId, sources: &[Source]) {
        if self.ranks.is_empty() {
            return;
        }
        for (rank, source) in sources.iter().enumerate().filter(|(_, s)| s.has_tombstones) {
            let Some(fragment) = source.tombstones.fragment_at(&self.key) else {
                continue;
            };
            let (Some(&newest), Some(&oldest)) = (fragment.seqnos.first(), fragment.seqnos.last())
            else {
                continue;
            };
            for &(other, newest_entry, oldest_entry) in &self.ranks {
                if other > rank && newest_entry.seqno() > oldest {
                    checker.disorder(tree, source, &sources[other], &self.key);
                } else if other < rank && oldest_entry.seqno() < newest {
                    checker.disorder(tree, &sources[other], source, &self.key);
                }
            }
        }
    }
}

// ---- the log ------------------------------------------------------------------------------------

/// What was found in a log.
pub(crate) struct LogCheck {
    pub(crate) report: wal::ScanReport,
    pub(crate) operations: u64,
    /// The newest operation.
    pub(crate) last_seqno: SeqNo,
    pub(crate) problems: Vec<Problem>,
}

impl LogCheck {
    /// Reads a log and checks that every record is a batch or a drop that follows the one before.
    pub(crate) fn read(env: &Env, dir: &Path, from: Option<Lsn>) -> Result<Self> {
        let mut operations = 0;
        let mut problems = Vec::new();
        let mut next = SeqNo::ZERO;
        let mut report = wal::reader::verify::<Error>(&*env.fs, dir, from, |record| {
            match decode_record(&record, next) {
                Ok((count, after)) => {
                    operations += count;
                    next = after;
                }
                Err(detail) if problems.len() < MAX_PROBLEMS => {
                    let offset = Some(u64::from(record.start.offset()));
                    problems.push(Problem {
                        path: segment_path(dir, record.start),
                        offset,
                        detail,
                    });
                }
                Err(_) => {}
            }
            Ok(())
        })?;
        let damaged = std::mem::take(&mut report.problems);
        problems.extend(
            damaged
                .into_iter()
                .map(|error| Problem::of(error.into(), dir)),
        );
        let last_seqno = SeqNo(next.0.saturating_sub(1));
        Ok(Self {
            report,
            operations,
            last_seqno,
            problems,
        })
    }
}

/// Decodes a log record; returns how many operations it has and the number after the last of them.
pub(crate) fn decode_record(
    record: &wal::Record<'_>,
    next: SeqNo,
) -> std::result::Result<(u64, SeqNo), String> {
    let check = |base: SeqNo| {
        if base < next {
            return Err(format!(
                "a batch from operation {base} on, which comes after {next}"
            ));
        }
        Ok(())
    };
    if record.kind == RECORD_DROP {
        let seqno = DropRecord::decode(record.payload)?.seqno;
        check(seqno)?;
        return Ok((0, SeqNo(seqno.0 + 1)));
    }
    if record.kind != RECORD_BATCH {
        return Err(format!("a record of unknown kind {}", record.kind));
    }
    let batch = BatchReader::new(record.payload)?;
    let base = batch.base;
    check(base)?;
    let mut count = 0;
    for operation in batch.operations() {
        operation?;
        count += 1;
    }
    Ok((count, SeqNo(base.0 + count)))
}

/// The segment that a position lies in.
pub(crate) fn segment_path(dir: &Path, at: Lsn) -> PathBuf {
    dir.join(format!("{:016x}.wal", at.segment()))
}

/// The position in the log that a problem is at.
fn lsn_of(problem: &Problem) -> Option<Lsn> {
    let name = problem.path.file_name()?.to_str()?.strip_suffix(".wal")?;
    let segment = u32::try_from(u64::from_str_radix(name, 16).ok()?).ok()?;
    let offset = u32::try_from(problem.offset.unwrap_or(0)).unwrap_or(u32::MAX);
    Some(Lsn::new(segment, offset))
}
