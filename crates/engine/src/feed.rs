//! The changefeed's state: what is durable, who waits for more, what was read last, which log is
//! kept. [`crate::watch`] reads by it.
//!
//! **Where changes come from.** From the log: it has every committed batch whole, in the order of
//! sequence numbers, with full values. A watch reads the segments; nothing is copied for it on the
//! way of a write. What the tail's readers have in common is the [`Ring`]: the newest records, read
//! from the log once, by whoever needs them first, and shared by all who keep up. A reader that falls
//! behind the ring reads the segments for itself; one that falls behind those is told that it is too
//! old. A large record is in memory once, however many watches are at it. So memory is bounded by the
//! ring and one record per watch, all large ones together by the log that is kept, and no writer ever
//! waits.
//!
//! A database whose log is somebody else's ([`crate::external`]) has no segments to read. There the
//! newest batches are kept in memory as they are applied ([`Newest`]), up to the bytes that the
//! options grant the changefeed, and a watch that is further behind is too old. A batch that was
//! applied is durable on a majority of the copies, whose versions are all the same: a watch that loses
//! its node goes on at another one. After a restart there is what was applied since.
//!
//! **What is delivered** is the durable prefix of the log ([`Feed::durable`]). A record is durable
//! only after every batch up to it was published, and a watch never sees a batch that power loss
//! could take back: a buffered write appears when the background sync has come to it.
//!
//! **Waking.** [`Feed::advance`] is called after each sync of the log (not each write), and costs two
//! atomic operations while nobody waits. It counts an epoch; a watch notes the epoch before it looks
//! for records, and waits only while the epoch is the one that it noted. So no wake-up is lost.
//!
//! **Kept log.** Segments that recovery no longer needs stay until they are more than
//! [`crate::options::Options::changefeed_bytes`] or older than
//! [`crate::options::Options::changefeed_age`], oldest first ([`Feed::keep_from`]). Nothing is stored
//! about it: segments before the position where recovery begins were always allowed to exist. After
//! a restart their age is counted from the opening. A full disk lets go of all of them.
//!
//! **Dropped namespaces.** A drop is a record of its own in the log (kind
//! [`crate::core::RECORD_DROP`]), with a sequence number:
//!
//! ```text
//! drop := seqno u64 | namespace varint | name_len varint | name       (little-endian)
//! ```
//!
//! It is durable before the manifest forgets the namespace; recovery completes a drop whose record
//! it finds. A batch carries numbers of namespaces, not names; the name of one that is gone is in its
//! drop record, further on in the log.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use firn_io::codec;
use firn_io::wal::{Lsn, Tail};
use parking_lot::{Condvar, Mutex};

use crate::key::{NamespaceId, SeqNo};

/// The record of a dropped namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropRecord<'a> {
    /// Its place in the history.
    pub seqno: SeqNo,
    /// The namespace.
    pub namespace: NamespaceId,
    /// Its name.
    pub name: &'a str,
}

impl<'a> DropRecord<'a> {
    /// The payload of the log record.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.name.len());
        codec::put_u64(&mut out, self.seqno.0);
        codec::put_varint_u32(&mut out, self.namespace.0);
        codec::put_bytes(&mut out, self.name.as_bytes());
        out
    }

    /// Reads a payload; says what is wrong with it.
    pub fn decode(payload: &'a [u8]) -> Result<Self, &'static str> {
        let mut reader = codec::Reader::new(payload);
        let seqno = reader.u64().ok_or("a drop record is cut short")?;
        if seqno > SeqNo::MAX.0 {
            return Err("the sequence number is out of range");
        }
        let namespace = reader.varint_u32().ok_or("a drop record is cut short")?;
        let name = reader.bytes().ok_or("a drop record is cut short")?;
        if !reader.is_empty() {
            return Err("bytes follow a drop record");
        }
        Ok(Self {
            seqno: SeqNo(seqno),
            namespace: NamespaceId(namespace),
            name: std::str::from_utf8(name).map_err(|_| "the name of a namespace is not text")?,
        })
    }
}

/// A record of the log, as watches share it.
#[derive(Debug)]
pub struct Committed {
    /// Sequence number of its first operation.
    pub first: SeqNo,
    /// Of its last.
    pub last: SeqNo,
    /// Where it ends in the log.
    pub end: Lsn,
    /// What kind of record.
    pub kind: u8,
    /// As logged; of a drop that was applied and never logged, nothing.
    pub payload: Box<[u8]>,
    /// The names of the namespaces in it.
    pub names: Vec<(NamespaceId, Arc<str>)>,
}

impl Committed {
    /// What it takes in the ring.
    pub fn bytes(&self) -> usize {
        self.payload.len() + size_of::<Self>() + 64 + self.names.len() * 32
    }

    /// The name of a namespace in it.
    pub fn name(&self, id: NamespaceId) -> &str {
        let found = self.names.iter().find(|(other, _)| *other == id);
        found.map_or("", |(_, name)| name)
    }
}

/// The newest records, without gaps.
#[derive(Debug)]
pub struct Newest {
    /// In order.
    records: VecDeque<Arc<Committed>>,
    /// Their bytes.
    pub bytes: usize,
    /// The sequence number after them.
    pub next: SeqNo,
}

impl Newest {
    /// None yet; the first one will begin with number `next`.
    pub fn new(next: SeqNo) -> Self {
        Self {
            records: VecDeque::new(),
            bytes: 0,
            next,
        }
    }

    /// The oldest number that can be found here.
    pub fn first(&self) -> SeqNo {
        self.records
            .front()
            .map_or(self.next, |record| record.first)
    }

    /// The record that holds `seqno`.
    pub fn get(&self, seqno: SeqNo) -> Option<Arc<Committed>> {
        let index = self.records.partition_point(|record| record.last < seqno);
        self.records.get(index).cloned()
    }

    /// Adds the next record and lets go of the oldest ones beyond `limit` bytes, but for the last
    /// `least` of all.
    pub fn push(&mut self, record: Arc<Committed>, limit: usize, least: usize) {
        self.next = SeqNo(record.last.0 + 1);
        self.bytes += record.bytes();
        self.records.push_back(record);
        while self.bytes > limit
            && self.records.len() > least
            && let Some(oldest) = self.records.pop_front()
        {
            self.bytes -= oldest.bytes();
        }
    }
}

/// The newest records that were read from the log, and the place where the next one is.
#[derive(Debug)]
pub struct Ring {
    /// What was read.
    pub newest: Newest,
    /// Reads what follows.
    pub tail: Tail,
}

impl Ring {
    /// An empty ring that goes on at `at`, where the record with number `next` will begin.
    pub fn new(at: Lsn, next: SeqNo) -> Self {
        Self {
            newest: Newest::new(next),
            tail: Tail::new(at),
        }
    }
}

/// Records from this size on are shared also by watches that do not read the ring.
const LARGE_BYTES: usize = 64 << 10;

/// Runs when a watch may find something new.
pub type WakeFn = Box<dyn FnOnce() + Send>;

/// What changefeeds know of a database.
#[derive(Default)]
pub struct Feed {
    durable: AtomicU64,
    epoch: AtomicU64,
    waiting: AtomicUsize,
    /// Those that do not wait on a thread, by watch.
    wakers: Mutex<BTreeMap<u64, WakeFn>>,
    woken: Condvar,
    /// The shared tail, while somebody is near it.
    pub ring: Mutex<Option<Ring>>,
    /// Large records that some watch holds, by their first number.
    large: Mutex<BTreeMap<SeqNo, Weak<Committed>>>,
    /// [`Ring::first`], to be looked at without the lock.
    ring_first: AtomicU64,
    /// The number of the first operation of a segment, once known.
    firsts: Mutex<BTreeMap<u32, SeqNo>>,
    /// When a segment was first found to be kept for watches only.
    kept_since: Mutex<BTreeMap<u32, Duration>>,
    /// Names of dropped namespaces, and the segment of their drop record.
    dropped: Mutex<BTreeMap<NamespaceId, (Arc<str>, u32)>>,
    /// The next number of every open watch.
    positions: Mutex<BTreeMap<u64, Arc<AtomicU64>>>,
    next_watch: AtomicU64,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed")
            .field("durable", &self.durable())
            .finish_non_exhaustive()
    }
}

impl Feed {
    /// Everything before this position of the log is durable and published.
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::SeqCst))
    }

    /// The log is durable up to `synced`, and what that allowed was published.
    pub fn advance(&self, synced: Lsn) {
        if self.durable.fetch_max(synced.0, Ordering::SeqCst) < synced.0 {
            self.wake();
        }
    }

    /// Has every watch look again: there is more, or there will be no more.
    pub fn wake(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let wakers = {
            let mut wakers = self.wakers.lock();
            let taken = std::mem::take(&mut *wakers);
            self.waiting.fetch_sub(taken.len(), Ordering::SeqCst);
            self.woken.notify_all();
            taken
        };
        for wake in wakers.into_values() {
            wake();
        }
    }

    /// Counts how often there was something new.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Waits on this thread while the epoch is `seen`, for at most `time`; whether it changed.
    pub fn wait(&self, seen: u64, time: Option<Duration>) -> bool {
        let mut wakers = self.wakers.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut changed = self.epoch() != seen;
        while !changed {
            let timed_out = match time {
                Some(time) => self.woken.wait_for(&mut wakers, time).timed_out(),
                None => {
                    self.woken.wait(&mut wakers);
                    false
                }
            };
            changed = self.epoch() != seen;
            if timed_out {
                break;
            }
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        changed
    }

    /// Runs `wake` once the epoch is not `seen` any more: now, on this thread, if it is not. In place
    /// of what the same watch left before.
    pub fn on_wake(&self, watch: u64, seen: u64, wake: WakeFn) {
        {
            let mut wakers = self.wakers.lock();
            if wakers.remove(&watch).is_none() {
                self.waiting.fetch_add(1, Ordering::SeqCst);
            }
            if self.epoch() == seen {
                wakers.insert(watch, wake);
                return;
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        wake();
    }

    /// A new watch: its number and where it notes how far it is.
    pub fn enter(&self, next: SeqNo) -> (u64, Arc<AtomicU64>) {
        let id = self.next_watch.fetch_add(1, Ordering::Relaxed);
        let position = Arc::new(AtomicU64::new(next.0));
        self.positions.lock().insert(id, Arc::clone(&position));
        (id, position)
    }

    /// A watch is gone.
    pub fn leave(&self, watch: u64) {
        if self.wakers.lock().remove(&watch).is_some() {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        let mut positions = self.positions.lock();
        positions.remove(&watch);
        if positions.is_empty() {
            // Nobody keeps it up to date any more.
            let mut ring = self.ring.lock();
            *ring = None;
            self.note_ring(None);
        }
    }

    /// How many watches are open, and the lowest number that one of them waits for.
    pub fn watches(&self) -> (u64, Option<SeqNo>) {
        let positions = self.positions.lock();
        let lowest = positions
            .values()
            .map(|at| at.load(Ordering::Relaxed))
            .min();
        (positions.len() as u64, lowest.map(SeqNo))
    }

    /// The record that begins with this number, if it is large and somebody holds it.
    pub fn large(&self, first: SeqNo) -> Option<Arc<Committed>> {
        self.large.lock().get(&first)?.upgrade()
    }

    /// A record for all who come to it while somebody holds it, if it is large.
    pub fn share(&self, record: Committed) -> Arc<Committed> {
        let record = Arc::new(record);
        if record.bytes() >= LARGE_BYTES {
            let mut large = self.large.lock();
            large.retain(|_, held| held.strong_count() > 0);
            large.insert(record.first, Arc::downgrade(&record));
        }
        record
    }

    /// Bytes in the ring.
    pub fn ring_bytes(&self) -> u64 {
        self.ring
            .lock()
            .as_ref()
            .map_or(0, |ring| ring.newest.bytes as u64)
    }

    /// Notes the ring's beginning; under the ring's lock.
    pub fn note_ring(&self, ring: Option<&Ring>) {
        let first = ring.map_or(u64::MAX, |ring| ring.newest.first().0);
        self.ring_first.store(first, Ordering::Relaxed);
    }

    /// Whether the ring may have `seqno`.
    pub fn ring_may_have(&self, seqno: SeqNo) -> bool {
        self.ring_first.load(Ordering::Relaxed) <= seqno.0
    }

    /// The number of the first operation of a segment, if it was noted.
    pub fn first_of(&self, segment: u32) -> Option<SeqNo> {
        self.firsts.lock().get(&segment).copied()
    }

    /// Notes the number of the first operation of a segment.
    pub fn note_first(&self, segment: u32, first: SeqNo) {
        self.firsts.lock().insert(segment, first);
    }

    /// Remembers the name of a namespace whose drop record is in `segment`.
    pub fn note_dropped(&self, id: NamespaceId, name: Arc<str>, segment: u32) {
        self.dropped.lock().insert(id, (name, segment));
    }

    /// The name of a dropped namespace.
    pub fn dropped_name(&self, id: NamespaceId) -> Option<Arc<str>> {
        self.dropped
            .lock()
            .get(&id)
            .map(|(name, _)| Arc::clone(name))
    }

    /// From where on the log is kept, if recovery needs it from `start` on: at most `bytes` of
    /// segments before it, for at most `age`. `segments` are those in use, oldest first.
    pub fn keep_from(
        &self,
        segments: &[(u32, u64)],
        start: Lsn,
        (bytes, age): (u64, Duration),
        now: Duration,
    ) -> Lsn {
        let mut since = self.kept_since.lock();
        let mut keep = Lsn::new(start.segment(), 0);
        let mut kept = 0_u64;
        let spare = segments
            .iter()
            .filter(|segment| segment.0 < start.segment());
        for &(number, size) in spare.rev() {
            let begin = *since.entry(number).or_insert(now);
            kept = kept.saturating_add(size);
            if kept > bytes || now.saturating_sub(begin) > age {
                break;
            }
            keep = Lsn::new(number, 0);
        }
        let oldest = keep.segment();
        since.retain(|&number, _| number >= oldest);
        drop(since);
        self.firsts.lock().retain(|&number, _| number >= oldest);
        self.dropped
            .lock()
            .retain(|_, (_, segment)| *segment >= oldest);
        keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_drop_record() {
        let record = DropRecord {
            seqno: SeqNo(9),
            namespace: NamespaceId(300),
            name: "x",
        };
        let bytes = record.encode();
        assert_eq!(bytes, [9, 0, 0, 0, 0, 0, 0, 0, 0xac, 0x02, 1, b'x']);
        assert_eq!(DropRecord::decode(&bytes), Ok(record));
        for cut in 0..bytes.len() {
            assert!(DropRecord::decode(&bytes[..cut]).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_drop_record_or_not(bytes: Vec<u8>) {
            if let Ok(record) = DropRecord::decode(&bytes) {
                // Numbers have more than one spelling; the meaning survives.
                let again = record.encode();
                prop_assert_eq!(DropRecord::decode(&again), Ok(record));
            }
        }
    }

    #[test]
    fn log_is_kept_by_bytes_and_age() {
        let feed = Feed::default();
        let segments = [(3, 100), (4, 100), (6, 100), (7, 100)];
        let start = Lsn::new(7, 64);
        let second = Duration::from_secs(1);
        let keep = |limits, now| feed.keep_from(&segments, start, limits, now).segment();
        assert_eq!(keep((0, second), Duration::ZERO), 7);
        assert_eq!(keep((99, second), Duration::ZERO), 7);
        assert_eq!(keep((200, second), Duration::ZERO), 4);
        assert_eq!(keep((1000, second), second), 3);
        assert_eq!(keep((1000, second), 2 * second), 7);
    }

    #[test]
    fn no_wake_up_is_lost() {
        let feed = Feed::default();
        let seen = feed.epoch();
        feed.advance(Lsn(8));
        assert!(feed.wait(seen, None), "what came before the wait counts");
        let seen = feed.epoch();
        feed.advance(Lsn(8));
        assert!(!feed.wait(seen, Some(Duration::ZERO)), "nothing new");
        let (sent, received) = std::sync::mpsc::channel();
        feed.on_wake(1, seen, Box::new(move || sent.send(()).unwrap()));
        assert!(received.try_recv().is_err());
        feed.advance(Lsn(16));
        assert!(received.try_recv().is_ok());
        assert_eq!(feed.waiting.load(Ordering::SeqCst), 0);
        feed.on_wake(1, feed.epoch(), Box::new(|| ()));
        feed.leave(1);
        assert_eq!(feed.waiting.load(Ordering::SeqCst), 0);
    }
}
