//! Bugs on purpose: each must be found within so many seeds. `cargo xtask sim --planted` runs this.

use std::collections::BTreeSet;

use firn_replica::planted::{Bug, plant};
use firn_sim::stage::perform;
use firn_sim::swarm::{Fault, Plan};

/// How many seeds until the bug shows, at most `most`; `None` if it does not.
fn seeds_until(bug: Bug, faults: &[Fault], most: u64) -> Option<(u64, String)> {
    plant(Some(bug));
    let found = (0..most).find_map(|seed| {
        let mut plan = Plan::new(seed, 3);
        if !faults.is_empty() {
            plan.faults = faults.iter().copied().collect::<BTreeSet<_>>();
            plan.load.leases_in_ten = 6 * u64::from(faults.contains(&Fault::Leases));
        }
        let violations = perform(plan).violations;
        let first = violations.into_iter().next()?;
        Some((seed + 1, first.chars().take(150).collect()))
    });
    plant(None);
    found
}

#[test]
fn s42_planted_bugs_are_found() {
    use Fault::*;
    // The faults that bring it to light, and within how many seeds.
    let rows: [(Bug, &[Fault], u64); 13] = [
        (Bug::EarlyAck, &[], 40),
        (Bug::LostVote, &[], 150),
        (Bug::StaleLease, &[Leases, Partition, Pause], 40),
        (Bug::LocalRead, &[Partition, Delay, OneWay], 40),
        (Bug::WrongTruncate, &[], 60),
        (Bug::DoubleApply, &[], 40),
        (Bug::SkippedMembership, &[Members, Kill, PowerCut], 60),
        (Bug::LeaderRestore, &[LeaderBlink, SlowLog, Kill], 60),
        (Bug::HalfInstall, &[DieAtIo, Members, Wipe, Snapshot], 300),
        (Bug::TwiceForwarded, &[], 40),
        (Bug::FlushAhead, &[SlowLog, PowerCut, Snapshot], 100),
        (Bug::EagerPurge, &[], 60),
        (Bug::UnloggedTruncate, &[], 60),
    ];
    let mut missed = Vec::new();
    for (bug, faults, most) in rows {
        match seeds_until(bug, faults, most) {
            Some((seeds, how)) => println!("{bug:?}: after {seeds} seeds: {how}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
