//! Background work: a pool of threads in production, one step at a time in tests.
//!
//! The engine never starts a thread. It submits jobs here; a job runs to its end and may submit
//! further ones. [`ThreadPool`] runs them on threads of its own; [`Stepper`] queues them until
//! somebody calls [`Executor::run_one`], so that a test decides every interleaving of background
//! work from a seed.
//!
//! Code that waits for background work must make progress under both: see [`Executor::run_one`].

use std::fmt::Debug;
use std::time::Duration;

/// How urgent a job is. Where threads are short, a more urgent job goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for it: log preparation, log sync, memtable flush.
    High,
    /// Compaction and the like.
    Low,
}

/// A unit of background work.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs in the background.
pub trait Executor: Send + Sync + Debug {
    /// Queues `job`. It runs once, later, on another thread or inside [`Executor::run_one`]. With
    /// at least two threads, low jobs never occupy all of them.
    fn submit(&self, priority: Priority, job: Job);
    /// Queues `job` to run no earlier than `delay` from now (by the executor's clock). Timers that
    /// have not fired when the executor is dropped are dropped with it.
    fn submit_after(&self, delay: Duration, priority: Priority, job: Job);
    /// Runs one queued job on this thread, if this executor is stepped and has one that is due;
    /// returns whether it did. A pool of threads always answers `false`.
    ///
    /// Whoever waits for background work loops: check the condition; if not met, `run_one`; if that
    /// answered `false`, sleep on a condition variable with a time-out.
    fn run_one(&self) -> bool;
    /// How many jobs can run at the same time (1 for a stepped executor).
    fn threads(&self) -> usize;
}
