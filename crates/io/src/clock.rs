//! Wall and monotonic time.

use std::fmt::Debug;
use std::time::Duration;

/// Tells the time.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since the Unix epoch, by the wall clock: may jump in both directions.
    fn unix_ms(&self) -> u64;
    /// Time since some fixed point, never running backwards.
    fn monotonic(&self) -> Duration;
    /// Waits. A manual clock advances itself instead.
    fn sleep(&self, duration: Duration);
}
