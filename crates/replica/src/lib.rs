//! FirnDB replicated: three or five nodes that are one linearizable store, lose nothing that they
//! acknowledged, and find a new leader by themselves.
//!
//! # The parts
//!
//! ```text
//!  propose, read_barrier, change_members, transfer, status        replicator
//!                     │
//!                   node ── queues, batches, retries, upkeep ──── transport ──► other nodes
//!                     │
//!              raft (consensus: a library, named nowhere else)
//!            ┌────────┴─────────┐
//!        log_store           machine ── home (which directory is in force)
//!            │                  │
//!     firn_io::wal        firn_engine::external
//! ```
//!
//! [`types`], [`command`] and [`message`] are what is stored and sent, each with a version of its own;
//! nothing of the consensus library is in a file, in a message or in a public item.
//!
//! # A write
//!
//! 1. [`node`] puts it into an entry with all others that came while the entries before were on their
//!    way; on a follower, the leader does.
//! 2. [`log_store`] appends the entry to the one log that there is, and syncs in the background;
//!    meanwhile followers get it and do the same.
//! 3. When a majority has it on disk it is committed. A node that leads counts itself only when its own
//!    disk has it.
//! 4. [`machine`] applies it to the engine's memory, on every node in the same way; the writer is
//!    answered. The engine writes no log.
//! 5. Some time later the engine flushes everything up to one entry, when the log is durable up to it,
//!    and its manifest says which entry that was.
//! 6. When the log has grown, a snapshot (hard links) is made, and entries that it has are purged.
//!
//! # A crash
//!
//! | between | what is found | what happens |
//! |---|---|---|
//! | 1 and 2 | nothing | the writer had no answer |
//! | 2 and its sync | the entry, or not | if a majority has it, it is committed; if not, the next leader decides |
//! | 3 and 4, 4 and 5 | the entry in the log | applied again from the manifest's position on, with the same result |
//! | within 5 | files that no manifest names | removed; as before |
//! | within 6 | half a snapshot, or a mark without segments removed | removed; as before |
//!
//! A failed sync, or damage anywhere but in the torn tail of the log, ends the node: it does not vote
//! from a log that it cannot trust, and comes back under a new number.
//!
//! # Determinism
//!
//! Disk, clock, entropy and background work come from [`firn_io::Env`], messages go through
//! [`transport`], and consensus runs on one thread with random numbers from a seed. The crate
//! `firn-sim` runs whole clusters so, with power cuts and partitions; a seed decides everything.
//!
//! Module order, bottom first (a module names only modules above it in this list): `planted`, `pace`, `gather`,
//! `codec`, `types`, `budget`, `command`, `message`, `error`, `log_store`, `home`, `machine`, `adopt`,
//! `transport`, `transfer`, `raft::watch`, `raft::rt`, `raft::config`, `raft::errors`, `raft::log`,
//! `raft::machine`, `raft::net`, `replicator`, `node`.

#![deny(missing_docs)]

pub mod adopt;
mod budget;
pub mod codec;
pub mod command;
pub mod error;
mod gather;
pub mod home;
pub mod log_store;
pub mod machine;
pub mod message;
pub mod node;
pub mod pace;
pub mod planted;
mod raft;
pub mod replicator;
pub mod transfer;
pub mod transport;
pub mod types;

pub use crate::command::Write;
pub use crate::error::{Error, Result};
pub use crate::node::{Counts, Node, NodeOptions, NodeThread, Timing, World};
pub use crate::replicator::{
    MemberChange, ReadLevel, ReadPoint, Replicator, Role, Status, Written,
};
pub use crate::types::{LogId, Member, Membership, NodeId};
