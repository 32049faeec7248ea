//! Writes: order, log, insert, sync, publish, acknowledge.
//!
//! 1. *Wait for room.* Pacing slows a writer down when background work is behind; a writer that
//!    would wait longer than it is willing to is refused.
//! 2. *Order.* Under the commit lock the batch's conditions are decided, its operations get their
//!    sequence numbers, its record goes to the log (a copy into a mapped segment, or one call where the
//!    log is synced often) and its operations into the memtables.
//! 3. *Sync.* Outside of the lock. Whoever needs the log durable either syncs it for all who came
//!    before, or waits for the one who does (group commit).
//! 4. *Publish.* Readers see batches in the order of their numbers, a durable one not before it is
//!    durable: what a reader saw, power loss cannot take back. A buffered batch behind a durable one
//!    waits with it.
//! 5. *Acknowledge.* A write is acknowledged once it is published.
//!
//! Inserting under the lock, one batch at a time, is deliberate: the insert takes less time than a
//! hand-over between threads, and the log's order is the memtable's.
//!
//! At a crash between 2 and 3 the record may or may not be in the log; the writer had no answer.
//! After 3 it is there. A failed append or sync poisons the log: batches that waited are never
//! published and their writers get the error.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use firn_io::exec::give_way;
use firn_io::wal::{Entry, Lsn};

use crate::batch::{Requirement, WriteBatch};
use crate::core::{CommitState, Core, MAX_IMMUTABLES, RECORD_BATCH, RECORD_DROP};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::feed::DropRecord;
use crate::key::{Kind, NamespaceId, SeqNo};
use crate::options::Durability;
use crate::publish::AckFn;
use crate::tree::{Immutable, Tree, TreeState};
use crate::work;

/// A batch of so many bytes that is to be durable goes to the disk while its operations go into the
/// memtables, rather than after. Smaller ones take less time there than the call does.
const EARLY_SYNC_BYTES: usize = 8 << 10;

/// A millisecond or two of a writer of small records that waits for nothing. The 99.9th percentile of single
/// puts is not of those that give way.
const TURN_OPERATIONS: u64 = 1536;

/// How a batch is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// When it is acknowledged. Default: when it is durable.
    pub durability: Durability,
    /// The longest it is delayed by backpressure before it is refused as overloaded; `None`: as the
    /// database's options say.
    pub max_delay: Option<Duration>,
}

impl WriteOptions {
    /// Acknowledged when durable.
    pub fn sync() -> Self {
        Self::default()
    }

    /// Acknowledged when it survives the death of the process.
    pub fn buffered() -> Self {
        Self {
            durability: Durability::Buffered,
            max_delay: None,
        }
    }
}

/// The sequence numbers of a written batch: operation `i` has version `first + i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Of the first operation.
    pub first: SeqNo,
    /// Of the last operation.
    pub last: SeqNo,
}

/// A batch that is on its way: in the log and in order, but not yet acknowledged. Dropping it does
/// not take the write back.
#[derive(Debug)]
#[must_use = "the write is not acknowledged before it was waited for"]
pub struct Ticket {
    core: Arc<Core>,
    placed: Placed,
}

/// Where a batch is in the order of writes.
#[derive(Clone, Copy, Debug)]
struct Placed {
    commit: Commit,
    /// Where its log record ends.
    lsn: Lsn,
    /// It is acknowledged already.
    acked: bool,
}

impl Ticket {
    /// Its sequence numbers.
    pub fn commit(&self) -> Commit {
        self.placed.commit
    }

    /// Whether it is acknowledged already.
    pub fn is_acked(&self) -> bool {
        self.placed.acked || self.core.snapshots.published() >= self.placed.commit.last
    }

    /// Waits for the acknowledgement. Errors: the log failed; whether the write survives is unknown.
    pub fn wait(self) -> Result<Commit> {
        self.core.wait_for_ack(&self.placed)
    }

    /// Runs `done` once the write is acknowledged or has failed: now, on this thread, if that is
    /// known already, else on the thread that syncs the log. It must not block.
    pub fn on_ack(self, done: Box<dyn FnOnce(Result<Commit>) + Send>) {
        let commit = self.placed.commit;
        if self.is_acked() {
            return done(Ok(commit));
        }
        let run: AckFn = Box::new(move |result| done(result.map(|()| commit)));
        let published = self.core.snapshots.number();
        if !self.core.acks.add(published, commit.last, run) {
            return;
        }
        match self.core.log() {
            Ok(log) => log.request_sync(),
            Err(error) => return self.core.fail_acks(&error),
        }
        // An append may have failed, of which only its own writer was told.
        if let Some(text) = self.core.poisoned.lock().clone() {
            self.core.fail_acks(&Error::Poisoned(text));
        }
    }
}

/// What a condition's key was when it was looked at before the commit lock was taken.
struct Look {
    state: Arc<TreeState>,
    version: Option<SeqNo>,
}

impl Core {
    /// Writes a batch and waits for the acknowledgement.
    pub fn write(
        self: &Arc<Self>,
        batch: &mut WriteBatch,
        options: &WriteOptions,
    ) -> Result<Commit> {
        let placed = self.place(batch, options)?;
        if options.durability == Durability::Buffered {
            // Not in `submit`: whoever calls that waits for nothing, and may hold locks.
            self.end_turn(placed.commit);
        }
        self.wait_for_ack(&placed)
    }

    fn wait_for_ack(&self, placed: &Placed) -> Result<Commit> {
        if !placed.acked && self.snapshots.published() < placed.commit.last {
            self.make_durable(self.log()?, placed.lsn)?;
            debug_assert!(self.snapshots.published() >= placed.commit.last);
        }
        Ok(placed.commit)
    }

    /// Puts a batch into the log and the memtables.
    pub fn submit(
        self: &Arc<Self>,
        batch: &mut WriteBatch,
        options: &WriteOptions,
    ) -> Result<Ticket> {
        let placed = self.place(batch, options)?;
        Ok(Ticket {
            core: Arc::clone(self),
            placed,
        })
    }

    fn place(self: &Arc<Self>, batch: &mut WriteBatch, options: &WriteOptions) -> Result<Placed> {
        self.check_open()?;
        self.log()?;
        let looks = self.look(batch.requirements())?;
        self.wait_for_room(batch, options)?;

        let mut commit = self.commit.lock();
        self.check_open()?;
        if let Some(text) = &*self.poisoned.lock() {
            return Err(Error::Poisoned(text.clone()));
        }
        if let Err(error) = self.decide(batch.requirements(), &looks) {
            drop(commit);
            return Err(self.after_unpublished(error));
        }
        if batch.is_empty() {
            let last = commit.last_seqno;
            let acked = commit.unpublished.is_empty();
            let lsn = self.log()?.appended();
            return Ok(Placed {
                commit: Commit { first: last, last },
                lsn,
                acked,
            });
        }
        let result = self.append_and_insert(&mut commit, batch, options);
        let (placed, rotated) = match result {
            Ok(done) => done,
            Err(error) => {
                drop(commit);
                if error.is_out_of_space() {
                    work::disk_full(self, &error.to_string());
                }
                return Err(error);
            }
        };
        drop(commit);
        if rotated {
            work::schedule(self);
        }
        if options.durability == Durability::Buffered {
            self.arm_background_sync();
        }
        Ok(placed)
    }

    /// Gives way now and then while background work may want this processor: that gives way, too (see
    /// `file_writer`), and would else get little of it.
    #[inline]
    fn end_turn(&self, commit: Commit) {
        let is_over = commit.first.0 / TURN_OPERATIONS != (commit.last.0 + 1) / TURN_OPERATIONS;
        if is_over && self.jobs.load(Ordering::Relaxed) > 0 {
            give_way();
        }
    }

    fn append_and_insert(
        self: &Arc<Self>,
        commit: &mut CommitState,
        batch: &mut WriteBatch,
        options: &WriteOptions,
    ) -> Result<(Placed, bool)> {
        let log = self.log()?;
        let trees = self.trees.load();
        for &id in batch.namespaces() {
            if trees.get(id).is_none_or(|tree| tree.is_dropped()) {
                return Err(Error::NamespaceNotFound(format!("#{}", id.0)));
            }
        }
        let use_reserve = batch.only_deletes();
        if self.disk_full.load(Ordering::Relaxed) && !use_reserve {
            return Err(Error::DiskFull(
                "puts are refused until there is room".into(),
            ));
        }
        let first = SeqNo(commit.last_seqno.0 + 1);
        let last = SeqNo(commit.last_seqno.0 + batch.len() as u64);
        if last > SeqNo::MAX {
            return Err(Error::LimitExceeded {
                limit: "sequence_number",
                max: SeqNo::MAX.0,
                actual: last.0,
            });
        }
        let start = log.appended();
        let record = Entry {
            kind: RECORD_BATCH,
            parts: &[batch.seal(first)],
        };
        let lsn = match log.append_many(&[record], use_reserve) {
            Ok(lsn) => lsn,
            Err(error) => return Err(self.refused_by_log(log, &error)),
        };
        // From here on the batch is in the log: nothing below may fail.
        if options.durability == Durability::Sync && batch.encoded_len() >= EARLY_SYNC_BYTES {
            log.start_sync(start);
        }
        commit.last_seqno = last;
        let mut rotated = false;
        let mut seqno = first;
        let mut operations = batch.operations().map_while(|o| o.ok()).peekable();
        while let Some(id) = operations.peek().map(|o| o.namespace) {
            // Present: checked above, and namespaces change under the commit lock only.
            let Some(tree) = trees.get(id) else { break };
            tree.note_record(start);
            let state = tree.state();
            let memtable = &state.active;
            let before = memtable.memory_bytes();
            while let Some(operation) = operations.next_if(|o| o.namespace == id) {
                if operation.kind == Kind::RangeDelete {
                    memtable.add_range_tombstone(operation.key, operation.value, seqno);
                } else {
                    memtable.insert(operation.key, seqno, operation.kind, operation.value);
                }
                seqno.0 += 1;
            }
            let after = memtable.memory_bytes();
            drop(state);
            if after != before {
                self.memtables_bytes
                    .fetch_add(after - before, Ordering::Relaxed);
            }
            if after >= self.settings.retire_bytes {
                // A tree that is touched again later in this batch starts a new memtable there: its
                // part of the batch is then in two memtables, both covered by the same log record.
                let so_far = CommitState {
                    last_seqno: SeqNo(seqno.0 - 1),
                    ..Default::default()
                };
                rotated |= self.rotate(&so_far, tree)?;
            }
        }
        let sync = options.durability == Durability::Sync;
        let acked = commit
            .unpublished
            .place(self.snapshots.number(), last, lsn, sync);
        rotated |= self.rotate_for_budget(commit)?;
        let counters = &self.observer.counters;
        counters.writes.add(1);
        counters.write_ops.add(batch.len() as u64);
        counters.write_bytes.add(batch.encoded_len() as u64);
        Ok((
            Placed {
                commit: Commit { first, last },
                lsn,
                acked,
            },
            rotated,
        ))
    }

    /// Logs that a namespace is dropped, as an operation like any other; it is in force once it is
    /// durable. Under the commit lock. Errors: nothing is dropped, unless the log failed.
    pub fn log_drop(&self, commit: &mut CommitState, tree: &Tree) -> Result<()> {
        let log = self.log()?;
        let seqno = SeqNo(commit.last_seqno.0 + 1);
        let record = DropRecord {
            seqno,
            namespace: tree.id,
            name: &tree.name,
        };
        let start = log.appended();
        let entry = Entry {
            kind: RECORD_DROP,
            parts: &[&record.encode()],
        };
        let lsn = match log.append_many(&[entry], true) {
            Ok(lsn) => lsn,
            Err(error) => return Err(self.refused_by_log(log, &error)),
        };
        commit.last_seqno = seqno;
        // Recovery must find it for as long as the manifest has the namespace.
        tree.note_record(start);
        self.feed
            .note_dropped(tree.id, Arc::clone(&tree.name), lsn.segment());
        commit
            .unpublished
            .place(self.snapshots.number(), seqno, lsn, true);
        Ok(())
    }

    /// Retires the largest memtable when all together are over their budget, and the one that needs
    /// the oldest log when the log is. Under the commit lock.
    fn rotate_for_budget(&self, commit: &CommitState) -> Result<bool> {
        let over_memory =
            self.memtables_bytes.load(Ordering::Relaxed) > self.settings.memtables_bytes;
        // The log is looked at once a segment.
        let segment = self.log()?.appended().segment();
        let previous = self.log_segment.swap(segment, Ordering::Relaxed);
        let is_new_segment = previous != segment;
        if !over_memory && !is_new_segment {
            return Ok(false);
        }
        let trees = self.trees.load();
        let needs = || trees.iter().filter_map(|tree| tree.needs_log_from());
        let is_filled = is_new_segment && previous != 0;
        if is_filled && (needs().count() > 1 || self.is_log_followed()) {
            // Flushes will wait for it (see `may_be_ahead_of_log`).
            self.log()?.request_sync_of_filled(segment);
        }
        let oldest = needs().min();
        let segments = segment - oldest.map_or(segment, Lsn::segment);
        let over_log =
            u64::from(segments) * self.settings.log_segment_bytes > self.settings.log_bytes;
        if !over_memory && !over_log {
            return Ok(false);
        }
        // What is being flushed already will free memory and log without more rotations.
        if self.has_retired() {
            return Ok(false);
        }
        let filled = trees.iter().filter(|tree| tree.needs_log_from().is_some());
        let tree = if over_log {
            filled.min_by_key(|tree| tree.needs_log_from())
        } else {
            filled.max_by_key(|tree| tree.state().active.memory_bytes())
        };
        match tree {
            Some(tree) => self.rotate(commit, tree),
            None => Ok(false),
        }
    }

    /// Reads the keys of conditions before the lock is taken, so that no disk is waited for under
    /// it.
    fn look(&self, requirements: &[Requirement]) -> Result<Vec<Look>> {
        let trees = self.trees.load();
        requirements
            .iter()
            .map(|requirement| {
                let tree = find(&trees, requirement.namespace)?;
                let state = tree.pin_state();
                let version = self.version_at(&state, &requirement.key, SeqNo::MAX)?;
                Ok(Look { state, version })
            })
            .collect()
    }

    /// Decides conditions, under the commit lock. What `look` saw still holds unless the memtables
    /// or the levels changed since.
    fn decide(&self, requirements: &[Requirement], looks: &[Look]) -> Result<()> {
        let trees = self.trees.load();
        for (index, (requirement, look)) in requirements.iter().zip(looks).enumerate() {
            let state = find(&trees, requirement.namespace)?.pin_state();
            let settled = Arc::ptr_eq(&state.levels, &look.state.levels)
                && !self.memtables_know(&state, &requirement.key);
            let version = if settled {
                look.version
            } else {
                self.version_at(&state, &requirement.key, SeqNo::MAX)?
            };
            if !requirement.condition.holds(version) {
                let actual = version.map(|seqno| seqno.0);
                return Err(Error::ConditionFailed { index, actual });
            }
        }
        Ok(())
    }

    /// A refusal may rest on a write that is not durable yet: its news must not be out before it is.
    fn after_unpublished(&self, error: Error) -> Error {
        let waiting = self.commit.lock().unpublished.needs();
        let Some(lsn) = waiting else { return error };
        match self.log().and_then(|log| self.sync_log(log, lsn)) {
            Ok(()) => error,
            Err(failed) => failed,
        }
    }

    /// Backpressure: delays the writer, or refuses it.
    fn wait_for_room(self: &Arc<Self>, batch: &WriteBatch, options: &WriteOptions) -> Result<()> {
        let bytes = batch.encoded_len();
        let delay = self.pacer.delay_for(bytes as u64);
        if delay.is_zero() && !self.must_wait() {
            return Ok(());
        }
        if batch.only_deletes() && self.disk_full.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.wait_for_room_slowly(bytes as u64, delay, options)
    }

    /// Whether so many memtables wait for their flush that writers must wait too.
    fn must_wait(&self) -> bool {
        let limit = self
            .settings
            .memtable_bytes
            .saturating_mul(MAX_IMMUTABLES + 1);
        self.memtables_bytes.load(Ordering::Relaxed) >= limit
    }

    #[cold]
    fn wait_for_room_slowly(
        self: &Arc<Self>,
        bytes: u64,
        delay: Duration,
        options: &WriteOptions,
    ) -> Result<()> {
        let max_delay = options.max_delay.or(self.settings.given.max_write_delay);
        let counters = &self.observer.counters;
        counters.write_stalls.add(1);
        let started = self.env.clock.monotonic();
        if let Some(max) = max_delay
            && delay > max
        {
            self.pacer.give_back(bytes);
            return Err(Error::Overloaded {
                retry_after_ms: delay.as_millis() as u64 + 1,
            });
        }
        if !delay.is_zero() {
            self.env.clock.sleep(delay);
        }
        if self.must_wait() {
            self.observer.emit(Event::StallBegin {
                reason: "memtables wait for their flush",
            });
            let result = self.wait_for_memory(started, max_delay);
            let micros = self
                .env
                .clock
                .monotonic()
                .saturating_sub(started)
                .as_micros() as u64;
            self.observer.emit(Event::StallEnd { micros });
            counters.write_stall_micros.add(micros);
            return result;
        }
        counters.write_stall_micros.add(delay.as_micros() as u64);
        Ok(())
    }

    /// Waits until memtables are flushed, retiring one after the other until it is enough: one batch
    /// may have filled many small ones.
    fn wait_for_memory(
        self: &Arc<Self>,
        started: Duration,
        max_delay: Option<Duration>,
    ) -> Result<()> {
        loop {
            let rotated = {
                let commit = self.lock_commit();
                self.rotate_for_budget(&commit)?
            };
            if !rotated && !self.has_retired() {
                // Nothing is left that a flush could free: the count was behind.
                self.recount_memtables();
                return Ok(());
            }
            work::schedule(self);
            let enough = self.wait_for(|state| {
                if !self.must_wait() {
                    return Some(Ok(true));
                }
                if self.closed.load(Ordering::Acquire) {
                    return Some(Err(Error::Closed("the database is closed")));
                }
                if self.disk_full.load(Ordering::Relaxed) {
                    let detail = "memtables cannot be flushed until there is room";
                    return Some(Err(Error::DiskFull(detail.into())));
                }
                if let Some(error) = &state.flush.last_error {
                    // Flushing fails for another reason: waiting would last until it is mended.
                    return Some(Err(error.duplicate()));
                }
                if state.flushes == 0 && !self.has_retired() {
                    return Some(Ok(false));
                }
                let waited = self.env.clock.monotonic().saturating_sub(started);
                match max_delay {
                    Some(max) if waited >= max => Some(Err(Error::Overloaded {
                        retry_after_ms: 100,
                    })),
                    _ => None,
                }
            })?;
            if enough {
                return Ok(());
            }
        }
    }

    /// Whether any memtable waits for its flush.
    fn has_retired(&self) -> bool {
        let trees = self.trees.load();
        trees.iter().any(|tree| !tree.state().immutables.is_empty())
    }

    /// The error of a write that the log did not take. A full disk is one that passes, unless the log has failed
    /// by it: what was allocated has its space, but not on every file system.
    fn refused_by_log(&self, log: &firn_io::wal::Log, error: &firn_io::Error) -> Error {
        if error.is_out_of_space() && log.poison().is_none() {
            return Error::DiskFull(error.to_string());
        }
        self.poison(error)
    }

    /// Makes the log durable up to `lsn` and publishes what that allows.
    pub fn sync_log(&self, log: &firn_io::wal::Log, lsn: Lsn) -> Result<()> {
        self.make_durable(log, lsn)?;
        self.publish_synced(log.synced());
        Ok(())
    }

    /// Makes the log durable up to `lsn`, the end of a record. Then the batch in it is published, too: whoever
    /// synced has told the log's listener before, and that takes the commit lock, under which the batch
    /// came into the log and the queue. Many threads that waited for one sync need not do so once more.
    fn make_durable(&self, log: &firn_io::wal::Log, lsn: Lsn) -> Result<()> {
        log.sync_to(lsn).map_err(|error| {
            let error = self.poison(&error);
            self.fail_acks(&error);
            error
        })
    }

    /// Whether segments are kept for watches, or one is open: they are told what is durable in the log, and
    /// would have a hole in it after a power loss, or lose segments before they were told of them.
    fn is_log_followed(&self) -> bool {
        self.settings.given.changefeed_bytes > 0 || self.feed.watches().0 > 0
    }

    /// Whether a memtable may be flushed though the log is not durable up to its end: no other tree needs
    /// the log up to there, so what is lost with it is in SSTables. Nobody waits for a part of it to be
    /// durable, either: who was told that the log failed should not find the write in an SSTable.
    pub fn may_be_ahead_of_log(&self, memtable: &Arc<Immutable>) -> Result<bool> {
        Ok(!self.is_log_followed()
            && self.snapshots.published() >= memtable.last_seqno
            && self.log()?.poison().is_none()
            && self.log_needed_from(Some(memtable))? >= memtable.end_lsn)
    }

    /// Lets readers see every batch that is durable, or that need not be, up to the first that must
    /// be and is not; then acknowledges.
    pub fn publish_synced(&self, synced: Lsn) {
        let published = self.snapshots.number();
        self.commit.lock().unpublished.advance(published, synced);
        self.acks.run(published);
        // After the publication: what a watch tells, a read finds.
        self.feed.advance(synced);
    }

    /// Tells everyone who waits that the log failed.
    pub fn fail_acks(&self, error: &Error) {
        self.acks.fail(self.snapshots.number(), error);
    }

    /// Sees to it that buffered writes are synced within the configured time.
    fn arm_background_sync(self: &Arc<Self>) {
        let Some(interval) = self.settings.given.background_sync else {
            return;
        };
        if self.sync_armed.load(Ordering::Relaxed) || self.sync_armed.swap(true, Ordering::AcqRel) {
            return;
        }
        let core = Arc::downgrade(self);
        self.env.exec.submit_after(
            interval,
            firn_io::exec::Priority::High,
            Box::new(move || {
                let Some(core) = core.upgrade() else { return };
                core.sync_armed.store(false, Ordering::Release);
                if let Ok(log) = core.log() {
                    // Through the lock: a write that found a sync armed is in the log by now.
                    drop(core.lock_commit());
                    // A failure poisons the log, which every later write reports.
                    let _ = core.sync_log(log, log.appended());
                }
            }),
        );
    }
}

fn find(trees: &crate::core::Trees, id: NamespaceId) -> Result<&Arc<Tree>> {
    match trees.get(id) {
        Some(tree) if !tree.is_dropped() => Ok(tree),
        _ => Err(Error::NamespaceNotFound(format!("#{}", id.0))),
    }
}
