//! When to hold the next entry up for a moment, so that more writes share it.
//!
//! An entry costs the nodes of a cluster many times what a write in it costs: messages to and fro, a sync on
//! each node, and the wake-ups around them. Clients that wait for an answer before they write again come back
//! together, soon after the entry with their last writes is done. Whoever then proposes at once what comes
//! first splits them for good: some are always in the entry that is on its way while the others queue.
//!
//! * The *crowd* is what the last entry had, and what queued up while it was on its way.
//! * While it gathers, one entry is on its way at a time, and a crowd of [`SMALLEST`] or more is waited for
//!   before the next one, for [`MOST`] and what the timer adds. Below that what comes goes, beside another
//!   entry if need be.
//! * It pays where those who write are waiting for their answers: then hardly anybody else comes while an entry
//!   with all of them is on its way. If that is not so, or if less than three quarters of the crowd come back in
//!   time, clients write at times of their own: the next 1, 3, 7, … 1023 entries go as they come before there is
//!   another attempt.
//! * After a crowd did not come back as a whole no more are waited for than came then, so that one who writes now
//!   and then does not hold the others up. [`STREAK`] attempts in a row that go well, and more each time that this
//!   happens again, raise that by an eighth and take one failure back.
//! * All that is forgotten, but for the failures, when nothing was done for [`FORGOTTEN`].
//!
//! Group commit in databases and Nagle's algorithm in TCP hold things up for the same reason; here the wait
//! ends with the last one who is expected, not with a timer. No clock and no task: whoever proposes asks.

use std::time::Duration;

/// Fewer are not waited for: there is little to gain.
pub(crate) const SMALLEST: usize = 4;
/// The longest wait, but for the timer's grain, which is another millisecond.
pub(crate) const MOST: Duration = Duration::from_millis(1);
/// Whoever has not come back by then is somebody else.
const FORGOTTEN: Duration = Duration::from_millis(10);
/// After so many failures the pause between attempts grows no more.
const MOST_FAILURES: u32 = 10;
/// Attempts that must go well for one that failed.
const STREAK: u32 = 8;
/// The most that it comes to.
const LONGEST_STREAK: u32 = 1024;

/// What is known of those who write. See the module's page.
#[derive(Debug)]
pub(crate) struct Gather {
    /// Writes in the entries that are on their way.
    on_the_way: usize,
    crowd: usize,
    /// No larger one is waited for.
    most: usize,
    failures: u32,
    /// Attempts since the last failure, or since one was taken back.
    streak: u32,
    /// How many it takes.
    needed: u32,
    /// Entries that go as they come before the next attempt.
    pause: u32,
}

impl Default for Gather {
    fn default() -> Self {
        Self {
            on_the_way: 0,
            crowd: 0,
            most: usize::MAX,
            failures: 0,
            streak: 0,
            needed: STREAK,
            pause: 0,
        }
    }
}

impl Gather {
    /// Whether an entry may be proposed while another one is on its way, with so many writes queued.
    pub(crate) fn goes_beside_another(&self, queued: usize) -> bool {
        self.pause > 0 || self.on_the_way + queued < SMALLEST
    }

    /// How many writes to wait for, and how long at most, `idle` after an entry was last done. `None`: propose
    /// those that are there.
    pub(crate) fn wanted(&mut self, queued: usize, idle: Duration) -> Option<(usize, Duration)> {
        if idle > FORGOTTEN {
            (self.crowd, self.most, self.needed) = (0, usize::MAX, STREAK);
        }
        let crowd = self.crowd.min(self.most);
        let is_wanted = self.pause == 0 && crowd >= SMALLEST && (1..crowd).contains(&queued);
        is_wanted.then_some((crowd, MOST))
    }

    /// Those that were wanted did not come in time. So many did, and are to be proposed.
    pub(crate) fn missed(&mut self, queued: usize) {
        let crowd = self.crowd.min(self.most);
        self.most = queued;
        self.streak = 0;
        self.needed = (self.needed * 4).min(LONGEST_STREAK);
        if queued * 4 < crowd * 3 {
            self.fail();
            // The entry that was held up is not one of those.
            self.pause += 1;
        }
    }

    /// An entry of so many writes is on its way. Returns what is to be told when it is done.
    pub(crate) fn proposed(&mut self, writes: usize) -> Sent {
        let is_attempt = self.pause == 0 && self.on_the_way == 0 && writes >= SMALLEST;
        self.on_the_way += writes;
        self.pause = self.pause.saturating_sub(1);
        Sent { writes, is_attempt }
    }

    /// An entry is done, and so many writes are queued; its own clients have no answers yet.
    pub(crate) fn done(&mut self, sent: Sent, queued: usize) {
        let Sent { writes, is_attempt } = sent;
        self.on_the_way -= writes;
        self.crowd = writes + queued;
        if !is_attempt {
            return;
        }
        if queued * 4 > writes {
            return self.fail();
        }
        self.streak += 1;
        if self.streak >= self.needed {
            self.streak = 0;
            self.needed = (self.needed / 2).max(STREAK);
            self.failures = self.failures.saturating_sub(1);
            self.most = self.most.saturating_add(1 + self.most / 8);
        }
    }

    fn fail(&mut self) {
        self.streak = 0;
        self.failures = (self.failures + 1).min(MOST_FAILURES);
        self.pause = (1 << self.failures) - 1;
    }
}

/// An entry that is on its way.
#[derive(Debug)]
#[must_use = "it is told when it is done"]
pub(crate) struct Sent {
    writes: usize,
    /// It shall tell whether gathering pays.
    is_attempt: bool,
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use firn_io::rng::Rng;

    use super::*;

    /// Microseconds.
    type Time = u64;

    const ENTRY: Time = 500;
    const IN_FLIGHT: usize = 2;

    /// What became of the writes of a run.
    struct Run {
        entries: usize,
        held: usize,
        /// From arrival to answer, of all writes.
        latencies: Vec<Time>,
    }

    impl Run {
        fn writes_an_entry(&self) -> f64 {
            self.latencies.len() as f64 / self.entries as f64
        }

        fn mean(&self) -> f64 {
            self.latencies.iter().sum::<Time>() as f64 / self.latencies.len() as f64
        }
    }

    /// A leader whose entries take 0.5 ms each and of whom two are on their way at most, a step each
    /// 10 microseconds. `arrivals` are those that come whatever happens; `back` is when a client whose write
    /// is done writes again.
    fn run(
        gather: &mut Gather,
        may_gather: bool,
        mut arrivals: VecDeque<Time>,
        mut back: impl FnMut(Time) -> Option<Time>,
        end: Time,
    ) -> Run {
        let mut queue = Vec::new();
        let mut on_the_way = VecDeque::<(Time, Sent, Vec<Time>)>::new();
        let mut returning = Vec::new();
        let mut run = Run {
            entries: 0,
            held: 0,
            latencies: Vec::new(),
        };
        let (mut holding, mut done) = (None, 0);
        for now in (0..end).step_by(10) {
            while let Some((_, sent, writes)) = on_the_way.pop_front_if(|(at, ..)| *at <= now) {
                gather.done(sent, queue.len());
                done = now;
                for came in writes {
                    run.latencies.push(now - came);
                    returning.extend(back(now));
                }
            }
            queue.extend(returning.extract_if(.., |at| *at <= now));
            while let Some(at) = arrivals.pop_front_if(|at| *at <= now) {
                queue.push(at);
            }
            let queued = queue.len();
            let most = match may_gather && !gather.goes_beside_another(queued) {
                true => 1,
                false => IN_FLIGHT,
            };
            if queued == 0 || on_the_way.len() >= most {
                continue;
            }
            match holding {
                None => {
                    let idle = Duration::from_micros(now - done);
                    let wanted = gather.wanted(queued, idle).filter(|_| may_gather);
                    if let Some((crowd, most)) = wanted {
                        run.held += 1;
                        // As long as a timer with a grain of a millisecond takes.
                        holding = Some((crowd, now + 2 * most.as_micros() as Time));
                        continue;
                    }
                }
                Some((crowd, until)) if queued < crowd && now < until => continue,
                Some((crowd, _)) if queued < crowd => gather.missed(queued),
                Some(_) => {}
            }
            holding = None;
            let sent = gather.proposed(queued);
            run.entries += 1;
            on_the_way.push_back((now + ENTRY, sent, std::mem::take(&mut queue)));
        }
        run
    }

    /// Arrivals at times of their own, so many a millisecond on average.
    fn poisson(a_millisecond: f64, end: Time) -> VecDeque<Time> {
        let mut rng = Rng::new(7);
        let mut at = 0.0;
        let arrivals = std::iter::from_fn(|| {
            let uniform = (rng.below(1 << 30) + 1) as f64 / (1_u64 << 30) as f64;
            at -= uniform.ln() * 1000.0 / a_millisecond;
            Some(at as Time)
        });
        arrivals.take_while(|&at| at < end).collect()
    }

    #[test]
    fn clients_that_come_back_share_entries() {
        for clients in [8, 16, 64, 256] {
            let crowd = |may_gather| {
                let mut rng = Rng::new(clients);
                // They come at different times, and take 0.1 to 0.3 ms to write again.
                let arrivals = (0..clients).map(|i| i * 5).collect();
                let back = |now| Some(now + 100 + rng.below(200));
                run(
                    &mut Gather::default(),
                    may_gather,
                    arrivals,
                    back,
                    1_000_000,
                )
            };
            let (with, without) = (crowd(true), crowd(false));
            let most = clients as f64;
            assert!(
                with.writes_an_entry() > 0.9 * most && without.writes_an_entry() < 0.7 * most,
                "{clients}: {} and {}",
                with.writes_an_entry(),
                without.writes_an_entry()
            );
            // Twice as long in the worst case would be a loss for whoever has processors to spare.
            assert!(
                with.mean() < 1.4 * without.mean(),
                "{clients}: {} and {}",
                with.mean(),
                without.mean()
            );
        }
    }

    #[test]
    fn writes_that_come_at_times_of_their_own_are_hardly_ever_held_up() {
        for a_millisecond in [1.0, 4.0, 16.0, 64.0] {
            let run = |may_gather| {
                let arrivals = poisson(a_millisecond, 5_000_000);
                run(
                    &mut Gather::default(),
                    may_gather,
                    arrivals,
                    |_| None,
                    5_100_000,
                )
            };
            let (with, without) = (run(true), run(false));
            assert!(
                with.held * 50 < with.entries && with.mean() < 1.1 * without.mean(),
                "{a_millisecond} a ms: {} of {} entries, {} and {} us",
                with.held,
                with.entries,
                with.mean(),
                without.mean()
            );
        }
    }

    /// Some that come back, and others beside them that nobody should wait for.
    #[test]
    fn those_who_come_now_and_then_do_not_hold_up_the_others() {
        for (clients, a_millisecond) in [(8, 0.5), (16, 0.5), (16, 4.0), (64, 4.0), (8, 16.0)] {
            let run = |may_gather| {
                let (mut rng, mut last) = (Rng::new(clients), 0);
                let mut arrivals = poisson(a_millisecond, 2_000_000);
                (0..clients).for_each(|_| arrivals.push_front(0));
                // Only so many come back: of an entry's writes as many as there are clients, at most.
                let mut left = clients;
                let back = |now| {
                    if now != last {
                        (last, left) = (now, clients);
                    }
                    left = left.checked_sub(1)?;
                    Some(now + 50 + rng.below(100))
                };
                run(
                    &mut Gather::default(),
                    may_gather,
                    arrivals,
                    back,
                    2_000_000,
                )
            };
            let (with, without) = (run(true), run(false));
            assert!(
                with.mean() < 1.4 * without.mean(),
                "{clients} and {a_millisecond} a ms: {} of {} entries, {} and {} us",
                with.held,
                with.entries,
                with.mean(),
                without.mean()
            );
        }
    }

    #[test]
    fn whoever_is_alone_is_never_held_up() {
        for clients in 1..SMALLEST as u64 {
            let arrivals = (0..clients).collect();
            let back = |now| Some(now + 100);
            let run = run(&mut Gather::default(), true, arrivals, back, 100_000);
            assert_eq!(run.held, 0);
        }
    }

    #[test]
    fn after_failures_it_tries_seldom_and_then_again_more_often() {
        let mut gather = Gather::default();
        let mut attempt = |queued_meanwhile| {
            let mut skipped = 0;
            while gather.goes_beside_another(10) {
                assert_eq!(gather.wanted(1, Duration::ZERO), None);
                let sent = gather.proposed(10);
                gather.done(sent, queued_meanwhile);
                skipped += 1;
            }
            let sent = gather.proposed(10);
            gather.done(sent, queued_meanwhile);
            skipped
        };
        let failing: Vec<u32> = (0..12).map(|_| attempt(3)).collect();
        assert_eq!(failing, [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1023]);
        // The attempt that the last pause led to is the first of eight that go well.
        assert_eq!(attempt(2), 1023);
        for _ in 0..8 {
            assert_eq!(attempt(2), 0);
        }
        assert_eq!(attempt(3), 0);
        assert_eq!(attempt(3), 1023);
        (0..24).for_each(|_| assert!(attempt(2) <= 1023));
        assert_eq!(attempt(3), 0);
        assert_eq!(attempt(3), 255);
    }

    #[test]
    fn no_more_are_waited_for_than_came_and_nobody_of_long_ago() {
        let mut gather = Gather::default();
        let now = Duration::ZERO;
        let send = |gather: &mut Gather, writes| {
            let sent = gather.proposed(writes);
            gather.done(sent, 0);
        };
        send(&mut gather, 16);
        assert_eq!(gather.wanted(5, now), Some((16, MOST)));
        assert_eq!(gather.wanted(16, now), None);
        // Nothing to write, which an entry may be for.
        assert_eq!(gather.wanted(0, now), None);
        gather.missed(11);
        assert!(gather.goes_beside_another(5));
        assert_eq!(gather.wanted(5, now), None);
        send(&mut gather, 11);
        assert!(gather.goes_beside_another(5), "one entry as it comes");
        send(&mut gather, 5);
        for _ in 0..4 * STREAK {
            send(&mut gather, 16);
            assert!(!gather.goes_beside_another(5));
        }
        assert_eq!(gather.wanted(1, now), Some((13, MOST)));
        // Three quarters: no failure.
        gather.missed(10);
        assert!(!gather.goes_beside_another(5));
        assert_eq!(gather.wanted(1, now), Some((10, MOST)));
        for _ in 1..8 * STREAK {
            send(&mut gather, 16);
            assert_eq!(gather.wanted(1, now), Some((10, MOST)));
        }
        gather.missed(7);
        assert!(gather.goes_beside_another(5));
        while gather.goes_beside_another(5) {
            send(&mut gather, 16);
        }
        assert_eq!(gather.wanted(1, FORGOTTEN + MOST), None);
        assert_eq!(gather.wanted(1, now), None);
        send(&mut gather, 20);
        assert_eq!(gather.wanted(1, now), Some((20, MOST)));
    }
}
