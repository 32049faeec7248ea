//! Range tombstones: the deletes of whole ranges of keys, held apart from the entries.
//!
//! A tombstone `[start, end) @ seqno` deletes every entry of its range that has a smaller sequence
//! number. Tombstones may overlap in any way; a set of them is kept *fragmented*, so that a lookup
//! is one binary search:
//!
//! ```text
//!   written      [a ------------------ m) @9
//!                        [f ------------------- t) @4
//!   fragments    [a - f) 9   [f - m) 9 4   [m - t) 4
//! ```
//!
//! 1. [`RangeTombstones::from_unfragmented`] sorts the ends of all tombstones and sweeps over them
//!    with the set of those that are open; between two ends lies one fragment.
//! 2. A fragment keeps *all* sequence numbers that cover it, newest first, since a snapshot sees
//!    only those that are not newer than itself. What no snapshot needs is dropped by compaction
//!    (see `compaction::drop`), not here.
//! 3. [`RangeTombstones::covering`] finds the fragment of a key and in it the newest number that
//!    the snapshot sees.
//!
//! Invariants: fragments are not empty, disjoint, in ascending order; the numbers of a fragment are
//! strictly descending and at least one; neighbours that touch have different numbers.
//!
//! A set is immutable. The size is linear in the number of tombstones where few overlap, and for n
//! tombstones all nested in each other it is quadratic, as is that of any fragmented form.

use std::collections::BTreeMap;

use crate::key::SeqNo;

/// One range delete, as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RangeTombstone {
    /// The first key deleted.
    pub start: Vec<u8>,
    /// The first key after `start` not deleted.
    pub end: Vec<u8>,
    /// When: entries with a smaller number are deleted.
    pub seqno: SeqNo,
}

/// A [`RangeTombstone`] that borrows its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RangeTombstoneRef<'a> {
    /// The first key deleted.
    pub start: &'a [u8],
    /// The first key after `start` not deleted.
    pub end: &'a [u8],
    /// When: entries with a smaller number are deleted.
    pub seqno: SeqNo,
}

impl RangeTombstoneRef<'_> {
    /// A copy that owns its keys.
    pub fn to_owned(self) -> RangeTombstone {
        RangeTombstone {
            start: self.start.to_vec(),
            end: self.end.to_vec(),
            seqno: self.seqno,
        }
    }
}

/// A range of keys that are all covered by the same tombstones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The first key.
    pub start: Vec<u8>,
    /// The first key after it that does not belong to it.
    pub end: Vec<u8>,
    /// The numbers of the tombstones, strictly descending, never empty.
    pub seqnos: Vec<SeqNo>,
}

impl Fragment {
    /// The newest number that a reader at `snapshot` sees.
    pub fn newest_at(&self, snapshot: SeqNo) -> Option<SeqNo> {
        // Nearly always the first is visible, or there is only one.
        let first = *self.seqnos.first()?;
        if first <= snapshot {
            return Some(first);
        }
        self.seqnos
            .get(self.seqnos.partition_point(|&s| s > snapshot))
            .copied()
    }
}

/// An immutable, fragmented set of range tombstones. The default is the empty set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeTombstones {
    fragments: Vec<Fragment>,
}

impl RangeTombstones {
    /// The set of these tombstones, in any order, with any overlaps and repetitions. Those whose
    /// start is not before their end delete nothing and are left out.
    pub fn from_unfragmented(tombstones: Vec<RangeTombstone>) -> Self {
        Self::sweep(
            tombstones
                .iter()
                .map(|t| RangeTombstoneRef {
                    start: &t.start,
                    end: &t.end,
                    seqno: t.seqno,
                })
                .collect(),
        )
    }

    /// Time is O(n log n) and the size of the result.
    fn sweep(mut starts: Vec<RangeTombstoneRef<'_>>) -> Self {
        starts.retain(|t| t.start < t.end);
        let mut ends: Vec<(&[u8], SeqNo)> = starts.iter().map(|t| (t.end, t.seqno)).collect();
        starts.sort_unstable_by(|a, b| a.start.cmp(b.start));
        ends.sort_unstable();

        let mut builder = Builder::default();
        // The open tombstones, and how many have each number: pieces of one tombstone from several
        // files share theirs and may overlap.
        let mut open: BTreeMap<SeqNo, u32> = BTreeMap::new();
        let mut starts = starts.into_iter().peekable();
        let mut position: &[u8] = &[];
        for (end, seqno) in ends {
            // Each end has its start before it, so starts never remain after the last end.
            while let Some(t) = starts.next_if(|t| t.start < end) {
                if t.start > position {
                    builder.push(position, t.start, open.keys().rev().copied());
                    position = t.start;
                }
                *open.entry(t.seqno).or_insert(0) += 1;
            }
            if end > position {
                builder.push(position, end, open.keys().rev().copied());
                position = end;
            }
            if let Some(count) = open.get_mut(&seqno) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&seqno);
                }
            }
        }
        builder.finish()
    }

    /// Whether it deletes nothing.
    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }

    /// The number of fragments.
    pub fn len(&self) -> usize {
        self.fragments.len()
    }

    /// The fragments, in ascending order.
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    /// The newest number, not newer than `snapshot`, of a tombstone that covers `key`: every entry
    /// of the key with a smaller number is deleted for a reader at `snapshot`.
    pub fn covering(&self, key: &[u8], snapshot: SeqNo) -> Option<SeqNo> {
        self.fragment_at(key)?.newest_at(snapshot)
    }

    /// The fragment that contains `key`.
    pub fn fragment_at(&self, key: &[u8]) -> Option<&Fragment> {
        self.fragments
            .get(self.first_ending_after(key))
            .filter(|f| f.start.as_slice() <= key)
    }

    /// The index of the first fragment whose end is after `key`: the one that contains it, or the
    /// next one. [`len`](Self::len) if there is none.
    pub fn first_ending_after(&self, key: &[u8]) -> usize {
        self.fragments.partition_point(|f| f.end.as_slice() <= key)
    }

    /// Every tombstone of every fragment, by start ascending, then number descending. Making a set
    /// of them again gives an equal set, so this is what files store.
    pub fn iter_raw(&self) -> impl Iterator<Item = RangeTombstoneRef<'_>> {
        self.fragments.iter().flat_map(|f| {
            f.seqnos.iter().map(|&seqno| RangeTombstoneRef {
                start: &f.start,
                end: &f.end,
                seqno,
            })
        })
    }

    /// The part of the set that lies in `[start, end)`; `None` is unbounded.
    #[must_use]
    pub fn clip(&self, start: Option<&[u8]>, end: Option<&[u8]>) -> Self {
        let first = start.map_or(0, |s| self.first_ending_after(s));
        let mut fragments = Vec::new();
        for f in self.fragments.get(first..).unwrap_or_default() {
            let from = start.map_or(f.start.as_slice(), |s| s.max(&f.start));
            let to = end.map_or(f.end.as_slice(), |e| e.min(&f.end));
            if from >= to {
                break; // at or after the end bound, as are all that follow
            }
            fragments.push(Fragment {
                start: from.to_vec(),
                end: to.to_vec(),
                seqnos: f.seqnos.clone(),
            });
        }
        Self { fragments }
    }

    /// The union of the sets.
    pub fn merge(sets: &[&Self]) -> Self {
        let mut filled = sets.iter().filter(|s| !s.is_empty());
        match (filled.next(), filled.next()) {
            (None, _) => Self::default(),
            (Some(only), None) => (*only).clone(),
            _ => Self::sweep(sets.iter().flat_map(|s| s.iter_raw()).collect()),
        }
    }

    /// The newest number of all.
    pub fn max_seqno(&self) -> Option<SeqNo> {
        self.fragments
            .iter()
            .filter_map(|f| f.seqnos.first().copied())
            .max()
    }

    /// Heap memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let of = |f: &Fragment| {
            f.start.capacity() + f.end.capacity() + f.seqnos.capacity() * size_of::<SeqNo>()
        };
        self.fragments.capacity() * size_of::<Fragment>()
            + self.fragments.iter().map(of).sum::<usize>()
    }

    /// The same ranges with only those numbers of each fragment that `keep` leaves in the list,
    /// which it may only shorten. A fragment left without numbers is dropped.
    #[must_use]
    pub fn retain(&self, mut keep: impl FnMut(&[u8], &[u8], &mut Vec<SeqNo>)) -> Self {
        let mut builder = Builder::default();
        let mut seqnos = Vec::new();
        for f in &self.fragments {
            seqnos.clone_from(&f.seqnos);
            keep(&f.start, &f.end, &mut seqnos);
            builder.push(&f.start, &f.end, seqnos.iter().copied());
        }
        builder.finish()
    }
}

/// Appends fragments in ascending order; joins those that touch and are alike.
#[derive(Default)]
struct Builder {
    fragments: Vec<Fragment>,
}

impl Builder {
    fn push(&mut self, start: &[u8], end: &[u8], seqnos: impl Iterator<Item = SeqNo> + Clone) {
        if seqnos.clone().next().is_none() {
            return;
        }
        if let Some(last) = self.fragments.last_mut()
            && last.end == start
            && last.seqnos.iter().copied().eq(seqnos.clone())
        {
            last.end.clear();
            last.end.extend_from_slice(end);
            return;
        }
        self.fragments.push(Fragment {
            start: start.to_vec(),
            end: end.to_vec(),
            seqnos: seqnos.collect(),
        });
    }

    fn finish(self) -> RangeTombstones {
        RangeTombstones {
            fragments: self.fragments,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tombstone(start: &[u8], end: &[u8], seqno: u64) -> RangeTombstone {
        RangeTombstone {
            start: start.to_vec(),
            end: end.to_vec(),
            seqno: SeqNo(seqno),
        }
    }

    fn check_invariants(set: &RangeTombstones) {
        for f in set.fragments() {
            assert!(f.start < f.end);
            assert!(!f.seqnos.is_empty());
            assert!(f.seqnos.windows(2).all(|w| w[0] > w[1]));
        }
        for w in set.fragments().windows(2) {
            assert!(w[0].end <= w[1].start);
            assert!(w[0].end < w[1].start || w[0].seqnos != w[1].seqnos);
        }
    }

    #[test]
    fn the_picture_of_the_module() {
        let set = RangeTombstones::from_unfragmented(vec![
            tombstone(b"a", b"m", 9),
            tombstone(b"f", b"t", 4),
        ]);
        let f = |start: &[u8], end: &[u8], seqnos: &[u64]| Fragment {
            start: start.to_vec(),
            end: end.to_vec(),
            seqnos: seqnos.iter().map(|&s| SeqNo(s)).collect(),
        };
        assert_eq!(
            set.fragments(),
            [
                f(b"a", b"f", &[9]),
                f(b"f", b"m", &[9, 4]),
                f(b"m", b"t", &[4])
            ]
        );
        assert_eq!(set.covering(b"g", SeqNo::MAX), Some(SeqNo(9)));
        assert_eq!(set.covering(b"g", SeqNo(8)), Some(SeqNo(4)));
        assert_eq!(set.covering(b"g", SeqNo(3)), None);
        assert_eq!(set.covering(b"t", SeqNo::MAX), None);
        assert_eq!(set.covering(b"", SeqNo::MAX), None);
        assert_eq!(
            set.fragment_at(b"m").map(|f| f.end.as_slice()),
            Some(b"t".as_slice())
        );
        assert_eq!(set.max_seqno(), Some(SeqNo(9)));
    }

    #[test]
    fn empty_and_inverted_ranges_delete_nothing() {
        let set = RangeTombstones::from_unfragmented(vec![
            tombstone(b"b", b"b", 1),
            tombstone(b"c", b"a", 2),
            tombstone(b"", b"", 3),
        ]);
        assert!(set.is_empty());
        assert_eq!(set, RangeTombstones::default());
        assert_eq!(set.fragment_at(b"b"), None);
        assert_eq!(set.max_seqno(), None);
    }

    #[test]
    fn from_the_empty_key_on() {
        let set = RangeTombstones::from_unfragmented(vec![tombstone(b"", b"b", 1)]);
        assert_eq!(set.covering(b"", SeqNo(1)), Some(SeqNo(1)));
        assert_eq!(set.covering(b"b", SeqNo(1)), None);
    }

    #[test]
    fn pieces_of_one_tombstone_are_joined() {
        let set = RangeTombstones::from_unfragmented(vec![
            tombstone(b"c", b"f", 7),
            tombstone(b"a", b"d", 7),
            tombstone(b"f", b"g", 7),
        ]);
        assert_eq!(
            set,
            RangeTombstones::from_unfragmented(vec![tombstone(b"a", b"g", 7)])
        );
    }

    #[test]
    fn many_disjoint_and_many_nested() {
        let key = |i: u32| format!("{i:08}").into_bytes();
        let disjoint: Vec<_> = (0..20_000)
            .map(|i| tombstone(&key(2 * i), &key(2 * i + 1), u64::from(i) + 1))
            .collect();
        let set = RangeTombstones::from_unfragmented(disjoint);
        assert_eq!(set.len(), 20_000);
        check_invariants(&set);
        let n = 300;
        let nested: Vec<_> = (0..n)
            .map(|i| tombstone(&key(i), &key(2 * n - i), u64::from(i) + 1))
            .collect();
        let set = RangeTombstones::from_unfragmented(nested);
        check_invariants(&set);
        let middle = set.fragment_at(&key(n)).unwrap();
        assert_eq!(middle.seqnos.len(), n as usize);
        assert_eq!(set.covering(&key(n), SeqNo(17)), Some(SeqNo(17)));
        assert!(set.memory_bytes() > 300 * 300 * 8);
    }

    fn tombstones() -> impl Strategy<Value = Vec<RangeTombstone>> {
        let key = || proptest::collection::vec(0u8..4, 0..3);
        proptest::collection::vec((key(), key(), 1u64..20), 0..12)
            .prop_map(|v| v.iter().map(|(s, e, q)| tombstone(s, e, *q)).collect())
    }

    fn all_keys() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for a in 0..5 {
            keys.push(vec![a]);
            for b in 0..5 {
                keys.extend([vec![a, b], vec![a, b, 0]]);
            }
        }
        keys
    }

    fn model(tombstones: &[RangeTombstone], key: &[u8], snapshot: SeqNo) -> Option<SeqNo> {
        tombstones
            .iter()
            .filter(|t| t.start.as_slice() <= key && key < t.end.as_slice() && t.seqno <= snapshot)
            .map(|t| t.seqno)
            .max()
    }

    proptest! {
        #[test]
        fn covers_what_the_tombstones_cover(input in tombstones()) {
            let set = RangeTombstones::from_unfragmented(input.clone());
            check_invariants(&set);
            for key in all_keys() {
                for snapshot in (0..21).map(SeqNo) {
                    prop_assert_eq!(set.covering(&key, snapshot), model(&input, &key, snapshot));
                }
            }
            let raw: Vec<_> = set.iter_raw().map(RangeTombstoneRef::to_owned).collect();
            prop_assert_eq!(RangeTombstones::from_unfragmented(raw), set);
        }

        #[test]
        fn merge_is_the_union(a in tombstones(), b in tombstones(), c in tombstones()) {
            let set = |v: &[RangeTombstone]| RangeTombstones::from_unfragmented(v.to_vec());
            let merged = RangeTombstones::merge(&[&set(&a), &set(&b), &set(&c)]);
            prop_assert_eq!(merged, set(&[a, b, c].concat()));
        }

        #[test]
        fn clip_is_the_part_inside(
            input in tombstones(),
            start in proptest::option::of(proptest::collection::vec(0u8..4, 0..3)),
            end in proptest::option::of(proptest::collection::vec(0u8..4, 0..3)),
        ) {
            let set = RangeTombstones::from_unfragmented(input);
            let clipped = set.clip(start.as_deref(), end.as_deref());
            check_invariants(&clipped);
            for key in all_keys() {
                let inside = start.as_ref().is_none_or(|s| *s <= key)
                    && end.as_ref().is_none_or(|e| key < *e);
                for snapshot in (0..21).map(SeqNo) {
                    let expected = set.covering(&key, snapshot).filter(|_| inside);
                    prop_assert_eq!(clipped.covering(&key, snapshot), expected);
                }
            }
        }
    }
}
