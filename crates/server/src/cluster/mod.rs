//! A node of a cluster inside the server: started, looked after, and what is said about it.
//!
//! [`crate::service`] reads and writes through it, doors ask it who leads. It owns
//!
//! * the node on its thread ([`firn_replica::NodeThread`]) and the [`Network`] that connects it,
//! * its [`identity`]: which node of which cluster a directory is, for good,
//! * the *probe*, a task that asks twice a second for the right to read: whether that works is
//!   whether the server is ready. It needs a leader that a majority follows, and a state that is
//!   not behind.
//!
//! # The life of a member
//!
//! 1. A directory becomes a node by [`found`]: alone, as the first of a cluster (a database
//!    that was used without a cluster before keeps everything, see [`firn_replica::adopt`]); or by
//!    asking a member ([`Cluster::admit`]), which answers with a number that nobody had.
//! 2. Who was admitted gets everything and has no vote. When it has caught up it is promoted.
//! 3. It is removed by a member. A node whose disk is lost is removed and comes back as a new one.
//!
//! Numbers are never used again: a new one is above every number and every place in the log so far,
//! and the entry that admits it has a place of its own.

pub mod identity;
pub mod join;
pub mod wire;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use firn_api::code::Code;
use firn_api::http::{ClusterReply, MemberReply};
use firn_engine::Options;
use firn_io::Env;
use firn_replica::adopt::Recovered;
use firn_replica::transport::Transport;
use firn_replica::{
    Member, MemberChange, Node, NodeOptions, NodeThread, ReadLevel, Replicator, Role, Status, World,
};
use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime};
use tokio::time::timeout;

use crate::cluster::identity::{ClusterId, Identity};
use crate::config::Config;
use crate::service::error::{Error, Result};

/// The real network, as the settings say.
pub fn wiring(config: &Config) -> wire::Sockets {
    wire::Sockets::new(config)
}

/// The number of the first node of a cluster.
pub const FIRST_NODE: u64 = 1;
/// How often the probe asks.
const PROBE: Duration = Duration::from_millis(500);
/// How long a change of the members may take until it is said that nobody knows.
const CHANGE: Duration = Duration::from_secs(15);
/// How long the answer may take until the node is not ready.
const PROBE_ANSWER: Duration = Duration::from_secs(1);

/// What connects the nodes.
pub trait Network: fmt::Debug + Send + Sync {
    /// The way out.
    fn transport(&self) -> Arc<dyn Transport>;
    /// What the node's thread is to drive, once: a current-thread runtime with timers.
    fn take_runtime(&self) -> Option<Runtime> {
        None
    }
    /// The same runtime, for sockets that the node's thread shall serve too. `None`: it has no sockets.
    fn sockets(&self) -> Option<Handle> {
        None
    }
    /// From now on requests of others go to this node.
    fn attach(&self, node: Node);
    /// Takes no more requests.
    fn detach(&self);
    /// Reads the certificates by which the nodes know each other anew, for the connections from now on,
    /// if there are any. Blocks.
    ///
    /// # Errors
    /// Which file is wrong, and why; what was in force stays.
    fn renew(&self) -> std::result::Result<(), String> {
        Ok(())
    }
    /// Counters for metrics: name, help, value.
    fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        Vec::new()
    }
}

/// What makes a [`Network`]: bound first, so that the others can be told where it listens; used when
/// the node has a number.
pub trait Wiring: fmt::Debug + Send + Sync {
    /// Takes an address, and answers it with the port that was picked.
    ///
    /// # Errors
    /// It cannot be listened on.
    fn bind(&self, address: &str) -> std::io::Result<String>;
    /// Connects the node.
    ///
    /// # Errors
    /// In words.
    fn connect(
        &self,
        env: &Env,
        identity: Identity,
        dir: &Path,
    ) -> std::result::Result<Arc<dyn Network>, String>;
}

/// See the module's page.
pub struct Cluster {
    node: Node,
    /// Taken by who closes it.
    thread: Mutex<Option<NodeThread>>,
    network: Arc<dyn Network>,
    identity: Identity,
    /// Why it cannot be read now.
    trouble: Mutex<Option<String>>,
    leader_changes: AtomicU64,
    /// One at a time, so that numbers are given once.
    admitting: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Makes a directory the first node of a new cluster, if it is no node yet. What is in it stays.
///
/// # Errors
/// In words.
pub fn found(
    env: &Env,
    dir: &Path,
    cluster: Option<ClusterId>,
    member: &Member,
    options: &Options,
) -> std::result::Result<Identity, firn_replica::Error> {
    let failed = firn_replica::Error::Failed;
    let known = Identity::read(env, dir).map_err(failed)?;
    let identity = known.unwrap_or_else(|| Identity {
        cluster: cluster.unwrap_or_else(|| ClusterId::random(env)),
        node: FIRST_NODE,
    });
    // A crash after this and before the adoption leaves a database with a name; `found` goes on.
    firn_replica::adopt::adopt(env, dir, identity.node, member.clone(), options)?;
    if known.is_none() {
        identity.write(env, dir).map_err(failed)?;
    }
    Ok(identity)
}

/// Makes the node in a directory, which must not run, a cluster of its own under a new name: nobody
/// of the old one talks to it any more. See [`firn_replica::adopt::recover`] for what that loses.
///
/// # Errors
/// In words.
pub fn recover(
    env: &Env,
    dir: &Path,
    options: &Options,
) -> std::result::Result<(Identity, Recovered), firn_replica::Error> {
    let failed = firn_replica::Error::Failed;
    let Some(known) = Identity::read(env, dir).map_err(failed)? else {
        let detail = format!("{}: it is no node of a cluster", dir.display());
        return Err(firn_replica::Error::InvalidArgument(detail));
    };
    let identity = Identity {
        cluster: ClusterId::random(env),
        ..known
    };
    // First: if it ends between the two it can reach nobody, and is recovered again.
    identity.write(env, dir).map_err(failed)?;
    let recovered = firn_replica::adopt::recover(env, env, dir, identity.node, options)?;
    Ok((identity, recovered))
}

/// Starts the node of a directory. Blocks.
///
/// # Errors
/// Those of [`Node::start_thread`].
pub fn start(
    env: Env,
    log_env: Env,
    options: NodeOptions,
    identity: Identity,
    network: Arc<dyn Network>,
) -> std::result::Result<Cluster, firn_replica::Error> {
    let world = World {
        env,
        log_env,
        transport: network.transport(),
    };
    let runtime = match network.take_runtime() {
        Some(runtime) => runtime,
        None => tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| firn_replica::Error::Failed(format!("no runtime: {error}")))?,
    };
    let thread = Node::start_thread(options, world, runtime)?;
    let node = thread.node().clone();
    network.attach(node.clone());
    Ok(Cluster {
        node,
        thread: Mutex::new(Some(thread)),
        network,
        identity,
        trouble: Mutex::new(Some("it was just started".into())),
        leader_changes: AtomicU64::new(0),
        admitting: tokio::sync::Mutex::default(),
    })
}

/// What a role is called.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Learner => "learner",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::Stopped => "stopped",
    }
}

impl Cluster {
    /// The node.
    #[inline]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Which node of which cluster it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// What connects it.
    pub fn network(&self) -> &dyn Network {
        &*self.network
    }

    /// Makes a node that has nothing yet a cluster of one; a node that belongs to one stays as it is.
    ///
    /// # Errors
    /// The log cannot be written.
    pub async fn begin_alone(
        &self,
        member: Member,
    ) -> std::result::Result<(), firn_replica::Error> {
        let status = self.node.status();
        let is_new = status.last_index.is_none() && status.membership.nodes.is_empty();
        if is_new && self.identity.node == FIRST_NODE {
            let members = [(self.identity.node, member)].into();
            match self.node.initialize(members).await {
                // It had not looked at its log yet when it was asked.
                Err(firn_replica::Error::InvalidArgument(_)) => {}
                begun => return begun,
            }
        }
        Ok(())
    }

    /// Starts the probe, which ends with the last handle.
    pub fn watch_over(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        tokio::spawn(probe(weak));
    }

    /// Why the node is not ready; `None` if it is.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// How often it saw the leader change.
    pub fn leader_changes(&self) -> u64 {
        self.leader_changes.load(Ordering::Relaxed)
    }

    /// Where the leader answers HTTP, if it is another node and that is known.
    pub fn leader_http(&self) -> Option<String> {
        let status = self.node.status();
        let leader = status.leader.filter(|&id| id != status.node)?;
        let member = status.membership.nodes.get(&leader)?;
        (!member.http.is_empty()).then(|| member.http.clone())
    }

    /// The cluster as this node sees it.
    pub fn describe(&self) -> ClusterReply {
        let status = self.node.status();
        let members = status
            .membership
            .nodes
            .iter()
            .map(|(&id, member)| {
                let is_me = id == status.node;
                let has = if is_me {
                    status.last_index
                } else {
                    status.progress.get(&id).copied().flatten()
                };
                let lag = status.last_index.zip(has);
                let heard = status.heard.get(&id).copied().flatten();
                let knows = status.role == Role::Leader;
                MemberReply {
                    node: id,
                    role: if status.leader == Some(id) {
                        "leader"
                    } else if status.membership.is_voter(id) {
                        "voter"
                    } else {
                        "learner"
                    }
                    .into(),
                    peer: member.address.clone(),
                    http: member.http.clone(),
                    resp: member.resp.clone(),
                    lag: lag
                        .filter(|_| knows)
                        .map(|(last, has)| last.saturating_sub(has)),
                    heard_ms: heard
                        .filter(|_| knows && !is_me)
                        .map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
                }
            })
            .collect();
        ClusterReply {
            cluster: self.identity.cluster.to_string(),
            node: status.node,
            role: role_name(status.role).into(),
            leader: status.leader,
            term: status.term,
            last_index: status.last_index,
            committed_index: status.committed.map(|id| id.index),
            applied_index: status.applied.map(|id| id.index),
            trouble: status.failure.or_else(|| self.trouble()),
            members,
        }
    }

    /// Refuses unless this node leads.
    fn lead(&self) -> Result<Status> {
        let status = self.node.status();
        if status.leader == Some(status.node) && status.role == Role::Leader {
            return Ok(status);
        }
        Err(self.not_leader(status.leader))
    }

    fn not_leader(&self, leader: Option<u64>) -> Error {
        let detail = match leader {
            Some(id) if id != self.identity.node => format!("node {id} leads"),
            _ => "no leader is known".into(),
        };
        Error {
            retry_after_ms: Some(1_000),
            ..Error::new(Code::NotLeader, detail)
        }
    }

    async fn change(&self, change: MemberChange) -> Result<()> {
        let work = async {
            loop {
                match self.node.change_members(change.clone()).await {
                    // Another change is on its way.
                    Err(firn_replica::Error::Overloaded) => {
                        tokio::time::sleep(PROBE / 5).await;
                    }
                    changed => return changed,
                }
            }
        };
        let changed = timeout(CHANGE, work).await;
        let late = || firn_replica::Error::Unknown("the change takes long".into());
        let changed = changed.unwrap_or_else(|_| Err(late()));
        changed.map_err(|error| match error {
            firn_replica::Error::NotLeader { leader } => self.not_leader(leader),
            error => error.into(),
        })
    }

    /// Lets a node belong, without a vote. Answers its number.
    ///
    /// # Errors
    /// This node does not lead; the number or the address is a member's; it cannot be an address.
    pub async fn admit(&self, member: Member, wish: Option<u64>) -> Result<u64> {
        let _one_at_a_time = self.admitting.lock().await;
        let status = self.lead()?;
        for (name, address) in [
            ("peer", &member.address),
            ("http", &member.http),
            ("resp", &member.resp),
        ] {
            let most = firn_replica::types::MAX_ADDRESS_BYTES;
            if address.len() > most {
                let detail = format!("{name} has {} bytes, more than {most}", address.len());
                return Err(Error::invalid(detail));
            }
            let is_some = |(host, port): (&str, &str)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
            };
            let is_needed = name == "peer";
            if (is_needed || !address.is_empty()) && !address.rsplit_once(':').is_some_and(is_some)
            {
                let detail = format!("{name}: {address:?} is not an address: write host:port");
                return Err(Error::invalid(detail));
            }
        }
        let nodes = &status.membership.nodes;
        if let Some((id, _)) = nodes.iter().find(|(_, m)| m.address == member.address) {
            let detail = format!(
                "node {id} is at {} already; if its disk was lost, remove it first: it comes back \
                 under a new number",
                member.address
            );
            return Err(Error::invalid(detail));
        }
        let above = |last: Option<u64>| last.map_or(1, |last| last + 1);
        let free = above(status.last_index).max(above(nodes.keys().next_back().copied()));
        let id = wish.unwrap_or(free);
        if id <= FIRST_NODE {
            return Err(Error::invalid("a node that joins has a number above 1"));
        }
        self.change(MemberChange::AddLearner(id, member)).await?;
        Ok(id)
    }

    /// Gives a node that has caught up a vote.
    ///
    /// # Errors
    /// This node does not lead; there is no such member, or it has not caught up.
    pub async fn promote(&self, id: u64) -> Result<()> {
        let status = self.lead()?;
        if status.membership.is_voter(id) && status.membership.voters.len() == 1 {
            return Ok(());
        }
        self.change(MemberChange::Promote(BTreeSet::from([id])))
            .await
    }

    /// Takes a node's vote.
    ///
    /// # Errors
    /// This node does not lead; there is no such member; the rest would be no majority.
    pub async fn demote(&self, id: u64) -> Result<()> {
        self.lead()?;
        self.change(MemberChange::Demote(BTreeSet::from([id])))
            .await
    }

    /// Removes a node.
    ///
    /// # Errors
    /// This node does not lead; there is no such member; the rest would be no majority that can be
    /// reached, unless forced.
    pub async fn remove(&self, id: u64, force: bool) -> Result<()> {
        self.lead()?;
        let ids = BTreeSet::from([id]);
        self.change(if force {
            MemberChange::ForceRemove(ids)
        } else {
            MemberChange::Remove(ids)
        })
        .await
    }

    /// Makes another node lead: the one named, or who has most of the log. Answers which.
    ///
    /// # Errors
    /// This node does not lead; nobody else can; the other one did not come to lead.
    pub async fn transfer(&self, to: Option<u64>) -> Result<u64> {
        let status = self.lead()?;
        let to = match to {
            Some(to) => to,
            None => {
                let others = status.membership.nodes.keys().copied();
                let heard = |id: &u64| status.heard.get(id).copied().flatten();
                let best = others
                    .filter(|&id| id != status.node && status.membership.is_voter(id))
                    .filter(|id| heard(id).is_some_and(|ago| ago < PROBE_ANSWER))
                    .max_by_key(|id| (status.progress.get(id).copied().flatten(), u64::MAX - id));
                best.ok_or_else(|| Error::invalid("no other voter can be reached"))?
            }
        };
        let transferred = self.node.transfer(to).await;
        transferred.map_err(|error| match error {
            firn_replica::Error::NotLeader { leader } => self.not_leader(leader),
            error => error.into(),
        })?;
        Ok(to)
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        self.node.status().role == Role::Leader
    }

    /// Stops taking part, flushes and closes. Errors are those of the disk.
    ///
    /// # Errors
    /// The log or the engine could not be closed well; what was acknowledged is safe all the same.
    pub async fn close(&self) -> std::result::Result<(), firn_replica::Error> {
        self.network.detach();
        let closed = self.node.shutdown().await;
        // Waits for the node's thread.
        let thread = self.thread.lock().take();
        let dropped = tokio::task::spawn_blocking(move || drop(thread)).await;
        closed.and(dropped.map_err(|error| firn_replica::Error::Failed(error.to_string())))
    }
}

async fn probe(weak: Weak<Cluster>) {
    let mut leader = None;
    loop {
        let Some(cluster) = weak.upgrade() else {
            return;
        };
        let status = cluster.node.status();
        if status.leader.is_some() && status.leader != leader {
            cluster.leader_changes.fetch_add(1, Ordering::Relaxed);
            leader = status.leader;
            tracing::info!(leader, term = status.term, "the cluster has a leader");
        }
        let asked = timeout(
            PROBE_ANSWER,
            cluster.node.read_barrier(ReadLevel::Linearizable),
        );
        let trouble = match (asked.await, status.failure) {
            (_, Some(failure)) => Some(failure),
            (Ok(Ok(_)), None) => None,
            (Ok(Err(error)), None) => Some(error.to_string()),
            (Err(_), None) => Some(match cluster.node.status().leader {
                None => "no leader is known".into(),
                Some(_) => "the leader does not answer, or this node is behind".into(),
            }),
        };
        let before = std::mem::replace(&mut *cluster.trouble.lock(), trouble.clone());
        match (&before, &trouble) {
            (Some(_), None) => tracing::info!("ready"),
            (None, Some(detail)) => tracing::warn!(detail, "not ready"),
            _ => {}
        }
        drop(cluster);
        tokio::time::sleep(PROBE).await;
    }
}
