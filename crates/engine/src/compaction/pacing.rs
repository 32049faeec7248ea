//! How fast writers may go while background work is behind.
//!
//! A log-structured tree accepts writes faster than it can compact them. Without a brake L0 grows
//! until reads suffer and the disk is full, and a brake that only knows "go" and "stop" makes writers
//! stand still for seconds (Luo and Carey, "On performance stability in LSM-based storage systems").
//! The pacer slows writers down early and gradually, to the rate that the background achieves.
//!
//! 1. After every change background work reports its [`Load`] with [`Pacer::update`].
//! 2. *Pressure* is how far the number of L0 files and the debt are between their knees (0) and
//!    their limits (1); it may be more. Up to the knee nobody is delayed.
//! 3. From the knee on there is a rate. It starts at the rate at which writes come in (memtables
//!    filled over time) and then follows the pressure by a proportional and integral rule in its
//!    logarithm: rising pressure lowers it by a factor, falling pressure raises it by the same; and
//!    with pressure above the middle it goes on falling, below the middle it goes on rising, until
//!    pressure stands still. The rate is then what the background can take.
//! 4. Memtables that wait for their flush have a rule of their own, as there are only a few of them:
//!    with two of the full size (three of that at which they are retired) the rate is a little over that of
//!    flushing, measured, so that the active one fills about when the next flush ends.
//! 5. [`Pacer::delay_for`] turns the rate into delays: each writer reserves the time that its bytes
//!    take after those before it.
//!
//! The rate never falls below a 64th of a memtable a second: writers are slowed, not stopped. (They
//! stop when no memtable is left; that is decided where they wait, not here.) In health the cost to a
//! writer is one relaxed load.
//!
//! All state is in memory; after a crash the pacer starts anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use firn_io::clock::Clock;
use parking_lot::Mutex;

/// L0 files per file of the trigger at which pacing begins: five times the trigger, as in RocksDB, whose trigger
/// is four.
const L0_KNEE: f64 = 5.0;
/// The same at which pressure is 1.
const L0_LIMIT: f64 = 9.0;
/// The L0 trigger unless [`Pacer::with_l0_trigger`] says otherwise.
const L0_TRIGGER: usize = 4;
/// Debt in memtables at which pacing begins: 64 GiB for memtables of 64 MiB.
const DEBT_KNEE: f64 = 1024.0;
/// The same at which pressure is 1.
const DEBT_LIMIT: f64 = 4096.0;
/// With small memtables debt counts from here.
const MIN_DEBT_KNEE: f64 = (1u64 << 30) as f64;
/// Waiting memtables, of full size, from which on the rate of flushing counts.
const WAITING_KNEE: f64 = 1.5;
/// Waiting and active memtables that there can be.
const WAITING_LIMIT: f64 = 3.0;
/// A rise of pressure by 1 divides the rate by e to this.
const PROPORTIONAL: f64 = 3.0;
/// A pressure of 1 too much divides the rate by e to this each second.
const INTEGRAL: f64 = 0.5;
/// The pressure at which the rate stays.
const SET_POINT: f64 = 0.5;
/// An update counts as at most this long after the last: while nothing is reported, nothing is known.
const MAX_STEP: f64 = 1.0;
/// Shorter delays are saved up: the system cannot sleep that shortly.
const MIN_DELAY: Duration = Duration::from_micros(500);
/// No write is delayed longer than this at once.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// How far behind the background is, over all trees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// L0 files of the tree that has most.
    pub l0_files: usize,
    /// Bytes of memtables that wait for their flush.
    pub waiting_memtable_bytes: u64,
    /// Bytes to compact until every level is within its size.
    pub debt_bytes: u64,
}

/// Bytes over time, recent ones counting more.
#[derive(Clone, Copy, Debug, Default)]
struct Throughput {
    bytes: f64,
    seconds: f64,
}

impl Throughput {
    /// Counts `bytes` that took `seconds`; what is `memory` bytes old counts half.
    fn add(&mut self, bytes: f64, seconds: f64, memory: f64) {
        self.bytes += bytes;
        self.seconds += seconds;
        if self.bytes > 2.0 * memory {
            let keep = memory / self.bytes;
            self.bytes *= keep;
            self.seconds *= keep;
        }
    }

    /// Bytes a second; `None` if nothing was measured.
    fn rate(&self) -> Option<f64> {
        (self.bytes > 0.0 && self.seconds > 0.0).then(|| self.bytes / self.seconds)
    }
}

#[derive(Debug, Default)]
struct State {
    load: Load,
    updated: Duration,
    pressure: f64,
    /// The rate that pressure asks for, in bytes a second.
    rate: Option<f64>,
    /// The rate at which writes came in lately, at its highest: times of rest do not count.
    incoming: Option<f64>,
    flushing: Throughput,
    /// When the last memtable was retired, and when the present flush began.
    retired: Duration,
    flush_began: Duration,
    /// When everything reserved so far is through.
    reserved_until: Duration,
}

/// Delays writers. Shared by all of them.
#[derive(Debug)]
pub struct Pacer {
    clock: Arc<dyn Clock>,
    memtable_bytes: f64,
    l0_trigger: f64,
    /// Bytes a second; 0 for no limit.
    rate: AtomicU64,
    state: Mutex<State>,
}

impl Pacer {
    /// A pacer without load. `memtable_bytes` is the size of a memtable, the unit of most limits.
    pub fn new(clock: Arc<dyn Clock>, memtable_bytes: u64) -> Self {
        let now = clock.monotonic();
        let state = State {
            updated: now,
            retired: now,
            flush_began: now,
            ..State::default()
        };
        Self {
            clock,
            memtable_bytes: memtable_bytes.max(1) as f64,
            l0_trigger: L0_TRIGGER as f64,
            rate: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    /// The same with limits for another number of L0 files that starts a compaction.
    #[must_use]
    pub fn with_l0_trigger(mut self, files: usize) -> Self {
        self.l0_trigger = files.max(L0_TRIGGER) as f64;
        self
    }

    /// How long a write of `bytes` should wait before it goes on; its bytes are then accounted for.
    #[inline]
    pub fn delay_for(&self, bytes: u64) -> Duration {
        match self.rate.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            rate => self.reserve(bytes, rate),
        }
    }

    /// Takes back the account of a write that was refused rather than delayed.
    pub fn give_back(&self, bytes: u64) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate > 0 {
            let mut state = self.state.lock();
            state.reserved_until = state.reserved_until.saturating_sub(time_of(bytes, rate));
        }
    }

    /// Bytes a second that writers may write; 0 for no limit.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    #[cold]
    fn reserve(&self, bytes: u64, rate: u64) -> Duration {
        let mut state = self.state.lock();
        let now = self.clock.monotonic();
        // What is reserved further ahead than anybody waits would only punish later writers.
        let until = state.reserved_until.max(now) + time_of(bytes, rate);
        state.reserved_until = until.min(now + MAX_DELAY);
        let delay = state.reserved_until - now;
        if delay < MIN_DELAY {
            Duration::ZERO
        } else {
            delay
        }
    }

    /// Learns how far behind the background is now.
    pub fn update(&self, load: Load) {
        let mut state = self.state.lock();
        let now = self.clock.monotonic();
        self.measure(&mut state, &load, now);
        let pressure = self.pressure(&load);
        let by_pressure = self.follow(&mut state, pressure, now);
        let by_flushes = self.flush_limit(&state, &load);
        state.load = load;
        state.pressure = pressure;
        state.updated = now;
        let limit = match (by_pressure, by_flushes) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        // At least 1: 0 means no limit.
        self.rate.store(
            limit.map_or(0, |rate| rate.max(1.0) as u64),
            Ordering::Relaxed,
        );
    }

    /// Counts memtables filled and flushed since the last update.
    fn measure(&self, state: &mut State, load: &Load, now: Duration) {
        let (before, after) = (
            state.load.waiting_memtable_bytes,
            load.waiting_memtable_bytes,
        );
        if after > before {
            let (bytes, seconds) = ((after - before) as f64, now.saturating_sub(state.retired));
            if bytes >= self.memtable_bytes / 2.0 && !seconds.is_zero() {
                let rate = bytes / seconds.as_secs_f64();
                state.incoming = Some((state.incoming.unwrap_or(0.0) * 0.8).max(rate));
            }
            state.retired = now;
            if before == 0 {
                state.flush_began = now;
            }
        } else if after < before {
            let seconds = now.saturating_sub(state.flush_began).as_secs_f64();
            state
                .flushing
                .add((before - after) as f64, seconds, 4.0 * self.memtable_bytes);
            state.flush_began = now;
        }
    }

    fn pressure(&self, load: &Load) -> f64 {
        let between = |value: f64, knee: f64, limit: f64| (value - knee) / (limit - knee);
        let l0 = load.l0_files as f64 / self.l0_trigger;
        let unit = self.memtable_bytes.max(MIN_DEBT_KNEE / DEBT_KNEE);
        let debt = load.debt_bytes as f64 / unit;
        between(l0, L0_KNEE, L0_LIMIT)
            .max(between(debt, DEBT_KNEE, DEBT_LIMIT))
            .max(0.0)
    }

    /// The rate after a change of pressure; `None` for no limit.
    fn follow(&self, state: &mut State, pressure: f64, now: Duration) -> Option<f64> {
        let seconds = now
            .saturating_sub(state.updated)
            .as_secs_f64()
            .min(MAX_STEP);
        if pressure == 0.0 {
            state.rate = None;
            return None;
        }
        let (lowest, highest) = (self.memtable_bytes / 64.0, self.memtable_bytes * 64.0);
        let mut rate = state.rate;
        if state.pressure == 0.0 && pressure > 0.0 {
            // Nobody is to notice that pacing begins.
            rate = Some(state.incoming.unwrap_or(highest));
        }
        let change = PROPORTIONAL * (pressure - state.pressure)
            + INTEGRAL * (pressure - SET_POINT) * seconds;
        state.rate = rate.map(|rate| (rate * (-change).exp()).clamp(lowest, highest));
        state.rate
    }

    /// The rate while memtables wait: a little over that of flushing, less as room gets short.
    fn flush_limit(&self, state: &State, load: &Load) -> Option<f64> {
        let waiting = load.waiting_memtable_bytes as f64 / self.memtable_bytes;
        if waiting <= WAITING_KNEE {
            return None;
        }
        let room = (WAITING_LIMIT - waiting).max(0.5);
        Some((state.flushing.rate()? * 1.5 * room).max(self.memtable_bytes / 2.0))
    }
}

fn time_of(bytes: u64, rate: u64) -> Duration {
    Duration::try_from_secs_f64(bytes as f64 / rate as f64)
        .unwrap_or(MAX_DELAY)
        .min(MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use firn_io::clock::ManualClock;

    use super::*;

    const MEMTABLE: u64 = 64 << 20;

    fn pacer() -> (Arc<ManualClock>, Pacer) {
        let clock = Arc::new(ManualClock::new(0));
        (clock.clone(), Pacer::new(clock, MEMTABLE))
    }

    fn l0(files: usize) -> Load {
        Load {
            l0_files: files,
            ..Load::default()
        }
    }

    #[test]
    fn health_is_not_delayed() {
        let (clock, pacer) = pacer();
        for load in [
            Load::default(),
            Load {
                l0_files: 20,
                waiting_memtable_bytes: MEMTABLE,
                debt_bytes: 64 << 30,
            },
        ] {
            clock.advance(Duration::from_secs(1));
            pacer.update(load);
            assert_eq!(
                (pacer.rate(), pacer.delay_for(1 << 40)),
                (0, Duration::ZERO)
            );
        }
    }

    /// Memtables fill in half a second and are flushed in a quarter; then L0 grows.
    fn fill(clock: &ManualClock, pacer: &Pacer) {
        for _ in 0..10 {
            pacer.update(Load {
                waiting_memtable_bytes: MEMTABLE,
                ..Load::default()
            });
            clock.advance(Duration::from_millis(250));
            pacer.update(Load::default());
            clock.advance(Duration::from_millis(250));
        }
    }

    #[test]
    fn pacing_begins_gently_and_tightens_without_cliffs() {
        let (clock, pacer) = pacer();
        fill(&clock, &pacer);
        pacer.update(l0(20));
        assert_eq!(pacer.rate(), 0);
        let incoming = (2 * MEMTABLE) as f64;
        let mut last = incoming * 1.1;
        for files in 21..100 {
            clock.advance(Duration::from_millis(500));
            pacer.update(l0(files));
            let rate = pacer.rate() as f64;
            assert!(
                rate <= last && rate >= (last * 0.5).min(last),
                "{files}: {last} to {rate}"
            );
            assert!(rate >= (MEMTABLE / 64) as f64);
            if files == 21 {
                assert!(rate > incoming * 0.8, "{rate}");
            }
            last = rate;
        }
        assert!(last < incoming / 100.0);
        pacer.update(l0(3));
        assert_eq!(
            (pacer.rate(), pacer.delay_for(1 << 30)),
            (0, Duration::ZERO)
        );
    }

    #[test]
    fn debt_counts_like_l0() {
        let (clock, pacer) = pacer();
        fill(&clock, &pacer);
        pacer.update(Load {
            debt_bytes: 80 << 30,
            ..Load::default()
        });
        let gentle = pacer.rate();
        pacer.update(Load {
            debt_bytes: 250 << 30,
            ..Load::default()
        });
        let tight = pacer.rate();
        assert!(
            gentle > MEMTABLE && tight > 0 && tight < gentle / 5,
            "{gentle} {tight}"
        );
        // Small memtables do not make a small debt a large one.
        let small = Pacer::new(clock, 64 << 10);
        small.update(Load {
            debt_bytes: 1 << 30,
            ..Load::default()
        });
        assert_eq!(small.rate(), 0);
    }

    #[test]
    fn rest_is_not_a_slow_writer() {
        let (clock, pacer) = pacer();
        fill(&clock, &pacer);
        clock.advance(Duration::from_secs(3600));
        fill(&clock, &pacer);
        pacer.update(l0(21));
        assert!(pacer.rate() > MEMTABLE, "{}", pacer.rate());
    }

    /// A model: writers go as fast as they may, but for 400 MB/s; each 64 MiB make an L0 file; the
    /// background takes one away each second.
    #[test]
    fn the_rate_settles_at_what_the_background_can_take() {
        let (clock, pacer) = pacer();
        let drained_per_second = MEMTABLE as f64;
        let (mut files, mut filling, mut written_late, mut last_update) = (0.0f64, 0.0, 0.0, 0.0);
        let mut rates = Vec::new();
        for tick in 0..20_000 {
            clock.advance(Duration::from_millis(10));
            let rate = match pacer.rate() {
                0 => 400e6,
                rate => (rate as f64).min(400e6),
            };
            filling += rate * 0.01;
            if tick >= 10_000 {
                written_late += rate * 0.01;
                rates.push(rate);
            }
            files = (files - 0.01).max(0.0);
            if filling >= MEMTABLE as f64 {
                filling -= MEMTABLE as f64;
                files += 1.0;
                let waiting = Load {
                    l0_files: files as usize,
                    ..Load::default()
                };
                pacer.update(Load {
                    waiting_memtable_bytes: MEMTABLE,
                    ..waiting
                });
                pacer.update(waiting);
            } else if tick as f64 - last_update >= 100.0 {
                last_update = tick as f64;
                pacer.update(l0(files as usize));
            }
            assert!(files < 37.0, "tick {tick}: {files}");
        }
        let average = written_late / 100.0;
        assert!(
            (average / drained_per_second - 1.0).abs() < 0.1,
            "{average}"
        );
        let (low, high) = rates
            .iter()
            .fold((f64::MAX, 0.0f64), |(l, h), &r| (l.min(r), h.max(r)));
        assert!(
            low > drained_per_second / 3.0 && high < drained_per_second * 3.0,
            "{low} {high}"
        );
    }

    #[test]
    fn waiting_memtables_slow_writers_to_the_rate_of_flushing() {
        let (clock, pacer) = pacer();
        let waiting = |n: u64| Load {
            waiting_memtable_bytes: n * MEMTABLE,
            ..Load::default()
        };
        // Nothing is known of flushes yet.
        pacer.update(waiting(2));
        assert_eq!(pacer.rate(), 0);
        clock.advance(Duration::from_secs(1));
        pacer.update(waiting(1));
        clock.advance(Duration::from_millis(100));
        pacer.update(waiting(2));
        let rate = pacer.rate();
        assert!(rate > MEMTABLE && rate < 2 * MEMTABLE, "{rate}");
        pacer.update(waiting(1));
        assert_eq!(pacer.rate(), 0);
        // A small, slow flush does not bring writers to a halt.
        for _ in 0..100 {
            let little = Load {
                waiting_memtable_bytes: 10,
                ..Load::default()
            };
            pacer.update(little);
            clock.advance(Duration::from_secs(10));
            pacer.update(Load::default());
        }
        pacer.update(waiting(2));
        assert!(pacer.rate() >= MEMTABLE / 2);
    }

    #[test]
    fn delays_add_up_to_the_rate() {
        let (clock, pacer) = pacer();
        fill(&clock, &pacer);
        pacer.update(l0(36));
        let rate = pacer.rate();
        assert!(rate > 0);
        let begin = clock.monotonic();
        let mut bytes = 0;
        while bytes < 2 * rate {
            bytes += 1000;
            let delay = pacer.delay_for(1000);
            assert!(delay.is_zero() || delay >= MIN_DELAY);
            clock.sleep(delay);
        }
        let seconds = (clock.monotonic() - begin).as_secs_f64();
        assert!((seconds - 2.0).abs() < 0.01, "{seconds}");
        // A large write and a crowd wait a bounded time, and leave no debt behind.
        for _ in 0..1000 {
            assert!(pacer.delay_for(u64::MAX) <= MAX_DELAY);
        }
        clock.advance(MAX_DELAY);
        assert_eq!(pacer.delay_for(1), Duration::ZERO);
        // What is given back is free for others.
        assert!(pacer.delay_for(rate / 2) >= Duration::from_millis(490));
        pacer.give_back(rate / 2);
        assert_eq!(pacer.delay_for(1), Duration::ZERO);
    }
}
