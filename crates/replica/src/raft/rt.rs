//! The asynchronous runtime of a node: tokio's tasks and timers, a watch channel that wakes in order,
//! and random numbers from a seed.
//!
//! A node runs on one thread, with a current-thread runtime. In a simulation all nodes share one such
//! thread with a clock that is paused: then tasks, timers and channels run in an order that depends
//! on nothing but the seeds, and each node's time passes at its own [`pace`].

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::sync::Arc;
use std::time::Duration;

use firn_io::rng::Rng;
use openraft_rt::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot};
use rand_core::TryRng;
use tokio::runtime::Handle;

use crate::pace::{self, Pace};
use crate::raft::watch::Watch;

thread_local! {
    static RNG: RefCell<Rng> = RefCell::new(Rng::new(0));
}

/// Stirs `seed` into the random numbers of this thread: elections are called after random times, so
/// no two nodes may draw the same ones.
pub(crate) fn seed(seed: u64) {
    RNG.with_borrow_mut(|rng| *rng = Rng::new(rng.next_u64() ^ seed));
}

/// Begins this thread's random numbers anew, for a simulation that is run more than once.
pub(crate) fn reset(seed: u64) {
    RNG.set(Rng::new(seed));
}

/// This thread's random numbers.
#[derive(Debug)]
pub(crate) struct ThreadRng;

impl TryRng for ThreadRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|bits| (bits >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(RNG.with_borrow_mut(Rng::next_u64))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        RNG.with_borrow_mut(|rng| rng.fill_bytes(bytes));
        Ok(())
    }
}

/// A moment, by the clock of the node that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LocalInstant(tokio::time::Instant);

impl LocalInstant {
    /// Now, by the clock of the node of this pace, whoever asks.
    pub(crate) fn of(pace: Option<&Arc<Pace>>) -> Self {
        Self(pace::now_of(pace))
    }
}

impl Add<Duration> for LocalInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

impl AddAssign<Duration> for LocalInstant {
    fn add_assign(&mut self, duration: Duration) {
        self.0 += duration;
    }
}

impl Sub<Duration> for LocalInstant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0 - duration)
    }
}

impl Sub for LocalInstant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.duration_since(earlier.0)
    }
}

impl SubAssign<Duration> for LocalInstant {
    fn sub_assign(&mut self, duration: Duration) {
        self.0 -= duration;
    }
}

impl openraft_rt::Instant for LocalInstant {
    fn now() -> Self {
        Self(pace::now())
    }
}

/// The runtime. A value of it is made by the library's own tests only: nodes run on the runtime that
/// they are started in.
pub(crate) struct Runtime(tokio::runtime::Runtime);

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runtime")
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = LocalInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = ThreadRng;
    type Mpsc = TokioMpsc;
    type Watch = Watch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        pace::spawn(&Handle::current(), pace::current().as_ref(), future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(pace::outside(duration))
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Self::sleep(deadline - <LocalInstant as openraft_rt::Instant>::now())
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout(pace::outside(duration), future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        let left = deadline - <LocalInstant as openraft_rt::Instant>::now();
        Self::timeout(left, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> ThreadRng {
        ThreadRng
    }

    fn new(_threads: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        #[allow(
            clippy::expect_used,
            reason = "for tests only; production hands one in"
        )]
        Self(runtime.expect("a thread can have a runtime"))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_what_the_library_asks_of_a_runtime() {
        openraft_rt::testing::Suite::<Runtime>::test_all();
    }

    #[test]
    fn a_seed_decides_and_nodes_differ() {
        let draw = |seeds: &[u64]| {
            RNG.set(Rng::new(0));
            seeds.iter().for_each(|&s| seed(s));
            ThreadRng.try_next_u64().unwrap()
        };
        assert_eq!(draw(&[1, 2]), draw(&[1, 2]));
        assert_ne!(draw(&[1, 2]), draw(&[1, 3]));
        assert_ne!(draw(&[1]), draw(&[1, 1]));
    }
}
