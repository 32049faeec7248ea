//! Who belongs to the cluster: changes, what is refused because a majority would be lost by it, and the
//! end of a change that its leader did not live to end.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft_rt::WatchReceiver;
use tokio::time::sleep;

use crate::error::{Error, Result};
use crate::node::{Inner, PROMOTION_LAG, write_error};
use crate::raft::config::log_id;
use crate::replicator::{MemberChange, Role};
use crate::types::{LogId, NodeId};

impl Inner {
    /// Refuses a change that would leave fewer voters within reach than a majority. A leader that
    /// has just begun is given time to hear of the others.
    pub(super) async fn check_quorum_after(&self, voters: &BTreeSet<NodeId>) -> Result<()> {
        let mut tries = 2 * (self.options.timing.election_max.as_millis() / 10).max(1);
        let begun = tokio::time::Instant::now();
        loop {
            let checked = self.check_heard(voters, begun.elapsed());
            tries -= 1;
            if checked.is_ok() || tries == 0 {
                return checked;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Within this long: who died a moment ago must not count.
    pub(super) fn check_heard(&self, voters: &BTreeSet<NodeId>, within: Duration) -> Result<()> {
        let status = self.status();
        let is_heard = |id: &NodeId| {
            *id == self.id
                || status
                    .heard
                    .get(id)
                    .is_some_and(|ago| ago.is_some_and(|ago| ago < within))
        };
        let heard = voters.iter().filter(|id| is_heard(id)).count();
        if heard <= voters.len() / 2 {
            return Err(Error::InvalidArgument(format!(
                "of the {} voters that there would be, only {heard} can be reached: no majority",
                voters.len()
            )));
        }
        Ok(())
    }

    /// Whether this node leads, and has not heard of a majority lately.
    pub(super) fn leads_nobody(&self) -> bool {
        let (status, fresh) = (self.status(), self.options.timing.election_max * 2);
        status.role == Role::Leader
            && status
                .membership
                .voters
                .iter()
                .any(|voters| self.check_heard(voters, fresh).is_err())
    }

    pub(super) async fn change(&self, change: MemberChange) -> Result<()> {
        let status = self.status();
        if status.leader != Some(self.id) {
            return Err(Error::NotLeader {
                leader: status.leader,
            });
        }
        let voters: BTreeSet<NodeId> = status.membership.voters.iter().flatten().copied().collect();
        let unknown = |id: &NodeId| !status.membership.nodes.contains_key(id);
        let (members, stay) = match change {
            MemberChange::AddLearner(id, member) => {
                if !unknown(&id) {
                    return Err(Error::InvalidArgument(format!(
                        "node {id} is a member already"
                    )));
                }
                if status.membership.nodes.len() >= crate::types::MAX_NODES {
                    let most = crate::types::MAX_NODES;
                    return Err(Error::InvalidArgument(format!(
                        "there are {most} nodes already"
                    )));
                }
                (ChangeMembers::AddNodes([(id, member)].into()), true)
            }
            MemberChange::Promote(ids) => {
                for id in &ids {
                    if unknown(id) {
                        return Err(Error::InvalidArgument(format!("node {id} is no member")));
                    }
                    let has = status.progress.get(id).copied().flatten();
                    let behind = status
                        .last_index
                        .unwrap_or(0)
                        .saturating_sub(has.unwrap_or(0));
                    if has.is_none() || behind > PROMOTION_LAG {
                        return Err(Error::InvalidArgument(format!(
                            "node {id} is {behind} entries behind, more than {PROMOTION_LAG}"
                        )));
                    }
                }
                self.check_quorum_after(&voters.union(&ids).copied().collect())
                    .await?;
                (ChangeMembers::AddVoterIds(ids), true)
            }
            MemberChange::Demote(ids) => {
                self.check_quorum_after(&voters.difference(&ids).copied().collect())
                    .await?;
                (ChangeMembers::RemoveVoters(ids), true)
            }
            MemberChange::Remove(_) | MemberChange::ForceRemove(_) => {
                let (ids, is_forced) = match change {
                    MemberChange::ForceRemove(ids) => (ids, true),
                    MemberChange::Remove(ids) => (ids, false),
                    _ => (BTreeSet::new(), false),
                };
                if let Some(id) = ids.iter().find(|id| unknown(id)) {
                    return Err(Error::InvalidArgument(format!("node {id} is no member")));
                }
                let left: BTreeSet<NodeId> = voters.difference(&ids).copied().collect();
                if left.is_empty() {
                    let detail = "nobody would be left to vote";
                    return Err(Error::InvalidArgument(detail.into()));
                }
                if !is_forced {
                    self.check_quorum_after(&left).await?;
                }
                if left.len() < voters.len() {
                    let gone = voters.intersection(&ids).copied().collect();
                    let demote = ChangeMembers::RemoveVoters(gone);
                    let demoted = self.raft.change_membership(demote, true).await;
                    demoted.map_err(write_error)?;
                }
                (ChangeMembers::RemoveNodes(ids), false)
            }
        };
        let changed = self.raft.change_membership(members, stay).await;
        changed.map(drop).map_err(write_error)
    }

    /// Leaves a membership of two sets that has been there since the last time that somebody looked:
    /// who asked for the change was told that it failed, or died with the leader, and until it is
    /// ended, majorities of both sets are needed. Answers what there is now.
    pub(super) async fn end_change(&self, before: Option<LogId>) -> Option<LogId> {
        let joint = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let stored = &metrics.membership_config;
            let is_mine = metrics.current_leader == Some(self.id);
            let is_joint = stored.membership().get_joint_config().len() > 1;
            let id = stored.log_id().as_ref().map(log_id);
            id.filter(|_| is_mine && is_joint)?
        };
        if before == Some(joint) {
            let nobody = ChangeMembers::AddVoterIds(BTreeSet::new());
            // If it fails, the next round tries again.
            let _ = self.raft.change_membership(nobody, true).await;
        }
        Some(joint)
    }
}
