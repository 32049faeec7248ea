//! An iterator over a list, a model to compare with, and strategies for both.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::error::{Error, Result};
use crate::iterator::InternalIterator;
use crate::key::{Kind, SeqNo, Trailer};
use crate::range_del::{RangeTombstone, RangeTombstones};

/// An entry with everything owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    pub(crate) trailer: Trailer,
    pub(crate) value: Vec<u8>,
}

/// A put.
pub(crate) fn entry(key: &[u8], seqno: u64, value: &[u8]) -> Entry {
    Entry {
        key: key.to_vec(),
        trailer: Trailer::new(SeqNo(seqno), Kind::Put),
        value: value.to_vec(),
    }
}

/// Sorts into internal order.
pub(crate) fn sort(entries: &mut [Entry]) {
    entries.sort_by(|a, b| a.key.cmp(&b.key).then(b.trailer.cmp(&a.trailer)));
}

/// Iterates over a list in internal order; counts its calls.
pub(crate) struct VecIter {
    entries: Vec<Entry>,
    /// `entries.len()` where it is not valid.
    at: usize,
    pub(crate) steps: Arc<AtomicUsize>,
    pub(crate) seeks: Arc<AtomicUsize>,
    /// Fails when this many more calls were made.
    pub(crate) fail_after: Option<usize>,
}

impl VecIter {
    pub(crate) fn new(entries: Vec<Entry>) -> Self {
        let at = entries.len();
        Self {
            entries,
            at,
            steps: Arc::default(),
            seeks: Arc::default(),
            fail_after: None,
        }
    }

    fn go(&mut self, counter: &Arc<AtomicUsize>, to: Option<usize>) -> Result<()> {
        counter.fetch_add(1, Ordering::Relaxed);
        self.at = to
            .filter(|&to| to < self.entries.len())
            .unwrap_or(self.entries.len());
        if let Some(left) = &mut self.fail_after {
            if *left == 0 {
                self.at = self.entries.len();
                return Err(Error::corruption("list", 0, "as asked"));
            }
            *left -= 1;
        }
        Ok(())
    }
}

impl InternalIterator for VecIter {
    fn valid(&self) -> bool {
        self.at < self.entries.len()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        self.go(&self.seeks.clone(), Some(0))
    }
    fn seek_to_last(&mut self) -> Result<()> {
        self.go(&self.seeks.clone(), self.entries.len().checked_sub(1))
    }
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        let to = self.entries.partition_point(|e| e.key.as_slice() < key);
        self.go(&self.seeks.clone(), Some(to))
    }
    fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        let to = self.entries.partition_point(|e| e.key.as_slice() < key);
        self.go(&self.seeks.clone(), to.checked_sub(1))
    }
    fn next(&mut self) -> Result<()> {
        assert!(self.valid());
        self.go(&self.steps.clone(), Some(self.at + 1))
    }
    fn prev(&mut self) -> Result<()> {
        assert!(self.valid());
        self.go(&self.steps.clone(), self.at.checked_sub(1))
    }
    fn key(&self) -> &[u8] {
        &self.entries[self.at].key
    }
    fn trailer(&self) -> Trailer {
        self.entries[self.at].trailer
    }
    fn value(&self) -> &[u8] {
        &self.entries[self.at].value
    }
}

/// Moves of an iterator.
#[derive(Clone, Debug)]
pub(crate) enum Moves {
    First,
    Last,
    Seek(Vec<u8>),
    SeekBefore(Vec<u8>),
    Next,
    Prev,
    NextKey,
}

impl Moves {
    pub(crate) fn strategy(most: usize) -> impl Strategy<Value = Vec<Moves>> {
        let one = prop_oneof![
            1 => Just(Self::First),
            1 => Just(Self::Last),
            2 => key().prop_map(Self::Seek),
            2 => key().prop_map(Self::SeekBefore),
            10 => Just(Self::Next),
            8 => Just(Self::Prev),
            4 => Just(Self::NextKey),
        ];
        proptest::collection::vec(one, 0..most)
    }
}

/// Few keys, so that they meet: some short, some that differ only behind the eighth byte or later.
pub(crate) fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(0u8..4, 0..3),
        (0u8..4).prop_map(|last| [&[2; 8][..], &[last]].concat()),
        (1usize..7, 1u8..4).prop_map(|(len, last)| [&vec![2; 8 + len][..], &[last]].concat()),
    ]
}

/// Entries in internal order with different sequence numbers.
pub(crate) fn entries(most: usize) -> impl Strategy<Value = Vec<Entry>> {
    proptest::collection::vec((key(), any::<bool>()), 0..most).prop_map(|list| {
        let mut entries: Vec<_> = list
            .into_iter()
            .enumerate()
            .map(|(i, (key, delete))| {
                let kind = if delete { Kind::Delete } else { Kind::Put };
                let value = if delete { vec![] } else { vec![i as u8] };
                Entry {
                    key,
                    trailer: Trailer::new(SeqNo(i as u64 + 1), kind),
                    value,
                }
            })
            .collect();
        sort(&mut entries);
        entries
    })
}

/// Makes the moves on `iter` and on a plain list, and compares where they stand.
pub(crate) fn walk_like_model(
    iter: &mut impl InternalIterator,
    entries: &[Entry],
    moves: &[Moves],
) -> std::result::Result<(), TestCaseError> {
    let mut model = VecIter::new(entries.to_vec());
    prop_assert!(!iter.valid());
    for (i, step) in moves.iter().enumerate() {
        let (a, b) = match step {
            Moves::First => (iter.seek_to_first(), model.seek_to_first()),
            Moves::Last => (iter.seek_to_last(), model.seek_to_last()),
            Moves::Seek(key) => (iter.seek(key), model.seek(key)),
            Moves::SeekBefore(key) => (iter.seek_before(key), model.seek_before(key)),
            _ if !model.valid() => continue,
            Moves::Next => (iter.next(), model.next()),
            Moves::Prev => (iter.prev(), model.prev()),
            Moves::NextKey => (iter.next_key(), model.next_key()),
        };
        prop_assert!(a.is_ok() && b.is_ok());
        prop_assert_eq!(iter.valid(), model.valid(), "after move {}", i);
        if model.valid() {
            prop_assert_eq!(iter.key(), model.key(), "after move {}", i);
            prop_assert_eq!(iter.trailer(), model.trailer(), "after move {}", i);
            prop_assert_eq!(iter.value(), model.value(), "after move {}", i);
        }
    }
    Ok(())
}

/// Everything ever written, in the order of writing.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) entries: Vec<Entry>,
    pub(crate) tombstones: Vec<RangeTombstone>,
    /// The number of the last write.
    pub(crate) last: u64,
}

impl History {
    /// What a reader sees of `key`: value, version, expiry. By brute force.
    pub(crate) fn get(&self, key: &[u8], snapshot: SeqNo, now_ms: u64) -> Option<Seen> {
        let newest = self
            .entries
            .iter()
            .filter(|e| e.key == key && e.trailer.seqno() <= snapshot)
            .max_by_key(|e| e.trailer)?;
        let version = newest.trailer.seqno();
        let is_deleted = self.tombstones.iter().any(|t| {
            t.seqno <= snapshot
                && t.seqno > version
                && t.start.as_slice() <= key
                && key < t.end.as_slice()
        });
        let (expires_at_ms, value) = match newest.trailer.kind()? {
            Kind::Delete => return None,
            kind if kind.is_expiring() => {
                let (expiry, value) = newest.value.split_first_chunk()?;
                (Some(u64::from_le_bytes(*expiry)), value.to_vec())
            }
            _ => (None, newest.value.clone()),
        };
        let is_expired = expires_at_ms.is_some_and(|at| at <= now_ms);
        (!is_deleted && !is_expired).then(|| Seen {
            key: key.to_vec(),
            value,
            version,
            expires_at_ms,
        })
    }

    /// What a reader sees of all keys, in order.
    pub(crate) fn all(&self, snapshot: SeqNo, now_ms: u64) -> Vec<Seen> {
        let keys: std::collections::BTreeSet<_> = self.entries.iter().map(|e| &e.key).collect();
        keys.into_iter()
            .filter_map(|key| self.get(key, snapshot, now_ms))
            .collect()
    }
}

/// What a reader sees of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) version: SeqNo,
    pub(crate) expires_at_ms: Option<u64>,
}

/// At most so many writes, so many in a hundred of which are range deletes. Expiries lie in 0..10.
pub(crate) fn history(most: usize, range_deletes: u32) -> impl Strategy<Value = History> {
    let kind = prop_oneof![
        3 => Just(Kind::Put),
        1 => Just(Kind::BlobPut),
        2 => Just(Kind::Delete),
        1 => Just(Kind::PutExpiring),
        1 => Just(Kind::BlobPutExpiring),
    ];
    let write = (0u32..100, key(), key(), kind, 0u64..10);
    proptest::collection::vec(write, 0..most).prop_map(move |writes| {
        let mut history = History {
            last: writes.len() as u64,
            ..History::default()
        };
        for (i, (percent, key, other, kind, expiry)) in writes.into_iter().enumerate() {
            let seqno = SeqNo(i as u64 + 1);
            if percent < range_deletes {
                let (start, end) = if key < other {
                    (key, other)
                } else {
                    (other, key)
                };
                history
                    .tombstones
                    .push(RangeTombstone { start, end, seqno });
                continue;
            }
            let mut value = if kind.is_expiring() {
                expiry.to_le_bytes().to_vec()
            } else {
                vec![]
            };
            if kind != Kind::Delete {
                value.extend_from_slice(&[i as u8; 3][..i % 4]);
            }
            history.entries.push(Entry {
                key,
                trailer: Trailer::new(seqno, kind),
                value,
            });
        }
        history
    })
}

/// Cuts a history before these numbers into sources, newest first: at least one.
pub(crate) fn split(history: &History, cuts: &[u64]) -> Vec<(Vec<Entry>, RangeTombstones)> {
    let mut cuts = cuts.to_vec();
    cuts.extend([0, u64::MAX]);
    cuts.sort_unstable();
    let parts = cuts.windows(2).rev().map(|w| {
        let inside = |seqno: SeqNo| w[0] <= seqno.0 && seqno.0 < w[1];
        let mut entries = history.entries.clone();
        entries.retain(|e| inside(e.trailer.seqno()));
        sort(&mut entries);
        let mut tombstones = history.tombstones.clone();
        tombstones.retain(|t| inside(t.seqno));
        (entries, RangeTombstones::from_unfragmented(tombstones))
    });
    parts.collect()
}
