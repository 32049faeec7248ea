//! What connections did, counted where it happens, for metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use firn_replica::NodeId;
use firn_replica::transport::Class;
use parking_lot::Mutex;

/// Which end of a connection this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// It called.
    Outgoing,
    /// It was called.
    Incoming,
}

/// The connections of one class with one node in one direction, since this process started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Connections that exist now: 0 or 1.
    pub connected: u64,
    /// Connections that were made, and accepted at the other end.
    pub connects: u64,
    /// Attempts that failed, or were refused.
    pub connect_failures: u64,
    /// Connections that ended by an error after they had been made.
    pub losses: u64,
    /// Frames that were sent.
    pub frames_sent: u64,
    /// Frames that arrived.
    pub frames_received: u64,
    /// Bytes that were sent, before encryption.
    pub bytes_sent: u64,
    /// Bytes that arrived, after decryption.
    pub bytes_received: u64,
    /// Requests: made if outgoing, taken if incoming.
    pub requests: u64,
    /// Requests that were given up before they were answered, or never sent.
    pub failures: u64,
    /// Bytes of requests that wait to be sent, or are being handled.
    pub waiting_bytes: u64,
    /// The way there and back, as pings measured it last. Outgoing only.
    pub round_trip: Option<Duration>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connected: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) connect_failures: AtomicU64,
    pub(crate) losses: AtomicU64,
    pub(crate) frames_sent: AtomicU64,
    pub(crate) frames_received: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) waiting_bytes: AtomicU64,
    /// In nanoseconds; 0: not measured.
    pub(crate) round_trip_ns: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

pub(crate) fn set(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::Relaxed);
}

impl Counters {
    fn read(&self) -> LinkStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let round_trip_ns = get(&self.round_trip_ns);
        LinkStats {
            connected: get(&self.connected),
            connects: get(&self.connects),
            connect_failures: get(&self.connect_failures),
            losses: get(&self.losses),
            frames_sent: get(&self.frames_sent),
            frames_received: get(&self.frames_received),
            bytes_sent: get(&self.bytes_sent),
            bytes_received: get(&self.bytes_received),
            requests: get(&self.requests),
            failures: get(&self.failures),
            waiting_bytes: get(&self.waiting_bytes),
            round_trip: (round_trip_ns > 0).then(|| Duration::from_nanos(round_trip_ns)),
        }
    }
}

type Link = (NodeId, Class, Direction);

/// All counters of a node.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    links: Mutex<BTreeMap<Link, Arc<Counters>>>,
}

/// Most links that are counted; further ones are, but nobody sees it.
const MAX_LINKS: usize = 1024;

impl Registry {
    pub(crate) fn link(&self, node: NodeId, class: Class, direction: Direction) -> Arc<Counters> {
        let mut links = self.links.lock();
        let link = (node, class, direction);
        if let Some(counters) = links.get(&link) {
            return Arc::clone(counters);
        }
        let counters = Arc::<Counters>::default();
        if links.len() < MAX_LINKS {
            links.insert(link, Arc::clone(&counters));
        }
        counters
    }

    pub(crate) fn read(&self) -> Vec<(NodeId, Class, Direction, LinkStats)> {
        let links = self.links.lock();
        let read = links.iter();
        read.map(|(&(node, class, direction), counters)| (node, class, direction, counters.read()))
            .collect()
    }
}
