//! The database handle for embedders.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use firn_io::Env;

use crate::batch::WriteBatch;
use crate::checkpoint;
use crate::commit::{Commit, Ticket, WriteOptions};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::event::{EventListener, LevelStats, LogStats, MemoryStats, NamespaceStats, Stats};
use crate::external::apply::Applier;
use crate::external::state::ExternalLog;
use crate::key::{FileId, NamespaceId, SeqNo};
use crate::options::{LEVELS, MAX_NAMESPACE_BYTES, Options};
use crate::read::{Scan, ScanOptions};
use crate::recovery;
use crate::refill::{self, Damage, RangeView, Refill};
use crate::tree::Tree;
use crate::value::{Entry, Value};
use crate::verify::{self, VerifyReport};
use crate::version::KeyRange;
use crate::watch::{Watch, WatchOptions};
use crate::work;

/// The name of the namespace that always exists.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A handle to a namespace: an ordered set of keys with a tree of its own. Cheap to clone. A handle
/// outlives its namespace; calls with it then answer [`Error::NamespaceNotFound`].
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Tree>);

impl Namespace {
    /// Its number.
    pub fn id(&self) -> NamespaceId {
        self.0.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }
}

impl From<&Namespace> for NamespaceId {
    fn from(namespace: &Namespace) -> Self {
        namespace.id()
    }
}

/// An open database. Cheap to clone; all clones are one database, which is closed when
/// [`Db::close`] is called or the last clone, scan and snapshot is gone.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let dir = dir.path().join("db");
/// use firn_engine::{Db, Options, ScanOptions};
///
/// let db = Db::open(&dir, Options::default())?;
/// db.put(b"snow", b"falls")?;
/// db.put(b"firn", b"settles")?;
/// assert_eq!(db.get(b"firn")?.as_deref(), Some(&b"settles"[..]));
///
/// let mut scan = db.scan(&db.default_namespace(), ScanOptions::prefix(b"s"))?;
/// while scan.next()? {
///     println!("{:?} = {:?}", scan.key(), scan.value());
/// }
/// db.close()?;
/// # Ok::<(), firn_engine::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Db {
    handle: Arc<Handle>,
}

/// Closes the database when the last [`Db`] is gone; jobs in the background hold the core only.
#[derive(Debug)]
struct Handle {
    core: Arc<Core>,
    default: Namespace,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The error was reported to whoever waited for a write; there is nobody left to tell.
        let _ = close(&self.core);
    }
}

impl Db {
    /// Opens the database in `dir` on the real disk, and recovers it if it was not closed.
    ///
    /// Errors: another process has it open; it does not exist and `create_if_missing` is off; it is
    /// damaged (nothing is changed then); its format is newer than this build.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        Self::open_with(Env::os(options.background_threads.max(1)), dir, options)
    }

    /// The same, in a world of the caller's.
    pub fn open_with(env: Env, dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        Self::of(recovery::open(env, dir.as_ref(), options)?)
    }

    /// Opens the database in `dir` as the state of a replicated log, which is then its only log:
    /// [`Db`] reads, the [`Applier`] writes. See [`crate::external`].
    ///
    /// Errors as [`Db::open`]; or its own log has operations that are in no SSTable: it was not
    /// closed.
    pub fn open_external(
        env: Env,
        dir: impl AsRef<Path>,
        options: Options,
        log: Arc<dyn ExternalLog>,
    ) -> Result<(Self, Applier)> {
        let core = recovery::open_external(env, dir.as_ref(), options, log)?;
        let applier = Applier::new(Arc::clone(&core));
        Ok((Self::of(core)?, applier))
    }

    fn of(core: Arc<Core>) -> Result<Self> {
        let tree = core.trees.load().get(NamespaceId::default()).cloned();
        let default = tree.ok_or_else(|| Error::NamespaceNotFound(DEFAULT_NAMESPACE.into()))?;
        Ok(Self {
            handle: Arc::new(Handle {
                core,
                default: Namespace(default),
            }),
        })
    }

    fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.core().dir
    }

    // ---- namespaces -----------------------------------------------------------------------------

    /// The namespace named "default", which always exists.
    pub fn default_namespace(&self) -> Namespace {
        self.handle.default.clone()
    }

    /// The namespace of this name. Errors: there is none.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        self.core().check_open()?;
        let tree = self.core().trees.load().by_name(name).cloned();
        tree.map(Namespace)
            .ok_or_else(|| Error::NamespaceNotFound(name.into()))
    }

    /// All namespaces, in the order in which they were made.
    pub fn namespaces(&self) -> Vec<Namespace> {
        self.core()
            .trees
            .load()
            .iter()
            .cloned()
            .map(Namespace)
            .collect()
    }

    /// Makes a namespace; durable on return. Errors: the name is taken, empty, or too long.
    pub fn create_namespace(&self, name: &str) -> Result<Namespace> {
        let core = self.core();
        core.check_open()?;
        core.log()?;
        if name.is_empty() {
            return Err(Error::InvalidArgument("a namespace needs a name".into()));
        }
        if name.len() > MAX_NAMESPACE_BYTES {
            return Err(Error::LimitExceeded {
                limit: "namespace_bytes",
                max: MAX_NAMESPACE_BYTES as u64,
                actual: name.len() as u64,
            });
        }
        let _one_at_a_time = core.namespace_change.lock();
        core.check_open()?;
        if core.trees.load().by_name(name).is_some() {
            return Err(Error::NamespaceExists(name.into()));
        }
        // Namespaces come and go in order with writes: what was written before is durable first.
        let log = core.log()?;
        core.sync_log(log, log.appended())?;
        let (id, levels) = core.versions.create_namespace(name)?;
        let tree = Arc::new(Tree::new(id, name.into(), levels, Arc::clone(&core.chunks)));
        let _no_write = core.lock_commit();
        let mut trees = (**core.trees.load()).clone();
        trees.insert(Arc::clone(&tree));
        core.trees.store(Arc::new(trees));
        Ok(Namespace(tree))
    }

    /// The namespace of this name, made if it is not there.
    pub fn namespace_or_create(&self, name: &str) -> Result<Namespace> {
        loop {
            match self.namespace(name) {
                Err(Error::NamespaceNotFound(_)) => {}
                result => return result,
            }
            match self.create_namespace(name) {
                Err(Error::NamespaceExists(_)) => {}
                result => return result,
            }
        }
    }

    /// Removes a namespace with everything in it; durable on return. Its space is given back as
    /// soon as no scan or snapshot reads it. Errors: it does not exist, or is the default one. The
    /// disk failed: it is out of reach until it is dropped again or the next open decides.
    pub fn drop_namespace(&self, name: &str) -> Result<()> {
        let core = self.core();
        core.check_open()?;
        core.log()?;
        let _one_at_a_time = core.namespace_change.lock();
        core.check_open()?;
        let present = core.trees.load().by_name(name).cloned();
        // Or a drop of it failed, and this one tries again.
        let half_gone = || {
            let leaving = core.leaving.lock();
            leaving.iter().find(|tree| &*tree.name == name).cloned()
        };
        let Some(tree) = present.or_else(half_gone) else {
            return Err(Error::NamespaceNotFound(name.into()));
        };
        if tree.id == NamespaceId::default() {
            return Err(Error::InvalidArgument(
                "the default namespace cannot be dropped".into(),
            ));
        }
        // Its flush and compaction must not add files to what is being dropped.
        let _no_compaction = work::CompactionPause::new(core);
        let log = core.log()?;
        let (last, end) = {
            let mut commit = core.lock_commit();
            if !tree.is_dropped() {
                core.log_drop(&mut commit, &tree)?;
                core.leaving.lock().push(Arc::clone(&tree));
            }
            tree.set_dropped();
            let mut trees = (**core.trees.load()).clone();
            trees.remove(tree.id);
            core.trees.store(Arc::new(trees));
            (commit.last_seqno, log.appended())
        };
        core.sync_log(log, end)?;
        core.wait_for(|_| (!tree.flushing.load(Ordering::Acquire)).then_some(()));
        core.versions.drop_namespace(tree.id, last)?;
        core.leaving.lock().retain(|other| other.id != tree.id);
        core.recount_memtables();
        Ok(())
    }

    // ---- writes ---------------------------------------------------------------------------------

    /// Sets a key in the default namespace; durable on return. Returns its version.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<SeqNo> {
        let mut batch = WriteBatch::with_capacity(key.len() + value.len() + 16);
        batch.put(&self.handle.default, key, value)?;
        Ok(self.core().write(&mut batch, &WriteOptions::sync())?.last)
    }

    /// Removes a key from the default namespace; durable on return. Returns the version of the
    /// removal.
    pub fn delete(&self, key: &[u8]) -> Result<SeqNo> {
        let mut batch = WriteBatch::with_capacity(key.len() + 16);
        batch.delete(&self.handle.default, key)?;
        Ok(self.core().write(&mut batch, &WriteOptions::sync())?.last)
    }

    /// Writes a batch, all or nothing, and waits until it is acknowledged as `options` ask.
    ///
    /// Errors: a condition does not hold, a namespace does not exist, the disk is full, or writes
    /// come too fast: nothing was written. The log failed: it may have been written, and the
    /// database takes no further writes.
    pub fn write(&self, mut batch: WriteBatch, options: &WriteOptions) -> Result<Commit> {
        self.core().write(&mut batch, options)
    }

    /// The same, leaving the batch's memory with the caller. The batch may be written again.
    pub fn write_reusing(&self, batch: &mut WriteBatch, options: &WriteOptions) -> Result<Commit> {
        self.core().write(batch, options)
    }

    /// Puts a batch in order without waiting until it is acknowledged. Errors as [`Db::write`].
    pub fn submit(&self, mut batch: WriteBatch, options: &WriteOptions) -> Result<Ticket> {
        self.core().submit(&mut batch, options)
    }

    /// The same, leaving the batch's memory with the caller. The batch may be submitted again.
    pub fn submit_reusing(&self, batch: &mut WriteBatch, options: &WriteOptions) -> Result<Ticket> {
        self.core().submit(batch, options)
    }

    /// Makes everything written so far durable, buffered writes too.
    pub fn sync(&self) -> Result<()> {
        self.core().check_open()?;
        let log = self.core().log()?;
        self.core().sync_log(log, log.appended())
    }

    // ---- reads ----------------------------------------------------------------------------------

    /// The value of a key in the default namespace.
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        Ok(self
            .core()
            .get_now(&self.handle.default.0, key)?
            .map(|entry| entry.value))
    }

    /// The value of a key.
    pub fn get_in(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>> {
        Ok(self
            .core()
            .get_now(&namespace.0, key)?
            .map(|entry| entry.value))
    }

    /// The value of a key with its version and expiry.
    pub fn get_entry(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Entry>> {
        self.core().get_now(&namespace.0, key)
    }

    /// The same, but with what is on its way up to `at_least`, though nobody was told of it yet:
    /// neither is it certain to survive, nor may it be passed on before it is. For a caller that
    /// writes on the condition that the version is still this one ([`SeqNo::MAX`] asks for the
    /// newest), or that waits for the [`Ticket`] of that operation before it answers. At
    /// [`SeqNo::MAX`] one half of a batch may be seen without the other.
    pub fn get_entry_at_least(
        &self,
        namespace: &Namespace,
        key: &[u8],
        at_least: SeqNo,
    ) -> Result<Option<Entry>> {
        self.core().get_at_least(&namespace.0, key, at_least)
    }

    /// Several keys at one instant, in the order asked for.
    pub fn multi_get(&self, namespace: &Namespace, keys: &[&[u8]]) -> Result<Vec<Option<Entry>>> {
        let core = self.core();
        core.check_tree(&namespace.0)?;
        let state = namespace.0.state();
        let snapshot = core.snapshots.published();
        core.multi_get_at(&namespace.0, &state, keys, snapshot)
    }

    /// Opens a scan at the present instant.
    pub fn scan(&self, namespace: &Namespace, options: ScanOptions) -> Result<Scan> {
        let core = self.core();
        core.check_tree(&namespace.0)?;
        let state = namespace.0.pin_state();
        let snapshot = core.snapshots.published();
        core.scan_at(&namespace.0, state, snapshot, None, options)
    }

    /// Pins the present instant, over all namespaces.
    pub fn snapshot(&self) -> Snapshot {
        let core = Arc::clone(self.core());
        let seqno = core.snapshots.pin();
        Snapshot { core, seqno }
    }

    /// Bytes on disk of the keys from `start` (inclusive) to `end` (exclusive), estimated from
    /// indexes without reading data. Memtables are not counted.
    pub fn approximate_size(
        &self,
        namespace: &Namespace,
        start: Option<&[u8]>,
        end: Option<&[u8]>,
    ) -> Result<u64> {
        let core = self.core();
        core.check_tree(&namespace.0)?;
        let state = namespace.0.state();
        let mut bytes = 0;
        let range = KeyRange::of_user(start, end);
        for (_, file) in state
            .levels
            .all_files()
            .filter(|(_, f)| range.overlaps_file(&f.meta))
        {
            let table = core.table(file)?;
            let from = start.map_or(0, |key| table.approximate_offset_of(key));
            let to = end.map_or(file.meta.file_bytes, |key| table.approximate_offset_of(key));
            bytes += to.saturating_sub(from);
        }
        Ok(bytes)
    }

    /// The number of keys, estimated: entries less twice the tombstones.
    pub fn approximate_count(&self, namespace: &Namespace) -> u64 {
        approximate_keys(&namespace.0)
    }

    // ---- changes --------------------------------------------------------------------------------

    /// Opens a changefeed: every durable batch from a version on, in order. See [`crate::watch`].
    ///
    /// Errors: [`Error::WatchTooOld`]; the version is beyond the newest; the filter is wrong; there
    /// is no namespace of the filter's name.
    pub fn watch(&self, options: WatchOptions) -> Result<Watch> {
        Watch::open(self.core(), options)
    }

    /// The oldest version that a watch can begin at now.
    pub fn oldest_watchable(&self) -> Result<SeqNo> {
        self.core().oldest_watchable()
    }

    // ---- upkeep ---------------------------------------------------------------------------------

    /// Writes all memtables to SSTables and waits for it.
    pub fn flush(&self) -> Result<()> {
        let core = self.core();
        core.check_open()?;
        {
            let commit = core.lock_commit();
            for tree in core.trees.load().iter() {
                core.rotate(&commit, tree)?;
            }
        }
        work::wait_for_flushes(core)
    }

    /// Waits until no flush or compaction is running or due.
    pub fn wait_idle(&self) -> Result<()> {
        self.core().check_open()?;
        work::wait_idle(self.core())
    }

    /// Compacts the keys from `start` (inclusive) to `end` (exclusive) down to the last level with
    /// data, and waits for it. Nobody needs to call this; it gives space back at once that would
    /// come back by itself.
    pub fn compact_range(
        &self,
        namespace: &Namespace,
        start: Option<&[u8]>,
        end: Option<&[u8]>,
    ) -> Result<()> {
        self.core().check_tree(&namespace.0)?;
        self.flush()?;
        let _alone = work::CompactionPause::new(self.core());
        crate::compaction::run::compact_range(self.core(), &namespace.0, start, end)
    }

    /// Makes a copy of the database in `dir`, at one instant over all namespaces, by hard links
    /// where the file system allows. It is a database of its own. Errors: `dir` exists.
    pub fn checkpoint(&self, dir: &Path) -> Result<()> {
        self.core().check_open()?;
        checkpoint::checkpoint(self.core(), dir).map(|_| ())
    }

    /// Reads everything and checks every checksum and invariant, while the database is in use.
    /// Problems are in the report; an error means that the check itself could not go on.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.core().check_open()?;
        let report = verify::verify_open(self.core())?;
        for problem in &report.problems {
            self.core().note_damaged(&problem.path);
        }
        Ok(report)
    }

    /// The SSTables that may be in [`Db::damages`].
    pub fn damaged_files(&self) -> BTreeSet<FileId> {
        self.core().damaged.lock().keys().copied().collect()
    }

    /// The SSTables that reads, compactions or [`Db::verify`] found damaged and that are still in use. Each of
    /// them is read as a whole.
    pub fn damages(&self) -> Result<Vec<Damage>> {
        self.core().check_open()?;
        refill::damages(self.core())
    }

    /// What is visible in a range of keys of a namespace now, up to about `most` bytes of keys and values: what
    /// another copy may be refilled with. Where much was deleted it ends earlier, perhaps without an entry, but never
    /// where it began. Values that have expired are among it until compaction drops them.
    pub fn view(&self, namespace: NamespaceId, range: KeyRange, most: usize) -> Result<RangeView> {
        let Some(tree) = self.tree(namespace)? else {
            let detail = format!("there is no namespace {}", namespace.0);
            return Err(Error::InvalidArgument(detail));
        };
        refill::view(self.core(), &tree, range, most)
    }

    /// Makes a damaged SSTable whole with what another copy of the database has in its ranges: views that follow
    /// each other, each no older than [`Damage::newest`]. While both are in use; compaction rests meanwhile.
    ///
    /// Errors: this is not the state of a replicated log; the views are not of the ranges, or contradict what can
    /// be read here; the disk. Nothing was changed then.
    pub fn refill(&self, damage: &Damage, views: &[RangeView]) -> Result<Refill> {
        let Some(tree) = self.tree(damage.namespace)? else {
            return Ok(Refill::Gone);
        };
        let done = refill::refill(self.core(), &tree, damage, views);
        work::schedule(self.core());
        done
    }

    /// Tells the listener why a damaged SSTable could not be refilled, once for each reason.
    pub fn note_not_refilled(&self, damage: &Damage, reason: &str) {
        self.core().note_not_refilled(damage.file, reason);
    }

    fn tree(&self, namespace: NamespaceId) -> Result<Option<Arc<Tree>>> {
        self.core().check_open()?;
        let trees = self.core().trees.load();
        let mut trees = trees.iter().filter(|tree| !tree.is_dropped());
        Ok(trees.find(|tree| tree.id == namespace).cloned())
    }

    /// Is told of events from now on, in place of any listener before it.
    pub fn set_listener(&self, listener: Arc<dyn EventListener>) {
        self.core().observer.set_listener(listener);
    }

    /// What can be measured now.
    pub fn stats(&self) -> Stats {
        stats(self.core())
    }

    /// Flushes memtables, syncs the log, stops background work and releases the directory. Every
    /// later call answers [`Error::Closed`], reads at a [`Snapshot`] too; a second close does
    /// nothing. A scan that is open may be read on as long as nobody else opens the directory, who
    /// may remove its files. Errors: the log could not be synced; the directory is released all the
    /// same.
    pub fn close(&self) -> Result<()> {
        close(self.core())
    }
}

/// A pinned instant over all namespaces: reads see exactly the operations up to it. Holding one
/// keeps the space of what is deleted or overwritten meanwhile.
#[derive(Debug)]
pub struct Snapshot {
    core: Arc<Core>,
    seqno: SeqNo,
}

impl Clone for Snapshot {
    fn clone(&self) -> Self {
        self.core.snapshots.pin_again(self.seqno);
        Self {
            core: Arc::clone(&self.core),
            seqno: self.seqno,
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.core.snapshots.unpin(self.seqno);
    }
}

impl Snapshot {
    /// The newest operation that it sees.
    pub fn seqno(&self) -> SeqNo {
        self.seqno
    }

    /// The value of a key.
    pub fn get(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Value>> {
        Ok(self.get_entry(namespace, key)?.map(|entry| entry.value))
    }

    /// The value of a key with its version and expiry.
    pub fn get_entry(&self, namespace: &Namespace, key: &[u8]) -> Result<Option<Entry>> {
        self.core.check_tree(&namespace.0)?;
        self.core
            .get_at(&namespace.0, &namespace.0.state(), key, self.seqno)
    }

    /// Several keys, in the order asked for.
    pub fn multi_get(&self, namespace: &Namespace, keys: &[&[u8]]) -> Result<Vec<Option<Entry>>> {
        self.core.check_tree(&namespace.0)?;
        let state = namespace.0.state();
        self.core
            .multi_get_at(&namespace.0, &state, keys, self.seqno)
    }

    /// Opens a scan.
    pub fn scan(&self, namespace: &Namespace, options: ScanOptions) -> Result<Scan> {
        self.core.check_tree(&namespace.0)?;
        // The scan has a pin of its own: it may outlive the snapshot.
        self.core.snapshots.pin_again(self.seqno);
        let state = namespace.0.pin_state();
        let scan = self
            .core
            .scan_at(&namespace.0, state, self.seqno, Some(self.seqno), options);
        if scan.is_err() {
            self.core.snapshots.unpin(self.seqno);
        }
        scan
    }
}

fn approximate_keys(tree: &Tree) -> u64 {
    let state = tree.state();
    let mut entries = 0u64;
    let mut tombstones = 0u64;
    for (_, file) in state.levels.all_files() {
        entries += file.meta.entry_count;
        tombstones += file.meta.tombstone_count;
    }
    let waiting = state.immutables.iter().map(|i| &i.memtable);
    for memtable in std::iter::once(&state.active).chain(waiting) {
        entries += memtable.entry_count() as u64;
        tombstones += memtable.tombstone_count() as u64;
    }
    entries.saturating_sub(2 * tombstones)
}

fn stats(core: &Arc<Core>) -> Stats {
    let mut levels: Vec<LevelStats> = (0..LEVELS)
        .map(|level| LevelStats {
            level,
            ..LevelStats::default()
        })
        .collect();
    let mut stats = Stats::default();
    for tree in core.trees.load().iter() {
        let state = tree.state();
        let mut disk_bytes = 0;
        for (sum, level) in levels.iter_mut().zip(state.levels.levels()) {
            sum.files += level.len() as u64;
            sum.bytes += level.bytes();
            disk_bytes += level.bytes();
        }
        for blob in state.levels.blobs() {
            stats.blob_files += 1;
            stats.blob_bytes += blob.file.meta.value_bytes;
            stats.blob_garbage_bytes += blob.garbage_bytes();
            disk_bytes += blob.file.meta.file_bytes;
        }
        stats.disk_bytes += disk_bytes;
        stats.namespaces.push(NamespaceStats {
            id: tree.id.0,
            name: tree.name.to_string(),
            approximate_keys: approximate_keys(tree),
            disk_bytes,
            memtable_bytes: tree.memtable_bytes() as u64,
        });
    }
    stats.counters = core.observer.counters.read();
    let cache = core.cache.stats();
    stats.counters.cache_hits = cache.hits;
    stats.counters.cache_misses = cache.misses;
    stats.memory = MemoryStats {
        budget: core.settings.given.memory_bytes as u64,
        memtables: stats.namespaces.iter().map(|n| n.memtable_bytes).sum(),
        block_cache: cache.bytes,
        tables: core.tables.bytes.load(Ordering::Relaxed) as u64,
    };
    stats.watch = crate::watch::stats(core);
    if let Ok(log) = core.log() {
        let log = log.stats();
        stats.log = LogStats {
            segments: log.segments,
            disk_bytes: log.disk_bytes,
            unsynced_bytes: log.unsynced_bytes,
        };
        stats.counters.log_bytes = log.appended_bytes;
        stats.counters.log_syncs = log.syncs;
        stats.counters.log_sync_micros = log.sync_micros;
        stats.counters.log_sync_max_micros = log.sync_max_micros;
    }
    stats.levels = levels;
    stats.snapshots = core.snapshots.count() as u64;
    stats.oldest_snapshot = core.snapshots.oldest();
    stats.last_seqno = core.snapshots.published();
    stats.compaction_debt_bytes = crate::compaction::run::debt(core);
    stats.disk_full = core.disk_full.load(Ordering::Relaxed);
    stats.poisoned = core.poisoned.lock().clone();
    let work = core.work.lock();
    let failed = work.flush.last_error.as_ref();
    stats.background_error = failed
        .or(work.compaction.last_error.as_ref())
        .map(ToString::to_string);
    drop(work);
    stats
}

fn close(core: &Arc<Core>) -> Result<()> {
    if core.log.is_none() && core.external.is_none() {
        core.closed.store(true, Ordering::Release);
        return Ok(());
    }
    if core.closed.load(Ordering::Acquire) {
        return Ok(());
    }
    // Flushing makes the next open quick; if it fails, the log still has everything.
    if core.poisoned.lock().is_none() && !core.disk_full.load(Ordering::Acquire) {
        let rotated = {
            let commit = core.lock_commit();
            core.trees
                .load()
                .iter()
                .try_for_each(|tree| core.rotate(&commit, tree).map(|_| ()))
        };
        let _ = rotated.and_then(|()| work::wait_for_flushes(core));
    }
    {
        // Under the lock: a write that was let in is in the log before the log is closed.
        let _no_write = core.lock_commit();
        if core.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
    }
    core.work_done.notify_all();
    core.feed.wake();
    // Whatever changes the manifest ends first: as soon as the directory is released it may be
    // somebody else's.
    let _no_change = core.namespace_change.lock();
    work::wait_stopped(core);
    if core.external.is_some() {
        *core.lock.lock() = None;
        return Ok(());
    }
    let log = core.log()?;
    let synced = core.sync_log(log, log.appended());
    let ended = synced.and_then(|()| log.close().map_err(|error| core.poison(&error)));
    core.fail_acks(&Error::Closed("the database is closed"));
    *core.lock.lock() = None;
    ended
}
