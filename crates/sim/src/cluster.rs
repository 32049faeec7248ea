//! The machines of a simulation, and everything that may happen to one.
//!
//! A machine has a disk in memory, clocks, and for a while a node that runs on it. Power cuts and
//! kills leave the disk; a wipe does not. All nodes share one runtime, whose time jumps to the next
//! timer when nothing else is to be done; each stands still, or ends, by its
//! [`Pace`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use firn_engine::batch::Condition;
use firn_engine::key::NamespaceId;
use firn_engine::{Options, WriteBatch, verify_dir};
use firn_io::Env;
use firn_io::exec::Stepper;
use firn_io::fs::Fs;
use firn_io::fs::fault::FaultFs;
use firn_io::fs::mem::{CrashMode, MemFs};
use firn_io::rng::{Rng, SeededEntropy};
use firn_replica::home::Home;
use firn_replica::log_store::LogStoreOptions;
use firn_replica::pace::Pace;
use firn_replica::transfer::TransferOptions;
use firn_replica::{
    Error, Member, Node, NodeId, NodeOptions, Replicator, Result, Role, Status, Timing, World,
    Write,
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::clock::{SimClock, WallOffset};
use crate::exec::Workers;
use crate::net::{CALM, Link, Net};
use crate::watcher::{NodeCell, Watcher};

/// Where a node lives on its disk.
pub const ROOT: &str = "/node";

/// How long the cluster may take for a write once everything is healed.
pub const WRITE_WITHIN: Duration = Duration::from_secs(20);
/// How long the slowest node may take to have everything.
pub const CONVERGE_WITHIN: Duration = Duration::from_secs(40);

/// A node that runs.
struct Running {
    node: Node,
    fault: FaultFs,
    pace: Arc<Pace>,
    cell: NodeCell,
}

/// See the module's page.
pub struct Machine {
    /// Its disk.
    pub disk: MemFs,
    /// How long a step of the log's background takes at most, in milliseconds.
    pub log_ms: Arc<AtomicU64>,
    /// The same of the engine's.
    pub work_ms: Arc<AtomicU64>,
    /// How far its wall clock is off.
    pub wall: WallOffset,
    /// How fast its other clock is: a million is right.
    pub rate_ppm: u64,
    starts: u64,
    running: Option<Running>,
}

/// How the nodes of a simulation are set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of elections.
    pub timing: Timing,
    /// Bytes of a memtable.
    pub memtable_bytes: usize,
    /// Bytes of a segment of the log.
    pub segment_bytes: u64,
    /// Bytes of log beyond which a snapshot is made.
    pub log_bytes: u64,
    /// Entries that stay although a snapshot has them.
    pub kept_entries: u64,
    /// Bytes of the newest entries that stay in memory.
    pub log_cache_bytes: usize,
    /// Whether the log is written through a mapping.
    pub mapped: bool,
    /// How long a write or a read may take.
    pub request_timeout: Duration,
    /// Bytes of writes that may wait for their turn.
    pub queue_bytes: usize,
    /// After every so many entries the contents of all nodes are compared.
    pub compare_every: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timing: Timing {
                heartbeat: Duration::from_millis(50),
                election_min: Duration::from_millis(150),
                election_max: Duration::from_millis(300),
            },
            memtable_bytes: 16 << 10,
            segment_bytes: 16 << 10,
            log_bytes: 48 << 10,
            kept_entries: 30,
            log_cache_bytes: 8 << 10,
            mapped: true,
            request_timeout: Duration::from_millis(1500),
            queue_bytes: 64 << 20,
            compare_every: 50,
        }
    }
}

/// See the module's page.
pub struct Cluster {
    /// The network.
    pub net: Arc<Net>,
    /// What is seen of all nodes.
    pub watcher: Arc<Watcher>,
    /// All machines, whether a node runs there or not.
    pub machines: BTreeMap<NodeId, Machine>,
    /// Chance.
    pub rng: Rng,
    /// How nodes are set up.
    pub settings: Settings,
    paces: Arc<Mutex<Paces>>,
}

/// The nodes that clients can call: where each runs, and how it is called.
pub type Paces = BTreeMap<NodeId, (Arc<Pace>, Node)>;

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// How members know a node.
pub fn member(id: NodeId) -> Member {
    Member {
        address: format!("sim:{id}"),
        ..Member::default()
    }
}

/// A write of one key.
pub fn put(key: &[u8], value: &[u8], condition: Option<Condition>) -> Write {
    let mut batch = WriteBatch::new();
    batch.put(NamespaceId(0), key, value).expect("small");
    if let Some(condition) = condition {
        batch
            .require(NamespaceId(0), key, condition)
            .expect("small");
    }
    Write::batch(&mut batch)
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

impl Cluster {
    /// A cluster of machines 1 to `nodes`, on which nothing runs yet.
    pub fn new(seed: u64, nodes: u64, settings: Settings) -> Self {
        let mut rng = Rng::new(seed);
        Node::reset_randomness(rng.next_u64());
        let mut cluster = Self {
            net: Net::new(rng.next_u64()),
            watcher: Watcher::new(settings.compare_every),
            machines: BTreeMap::new(),
            rng,
            settings,
            paces: Arc::default(),
        };
        for id in 1..=nodes {
            cluster.add_machine(id);
        }
        cluster
    }

    /// One more machine, new and empty.
    pub fn add_machine(&mut self, id: NodeId) {
        let machine = Machine {
            disk: MemFs::new(),
            log_ms: Arc::new(AtomicU64::new(1)),
            work_ms: Arc::new(AtomicU64::new(3)),
            wall: WallOffset::default(),
            rate_ppm: 1_000_000,
            starts: 0,
            running: None,
        };
        self.machines.insert(id, machine);
    }

    /// Starts all nodes and makes them a cluster.
    pub async fn boot(&mut self) {
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        for &id in &ids {
            self.start(id).await.expect("an empty disk");
        }
        let members = ids.iter().map(|&id| (id, member(id))).collect();
        let made = self.node(1).initialize(members).await;
        made.expect("all are empty");
    }

    /// The node that runs there.
    pub fn node(&self, id: NodeId) -> Node {
        self.try_node(id).expect("it runs")
    }

    /// The node that runs there, if one does.
    pub fn try_node(&self, id: NodeId) -> Option<Node> {
        let running = self.machines.get(&id)?.running.as_ref();
        running.map(|running| running.node.clone())
    }

    /// Where faults of the disk under the node are arranged.
    pub fn faults(&self, id: NodeId) -> Option<FaultFs> {
        let running = self.machines.get(&id)?.running.as_ref();
        running.map(|running| running.fault.clone())
    }

    /// How time passes for the node that runs there.
    pub fn pace(&self, id: NodeId) -> Option<Arc<Pace>> {
        let running = self.machines.get(&id)?.running.as_ref();
        running.map(|running| Arc::clone(&running.pace))
    }

    /// The nodes that clients can call.
    pub fn door(&self) -> Arc<Mutex<Paces>> {
        Arc::clone(&self.paces)
    }

    /// The machines on which a node runs.
    pub fn alive(&self) -> Vec<NodeId> {
        let machines = self.machines.iter();
        let running = machines.filter(|(_, machine)| machine.running.is_some());
        running.map(|(id, _)| *id).collect()
    }

    /// How many times a node was started there.
    pub fn starts(&self, id: NodeId) -> u64 {
        self.machines.get(&id).map_or(0, |machine| machine.starts)
    }

    fn options(&self, id: NodeId, start: u64, cell: &NodeCell) -> NodeOptions {
        let settings = &self.settings;
        NodeOptions {
            engine: Options {
                memory_bytes: 8 << 20,
                memtable_bytes: Some(settings.memtable_bytes),
                cache_bytes: Some(256 << 10),
                min_blob_bytes: 400,
                ballast_bytes: 0,
                background_sync: None,
                ..Options::default()
            },
            log: LogStoreOptions {
                segment_bytes: settings.segment_bytes,
                mapped: settings.mapped,
                cache_bytes: settings.log_cache_bytes,
            },
            timing: settings.timing,
            log_bytes: settings.log_bytes,
            kept_entries: Some(settings.kept_entries),
            request_timeout: settings.request_timeout,
            queue_bytes: settings.queue_bytes,
            transfer: TransferOptions {
                chunk_bytes: 4 << 10,
                timeout: Duration::from_millis(300),
                ..TransferOptions::default()
            },
            listener: Some(self.watcher.listener(id, start, Arc::clone(cell))),
            ..NodeOptions::new(id, ROOT)
        }
    }

    /// Starts a node on a machine on which none runs.
    pub async fn start(&mut self, id: NodeId) -> Result<()> {
        let seed = self.rng.next_u64();
        let origin = self.net.origin();
        let machine = self.machines.get_mut(&id).expect("a machine");
        machine.starts += 1;
        let start = machine.starts;
        let fault = FaultFs::new(Arc::new(machine.disk.clone()), seed);
        let disk = machine.disk.clone();
        // The disk of then: a later start has another one.
        fault.set_lose_unsynced(Box::new(move |path| {
            // It is there, it is being synced.
            let _ = disk.lose_unsynced(path);
        }));
        let clock = SimClock::new(origin, machine.rate_ppm, Arc::clone(&machine.wall));
        let clock = Arc::new(clock);
        let pace = Pace::new(machine.rate_ppm);
        let env = |salt: u64, most: &Arc<AtomicU64>| {
            let exec = Workers::new(seed ^ salt, clock.clone(), Arc::clone(most));
            pace.spawn(Arc::clone(&exec).work(seed ^ salt));
            Env {
                fs: Arc::new(fault.clone()),
                clock: clock.clone(),
                entropy: Arc::new(SeededEntropy::new(seed ^ salt)),
                exec,
            }
        };
        let world = World {
            env: env(1, &machine.work_ms),
            log_env: env(2, &machine.log_ms),
            transport: Arc::new(Link {
                net: Arc::clone(&self.net),
                from: id,
                start,
                watcher: Arc::clone(&self.watcher),
            }),
        };
        let cell = NodeCell::default();
        let options = self.options(id, start, &cell);
        let node = match Node::start_paced(options, world, Arc::clone(&pace)).await {
            Ok(node) => node,
            Err(error) => {
                pace.end();
                let machine = self.machines.get_mut(&id).expect("a machine");
                machine.disk = machine.disk.fork();
                return Err(error);
            }
        };
        *cell.lock() = Some(node.clone());
        self.net.join(id, start, node.clone());
        let served = (Arc::clone(&pace), node.clone());
        self.paces.lock().insert(id, served);
        let running = Running {
            node,
            fault,
            pace,
            cell,
        };
        self.machines.get_mut(&id).expect("a machine").running = Some(running);
        Ok(())
    }

    /// Ends a node at once. With a mode the power goes too.
    pub fn kill(&mut self, id: NodeId, power: Option<CrashMode>) {
        let seed = self.rng.next_u64();
        let machine = self.machines.get_mut(&id).expect("a machine");
        let Some(running) = machine.running.take() else {
            return;
        };
        machine.disk = match power {
            Some(mode) => machine.disk.crash(seed, mode),
            None => machine.disk.fork(),
        };
        self.end(id, &running);
    }

    /// What is left of a process reaches neither disk nor network.
    fn end(&self, id: NodeId, running: &Running) {
        running.fault.fail_from(0);
        running.pace.end();
        *running.cell.lock() = None;
        self.net.leave(id);
        self.paces.lock().remove(&id);
    }

    /// The machine is gone for good, with its disk.
    pub fn destroy(&mut self, id: NodeId) {
        self.kill(id, None);
        self.machines.remove(&id);
    }

    /// Parts the nodes in two.
    pub fn part(&self, side: &BTreeSet<NodeId>) {
        for &a in self.machines.keys() {
            for &b in self.machines.keys() {
                if side.contains(&a) != side.contains(&b) {
                    self.net.cut(a, b);
                }
            }
        }
    }

    /// Mends the network, the disks' speed and what fails by rule, and wakes who stands still.
    pub fn heal(&self) {
        self.net.mend_all();
        self.net.set_weather(CALM);
        for machine in self.machines.values() {
            machine.log_ms.store(1, Ordering::Relaxed);
            machine.work_ms.store(3, Ordering::Relaxed);
            machine.disk.set_capacity(u64::MAX);
            if let Some(running) = &machine.running {
                running.fault.clear_rules();
                running.pace.resume();
            }
        }
    }

    /// What all nodes say of themselves that can say anything.
    pub fn statuses(&self) -> Vec<Status> {
        let running = self.machines.values().filter_map(|m| m.running.as_ref());
        let awake = running.filter(|running| !running.pace.is_paused());
        awake.map(|running| running.node.status()).collect()
    }

    /// Who leads in the newest term.
    pub fn leader(&self) -> Option<NodeId> {
        let statuses = self.statuses();
        let leaders = statuses.iter().filter(|s| s.role == Role::Leader);
        let newest = leaders.max_by_key(|status| status.term);
        newest.map(|status| status.node)
    }

    /// Waits until somebody leads.
    pub async fn wait_for_leader(&self) -> std::result::Result<NodeId, String> {
        for _ in 0..2000 {
            if let Some(id) = self.leader() {
                return Ok(id);
            }
            sleep(Duration::from_millis(5)).await;
        }
        let statuses = self.statuses();
        Err(format!("no leader within 10 s: {statuses:?}"))
    }

    /// Looks at all nodes.
    pub fn look(&self) {
        for status in self.statuses() {
            self.watcher.look(&status);
        }
    }

    /// Reads all files of a machine that no node runs on, and says what is wrong with them.
    pub fn verify(&self, id: NodeId) -> std::result::Result<(), String> {
        let machine = self.machines.get(&id).expect("a machine");
        let disk = machine.disk.fork();
        disk.set_capacity(u64::MAX);
        let told = |what: &str, error: String| format!("node {id}: {what}: {error}");
        if !disk.exists(Path::new(ROOT)).unwrap_or(false) {
            return Ok(());
        }
        let fs: Arc<dyn Fs> = Arc::new(disk.clone());
        let entropy = SeededEntropy::new(id);
        let home = Home::open(Arc::clone(&fs), Path::new(ROOT), id, &entropy);
        let home = home.map_err(|error| told("HOME", error.to_string()))?;
        let wall = WallOffset::default();
        let clock = Arc::new(SimClock::new(self.net.origin(), 1_000_000, wall));
        let env = Env {
            fs,
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(id)),
            exec: Arc::new(Stepper::new(id, clock)),
        };
        if env.fs.exists(&home.log_dir()).unwrap_or(false) {
            let nothing = |_: firn_io::wal::Record<'_>| Ok::<(), firn_io::Error>(());
            let report = firn_io::wal::reader::verify(&*env.fs, &home.log_dir(), None, nothing);
            let report = report.map_err(|error| told("log", error.to_string()))?;
            if let Some(problem) = report.problems.first() {
                return Err(told("log", problem.to_string()));
            }
        }
        if disk
            .exists(&home.state_dir().join("CURRENT"))
            .unwrap_or(false)
        {
            let report = verify_dir(&env, &home.state_dir(), &mut |_| ());
            let report = report.map_err(|error| told("state", error.to_string()))?;
            if let Some(problem) = report.problems.first() {
                return Err(told("state", problem.to_string()));
            }
        }
        Ok(())
    }

    /// Starts nodes again that failed: they may find only now what was done to them before. Nobody may
    /// fail a second time.
    async fn revive_failed(
        &mut self,
        revived: &mut BTreeSet<NodeId>,
    ) -> std::result::Result<(), String> {
        for status in self.statuses() {
            let (id, Some(failure)) = (status.node, status.failure) else {
                continue;
            };
            if !revived.insert(id) {
                return Err(format!("node {id} failed after all was healed: {failure}"));
            }
            let started = self.revive(id).await;
            started.map_err(|error| format!("node {id} does not start again: {error}"))?;
        }
        Ok(())
    }

    /// Demands, with everything healed and everybody who shall run running, that the cluster takes a
    /// write, and that all its nodes come to have the same contents. Returns the hash of these.
    pub async fn converge(&mut self) -> std::result::Result<u64, String> {
        let begin = Instant::now();
        let mut revived = BTreeSet::new();
        let last = loop {
            self.revive_failed(&mut revived).await?;
            let result = match self.leader() {
                Some(leader) => {
                    let write = put(b"settled", b"yes", None);
                    self.node(leader).propose(write).await
                }
                None => Err(Error::NotLeader { leader: None }),
            };
            if let Ok(written) = result {
                break written.id.index;
            }
            if begin.elapsed() > WRITE_WITHIN {
                let statuses = self.statuses();
                return Err(format!(
                    "no write within {WRITE_WITHIN:?}: {result:?}, {statuses:?}"
                ));
            }
            sleep(Duration::from_millis(10)).await;
        };
        let mut hashes = BTreeMap::new();
        for id in self.alive() {
            let node = loop {
                self.revive_failed(&mut revived).await?;
                let node = self.node(id);
                let status = node.status();
                if status.applied.is_some_and(|applied| applied.index >= last) {
                    break node;
                }
                if begin.elapsed() > CONVERGE_WITHIN {
                    return Err(format!("node {id} stays behind: {status:?}"));
                }
                sleep(Duration::from_millis(10)).await;
            };
            let hash = node.content_hash();
            let hash = hash.map_err(|error| format!("node {id} cannot be read: {error}"))?;
            if let Some(applied) = node.status().applied {
                self.watcher.contents(id, applied.index, hash);
            }
            hashes.insert(id, hash);
        }
        let mut different: Vec<u64> = hashes.values().copied().collect();
        different.dedup();
        match different[..] {
            [hash] => Ok(hash),
            _ => Err(format!("the nodes' contents differ at the end: {hashes:?}")),
        }
    }

    /// Heals everything, starts everybody, and demands what [`Cluster::converge`] does.
    pub async fn settle(&mut self) -> std::result::Result<u64, String> {
        self.heal();
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            self.revive(id)
                .await
                .map_err(|e| format!("node {id} does not start: {e}"))?;
        }
        self.converge().await
    }

    /// Starts a node that does not run or has failed.
    pub async fn revive(&mut self, id: NodeId) -> Result<()> {
        if self
            .try_node(id)
            .is_some_and(|node| node.status().role == Role::Stopped)
        {
            self.kill(id, None);
        }
        match self.try_node(id) {
            Some(_) => Ok(()),
            None => self.start(id).await,
        }
    }
}

impl Drop for Cluster {
    /// Nodes know the network and who watches them, which know the nodes: what is not ended stays in
    /// memory.
    fn drop(&mut self) {
        for (&id, machine) in &self.machines {
            if let Some(running) = &machine.running {
                self.end(id, running);
            }
        }
    }
}

/// Whether an error of a start says that the disk is damaged.
pub fn is_corruption(error: &Error) -> bool {
    match error {
        Error::Io(error) => error.is_corruption(),
        Error::Engine(firn_engine::Error::Io(error)) => error.is_corruption(),
        Error::Engine(error) => error.is_corruption(),
        _ => false,
    }
}
