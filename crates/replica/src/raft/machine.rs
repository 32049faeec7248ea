//! The library's state machine, on [`Machine`].

use std::io;
use std::time::Duration;

use firn_engine::Outcome;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};

use crate::machine::{Machine, Snapshot};
use crate::message::SnapshotMeta;
use crate::raft::config::{
    CommittedLeaderId, RaftLogId, RaftSnapshotMeta, RaftStoredMembership, Types, entry,
    raft_log_id, raft_membership,
};
use crate::raft::log::io_error;
use crate::types::{Member, NodeId};

type RaftSnapshot = openraft::Snapshot<CommittedLeaderId, NodeId, Member, Snapshot>;

/// How long applying waits before it looks again whether the engine has room.
const ROOM_PAUSE: Duration = Duration::from_millis(1);
/// So many of these pauses after a flush has failed, if it still does, and the node stops. A leader that
/// cannot apply answers no writer, while its heart goes on beating, and a follower's consensus comes to a
/// stand when too much waits to be applied. Others can lead, and a start finds the log as it was.
const STUCK_PAUSES: u32 = 5000;
/// After so many entries other tasks have their turn.
const ENTRIES_AT_ONCE: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct RaftMachine(pub(crate) Machine);

fn stored_membership(meta: &SnapshotMeta) -> io::Result<RaftStoredMembership> {
    let members = raft_membership(&meta.membership).map_err(io_error)?;
    let id = meta.membership_id.map(raft_log_id);
    Ok(RaftStoredMembership::new(id, members))
}

pub(crate) fn raft_snapshot(snapshot: Snapshot) -> io::Result<RaftSnapshot> {
    Ok(openraft::Snapshot {
        meta: RaftSnapshotMeta {
            last_log_id: snapshot.meta.last.map(raft_log_id),
            last_membership: stored_membership(&snapshot.meta)?,
        },
        snapshot,
    })
}

impl RaftSnapshotBuilder<Types> for RaftMachine {
    type SnapshotData = Snapshot;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        let snapshot = self.0.build_snapshot().await.map_err(io_error)?;
        raft_snapshot(snapshot)
    }
}

impl RaftStateMachine<Types> for RaftMachine {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<RaftLogId>, RaftStoredMembership), io::Error> {
        let (membership_id, membership) = self.0.membership();
        let meta = SnapshotMeta {
            last: self.0.applied(),
            membership_id,
            membership,
        };
        Ok((meta.last.map(raft_log_id), stored_membership(&meta)?))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut applied = 0;
        while let Some(item) = entries.next().await {
            let (raft_entry, responder) = item?;
            let mut stuck = 0;
            while self.0.must_wait() {
                let error = self.0.flush_error();
                // An error is forgotten while the flush is tried again.
                stuck += u32::from(stuck > 0 || error.is_some());
                if stuck > STUCK_PAUSES
                    && let Some(error) = error
                {
                    let detail = format!("memtables are full and their flush fails: {error}");
                    return Err(io::Error::other(detail));
                }
                tokio::time::sleep(ROOM_PAUSE).await;
            }
            let outcomes: Vec<Outcome> = self.0.apply(&entry(&raft_entry)).map_err(io_error)?;
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
            applied += 1;
            if applied % ENTRIES_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        _meta: &RaftSnapshotMeta,
        snapshot: Snapshot,
    ) -> Result<(), io::Error> {
        self.0.install(snapshot).await.map_err(io_error)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        self.0.current_snapshot().map(raft_snapshot).transpose()
    }
}
