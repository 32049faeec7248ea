#![allow(
    clippy::disallowed_methods,
    reason = "this file is the door to threads"
)]
//! Background work: a pool of threads in production, one step at a time in tests.
//!
//! The engine never starts a thread. It submits jobs here; a job runs to its end and may submit
//! further ones. [`ThreadPool`] runs them on threads of its own; [`Stepper`] queues them until
//! somebody calls [`Executor::run_one`], so that a test decides every interleaving of background
//! work from a seed.
//!
//! Code that waits for background work must make progress under both: see [`Executor::run_one`].

use std::cell::Cell;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt::{self, Debug};
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::clock::Clock;
use crate::priority;
use crate::rng::Rng;

/// Lets another thread that waits for the processor run now, if there is one.
///
/// A kernel looks at its clock 100 to 1,000 times a second, and where more threads have work than there are
/// processors, those that never wait for anything change places then and no sooner. Whoever gives way more
/// often makes the others wait for a shorter time, and gets less than its share beside those who never do. Costs
/// a system call, less than a microsecond, if nobody waits. Does nothing in a [medium](Priority::Medium) job, for
/// whose end others wait.
pub fn give_way() {
    if !IS_PROMPT.get() {
        thread::yield_now();
    }
}

thread_local! {
    /// Whether this is a thread for medium jobs.
    static IS_PROMPT: Cell<bool> = const { Cell::new(false) };
}

/// How urgent a job is. Where threads are short, a more urgent job goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for it: log preparation, log sync, memtable flush.
    High,
    /// It spares others more work than it is: a compaction of what reads ask too often.
    Medium,
    /// It is done for later: other compactions and the like.
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
    /// have not fired when the executor is dropped are dropped with it. A job that owns a handle to
    /// its executor keeps it alive until then, so long timers should own weak ones.
    fn submit_after(&self, delay: Duration, priority: Priority, job: Job);
    /// Runs one queued job on this thread, if this executor is stepped and has one that is due;
    /// returns whether it did. A pool of threads always answers `false`.
    ///
    /// Whoever waits for background work loops: check the condition; if not met, `run_one`; if that
    /// answered `false`, sleep on a condition variable with a time-out.
    fn run_one(&self) -> bool;
    /// Whether jobs run only inside [`Executor::run_one`].
    fn is_stepped(&self) -> bool {
        false
    }
    /// How many jobs are to run at the same time (1 for a stepped executor).
    fn threads(&self) -> usize;
}

/// A job that waits for its time. Ordered so that the earliest is the greatest (the top of a
/// [`BinaryHeap`]); equal times in order of submission.
struct Timer {
    due: Instant,
    order: u64,
    priority: Priority,
    job: Job,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

#[derive(Default)]
struct PoolState {
    high: VecDeque<Job>,
    medium: VecDeque<Job>,
    low: VecDeque<Job>,
    timers: BinaryHeap<Timer>,
    timers_made: u64,
    /// Threads that take any job.
    common: usize,
    idle_urgent: usize,
    idle_prompt: usize,
    idle_common: usize,
    /// Until when idle threads wait, of those that wait for a timer.
    deadlines: Vec<Instant>,
    panics: u64,
    closed: bool,
}

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// High jobs only.
    Urgent,
    /// Medium jobs, and high ones for which no urgent thread is free.
    Prompt,
    /// Low jobs, and others for which no other thread is free.
    Common,
}

impl PoolState {
    fn queue(&mut self, priority: Priority, job: Job) {
        match priority {
            Priority::High => self.high.push_back(job),
            Priority::Medium => self.medium.push_back(job),
            Priority::Low => self.low.push_back(job),
        }
    }

    /// Moves timers that are due into the queues; whether there were any.
    fn fire(&mut self) -> bool {
        if self.timers.is_empty() {
            return false;
        }
        let (now, mut fired) = (Instant::now(), false);
        while self.timers.peek().is_some_and(|timer| timer.due <= now) {
            if let Some(timer) = self.timers.pop() {
                self.queue(timer.priority, timer.job);
                fired = true;
            }
        }
        fired
    }

    /// Whether an idle thread waits for the next timer, or an earlier moment, already: it need not be
    /// woken for each job that another one takes. One that was woken for a job sees to it when it takes
    /// that. True if there is no timer.
    fn is_next_timer_watched(&self) -> bool {
        let Some(next) = self.timers.peek() else {
            return true;
        };
        self.deadlines.iter().any(|&deadline| deadline <= next.due)
    }

    fn next(&mut self, role: Role) -> Option<Job> {
        let is_alone = self.common == 0;
        let takes_high = role == Role::Urgent || self.idle_urgent == 0;
        let takes_medium = match role {
            Role::Urgent => is_alone,
            Role::Prompt => true,
            // An idle thread of the other role was told of it and is about to take it.
            Role::Common => self.idle_prompt == 0,
        };
        let takes_low = role == Role::Common || (is_alone && role == Role::Urgent);
        let queues = [
            (takes_high, &mut self.high),
            (takes_medium, &mut self.medium),
            (takes_low, &mut self.low),
        ];
        let mut queues = queues.into_iter().filter(|(takes, _)| *takes);
        queues.find_map(|(_, queue)| queue.pop_front())
    }
}

#[derive(Default)]
struct PoolShared {
    state: Mutex<PoolState>,
    /// Signalled when there may be something to do for one more thread of the role.
    wake_urgent: Condvar,
    wake_prompt: Condvar,
    wake_common: Condvar,
}

impl PoolShared {
    /// Wakes a thread for a high job, or to look after the timers.
    fn wake_for_high(&self, state: &PoolState) {
        if state.idle_urgent > 0 {
            self.wake_urgent.notify_one();
        } else if state.idle_prompt > 0 {
            self.wake_prompt.notify_one();
        } else if state.idle_common > 0 {
            self.wake_common.notify_one();
        }
    }

    fn wake_for_medium(&self, state: &PoolState) {
        if state.idle_prompt > 0 {
            self.wake_prompt.notify_one();
        } else {
            self.wake_for_low(state);
        }
    }

    fn wake_for_low(&self, state: &PoolState) {
        if state.idle_common > 0 {
            self.wake_common.notify_one();
        } else if state.common == 0 {
            self.wake_urgent.notify_one();
        }
    }

    /// What each thread does until the pool closes.
    fn work(&self, role: Role) {
        let mut state = self.state.lock();
        while !state.closed {
            let fired = state.fire();
            let job = state.next(role);
            // This thread may be busy from now on, and what is left may be for another role: somebody
            // else must look after it, in particular wait for the next timer in its place.
            if fired || job.is_some() {
                if !state.high.is_empty() || !state.is_next_timer_watched() {
                    self.wake_for_high(&state);
                }
                if !state.medium.is_empty() {
                    self.wake_for_medium(&state);
                }
                if !state.low.is_empty() {
                    self.wake_for_low(&state);
                }
            }
            let Some(job) = job else {
                self.wait(&mut state, role);
                continue;
            };
            drop(state);
            let panicked = catch_unwind(AssertUnwindSafe(job)).is_err();
            state = self.state.lock();
            state.panics += u64::from(panicked);
        }
    }

    fn wait(&self, state: &mut parking_lot::MutexGuard<'_, PoolState>, role: Role) {
        let wake = match role {
            Role::Urgent => {
                state.idle_urgent += 1;
                &self.wake_urgent
            }
            Role::Prompt => {
                state.idle_prompt += 1;
                &self.wake_prompt
            }
            Role::Common => {
                state.idle_common += 1;
                &self.wake_common
            }
        };
        match state.timers.peek().map(|timer| timer.due) {
            Some(due) => {
                state.deadlines.push(due);
                let _ = wake.wait_until(state, due);
                if let Some(at) = state.deadlines.iter().position(|&other| other == due) {
                    state.deadlines.swap_remove(at);
                }
            }
            None => wake.wait(state),
        }
        match role {
            Role::Urgent => state.idle_urgent -= 1,
            Role::Prompt => state.idle_prompt -= 1,
            Role::Common => state.idle_common -= 1,
        }
    }
}

/// Threads that run jobs: high ones first, each kind in order of submission.
///
/// * A pool of two or more has two threads that are given high jobs only, so that one never
///   waits for a compaction to end; one for medium jobs; and one less than asked for for low jobs. These run
///   at a lower priority of the operating system (on Linux: ten steps nicer), so that a compaction takes idle
///   processors first and seldom pushes a writer aside. Both kinds take more urgent jobs, too, while all
///   threads for those are busy.
/// * A job that panics is over; its panic is counted ([`ThreadPool::panics`]) and the thread goes
///   on. Whoever waits for the job must learn of it by other means (a guard inside of the job).
/// * Dropping the pool lets running jobs end, joins the threads, then drops the jobs that did not
///   start. When the last handle is dropped by a job, that is, on a thread of the pool, this one
///   thread is not joined; it ends after the job.
pub struct ThreadPool {
    shared: Arc<PoolShared>,
    threads: Vec<JoinHandle<()>>,
    /// As asked for.
    jobs: usize,
}

/// Threads for high jobs, if there are others, too: one for a flush and one for the log meanwhile.
const URGENT_THREADS: usize = 2;
/// Threads for medium jobs, of which there are few.
const PROMPT_THREADS: usize = 1;

impl ThreadPool {
    /// A pool that runs `threads` jobs at a time, of which all but one may be low (at least one; it
    /// has two threads more than that for others, unless it is one).
    ///
    /// If the system refuses some of the threads, the pool has fewer; if it refuses all, this
    /// panics, as `std::thread::spawn` does: nothing could run.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(PoolShared::default());
        let mut handles = Vec::new();
        let mut refused = None;
        let common = threads.max(1) - 1;
        let roles: &[(Role, usize)] = match common {
            0 => &[(Role::Urgent, 1)],
            _ => &[
                (Role::Urgent, URGENT_THREADS),
                (Role::Prompt, PROMPT_THREADS),
                (Role::Common, common),
            ],
        };
        let roles = roles
            .iter()
            .flat_map(|&(role, count)| iter::repeat_n(role, count));
        for (i, role) in roles.enumerate() {
            let worker = Arc::clone(&shared);
            let builder = thread::Builder::new().name(format!("firn-bg-{i}"));
            let run = move || {
                match role {
                    Role::Urgent => {}
                    Role::Prompt => IS_PROMPT.set(true),
                    Role::Common => priority::lower(),
                }
                worker.work(role);
            };
            match builder.spawn(run) {
                Ok(handle) => {
                    handles.push(handle);
                    shared.state.lock().common += usize::from(role == Role::Common);
                }
                Err(error) => refused = Some(error),
            }
        }
        assert!(
            !handles.is_empty(),
            "cannot start any background thread: {refused:?}"
        );
        Self {
            shared,
            threads: handles,
            jobs: threads.max(1),
        }
    }

    /// How many jobs ended by a panic.
    pub fn panics(&self) -> u64 {
        self.shared.state.lock().panics
    }
}

impl Executor for ThreadPool {
    fn submit(&self, priority: Priority, job: Job) {
        let mut state = self.shared.state.lock();
        state.queue(priority, job);
        match priority {
            Priority::High => self.shared.wake_for_high(&state),
            Priority::Medium => self.shared.wake_for_medium(&state),
            Priority::Low => self.shared.wake_for_low(&state),
        }
    }

    fn submit_after(&self, delay: Duration, priority: Priority, job: Job) {
        let Some(due) = Instant::now().checked_add(delay) else {
            return; // Beyond the end of time: it never fires.
        };
        let mut state = self.shared.state.lock();
        let order = state.timers_made;
        state.timers_made += 1;
        state.timers.push(Timer {
            due,
            order,
            priority,
            job,
        });
        // A thread that waits for the earliest timer may have to wait for this one instead.
        self.shared.wake_for_high(&state);
    }

    fn run_one(&self) -> bool {
        false
    }

    fn threads(&self) -> usize {
        self.jobs
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.wake_urgent.notify_all();
        self.shared.wake_prompt.notify_all();
        self.shared.wake_common.notify_all();
        let this_thread = thread::current().id();
        for handle in self.threads.drain(..) {
            if handle.thread().id() != this_thread {
                // A worker catches the panics of its jobs, so there is nothing to learn here.
                let _ = handle.join();
            }
        }
        // The jobs that did not start are dropped outside of the lock: what they own may be big.
        let dropped = {
            let mut state = self.shared.state.lock();
            let state = &mut *state;
            (
                std::mem::take(&mut state.high),
                std::mem::take(&mut state.medium),
                std::mem::take(&mut state.low),
                std::mem::take(&mut state.timers),
            )
        };
        drop(dropped);
    }
}

impl Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("ThreadPool")
            .field("threads", &self.threads.len())
            .field("queued_high", &state.high.len())
            .field("queued_medium", &state.medium.len())
            .field("queued_low", &state.low.len())
            .field("timers", &state.timers.len())
            .finish_non_exhaustive()
    }
}

struct Step {
    /// By the stepper's clock.
    due: Duration,
    priority: Priority,
    job: Job,
}

struct StepperState {
    rng: Rng,
    queue: Vec<Step>,
}

/// An executor without threads: jobs wait until somebody calls [`Executor::run_one`], which picks
/// one of those that are due by the seed. The same seed and the same calls give the same order.
///
/// A panic of a job passes through `run_one`: in a test it must not go unseen.
pub struct Stepper {
    clock: Arc<dyn Clock>,
    high_first: bool,
    state: Mutex<StepperState>,
}

impl Stepper {
    /// A stepper that picks among all due jobs, whatever their priority: a priority is a hint, and
    /// a program must be right under every order.
    pub fn new(seed: u64, clock: Arc<dyn Clock>) -> Self {
        let state = StepperState {
            rng: Rng::new(seed),
            queue: Vec::new(),
        };
        Self {
            clock,
            high_first: false,
            state: Mutex::new(state),
        }
    }

    /// A stepper that runs another job only when no high one is due, as [`ThreadPool`] does.
    pub fn high_first(seed: u64, clock: Arc<dyn Clock>) -> Self {
        Self {
            high_first: true,
            ..Self::new(seed, clock)
        }
    }

    /// How many jobs wait, due or not.
    pub fn pending(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// When the earliest waiting job is due, by the clock's monotonic time. A simulator whose
    /// `run_one` answers `false` advances its clock to here.
    pub fn next_due(&self) -> Option<Duration> {
        self.state.lock().queue.iter().map(|step| step.due).min()
    }

    /// Runs jobs until none is due, including those that jobs submit; returns how many ran.
    pub fn run_all(&self) -> usize {
        let mut ran = 0;
        while self.run_one() {
            ran += 1;
        }
        ran
    }

    /// Drops all jobs that wait, due or not, as the death of the process does; returns how many.
    pub fn clear(&self) -> usize {
        let dropped = std::mem::take(&mut self.state.lock().queue);
        dropped.len()
    }

    fn pick(&self) -> Option<Job> {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let StepperState { rng, queue } = &mut *state;
        let is_due = |step: &Step| step.due <= now;
        let is_high = |step: &Step| step.priority == Priority::High;
        let only_high = self.high_first && queue.iter().any(|step| is_due(step) && is_high(step));
        let candidate = |step: &Step| is_due(step) && (!only_high || is_high(step));
        let count = queue.iter().filter(|step| candidate(step)).count();
        if count == 0 {
            return None;
        }
        let chosen = rng.index(count);
        let (at, _) = queue
            .iter()
            .enumerate()
            .filter(|(_, step)| candidate(step))
            .nth(chosen)?;
        Some(queue.remove(at).job)
    }
}

impl Executor for Stepper {
    fn is_stepped(&self) -> bool {
        true
    }

    fn submit(&self, priority: Priority, job: Job) {
        self.submit_after(Duration::ZERO, priority, job);
    }

    fn submit_after(&self, delay: Duration, priority: Priority, job: Job) {
        let due = self.clock.monotonic().saturating_add(delay);
        self.state.lock().queue.push(Step { due, priority, job });
    }

    fn run_one(&self) -> bool {
        // The lock is free while the job runs: it may submit, and it may wait by stepping.
        match self.pick() {
            Some(job) => {
                job();
                true
            }
            None => false,
        }
    }

    fn threads(&self) -> usize {
        1
    }
}

impl Debug for Stepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stepper")
            .field("pending", &self.pending())
            .field("high_first", &self.high_first)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::clock::ManualClock;

    /// Long enough that only a broken pool reaches it.
    const LIMIT: Duration = Duration::from_secs(60);

    /// A job that says that it has started and goes on when told.
    fn gate(started: Sender<()>) -> (Job, Sender<()>) {
        let (open, wait): (Sender<()>, Receiver<()>) = channel();
        let job = Box::new(move || {
            started.send(()).unwrap();
            let _ = wait.recv();
        });
        (job, open)
    }

    #[test]
    fn low_jobs_leave_a_thread_to_high_ones() {
        let pool = ThreadPool::new(3);
        let (started, starts) = channel();
        let mut gates = Vec::new();
        for _ in 0..5 {
            let (job, open) = gate(started.clone());
            pool.submit(Priority::Low, job);
            gates.push(open);
        }
        starts.recv_timeout(LIMIT).unwrap();
        starts.recv_timeout(LIMIT).unwrap();
        // All the low jobs that may run are running, and a high one comes through.
        let (done, dones) = channel();
        pool.submit(Priority::High, Box::new(move || done.send(()).unwrap()));
        dones.recv_timeout(LIMIT).unwrap();
        assert!(starts.try_recv().is_err());
        assert_eq!(pool.shared.state.lock().low.len(), 3);
        drop(gates);
        for _ in 0..3 {
            starts.recv_timeout(LIMIT).unwrap();
        }
    }

    #[test]
    fn medium_jobs_have_a_thread_of_their_own_and_take_one_of_the_low_ones() {
        let pool = ThreadPool::new(2);
        let (started, starts) = channel();
        let mut gates = VecDeque::new();
        let mut submit = |priority| {
            let (job, open) = gate(started.clone());
            pool.submit(priority, job);
            gates.push_back(open);
        };
        // A low job runs, and a medium one beside it.
        submit(Priority::Low);
        starts.recv_timeout(LIMIT).unwrap();
        submit(Priority::Medium);
        starts.recv_timeout(LIMIT).unwrap();
        // Both threads are busy: these wait, whatever the urgent threads do.
        submit(Priority::Low);
        submit(Priority::Medium);
        let (done, dones) = channel();
        pool.submit(Priority::High, Box::new(move || done.send(()).unwrap()));
        dones.recv_timeout(LIMIT).unwrap();
        assert!(starts.try_recv().is_err());
        // The thread for low jobs takes the medium one first.
        drop(gates.pop_front());
        starts.recv_timeout(LIMIT).unwrap();
        {
            let state = pool.shared.state.lock();
            assert_eq!((state.medium.len(), state.low.len()), (0, 1));
        }
        // That for medium ones never takes a low one.
        drop(gates.pop_front());
        while pool.shared.state.lock().idle_prompt == 0 {
            thread::yield_now();
        }
        assert_eq!(pool.shared.state.lock().low.len(), 1);
        drop(gates);
        starts.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn one_thread_runs_all_kinds_high_ones_first() {
        let pool = ThreadPool::new(1);
        let (started, starts) = channel();
        let (job, open) = gate(started);
        pool.submit(Priority::Low, job);
        starts.recv_timeout(LIMIT).unwrap();
        let (done, dones) = channel();
        let order = [
            (Priority::Low, "low 1"),
            (Priority::Medium, "medium"),
            (Priority::High, "high 1"),
            (Priority::Low, "low 2"),
            (Priority::High, "high 2"),
        ];
        for (priority, name) in order {
            let done = done.clone();
            pool.submit(priority, Box::new(move || done.send(name).unwrap()));
        }
        open.send(()).unwrap();
        let ran: Vec<_> = (0..5).map(|_| dones.recv_timeout(LIMIT).unwrap()).collect();
        assert_eq!(ran, ["high 1", "high 2", "medium", "low 1", "low 2"]);
    }

    #[test]
    fn a_panic_ends_the_job_and_not_the_pool() {
        let pool = ThreadPool::new(2);
        for _ in 0..10 {
            pool.submit(Priority::Low, Box::new(|| panic!("on purpose")));
        }
        let (done, dones) = channel();
        pool.submit(Priority::Low, Box::new(move || done.send(()).unwrap()));
        // Low jobs run one at a time here, in order.
        dones.recv_timeout(LIMIT).unwrap();
        assert_eq!(pool.panics(), 10);
    }

    #[test]
    fn timers_fire_and_far_ones_never_do() {
        let pool = ThreadPool::new(1);
        let (done, dones) = channel();
        for ms in [30, 10, 20, 0] {
            let done = done.clone();
            let job = Box::new(move || done.send(ms).unwrap());
            pool.submit_after(Duration::from_millis(ms), Priority::High, job);
        }
        let never = Box::new(|| panic!("fired"));
        pool.submit_after(Duration::MAX, Priority::High, never);
        let ran: BTreeSet<u64> = (0..4).map(|_| dones.recv_timeout(LIMIT).unwrap()).collect();
        assert_eq!(ran.len(), 4);
    }

    #[test]
    fn a_timer_fires_whichever_threads_are_busy_until_it_does() {
        let pool = ThreadPool::new(2);
        for round in 0..200_u64 {
            let (fired, see) = channel::<()>();
            let see = Arc::new(Mutex::new(see));
            let (done, all) = channel();
            let wait = || {
                let (see, done) = (Arc::clone(&see), done.clone());
                Box::new(move || {
                    let heard = see.lock().recv_timeout(LIMIT);
                    done.send(heard.is_ok()).unwrap();
                })
            };
            let timer = Box::new(move || fired.send(()).and_then(|()| fired.send(())).unwrap());
            // Both threads for high jobs are taken before, between, or after the timer is set.
            let before = round % 3;
            (0..before).for_each(|_| pool.submit(Priority::High, wait()));
            let delay = Duration::from_micros(round * 5);
            pool.submit_after(delay, Priority::High, timer);
            (before..2).for_each(|_| pool.submit(Priority::High, wait()));
            for _ in 0..2 {
                assert!(all.recv().unwrap(), "round {round}: the timer never fired");
            }
        }
    }

    #[test]
    fn a_timer_fires_though_the_thread_that_waited_for_it_is_busy() {
        let pool = ThreadPool::new(2);
        let (started, starts) = channel();
        let (fired, fires) = channel();
        let job = Box::new(move || fired.send(()).unwrap());
        pool.submit_after(Duration::from_millis(20), Priority::High, job);
        let (job, open) = gate(started);
        pool.submit(Priority::High, job);
        starts.recv_timeout(LIMIT).unwrap();
        fires.recv_timeout(LIMIT).unwrap();
        drop(open);
    }

    /// Counts how often it is dropped.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn drop_waits_for_running_jobs_and_drops_the_others() {
        let pool = ThreadPool::new(1);
        let (started, starts) = channel();
        let (job, open) = gate(started);
        pool.submit(Priority::Low, job);
        starts.recv_timeout(LIMIT).unwrap();
        let dropped = Arc::new(AtomicUsize::new(0));
        let ran = Arc::new(AtomicUsize::new(0));
        for i in 0..10 {
            let (guard, ran) = (Counted(Arc::clone(&dropped)), Arc::clone(&ran));
            let job = Box::new(move || {
                let _guard = guard;
                ran.fetch_add(1, Ordering::SeqCst);
            });
            match i % 3 {
                0 => pool.submit(Priority::High, job),
                1 => pool.submit(Priority::Low, job),
                _ => pool.submit_after(Duration::from_secs(3600), Priority::Low, job),
            }
        }
        let shared = Arc::clone(&pool.shared);
        let dropper = thread::spawn(move || drop(pool));
        // The pool is closing before the running job may end, so nothing else starts.
        while !shared.state.lock().closed {
            thread::yield_now();
        }
        assert_eq!(dropped.load(Ordering::SeqCst), 0);
        open.send(()).unwrap();
        dropper.join().unwrap();
        assert_eq!(
            (ran.load(Ordering::SeqCst), dropped.load(Ordering::SeqCst)),
            (0, 10)
        );
    }

    #[test]
    fn a_job_may_drop_the_pool_that_runs_it() {
        for threads in [1, 3] {
            let pool: Arc<dyn Executor> = Arc::new(ThreadPool::new(threads));
            let (go, wait) = channel::<()>();
            let (done, dones) = channel();
            let mine = Arc::clone(&pool);
            pool.submit(
                Priority::High,
                Box::new(move || {
                    wait.recv().unwrap();
                    drop(mine);
                    done.send(()).unwrap();
                }),
            );
            drop(pool);
            go.send(()).unwrap();
            dones.recv_timeout(LIMIT).unwrap();
        }
    }

    /// The order in which jobs ran that submit others and set timers.
    fn stepped(seed: u64, high_first: bool) -> Vec<u32> {
        let clock = Arc::new(ManualClock::new(0));
        let stepper = Arc::new(if high_first {
            Stepper::high_first(seed, clock.clone())
        } else {
            Stepper::new(seed, clock.clone())
        });
        let ran = Arc::new(Mutex::new(Vec::new()));
        for i in 0..10 {
            let (ran, again) = (Arc::clone(&ran), Arc::downgrade(&stepper));
            let priority = if i < 5 { Priority::Low } else { Priority::High };
            let job = Box::new(move || {
                ran.lock().push(i);
                let Some(again) = again.upgrade() else { return };
                again.submit(Priority::Low, Box::new(move || ran.lock().push(100 + i)));
            });
            stepper.submit(priority, job);
        }
        let late = Arc::clone(&ran);
        let job = Box::new(move || late.lock().push(999));
        stepper.submit_after(Duration::from_secs(5), Priority::High, job);
        assert_eq!(stepper.pending(), 11);
        assert_eq!(stepper.run_all(), 20);
        assert_eq!((stepper.pending(), stepper.run_one()), (1, false));
        assert_eq!(stepper.next_due(), Some(Duration::from_secs(5)));
        clock.advance(Duration::from_secs(5));
        assert!(stepper.run_one() && !stepper.run_one());
        assert_eq!(stepper.next_due(), None);
        ran.lock().clone()
    }

    #[test]
    fn a_stepper_runs_in_the_order_of_its_seed() {
        assert_eq!(stepped(1, false), stepped(1, false));
        assert_ne!(stepped(1, false), stepped(2, false));
        let mut sorted = stepped(1, false);
        assert_eq!(sorted.last(), Some(&999));
        sorted.sort_unstable();
        let expected: Vec<u32> = (0..10).chain(100..110).chain([999]).collect();
        assert_eq!(sorted, expected);
        // A low job may come before a high one, unless it is asked for otherwise.
        assert!((0..20).any(|seed| stepped(seed, false)[..5].iter().any(|&i| i < 5)));
        assert!((0..20).all(|seed| {
            stepped(seed, true)[..5]
                .iter()
                .all(|&i| (5..10).contains(&i))
        }));
    }

    #[test]
    fn clearing_a_stepper_drops_what_waits() {
        let stepper = Stepper::new(0, Arc::new(ManualClock::new(0)));
        let dropped = Arc::new(AtomicUsize::new(0));
        let (now, later) = (Counted(Arc::clone(&dropped)), Counted(Arc::clone(&dropped)));
        stepper.submit(Priority::High, Box::new(move || drop(now)));
        stepper.submit_after(LIMIT, Priority::Low, Box::new(move || drop(later)));
        assert_eq!(stepper.clear(), 2);
        assert_eq!((dropped.load(Ordering::SeqCst), stepper.pending()), (2, 0));
        assert!(!stepper.run_one());
    }

    #[test]
    fn a_job_may_wait_by_stepping() {
        let stepper = Arc::new(Stepper::new(0, Arc::new(ManualClock::new(0))));
        let (done, dones) = channel();
        let mine = Arc::downgrade(&stepper);
        stepper.submit(
            Priority::High,
            Box::new(move || {
                let mine = mine.upgrade().unwrap();
                let inner = done.clone();
                mine.submit(
                    Priority::Low,
                    Box::new(move || inner.send("inner").unwrap()),
                );
                assert!(mine.run_one());
                done.send("outer").unwrap();
            }),
        );
        assert!(stepper.run_one() && !stepper.run_one());
        assert_eq!(dones.try_iter().collect::<Vec<_>>(), ["inner", "outer"]);
    }
}
