//! Connections that other nodes make.
//!
//! 1. Whoever connects has [`PeerOptions::hello_timeout`] to get through TLS and say hello; few may
//!    be at that at once, so that silent ones take no places.
//! 2. The hello is checked: same cluster, meant for this node, the incarnation that its number always
//!    had, a version that both speak. If not, the answer is the reason, and the connection ends.
//! 3. Requests are handed to the [`Handler`] in the order in which they came: each is begun before the
//!    next one is. Answers go back as they are ready.
//!
//! # Credit
//!
//! The welcome says how many bytes of requests, and how many requests, may be without an answer. The
//! caller sends a request if it is within both, or if nothing is without an answer (so that a request
//! longer than the window comes through, alone). Bytes come back by `Credit` frames, when those of
//! the requests that were answered since the last one are a quarter of the window. A caller that does not
//! keep to it is cut off.
//!
//! # Ends
//!
//! A connection ends when the caller closes it, when nothing came from it for four times
//! [`PeerOptions::silence`] (callers that live ping far more often), when it does not take its answers
//! for as long, when the same node makes another one for the same class (it lost this one), and when
//! anything arrives that is not right. Requests that were begun go on; their answers are lost.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use firn_replica::transport::{BoxFuture, Class};
use firn_replica::{Node, NodeId};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};

use crate::frame::{Frame, Kind};
use crate::hello::{Hello, Reason, Refusal, Welcome, class_code};
use crate::known::Known;
use crate::options::{ClassLimits, PeerOptions};
use crate::stats::{Counters, Direction, Registry, add, set};
use crate::wire::{FULL_BYTES, Stream, Wire, WireError};

/// Connections that have not said who they are.
const STRANGERS: usize = 64;

/// Refusals are warned of once in this time; the others are for who debugs.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// Does what other nodes ask.
pub trait Handler: Send + Sync + 'static {
    /// Begins a request and answers it. What is done before the first wait is done in the order of the
    /// requests of a connection.
    fn handle(&self, from: NodeId, class: Class, request: Bytes) -> BoxFuture<'static, Bytes>;
}

impl Handler for Node {
    fn handle(&self, _from: NodeId, _class: Class, request: Bytes) -> BoxFuture<'static, Bytes> {
        let node = self.clone();
        Box::pin(async move { Node::handle(&node, request).await })
    }
}

/// A listener for other nodes, which accepts nobody yet.
pub struct Listener {
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
    pub(crate) options: Arc<PeerOptions>,
    pub(crate) known: Arc<Known>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) closed: watch::Receiver<bool>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// The connection of each node for each class, and what ends it.
type Guests = Mutex<BTreeMap<(NodeId, Class), Arc<Notify>>>;

struct House {
    options: Arc<PeerOptions>,
    known: Arc<Known>,
    registry: Arc<Registry>,
    handler: Arc<dyn Handler>,
    guests: Guests,
    /// When a refusal was in the log last.
    noted: Mutex<Option<Instant>>,
    closed: watch::Receiver<bool>,
}

/// The place of a connection; another one of the same node may have taken it.
struct Place {
    house: Arc<House>,
    key: (NodeId, Class),
    end: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guests = self.house.guests.lock();
        let is_ours = guests
            .get(&self.key)
            .is_some_and(|end| Arc::ptr_eq(end, &self.end));
        if is_ours {
            guests.remove(&self.key);
        }
    }
}

impl Listener {
    /// Where it listens, with the port that was picked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections and hands their requests to `handler`, until the node's [`crate::Peers`]
    /// are closed.
    pub async fn serve(self, handler: Arc<dyn Handler>) {
        let house = Arc::new(House {
            options: self.options,
            known: self.known,
            registry: self.registry,
            handler,
            guests: Guests::default(),
            noted: Mutex::default(),
            closed: self.closed.clone(),
        });
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        let mut closed = self.closed;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = closed.wait_for(|closed| *closed) => return,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: what helps is that somebody closes one.
                    tracing::warn!(%error, "cannot accept a connection of another node");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(stranger) = Arc::clone(&strangers).try_acquire_owned() else {
                let why = format!("{STRANGERS} connections have not said who they are already");
                house.note_refusal(from, &why);
                continue;
            };
            let house = Arc::clone(&house);
            tokio::spawn(async move {
                let most = house.options.hello_timeout;
                let met = timeout(most, house.meet(stream, from)).await;
                drop(stranger);
                let late = |_| Err(format!("no hello within {} ms", most.as_millis()));
                match met.unwrap_or_else(late) {
                    Ok(guest) => house.host(guest, from).await,
                    Err(error) => house.note_refusal(from, &error),
                }
            });
        }
    }
}

/// Who came in.
struct Guest {
    wire: Wire,
    hello: Hello,
    place: Place,
    counters: Arc<Counters>,
}

impl House {
    /// Tells the operator, but not as often as somebody else likes.
    fn note_refusal(&self, from: SocketAddr, why: &str) {
        let mut noted = self.noted.lock();
        let is_new = noted.is_none_or(|at| at.elapsed() >= NOTE_EVERY);
        if is_new {
            *noted = Some(Instant::now());
            tracing::warn!(%from, "a connection of another node was refused: {why}");
        } else {
            tracing::debug!(%from, "a connection of another node was refused: {why}");
        }
    }

    /// Gets through the handshakes.
    async fn meet(self: &Arc<Self>, stream: TcpStream, from: SocketAddr) -> Result<Guest, String> {
        // Small answers must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Stream> = match &self.options.tls {
            None if !self.options.may_be_plain(from) => {
                return Err("it comes from another machine in plain text".into());
            }
            None => Box::new(stream),
            Some(tls) => {
                let encrypted = tls.accept(stream).await;
                Box::new(encrypted.map_err(|error| format!("TLS: {error}"))?)
            }
        };
        let mut wire = Wire::new(stream, 0, Arc::default());
        let frame = wire.frame().await.map_err(|error| error.to_string())?;
        let admitted = self.admit(&frame).await;
        match admitted {
            Ok((hello, place)) => {
                let class = hello.class;
                let limits = self.options.limits(class);
                let welcome = Welcome {
                    version: hello.version().map_err(|refusal| refusal.text)?,
                    cluster: self.options.cluster,
                    node: self.options.node,
                    incarnation: self.options.incarnation,
                    window: limits.window_bytes,
                    requests: limits.requests,
                };
                wire.push(Kind::Welcome, 0, welcome.encode().into());
                wire.flush().await.map_err(|error| error.to_string())?;
                let counters = self.registry.link(hello.from, class, Direction::Incoming);
                wire.open(u32::from(class_code(class)), Arc::clone(&counters));
                Ok(Guest {
                    wire,
                    hello,
                    place,
                    counters,
                })
            }
            Err(refusal) => {
                wire.push(Kind::Refusal, 0, refusal.encode().into());
                // It may be gone; the reason is in our log too.
                let _ = wire.flush().await;
                Err(refusal.to_string())
            }
        }
    }

    /// Decides whether a caller may come in, and gives it a place.
    async fn admit(self: &Arc<Self>, frame: &Frame) -> Result<(Hello, Place), Refusal> {
        let hello = Some(frame)
            .filter(|frame| frame.kind == Kind::Hello)
            .and_then(|frame| Hello::decode(&frame.body));
        let malformed = || Refusal::new(Reason::Malformed, "the connection begins with no hello");
        let hello = hello.ok_or_else(malformed)?;
        hello.version()?;
        let options = &self.options;
        if hello.cluster != options.cluster {
            let text = format!(
                "node {} belongs to cluster {}, this is node {} of cluster {}",
                hello.from, hello.cluster, options.node, options.cluster
            );
            return Err(Refusal::new(Reason::Cluster, text));
        }
        if hello.to != options.node {
            let text = format!("this is node {}, not node {}", options.node, hello.to);
            return Err(Refusal::new(Reason::Node, text));
        }
        if hello.from == options.node && hello.incarnation != options.incarnation {
            let text = format!(
                "this is node {} itself: two nodes have one number",
                options.node
            );
            return Err(Refusal::new(Reason::Incarnation, text));
        }
        if self.known.incarnation(hello.from) != Some(hello.incarnation) {
            let known = Arc::clone(&self.known);
            let check = move || known.check(hello.from, hello.incarnation);
            let checked = tokio::task::spawn_blocking(check).await;
            let checked = checked.unwrap_or_else(|error| Err(error.to_string()));
            checked.map_err(|text| Refusal::new(Reason::Incarnation, text))?;
        }
        let key = (hello.from, hello.class);
        let end = Arc::new(Notify::new());
        {
            let mut guests = self.guests.lock();
            let most = options.connections;
            if guests.len() >= most && !guests.contains_key(&key) {
                let text = format!("{most} connections of other nodes are open already");
                return Err(Refusal::new(Reason::Busy, text));
            }
            if let Some(before) = guests.insert(key, Arc::clone(&end)) {
                before.notify_one();
            }
        }
        let place = Place {
            house: Arc::clone(self),
            key,
            end,
        };
        Ok((hello, place))
    }

    /// Serves a caller until its connection ends.
    async fn host(self: Arc<Self>, guest: Guest, from: SocketAddr) {
        let (hello, place, counters) = (guest.hello, guest.place, guest.counters);
        let (node, class) = (hello.from, hello.class);
        add(&counters.connects, 1);
        set(&counters.connected, 1);
        tracing::debug!(node, %from, ?class, "another node connected");
        let mut serving = Serving {
            from: node,
            class,
            limits: self.options.limits(class),
            handler: &*self.handler,
            wire: guest.wire,
            running: FuturesUnordered::new(),
            taken_bytes: 0,
            taken: 0,
            owed: 0,
            counters: Arc::clone(&counters),
            silence: self.options.silence * 4,
            tick: ticks(self.options.silence),
        };
        let mut closed = self.closed.clone();
        let ended = tokio::select! {
            ended = poll_fn(|cx| serving.poll(cx)) => ended,
            () = place.end.notified() => {
                WireError::Protocol("the node made another connection".into())
            }
            _ = closed.wait_for(|closed| *closed) => {
                WireError::Protocol("this node is closing".into())
            }
        };
        set(&counters.waiting_bytes, 0);
        // Of the node's next connection, if there is one already, this is the truth as well.
        set(
            &counters.connected,
            u64::from(Arc::strong_count(&place.end) == 1),
        );
        match ended {
            WireError::Closed => tracing::debug!(node, %from, ?class, "another node disconnected"),
            error => {
                add(&counters.losses, 1);
                tracing::info!(node, %from, ?class, "a connection of another node ended: {error}");
            }
        }
    }
}

fn ticks(period: Duration) -> Interval {
    let mut tick = interval(period.max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// A request that was begun.
struct Running {
    id: u64,
    bytes: u64,
    answer: BoxFuture<'static, Bytes>,
}

impl Future for Running {
    type Output = (u64, u64, Bytes);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (id, bytes) = (self.id, self.bytes);
        let answer = self.answer.as_mut().poll(cx);
        answer.map(|answer| (id, bytes, answer))
    }
}

/// A connection that is in use.
struct Serving<'a> {
    from: NodeId,
    class: Class,
    limits: ClassLimits,
    handler: &'a dyn Handler,
    wire: Wire,
    running: FuturesUnordered<Running>,
    /// Bytes of requests that have no answer yet.
    taken_bytes: u64,
    /// Requests that have none.
    taken: u32,
    /// Bytes of requests that were answered and not given back as credit.
    owed: u64,
    counters: Arc<Counters>,
    silence: Duration,
    tick: Interval,
}

impl Serving<'_> {
    /// Does what can be done. Ready when the connection is over, with the reason.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<WireError> {
        match self.step(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Result<(), WireError> {
        loop {
            let mut has_moved = false;
            while let Poll::Ready(frame) = self.wire.poll_frame(cx) {
                self.receive(frame?)?;
                has_moved = true;
            }
            while let Poll::Ready(Some((id, bytes, answer))) = self.running.poll_next_unpin(cx) {
                self.answer(id, bytes, answer);
                has_moved = true;
                if self.wire.backlog() >= FULL_BYTES {
                    break;
                }
            }
            while self.tick.poll_tick(cx).is_ready() {
                let now = Instant::now();
                let silent = now.duration_since(self.wire.alive_at);
                if silent >= self.silence {
                    return Err(WireError::Silent(silent));
                }
                let untaken = now.duration_since(self.wire.taken_at);
                if self.wire.backlog() > 0 && untaken >= self.silence {
                    let ms = untaken.as_millis();
                    let detail = format!("answers were not taken for {ms} ms");
                    return Err(WireError::Protocol(detail));
                }
                has_moved = true;
            }
            let is_out = self.wire.poll_flush(cx)?.is_ready();
            if !has_moved || (!is_out && self.wire.backlog() >= FULL_BYTES) {
                return Ok(());
            }
        }
    }

    fn receive(&mut self, frame: Frame) -> Result<(), WireError> {
        match frame.kind {
            Kind::Request => {}
            Kind::Ping if frame.body.is_empty() => {
                self.wire.push(Kind::Pong, frame.id, Bytes::new());
                return Ok(());
            }
            Kind::Refusal => {
                let why = match Refusal::decode(&frame.body) {
                    Some(refusal) => refusal.to_string(),
                    None => "for no reason that this build can read".into(),
                };
                return Err(WireError::Protocol(format!("the caller refuses: {why}")));
            }
            other => return Err(WireError::Protocol(format!("{other:?} at the wrong time"))),
        }
        let bytes = frame.body.len() as u64;
        let is_within = self.taken < self.limits.requests.max(1)
            && self.taken_bytes + bytes <= self.limits.window_bytes;
        if self.taken > 0 && !is_within {
            return Err(WireError::Protocol(format!(
                "{} requests of {} bytes are without an answer, and another one came of {bytes} bytes; \
                 at most {} of {} bytes were granted",
                self.taken, self.taken_bytes, self.limits.requests, self.limits.window_bytes
            )));
        }
        self.taken += 1;
        self.taken_bytes += bytes;
        add(&self.counters.requests, 1);
        set(&self.counters.waiting_bytes, self.taken_bytes);
        let mut running = Running {
            id: frame.id,
            bytes,
            answer: self.handler.handle(self.from, self.class, frame.body),
        };
        // Begun now, so that they are in order; woken when it is polled again with the others.
        let mut nobody = Context::from_waker(Waker::noop());
        match Pin::new(&mut running).poll(&mut nobody) {
            Poll::Ready((id, bytes, answer)) => self.answer(id, bytes, answer),
            Poll::Pending => self.running.push(running),
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, bytes: u64, answer: Bytes) {
        self.taken -= 1;
        self.taken_bytes -= bytes;
        self.owed += bytes;
        set(&self.counters.waiting_bytes, self.taken_bytes);
        self.wire.push(Kind::Answer, id, answer);
        if self.owed >= self.limits.window_bytes / 4 && self.owed > 0 {
            let credit = self.owed.to_le_bytes().to_vec();
            self.wire.push(Kind::Credit, 0, credit.into());
            self.owed = 0;
        }
    }
}

pub(crate) async fn bind(address: &str, options: &PeerOptions) -> Result<TcpListener, io::Error> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    let plain = |socket: &SocketAddr| !options.may_be_plain(*socket);
    if options.tls.is_none()
        && let Some(far) = found.iter().find(|socket| plain(socket))
    {
        return Err(io::Error::other(format!(
            "{far} can be reached from other machines, and there are no certificates: give the node \
             some, or listen on a loopback address, or allow plain text expressly"
        )));
    }
    TcpListener::bind(&found[..]).await
}
