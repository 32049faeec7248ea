//! The only door of FirnDB to the disk, the clock, entropy, threads and the system's memory, and the
//! framed log that is built on them.
//!
//! Everything above takes an [`Env`]. In production it is [`Env::os`]; tests and the simulator put
//! a file system that loses power, a clock that jumps and an executor that runs one step at a time
//! behind the same traits. The linter forbids `std::fs`, `Instant::now`, `thread::spawn` and their
//! kin everywhere else.
//!
//! Module order, bottom first (a module names only modules above it in this list): `error`,
//! `codec`, `checksum`, `clock`, `rng`, `pages`, `priority`, `exec`, `fs`, `env`, `wal`.
#![deny(missing_docs)]

pub mod checksum;
pub mod clock;
pub mod codec;
pub mod env;
pub mod error;
pub mod exec;
pub mod fs;
pub mod pages;
mod priority;
pub mod rng;
pub mod wal;

pub use crate::env::Env;
pub use crate::error::{Error, Result};
