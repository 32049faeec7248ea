//! Whether a history of calls could have come from one copy that did one call at a time
//! (linearizability; Herlihy and Wing 1990).
//!
//! [`check`] is the search of Wing and Gong with the memory of Lowe: calls are put into an order one
//! at a time, each only if it began before the first return among those that are left; what a
//! [`Model`] says cannot be is taken back. A set of calls that led to a state once before need not be
//! tried again. The search ends after a number of steps, so that the same history always gets the same
//! verdict; then it is [`Verdict::Undecided`], which is not a pass.
//!
//! A call whose outcome is not known never returns: it may have happened at any time after it began,
//! or not at all.
//!
//! Linearizability is local: a history is linearizable if its part for each object is. So callers
//! check every key by itself, with [`Register`]; keys that are read together by ranges, or written
//! together, are one object, a [`Map`].
//!
//! [`check_zones`] decides in the time of a sort where all writes write different values and nobody
//! compares and swaps (Gibbons and Korach 1997): for histories too long for a search.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{Debug, Write};
use std::hash::Hash;

/// What an object does.
pub trait Model {
    /// A call, with its outcome if that is known.
    type Op: Debug;
    /// What the object knows.
    type State: Clone + Default + Eq + Hash + Debug;

    /// The state after the call; `None` if the call cannot have this outcome in this state. A call
    /// without a known outcome can always be.
    fn step(state: &Self::State, op: &Self::Op) -> Option<Self::State>;
}

/// A call, and when it was made by a clock that all callers share. No two moments are the same.
#[derive(Clone, Debug)]
pub struct Call<O> {
    /// When it began.
    pub begin: u64,
    /// When the caller had the answer; `None` if it never did.
    pub end: Option<u64>,
    /// What it was.
    pub op: O,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none; around which calls.
    Violation(String),
    /// The search was given up.
    Undecided,
}

/// A value; 0 stands for none.
pub type Value = u64;

/// One key.
#[derive(Clone, Copy, Debug)]
pub enum Register {
    /// A read and what it found.
    Read(Value),
    /// A write, or a removal.
    Write(Value),
    /// A write of `new` if `expected` is there, and whether it was.
    Cas {
        /// What should be there.
        expected: Value,
        /// What is there afterwards if so.
        new: Value,
        /// Whether it was; `None` if that is not known.
        is_done: Option<bool>,
    },
}

impl Model for Register {
    type Op = Self;
    type State = Value;

    fn step(state: &Value, op: &Self) -> Option<Value> {
        match *op {
            Self::Read(found) => (found == *state).then_some(*state),
            Self::Write(new) => Some(new),
            Self::Cas {
                expected,
                new,
                is_done,
            } => {
                let holds = expected == *state;
                if is_done.is_some_and(|is_done| is_done != holds) {
                    return None;
                }
                Some(if holds { new } else { *state })
            }
        }
    }
}

/// Most keys of a [`Map`].
pub const MAP_KEYS: usize = 8;

/// Several keys that are read and written together. Keys are numbers below [`MAP_KEYS`].
#[derive(Clone, Debug)]
pub enum Map {
    /// A read of one key.
    Read(u8, Value),
    /// A read of the keys from the first (inclusive) to the second (exclusive), and all it found.
    Scan(u8, u8, Vec<(u8, Value)>),
    /// Writes (0: removals) that are seen together or not at all.
    Write(Vec<(u8, Value)>),
    /// The removal of all keys from the first (inclusive) to the second (exclusive).
    Clear(u8, u8),
    /// The writes, if the key has the value, and whether it had; `None` if that is not known.
    WriteIf(u8, Value, Vec<(u8, Value)>, Option<bool>),
}

impl Model for Map {
    type Op = Self;
    type State = [Value; MAP_KEYS];

    fn step(state: &Self::State, op: &Self) -> Option<Self::State> {
        let mut state = *state;
        let write = |state: &mut Self::State, writes: &[(u8, Value)]| {
            for &(key, value) in writes {
                state[usize::from(key)] = value;
            }
        };
        match op {
            Self::Read(key, found) => return (state[usize::from(*key)] == *found).then_some(state),
            Self::Scan(start, end, found) => {
                let there = (*start..*end).map(|key| (key, state[usize::from(key)]));
                let there = there.filter(|(_, value)| *value != 0);
                return there.eq(found.iter().copied()).then_some(state);
            }
            Self::Write(writes) => write(&mut state, writes),
            Self::Clear(start, end) => state[usize::from(*start)..usize::from(*end)].fill(0),
            Self::WriteIf(key, expected, writes, is_done) => {
                let holds = state[usize::from(*key)] == *expected;
                if is_done.is_some_and(|is_done| is_done != holds) {
                    return None;
                }
                if holds {
                    write(&mut state, writes);
                }
            }
        }
        Some(state)
    }
}

/// Beginnings and ends of calls, in their order, in a list from which they are taken and put back.
struct Events {
    /// Which call, and whether it is its end.
    what: Vec<(usize, bool)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Of each call: where it begins, and where it ends.
    places: Vec<(usize, Option<usize>)>,
}

impl Events {
    /// The place before the first one is 0.
    fn new<O>(calls: &[Call<O>]) -> Self {
        let mut moments: Vec<(u64, usize, bool)> = Vec::with_capacity(2 * calls.len());
        for (number, call) in calls.iter().enumerate() {
            moments.push((call.begin, number, false));
            moments.extend(call.end.map(|end| (end, number, true)));
        }
        moments.sort_unstable();
        let mut what = vec![(usize::MAX, false)];
        let mut places = vec![(0, None); calls.len()];
        for (_, number, is_end) in moments {
            if is_end {
                places[number].1 = Some(what.len());
            } else {
                places[number].0 = what.len();
            }
            what.push((number, is_end));
        }
        let count = what.len();
        Self {
            next: (1..=count).collect(),
            previous: (0..count).map(|at| at.saturating_sub(1)).collect(),
            what,
            places,
        }
    }

    fn unlink(&mut self, at: usize) {
        let (before, after) = (self.previous[at], self.next[at]);
        self.next[before] = after;
        if after < self.previous.len() {
            self.previous[after] = before;
        }
    }

    fn relink(&mut self, at: usize) {
        let (before, after) = (self.previous[at], self.next[at]);
        self.next[before] = at;
        if after < self.previous.len() {
            self.previous[after] = at;
        }
    }

    fn take(&mut self, call: usize) {
        let (begin, end) = self.places[call];
        self.unlink(begin);
        if let Some(end) = end {
            self.unlink(end);
        }
    }

    fn put_back(&mut self, call: usize) {
        let (begin, end) = self.places[call];
        if let Some(end) = end {
            self.relink(end);
        }
        self.relink(begin);
    }
}

/// Looks for an order of the calls that the model allows, for at most `most_steps` steps.
pub fn check<M: Model>(calls: &[Call<M::Op>], most_steps: u64) -> Verdict {
    let mut events = Events::new(calls);
    let mut taken = vec![0_u64; calls.len().div_ceil(64)];
    let mut tried: HashSet<(Box<[u64]>, M::State)> = HashSet::new();
    let mut order: Vec<(usize, M::State)> = Vec::new();
    let mut state = M::State::default();
    let mut left = calls.iter().filter(|call| call.end.is_some()).count();
    let mut longest = (0, 0);
    let mut at = events.next[0];
    let mut steps = 0;
    while left > 0 {
        steps += 1;
        if steps > most_steps {
            return Verdict::Undecided;
        }
        // Behind the last event: only calls that never return are left, and none of them helps.
        let is_over = at >= events.what.len();
        let (call, is_end) = if is_over {
            (usize::MAX, true)
        } else {
            events.what[at]
        };
        if is_end {
            if order.len() >= longest.0 && !is_over {
                longest = (order.len(), call);
            }
            let Some((last, before)) = order.pop() else {
                return Verdict::Violation(explain::<M>(calls, longest.1));
            };
            state = before;
            taken[last / 64] &= !(1 << (last % 64));
            events.put_back(last);
            left += usize::from(calls[last].end.is_some());
            at = events.next[events.places[last].0];
            continue;
        }
        let next = M::step(&state, &calls[call].op);
        at = match next {
            Some(next) => {
                taken[call / 64] |= 1 << (call % 64);
                if tried.insert((taken.clone().into(), next.clone())) {
                    order.push((call, std::mem::replace(&mut state, next)));
                    events.take(call);
                    left -= usize::from(calls[call].end.is_some());
                    events.next[0]
                } else {
                    taken[call / 64] &= !(1 << (call % 64));
                    events.next[at]
                }
            }
            None => events.next[at],
        };
    }
    Verdict::Linearizable
}

/// The call that could not be placed, and those around it.
fn explain<M: Model>(calls: &[Call<M::Op>], stuck: usize) -> String {
    let mut text = String::from("no order of the calls around these explains them all:");
    let Some(at) = calls.get(stuck) else {
        return text;
    };
    let mut near: Vec<&Call<M::Op>> = calls.iter().collect();
    let distance = |call: &Call<M::Op>| {
        let end = call.end.unwrap_or(call.begin);
        let after = call.begin.saturating_sub(at.end.unwrap_or(u64::MAX));
        after.max(at.begin.saturating_sub(end))
    };
    near.sort_by_key(|call| (distance(call), call.begin));
    near.truncate(12);
    near.sort_by_key(|call| call.begin);
    for call in near {
        let mark = if std::ptr::eq(call, at) { '>' } else { ' ' };
        // Writing to a string does not fail.
        let _ = match call.end {
            Some(end) => write!(text, "\n{mark} {}..{end} {:?}", call.begin, call.op),
            None => write!(
                text,
                "\n{mark} {}.. {:?}, outcome unknown",
                call.begin, call.op
            ),
        };
    }
    text
}

/// What is known of a value in a history of reads and writes.
#[derive(Clone, Copy, Debug)]
struct Zone {
    /// Of its write.
    begin: u64,
    /// The first end of a call that wrote or read it.
    first_end: u64,
    /// The last beginning of one.
    last_begin: u64,
    is_read: bool,
}

/// Decides a history of one key in which every write writes another value, and there are only reads
/// and writes; a compare-and-swap is an error. The key has no value (0) at first.
pub fn check_zones(calls: &[Call<Register>]) -> Verdict {
    let bad = Verdict::Violation;
    let mut zones: BTreeMap<Value, Zone> = BTreeMap::new();
    let first = Zone {
        begin: 0,
        first_end: 0,
        last_begin: 0,
        is_read: false,
    };
    zones.insert(0, first);
    for call in calls {
        match call.op {
            Register::Write(value) => {
                let zone = Zone {
                    begin: call.begin,
                    first_end: call.end.unwrap_or(u64::MAX),
                    last_begin: call.begin,
                    is_read: false,
                };
                if zones.insert(value, zone).is_some() {
                    return bad(format!("{value} is written twice: this is no such history"));
                }
            }
            Register::Read(_) => {}
            Register::Cas { .. } => return bad("a compare-and-swap: no such history".into()),
        }
    }
    for call in calls {
        let (Register::Read(value), Some(end)) = (call.op, call.end) else {
            continue;
        };
        let Some(zone) = zones.get_mut(&value) else {
            return bad(format!("{value} was read, and nobody wrote it"));
        };
        if end < zone.begin {
            return bad(format!("{value} was read before it was written"));
        }
        zone.first_end = zone.first_end.min(end);
        zone.last_begin = zone.last_begin.max(call.begin);
        zone.is_read = true;
    }
    // A write that never returned and that nobody saw may not have happened.
    zones.retain(|_, zone| zone.is_read || zone.first_end < u64::MAX);
    let is_forward = |zone: &Zone| zone.first_end < zone.last_begin;
    let mut forward: Vec<(u64, u64, Value)> = zones
        .iter()
        .filter(|(_, zone)| is_forward(zone))
        .map(|(value, zone)| (zone.first_end, zone.last_begin, *value))
        .collect();
    forward.sort_unstable();
    for pair in forward.windows(2) {
        if pair[1].0 < pair[0].1 {
            let (one, other) = (pair[0].2, pair[1].2);
            return bad(format!("{one} and {other} were both there at a time"));
        }
    }
    for (value, zone) in zones.iter().filter(|(_, zone)| !is_forward(zone)) {
        // In the last forward zone that begins before it?
        let before = forward.partition_point(|(start, _, _)| *start < zone.last_begin);
        if let Some((_, end, other)) = before.checked_sub(1).map(|at| forward[at])
            && zone.first_end < end
        {
            return bad(format!("{value} came while {other} was there all the time"));
        }
    }
    Verdict::Linearizable
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const STEPS: u64 = 1_000_000;

    /// Tries every subset of the calls without an end, in every order that time allows.
    fn brute_force<M: Model>(calls: &[Call<M::Op>], taken: u32, state: &M::State) -> bool {
        let is_left = |at: usize| taken & (1 << at) == 0;
        let left = || (0..calls.len()).filter(|&at| is_left(at));
        if left().all(|at| calls[at].end.is_none()) {
            return true;
        }
        left().any(|at| {
            let comes_first = left().all(|other| {
                other == at || calls[other].end.is_none_or(|end| end > calls[at].begin)
            });
            comes_first
                && M::step(state, &calls[at].op)
                    .is_some_and(|next| brute_force::<M>(calls, taken | 1 << at, &next))
        })
    }

    /// Calls with distinct moments: each is a pair of a shuffled row of numbers.
    fn timed<O: Clone + Debug>(
        ops: impl Strategy<Value = Vec<(O, bool)>>,
    ) -> impl Strategy<Value = Vec<Call<O>>> {
        let with_moments = ops.prop_flat_map(|ops| {
            let moments: Vec<u64> = (1..=2 * ops.len() as u64).collect();
            (Just(ops), Just(moments).prop_shuffle())
        });
        with_moments.prop_map(|(ops, moments)| {
            let pairs = ops.into_iter().zip(moments.chunks(2));
            pairs
                .map(|((op, is_known), pair)| Call {
                    begin: pair[0].min(pair[1]),
                    end: is_known.then_some(pair[0].max(pair[1])),
                    op,
                })
                .collect()
        })
    }

    fn any_register() -> impl Strategy<Value = (Register, bool)> {
        let cas = (0..3_u64, 1..4_u64, any::<bool>(), any::<bool>());
        prop_oneof![
            3 => (0..4_u64).prop_map(|value| (Register::Read(value), true)),
            2 => (0..4_u64, any::<bool>()).prop_map(|(value, known)| (Register::Write(value), known)),
            2 => cas.prop_map(|(expected, new, known, done)| {
                let is_done = known.then_some(done);
                (Register::Cas { expected, new, is_done }, known)
            }),
        ]
    }

    fn any_map() -> impl Strategy<Value = (Map, bool)> {
        let writes = || vec((0..3_u8, 0..3_u64), 1..3);
        let found = prop::collection::btree_map(0..3_u8, 1..3_u64, 0..3);
        prop_oneof![
            2 => (0..3_u8, 0..3_u64).prop_map(|(key, value)| (Map::Read(key, value), true)),
            2 => found.prop_map(|found| (Map::Scan(0, 3, found.into_iter().collect()), true)),
            2 => (writes(), any::<bool>()).prop_map(|(writes, known)| (Map::Write(writes), known)),
            1 => any::<bool>().prop_map(|known| (Map::Clear(0, 2), known)),
            1 => (0..3_u8, 0..3_u64, writes(), any::<Option<bool>>()).prop_map(
                |(key, expected, writes, done)| {
                    (Map::WriteIf(key, expected, writes, done), done.is_some())
                }
            ),
        ]
    }

    /// Writes of different values, some of unknown outcome, and reads.
    fn any_unique() -> impl Strategy<Value = Vec<(Register, bool)>> {
        let op = prop_oneof![
            (0..4_u64).prop_map(|value| (Some(value), true)),
            any::<bool>().prop_map(|is_known| (None, is_known)),
        ];
        vec(op, 1..8).prop_map(|ops| {
            let mut next = 0;
            let made = ops.into_iter().map(|(read, is_known)| match read {
                Some(value) => (Register::Read(value), true),
                None => {
                    next += 1;
                    (Register::Write(next), is_known)
                }
            });
            made.collect()
        })
    }

    proptest! {
        #[test]
        fn registers_agree_with_brute_force(calls in timed(vec(any_register(), 1..8))) {
            let found = check::<Register>(&calls, STEPS) == Verdict::Linearizable;
            prop_assert_eq!(found, brute_force::<Register>(&calls, 0, &0));
        }

        #[test]
        fn maps_agree_with_brute_force(calls in timed(vec(any_map(), 1..7))) {
            let found = check::<Map>(&calls, STEPS) == Verdict::Linearizable;
            prop_assert_eq!(found, brute_force::<Map>(&calls, 0, &[0; MAP_KEYS]));
        }

        #[test]
        fn zones_agree_with_the_search(calls in timed(any_unique())) {
            let found = check::<Register>(&calls, STEPS) == Verdict::Linearizable;
            let zones = check_zones(&calls);
            prop_assert_eq!(zones == Verdict::Linearizable, found, "{:?}", zones);
        }
    }

    fn call(begin: u64, end: u64, op: Register) -> Call<Register> {
        Call {
            begin,
            end: (end > 0).then_some(end),
            op,
        }
    }

    #[test]
    fn a_stale_read_is_found_and_named() {
        let mut calls = vec![
            call(1, 2, Register::Write(1)),
            call(3, 4, Register::Write(2)),
            call(5, 6, Register::Read(1)),
        ];
        let Verdict::Violation(text) = check::<Register>(&calls, STEPS) else {
            panic!("not found");
        };
        assert!(text.contains("> 5..6 Read(1)"), "{text}");
        assert!(matches!(check_zones(&calls), Verdict::Violation(_)));
        calls[1].end = None;
        assert_eq!(check::<Register>(&calls, STEPS), Verdict::Linearizable);
        assert_eq!(check_zones(&calls), Verdict::Linearizable);
        calls.push(call(7, 8, Register::Read(9)));
        assert!(matches!(check_zones(&calls), Verdict::Violation(_)));
    }

    #[test]
    fn a_search_that_is_too_long_is_no_pass() {
        // Many writes at once, and a read of none of them.
        let mut calls: Vec<_> = (1..=20)
            .map(|n| call(n, 100 + n, Register::Write(n)))
            .collect();
        calls.push(call(50, 99, Register::Read(77)));
        assert_eq!(check::<Register>(&calls, 10_000), Verdict::Undecided);
        assert_eq!(check::<Register>(&[], 0), Verdict::Linearizable);
    }

    #[test]
    fn long_histories_are_decided() {
        let (mut calls, mut now, mut value) = (Vec::new(), 0, 0);
        for n in 1..=20_000 {
            now += 4;
            if n % 3 == 0 {
                value = n;
                calls.push(call(now - 3, now + 2, Register::Write(n)));
            } else {
                calls.push(call(now, now + 3, Register::Read(value)));
            }
        }
        assert_eq!(check_zones(&calls), Verdict::Linearizable);
        assert_eq!(
            check::<Register>(&calls[..2000], STEPS),
            Verdict::Linearizable
        );
    }
}
