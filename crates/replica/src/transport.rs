//! How nodes reach each other: the seam between consensus and the network.
//!
//! Consensus encodes a request, hands it to a [`Transport`], and waits for the answer's bytes; the
//! node at the other end decodes, does and encodes ([`Node::handle`](crate::node::Node::handle)).
//! Everything in between is the transport's: connections, frames, checksums, encryption, who may
//! speak, back-pressure. In a simulation it is a few lines that delay, lose and repeat.
//!
//! # What a transport owes
//!
//! * A request may be lost or late; an answer too. It is delivered at most once: a write that is passed
//!   on and arrives twice is written twice. So nothing is sent again on another connection. It is
//!   never altered, never delivered to another node than the one it was for, nor to another cluster.
//! * Requests of one [`Class`] to one node are delivered in the order of the calls, as far as they
//!   are delivered. Classes do not wait for each other.
//! * After `timeout` the call ends, with an error if there is no answer yet.
//! * What waits to be sent is limited; beyond that a call fails at once.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::types::NodeId;

/// A future in a box, as traits that are used as objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What must not wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Votes, heartbeats, read indexes: small, and a cluster without them is down.
    Urgent,
    /// Entries, and writes that are passed on to the leader.
    Log,
    /// Snapshots (see [`crate::transfer`]).
    Bulk,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// The request was not delivered, and the node cannot be reached now.
    Unreachable(String),
    /// There was no answer in time; the request may have been delivered.
    Timeout,
    /// The way to the node was lost before the answer came; the request may have been delivered.
    Lost(String),
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(detail) => write!(f, "unreachable: {detail}"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Lost(detail) => write!(f, "no answer: {detail}"),
        }
    }
}

impl std::error::Error for TransportError {}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub id: NodeId,
    /// Where it listens, as the membership has it.
    pub address: String,
}

/// See the module's page.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Sends a request and waits for the answer. It takes its place in the order of its class before
    /// this returns.
    fn call(
        &self,
        to: &Peer,
        class: Class,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;
}
