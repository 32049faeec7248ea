//! When the log has grown so much that a snapshot should be made, so that entries can be purged.
//!
//! What counts is what entries take, not the files that wait to be used again. And where the entries that
//! stay in any case (see `raft::config`) are more than the budget, a snapshot frees nothing: so after
//! each the log has to grow by a part of the budget before there is another, or a node would flush its
//! memtable whenever it looks.

use firn_io::wal::LogStats;

/// After a snapshot the log grows by one part in so many of the budget before the next.
const GROWTH: u64 = 8;

/// How long the log may become, and whether it is time to do something about it.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: u64,
    /// Not before so many bytes were appended.
    next: u64,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, next: 0 }
    }

    /// Whether a snapshot is due; if so, the caller makes one.
    pub(crate) fn is_exceeded(&mut self, log: &LogStats) -> bool {
        let is_exceeded = log.used_bytes > self.bytes && log.appended_bytes >= self.next;
        if is_exceeded {
            self.next = log.appended_bytes.saturating_add(self.bytes / GROWTH);
        }
        is_exceeded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_due_when_entries_are_many_and_have_become_more() {
        let mut budget = Budget::new(800);
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
}
