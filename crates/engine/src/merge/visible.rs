//! What a reader sees: of each key the newest version that its snapshot sees, if that is a value
//! which has not expired.
//!
//! Forward, the first version of a key that is not newer than the snapshot decides, and all others
//! of the key are skipped at once ([`InternalIterator::next_key`]). Key and value are borrowed from
//! the iterator below; nothing is copied.
//!
//! In reverse the versions of a key come oldest first, so each is copied into a buffer that the next
//! one overwrites, until another key or a version newer than the snapshot comes: the last one copied
//! is the newest visible. The iterator below then stands before the key.
//!
//! An entry whose expiry is not after "now" counts as a tombstone: it hides the older versions of
//! its key. Entries deleted by range tombstones are left out below, by
//! [`MergingIter`], which can jump over them.

use std::ops::Bound;

use crate::error::{Error, Result};
use crate::iterator::InternalIterator;
use crate::key::{Kind, SeqNo, Trailer};
use crate::merge::merging::MergingIter;
use crate::merge::prefix_of;

/// Bytes of the expiry before an expiring value.
const EXPIRY_BYTES: usize = 8;

/// What to read, and as of when.
#[derive(Clone, Debug)]
pub struct View {
    /// Versions with a greater number are not seen.
    pub snapshot: SeqNo,
    /// Unix milliseconds; what expires at or before it is not seen.
    pub now_ms: u64,
    /// Where the keys begin.
    pub start: Bound<Vec<u8>>,
    /// Where they end.
    pub end: Bound<Vec<u8>>,
    /// From the greatest key to the smallest.
    pub reverse: bool,
}

impl View {
    /// Everything, forward.
    pub fn all(snapshot: SeqNo, now_ms: u64) -> Self {
        Self {
            snapshot,
            now_ms,
            start: Bound::Unbounded,
            end: Bound::Unbounded,
            reverse: false,
        }
    }
}

/// Where [`VisibleIter::next_allowed`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// To a visible entry.
    Found,
    /// Not yet to one: all before [`VisibleIter::key`] was seen, nothing of it.
    Spent,
    /// To the end.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be positioned by the next move.
    New,
    /// The iterator below stands where the next candidate is.
    Positioned,
    /// Forward: it stands on the entry that was returned.
    Returned,
    /// Nothing more comes, or an error came.
    Ended,
}

/// Iterates over the visible entries in one direction. See the module.
#[derive(Debug)]
pub struct VisibleIter<I> {
    iter: I,
    view: View,
    state: State,
    /// [`prefix_of`] the end bound (forward): keys with a smaller prefix are inside.
    end_prefix: u64,
    /// Of the current entry.
    trailer: Trailer,
    /// How many bytes of the stored value are the expiry: 0 or 8.
    skip: usize,
    expires_at_ms: u64,
    /// Reverse: the current entry.
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<I: InternalIterator> VisibleIter<I> {
    /// The entries of `iter` that `view` sees. Nothing is read before the first move.
    pub fn new(iter: I, view: View) -> Self {
        let end_prefix = match &view.end {
            Bound::Included(end) | Bound::Excluded(end) => prefix_of(end),
            Bound::Unbounded => u64::MAX,
        };
        Self {
            iter,
            view,
            state: State::New,
            end_prefix,
            trailer: Trailer(0),
            skip: 0,
            expires_at_ms: 0,
            key: Vec::new(),
            value: Vec::new(),
        }
    }

    /// What it sees.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The iterator below. Forward it stands on the current entry.
    pub fn inner(&self) -> &I {
        &self.iter
    }

    /// To the next visible entry in the direction of the view; `false` at the end, and from then on
    /// until a seek. After an error likewise.
    ///
    /// # Errors
    /// Those of the sources, and [`Error::Corruption`] for an entry that is none.
    #[inline]
    #[allow(clippy::should_implement_trait, reason = "it lends: `Iterator` cannot")]
    pub fn next(&mut self) -> Result<bool> {
        let found = if self.view.reverse {
            self.next_reverse()
        } else {
            self.next_forward()
        };
        if !matches!(found, Ok(true)) {
            self.state = State::Ended;
        }
        found
    }

    /// Makes the next move go to the first visible entry at or after `key`, in reverse at or before
    /// `key`, that lies in the bounds.
    ///
    /// # Errors
    /// Those of the sources.
    pub fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.state = State::Ended;
        let outside = if self.view.reverse {
            match &self.view.end {
                Bound::Included(end) => key >= end.as_slice(),
                Bound::Excluded(end) => key >= end.as_slice(),
                Bound::Unbounded => false,
            }
        } else {
            match &self.view.start {
                Bound::Included(start) => key <= start.as_slice(),
                Bound::Excluded(start) => key <= start.as_slice(),
                Bound::Unbounded => false,
            }
        };
        if outside {
            self.state = State::New;
            return Ok(());
        }
        if self.view.reverse {
            seek_at_or_before(&mut self.iter, key, &mut self.key)?;
        } else {
            self.iter.seek(key)?;
        }
        self.state = State::Positioned;
        Ok(())
    }

    /// The user key. REQUIRES (as all below): the last move returned `true`.
    #[inline]
    pub fn key(&self) -> &[u8] {
        if self.view.reverse {
            &self.key
        } else {
            self.iter.key()
        }
    }

    /// Sequence number and kind.
    #[inline]
    pub fn trailer(&self) -> Trailer {
        self.trailer
    }

    /// What is stored: a value, with or without expiry, here or in a blob file.
    #[inline]
    pub fn kind(&self) -> Kind {
        self.trailer.kind().unwrap_or(Kind::Put) // was decoded before
    }

    /// The stored value without the expiry: the user's bytes, or the encoded pointer if the kind
    /// [is a blob](Kind::is_blob).
    #[inline]
    pub fn raw_value(&self) -> &[u8] {
        let value = if self.view.reverse {
            &self.value
        } else {
            self.iter.value()
        };
        value.get(self.skip..).unwrap_or_default() // the length was checked before
    }

    /// When it expires, in Unix milliseconds.
    #[inline]
    pub fn expires_at_ms(&self) -> Option<u64> {
        (self.skip != 0).then_some(self.expires_at_ms)
    }

    #[inline]
    fn next_forward(&mut self) -> Result<bool> {
        match self.state {
            State::Returned => self.iter.next_key()?,
            State::Positioned => {}
            State::New => self.start_forward()?,
            State::Ended => return Ok(false),
        }
        while self.iter.valid() {
            let key = self.iter.key();
            if prefix_of(key) >= self.end_prefix && self.is_behind_end(key) {
                return Ok(false);
            }
            let trailer = self.iter.trailer();
            if trailer.seqno() > self.view.snapshot {
                self.iter.next()?;
                continue;
            }
            self.trailer = trailer;
            // Most need no look at their value.
            if trailer.kind() == Some(Kind::Put) {
                self.skip = 0;
                self.state = State::Returned;
                return Ok(true);
            }
            if self
                .is_value(trailer, self.iter.value(), self.iter.key())?
                .keep(self)
            {
                self.state = State::Returned;
                return Ok(true);
            }
            self.iter.next_key()?;
        }
        Ok(false)
    }

    #[cold]
    fn start_forward(&mut self) -> Result<()> {
        match &self.view.start {
            Bound::Unbounded => self.iter.seek_to_first(),
            Bound::Included(start) => self.iter.seek(start),
            Bound::Excluded(start) => {
                self.iter.seek(start)?;
                if self.iter.valid() && self.iter.key() == start.as_slice() {
                    self.iter.next_key()?;
                }
                Ok(())
            }
        }
    }

    fn is_behind_end(&self, key: &[u8]) -> bool {
        match &self.view.end {
            Bound::Unbounded => false,
            Bound::Included(end) => key > end.as_slice(),
            Bound::Excluded(end) => key >= end.as_slice(),
        }
    }

    fn is_before_start(&self, key: &[u8]) -> bool {
        match &self.view.start {
            Bound::Unbounded => false,
            Bound::Included(start) => key < start.as_slice(),
            Bound::Excluded(start) => key <= start.as_slice(),
        }
    }

    fn next_reverse(&mut self) -> Result<bool> {
        match self.state {
            State::Returned | State::Positioned => {}
            State::New => match &self.view.end {
                Bound::Unbounded => self.iter.seek_to_last()?,
                Bound::Included(end) => seek_at_or_before(&mut self.iter, end, &mut self.key)?,
                Bound::Excluded(end) => self.iter.seek_before(end)?,
            },
            State::Ended => return Ok(false),
        }
        while self.iter.valid() {
            if self.is_before_start(self.iter.key()) {
                return Ok(false);
            }
            self.key.clear();
            self.key.extend_from_slice(self.iter.key());
            let mut newest = None;
            while self.iter.valid() && self.iter.key() == self.key {
                let trailer = self.iter.trailer();
                if trailer.seqno() <= self.view.snapshot {
                    newest = Some(trailer);
                    self.value.clear();
                    self.value.extend_from_slice(self.iter.value());
                }
                self.iter.prev()?;
            }
            let Some(trailer) = newest else { continue };
            self.trailer = trailer;
            if self.is_value(trailer, &self.value, &self.key)?.keep(self) {
                self.state = State::Returned;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the newest visible version of a key is a value that has not expired.
    #[inline]
    fn is_value(&self, trailer: Trailer, value: &[u8], key: &[u8]) -> Result<Decoded> {
        match trailer.kind() {
            Some(Kind::Put | Kind::BlobPut) => Ok(Decoded::Value),
            Some(Kind::Delete) => Ok(Decoded::Nothing),
            Some(kind @ (Kind::PutExpiring | Kind::BlobPutExpiring)) => {
                let Some(expires_at_ms) = expiry(value) else {
                    return Err(damaged(
                        key,
                        trailer,
                        &format!("{kind:?} without an expiry"),
                    ));
                };
                if expires_at_ms <= self.view.now_ms {
                    return Ok(Decoded::Nothing);
                }
                Ok(Decoded::Expiring(expires_at_ms))
            }
            Some(Kind::RangeDelete) | None => Err(damaged(
                key,
                trailer,
                &format!("kind {} in a tree", trailer.0 & 0xff),
            )),
        }
    }
}

impl<I: InternalIterator> VisibleIter<MergingIter<I>> {
    /// Lets [`next_allowed`](Self::next_allowed) look at so many keys, deleted entries and ranges from now on, visible
    /// or not.
    ///
    /// # Errors
    /// Those of the sources.
    pub fn allow(&mut self, steps: u64) -> Result<()> {
        self.iter.allow(steps)
    }

    /// As [`next`](Self::next), but stops where what is allowed is spent, never before the key behind the first one:
    /// from then on only the key may be asked for, or a seek made. REQUIRES: forward.
    ///
    /// # Errors
    /// As of `next`.
    pub fn next_allowed(&mut self) -> Result<Moved> {
        let moved = self.move_allowed();
        self.state = match moved {
            Ok(Moved::Found) => State::Returned,
            _ => State::Ended,
        };
        moved
    }

    fn move_allowed(&mut self) -> Result<Moved> {
        match self.state {
            State::Returned => self.iter.next_key()?,
            State::Positioned => {}
            State::New => self.start_forward()?,
            State::Ended => return Ok(Moved::Ended),
        }
        while self.iter.valid() {
            let key = self.iter.key();
            if self.is_behind_end(key) {
                break;
            }
            if self.iter.is_spent() {
                let is_first = match &self.view.start {
                    Bound::Included(start) | Bound::Excluded(start) => key <= start.as_slice(),
                    Bound::Unbounded => key.is_empty(),
                };
                if !is_first {
                    return Ok(Moved::Spent);
                }
                self.iter.allow(1)?;
                continue;
            }
            self.iter.spend();
            let trailer = self.iter.trailer();
            if trailer.seqno() > self.view.snapshot {
                self.iter.next()?;
                continue;
            }
            self.trailer = trailer;
            let decoded = self.is_value(trailer, self.iter.value(), self.iter.key())?;
            if decoded.keep(self) {
                return Ok(Moved::Found);
            }
            self.iter.next_key()?;
        }
        Ok(Moved::Ended)
    }
}

/// What a stored entry turned out to be.
enum Decoded {
    Nothing,
    Value,
    Expiring(u64),
}

impl Decoded {
    /// Notes the expiry; whether it is a value.
    #[inline]
    fn keep<I>(self, iter: &mut VisibleIter<I>) -> bool {
        match self {
            Self::Nothing => return false,
            Self::Value => iter.skip = 0,
            Self::Expiring(expires_at_ms) => {
                iter.skip = EXPIRY_BYTES;
                iter.expires_at_ms = expires_at_ms;
            }
        }
        true
    }
}

/// The expiry, in Unix milliseconds, with which the value of an expiring kind starts; `None` if the
/// value is too short to have one: damage.
#[inline]
pub fn expiry(value: &[u8]) -> Option<u64> {
    value
        .first_chunk::<EXPIRY_BYTES>()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

/// The file is not known here; its blocks had good checksums, so it was written so.
#[cold]
pub(crate) fn damaged(key: &[u8], trailer: Trailer, what: &str) -> Error {
    let key = key.escape_ascii();
    Error::corruption(
        "a table",
        0,
        format!("entry {} of key \"{key}\": {what}", trailer.seqno()),
    )
}

/// To the last entry of the last key at or before `key`.
fn seek_at_or_before(
    iter: &mut impl InternalIterator,
    key: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<()> {
    // Nothing lies between a key and itself followed by a zero.
    buffer.clear();
    buffer.extend_from_slice(key);
    buffer.push(0);
    iter.seek_before(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::testing::{Entry, History, Seen, VecIter, entry, history, key, split};
    use crate::range_del::{RangeTombstone, RangeTombstones};
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::Ordering::Relaxed;

    fn current<I: InternalIterator>(iter: &VisibleIter<I>) -> Seen {
        assert_eq!(iter.kind().is_expiring(), iter.expires_at_ms().is_some());
        Seen {
            key: iter.key().to_vec(),
            value: iter.raw_value().to_vec(),
            version: iter.trailer().seqno(),
            expires_at_ms: iter.expires_at_ms(),
        }
    }

    fn rest<I: InternalIterator>(iter: &mut VisibleIter<I>) -> Vec<Seen> {
        let mut seen = vec![];
        while iter.next().unwrap() {
            seen.push(current(iter));
        }
        assert!(!iter.next().unwrap());
        seen
    }

    fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
        prop_oneof![
            2 => Just(Bound::Unbounded),
            1 => key().prop_map(Bound::Included),
            1 => key().prop_map(Bound::Excluded),
        ]
    }

    fn expected(history: &History, view: &View) -> Vec<Seen> {
        let mut seen = history.all(view.snapshot, view.now_ms);
        seen.retain(|s| {
            (match &view.start {
                Bound::Unbounded => true,
                Bound::Included(start) => s.key >= *start,
                Bound::Excluded(start) => s.key > *start,
            }) && (match &view.end {
                Bound::Unbounded => true,
                Bound::Included(end) => s.key <= *end,
                Bound::Excluded(end) => s.key < *end,
            })
        });
        if view.reverse {
            seen.reverse();
        }
        seen
    }

    fn merged(history: &History, cuts: &[u64], view: View) -> VisibleIter<MergingIter<VecIter>> {
        let (entries, tombstones): (Vec<_>, Vec<_>) = split(history, cuts).into_iter().unzip();
        let merge = MergingIter::with_tombstones(
            entries.into_iter().map(VecIter::new).collect(),
            tombstones.into_iter().map(Arc::new).enumerate(),
            view.snapshot,
        );
        VisibleIter::new(merge, view)
    }

    #[test]
    fn what_is_allowed_bounds_the_steps_over_what_is_deleted() {
        let put = |i: u64| entry(format!("{i:04}").as_bytes(), 1, b"v");
        let delete = |mut entry: Entry| {
            entry.trailer = Trailer::new(SeqNo(2), Kind::Delete);
            entry
        };
        let puts: Vec<Entry> = (0..1000).map(put).collect();
        let deletes = puts.iter().cloned().map(delete).collect();
        let (start, end) = (b"0".to_vec(), b"1".to_vec());
        let seqno = SeqNo(3);
        let covering = [RangeTombstone { start, end, seqno }];
        let covering = RangeTombstones::from_unfragmented(covering.into());
        for (entries, tombstones) in [(deletes, RangeTombstones::default()), (puts, covering)] {
            let source = VecIter::new(entries);
            let steps = Arc::clone(&source.steps);
            let sets = [(0, Arc::new(tombstones))];
            let merge = MergingIter::with_tombstones(vec![source], sets, SeqNo::MAX);
            let mut iter = VisibleIter::new(merge, View::all(SeqNo::MAX, 0));
            iter.allow(10).unwrap();
            assert_eq!(iter.next_allowed().unwrap(), Moved::Spent);
            assert_eq!(iter.key(), b"0010");
            assert_eq!(steps.load(Relaxed), 10);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn pages_of_few_steps_are_the_whole(
            history in history(60, 15),
            cuts in proptest::collection::vec(0u64..62, 0..6),
            snapshot in 0u64..62,
            (start, end) in (bound(), bound()),
            steps in 1u64..12,
        ) {
            let mut view = View { start, end, ..View::all(SeqNo(snapshot), 5) };
            let all = expected(&history, &view);
            let mut seen = vec![];
            loop {
                let mut iter = merged(&history, &cuts, view.clone());
                iter.allow(steps).unwrap();
                let moved = loop {
                    match iter.next_allowed().unwrap() {
                        Moved::Found => seen.push(current(&iter)),
                        moved => break moved,
                    }
                };
                if moved == Moved::Ended {
                    break;
                }
                let next = iter.key().to_vec();
                let goes_on = match &view.start {
                    Bound::Included(start) | Bound::Excluded(start) => next > *start,
                    Bound::Unbounded => true,
                };
                prop_assert!(goes_on);
                view.start = Bound::Included(next);
            }
            prop_assert_eq!(seen, all);
        }

        #[test]
        fn sees_what_the_model_sees(
            history in history(60, 15),
            cuts in proptest::collection::vec(0u64..62, 0..6),
            snapshot in prop_oneof![(0u64..62).prop_map(SeqNo), Just(SeqNo::MAX)],
            now_ms in 0u64..11,
            (start, end) in (bound(), bound()),
            reverse: bool,
            seeks in proptest::collection::vec((key(), 0usize..4), 0..5),
        ) {
            let view = View { snapshot, now_ms, start, end, reverse };
            let mut iter = merged(&history, &cuts, view.clone());
            let all = expected(&history, &view);
            prop_assert_eq!(&rest(&mut iter), &all);
            for (key, moves) in seeks {
                iter.seek(&key).unwrap();
                let mut ahead = all.iter().filter(|s| {
                    if reverse { s.key <= key } else { s.key >= key }
                });
                for _ in 0..moves {
                    match ahead.next() {
                        Some(next) => {
                            prop_assert!(iter.next().unwrap());
                            prop_assert_eq!(&current(&iter), next);
                        }
                        None => prop_assert!(!iter.next().unwrap()),
                    }
                }
            }
        }
    }

    #[test]
    fn an_expired_entry_hides_older_versions() {
        let expiring = |at: u64| Entry {
            key: b"k".to_vec(),
            trailer: Trailer::new(SeqNo(7), Kind::PutExpiring),
            value: [&at.to_le_bytes()[..], b"short-lived"].concat(),
        };
        for reverse in [false, true] {
            for (now_ms, visible) in [(99, true), (100, false), (101, false)] {
                let list = vec![expiring(100), entry(b"k", 3, b"old")];
                let view = View {
                    reverse,
                    ..View::all(SeqNo::MAX, now_ms)
                };
                let mut iter = VisibleIter::new(VecIter::new(list), view);
                assert_eq!(iter.next().unwrap(), visible);
                if visible {
                    assert_eq!(iter.raw_value(), b"short-lived");
                    assert_eq!(iter.expires_at_ms(), Some(100));
                    assert_eq!(iter.kind(), Kind::PutExpiring);
                }
                assert!(!iter.next().unwrap());
            }
        }
    }

    #[test]
    fn damage_is_reported_and_a_seek_goes_on() {
        let bad = |trailer: Trailer, value: &[u8]| Entry {
            key: b"bad".to_vec(),
            trailer,
            value: value.to_vec(),
        };
        for bad in [
            bad(Trailer::new(SeqNo(1), Kind::PutExpiring), b"1234567"),
            bad(Trailer::new(SeqNo(1), Kind::BlobPutExpiring), b""),
            bad(Trailer::new(SeqNo(1), Kind::RangeDelete), b"z"),
            bad(Trailer(1 << 8 | 200), b""),
        ] {
            for reverse in [false, true] {
                let list = vec![entry(b"a", 2, b""), bad.clone(), entry(b"c", 3, b"")];
                let view = View {
                    reverse,
                    ..View::all(SeqNo::MAX, 0)
                };
                let mut iter = VisibleIter::new(VecIter::new(list), view);
                assert!(iter.next().unwrap());
                let error = iter.next().unwrap_err();
                assert!(error.is_corruption(), "{error}");
                assert!(error.to_string().contains("\"bad\""), "{error}");
                assert!(!iter.next().unwrap());
                let behind = if reverse { b"a" } else { b"c" };
                iter.seek(behind).unwrap();
                assert!(iter.next().unwrap());
                assert_eq!(iter.key(), behind);
            }
        }
    }

    #[test]
    fn an_error_below_ends_it() {
        let mut list = VecIter::new(vec![entry(b"a", 1, b""), entry(b"b", 2, b"")]);
        list.fail_after = Some(1);
        let mut iter = VisibleIter::new(list, View::all(SeqNo::MAX, 0));
        assert!(iter.next().unwrap());
        assert!(iter.next().is_err());
        assert!(!iter.next().unwrap());
    }
}
