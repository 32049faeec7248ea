//! A sorted run of tables that do not overlap, as one iterator.
//!
//! 1. A seek finds the one table that may hold the key by binary search over the bounds, which are
//!    in memory, and only then opens an iterator over that table; the others cost nothing.
//! 2. A move that leaves a table opens its neighbour. Tables without entries (they hold only range
//!    tombstones) are passed over.
//!
//! Invariants asked of the run: tables are in ascending order, their bounds do not overlap, and all
//! versions of a key lie in one table.

use crate::error::Result;
use crate::iterator::InternalIterator;
use crate::key::Trailer;

/// Where a [`ConcatIter`] gets its tables from.
pub trait RunSource: Send {
    /// The iterator over one table.
    type Iter: InternalIterator;
    /// The number of tables.
    fn len(&self) -> usize;
    /// Whether there is no table.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A lower bound of the keys of table `i`. REQUIRES: `i < len`.
    fn smallest(&self, i: usize) -> &[u8];
    /// An upper bound of the keys of table `i`, and whether it is exclusive (the end of a range
    /// tombstone). REQUIRES: `i < len`.
    fn largest(&self, i: usize) -> (&[u8], bool);
    /// Opens an iterator over table `i`. REQUIRES: `i < len`.
    fn open(&mut self, i: usize) -> Result<Self::Iter>;
}

/// Iterates over all tables of a run. See the module.
#[derive(Debug)]
pub struct ConcatIter<S: RunSource> {
    source: S,
    /// The open table; which one is told by `index`.
    table: Option<S::Iter>,
    index: usize,
}

impl<S: RunSource> ConcatIter<S> {
    /// An iterator that is not positioned and has nothing open.
    pub fn new(source: S) -> Self {
        Self {
            source,
            table: None,
            index: 0,
        }
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The iterator over table `i`, kept if it is the open one.
    fn open(&mut self, i: usize) -> Result<&mut S::Iter> {
        let table = match self.table.take() {
            Some(table) if self.index == i => table,
            _ => self.source.open(i)?,
        };
        self.index = i;
        Ok(self.table.insert(table))
    }

    /// To the first entry of the tables from `i` on.
    fn first_from(&mut self, mut i: usize) -> Result<()> {
        while i < self.source.len() {
            let table = self.open(i)?;
            table.seek_to_first()?;
            if table.valid() {
                return Ok(());
            }
            i += 1;
        }
        self.table = None;
        Ok(())
    }

    /// To the last entry of the tables before `i`.
    fn last_before(&mut self, i: usize) -> Result<()> {
        for i in (0..i).rev() {
            let table = self.open(i)?;
            table.seek_to_last()?;
            if table.valid() {
                return Ok(());
            }
        }
        self.table = None;
        Ok(())
    }
}

/// The first index in `0..len` for which `before` does not hold, or `len`.
fn partition_point(len: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

impl<S: RunSource> InternalIterator for ConcatIter<S> {
    #[inline]
    fn valid(&self) -> bool {
        self.table.as_ref().is_some_and(S::Iter::valid)
    }

    fn seek_to_first(&mut self) -> Result<()> {
        self.first_from(0)
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.last_before(self.source.len())
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        let i = partition_point(self.source.len(), |i| {
            let (largest, exclusive) = self.source.largest(i);
            if exclusive {
                largest <= key
            } else {
                largest < key
            }
        });
        if i == self.source.len() {
            self.table = None;
            return Ok(());
        }
        let table = self.open(i)?;
        table.seek(key)?;
        if table.valid() {
            Ok(())
        } else {
            self.first_from(i + 1)
        }
    }

    fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        let after = partition_point(self.source.len(), |i| self.source.smallest(i) < key);
        let Some(i) = after.checked_sub(1) else {
            self.table = None;
            return Ok(());
        };
        let table = self.open(i)?;
        table.seek_before(key)?;
        if table.valid() {
            Ok(())
        } else {
            self.last_before(i)
        }
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        let Some(table) = &mut self.table else {
            return Ok(());
        };
        table.next()?;
        if table.valid() {
            Ok(())
        } else {
            self.first_from(self.index + 1)
        }
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        let Some(table) = &mut self.table else {
            return Ok(());
        };
        table.prev()?;
        if table.valid() {
            Ok(())
        } else {
            self.last_before(self.index)
        }
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.table.as_ref().map_or(&[], S::Iter::key)
    }

    #[inline]
    fn trailer(&self) -> Trailer {
        self.table.as_ref().map_or(Trailer(0), S::Iter::trailer)
    }

    #[inline]
    fn value(&self) -> &[u8] {
        self.table.as_ref().map_or(&[], S::Iter::value)
    }

    #[inline]
    fn next_key(&mut self) -> Result<()> {
        let Some(table) = &mut self.table else {
            return Ok(());
        };
        table.next_key()?;
        if table.valid() {
            Ok(())
        } else {
            self.first_from(self.index + 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::merge::testing::{Entry, Moves, VecIter, entry, walk_like_model};
    use proptest::prelude::*;

    /// Tables cut out of one sorted list.
    struct Cut {
        tables: Vec<Vec<Entry>>,
        bounds: Vec<(Vec<u8>, Vec<u8>, bool)>,
        opened: usize,
        broken: Option<usize>,
    }

    impl RunSource for Cut {
        type Iter = VecIter;
        fn len(&self) -> usize {
            self.tables.len()
        }
        fn smallest(&self, i: usize) -> &[u8] {
            &self.bounds[i].0
        }
        fn largest(&self, i: usize) -> (&[u8], bool) {
            (&self.bounds[i].1, self.bounds[i].2)
        }
        fn open(&mut self, i: usize) -> Result<VecIter> {
            if self.broken == Some(i) {
                return Err(Error::corruption("table", 0, "broken"));
            }
            self.opened += 1;
            Ok(VecIter::new(self.tables[i].clone()))
        }
    }

    /// Cuts behind the keys in `cuts`; a table may have no entries.
    fn cut(entries: &[Entry], cuts: &[Vec<u8>], exclusive: bool) -> Cut {
        let mut run = Cut {
            tables: vec![],
            bounds: vec![],
            opened: 0,
            broken: None,
        };
        let mut low = vec![];
        for high in cuts.iter().cloned().chain([vec![0xff; 4]]) {
            let inside: Vec<_> = entries
                .iter()
                .filter(|e| low <= e.key && e.key < high)
                .cloned()
                .collect();
            match inside.last() {
                Some(last) if !exclusive => {
                    run.bounds
                        .push((inside[0].key.clone(), last.key.clone(), false));
                }
                _ => run.bounds.push((low.clone(), high.clone(), true)),
            }
            run.tables.push(inside);
            low = high;
        }
        run
    }

    #[test]
    fn opens_only_what_it_needs() {
        let entries: Vec<_> = (0..100u8).map(|i| entry(&[i], 1, b"v")).collect();
        let cuts: Vec<_> = (1..10u8).map(|i| vec![i * 10]).collect();
        let mut iter = ConcatIter::new(cut(&entries, &cuts, false));
        assert!(!iter.valid());
        iter.seek(&[55]).unwrap();
        assert_eq!(iter.key(), [55]);
        iter.seek(&[51]).unwrap();
        iter.seek_before(&[58]).unwrap();
        assert_eq!((iter.key(), iter.source().opened), (&[57][..], 1));
        for _ in 0..3 {
            iter.next().unwrap();
        }
        assert_eq!((iter.key(), iter.source().opened), (&[60][..], 2));
        iter.prev().unwrap();
        assert_eq!((iter.key(), iter.source().opened), (&[59][..], 3));
        iter.seek(&[100]).unwrap();
        assert!(!iter.valid());
        iter.seek_before(&[0]).unwrap();
        assert!(!iter.valid());
        assert_eq!(iter.source().opened, 3);
    }

    #[test]
    fn an_error_invalidates_and_a_later_seek_succeeds() {
        let entries: Vec<_> = (0..30u8).map(|i| entry(&[i], 1, b"v")).collect();
        let mut iter = ConcatIter::new(cut(&entries, &[vec![10], vec![20]], false));
        iter.source.broken = Some(1);
        iter.seek(&[9]).unwrap();
        assert!(iter.next().is_err());
        assert!(!iter.valid());
        assert!(iter.seek(&[15]).is_err());
        assert!(!iter.valid());
        iter.seek(&[20]).unwrap();
        assert_eq!(iter.key(), [20]);
    }

    #[test]
    fn no_tables() {
        let run = Cut {
            tables: vec![],
            bounds: vec![],
            opened: 0,
            broken: None,
        };
        assert!(run.is_empty());
        let mut iter = ConcatIter::new(run);
        iter.seek_to_first().unwrap();
        assert!(!iter.valid());
        iter.seek_to_last().unwrap();
        assert!(!iter.valid());
        iter.seek(b"").unwrap();
        assert!(!iter.valid());
        iter.seek_before(b"a").unwrap();
        assert!(!iter.valid());
    }

    proptest! {
        #[test]
        fn walks_like_one_table(
            entries in crate::merge::testing::entries(40),
            cuts in proptest::collection::btree_set(proptest::collection::vec(0u8..4, 1..3), 0..6),
            exclusive: bool,
            moves in Moves::strategy(60),
        ) {
            let cuts: Vec<_> = cuts.into_iter().collect();
            let mut iter = ConcatIter::new(cut(&entries, &cuts, exclusive));
            walk_like_model(&mut iter, &entries, &moves)?;
        }
    }
}
