//! What the engine tells the world: typed events as they happen, and counters to be read at any
//! time. The engine writes no log; the server turns these into log lines and metrics.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::key::{NamespaceId, SeqNo};

/// Is told of every [`Event`], on the thread where it happens: it must be quick and must not call
/// back into the database.
pub trait EventListener: Send + Sync {
    /// Something happened.
    fn on_event(&self, event: &Event);
}

/// Something an operator may want to know. [`fmt::Display`] gives one line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The database is open.
    RecoveryEnd {
        /// Log records replayed.
        records: u64,
        /// Log bytes replayed.
        log_bytes: u64,
        /// Bytes of unacknowledged, torn log tail that were cut.
        torn_bytes: u64,
        /// How long opening took.
        micros: u64,
    },
    /// A memtable is about to be written to L0.
    FlushBegin {
        /// Whose.
        namespace: NamespaceId,
        /// Its memory.
        memtable_bytes: u64,
    },
    /// A memtable was written to L0.
    FlushEnd {
        /// Whose.
        namespace: NamespaceId,
        /// Bytes of SSTable and blob file.
        bytes: u64,
        /// How long it took.
        micros: u64,
    },
    /// A compaction starts.
    CompactionBegin {
        /// Whose.
        namespace: NamespaceId,
        /// From which level.
        level: usize,
        /// To which level.
        output_level: usize,
        /// Bytes of its inputs.
        input_bytes: u64,
        /// Why it was chosen.
        reason: &'static str,
    },
    /// A compaction ended.
    CompactionEnd {
        /// Whose.
        namespace: NamespaceId,
        /// To which level.
        output_level: usize,
        /// Bytes read.
        read_bytes: u64,
        /// Bytes written.
        write_bytes: u64,
        /// Entries that no reader needed any more.
        dropped_entries: u64,
        /// How long it took.
        micros: u64,
    },
    /// Background work failed and will be tried again.
    BackgroundError {
        /// What failed: "flush", "compaction"...
        task: &'static str,
        /// Why.
        error: String,
        /// When it is tried again.
        retry_ms: u64,
    },
    /// The disk is full: writes are refused, deletes are not.
    DiskFull {
        /// What could not be written.
        detail: String,
    },
    /// There is room again: writes are accepted.
    DiskRecovered,
    /// Writers wait because background work is behind.
    StallBegin {
        /// Behind in what.
        reason: &'static str,
    },
    /// Writers go on.
    StallEnd {
        /// How long they waited.
        micros: u64,
    },
    /// The log cannot be written any more: all writes are refused from here on.
    LogPoisoned {
        /// Why.
        error: String,
    },
    /// Damaged bytes were read, or those of an SSTable could not be.
    Corruption {
        /// From this file.
        path: PathBuf,
        /// At this offset.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// A damaged SSTable could not be made whole. It is tried again; that is told when the reason is another one.
    TableNotRefilled {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A damaged SSTable was made whole by another copy of the database.
    TableRefilled {
        /// The damaged one.
        path: PathBuf,
        /// So many entries came from the copy.
        entries: u64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RecoveryEnd {
                records,
                log_bytes,
                torn_bytes,
                micros,
            } => write!(
                f,
                "opened in {micros} us: {records} log records ({log_bytes} bytes) replayed, \
                 {torn_bytes} torn bytes cut"
            ),
            Self::FlushBegin {
                namespace,
                memtable_bytes,
            } => {
                write!(
                    f,
                    "flush of namespace {}: {memtable_bytes} bytes of memtable",
                    namespace.0
                )
            }
            Self::FlushEnd {
                namespace,
                bytes,
                micros,
            } => {
                write!(
                    f,
                    "flush of namespace {} wrote {bytes} bytes in {micros} us",
                    namespace.0
                )
            }
            Self::CompactionBegin {
                namespace,
                level,
                output_level,
                input_bytes,
                reason,
            } => write!(
                f,
                "compaction of namespace {} from level {level} to {output_level}: {input_bytes} \
                 bytes ({reason})",
                namespace.0
            ),
            Self::CompactionEnd {
                namespace,
                output_level,
                read_bytes,
                write_bytes,
                dropped_entries,
                micros,
            } => write!(
                f,
                "compaction of namespace {} to level {output_level}: read {read_bytes}, wrote \
                 {write_bytes} bytes, dropped {dropped_entries} entries in {micros} us",
                namespace.0
            ),
            Self::BackgroundError {
                task,
                error,
                retry_ms,
            } => {
                write!(f, "{task} failed, next try in {retry_ms} ms: {error}")
            }
            Self::DiskFull { detail } => {
                write!(
                    f,
                    "disk full, writes are refused until there is room: {detail}"
                )
            }
            Self::DiskRecovered => f.write_str("disk has room again, writes are accepted"),
            Self::StallBegin { reason } => write!(f, "writers wait: {reason}"),
            Self::StallEnd { micros } => write!(f, "writers go on after {micros} us"),
            Self::LogPoisoned { error } => {
                write!(
                    f,
                    "the log failed, writes are refused until restart: {error}"
                )
            }
            Self::Corruption {
                path,
                offset,
                detail,
            } => {
                write!(
                    f,
                    "corruption in {} at offset {offset}: {detail}",
                    path.display()
                )
            }
            Self::TableNotRefilled { path, reason } => {
                let path = path.display();
                write!(
                    f,
                    "{path} is damaged and could not be replaced yet: {reason}"
                )
            }
            Self::TableRefilled { path, entries } => {
                let path = path.display();
                write!(
                    f,
                    "{path} was damaged and is replaced, with {entries} entries from another node"
                )
            }
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts since the database was opened; they only grow.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
            /// Point reads.
            pub reads: u64,
            /// Those that found a value.
            pub read_hits: u64,
            /// Scans begun.
            pub scans: u64,
            /// Entries they returned.
            pub scan_entries: u64,
        }

        /// The live counters behind [`Counters`].
        #[derive(Debug, Default)]
        pub struct LiveCounters {
            $($(#[$doc])* pub $name: Counter,)*
            /// Those of reads.
            pub reading: ReadCounters,
        }

        impl LiveCounters {
            /// The counts now. Each is exact; together they are not one instant.
            pub fn read(&self) -> Counters {
                let reading = self.reading.get();
                Counters {
                    $($name: self.$name.get(),)*
                    reads: reading[0],
                    read_hits: reading[1],
                    scans: reading[2],
                    scan_entries: reading[3],
                }
            }
        }

        impl Counters {
            /// Every counter by name, for whoever prints them all.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![
                    $((stringify!($name), self.$name),)*
                    ("reads", self.reads),
                    ("read_hits", self.read_hits),
                    ("scans", self.scans),
                    ("scan_entries", self.scan_entries),
                ]
            }
        }
    };
}

counters! {
    /// Batches written.
    writes,
    /// Operations in them.
    write_ops,
    /// Bytes of them, encoded.
    write_bytes,
    /// Bytes appended to the log, with framing.
    log_bytes,
    /// Times the log was synced.
    log_syncs,
    /// Microseconds spent in it.
    log_sync_micros,
    /// Longest sync, in microseconds.
    log_sync_max_micros,
    /// Blocks read from disk.
    block_reads,
    /// Bytes of them.
    block_read_bytes,
    /// Blocks found in the cache.
    cache_hits,
    /// Blocks not found in the cache.
    cache_misses,
    /// Filters asked.
    filter_checks,
    /// Filters that ruled a table out.
    filter_negatives,
    /// Filters that let a read pass in vain.
    filter_false_positives,
    /// Memtables flushed.
    flushes,
    /// Bytes written by flushes.
    flush_bytes,
    /// Compactions done, moves not counted.
    compactions,
    /// Bytes they read.
    compaction_read_bytes,
    /// Bytes they wrote.
    compaction_write_bytes,
    /// Entries they dropped.
    compaction_dropped_entries,
    /// SSTables moved to the next level without being rewritten.
    trivial_moves,
    /// Compactions and flushes that failed and were repeated.
    background_failures,
    /// Times a writer was delayed.
    write_stalls,
    /// Microseconds of delay.
    write_stall_micros,
    /// Bytes of values written to blob files.
    blob_bytes_written,
    /// Of these, moved out of old blob files.
    blob_bytes_relocated,
    /// Expired entries dropped by compaction.
    expired_dropped,
    /// Damaged blocks, records or files met, and SSTables that the disk could not read.
    corruptions,
    /// Damaged SSTables that were made whole by another copy of the database.
    tables_refilled,
    /// Batches that watches were given, counted for each watch.
    watch_batches,
    /// Changes in them.
    watch_events,
    /// Log records that were read for watches.
    watch_records,
    /// Watches that ended because the log they wanted is gone.
    watch_too_old,
}

/// A count that many threads add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Raises it to `n` if it is lower.
    pub fn raise(&self, n: u64) {
        self.0.fetch_max(n, Ordering::Relaxed);
    }

    /// The count now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of reads, which many threads raise millions of times a second: each thread has a cache line
/// that few others share.
#[derive(Debug, Default)]
pub struct ReadCounters([ReadStripe; READ_STRIPES]);

/// So many lines are shared by all threads.
const READ_STRIPES: usize = 16;

/// One line: reads, those that found a value, scans, entries they returned.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ReadStripe([AtomicU64; 4]);

thread_local! {
    /// The stripe of this thread.
    static STRIPE: usize = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % READ_STRIPES
    };
}

impl ReadCounters {
    /// Adds to a counter of this thread's line, and returns how much it was before.
    #[inline]
    fn add(&self, which: usize, n: u64) -> u64 {
        // While a thread ends it has none of its own.
        let stripe = STRIPE.try_with(|stripe| *stripe).unwrap_or(0);
        self.0[stripe].0[which].fetch_add(n, Ordering::Relaxed)
    }

    /// Counts a point read; returns how many this thread's line had before.
    #[inline]
    pub fn read(&self) -> u64 {
        self.add(0, 1)
    }

    /// Counts several point reads, of which `hits` found a value.
    #[inline]
    pub fn reads(&self, reads: u64, hits: u64) {
        self.add(0, reads);
        self.add(1, hits);
    }

    /// Counts a read that found a value.
    #[inline]
    pub fn hit(&self) {
        self.add(1, 1);
    }

    /// Counts a scan; returns how many this thread's line had before.
    #[inline]
    pub fn scan(&self) -> u64 {
        self.add(2, 1)
    }

    /// Counts entries that scans returned.
    #[inline]
    pub fn entries(&self, n: u64) {
        self.add(3, n);
    }

    /// The sums, in the order of a line.
    fn get(&self) -> [u64; 4] {
        let sum = |which: usize| {
            let lines = self.0.iter().map(|line| &line.0[which]);
            lines.map(|count| count.load(Ordering::Relaxed)).sum()
        };
        [sum(0), sum(1), sum(2), sum(3)]
    }
}

/// Where the memory budget goes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// The whole budget.
    pub budget: u64,
    /// Memtables, active and waiting for their flush.
    pub memtables: u64,
    /// Cached blocks.
    pub block_cache: u64,
    /// Indexes and filters of open SSTables.
    pub tables: u64,
}

/// The log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Segments in use.
    pub segments: u64,
    /// Bytes of their files, with those kept for reuse.
    pub disk_bytes: u64,
    /// Bytes appended but not yet synced.
    pub unsynced_bytes: u64,
}

/// The changefeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchStats {
    /// Open watches.
    pub watches: u64,
    /// How many versions the slowest of them is behind the newest operation.
    pub lag: u64,
    /// Bytes of log that is kept for watches only.
    pub kept_bytes: u64,
    /// Bytes of records that are kept in memory.
    pub memory_bytes: u64,
}

/// One level, over all namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LevelStats {
    /// Its number.
    pub level: usize,
    /// SSTables in it.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// One namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceStats {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Keys, estimated: entries less twice the tombstones.
    pub approximate_keys: u64,
    /// Bytes of SSTables and blob files.
    pub disk_bytes: u64,
    /// Bytes of memtables.
    pub memtable_bytes: u64,
}

/// Everything that can be measured about a database now.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// What has happened since it was opened.
    pub counters: Counters,
    /// Where the memory is.
    pub memory: MemoryStats,
    /// The log.
    pub log: LogStats,
    /// The changefeed.
    pub watch: WatchStats,
    /// The levels.
    pub levels: Vec<LevelStats>,
    /// The namespaces.
    pub namespaces: Vec<NamespaceStats>,
    /// Blob files.
    pub blob_files: u64,
    /// Bytes of values in them.
    pub blob_bytes: u64,
    /// Of these, no longer referred to.
    pub blob_garbage_bytes: u64,
    /// Bytes of SSTables and blob files.
    pub disk_bytes: u64,
    /// Open snapshots.
    pub snapshots: u64,
    /// What the oldest of them sees; the newest operation if there is none.
    pub oldest_snapshot: SeqNo,
    /// The newest operation that readers see.
    pub last_seqno: SeqNo,
    /// Bytes that compaction is behind.
    pub compaction_debt_bytes: u64,
    /// Whether writes are refused because the disk is full.
    pub disk_full: bool,
    /// Why writes are refused for good, if they are.
    pub poisoned: Option<String>,
    /// Why the last background work failed, if it did and has not succeeded since.
    pub background_error: Option<String>,
}

/// Counters and the listener, shared by everything in a database.
#[derive(Default)]
pub struct Observer {
    /// The counters.
    pub counters: LiveCounters,
    listener: parking_lot::RwLock<Option<Arc<dyn EventListener>>>,
}

impl Observer {
    /// Replaces the listener.
    pub fn set_listener(&self, listener: Arc<dyn EventListener>) {
        *self.listener.write() = Some(listener);
    }

    /// Tells the listener, if there is one.
    pub fn emit(&self, event: Event) {
        let listener = self.listener.read().clone();
        if let Some(listener) = listener {
            listener.on_event(&event);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
