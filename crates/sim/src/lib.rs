//! FirnDB's simulator: whole nodes (log, engine, consensus, replica) in one thread from one seed, on
//! disks, clocks and a network that fail, and judges that say whether it mattered.
//!
//! ```text
//!  swarm ── what a seed makes of a run: faults, then peace, then the verdict
//!    ├── cluster ── machines: start, kill, cut the power, pause, verify
//!    │     ├── net, exec, clock ── the world under a node
//!    │     └── watcher ── what must hold of all nodes at every moment
//!    ├── damage ── bytes at rest that change
//!    └── client ── calls, noted in a history ── judged by lincheck
//! ```
//!
//! A run is decided by its seed and nothing else: [`swarm::Report::trace`] is the same whenever and
//! wherever it is run again. `cargo xtask sim --seed N` does that; `docs/testing.md` says more.
//!
//! Time is tokio's, paused: it jumps to the next timer whenever nothing else is to be done, so ten
//! seconds take some milliseconds. Nothing here is part of the product, and no other crate uses it.
//!
//! Module order, bottom first (a module names only modules above it in this list): `lincheck`, `clock`,
//! `exec`, `watcher`, `net`, `cluster`, `history`, `client`, `damage`, `swarm`, `stage`, `main`.

#![deny(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test bench: what cannot be is a failed test"
)]

pub mod client;
pub mod clock;
pub mod cluster;
pub mod damage;
pub mod exec;
pub mod history;
pub mod lincheck;
pub mod net;
pub mod stage;
pub mod swarm;
pub mod watcher;
