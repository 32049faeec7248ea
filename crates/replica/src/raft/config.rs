//! The library's types, made of ours, and its settings.
//!
//! # Settings, and why
//!
//! * `enable_leader_restore` is **off, whatever its default**. With it a leader that restarts goes on
//!   leading its old term without an election. The library sends entries to followers before they are
//!   on the leader's own disk; so if the leader lost its unsynced tail with the power, it hands out the
//!   same log ids a second time, for other entries, and followers take equal ids for equal entries:
//!   committed data diverges in silence. A test shows both.
//! * Pre-vote is on: a node that cannot win does not disturb a leader that works.
//! * `quorum_loss_probe_interval` is twice the largest election timeout: a leader without a majority
//!   stops its heartbeats for as long, so that those who still hear it can elect another one.
//! * A follower's log that went back is a damaged disk, never something to repair by sending more.
//! * No snapshot by itself: the node asks for one when its log has grown, after a flush.
//! * One leader a term, as in the paper: a vote is for one node, and a log id is a term and an index.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use firn_engine::Outcome;
use openraft::impls::leader_id_std;
use openraft::raft::responder::Responder;
use openraft::{Config, RaftTypeConfig, SnapshotPolicy, StepDownPolicy};

use crate::error::{Error, Result};
use crate::raft::rt::Runtime;
use crate::types::{Entry, LogId, Member, Membership, NodeId, Payload, Vote};

/// What an entry carries: an encoded command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Data(pub(crate) Bytes);

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Runs with what became of a proposal. Dropped if that will never be known.
pub(crate) struct Reply<T>(pub(crate) Box<dyn FnOnce(T) + Send>);

impl<T: Send + 'static> Responder<Types, T> for Reply<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// The library's types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

pub(crate) type RaftLeaderId = leader_id_std::LeaderId<u64, NodeId>;
pub(crate) type RaftVote = openraft::Vote<RaftLeaderId>;
pub(crate) type CommittedLeaderId = <RaftLeaderId as openraft::vote::RaftLeaderId>::Committed;
pub(crate) type RaftLogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type RaftPayload = openraft::EntryPayload<Data, NodeId, Member>;
pub(crate) type RaftEntry = openraft::Entry<CommittedLeaderId, RaftPayload>;
pub(crate) type RaftMembership = openraft::Membership<NodeId, Member>;
pub(crate) type RaftStoredMembership =
    openraft::StoredMembership<CommittedLeaderId, NodeId, Member>;
pub(crate) type RaftSnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, NodeId, Member>;

impl RaftTypeConfig for Types {
    type D = Data;
    type R = Vec<Outcome>;
    type NodeId = NodeId;
    type Node = Member;
    type Term = u64;
    type LeaderId = RaftLeaderId;
    type Vote = RaftVote;
    type Payload = RaftPayload;
    type Entry = RaftEntry;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = Reply<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// How long a node waits before it does something about silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader lets followers know that it is there.
    pub heartbeat: Duration,
    /// A follower that hears nothing for a random time from this...
    pub election_min: Duration,
    /// ...to this calls an election. It is also how long a leader's lease lasts.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(800),
        }
    }
}

/// How long a leader waits before it sends entries again to a node that cannot be reached. Each time they
/// are read from the log first, so this grows; a node that answers heartbeats again does not wait for it
/// (see `Returned`).
const RETRY: &str = "50ms 100ms ...500ms";

/// The settings; see the module's page.
pub(crate) fn config(timing: &Timing) -> Result<Config> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "firn".into(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(2 * ms(timing.election_max)),
        allow_log_reversion: Some(false),
        snapshot_policy: SnapshotPolicy::Never,
        // What may go is told to it, see `budget`.
        max_in_snapshot_log_to_keep: u64::MAX,
        // A snapshot helps a follower only where the log does not reach: while it does, the log is
        // sent, however far behind the follower is.
        replication_lag_threshold: u64::MAX / 4,
        // Sending and installing a snapshot takes as long as it takes; the transport notices a
        // connection that died.
        install_snapshot_timeout: 24 * 60 * 60 * 1000,
        removed_leader_step_down: StepDownPolicy::After(ms(timing.election_min)),
        max_payload_entries: 1024,
        backoff: RETRY.into(),
        ..Config::default()
    };
    let config = config
        .validate()
        .map_err(|error| Error::InvalidArgument(format!("timing: {error}")))?;
    if config.enable_leader_restore != Some(false) {
        let detail = "a restarted leader must not lead on without an election";
        return Err(Error::InvalidArgument(detail.into()));
    }
    Ok(config)
}

pub(crate) fn log_id(id: &RaftLogId) -> LogId {
    LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

pub(crate) fn raft_log_id(id: LogId) -> RaftLogId {
    RaftLogId::new_term_index(id.term, id.index)
}

pub(crate) fn vote(vote: &RaftVote) -> Vote {
    Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(crate) fn raft_vote(vote: Vote) -> RaftVote {
    RaftVote {
        leader_id: RaftLeaderId {
            term: vote.term,
            voted_for: vote.node,
        },
        committed: vote.committed,
    }
}

pub(crate) fn membership(membership: &RaftMembership) -> Membership {
    let nodes = membership.nodes();
    Membership {
        voters: membership.get_joint_config().clone(),
        nodes: nodes.map(|(id, member)| (*id, member.clone())).collect(),
    }
}

pub(crate) fn raft_membership(membership: &Membership) -> Result<RaftMembership> {
    let voters: Vec<BTreeSet<NodeId>> = membership.voters.clone();
    if voters.is_empty() && membership.nodes.is_empty() {
        return Ok(RaftMembership::default());
    }
    RaftMembership::new(voters, membership.nodes.clone())
        .map_err(|error| Error::Protocol(format!("an impossible membership: {error}")))
}

pub(crate) fn entry(entry: &RaftEntry) -> Entry {
    let payload = match &entry.payload {
        RaftPayload::Blank => Payload::Blank,
        RaftPayload::Normal(data) => Payload::Command(data.0.clone()),
        RaftPayload::Membership(m) => Payload::Membership(membership(m)),
    };
    Entry {
        id: log_id(&entry.log_id),
        payload,
    }
}

pub(crate) fn raft_entry(entry: Entry) -> Result<RaftEntry> {
    let payload = match entry.payload {
        Payload::Blank => RaftPayload::Blank,
        Payload::Command(bytes) => RaftPayload::Normal(Data(bytes)),
        Payload::Membership(m) => RaftPayload::Membership(raft_membership(&m)?),
    };
    Ok(RaftEntry {
        log_id: raft_log_id(entry.id),
        payload,
    })
}
