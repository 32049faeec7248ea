#![allow(
    clippy::disallowed_methods,
    reason = "this file is the door to the clock"
)]
//! Wall and monotonic time.
//!
//! [`SystemClock`] asks the operating system. [`ManualClock`] stands still until it is told to move:
//! both of its times start where the test says, [`ManualClock::advance`] moves them together,
//! [`ManualClock::set_unix_ms`] makes the wall clock jump alone, as an administrator or a time
//! daemon does.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tells the time.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since the Unix epoch, by the wall clock: may jump in both directions.
    fn unix_ms(&self) -> u64;
    /// Time since some fixed point, never running backwards.
    fn monotonic(&self) -> Duration;
    /// Waits. A manual clock advances itself instead.
    fn sleep(&self, duration: Duration);
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts at zero now.
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        // A wall clock set before 1970 reads as 1970.
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// A clock that moves only when told to. Threads may share it.
#[derive(Debug)]
pub struct ManualClock {
    monotonic_ns: AtomicU64,
    /// The wall clock's reading when the monotonic one read zero, in nanoseconds, modulo 2^64: the
    /// wall clock is this plus `monotonic_ns`, so advancing is one addition.
    unix_origin_ns: AtomicU64,
}

const NS_PER_MS: u64 = 1_000_000;

impl ManualClock {
    /// A clock whose wall reads `unix_ms` (at most the year 2554) and whose monotonic time is zero.
    pub fn new(unix_ms: u64) -> Self {
        Self {
            monotonic_ns: AtomicU64::new(0),
            unix_origin_ns: AtomicU64::new(unix_ms.saturating_mul(NS_PER_MS)),
        }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.monotonic_ns.fetch_add(ns, Ordering::SeqCst);
    }

    /// Makes the wall clock read `unix_ms`, forward or back; the monotonic one is unmoved.
    pub fn set_unix_ms(&self, unix_ms: u64) {
        let monotonic = self.monotonic_ns.load(Ordering::SeqCst);
        let origin = unix_ms.saturating_mul(NS_PER_MS).wrapping_sub(monotonic);
        self.unix_origin_ns.store(origin, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn unix_ms(&self) -> u64 {
        let monotonic = self.monotonic_ns.load(Ordering::SeqCst);
        self.unix_origin_ns
            .load(Ordering::SeqCst)
            .wrapping_add(monotonic)
            / NS_PER_MS
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.monotonic_ns.load(Ordering::SeqCst))
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_does_not_run_backwards() {
        let clock = SystemClock::new();
        let first = clock.monotonic();
        assert!(clock.monotonic() >= first);
        assert!(clock.unix_ms() > 1_600_000_000_000);
    }

    #[test]
    fn the_manual_clock_moves_when_told() {
        let clock = ManualClock::new(1_000);
        assert_eq!(
            (clock.unix_ms(), clock.monotonic()),
            (1_000, Duration::ZERO)
        );
        clock.advance(Duration::from_millis(5));
        clock.sleep(Duration::from_millis(7));
        assert_eq!(
            (clock.unix_ms(), clock.monotonic()),
            (1_012, Duration::from_millis(12))
        );
        clock.set_unix_ms(3);
        assert_eq!(
            (clock.unix_ms(), clock.monotonic()),
            (3, Duration::from_millis(12))
        );
        clock.advance(Duration::from_millis(1));
        assert_eq!(
            (clock.unix_ms(), clock.monotonic()),
            (4, Duration::from_millis(13))
        );
    }
}
