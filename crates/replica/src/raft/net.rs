//! The library's network, on [`Transport`].

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use firn_io::Env;
use futures_util::stream::{self, FusedStream, StreamExt};
use futures_util::{FutureExt, Stream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest as RaftVoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};

use crate::machine::{DAMAGED_SNAPSHOT, Machine, Snapshot};
use crate::message::{
    Answer, AppendAnswer, AppendRequest, Request, TransferAnswer, TransferRequest, VoteRequest,
};
use crate::raft::config::{
    CommittedLeaderId, RaftEntry, RaftLogId, RaftPayload, RaftVote, Types, entry, log_id,
    raft_log_id, raft_vote, vote,
};
use crate::transfer::{Sender, TransferOptions};
use crate::transport::{BoxFuture, Class, Peer, Transport, TransportError};
use crate::types::{Member, NodeId};

/// Requests with entries that may be on their way to one follower.
const PIPELINE: usize = 32;
/// How long a follower that has all entries may wait to hear that they are committed: it hears it with
/// the next ones, if they come by then, and nobody has to send, read and answer a message for it.
const LINGER: Duration = Duration::from_millis(1);

/// Makes the ways to other nodes.
#[derive(Debug)]
pub(crate) struct RaftNet {
    pub(crate) id: NodeId,
    pub(crate) transport: Arc<dyn Transport>,
    /// How long entries may be without an answer: a disk may be slow.
    pub(crate) log_timeout: Duration,
    /// As a leader, it says nothing: others shall elect one that a majority answers.
    pub(crate) is_still: Arc<AtomicBool>,
    /// The last term in which this node asked another one to lead, set before it does. Consensus does so
    /// by itself, too, when the leader is no member any more.
    pub(crate) handed_over: Arc<AtomicU64>,
    /// Who could not be reached and now can.
    pub(crate) returned: Arc<Returned>,
    /// Who is sent a snapshot.
    pub(crate) sending: Arc<Sending>,
    /// Fails when it turns out to be damaged.
    pub(crate) machine: Machine,
    /// For snapshots: the files' world.
    pub(crate) env: Env,
    pub(crate) transfer: TransferOptions,
}

/// The way to one node.
#[derive(Debug)]
pub(crate) struct RaftPeer {
    from: NodeId,
    peer: Peer,
    class: Class,
    transport: Arc<dyn Transport>,
    log_timeout: Duration,
    is_still: Arc<AtomicBool>,
    handed_over: Arc<AtomicU64>,
    returned: Arc<Returned>,
    sending: Arc<Sending>,
    /// The last request with entries, or the last heartbeat, had no answer.
    is_away: Arc<AtomicBool>,
    machine: Machine,
    env: Env,
    transfer: TransferOptions,
}

/// Nodes that answer heartbeats again after they could not be reached: entries need not wait for the
/// end of a pause that was made while they were away.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    nodes: Mutex<BTreeSet<NodeId>>,
    came: Notify,
}

impl Returned {
    fn push(&self, node: NodeId) {
        self.nodes.lock().insert(node);
        self.came.notify_one();
    }

    /// Those that came since this was called last; waits until there is one.
    pub(crate) async fn some(&self) -> BTreeSet<NodeId> {
        loop {
            let nodes = std::mem::take(&mut *self.nodes.lock());
            if !nodes.is_empty() {
                return nodes;
            }
            self.came.notified().await;
        }
    }
}

/// Snapshots that are being sent: to whom, and their last entry.
#[derive(Debug, Default)]
pub(crate) struct Sending(Mutex<BTreeMap<NodeId, u64>>);

impl Sending {
    /// All of them.
    pub(crate) fn all(&self) -> BTreeMap<NodeId, u64> {
        self.0.lock().clone()
    }

    /// Notes one for as long as what it returns lives.
    fn begin(&self, to: NodeId, last: u64) -> impl Drop + '_ {
        self.0.lock().insert(to, last);
        Sent { of: self, to, last }
    }
}

/// Ends one of [`Sending`].
struct Sent<'s> {
    of: &'s Sending,
    to: NodeId,
    last: u64,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        // The next one may have begun, where leadership was lost and won again meanwhile.
        let mut sending = self.of.0.lock();
        if sending.get(&self.to) == Some(&self.last) {
            sending.remove(&self.to);
        }
    }
}

impl RaftNet {
    fn peer(&self, target: NodeId, member: &Member, class: Class) -> RaftPeer {
        RaftPeer {
            from: self.id,
            peer: Peer {
                id: target,
                address: member.address.clone(),
            },
            class,
            transport: Arc::clone(&self.transport),
            log_timeout: self.log_timeout,
            is_still: Arc::clone(&self.is_still),
            handed_over: Arc::clone(&self.handed_over),
            returned: Arc::clone(&self.returned),
            sending: Arc::clone(&self.sending),
            is_away: Arc::default(),
            machine: self.machine.clone(),
            env: self.env.clone(),
            transfer: self.transfer,
        }
    }
}

impl RaftNetworkFactory<Types> for RaftNet {
    type Network = RaftPeer;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> RaftPeer {
        self.peer(target, node, Class::Log)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> RaftPeer {
        self.peer(target, node, Class::Urgent)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &Member) -> RaftPeer {
        self.peer(target, node, Class::Bulk)
    }
}

fn nonsense(answer: &Answer) -> RPCError<Types> {
    match answer {
        // It will not be better for being asked again at once.
        Answer::Refused(refusal) => Unreachable::from_string(format!("{refusal:?}")).into(),
        answer => NetworkError::from_string(format!("it answered {answer:?}")).into(),
    }
}

fn payload_bytes(entry: &RaftEntry) -> usize {
    match &entry.payload {
        RaftPayload::Normal(data) => data.0.len(),
        RaftPayload::Blank | RaftPayload::Membership(_) => 0,
    }
}

/// How much longer so many bytes may take: the slowest network and disk that a cluster makes sense on
/// have 16 MiB a second left for it.
fn time_on_the_way(bytes: usize) -> Duration {
    Duration::from_micros(bytes as u64 / 16)
}

impl RaftPeer {
    /// Sends a request; it has its place in the order of its class when this returns.
    fn call(
        &self,
        class: Class,
        request: &Request,
        timeout: Duration,
        action: RPCTypes,
    ) -> BoxFuture<'static, Result<Answer, RPCError<Types>>> {
        let bytes = request.encode().into();
        let answer = self.transport.call(&self.peer, class, bytes, timeout);
        let (from, to) = (self.from, self.peer.id);
        let decode = move |answer| match answer {
            Ok(bytes) => {
                let bytes: bytes::Bytes = bytes;
                Answer::decode(&bytes).map_err(|error| NetworkError::new(&error).into())
            }
            Err(TransportError::Timeout) => Err(RPCError::Timeout(Timeout {
                action,
                id: from,
                target: to,
                timeout,
            })),
            Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
        };
        answer.map(decode).boxed()
    }

    fn append(
        &self,
        rpc: &AppendEntriesRequest<Types>,
        option: &RPCOption,
    ) -> BoxFuture<'static, Result<AppendEntriesResponse<Types>, RPCError<Types>>> {
        if self.is_still.load(Ordering::Relaxed) {
            let still = Unreachable::from_string("a majority has not answered for long");
            return std::future::ready(Err(still.into())).boxed();
        }
        let bytes: usize = rpc.entries.iter().map(payload_bytes).sum();
        let timeout = match self.class {
            Class::Urgent => option.soft_ttl(),
            Class::Log | Class::Bulk => self.log_timeout + time_on_the_way(bytes),
        };
        let request = Request::Append(AppendRequest {
            vote: vote(&rpc.vote),
            previous: rpc.prev_log_id.as_ref().map(log_id),
            committed: rpc.leader_commit.as_ref().map(log_id),
            entries: rpc.entries.iter().map(entry).collect(),
        });
        let had_previous = rpc.prev_log_id.is_some();
        let answer = self.call(self.class, &request, timeout, RPCTypes::AppendEntries);
        let (is_away, returned) = (Arc::clone(&self.is_away), Arc::clone(&self.returned));
        let (class, to) = (self.class, self.peer.id);
        let note = move |answer: &Result<Answer, RPCError<Types>>| {
            let was_away = is_away.swap(answer.is_err(), Ordering::Relaxed);
            if was_away && answer.is_ok() && class == Class::Urgent {
                returned.push(to);
            }
        };
        let convert = move |answer: Result<Answer, _>| match answer? {
            Answer::Append(AppendAnswer::Taken) => Ok(AppendEntriesResponse::Success),
            Answer::Append(AppendAnswer::TakenUpTo(id)) => {
                Ok(AppendEntriesResponse::PartialSuccess(id.map(raft_log_id)))
            }
            // What follows nothing conflicts with nothing.
            Answer::Append(AppendAnswer::Conflict) if had_previous => {
                Ok(AppendEntriesResponse::Conflict)
            }
            Answer::Append(AppendAnswer::HigherVote(vote)) => {
                Ok(AppendEntriesResponse::HigherVote(raft_vote(vote)))
            }
            answer => Err(nonsense(&answer)),
        };
        answer.inspect(note).map(convert).boxed()
    }

    async fn ask_vote(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer = self.call(Class::Urgent, &request, option.soft_ttl(), RPCTypes::Vote);
        match answer.await? {
            Answer::Vote(answer) => Ok(VoteResponse::new(
                raft_vote(answer.vote),
                answer.last.map(raft_log_id),
                answer.granted,
            )),
            answer => Err(nonsense(&answer)),
        }
    }
}

fn vote_request(rpc: &RaftVoteRequest<Types>) -> VoteRequest {
    VoteRequest {
        vote: vote(&rpc.vote),
        last: rpc.last_log_id.as_ref().map(log_id),
        transfer: rpc.leadership_transfer,
    }
}

/// Requests to a follower, in order, without those that only say what is committed and are followed by
/// others soon. The library takes an answer for all requests before it that end where it ends, and
/// counts the time from when it made the last of them: so none is held while there is one without an
/// answer, which would else be taken for a later sign of the follower than it is.
struct Lingering<S> {
    requests: S,
    /// Requests without an answer.
    unanswered: Arc<AtomicUsize>,
    /// What was sent last ends here.
    sent: Option<RaftLogId>,
    held: Option<(AppendEntriesRequest<Types>, Pin<Box<Sleep>>)>,
}

impl<S> Lingering<S> {
    fn new(requests: S, unanswered: Arc<AtomicUsize>) -> Self {
        Self {
            requests,
            unanswered,
            sent: None,
            held: None,
        }
    }
}

impl<S: FusedStream<Item = AppendEntriesRequest<Types>> + Unpin> Stream for Lingering<S> {
    type Item = AppendEntriesRequest<Types>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.requests.is_terminated() {
            let Poll::Ready(next) = Pin::new(&mut this.requests).poll_next(cx) else {
                let is_due = match &mut this.held {
                    Some((_, timer)) => timer.as_mut().poll(cx).is_ready(),
                    None => false,
                };
                if is_due {
                    break;
                }
                return Poll::Pending;
            };
            let Some(request) = next else { break };
            let has_all = this.sent.is_some() && request.prev_log_id == this.sent;
            let is_answered = this.unanswered.load(Ordering::Relaxed) == 0;
            if request.entries.is_empty() && has_all && is_answered {
                match &mut this.held {
                    Some((held, _)) => *held = request,
                    None => this.held = Some((request, Box::pin(sleep(LINGER)))),
                }
                continue;
            }
            this.held = None;
            this.unanswered.fetch_add(1, Ordering::Relaxed);
            let last = request.entries.last().map(|entry| entry.log_id);
            this.sent = last.or(request.prev_log_id);
            return Poll::Ready(Some(request));
        }
        let held = this.held.take();
        if held.is_some() {
            this.unanswered.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Ready(held.map(|(request, _)| request))
    }
}

/// A request that was answered.
struct Appended {
    previous: Option<RaftLogId>,
    last: Option<RaftLogId>,
    answer: Result<AppendEntriesResponse<Types>, RPCError<Types>>,
}

impl Appended {
    /// What the library shall be told, and whether the stream goes on. `taken` is what the follower
    /// said so far that it has.
    fn judge(
        self,
        taken: &mut Option<RaftLogId>,
    ) -> (Result<StreamAppendResult<Types>, RPCError<Types>>, bool) {
        let answer = match self.answer {
            Ok(answer) => answer,
            Err(error) => return (Err(error), false),
        };
        let is_whole = match &answer {
            AppendEntriesResponse::Success => true,
            AppendEntriesResponse::PartialSuccess(upto) => *upto == self.last,
            // It was answered before the one that the follower took before it, which came late. To the
            // library it would mean that the follower lost what it had.
            AppendEntriesResponse::Conflict if self.previous <= *taken => {
                let late = NetworkError::from_string("requests arrived in another order");
                return (Err(late.into()), false);
            }
            _ => false,
        };
        if is_whole {
            *taken = self.last.max(*taken);
        }
        let result = answer.into_stream_result(self.previous, self.last);
        (Ok(result), is_whole)
    }
}

impl RaftNetworkV2<Types> for RaftPeer {
    type SnapshotData = Snapshot;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.append(&rpc, &option).await
    }

    /// Many requests are on their way at once; answers come in their order.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> openraft::base::BoxFuture<
        's,
        Result<
            openraft::base::BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>,
            RPCError<Types>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let peer: &'s Self = self;
        let unanswered = Arc::new(AtomicUsize::new(0));
        let unanswered_too = Arc::clone(&unanswered);
        let send = move |rpc: AppendEntriesRequest<Types>| {
            let previous = rpc.prev_log_id;
            let last = rpc.entries.last().map(|entry| entry.log_id).or(previous);
            let answer = peer.append(&rpc, &option);
            let unanswered = Arc::clone(&unanswered_too);
            answer.map(move |answer| -> Appended {
                unanswered.fetch_sub(1, Ordering::Relaxed);
                Appended {
                    previous,
                    last,
                    answer,
                }
            })
        };
        let requests = Lingering::new(input.fuse(), Arc::clone(&unanswered));
        let answers = requests.map(send).buffered(PIPELINE);
        let take = |state: Option<_>| async move {
            let (mut answers, mut taken) = state?;
            let next: Option<Appended> = StreamExt::next(&mut answers).await;
            let (item, goes_on) = next?.judge(&mut taken);
            Some((item, goes_on.then_some((answers, taken))))
        };
        let stream = stream::unfold(Some((answers, None)), take).boxed();
        async move { Ok(stream) }.boxed()
    }

    async fn vote(
        &mut self,
        rpc: RaftVoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = Request::Vote(vote_request(&rpc));
        self.ask_vote(request, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: RaftVoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = Request::PreVote(vote_request(&rpc));
        self.ask_vote(request, &option).await
    }

    async fn full_snapshot(
        &mut self,
        leader: RaftVote,
        snapshot: openraft::Snapshot<CommittedLeaderId, NodeId, Member, Snapshot>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let sender = Sender {
            env: self.env.clone(),
            transport: Arc::clone(&self.transport),
            options: self.transfer,
        };
        let last = snapshot.meta.last_log_id.map_or(0, |id| id.index);
        let _sending = self.sending.begin(self.peer.id, last);
        let ours = snapshot.snapshot.clone();
        let sent = sender.send(self.peer.clone(), vote(&leader), snapshot.snapshot);
        let sent = std::pin::pin!(sent);
        let cancel = std::pin::pin!(cancel);
        match futures_util::future::select(sent, cancel).await {
            futures_util::future::Either::Left((Ok(follows), _)) => Ok(SnapshotResponse {
                vote: raft_vote(follows),
            }),
            futures_util::future::Either::Left((Err(error), _)) => {
                if error.to_string().contains(DAMAGED_SNAPSHOT) {
                    self.machine.fail_if_damaged(ours).await;
                }
                Err(StreamingError::Unreachable(Unreachable::new(&error)))
            }
            futures_util::future::Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let expected = *request.from_leader();
        self.handed_over
            .fetch_max(expected.leader_id.term, Ordering::AcqRel);
        let last = request.last_log_id().copied();
        let message = Request::Transfer(TransferRequest {
            from: vote(&expected),
            to: *request.to_node_id(),
            last: last.as_ref().map(log_id),
        });
        let timeout = option.soft_ttl();
        let answer = self.call(Class::Urgent, &message, timeout, RPCTypes::TransferLeader);
        match answer.await? {
            Answer::Transfer(TransferAnswer::Begun) => Ok(Ok(())),
            Answer::Transfer(TransferAnswer::VoteChanged(actual)) => {
                let actual = raft_vote(actual);
                Ok(Err(TransferLeaderError::VoteChanged { expected, actual }))
            }
            Answer::Transfer(TransferAnswer::LogTooShort(actual)) => {
                let actual = actual.map(raft_log_id);
                let expected = last;
                Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
            }
            answer => Err(nonsense(&answer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::raft::config::raft_entry;
    use crate::types::{Entry, LogId, Payload, Vote};

    /// A request with the entries behind `previous` up to `last`, and a mark.
    fn request(previous: u64, last: u64, committed: u64) -> AppendEntriesRequest<Types> {
        let id = |index| LogId { term: 1, index };
        let entries = (previous + 1..=last).map(|index| {
            raft_entry(Entry {
                id: id(index),
                payload: Payload::Blank,
            })
        });
        AppendEntriesRequest {
            vote: raft_vote(Vote {
                term: 1,
                node: 1,
                committed: true,
            }),
            prev_log_id: Some(raft_log_id(id(previous))),
            leader_commit: Some(raft_log_id(id(committed))),
            entries: entries.collect::<Result<_, _>>().unwrap(),
        }
    }

    #[test]
    fn a_conflict_with_what_was_taken_is_one_of_order() {
        let id = |index| raft_log_id(LogId { term: 1, index });
        let appended = |previous, last, answer| Appended {
            previous: Some(id(previous)),
            last: Some(id(last)),
            answer: Ok(answer),
        };
        let mut taken = None;
        let (item, goes_on) = appended(4, 5, AppendEntriesResponse::Conflict).judge(&mut taken);
        assert!(item.unwrap().is_err() && !goes_on, "the first is believed");
        let (item, goes_on) = appended(4, 5, AppendEntriesResponse::Success).judge(&mut taken);
        assert!(item.unwrap().is_ok() && goes_on);
        let (item, goes_on) = appended(5, 6, AppendEntriesResponse::Conflict).judge(&mut taken);
        assert!(matches!(item, Err(RPCError::Network(_))) && !goes_on);
        let (item, goes_on) = appended(7, 8, AppendEntriesResponse::Conflict).judge(&mut taken);
        assert!(item.unwrap().is_err() && !goes_on, "that was not taken");
    }

    #[test]
    fn a_snapshot_that_ends_late_does_not_end_the_next_one() {
        let sending = Sending::default();
        let first = sending.begin(2, 10);
        let other = sending.begin(3, 10);
        let next = sending.begin(2, 20);
        drop(first);
        assert_eq!(sending.all(), [(2, 20), (3, 10)].into());
        drop(other);
        assert_eq!(sending.all(), [(2, 20)].into());
        drop(next);
        assert!(sending.all().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn commits_come_with_the_next_entries_or_a_little_later() {
        let (send, requests) = mpsc::unbounded_channel();
        let requests = stream::unfold(requests, |mut requests: mpsc::UnboundedReceiver<_>| async {
            let request = requests.recv().await?;
            Some((request, requests))
        });
        let unanswered = Arc::new(AtomicUsize::new(0));
        let mut lingering = Lingering::new(requests.boxed().fuse(), Arc::clone(&unanswered));
        let answered = || unanswered.store(0, Ordering::Relaxed);
        let shape = |request: AppendEntriesRequest<Types>| {
            let committed = request.leader_commit.unwrap().index();
            (request.entries.len(), committed)
        };
        let begin = tokio::time::Instant::now();
        let mut next = async || lingering.next().await.map(shape);
        // What looks for where the logs agree is not held up.
        send.send(request(4, 4, 3)).unwrap();
        assert_eq!(next().await, Some((0, 3)));
        answered();
        send.send(request(4, 6, 4)).unwrap();
        assert_eq!(next().await, Some((2, 4)));
        // Nor are marks before the answer.
        send.send(request(6, 6, 4)).unwrap();
        assert_eq!(next().await, Some((0, 4)));
        answered();
        // Two marks, and entries with a newer one.
        send.send(request(6, 6, 5)).unwrap();
        send.send(request(6, 6, 6)).unwrap();
        send.send(request(6, 7, 6)).unwrap();
        assert_eq!(next().await, Some((1, 6)));
        assert_eq!(begin.elapsed(), Duration::ZERO);
        answered();
        // A mark, and nothing behind it.
        send.send(request(7, 7, 7)).unwrap();
        assert_eq!(next().await, Some((0, 7)));
        assert!(begin.elapsed() >= LINGER);
        answered();
        // A mark at the end.
        send.send(request(7, 7, 7)).unwrap();
        drop(send);
        assert_eq!(next().await, Some((0, 7)));
        assert_eq!(next().await, None);
    }
}
