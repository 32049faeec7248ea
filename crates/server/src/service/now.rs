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

use std::time::Duration;

use firn_engine::key::SeqNo;
use firn_engine::{Durability, Entry, Namespace, Ticket, WriteBatch, WriteOptions};
use parking_lot::{Mutex, MutexGuard};

use crate::service::error::Result;
use crate::service::replica::read_error;
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
        let options = WriteOptions {
            durability,
            max_delay: Some(Duration::ZERO),
        };
        Ok(self.db().submit_reusing(batch, &options)?)
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
                Ok(self.db().namespace_or_create(name)?)
            }
            found => found,
        }
    }
}
