//! The replicated log on disk. It is the only log that a node writes: the engine's own is off.
//!
//! It lies on [`firn_io::wal`], which frames, checksums, preallocates, recycles and group-commits;
//! what is a torn tail and what is damage is decided there. Records are:
//!
//! ```text
//! kind 16  entry     as `types` has it
//! kind 17  state     version u8 (1) | group u32 | node varint
//!                    | vote, committed, purged: each optional
//! kind 18  truncate  version u8 (1) | group u32 | optional varint: the last index that stays
//! ```
//!
//! *State* says everything that is not an entry; the last one counts. *Committed* is a mark that
//! rides in front of the next entries and is never synced for its own sake. *Purged* is the last
//! entry that is no longer needed. Nothing is ever overwritten: a follower whose tail is not its
//! leader's appends a truncate record, and then the leader's entries.
//!
//! # What is durable when
//!
//! Votes and entries go into one log through one lock, so what is durable is always a prefix of what
//! was done: no entry is ever durable before the vote that allowed it. [`LogStore::append`] and
//! [`LogStore::save_vote`] return when the bytes are in the log, readable but not durable; their
//! callbacks run when a sync has covered them. One sync runs at a time, in the background, and each
//! takes all that came while the one before it ran: one write and at most one sync a group.
//!
//! # Purge
//!
//! 1. The state record with the new mark is appended, and what is purged forgotten.
//! 2. It is synced.
//! 3. Segments that lie wholly before the oldest entry that is left are given up.
//!
//! A crash between 1 and 2 leaves the old mark and all segments, between 2 and 3 the new mark and
//! segments that go with the next purge. The vote and the marks are in the record of 1, so giving
//! up the segments that had them before loses nothing.
//!
//! # Recovery
//!
//! [`LogStore::open`] reads all segments that are left. It refuses a log that is damaged anywhere but
//! in its torn tail, has a gap, belongs to another node or to another group, or ends before what the
//! state machine has in its files: such a node must not vote. It comes back under a new number. A
//! record that turns out to be damaged while the log is in use is made known to that recovery by a
//! marker behind it: without one, damage to the last record would look like a torn tail.
//!
//! # Memory
//!
//! 24 bytes for each entry that is not purged, and the newest entries whole, up to
//! [`LogStoreOptions::cache_bytes`]; older ones are read from the disk.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use firn_io::Env;
use firn_io::codec::{Reader, put_u8, put_u32, put_varint_u64};
use firn_io::exec::Priority;
use firn_io::wal::{self, Log, LogOptions, Lookup, Lsn, starts_of};
use parking_lot::Mutex;

use crate::codec::{decode_all, get_option, put_option};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use crate::types::{ENTRY_HEADER_BYTES, Entry, GROUP, LogId, NodeId, Payload, Vote};

/// Segments that are given up together are reused one after the other: so many are kept for that.
const SPARE_SEGMENTS: usize = 4;

/// Kinds of records. **Stored on disk: never change these values.**
const RECORD_ENTRY: u8 = 16;
const RECORD_STATE: u8 = 17;
const RECORD_TRUNCATE: u8 = 18;

const RECORD_VERSION: u8 = 1;

/// Entries up to this many bytes go into the log at once.
const APPEND_BYTES: u64 = 64 << 20;

/// Commands up to this size are kept as copies: larger ones fill most of what they were received in.
const COPIED_BYTES: usize = 32 << 10;

/// Runs when what it was given with is durable, or will never be.
pub type Flushed = Box<dyn FnOnce(std::io::Result<()>) + Send>;

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct LogStoreOptions {
    /// Bytes of a segment; the first ones are smaller.
    pub segment_bytes: u64,
    /// Whether segments are written through a mapping.
    pub mapped: bool,
    /// Bytes of the newest entries that stay in memory.
    pub cache_bytes: usize,
}

impl Default for LogStoreOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            mapped: true,
            cache_bytes: 64 << 20,
        }
    }
}

/// Where an entry is.
#[derive(Clone, Copy, Debug)]
struct Slot {
    term: u64,
    lsn: Lsn,
    /// Bytes of its record.
    len: u32,
}

/// What is known of the log without reading it.
#[derive(Debug, Default)]
struct Index {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Of the first slot, if there is one.
    first: u64,
    slots: VecDeque<Slot>,
    /// The last ones of the log.
    cache: VecDeque<Entry>,
    cached_bytes: usize,
    cache_bytes: usize,
}

fn memory_of(entry: &Entry) -> usize {
    let body = match &entry.payload {
        Payload::Command(bytes) => bytes.len(),
        Payload::Blank | Payload::Membership(_) => 0,
    };
    body + 64
}

impl Index {
    /// The index of the next entry; `None` if any will do, because there was none ever.
    fn next(&self) -> Option<u64> {
        match self.slots.len() {
            0 => self.purged.map(|id| id.index + 1),
            len => Some(self.first + len as u64),
        }
    }

    fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(LogId {
                term: slot.term,
                index: self.first + self.slots.len() as u64 - 1,
            }),
            None => self.purged,
        }
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        let at = index.checked_sub(self.first)?;
        self.slots.get(usize::try_from(at).ok()?)
    }

    fn push(&mut self, mut entry: Entry, lsn: Lsn, len: u32) {
        if let Payload::Command(bytes) = &mut entry.payload
            && bytes.len() < COPIED_BYTES
        {
            // It may be a small part of what was received at once, all of which it would keep.
            *bytes = Bytes::copy_from_slice(bytes);
        }
        if self.slots.is_empty() {
            self.first = entry.id.index;
            self.clear_cache();
        }
        self.slots.push_back(Slot {
            term: entry.id.term,
            lsn,
            len,
        });
        self.cached_bytes += memory_of(&entry);
        self.cache.push_back(entry);
        while self.cached_bytes > self.cache_bytes {
            let Some(oldest) = self.cache.pop_front() else {
                break;
            };
            self.cached_bytes -= memory_of(&oldest);
        }
    }

    fn clear_cache(&mut self) {
        self.cache.clear();
        self.cached_bytes = 0;
    }

    /// Entries behind `keep` (all if `None`) go.
    fn truncate(&mut self, keep: Option<u64>) {
        let left = keep.map_or(0, |keep| (keep + 1).saturating_sub(self.first));
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        if left >= self.slots.len() {
            return;
        }
        for _ in left..self.slots.len() {
            if let Some(newest) = self.cache.pop_back() {
                self.cached_bytes -= memory_of(&newest);
            }
        }
        self.slots.truncate(left);
    }

    /// The last entry before the newest ones that take at most `bytes` together, if there is one after
    /// `after`.
    fn last_beyond(&self, bytes: u64, after: u64) -> Option<u64> {
        let mut room = bytes;
        for (i, slot) in self.slots.iter().enumerate().rev() {
            if self.first + i as u64 <= after {
                break;
            }
            match room.checked_sub(u64::from(slot.len)) {
                Some(left) => room = left,
                None => return Some(self.first + i as u64),
            }
        }
        None
    }

    /// Entries up to `upto` go.
    fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        let gone = (upto.index + 1).saturating_sub(self.first);
        let gone = usize::try_from(gone)
            .unwrap_or(usize::MAX)
            .min(self.slots.len());
        self.slots.drain(..gone);
        self.first += gone as u64;
        while self.cache.len() > self.slots.len() {
            if let Some(oldest) = self.cache.pop_front() {
                self.cached_bytes -= memory_of(&oldest);
            }
        }
    }

    /// The entry, if it is in memory.
    fn cached(&self, index: u64) -> Option<&Entry> {
        let first = self.first + (self.slots.len() - self.cache.len()) as u64;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        self.cache.get(at)
    }

    fn encode_state(&self, node: NodeId) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        put_u8(&mut out, RECORD_VERSION);
        put_u32(&mut out, GROUP);
        put_varint_u64(&mut out, node);
        put_option(&mut out, self.vote.as_ref(), |out, vote| vote.put(out));
        put_option(&mut out, self.committed.as_ref(), |out, id| id.put(out));
        put_option(&mut out, self.purged.as_ref(), |out, id| id.put(out));
        out
    }
}

struct Inner {
    index: Index,
    lookup: Lookup,
    /// The committed mark in memory is newer than the one in the log.
    is_mark_due: bool,
    /// What waits for a sync, in order.
    waiting: VecDeque<(Lsn, Flushed)>,
}

struct Shared {
    env: Env,
    dir: PathBuf,
    node: NodeId,
    log: Log,
    inner: Mutex<Inner>,
    committed: Committed,
}

/// The last entry that is known to be committed, for those who must not wait while the log is written.
#[derive(Debug, Default)]
struct Committed {
    term: AtomicU64,
    index: AtomicU64,
}

impl Committed {
    /// Only one thread notes at a time; neither number ever goes back.
    fn note(&self, committed: Option<LogId>) {
        if let Some(id) = committed {
            // The index first: whoever sees the term sees what was committed in it.
            self.index.fetch_max(id.index, Ordering::AcqRel);
            self.term.fetch_max(id.term, Ordering::AcqRel);
        }
    }
}

/// See the module's page. Cheap to clone; all clones are one log.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore")
            .field("dir", &self.shared.dir)
            .finish_non_exhaustive()
    }
}

/// What recovery makes of the records.
struct Replay<'a> {
    dir: &'a Path,
    node: NodeId,
    index: Index,
    has_state: bool,
}

impl Replay<'_> {
    fn damaged(&self, record: &wal::Record<'_>, detail: impl fmt::Display) -> Error {
        let detail = format!("log record at {}: {detail}", record.start);
        firn_io::Error::corruption(self.dir, u64::from(record.start.offset()), detail).into()
    }

    fn take(&mut self, record: &wal::Record<'_>) -> Result<()> {
        match record.kind {
            RECORD_ENTRY => {
                let bytes = Bytes::copy_from_slice(record.payload);
                let entry = Entry::decode(&bytes).map_err(|e| self.damaged(record, e))?;
                let index = entry.id.index;
                // A log that was purged begins with entries that are purged, or not at all.
                let wanted = self.index.next();
                if !self.index.slots.is_empty() && wanted != Some(index) {
                    let detail = format!("entry {index} where entry {wanted:?} should be");
                    return Err(self.damaged(record, detail));
                }
                let len = record.payload.len() as u32;
                self.index.push(entry, record.start, len);
            }
            RECORD_STATE => {
                let (node, vote, committed, purged) =
                    decode_all("state record", record.payload, |r| {
                        header(r)?;
                        let node = r.varint_u64()?;
                        let vote = get_option(r, Vote::get)?;
                        let committed = get_option(r, LogId::get)?;
                        Some((node, vote, committed, get_option(r, LogId::get)?))
                    })
                    .map_err(|e| self.damaged(record, e))?;
                if node != self.node {
                    let detail = format!(
                        "{}: the log is that of node {node}, not of node {}",
                        self.dir.display(),
                        self.node
                    );
                    return Err(Error::InvalidArgument(detail));
                }
                self.has_state = true;
                self.index.vote = vote;
                self.index.committed = committed;
                if let Some(purged) = purged {
                    self.index.purge(purged);
                }
            }
            RECORD_TRUNCATE => {
                let keep = decode_all("truncate record", record.payload, |r| {
                    header(r)?;
                    get_option(r, |r| r.varint_u64().filter(|&index| index < u64::MAX))
                })
                .map_err(|e| self.damaged(record, e))?;
                self.index.truncate(keep);
            }
            kind => {
                let detail = format!("records of kind {kind} are not known to this build");
                return Err(self.damaged(record, detail));
            }
        }
        Ok(())
    }

    /// Checks what only the whole can show.
    fn finish(mut self, applied: Option<LogId>) -> Result<(Index, bool)> {
        let damaged = |detail: String| Error::from(firn_io::Error::corruption(self.dir, 0, detail));
        if let (Some(purged), false) = (self.index.purged, self.index.slots.is_empty())
            && self.index.first > purged.index + 1
        {
            let first = self.index.first;
            return Err(damaged(format!(
                "the log begins with entry {first} and was purged up to {purged} only"
            )));
        }
        if self.index.purged.is_none() && !self.index.slots.is_empty() && !self.has_state {
            return Err(damaged("the log has entries and no state".into()));
        }
        let last = self.index.last();
        if let Some(applied) = applied
            && last.is_none_or(|last| last.index < applied.index)
        {
            return Err(damaged(match last {
                Some(last) => format!(
                    "the log ends at {last}, but entries up to {applied} are in the files: it was \
                     lost, or is an older copy"
                ),
                None => format!("the log is empty, but entries up to {applied} are in the files"),
            }));
        }
        self.index.committed = self.index.committed.min(last);
        Ok((self.index, self.has_state))
    }
}

/// The version and the group of a record; `None` if they are not known.
fn header(r: &mut Reader<'_>) -> Option<()> {
    (r.u8()? == RECORD_VERSION && r.u32()? == GROUP).then_some(())
}

impl LogStore {
    /// Opens the log of node `node` in `dir`, made if missing. `applied` is what the state machine
    /// has in its files. The environment's executor runs the syncs: give the log one of its own, so
    /// that no other work is in their way.
    ///
    /// Errors: see the module's page; nothing was changed then.
    pub fn open(
        env: Env,
        dir: &Path,
        node: NodeId,
        applied: Option<LogId>,
        options: &LogStoreOptions,
    ) -> Result<Self> {
        let mut replay = Replay {
            dir,
            node,
            index: Index {
                cache_bytes: options.cache_bytes,
                ..Index::default()
            },
            has_state: false,
        };
        // Before anything is made physical: whether this log may be used at all.
        if env.fs.exists(dir)? {
            wal::reader::scan(&*env.fs, dir, None, |record| replay.take(&record))?;
        }
        let (index, has_state) = replay.finish(applied)?;
        let log_options = LogOptions {
            segment_bytes: options.segment_bytes,
            mapped: options.mapped,
            spare_segments_synced: SPARE_SEGMENTS,
            ..LogOptions::default()
        };
        env.fs.create_dir_durable(dir)?;
        let (log, _) = Log::open::<Error>(env.clone(), dir, log_options, |_| Ok(()))?;
        let committed = Committed::default();
        committed.note(index.committed);
        let store = Self {
            shared: Arc::new(Shared {
                committed,
                inner: Mutex::new(Inner {
                    index,
                    lookup: Lookup::new(Arc::clone(&env.fs), dir),
                    is_mark_due: false,
                    waiting: VecDeque::new(),
                }),
                env,
                dir: dir.to_path_buf(),
                node,
                log,
            }),
        };
        let weak = Arc::downgrade(&store.shared);
        store.shared.log.set_sync_listener(Arc::new(move |result| {
            if let Some(shared) = weak.upgrade() {
                shared.synced(result);
            }
        }));
        if !has_state {
            // Whose log it is, before there is anything in it.
            let end = store.shared.append_state(&mut store.shared.inner.lock())?;
            store.shared.log.sync_to(end)?;
        }
        Ok(store)
    }

    /// Whom the node follows.
    pub fn vote(&self) -> Option<Vote> {
        self.shared.inner.lock().index.vote
    }

    /// The last mark of what a majority has.
    pub fn committed(&self) -> Option<LogId> {
        self.shared.inner.lock().index.committed
    }

    /// The last entry that was purged, and the last one of the log.
    pub fn bounds(&self) -> (Option<LogId>, Option<LogId>) {
        let inner = self.shared.inner.lock();
        (inner.index.purged, inner.index.last())
    }

    /// Figures about the log below.
    pub fn stats(&self) -> wal::LogStats {
        self.shared.log.stats()
    }

    /// Appends the vote; `flushed` runs when it is durable.
    pub fn save_vote(&self, vote: Vote, flushed: Flushed) -> Result<()> {
        {
            let mut inner = self.shared.inner.lock();
            let before = inner.index.vote.replace(vote);
            if planted::is(Bug::LostVote) {
                drop(inner);
                flushed(Ok(()));
                return Ok(());
            }
            let end = match self.shared.append_state(&mut inner) {
                Ok(end) => end,
                Err(error) => {
                    inner.index.vote = before;
                    return Err(error);
                }
            };
            if planted::is(Bug::EarlyAck) {
                flushed(Ok(()));
            } else {
                inner.waiting.push_back((end, flushed));
            }
        }
        self.shared.log.request_sync();
        Ok(())
    }

    /// The index of the last entry that is known to be committed, if one of this term is. Waits for
    /// nothing. Whoever was told of an entry by anybody finds it covered where it was committed: the mark
    /// is noted before others are told.
    pub fn committed_in(&self, term: u64) -> Option<u64> {
        let committed = &self.shared.committed;
        let is_of_it = committed.term.load(Ordering::Acquire) == term;
        is_of_it.then(|| committed.index.load(Ordering::Acquire))
    }

    /// Notes what a majority has. The mark goes to the disk with what is appended next.
    pub fn set_committed(&self, committed: Option<LogId>) {
        self.shared.committed.note(committed);
        let mut inner = self.shared.inner.lock();
        if inner.index.committed != committed {
            inner.index.committed = committed;
            inner.is_mark_due = true;
        }
    }

    /// Appends entries, which must follow what is there; they can be read at once. `flushed` runs
    /// when all are durable. On error none or some were appended, and the log is of no further use.
    pub fn append(&self, entries: Vec<Entry>, flushed: Flushed) -> Result<()> {
        {
            let mut inner = self.shared.inner.lock();
            let mut end = self.shared.log.appended();
            let mut entries = entries.into_iter().peekable();
            while entries.peek().is_some() {
                end = self.shared.append_some(&mut inner, &mut entries)?;
            }
            if planted::is(Bug::EarlyAck) {
                drop(inner);
                flushed(Ok(()));
                self.shared.log.request_sync();
                return Ok(());
            }
            inner.waiting.push_back((end, flushed));
            if end <= self.shared.log.synced() {
                // Nothing was appended, and no sync will come.
                let ready = inner.take_until(end);
                drop(inner);
                ready.into_iter().for_each(|(_, flushed)| flushed(Ok(())));
                return Ok(());
            }
        }
        self.shared.log.request_sync();
        Ok(())
    }

    /// Cuts off all entries behind `keep` (all if `None`).
    pub fn truncate_after(&self, keep: Option<u64>) -> Result<()> {
        let keep = match keep {
            Some(keep) if planted::is(Bug::WrongTruncate) => Some(keep + 1),
            keep => keep,
        };
        let mut inner = self.shared.inner.lock();
        let mut out = vec![RECORD_VERSION];
        put_u32(&mut out, GROUP);
        put_option(&mut out, keep.as_ref(), |out, &index| {
            put_varint_u64(out, index);
        });
        if !planted::is(Bug::UnloggedTruncate) {
            self.shared.append_record(RECORD_TRUNCATE, &out)?;
        }
        inner.index.truncate(keep);
        Ok(())
    }

    /// The index of the last entry before the newest ones that take at most `bytes` of the log together;
    /// `None` if all after the index `after` do. Takes time by the number of these.
    pub fn last_beyond(&self, bytes: u64, after: u64) -> Option<u64> {
        self.shared.inner.lock().index.last_beyond(bytes, after)
    }

    /// Entries up to `upto` are no longer needed. `upto` may be behind the end of the log: then all
    /// of it goes, and the next entry follows `upto`.
    pub fn purge(&self, upto: LogId) -> Result<()> {
        {
            let shared = &self.shared;
            let mut inner = shared.inner.lock();
            let upto = match inner.index.last() {
                Some(last) if planted::is(Bug::EagerPurge) => upto.max(last),
                _ => upto,
            };
            if inner.index.purged >= Some(upto) {
                return Ok(());
            }
            inner.index.purge(upto);
            let end = shared.append_state(&mut inner)?;
            let needed = inner.index.slots.front().map_or(end, |slot| slot.lsn);
            let weak = Arc::downgrade(shared);
            let exec = Arc::clone(&shared.env.exec);
            let give_up = move || {
                if let Some(shared) = weak.upgrade() {
                    // What is left over goes with the next purge.
                    let _ = shared.log.remove_before(needed);
                }
            };
            let when_durable = move |result: std::io::Result<()>| {
                if result.is_ok() {
                    exec.submit(Priority::Low, Box::new(give_up));
                }
            };
            inner.waiting.push_back((end, Box::new(when_durable)));
        }
        self.shared.log.request_sync();
        Ok(())
    }

    /// Entries from `start` (inclusive) to `end` (exclusive), in order: those of them that there
    /// are, the first ones up to about `most_bytes` together, but at least one.
    pub fn entries(&self, start: u64, end: u64, most_bytes: usize) -> Result<Vec<Entry>> {
        let inner = &mut *self.shared.inner.lock();
        let start = start.max(inner.index.first);
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in start..end {
            let Some(&slot) = inner.index.slot(index) else {
                break;
            };
            bytes += slot.len as usize;
            if bytes > most_bytes && !found.is_empty() {
                break;
            }
            if let Some(entry) = inner.index.cached(index) {
                found.push(entry.clone());
                continue;
            }
            let (_, payload) = match inner.lookup.read(slot.lsn, slot.len) {
                Ok(read) => read,
                Err(error) => {
                    if error.is_corruption() {
                        // The damage is the error to tell, whether or not the marker arrives.
                        let _ = self.shared.log.leave_marker();
                    }
                    return Err(error.into());
                }
            };
            let entry = Entry::decode(&payload.into())?;
            let id = LogId {
                term: slot.term,
                index,
            };
            if entry.id != id {
                let detail = format!("log record at {}: entry {} is not {id}", slot.lsn, entry.id);
                let offset = u64::from(slot.lsn.offset());
                return Err(firn_io::Error::corruption(&self.shared.dir, offset, detail).into());
            }
            found.push(entry);
        }
        Ok(found)
    }

    /// The id of the entry at `index`, if it is there or was the last one to be purged.
    pub fn id_at(&self, index: u64) -> Option<LogId> {
        let inner = self.shared.inner.lock();
        let slot = inner.index.slot(index).map(|slot| LogId {
            term: slot.term,
            index,
        });
        slot.or(inner.index.purged.filter(|id| id.index == index))
    }

    /// Returns when everything that was appended is durable.
    pub fn sync(&self) -> firn_io::Result<()> {
        self.shared.log.sync_to(self.shared.log.appended())
    }

    /// Makes everything durable and ends background work. What waits is told.
    pub fn close(&self) -> Result<()> {
        let marked = {
            let mut inner = self.shared.inner.lock();
            if inner.is_mark_due && self.shared.log.poison().is_none() {
                self.shared.append_state(&mut inner).map(drop)
            } else {
                Ok(())
            }
        };
        let closed = self.shared.log.close();
        let waiting = std::mem::take(&mut self.shared.inner.lock().waiting);
        for (_, flushed) in waiting {
            flushed(Err(std::io::Error::other("the log was closed")));
        }
        marked.and(closed.map_err(Error::from))
    }
}

impl Inner {
    fn take_until(&mut self, synced: Lsn) -> Vec<(Lsn, Flushed)> {
        let ready = self.waiting.iter().take_while(|(lsn, _)| *lsn <= synced);
        let count = ready.count();
        self.waiting.drain(..count).collect()
    }
}

impl Shared {
    fn append_record(&self, kind: u8, payload: &[u8]) -> Result<Lsn> {
        let parts = [payload];
        let record = wal::Entry {
            kind,
            parts: &parts,
        };
        // The reserve too: proposals are refused on a full disk, what was proposed is not.
        Ok(self.log.append_many(&[record], true)?)
    }

    fn append_state(&self, inner: &mut Inner) -> Result<Lsn> {
        let state = inner.index.encode_state(self.node);
        let end = self.append_record(RECORD_STATE, &state)?;
        inner.is_mark_due = false;
        Ok(end)
    }

    /// Appends as many entries as go at once, and the mark before them if it is due.
    fn append_some(
        &self,
        inner: &mut Inner,
        entries: &mut std::iter::Peekable<std::vec::IntoIter<Entry>>,
    ) -> Result<Lsn> {
        let mut encoded = Vec::new();
        let mut taken = Vec::new();
        let mut bytes = 0;
        let mut next = inner.index.next();
        while let Some(entry) = entries.next_if(|_| bytes < APPEND_BYTES) {
            if next.is_some_and(|next| next != entry.id.index) {
                return Err(Error::InvalidArgument(format!(
                    "entry {} cannot be appended where entry {next:?} is next",
                    entry.id
                )));
            }
            next = Some(entry.id.index + 1);
            let (header, body) = entry.encode();
            bytes += (header.len() + body.len()) as u64;
            encoded.push((header, body));
            taken.push(entry);
        }
        let state = inner
            .is_mark_due
            .then(|| inner.index.encode_state(self.node));
        let state_parts = [state.as_deref().unwrap_or_default()];
        let parts: Vec<[&[u8]; 2]> = encoded.iter().map(|(h, b)| [&h[..], &b[..]]).collect();
        let mut records = Vec::with_capacity(parts.len() + 1);
        if state.is_some() {
            records.push(wal::Entry {
                kind: RECORD_STATE,
                parts: &state_parts,
            });
        }
        records.extend(parts.iter().map(|parts| wal::Entry {
            kind: RECORD_ENTRY,
            parts,
        }));
        let end = self.log.append_many(&records, true)?;
        inner.is_mark_due = false;
        let lens = encoded
            .iter()
            .map(|(_, body)| (ENTRY_HEADER_BYTES + body.len()) as u64);
        let starts = starts_of(end, lens.clone());
        for ((entry, lsn), len) in taken.into_iter().zip(starts).zip(lens) {
            inner.index.push(entry, lsn, len as u32);
        }
        Ok(end)
    }

    fn synced(&self, result: firn_io::Result<Lsn>) {
        match result {
            Ok(synced) => {
                let ready = self.inner.lock().take_until(synced);
                ready.into_iter().for_each(|(_, flushed)| flushed(Ok(())));
            }
            Err(error) => {
                let waiting = std::mem::take(&mut self.inner.lock().waiting);
                for (_, flushed) in waiting {
                    flushed(Err(std::io::Error::other(error.to_string())));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
