//! What flush and compaction may leave out: a pure decision, entry by entry.
//!
//! A job merges its inputs (all versions, internal order) and writes what [`DropFilter::decide`]
//! keeps and what [`surviving_range_tombstones`] returns, in place of the inputs. No reader may see
//! a difference. Readers are those at the snapshots that are held, and those at any number from the
//! *published* one on: later reads and snapshots. The caller gives both as one ascending list,
//! [`Snapshots`], whose last element is the published number when the job started. They cut history
//! into *stripes*:
//!
//! ```text
//!   number   1 2 3 4 5 | 6 7 8 9 10 11 | 12 13 ...
//!   snapshots         5              11
//!   stripe       0              1        none
//! ```
//!
//! No reader's number lies between two numbers of the same stripe, except the later: whoever sees
//! the older of them sees the newer too. Numbers above the published one have no stripe: a reader
//! may yet come between any two of them, so nothing is dropped for their sake.
//!
//! Rules, and why no reader sees a difference:
//!
//! 1. *Shadowed*: an entry is dropped if a newer version of its key is in the same stripe. Whoever
//!    sees the entry sees the newer one, which decides.
//! 2. *Range-deleted*: an entry is dropped if a range tombstone of the same stripe, newer than it,
//!    covers the key. Whoever sees the entry sees the tombstone. The tombstone itself is kept, or
//!    dropped by rule 5.
//! 3. *Tombstone*: a point tombstone of stripe 0 is dropped at the base level of its key, that is if
//!    nothing older of the key exists below the output. Every reader sees stripe 0 whole. The
//!    tombstone hides older versions for all of them, those are of stripe 0 as well, hence gone by
//!    rule 1, and below there are none: the key is absent with or without it. In a later stripe it
//!    stays: versions of an earlier stripe, kept for a snapshot, lie beneath it.
//! 4. *Expired*: an entry that expired before the job is to every reader what a tombstone is, so it
//!    becomes one with its number, which drops the value, or falls under rule 3. (This asks of the
//!    clock that a reader's "now" is not before the job's.)
//! 5. *Range tombstones*: of those in one stripe over the same keys only the newest is kept:
//!    whoever sees an older one sees the newer, and what the older deletes the newer deletes. At
//!    base level those of stripe 0 are dropped: what they delete is of stripe 0 and gone by rule 2.
//!
//! The rules need the order of sources (see `merge::merging`): what is below the output, and what of
//! the same range is in the inputs, is older than what is above. "Base level" must be asked against
//! everything below the output, and of a range against the whole range, and all tables of the
//! output level that overlap the inputs, range tombstones included, must be inputs.
//!
//! Readers must pin the version they read *before* they take the published number as theirs, or both
//! at once: a reader at an older number than the job's last snapshot must not come to the output.
//!
//! A crash changes nothing: the decision has no state that outlives the job.

use crate::error::Result;
use crate::key::{Kind, SeqNo, Trailer};
use crate::merge::visible::{damaged, expiry};
use crate::range_del::RangeTombstones;

/// The numbers at which readers are, ascending; the last is the published number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshots {
    /// Strictly ascending.
    list: Vec<SeqNo>,
}

impl Snapshots {
    /// The held snapshots, in any order, and the number published when the job starts. A snapshot
    /// held is never newer than that.
    pub fn new(mut held: Vec<SeqNo>, published: SeqNo) -> Self {
        held.push(published);
        held.sort_unstable();
        held.dedup();
        Self { list: held }
    }

    /// The stripe of a number; `None` if it is newer than the published one.
    #[inline]
    fn stripe(&self, seqno: SeqNo) -> Option<usize> {
        // Mostly no snapshot is held.
        if self.list.first().is_some_and(|&s| seqno <= s) {
            return Some(0);
        }
        let stripe = self.list.partition_point(|&s| s < seqno);
        (stripe < self.list.len()).then_some(stripe)
    }

    /// The reader that sees the whole stripe and nothing later.
    fn end(&self, stripe: usize) -> SeqNo {
        self.list.get(stripe).copied().unwrap_or(SeqNo::ZERO)
    }
}

/// Why an entry is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// A newer version of the key takes its place for all readers.
    Shadowed,
    /// A range tombstone deletes it for all readers.
    RangeDeleted,
    /// A tombstone that has nothing left to delete.
    Tombstone,
    /// It expired and has nothing left to hide.
    Expired,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Write it as it is.
    Keep,
    /// It expired: write a [`Kind::Delete`] with its number and no value in its place.
    KeepAsDelete,
    /// Do not write it. A blob it points to is garbage, as with `KeepAsDelete`.
    Drop(DropReason),
}

/// Decides for each entry of a job, in internal order. See the module.
#[derive(Debug)]
pub struct DropFilter<'a, B> {
    snapshots: &'a Snapshots,
    tombstones: &'a RangeTombstones,
    is_base_for: B,
    now_ms: u64,
    /// The key of the last entry, if there was one, and the stripe of the last version of it.
    key: Vec<u8>,
    started: bool,
    stripe: Option<usize>,
    /// The fragment that contains the key, or the next one.
    fragment: usize,
}

impl<'a, B: FnMut(&[u8]) -> bool> DropFilter<'a, B> {
    /// `tombstones` are those of all inputs; `is_base_for` tells whether nothing of a key exists
    /// below the output (it is asked in ascending order, only for tombstones and expired entries);
    /// `now_ms` is the time of the job in Unix milliseconds.
    pub fn new(
        snapshots: &'a Snapshots,
        tombstones: &'a RangeTombstones,
        now_ms: u64,
        is_base_for: B,
    ) -> Self {
        Self {
            snapshots,
            tombstones,
            is_base_for,
            now_ms,
            key: Vec::new(),
            started: false,
            stripe: None,
            fragment: 0,
        }
    }

    /// What becomes of the next entry. `value` is the stored value, with the expiry if the kind has
    /// one. Entries must come in internal order.
    ///
    /// # Errors
    /// [`Error::Corruption`](crate::error::Error::Corruption) for an entry that is none: a kind that
    /// trees do not hold, or an expiring one without an expiry.
    #[inline]
    pub fn decide(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) -> Result<Decision> {
        let is_new_key = !self.started || self.key != key;
        if is_new_key {
            self.started = true;
            self.stripe = None;
            self.key.clear();
            self.key.extend_from_slice(key);
            self.find_fragment();
        }
        let kind = match trailer.kind() {
            Some(kind) if kind != Kind::RangeDelete => kind,
            _ => {
                return Err(damaged(
                    key,
                    trailer,
                    &format!("kind {} in a tree", trailer.0 & 0xff),
                ));
            }
        };
        let expires_at_ms = match kind.is_expiring() {
            true => match expiry(value) {
                Some(expires_at_ms) => expires_at_ms,
                None => {
                    return Err(damaged(
                        key,
                        trailer,
                        &format!("{kind:?} without an expiry"),
                    ));
                }
            },
            false => u64::MAX,
        };
        let is_expired = kind.is_expiring() && expires_at_ms <= self.now_ms;

        let stripe = self.snapshots.stripe(trailer.seqno());
        let previous = std::mem::replace(&mut self.stripe, stripe);
        if let Some(stripe) = stripe {
            if previous == Some(stripe) {
                return Ok(Decision::Drop(DropReason::Shadowed));
            }
            if self.is_range_deleted(key, trailer.seqno(), stripe) {
                return Ok(Decision::Drop(DropReason::RangeDeleted));
            }
            if stripe == 0 && (kind == Kind::Delete || is_expired) && (self.is_base_for)(key) {
                return Ok(Decision::Drop(match is_expired {
                    true => DropReason::Expired,
                    false => DropReason::Tombstone,
                }));
            }
        }
        Ok(if is_expired {
            Decision::KeepAsDelete
        } else {
            Decision::Keep
        })
    }

    /// Moves on to the fragment of a new key: keys ascend, so mostly it is the same one.
    #[inline]
    fn find_fragment(&mut self) {
        let fragments = self.tombstones.fragments();
        if fragments
            .get(self.fragment)
            .is_some_and(|f| f.end <= self.key)
        {
            self.fragment += 1;
            if fragments
                .get(self.fragment)
                .is_some_and(|f| f.end <= self.key)
            {
                self.fragment = self.tombstones.first_ending_after(&self.key);
            }
        }
    }

    #[inline]
    fn is_range_deleted(&self, key: &[u8], seqno: SeqNo, stripe: usize) -> bool {
        let Some(fragment) = self.tombstones.fragments().get(self.fragment) else {
            return false;
        };
        // The newest tombstone that is not after the stripe; if it is newer than the entry then it
        // lies in the stripe of the entry.
        fragment.start.as_slice() <= key
            && fragment
                .newest_at(self.snapshots.end(stripe))
                .is_some_and(|newest| newest > seqno)
    }
}

/// The range tombstones that a job writes. `tombstones` are those of all inputs; `is_base_for` tells
/// whether nothing exists below the output in a range (start, exclusive end).
pub fn surviving_range_tombstones(
    tombstones: &RangeTombstones,
    snapshots: &Snapshots,
    mut is_base_for: impl FnMut(&[u8], &[u8]) -> bool,
) -> RangeTombstones {
    tombstones.retain(|start, end, seqnos| {
        let mut previous = None;
        seqnos.retain(|&seqno| {
            let stripe = snapshots.stripe(seqno);
            let is_newest_of_stripe = stripe.is_none() || stripe != previous;
            previous = stripe;
            is_newest_of_stripe
        });
        // Descending: stripe 0 can only be that of the last.
        if seqnos
            .last()
            .is_some_and(|&last| snapshots.stripe(last) == Some(0))
            && is_base_for(start, end)
        {
            seqnos.pop();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::testing::{Entry, History, entry, history, key, sort};
    use crate::range_del::{RangeTombstone, RangeTombstoneRef};
    use proptest::prelude::*;

    fn inside(history: &History, from: u64, to: u64) -> History {
        let mut part = history.clone();
        part.entries
            .retain(|e| (from..to).contains(&e.trailer.seqno().0));
        part.tombstones.retain(|t| (from..to).contains(&t.seqno.0));
        part
    }

    /// What a job writes.
    fn output(
        input: &History,
        snapshots: &Snapshots,
        now_ms: u64,
        is_base_for: impl Fn(&[u8]) -> bool,
        is_base_for_range: impl Fn(&[u8], &[u8]) -> bool,
    ) -> History {
        let tombstones = RangeTombstones::from_unfragmented(input.tombstones.clone());
        let mut filter = DropFilter::new(snapshots, &tombstones, now_ms, is_base_for);
        let mut entries = input.entries.clone();
        sort(&mut entries);
        entries.retain_mut(
            |e| match filter.decide(&e.key, e.trailer, &e.value).unwrap() {
                Decision::Keep => true,
                Decision::KeepAsDelete => {
                    e.trailer = Trailer::new(e.trailer.seqno(), Kind::Delete);
                    e.value.clear();
                    true
                }
                Decision::Drop(_) => false,
            },
        );
        let tombstones = surviving_range_tombstones(&tombstones, snapshots, |start, end| {
            is_base_for_range(start, end)
        });
        let tombstones = tombstones
            .iter_raw()
            .map(RangeTombstoneRef::to_owned)
            .collect();
        History {
            entries,
            tombstones,
            last: input.last,
        }
    }

    fn together(parts: &[&History]) -> History {
        History {
            entries: parts.iter().flat_map(|p| p.entries.clone()).collect(),
            tombstones: parts.iter().flat_map(|p| p.tombstones.clone()).collect(),
            last: parts.iter().map(|p| p.last).max().unwrap_or(0),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// The history is cut into what lies below the output, the inputs, and what lies above.
        #[test]
        fn no_reader_sees_a_difference(
            history in history(60, 15),
            (low, high) in (0u64..62, 0u64..62),
            held in proptest::collection::vec(0u64..62, 0..5),
            published in 0u64..62,
            now_ms in 0u64..11,
            below_keys in proptest::collection::vec(key(), 0..5),
        ) {
            let (low, high) = (low.min(high), low.max(high));
            let published = published.min(history.last);
            let mut below = inside(&history, 0, low);
            below.entries.retain(|e| below_keys.contains(&e.key));
            let input = inside(&history, low, high);
            let above = inside(&history, high, u64::MAX);

            let held: Vec<_> = held.into_iter().filter(|&s| s <= published).map(SeqNo).collect();
            let snapshots = Snapshots::new(held.clone(), SeqNo(published));
            let after = output(
                &input,
                &snapshots,
                now_ms,
                |key| !below.entries.iter().any(|e| e.key == key),
                |start, end| {
                    !below.entries.iter().any(|e| start <= &e.key[..] && &e.key[..] < end)
                },
            );

            let old = together(&[&below, &input, &above]);
            let new = together(&[&below, &after, &above]);
            let later = (published..=history.last).map(SeqNo);
            for snapshot in held.into_iter().chain(later) {
                for reader_now_ms in now_ms..12 {
                    prop_assert_eq!(
                        old.all(snapshot, reader_now_ms),
                        new.all(snapshot, reader_now_ms),
                        "at {} and {} ms", snapshot, reader_now_ms
                    );
                }
            }

            // And it does its work: with no snapshot and nothing below, one live value per key.
            if published == history.last && low == 0 && high > history.last {
                let only = Snapshots::new(vec![], SeqNo(published));
                let least = output(&history, &only, now_ms, |_| true, |_, _| true);
                prop_assert!(least.tombstones.is_empty());
                prop_assert_eq!(
                    least.entries.len(),
                    history.all(SeqNo::MAX, now_ms).len()
                );
            }
        }
    }

    fn decisions(
        snapshots: &Snapshots,
        tombstones: Vec<RangeTombstone>,
        base: bool,
        entries: &[Entry],
    ) -> Vec<Decision> {
        let tombstones = RangeTombstones::from_unfragmented(tombstones);
        let mut filter = DropFilter::new(snapshots, &tombstones, 100, |_| base);
        entries
            .iter()
            .map(|e| filter.decide(&e.key, e.trailer, &e.value).unwrap())
            .collect()
    }

    fn with_kind(seqno: u64, kind: Kind, value: &[u8]) -> Entry {
        let trailer = Trailer::new(SeqNo(seqno), kind);
        Entry {
            key: b"k".to_vec(),
            trailer,
            value: value.to_vec(),
        }
    }

    use Decision::{Drop, Keep, KeepAsDelete};
    use DropReason::{Expired, RangeDeleted, Shadowed, Tombstone};

    #[test]
    fn the_newest_of_each_stripe_is_kept() {
        let snapshots = Snapshots::new(vec![SeqNo(5)], SeqNo(11));
        let list: Vec<_> = [13, 12, 11, 8, 6, 5, 4]
            .iter()
            .map(|&s| entry(b"k", s, b""))
            .collect();
        assert_eq!(
            decisions(&snapshots, vec![], true, &list),
            [
                Keep,
                Keep,
                Keep,
                Drop(Shadowed),
                Drop(Shadowed),
                Keep,
                Drop(Shadowed)
            ]
        );
    }

    #[test]
    fn a_tombstone_goes_at_base_level_with_all_that_it_hides() {
        let list = [
            with_kind(4, Kind::Delete, b""),
            entry(b"k", 3, b""),
            entry(b"l", 2, b""),
        ];
        let none_held = Snapshots::new(vec![], SeqNo(9));
        assert_eq!(
            decisions(&none_held, vec![], true, &list),
            [Drop(Tombstone), Drop(Shadowed), Keep]
        );
        assert_eq!(
            decisions(&none_held, vec![], false, &list),
            [Keep, Drop(Shadowed), Keep]
        );
        let held = Snapshots::new(vec![SeqNo(3)], SeqNo(9));
        assert_eq!(decisions(&held, vec![], true, &list), [Keep, Keep, Keep]);
        let unpublished = Snapshots::new(vec![], SeqNo(3));
        assert_eq!(
            decisions(&unpublished, vec![], true, &list),
            [Keep, Keep, Keep]
        );
    }

    #[test]
    fn an_expired_entry_is_a_tombstone() {
        let expired = with_kind(4, Kind::PutExpiring, &100u64.to_le_bytes());
        let list = [expired, entry(b"k", 3, b"")];
        let none_held = Snapshots::new(vec![], SeqNo(9));
        assert_eq!(
            decisions(&none_held, vec![], true, &list),
            [Drop(Expired), Drop(Shadowed)]
        );
        assert_eq!(
            decisions(&none_held, vec![], false, &list),
            [KeepAsDelete, Drop(Shadowed)]
        );
        let held = Snapshots::new(vec![SeqNo(3)], SeqNo(9));
        assert_eq!(decisions(&held, vec![], true, &list), [KeepAsDelete, Keep]);
        let alive = with_kind(4, Kind::BlobPutExpiring, &101u64.to_le_bytes());
        assert_eq!(decisions(&none_held, vec![], true, &[alive]), [Keep]);
    }

    #[test]
    fn a_range_tombstone_deletes_in_its_stripe() {
        let range = RangeTombstone {
            start: b"a".to_vec(),
            end: b"l".to_vec(),
            seqno: SeqNo(7),
        };
        let list = [
            entry(b"k", 8, b""),
            entry(b"k", 6, b""),
            entry(b"k", 3, b""),
        ];
        let held = Snapshots::new(vec![SeqNo(4), SeqNo(7)], SeqNo(9));
        assert_eq!(
            decisions(&held, vec![range.clone()], false, &list),
            [Keep, Drop(RangeDeleted), Keep]
        );
        let other = [entry(b"l", 6, b"")];
        assert_eq!(decisions(&held, vec![range.clone()], false, &other), [Keep]);

        let set = RangeTombstones::from_unfragmented(vec![
            range,
            RangeTombstone {
                start: b"a".to_vec(),
                end: b"l".to_vec(),
                seqno: SeqNo(5),
            },
            RangeTombstone {
                start: b"a".to_vec(),
                end: b"l".to_vec(),
                seqno: SeqNo(2),
            },
        ]);
        let kept = |base| {
            let kept = surviving_range_tombstones(&set, &held, |_, _| base);
            kept.iter_raw().map(|t| t.seqno.0).collect::<Vec<_>>()
        };
        assert_eq!(kept(false), [7, 2]);
        assert_eq!(kept(true), [7]);
    }

    #[test]
    fn damage_is_an_error() {
        let snapshots = Snapshots::new(vec![], SeqNo(9));
        let tombstones = RangeTombstones::default();
        let mut filter = DropFilter::new(&snapshots, &tombstones, 0, |_| true);
        for (trailer, value) in [
            (Trailer::new(SeqNo(1), Kind::PutExpiring), &b"1234567"[..]),
            (Trailer::new(SeqNo(1), Kind::RangeDelete), b""),
            (Trailer(1 << 8 | 77), b""),
        ] {
            assert!(
                filter
                    .decide(b"k", trailer, value)
                    .unwrap_err()
                    .is_corruption()
            );
        }
    }
}
