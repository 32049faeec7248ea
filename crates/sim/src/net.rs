//! A network that delays, loses, repeats and parts.
//!
//! It keeps what [`Transport`] promises and nothing more. Messages of a class from one node to another
//! arrive in order; what was sent by a start of a node that has ended does not arrive; a message may be
//! lost and late. All by the seed. More than is promised: what consensus says may arrive a second time,
//! much later.
//!
//! Snapshots are messages as all others: they break off where they break off.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firn_io::checksum::xxh3_64_seeded;
use firn_io::rng::Rng;
use firn_replica::message::{Answer, Refusal, Request};
use firn_replica::transport::{BoxFuture, Class, Peer, Transport, TransportError};
use firn_replica::{Node, NodeId};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::watcher::Watcher;

/// What the network does to messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weather {
    /// How likely a message is lost.
    pub loss: f64,
    /// How likely it is delivered a second time.
    pub repeat: f64,
    /// The longest delay, in milliseconds.
    pub most_ms: u64,
    /// How much later than the first a second copy arrives at most, in milliseconds.
    pub repeat_ms: u64,
}

/// Good weather.
pub const CALM: Weather = Weather {
    loss: 0.0,
    repeat: 0.0,
    most_ms: 2,
    repeat_ms: 0,
};

struct State {
    rng: Rng,
    /// By number: which start of the node it is, and the node.
    nodes: BTreeMap<NodeId, (u64, Node)>,
    /// Directions in which nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Nodes that run the build before, which has no views.
    older: BTreeSet<NodeId>,
    weather: Weather,
    /// When the last message of a class on a way arrives.
    last: BTreeMap<(NodeId, NodeId, Class), Instant>,
    /// Of every message and when it arrived.
    trace: u64,
    delivered: u64,
    origin: Instant,
}

/// See the module's page.
pub struct Net(Mutex<State>);

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

impl Net {
    /// A network without nodes, in good weather.
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            rng: Rng::new(seed),
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            older: BTreeSet::new(),
            weather: CALM,
            last: BTreeMap::new(),
            trace: 0,
            delivered: 0,
            origin: Instant::now(),
        })))
    }

    /// When the simulation began.
    pub fn origin(&self) -> Instant {
        self.0.lock().origin
    }

    /// A number that two runs have in common if they were alike.
    pub fn trace(&self) -> u64 {
        self.0.lock().trace
    }

    /// How many messages arrived.
    pub fn delivered(&self) -> u64 {
        self.0.lock().delivered
    }

    /// Another node can be reached.
    pub fn join(&self, id: NodeId, start: u64, node: Node) {
        self.0.lock().nodes.insert(id, (start, node));
    }

    /// It can no longer be reached.
    pub fn leave(&self, id: NodeId) {
        self.0.lock().nodes.remove(&id);
    }

    /// Nothing passes in this direction any more.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.0.lock().cut.insert((from, to));
    }

    /// This direction is open again.
    pub fn mend(&self, from: NodeId, to: NodeId) {
        self.0.lock().cut.remove(&(from, to));
    }

    /// All ways are open.
    pub fn mend_all(&self) {
        self.0.lock().cut.clear();
    }

    /// The directions in which nothing passes.
    pub fn cuts(&self) -> Vec<(NodeId, NodeId)> {
        self.0.lock().cut.iter().copied().collect()
    }

    /// Whether a node runs the build before this one. What that does not know it does not ask for, and refuses as a
    /// build refuses a request that it cannot decode. All else is the same in both.
    pub fn set_older(&self, id: NodeId, is_older: bool) {
        let older = &mut self.0.lock().older;
        if is_older {
            older.insert(id);
        } else {
            older.remove(&id);
        }
    }

    /// Whether a node's build has such requests.
    fn knows(&self, id: NodeId, request: &Bytes) -> bool {
        !self.0.lock().older.contains(&id)
            || !matches!(Request::decode(request), Ok(Request::View(_)))
    }

    /// From now on the weather is this.
    pub fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// Mixes what happened into the trace.
    pub fn note(&self, what: &[u8], by: u64) {
        let state = &mut *self.0.lock();
        let at = Instant::now().duration_since(state.origin).as_micros() as u64;
        state.trace = xxh3_64_seeded(state.trace ^ by ^ (at << 16), what);
    }

    /// When a message arrives, and its copies; in this order.
    fn send(&self, from: NodeId, to: NodeId, (class, bytes): (Class, &Bytes)) -> Vec<Instant> {
        let state = &mut *self.0.lock();
        let weather = state.weather;
        let mut arrivals = Vec::new();
        if !state.rng.chance(weather.loss) {
            let delay = state.rng.between(0, weather.most_ms * 1000);
            let last = state.last.entry((from, to, class));
            let last = last.or_insert_with(Instant::now);
            *last = (*last).max(Instant::now() + Duration::from_micros(delay));
            arrivals.push(*last);
        }
        if weather.repeat > 0.0
            && state.rng.chance(weather.repeat)
            && !matches!(Request::decode(bytes), Ok(Request::Propose(_)))
        {
            let first = arrivals.first().copied().unwrap_or_else(Instant::now);
            let later = state.rng.between(0, weather.repeat_ms * 1000);
            arrivals.push(first + Duration::from_micros(later));
        }
        arrivals
    }

    /// The node at the end of a way that is open.
    fn reach(&self, from: NodeId, to: NodeId) -> Option<(u64, Node)> {
        let state = self.0.lock();
        if state.cut.contains(&(from, to)) {
            return None;
        }
        state.nodes.get(&to).cloned()
    }

    /// Whether what that start of the node sent may still arrive.
    fn is_current(&self, from: NodeId, start: u64) -> bool {
        let state = self.0.lock();
        let node = state.nodes.get(&from);
        node.is_none_or(|(current, _)| *current == start)
    }

    fn note_message(&self, bytes: &[u8], from: NodeId, to: NodeId) {
        self.note(bytes, from << 8 | to);
        self.0.lock().delivered += 1;
    }
}

/// One start of a node, at its end of the network.
#[derive(Debug)]
pub struct Link {
    /// The network.
    pub net: Arc<Net>,
    /// Which node.
    pub from: NodeId,
    /// Which start of it.
    pub start: u64,
    /// Who must know of snapshots.
    pub watcher: Arc<Watcher>,
}

/// Brings one request, and its answer back.
async fn deliver(
    net: Arc<Net>,
    (from, start): (NodeId, u64),
    (to, class): (NodeId, Class),
    (arrives, request): (Instant, Bytes),
    tell: Option<oneshot::Sender<Bytes>>,
) {
    sleep_until(arrives).await;
    if !net.is_current(from, start) {
        return;
    }
    let Some((_, node)) = net.reach(from, to) else {
        return;
    };
    net.note_message(&request, from, to);
    let answer = if net.knows(to, &request) {
        node.handle(request).await
    } else {
        let refusal = Refusal::Malformed("a request that this build does not know".into());
        Answer::Refused(refusal).encode().into()
    };
    drop(node);
    let Some(&arrives) = net.send(to, from, (class, &answer)).first() else {
        return;
    };
    sleep_until(arrives).await;
    if net.reach(to, from).is_some_and(|(now, _)| now == start)
        && let Some(tell) = tell
    {
        net.note_message(&answer, to, from);
        // Whoever asked may have given up.
        let _ = tell.send(answer);
    }
}

impl Transport for Link {
    fn call(
        &self,
        to: &Peer,
        class: Class,
        request: Bytes,
        most: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        if let (Class::Bulk, Ok(Request::SnapshotInstall { last, .. })) =
            (class, Request::decode(&request))
            && let Some(last) = last
        {
            self.watcher.snapshot_sent(to.id, last.index);
        }
        if !self.net.knows(self.from, &request) {
            let never = TransportError::Unreachable("this build has no such requests".into());
            return Box::pin(std::future::ready(Err(never)));
        }
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        for arrives in self.net.send(self.from, to.id, (class, &request)) {
            tokio::spawn(deliver(
                Arc::clone(&self.net),
                (self.from, self.start),
                (to.id, class),
                (arrives, request.clone()),
                tell.take(),
            ));
        }
        Box::pin(async move {
            match timeout(most, told).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => {
                    // Lost: the caller does not know until its time is up.
                    sleep(most).await;
                    Err(TransportError::Timeout)
                }
                Err(_) => Err(TransportError::Timeout),
            }
        })
    }
}
