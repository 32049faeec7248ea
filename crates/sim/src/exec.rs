//! A node's background: jobs that are run one at a time, some time after they came.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use firn_io::clock::Clock;
use firn_io::exec::{Executor, Job, Priority, Stepper};
use firn_io::rng::Rng;
use tokio::sync::Notify;
use tokio::time::sleep;

/// A [`Stepper`] that says when there is something to do.
pub struct Workers {
    stepper: Stepper,
    clock: Arc<dyn Clock>,
    came: Notify,
    /// How long a step takes at most, in milliseconds.
    most_ms: Arc<AtomicU64>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stepper.fmt(f)
    }
}

impl Workers {
    /// Jobs are picked by the seed, and each takes up to so many milliseconds.
    pub fn new(seed: u64, clock: Arc<dyn Clock>, most_ms: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            stepper: Stepper::new(seed, Arc::clone(&clock)),
            clock,
            came: Notify::new(),
            most_ms,
        })
    }

    /// Works jobs off, for ever.
    pub async fn work(self: Arc<Self>, seed: u64) {
        let mut rng = Rng::new(seed);
        loop {
            let Some(due) = self.stepper.next_due() else {
                self.came.notified().await;
                continue;
            };
            let wait = due.saturating_sub(self.clock.monotonic());
            if !wait.is_zero() {
                // Another job may come first.
                let _ = tokio::time::timeout(wait, self.came.notified()).await;
                continue;
            }
            let most = self.most_ms.load(Ordering::Relaxed).max(1);
            sleep(Duration::from_micros(rng.between(100, most * 1000))).await;
            for _ in 0..rng.between(1, 3) {
                if !self.stepper.run_one() {
                    break;
                }
            }
        }
    }
}

impl Executor for Workers {
    fn submit(&self, priority: Priority, job: Job) {
        self.stepper.submit(priority, job);
        self.came.notify_one();
    }

    fn submit_after(&self, delay: Duration, priority: Priority, job: Job) {
        self.stepper.submit_after(delay, priority, job);
        self.came.notify_one();
    }

    fn run_one(&self) -> bool {
        self.stepper.run_one()
    }

    fn is_stepped(&self) -> bool {
        true
    }

    fn threads(&self) -> usize {
        1
    }
}
