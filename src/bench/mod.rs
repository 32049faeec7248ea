//! The load generator: `firn bench`.
//!
//! A *mix* says what one operation is; `workload` chooses keys and values from a seed; `run` drives
//! threads and keeps histograms; `report` prints. The target is an embedded store, called without
//! anything between, or a server through the client that everybody uses.
//!
//! Closed loop (default): a thread starts its next operation when the last one has ended, and
//! latency is the time between. Open loop (`--rate`): operations are due at fixed moments whether
//! or not the store keeps up, and latency counts from the moment an operation was due; so a stall
//! of a second is seen by all operations that should have happened in it, not by one (coordinated
//! omission).

mod report;
mod run;
mod workload;

pub(crate) use crate::bench::run::run;
