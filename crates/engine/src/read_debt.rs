//! What reads of a tree lose by asking several sources where one could know it all.
//!
//! Two figures, both in bytes that compaction could have moved at that cost: the *debt*, which adds up until a
//! source is taken away, and the loss *for each write* of late, which says how much a compaction made now would save
//! until the writes have made the next source. `compaction::pick` weighs them against the price: rent or buy.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::key::SeqNo;

/// What the picker knows of the losses of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadLoss {
    /// Lost since a source was last taken away.
    pub debt: u64,
    /// Lost for each write of late; [`u64::MAX`] if there were none.
    pub per_write: u64,
}

/// The losses of a tree as they are noted. Many threads add; what is missed when two do at once is missed.
#[derive(Debug, Default)]
pub struct ReadDebt {
    debt: AtomicU64,
    per_write: AtomicU64,
    window: Mutex<Window>,
}

/// What is being counted now.
#[derive(Debug)]
struct Window {
    /// The newest write when it began.
    newest: SeqNo,
    /// When it began, in milliseconds of the monotonic clock.
    start_ms: u64,
    lost: u64,
    /// It is worth looking for a compaction when the debt reaches this,
    due: u64,
    /// or when the loss for each write is more than twice this.
    looked: u64,
}

/// Less debt than this is not worth looking for a compaction.
const LEAST_DEBT: u64 = 32 << 10;
/// Losses for each write are counted over at least so long: a writer may be kept from its processor for some
/// milliseconds.
const WINDOW_MS: u64 = 50;

impl Default for Window {
    fn default() -> Self {
        Self {
            newest: SeqNo(0),
            start_ms: 0,
            lost: 0,
            due: LEAST_DEBT,
            looked: 0,
        }
    }
}

impl ReadDebt {
    /// Both figures.
    pub fn loss(&self) -> ReadLoss {
        ReadLoss {
            debt: self.debt.load(Ordering::Relaxed),
            per_write: self.per_write.load(Ordering::Relaxed),
        }
    }

    /// Adds what some reads lost when `newest` was the newest write, at `now_ms` of the monotonic clock. Returns
    /// whether it is time to look for a compaction: each time that the debt has grown by half, or the loss for each
    /// write has doubled.
    pub fn add(&self, bytes: u64, newest: SeqNo, now_ms: u64) -> bool {
        let debt = self.debt.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let Some(mut window) = self.window.try_lock() else {
            return false;
        };
        window.lost += bytes;
        if now_ms.saturating_sub(window.start_ms) >= WINDOW_MS {
            let writes = newest.0.saturating_sub(window.newest.0);
            let per_write = window.lost.checked_div(writes).unwrap_or(u64::MAX);
            self.per_write.store(per_write, Ordering::Relaxed);
            (window.newest, window.start_ms, window.lost) = (newest, now_ms, 0);
            window.looked = window.looked.min(per_write);
        }
        let per_write = self.per_write.load(Ordering::Relaxed);
        let is_due = debt >= window.due;
        let has_doubled = debt >= LEAST_DEBT && per_write / 2 > window.looked;
        if is_due {
            window.due = debt + debt / 2;
        }
        if is_due || has_doubled {
            window.looked = per_write;
        }
        is_due || has_doubled
    }

    /// Forgets the debt: a source is being taken away.
    pub fn settle(&self) {
        self.debt.store(0, Ordering::Relaxed);
        self.window.lock().due = LEAST_DEBT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_for_each_write_of_the_last_window() {
        let debt = ReadDebt::default();
        // Nobody knows yet how much is written.
        assert!(!debt.add(10, SeqNo(5), 0));
        assert_eq!(debt.loss().per_write, 0);
        debt.add(10, SeqNo(5), WINDOW_MS);
        assert_eq!(debt.loss().per_write, 4);
        debt.add(600, SeqNo(7), 2 * WINDOW_MS - 1);
        assert_eq!(debt.loss().per_write, 4);
        debt.add(400, SeqNo(7), 2 * WINDOW_MS);
        assert_eq!(debt.loss().per_write, 500);
        debt.add(1, SeqNo(7), 3 * WINDOW_MS);
        let loss = ReadLoss {
            debt: 1021,
            per_write: u64::MAX,
        };
        assert_eq!(debt.loss(), loss);
        debt.settle();
        assert_eq!(debt.loss(), ReadLoss { debt: 0, ..loss });
    }

    #[test]
    fn it_is_time_to_look_when_debt_has_grown_or_writes_have_ceased() {
        let debt = ReadDebt::default();
        let mut at = 0;
        // A window of so many writes.
        let mut newest = 0;
        let mut next = |bytes, writes| {
            at += WINDOW_MS;
            newest += writes;
            debt.add(bytes, SeqNo(newest), at)
        };
        assert!(!next(LEAST_DEBT - 1, 1 << 20));
        assert!(next(1, 1 << 20));
        assert!(!next(LEAST_DEBT / 2 - 1, 1 << 20));
        assert!(next(1, 1 << 20));
        // Fewer writes: no more than twice the loss for each is not news.
        assert!(next(40, 10));
        assert!(!next(80, 10));
        assert!(next(100, 10));
        assert!(!next(100, 10));
        assert!(next(1, 0));
        assert!(!next(1, 0));
        // Many again, then none again.
        assert!(!next(10, 10));
        assert!(next(1, 0));
        debt.settle();
        assert!(!next(LEAST_DEBT - 1, 0));
        assert!(next(1, 0));
    }
}
