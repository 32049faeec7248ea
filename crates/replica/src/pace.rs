//! How time passes for the tasks of a node: as it does, in production; slower, faster or not at all in
//! a simulation.
//!
//! A simulator runs many nodes in one runtime, so it cannot stop one by stopping its thread, nor give
//! it a clock of its own. Instead it starts a node with a [`Pace`]
//! ([`Node::start_paced`](crate::node::Node::start_paced)): every task of that node, and every task
//! that such a task starts, is polled through it.
//!
//! * While it is *paused* no task of the node is polled, and time goes on: the process stands still.
//! * Once it has *ended* none is polled any more, and all are dropped: the process is dead.
//! * Consensus measures time as the *rate* says: 1,050,000 parts per million is a clock that is 5 %
//!   fast. Its timers run by the same clock.
//!
//! Without a pace a task is spawned as it is, and reading the time costs one look at a variable of the
//! thread.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Pace>>> = const { RefCell::new(None) };
}

const MILLION: u64 = 1_000_000;

#[derive(Default)]
struct State {
    is_paused: bool,
    has_ended: bool,
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// The number of tasks at which the next look for finished ones is worth its while.
    look_at: usize,
}

/// See the module's page.
pub struct Pace {
    origin: Instant,
    rate_ppm: u64,
    state: Mutex<State>,
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace")
            .field("rate_ppm", &self.rate_ppm)
            .finish_non_exhaustive()
    }
}

/// Restores the pace of the thread, after a panic of the task too.
struct Restore(Option<Arc<Pace>>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl Pace {
    /// A pace whose clock runs at this rate, from now on.
    pub fn new(rate_ppm: u64) -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            rate_ppm: rate_ppm.max(1),
            state: Mutex::default(),
        })
    }

    /// Stops the node's tasks, until [`Pace::resume`].
    pub fn pause(&self) {
        self.state.lock().is_paused = true;
    }

    /// Lets the tasks go on.
    pub fn resume(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.is_paused = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether the tasks stand still.
    pub fn is_paused(&self) -> bool {
        self.state.lock().is_paused
    }

    /// Ends all tasks, wherever they are.
    pub fn end(&self) {
        let tasks = {
            let mut state = self.state.lock();
            state.has_ended = true;
            state.waiting.clear();
            std::mem::take(&mut state.tasks)
        };
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Runs a future as a task of the node.
    pub fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.spawn_on(&Handle::current(), future)
    }

    fn spawn_on<T: Send + 'static>(
        self: &Arc<Self>,
        handle: &Handle,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let task = handle.spawn(paced(Some(Arc::clone(self)), future));
        let state = &mut *self.state.lock();
        if state.has_ended {
            task.abort();
        } else {
            if state.tasks.len() >= state.look_at {
                state.tasks.retain(|task| !task.is_finished());
                state.look_at = 2 * state.tasks.len() + 64;
            }
            state.tasks.push(task.abort_handle());
        }
        task
    }

    fn poll<F: Future>(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        future: Pin<&mut F>,
    ) -> Poll<F::Output> {
        {
            let mut state = self.state.lock();
            if state.has_ended {
                return Poll::Pending;
            }
            if state.is_paused {
                state.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        let _restore = Restore(CURRENT.replace(Some(Arc::clone(self))));
        future.poll(context)
    }

    fn local(&self, now: Instant) -> Instant {
        if self.rate_ppm == MILLION {
            return now;
        }
        let passed = now.duration_since(self.origin).as_nanos() as u64;
        let local = u128::from(passed) * u128::from(self.rate_ppm) / u128::from(MILLION);
        self.origin + Duration::from_nanos(local as u64)
    }

    fn outside(&self, duration: Duration) -> Duration {
        if self.rate_ppm == MILLION || duration.is_zero() {
            return duration;
        }
        // Rounded up: whoever sleeps until a moment must find that it has come, or sleeps for ever
        // while no time passes.
        let ns = 2 + duration.as_nanos() * u128::from(MILLION) / u128::from(self.rate_ppm);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// Polls a future at a pace, if there is one.
pub(crate) async fn paced<F: Future>(pace: Option<Arc<Pace>>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(move |context| match &pace {
        Some(pace) => pace.poll(context, future.as_mut()),
        None => future.as_mut().poll(context),
    })
    .await
}

/// Spawns a task at a pace, if there is one.
pub(crate) fn spawn<T: Send + 'static>(
    handle: &Handle,
    pace: Option<&Arc<Pace>>,
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    match pace {
        Some(pace) => pace.spawn_on(handle, future),
        None => handle.spawn(future),
    }
}

/// The pace of the task that runs.
pub(crate) fn current() -> Option<Arc<Pace>> {
    CURRENT.with_borrow(Clone::clone)
}

/// The time, by the clock of the task that runs.
pub(crate) fn now() -> Instant {
    CURRENT.with_borrow(|pace| now_of(pace.as_ref()))
}

/// The time, by the clock of the node of this pace.
pub(crate) fn now_of(pace: Option<&Arc<Pace>>) -> Instant {
    let now = Instant::now();
    pace.map_or(now, |pace| pace.local(now))
}

/// How long a time by the clock of the task that runs is outside.
pub(crate) fn outside(duration: Duration) -> Duration {
    CURRENT.with_borrow(|pace| {
        pace.as_ref()
            .map_or(duration, |pace| pace.outside(duration))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::sleep;

    use super::*;

    fn simulate(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(work);
    }

    #[test]
    fn a_paused_node_stands_still_while_time_goes_on() {
        simulate(async {
            let pace = Pace::new(MILLION);
            let steps = Arc::new(AtomicU64::new(0));
            let count = Arc::clone(&steps);
            pace.spawn(async move {
                loop {
                    sleep(Duration::from_millis(10)).await;
                    // A task of a task is the node's too.
                    let count = Arc::clone(&count);
                    let handle = Handle::current();
                    spawn(&handle, current().as_ref(), async move {
                        count.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
            let seen = || steps.load(Ordering::Relaxed);
            sleep(Duration::from_millis(105)).await;
            let before = seen();
            assert!(before >= 9, "{before}");
            pace.pause();
            sleep(Duration::from_secs(1)).await;
            assert_eq!(seen(), before);
            pace.resume();
            sleep(Duration::from_millis(105)).await;
            assert!(seen() >= before + 9);
            pace.end();
            let last = seen();
            sleep(Duration::from_secs(1)).await;
            pace.resume();
            sleep(Duration::from_secs(1)).await;
            assert_eq!(seen(), last);
            assert!(pace.spawn(async {}).await.is_err());
        });
    }

    #[test]
    fn a_clock_may_be_fast() {
        simulate(async {
            let pace = Pace::new(1_100_000);
            let task = pace.spawn(async {
                let begin = now();
                sleep(Duration::from_secs(10)).await;
                (now() - begin, outside(Duration::from_secs(11)))
            });
            let (local, outside) = task.await.unwrap();
            assert_eq!(local.as_millis(), 11_000);
            assert_eq!(outside.as_millis(), 10_000);
            let begin = now();
            sleep(Duration::from_secs(1)).await;
            assert_eq!(now() - begin, Duration::from_secs(1));
        });
    }
}
