//! The same reads and writes for doors that run many commands in a row without awaiting each.
//!
//! A pipelining door runs what its client sent as one stretch of plain code: reads answer at once,
//! writes are submitted at once and their acknowledgement is awaited once, for the last of them,
//! before any answer leaves. Nothing here waits, except for a read that has to go to disk:
//! [`Service::reads_are_cheap`] says whether that is to be feared, and the door then moves to a
//! thread that may wait.
//!
//! **Read, decide, write.** Such a command reads the newest entry, published or not, and submits its
//! write on the condition that the version is still that one. So no door can come between, and
//! several such commands on one key share one sync. The condition would fail often where many count
//! in the same key, so these commands also take a lock of the key's stripe ([`Service::lock`]) around
//! both steps, in which nothing is awaited. Plain writes of that door take it too; those of other
//! doors do not, and are met by the condition and another try.
//!
//! **On a node of a cluster** what becomes of a write is known only when a majority has it, so it is
//! awaited before the next command that reads ([`Ticket::Node`]). A read is preceded by a barrier,
//! one for all commands that came together ([`Service::read_point`]). Read, decide, write rests on
//! the condition alone, which is decided where the write is applied: two nodes may take such commands
//! on one key at once. What was read may be old; then the condition fails, and the next try waits
//! until this node has what made it fail. Keys on which that happens are locked for whole rounds for
//! a while ([`Service::is_hot`]): a courtesy to the others, not what makes it right.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use firn_engine::key::SeqNo;
use firn_engine::{Commit, Durability, Entry, Namespace, WriteBatch, WriteOptions};
use firn_replica::{ReadLevel, Replicator, Write};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::service::error::{Error, Result};
use crate::service::replica::{commit_of, read_error};
use crate::service::{Service, limits};

/// Stripes of keys that are locked together; the bits of a mask.
pub const STRIPES: usize = 64;

/// The locks of keys.
#[derive(Debug)]
pub(crate) struct Stripes([Mutex<()>; STRIPES]);

impl Default for Stripes {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(())))
    }
}

/// Locked stripes. Dropping it unlocks them.
#[derive(Debug)]
pub struct Locked<'a> {
    _one: Option<MutexGuard<'a, ()>>,
    _many: Vec<MutexGuard<'a, ()>>,
}

/// The locks of keys that are held while a majority is waited for.
#[derive(Debug)]
pub(crate) struct Rounds {
    locks: [Arc<tokio::sync::Mutex<()>>; STRIPES],
    /// How many more rounds of a stripe go one after the other.
    heat: [AtomicU8; STRIPES],
}

impl Default for Rounds {
    fn default() -> Self {
        Self {
            locks: std::array::from_fn(|_| Arc::default()),
            heat: std::array::from_fn(|_| AtomicU8::new(0)),
        }
    }
}

/// Rounds in a row after a conflict.
const HEAT: u8 = 64;

/// Stripes that are held for a round. Dropping it lets others go on.
#[derive(Debug)]
pub struct Held {
    /// Which.
    pub stripes: u64,
    _guards: Vec<OwnedMutexGuard<()>>,
}

/// A write that was proposed, and what became of it.
#[derive(Debug)]
pub struct Placed {
    /// Its place in the log, applied or not.
    pub index: u64,
    /// Its versions, or why it was not done.
    pub commit: Result<Commit>,
}

/// A write that is on its way. Dropping it does not take it back.
#[derive(Debug)]
pub enum Ticket {
    /// To this server's own log.
    Own(firn_engine::Ticket),
    /// To a majority.
    Node(oneshot::Receiver<Result<Placed>>),
}

impl Ticket {
    /// Its versions, if they are known before it is acknowledged.
    pub fn commit(&self) -> Option<Commit> {
        match self {
            Self::Own(ticket) => Some(ticket.commit()),
            Self::Node(_) => None,
        }
    }

    /// Whether it is acknowledged already.
    pub fn is_acked(&self) -> bool {
        match self {
            Self::Own(ticket) => ticket.is_acked(),
            Self::Node(_) => false,
        }
    }

    /// Resolves when it is acknowledged.
    ///
    /// # Errors
    /// It may or may not be in force, as the code says.
    pub async fn acked(self) -> Result<Placed> {
        match self {
            Self::Own(ticket) => {
                let (acknowledge, acknowledged) = oneshot::channel();
                ticket.on_ack(Box::new(move |outcome| {
                    // A connection that is gone does not wait for it.
                    let _ = acknowledge.send(outcome);
                }));
                let commit = acknowledged.await.map_err(|_| Error::shutting_down())??;
                let commit = Ok(commit);
                Ok(Placed { index: 0, commit })
            }
            Self::Node(told) => told.await.unwrap_or_else(|_| Err(lost())),
        }
    }

    /// The same on a thread that may wait.
    ///
    /// # Errors
    /// As [`Ticket::acked`].
    pub fn wait(self) -> Result<Placed> {
        match self {
            Self::Own(ticket) => {
                let commit = Ok(ticket.wait()?);
                Ok(Placed { index: 0, commit })
            }
            Self::Node(told) => told.blocking_recv().unwrap_or_else(|_| Err(lost())),
        }
    }
}

fn lost() -> Error {
    Error::new(
        firn_api::code::Code::OutcomeUnknown,
        "the server stopped before the write was acknowledged",
    )
}

/// The bit of the stripe that a key belongs to.
#[inline]
pub fn stripe_of(key: &[u8]) -> u64 {
    1 << (xxhash_rust::xxh3::xxh3_64(key) as usize % STRIPES)
}

impl Service {
    /// Whether reads may be expected not to wait for a disk.
    pub fn reads_are_cheap(&self) -> bool {
        self.inner.read_cost.is_low()
    }

    /// What a read took; decides about the next ones.
    pub fn note_read(&self, took: Duration) {
        self.inner.read_cost.note(took);
    }

    /// Locks stripes, in their order. Nothing may be awaited, nor read from disk if that can be
    /// helped, while they are locked.
    pub fn lock(&self, stripes: u64) -> Locked<'_> {
        let locks = &self.inner.stripes.0;
        let bits = || (0..STRIPES).filter(move |i| stripes >> i & 1 == 1);
        if stripes.count_ones() == 1 {
            let one = bits().next().map(|i| locks[i].lock());
            return Locked {
                _one: one,
                _many: Vec::new(),
            };
        }
        Locked {
            _one: None,
            _many: bits().map(|i| locks[i].lock()).collect(),
        }
    }

    /// Reads a key as it is published, or as it is at `at_least` if that is later (see
    /// [`firn_engine::Db::get_entry_at_least`] for what the caller owes then). May wait for a disk.
    ///
    /// # Errors
    /// Key too large, namespace not found, corruption, I/O.
    pub fn read(
        &self,
        namespace: &Namespace,
        key: &[u8],
        at_least: SeqNo,
    ) -> Result<Option<Entry>> {
        limits::key(self.limits(), key)?;
        if self.cluster().is_some() {
            let (db, namespace) = self.pinned(namespace)?;
            return db.get_entry(&namespace, key).map_err(read_error);
        }
        let entry = self.db().get_entry_at_least(namespace, key, at_least)?;
        Ok(entry)
    }

    /// Refuses a key or a value that is too large.
    ///
    /// # Errors
    /// Which limit it is.
    pub fn check_size(&self, key: &[u8], value_len: usize) -> Result<()> {
        limits::key(self.limits(), key)?;
        limits::value(self.limits(), value_len as u64)
    }

    /// Puts a batch in order. Never waits: where the engine asks for a slower pace, the error is
    /// overloaded with the time after which to try again, within [`Service::write_delay`]. (One
    /// exception: a condition that fails because of a write that is not durable yet waits for that.)
    ///
    /// # Errors
    /// As [`Service::write`].
    pub fn submit(&self, batch: &mut WriteBatch, durability: Durability) -> Result<Ticket> {
        if let Some(cluster) = self.cluster() {
            let (cluster, write) = (Arc::clone(cluster), Write::batch(batch));
            let (tell, told) = oneshot::channel();
            tokio::spawn(async move {
                let written = cluster.node().propose(write).await;
                let placed = written.map_err(Error::from).map(|written| Placed {
                    index: written.id.index,
                    commit: commit_of(written),
                });
                // A connection that is gone does not wait for it.
                let _ = tell.send(placed);
            });
            return Ok(Ticket::Node(told));
        }
        let options = WriteOptions {
            durability,
            max_delay: Some(Duration::ZERO),
        };
        Ok(Ticket::Own(self.db().submit_reusing(batch, &options)?))
    }

    /// Resolves when this node may be read, with everything up to `at_least` in its state: at once on
    /// a server by itself.
    ///
    /// # Errors
    /// There is no leader.
    pub async fn read_point(&self, stale: bool, at_least: Option<u64>) -> Result<()> {
        let Some(cluster) = self.cluster() else {
            return Ok(());
        };
        if !stale {
            cluster.node().read_barrier(ReadLevel::Linearizable).await?;
        }
        if let Some(index) = at_least {
            cluster.node().wait_applied(index).await?;
        }
        Ok(())
    }

    /// Whether a write of this node can be read from it.
    pub fn has_applied(&self, index: u64) -> bool {
        self.cluster()
            .is_none_or(|cluster| cluster.node().is_applied(index))
    }

    /// Whether keys of these stripes are better changed one round after the other.
    pub fn is_hot(&self, stripes: u64) -> bool {
        let heat = &self.inner.rounds.heat;
        let mut of = (0..STRIPES).filter(|i| stripes >> i & 1 == 1);
        of.any(|i| heat[i].load(Ordering::Relaxed) > 0)
    }

    /// Notes how a round with these stripes went.
    pub fn note_round(&self, stripes: u64, has_conflict: bool) {
        for i in (0..STRIPES).filter(|i| stripes >> i & 1 == 1) {
            let heat = &self.inner.rounds.heat[i];
            let before = heat.load(Ordering::Relaxed);
            let after = if has_conflict {
                HEAT
            } else {
                before.saturating_sub(1)
            };
            if after != before {
                heat.store(after, Ordering::Relaxed);
            }
        }
    }

    /// Holds stripes for a round, in their order.
    pub async fn hold(&self, stripes: u64) -> Held {
        let mut guards = Vec::new();
        for i in (0..STRIPES).filter(|i| stripes >> i & 1 == 1) {
            guards.push(Arc::clone(&self.inner.rounds.locks[i]).lock_owned().await);
        }
        Held {
            stripes,
            _guards: guards,
        }
    }

    /// How long a write may be tried again before it is refused.
    pub fn write_delay(&self) -> Duration {
        self.inner.parts.write_delay
    }

    /// Counts a write that waited for the engine.
    pub fn note_stall(&self, pause: Duration) {
        let (count, micros) = (&self.inner.stalls, &self.inner.stall_micros);
        let ordering = std::sync::atomic::Ordering::Relaxed;
        count.fetch_add(1, ordering);
        let pause = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        micros.fetch_add(pause, ordering);
    }

    /// A namespace, made if it is not there. Waits for the disk then.
    ///
    /// # Errors
    /// What keeps the engine from writing.
    pub fn namespace_or_create(&self, name: &str) -> Result<Namespace> {
        match self.namespace(name) {
            Err(error) if error.code == firn_api::code::Code::NamespaceNotFound => {
                if self.cluster().is_none() {
                    return Ok(self.db().namespace_or_create(name)?);
                }
                // On a thread that may wait.
                let made = self.create_namespace(name);
                tokio::runtime::Handle::current().block_on(made)?;
                self.namespace(name)
            }
            found => found,
        }
    }
}
