//! What an open database knows of the log that it has in place of its own: the position, the time,
//! and the cuts that wait for their flush.
//!
//! The manifest carries, besides the position ([`Applied`]), these bytes as the applied state:
//!
//! ```text
//! time u64 (Unix milliseconds) | state of the log's owner (the rest)
//! ```

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use firn_io::Env;
use firn_io::clock::Clock;
use parking_lot::Mutex;

use crate::blob::BlobFile;
use crate::error::{Error, Result};
use crate::feed::Newest;
use crate::key::{NamespaceId, SeqNo};
use crate::tree::{Immutable, TableSlot, Tree};
use crate::version::edit::Applied;
use crate::version::set::VersionSet;

/// The log that a database has in place of its own.
pub trait ExternalLog: Send + Sync + std::fmt::Debug {
    /// Returns when the entries up to `index` are durable on this disk. Called from the background;
    /// may sync.
    fn sync_to(&self, index: u64) -> firn_io::Result<()>;
    /// The files hold the state after `applied`, durably: no entry up to it will be asked for again
    /// after a restart. Called from the background; must not block.
    fn flushed(&self, applied: Applied);
}

/// The time that entries tell, in place of the wall clock; other times are the real ones.
#[derive(Debug)]
pub struct LogClock {
    inner: Arc<dyn Clock>,
    unix_ms: AtomicU64,
}

impl LogClock {
    /// A clock that says `unix_ms` until an entry tells a later time.
    pub fn new(inner: Arc<dyn Clock>, unix_ms: u64) -> Self {
        Self {
            inner,
            unix_ms: AtomicU64::new(unix_ms),
        }
    }

    /// The time of an entry: it never runs back.
    pub fn advance(&self, unix_ms: u64) -> u64 {
        let before = self.unix_ms.fetch_max(unix_ms, Ordering::AcqRel);
        before.max(unix_ms)
    }
}

impl Clock for LogClock {
    fn unix_ms(&self) -> u64 {
        self.unix_ms.load(Ordering::Acquire)
    }

    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }

    fn sleep(&self, duration: Duration) {
        self.inner.sleep(duration);
    }
}

/// The applied state as the manifest has it, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// The greatest time of any entry, in Unix milliseconds.
    pub time_ms: u64,
    /// What the log's owner wants to know.
    pub owner: Arc<[u8]>,
}

impl AppliedState {
    /// The bytes for the manifest.
    pub fn encode(&self) -> Arc<[u8]> {
        [&self.time_ms.to_le_bytes()[..], &self.owner]
            .concat()
            .into()
    }

    /// Takes the bytes of the manifest apart; `None` if they are too short.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (time, owner) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            time_ms: u64::from_le_bytes(*time),
            owner: owner.into(),
        })
    }
}

/// The whole database between two entries, retired to be flushed.
#[derive(Debug)]
pub struct Cut {
    /// The last entry in it.
    pub applied: Applied,
    /// As of that entry.
    pub state: AppliedState,
    /// The newest operation in it.
    pub last_seqno: SeqNo,
    /// What was retired, tree by tree.
    pub memtables: Vec<(Arc<Tree>, Arc<Immutable>)>,
    /// Namespaces that came since the cut before.
    pub created: Vec<(NamespaceId, String)>,
    /// Namespaces that went.
    pub dropped: Vec<NamespaceId>,
    /// The number of the next namespace.
    pub next_namespace: NamespaceId,
}

#[derive(Debug)]
struct Inner {
    applied: Option<Applied>,
    state: AppliedState,
    next_namespace: NamespaceId,
    created: Vec<(NamespaceId, String)>,
    dropped: Vec<NamespaceId>,
    /// The last entry in any cut, or in the files if there is none.
    cut_at: Option<Applied>,
    /// Oldest first.
    cuts: VecDeque<Arc<Cut>>,
    flushing: bool,
    /// While set, no later cut than this is flushed: a checkpoint wants to see this one.
    gate: Option<Applied>,
}

/// See the module's page.
#[derive(Debug)]
pub struct External {
    /// The other log.
    pub log: Arc<dyn ExternalLog>,
    /// Time as entries tell it: the database's clock.
    pub clock: Arc<LogClock>,
    inner: Mutex<Inner>,
    /// The newest batches, for watches.
    pub history: Mutex<Newest>,
    /// The time of the last cut that is durable.
    flushed_ms: AtomicU64,
    /// There may be values that expire.
    may_expire: AtomicBool,
    /// An entry was applied in part: what is in memory is the state after no entry.
    has_failed: AtomicBool,
}

impl External {
    /// Begins at the position that the manifest has, and puts the log's time in place of the wall
    /// clock. Errors: the manifest has a position without what belongs to it; the database was
    /// repaired and is not what the log's other copies have.
    pub fn open(
        log: Arc<dyn ExternalLog>,
        env: &mut Env,
        dir: &Path,
        versions: &VersionSet<TableSlot, BlobFile>,
    ) -> Result<Self> {
        let applied = versions.applied();
        let stored = versions.applied_state();
        let state = stored.as_deref().map(AppliedState::decode);
        let state = match (applied, state) {
            (None, None) => AppliedState::default(),
            (Some(_), Some(Some(state))) => state,
            _ => {
                let detail = "the manifest has the position in the replicated log only in part: \
                              was it repaired? It cannot join its cluster again as it is";
                return Err(Error::corruption(dir, 0, detail));
            }
        };
        let clock = Arc::new(LogClock::new(Arc::clone(&env.clock), state.time_ms));
        env.clock = Arc::clone(&clock) as Arc<dyn Clock>;
        let flushed_ms = AtomicU64::new(state.time_ms);
        Ok(Self {
            log,
            clock,
            inner: Mutex::new(Inner {
                applied,
                state,
                next_namespace: versions.next_namespace(),
                created: Vec::new(),
                dropped: Vec::new(),
                cut_at: applied,
                cuts: VecDeque::new(),
                flushing: false,
                gate: None,
            }),
            history: Mutex::new(Newest::new(SeqNo(versions.last_seqno().0 + 1))),
            flushed_ms,
            // What the files have, nobody looked at.
            may_expire: AtomicBool::new(applied.is_some()),
            has_failed: AtomicBool::new(false),
        })
    }

    /// Notes that a value was written that expires.
    pub fn note_expiring(&self) {
        self.may_expire.store(true, Ordering::Relaxed);
    }

    /// Whether there may be values that expire.
    pub fn may_expire(&self) -> bool {
        self.may_expire.load(Ordering::Relaxed)
    }

    /// An entry could not be applied as a whole: nothing that is in memory only gets into the files any
    /// more. After the next opening the entry is applied again, to the state before it.
    pub fn fail(&self) {
        self.has_failed.store(true, Ordering::Release);
    }

    /// Refuses where an entry was applied in part.
    pub fn check_whole(&self) -> Result<()> {
        if self.has_failed.load(Ordering::Acquire) {
            let detail = "an entry was applied in part: open the database again";
            return Err(Error::Closed(detail));
        }
        Ok(())
    }

    /// The last entry that was applied, and what the log's owner wants to know as of it.
    pub fn applied(&self) -> (Option<Applied>, Arc<[u8]>) {
        let inner = self.inner.lock();
        (inner.applied, Arc::clone(&inner.state.owner))
    }

    /// Notes that an entry was applied. Under the commit lock.
    pub fn set_applied(&self, applied: Applied, time_ms: u64, owner: Option<Arc<[u8]>>) {
        let mut inner = self.inner.lock();
        inner.applied = Some(applied);
        inner.state.time_ms = time_ms;
        if let Some(owner) = owner {
            inner.state.owner = owner;
        }
    }

    /// A number for a new namespace, which is noted for the next cut. Under the commit lock.
    pub fn create_namespace(&self, name: &str) -> NamespaceId {
        let mut inner = self.inner.lock();
        let id = inner.next_namespace;
        inner.next_namespace = NamespaceId(id.0.saturating_add(1));
        inner.created.push((id, name.to_owned()));
        id
    }

    /// Notes for the next cut that a namespace is gone. Under the commit lock.
    pub fn drop_namespace(&self, id: NamespaceId) {
        let mut inner = self.inner.lock();
        let before = inner.created.len();
        inner.created.retain(|created| created.0 != id);
        if inner.created.len() == before {
            inner.dropped.push(id);
        }
    }

    /// Retires all memtables as one cut, unless nothing was applied since the last one. Returns
    /// whether there is a new cut. Under the commit lock, and between two entries: where one was applied
    /// in part there is none.
    pub fn cut<'a>(&self, trees: impl Iterator<Item = &'a Arc<Tree>>, last_seqno: SeqNo) -> bool {
        use firn_io::wal::Lsn;
        if self.check_whole().is_err() {
            return false;
        }
        let mut inner = self.inner.lock();
        let Some(applied) = inner.applied.filter(|_| inner.applied != inner.cut_at) else {
            return false;
        };
        let retired = |tree: &Arc<Tree>| {
            // Positions in a log mean nothing here.
            if !tree.rotate(last_seqno, Lsn::ZERO) {
                return None;
            }
            let newest = tree.state().immutables.first().cloned()?;
            Some((Arc::clone(tree), newest))
        };
        let cut = Cut {
            applied,
            state: inner.state.clone(),
            last_seqno,
            memtables: trees.filter_map(retired).collect(),
            created: std::mem::take(&mut inner.created),
            dropped: std::mem::take(&mut inner.dropped),
            next_namespace: inner.next_namespace,
        };
        inner.cut_at = Some(applied);
        inner.cuts.push_back(Arc::new(cut));
        true
    }

    /// Takes the right to flush, if a cut waits, may be flushed and nobody else is at it.
    pub fn begin_flush(&self) -> bool {
        let mut inner = self.inner.lock();
        let begins = !inner.flushing && inner.due().is_some();
        inner.flushing |= begins;
        begins
    }

    /// Gives it back.
    pub fn end_flush(&self) {
        self.inner.lock().flushing = false;
    }

    /// Whether a cut waits that may be flushed.
    pub fn has_due(&self) -> bool {
        self.inner.lock().due().is_some()
    }

    /// How many cuts wait.
    pub fn waiting(&self) -> usize {
        self.inner.lock().cuts.len()
    }

    /// The oldest cut that may be flushed.
    pub fn due(&self) -> Option<Arc<Cut>> {
        self.inner.lock().due()
    }

    /// The oldest cut is in the files.
    pub fn finish_cut(&self, cut: &Arc<Cut>) {
        self.flushed_ms
            .fetch_max(cut.state.time_ms, Ordering::AcqRel);
        let mut inner = self.inner.lock();
        if inner
            .cuts
            .front()
            .is_some_and(|front| Arc::ptr_eq(front, cut))
        {
            inner.cuts.pop_front();
        }
    }

    /// What expired at this time, no entry will ask for again.
    pub fn flushed_ms(&self) -> u64 {
        self.flushed_ms.load(Ordering::Acquire)
    }

    /// From now on only the cuts that exist are flushed.
    pub fn close_gate(&self) {
        let mut inner = self.inner.lock();
        inner.gate = inner.cut_at;
    }

    /// The end of that.
    pub fn lift_gate(&self) {
        self.inner.lock().gate = None;
    }
}

impl Inner {
    fn due(&self) -> Option<Arc<Cut>> {
        let front = self.cuts.front()?;
        let is_due = self.gate.is_none_or(|gate| front.applied <= gate);
        is_due.then(|| Arc::clone(front))
    }
}
