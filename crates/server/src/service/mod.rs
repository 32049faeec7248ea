//! The service: what the server means, said once for every door.
//!
//! A door (HTTP today) turns bytes of its protocol into a call here and the outcome back into bytes.
//! Everything that must be the same through every door lives here: limits, conditions, time to
//! live, durability, consistency, what a cursor is, and which error it is.
//!
//! **Threads.** The engine is synchronous, the doors are not, and no worker of the runtime may wait
//! for a disk:
//!
//! * *Writes* are submitted on the worker (encoding and an append to a buffer) and acknowledged by
//!   a call-back from the log's thread. When the engine asks for a slower pace, the worker is given
//!   back and the write is submitted again after the delay (`commit`). Batches above
//!   [`INLINE_WRITE_BYTES`] are encoded on a blocking thread; so are those with conditions, which
//!   the engine may have to read from disk, and whose failure it may have to sync the log for.
//! * *Point reads* run on the worker as long as they are cheap, and on a blocking thread when the
//!   recent ones were not: a read from memory costs a microsecond, which a hop between threads
//!   would multiply; a read from disk costs a hundred (`ReadCost`).
//! * *Everything else* (scans, multi-gets, administration) runs on blocking threads, a scan one
//!   chunk at a time, so that a slow reader holds no thread.

pub mod admin;
pub mod batch;
pub mod error;
pub mod kv;
pub(crate) mod limits;
pub mod now;
pub mod ns;
pub mod rate;
pub mod replica;
pub mod scan;
pub mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use firn_api::limits::Limits;
use firn_engine::{Commit, Db, Durability, Namespace, WriteBatch, WriteOptions};
use firn_io::clock::Clock;
use firn_io::fs::Fs;
use tokio::sync::watch::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::cluster::Cluster;
use crate::service::error::{Error, Result};
use crate::service::rate::Rate;
use crate::service::replica::DbRef;
use crate::service::watch::Watches;

/// The name of the namespace that paths without one mean.
pub const DEFAULT_NAMESPACE: &str = "default";
/// Batches up to this many bytes are encoded on the worker.
pub const INLINE_WRITE_BYTES: usize = 128 << 10;
/// What an operation takes in a batch beside its key and value, at most.
const OPERATION_BYTES: usize = 24;
/// Replies from this size on are counted among the bytes in flight.
const COUNTED_REPLY_BYTES: usize = 64 << 10;
/// Point reads stay on the worker while they take no longer than this on average.
const INLINE_READ: Duration = Duration::from_micros(30);

/// What a read may return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Every write acknowledged before the read began.
    #[default]
    Linearizable,
    /// The same while the leader's lease holds.
    Lease,
    /// Possibly an older state.
    Stale,
}

impl Consistency {
    /// Reads its name.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "linearizable" => Self::Linearizable,
            "lease" => Self::Lease,
            "stale" => Self::Stale,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Stale => "stale",
        }
    }
}

/// The name of a durability, as doors spell it.
pub fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Sync => "sync",
        Durability::Buffered => "buffered",
    }
}

/// What a service is made of.
#[derive(Debug)]
pub struct Parts {
    /// The clock that expiries are computed with.
    pub clock: Arc<dyn Clock>,
    /// The file system that checkpoints are made on.
    pub fs: Arc<dyn Fs>,
    /// The limits of requests.
    pub limits: Limits,
    /// What a write gets that does not ask.
    pub durability: Durability,
    /// How long a write may wait for the disk to catch up.
    pub write_delay: Duration,
    /// Where checkpoints go.
    pub checkpoint_dir: PathBuf,
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

/// What is under the service.
enum Store {
    /// A database of this server alone.
    Own { db: Db, default: Namespace },
    /// A node of a cluster.
    Node(Arc<Cluster>),
}

struct Inner {
    store: Store,
    parts: Parts,
    read_cost: ReadCost,
    inflight: Arc<Semaphore>,
    /// `None`: clients may send as many requests as they like.
    rate: Option<Rate>,
    /// Writes that were told to wait, and for how many microseconds together they did.
    stalls: AtomicU64,
    stall_micros: AtomicU64,
    draining: Sender<bool>,
    stripes: now::Stripes,
    rounds: now::Rounds,
    watches: Watches,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("parts", &self.inner.parts)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// A service on an open database.
    pub fn new(db: Db, parts: Parts) -> Self {
        let default = db.default_namespace();
        Self::of(Store::Own { db, default }, parts)
    }

    /// A service on a node of a cluster.
    pub fn on_node(cluster: Arc<Cluster>, parts: Parts) -> Self {
        Self::of(Store::Node(cluster), parts)
    }

    fn of(store: Store, parts: Parts) -> Self {
        let inflight = usize::try_from(parts.limits.inflight_bytes).unwrap_or(usize::MAX);
        let inner = Inner {
            store,
            read_cost: ReadCost::default(),
            inflight: Arc::new(Semaphore::new(inflight.min(Semaphore::MAX_PERMITS))),
            rate: Rate::new(&parts.limits, Arc::clone(&parts.clock)),
            stalls: AtomicU64::new(0),
            stall_micros: AtomicU64::new(0),
            draining: Sender::new(false),
            stripes: now::Stripes::default(),
            rounds: now::Rounds::default(),
            watches: Watches::new(parts.limits.watches),
            parts,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The database under it, as it is now: on a node of a cluster it may be replaced at any time, so
    /// it is not to be kept.
    #[inline]
    pub fn db(&self) -> DbRef<'_> {
        match &self.inner.store {
            Store::Own { db, .. } => DbRef::Own(db),
            Store::Node(cluster) => DbRef::Node(cluster.node().db()),
        }
    }

    /// The node under it, if it is one of a cluster.
    #[inline]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        match &self.inner.store {
            Store::Own { .. } => None,
            Store::Node(cluster) => Some(cluster),
        }
    }

    /// The limits of requests.
    pub fn limits(&self) -> &Limits {
        &self.inner.parts.limits
    }

    /// What a write gets that does not ask.
    pub fn default_durability(&self) -> Durability {
        self.promised(self.inner.parts.durability)
    }

    /// What is promised to who asks for this: what a cluster acknowledges is on the disks of a
    /// majority, whatever was asked for.
    pub fn promised(&self, asked: Durability) -> Durability {
        match &self.inner.store {
            Store::Own { .. } => asked,
            Store::Node(_) => Durability::Sync,
        }
    }

    /// The clock.
    pub fn clock(&self) -> &dyn Clock {
        &*self.inner.parts.clock
    }

    /// From now on the service is not ready. Requests that arrive all the same are still served.
    pub fn begin_drain(&self) {
        self.inner.draining.send_replace(true);
    }

    /// Whether the server is about to stop.
    pub fn is_draining(&self) -> bool {
        *self.inner.draining.borrow()
    }

    /// Resolves when the server is about to stop: what waits for events ends then.
    pub async fn draining(&self) {
        let mut draining = self.inner.draining.subscribe();
        // The sender lives as long as the service, which `self` is.
        let _ = draining.wait_for(|draining| *draining).await;
    }

    /// Takes `bytes` of the memory that request bodies and large replies may hold.
    ///
    /// # Errors
    /// Overloaded, if it is all taken.
    pub fn reserve_body(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let amount = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.inner.inflight)
            .try_acquire_many_owned(amount)
            .map_err(|_| {
                let limit = self.inner.parts.limits.inflight_bytes;
                let detail = format!("requests in flight take limits.inflight_bytes ({limit})");
                Error {
                    limit: Some(limit),
                    ..Error::overloaded(detail, 1_000)
                }
            })
    }

    /// The same for a reply until it is sent; `None` for one so small that connections are the limit.
    /// A value that is larger than all of it, because the limit was lowered since, can still be read
    /// when nothing else is in flight.
    ///
    /// # Errors
    /// Overloaded, if it is all taken.
    pub fn reserve_reply(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>> {
        if bytes < COUNTED_REPLY_BYTES {
            return Ok(None);
        }
        let all = usize::try_from(self.inner.parts.limits.inflight_bytes).unwrap_or(usize::MAX);
        self.reserve_body(bytes.min(all)).map(Some)
    }

    pub(crate) fn rate(&self) -> Option<&Rate> {
        self.inner.rate.as_ref()
    }

    /// Bytes of request bodies and large replies in memory now.
    pub fn inflight_bytes(&self) -> u64 {
        let limit = self.inner.parts.limits.inflight_bytes;
        limit.saturating_sub(self.inner.inflight.available_permits() as u64)
    }

    /// How often writes waited here for the engine, and how many microseconds together. The engine
    /// counts only the waiting that it does itself.
    pub fn stalls(&self) -> (u64, u64) {
        let (count, micros) = (&self.inner.stalls, &self.inner.stall_micros);
        (
            count.load(Ordering::Relaxed),
            micros.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn namespace(&self, name: &str) -> Result<Namespace> {
        self.namespace_in(&self.db(), name)
    }

    fn namespace_in(&self, db: &DbRef<'_>, name: &str) -> Result<Namespace> {
        match (db, &self.inner.store) {
            (DbRef::Own(_), Store::Own { default, .. }) if name == DEFAULT_NAMESPACE => {
                Ok(default.clone())
            }
            (DbRef::Own(db), _) => Ok(db.namespace(name)?),
            (DbRef::Node(db), _) => db.namespace(name).map_err(replica::read_error),
        }
    }

    /// The expiry that a time to live, counted from now, means.
    ///
    /// # Errors
    /// If it is zero or beyond the year 9999.
    pub fn expiry_of(&self, ttl: Duration) -> Result<u64> {
        if ttl.is_zero() {
            return Err(Error::invalid("ttl must be more than 0"));
        }
        let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        checked_expiry(self.clock().unix_ms().saturating_add(ms))
    }

    /// Submits what `build` makes until the engine takes it, and waits for the acknowledgement.
    /// `build` runs once, and what it holds is freed then: the batch has a copy of it. If this future
    /// is dropped the write may still happen.
    async fn commit<F>(&self, cost: Cost, durability: Durability, build: F) -> Result<Commit>
    where
        F: FnOnce() -> Result<WriteBatch> + Send + 'static,
    {
        // The engine never sleeps on our worker: it says how long, and we wait here.
        let options = WriteOptions {
            durability,
            max_delay: Some(Duration::ZERO),
        };
        if let Store::Node(cluster) = &self.inner.store {
            let batch = match cost.bytes <= INLINE_WRITE_BYTES {
                true => build()?,
                false => self.blocking(build).await?,
            };
            return self.commit_replicated(cluster, batch).await;
        }
        let attempt = move |service: &Self, batch: &mut WriteBatch| -> Result<_> {
            let (acknowledge, acknowledged) = oneshot::channel();
            let ticket = service.db().submit_reusing(batch, &options)?;
            ticket.on_ack(Box::new(move |outcome| {
                // A client that went away does not wait for it.
                let _ = acknowledge.send(outcome);
            }));
            Ok(acknowledged)
        };
        let inline = cost.bytes <= INLINE_WRITE_BYTES && !cost.reads;
        let mut batch = match cost.bytes <= INLINE_WRITE_BYTES {
            true => build()?,
            false => self.blocking(build).await?,
        };
        let deadline = self.clock().monotonic() + self.inner.parts.write_delay;
        loop {
            let submitted = if inline {
                attempt(self, &mut batch)
            } else {
                let service = self.clone();
                let work = move || {
                    let submitted = attempt(&service, &mut batch);
                    Ok((submitted, batch))
                };
                let (submitted, back) = self.blocking(work).await?;
                batch = back;
                submitted
            };
            let refused = match submitted {
                Ok(acknowledged) => {
                    // It is in the log and the memtable now.
                    drop(batch);
                    return match acknowledged.await {
                        Ok(Ok(commit)) => Ok(commit),
                        // It was submitted: nobody can say that nothing was written.
                        Ok(Err(firn_engine::Error::Closed(_))) | Err(_) => Err(Error::new(
                            firn_api::code::Code::OutcomeUnknown,
                            "the server stopped before the write was acknowledged",
                        )),
                        Ok(Err(error)) => Err(error.into()),
                    };
                }
                Err(error) => error,
            };
            let Error {
                code: firn_api::code::Code::Overloaded,
                retry_after_ms: Some(ms),
                ..
            } = refused
            else {
                return Err(refused);
            };
            let pause = Duration::from_millis(ms.max(1));
            if self.clock().monotonic() + pause > deadline {
                return Err(refused);
            }
            self.inner.stalls.fetch_add(1, Ordering::Relaxed);
            let micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
            self.inner.stall_micros.fetch_add(micros, Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
    }

    /// Runs `work`, which has to do with so many bytes, where it would take too long here on a thread
    /// that may wait.
    pub(crate) async fn inline_or_blocking<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if bytes <= INLINE_WRITE_BYTES {
            return work(self);
        }
        let service = self.clone();
        self.blocking(move || work(&service)).await
    }

    /// Runs `work` on a thread that may wait.
    pub(crate) async fn blocking<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        match tokio::task::spawn_blocking(work).await {
            Ok(outcome) => outcome,
            Err(e) if e.is_cancelled() => Err(Error::shutting_down()),
            Err(e) => Err(Error::new(firn_api::code::Code::Internal, e.to_string())),
        }
    }
}

/// What it takes to submit a batch.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Bytes of its keys and values.
    bytes: usize,
    /// Whether it has conditions.
    reads: bool,
}

/// Refuses an expiry that is certainly a mistake of units: after the year 9999.
///
/// # Errors
/// Invalid argument.
pub fn checked_expiry(unix_ms: u64) -> Result<u64> {
    const YEAR_10000_MS: u64 = 253_402_300_800_000;
    if unix_ms >= YEAR_10000_MS {
        return Err(Error::invalid(
            "the expiry is after the year 9999: check its unit",
        ));
    }
    Ok(unix_ms)
}

/// What point reads cost of late: an exponentially weighted average of nanoseconds. Lost updates
/// between threads do no harm.
#[derive(Debug, Default)]
struct ReadCost {
    average_ns: AtomicU64,
}

impl ReadCost {
    fn is_low(&self) -> bool {
        u128::from(self.average_ns.load(Ordering::Relaxed)) <= INLINE_READ.as_nanos()
    }

    /// One long read by itself does not count as much as it took, lest a thread that the system
    /// put aside for a while is taken for a slow disk.
    fn note(&self, elapsed: Duration) {
        let ns = elapsed.min(INLINE_READ * 12).as_nanos() as u64;
        let old = self.average_ns.load(Ordering::Relaxed);
        self.average_ns
            .store(old - old / 16 + ns / 16, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_leave_the_worker_when_they_get_slow_and_come_back() {
        let cost = ReadCost::default();
        for _ in 0..100 {
            cost.note(Duration::from_micros(1));
        }
        assert!(cost.is_low());
        cost.note(Duration::from_secs(1));
        assert!(cost.is_low(), "one is not many");
        for _ in 0..16 {
            cost.note(Duration::from_micros(100));
        }
        assert!(!cost.is_low());
        for _ in 0..100 {
            cost.note(Duration::from_micros(1));
        }
        assert!(cost.is_low());
    }

    #[test]
    fn an_expiry_in_the_wrong_unit_is_refused() {
        assert!(checked_expiry(1_800_000_000_000).is_ok());
        assert!(checked_expiry(1_800_000_000_000_000).is_err());
    }
}
