//! When to hold the next entry up for a moment, so that more writes share it.
//!
//! An entry costs the nodes of a cluster many times what a write in it costs: messages to and fro, a sync on
//! each node, and the wake-ups around them. Clients that wait for an answer before they write again come back
//! together, soon after the entry with their last writes is done. Whoever then proposes at once what comes
//! first splits them for good: some are always in the entry that is on its way while the others queue.
//!
//! * The *crowd* is what the entry that was done last had, and what queued up while it was on its way.
//! * While it gathers, one entry is on its way at a time, and a crowd of [`SMALLEST`] or more is waited for
//!   before the next one, for [`MOST`] at the most. One client alone, or three, are never held up.
//! * It pays where those who write are waiting for their answers: then hardly anybody else comes while an entry
//!   with all of them is on its way. If that is not so, or if the crowd does not come back in time, clients
//!   write at times of their own: the next 1, 3, 7, … 1023 entries go as they come before there is another
//!   attempt. Each attempt that goes well takes one failure back.
//!
//! Group commit in databases and Nagle's algorithm in TCP hold things up for the same reason; here the wait
//! ends with the last one who is expected, not with a timer. No clock and no task: whoever proposes asks.

use std::time::Duration;

/// Fewer are not waited for: there is little to gain.
pub(crate) const SMALLEST: usize = 4;
/// The longest wait.
pub(crate) const MOST: Duration = Duration::from_millis(1);
/// After so many failures in a row the pause between attempts grows no more.
const MOST_FAILURES: u32 = 10;

/// What is known of those who write. See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    /// Writes in the entries that are on their way.
    on_the_way: usize,
    /// The newest entry is on its way and shall tell whether gathering pays.
    is_attempt: bool,
    /// See the module's page.
    crowd: usize,
    /// Attempts that failed, less those that did not.
    failures: u32,
    /// Entries that go as they come before the next attempt.
    pause: u32,
}

impl Gather {
    /// Whether an entry may be proposed while another one is on its way, with so many writes queued.
    pub(crate) fn goes_beside_another(&self, queued: usize) -> bool {
        self.pause > 0 || self.on_the_way + queued < SMALLEST
    }

    /// How many writes to wait for, and how long at most. `None`: propose those that are there.
    pub(crate) fn wanted(&self, queued: usize) -> Option<(usize, Duration)> {
        let is_wanted = self.pause == 0 && self.crowd >= SMALLEST && queued < self.crowd;
        is_wanted.then_some((self.crowd, MOST))
    }

    /// After a wait: so many are there.
    pub(crate) fn waited(&mut self, queued: usize) {
        // A few may have left for good.
        if queued < self.crowd / 4 * 3 {
            self.fail();
        }
    }

    /// An entry of so many writes is on its way.
    pub(crate) fn proposed(&mut self, writes: usize) {
        self.is_attempt = self.pause == 0 && writes >= SMALLEST;
        self.on_the_way += writes;
        self.pause = self.pause.saturating_sub(1);
    }

    /// An entry of so many writes is done, and so many are queued; its own clients have no answers yet.
    pub(crate) fn done(&mut self, writes: usize, queued: usize) {
        self.on_the_way -= writes;
        self.crowd = writes + queued;
        if !std::mem::take(&mut self.is_attempt) {
            return;
        }
        if queued <= writes / 4 {
            self.failures = self.failures.saturating_sub(1);
        } else {
            self.fail();
        }
    }

    fn fail(&mut self) {
        self.failures = (self.failures + 1).min(MOST_FAILURES);
        self.pause = (1 << self.failures) - 1;
    }
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
        let (mut queue, mut on_the_way) = (Vec::new(), VecDeque::<(Time, Vec<Time>)>::new());
        let mut returning = Vec::new();
        let mut run = Run {
            entries: 0,
            held: 0,
            latencies: Vec::new(),
        };
        let mut holding = None;
        for now in (0..end).step_by(10) {
            while let Some((_, writes)) = on_the_way.pop_front_if(|(done, _)| *done <= now) {
                gather.done(writes.len(), queue.len());
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
                    if let Some((crowd, most)) = gather.wanted(queued).filter(|_| may_gather) {
                        run.held += 1;
                        holding = Some((crowd, now + most.as_micros() as Time));
                        continue;
                    }
                }
                Some((crowd, until)) if queued < crowd && now < until => continue,
                Some(_) => gather.waited(queued),
            }
            holding = None;
            gather.proposed(queued);
            run.entries += 1;
            on_the_way.push_back((now + ENTRY, std::mem::take(&mut queue)));
        }
        run
    }

    #[test]
    fn clients_that_come_back_share_entries_and_have_their_answers_sooner() {
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
        for a_millisecond in [1, 4, 16, 64] {
            let poisson = |may_gather| {
                let mut rng = Rng::new(a_millisecond);
                let mut at = 0.0;
                let arrivals = std::iter::from_fn(|| {
                    let uniform = (rng.below(1 << 30) + 1) as f64 / (1_u64 << 30) as f64;
                    at -= uniform.ln() * 1000.0 / a_millisecond as f64;
                    Some(at as Time)
                });
                let arrivals = arrivals.take_while(|&at| at < 5_000_000).collect();
                run(
                    &mut Gather::default(),
                    may_gather,
                    arrivals,
                    |_| None,
                    5_100_000,
                )
            };
            let (with, without) = (poisson(true), poisson(false));
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
        let mut attempts = |queued_meanwhile| {
            let mut skipped = 0;
            while gather.goes_beside_another(10) {
                assert_eq!(gather.wanted(1), None);
                gather.proposed(10);
                gather.done(10, queued_meanwhile);
                skipped += 1;
            }
            gather.proposed(10);
            gather.done(10, queued_meanwhile);
            skipped
        };
        let failing: Vec<u32> = (0..12).map(|_| attempts(3)).collect();
        assert_eq!(failing, [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1023]);
        // The attempt that the last pause led to is the first that goes well.
        assert_eq!(attempts(2), 1023);
        assert_eq!(attempts(2), 0);
        assert_eq!(attempts(3), 0);
        assert_eq!(attempts(3), 511);
    }

    #[test]
    fn a_crowd_that_does_not_come_back_is_a_failure_but_for_a_few() {
        let mut gather = Gather::default();
        gather.proposed(16);
        gather.done(16, 4);
        assert_eq!(gather.wanted(5), Some((20, MOST)));
        assert_eq!(gather.wanted(20), None);
        gather.waited(15);
        assert!(!gather.goes_beside_another(5));
        gather.waited(14);
        assert!(gather.goes_beside_another(5));
        assert_eq!(gather.wanted(5), None);
    }
}
