//! Whole clusters in one thread, from one seed: the log, the engine, consensus and this crate, on
//! disks in memory that lose power and a network that delays, loses, repeats and parts.
//!
//! Time is tokio's, paused: it jumps to the next timer whenever nothing else is to be done. Background
//! work of each node runs in two steppers that a task works off a step at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use firn_engine::batch::Condition;
use firn_engine::key::NamespaceId;
use firn_engine::{Options, Outcome, SeqNo, WriteBatch};
use firn_io::Env;
use firn_io::checksum::xxh3_64_seeded;
use firn_io::clock::Clock;
use firn_io::exec::{Executor, Stepper};
use firn_io::fs::fault::FaultFs;
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::rng::{Rng, SeededEntropy};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::command::Write;
use crate::error::{Error, Result};
use crate::log_store::LogStoreOptions;
use crate::message::Request;
use crate::node::{Node, NodeOptions, Timing, World};
use crate::raft::config::config;
use crate::replicator::{MemberChange, ReadLevel, Replicator, Role, Written};
use crate::transfer::TransferOptions;
use crate::transport::{BoxFuture, Class, Peer, Transport, TransportError};
use crate::types::{Entry, Member, NodeId};

mod scenario_tests;

/// Tokio's time as a clock.
#[derive(Debug)]
struct SimClock {
    origin: Instant,
    /// Slept away by whoever blocks.
    slept_ns: AtomicU64,
    /// How far the wall clock of this node is off, in milliseconds.
    wall_offset_ms: u64,
}

impl Clock for SimClock {
    fn unix_ms(&self) -> u64 {
        1_700_000_000_000 + self.wall_offset_ms + self.monotonic().as_millis() as u64
    }

    fn monotonic(&self) -> Duration {
        let slept = Duration::from_nanos(self.slept_ns.load(Ordering::Relaxed));
        Instant::now().duration_since(self.origin) + slept
    }

    fn sleep(&self, duration: Duration) {
        let ns = duration.as_nanos() as u64;
        self.slept_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// What the network does to messages.
#[derive(Clone, Debug)]
struct Weather {
    loss: f64,
    repeat: f64,
    most_ms: u64,
}

const CALM: Weather = Weather {
    loss: 0.0,
    repeat: 0.0,
    most_ms: 2,
};

struct NetState {
    rng: Rng,
    /// By number: which start of the node it is, and the node.
    nodes: BTreeMap<NodeId, (u64, Node)>,
    /// Directions in which nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    weather: Weather,
    /// Messages of a class to a node arrive in order.
    last: BTreeMap<(NodeId, NodeId, Class), Instant>,
    /// Of every message and when it arrived.
    trace: u64,
    origin: Instant,
}

struct Net(Mutex<NetState>);

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Net")
    }
}

impl Net {
    /// When a message arrives; `None` if it is lost.
    fn send(&self, from: NodeId, to: NodeId, class: Class) -> Option<Instant> {
        let state = &mut *self.0.lock();
        if state.rng.chance(state.weather.loss) {
            return None;
        }
        let delay = state.rng.between(0, state.weather.most_ms);
        let last = state.last.entry((from, to, class));
        let last = last.or_insert_with(Instant::now);
        *last = (*last).max(Instant::now() + Duration::from_millis(delay));
        Some(*last)
    }

    /// The node at the end of a way that is open.
    fn reach(&self, from: NodeId, to: NodeId) -> Option<(u64, Node)> {
        let state = self.0.lock();
        if state.cut.contains(&(from, to)) {
            return None;
        }
        state.nodes.get(&to).cloned()
    }

    fn note(&self, bytes: &[u8], from: NodeId, to: NodeId) {
        let state = &mut *self.0.lock();
        let at = Instant::now().duration_since(state.origin).as_millis() as u64;
        let seed = state.trace ^ (from << 8 | to) ^ (at << 16);
        state.trace = xxh3_64_seeded(seed, bytes);
    }
}

/// One start of a node, at its end of the network.
#[derive(Debug)]
struct Link {
    net: Arc<Net>,
    from: NodeId,
    start: u64,
    seen: Arc<Mutex<Seen>>,
}

impl Link {
    fn is_current(net: &Net, from: NodeId, start: u64) -> bool {
        let state = net.0.lock();
        state
            .nodes
            .get(&from)
            .is_none_or(|(current, _)| *current == start)
    }
}

impl Transport for Link {
    fn call(
        &self,
        to: &Peer,
        class: Class,
        request: Bytes,
        most: Duration,
    ) -> BoxFuture<'static, std::result::Result<Bytes, TransportError>> {
        let (net, from, start, to) = (Arc::clone(&self.net), self.from, self.start, to.id);
        if let Ok(Request::SnapshotInstall {
            last: Some(last), ..
        }) = Request::decode(&request)
        {
            self.seen.lock().brought.insert((to, last.index));
        }
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        let copies = {
            let state = &mut *net.0.lock();
            1 + u64::from(state.rng.chance(state.weather.repeat))
        };
        for _ in 0..copies {
            let Some(arrives) = net.send(from, to, class) else {
                continue;
            };
            let (net, request, tell) = (Arc::clone(&net), request.clone(), tell.take());
            tokio::spawn(async move {
                sleep_until(arrives).await;
                if !Link::is_current(&net, from, start) {
                    return;
                }
                let Some((_, node)) = net.reach(from, to) else {
                    return;
                };
                net.note(&request, from, to);
                let answer = node.handle(request).await;
                let Some(arrives) = net.send(to, from, class) else {
                    return;
                };
                sleep_until(arrives).await;
                if net.reach(to, from).is_some_and(|(now, _)| now == start)
                    && let Some(tell) = tell
                {
                    net.note(&answer, to, from);
                    let _ = tell.send(answer);
                }
            });
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

/// A node that runs.
struct Running {
    node: Node,
    fault: Arc<FaultFs>,
    is_alive: Arc<AtomicBool>,
}

struct Machine {
    disk: MemFs,
    starts: u64,
    running: Option<Running>,
    /// How long a step of the log's background takes at most, in milliseconds.
    log_ms: Arc<AtomicU64>,
}

/// What went wrong, and what was seen of all nodes together.
#[derive(Debug, Default)]
struct Seen {
    /// What each entry did, by its index.
    applied: BTreeMap<u64, (u64, NodeId)>,
    last: BTreeMap<(NodeId, u64), u64>,
    /// Snapshots that a node was sent: which node, and up to which entry.
    brought: BTreeSet<(NodeId, u64)>,
    violations: Vec<String>,
}

struct Cluster {
    net: Arc<Net>,
    machines: BTreeMap<NodeId, Machine>,
    seen: Arc<Mutex<Seen>>,
    rng: Rng,
    /// `None`: as the library has it when nobody says.
    leader_restore: Option<bool>,
}

const ROOT: &str = "/node";

fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(150),
        election_max: Duration::from_millis(300),
    }
}

impl Cluster {
    fn new(seed: u64, nodes: u64) -> Self {
        let mut rng = Rng::new(seed);
        crate::raft::rt::reset(rng.next_u64());
        let state = NetState {
            rng: Rng::new(rng.next_u64()),
            nodes: BTreeMap::new(),
            cut: BTreeSet::new(),
            weather: CALM,
            last: BTreeMap::new(),
            trace: 0,
            origin: Instant::now(),
        };
        let mut cluster = Self {
            net: Arc::new(Net(Mutex::new(state))),
            machines: BTreeMap::new(),
            seen: Arc::default(),
            rng,
            leader_restore: Some(false),
        };
        for id in 1..=nodes {
            cluster.add_machine(id);
        }
        cluster
    }

    fn add_machine(&mut self, id: NodeId) {
        let machine = Machine {
            disk: MemFs::new(),
            starts: 0,
            running: None,
            log_ms: Arc::new(AtomicU64::new(1)),
        };
        self.machines.insert(id, machine);
    }

    fn member(id: NodeId) -> Member {
        Member {
            address: format!("sim:{id}"),
            ..Member::default()
        }
    }

    /// Starts all nodes and makes them a cluster.
    async fn boot(&mut self) {
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        for &id in &ids {
            self.start(id).await.unwrap();
        }
        let members = ids.iter().map(|&id| (id, Self::member(id))).collect();
        self.node(1).initialize(members).await.unwrap();
    }

    fn node(&self, id: NodeId) -> Node {
        let running = self.machines[&id].running.as_ref();
        running.expect("it runs").node.clone()
    }

    fn alive(&self) -> Vec<NodeId> {
        let machines = self.machines.iter();
        let running = machines.filter(|(_, machine)| machine.running.is_some());
        running.map(|(id, _)| *id).collect()
    }

    fn options(&self, id: NodeId, start: u64) -> NodeOptions {
        let seen = Arc::clone(&self.seen);
        let listener = move |entry: &Entry, outcomes: &[Outcome]| {
            let seen = &mut *seen.lock();
            let did = [&entry.to_bytes()[..], format!("{outcomes:?}").as_bytes()].concat();
            let hash = xxh3_64_seeded(0, &did);
            let index = entry.id.index;
            let (first, by) = *seen.applied.entry(index).or_insert((hash, id));
            if first != hash {
                let text = format!("entry {index} did one thing on node {by}, another on {id}");
                seen.violations.push(text);
            }
            let last = seen.last.insert((id, start), index);
            let is_brought = |index| seen.brought.contains(&(id, index));
            if last.is_some_and(|last| last + 1 != index) && !is_brought(index.saturating_sub(1)) {
                let text = format!("node {id} applied entry {index} after {last:?}");
                seen.violations.push(text);
            }
        };
        NodeOptions {
            engine: Options {
                memory_bytes: 8 << 20,
                memtable_bytes: Some(16 << 10),
                ballast_bytes: 0,
                background_sync: None,
                ..Options::default()
            },
            log: LogStoreOptions {
                segment_bytes: 16 << 10,
                mapped: true,
                cache_bytes: 8 << 10,
            },
            timing: timing(),
            log_bytes: 48 << 10,
            kept_entries: Some(30),
            request_timeout: Duration::from_millis(1500),
            transfer: TransferOptions {
                chunk_bytes: 4 << 10,
                timeout: Duration::from_millis(300),
                ..TransferOptions::default()
            },
            listener: Some(Arc::new(listener)),
            ..NodeOptions::new(id, ROOT)
        }
    }

    async fn start(&mut self, id: NodeId) -> Result<()> {
        let seed = self.rng.next_u64();
        let origin = self.net.0.lock().origin;
        let machine = self.machines.get_mut(&id).expect("a machine");
        machine.starts += 1;
        let start = machine.starts;
        let fault = Arc::new(FaultFs::new(Arc::new(machine.disk.clone()), seed));
        let clock = Arc::new(SimClock {
            origin,
            slept_ns: AtomicU64::new(0),
            wall_offset_ms: id * 700,
        });
        let is_alive = Arc::new(AtomicBool::new(true));
        let env = |salt: u64, most: Arc<AtomicU64>| {
            let exec = Arc::new(Stepper::new(seed ^ salt, clock.clone()));
            pump(exec.clone(), seed ^ salt, Arc::clone(&is_alive), most);
            Env {
                fs: fault.clone(),
                clock: clock.clone(),
                entropy: Arc::new(SeededEntropy::new(seed ^ salt)),
                exec,
            }
        };
        let world = World {
            env: env(1, Arc::new(AtomicU64::new(3))),
            log_env: env(2, Arc::clone(&machine.log_ms)),
            transport: Arc::new(Link {
                net: Arc::clone(&self.net),
                from: id,
                start,
                seen: Arc::clone(&self.seen),
            }),
        };
        let options = self.options(id, start);
        let mut settings = config(&options.timing, options.kept_entries)?;
        settings.enable_leader_restore = self.leader_restore;
        let node = Node::start_with(options, world, settings).await?;
        self.net.0.lock().nodes.insert(id, (start, node.clone()));
        let running = Running {
            node,
            fault,
            is_alive,
        };
        self.machines.get_mut(&id).expect("a machine").running = Some(running);
        Ok(())
    }

    /// Ends a node at once. With a mode the power goes too.
    fn kill(&mut self, id: NodeId, power: Option<CrashMode>) {
        let seed = self.rng.next_u64();
        let machine = self.machines.get_mut(&id).expect("a machine");
        let Some(running) = machine.running.take() else {
            return;
        };
        machine.disk = match power {
            Some(mode) => machine.disk.crash(seed, mode),
            None => machine.disk.fork(),
        };
        running.fault.fail_from(0);
        running.is_alive.store(false, Ordering::Relaxed);
        self.net.0.lock().nodes.remove(&id);
        // What is left of it can reach neither disk nor network.
        tokio::spawn(async move { running.node.stop().await });
    }

    fn cut(&self, from: NodeId, to: NodeId) {
        self.net.0.lock().cut.insert((from, to));
    }

    /// Parts the nodes in two.
    fn part(&self, side: &BTreeSet<NodeId>) {
        for &a in self.machines.keys() {
            for &b in self.machines.keys() {
                if side.contains(&a) != side.contains(&b) {
                    self.cut(a, b);
                }
            }
        }
    }

    fn heal(&self) {
        let mut state = self.net.0.lock();
        state.cut.clear();
        state.weather = CALM;
    }

    fn leader(&self) -> Option<NodeId> {
        let mut leaders: Vec<_> = self
            .alive()
            .into_iter()
            .map(|id| (self.node(id).status(), id))
            .filter(|(status, _)| status.role == Role::Leader)
            .map(|(status, id)| (status.term, id))
            .collect();
        leaders.sort_unstable();
        leaders.last().map(|(_, id)| *id)
    }

    async fn wait_for_leader(&self) -> NodeId {
        for _ in 0..2000 {
            if let Some(id) = self.leader() {
                return id;
            }
            sleep(Duration::from_millis(5)).await;
        }
        let statuses: Vec<_> = self
            .alive()
            .iter()
            .map(|&id| self.node(id).status())
            .collect();
        panic!("no leader within 10 s: {statuses:#?}");
    }

    /// Heals everything, starts everybody, and demands that the cluster works again and that all
    /// nodes end up with the same state.
    async fn settle(&mut self) -> u64 {
        self.heal();
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            self.machines[&id].log_ms.store(1, Ordering::Relaxed);
            if self.machines[&id].running.is_none() {
                self.start(id).await.unwrap();
            }
        }
        let begin = Instant::now();
        let last = loop {
            let leader = self.wait_for_leader().await;
            let write = put(b"settled", b"yes", None);
            if let Ok(written) = self.node(leader).propose(write).await {
                break written.id.index;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "no write within 20 s"
            );
        };
        let mut hashes = BTreeSet::new();
        for id in self.alive() {
            let node = self.node(id);
            loop {
                let status = node.status();
                assert_eq!(status.failure, None, "node {id}");
                if status.applied.is_some_and(|applied| applied.index >= last) {
                    break;
                }
                let waited = begin.elapsed();
                assert!(
                    waited < Duration::from_secs(30),
                    "node {id} stays behind: {status:?}"
                );
                sleep(Duration::from_millis(10)).await;
            }
            hashes.insert(node.content_hash().unwrap());
        }
        assert_eq!(hashes.len(), 1, "the nodes' states differ");
        hashes.pop_first().unwrap_or_default()
    }

    fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().violations)
    }
}

/// Works off the background of a node.
fn pump(exec: Arc<Stepper>, seed: u64, is_alive: Arc<AtomicBool>, most_ms: Arc<AtomicU64>) {
    let mut rng = Rng::new(seed);
    tokio::spawn(async move {
        while is_alive.load(Ordering::Relaxed) {
            for _ in 0..rng.between(1, 3) {
                if !exec.run_one() {
                    break;
                }
            }
            let most = most_ms.load(Ordering::Relaxed);
            sleep(Duration::from_millis(rng.between(1, most.max(1)))).await;
        }
    });
}

fn put(key: &[u8], value: &[u8], condition: Option<Condition>) -> Write {
    let mut batch = WriteBatch::new();
    batch.put(NamespaceId(0), key, value).unwrap();
    if let Some(condition) = condition {
        batch.require(NamespaceId(0), key, condition).unwrap();
    }
    Write::batch(&mut batch)
}

/// What clients were told.
#[derive(Default)]
struct History {
    /// By key: the newest version of which a client was told, and its value.
    acked: BTreeMap<Vec<u8>, (SeqNo, Vec<u8>)>,
    /// Everything that anybody ever tried to write.
    tried: BTreeSet<Vec<u8>>,
    /// Written once, under a condition that it is not there.
    unique: BTreeMap<Vec<u8>, Vec<u8>>,
    writes: u64,
    reads: u64,
    violations: Vec<String>,
}

/// Writes and reads until told to stop.
async fn client(
    number: u64,
    seed: u64,
    net: Arc<Net>,
    history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
) {
    let mut rng = Rng::new(seed);
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let node = {
            let state = net.0.lock();
            let nodes: Vec<Node> = state.nodes.values().map(|(_, node)| node.clone()).collect();
            match nodes.len() {
                0 => None,
                len => Some(nodes[rng.index(len)].clone()),
            }
        };
        let Some(node) = node else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        count += 1;
        let value = format!("{number}-{count}-{}", "x".repeat(rng.below(200) as usize));
        let value = value.into_bytes();
        if rng.one_in(3) {
            let key = format!("k{}", rng.below(6)).into_bytes();
            let floor = history.lock().acked.get(&key).map(|(version, _)| *version);
            let Ok(point) = node.read_barrier(ReadLevel::Linearizable).await else {
                continue;
            };
            let found = point.db.get_entry(&point.db.default_namespace(), &key);
            let Ok(found) = found else { continue };
            let history = &mut *history.lock();
            history.reads += 1;
            let version = found.map(|entry| entry.version);
            if version < floor {
                let text = format!("read {version:?} of a key that was at {floor:?} before");
                history.violations.push(text);
            }
        } else {
            let is_unique = rng.one_in(2);
            let key = if is_unique {
                format!("u{number}-{count}").into_bytes()
            } else {
                format!("k{}", rng.below(6)).into_bytes()
            };
            let condition = is_unique.then_some(Condition::Absent);
            history.lock().tried.insert(value.clone());
            let written = node.propose(put(&key, &value, condition)).await;
            let history = &mut *history.lock();
            match written {
                Ok(Written {
                    outcome: Outcome::Written { last, .. },
                    ..
                }) => {
                    history.writes += 1;
                    if is_unique {
                        history.unique.insert(key.clone(), value.clone());
                    }
                    let newest = history.acked.entry(key).or_insert((last, value.clone()));
                    if newest.0 < last {
                        *newest = (last, value);
                    }
                }
                Ok(written) if is_unique => {
                    let text = format!("a key of its own was there already: {written:?}");
                    history.violations.push(text);
                }
                Ok(_) | Err(_) => {}
            }
        }
        sleep(Duration::from_millis(rng.below(20))).await;
    }
}

impl History {
    /// Compares with what is there at the end.
    fn check(&mut self, node: &Node) {
        let db = node.db();
        let namespace = db.default_namespace();
        for (key, (version, value)) in &self.acked {
            let found = db.get_entry(&namespace, key).unwrap();
            let name = String::from_utf8_lossy(key);
            match found {
                Some(found) if found.version > *version => {
                    if !self.tried.contains(&found.value.to_vec()) {
                        self.violations
                            .push(format!("{name} has what nobody wrote"));
                    }
                }
                Some(found) if found.version == *version && found.value[..] == value[..] => {}
                found => {
                    let text = format!("{name} was acknowledged at {version}, found {found:?}");
                    self.violations.push(text);
                }
            }
        }
        for (key, value) in &self.unique {
            if db.get(key).unwrap().as_deref() != Some(&value[..]) {
                let name = String::from_utf8_lossy(key);
                self.violations
                    .push(format!("{name} was acknowledged and is lost"));
            }
        }
    }
}

/// Runs a future in a runtime whose time is paused.
fn simulate<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(work)
}
