//! The one way to write to a database whose log is somebody else's: entry by entry.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use firn_io::wal::Lsn;

use crate::batch::{BatchReader, Requirement};
use crate::checkpoint::checkpoint;
use crate::core::{CommitState, Core, MAX_IMMUTABLES, RECORD_BATCH, RECORD_DROP, Trees};
use crate::error::{Error, Result};
use crate::external::state::{AppliedState, External};
use crate::feed::Committed;
use crate::key::{Kind, NamespaceId, SeqNo};
use crate::options::MAX_NAMESPACE_BYTES;
use crate::tree::Tree;
use crate::version::Version;
use crate::version::edit::Applied;
use crate::work;

/// One change of an entry, all or nothing.
#[derive(Debug)]
pub enum Change<'a> {
    /// Operations, if what they require holds.
    Write {
        /// What must hold of the state just before.
        requirements: &'a [Requirement],
        /// An encoded batch; its sequence number is not looked at.
        batch: BatchReader<'a>,
    },
    /// A new namespace.
    CreateNamespace(&'a str),
    /// A namespace goes, with everything in it.
    DropNamespace(&'a str),
}

/// What became of a [`Change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was written: the versions of its first and last operation. For a batch without operations
    /// both are the version of the newest operation before.
    Written {
        /// Of the first operation.
        first: SeqNo,
        /// Of the last one.
        last: SeqNo,
    },
    /// A condition did not hold; nothing was written.
    ConditionFailed {
        /// Its place in the list.
        index: u32,
        /// The version that the key has; `None` if it does not exist.
        actual: Option<SeqNo>,
    },
    /// It names a namespace that does not exist; nothing was written.
    NamespaceNotFound,
    /// There is a namespace of this name already, with this number.
    NamespaceExists(NamespaceId),
    /// The namespace was made and has this number.
    Created(NamespaceId),
    /// The namespace is gone.
    Dropped,
    /// The name cannot be one, or the namespace cannot be dropped.
    Refused,
}

/// Applies entries. There is one for each database, and one entry at a time.
#[derive(Debug)]
pub struct Applier {
    core: Arc<Core>,
}

/// The number `count` operations after `before`.
fn later(before: SeqNo, count: u64) -> Result<SeqNo> {
    let last = SeqNo(before.0 + count);
    if last > SeqNo::MAX {
        return Err(Error::LimitExceeded {
            limit: "sequence_number",
            max: SeqNo::MAX.0,
            actual: last.0,
        });
    }
    Ok(last)
}

impl Applier {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    fn external(&self) -> Result<&External> {
        let external = self.core.external.as_ref();
        external.ok_or(Error::Closed("the database has a log of its own"))
    }

    /// The last entry that was applied, and the owner's state as of it. After opening these are the
    /// ones that are durable.
    pub fn applied(&self) -> (Option<Applied>, Arc<[u8]>) {
        match &self.core.external {
            Some(external) => external.applied(),
            None => (None, Arc::default()),
        }
    }

    /// The time as of the last entry that was applied, in Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.core.env.clock.unix_ms()
    }

    /// Whether there may be values that expire: then somebody has to let time pass, by entries.
    pub fn may_expire(&self) -> bool {
        self.external().is_ok_and(External::may_expire)
    }

    /// Applies an entry: its changes in order, each seeing those before it. Readers see all of them
    /// at once. `owner` replaces what the log's owner wants to know as of this entry.
    ///
    /// Errors: the entry is malformed, a file that a condition had to read is damaged or cannot be
    /// read, the database is closed. The entry may be applied in part, out of the sight of readers:
    /// nothing further must be applied to this database before it was opened again.
    pub fn apply(
        &self,
        position: Applied,
        time_ms: u64,
        owner: Option<Arc<[u8]>>,
        changes: &[Change<'_>],
    ) -> Result<Vec<Outcome>> {
        let core = &self.core;
        let external = self.external()?;
        core.check_open()?;
        external.check_whole()?;
        let mut commit = core.commit.lock();
        if let (Some(before), _) = external.applied()
            && position <= before
        {
            return Err(Error::InvalidArgument(format!(
                "entry {position:?} comes after {before:?}"
            )));
        }
        let time_ms = external.clock.advance(time_ms);
        let mut outcomes = Vec::with_capacity(changes.len());
        let mut told = Vec::new();
        for change in changes {
            let outcome = match change {
                Change::Write {
                    requirements,
                    batch,
                } => self.write(&mut commit, requirements, batch, &mut told),
                Change::CreateNamespace(name) => Ok(self.create(external, name)),
                Change::DropNamespace(name) => self.drop(external, &mut commit, name, &mut told),
            };
            // Changes before it may be in the memtables.
            outcomes.push(outcome.inspect_err(|_| external.fail())?);
        }
        external.set_applied(position, time_ms, owner);
        if core.snapshots.published() < commit.last_seqno {
            core.snapshots.number().set(commit.last_seqno);
        }
        let has_news = !told.is_empty();
        if has_news {
            let limit = core.history_limit();
            // Who keeps up is told all of an entry, however large it is.
            let least = told.len();
            let mut history = external.history.lock();
            for committed in told {
                history.push(Arc::new(committed), limit, least);
            }
        }
        let settings = &core.settings;
        let is_full =
            |tree: &Arc<Tree>| tree.state().active.memory_bytes() >= settings.memtable_bytes;
        let trees = core.trees.load();
        let over_budget = core.memtables_bytes.load(Ordering::Relaxed) > settings.memtables_bytes;
        let cut = (over_budget && external.waiting() == 0 || trees.iter().any(is_full))
            && external.cut(trees.iter(), commit.last_seqno);
        drop(commit);
        if has_news {
            core.feed.wake();
        }
        if cut {
            work::schedule(core);
        }
        Ok(outcomes)
    }

    fn write(
        &self,
        commit: &mut CommitState,
        requirements: &[Requirement],
        batch: &BatchReader<'_>,
        told: &mut Vec<Committed>,
    ) -> Result<Outcome> {
        let core = &self.core;
        let trees = core.trees.load();
        // All of it is read before any of it is written.
        for operation in batch.clone().operations() {
            let operation = operation
                .map_err(|detail| Error::InvalidArgument(format!("an entry's batch: {detail}")))?;
            if trees.get(operation.namespace).is_none() {
                return Ok(Outcome::NamespaceNotFound);
            }
        }
        for (index, requirement) in requirements.iter().enumerate() {
            let Some(tree) = trees.get(requirement.namespace) else {
                return Ok(Outcome::NamespaceNotFound);
            };
            let state = tree.pin_state();
            let actual = core.version_at(&state, &requirement.key, SeqNo::MAX)?;
            if !requirement.condition.holds(actual) {
                let index = index as u32;
                return Ok(Outcome::ConditionFailed { index, actual });
            }
        }
        let last = later(commit.last_seqno, u64::from(batch.count))?;
        let before = commit.last_seqno;
        let mut seqno = before;
        let mut bytes = 0;
        let mut names: Vec<(NamespaceId, Arc<str>)> = Vec::new();
        for operation in batch
            .clone()
            .operations()
            .map_while(|operation| operation.ok())
        {
            let Some(tree) = trees.get(operation.namespace) else {
                continue;
            };
            seqno.0 += 1;
            let is_last = names.last().is_some_and(|(last, _)| *last == tree.id);
            if !is_last && names.iter().all(|(known, _)| *known != tree.id) {
                names.push((tree.id, Arc::clone(&tree.name)));
            }
            // Any position will do: it says that the memtable is not empty.
            tree.note_record(Lsn::ZERO);
            let state = tree.state();
            let memtable = &state.active;
            let (key, value) = (operation.key, operation.value);
            let memory = memtable.memory_bytes();
            if operation.kind.is_expiring()
                && let Some(external) = &core.external
            {
                external.note_expiring();
            }
            if operation.kind == Kind::RangeDelete {
                memtable.add_range_tombstone(key, value, seqno);
            } else {
                memtable.insert(key, seqno, operation.kind, value);
            }
            core.memtables_bytes
                .fetch_add(memtable.memory_bytes() - memory, Ordering::Relaxed);
            bytes += (key.len() + value.len()) as u64;
        }
        commit.last_seqno = last;
        let counters = &core.observer.counters;
        counters.writes.add(1);
        counters.write_ops.add(u64::from(batch.count));
        counters.write_bytes.add(bytes);
        let first = SeqNo(before.0 + u64::from(batch.count > 0));
        if batch.count > 0 {
            told.push(Committed {
                first,
                last,
                end: Lsn::ZERO,
                kind: RECORD_BATCH,
                payload: batch.encode_at(first).into(),
                names,
            });
        }
        Ok(Outcome::Written { first, last })
    }

    fn create(&self, external: &External, name: &str) -> Outcome {
        if name.is_empty() || name.len() > MAX_NAMESPACE_BYTES {
            return Outcome::Refused;
        }
        let trees = self.core.trees.load();
        if let Some(tree) = trees.by_name(name) {
            return Outcome::NamespaceExists(tree.id);
        }
        let id = external.create_namespace(name);
        let tree = Tree::new(
            id,
            name.into(),
            Arc::new(Version::empty()),
            Arc::clone(&self.core.chunks),
        );
        self.swap_trees(|trees| trees.insert(Arc::new(tree)));
        Outcome::Created(id)
    }

    fn drop(
        &self,
        external: &External,
        commit: &mut CommitState,
        name: &str,
        told: &mut Vec<Committed>,
    ) -> Result<Outcome> {
        let trees = self.core.trees.load();
        let Some(tree) = trees.by_name(name) else {
            return Ok(Outcome::NamespaceNotFound);
        };
        if tree.id == NamespaceId::default() {
            return Ok(Outcome::Refused);
        }
        // It has its place in the history, as in a database with a log of its own.
        let seqno = later(commit.last_seqno, 1)?;
        commit.last_seqno = seqno;
        let names = vec![(tree.id, Arc::clone(&tree.name))];
        told.push(Committed {
            first: seqno,
            last: seqno,
            end: Lsn::ZERO,
            kind: RECORD_DROP,
            payload: Box::default(),
            names,
        });
        tree.set_dropped();
        external.drop_namespace(tree.id);
        self.swap_trees(|trees| trees.remove(tree.id));
        self.core.recount_memtables();
        Ok(Outcome::Dropped)
    }

    fn swap_trees(&self, change: impl FnOnce(&mut Trees)) {
        let mut trees = (**self.core.trees.load()).clone();
        change(&mut trees);
        self.core.trees.store(Arc::new(trees));
    }

    /// Whether so much waits for its flush that the next entry should wait too. Applying it all the
    /// same does no harm but to memory.
    pub fn must_wait(&self) -> bool {
        let settings = &self.core.settings;
        let limit = settings.memtable_bytes.saturating_mul(MAX_IMMUTABLES + 1);
        self.core.memtables_bytes.load(Ordering::Relaxed) >= limit
            || self
                .external()
                .is_ok_and(|external| external.waiting() > MAX_IMMUTABLES)
    }

    /// Why the last flush failed. Nothing once one has succeeded, and for a while when there seems to be room
    /// again: it is tried again then.
    pub fn flush_error(&self) -> Option<String> {
        let work = self.core.work.lock();
        work.flush.last_error.as_ref().map(ToString::to_string)
    }

    /// Makes a copy of the database in `dir`, which must not exist, as [`Db::checkpoint`] does, with
    /// everything that was applied before the call. Returns the last entry in it, and the owner's
    /// state as of that entry. Waits for a flush.
    ///
    /// [`Db::checkpoint`]: crate::Db::checkpoint
    pub fn checkpoint(&self, dir: &Path) -> Result<(Option<Applied>, Arc<[u8]>)> {
        self.core.check_open()?;
        let position = checkpoint(&self.core, dir)?.unwrap_or_default();
        let state = position.applied_state.as_deref();
        let owner = state
            .and_then(AppliedState::decode)
            .unwrap_or_default()
            .owner;
        Ok((position.applied, owner))
    }

    /// Has everything that was applied flushed, in the background: the log's owner asks for it when
    /// its log has grown long, and hears of the end by
    /// [`flushed`](crate::ExternalLog::flushed). Returns whether there was anything to flush.
    pub fn flush_soon(&self) -> Result<bool> {
        let external = self.external()?;
        let cut = {
            let commit = self.core.lock_commit();
            external.cut(self.core.trees.load().iter(), commit.last_seqno)
        };
        work::schedule(&self.core);
        Ok(cut || external.waiting() > 0)
    }
}
