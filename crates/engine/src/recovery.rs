//! Opening a database: CURRENT, manifest, clean-up, log.
//!
//! 1. Lock the directory.
//! 2. Read the manifest that CURRENT names: the namespaces, their files, and up to which sequence
//!    number each is in SSTables. A new manifest is begun, so that the old one is never appended to
//!    after a doubtful write.
//! 3. Check that every file that it names is there, by name and length.
//! 4. Replay the log into memtables, leaving out what SSTables have. A torn tail that nobody was
//!    promised is cut; damage anywhere else is an error, and then no data was touched. Namespaces
//!    whose drop is in the log and not in the manifest yet are dropped.
//! 5. Remove files that no manifest names: what a crash left of a flush, a compaction, a manifest.
//!    After 4, because a log that begins too late shows that the manifest is not the latest.
//! 6. Begin to accept calls. SSTables are opened when they are first read, so opening takes as long
//!    as the log is long, however large the database is.
//!
//! Each step can be repeated: a crash in the middle leads to the same state at the next open.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use firn_io::Env;
use firn_io::exec::{Executor, Priority};
use firn_io::wal::{self, Log, LogOptions};
use parking_lot::{Condvar, Mutex};

use crate::batch::BatchReader;
use crate::blob::BlobFile;
use crate::cache::BlockCache;
use crate::compaction::pacing::Pacer;
use crate::core::{
    CommitState, Core, OpenTables, RECORD_BATCH, RECORD_DROP, Removals, Settings, Trees, WorkState,
    remove_quietly,
};
use crate::error::{Error, Result};
use crate::event::{Event, Observer};
use crate::external::own_log;
use crate::external::state::{External, ExternalLog};
use crate::feed::{DropRecord, Feed};
use crate::key::{Kind, NamespaceId, SeqNo};
use crate::memtable::{ChunkPool, Loader, Run};
use crate::names::{self, FileKind};
use crate::options::Options;
use crate::publish::{Acks, Queue};
use crate::snapshot::SnapshotList;
use crate::tree::{TableSlot, Tree};
use crate::version::set::VersionSet;
use crate::version::{FileClass, Purger};
use crate::work;

/// Opens the database in `dir`.
pub fn open(env: Env, dir: &Path, options: Options) -> Result<Arc<Core>> {
    open_as(env, dir, options, None)
}

/// Opens the database in `dir` with another log in place of its own.
pub fn open_external(
    env: Env,
    dir: &Path,
    options: Options,
    log: Arc<dyn ExternalLog>,
) -> Result<Arc<Core>> {
    if options.read_only {
        let detail = "a replicated log writes: read_only must be off";
        return Err(Error::InvalidArgument(detail.into()));
    }
    open_as(env, dir, options, Some(log))
}

fn open_as(
    env: Env,
    dir: &Path,
    options: Options,
    external: Option<Arc<dyn ExternalLog>>,
) -> Result<Arc<Core>> {
    let settings = Settings::new(options)?;
    let started = env.clock.monotonic();
    let read_only = settings.given.read_only;
    let exists = env.fs.exists(&dir.join(names::CURRENT))?;
    if !exists && (read_only || !settings.given.create_if_missing) {
        let detail = format!("there is no database in {}", dir.display());
        return Err(Error::InvalidArgument(detail));
    }
    let lock = if read_only {
        None
    } else {
        Some(lock(&env, dir)?)
    };

    let cache = Arc::new(BlockCache::new(settings.cache_bytes as u64));
    let observer = Arc::new(Observer::default());
    let removals = Arc::default();
    let purger = purger(&env, dir, &removals);
    let versions: VersionSet<TableSlot, BlobFile> = if read_only {
        VersionSet::recover_read_only(env.clone(), dir, purger)?
    } else {
        VersionSet::open(env.clone(), dir, purger)?
    };
    versions.check_files_exist()?;
    if external.is_none() && !read_only && versions.applied().is_some() {
        let detail = "it is a replica's: writes go through its cluster";
        return Err(Error::InvalidArgument(format!(
            "{}: {detail}",
            dir.display()
        )));
    }

    let chunks = ChunkPool::new(settings.memtable_bytes, Arc::clone(&env.exec));
    let mut trees = Trees::default();
    for (id, name) in versions.namespaces() {
        let levels = versions.current(id);
        let tree = Tree::new(id, name.into(), levels, Arc::clone(&chunks));
        trees.insert(Arc::new(tree));
    }
    let feed = Feed::default();
    let mut replay = Replay::new(&trees, &feed, &versions, &env.exec);
    let wal_dir = dir.join(names::WAL_DIR);
    let log_options = LogOptions {
        segment_bytes: settings.log_segment_bytes,
        mapped: settings.given.log_mapped,
        from: versions.log_start(),
        whole_from: versions.log_whole_from(),
        sync_filled: false,
        ..LogOptions::default()
    };
    let apply = |record: wal::Record<'_>| replay.apply(&wal_dir, &record);
    let mut env = env;
    let external = match external {
        Some(log) => Some(External::open(log, &mut env, dir, &versions)?),
        None => None,
    };
    let (log, report) = if external.is_some() {
        let own = own_log::check(&env, &wal_dir, &versions)?;
        remove_orphans(&env, dir, &versions)?;
        (None, own)
    } else if read_only && log_options.from.is_none() && !env.fs.exists(&wal_dir)? {
        // A checkpoint: everything is in SSTables, and nobody has written to it yet.
        (None, wal::reader::ScanReport::default())
    } else if read_only {
        (
            None,
            wal::reader::scan(&*env.fs, &wal_dir, log_options.from, apply)?,
        )
    } else {
        let replayed = Log::replay(env.clone(), &wal_dir, log_options, apply)?;
        // Memtables are filled while the log waits for the disk.
        replay.finish_in_background();
        let (log, report) = replayed.open()?;
        remove_orphans(&env, dir, &versions)?;
        (Some(log), report)
    };
    replay.finish();
    let last_seqno = replay.last_seqno;
    let dropped = std::mem::take(&mut replay.dropped);
    drop(replay);
    for id in dropped {
        if trees.get(id).is_none() {
            continue;
        }
        if !read_only {
            versions.drop_namespace(id, last_seqno)?;
        }
        trees.remove(id);
    }
    let core = Arc::new(Core {
        pacer: Pacer::new(Arc::clone(&env.clock), settings.memtable_bytes as u64)
            .with_l0_trigger(settings.given.l0_compaction_trigger),
        external,
        env,
        dir: dir.to_path_buf(),
        observer,
        cache,
        log,
        versions,
        snapshots: SnapshotList::default(),
        trees: ArcSwap::from_pointee(trees),
        namespace_change: Mutex::new(()),
        leaving: Mutex::new(Vec::new()),
        checkpoint: Mutex::new(()),
        commit: Mutex::new(CommitState {
            last_seqno,
            unpublished: Queue::default(),
        }),
        chunks,
        memtables_bytes: AtomicUsize::new(0),
        work: Mutex::new(WorkState::default()),
        jobs: AtomicUsize::new(0),
        work_done: Condvar::new(),
        removals,
        schedule: (!read_only).then_some(work::schedule),
        acks: Acks::default(),
        feed,
        log_segment: AtomicU32::new(0),
        sync_armed: AtomicBool::new(false),
        disk_full: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        tables: OpenTables::default(),
        lock: Mutex::new(lock),
        poisoned: Mutex::new(None),
        damaged: Mutex::default(),
        settings,
    });
    core.snapshots.number().set(last_seqno);
    if let Ok(log) = core.log() {
        core.feed.advance(log.synced());
    }
    core.recount_memtables();
    if !read_only {
        if core.log.is_some() {
            listen_to_syncs(&core)?;
            retire_replayed(&core)?;
        }
        // Without the ballast the database works; a full disk then has less room for deletes.
        let _ = work::place_ballast(&core);
        work::schedule(&core);
    }
    let micros = core
        .env
        .clock
        .monotonic()
        .saturating_sub(started)
        .as_micros() as u64;
    core.observer.emit(Event::RecoveryEnd {
        records: report.records,
        log_bytes: report.bytes,
        torn_bytes: report.torn_bytes,
        micros,
    });
    Ok(core)
}

/// Takes the directory for this process, making it first if need be.
fn lock(env: &Env, dir: &Path) -> Result<Box<dyn firn_io::fs::FileLock>> {
    // Where there is CURRENT, the directory's own name was synced before.
    if !env.fs.exists(&dir.join(names::CURRENT))? {
        env.fs.create_dir_durable(dir)?;
    }
    match env.fs.lock(&dir.join(names::LOCK)) {
        Ok(lock) => Ok(lock),
        Err(error) if error.source.kind() == std::io::ErrorKind::WouldBlock => {
            Err(Error::Locked(dir.to_path_buf()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes files in the background once the last reader has let go of them.
fn purger(env: &Env, dir: &Path, removals: &Arc<Removals>) -> Purger {
    let (env, dir, removals) = (env.clone(), dir.to_path_buf(), Arc::clone(removals));
    Arc::new(move |id, class| {
        let path = match class {
            FileClass::Sstable => names::sstable_path(&dir, id),
            FileClass::Blob => names::blob_path(&dir, id),
        };
        let task_env = env.clone();
        let removal = Removals::begin(&removals);
        let task = move || {
            remove_quietly(&task_env, &path);
            drop(removal);
        };
        env.exec.submit(Priority::Low, Box::new(task));
    })
}

/// Removes what a crash left behind.
fn remove_orphans(env: &Env, dir: &Path, versions: &VersionSet<TableSlot, BlobFile>) -> Result<()> {
    let live: BTreeSet<_> = versions.live_files().into_iter().collect();
    for entry in env.fs.list(dir)? {
        let orphan = match names::parse(&entry.name) {
            Some(FileKind::Sstable(id) | FileKind::Blob(id)) => !live.contains(&id),
            Some(FileKind::Manifest(id)) => id != versions.manifest_id(),
            None => entry.name == names::CURRENT_TMP,
        };
        if orphan && !entry.is_dir {
            env.fs.remove_file(&dir.join(&entry.name))?;
        }
    }
    Ok(())
}

/// Has what was replayed flushed, if it is more than one memtable's worth: the log may hold several.
fn retire_replayed(core: &Core) -> Result<()> {
    if core.memtables_bytes.load(Ordering::Relaxed) < core.settings.memtable_bytes {
        return Ok(());
    }
    let commit = core.lock_commit();
    for tree in core.trees.load().iter() {
        core.rotate(&commit, tree)?;
    }
    Ok(())
}

/// Tells the commit path of every sync, whoever did it.
fn listen_to_syncs(core: &Arc<Core>) -> Result<()> {
    let weak = Arc::downgrade(core);
    core.log()?.set_sync_listener(Arc::new(move |result| {
        let Some(core) = weak.upgrade() else { return };
        match result {
            Ok(synced) => core.publish_synced(synced),
            Err(error) => {
                let error = core.poison(&error);
                core.fail_acks(&error);
            }
        }
    }));
    Ok(())
}

/// Puts log records back into memtables.
struct Replay<'a> {
    trees: &'a Trees,
    feed: &'a Feed,
    /// Namespaces whose drop is in the log.
    dropped: Vec<NamespaceId>,
    /// By namespace, the operations that SSTables have.
    flushed: BTreeMap<NamespaceId, SeqNo>,
    last_seqno: SeqNo,
    loaders: BTreeMap<NamespaceId, Loader>,
    exec: Arc<dyn Executor>,
    sorting: Arc<Sorting>,
    loading: Arc<Mutex<Option<Loading>>>,
}

/// What is left to do when all records were read. Whoever takes it holds the lock until it is done.
struct Loading {
    loaders: BTreeMap<NamespaceId, Loader>,
    sorting: Arc<Sorting>,
}

impl Loading {
    /// Makes everything part of the memtables.
    fn run(self) {
        let mut sorted = self.sorting.finish();
        for (id, loader) in self.loaders {
            loader.finish(sorted.remove(&id).unwrap_or_default());
        }
    }
}

/// Runs of entries on their way into the memtables: a background thread sorts them while the next
/// records are read.
#[derive(Default)]
struct Sorting {
    state: Mutex<SortingState>,
    done: Condvar,
}

#[derive(Default)]
struct SortingState {
    /// Whoever comes first takes one and sorts it: the background, or recovery when it has nothing
    /// else to do. So nothing depends on the background having a thread to spare.
    waiting: VecDeque<(NamespaceId, Run)>,
    running: usize,
    sorted: BTreeMap<NamespaceId, Vec<Run>>,
}

impl Sorting {
    /// Sorts one of the runs that wait; false if there is none.
    fn run(&self) -> bool {
        let mut state = self.state.lock();
        let Some((id, mut run)) = state.waiting.pop_front() else {
            return false;
        };
        state.running += 1;
        drop(state);
        run.sort();
        let mut state = self.state.lock();
        state.running -= 1;
        state.sorted.entry(id).or_default().push(run);
        drop(state);
        self.done.notify_all();
        true
    }

    /// All runs, sorted.
    fn finish(&self) -> BTreeMap<NamespaceId, Vec<Run>> {
        while self.run() {}
        let mut state = self.state.lock();
        while state.running > 0 {
            self.done.wait(&mut state);
        }
        std::mem::take(&mut state.sorted)
    }
}

impl<'a> Replay<'a> {
    fn new(
        trees: &'a Trees,
        feed: &'a Feed,
        versions: &VersionSet<TableSlot, BlobFile>,
        exec: &Arc<dyn Executor>,
    ) -> Self {
        let flushed = trees
            .iter()
            .map(|t| (t.id, versions.flushed_seqno(t.id)))
            .collect();
        Self {
            trees,
            feed,
            dropped: Vec::new(),
            flushed,
            last_seqno: versions.last_seqno(),
            loaders: BTreeMap::new(),
            exec: Arc::clone(exec),
            sorting: Arc::default(),
            loading: Arc::default(),
        }
    }

    fn apply(&mut self, dir: &Path, record: &wal::Record<'_>) -> Result<()> {
        let damaged =
            |detail: &str| Error::corruption(dir, record.start.0, format!("log record: {detail}"));
        if record.kind == RECORD_DROP {
            let drop = DropRecord::decode(record.payload).map_err(damaged)?;
            self.feed
                .note_dropped(drop.namespace, drop.name.into(), record.start.segment());
            self.dropped.push(drop.namespace);
            self.last_seqno = self.last_seqno.max(drop.seqno);
            return Ok(());
        }
        if record.kind != RECORD_BATCH {
            return Err(Error::UnsupportedFormat(format!(
                "log record of kind {} in {}",
                record.kind,
                dir.display()
            )));
        }
        let batch = BatchReader::new(record.payload).map_err(damaged)?;
        let mut seqno = batch.base;
        for operation in batch.operations() {
            let operation = operation.map_err(damaged)?;
            // A namespace that is gone was dropped; its operations with it.
            if let Some(tree) = self.trees.get(operation.namespace)
                && self
                    .flushed
                    .get(&tree.id)
                    .is_none_or(|&flushed| seqno > flushed)
            {
                tree.note_record(record.start);
                let (key, value) = (operation.key, operation.value);
                if operation.kind == Kind::RangeDelete {
                    tree.state().active.add_range_tombstone(key, value, seqno);
                } else {
                    self.load(tree, key, seqno, operation.kind, value);
                }
            }
            self.last_seqno = self.last_seqno.max(seqno);
            seqno.0 += 1;
        }
        Ok(())
    }

    /// The order in which versions of a key come does not matter.
    fn load(&mut self, tree: &Tree, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) {
        let begin = || Loader::new(&tree.state().active);
        let loader = self.loaders.entry(tree.id).or_insert_with(begin);
        loader.push(key, seqno, kind, value);
        if let Some(run) = loader.take_run() {
            self.sorting.state.lock().waiting.push_back((tree.id, run));
            let sorting = Arc::clone(&self.sorting);
            let job = move || {
                sorting.run();
            };
            self.exec.submit(Priority::High, Box::new(job));
        }
    }

    /// Has everything made part of the memtables: all records were read.
    fn finish_in_background(&mut self) {
        *self.loading.lock() = Some(Loading {
            loaders: std::mem::take(&mut self.loaders),
            sorting: Arc::clone(&self.sorting),
        });
        let loading = Arc::clone(&self.loading);
        let job = move || {
            let mut loading = loading.lock();
            if let Some(work) = loading.take() {
                work.run();
            }
        };
        self.exec.submit(Priority::High, Box::new(job));
    }

    /// Makes everything part of the memtables, or waits for who does.
    fn finish(&mut self) {
        let mut loading = self.loading.lock();
        if let Some(work) = loading.take() {
            work.run();
        }
        let loaders = std::mem::take(&mut self.loaders);
        let sorting = Arc::clone(&self.sorting);
        Loading { loaders, sorting }.run();
    }
}
