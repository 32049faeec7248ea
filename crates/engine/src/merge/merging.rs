//! Sources that overlap, merged into one stream in internal order.
//!
//! 1. The children stand each on an entry; their positions are kept in a small array sorted by what
//!    comes next. The first is where the merge stands.
//! 2. A move moves the first child, then lets it sink to its place. As long as it stays first that
//!    is one comparison, which is the common case: most entries lie in the oldest level. The array
//!    holds eight bytes of each key as a number, so that most comparisons touch no key: the first
//!    eight, or where the keys of all children begin alike, the eight around their first difference.
//!    The array was measured against a loser tree on such numbers: with 2 to 12 sources that take
//!    turns evenly it costs 8 to 13 ns a step, the tree 6 to 19 (5 to 9 without branches, which
//!    leaves no room for a comparison of whole keys); with nine of ten entries in one source 2.4 to
//!    4.1 ns against 2.4 to 5.7 (5.0 to 8.5).
//! 3. A change of direction repositions all children but the first around its entry.
//! 4. *Range tombstones.* An entry is deleted for the reader if a tombstone that its snapshot sees
//!    covers the key with a greater number. The merge steps over such entries. If the tombstone
//!    comes from a newer source than the entry, then everything of the older source within the range
//!    is deleted, and the child *seeks* behind the range: a scan over a million deleted keys costs
//!    a seek per source. Tombstones of the entry's own source are compared entry by entry.
//!
//! Rank 0 is the newest source. Invariant asked of the sources, which flush and compaction keep:
//! wherever two sources hold the same key, the newer source's entries and tombstones that cover the
//! key all have greater numbers than the older one's.
//!
//! With one child and no tombstones every call goes straight to the child.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::error::Result;
use crate::iterator::InternalIterator;
use crate::key::{SeqNo, Trailer, window};
use crate::merge::prefix_of;
use crate::range_del::{Fragment, RangeTombstones};

/// So many steps are tried over a deleted range before it is left by a seek, which costs as much as
/// many steps: short ranges are common too.
const STEPS_BEFORE_SEEK: usize = 4;

/// After so many comparisons of whole keys it is looked what all keys have in common.
const FULL_COMPARISONS: u32 = if cfg!(test) { 2 } else { 64 };

/// So many bytes less than they have in common are left out of the comparison, so that they need not
/// be looked at again each time that the last of these bytes change.
const SLACK_BYTES: usize = 3;

/// What keys have in common beyond this is compared with the rest of them: looking for it takes time with
/// each seek.
const MAX_COMMON_BYTES: usize = 256;

/// Where a child stands.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// [`prefix_of`] the key behind what is common to all; complemented in reverse, so that the
    /// smaller always comes first.
    prefix: u64,
    child: u32,
}

/// The tombstones of one source that has some.
#[derive(Debug)]
struct RankedTombstones {
    /// The child whose source they are from.
    rank: usize,
    set: Arc<RangeTombstones>,
}

/// What the tombstones say about an entry.
enum Verdict {
    Live,
    /// It is deleted by its own source.
    Deleted,
    /// Its source is deleted in all fragments from `first` to `last` of set `set`.
    RangeDeleted {
        set: usize,
        first: usize,
        last: usize,
    },
}

/// Merges children, newest source first. See the module.
#[derive(Debug)]
pub struct MergingIter<I> {
    children: Vec<I>,
    /// The valid children in the order in which they come; unused if `single`.
    order: Vec<Slot>,
    /// The child of `order[0]`.
    top: usize,
    /// The keys of all children in `order` begin so.
    common: Vec<u8>,
    /// How many times keys were compared in full since `common` was looked for.
    full_comparisons: u32,
    /// One child, no tombstones.
    single: bool,
    /// The direction of `order`.
    reverse: bool,
    snapshot: SeqNo,
    /// Ascending by rank.
    sets: Vec<RankedTombstones>,
    /// For each child and each set, the fragment near which the child stood last.
    hints: Vec<usize>,
    /// For each child: as long as it moves in the present direction, no fragment comes before this
    /// [`prefix_of`] the key, complemented in reverse.
    clear: Vec<u64>,
    /// So many more deleted entries and ranges may be stepped over, see [`MergingIter::allow`].
    allowance: u64,
    /// The key around which a change of direction turns; a buffer in seeks.
    pivot: Vec<u8>,
}

impl<I: InternalIterator> MergingIter<I> {
    /// Merges all entries of the children, newest source first; no range tombstones.
    pub fn new(children: Vec<I>) -> Self {
        Self::build(children, Vec::new(), SeqNo::MAX)
    }

    /// Merges the children, newest source first, for a reader at `snapshot`. `tombstones` are the
    /// range tombstones of those children's sources that have some, by the number of the child,
    /// ascending: entries that a tombstone not newer than the snapshot deletes are left out. Entries
    /// newer than the snapshot are not.
    pub fn with_tombstones(
        children: Vec<I>,
        tombstones: impl IntoIterator<Item = (usize, Arc<RangeTombstones>)>,
        snapshot: SeqNo,
    ) -> Self {
        let sets = tombstones.into_iter().filter(|(_, set)| !set.is_empty());
        let sets = sets.map(|(rank, set)| RankedTombstones { rank, set });
        Self::build(children, sets.collect(), snapshot)
    }

    fn build(children: Vec<I>, sets: Vec<RankedTombstones>, snapshot: SeqNo) -> Self {
        Self {
            order: Vec::with_capacity(children.len()),
            top: 0,
            common: Vec::new(),
            full_comparisons: 0,
            single: children.len() == 1 && sets.is_empty(),
            reverse: false,
            snapshot,
            hints: vec![0; children.len() * sets.len()],
            clear: vec![0; if sets.is_empty() { 0 } else { children.len() }],
            sets,
            allowance: u64::MAX,
            pivot: Vec::new(),
            children,
        }
    }

    /// Lets it step over so many deleted entries and ranges of them from now on. Once that is
    /// [spent](Self::is_spent), it stands where it has come to, on a deleted entry perhaps, until it is allowed
    /// more.
    ///
    /// # Errors
    /// Those of the sources.
    pub fn allow(&mut self, steps: u64) -> Result<()> {
        self.allowance = steps;
        self.skip_deleted()
    }

    /// Takes one step off what is allowed.
    pub fn spend(&mut self) {
        self.allowance = self.allowance.saturating_sub(1);
    }

    /// Whether nothing more is allowed.
    pub fn is_spent(&self) -> bool {
        self.allowance == 0
    }

    /// The children, newest first.
    pub fn children(&self) -> &[I] {
        &self.children
    }

    #[inline]
    fn slot(&self, child: usize) -> Slot {
        let prefix = window(self.children[child].key(), self.common.len());
        Slot {
            prefix: if self.reverse { !prefix } else { prefix },
            child: child as u32,
        }
    }

    #[inline]
    fn comes_before(&mut self, a: Slot, b: Slot) -> bool {
        if a.prefix != b.prefix {
            return a.prefix < b.prefix;
        }
        self.full_comparisons += 1;
        self.comes_before_in_full(a, b)
    }

    fn comes_before_in_full(&self, a: Slot, b: Slot) -> bool {
        let (x, y) = (
            &self.children[a.child as usize],
            &self.children[b.child as usize],
        );
        let order = x
            .key()
            .cmp(y.key())
            .then_with(|| y.trailer().cmp(&x.trailer()))
            .then_with(|| a.child.cmp(&b.child));
        order
            == if self.reverse {
                Ordering::Greater
            } else {
                Ordering::Less
            }
    }

    /// Puts the child at `place`, which has moved, where it belongs among those behind it.
    #[inline]
    fn requeue(&mut self, place: usize) {
        let child = self.order[place].child as usize;
        if !self.children[child].valid() {
            self.order.remove(place);
        } else {
            // The first test matters: comparing zero bytes of an empty vector, whose pointer leads
            // nowhere, takes the processor's slow path in a memcmp made of masked loads.
            if !self.common.is_empty() && !self.children[child].key().starts_with(&self.common) {
                self.find_common();
            }
            let moved = self.slot(child);
            let mut free = place;
            while let Some(&next) = self.order.get(free + 1)
                && self.comes_before(next, moved)
            {
                self.order[free] = next;
                free += 1;
            }
            self.order[free] = moved;
            if self.full_comparisons >= FULL_COMPARISONS {
                self.find_common();
            }
        }
        self.top = self.order.first().map_or(0, |s| s.child as usize);
    }

    /// Finds what the keys of all children have in common, up to [`MAX_COMMON_BYTES`], and fills the slots
    /// anew. Their order stays as it is.
    fn find_common(&mut self) {
        self.full_comparisons = 0;
        self.common.clear();
        let mut keys = self
            .order
            .iter()
            .map(|slot| self.children[slot.child as usize].key());
        // One alone is compared with nothing.
        if let Some(first) = keys.next()
            && keys.len() > 0
        {
            let shared = |len, key: &[u8]| {
                first
                    .iter()
                    .zip(key)
                    .take(len)
                    .take_while(|(a, b)| a == b)
                    .count()
            };
            let most = first.len().min(MAX_COMMON_BYTES);
            let len = keys.fold(most, shared).saturating_sub(SLACK_BYTES);
            self.common
                .extend_from_slice(first.get(..len).unwrap_or_default());
        }
        for i in 0..self.order.len() {
            self.order[i] = self.slot(self.order[i].child as usize);
        }
    }

    /// Fills the order after all children were positioned for this direction.
    fn rebuild(&mut self, reverse: bool) {
        self.reverse = reverse;
        self.clear.fill(0);
        let valid = (0..self.children.len()).filter(|&child| self.children[child].valid());
        // Their numbers are filled in below.
        let unordered = valid.map(|child| Slot {
            prefix: 0,
            child: child as u32,
        });
        self.order.clear();
        self.order.extend(unordered);
        // After a seek all stand near one key: what they have in common is worth knowing at once, or
        // a short scan would compare whole keys from its first to its last entry.
        self.find_common();
        for sorted in 1..self.order.len() {
            let slot = self.order[sorted];
            let mut free = sorted;
            while free > 0 && self.comes_before(slot, self.order[free - 1]) {
                self.order[free] = self.order[free - 1];
                free -= 1;
            }
            self.order[free] = slot;
        }
        self.top = self.order.first().map_or(0, |s| s.child as usize);
    }

    /// After an error the merge stands nowhere.
    #[inline]
    fn check<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.order.clear();
        }
        result
    }

    /// Moves every child by `position`, then settles.
    fn position(
        &mut self,
        reverse: bool,
        position: impl FnMut(&mut I) -> Result<()>,
    ) -> Result<()> {
        let moved = self.children.iter_mut().try_for_each(position);
        self.check(moved)?;
        self.rebuild(reverse);
        self.skip_deleted()
    }

    /// Changes the direction. The first child stays where it is, and stays first.
    fn turn(&mut self) -> Result<()> {
        let reverse = !self.reverse;
        let trailer = self.children[self.top].trailer();
        self.pivot.clear();
        self.pivot.extend_from_slice(self.children[self.top].key());
        let turned = self.turn_others(reverse, trailer);
        self.check(turned)?;
        self.rebuild(reverse);
        Ok(())
    }

    fn turn_others(&mut self, reverse: bool, trailer: Trailer) -> Result<()> {
        for (i, child) in self.children.iter_mut().enumerate() {
            if i == self.top {
                continue;
            }
            // To the first entry behind the first child's, in internal order...
            let comes_first =
                |child: &I| child.key() == self.pivot && (child.trailer(), self.top) > (trailer, i);
            child.seek(&self.pivot)?;
            while child.valid() && comes_first(child) {
                child.next()?;
            }
            // ...and in reverse from there to the last one before the first child's. A memtable may
            // have got new entries since the seek: they are stepped back over.
            if reverse {
                if child.valid() {
                    child.prev()?
                } else {
                    child.seek_to_last()?
                }
                while child.valid() && child.key() >= &self.pivot[..] && !comes_first(child) {
                    child.prev()?;
                }
            }
        }
        Ok(())
    }

    /// Moves on while the merge stands on an entry that is deleted.
    #[inline]
    fn skip_deleted(&mut self) -> Result<()> {
        if self.sets.is_empty() {
            return Ok(());
        }
        let skipped = self.skip_deleted_entries();
        self.check(skipped)
    }

    fn skip_deleted_entries(&mut self) -> Result<()> {
        while !self.order.is_empty() && self.allowance > 0 {
            let verdict = self.verdict(self.top);
            let child = &mut self.children[self.top];
            match verdict {
                Verdict::Live => break,
                Verdict::Deleted if self.reverse => child.prev()?,
                // Its older versions are deleted with it.
                Verdict::Deleted => child.next_key()?,
                Verdict::RangeDeleted { set, first, last } => {
                    let fragments = self.sets[set].set.fragments();
                    if self.reverse {
                        leave_backward(child, &fragments[first].start)?;
                    } else {
                        leave_forward(child, &fragments[last].end)?;
                    }
                }
            }
            self.requeue(0);
            self.spend();
        }
        Ok(())
    }

    #[inline]
    fn verdict(&mut self, child: usize) -> Verdict {
        let prefix = prefix_of(self.children[child].key());
        let prefix = if self.reverse { !prefix } else { prefix };
        if prefix < self.clear[child] {
            Verdict::Live
        } else {
            self.look_up_verdict(child)
        }
    }

    fn look_up_verdict(&mut self, child: usize) -> Verdict {
        let (key, seqno) = (
            self.children[child].key(),
            self.children[child].trailer().seqno(),
        );
        let hints = &mut self.hints[child * self.sets.len()..][..self.sets.len()];
        let mut clear = u64::MAX;
        for (i, (RankedTombstones { rank, set }, hint)) in self.sets.iter().zip(hints).enumerate() {
            if *rank > child {
                break; // older sources delete nothing of newer ones
            }
            *hint = first_ending_after(set, key, *hint);
            let fragments = set.fragments();
            let Some(fragment) = fragments.get(*hint).filter(|f| f.start.as_slice() <= key) else {
                // Between two fragments.
                let ahead = if self.reverse {
                    hint.checked_sub(1).map(|i| !prefix_of(&fragments[i].end))
                } else {
                    fragments.get(*hint).map(|f| prefix_of(&f.start))
                };
                clear = clear.min(ahead.unwrap_or(u64::MAX));
                continue;
            };
            if fragment
                .newest_at(self.snapshot)
                .is_none_or(|newest| newest <= seqno)
            {
                clear = 0;
                continue;
            }
            if *rank == child {
                return Verdict::Deleted;
            }
            let (first, last) = if self.reverse {
                (run_start(fragments, *hint, self.snapshot), *hint)
            } else {
                (*hint, run_end(fragments, *hint, self.snapshot))
            };
            return Verdict::RangeDeleted {
                set: i,
                first,
                last,
            };
        }
        self.clear[child] = clear;
        Verdict::Live
    }
}

/// As [`RangeTombstones::first_ending_after`]; tries near `hint` first.
fn first_ending_after(set: &RangeTombstones, key: &[u8], hint: usize) -> usize {
    let fragments = set.fragments();
    let is_behind = |i: usize| fragments.get(i).is_none_or(|f| f.end.as_slice() > key);
    let is_it = |i: usize| is_behind(i) && (i == 0 || !is_behind(i - 1));
    if is_it(hint) {
        hint
    } else if is_it(hint + 1) {
        hint + 1
    } else {
        set.first_ending_after(key)
    }
}

/// The last fragment of those that, from `i` on, touch each other and are seen by the snapshot.
fn run_end(fragments: &[Fragment], mut i: usize, snapshot: SeqNo) -> usize {
    while let Some(next) = fragments.get(i + 1)
        && next.start == fragments[i].end
        && next.newest_at(snapshot).is_some()
    {
        i += 1;
    }
    i
}

/// The first fragment of those that, up to `i`, touch each other and are seen by the snapshot.
fn run_start(fragments: &[Fragment], mut i: usize, snapshot: SeqNo) -> usize {
    while i > 0
        && fragments[i - 1].end == fragments[i].start
        && fragments[i - 1].newest_at(snapshot).is_some()
    {
        i -= 1;
    }
    i
}

/// To the first entry at or after `end`.
fn leave_forward(child: &mut impl InternalIterator, end: &[u8]) -> Result<()> {
    for _ in 0..STEPS_BEFORE_SEEK {
        child.next()?;
        if !child.valid() || child.key() >= end {
            return Ok(());
        }
    }
    child.seek(end)
}

/// To the last entry before `start`.
fn leave_backward(child: &mut impl InternalIterator, start: &[u8]) -> Result<()> {
    for _ in 0..STEPS_BEFORE_SEEK {
        child.prev()?;
        if !child.valid() || child.key() < start {
            return Ok(());
        }
    }
    child.seek_before(start)
}

impl<I: InternalIterator> InternalIterator for MergingIter<I> {
    #[inline]
    fn valid(&self) -> bool {
        if self.single {
            self.children[0].valid()
        } else {
            !self.order.is_empty()
        }
    }

    fn seek_to_first(&mut self) -> Result<()> {
        if self.single {
            return self.children[0].seek_to_first();
        }
        self.position(false, I::seek_to_first)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        if self.single {
            return self.children[0].seek_to_last();
        }
        self.position(true, I::seek_to_last)
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        if self.single {
            return self.children[0].seek(key);
        }
        if self.sets.is_empty() {
            return self.position(false, |child| child.seek(key));
        }
        // What newer sources delete around the key need not be read from the older ones.
        let mut target = std::mem::take(&mut self.pivot);
        target.clear();
        target.extend_from_slice(key);
        let mut sets = self.sets.iter().peekable();
        let mut moved = Ok(());
        for (i, child) in self.children.iter_mut().enumerate() {
            while let Some(RankedTombstones { set, .. }) = sets.next_if(|s| s.rank < i) {
                let at = set.first_ending_after(&target);
                if set
                    .fragments()
                    .get(at)
                    .is_some_and(|f| f.start <= target && f.newest_at(self.snapshot).is_some())
                {
                    let last = run_end(set.fragments(), at, self.snapshot);
                    target.clone_from(&set.fragments()[last].end);
                }
            }
            moved = moved.and_then(|()| child.seek(&target));
        }
        self.pivot = target;
        self.check(moved)?;
        self.rebuild(false);
        self.skip_deleted()
    }

    fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        if self.single {
            return self.children[0].seek_before(key);
        }
        self.position(true, |child| child.seek_before(key))
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        if self.single {
            return self.children[0].next();
        }
        if self.reverse {
            self.turn()?;
        }
        let moved = self.children[self.top].next();
        self.check(moved)?;
        self.requeue(0);
        self.skip_deleted()
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        if self.single {
            return self.children[0].prev();
        }
        if !self.reverse {
            self.turn()?;
        }
        let moved = self.children[self.top].prev();
        self.check(moved)?;
        self.requeue(0);
        self.skip_deleted()
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.children[self.top].key()
    }

    #[inline]
    fn trailer(&self) -> Trailer {
        self.children[self.top].trailer()
    }

    #[inline]
    fn value(&self) -> &[u8] {
        self.children[self.top].value()
    }

    #[inline]
    fn next_key(&mut self) -> Result<()> {
        if self.single {
            return self.children[0].next_key();
        }
        if self.reverse {
            self.turn()?;
        }
        // The children that stand on the same key are the first ones. From the last of them to the
        // first, each goes on and sinks among those behind it, which are in order.
        let mut same = 1;
        while let Some(slot) = self.order.get(same)
            && slot.prefix == self.order[0].prefix
            && self.children[slot.child as usize].key() == self.children[self.top].key()
        {
            same += 1;
        }
        for place in (0..same).rev() {
            let child = self.order[place].child as usize;
            let moved = self.children[child].next_key();
            self.check(moved)?;
            self.requeue(place);
        }
        self.skip_deleted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::testing::{
        Entry, History, Moves, VecIter, entry, history, sort, split, walk_like_model,
    };
    use crate::range_del::RangeTombstone;
    use proptest::prelude::*;
    use std::sync::atomic::Ordering::Relaxed;

    fn merging(parts: &[(Vec<Entry>, RangeTombstones)], snapshot: SeqNo) -> MergingIter<VecIter> {
        MergingIter::with_tombstones(
            parts.iter().map(|(e, _)| VecIter::new(e.clone())).collect(),
            parts.iter().map(|(_, t)| Arc::new(t.clone())).enumerate(),
            snapshot,
        )
    }

    /// All entries that no tombstone which the snapshot sees deletes.
    fn live(history: &History, snapshot: SeqNo) -> Vec<Entry> {
        let mut entries = history.entries.clone();
        entries.retain(|e| {
            !history.tombstones.iter().any(|t| {
                t.seqno <= snapshot
                    && t.seqno > e.trailer.seqno()
                    && (t.start.as_slice()..t.end.as_slice()).contains(&e.key.as_slice())
            })
        });
        sort(&mut entries);
        entries
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn walks_like_one_list(
            history in history(40, 0),
            cuts in proptest::collection::vec(0u64..42, 0..12),
            moves in Moves::strategy(80),
        ) {
            let parts = split(&history, &cuts);
            let mut iter =
                MergingIter::new(parts.iter().map(|(e, _)| VecIter::new(e.clone())).collect());
            walk_like_model(&mut iter, &live(&history, SeqNo::ZERO), &moves)?;
        }

        #[test]
        fn walks_like_the_list_of_live_entries(
            history in history(50, 30),
            cuts in proptest::collection::vec(0u64..52, 0..8),
            snapshot in 0u64..52,
            moves in Moves::strategy(80),
        ) {
            let mut iter = merging(&split(&history, &cuts), SeqNo(snapshot));
            walk_like_model(&mut iter, &live(&history, SeqNo(snapshot)), &moves)?;
        }

        #[test]
        fn after_an_error_it_is_not_valid_until_a_seek(
            history in history(40, 20),
            cuts in proptest::collection::vec(0u64..42, 0..5),
            moves in Moves::strategy(40),
            broken: proptest::sample::Index,
            after in 0usize..20,
        ) {
            let mut iter = merging(&split(&history, &cuts), SeqNo::MAX);
            let child = broken.index(iter.children.len());
            iter.children[child].fail_after = Some(after);
            for step in &moves {
                let moved = match step {
                    Moves::First => iter.seek_to_first(),
                    Moves::Last => iter.seek_to_last(),
                    Moves::Seek(key) => iter.seek(key),
                    Moves::SeekBefore(key) => iter.seek_before(key),
                    _ if !iter.valid() => continue,
                    Moves::Next => iter.next(),
                    Moves::Prev => iter.prev(),
                    Moves::NextKey => iter.next_key(),
                };
                if moved.is_err() {
                    prop_assert!(!iter.valid());
                    iter.children[child].fail_after = None;
                    walk_like_model(&mut iter, &live(&history, SeqNo::MAX), &moves)?;
                    break;
                }
            }
        }
    }

    /// The keys have much in common, first this, then that, and then only one source is left.
    #[test]
    fn keys_that_begin_alike() {
        let mut entries = vec![];
        for i in 0..3000u64 {
            let path = ["shared/by/all/of/a/kind/", "shared/by/all/of/another/", "x"];
            let key = format!("{}{:05}", path[i as usize / 1000], i * 7919 % 1000);
            entries.push(entry(key.as_bytes(), i + 1, b"v"));
        }
        let mut parts = vec![vec![]; 4];
        for (i, e) in entries.iter().enumerate() {
            parts[if i > 2500 { 3 } else { i * i % 4 }].push(e.clone());
        }
        parts.iter_mut().for_each(|p| sort(p));
        sort(&mut entries);
        let mut iter = MergingIter::new(parts.into_iter().map(VecIter::new).collect());
        iter.seek_to_first().unwrap();
        for e in &entries {
            assert_eq!((iter.key(), iter.trailer()), (&e.key[..], e.trailer));
            iter.next_key().unwrap();
        }
        assert!(!iter.valid());
        iter.seek_to_last().unwrap();
        for e in entries.iter().rev() {
            assert_eq!((iter.key(), iter.trailer()), (&e.key[..], e.trailer));
            iter.prev().unwrap();
        }
        assert!(!iter.valid());
    }

    #[test]
    fn no_children() {
        let mut iter = MergingIter::<VecIter>::new(vec![]);
        for _ in 0..2 {
            assert!(!iter.valid());
            iter.seek_to_first().unwrap();
            iter.seek_to_last().unwrap();
            iter.seek(b"k").unwrap();
            iter.seek_before(b"k").unwrap();
        }
        assert!(iter.children().is_empty());
    }

    #[test]
    fn equal_entries_of_two_sources_both_come_newer_source_first() {
        let mut iter = MergingIter::new(vec![
            VecIter::new(vec![entry(b"k", 5, b"new")]),
            VecIter::new(vec![entry(b"k", 5, b"old")]),
        ]);
        iter.seek_to_first().unwrap();
        assert_eq!(iter.value(), b"new");
        iter.next().unwrap();
        assert_eq!(iter.value(), b"old");
        iter.prev().unwrap();
        assert_eq!(iter.value(), b"new");
        iter.prev().unwrap();
        assert!(!iter.valid());
    }

    /// A range delete over many keys, split into adjacent fragments, costs a few calls per source.
    #[test]
    fn a_deleted_range_is_jumped_over() {
        const KEYS: u32 = 100_000;
        let key = |i: u32| i.to_string().into_bytes();
        let mut old: Vec<_> = (0..KEYS)
            .map(|i| entry(&key(i), u64::from(i) + 1, b"v"))
            .collect();
        sort(&mut old);
        let mut older = old.clone();
        older.retain(|e| e.key.len() > 2);
        let last = old.last().unwrap().key.clone();
        let tombstone = |start: &[u8], end: &[u8], seqno| RangeTombstone {
            start: start.to_vec(),
            end: end.to_vec(),
            seqno: SeqNo(seqno),
        };
        // From the second key to the last but one, in two parts that overlap.
        let set = RangeTombstones::from_unfragmented(vec![
            tombstone(b"1", b"5", 1_000_001),
            tombstone(b"4", &last, 1_000_002),
        ]);
        let mut iter = merging(
            &[
                (vec![], set),
                (old, RangeTombstones::default()),
                (older, RangeTombstones::default()),
            ],
            SeqNo::MAX,
        );
        let calls = |iter: &MergingIter<VecIter>| -> usize {
            iter.children
                .iter()
                .map(|c| c.steps.load(Relaxed) + c.seeks.load(Relaxed))
                .sum()
        };
        iter.seek_to_first().unwrap();
        assert_eq!(iter.key(), b"0");
        iter.next().unwrap();
        assert_eq!(iter.key(), last);
        iter.next().unwrap();
        assert_eq!(iter.key(), last, "of the other source");
        iter.next().unwrap();
        assert!(!iter.valid());
        assert!(calls(&iter) < 30, "{} calls forward", calls(&iter));

        let before = calls(&iter);
        iter.seek_to_last().unwrap();
        let mut count = 0;
        while iter.valid() {
            iter.prev().unwrap();
            count += 1;
        }
        assert_eq!(count, 3);
        assert!(
            calls(&iter) - before < 40,
            "{} calls backward",
            calls(&iter) - before
        );

        let before = calls(&iter);
        iter.seek(b"3").unwrap();
        assert_eq!(iter.key(), last);
        assert!(
            calls(&iter) - before < 4,
            "{} calls for a seek",
            calls(&iter) - before
        );
    }

    #[test]
    fn staying_on_one_source_moves_only_that() {
        let left: Vec<_> = (0..100u8).map(|i| entry(&[i], 1, b"")).collect();
        let right = vec![entry(&[200], 2, b"")];
        let mut iter = MergingIter::new(vec![VecIter::new(right), VecIter::new(left)]);
        iter.seek_to_first().unwrap();
        for _ in 0..100 {
            iter.next().unwrap();
        }
        assert_eq!(iter.key(), [200]);
        assert_eq!(iter.children()[0].steps.load(Relaxed), 0);
    }
}
