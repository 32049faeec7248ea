//! What a node says about itself, and the limits of its connections.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use firn_replica::transport::Class;
use firn_replica::{NodeId, Timing};

use crate::hello::ClusterId;
use crate::tls::Tls;

/// Limits of one connection, as the side that takes requests grants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassLimits {
    /// Bytes of requests that may be without an answer. A longer one may come alone.
    pub window_bytes: u64,
    /// Requests that may be without an answer.
    pub requests: u32,
    /// Bytes of requests that may wait at the caller until they can be sent; beyond that a call fails
    /// at once. A longer one may wait alone.
    pub queue_bytes: u64,
}

/// How a node talks to others.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its number.
    pub node: NodeId,
    /// Its incarnation (see [`firn_replica::home`]).
    pub incarnation: u64,
    /// Certificates. Without them only nodes on the same machine can be reached, and only from there.
    pub tls: Option<Arc<Tls>>,
    /// Without certificates, talk in plain text to everybody all the same.
    pub insecure: bool,
    /// How long a connection may take to be made, handshakes included. Default: 2 s.
    pub connect_timeout: Duration,
    /// How long whoever connects to this node may take to say who it is. Default: 3 s.
    pub hello_timeout: Duration,
    /// How often a connection is asked whether it is alive. Default: 200 ms.
    pub ping_interval: Duration,
    /// A connection from which nothing came for so long is given up. Default: 1.2 s.
    pub silence: Duration,
    /// A connection without requests is closed after this. Default: 60 s.
    pub idle: Duration,
    /// First and longest pause before the next attempt to connect. Default: 25 ms and 100 ms: a node
    /// that comes back is not heard of otherwise.
    pub pause: (Duration, Duration),
    /// Connections that other nodes may have here. Default: 256.
    pub connections: usize,
    /// Of urgent requests: votes, heartbeats, reads.
    pub urgent: ClassLimits,
    /// Of the log.
    pub log: ClassLimits,
    /// Of snapshots.
    pub bulk: ClassLimits,
}

impl PeerOptions {
    /// With every default.
    pub fn new(cluster: ClusterId, node: NodeId, incarnation: u64) -> Self {
        let limits = |window_bytes, requests, queue_bytes| ClassLimits {
            window_bytes,
            requests,
            queue_bytes,
        };
        Self {
            cluster,
            node,
            incarnation,
            tls: None,
            insecure: false,
            connect_timeout: Duration::from_secs(2),
            hello_timeout: Duration::from_secs(3),
            ping_interval: Duration::from_millis(200),
            silence: Duration::from_millis(1200),
            idle: Duration::from_secs(60),
            pause: (Duration::from_millis(25), Duration::from_millis(100)),
            connections: 256,
            urgent: limits(1 << 20, 1024, 1 << 20),
            // Consensus has up to 32 requests of about 2 MiB on their way to one node.
            log: limits(16 << 20, 1024, 96 << 20),
            bulk: limits(16 << 20, 64, 64 << 20),
        }
    }

    /// With the times that suit these of elections: a connection that died is noticed about when an
    /// election would be called.
    #[must_use]
    pub fn timed(mut self, timing: &Timing) -> Self {
        self.ping_interval = timing.election_max / 4;
        self.silence = timing.election_max * 3 / 2;
        self
    }

    pub(crate) fn limits(&self, class: Class) -> ClassLimits {
        match class {
            Class::Urgent => self.urgent,
            Class::Log => self.log,
            Class::Bulk => self.bulk,
        }
    }

    /// Whether bytes may go to or come from an address as they are.
    pub(crate) fn may_be_plain(&self, address: SocketAddr) -> bool {
        self.insecure || address.ip().is_loopback()
    }
}

/// Why a node cannot listen for others.
#[derive(Debug)]
#[non_exhaustive]
pub enum PeerError {
    /// What it was told does not go together.
    Options(String),
    /// The address cannot be listened on.
    Bind {
        /// Which.
        address: String,
        /// Why.
        cause: io::Error,
    },
    /// The directory of the node.
    Io(firn_io::Error),
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Options(detail) => f.write_str(detail),
            Self::Bind { address, cause } => write!(f, "cannot listen on {address}: {cause}"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for PeerError {}

impl From<firn_io::Error> for PeerError {
    fn from(error: firn_io::Error) -> Self {
        Self::Io(error)
    }
}
