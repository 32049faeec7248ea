//! When the log has grown so much that a snapshot should be made, and which entries can be purged then.
//!
//! What counts is what entries take, not the files that wait to be used again. After each snapshot the log
//! has to grow by a part of the budget before there is another, or a node whose entries may not go yet
//! would flush its memtable whenever it looks.
//!
//! A number of entries that a snapshot has stay all the same, so that a follower that was away for a moment
//! needs no snapshot. Where they are so long that the log is beyond its budget for them, those go that do not
//! fit into half of it.

use firn_io::wal::LogStats;

/// After a snapshot the log grows by one part in so many of the budget before the next.
const GROWTH: u64 = 8;

/// So many entries stay, unless another number is asked for.
const KEPT_ENTRIES: u64 = 10_000;

/// How long the log may become, and whether it is time to do something about it.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: u64,
    kept_entries: u64,
    /// Not before so many bytes were appended.
    next: u64,
}

impl Budget {
    pub(crate) fn new(bytes: u64, kept_entries: Option<u64>) -> Self {
        Self {
            bytes,
            kept_entries: kept_entries.unwrap_or(KEPT_ENTRIES),
            next: 0,
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

    /// Up to which entry the log should be purged, if the last that the snapshot has is `snapshot`;
    /// `last_beyond` tells the last one before the newest ones that take so many bytes.
    pub(crate) fn purge_upto(
        &self,
        log: &LogStats,
        snapshot: u64,
        last_beyond: impl FnOnce(u64) -> Option<u64>,
    ) -> u64 {
        let beyond = match log.used_bytes > self.bytes {
            true => last_beyond(self.bytes / 2).unwrap_or(0),
            false => 0,
        };
        let too_many = snapshot.saturating_sub(self.kept_entries);
        beyond.min(snapshot).max(too_many)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let upto = |used, snapshot, last| {
            budget.purge_upto(&log(used), snapshot, |bytes| {
                assert_eq!(bytes, 400);
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
    }
}
