//! What callers are told when something fails, and what they must do about it.

use std::fmt;

use crate::codec::DecodeError;
use crate::types::NodeId;

/// The result of an operation on a replica.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation. The variants are few, because each asks something else of the caller.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The call itself is wrong, or it would cost the cluster its quorum. Do not repeat it.
    InvalidArgument(String),
    /// This node does not lead and could not reach the one that does; nothing was written. Ask the
    /// leader, or again later.
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// No majority answered in time; nothing was written. Ask again later.
    NoQuorum,
    /// A write is in the leader's log, but whether it will be in force is not known: it may or may
    /// not be found later.
    Unknown(String),
    /// There is too much to do already; nothing was written. Ask again later.
    Overloaded,
    /// Another node answered what makes no sense.
    Protocol(String),
    /// A file could not be read or written, or is damaged. At opening nothing was changed; later on
    /// the node has failed.
    Io(firn_io::Error),
    /// The engine failed.
    Engine(firn_engine::Error),
    /// The node has failed and takes part in nothing any more; why.
    Failed(String),
    /// The node was closed.
    Closed,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidArgument(detail) => f.write_str(detail),
            Self::NotLeader { leader: Some(id) } => write!(f, "node {id} leads"),
            Self::NotLeader { leader: None } => f.write_str("no leader is known"),
            Self::NoQuorum => f.write_str("no majority answered in time; nothing was written"),
            Self::Unknown(detail) => write!(f, "whether it was written is not known: {detail}"),
            Self::Overloaded => f.write_str("too much is under way; nothing was written"),
            Self::Protocol(detail) => write!(f, "another node answered {detail}"),
            Self::Io(error) => error.fmt(f),
            Self::Engine(error) => error.fmt(f),
            Self::Failed(detail) => write!(f, "the node has failed: {detail}"),
            Self::Closed => f.write_str("the node was closed"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Engine(error) => Some(error),
            _ => None,
        }
    }
}

impl From<firn_io::Error> for Error {
    fn from(error: firn_io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<firn_engine::Error> for Error {
    fn from(error: firn_engine::Error) -> Self {
        Self::Engine(error)
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}
