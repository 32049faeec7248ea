//! Watch: every committed batch from a version on, in order, whole, without gaps or repetitions.
//!
//! ```text
//!  commit ─► log segments ──► sync ─► Feed::advance ─► watches wake
//!               │  │
//!  far behind ──┘  └── near the end: the ring, read once for all (see [`crate::feed`])
//! ```
//!
//! 1. `Watch::open` finds the segment that holds the wanted version by the first number of each,
//!    and begins there; a watch from now on begins at the end of the log.
//! 2. [`Watch::step`] takes the next record: from the ring if that has it, else from the segments,
//!    until it meets the ring. The switch needs no care: both are the log, and a watch knows the
//!    number that it wants next.
//! 3. The filter is applied to the operations of the record; a batch of which nothing is left is
//!    passed over.
//! 4. At the end of what is durable the watch waits for the next sync.
//!
//! # What a watch is told
//!
//! * **Only what is durable**, whatever the durability that a write asked for: no power loss takes
//!   back what a watch has seen, nor the version that it begins after (the log is synced for that).
//!   A write that was acknowledged as durable was offered to watches before; a buffered one follows
//!   within [`crate::Options::background_sync`].
//! * **What is told is published**: a read after it sees it.
//! * **Batches whole, in order**, each operation with its version; [`WatchBatch::version`] is that of
//!   the last operation. A range delete is one event; a put carries its expiry.
//! * **Expiry emits nothing**: the put said when the key will cease to exist.
//! * **A dropped namespace is one event**, in its place in the history. Making a namespace emits
//!   nothing; the first event in it names it. A filter by namespace follows the name.
//!
//! Where the log is somebody else's, the batches are those that were applied, which is to say
//! durable elsewhere, and [`crate::feed`] keeps the newest ones in memory.
//!
//! # How it ends
//!
//! [`Error::WatchTooOld`] if the log that it wants was given up (it was too slow, or away for too
//! long, or the log was repaired): read the state at a snapshot and watch from there. Failed reads
//! and damage of the log are errors that name the file. When the database is closed or its log has
//! failed, it says so after the last durable batch. Nothing is skipped silently: numbers have no
//! gaps, and each record must follow the one before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use firn_io::wal::{self, Log, Lsn, Tail, TailError};

use crate::batch::{BatchReader, Operations};
use crate::core::{Core, RECORD_BATCH, RECORD_DROP};
use crate::error::{Error, Result};
use crate::event::WatchStats;
use crate::feed::{Committed, DropRecord, Ring, WakeFn};
use crate::key::{Kind, NamespaceId, SeqNo, prefix_end};

/// Most bytes of records that the ring keeps.
const RING_BYTES: usize = 8 << 20;

/// What to watch. The default is everything, from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// The first version to be told; `None`: what is committed from now on.
    pub from: Option<SeqNo>,
    /// The namespace of this name only.
    pub namespace: Option<String>,
    /// Keys from here on (inclusive).
    pub start: Option<Vec<u8>>,
    /// Keys up to here (exclusive).
    pub end: Option<Vec<u8>>,
}

impl WatchOptions {
    /// Every version from this one on.
    pub fn from(version: SeqNo) -> Self {
        Self {
            from: Some(version),
            ..Self::default()
        }
    }

    /// The namespace of this name only.
    #[must_use]
    pub fn namespace(self, name: impl Into<String>) -> Self {
        Self {
            namespace: Some(name.into()),
            ..self
        }
    }

    /// Keys with this prefix only.
    #[must_use]
    pub fn prefix(self, prefix: &[u8]) -> Self {
        Self {
            start: Some(prefix.to_vec()),
            end: prefix_end(prefix),
            ..self
        }
    }
}

/// What a key, a range or a namespace has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// The key has this value.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// When it ceases to exist, in Unix milliseconds. No event will say so.
        expires_at_ms: Option<u64>,
    },
    /// The key does not exist.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// No key in the range exists. As it was written: a filter may want a part of it only.
    DeleteRange {
        /// The first key of the range.
        start: &'a [u8],
        /// The first key behind it.
        end: &'a [u8],
    },
    /// The namespace does not exist, with everything in it.
    DropNamespace,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchEvent<'a> {
    /// Its sequence number: the version of the key from now on.
    pub version: SeqNo,
    /// In which namespace.
    pub namespace: &'a str,
    /// What.
    pub change: Change<'a>,
}

/// What a step of a watch came to.
#[derive(Clone, Debug)]
pub enum Step {
    /// A batch with at least one event that the filter wants.
    Batch(WatchBatch),
    /// A batch was passed over: the filter wants nothing of it.
    Passed,
    /// There is no more that is durable.
    CaughtUp,
}

#[derive(Debug)]
struct Filter {
    namespace: Option<String>,
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

impl Filter {
    fn wants(&self, event: &WatchEvent<'_>) -> bool {
        if self
            .namespace
            .as_deref()
            .is_some_and(|name| name != event.namespace)
        {
            return false;
        }
        let before_end = |key: &[u8]| self.end.as_deref().is_none_or(|end| key < end);
        match event.change {
            Change::Put { key, .. } | Change::Delete { key } => {
                key >= self.start.as_slice() && before_end(key)
            }
            Change::DeleteRange { start, end } => end > self.start.as_slice() && before_end(start),
            Change::DropNamespace => true,
        }
    }
}

/// The events of one batch that the filter wants. They take effect together.
#[derive(Clone, Debug)]
pub struct WatchBatch {
    record: Arc<Committed>,
    filter: Arc<Filter>,
    /// Operations before this one were told before.
    from: SeqNo,
}

impl WatchBatch {
    /// The version of the batch: that of its last operation, whether or not the filter wants it. A
    /// watch from the next version on follows it without gap or repetition.
    pub fn version(&self) -> SeqNo {
        self.record.last
    }

    /// Bytes that it holds in memory.
    pub fn memory_bytes(&self) -> usize {
        self.record.bytes()
    }

    /// The events, in order.
    pub fn events(&self) -> Events<'_> {
        Events {
            source: Source::of(&self.record),
            batch: self,
        }
    }

    /// The events from a place on that [`Events::place`] told.
    pub fn events_at(&self, place: Place) -> Events<'_> {
        let source = match place.0 {
            PlaceIn::Batch(next, left) => {
                Source::Batch(next, Operations::resume(&self.record.payload, left))
            }
            PlaceIn::Drop(id) => Source::Drop(id),
        };
        Events {
            source,
            batch: self,
        }
    }
}

/// A place among the events of a batch: for who cannot hold an iterator while it waits.
#[derive(Clone, Copy, Debug)]
pub struct Place(PlaceIn);

#[derive(Clone, Copy, Debug)]
enum PlaceIn {
    Batch(SeqNo, (usize, u32)),
    Drop(Option<NamespaceId>),
}

/// Iterates over the events of a batch.
#[derive(Clone, Debug)]
pub struct Events<'a> {
    source: Source<'a>,
    batch: &'a WatchBatch,
}

#[derive(Clone, Debug)]
enum Source<'a> {
    Batch(SeqNo, Operations<'a>),
    Drop(Option<NamespaceId>),
}

impl Events<'_> {
    /// Where it is.
    pub fn place(&self) -> Place {
        Place(match &self.source {
            Source::Batch(next, operations) => PlaceIn::Batch(*next, operations.left()),
            Source::Drop(id) => PlaceIn::Drop(*id),
        })
    }
}

impl<'a> Source<'a> {
    fn of(record: &'a Committed) -> Self {
        if record.kind == RECORD_DROP {
            return Self::Drop(record.names.first().map(|(id, _)| *id));
        }
        // It was decoded when it was read from the log.
        match BatchReader::new(&record.payload) {
            Ok(batch) => Self::Batch(batch.base, batch.operations()),
            Err(_) => Self::Drop(None),
        }
    }

    fn next(&mut self, record: &'a Committed) -> Option<WatchEvent<'a>> {
        match self {
            Self::Drop(id) => Some(WatchEvent {
                version: record.last,
                namespace: record.name(id.take()?),
                change: Change::DropNamespace,
            }),
            Self::Batch(next, operations) => {
                let operation = operations.next()?.ok()?;
                let version = *next;
                next.0 += 1;
                let (key, value) = (operation.key, operation.value);
                let change = match operation.kind {
                    Kind::Delete => Change::Delete { key },
                    Kind::RangeDelete => Change::DeleteRange {
                        start: key,
                        end: value,
                    },
                    kind if kind.is_expiring() => {
                        let (expiry, value) = value.split_first_chunk::<8>()?;
                        Change::Put {
                            key,
                            value,
                            expires_at_ms: Some(u64::from_le_bytes(*expiry)),
                        }
                    }
                    _ => Change::Put {
                        key,
                        value,
                        expires_at_ms: None,
                    },
                };
                Some(WatchEvent {
                    version,
                    namespace: record.name(operation.namespace),
                    change,
                })
            }
        }
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = WatchEvent<'a>;

    fn next(&mut self) -> Option<WatchEvent<'a>> {
        let batch = self.batch;
        loop {
            let event = self.source.next(&batch.record)?;
            if event.version >= batch.from && batch.filter.wants(&event) {
                return Some(event);
            }
        }
    }
}

/// An open changefeed: an iterator that waits, or [`Watch::step`] and [`Watch::on_ready`] for those
/// that must not. It holds nothing back: neither writers nor, beyond the configured bytes and age,
/// the log. After an error it goes on at the same place when asked again.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let dir = dir.path().join("db");
/// use firn_engine::{Change, Db, Options, WatchOptions};
///
/// let db = Db::open(&dir, Options::default())?;
/// let mut watch = db.watch(WatchOptions::default().prefix(b"user/"))?;
/// db.put(b"other", b"1")?;
/// db.put(b"user/ada", b"2")?;
/// let batch = watch.next().unwrap()?;
/// let event = batch.events().next().unwrap();
/// assert!(matches!(event.change, Change::Put { key: b"user/ada", value: b"2", .. }));
/// # Ok::<(), firn_engine::Error>(())
/// ```
pub struct Watch {
    core: Arc<Core>,
    id: u64,
    filter: Arc<Filter>,
    /// The number of the next operation.
    next: SeqNo,
    /// Where its record begins, or before that.
    at: Lsn,
    /// Its record is the first one at `at`.
    exact: bool,
    /// Reads the segments, while the ring does not have what is next.
    behind: Option<Tail>,
    /// The epoch that was seen before the last look.
    seen: u64,
    position: Arc<AtomicU64>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.core.feed.leave(self.id);
    }
}

impl Watch {
    pub(crate) fn open(core: &Arc<Core>, options: WatchOptions) -> Result<Self> {
        core.check_open()?;
        if let Some(name) = &options.namespace
            && core.trees.load().by_name(name).is_none()
        {
            return Err(Error::NamespaceNotFound(name.clone()));
        }
        let filter = Filter {
            namespace: options.namespace,
            start: options.start.unwrap_or_default(),
            end: options.end,
        };
        if filter.end.as_ref().is_some_and(|end| *end <= filter.start) {
            return Err(Error::InvalidArgument(
                "the start of the range to watch must be before its end".into(),
            ));
        }
        let (next, at, behind) = core.locate(options.from)?;
        if !behind && at > core.feed.durable() && core.poisoned.lock().is_none() {
            // Where it begins must not be lost: versions would be given out again, and who comes
            // back would never hear of them.
            core.sync_log(core.log()?, at)?;
        }
        let (id, position) = core.feed.enter(next);
        Ok(Self {
            core: Arc::clone(core),
            id,
            filter: Arc::new(filter),
            next,
            at,
            exact: !behind,
            behind: behind.then(|| Tail::new(at)),
            seen: 0,
            position,
        })
    }

    /// The next version that it will look at: everything before it was told or passed over. A watch
    /// from this version on goes on where this one is.
    pub fn next_version(&self) -> SeqNo {
        self.next
    }

    /// Takes the next batch, without waiting for one. It may read from the disk.
    ///
    /// Errors: see the module's page.
    pub fn step(&mut self) -> Result<Step> {
        self.seen = self.core.feed.epoch();
        let fetched = self.fetch();
        let counters = &self.core.observer.counters;
        let record = match fetched {
            Ok(Some(record)) => record,
            Ok(None) => {
                return match &*self.core.poisoned.lock() {
                    Some(text) => Err(Error::Poisoned(text.clone())),
                    None => Ok(Step::CaughtUp),
                };
            }
            Err(error) => {
                self.core.note_error(&error);
                if matches!(error, Error::WatchTooOld { .. }) {
                    counters.watch_too_old.add(1);
                }
                return Err(error);
            }
        };
        let from = std::mem::replace(&mut self.next, SeqNo(record.last.0 + 1));
        (self.at, self.exact) = (record.end, true);
        self.position.store(self.next.0, Ordering::Relaxed);
        let batch = WatchBatch {
            record,
            filter: Arc::clone(&self.filter),
            from,
        };
        let events = batch.events().count();
        if events == 0 {
            return Ok(Step::Passed);
        }
        counters.watch_batches.add(1);
        counters.watch_events.add(events as u64);
        Ok(Step::Batch(batch))
    }

    /// Waits on this thread until there may be more than the last step found, for at most `time`;
    /// whether there may.
    pub fn wait(&self, time: Option<Duration>) -> bool {
        let (feed, env) = (&self.core.feed, &self.core.env);
        if !env.exec.is_stepped() {
            return feed.wait(self.seen, time);
        }
        let begin = env.clock.monotonic();
        while feed.epoch() == self.seen {
            if time.is_some_and(|time| env.clock.monotonic().saturating_sub(begin) >= time) {
                return false;
            }
            if !env.exec.run_one() {
                env.clock.sleep(Duration::from_millis(1));
            }
        }
        true
    }

    /// Runs `wake` once there may be more than the last step found: now, on this thread, if that is
    /// so already, else on the thread that synced the log or applied an entry. It must not block. In place of one that
    /// was left here before; dropped with the watch.
    pub fn on_ready(&self, wake: WakeFn) {
        self.core.feed.on_wake(self.id, self.seen, wake);
    }

    /// Lets go of memory that only makes it quick, when it will not be asked for a while.
    pub fn rest(&mut self) {
        if let Some(tail) = &mut self.behind {
            tail.rest();
        }
    }

    /// The record that holds the next operation, if it is durable.
    fn fetch(&mut self) -> Result<Option<Arc<Committed>>> {
        let core = &*self.core;
        core.check_open()?;
        if let Some(external) = &core.external {
            let history = external.history.lock();
            let oldest = history.first();
            return match self.next < oldest {
                true => Err(Error::WatchTooOld {
                    wanted: self.next.0,
                    oldest: oldest.0,
                }),
                false => Ok(history.get(self.next)),
            };
        }
        let log = core.log()?;
        let durable = core.feed.durable();
        if self.behind.is_some() && core.feed.ring_may_have(self.next) {
            self.behind = None;
        }
        loop {
            let Some(tail) = &mut self.behind else {
                match core.ring_record(log, self.at, self.next, self.exact, durable)? {
                    FromRing::Record(record) => return Ok(Some(record)),
                    FromRing::End => return Ok(None),
                    FromRing::Behind => self.behind = Some(Tail::new(self.at)),
                }
                continue;
            };
            let record = match tail.next(log, durable) {
                Ok(Some(record)) => record,
                Ok(None) => {
                    // What comes next begins here: from now on the ring has it.
                    if self.exact {
                        self.at = tail.at();
                        self.behind = None;
                    }
                    return Ok(None);
                }
                Err(error) => return Err(core.watch_error(error, self.next)),
            };
            let header = Header::of(log, &record)?;
            if header.last < self.next {
                if header.last.0 + 1 == self.next.0 {
                    (self.at, self.exact) = (record.end, true);
                }
                continue;
            }
            if header.first > self.next {
                return Err(Error::WatchTooOld {
                    wanted: self.next.0,
                    oldest: header.first.0,
                });
            }
            let known = core.feed.large(header.first);
            return match known {
                Some(known) => Ok(Some(known)),
                None => {
                    let committed = core.committed(log, &record, header)?;
                    Ok(Some(core.feed.share(committed)))
                }
            };
        }
    }
}

impl Iterator for Watch {
    type Item = Result<WatchBatch>;

    /// The next batch, waiting for one; never `None`.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.step() {
                Ok(Step::Batch(batch)) => return Some(Ok(batch)),
                Ok(Step::Passed) => {}
                Ok(Step::CaughtUp) => {
                    self.wait(None);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The numbers of a record.
#[derive(Clone, Copy)]
struct Header {
    first: SeqNo,
    last: SeqNo,
}

impl Header {
    fn of(log: &Log, record: &wal::Record<'_>) -> Result<Self> {
        let damaged = |detail: &str| {
            let detail = format!("log record at {}: {detail}", record.start);
            Error::corruption(log.path(), u64::from(record.start.offset()), detail)
        };
        match record.kind {
            RECORD_BATCH => {
                let batch = BatchReader::new(record.payload).map_err(damaged)?;
                let count = u64::from(batch.count).max(1);
                Ok(Self {
                    first: batch.base,
                    last: SeqNo(batch.base.0 + count - 1),
                })
            }
            RECORD_DROP => {
                let seqno = DropRecord::decode(record.payload).map_err(damaged)?.seqno;
                Ok(Self {
                    first: seqno,
                    last: seqno,
                })
            }
            kind => Err(Error::UnsupportedFormat(format!(
                "log record of kind {kind}"
            ))),
        }
    }
}

enum FromRing {
    Record(Arc<Committed>),
    /// There is no more that is durable.
    End,
    /// It is no longer in the ring.
    Behind,
}

impl Core {
    fn ring_limit(&self) -> usize {
        RING_BYTES.min(self.settings.given.memory_bytes / 64)
    }

    /// Bytes of batches that are kept in memory for watches where the log is somebody else's.
    pub(crate) fn history_limit(&self) -> usize {
        let given = &self.settings.given;
        let granted = usize::try_from(given.changefeed_bytes).unwrap_or(usize::MAX);
        granted.min(given.memory_bytes / 16).max(self.ring_limit())
    }

    /// The version that a watch begins with, where to read for it, and whether that is behind the
    /// end of the log.
    fn locate(&self, from: Option<SeqNo>) -> Result<(SeqNo, Lsn, bool)> {
        // What the history ends with was published.
        let known = self.external.as_ref().map(|external| {
            let history = external.history.lock();
            (history.first(), history.next)
        });
        let (next, end) = match known {
            Some((_, next)) => (next, Lsn::ZERO),
            None => {
                let commit = self.lock_commit();
                (SeqNo(commit.last_seqno.0 + 1), self.log()?.appended())
            }
        };
        let from = from.map_or(next, |from| from.max(SeqNo(1)));
        if from > next {
            return Err(Error::InvalidArgument(format!(
                "version {from} is beyond the next one, {next}: it is of another database, or was \
                 lost before it was durable"
            )));
        }
        if from == next {
            return Ok((next, end, false));
        }
        let mut oldest = next;
        if let Some((first, _)) = known {
            oldest = first;
            if oldest <= from {
                return Ok((from, end, false));
            }
        } else {
            let log = self.log()?;
            for &(segment, _) in log.segments().iter().rev() {
                let Some(first) = self.first_of_segment(log, segment, end)? else {
                    continue;
                };
                if first <= from {
                    return Ok((from, Lsn::new(segment, 0), true));
                }
                oldest = first;
            }
        }
        self.observer.counters.watch_too_old.add(1);
        Err(Error::WatchTooOld {
            wanted: from.0,
            oldest: oldest.0,
        })
    }

    /// The oldest version that a watch can begin at.
    pub fn oldest_watchable(&self) -> Result<SeqNo> {
        self.check_open()?;
        if let Some(external) = &self.external {
            return Ok(external.history.lock().first());
        }
        let log = self.log()?;
        let (next, end) = {
            let commit = self.lock_commit();
            (SeqNo(commit.last_seqno.0 + 1), log.appended())
        };
        for (segment, _) in log.segments() {
            if let Some(first) = self.first_of_segment(log, segment, end)? {
                return Ok(first);
            }
        }
        Ok(next)
    }

    /// The number of the first operation in a segment; `None` if it has none or is gone.
    fn first_of_segment(&self, log: &Log, segment: u32, end: Lsn) -> Result<Option<SeqNo>> {
        if let Some(first) = self.feed.first_of(segment) {
            return Ok(Some(first));
        }
        let mut tail = Tail::new(Lsn::new(segment, 0));
        let limit = end.min(Lsn::new(segment, u32::MAX));
        match tail.next(log, limit) {
            Ok(Some(record)) if record.start.segment() == segment => {
                let first = Header::of(log, &record)?.first;
                self.feed.note_first(segment, first);
                Ok(Some(first))
            }
            Ok(_) | Err(TailError::Gone) => Ok(None),
            Err(TailError::Failed(error)) => Err(error.into()),
        }
    }

    fn watch_error(&self, error: TailError, wanted: SeqNo) -> Error {
        match error {
            TailError::Failed(error) => error.into(),
            TailError::Gone => match self.oldest_watchable() {
                Ok(oldest) => Error::WatchTooOld {
                    wanted: wanted.0,
                    oldest: oldest.0,
                },
                Err(error) => error,
            },
        }
    }

    /// The record that holds `seqno` from the ring; reads it into the ring if that ends there. If
    /// `exact`, the record is the first one at `at`, and the ring may begin there.
    fn ring_record(
        &self,
        log: &Log,
        at: Lsn,
        seqno: SeqNo,
        exact: bool,
        durable: Lsn,
    ) -> Result<FromRing> {
        let mut slot = self.feed.ring.lock();
        if !exact && slot.as_ref().is_none_or(|ring| ring.newest.next < seqno) {
            return Ok(FromRing::Behind);
        }
        if slot.as_ref().is_some_and(|ring| ring.newest.next < seqno) {
            // Nobody has read up to here: it may be far. Those before it find themselves behind.
            *slot = None;
        }
        let ring = slot.get_or_insert_with(|| Ring::new(at, seqno));
        let outcome = self.read_ring(log, ring, seqno, durable);
        if outcome.is_err() {
            *slot = None;
        }
        self.feed.note_ring(slot.as_ref());
        outcome
    }

    fn read_ring(
        &self,
        log: &Log,
        ring: &mut Ring,
        seqno: SeqNo,
        durable: Lsn,
    ) -> Result<FromRing> {
        if seqno < ring.newest.first() {
            return Ok(FromRing::Behind);
        }
        if let Some(record) = ring.newest.get(seqno) {
            return Ok(FromRing::Record(record));
        }
        let next = ring.newest.next;
        let record = match ring.tail.next(log, durable) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(FromRing::End),
            Err(error) => return Err(self.watch_error(error, next)),
        };
        let header = Header::of(log, &record)?;
        if header.first != next {
            return Err(Error::WatchTooOld {
                wanted: next.0,
                oldest: header.first.0,
            });
        }
        let record = match self.feed.large(header.first) {
            Some(known) => known,
            None => self.feed.share(self.committed(log, &record, header)?),
        };
        let limit = self.ring_limit();
        ring.newest.push(Arc::clone(&record), limit, 0);
        Ok(FromRing::Record(record))
    }

    /// Copies a record out of the log and finds the names of its namespaces.
    fn committed(&self, log: &Log, record: &wal::Record<'_>, header: Header) -> Result<Committed> {
        self.observer.counters.watch_records.add(1);
        let mut names: Vec<(NamespaceId, Arc<str>)> = Vec::new();
        if record.kind == RECORD_DROP {
            // Checked by `Header::of`.
            if let Ok(drop) = DropRecord::decode(record.payload) {
                names.push((drop.namespace, drop.name.into()));
            }
        } else if let Ok(batch) = BatchReader::new(record.payload) {
            for operation in batch.operations() {
                let id = match operation {
                    Ok(operation) => operation.namespace,
                    Err(detail) => {
                        let offset = u64::from(record.start.offset());
                        let detail = format!("log record at {}: {detail}", record.start);
                        return Err(Error::corruption(log.path(), offset, detail));
                    }
                };
                if names.last().is_some_and(|(last, _)| *last == id)
                    || names.iter().any(|(known, _)| *known == id)
                {
                    continue;
                }
                names.push((id, self.name_of(log, id, record.end)?));
            }
        }
        Ok(Committed {
            first: header.first,
            last: header.last,
            end: record.end,
            kind: record.kind,
            payload: record.payload.into(),
            names,
        })
    }

    /// The name of a namespace that a record which ends at `after` writes to.
    fn name_of(&self, log: &Log, id: NamespaceId, after: Lsn) -> Result<Arc<str>> {
        if let Some(tree) = self.trees.load().get(id) {
            return Ok(Arc::clone(&tree.name));
        }
        if let Some(name) = self.feed.dropped_name(id) {
            return Ok(name);
        }
        // It was dropped before the database was opened, and before where recovery began: its drop
        // record is further on.
        let mut tail = Tail::new(after);
        let mut found = None;
        while found.is_none() {
            let record = match tail.next(log, self.feed.durable()) {
                Ok(Some(record)) => record,
                Ok(None) | Err(TailError::Gone) => break,
                Err(TailError::Failed(error)) => return Err(error.into()),
            };
            if record.kind == RECORD_DROP
                && let Ok(drop) = DropRecord::decode(record.payload)
            {
                let name: Arc<str> = drop.name.into();
                let segment = record.start.segment();
                self.feed
                    .note_dropped(drop.namespace, Arc::clone(&name), segment);
                found = (drop.namespace == id).then_some(name);
            }
        }
        let name = found.unwrap_or_else(|| format!("#{}", id.0).into());
        self.feed
            .note_dropped(id, Arc::clone(&name), tail.at().segment());
        Ok(name)
    }
}

/// Figures about watches.
pub(crate) fn stats(core: &Core) -> WatchStats {
    let (watches, lowest) = core.feed.watches();
    let newest = core.snapshots.published().0;
    let mut kept_bytes = 0;
    if let (Ok(log), Some(start)) = (core.log(), core.versions.log_start()) {
        let segments = log.segments();
        let kept = segments
            .iter()
            .filter(|segment| segment.0 < start.segment());
        kept_bytes = kept.map(|segment| segment.1).sum();
    }
    WatchStats {
        watches,
        lag: lowest.map_or(0, |next| (newest + 1).saturating_sub(next.0)),
        kept_bytes,
        memory_bytes: match &core.external {
            Some(external) => external.history.lock().bytes as u64,
            None => core.feed.ring_bytes(),
        },
    }
}
