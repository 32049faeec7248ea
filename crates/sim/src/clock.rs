//! Clocks that are wrong, each in its own way.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use firn_io::clock::Clock;
use tokio::time::Instant;

/// What every wall clock of a simulation shows at its beginning, but for its offset.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// How far the wall clock of a machine is off, in milliseconds. It survives restarts.
pub type WallOffset = Arc<AtomicI64>;

/// Tokio's time, which jumps from timer to timer, as one start of a node sees it.
#[derive(Debug)]
pub struct SimClock {
    origin: Instant,
    rate_ppm: u64,
    /// Slept away by whoever blocks.
    slept_ns: AtomicU64,
    wall: WallOffset,
}

impl SimClock {
    /// A clock at this rate, a million being right.
    pub fn new(origin: Instant, rate_ppm: u64, wall: WallOffset) -> Self {
        Self {
            origin,
            rate_ppm,
            slept_ns: AtomicU64::new(0),
            wall,
        }
    }
}

impl Clock for SimClock {
    fn unix_ms(&self) -> u64 {
        let now = EPOCH_MS + self.monotonic().as_millis() as u64;
        now.saturating_add_signed(self.wall.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        let passed = Instant::now().duration_since(self.origin).as_nanos() as u64;
        let local = (u128::from(passed) * u128::from(self.rate_ppm) / 1_000_000) as u64;
        Duration::from_nanos(local + self.slept_ns.load(Ordering::Relaxed))
    }

    fn sleep(&self, duration: Duration) {
        let ns = duration.as_nanos() as u64;
        self.slept_ns.fetch_add(ns, Ordering::Relaxed);
    }
}
