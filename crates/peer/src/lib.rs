//! How nodes talk: framed TCP, encrypted, with credit.
//!
//! [`Peers`] is the [`Transport`](firn_replica::transport::Transport) of a node. There is one
//! connection for each class of requests and each direction, so that a snapshot does not hold up
//! entries, nor entries heartbeats. `docs/peer-protocol.md` has every byte.
//!
//! ```text
//!  firn_replica::Transport::call                     firn_replica::Node::handle
//!            │                                                   ▲
//!        outgoing ── one lane for each node and class         incoming
//!            └──────── wire (frames, one flush for many) ────────┘
//!                        │
//!               tls, or plain text on loopback
//! ```
//!
//! # What is promised
//!
//! * Requests of one class to one node arrive in the order of the calls, as far as they arrive, each
//!   at most once; classes do not wait for each other.
//! * They arrive unaltered (CRC-32C of every frame), at the node with that number, in that cluster, on
//!   the disk that it always had ([`hello`], [`known`](Peers::new)), or not at all.
//! * A call ends when its time is over, or earlier if there is no way. It says whether the request may
//!   have been done ([`TransportError`](firn_replica::transport::TransportError)).
//! * Everything that another node, or anybody else who connects, can make grow has a limit
//!   ([`PeerOptions`]).
//!
//! # Silence
//!
//! A connection is pinged; one from which nothing comes is given up within
//! [`PeerOptions::silence`], so that a machine that lost its power is not waited for.
//!
//! Module order, bottom first (a module names only modules above it in this list): `frame`, `hello`,
//! `stats`, `known`, `tls`, `options`, `wire`, `outgoing`, `incoming`, `peers`.

#![deny(missing_docs)]

pub mod frame;
pub mod hello;
mod incoming;
mod known;
mod options;
mod outgoing;
mod peers;
mod stats;
mod tls;
mod wire;

pub use crate::hello::ClusterId;
pub use crate::incoming::{Handler, Listener};
pub use crate::known::MAX_KNOWN;
pub use crate::options::{ClassLimits, PeerError, PeerOptions};
pub use crate::peers::Peers;
pub use crate::stats::{Direction, LinkStats};
pub use crate::tls::{Tls, TlsError, TlsFiles};
