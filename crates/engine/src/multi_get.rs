//! Several keys of one tree at one instant.
//!
//! The order of sources is that of a point read (see `read`), but each is asked for all keys that are
//! still open before the next one: tables do one step for all keys (see `sstable::multi`), and the
//! blocks that they must read are in the order of the file.

use std::sync::Arc;

use crate::core::{Core, Now};
use crate::error::Result;
use crate::key::SeqNo;
use crate::options::LEVELS;
use crate::read::{Found, GET_LOSS_BYTES};
use crate::sstable::{Wanted, key_hash};
use crate::tree::{TableFile, Tree, TreeState};
use crate::value::Entry;

/// Fewer keys are read one by one.
const FEW: usize = 3;
/// So many keys at most go together: what they hold on the way stays in the processor's caches.
const MANY: usize = 256;

/// A key without an answer.
struct Open<'k> {
    /// Its place in the answer.
    place: usize,
    key: &'k [u8],
    hash: u64,
    /// The newest range tombstone over it in the sources that were asked.
    covered: SeqNo,
    /// Tables that were asked.
    probed: u64,
}

impl Core {
    /// Reads keys of a tree in a picture of it, at a sequence number. The answers come in the order of
    /// the keys.
    pub fn multi_get_at(
        self: &Arc<Self>,
        tree: &Tree,
        state: &TreeState,
        keys: &[&[u8]],
        snapshot: SeqNo,
    ) -> Result<Vec<Option<Entry>>> {
        if keys.len() <= FEW {
            let one = |key: &&[u8]| self.get_at(tree, state, key, snapshot);
            return keys.iter().map(one).collect();
        }
        let mut answers = Vec::with_capacity(keys.len());
        for part in keys.chunks(MANY) {
            let found = self.part(tree, state, part, snapshot);
            answers.extend(found.inspect_err(|e| self.note_error(e))?);
        }
        Ok(answers)
    }

    fn part(
        self: &Arc<Self>,
        tree: &Tree,
        state: &TreeState,
        keys: &[&[u8]],
        snapshot: SeqNo,
    ) -> Result<Vec<Option<Entry>>> {
        let now = Now::new(&self.env);
        let mut answers: Vec<Option<Entry>> = Vec::new();
        answers.resize_with(keys.len(), || None);
        let mut open = Vec::with_capacity(keys.len());
        let waiting = state.immutables.iter().map(|i| &i.memtable);
        let memtables = std::iter::once(&state.active).chain(waiting);
        let memtables: Vec<_> = memtables.filter(|m| !m.is_empty()).collect();
        // The keys that no memtable so far has, where they stand, and what covers them.
        let mut left: Vec<&[u8]> = keys.to_vec();
        let mut places: Vec<(usize, SeqNo)> =
            (0..keys.len()).map(|place| (place, SeqNo::ZERO)).collect();
        let mut ways = Vec::new();
        for memtable in &memtables {
            if memtable.has_range_tombstones() {
                let tombstones = memtable.range_tombstones();
                for (key, (_, covered)) in left.iter().zip(&mut places) {
                    let covering = tombstones.covering(key, snapshot);
                    *covered = (*covered).max(covering.unwrap_or_default());
                }
            }
            let mut kept = 0;
            let mut failed = None;
            let mut misses = Vec::with_capacity(left.len());
            memtable.get_many(&left, snapshot, &mut ways, |at, found| {
                let Some((trailer, value)) = found else {
                    misses.push(at);
                    return;
                };
                let (place, covered) = places[at];
                if trailer.seqno() > covered {
                    let found = Found::Memtable(trailer, value);
                    match self.materialize(&state.levels, keys[place], found, &now) {
                        Ok(answer) => answers[place] = answer,
                        Err(error) => failed = Some(error),
                    }
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            for at in misses {
                (left[kept], places[kept]) = (left[at], places[at]);
                kept += 1;
            }
            left.truncate(kept);
            places.truncate(kept);
            if left.is_empty() {
                break;
            }
        }
        open.extend(
            left.into_iter()
                .zip(places)
                .map(|(key, (place, covered))| Open {
                    place,
                    key,
                    hash: key_hash(key),
                    covered,
                    probed: 0,
                }),
        );
        if !state.levels.is_empty() {
            open.sort_unstable_by_key(|o| o.key);
            self.ask_tables(state, &mut open, snapshot, &mut |open, found| {
                answers[open.place] = self.materialize(&state.levels, open.key, found, &now)?;
                Ok(())
            })?;
        }
        let hits = answers.iter().flatten().count() as u64;
        self.observer
            .counters
            .reading
            .reads(keys.len() as u64, hits);
        let lost = open.iter().map(|o| o.probed.saturating_sub(1)).sum::<u64>();
        self.note_read_loss(tree, GET_LOSS_BYTES * lost);
        Ok(answers)
    }

    /// Asks the tables for the open keys, which ascend, and gives `answer` what is found and not
    /// covered.
    fn ask_tables<'k>(
        &self,
        state: &TreeState,
        open: &mut [Open<'k>],
        snapshot: SeqNo,
        answer: &mut impl FnMut(&Open<'k>, Found<'static>) -> Result<()>,
    ) -> Result<()> {
        // Those without an answer are kept at the front, in order.
        let mut left = open.len();
        let mut wanted = Vec::with_capacity(left);
        let mut ask = |file: &Arc<TableFile>, open: &mut [Open<'k>]| -> Result<bool> {
            let table = self.table(file)?;
            let tombstones = table.range_tombstones();
            for o in &mut *open {
                if !tombstones.is_empty() {
                    let covering = tombstones.covering(o.key, snapshot);
                    o.covered = o.covered.max(covering.unwrap_or_default());
                }
                o.probed += 1;
            }
            wanted.clear();
            wanted.extend(open.iter().map(|o| Wanted::new(o.key, o.hash)));
            table.get_many(&mut wanted, snapshot)?;
            let mut any = false;
            for (o, w) in open.iter_mut().zip(&mut wanted) {
                let Some(entry) = w.found.take() else {
                    continue;
                };
                any = true;
                if entry.trailer.seqno() > o.covered {
                    answer(o, Found::Table(entry.trailer, entry.value.into()))?;
                }
                o.place = DONE;
            }
            Ok(any)
        };
        for file in state.levels.files(0) {
            let from = open[..left].partition_point(|o| *o.key < *file.meta.smallest);
            let len = open[from..left].partition_point(|o| file.meta.covers(o.key));
            if len > 0 && ask(file, &mut open[from..from + len])? {
                left = keep_open(&mut open[..left]);
            }
        }
        for level in state.levels.levels().iter().skip(1).take(LEVELS - 1) {
            if level.is_empty() {
                continue;
            }
            let mut any = false;
            let mut at = 0;
            while at < left {
                let Some(file) = level.files().get(level.position(open[at].key)) else {
                    break;
                };
                let inside = |o: &Open<'_>| file.meta.covers(o.key);
                let before = |o: &Open<'_>| *o.key < *file.meta.smallest;
                let from = at + open[at..left].partition_point(before);
                let to = from + open[from..left].partition_point(inside);
                if from < to {
                    any |= ask(file, &mut open[from..to])?;
                }
                at = to;
            }
            if any {
                left = keep_open(&mut open[..left]);
            }
        }
        Ok(())
    }
}

/// The place of a key that has its answer.
const DONE: usize = usize::MAX;

/// Moves the keys without an answer to the front, in order; returns how many.
fn keep_open(open: &mut [Open<'_>]) -> usize {
    let mut left = 0;
    for i in 0..open.len() {
        if open[i].place != DONE {
            open.swap(i, left);
            left += 1;
        }
    }
    left
}
