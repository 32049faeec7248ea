//! The library's log storage, on [`LogStore`].

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::log_store::LogStore;
use crate::raft::config::{
    RaftEntry, RaftLogId, RaftVote, Types, entry, log_id, raft_entry, raft_log_id, raft_vote, vote,
};

/// Entries are sent to a follower in pieces of about this size.
const READ_BYTES: usize = 2 << 20;

/// What the library is told; the details are ours.
pub(crate) fn io_error(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}

#[derive(Clone, Debug)]
pub(crate) struct RaftLog(pub(crate) LogStore);

impl RaftLog {
    fn read(&self, start: u64, end: u64, most_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let entries = self.0.entries(start, end, most_bytes).map_err(io_error)?;
        let entries = entries.into_iter().map(raft_entry);
        entries.collect::<Result<_, _>>().map_err(io_error)
    }
}

impl RaftLogReader<Types> for RaftLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last + 1,
            Bound::Excluded(&end) => end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.0.vote().map(raft_vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        self.read(start, end, READ_BYTES)
    }
}

impl RaftLogStorage<Types> for RaftLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let (purged, last) = self.0.bounds();
        Ok(LogState {
            last_purged_log_id: purged.map(raft_log_id),
            last_log_id: last.map(raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, new: &RaftVote) -> Result<(), io::Error> {
        let (tell, durable) = oneshot::channel();
        let flushed = Box::new(move |result| {
            // Whoever asked may be gone with the node.
            let _ = tell.send(result);
        });
        self.0.save_vote(vote(new), flushed).map_err(io_error)?;
        let gone = |_| Err(io::Error::other("the log was closed"));
        durable.await.unwrap_or_else(gone)
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        self.0.set_committed(committed.as_ref().map(log_id));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        Ok(self.0.committed().map(raft_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|e| entry(&e)).collect();
        let flushed = Box::new(move |result| callback.io_completed(result));
        self.0.append(entries, flushed).map_err(io_error)
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), io::Error> {
        let keep = last.map(|id| id.index);
        self.0.truncate_after(keep).map_err(io_error)
    }

    async fn purge(&mut self, upto: RaftLogId) -> Result<(), io::Error> {
        self.0.purge(log_id(&upto)).map_err(io_error)
    }
}
