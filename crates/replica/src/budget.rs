//! When the log has grown so much that a snapshot should be made, and which entries can be purged then.
//!
//! What counts is what entries take, not the files that wait to be used again. After each snapshot the log
//! has to grow by a part of the budget before there is another, or a node whose entries may not go yet
//! would flush its memtable whenever it looks.
//!
//! A number of entries that a snapshot has stay all the same, so that a follower that was away for a moment
//! needs no snapshot. Where they are so long that the log is beyond its budget for them, those go that do not
//! fit into half of it. But not what a follower needs that is catching up, or it would be sent one snapshot
//! after the other under load: by the time that it has one, what follows would be gone. Followers that do not
//! move, and a log of several budgets, are not waited for. (Consensus itself keeps what it is sending to a
//! follower that answers, however slow that is.)

use std::collections::BTreeMap;

use firn_io::wal::LogStats;

use crate::types::NodeId;

/// After a snapshot the log grows by one part in so many of the budget before the next.
const GROWTH: u64 = 8;

/// So many entries stay, unless another number is asked for.
const KEPT_ENTRIES: u64 = 10_000;

/// A follower that has got nothing for so many looks does not move.
const PATIENCE: u32 = 1;

/// No follower is waited for when the log has so many times its budget.
const MOST_BUDGETS: u64 = 4;

/// What a follower has got so far.
#[derive(Debug, Default)]
struct Progress {
    matched: u64,
    /// For so many looks no more than that.
    still: u32,
}

/// How long the log may become, and whether it is time to do something about it.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: u64,
    kept_entries: u64,
    /// Not before so many bytes were appended.
    next: u64,
    followers: BTreeMap<NodeId, Progress>,
}

impl Budget {
    pub(crate) fn new(bytes: u64, kept_entries: Option<u64>) -> Self {
        Self {
            bytes,
            kept_entries: kept_entries.unwrap_or(KEPT_ENTRIES),
            next: 0,
            followers: BTreeMap::new(),
        }
    }

    /// Whether a snapshot is due; if so, the caller makes one.
    pub(crate) fn is_exceeded(&mut self, log: &LogStats) -> bool {
        let is_exceeded = log.used_bytes > self.bytes && log.appended_bytes >= self.next;
        if is_exceeded {
            self.next = log.appended_bytes.saturating_add(self.bytes / GROWTH);
        }
        is_exceeded
    }

    /// Looks at the followers of a leader: what each is known to have, and the last entry of snapshots that
    /// are being sent; what was purged before. Returns up to where none needs the log that moves. To be
    /// called at every look.
    pub(crate) fn needed_after(
        &mut self,
        progress: &BTreeMap<NodeId, Option<u64>>,
        sent: &BTreeMap<NodeId, u64>,
        purged: u64,
    ) -> u64 {
        self.followers.retain(|id, _| progress.contains_key(id));
        let mut needed_after = u64::MAX;
        for (id, matched) in progress {
            let matched = matched.unwrap_or(0);
            let follower = self.followers.entry(*id).or_default();
            let sent = sent.get(id).copied();
            if sent.is_some() || matched != follower.matched {
                follower.still = 0;
            } else {
                follower.still = follower.still.saturating_add(1);
            }
            follower.matched = matched;
            let has = matched.max(sent.unwrap_or(0));
            // A snapshot behind what was purged is of no use any more: there will be another.
            let is_too_late = sent.is_some() && has < purged;
            if follower.still <= PATIENCE && !is_too_late {
                needed_after = needed_after.min(has);
            }
        }
        needed_after
    }

    /// Up to which entry the log should be purged, if the last that the snapshot has is `snapshot` and
    /// followers need what is after `needed_after`; `last_beyond` tells the last one before the newest ones
    /// that take so many bytes, if it is after the one given.
    pub(crate) fn purge_upto(
        &self,
        log: &LogStats,
        snapshot: u64,
        needed_after: u64,
        last_beyond: impl FnOnce(u64, u64) -> Option<u64>,
    ) -> u64 {
        let mut upto = snapshot.saturating_sub(self.kept_entries);
        if log.used_bytes > self.bytes
            && let Some(beyond) = last_beyond(self.bytes / 2, upto)
        {
            upto = upto.max(beyond.min(snapshot));
        }
        match log.used_bytes > self.bytes.saturating_mul(MOST_BUDGETS) {
            true => upto,
            false => upto.min(needed_after),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn followers_that_move_are_waited_for() {
        let mut budget = Budget::new(800, None);
        let mut look = |matched: Option<u64>, sent: &[(NodeId, u64)]| {
            let progress = [(1, Some(50)), (2, matched)].into();
            budget.needed_after(&progress, &sent.iter().copied().collect(), 30)
        };
        assert_eq!(look(None, &[]), 0);
        // However long it takes.
        for _ in 0..3 * PATIENCE {
            assert_eq!(look(None, &[(2, 40)]), 40);
        }
        assert_eq!(look(None, &[(2, 30)]), 30);
        assert_eq!(look(None, &[(2, 29)]), u64::MAX);
        // It is done, and not yet known to be.
        assert_eq!(look(None, &[]), 0);
        assert_eq!(look(Some(40), &[]), 40);
        assert_eq!(look(Some(45), &[]), 45);
        for _ in 0..PATIENCE {
            assert_eq!(look(Some(45), &[]), 45);
        }
        assert_eq!(look(Some(45), &[]), u64::MAX);
        assert_eq!(look(Some(46), &[]), 46);
        // Nobody leads here.
        assert_eq!(
            budget.needed_after(&BTreeMap::new(), &BTreeMap::new(), 0),
            u64::MAX
        );
    }

    #[test]
    fn a_snapshot_is_due_when_entries_are_many_and_have_become_more() {
        let mut budget = Budget::new(800, None);
        let log = |used_bytes, appended_bytes| LogStats {
            used_bytes,
            appended_bytes,
            // Spares do not count.
            disk_bytes: 10_000,
            ..LogStats::default()
        };
        assert!(!budget.is_exceeded(&log(800, 800)));
        assert!(budget.is_exceeded(&log(801, 801)));
        // It freed nothing.
        assert!(!budget.is_exceeded(&log(801, 801)));
        assert!(!budget.is_exceeded(&log(900, 900)));
        assert!(budget.is_exceeded(&log(901, 901)));
        // It freed most.
        assert!(!budget.is_exceeded(&log(100, 1100)));
        assert!(!budget.is_exceeded(&log(800, 1800)));
        assert!(budget.is_exceeded(&log(801, 1801)));
    }

    #[test]
    fn what_a_snapshot_has_goes_if_it_is_too_many_or_too_long() {
        let budget = Budget::new(800, Some(5));
        let log = |used_bytes| LogStats {
            used_bytes,
            ..LogStats::default()
        };
        let needed_after = Cell::new(u64::MAX);
        let upto = |used, snapshot, last| {
            budget.purge_upto(&log(used), snapshot, needed_after.get(), |bytes, after| {
                assert_eq!((bytes, after), (400, snapshot.saturating_sub(5)));
                last
            })
        };
        assert_eq!(upto(800, 4, Some(7)), 0);
        assert_eq!(upto(800, 9, Some(7)), 4);
        assert_eq!(upto(801, 9, Some(7)), 7);
        assert_eq!(upto(801, 9, Some(2)), 4);
        assert_eq!(upto(801, 6, Some(7)), 6);
        assert_eq!(upto(801, 4, None), 0);
        assert_eq!(upto(801, 0, Some(7)), 0);
        needed_after.set(3);
        assert_eq!(upto(800, 9, Some(7)), 3);
        assert_eq!(upto(3200, 9, Some(7)), 3);
        assert_eq!(upto(3201, 9, Some(7)), 7);
    }
}
