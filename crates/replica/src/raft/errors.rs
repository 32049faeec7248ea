//! What the library's errors and answers mean to callers and to other nodes.

use openraft::errors::{
    ChangeMembershipError, ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::raft::VoteRequest as RaftVoteRequest;

use crate::error::Error;
use crate::message::{Answer, Refusal, VoteAnswer, VoteRequest};
use crate::raft::config::{Types, log_id, raft_log_id, raft_vote, vote};

/// Who leads instead.
pub(crate) fn not_leader(forward: &ForwardToLeader<Types>) -> Error {
    Error::NotLeader {
        leader: forward.leader_id,
    }
}

/// Why a proposal failed.
pub(crate) fn write_error(error: RaftError<Types, ClientWriteError<Types>>) -> Error {
    match error {
        RaftError::Fatal(error) => Error::Failed(error.to_string()),
        RaftError::APIError(error) => client_error(error),
    }
}

/// The same, said by the one that leads.
pub(crate) fn client_error(error: ClientWriteError<Types>) -> Error {
    match error {
        ClientWriteError::ForwardToLeader(forward) => not_leader(&forward),
        ClientWriteError::LogEntryDiscarded(_) => Error::Unknown("the leader changed".into()),
        // Another change is on its way.
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
            Error::Overloaded
        }
        ClientWriteError::ChangeMembershipError(error) => Error::InvalidArgument(error.to_string()),
        ClientWriteError::PreconditionFailed(error) => Error::InvalidArgument(error.to_string()),
    }
}

/// What a refusal by another node means here.
pub(crate) fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::NotLeader(leader) => Error::NotLeader { leader },
        Refusal::NoQuorum => Error::NoQuorum,
        Refusal::Unknown(detail) => Error::Unknown(detail),
        Refusal::Overloaded => Error::Overloaded,
        Refusal::Malformed(detail) => Error::Protocol(detail),
        // It did nothing, and somebody else will lead.
        Refusal::Failed(_) => Error::NotLeader { leader: None },
    }
}

/// What an error here means to the node that asked.
pub(crate) fn refusal(error: Error) -> Refusal {
    match error {
        Error::NotLeader { leader } => Refusal::NotLeader(leader),
        Error::NoQuorum => Refusal::NoQuorum,
        Error::Unknown(detail) => Refusal::Unknown(detail),
        Error::Overloaded => Refusal::Overloaded,
        Error::InvalidArgument(detail) => Refusal::Malformed(detail),
        error => Refusal::Failed(error.to_string()),
    }
}

/// Why a node may not be read.
pub(crate) fn read_error(error: RaftError<Types, LinearizableReadError<Types>>) -> Error {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            not_leader(&forward)
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => Error::NoQuorum,
        RaftError::Fatal(error) => Error::Failed(error.to_string()),
    }
}

/// A request for a vote.
pub(crate) fn raft_vote_request(request: &VoteRequest) -> RaftVoteRequest<Types> {
    let last = request.last.map(raft_log_id);
    let mut rpc = RaftVoteRequest::new(raft_vote(request.vote), last);
    rpc.leadership_transfer = request.transfer;
    rpc
}

/// The answer to one.
pub(crate) fn vote_answer(answer: &openraft::raft::VoteResponse<Types>) -> Answer {
    Answer::Vote(VoteAnswer {
        vote: vote(&answer.vote),
        granted: answer.vote_granted,
        last: answer.last_log_id.as_ref().map(log_id),
    })
}
