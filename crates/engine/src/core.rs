//! What all parts of an open database share, and the small steps that more than one of them takes.
//!
//! Locks, in the order in which they may be taken: `checkpoint`, `namespace_change`, `commit`
//! (sequence numbers, log order, active memtables), a tree's change lock, the version set's, `work`
//! (who runs what in the background). Apart from the first two none is held across a sync of the log.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use firn_io::Env;
use firn_io::wal::{Log, Lsn};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::blob::BlobFile;
use crate::cache::BlockCache;
use crate::compaction::pacing::Pacer;
use crate::error::{Error, Result};
use crate::event::{Event, Observer};
use crate::external::state::External;
use crate::feed::Feed;
use crate::key::{FileId, NamespaceId, SeqNo};
use crate::memtable::ChunkPool;
use crate::names::{self, FileKind};
use crate::options::{Compression, Options};
use crate::publish::{Acks, Queue};
use crate::snapshot::SnapshotList;
use crate::sstable::{Table, TableOptions};
use crate::tree::{Immutable, TableFile, TableSlot, Tree};
use crate::version::FileMeta;
use crate::version::set::VersionSet;

/// The kind of log record that holds a batch. **Stored on disk.**
pub const RECORD_BATCH: u8 = 1;
/// The kind of log record that says that a namespace was dropped (see `feed`). **Stored on disk.**
pub const RECORD_DROP: u8 = 2;

/// Memtables of [`Settings::memtable_bytes`] that may wait for their flush before writers wait too. They are
/// retired earlier: it may be one more.
pub const MAX_IMMUTABLES: usize = 2;

/// [`Options`] with every default filled in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As given.
    pub given: Options,
    /// Bytes of one memtable, and of what is written while it is flushed.
    pub memtable_bytes: usize,
    /// Bytes at which a memtable is retired. A fast writer fills about half as much again while this is
    /// flushed. (Not where the log is somebody else's: writers are not that fast there, and memtables of all
    /// trees are retired together.)
    pub retire_bytes: usize,
    /// Bytes of all memtables together before the largest is flushed.
    pub memtables_bytes: usize,
    /// Bytes for cached blocks and open tables.
    pub cache_bytes: usize,
    /// Target size of an SSTable.
    pub sstable_bytes: u64,
    /// Bytes of a log segment.
    pub log_segment_bytes: u64,
    /// Bytes of log kept before trees are flushed to free it.
    pub log_bytes: u64,
}

/// Smaller log segments would be changed too often.
const MIN_LOG_SEGMENT_BYTES: u64 = 8 << 10;
/// The log takes no larger ones.
const MAX_LOG_SEGMENT_BYTES: u64 = 1 << 30;
/// Least memory that a database can be opened with.
const MIN_MEMORY_BYTES: usize = 8 << 20;

impl Settings {
    /// Fills in the defaults. Errors: a value that cannot work, by its name.
    pub fn new(given: Options) -> Result<Self> {
        let wrong = |detail: String| Err(Error::InvalidArgument(detail));
        if given.memory_bytes < MIN_MEMORY_BYTES {
            return wrong(format!(
                "memory_bytes must be at least {MIN_MEMORY_BYTES}, got {}",
                given.memory_bytes
            ));
        }
        if !(64..=4 << 20).contains(&given.block_bytes) {
            return wrong(format!(
                "block_bytes must be 64 to 4194304, got {}",
                given.block_bytes
            ));
        }
        if given.restart_interval == 0 || given.l0_compaction_trigger == 0 || given.level_ratio < 2
        {
            return wrong(
                "restart_interval and l0_compaction_trigger must be at least 1, level_ratio 2"
                    .into(),
            );
        }
        #[cfg(not(feature = "zstd"))]
        if given.compression == Compression::Zstd
            || given.bottom_compression == Some(Compression::Zstd)
        {
            return wrong("compression zstd needs a build with the feature \"zstd\"".into());
        }
        let memory = given.memory_bytes;
        let memtable_bytes = given
            .memtable_bytes
            .unwrap_or_else(|| (memory / 8).clamp(1 << 20, 64 << 20))
            .max(16 << 10);
        let memtables_bytes = memtable_bytes.saturating_mul(MAX_IMMUTABLES);
        let log_segment_bytes = given
            .log_segment_bytes
            .unwrap_or(memtable_bytes as u64 / 8)
            .clamp(MIN_LOG_SEGMENT_BYTES, MAX_LOG_SEGMENT_BYTES);
        // What is left for the cache after three memtables (or four of the size at which they are retired:
        // one filling, the others waiting), the mapped log segment, and buffers of flush and compaction.
        let taken = memtable_bytes
            .saturating_mul(MAX_IMMUTABLES + 1)
            .saturating_add(log_segment_bytes as usize)
            .saturating_add(memory / 8);
        let cache_bytes = given
            .cache_bytes
            .unwrap_or_else(|| memory.saturating_sub(taken).max(memory / 8));
        let sstable_bytes = given
            .sstable_bytes
            .unwrap_or((memtable_bytes as u64).max(2 << 20))
            .max(4 << 10);
        let log_bytes = given
            .log_bytes
            .unwrap_or((memtable_bytes as u64).saturating_mul(4));
        Ok(Self {
            memtable_bytes,
            retire_bytes: memtable_bytes / 10 * 7,
            memtables_bytes,
            cache_bytes,
            sstable_bytes,
            log_segment_bytes,
            log_bytes: log_bytes.max(log_segment_bytes),
            given,
        })
    }

    /// How a table of `level` is written; `bottom` if it is the last level with data.
    pub fn table_options(&self, bottom: bool) -> TableOptions {
        TableOptions::from_options(&self.given, bottom)
    }
}

/// Counts the removals of files that are queued or run.
#[derive(Debug, Default)]
pub struct Removals {
    running: Mutex<usize>,
    done: Condvar,
}

/// One of them. It is over when this is dropped, even if its job never ran.
#[derive(Debug)]
pub struct Removal(Arc<Removals>);

impl Removals {
    /// Counts one.
    pub fn begin(removals: &Arc<Self>) -> Removal {
        *removals.running.lock() += 1;
        Removal(Arc::clone(removals))
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        *self.0.running.lock() -= 1;
        self.0.done.notify_all();
    }
}

/// The trees by number and by name, an immutable picture.
#[derive(Clone, Debug, Default)]
pub struct Trees {
    /// By number, for the commit path.
    by_id: BTreeMap<NamespaceId, Arc<Tree>>,
}

impl Trees {
    /// The tree of this number.
    #[inline]
    pub fn get(&self, id: NamespaceId) -> Option<&Arc<Tree>> {
        self.by_id.get(&id)
    }

    /// The tree of this name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Tree>> {
        self.by_id.values().find(|tree| &*tree.name == name)
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Tree>> {
        self.by_id.values()
    }

    /// Adds a tree.
    pub fn insert(&mut self, tree: Arc<Tree>) {
        self.by_id.insert(tree.id, tree);
    }

    /// Takes a tree out.
    pub fn remove(&mut self, id: NamespaceId) {
        self.by_id.remove(&id);
    }
}

/// What the commit lock guards.
#[derive(Debug, Default)]
pub struct CommitState {
    /// The newest operation that has a number.
    pub last_seqno: SeqNo,
    /// Batches that wait for their publication, in order.
    pub unpublished: Queue,
}

/// How the jobs of one kind fare.
#[derive(Debug, Default)]
pub struct Attempts {
    /// A retry timer is set.
    pub retry_armed: bool,
    /// Failures in a row, for the backoff.
    pub failures: u32,
    /// Why the last job failed; cleared by the next success, and when there is nothing to retry.
    pub last_error: Option<Error>,
}

impl Attempts {
    /// Whether no job is to start before the retry timer fires.
    pub fn must_rest(&self) -> bool {
        self.retry_armed && self.last_error.is_some()
    }
}

/// What runs in the background.
#[derive(Debug, Default)]
pub struct WorkState {
    /// Flush jobs submitted and not ended.
    pub flushes: usize,
    /// Compaction jobs submitted and not ended.
    pub compactions: usize,
    /// How flushes fare.
    pub flush: Attempts,
    /// How compactions fare.
    pub compaction: Attempts,
    /// A timer is set that looks whether a full disk has room again.
    pub room_armed: bool,
    /// While set, only memtables up to this number are flushed: a checkpoint wants one cut through
    /// all trees.
    pub flush_only_up_to: Option<SeqNo>,
    /// Compaction is paused (by whoever needs the files to stand still).
    pub compaction_paused: usize,
    /// Someone waits for all compaction to be done.
    pub draining: bool,
}

/// An open database.
pub struct Core {
    /// The world outside.
    pub env: Env,
    /// Where the files are.
    pub dir: PathBuf,
    /// How it was opened.
    pub settings: Settings,
    /// Counters and the listener.
    pub observer: Arc<Observer>,
    /// Cached blocks.
    pub cache: Arc<BlockCache>,
    /// The log; `None` if open for reading only, or if another log is the database's.
    pub log: Option<Log>,
    /// What is known of the other log that the database has instead of its own.
    pub external: Option<External>,
    /// The manifest and the files it names.
    pub versions: VersionSet<TableSlot, BlobFile>,
    /// What must stay readable.
    pub snapshots: SnapshotList,
    /// The trees.
    pub trees: ArcSwap<Trees>,
    /// One at a time: creating and dropping namespaces.
    pub namespace_change: Mutex<()>,
    /// Trees of namespaces that are out of reach but, as far as a restart can know, not yet dropped:
    /// the log that they need stays. Changes under the commit lock.
    pub leaving: Mutex<Vec<Arc<Tree>>>,
    /// One at a time: checkpoints, of which two may be asked for in the same place.
    pub checkpoint: Mutex<()>,
    /// Orders writes.
    pub commit: Mutex<CommitState>,
    /// Where the memory of memtables comes from.
    pub chunks: Arc<ChunkPool>,
    /// Memory of all memtables, in bytes.
    pub memtables_bytes: AtomicUsize,
    /// What runs in the background.
    pub work: Mutex<WorkState>,
    /// Jobs in the background when `work` was last left: for writers, who must not wait for its lock.
    pub jobs: AtomicUsize,
    /// Notified when a background job ended.
    pub work_done: Condvar,
    /// Slows writers down when background work is behind.
    pub pacer: Pacer,
    /// Starts the background work that is due (`work::schedule`, which lies above); `None` if open for
    /// reading only.
    pub schedule: Option<fn(&Arc<Self>)>,
    /// Acknowledgements that wait for the log (see `commit`).
    pub acks: Acks,
    /// What the changefeed knows.
    pub feed: Feed,
    /// The log segment that was current at the last look at the log's size.
    pub log_segment: AtomicU32,
    /// A background sync of buffered writes is on its way.
    pub sync_armed: AtomicBool,
    /// Puts are refused.
    pub disk_full: AtomicBool,
    /// No call is accepted any more.
    pub closed: AtomicBool,
    /// Files that are on their way out.
    pub removals: Arc<Removals>,
    /// Tables that are open, and the clock hand that closes them (see [`Core::table`]).
    pub tables: OpenTables,
    /// Held while the directory is open for writing.
    pub lock: Mutex<Option<Box<dyn firn_io::fs::FileLock>>>,
    /// Set once the log is known to be unusable.
    pub poisoned: Mutex<Option<String>>,
    /// SSTables that were found damaged, perhaps no longer in use, and why they could not be refilled, as was told
    /// last.
    pub damaged: Mutex<BTreeMap<FileId, String>>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// Tables that are open, so that their indexes and filters stay within the budget.
#[derive(Debug, Default)]
pub struct OpenTables {
    /// Bytes of indexes and filters in memory.
    pub bytes: AtomicUsize,
    /// Those that are open, in the order in which the clock hand meets them.
    ring: Mutex<VecDeque<std::sync::Weak<TableFile>>>,
}

impl Core {
    /// The log of a database that is open for writing.
    pub fn log(&self) -> Result<&Log> {
        self.log
            .as_ref()
            .ok_or(Error::Closed(if self.external.is_some() {
                "the database is written by its replicated log only"
            } else {
                "the database is open for reading only"
            }))
    }

    /// Refuses what changes files where they are only read.
    pub fn check_writable(&self) -> Result<()> {
        match &self.external {
            Some(_) => Ok(()),
            None => self.log().map(|_| ()),
        }
    }

    /// Refuses calls after close.
    #[inline]
    pub fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed("the database is closed"));
        }
        Ok(())
    }

    /// The tree of a namespace that a caller names by handle.
    #[inline]
    pub fn check_tree(&self, tree: &Tree) -> Result<()> {
        self.check_open()?;
        if tree.is_dropped() {
            return Err(Error::NamespaceNotFound(tree.name.to_string()));
        }
        Ok(())
    }

    /// The open table behind a file. Opens it if need be, and then closes others that have not been
    /// used for long if indexes and filters exceed half of the cache.
    #[inline]
    pub fn table(&self, file: &Arc<TableFile>) -> Result<Arc<Table>> {
        if let Some(table) = file.table().and_then(TableSlot::get) {
            return Ok(table);
        }
        self.open_table(file)
    }

    #[cold]
    fn open_table(&self, file: &Arc<TableFile>) -> Result<Arc<Table>> {
        let path = names::sstable_path(&self.dir, file.meta.id);
        let handle = self.env.fs.open(&path, firn_io::fs::OpenMode::Read)?;
        let table = Arc::new(Table::open(handle, file.meta.id, Arc::clone(&self.cache))?);
        let meta = &file.meta;
        let tombstones = table.range_tombstones();
        let is = FileMeta::of_table(meta.id, table.file_bytes(), table.properties(), tombstones);
        if *meta != is {
            let detail = "it is another table than the manifest says";
            return Err(Error::corruption(path, 0, detail));
        }
        let slot = file.table_or_open(|_| Ok::<_, Error>(TableSlot::default()))?;
        let (table, fresh) = slot.install(table);
        if fresh {
            self.tables.ring.lock().push_back(Arc::downgrade(file));
            self.shrink_tables();
        }
        Ok(table)
    }

    /// Closes tables until indexes and filters take at most half of the cache (a second chance for
    /// those read since the hand last passed), and gives the block cache what they leave. Called
    /// when a table was opened and when files are gone.
    pub fn shrink_tables(&self) {
        let limit = self.settings.cache_bytes / 2;
        let mut ring = self.tables.ring.lock();
        let mut bytes = 0;
        ring.retain(|weak| {
            let table = weak
                .upgrade()
                .and_then(|file| file.table().and_then(TableSlot::peek));
            bytes += table.as_ref().map_or(0, |table| table.pinned_bytes());
            table.is_some()
        });
        let mut chances = 2 * ring.len();
        while bytes > limit && chances > 0 && ring.len() > 1 {
            chances -= 1;
            let Some(weak) = ring.pop_front() else { break };
            let Some(file) = weak.upgrade() else { continue };
            let Some(slot) = file.table() else { continue };
            if slot.take_used() {
                ring.push_back(weak);
            } else if let Some(table) = slot.close() {
                bytes -= table.pinned_bytes();
            }
        }
        drop(ring);
        self.tables.bytes.store(bytes, Ordering::Relaxed);
        let least = self.settings.cache_bytes / 4;
        let capacity = self.settings.cache_bytes.saturating_sub(bytes).max(least);
        self.cache.set_capacity(capacity as u64);
    }

    /// Takes the commit lock.
    pub fn lock_commit(&self) -> MutexGuard<'_, CommitState> {
        self.commit.lock()
    }

    /// Retires the active memtable of a tree. Under the commit lock. Returns whether there is a
    /// memtable to flush.
    ///
    /// Where another log is the database's, the memtables of all trees are retired together.
    pub fn rotate(&self, commit: &CommitState, tree: &Tree) -> Result<bool> {
        if let Some(external) = &self.external {
            return Ok(external.cut(self.trees.load().iter(), commit.last_seqno));
        }
        let end = self.log()?.appended();
        Ok(tree.rotate(commit.last_seqno, end))
    }

    /// What expired at this time, in Unix milliseconds, may be dropped from files.
    pub fn droppable_ms(&self) -> u64 {
        match &self.external {
            Some(external) => external.flushed_ms(),
            None => self.env.clock.unix_ms(),
        }
    }

    /// Recounts the memory of memtables after some were dropped.
    pub fn recount_memtables(&self) {
        let bytes = self
            .trees
            .load()
            .iter()
            .map(|tree| tree.memtable_bytes())
            .sum();
        self.memtables_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The oldest log position that any tree needs, not counting a memtable that is about to be in
    /// an SSTable.
    pub fn log_needed_from(&self, flushed: Option<&Arc<Immutable>>) -> Result<Lsn> {
        // Under the commit lock, so that no record is appended but not yet noted by its tree.
        let _no_write = self.commit.lock();
        let appended = self.log()?.appended();
        let trees = self.trees.load();
        let leaving = self.leaving.lock();
        let needed = trees
            .iter()
            .chain(leaving.iter())
            .filter_map(|tree| tree.needs_log_without(flushed));
        Ok(needed.min().unwrap_or(appended))
    }

    /// Gives up the log that nobody needs any more: recovery, nor, while the disk has room, watches.
    pub fn trim_log(&self) -> Result<()> {
        // Up to where the manifest says and not further, even if less is needed by now: the next
        // open begins there.
        let (log, Some(start)) = (self.log()?, self.versions.log_start()) else {
            return Ok(());
        };
        let bytes = if self.disk_full.load(Ordering::Acquire) {
            0
        } else {
            self.settings.given.changefeed_bytes
        };
        let limits = (bytes, self.settings.given.changefeed_age);
        let now = self.env.clock.monotonic();
        let keep = self.feed.keep_from(&log.segments(), start, limits, now);
        log.remove_before(keep.min(start))?;
        Ok(())
    }

    /// Tells writers how many jobs run. Called before the lock is left under which their number changed.
    pub fn note_jobs(&self, work: &WorkState) {
        self.jobs
            .store(work.flushes + work.compactions, Ordering::Relaxed);
    }

    /// Waits until `done` answers something. Runs queued background work itself where the executor
    /// is stepped.
    pub fn wait_for<T>(&self, mut done: impl FnMut(&mut WorkState) -> Option<T>) -> T {
        loop {
            {
                let mut work = self.work.lock();
                if let Some(result) = done(&mut work) {
                    return result;
                }
                if !self.env.exec.is_stepped() {
                    self.work_done
                        .wait_for(&mut work, Duration::from_millis(50));
                    continue;
                }
            }
            if !self.env.exec.run_one() {
                // Only timers are left: let the manual clock reach them.
                self.env.clock.sleep(Duration::from_millis(1));
            }
        }
    }

    /// Waits until the files are gone that nobody needs any more.
    pub fn wait_for_removals(&self) {
        if self.env.exec.is_stepped() {
            self.wait_for(|_| (*self.removals.running.lock() == 0).then_some(()));
            return;
        }
        let mut running = self.removals.running.lock();
        while *running > 0 {
            self.removals.done.wait(&mut running);
        }
    }

    /// Remembers that a file is damaged, if it is an SSTable; whether it is.
    pub fn note_damaged(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(FileKind::Sstable(id)) = name.and_then(names::parse) else {
            return false;
        };
        self.damaged.lock().entry(id).or_default();
        true
    }

    /// Remembers and tells that stored bytes are damaged, or of an SSTable cannot be read: whether that lasts is
    /// looked at before anything is done about it (see `refill`).
    pub fn note_error(&self, error: &Error) {
        let (path, offset, detail) = match error {
            Error::Corruption {
                path,
                offset,
                detail,
            } => {
                self.note_damaged(path);
                (path, *offset, detail.clone())
            }
            Error::Io(error) if error.is_unreadable() && self.note_damaged(&error.path) => {
                let offset = error.offset.unwrap_or(0);
                (&error.path, offset, error.source.to_string())
            }
            _ => return,
        };
        self.observer.counters.corruptions.add(1);
        self.observer.emit(Event::Corruption {
            path: path.clone(),
            offset,
            detail,
        });
    }

    /// Tells why a damaged SSTable could not be refilled, unless that was the reason before.
    pub fn note_not_refilled(&self, id: FileId, reason: &str) {
        match self.damaged.lock().get_mut(&id) {
            Some(told) if *told != reason => reason.clone_into(told),
            _ => return,
        }
        self.observer.emit(Event::TableNotRefilled {
            path: names::sstable_path(&self.dir, id),
            reason: reason.into(),
        });
    }

    /// Makes the log's failure known and returns what writers are told.
    pub fn poison(&self, error: &firn_io::Error) -> Error {
        let mut poisoned = self.poisoned.lock();
        let text = match &*poisoned {
            Some(text) => text.clone(),
            None => {
                let text = format!("the log failed: {error}");
                *poisoned = Some(text.clone());
                self.observer.emit(Event::LogPoisoned {
                    error: error.to_string(),
                });
                self.feed.wake();
                text
            }
        };
        Error::Poisoned(text)
    }

    /// A new file's number.
    pub fn next_file_id(&self) -> FileId {
        self.versions.next_file_id()
    }
}

/// The current Unix time in milliseconds, read at most once per operation and only if something
/// expires.
#[derive(Debug)]
pub struct Now<'a> {
    clock: &'a dyn firn_io::clock::Clock,
    read: std::cell::Cell<Option<u64>>,
}

impl<'a> Now<'a> {
    /// Reads the clock when first asked.
    pub fn new(env: &'a Env) -> Self {
        Self {
            clock: &*env.clock,
            read: std::cell::Cell::new(None),
        }
    }

    /// The time.
    pub fn unix_ms(&self) -> u64 {
        match self.read.get() {
            Some(now) => now,
            None => {
                let now = self.clock.unix_ms();
                self.read.set(Some(now));
                now
            }
        }
    }
}

/// Removes a file that may not be there; for clean-up after a failure, where the first error is the
/// one to report.
pub fn remove_quietly(env: &Env, path: &Path) {
    // Left behind it costs space until the next open removes it as an orphan.
    let _ = env.fs.remove_file(path);
}

/// What a job answers when the database is being closed under it.
pub fn closing() -> Error {
    Error::Closed("the database is being closed")
}
