//! Pinned sequence numbers and what they hold back.
//!
//! A snapshot is a sequence number that somebody still reads at. Flush and compaction keep, for
//! every key, the newest version at or below each pinned number; everything between is theirs to
//! drop.
//!
//! **Invariant.** A reader is safe if (a) it pinned its number here *before* the job that might drop
//! its versions asked for the list, or (b) it holds the memtables and files that it reads, loaded
//! *before* it read the published number. Case (b) costs a point read nothing. For case (a) the list
//! that a job gets always ends with the published number at that moment: a snapshot taken later has
//! at least that number.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::compaction::drop::Snapshots;
use crate::key::SeqNo;
use crate::publish::Published;

/// The pinned numbers of one database, and the published one.
#[derive(Debug, Default)]
pub struct SnapshotList {
    /// Readers see operations up to this number.
    published: Published,
    /// Number to how many snapshots pin it.
    pinned: Mutex<BTreeMap<SeqNo, usize>>,
}

impl SnapshotList {
    /// The newest operation that readers see.
    #[inline]
    pub fn published(&self) -> SeqNo {
        self.published.get()
    }

    /// The published number itself, for the commit path.
    pub fn number(&self) -> &Published {
        &self.published
    }

    /// Pins the published number.
    pub fn pin(&self) -> SeqNo {
        let mut pinned = self.pinned.lock();
        let seqno = self.published();
        *pinned.entry(seqno).or_insert(0) += 1;
        seqno
    }

    /// Pins a number that is pinned already.
    pub fn pin_again(&self, seqno: SeqNo) {
        *self.pinned.lock().entry(seqno).or_insert(0) += 1;
    }

    /// Takes back one pin.
    pub fn unpin(&self, seqno: SeqNo) {
        let mut pinned = self.pinned.lock();
        if let Some(count) = pinned.get_mut(&seqno) {
            *count -= 1;
            if *count == 0 {
                pinned.remove(&seqno);
            }
        }
    }

    /// The numbers at which a job that starts now must keep the state; the last one is the
    /// published number.
    pub fn visible_at(&self) -> Snapshots {
        let pinned = self.pinned.lock();
        Snapshots::new(pinned.keys().copied().collect(), self.published())
    }

    /// The oldest number that must stay readable.
    pub fn oldest(&self) -> SeqNo {
        let pinned = self.pinned.lock();
        pinned
            .keys()
            .next()
            .copied()
            .unwrap_or_else(|| self.published())
    }

    /// How many snapshots are open.
    pub fn count(&self) -> usize {
        self.pinned.lock().values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_counted_and_listed_with_the_published_number() {
        let list = SnapshotList::default();
        list.number().set(SeqNo(5));
        assert_eq!(list.visible_at(), Snapshots::new(vec![], SeqNo(5)));
        let pin = list.pin();
        list.pin_again(pin);
        list.number().set(SeqNo(9));
        assert_eq!(list.visible_at(), Snapshots::new(vec![SeqNo(5)], SeqNo(9)));
        assert_eq!((list.oldest(), list.count()), (SeqNo(5), 2));
        list.unpin(pin);
        assert_eq!(list.oldest(), SeqNo(5));
        list.unpin(pin);
        assert_eq!((list.oldest(), list.count()), (SeqNo(9), 0));
        assert_eq!(list.visible_at(), Snapshots::new(vec![], SeqNo(9)));
    }
}
