//! A node: the log, the state machine and consensus, put together and kept running.
//!
//! A node lives on one thread, in a current-thread runtime: consensus, the application of entries and
//! the loops below are tasks that never run at the same time, and none of them waits for a disk. The
//! log syncs on an executor of its own; flushes, compactions and snapshots run on the engine's. A
//! [`Node`] is a handle that any thread may use: [`Node::start_thread`] makes the thread, and a
//! simulator calls [`Node::start`] in a runtime of its own, with many nodes.
//!
//! * *Proposals.* Writes queue up. While [`ENTRIES_IN_FLIGHT`] entries are on their way to a majority,
//!   what comes meanwhile is put together into the next one: many clients share an entry, a write of
//!   the log, a sync, a message to each follower. Those who are likely to come in a moment are waited for,
//!   and then one entry at a time is on its way (see `gather`). On a node that does not lead, the queue goes to the
//!   leader as one request. It is passed on once only: two nodes that take each other for the leader
//!   do not play ball.
//! * *Reads.* Whoever wants to read queues up too; one question to a majority serves all that came
//!   before it was asked. Then the node waits until it has applied what it was told.
//! * *Upkeep.* When the log has grown beyond its budget a snapshot is made, after which consensus lets
//!   go of old entries. A change of members that was left half-way is ended by whoever leads. While
//!   values may expire and somebody reads, the leader lets time pass by an empty entry a second.
//!
//! # Failure
//!
//! An error of the log or of the state machine ends consensus on this node for good: it answers
//! nothing but that it has failed, and [`Status::failure`] says why. Nothing is repaired in place.
//!
//! # Starting
//!
//! 1. HOME: whose directory is it, which state is in force.
//! 2. The engine, at the entry that its manifest has.
//! 3. The log, which must reach at least that far. Only a state that a snapshot just brought may be
//!    ahead of it: then what the log has is replaced by the mark that the snapshot's entries are gone.
//! 4. Consensus, which applies what the log knows to be committed.
//!
//! A node that ended as somebody's follower may have granted a lease just before, and knows no more when
//! that was. For as long as a lease can last it votes for nobody and stands for no election, unless the
//! lead is handed over on purpose: then the lease was given up.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use firn_engine::{Db, Options};
use firn_io::Env;
use firn_io::exec::{Executor, Priority, ThreadPool};
use openraft::errors::{InitializeError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::raft::{TransferLeaderError, TransferLeaderRequest};
use openraft::{Raft, ReadPolicy, ServerState};
use openraft_rt::{AsyncRuntime as _, Instant as _, WatchReceiver};
use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime, RuntimeFlavor};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::budget::Budget;
use crate::command::Write;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::log_store::{LogStore, LogStoreOptions};
use crate::machine::{ApplyListener, LogLink, Machine, Snapshot};
use crate::message::{
    Answer, AppendAnswer, AppendRequest, Refusal, Request, TransferAnswer, TransferRequest,
    VoteAnswer,
};
use crate::node::writes::{Proposed, Writes};
use crate::pace::{self, Pace};
use crate::planted::{self, Bug};
use crate::raft::config::{
    self, RaftLogId, Types, config, log_id, membership, raft_log_id, raft_vote, vote,
};
use crate::raft::errors::{
    raft_vote_request, read_error, refusal, refused, vote_answer, write_error,
};
use crate::raft::log::RaftLog;
use crate::raft::machine::{RaftMachine, raft_snapshot};
use crate::raft::net::{RaftNet, Returned, Sending};
use crate::raft::rt::{self, LocalInstant};
use crate::replicator::{MemberChange, ReadLevel, ReadPoint, Replicator, Role, Status, Written};
use crate::transfer::{Inbox, TransferOptions};
use crate::transport::{BoxFuture, Class, Peer, Transport};
use crate::types::{Member, NodeId, Vote};

pub use crate::raft::config::Timing;

mod members;
mod refill;
mod writes;

/// Entries with writes that may be on their way to a majority at once. With one, a write that comes
/// just too late waits for two rounds; with many, entries are small.
pub const ENTRIES_IN_FLIGHT: usize = 2;
/// An entry takes no further writes when it has this many bytes.
pub const ENTRY_BYTES: usize = 1 << 20;
/// An entry takes at most this many writes.
pub const ENTRY_WRITES: usize = 4096;
/// How far time may be behind while somebody reads and values may expire.
pub const TIME_STEP: Duration = Duration::from_secs(1);
/// How far a learner may be behind to get a vote, in entries.
pub const PROMOTION_LAG: u64 = 1000;
/// A leader speaks, and then keeps still, for so many halves of the longest election timeout, while no
/// majority answers: long enough for the lease of those who hear it, and for their election.
const STILL_ROUNDS: u32 = 6;
/// How often the length of the log, and whether the node is closed or leads no more, is looked at.
const UPKEEP: Duration = Duration::from_secs(1);
/// First and longest pause before a write or read is tried again that found no leader, if none is
/// elected meanwhile.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MOST: Duration = Duration::from_millis(200);

/// How a node is started.
#[derive(Clone)]
pub struct NodeOptions {
    /// Its number, never used by another node of the cluster.
    pub id: NodeId,
    /// Its directory.
    pub root: PathBuf,
    /// Of the engine. At least two background threads are needed.
    pub engine: Options,
    /// Of the log.
    pub log: LogStoreOptions,
    /// Of elections.
    pub timing: Timing,
    /// Bytes of log beyond which a snapshot is made and old entries go. Default: 256 MiB.
    pub log_bytes: u64,
    /// Entries that stay in the log although a snapshot has them; fewer where the log is longer than
    /// `log_bytes` for them. Default (`None`): 10,000.
    pub kept_entries: Option<u64>,
    /// How long a write or a read may take, retries included. Default: 10 s.
    pub request_timeout: Duration,
    /// Bytes of writes that may wait for their turn; beyond that they are refused. Default: 64 MiB.
    pub queue_bytes: usize,
    /// How snapshots are sent.
    pub transfer: TransferOptions,
    /// Is told of every entry that is applied.
    pub listener: Option<ApplyListener>,
}

impl NodeOptions {
    /// With every default.
    pub fn new(id: NodeId, root: impl Into<PathBuf>) -> Self {
        Self {
            id,
            root: root.into(),
            engine: Options::default(),
            log: LogStoreOptions::default(),
            timing: Timing::default(),
            log_bytes: 256 << 20,
            kept_entries: None,
            request_timeout: Duration::from_secs(10),
            queue_bytes: 64 << 20,
            transfer: TransferOptions::default(),
            listener: None,
        }
    }
}

impl fmt::Debug for NodeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeOptions")
            .field("id", &self.id)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// The world outside of a node.
#[derive(Clone, Debug)]
pub struct World {
    /// Of the engine.
    pub env: Env,
    /// Of the log: the same disk, but an executor of its own, so that a sync waits for nothing.
    pub log_env: Env,
    /// The other nodes.
    pub transport: Arc<dyn Transport>,
}

struct PendingRead {
    is_forwarded: bool,
    answer: oneshot::Sender<Result<u64>>,
}

struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    came: Notify,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            items: Mutex::default(),
            came: Notify::new(),
        }
    }
}

impl<T> Queue<T> {
    fn push(&self, item: T) {
        self.items.lock().push_back(item);
        self.came.notify_one();
    }

    /// All that wait, when there are any.
    async fn some(&self, is_closed: &AtomicBool) -> Option<()> {
        loop {
            if is_closed.load(Ordering::Acquire) {
                return None;
            }
            if !self.items.lock().is_empty() {
                return Some(());
            }
            self.came.notified().await;
        }
    }
}

/// What a node has done since it was started, and what waits.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Proposals that wait for their turn.
    pub queued_writes: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Entries with writes that it proposed.
    pub entries: u64,
    /// Writes in them.
    pub writes: u64,
    /// Writes that it passed on to the leader.
    pub forwarded: u64,
    /// Of the log.
    pub log: firn_io::wal::LogStats,
}

#[derive(Debug, Default)]
struct Tallies {
    entries: AtomicU64,
    writes: AtomicU64,
    forwarded: AtomicU64,
}

struct Inner {
    id: NodeId,
    raft: Raft<Types, RaftMachine>,
    machine: Machine,
    log: LogStore,
    inbox: Inbox,
    world: World,
    runtime: Handle,
    pace: Option<Arc<Pace>>,
    options: NodeOptions,
    writes: Writes,
    reads: Queue<PendingRead>,
    /// The last term in which this node gave leadership away, or tried to: it has no lease any more.
    handed_over: Arc<AtomicU64>,
    /// Until then somebody may lead by a lease that this node granted before it was started.
    promised_until: Option<LocalInstant>,
    is_closed: AtomicBool,
    tallies: Tallies,
}

/// A running node. Cheap to clone; all clones are one node, which runs until [`Node::shutdown`].
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.inner.id)
            .finish_non_exhaustive()
    }
}

/// Who leads, seen from a node.
enum Leader {
    Me,
    Other(Peer),
    Nobody,
}

impl Node {
    /// Starts a node in the runtime of the caller, which must be a current-thread one.
    ///
    /// Errors: the directory is another node's, or damaged, or cannot be read; the log ends before the
    /// state. Nothing was changed then, and the node must not be started under this number until the
    /// reason is known.
    pub async fn start(options: NodeOptions, world: World) -> Result<Self> {
        Self::start_at(options, world, None).await
    }

    /// As [`Node::start`], in a simulation: the node's tasks run at this pace.
    pub async fn start_paced(options: NodeOptions, world: World, pace: Arc<Pace>) -> Result<Self> {
        let starting = Self::start_at(options, world, Some(Arc::clone(&pace)));
        let started = pace.spawn(starting).await;
        // It was ended before it had started.
        started.unwrap_or(Err(Error::Closed))
    }

    /// Begins the random numbers of this thread anew: those by which consensus draws its timeouts.
    /// Then a simulation that is run twice runs the same way.
    pub fn reset_randomness(seed: u64) {
        rt::reset(seed);
    }

    async fn start_at(options: NodeOptions, world: World, pace: Option<Arc<Pace>>) -> Result<Self> {
        let mut settings = config(&options.timing)?;
        if planted::is(Bug::LeaderRestore) {
            settings.enable_leader_restore = Some(true);
        }
        let runtime = Handle::current();
        if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
            let detail = "a node needs a current-thread runtime";
            return Err(Error::InvalidArgument(detail.into()));
        }
        rt::seed(world.env.entropy.next_u64() ^ options.id);
        let fs = Arc::clone(&world.env.fs);
        let home = Home::open(fs, &options.root, options.id, &*world.env.entropy)?;
        let link = Arc::new(LogLink::default());
        let machine = Machine::open(
            world.env.clone(),
            home,
            options.engine.clone(),
            link,
            options.listener.clone(),
        )?;
        // Nobody else has the directory now, so this is after all that the node answered before. The lease
        // is as long as that of a follower that runs, so clocks may differ by as much.
        let begun = LocalInstant::of(pace.as_ref());
        let log = machine.open_log(world.log_env.clone(), options.id, &options.log)?;
        let followed = log
            .vote()
            .is_some_and(|vote| vote.committed && vote.node != options.id);
        let promised_until = followed.then(|| begun + options.timing.election_max);
        settings.enable_elect = !followed;
        let is_still = Arc::new(AtomicBool::new(false));
        let (handed_over, returned) = (Arc::default(), Arc::new(Returned::default()));
        let sending = Arc::new(Sending::default());
        let net = RaftNet {
            id: options.id,
            transport: Arc::clone(&world.transport),
            log_timeout: options.timing.election_max,
            is_still: Arc::clone(&is_still),
            handed_over: Arc::clone(&handed_over),
            returned: Arc::clone(&returned),
            sending: Arc::clone(&sending),
            machine: machine.clone(),
            env: world.env.clone(),
            transfer: options.transfer,
        };
        let raft = Raft::new(
            options.id,
            Arc::new(settings),
            net,
            RaftLog(log.clone()),
            RaftMachine(machine.clone()),
        );
        let raft = raft
            .await
            .map_err(|error| Error::Failed(error.to_string()))?;
        let (_, incoming) = machine.dirs();
        let node = Self {
            inner: Arc::new(Inner {
                id: options.id,
                raft,
                machine,
                log,
                inbox: Inbox::new(world.env.clone(), incoming),
                world,
                runtime,
                pace,
                options,
                writes: Writes::default(),
                reads: Queue::default(),
                handed_over,
                promised_until,
                is_closed: AtomicBool::new(false),
                tallies: Tallies::default(),
            }),
        };
        let inner = &node.inner;
        inner.spawn(writes::propose(Arc::clone(inner)));
        inner.spawn(answer_reads(Arc::clone(inner)));
        inner.spawn(keep_up(Arc::clone(inner), sending));
        inner.spawn(keep_still(Arc::clone(inner), is_still));
        inner.spawn(welcome_back(Arc::clone(inner), returned));
        inner.spawn(keep_promise(Arc::clone(inner)));
        inner.spawn(refill::refill(Arc::clone(inner)));
        Ok(node)
    }

    /// Starts a node on a thread of its own, which drives `runtime`: a current-thread runtime with
    /// timers. What else is spawned there shares the thread, and reaches the node without waking
    /// another one.
    pub fn start_thread(
        options: NodeOptions,
        world: World,
        runtime: Runtime,
    ) -> Result<NodeThread> {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            runtime.block_on(async {
                let started = Self::start(options, world).await;
                let is_running = started.is_ok();
                // As above.
                let _ = tell.send(started);
                if is_running {
                    // Ends when the handle says so or is gone.
                    let _ = stopped.await;
                }
            });
            // Not waiting for the system's look at a name, for example.
            runtime.shutdown_background();
        };
        let thread = ThreadPool::new(1);
        thread.submit(Priority::High, Box::new(run));
        let started = told.recv();
        let node = started.unwrap_or(Err(Error::Failed("its thread ended".into())))?;
        Ok(NodeThread {
            node,
            stop: Some(stop),
            _thread: thread,
        })
    }

    /// Makes a cluster of these nodes, all with a vote. Called once, on one of them, when all are
    /// empty. Durable when it returns.
    pub async fn initialize(&self, members: BTreeMap<NodeId, Member>) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        self.on_runtime(async move {
            let result = inner.raft.initialize(members).await;
            result.map_err(|error| match error {
                RaftError::APIError(InitializeError::NotAllowed(_)) => {
                    Error::InvalidArgument("the node belongs to a cluster already".into())
                }
                RaftError::APIError(InitializeError::NotInMembers(_)) => {
                    Error::InvalidArgument("the node is not among the members".into())
                }
                RaftError::Fatal(error) => Error::Failed(error.to_string()),
            })?;
            // The library answers when it has the entry, which may be before the disk has.
            let synced = inner.machine_job(|inner| Ok(inner.log.sync()?));
            synced.await
        })
        .await
    }

    /// Does what another node asks and answers. May be called from any thread.
    pub async fn handle(&self, request: Bytes) -> Bytes {
        let inner = Arc::clone(&self.inner);
        let answer = self.on_runtime(async move { Ok(inner.answer(&request).await) });
        // The thread ended under it: what it had begun by then may be in force.
        let ended = |_| Answer::Refused(Refusal::Unknown("the node was closed".into()));
        let answer = answer.await.unwrap_or_else(ended);
        answer.encode().into()
    }

    /// Installs a snapshot that a leader sent by other ways than [`Node::handle`]. Answers whom this
    /// node follows then.
    pub async fn install_snapshot(&self, from: Vote, snapshot: Snapshot) -> Result<Vote> {
        let inner = Arc::clone(&self.inner);
        self.on_runtime(async move { inner.install(from, snapshot).await })
            .await
    }

    /// The database, to read without any promise of how recent it is.
    pub fn db(&self) -> Db {
        self.inner.machine.db()
    }

    /// Whether the entry at this index is applied here.
    pub fn is_applied(&self, index: u64) -> bool {
        self.inner.machine.watch().is_applied(index)
    }

    /// Returns when the entry at this index is applied here: what was written through this node can
    /// then be read from it without asking anybody.
    pub async fn wait_applied(&self, index: u64) -> Result<()> {
        match self.inner.machine.watch().wait(index) {
            Some(applied) => {
                let most = self.inner.options.request_timeout;
                let waited = timeout(most, applied).await;
                waited
                    .map_err(|_| Error::NoQuorum)?
                    .map_err(|_| Error::Closed)
            }
            None => Ok(()),
        }
    }

    /// Returns when everything that is in this node's log is on its disk. Waits for the disk.
    pub fn sync_log(&self) -> Result<()> {
        Ok(self.inner.log.sync()?)
    }

    /// Counts, for metrics.
    pub fn counts(&self) -> Counts {
        let inner = &self.inner;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (groups, bytes) = inner.writes.queued();
        Counts {
            queued_writes: groups as u64,
            queued_bytes: bytes as u64,
            entries: read(&inner.tallies.entries),
            writes: read(&inner.tallies.writes),
            forwarded: read(&inner.tallies.forwarded),
            log: inner.log.stats(),
        }
    }

    /// A number that two nodes have in common that applied the same entries, if their states are the
    /// same. Reads everything.
    pub fn content_hash(&self) -> Result<u64> {
        self.inner.machine.content_hash()
    }

    /// Has a snapshot made now, after which entries may be purged.
    pub async fn snapshot(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        self.on_runtime(async move { inner.trigger_snapshot().await })
            .await
    }

    /// Stops taking part, flushes, and closes everything.
    pub async fn shutdown(&self) -> Result<()> {
        self.stop().await;
        let inner = Arc::clone(&self.inner);
        inner
            .machine_job(|inner| {
                let machine = inner.machine.close();
                machine.and(inner.log.close())
            })
            .await
    }

    /// Stops taking part and leaves everything as it is.
    async fn stop(&self) {
        let inner = Arc::clone(&self.inner);
        inner.is_closed.store(true, Ordering::Release);
        inner.writes.wake();
        inner.reads.came.notify_one();
        // Errors: the runtime is gone, and the node with it.
        let _ = self
            .on_runtime(async move {
                // It answers no error.
                let _ = inner.raft.shutdown().await;
                inner.fail_all(&|| Error::Closed);
                Ok(())
            })
            .await;
    }

    /// Runs on the node's thread whatever the caller's is.
    async fn on_runtime<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        match self.inner.spawn(work).await {
            Ok(result) => result,
            Err(_) => Err(Error::Closed),
        }
    }

    /// Puts writes into the queue and waits for what becomes of them.
    async fn submit(&self, writes: Vec<Write>, is_forwarded: bool) -> Proposed {
        self.inner.submit(writes, is_forwarded).await
    }

    /// Up to which entry a linearizable read needs, by one try.
    async fn read_index(&self, level: ReadLevel) -> Result<(u64, Option<u64>)> {
        // Who does not lead has no lease, and asks who does.
        if level == ReadLevel::Lease
            && let Ok((index, term)) = self.inner.lease_index()
        {
            return Ok((index, Some(term)));
        }
        let (answer, answered) = oneshot::channel();
        self.inner.reads.push(PendingRead {
            is_forwarded: false,
            answer,
        });
        let index = answered.await.unwrap_or(Err(Error::Closed))?;
        Ok((index, None))
    }

    /// Tries until it succeeds, fails for good, or time is up. What may have been written is not tried
    /// again.
    async fn retry<T, F: Future<Output = Result<T>>>(
        &self,
        mut attempt: impl FnMut() -> F,
        late: Error,
    ) -> Result<T> {
        // What the last attempt said, while the next one has not begun.
        let refused = Mutex::new(None);
        let tries = async {
            let mut pause = RETRY_FIRST;
            loop {
                *refused.lock() = None;
                let before = self.inner.term_and_leader();
                match attempt().await {
                    Err(error @ (Error::NotLeader { .. } | Error::NoQuorum))
                        if !self.inner.is_closed.load(Ordering::Acquire) =>
                    {
                        *refused.lock() = Some(error);
                        // At once when there is a leader again.
                        let _ = timeout(pause, self.inner.new_leader(before)).await;
                        pause = (pause * 2).min(RETRY_MOST);
                    }
                    result => return result,
                }
            }
        };
        let result = timeout(self.inner.options.request_timeout, tries).await;
        result.unwrap_or_else(|_| Err(refused.into_inner().unwrap_or(late)))
    }
}

/// A node on a thread of its own, which ends with it.
#[derive(Debug)]
pub struct NodeThread {
    node: Node,
    stop: Option<oneshot::Sender<()>>,
    /// Dropped last: it waits for the thread.
    _thread: ThreadPool,
}

impl NodeThread {
    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }
}

impl Drop for NodeThread {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended.
            let _ = stop.send(());
        }
    }
}

impl Inner {
    /// Runs a task on the node's thread.
    fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        pace::spawn(&self.runtime, self.pace.as_ref(), task)
    }

    fn leader(&self) -> Leader {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        match metrics.current_leader {
            Some(id) if id == self.id => Leader::Me,
            Some(id) => match metrics.membership_config.get_node(&id) {
                Some(member) => Leader::Other(Peer {
                    id,
                    address: member.address.clone(),
                }),
                None => Leader::Nobody,
            },
            None => Leader::Nobody,
        }
    }

    fn term_and_leader(&self) -> (u64, Option<NodeId>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.current_term, metrics.current_leader)
    }

    /// Returns when there is a leader other than `before`.
    async fn new_leader(&self, before: (u64, Option<NodeId>)) {
        let mut metrics = self.raft.metrics();
        loop {
            {
                let now = metrics.borrow_watched();
                let leader = now.current_leader;
                if leader.is_some() && (now.current_term, leader) != before {
                    return;
                }
            }
            if metrics.changed().await.is_err() {
                // Consensus has ended; whoever asks next is told.
                return std::future::pending().await;
            }
        }
    }

    /// Does something that reads or writes files without holding up the thread.
    async fn machine_job<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = oneshot::channel();
        let inner = Arc::clone(self);
        let job = move || {
            // Whoever asked may be gone.
            let _ = tell.send(work(&inner));
        };
        // Closing the engine waits for its compactions, which need the threads for what is not urgent.
        self.world.env.exec.submit(Priority::High, Box::new(job));
        told.await.unwrap_or(Err(Error::Closed))
    }

    fn fail_all(&self, error: &dyn Fn() -> Error) {
        loop {
            let taken = self.take_writes();
            if taken.is_empty() {
                break;
            }
            for pending in taken {
                // Whoever asked may have given up.
                let _ = pending.answer.send(Err(error()));
            }
        }
        for pending in self.reads.items.lock().drain(..) {
            let _ = pending.answer.send(Err(error()));
        }
    }

    /// Asks a majority whether this node still leads; the index up to which a read needs the state.
    async fn quorum_index(&self) -> Result<u64> {
        if planted::is(Bug::LocalRead) {
            return Ok(self.machine.applied().map_or(0, |id| id.index));
        }
        let read = self.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
        read.map(|(id, _)| id.index()).map_err(read_error)
    }

    /// The same by the lease alone, and the term of the lease. Asks nobody, not even consensus, and
    /// waits for nothing.
    ///
    /// While the lease lasts nobody else leads; and once an entry of this term is committed, this node
    /// knows of all that is committed before anybody else does.
    fn lease_index(&self) -> Result<(u64, u64)> {
        let (term, spoke) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let (term, leader) = (metrics.current_term, metrics.current_leader);
            let leads = leader == Some(self.id) && metrics.state == ServerState::Leader;
            if !leads || metrics.membership_config.get_node(&self.id).is_none() {
                return Err(Error::NotLeader { leader });
            }
            (term, metrics.last_quorum_acked)
        };
        let committed = self.log.committed_in(term).ok_or(Error::NoQuorum)?;
        if planted::is(Bug::StaleLease) {
            return Ok((committed, term));
        }
        // Who is to lead next does not wait for the lease.
        if self.handed_over.load(Ordering::Acquire) >= term {
            return Err(Error::NoQuorum);
        }
        // Followers wait for the whole of it by their own clocks, from when they heard of the leader,
        // which is after it spoke: what is left out here is how much the clocks may differ.
        let lease = self.options.timing.election_max * 4 / 5;
        let now = LocalInstant::of(self.pace.as_ref());
        match spoke {
            Some(spoke) if now - *spoke < lease => Ok((committed, term)),
            _ => Err(Error::NoQuorum),
        }
    }

    async fn ask_leader_for_index(&self, leader: &Peer) -> Result<u64> {
        let request = Request::ReadIndex.encode().into();
        let timeout = self.options.timing.election_max * 2;
        let call = self
            .world
            .transport
            .call(leader, Class::Urgent, request, timeout);
        let bytes = call.await.map_err(|_| Error::NoQuorum)?;
        match Answer::decode(&bytes)? {
            Answer::ReadIndex(index) => Ok(index),
            Answer::Refused(refusal) => Err(refused(refusal)),
            other => Err(Error::Protocol(format!("{other:?}"))),
        }
    }

    /// Lets time pass if it is behind, values may expire, and this node leads.
    fn pass_time(&self) {
        let is_behind = || {
            let now = self.world.env.clock.unix_ms();
            now.saturating_sub(self.machine.time_ms()) >= TIME_STEP.as_millis() as u64
        };
        if self.writes.is_quiet() && self.machine.may_expire() && is_behind() {
            self.writes.push_nothing();
        }
    }

    async fn trigger_snapshot(&self) -> Result<()> {
        let triggered = self.raft.trigger().snapshot().await;
        triggered.map_err(|error| Error::Failed(error.to_string()))
    }

    async fn answer(self: &Arc<Self>, request: &Bytes) -> Answer {
        let request = match Request::decode(request) {
            Ok(request) => request,
            Err(error) => return Answer::Refused(Refusal::Malformed(error.to_string())),
        };
        let failed = |detail: String| Answer::Refused(Refusal::Failed(detail));
        if let Request::Vote(asked) | Request::PreVote(asked) = &request
            && !asked.transfer
            && let Some(refused) = self.refused_vote()
        {
            return refused;
        }
        match request {
            Request::Append(request) => match self.append(request).await {
                Ok(answer) => Answer::Append(answer),
                Err(error) => failed(error.to_string()),
            },
            Request::Vote(request) => match self.raft.vote(raft_vote_request(&request)).await {
                Ok(answer) => vote_answer(&answer),
                Err(error) => failed(error.to_string()),
            },
            Request::PreVote(request) => {
                match self.raft.pre_vote(raft_vote_request(&request)).await {
                    Ok(answer) => vote_answer(&answer),
                    Err(error) => failed(error.to_string()),
                }
            }
            Request::Transfer(request) => self.begin_transfer(request).await,
            Request::ReadIndex => {
                let (answer, answered) = oneshot::channel();
                self.reads.push(PendingRead {
                    is_forwarded: true,
                    answer,
                });
                match answered.await.unwrap_or(Err(Error::Closed)) {
                    Ok(index) => Answer::ReadIndex(index),
                    Err(error) => Answer::Refused(refusal(error)),
                }
            }
            Request::Propose(writes) => match self.submit(writes, true).await {
                Ok((id, outcomes)) => Answer::Propose(id, outcomes),
                Err(error) => Answer::Refused(refusal(error)),
            },
            Request::SnapshotOffer { vote, meta, files } => {
                if let Some(other) = self.follows_other(vote) {
                    return Answer::Installed(other);
                }
                let (own, _) = self.machine.dirs();
                let offered = self.inbox.offer((vote, meta, files), &own).await;
                offered.unwrap_or_else(Answer::Refused)
            }
            Request::SnapshotChunk(chunk) => {
                let taken = self.inbox.chunk(chunk).await;
                taken.unwrap_or_else(Answer::Refused)
            }
            Request::SnapshotInstall { vote, last } => {
                let install = |snapshot| self.install(vote, snapshot);
                let installed = self.inbox.install(vote, last, install).await;
                installed.unwrap_or_else(Answer::Refused)
            }
            Request::View(asked) => self.answer_view(asked).await,
        }
    }

    /// Until when somebody may lead by a lease that this node granted before it was started, if that is
    /// not over.
    fn promise(&self) -> Option<LocalInstant> {
        let now = LocalInstant::of(self.pace.as_ref());
        self.promised_until.filter(|until| now < *until)
    }

    /// What a candidate is told while there is a promise: the same that consensus answers while it hears
    /// of a leader.
    fn refused_vote(&self) -> Option<Answer> {
        self.promise()?;
        Some(Answer::Vote(VoteAnswer {
            vote: self.log.vote()?,
            granted: false,
            last: self.log.bounds().1,
        }))
    }

    /// Whom this node follows, if that is somebody newer.
    fn follows_other(&self, offered: Vote) -> Option<Vote> {
        let current = self.raft.metrics().borrow_watched().vote;
        (current > raft_vote(offered)).then(|| vote(&current))
    }

    /// Installs a snapshot, if it is whole.
    async fn install(&self, from: Vote, snapshot: Snapshot) -> Result<Vote> {
        self.machine.check_snapshot(snapshot.clone()).await?;
        let failed = |error: std::io::Error| Error::Failed(error.to_string());
        let snapshot = raft_snapshot(snapshot).map_err(failed)?;
        let installed = self.raft.install_full_snapshot(raft_vote(from), snapshot);
        let response = installed.await;
        let response = response.map_err(|error| Error::Failed(error.to_string()))?;
        Ok(vote(&response.vote))
    }

    async fn append(&self, request: AppendRequest) -> Result<AppendAnswer> {
        let entries = request.entries.into_iter().map(config::raft_entry);
        let rpc = AppendEntriesRequest {
            vote: raft_vote(request.vote),
            prev_log_id: request.previous.map(raft_log_id),
            leader_commit: request.committed.map(raft_log_id),
            entries: entries.collect::<Result<_>>()?,
        };
        let answer = self.raft.append_entries(rpc).await;
        let answer = answer.map_err(|error| Error::Failed(error.to_string()))?;
        Ok(match answer {
            AppendEntriesResponse::Success => AppendAnswer::Taken,
            AppendEntriesResponse::PartialSuccess(id) => {
                AppendAnswer::TakenUpTo(id.as_ref().map(log_id))
            }
            AppendEntriesResponse::Conflict => AppendAnswer::Conflict,
            AppendEntriesResponse::HigherVote(higher) => AppendAnswer::HigherVote(vote(&higher)),
        })
    }

    async fn begin_transfer(&self, request: TransferRequest) -> Answer {
        let last = request.last.map(raft_log_id);
        let rpc = TransferLeaderRequest::new(raft_vote(request.from), request.to, last);
        match self.raft.handle_transfer_leader(rpc).await {
            Ok(Ok(())) => Answer::Transfer(TransferAnswer::Begun),
            Ok(Err(TransferLeaderError::VoteChanged { actual, .. })) => {
                Answer::Transfer(TransferAnswer::VoteChanged(vote(&actual)))
            }
            Ok(Err(TransferLeaderError::LogNotFlushed { actual, .. })) => {
                let actual: Option<RaftLogId> = actual;
                Answer::Transfer(TransferAnswer::LogTooShort(actual.as_ref().map(log_id)))
            }
            Err(error) => Answer::Refused(Refusal::Failed(error.to_string())),
        }
    }

    fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let running = metrics.running_state.as_ref();
        let told = || running.err().map(ToString::to_string);
        let failure = self.machine.failure().or_else(told);
        let role = match metrics.state {
            _ if failure.is_some() => Role::Stopped,
            ServerState::Learner => Role::Learner,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Leader => Role::Leader,
            ServerState::Shutdown => Role::Stopped,
        };
        let progress = metrics.replication.iter().flatten();
        let heard = metrics.heartbeat.iter().flatten();
        Status {
            node: self.id,
            role,
            failure,
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_index: metrics.last_log_index,
            committed: metrics.local_committed.as_ref().map(log_id),
            applied: self.machine.applied(),
            purged: metrics.purged.as_ref().map(log_id),
            membership: membership(metrics.membership_config.membership()),
            progress: progress
                .map(|(id, matched)| (*id, matched.as_ref().map(|id| id.index)))
                .collect(),
            heard: heard
                .map(|(id, at)| (*id, at.as_ref().map(|at| at.elapsed())))
                .collect(),
        }
    }
}

/// Answers up to which entry those need the state who want to read: one question for all who wait.
async fn answer_reads(inner: Arc<Inner>) {
    while inner.reads.some(&inner.is_closed).await.is_some() {
        let waiting: Vec<PendingRead> = inner.reads.items.lock().drain(..).collect();
        let (result, passed_on) = match inner.leader() {
            Leader::Me => {
                inner.pass_time();
                (inner.quorum_index().await, false)
            }
            Leader::Other(peer) if waiting.iter().any(|read| !read.is_forwarded) => {
                (inner.ask_leader_for_index(&peer).await, true)
            }
            Leader::Other(peer) => {
                let leader = Some(peer.id);
                (Err(Error::NotLeader { leader }), false)
            }
            Leader::Nobody => (Err(Error::NotLeader { leader: None }), false),
        };
        for read in waiting {
            let told = match &result {
                // Asked for by a node that took this one for the leader: it shall ask the leader.
                _ if passed_on && read.is_forwarded => Err(Error::NotLeader { leader: None }),
                Ok(index) => Ok(*index),
                Err(Error::NotLeader { leader }) => Err(Error::NotLeader { leader: *leader }),
                Err(Error::Failed(detail)) => Err(Error::Failed(detail.clone())),
                Err(_) => Err(Error::NoQuorum),
            };
            // Whoever asked may have given up.
            let _ = read.answer.send(told);
        }
    }
}

/// Sends entries to those who came back without waiting for the end of a pause.
async fn welcome_back(inner: Arc<Inner>, returned: Arc<Returned>) {
    while !inner.is_closed.load(Ordering::Acquire) {
        // Looking up now and then, for when the node is closed.
        let Ok(nodes) = timeout(UPKEEP, returned.some()).await else {
            continue;
        };
        if inner.raft.trigger().reset_backoff(nodes).await.is_err() {
            return;
        }
    }
}

/// Lets the node stand for election once nobody leads by its promise any more.
async fn keep_promise(inner: Arc<Inner>) {
    while let Some(until) = inner.promise() {
        // Not a moment too early for the clock that was rounded.
        rt::Runtime::sleep_until(until + Duration::from_millis(1)).await;
    }
    inner.raft.runtime_config().elect(true);
}

/// Lets a leader whom no majority has answered for long keep still for a while, again and again: those
/// who still hear it elect another one only when they do not. The library does so with heartbeats;
/// entries that it goes on sending would hold an election off just as well.
async fn keep_still(inner: Arc<Inner>, is_still: Arc<AtomicBool>) {
    let mut unheard = 0_u32;
    while !inner.is_closed.load(Ordering::Acquire) {
        sleep(inner.options.timing.election_max / 2).await;
        unheard = match inner.leads_nobody() {
            true => unheard.saturating_add(1),
            false => 0,
        };
        let phase = unheard / STILL_ROUNDS;
        is_still.store(phase % 2 == 1, Ordering::Relaxed);
    }
}

/// Keeps the log within its budget, and ends changes of members whose leader was lost half-way.
async fn keep_up(inner: Arc<Inner>, sending: Arc<Sending>) {
    let mut half_way = None;
    let options = &inner.options;
    let mut budget = Budget::new(options.log_bytes, options.kept_entries);
    while !inner.is_closed.load(Ordering::Acquire) {
        sleep(UPKEEP).await;
        if inner.machine.failure().is_some() {
            // With a state that is of no use it takes part in nothing. It answers no error.
            let _ = inner.raft.shutdown().await;
        }
        half_way = inner.end_change(half_way).await;
        inner.inbox.tidy().await;
        let applied = inner.machine.applied().map_or(0, |id| id.index);
        let snapshot = inner.machine.current_snapshot();
        let snapshot = snapshot.and_then(|s| s.meta.last).map_or(0, |id| id.index);
        let has_grown = applied.saturating_sub(snapshot) > 1;
        let log = inner.log.stats();
        // Failures of these are the node's, which everybody is told.
        if has_grown && budget.is_exceeded(&log) {
            let _ = inner.trigger_snapshot().await;
        }
        let purged = inner.log.bounds().0.map_or(0, |id| id.index);
        let progress = inner.status().progress;
        let needed_after = budget.needed_after(&progress, &sending.all(), purged);
        let last_beyond = |bytes, after| inner.log.last_beyond(bytes, after);
        let upto = budget.purge_upto(&log, snapshot, needed_after, last_beyond);
        if upto > purged {
            let _ = inner.raft.trigger().purge_log(upto).await;
        }
    }
}

impl Replicator for Node {
    fn propose(&self, write: Write) -> BoxFuture<'_, Result<Written>> {
        Box::pin(async move {
            let attempt = || self.submit(vec![write.clone()], false);
            let late = Error::Unknown("no answer in time".into());
            let (id, outcomes) = self.retry(attempt, late).await?;
            let outcome = outcomes.into_iter().next();
            let outcome = outcome.ok_or(Error::Protocol("no outcome".into()))?;
            Ok(Written { id, outcome })
        })
    }

    fn read_barrier(&self, level: ReadLevel) -> BoxFuture<'_, Result<ReadPoint>> {
        Box::pin(async move {
            if level == ReadLevel::Stale {
                return Ok(ReadPoint {
                    db: self.db(),
                    index: None,
                    lease_term: None,
                });
            }
            let read = || async {
                let (index, lease_term) = self.read_index(level).await?;
                if let Some(applied) = self.inner.machine.watch().wait(index) {
                    applied.await.map_err(|_| Error::Closed)?;
                }
                Ok(ReadPoint {
                    db: self.db(),
                    index: Some(index),
                    lease_term,
                })
            };
            self.retry(read, Error::NoQuorum).await
        })
    }

    fn confirm_lease(&self, point: &ReadPoint) -> BoxFuture<'_, Result<()>> {
        let confirmed = match point.lease_term {
            None => Ok(()),
            Some(term) => match self.inner.lease_index() {
                Ok((_, now)) if now == term => Ok(()),
                Ok(_) => Err(Error::NotLeader { leader: None }),
                Err(error) => Err(error),
            },
        };
        Box::pin(ready(confirmed))
    }

    fn change_members(&self, change: MemberChange) -> BoxFuture<'_, Result<()>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(self.on_runtime(async move { inner.change(change).await }))
    }

    fn transfer(&self, to: NodeId) -> BoxFuture<'_, Result<()>> {
        let inner = Arc::clone(&self.inner);
        let work = async move {
            let status = inner.status();
            if status.leader != Some(inner.id) {
                return Err(Error::NotLeader {
                    leader: status.leader,
                });
            }
            if !status.membership.is_voter(to) {
                return Err(Error::InvalidArgument(format!("node {to} has no vote")));
            }
            if to == inner.id {
                return Ok(());
            }
            let asked = inner.raft.trigger().transfer_leader(to).await;
            asked.map_err(|error| Error::Failed(error.to_string()))?;
            let mut metrics = inner.raft.metrics();
            let leads = async {
                while metrics.borrow_watched().current_leader != Some(to) {
                    if metrics.changed().await.is_err() {
                        return Err(Error::Closed);
                    }
                }
                Ok(())
            };
            let most = inner.options.timing.election_max * 3;
            timeout(most, leads).await.unwrap_or(Err(Error::NoQuorum))
        };
        Box::pin(self.on_runtime(work))
    }

    fn status(&self) -> Status {
        self.inner.status()
    }
}
