//! One tree: the memtables and levels of one namespace, and how readers get hold of them.
//!
//! Readers load [`TreeState`], an immutable picture, without a lock and read from it as long as they
//! like; whoever changes the tree (rotation of the memtable, end of a flush, end of a compaction)
//! builds a new picture and swaps it in under [`Tree::update`].
//!
//! **Invariants.** Only the holder of the commit lock inserts into `active` or rotates it. For every
//! key, everything in `active` is newer than everything in `immutables`, which are ordered newest
//! first and are all newer than L0, and so on down the levels.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use firn_io::wal::Lsn;
use parking_lot::Mutex;

use crate::blob::BlobFile;
use crate::key::{NamespaceId, SeqNo};
use crate::memtable::{ChunkPool, Memtable};
use crate::read_debt::ReadDebt;
use crate::sstable::Table;
use crate::version::{LevelFile, Version};

/// The levels of a tree, with what reads the files behind them.
pub type Levels = Version<TableSlot, BlobFile>;

/// An SSTable in a level.
pub type TableFile = LevelFile<TableSlot>;

/// The open table behind a file, if it is open. Tables that have not been read for long are closed
/// so that indexes and filters stay within the memory budget.
#[derive(Debug, Default)]
pub struct TableSlot {
    table: ArcSwapOption<Table>,
    /// It was read since the clock hand last passed.
    used: AtomicBool,
}

impl TableSlot {
    /// The table, if it is open.
    #[inline]
    pub fn get(&self) -> Option<Arc<Table>> {
        arc_swap::Guard::into_inner(self.borrow())
    }

    /// The table, if it is open, cheaply and for a short time.
    #[inline]
    pub fn borrow(&self) -> arc_swap::Guard<Option<Arc<Table>>> {
        self.note_use();
        self.borrow_unnoted()
    }

    /// The same for one who may not read it after all, and does [`note_use`](Self::note_use) if so.
    #[inline]
    pub fn borrow_unnoted(&self) -> arc_swap::Guard<Option<Arc<Table>>> {
        self.table.load()
    }

    /// Notes that it is read.
    #[inline]
    pub fn note_use(&self) {
        // Written only when it changes: readers on all cores share this line.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// The same, without counting as a read.
    pub fn peek(&self) -> Option<Arc<Table>> {
        self.table.load_full()
    }

    /// Puts an open table in, unless another thread was first; returns the one that is in, and
    /// whether it is the given one.
    pub fn install(&self, table: Arc<Table>) -> (Arc<Table>, bool) {
        let none: Option<Arc<Table>> = None;
        let before = self.table.compare_and_swap(&none, Some(Arc::clone(&table)));
        self.used.store(true, Ordering::Relaxed);
        match &*before {
            Some(other) => (Arc::clone(other), false),
            None => (table, true),
        }
    }

    /// Whether it was read since this was last asked.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Takes the table out. Who reads it still has it.
    pub fn close(&self) -> Option<Arc<Table>> {
        self.table.swap(None)
    }
}

/// A memtable that takes no more writes and waits for its flush.
#[derive(Debug)]
pub struct Immutable {
    /// The memtable.
    pub memtable: Arc<Memtable>,
    /// Every operation of its tree up to here is in it or in something older.
    pub last_seqno: SeqNo,
    /// Where the oldest log record that it needs starts.
    pub first_lsn: Lsn,
    /// The log must be durable up to here before it may be flushed, if it has other trees' records: an
    /// SSTable must never hold half of a batch whose other half, in another tree, is lost with the log.
    pub end_lsn: Lsn,
}

/// What a reader sees of a tree.
#[derive(Clone, Debug)]
pub struct TreeState {
    /// Takes the writes.
    pub active: Arc<Memtable>,
    /// Wait for their flush, newest first.
    pub immutables: Vec<Arc<Immutable>>,
    /// The SSTables and blob files.
    pub levels: Arc<Levels>,
}

/// No log record is needed by an empty memtable.
const NO_LSN: u64 = u64::MAX;

/// The tree of one namespace.
pub struct Tree {
    /// The namespace's number.
    pub id: NamespaceId,
    /// Its name.
    pub name: Arc<str>,
    state: ArcSwap<TreeState>,
    change: Mutex<()>,
    /// Where the first record in the active memtable starts. Written under the commit lock.
    active_first_lsn: AtomicU64,
    /// Set when the namespace is dropped; handles to it then answer that it does not exist.
    dropped: AtomicBool,
    /// A flush of this tree is running: they go one at a time, oldest first.
    pub flushing: AtomicBool,
    /// What reads have lost to its shape.
    pub read_debt: ReadDebt,
    chunks: Arc<ChunkPool>,
}

impl Tree {
    /// A tree with these levels and an empty memtable, whose memory comes from `chunks`.
    pub fn new(
        id: NamespaceId,
        name: Arc<str>,
        levels: Arc<Levels>,
        chunks: Arc<ChunkPool>,
    ) -> Self {
        let active = Arc::new(Memtable::in_pool(&chunks));
        Self {
            id,
            name,
            state: ArcSwap::from_pointee(TreeState {
                active,
                immutables: Vec::new(),
                levels,
            }),
            change: Mutex::new(()),
            active_first_lsn: AtomicU64::new(NO_LSN),
            dropped: AtomicBool::new(false),
            flushing: AtomicBool::new(false),
            read_debt: ReadDebt::default(),
            chunks,
        }
    }

    /// The present picture, cheaply, for the length of one operation.
    #[inline]
    pub fn state(&self) -> arc_swap::Guard<Arc<TreeState>> {
        self.state.load()
    }

    /// The present picture, to keep.
    pub fn pin_state(&self) -> Arc<TreeState> {
        self.state.load_full()
    }

    /// Swaps in a new picture made from the present one.
    pub fn update(&self, change: impl FnOnce(&mut TreeState)) {
        let _one_at_a_time = self.change.lock();
        let mut state = TreeState::clone(&self.state.load());
        change(&mut state);
        self.state.store(Arc::new(state));
    }

    /// Notes that a record starting at `lsn` went into the active memtable. Under the commit lock.
    pub fn note_record(&self, lsn: Lsn) {
        if self.active_first_lsn.load(Ordering::Relaxed) == NO_LSN {
            self.active_first_lsn.store(lsn.0, Ordering::Relaxed);
        }
    }

    /// Retires the active memtable, unless it is empty; returns whether it did. Under the commit
    /// lock; `last_seqno` and `end_lsn` are the newest assigned.
    pub fn rotate(&self, last_seqno: SeqNo, end_lsn: Lsn) -> bool {
        let first_lsn = self.active_first_lsn.load(Ordering::Relaxed);
        if first_lsn == NO_LSN {
            return false;
        }
        self.update(|state| {
            let memtable =
                std::mem::replace(&mut state.active, Arc::new(Memtable::in_pool(&self.chunks)));
            let retired = Immutable {
                memtable,
                last_seqno,
                first_lsn: Lsn(first_lsn),
                end_lsn,
            };
            state.immutables.insert(0, Arc::new(retired));
            // Inside of the swap: whoever asks what log is needed must find it here or there.
            self.active_first_lsn.store(NO_LSN, Ordering::Relaxed);
        });
        true
    }

    /// The oldest log position that this tree needs for recovery; `None` if it needs none.
    pub fn needs_log_from(&self) -> Option<Lsn> {
        self.needs_log_without(None)
    }

    /// The same, not counting one of the immutable memtables.
    pub fn needs_log_without(&self, flushed: Option<&Arc<Immutable>>) -> Option<Lsn> {
        let _no_rotation = self.change.lock();
        let counts = |i: &&Arc<Immutable>| flushed.is_none_or(|flushed| !Arc::ptr_eq(i, flushed));
        let state = self.state.load();
        let oldest = state
            .immutables
            .iter()
            .rev()
            .find(counts)
            .map(|i| i.first_lsn);
        let active = self.active_first_lsn.load(Ordering::Relaxed);
        oldest.or((active != NO_LSN).then_some(Lsn(active)))
    }

    /// Memory of all memtables, in bytes.
    pub fn memtable_bytes(&self) -> usize {
        let state = self.state.load();
        let waiting: usize = state
            .immutables
            .iter()
            .map(|i| i.memtable.memory_bytes())
            .sum();
        state.active.memory_bytes() + waiting
    }

    /// Whether the namespace is gone.
    pub fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// Marks the namespace as gone.
    pub fn set_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
