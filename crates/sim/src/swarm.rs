//! One seed: which faults there are, how often, what clients do meanwhile; then peace, in which the
//! cluster must work again; then everything that clients were told is judged.
//!
//! Each seed has a random part of all faults (Groce et al., *Swarm testing*, 2012): a run with all of
//! them at once would spend its time on the loudest ones.
//!
//! Faults stay within what a cluster survives without losing anything. Crashes of any number of nodes
//! are among that; damage to a disk is not, beyond a minority: a machine that was damaged or wiped
//! counts as lost, and until another one, under a new number, has taken its place, no further one is
//! lost than a minority can be, and members are changed for no other reason.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use firn_io::fs::fault::{Fault as DiskFault, OpKind, Rule};
use firn_io::fs::mem::CrashMode;
use firn_io::rng::Rng;
use firn_replica::{MemberChange, Node, NodeId, Replicator, Role, Status, Timing};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{Load, LoadSettings};
use crate::cluster::{Cluster, Settings, is_corruption, member, put};
use crate::damage::{self, Target};
use crate::history::Counts;
use crate::net::{CALM, Weather};

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process is killed; its disk keeps what the kernel had.
    Kill,
    /// A machine loses power.
    PowerCut,
    /// A machine loses power in the middle of what it does, at one of the next operations on its disk.
    DieAtIo,
    /// All machines lose power at once.
    Blackout,
    /// The leader loses power, and is back before anybody misses it.
    LeaderBlink,
    /// The network falls into two parts.
    Partition,
    /// One direction between two nodes is cut.
    OneWay,
    /// One node reaches one other only, and that one everybody.
    Bridge,
    /// A way opens and closes every few moments.
    Flap,
    /// Messages are lost.
    Loss,
    /// Messages arrive twice, the second time perhaps much later.
    Repeat,
    /// Messages take long.
    Delay,
    /// Syncs of the log take long.
    SlowLog,
    /// Flushes, compactions and snapshots take long.
    SlowWork,
    /// Bytes at rest change.
    Rot,
    /// A read fails once.
    ReadError,
    /// A sync fails, and what it should have kept is gone.
    SyncError,
    /// A write fails half done.
    WriteError,
    /// There is no space left for a while.
    FullDisk,
    /// Clocks run at different rates.
    ClockRate,
    /// A wall clock jumps.
    WallJump,
    /// A process stands still for a while.
    Pause,
    /// Members come and go.
    Members,
    /// A machine is lost for good, with its disk.
    Wipe,
    /// Somebody else shall lead.
    Transfer,
    /// Snapshots are made out of turn.
    Snapshot,
    /// Some reads rely on the leader's lease.
    Leases,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::Kill,
        Self::PowerCut,
        Self::DieAtIo,
        Self::Blackout,
        Self::LeaderBlink,
        Self::Partition,
        Self::OneWay,
        Self::Bridge,
        Self::Flap,
        Self::Loss,
        Self::Repeat,
        Self::Delay,
        Self::SlowLog,
        Self::SlowWork,
        Self::Rot,
        Self::ReadError,
        Self::SyncError,
        Self::WriteError,
        Self::FullDisk,
        Self::ClockRate,
        Self::WallJump,
        Self::Pause,
        Self::Members,
        Self::Wipe,
        Self::Transfer,
        Self::Snapshot,
        Self::Leases,
    ];

    /// Its name on the command line.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// What a seed makes of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How many nodes there are at first.
    pub nodes: u64,
    /// How long there are faults.
    pub length: Duration,
    /// Which.
    pub faults: BTreeSet<Fault>,
    /// The longest time between two, in milliseconds.
    pub pause_ms: u64,
    /// How nodes are set up.
    pub settings: Settings,
    /// What clients do.
    pub load: LoadSettings,
    /// In the end a minority stays away for good.
    pub leaves_minority: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, nodes: u64) -> Self {
        let rng = &mut Rng::new(seed ^ 0x5eed);
        // Few faults are seen deeper than many.
        let share = [0.15, 0.3, 0.5][rng.index(3)];
        let chosen = Fault::ALL.into_iter().filter(|_| rng.chance(share));
        let mut faults: BTreeSet<Fault> = chosen.collect();
        faults.insert([Fault::Kill, Fault::PowerCut][rng.index(2)]);
        let settings = Settings {
            memtable_bytes: [8, 16, 64][rng.index(3)] << 10,
            segment_bytes: [8, 16, 64][rng.index(3)] << 10,
            log_bytes: [24, 48, 400][rng.index(3)] << 10,
            kept_entries: [5, 30, 300][rng.index(3)],
            log_cache_bytes: [0, 8, 256][rng.index(3)] << 10,
            mapped: rng.one_in(2),
            compare_every: [16, 50, 100][rng.index(3)],
            timing: Timing {
                heartbeat: Duration::from_millis(50),
                election_min: Duration::from_millis(150),
                election_max: Duration::from_millis([300, 450][rng.index(2)]),
            },
            ..Settings::default()
        };
        let load = LoadSettings {
            clients: rng.between(2, 5),
            think_ms: [20, 40, 80][rng.index(3)],
            epoch_ms: rng.between(500, 2000),
            registers: rng.between(1, 4),
            maps: rng.between(0, 2),
            reads_in_ten: rng.between(2, 6),
            leases_in_ten: [0, rng.between(2, 10)][usize::from(faults.contains(&Fault::Leases))],
            ..LoadSettings::default()
        };
        Self {
            seed,
            nodes,
            length: Duration::from_secs(rng.between(6, 12)),
            faults,
            pause_ms: [60, 200, 600][rng.index(3)],
            settings,
            load,
            leaves_minority: rng.one_in(2),
        }
    }
}

/// How a run went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What does not hold.
    pub violations: Vec<String>,
    /// Objects of which it was not found out.
    pub undecided: u64,
    /// A number that is another one if anything at all was different.
    pub trace: u64,
    /// What clients did.
    pub counts: Counts,
    /// How often each fault happened.
    pub happened: BTreeMap<Fault, u64>,
    /// Snapshots that were sent.
    pub snapshots: u64,
    /// How often the contents of nodes were compared.
    pub compared: u64,
    /// The last term that was seen.
    pub terms: u64,
    /// How long it took, by the clocks in it.
    pub simulated: Duration,
}

/// What shall become of the membership.
#[derive(Clone, Copy, Debug)]
struct Goal {
    add: Option<NodeId>,
    remove: Option<NodeId>,
    /// Who goes is lost.
    is_loss: bool,
}

type Step = JoinHandle<Result<bool, firn_replica::Error>>;

struct Run {
    plan: Plan,
    cluster: Cluster,
    rng: Rng,
    /// Machines of which something may be lost.
    lost: BTreeSet<NodeId>,
    /// Those of them that are gone altogether.
    wiped: BTreeSet<NodeId>,
    goals: VecDeque<Goal>,
    step: Option<Step>,
    next_id: NodeId,
    /// When a node shall go on.
    paused: BTreeMap<NodeId, Instant>,
    /// At which operation a disk stops.
    dying: BTreeMap<NodeId, u64>,
    /// When a disk has room again.
    full: BTreeMap<NodeId, Instant>,
    happened: BTreeMap<Fault, u64>,
}

const MODES: [CrashMode; 3] = [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Torn];

/// Runs a plan, in a runtime whose time is paused.
pub async fn run(plan: Plan) -> Report {
    let begin = Instant::now();
    let mut cluster = Cluster::new(plan.seed, plan.nodes, plan.settings.clone());
    let mut rng = Rng::new(plan.seed ^ 0xfa17);
    for machine in cluster.machines.values_mut() {
        machine
            .wall
            .store(rng.below(4000) as i64, Ordering::Relaxed);
        if plan.faults.contains(&Fault::ClockRate) {
            machine.rate_ppm = rng.between(950_000, 1_050_000);
        }
    }
    cluster.boot().await;
    let next_id = plan.nodes + 1;
    let mut run = Run {
        rng,
        cluster,
        lost: BTreeSet::new(),
        wiped: BTreeSet::new(),
        goals: VecDeque::new(),
        step: None,
        next_id,
        paused: BTreeMap::new(),
        dying: BTreeMap::new(),
        full: BTreeMap::new(),
        happened: BTreeMap::new(),
        plan,
    };
    let mut load = Load::start(&mut run.cluster, run.plan.load);
    let result = run.phases(&mut load).await;
    if let Err(error) = result {
        run.cluster.watcher.violation(error);
    }
    let mut history = load.end().await;
    let mut report = Report::default();
    // A cluster that does not come back has said enough.
    if run.cluster.watcher.violations().is_empty()
        && let Some(leader) = run.cluster.leader()
    {
        let db = run.cluster.node(leader).db();
        let namespace = db.default_namespace();
        let (violations, undecided) = history.finish(|key| {
            let entry = db.get_entry(&namespace, key);
            let entry = entry.map_err(|error| error.to_string())?;
            Ok(entry.map(|entry| (entry.value.to_vec(), entry.version)))
        });
        report.undecided = undecided;
        for violation in violations {
            run.cluster.watcher.violation(violation);
        }
    }
    report.violations = run.cluster.watcher.violations();
    report.trace = run.cluster.net.trace();
    report.counts = history.counts;
    report.happened = run.happened;
    report.snapshots = run.cluster.watcher.snapshots();
    report.compared = run.cluster.watcher.compared();
    report.terms = run.cluster.watcher.greatest_term();
    report.simulated = begin.elapsed();
    report
}

impl Run {
    async fn phases(&mut self, load: &mut Load) -> Result<(), String> {
        self.cluster.wait_for_leader().await?;
        self.storm().await?;
        self.peace(load).await
    }

    /// Faults, until the time is over or something is wrong.
    async fn storm(&mut self) -> Result<(), String> {
        let end = Instant::now() + self.plan.length;
        let faults: Vec<Fault> = self.plan.faults.iter().copied().collect();
        while Instant::now() < end && self.cluster.watcher.violations().is_empty() {
            let fault = faults[self.rng.index(faults.len())];
            if self.strike(fault).await? {
                *self.happened.entry(fault).or_default() += 1;
            }
            let pause = self.rng.between(1, self.plan.pause_ms);
            sleep(Duration::from_millis(pause)).await;
            self.recover().await?;
            self.advance().await?;
            self.cluster.look();
        }
        Ok(())
    }

    fn ids(&self) -> Vec<NodeId> {
        self.cluster.machines.keys().copied().collect()
    }

    fn any(&mut self) -> NodeId {
        let ids = self.ids();
        ids[self.rng.index(ids.len())]
    }

    fn any_mode(&mut self) -> CrashMode {
        MODES[self.rng.index(3)]
    }

    /// Whether one more machine may be lost: nobody is being replaced or added, and a majority of the
    /// voters is in good health without it.
    fn may_lose(&self, id: NodeId) -> bool {
        let Some(leader) = self.cluster.leader() else {
            return false;
        };
        let Some(node) = self.cluster.try_node(leader) else {
            return false;
        };
        let status = node.status();
        let [voters] = &status.membership.voters[..] else {
            return false;
        };
        // Before the first commit the others may know nothing of the cluster: what was lost with its
        // first machine cannot be found again.
        if status.committed.is_none() {
            return false;
        }
        let mut lost = self.lost.clone();
        lost.insert(id);
        let are_all_lost_known = lost.iter().all(|id| voters.contains(id));
        self.step.is_none()
            && self.goals.iter().all(|goal| goal.is_loss)
            && are_all_lost_known
            && lost.len() <= (voters.len() - 1) / 2
    }

    /// A machine was lost: another one takes its place.
    fn lose(&mut self, id: NodeId) {
        if self.lost.insert(id) {
            self.goals.push_back(Goal {
                add: Some(self.next_id),
                remove: Some(id),
                is_loss: true,
            });
            self.next_id += 1;
        }
    }

    /// Lets a fault happen, if it can.
    async fn strike(&mut self, fault: Fault) -> Result<bool, String> {
        let any = self.any();
        match fault {
            Fault::Kill => self.crash(any, None)?,
            Fault::PowerCut => {
                let mode = self.any_mode();
                self.crash(any, Some(mode))?;
            }
            Fault::DieAtIo => {
                let Some(disk) = self.cluster.faults(any) else {
                    return Ok(false);
                };
                let last = disk.op_count() + self.rng.below(150);
                // A node that is dying, or is dead and not buried yet, is not brought back.
                let before = self.dying.get(&any);
                let last = before.map_or(last, |&before| before.min(last));
                disk.fail_from(last);
                self.dying.insert(any, last);
            }
            Fault::Blackout => {
                if !self.rng.one_in(4) {
                    return Ok(false);
                }
                for id in self.ids() {
                    let mode = self.any_mode();
                    self.crash(id, Some(mode))?;
                }
            }
            Fault::LeaderBlink => {
                let Some(leader) = self.cluster.leader() else {
                    return Ok(false);
                };
                let slow = self.rng.between(20, 200);
                let log_ms = Arc::clone(&self.cluster.machines[&leader].log_ms);
                log_ms.store(slow, Ordering::Relaxed);
                sleep(Duration::from_millis(self.rng.between(1, 200))).await;
                let mode = [CrashMode::DropUnsynced, CrashMode::Torn][self.rng.index(2)];
                self.crash(leader, Some(mode))?;
                log_ms.store(1, Ordering::Relaxed);
                sleep(Duration::from_millis(self.rng.between(1, 40))).await;
                self.start(leader).await?;
            }
            Fault::Partition => {
                let mut side = self.ids();
                self.rng.shuffle(&mut side);
                side.truncate(self.rng.between(1, self.plan.nodes) as usize);
                self.cluster.part(&side.into_iter().collect());
            }
            Fault::OneWay => {
                let other = self.any();
                self.cluster.net.cut(any, other);
            }
            Fault::Bridge => {
                let ids = self.ids();
                let bridge = self.cluster.leader().unwrap_or(any);
                let far = ids[self.rng.index(ids.len())];
                for &id in &ids {
                    if id != bridge && id != far {
                        self.cluster.net.cut(far, id);
                        self.cluster.net.cut(id, far);
                    }
                }
            }
            Fault::Flap => {
                let (other, net) = (self.any(), Arc::clone(&self.cluster.net));
                let (times, mut rng) = (self.rng.between(2, 8), Rng::new(self.rng.next_u64()));
                tokio::spawn(async move {
                    for _ in 0..times {
                        net.cut(any, other);
                        sleep(Duration::from_millis(rng.between(20, 300))).await;
                        net.mend(any, other);
                        sleep(Duration::from_millis(rng.between(20, 300))).await;
                    }
                });
            }
            Fault::Loss | Fault::Repeat | Fault::Delay => {
                let weather = self.weather();
                self.cluster.net.set_weather(weather);
            }
            Fault::SlowLog => {
                let slow = match self.rng.one_in(5) {
                    true => self.rng.between(200, 2000),
                    false => self.rng.between(1, 80),
                };
                let machine = &self.cluster.machines[&any];
                machine.log_ms.store(slow, Ordering::Relaxed);
            }
            Fault::SlowWork => {
                let slow = self.rng.between(1, 200);
                let machine = &self.cluster.machines[&any];
                machine.work_ms.store(slow, Ordering::Relaxed);
            }
            Fault::Rot => return Ok(self.rot(any)),
            Fault::ReadError | Fault::SyncError | Fault::WriteError => {
                return Ok(self.disk_error(fault, any));
            }
            Fault::FullDisk => {
                let room = self.rng.below(64 << 10);
                let disk = &self.cluster.machines[&any].disk;
                disk.set_capacity(disk.used_bytes() + room);
                let until = Duration::from_millis(self.rng.between(50, 2000));
                self.full.insert(any, Instant::now() + until);
            }
            // Set at the beginning, as that of new machines.
            Fault::ClockRate | Fault::Leases => return Ok(false),
            Fault::WallJump => {
                let hour = 3_600_000;
                let jump = self.rng.below(2 * hour) as i64 - hour as i64;
                let wall = &self.cluster.machines[&any].wall;
                wall.store(jump, Ordering::Relaxed);
            }
            Fault::Pause => {
                let chosen = self.cluster.leader().filter(|_| self.rng.one_in(2));
                let id = chosen.unwrap_or(any);
                let Some(pace) = self.cluster.pace(id) else {
                    return Ok(false);
                };
                pace.pause();
                let length = Duration::from_millis(self.rng.between(10, 1500));
                self.paused.insert(id, Instant::now() + length);
            }
            Fault::Members => return Ok(self.change_members()),
            Fault::Wipe => {
                if !self.may_lose(any) {
                    return Ok(false);
                }
                self.lose(any);
                self.wiped.insert(any);
                self.cluster.kill(any, None);
            }
            Fault::Transfer => {
                let Some(leader) = self.cluster.leader() else {
                    return Ok(false);
                };
                let node = self.cluster.node(leader);
                tokio::spawn(async move { node.transfer(any).await });
            }
            Fault::Snapshot => {
                let Some(node) = self.cluster.try_node(any) else {
                    return Ok(false);
                };
                tokio::spawn(async move { node.snapshot().await });
            }
        }
        Ok(true)
    }

    fn weather(&mut self) -> Weather {
        let has = |fault| self.plan.faults.contains(&fault);
        let (loss, repeat) = (has(Fault::Loss), has(Fault::Repeat));
        let long = has(Fault::Delay);
        Weather {
            loss: if loss { self.rng.unit() * 0.2 } else { 0.0 },
            repeat: if repeat { self.rng.unit() * 0.2 } else { 0.0 },
            most_ms: if long { self.rng.between(2, 200) } else { 2 },
            repeat_ms: [0, 100, 5000][self.rng.index(3)],
        }
    }

    /// Ends a process, and looks at its files now and then.
    fn crash(&mut self, id: NodeId, power: Option<CrashMode>) -> Result<(), String> {
        if self.cluster.try_node(id).is_none() {
            return Ok(());
        }
        self.cluster.kill(id, power);
        self.paused.remove(&id);
        self.dying.remove(&id);
        let is_whole = !self.lost.contains(&id) && !self.full.contains_key(&id);
        if is_whole && self.rng.one_in(12) {
            self.cluster.verify(id)?;
        }
        Ok(())
    }

    fn rot(&mut self, id: NodeId) -> bool {
        if !self.lost.contains(&id) && !self.may_lose(id) {
            return false;
        }
        let targets = [Target::Log, Target::Tables, Target::Names];
        let target = targets[self.rng.index(3)];
        let disk = self.cluster.machines[&id].disk.clone();
        let is_done = damage::rot(&disk, target, &mut self.rng).is_some();
        if is_done {
            self.lose(id);
        }
        is_done
    }

    fn disk_error(&mut self, fault: Fault, id: NodeId) -> bool {
        let Some(disk) = self.cluster.faults(id) else {
            return false;
        };
        let files = [".wal", ".sst", ".blob", "MANIFEST", "HOME.tmp"];
        let file = files[self.rng.index(files.len())];
        let rule = match fault {
            Fault::ReadError => Rule::new(DiskFault::Io).on(OpKind::Read),
            Fault::SyncError => Rule::new(DiskFault::LostSync).on(OpKind::Sync),
            _ => Rule::new(DiskFault::TornWrite).on(OpKind::Write),
        };
        let rule = rule.path_contains(file).skip(self.rng.below(4));
        disk.add_rule(rule.times(self.rng.between(1, 2)));
        true
    }

    fn change_members(&mut self) -> bool {
        if !self.goals.is_empty() || !self.lost.is_empty() {
            return false;
        }
        let Some(leader) = self.cluster.leader() else {
            return false;
        };
        let voters = self.cluster.node(leader).status().voters();
        let add = (voters.len() < 6).then_some(self.next_id);
        let others = voters.iter().copied().filter(|&id| id != leader);
        let others: Vec<NodeId> = others.collect();
        let remove = (voters.len() > 3 || self.rng.one_in(2))
            .then(|| others.get(self.rng.index(others.len())).copied())
            .flatten();
        if voters.len() <= 3 && add.is_none() || add.is_none() && remove.is_none() {
            return false;
        }
        let remove = remove.filter(|_| voters.len() > 3 || add.is_some());
        self.next_id += u64::from(add.is_some());
        self.goals.push_back(Goal {
            add,
            remove,
            is_loss: false,
        });
        true
    }

    /// Things get better by themselves, some of the time.
    async fn recover(&mut self) -> Result<(), String> {
        let now = Instant::now();
        let due: Vec<NodeId> = self
            .paused
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.paused.remove(&id);
            if let Some(pace) = self.cluster.pace(id) {
                pace.resume();
            }
        }
        let due: Vec<NodeId> = self
            .full
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.full.remove(&id);
            if let Some(machine) = self.cluster.machines.get(&id) {
                machine.disk.set_capacity(u64::MAX);
            }
        }
        let dying: Vec<(NodeId, u64)> = self.dying.iter().map(|(id, at)| (*id, *at)).collect();
        for (id, at) in dying {
            let count = self
                .cluster
                .faults(id)
                .map_or(u64::MAX, |disk| disk.op_count());
            if count > at || self.rng.one_in(20) {
                let mode = self.any_mode();
                self.crash(id, Some(mode))?;
            }
        }
        if self.rng.one_in(4) {
            self.cluster.net.mend_all();
        }
        if self.rng.one_in(6) {
            self.cluster.net.set_weather(CALM);
        }
        for id in self.ids() {
            if self.rng.one_in(8) {
                self.cluster.machines[&id]
                    .log_ms
                    .store(1, Ordering::Relaxed);
                self.cluster.machines[&id]
                    .work_ms
                    .store(3, Ordering::Relaxed);
            }
            let has_failed = self.has_failed(id);
            if has_failed && self.rng.one_in(3) {
                let power = [None, Some(CrashMode::DropUnsynced)][self.rng.index(2)];
                self.crash(id, power)?;
            }
            if self.rng.one_in(2) {
                self.start(id).await?;
            }
        }
        Ok(())
    }

    fn has_failed(&self, id: NodeId) -> bool {
        let statuses = self.cluster.statuses();
        let status = statuses.iter().find(|status| status.node == id);
        status.is_some_and(|status| status.role == Role::Stopped)
    }

    /// Starts a node that does not run. That of a lost machine may refuse.
    async fn start(&mut self, id: NodeId) -> Result<(), String> {
        if self.cluster.try_node(id).is_some() || !self.cluster.machines.contains_key(&id) {
            return Ok(());
        }
        if self.wiped.contains(&id) {
            return Ok(());
        }
        match self.cluster.start(id).await {
            Ok(()) => Ok(()),
            Err(error) if self.lost.contains(&id) && is_corruption(&error) => Ok(()),
            Err(_) if self.lost.contains(&id) || self.full.contains_key(&id) => Ok(()),
            Err(error) => Err(format!("node {id} does not start: {error}")),
        }
    }

    /// Brings the membership a step nearer to what it shall be.
    async fn advance(&mut self) -> Result<(), String> {
        if let Some(step) = &mut self.step {
            if !step.is_finished() {
                return Ok(());
            }
            let result = step.await;
            self.step = None;
            if let (Ok(Ok(true)), Some(goal)) = (result, self.goals.front().copied()) {
                self.goals.pop_front();
                if let Some(gone) = goal.remove {
                    self.lost.remove(&gone);
                    self.wiped.remove(&gone);
                    self.full.remove(&gone);
                    self.paused.remove(&gone);
                    self.dying.remove(&gone);
                    self.cluster.destroy(gone);
                }
            }
            return Ok(());
        }
        let Some(goal) = self.goals.front().copied() else {
            return Ok(());
        };
        if let Some(new) = goal.add
            && !self.cluster.machines.contains_key(&new)
        {
            self.cluster.add_machine(new);
            if self.plan.faults.contains(&Fault::ClockRate) {
                let rate = self.rng.between(950_000, 1_050_000);
                self.cluster.machines.get_mut(&new).expect("added").rate_ppm = rate;
            }
            self.start(new).await?;
        }
        if let Some(leader) = self.cluster.leader() {
            let node = self.cluster.node(leader);
            let is_first = self.rng.one_in(2);
            self.step = Some(tokio::spawn(async move {
                let step = next_step(node, goal, is_first);
                let late = Err(firn_replica::Error::NoQuorum);
                timeout(Duration::from_secs(5), step).await.unwrap_or(late)
            }));
        }
        Ok(())
    }

    /// Everything heals; the cluster must work.
    async fn peace(&mut self, load: &mut Load) -> Result<(), String> {
        self.paused.clear();
        self.full.clear();
        let dying: Vec<NodeId> = self.dying.keys().copied().collect();
        for id in dying {
            self.crash(id, Some(CrashMode::DropUnsynced))?;
        }
        self.cluster.heal();
        let mut away = BTreeSet::new();
        if self.plan.leaves_minority && self.lost.is_empty() && self.goals.is_empty() {
            let ids = self.ids();
            for _ in 0..(ids.len() - 1) / 2 {
                away.insert(ids[self.rng.index(ids.len())]);
            }
            // The founder may have been cut off before anybody else heard of the cluster: without it there
            // is none.
            let heard = self.cluster.statuses();
            let mut heard = heard
                .iter()
                .filter(|status| !status.membership.voters.is_empty());
            if !heard.any(|status| !away.contains(&status.node)) {
                away.clear();
            }
            for &id in &away {
                self.cluster.kill(id, None);
            }
        }
        let begin = Instant::now();
        loop {
            self.cluster.heal();
            for id in self.ids() {
                if away.contains(&id) {
                    continue;
                }
                if self.has_failed(id) {
                    self.cluster.kill(id, None);
                }
                self.start(id).await?;
            }
            self.advance().await?;
            self.cluster.look();
            if self.goals.is_empty() && self.step.is_none() {
                break;
            }
            if begin.elapsed() > Duration::from_secs(30) {
                let statuses = self.cluster.statuses();
                return Err(format!(
                    "members cannot be changed within 30 s: {:?}, lost {:?}, {statuses:?}",
                    self.goals, self.lost
                ));
            }
            sleep(Duration::from_millis(20)).await;
        }
        // Clients go on for a moment, in peace.
        sleep(Duration::from_millis(300)).await;
        load.stop().await;
        self.cluster.converge().await?;
        Ok(())
    }
}

/// The next step of a change; `true` when there is none left and that is certain.
async fn next_step(
    node: Node,
    goal: Goal,
    removes_first: bool,
) -> Result<bool, firn_replica::Error> {
    let status: Status = node.status();
    let members = &status.membership;
    let remove = goal.remove.filter(|id| members.nodes.contains_key(id));
    let add = goal.add.filter(|&id| !members.is_voter(id));
    if let (Some(old), true) = (remove, removes_first || add.is_none()) {
        if old == node.status().node {
            let other = status.voters().into_iter().find(|&id| id != old);
            if let Some(other) = other {
                node.transfer(other).await?;
            }
            return Ok(false);
        }
        node.change_members(MemberChange::Remove([old].into()))
            .await?;
        return Ok(false);
    }
    if let Some(new) = add {
        if members.nodes.contains_key(&new) {
            node.change_members(MemberChange::Promote([new].into()))
                .await?;
        } else {
            let change = MemberChange::AddLearner(new, member(new));
            node.change_members(change).await?;
        }
        return Ok(false);
    }
    // What is behind this write is committed, and so is the membership.
    node.propose(put(b"members", b"changed", None)).await?;
    Ok(members.voters.len() == 1 && node.status().leader == Some(node.status().node))
}
