//! What the rest of the product asks of replication, without knowing how it is done.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use firn_engine::{Db, Outcome};

use crate::command::Write;
use crate::error::Result;
use crate::transport::BoxFuture;
use crate::types::{LogId, Member, Membership, NodeId};

/// What a read may miss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadLevel {
    /// Nothing that anybody was told of before the read began, wherever: a majority is asked. The
    /// default.
    #[default]
    Linearizable,
    /// The same as long as no clock runs more than a tenth faster than another: the leader trusts its
    /// lease and asks nobody. The lease must be [confirmed](Replicator::confirm_lease) after the read.
    Lease,
    /// Whatever this node has not heard of yet.
    Stale,
}

/// A node may be read: from the database, which has everything up to the entry.
#[derive(Clone, Debug)]
pub struct ReadPoint {
    /// The database to read.
    pub db: Db,
    /// Up to here it has everything; `None` where nothing was asked for.
    pub index: Option<u64>,
    /// The term in which the lease held; see [`ReadLevel::Lease`].
    pub lease_term: Option<u64>,
}

/// A write that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its place in the log. Several writes may share it.
    pub id: LogId,
    /// What became of it.
    pub outcome: Outcome,
}

/// A change of who belongs to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A node gets everything and has no vote.
    AddLearner(NodeId, Member),
    /// Learners that have caught up get a vote.
    Promote(BTreeSet<NodeId>),
    /// Voters become learners.
    Demote(BTreeSet<NodeId>),
    /// Nodes leave, voters or learners.
    Remove(BTreeSet<NodeId>),
    /// The same although no majority of those who stay can be reached: the cluster may then be of no
    /// use until some of them come back.
    ForceRemove(BTreeSet<NodeId>),
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It gets everything and has no vote.
    Learner,
    /// It follows, and votes.
    Follower,
    /// It stands for election.
    Candidate,
    /// It leads.
    Leader,
    /// It has failed or was closed.
    Stopped,
}

/// What can be known of a node at a moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its number.
    pub node: NodeId,
    /// What it does.
    pub role: Role,
    /// Why it stopped, if it did.
    pub failure: Option<String>,
    /// Its term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// The last entry in its log.
    pub last_index: Option<u64>,
    /// Up to here it knows that a majority has the entries.
    pub committed: Option<LogId>,
    /// The last entry in its state.
    pub applied: Option<LogId>,
    /// The last entry that is no longer in its log.
    pub purged: Option<LogId>,
    /// Who belongs to the cluster.
    pub membership: Membership,
    /// As a leader: what each other node is known to have.
    pub progress: BTreeMap<NodeId, Option<u64>>,
    /// As a leader: how long ago each other node was last heard of.
    pub heard: BTreeMap<NodeId, Option<Duration>>,
}

/// The membership of a status, for those who have only that.
impl Status {
    /// Who has a vote.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        let membership: &Membership = &self.membership;
        membership.voters.iter().flatten().copied().collect()
    }
}

/// A replicated database, seen from one of its nodes.
pub trait Replicator: Send + Sync {
    /// Writes, here or through the leader, and answers when the write is in force: on the disks of a
    /// majority, and applied. Errors tell whether it may be in force all the same.
    fn propose(&self, write: Write) -> BoxFuture<'_, Result<Written>>;

    /// Answers when this node may be read at that level.
    fn read_barrier(&self, level: ReadLevel) -> BoxFuture<'_, Result<ReadPoint>>;

    /// Whether the lease under which a read was made still holds now that the read is done: a
    /// process may have stood still in between. If not, the read must be made again.
    fn confirm_lease(&self, point: &ReadPoint) -> BoxFuture<'_, Result<()>>;

    /// Changes the membership; on the leader only. Answers when the change is in force.
    fn change_members(&self, change: MemberChange) -> BoxFuture<'_, Result<()>>;

    /// Makes another voter lead; on the leader only. Answers when it does.
    fn transfer(&self, to: NodeId) -> BoxFuture<'_, Result<()>>;

    /// What can be known now.
    fn status(&self) -> Status;
}
