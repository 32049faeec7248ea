//! The way of writes from the queue into entries: many share one, see [`gather`](crate::gather); on a node that
//! does not lead, they go to the leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use firn_engine::Outcome;
use openraft::errors::ClientWriteError;
use openraft_rt::Instant as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::command::{CommandBuilder, Write};
use crate::error::{Error, Result};
use crate::gather::Gather;
use crate::message::{Answer, Refusal, Request};
use crate::node::{
    ENTRIES_IN_FLIGHT, ENTRY_BYTES, ENTRY_WRITES, Inner, Leader, Queue, UPKEEP, refused,
};
use crate::planted::{self, Bug};
use crate::raft::config::{Data, Reply, log_id};
use crate::raft::rt::LocalInstant;
use crate::transport::{Class, Peer, TransportError};
use crate::types::LogId;

pub(super) type Proposed = Result<(LogId, Vec<Outcome>)>;

/// Writes that stay together.
pub(super) struct PendingWrite {
    writes: Vec<Write>,
    bytes: usize,
    /// Another node passed them on.
    is_forwarded: bool,
    pub(super) answer: oneshot::Sender<Proposed>,
}

/// What waits to be proposed, and what is on its way.
#[derive(Default)]
pub(super) struct Writes {
    queue: Queue<PendingWrite>,
    /// Of those that are queued.
    bytes: AtomicUsize,
    /// Writes in the queue.
    count: AtomicUsize,
    gather: Mutex<Gather>,
    /// When an entry was done last.
    done: Mutex<Option<LocalInstant>>,
    /// Entries on their way to a majority.
    in_flight: AtomicUsize,
    /// One of them is done.
    room: Notify,
}

impl Writes {
    /// Groups of writes that wait for their turn, and their bytes.
    pub(super) fn queued(&self) -> (usize, usize) {
        let groups = self.queue.items.lock().len();
        (groups, self.bytes.load(Ordering::Relaxed))
    }

    /// Whether no entry is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0
    }

    /// Has an entry proposed even if nothing is to be written: time passes with it.
    pub(super) fn push_nothing(&self) {
        let (answer, _) = oneshot::channel();
        self.queue.push(PendingWrite {
            writes: Vec::new(),
            bytes: 0,
            is_forwarded: true,
            answer,
        });
    }

    /// Wakes whoever waits here, to see that the node is closed.
    pub(super) fn wake(&self) {
        self.queue.came.notify_one();
        self.room.notify_one();
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }
}

impl Inner {
    /// Puts writes into the queue and waits for what becomes of them.
    pub(super) async fn submit(&self, writes: Vec<Write>, is_forwarded: bool) -> Proposed {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let bytes = writes.iter().map(|write| write.as_bytes().len() + 64).sum();
        // One write is taken however large it is, if nothing else waits.
        let before = self.writes.bytes.fetch_add(bytes, Ordering::AcqRel);
        if before > 0 && before + bytes > self.options.queue_bytes {
            self.writes.bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(Error::Overloaded);
        }
        self.writes.count.fetch_add(writes.len(), Ordering::AcqRel);
        let (answer, answered) = oneshot::channel();
        self.writes.queue.push(PendingWrite {
            writes,
            bytes,
            is_forwarded,
            answer,
        });
        if self.is_closed.load(Ordering::Acquire) {
            // It may have been closed, and the queue emptied, in between.
            self.fail_all(&|| Error::Closed);
        }
        let lost = || Err(Error::Unknown("the node was closed".into()));
        answered.await.unwrap_or_else(|_| lost())
    }

    /// Takes the next entry's worth of writes out of the queue. Whoever stopped waiting for an answer was told
    /// that it is not known: what nobody waits for is left out, or it might be written much later.
    pub(super) fn take_writes(&self) -> Vec<PendingWrite> {
        let mut queue = self.writes.queue.items.lock();
        let mut taken = Vec::new();
        let (mut bytes, mut count) = (0, 0);
        while let Some(next) = queue.pop_front() {
            self.writes.bytes.fetch_sub(next.bytes, Ordering::AcqRel);
            self.writes
                .count
                .fetch_sub(next.writes.len(), Ordering::AcqRel);
            if next.answer.is_closed() && !next.writes.is_empty() {
                continue;
            }
            (bytes, count) = (bytes + next.bytes, count + next.writes.len());
            taken.push(next);
            if is_whole_entry(bytes, count) {
                break;
            }
        }
        taken
    }

    fn still_leads(&self) -> bool {
        matches!(self.leader(), Leader::Me) && !self.is_closed.load(Ordering::Acquire)
    }

    /// Waits for the turn of the next entry.
    async fn wait_for_turn(&self) {
        let is_next = || {
            let gather = self.writes.gather.lock();
            let most = match gather.goes_beside_another(self.writes.count()) {
                true => ENTRIES_IN_FLIGHT,
                false => 1,
            };
            self.writes.in_flight.load(Ordering::Acquire) < most
        };
        while !is_next() && self.still_leads() {
            // Looking up now and then: entries of a leader that was cut off stay on their way.
            let _ = timeout(UPKEEP, self.writes.room.notified()).await;
        }
    }

    /// Waits for those whose writes are likely to come in a moment (see [`Gather`]).
    async fn gather_writes(&self) {
        let writes = &self.writes;
        let idle = writes
            .done
            .lock()
            .map_or(Duration::MAX, |done| LocalInstant::now() - done);
        let wanted = writes.gather.lock().wanted(writes.count(), idle);
        let Some((crowd, most)) = wanted else { return };
        let is_there = || {
            let bytes = writes.bytes.load(Ordering::Acquire);
            writes.count() >= crowd || is_whole_entry(bytes, writes.count())
        };
        let all = async {
            while !is_there() && !self.is_closed.load(Ordering::Acquire) {
                writes.queue.came.notified().await;
            }
        };
        let _ = timeout(most, all).await;
        // Late or not, what counts is who is there.
        if !is_there() {
            writes.gather.lock().missed(writes.count());
        }
    }

    /// Proposes writes as one entry.
    async fn propose_entry(self: &Arc<Self>, pending: Vec<PendingWrite>) {
        let mut builder = CommandBuilder::default();
        for write in pending.iter().flat_map(|pending| &pending.writes) {
            builder.add(write);
        }
        let count: usize = pending.iter().map(|pending| pending.writes.len()).sum();
        self.tallies
            .writes
            .fetch_add(count as u64, Ordering::Relaxed);
        self.tallies.entries.fetch_add(1, Ordering::Relaxed);
        let data = Data(builder.finish(self.world.env.clock.unix_ms()));
        let (tell, told) = oneshot::channel();
        let reply = Reply(Box::new(move |result| {
            // The task below waits for it, unless the node is gone.
            let _ = tell.send(result);
        }));
        if let Err(error) = self.raft.client_write_ff(data, Some(reply)).await {
            for pending in pending {
                let _ = pending.answer.send(Err(Error::Failed(error.to_string())));
            }
            return;
        }
        let sent = self.writes.gather.lock().proposed(count);
        self.writes.in_flight.fetch_add(1, Ordering::AcqRel);
        let inner = Arc::clone(self);
        self.spawn(async move {
            let result = told.await;
            let writes = &inner.writes;
            writes.gather.lock().done(sent, writes.count());
            *writes.done.lock() = Some(LocalInstant::now());
            inner.writes.in_flight.fetch_sub(1, Ordering::AcqRel);
            inner.writes.room.notify_one();
            match result {
                Ok(Ok(response)) => {
                    let id = log_id(&response.log_id);
                    let mut outcomes = response.data.into_iter();
                    for pending in pending {
                        let own = outcomes.by_ref().take(pending.writes.len()).collect();
                        // Whoever asked may have given up.
                        let _ = pending.answer.send(Ok((id, own)));
                    }
                }
                Ok(Err(error)) => {
                    // The only one that says that nothing was written.
                    let leader = match &error {
                        ClientWriteError::ForwardToLeader(forward) => Some(forward.leader_id),
                        _ => None,
                    };
                    for pending in pending {
                        let told = match leader {
                            Some(leader) => Error::NotLeader { leader },
                            None => Error::Unknown(error.to_string()),
                        };
                        // As above.
                        let _ = pending.answer.send(Err(told));
                    }
                }
                Err(_) => {
                    for pending in pending {
                        let lost = Error::Unknown("the node stopped".into());
                        // As above.
                        let _ = pending.answer.send(Err(lost));
                    }
                }
            }
        });
    }

    /// Passes writes on to the leader, as one request.
    fn forward_writes(self: &Arc<Self>, leader: &Peer, pending: Vec<PendingWrite>) {
        let (own, forwarded): (Vec<_>, Vec<_>) = pending
            .into_iter()
            .partition(|pending| !pending.is_forwarded);
        for pending in forwarded {
            let told = Error::NotLeader {
                leader: Some(leader.id),
            };
            // Whoever asked may have given up.
            let _ = pending.answer.send(Err(told));
        }
        if own.is_empty() {
            return;
        }
        let writes: Vec<Write> = own.iter().flat_map(|p| p.writes.iter().cloned()).collect();
        let count = writes.len();
        self.tallies
            .forwarded
            .fetch_add(count as u64, Ordering::Relaxed);
        let request: Bytes = Request::Propose(writes).encode().into();
        let timeout = self.options.request_timeout;
        if planted::is(Bug::TwiceForwarded) {
            let transport = &self.world.transport;
            drop(transport.call(leader, Class::Log, request.clone(), timeout));
        }
        let call = self
            .world
            .transport
            .call(leader, Class::Log, request, timeout);
        self.spawn(async move {
            let answer = match call.await {
                Ok(bytes) => match Answer::decode(&bytes) {
                    Ok(Answer::Propose(id, outcomes)) if outcomes.len() == count => {
                        Ok((id, outcomes))
                    }
                    Ok(Answer::Refused(refusal)) => Err(refusal),
                    // It may well have written.
                    other => Err(Refusal::Unknown(format!("the leader answered {other:?}"))),
                },
                Err(TransportError::Unreachable(_)) => Err(Refusal::NotLeader(None)),
                Err(error) => Err(Refusal::Unknown(format!("the leader: {error}"))),
            };
            match answer {
                Ok((id, outcomes)) => {
                    let mut outcomes = outcomes.into_iter();
                    for pending in own {
                        let its = outcomes.by_ref().take(pending.writes.len()).collect();
                        // Whoever asked may have given up.
                        let _ = pending.answer.send(Ok((id, its)));
                    }
                }
                Err(refusal) => {
                    for pending in own {
                        // As above.
                        let _ = pending.answer.send(Err(refused(refusal.clone())));
                    }
                }
            }
        });
    }
}

/// Whether an entry with so much takes no more.
fn is_whole_entry(bytes: usize, writes: usize) -> bool {
    bytes >= ENTRY_BYTES || writes >= ENTRY_WRITES
}

/// Proposes what is queued, or passes it on.
pub(super) async fn propose(inner: Arc<Inner>) {
    while inner.writes.queue.some(&inner.is_closed).await.is_some() {
        match inner.leader() {
            Leader::Me => {
                inner.wait_for_turn().await;
                if inner.still_leads() {
                    inner.gather_writes().await;
                    // One that was small enough to go beside another may not be any more.
                    inner.wait_for_turn().await;
                }
                if !inner.still_leads() {
                    continue;
                }
                let pending = inner.take_writes();
                inner.propose_entry(pending).await;
            }
            Leader::Other(peer) => {
                let pending = inner.take_writes();
                inner.forward_writes(&peer, pending);
            }
            Leader::Nobody => {
                for pending in inner.take_writes() {
                    let nobody = Error::NotLeader { leader: None };
                    // Whoever asked may have given up.
                    let _ = pending.answer.send(Err(nobody));
                }
            }
        }
    }
}
