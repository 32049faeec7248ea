//! Connections that this node makes: one for each node and class, made when the first request is there.
//!
//! ```text
//!             a call                     welcome
//!   idle ──────────────► connecting ──────────────► connected
//!    ▲  ◄── pause ── failure │                         │ lost, or nothing to do for long
//!    └───────────────────────┴─────────────────────────┘
//! ```
//!
//! * A call puts its request into the queue of its lane, where it has its place in the order. While a
//!   connection is being made requests wait, each no longer than its own time; if it cannot be made
//!   they fail, and so does every call until the pause is over. The pause doubles, with a part of it
//!   by chance, so that many nodes do not come back at once. It ends when another lane reaches the node.
//! * What waits is limited in bytes and in number; beyond that a call fails at once.
//! * A connection sends no more requests than the other side granted (see [`crate::incoming`]).
//! * When it is lost, requests that were sent are [`TransportError::Lost`]: they may have been done.
//!   Those that were not are [`TransportError::Unreachable`].
//! * A request whose caller gave up is not sent, if it was not yet.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use firn_io::rng::Entropy;
use firn_replica::NodeId;
use firn_replica::transport::{BoxFuture, Class, Peer, TransportError};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::net::{TcpStream, lookup_host};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout, timeout_at};

use crate::frame::{Frame, Kind, MAX_BODY_BYTES};
use crate::hello::{Hello, MAX_VERSION, MIN_VERSION, Reason, Refusal, Welcome, class_code};
use crate::known::Known;
use crate::options::PeerOptions;
use crate::stats::{Counters, Direction, Registry, add, set};
use crate::wire::{FULL_BYTES, Stream, Wire, WireError};

/// Requests that may wait in one queue.
const QUEUE_REQUESTS: usize = 8192;
/// A request that has no answer after this is a sign that the other side has forgotten it.
const FORGOTTEN: Duration = Duration::from_secs(300);

const WAITS: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

type Reply = oneshot::Sender<Result<Bytes, TransportError>>;

/// A request that waits to be sent.
struct Call {
    body: Bytes,
    /// Whoever changes it from [`WAITS`] first decides whether it is sent.
    state: Arc<AtomicU8>,
    reply: Reply,
}

impl Call {
    fn fail(self, error: TransportError) {
        // Whoever called may have given up.
        let _ = self.reply.send(Err(error));
    }
}

enum Phase {
    Idle {
        /// No attempt before.
        not_before: Option<Instant>,
        /// Why the last one failed.
        why: String,
    },
    Running,
}

struct LaneState {
    phase: Phase,
    failures: u32,
    queue: VecDeque<Call>,
    queued_bytes: u64,
    /// Another lane has taken its place.
    is_retired: bool,
}

/// The way to one node for one class.
struct Lane {
    peer: Peer,
    class: Class,
    state: Mutex<LaneState>,
    came: AtomicWaker,
    counters: Arc<Counters>,
}

/// All ways to other nodes.
pub(crate) struct Lanes {
    options: Arc<PeerOptions>,
    known: Arc<Known>,
    entropy: Arc<dyn Entropy>,
    runtime: Handle,
    registry: Arc<Registry>,
    lanes: Mutex<BTreeMap<(NodeId, Class), Arc<Lane>>>,
    closed: watch::Receiver<bool>,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").finish_non_exhaustive()
    }
}

fn unreachable<T>(detail: impl Into<String>) -> Result<T, TransportError> {
    Err(TransportError::Unreachable(detail.into()))
}

impl Lanes {
    pub(crate) fn new(
        options: Arc<PeerOptions>,
        known: Arc<Known>,
        entropy: Arc<dyn Entropy>,
        registry: Arc<Registry>,
        (runtime, closed): (Handle, watch::Receiver<bool>),
    ) -> Self {
        Self {
            options,
            known,
            entropy,
            runtime,
            registry,
            lanes: Mutex::default(),
            closed,
        }
    }

    fn lane(&self, to: &Peer, class: Class) -> Arc<Lane> {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get(&(to.id, class)) {
            if lane.peer.address == to.address {
                return Arc::clone(lane);
            }
            lane.retire();
        }
        let lane = Arc::new(Lane {
            peer: to.clone(),
            class,
            state: Mutex::new(LaneState {
                phase: Phase::Idle {
                    not_before: None,
                    why: String::new(),
                },
                failures: 0,
                queue: VecDeque::new(),
                queued_bytes: 0,
                is_retired: false,
            }),
            came: AtomicWaker::new(),
            counters: self.registry.link(to.id, class, Direction::Outgoing),
        });
        lanes.insert((to.id, class), Arc::clone(&lane));
        lane
    }

    /// See [`firn_replica::transport::Transport::call`].
    pub(crate) fn call(
        self: &Arc<Self>,
        to: &Peer,
        class: Class,
        body: Bytes,
        time: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let deadline = Instant::now() + time;
        let lane = self.lane(to, class);
        let counters = Arc::clone(&lane.counters);
        let queued = self.queue(&lane, body);
        Box::pin(async move {
            let answered = match queued {
                Err(error) => Err(error),
                Ok((state, mut told)) => match timeout_at(deadline, &mut told).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) => Err(TransportError::Lost("this node is closing".into())),
                    Err(_) => {
                        let gave_up = state.compare_exchange(
                            WAITS,
                            GIVEN_UP,
                            Ordering::AcqRel,
                            Ordering::Acquire,
                        );
                        match gave_up {
                            Ok(_) => unreachable(format!(
                                "node {} at {}: the request could not be sent in time",
                                lane.peer.id, lane.peer.address
                            )),
                            Err(_) => Err(TransportError::Timeout),
                        }
                    }
                },
            };
            if answered.is_err() {
                add(&counters.failures, 1);
            }
            answered
        })
    }

    #[allow(clippy::type_complexity, reason = "used once")]
    fn queue(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        body: Bytes,
    ) -> Result<
        (
            Arc<AtomicU8>,
            oneshot::Receiver<Result<Bytes, TransportError>>,
        ),
        TransportError,
    > {
        let (id, address) = (lane.peer.id, &lane.peer.address);
        add(&lane.counters.requests, 1);
        if body.len() > MAX_BODY_BYTES {
            return unreachable(format!(
                "a request of {} bytes, at most {MAX_BODY_BYTES} can be sent",
                body.len()
            ));
        }
        if *self.closed.borrow() {
            return unreachable("this node is closing");
        }
        let limits = self.options.limits(lane.class);
        let state = &mut *lane.state.lock();
        if let Phase::Idle { not_before, why } = &state.phase {
            if not_before.is_some_and(|not_before| Instant::now() < not_before) {
                return unreachable(format!("node {id} at {address}: {why}"));
            }
            state.phase = Phase::Running;
            self.runtime.spawn(Arc::clone(self).run(Arc::clone(lane)));
        }
        let bytes = body.len() as u64;
        let is_full = !state.queue.is_empty() && state.queued_bytes + bytes > limits.queue_bytes;
        if is_full || state.queue.len() >= QUEUE_REQUESTS {
            return unreachable(format!(
                "node {id} at {address}: {} requests of {} bytes wait to be sent already; at most {} \
                 bytes may",
                state.queue.len(),
                state.queued_bytes,
                limits.queue_bytes
            ));
        }
        let (reply, told) = oneshot::channel();
        let waits = Arc::new(AtomicU8::new(WAITS));
        state.queue.push_back(Call {
            body,
            state: Arc::clone(&waits),
            reply,
        });
        state.queued_bytes += bytes;
        set(&lane.counters.waiting_bytes, state.queued_bytes);
        lane.came.wake();
        Ok((waits, told))
    }

    /// Makes a connection, uses it, and goes on as long as there is something to send.
    async fn run(self: Arc<Self>, lane: Arc<Lane>) {
        loop {
            let connecting = timeout(self.options.connect_timeout, self.connect(&lane));
            let mut closed = self.closed.clone();
            let connected = tokio::select! {
                connected = connecting => connected.unwrap_or_else(|_| {
                    let time = self.options.connect_timeout.as_millis();
                    Err(format!("no connection within {time} ms"))
                }),
                _ = closed.wait_for(|closed| *closed) => Err("this node is closing".into()),
            };
            let (id, address, class) = (lane.peer.id, &lane.peer.address, lane.class);
            let why = match connected {
                Err(why) => {
                    add(&lane.counters.connect_failures, 1);
                    let failures = lane.state.lock().failures;
                    if failures == 0 {
                        tracing::warn!(node = id, %address, ?class, "cannot connect: {why}");
                    } else {
                        tracing::debug!(node = id, %address, ?class, "cannot connect: {why}");
                    }
                    why
                }
                Ok((wire, welcome)) => {
                    add(&lane.counters.connects, 1);
                    set(&lane.counters.connected, 1);
                    lane.state.lock().failures = 0;
                    self.end_pauses(&lane.peer);
                    tracing::debug!(node = id, %address, ?class, "connected");
                    let mut connection = Connection::new(&self.options, &lane, wire, &welcome);
                    let ended = tokio::select! {
                        ended = poll_fn(|cx| connection.poll(cx)) => ended,
                        _ = closed.wait_for(|closed| *closed) => {
                            Err(WireError::Protocol("this node is closing".into()))
                        }
                    };
                    set(&lane.counters.connected, 0);
                    match ended {
                        Ok(()) => match lane.rest() {
                            true => return,
                            false => continue,
                        },
                        Err(error) => {
                            add(&lane.counters.losses, 1);
                            let why = format!("the connection was lost: {error}");
                            tracing::info!(node = id, %address, ?class, "{why}");
                            connection.lose(&why);
                            why
                        }
                    }
                }
            };
            lane.fail(&why, &self.options, &*self.entropy);
            return;
        }
    }

    /// It is there: its other lanes need not wait before they try.
    fn end_pauses(&self, peer: &Peer) {
        for lane in self.lanes.lock().values() {
            if lane.peer == *peer
                && let Phase::Idle { not_before, .. } = &mut lane.state.lock().phase
            {
                *not_before = None;
            }
        }
    }

    async fn connect(&self, lane: &Lane) -> Result<(Wire, Welcome), String> {
        let address = &lane.peer.address;
        let found = lookup_host(address.as_str()).await;
        let found: Vec<SocketAddr> = found
            .map_err(|error| format!("{address} cannot be found: {error}"))?
            .collect();
        let mut problem = format!("{address} has no address");
        for socket in found {
            if self.options.tls.is_none() && !self.options.may_be_plain(socket) {
                problem = format!(
                    "{socket} is not this machine, and there are no certificates: nodes on other \
                     machines are talked to under TLS only, unless plain text is allowed expressly"
                );
                continue;
            }
            match TcpStream::connect(socket).await {
                Ok(stream) => return self.greet(lane, stream).await,
                Err(error) => problem = format!("{socket}: {error}"),
            }
        }
        Err(problem)
    }

    /// Handshakes.
    async fn greet(&self, lane: &Lane, stream: TcpStream) -> Result<(Wire, Welcome), String> {
        // Small requests must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Stream> = match &self.options.tls {
            None => Box::new(stream),
            Some(tls) => {
                let address = &lane.peer.address;
                let host = address
                    .rsplit_once(':')
                    .map_or(&**address, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let encrypted = tls.connect(host, stream).await;
                Box::new(encrypted.map_err(|error| format!("TLS: {error}"))?)
            }
        };
        let mut wire = Wire::new(stream, 0, Arc::clone(&lane.counters));
        let options = &self.options;
        let hello = Hello {
            min: MIN_VERSION,
            max: MAX_VERSION,
            class: lane.class,
            cluster: options.cluster,
            from: options.node,
            incarnation: options.incarnation,
            to: lane.peer.id,
        };
        wire.push(Kind::Hello, 0, hello.encode().into());
        let failed = |error: WireError| format!("the handshake failed: {error}");
        wire.flush().await.map_err(failed)?;
        let frame = wire.frame().await.map_err(failed)?;
        let welcomed = self.check_welcome(lane, &frame).await;
        let stream = u32::from(class_code(lane.class));
        wire.open(stream, Arc::clone(&lane.counters));
        match welcomed {
            Ok(welcome) => Ok((wire, welcome)),
            Err(why) => {
                if frame.kind == Kind::Welcome {
                    let refusal = Refusal::new(Reason::Welcome, &*why);
                    wire.push(Kind::Refusal, 0, refusal.encode().into());
                    // So that its log says it too; if that fails, ours does.
                    let _ = wire.flush().await;
                }
                Err(why)
            }
        }
    }

    async fn check_welcome(&self, lane: &Lane, frame: &Frame) -> Result<Welcome, String> {
        match frame.kind {
            Kind::Refusal => Err(match Refusal::decode(&frame.body) {
                Some(refusal) => format!("it refuses: {refusal}"),
                None => "it refuses, for no reason that this build can read".into(),
            }),
            Kind::Welcome => {
                let welcome = Welcome::decode(&frame.body).ok_or("its welcome is malformed")?;
                let options = &self.options;
                if welcome.cluster != options.cluster {
                    return Err(format!(
                        "it belongs to cluster {}, this node to cluster {}",
                        welcome.cluster, options.cluster
                    ));
                }
                if welcome.node != lane.peer.id {
                    return Err(format!(
                        "node {} answers there, not node {}",
                        welcome.node, lane.peer.id
                    ));
                }
                if !(MIN_VERSION..=MAX_VERSION).contains(&welcome.version) {
                    return Err(format!(
                        "it speaks version {} of the protocol, this node {MIN_VERSION} to \
                         {MAX_VERSION}",
                        welcome.version
                    ));
                }
                if self.known.incarnation(welcome.node) != Some(welcome.incarnation) {
                    let (known, node) = (Arc::clone(&self.known), welcome.node);
                    let check = move || known.check(node, welcome.incarnation);
                    let checked = tokio::task::spawn_blocking(check).await;
                    checked.map_err(|error| error.to_string())??;
                }
                Ok(welcome)
            }
            other => Err(format!("it answers a hello with {other:?}")),
        }
    }
}

impl Lane {
    /// Lets go of the connection when everything that waits is sent and answered.
    fn retire(&self) {
        self.state.lock().is_retired = true;
        self.came.wake();
    }

    /// The connection was closed in good order. Whether there is nothing to do.
    fn rest(&self) -> bool {
        let state = &mut *self.state.lock();
        if state.queue.is_empty() {
            state.phase = Phase::Idle {
                not_before: None,
                why: String::new(),
            };
        }
        state.queue.is_empty()
    }

    /// Fails all that waits, and sets the pause.
    fn fail(&self, why: &str, options: &PeerOptions, entropy: &dyn Entropy) {
        let state = &mut *self.state.lock();
        let (first, most) = options.pause;
        let pause = most.min(first.saturating_mul(1 << state.failures.min(16)));
        state.failures = state.failures.saturating_add(1);
        // Between a half and the whole.
        let half = pause / 2;
        let part = entropy.next_u64() % (half.as_micros() as u64).max(1);
        let pause = half + Duration::from_micros(part);
        state.phase = Phase::Idle {
            not_before: Some(Instant::now() + pause),
            why: why.to_owned(),
        };
        state.queued_bytes = 0;
        set(&self.counters.waiting_bytes, 0);
        let (id, address) = (self.peer.id, &self.peer.address);
        for call in state.queue.drain(..) {
            let error = TransportError::Unreachable(format!("node {id} at {address}: {why}"));
            call.fail(error);
        }
    }

    /// The next request that somebody still waits for, if it is not longer than `room`.
    fn take(&self, room: impl Fn(u64) -> bool) -> Option<Call> {
        let state = &mut *self.state.lock();
        loop {
            let bytes = state.queue.front()?.body.len() as u64;
            if !room(bytes) {
                return None;
            }
            let call = state.queue.pop_front()?;
            state.queued_bytes -= bytes;
            set(&self.counters.waiting_bytes, state.queued_bytes);
            let is_ours =
                call.state
                    .compare_exchange(WAITS, SENT, Ordering::AcqRel, Ordering::Acquire);
            if is_ours.is_ok() && !call.reply.is_closed() {
                return Some(call);
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.state.lock().queue.is_empty()
    }
}

/// A request that was sent.
struct Pending {
    reply: Reply,
    since: Instant,
}

/// A connection that is in use.
struct Connection<'a> {
    lane: &'a Lane,
    wire: Wire,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    /// Bytes of requests for which there was no credit yet.
    unpaid: u64,
    window: u64,
    requests: usize,
    tick: Interval,
    ping_interval: Duration,
    silence: Duration,
    idle: Duration,
    /// A ping that is on its way: its number, and since when.
    ping: Option<(u64, Instant)>,
    pinged_at: Instant,
    used_at: Instant,
}

impl<'a> Connection<'a> {
    fn new(options: &PeerOptions, lane: &'a Lane, wire: Wire, welcome: &Welcome) -> Self {
        let period = options.ping_interval.max(Duration::from_millis(2)) / 2;
        let mut tick = interval(period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Self {
            lane,
            wire,
            pending: BTreeMap::new(),
            next_id: 0,
            unpaid: 0,
            window: welcome.window,
            requests: (welcome.requests as usize).max(1),
            tick,
            ping_interval: options.ping_interval,
            silence: options.silence,
            idle: options.idle,
            ping: None,
            pinged_at: now,
            used_at: now,
        }
    }

    /// Does what can be done. Ready when the connection is over: without an error if it was not needed
    /// any more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        self.lane.came.register(cx.waker());
        loop {
            let mut has_moved = false;
            while let Poll::Ready(frame) = self.wire.poll_frame(cx) {
                self.receive(frame?)?;
                has_moved = true;
            }
            while self.tick.poll_tick(cx).is_ready() {
                if self.look_around()? {
                    return Poll::Ready(Ok(()));
                }
                has_moved = true;
            }
            has_moved |= self.send();
            let is_out = self.wire.poll_flush(cx)?.is_ready();
            // What stopped at a full buffer goes on.
            if !has_moved || (!is_out && self.wire.backlog() >= FULL_BYTES) {
                return Poll::Pending;
            }
        }
    }

    /// Takes requests out of the queue until the buffer is full. Whether there was one.
    fn send(&mut self) -> bool {
        let mut has_sent = false;
        while self.wire.backlog() < FULL_BYTES && self.pending.len() < self.requests {
            let (unpaid, window) = (self.unpaid, self.window);
            let is_alone = self.pending.is_empty();
            let room = |bytes| is_alone || unpaid + bytes <= window;
            let Some(call) = self.lane.take(room) else {
                break;
            };
            let id = self.next_id;
            self.next_id += 1;
            self.unpaid += call.body.len() as u64;
            self.wire.push(Kind::Request, id, call.body);
            let since = Instant::now();
            self.used_at = since;
            let reply = call.reply;
            self.pending.insert(id, Pending { reply, since });
            has_sent = true;
        }
        has_sent
    }

    fn receive(&mut self, frame: Frame) -> Result<(), WireError> {
        let wrong = |detail: &str| Err(WireError::Protocol(detail.into()));
        match frame.kind {
            Kind::Answer => {
                let Some(pending) = self.pending.remove(&frame.id) else {
                    return wrong("an answer to what was not asked");
                };
                // Whoever called may have given up.
                let _ = pending.reply.send(Ok(frame.body));
                Ok(())
            }
            Kind::Credit => {
                let bytes = firn_io::codec::get_u64(&frame.body, 0);
                let left = bytes
                    .filter(|_| frame.body.len() == 8)
                    .and_then(|bytes| self.unpaid.checked_sub(bytes));
                let Some(left) = left else {
                    return wrong("credit for more than was sent");
                };
                self.unpaid = left;
                Ok(())
            }
            Kind::Pong => {
                let Some((_, since)) = self.ping.take_if(|(id, _)| *id == frame.id) else {
                    return wrong("a pong to no ping");
                };
                let ns = since.elapsed().as_nanos().max(1);
                let counter = &self.lane.counters.round_trip_ns;
                set(counter, u64::try_from(ns).unwrap_or(u64::MAX));
                Ok(())
            }
            other => Err(WireError::Protocol(format!("{other:?} at the wrong time"))),
        }
    }

    /// Asks whether the other side is alive, and gives it up if it is not. Whether the connection is
    /// needed no more.
    fn look_around(&mut self) -> Result<bool, WireError> {
        let now = Instant::now();
        let silent = now.duration_since(self.wire.alive_at);
        if silent >= self.silence {
            return Err(WireError::Silent(silent));
        }
        let oldest = self.pending.values().next();
        if oldest.is_some_and(|oldest| now.duration_since(oldest.since) >= FORGOTTEN) {
            let detail = format!("a request had no answer for {} s", FORGOTTEN.as_secs());
            return Err(WireError::Protocol(detail));
        }
        if self.pending.is_empty() && self.wire.backlog() == 0 && !self.lane.has_work() {
            let is_retired = self.lane.state.lock().is_retired;
            if is_retired || now.duration_since(self.used_at) >= self.idle {
                return Ok(true);
            }
        }
        if self.ping.is_none() && now.duration_since(self.pinged_at) >= self.ping_interval {
            let id = self.next_id;
            self.next_id += 1;
            self.wire.push(Kind::Ping, id, Bytes::new());
            self.ping = Some((id, now));
            self.pinged_at = now;
        }
        Ok(false)
    }

    /// Tells those who wait for answers.
    fn lose(self, why: &str) {
        for pending in self.pending.into_values() {
            // Whoever called may have given up.
            let _ = pending
                .reply
                .send(Err(TransportError::Lost(why.to_owned())));
        }
    }
}
