//! Repair: makes a damaged database one that opens, keeps everything that can be read, and says what
//! is lost.
//!
//! 1. Verify everything (see `verify`). If nothing is wrong, nothing is done.
//! 2. The state is that of the manifest that CURRENT names. If CURRENT is what is damaged, it is that
//!    of the newest manifest there is.
//! 3. *With a state*: sound SSTables stay as they are. Of a damaged one every readable entry goes
//!    into a new SSTable in the same level; of one that is another table than the manifest says (they
//!    disagree: something was written to the wrong place) none. An entry whose value was in a
//!    blob file and cannot be read becomes a tombstone, so that no older value comes to light in its
//!    place. A tree that then still breaks a rule is merged as in 4.
//! 4. *Without a state*: the SSTables in the directory say to which namespace they belong. Those of a
//!    namespace become its L0 if they can be ordered by age, otherwise they are merged into the last
//!    level; equal keys are ordered by their sequence numbers, so deletes stay deletes. Files that
//!    compaction had replaced and not yet removed cannot be told from others; merged in, they change
//!    nothing unless what deleted their keys is gone.
//! 5. *The log*, if it is sound, stays for the next open to replay. If it is damaged, what is before
//!    the damage goes into SSTables of L0; what is behind it is lost, since operations may not take
//!    effect without those before them. If tables were lost without a state, the whole log goes into
//!    the merge, as it may have what they had.
//! 6. New files are written beside the old ones, then a new manifest, then CURRENT is renamed.
//! 7. Damaged files are moved to `lost/`, replaced ones removed.
//!
//! A crash before the rename leaves the database as it was, with files that nothing refers to; after
//! it the repaired one. Repair can be run again at any time.
//!
//! Nothing is repaired if anything is of a format that this build does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use firn_io::Env;
use firn_io::fs::{DirEntry, OpenMode};
use firn_io::wal::{self, Lsn};

use crate::batch::BatchReader;
use crate::blob::{BlobFile, BlobPointer};
use crate::compaction::drop::{Decision, DropFilter, Snapshots, surviving_range_tombstones};
use crate::compaction::output::{OutputOptions, Outputs, Place, Written};
use crate::core::{RECORD_DROP, Settings};
use crate::error::{Error, Result};
use crate::iterator::InternalIterator;
use crate::key::{FileId, Kind, NamespaceId, SeqNo, Trailer};
use crate::memtable::Memtable;
use crate::names::{self, FileKind};
use crate::options::{LEVELS, Options};
use crate::range_del::RangeTombstones;
use crate::sstable::salvage::{Parts, Walk, show_key};
use crate::verify::{
    self, Findings, LogCheck, Problem, State, TreeFiles, VerifyProgress, decode_record, no_purger,
    pointer_of, segment_path,
};
use crate::version::edit::{Applied, Op, VersionEdit};
use crate::version::manifest::{self, ManifestWriter};
use crate::version::set::{DEFAULT_NAMESPACE, VersionSet};
use crate::version::{BlobMeta, FileMeta, Version, VersionBuilder};

/// So many SSTables may become L0 of a tree without a manifest; more are merged.
const MAX_L0_FILES: usize = 16;

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Whether anything was changed.
    pub changed: bool,
    /// SSTables kept as they were.
    pub tables_kept: u64,
    /// SSTables of which what could be read was written anew.
    pub tables_rewritten: u64,
    /// SSTables of which nothing could be read or that are missing.
    pub tables_lost: u64,
    /// Entries of the SSTables of the repaired database, tombstones included.
    pub entries_kept: u64,
    /// Operations of the log that were written to SSTables because the log could not stay.
    pub log_operations_kept: u64,
    /// Operations of the log that could be read and are lost because others before them could not.
    pub log_operations_lost: u64,
    /// Everything that is lost, with the keys concerned where they are known.
    pub losses: Vec<Problem>,
    /// What was found and is mended without a loss.
    pub notes: Vec<Problem>,
}

/// Repairs the database in `dir`, which no process may have open. See the module's page.
///
/// `options` say how new SSTables are written, as in [`Db::open`](crate::db::Db::open). `progress`
/// is told how far reading is.
///
/// Errors: there is no database in `dir`; another process has it open; a file is of a newer format;
/// the disk refuses to write. After an error nothing is lost that was there before.
pub fn repair_dir(
    env: &Env,
    dir: &Path,
    options: &Options,
    progress: &mut dyn FnMut(&VerifyProgress),
) -> Result<RepairReport> {
    let settings = Settings::new(options.clone())?;
    verify::check_is_database(&env.fs.list(dir)?, dir)?;
    let _lock = verify::lock(env, dir)?;
    let mut findings = verify::check_dir(env, dir, None, progress)?;
    let mut repair = Repair::new(env, dir, settings)?;
    if findings.report.is_clean() {
        if let Some(state) = &findings.state {
            let tables = state.trees.iter().flat_map(TreeFiles::tables);
            repair.report.tables_kept = tables.count() as u64;
        }
        repair.report.entries_kept = findings.report.entries;
        return Ok(repair.report);
    }
    if findings.state.is_none() && !repair.current_is_usable() {
        for (position, id) in repair.manifests().into_iter().rev().enumerate() {
            let mut tried = verify::check_dir(env, dir, Some(id), progress)?;
            // The newest is the one that was in use, or its beginning was cut off by a crash. An
            // older one is good only if nothing that it needs was removed since.
            let is_good = tried.state.is_some() && (position == 0 || tried.report.is_clean());
            if is_good {
                std::mem::swap(&mut tried, &mut findings);
                // What is wrong with CURRENT is mended by writing it.
                let current = dir.join(names::CURRENT);
                let problems = tried.report.problems.into_iter();
                repair
                    .report
                    .notes
                    .extend(problems.filter(|p| p.path == current));
                break;
            }
        }
    }
    if let Some(error) = findings.unsupported.take() {
        return Err(error);
    }
    let plan = match findings.state.take() {
        Some(state) => repair.with_state(state, &findings)?,
        None => repair.without_state(&findings)?,
    };
    repair.install(plan)?;
    Ok(repair.report)
}

/// The state that a repair makes.
#[derive(Default)]
struct Plan {
    names: BTreeMap<NamespaceId, String>,
    tables: BTreeMap<NamespaceId, Vec<(usize, FileMeta)>>,
    /// Those that some table refers to are part of the state.
    blobs: BTreeMap<FileId, BlobMeta>,
    flushed: BTreeMap<NamespaceId, SeqNo>,
    last_seqno: SeqNo,
    next_namespace: NamespaceId,
    log_start: Option<Lsn>,
    log_whole_from: Option<Lsn>,
    applied: Option<Applied>,
    /// Files that go to `lost/`.
    damaged: BTreeSet<PathBuf>,
    /// Files that are not needed any more.
    replaced: BTreeSet<PathBuf>,
    /// The log goes to `lost/`.
    drop_log: bool,
}

impl Plan {
    fn add(&mut self, namespace: NamespaceId, level: usize, written: Written) {
        let tables = self.tables.entry(namespace).or_default();
        for meta in written.tables {
            self.last_seqno = self.last_seqno.max(meta.max_seqno);
            tables.push((level, meta));
        }
        self.blobs
            .extend(written.blobs.into_iter().map(|meta| (meta.id, meta)));
    }

    /// The files of a namespace as a version, if they can be one.
    fn version(&self, namespace: NamespaceId) -> std::result::Result<Version, String> {
        let mut builder = VersionBuilder::new(Arc::new(Version::empty()), None);
        let tables = self.tables.get(&namespace).map_or(&[][..], |tables| tables);
        let mut blobs = BTreeSet::new();
        for (_, meta) in tables {
            blobs.extend(meta.blob_refs.iter().map(|r| r.file));
        }
        for id in blobs {
            if let Some(meta) = self.blobs.get(&id) {
                builder.add_blob(meta.clone())?;
            }
        }
        for (level, meta) in tables {
            builder.add_file(*level, meta.clone())?;
        }
        let version = builder.finish()?.version;
        version.check()?;
        Ok(version)
    }

    fn edit(&self, next_file: FileId) -> std::result::Result<VersionEdit, String> {
        let mut ops = Vec::new();
        for (&namespace, name) in &self.names {
            ops.push(Op::CreateNamespace {
                id: namespace,
                name: name.clone(),
            });
            let version = self.version(namespace)?;
            let blobs = version.blobs().iter();
            ops.extend(blobs.map(|b| Op::AddBlob {
                namespace,
                meta: b.file.meta.clone(),
            }));
            ops.extend(version.all_files().map(|(level, file)| Op::AddFile {
                namespace,
                level,
                meta: file.meta.clone(),
            }));
            let seqno = self.flushed.get(&namespace).copied().unwrap_or_default();
            ops.push(Op::Flushed { namespace, seqno });
        }
        Ok(VersionEdit {
            ops,
            next_file: Some(next_file),
            next_namespace: Some(self.next_namespace),
            last_seqno: Some(self.last_seqno),
            log_start: self.log_start.map(|lsn| lsn.0),
            log_whole_from: self.log_whole_from.map(|lsn| lsn.0),
            applied: self.applied,
            // What was repaired may lack data: it is no longer what the log's other copies have.
            applied_state: None,
            snapshot_end: false,
        })
    }
}

/// What is read out of damaged files in the course of a repair.
struct Repair<'a> {
    env: &'a Env,
    dir: &'a Path,
    settings: Settings,
    listing: Vec<DirEntry>,
    next_file: Arc<AtomicU64>,
    report: RepairReport,
}

impl<'a> Repair<'a> {
    fn new(env: &'a Env, dir: &'a Path, settings: Settings) -> Result<Self> {
        let listing = env.fs.list(dir)?;
        let mut last = 0;
        let lost = dir.join(names::LOST_DIR);
        let before = if env.fs.exists(&lost)? {
            env.fs.list(&lost)?
        } else {
            Vec::new()
        };
        for entry in listing.iter().chain(&before) {
            if let Some(FileKind::Sstable(id) | FileKind::Blob(id) | FileKind::Manifest(id)) =
                names::parse(&entry.name)
            {
                last = last.max(id.0);
            }
        }
        let next_file = Arc::new(AtomicU64::new(last.saturating_add(1)));
        Ok(Self {
            env,
            dir,
            settings,
            listing,
            next_file,
            report: RepairReport::default(),
        })
    }

    /// The manifests in the directory, oldest first.
    fn manifests(&self) -> Vec<FileId> {
        let manifests = self
            .listing
            .iter()
            .filter_map(|entry| match names::parse(&entry.name) {
                Some(FileKind::Manifest(id)) => Some(id),
                _ => None,
            });
        let mut manifests: Vec<FileId> = manifests.collect();
        manifests.sort_unstable();
        manifests
    }

    /// Whether CURRENT names a manifest that is there, be it damaged: then no other will do.
    fn current_is_usable(&self) -> bool {
        manifest::read_current(&*self.env.fs, self.dir)
            .is_ok_and(|id| self.manifests().contains(&id))
    }

    fn number(&self) -> FileId {
        FileId(self.next_file.fetch_add(1, Ordering::Relaxed))
    }

    fn loss(&mut self, problem: Problem) {
        self.report.losses.push(problem);
    }

    fn outputs(
        &self,
        namespace: NamespaceId,
        name: &str,
        bottom: bool,
        table_bytes: u64,
        tombstones: RangeTombstones,
    ) -> Outputs<'a> {
        let numbers = Arc::clone(&self.next_file);
        let next_file = Box::new(move || FileId(numbers.fetch_add(1, Ordering::Relaxed)));
        let place = Place {
            env: self.env,
            dir: self.dir,
            next_file,
        };
        let options = OutputOptions {
            table: self.settings.table_options(bottom),
            table_bytes,
            min_blob_bytes: self.settings.given.min_blob_bytes,
            namespace,
            namespace_name: name.into(),
        };
        Outputs::new(place, options, tombstones)
    }

    // ---- with a manifest ------------------------------------------------------------------------

    fn with_state(&mut self, state: State, findings: &Findings) -> Result<Plan> {
        let mut plan = Plan {
            names: state.names.clone(),
            flushed: state.flushed.clone(),
            last_seqno: state.last_seqno,
            next_namespace: state.next_namespace,
            log_start: state.log_start,
            log_whole_from: state.log_whole_from,
            applied: state.applied,
            ..Plan::default()
        };
        let mut merge = findings.disordered.clone();
        for tree in &state.trees {
            plan.blobs
                .extend(tree.blobs.iter().map(|meta| (meta.id, meta.clone())));
            if !merge.contains(&tree.id) {
                self.mend_tree(tree, findings, &mut plan)?;
                if let Err(detail) = plan.version(tree.id) {
                    let path = self.dir.join(names::manifest_name(state.manifest_id));
                    let detail = format!("the tree is merged into one level: {detail}");
                    self.report.notes.push(Problem::new(path, detail));
                    merge.insert(tree.id);
                }
            }
        }
        for tree in state.trees.iter().filter(|tree| merge.contains(&tree.id)) {
            plan.tables.remove(&tree.id);
            let inputs = tree.tables().map(|meta| meta.id).collect();
            self.merge_tree(tree.id, inputs, findings, &mut plan)?;
        }
        for blob in &findings.bad_blobs {
            plan.damaged.insert(names::blob_path(self.dir, *blob));
        }
        if findings.bad_log {
            let floors = plan.flushed.clone();
            self.convert_log(&mut plan, &floors, false)?;
        }
        Ok(plan)
    }

    /// Keeps the sound tables of a tree and rewrites the others, each in its level.
    fn mend_tree(&mut self, tree: &TreeFiles, findings: &Findings, plan: &mut Plan) -> Result<()> {
        let blobs = Blobs::new(self.env, self.dir, plan, &findings.bad_blobs);
        let mut kept = Vec::new();
        for (level, files) in tree.levels.iter().enumerate() {
            for meta in files {
                let bad_blob = meta
                    .blob_refs
                    .iter()
                    .any(|r| findings.bad_blobs.contains(&r.file));
                if !bad_blob && !findings.bad_tables.contains(&meta.id) {
                    self.report.tables_kept += 1;
                    self.report.entries_kept += meta.entry_count;
                    kept.push((level, meta.clone()));
                    continue;
                }
                let name = plan.names.get(&tree.id).cloned().unwrap_or_default();
                let written = self.rewrite(tree.id, &name, level, meta, &blobs, findings)?;
                plan.damaged.insert(names::sstable_path(self.dir, meta.id));
                plan.add(tree.id, level, written);
            }
        }
        plan.tables.entry(tree.id).or_default().extend(kept);
        Ok(())
    }

    /// Writes what can be read of a table into a new one.
    fn rewrite(
        &mut self,
        namespace: NamespaceId,
        name: &str,
        level: usize,
        meta: &FileMeta,
        blobs: &Blobs<'_>,
        findings: &Findings,
    ) -> Result<Written> {
        let path = names::sstable_path(self.dir, meta.id);
        let what = format!(
            "{} entries with keys from {} to {}",
            meta.entry_count,
            show_key(&meta.smallest),
            show_key(&meta.largest)
        );
        let Some(mut parts) = self.open_parts(meta.id, &what, findings)? else {
            self.report.tables_lost += 1;
            return Ok(Written::default());
        };
        let tombstones = self.take_tombstones(&mut parts, meta.range_tombstone_count, &what);
        let found = !parts.blocks.is_empty() || !tombstones.is_empty();
        let mut outputs = self.outputs(
            namespace,
            name,
            level + 1 == LEVELS,
            u64::MAX,
            (*tombstones).clone(),
        );
        let mut walk = Walk::new(parts);
        while self.walk_on(&mut walk)? {
            let (key, trailer, value) = (walk.key(), walk.trailer(), walk.value());
            if let Some(lost) = copy(&mut outputs, key, trailer, value, blobs)? {
                outputs.add(key, Trailer::new(trailer.seqno(), Kind::Delete), &[])?;
                self.loss(Problem {
                    path: path.clone(),
                    offset: Some(walk.offset()),
                    detail: lost,
                });
            }
        }
        let written = outputs.finish()?;
        if written.tables.is_empty() {
            self.report.tables_lost += 1;
            if !found && meta.entry_count > 0 {
                self.loss(Problem::new(
                    path,
                    format!("nothing in it can be read: {what} are lost"),
                ));
            }
        } else {
            self.report.tables_rewritten += 1;
        }
        self.report.entries_kept += written.tables.iter().map(|t| t.entry_count).sum::<u64>();
        Ok(written)
    }

    /// Opens a table as far as it can be read. What is damaged besides the data is no loss by
    /// itself. `what` is lost if it cannot be opened at all or is another table.
    fn open_parts(&mut self, id: FileId, what: &str, findings: &Findings) -> Result<Option<Parts>> {
        let path = names::sstable_path(self.dir, id);
        if findings.foreign_tables.contains(&id) {
            let detail = format!("it is another table than the manifest says: {what} are lost");
            self.loss(Problem::new(path, detail));
            return Ok(None);
        }
        let handle = self.env.fs.open(&path, OpenMode::Read).map_err(Error::from);
        let mut parts = match handle.and_then(|handle| Parts::read(handle, id)) {
            Ok(parts) => parts,
            Err(error) => {
                let mut problem = Problem::of(error, &path);
                problem.detail = format!("{}: {what} are lost", problem.detail);
                self.loss(problem);
                return Ok(None);
            }
        };
        for error in std::mem::take(&mut parts.damage) {
            if matches!(error, Error::UnsupportedFormat(_)) {
                return Err(error);
            }
            self.report.notes.push(Problem::of(error, &path));
        }
        let expected = parts
            .properties
            .as_ref()
            .map(|properties| properties.data_bytes);
        let expected = expected.or(parts.footer.map(|footer| footer.data_bytes()));
        let found = parts
            .blocks
            .last()
            .map_or(0, |&(offset, len)| offset + len as u64);
        if expected.is_none_or(|bytes| bytes > found) && parts.index.is_none() {
            let detail = "the index cannot be read; what may follow here is lost".to_string();
            self.loss(Problem {
                path,
                offset: Some(found),
                detail,
            });
        }
        Ok(Some(parts))
    }

    /// The range tombstones of a table; a loss if they cannot be read.
    fn take_tombstones(
        &mut self,
        parts: &mut Parts,
        count: u64,
        what: &str,
    ) -> Arc<RangeTombstones> {
        if let Some(tombstones) = parts.range_tombstones.take() {
            return tombstones;
        }
        if count > 0 {
            let path = names::sstable_path(self.dir, parts.id);
            let detail = format!(
                "its {count} range tombstones are lost: deleted keys may reappear ({what})"
            );
            self.loss(Problem::new(path, detail));
        }
        Arc::default()
    }

    /// Moves a walk; what it steps over is a loss.
    fn walk_on(&mut self, walk: &mut Walk) -> Result<bool> {
        let path = walk.parts().file.path().to_path_buf();
        let mut unsupported = None;
        let losses = &mut self.report.losses;
        let more = walk.next(&mut |error| match error {
            Error::UnsupportedFormat(_) => {
                unsupported.get_or_insert(error);
            }
            error => losses.push(Problem::of(error, &path)),
        });
        match unsupported {
            Some(error) => Err(error),
            None => Ok(more),
        }
    }

    // ---- merging --------------------------------------------------------------------------------

    /// Merges tables into the last level of a namespace.
    fn merge_tree(
        &mut self,
        namespace: NamespaceId,
        inputs: Vec<FileId>,
        findings: &Findings,
        plan: &mut Plan,
    ) -> Result<()> {
        let mut tables = Vec::new();
        let mut tombstones = Vec::new();
        for id in inputs {
            let path = names::sstable_path(self.dir, id);
            let Some(mut parts) = self.open_parts(id, "all its entries", findings)? else {
                self.report.tables_lost += 1;
                plan.damaged.insert(path);
                continue;
            };
            self.report.tables_rewritten += 1;
            if findings.bad_tables.contains(&id) {
                plan.damaged.insert(path);
            } else {
                plan.replaced.insert(path);
            }
            let count = parts
                .properties
                .as_ref()
                .map_or(0, |properties| properties.range_tombstone_count);
            tombstones.push(self.take_tombstones(&mut parts, count, "some of all its keys"));
            let keys = parts.properties.and_then(|properties| properties.keys);
            tables.push((id, keys));
        }
        let sets: Vec<&RangeTombstones> = tombstones.iter().map(|set| &**set).collect();
        let tombstones = RangeTombstones::merge(&sets);
        drop(sets);
        let mut stream = Stream::new(runs(tables), self)?;
        let name = plan.names.get(&namespace).cloned().unwrap_or_default();
        let snapshots = Snapshots::new(Vec::new(), SeqNo::MAX);
        let surviving = surviving_range_tombstones(&tombstones, &snapshots, |_, _| true);
        let bytes = self.settings.sstable_bytes;
        let mut outputs = self.outputs(namespace, &name, true, bytes, surviving);
        let now_ms = self.env.clock.unix_ms();
        let mut filter = DropFilter::new(&snapshots, &tombstones, now_ms, |_: &[u8]| true);
        let blobs = Blobs::new(self.env, self.dir, plan, &findings.bad_blobs);
        // The value of the last entry is lost, unless the next one is the same entry in another file:
        // an unfinished compaction or repair leaves such.
        let mut lost: Option<(Vec<u8>, SeqNo, Problem)> = None;
        while let Some(walk) = stream.top() {
            let (key, trailer, value) = (walk.key(), walk.trailer(), walk.value());
            let decision = filter.decide(key, trailer, value)?;
            let again = lost
                .as_ref()
                .is_some_and(|(k, s, _)| k == key && *s == trailer.seqno());
            if again || decision == Decision::Keep {
                if !again {
                    self.give_up(&mut outputs, lost.take())?;
                }
                let problem = copy(&mut outputs, key, trailer, value, &blobs)?;
                lost = problem.map(|detail| {
                    let path = walk.parts().file.path().to_path_buf();
                    let problem = Problem {
                        path,
                        offset: Some(walk.offset()),
                        detail,
                    };
                    (key.to_vec(), trailer.seqno(), problem)
                });
            }
            stream.advance(self)?;
        }
        self.give_up(&mut outputs, lost)?;
        let written = outputs.finish()?;
        self.report.entries_kept += written.tables.iter().map(|t| t.entry_count).sum::<u64>();
        plan.add(namespace, LEVELS - 1, written);
        Ok(())
    }

    /// A value is lost: its key does not exist any more.
    fn give_up(
        &mut self,
        outputs: &mut Outputs<'_>,
        lost: Option<(Vec<u8>, SeqNo, Problem)>,
    ) -> Result<()> {
        if let Some((key, seqno, problem)) = lost {
            outputs.add(&key, Trailer::new(seqno, Kind::Delete), &[])?;
            self.loss(problem);
        }
        Ok(())
    }

    // ---- without a manifest ---------------------------------------------------------------------

    fn without_state(&mut self, findings: &Findings) -> Result<Plan> {
        let hints = self.hints();
        let mut plan = Plan {
            names: hints.names.clone(),
            last_seqno: hints.last_seqno,
            next_namespace: hints.next_namespace,
            applied: hints.applied,
            ..Plan::default()
        };
        self.next_file
            .fetch_max(hints.next_file.0, Ordering::Relaxed);
        let manifest = self.manifests().last().copied();
        for problem in &findings.report.problems {
            if manifest.is_some_and(|id| problem.path == self.dir.join(names::manifest_name(id))) {
                let mut problem = problem.clone();
                problem.detail = format!(
                    "{}; without it, files that were already replaced cannot be told from others",
                    problem.detail
                );
                self.report.notes.push(problem);
            }
        }
        let found = self.find_tables(&hints, findings, &mut plan)?;
        self.name_namespaces(&found, &hints, findings.bad_log, &mut plan)?;
        let unknown_lost = found.unknown_lost;
        let mut floors = BTreeMap::new();
        for &namespace in plan.names.keys() {
            let tables = found
                .tables
                .get(&namespace)
                .map_or(&[][..], |tables| tables);
            let is_whole = !unknown_lost && tables.iter().all(|table| table.is_sound);
            let newest = tables.iter().map(|table| table.meta.max_seqno).max();
            let floor = if is_whole {
                newest.unwrap_or_default()
            } else {
                SeqNo::ZERO
            };
            floors.insert(namespace, floor);
            // What is in tables is not replayed; of the rest the conversion says where it ends.
            plan.flushed.insert(namespace, newest.unwrap_or_default());
            plan.last_seqno = plan.last_seqno.max(newest.unwrap_or_default());
        }
        let complete = !unknown_lost && found.tables.values().flatten().all(|t| t.is_sound);
        if findings.bad_log || !complete {
            self.convert_log(&mut plan, &floors, true)?;
        }
        for (namespace, tables) in &found.tables {
            let from_log = plan.tables.get(namespace).cloned().unwrap_or_default();
            let all_sound = tables
                .iter()
                .all(|table| table.is_sound && !table.needs_blobs(findings));
            let count = tables.len() + from_log.len();
            if all_sound && count <= MAX_L0_FILES {
                let level_0 = tables.iter().map(|table| (0, table.meta.clone()));
                plan.tables.entry(*namespace).or_default().extend(level_0);
                if plan.version(*namespace).is_ok() {
                    self.report.tables_kept += tables.len() as u64;
                    let entries = tables.iter().map(|table| table.meta.entry_count);
                    self.report.entries_kept += entries.sum::<u64>();
                    continue;
                }
            }
            plan.tables.remove(namespace);
            let mut inputs: Vec<FileId> = tables.iter().map(|table| table.meta.id).collect();
            inputs.extend(from_log.iter().map(|(_, meta)| meta.id));
            let already = from_log
                .iter()
                .map(|(_, meta)| meta.entry_count)
                .sum::<u64>();
            self.report.entries_kept -= already;
            self.merge_tree(*namespace, inputs, findings, &mut plan)?;
            self.report.tables_rewritten -= from_log.len() as u64;
        }
        for blob in &findings.bad_blobs {
            plan.damaged.insert(names::blob_path(self.dir, *blob));
        }
        if let Some(id) = manifest {
            plan.damaged.insert(self.dir.join(names::manifest_name(id)));
        }
        Ok(plan)
    }

    /// What the readable beginnings of manifests say.
    fn hints(&self) -> Hints {
        let mut hints = Hints::default();
        for id in self.manifests() {
            // The error is known already; what came before it is what is wanted.
            let _ = manifest::read(&*self.env.fs, self.dir, id, |_, edit| {
                hints.take(&edit);
                Ok(())
            });
        }
        hints
            .names
            .insert(NamespaceId::default(), DEFAULT_NAMESPACE.to_string());
        hints
    }

    /// The tables in the directory by namespace, and the sound blob files.
    fn find_tables(
        &mut self,
        hints: &Hints,
        findings: &Findings,
        plan: &mut Plan,
    ) -> Result<FoundTables> {
        let mut found = FoundTables::default();
        for entry in self.listing.clone() {
            let id = match names::parse(&entry.name) {
                Some(FileKind::Sstable(id)) => id,
                Some(FileKind::Blob(id)) => {
                    self.find_blob(id, findings, plan);
                    continue;
                }
                _ => continue,
            };
            let path = names::sstable_path(self.dir, id);
            let handle = self.env.fs.open(&path, OpenMode::Read).map_err(Error::from);
            let parts = match handle.and_then(|handle| Parts::read(handle, id)) {
                Ok(parts) => parts,
                Err(error) => {
                    self.loss(Problem::of(error, &path));
                    self.report.tables_lost += 1;
                    plan.damaged.insert(path);
                    found.unknown_lost = true;
                    continue;
                }
            };
            let said = parts.properties.as_ref().and_then(|p| p.namespace.clone());
            let hinted = hints
                .tables
                .get(&id)
                .map(|&namespace| (namespace, String::new()));
            let Some((namespace, name)) = said.or(hinted) else {
                let detail = "nothing says to which namespace it belongs; all of it is lost";
                self.loss(Problem::new(&path, detail));
                self.report.tables_lost += 1;
                plan.damaged.insert(path);
                found.unknown_lost = true;
                continue;
            };
            if hints.dropped.contains(&namespace) {
                plan.replaced.insert(path);
                continue;
            }
            let properties = parts.properties.clone().unwrap_or_default();
            let tombstones = parts.range_tombstones.clone().unwrap_or_default();
            let table = FoundTable {
                meta: FileMeta::of_table(id, parts.file_bytes, &properties, &tombstones),
                is_sound: !findings.bad_tables.contains(&id),
            };
            if table.is_sound && table.meta.entry_count == 0 && tombstones.is_empty() {
                plan.replaced.insert(path);
                continue;
            }
            if !name.is_empty() {
                found.names.entry(namespace).or_insert(name);
            }
            found.tables.entry(namespace).or_default().push(table);
        }
        Ok(found)
    }

    fn find_blob(&mut self, id: FileId, findings: &Findings, plan: &mut Plan) {
        if findings.bad_blobs.contains(&id) {
            return;
        }
        let path = names::blob_path(self.dir, id);
        let blob = self.env.fs.open(&path, OpenMode::Read).map_err(Error::from);
        if let Ok(blob) = blob.and_then(|file| BlobFile::open(file, id)) {
            let summary = blob.summary();
            let meta = BlobMeta {
                id,
                file_bytes: summary.file_bytes,
                value_count: summary.count,
                value_bytes: summary.record_bytes,
            };
            plan.blobs.insert(id, meta);
        }
    }

    /// Gives every namespace that occurs in tables or in the log a name.
    fn name_namespaces(
        &mut self,
        found: &FoundTables,
        hints: &Hints,
        bad_log: bool,
        plan: &mut Plan,
    ) -> Result<()> {
        let mut seen: BTreeSet<NamespaceId> = found.tables.keys().copied().collect();
        let dir = self.dir.join(names::WAL_DIR);
        if self.env.fs.exists(&dir)? {
            let result = wal::reader::scan::<Error>(&*self.env.fs, &dir, None, |record| {
                if let Ok(batch) = BatchReader::new(record.payload) {
                    seen.extend(batch.operations().flatten().map(|op| op.namespace));
                }
                Ok(())
            });
            if let Err(error) = result
                && !bad_log
            {
                return Err(error);
            }
        }
        for id in seen {
            if hints.dropped.contains(&id) || plan.names.contains_key(&id) {
                continue;
            }
            let mut name = format!("ns-{}", id.0);
            match found.names.get(&id) {
                Some(said) if !plan.names.values().any(|other| other == said) => {
                    name.clone_from(said);
                }
                _ => {
                    let detail =
                        format!("the name of namespace {} is lost: now it is {name}", id.0);
                    self.loss(Problem::new(self.dir, detail));
                }
            }
            plan.names.insert(id, name);
        }
        let last = plan
            .names
            .keys()
            .chain(&hints.dropped)
            .max()
            .copied()
            .unwrap_or_default();
        plan.next_namespace = plan
            .next_namespace
            .max(NamespaceId(last.0.saturating_add(1)));
        Ok(())
    }

    // ---- the log --------------------------------------------------------------------------------

    /// Writes the operations before the first damage of the log, those above the floor of their
    /// namespace, into tables of L0; has the log dropped. `all` reads the log from its beginning.
    fn convert_log(
        &mut self,
        plan: &mut Plan,
        floors: &BTreeMap<NamespaceId, SeqNo>,
        all: bool,
    ) -> Result<()> {
        let dir = self.dir.join(names::WAL_DIR);
        let from = if all { None } else { plan.log_start };
        plan.log_start = None;
        plan.log_whole_from = None;
        if !self.env.fs.exists(&dir)? {
            if !all {
                let detail = "it is missing: operations that were not yet in SSTables are lost";
                self.loss(Problem::new(dir, detail));
            }
            return Ok(());
        }
        plan.drop_log = true;
        let mut memtables: BTreeMap<NamespaceId, Arc<Memtable>> = BTreeMap::new();
        let mut next = SeqNo::ZERO;
        let mut kept = 0;
        let mut read = 0;
        let mut failed = None;
        let fs = Arc::clone(&self.env.fs);
        let result = wal::reader::scan::<Error>(&*fs, &dir, from, |record| {
            let (count, after) = decode_record(&record, next).map_err(|detail| {
                let offset = u64::from(record.start.offset());
                Error::corruption(segment_path(&dir, record.start), offset, detail)
            })?;
            if record.kind == RECORD_DROP {
                // Whether the namespace is there is for the manifest and the SSTables to say: a drop
                // that neither shows was not acknowledged.
                next = next.max(after);
                return Ok(());
            }
            let mut bytes = 0;
            let batch = BatchReader::new(record.payload)
                .map_err(|detail| Error::corruption(&dir, record.start.0, detail))?;
            let mut seqno = batch.base;
            // The batch was decoded above: every operation is good, and all of them take effect.
            for operation in batch.operations().flatten() {
                let floor = floors.get(&operation.namespace);
                if floor.is_some_and(|&floor| seqno > floor) {
                    kept += 1;
                    let memtable = memtables.entry(operation.namespace).or_default();
                    if operation.kind == Kind::RangeDelete {
                        memtable.add_range_tombstone(operation.key, operation.value, seqno);
                    } else {
                        memtable.insert(operation.key, seqno, operation.kind, operation.value);
                    }
                }
                seqno.0 += 1;
            }
            read += count;
            next = next.max(after);
            for memtable in memtables.values() {
                bytes += memtable.memory_bytes();
            }
            if bytes > self.settings.memtable_bytes {
                self.write_memtables(&mut memtables, plan)
                    .inspect_err(|error| {
                        failed = Some(error.duplicate());
                    })?;
            }
            Ok(())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        self.write_memtables(&mut memtables, plan)?;
        self.report.log_operations_kept += kept;
        let whole = LogCheck::read(self.env, &dir, from);
        let (total, last) = match &whole {
            Ok(whole) => (whole.operations, whole.last_seqno),
            Err(_) => (read, SeqNo::ZERO),
        };
        let last = last.max(SeqNo(next.0.saturating_sub(1)));
        plan.last_seqno = plan.last_seqno.max(last);
        for flushed in plan.flushed.values_mut() {
            *flushed = (*flushed).max(plan.last_seqno);
        }
        if let Err(error) = result {
            let lost = total.saturating_sub(read);
            self.report.log_operations_lost += lost;
            let mut problem = Problem::of(error, &dir);
            problem.detail = format!(
                "{}; what was logged here and behind is lost unless SSTables have it, {lost} \
                 readable operations among it",
                problem.detail
            );
            self.loss(problem);
        }
        Ok(())
    }

    /// Writes every memtable to a table of L0.
    fn write_memtables(
        &mut self,
        memtables: &mut BTreeMap<NamespaceId, Arc<Memtable>>,
        plan: &mut Plan,
    ) -> Result<()> {
        for (namespace, memtable) in std::mem::take(memtables) {
            let name = plan.names.get(&namespace).cloned().unwrap_or_default();
            let tombstones = (*memtable.range_tombstones()).clone();
            let mut outputs = self.outputs(namespace, &name, false, u64::MAX, tombstones);
            let mut entries = memtable.iter();
            entries.seek_to_first()?;
            while entries.valid() {
                outputs.add(entries.key(), entries.trailer(), entries.value())?;
                entries.next()?;
            }
            let written = outputs.finish()?;
            self.report.entries_kept += written.tables.iter().map(|t| t.entry_count).sum::<u64>();
            plan.add(namespace, 0, written);
        }
        Ok(())
    }

    // ---- the end --------------------------------------------------------------------------------

    /// Steps 6 and 7 of the module's page.
    fn install(&mut self, mut plan: Plan) -> Result<()> {
        let fs = &*self.env.fs;
        let bug = |detail: String| Error::InvalidArgument(format!("repair: {detail}"));
        let id = self.number();
        let edit = plan.edit(FileId(id.0.saturating_add(1))).map_err(bug)?;
        let lost = self.dir.join(names::LOST_DIR);
        plan.damaged
            .retain(|path| matches!(fs.exists(path), Ok(true)));
        if !plan.damaged.is_empty() || plan.drop_log {
            fs.create_dir_all(&lost)?;
            for path in &plan.damaged {
                // A second name, so that a crash after the rename of CURRENT does not cost the
                // evidence. Where there are no links it is moved then.
                let _ = fs.hard_link(path, &in_lost(&lost, path));
            }
            fs.sync_dir(&lost)?;
        }
        ManifestWriter::create(fs, self.dir, id, edit)?;
        // What is put into use must be usable.
        let _: VersionSet<(), ()> =
            VersionSet::recover_manifest(self.env.clone(), self.dir, id, no_purger())?;
        manifest::set_current(fs, self.dir, id)?;
        self.report.changed = true;

        for path in &plan.damaged {
            let target = in_lost(&lost, path);
            if fs.exists(&target)? {
                fs.remove_file(path)?;
            } else {
                fs.rename(path, &target)?;
            }
        }
        if plan.drop_log {
            let log = self.dir.join(names::WAL_DIR);
            let mut target = lost.join(names::WAL_DIR);
            let mut number = 1;
            while fs.exists(&target)? {
                number += 1;
                target = lost.join(format!("{}-{number}", names::WAL_DIR));
            }
            fs.rename(&log, &target)?;
        }
        for path in &plan.replaced {
            // Left behind it is removed by the next open.
            let _ = fs.remove_file(path);
        }
        if fs.exists(&lost)? {
            fs.sync_dir(&lost)?;
        }
        fs.sync_dir(self.dir)?;
        Ok(())
    }
}

fn in_lost(lost: &Path, path: &Path) -> PathBuf {
    match path.file_name() {
        Some(name) => lost.join(name),
        None => lost.to_path_buf(),
    }
}

/// What damaged manifests tell of the time before their damage.
#[derive(Default)]
struct Hints {
    names: BTreeMap<NamespaceId, String>,
    dropped: BTreeSet<NamespaceId>,
    tables: BTreeMap<FileId, NamespaceId>,
    next_file: FileId,
    next_namespace: NamespaceId,
    last_seqno: SeqNo,
    applied: Option<Applied>,
}

impl Hints {
    fn take(&mut self, edit: &VersionEdit) {
        for op in &edit.ops {
            match op {
                Op::CreateNamespace { id, name } => {
                    self.names.insert(*id, name.clone());
                }
                Op::DropNamespace { id } => {
                    self.names.remove(id);
                    self.dropped.insert(*id);
                }
                Op::AddFile {
                    namespace, meta, ..
                } => {
                    self.tables.insert(meta.id, *namespace);
                }
                Op::RemoveFile { .. } | Op::AddBlob { .. } | Op::Flushed { .. } => {}
            }
        }
        self.next_file = self.next_file.max(edit.next_file.unwrap_or_default());
        self.next_namespace = self
            .next_namespace
            .max(edit.next_namespace.unwrap_or_default());
        self.last_seqno = self.last_seqno.max(edit.last_seqno.unwrap_or_default());
        self.applied = self.applied.max(edit.applied);
    }
}

/// A table that was found in the directory.
struct FoundTable {
    meta: FileMeta,
    is_sound: bool,
}

impl FoundTable {
    /// Whether it refers to a blob file that cannot be used as it is.
    fn needs_blobs(&self, findings: &Findings) -> bool {
        self.meta
            .blob_refs
            .iter()
            .any(|r| findings.bad_blobs.contains(&r.file))
    }
}

#[derive(Default)]
struct FoundTables {
    tables: BTreeMap<NamespaceId, Vec<FoundTable>>,
    names: BTreeMap<NamespaceId, String>,
    /// There are tables of which nobody knows where they belong.
    unknown_lost: bool,
}

/// Writes an entry to the outputs, its value read from a blob file if that file does not stay. If
/// its value is lost, nothing is written and what is lost is returned.
fn copy(
    outputs: &mut Outputs<'_>,
    key: &[u8],
    trailer: Trailer,
    value: &[u8],
    blobs: &Blobs<'_>,
) -> Result<Option<String>> {
    let lost = match pointer_of(trailer.kind(), value) {
        Ok(None) => {
            outputs.add(key, trailer, value)?;
            return Ok(None);
        }
        Ok(Some(pointer)) => {
            let skip = if trailer.kind().is_some_and(Kind::is_expiring) {
                8
            } else {
                0
            };
            let expiry = value.get(..skip).unwrap_or_default();
            if blobs.stays(&pointer, key) {
                outputs.add_pointer(key, trailer, expiry, &pointer)?;
                return Ok(None);
            }
            match blobs.read(&pointer, key) {
                Ok(user) => {
                    let kind = if skip > 0 {
                        Kind::PutExpiring
                    } else {
                        Kind::Put
                    };
                    let value = [expiry, &user].concat();
                    outputs.add(key, Trailer::new(trailer.seqno(), kind), &value)?;
                    return Ok(None);
                }
                Err(error) => error.to_string(),
            }
        }
        Err(what) => what.to_string(),
    };
    Ok(Some(format!(
        "the value of key {} is lost: {lost}",
        show_key(key)
    )))
}

/// The blob files that pointers lead to.
struct Blobs<'a> {
    env: &'a Env,
    dir: &'a Path,
    /// Those that stay.
    sound: BTreeSet<FileId>,
    open: std::cell::RefCell<BTreeMap<FileId, Arc<BlobFile>>>,
}

impl<'a> Blobs<'a> {
    fn new(env: &'a Env, dir: &'a Path, plan: &Plan, bad: &BTreeSet<FileId>) -> Self {
        let sound = plan
            .blobs
            .keys()
            .filter(|id| !bad.contains(id))
            .copied()
            .collect();
        Self {
            env,
            dir,
            sound,
            open: std::cell::RefCell::default(),
        }
    }

    fn file(&self, id: FileId) -> Result<Arc<BlobFile>> {
        const MAX_OPEN: usize = 64;
        let mut open = self.open.borrow_mut();
        if let Some(blob) = open.get(&id) {
            return Ok(Arc::clone(blob));
        }
        let handle = self
            .env
            .fs
            .open(&names::blob_path(self.dir, id), OpenMode::Read)?;
        let blob = Arc::new(BlobFile::salvage(handle, id)?);
        if open.len() >= MAX_OPEN {
            open.pop_first();
        }
        open.insert(id, Arc::clone(&blob));
        Ok(blob)
    }

    /// Whether the pointer can stay as it is.
    fn stays(&self, pointer: &BlobPointer, key: &[u8]) -> bool {
        self.sound.contains(&pointer.file)
            && self
                .file(pointer.file)
                .is_ok_and(|blob| blob.check_pointer(pointer, key).is_ok())
    }

    fn read(&self, pointer: &BlobPointer, key: &[u8]) -> Result<Vec<u8>> {
        Ok(self.file(pointer.file)?.read(pointer, key)?.into_vec())
    }
}

/// The smallest and the largest key of a table's entries.
type KeySpan = (Vec<u8>, Vec<u8>);

/// Sorts tables into as few runs as possible in which none overlaps the next.
fn runs(mut tables: Vec<(FileId, Option<KeySpan>)>) -> Vec<Vec<FileId>> {
    tables.sort_by(|a, b| a.1.cmp(&b.1));
    let mut runs: Vec<(Option<Vec<u8>>, Vec<FileId>)> = Vec::new();
    for (id, keys) in tables {
        let Some((smallest, largest)) = keys else {
            // Its keys are not known, or it has none.
            runs.push((None, vec![id]));
            continue;
        };
        let fits = |end: &Option<Vec<u8>>| end.as_ref().is_some_and(|end| *end < smallest);
        match runs.iter_mut().find(|(end, _)| fits(end)) {
            Some((end, run)) => {
                *end = Some(largest);
                run.push(id);
            }
            None => runs.push((Some(largest), vec![id])),
        }
    }
    runs.into_iter().map(|(_, run)| run).collect()
}

/// Tables read one after another.
struct RunOfTables {
    rest: std::vec::IntoIter<FileId>,
    walk: Option<Walk>,
}

/// Runs merged into one stream in internal order. An entry that is in two tables comes twice.
struct Stream {
    runs: Vec<RunOfTables>,
    /// Those that have an entry, in the order in which their entries come.
    order: Vec<usize>,
}

impl Stream {
    fn new(runs: Vec<Vec<FileId>>, repair: &mut Repair<'_>) -> Result<Self> {
        let make = |ids: Vec<FileId>| RunOfTables {
            rest: ids.into_iter(),
            walk: None,
        };
        let mut stream = Self {
            runs: runs.into_iter().map(make).collect(),
            order: Vec::new(),
        };
        for i in 0..stream.runs.len() {
            if stream.runs[i].advance(repair)? {
                stream.order.push(i);
            }
        }
        let runs = &stream.runs;
        stream
            .order
            .sort_by(|&a, &b| RunOfTables::compare(&runs[a], &runs[b]));
        Ok(stream)
    }

    /// The walk that stands on the next entry.
    fn top(&self) -> Option<&Walk> {
        self.runs.get(*self.order.first()?)?.walk.as_ref()
    }

    fn advance(&mut self, repair: &mut Repair<'_>) -> Result<()> {
        let Some(&first) = self.order.first() else {
            return Ok(());
        };
        if !self.runs[first].advance(repair)? {
            self.order.remove(0);
            return Ok(());
        }
        let mut at = 0;
        while at + 1 < self.order.len() {
            let (a, b) = (&self.runs[self.order[at]], &self.runs[self.order[at + 1]]);
            if RunOfTables::compare(a, b).is_le() {
                break;
            }
            self.order.swap(at, at + 1);
            at += 1;
        }
        Ok(())
    }
}

impl RunOfTables {
    fn compare(a: &Self, b: &Self) -> std::cmp::Ordering {
        match (&a.walk, &b.walk) {
            (Some(a), Some(b)) => a
                .key()
                .cmp(b.key())
                .then_with(|| b.trailer().cmp(&a.trailer())),
            (a, b) => a.is_none().cmp(&b.is_none()),
        }
    }

    fn advance(&mut self, repair: &mut Repair<'_>) -> Result<bool> {
        loop {
            if let Some(walk) = &mut self.walk
                && repair.walk_on(walk)?
            {
                return Ok(true);
            }
            self.walk = None;
            let Some(id) = self.rest.next() else {
                return Ok(false);
            };
            let path = names::sstable_path(repair.dir, id);
            let handle = repair.env.fs.open(&path, OpenMode::Read)?;
            // What is wrong with it besides its data was reported when it was first looked at.
            self.walk = Some(Walk::new(Parts::read(handle, id)?));
        }
    }
}
