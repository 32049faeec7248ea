//! Filling an empty memtable with many entries at once, in any order: recovery's way.
//!
//! 1. [`Loader::push`] copies an entry to where it will stay, in the memtable's arena, and notes its
//!    address and a *window*, eight bytes of its key as an integer that orders like them.
//! 2. [`Loader::take_run`] hands out what was noted so far, for another thread to sort while more is
//!    pushed. Sorting seldom looks at more than windows.
//! 3. [`Loader::finish`] merges the sorted runs and appends the keys to the tree in ascending order:
//!    no search, full nodes, nothing copied again.
//!
//! Until then nobody sees the entries.
#![allow(unsafe_code, reason = "entries are known by their addresses")]

use std::cmp::Ordering as Order;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::key::{Kind, SeqNo, window};
use crate::memtable::arena::{Entry, Header};
use crate::memtable::btree::{Counts, Sorted, Tree};
use crate::memtable::{INNER, LEAF, Memtable};

/// Entries in a run: their notes fit into a processor's cache.
const RUN: usize = 1 << 16;
/// While there are at most so many notes, they are made anew when the common prefix gets shorter.
const FEW: usize = 1 << 10;

/// An entry that was written and is not yet in the tree.
#[derive(Clone, Copy)]
struct Loaded {
    window: u64,
    entry: NonNull<Header>,
}

/// Entries of one memtable that wait to be sorted, or are sorted.
pub struct Run {
    tree: Arc<Tree<LEAF, INNER>>,
    entries: Vec<Loaded>,
    /// Windows begin after so many bytes, which all keys of the run share.
    common: usize,
    /// The present windows are not all of `common`.
    stale: bool,
}

// SAFETY: its pointers are to entries of the tree that it keeps alive, which nobody changes and
// whose writing happened before the run was handed to another thread.
unsafe impl Send for Run {}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl Run {
    fn new(tree: &Arc<Tree<LEAF, INNER>>, common: usize) -> Self {
        Self {
            tree: Arc::clone(tree),
            entries: Vec::new(),
            common,
            stale: false,
        }
    }

    fn entry(&self, loaded: &Loaded) -> Entry<'_> {
        // SAFETY: `push` wrote the entry in the arena of `tree`, before it put its address here.
        unsafe { Entry::from_raw(loaded.entry) }
    }

    /// Makes the windows anew, after `common` bytes.
    fn set_common(&mut self, common: usize) {
        if self.common == common && !self.stale {
            return;
        }
        let mut entries = std::mem::take(&mut self.entries);
        for loaded in &mut entries {
            loaded.window = window(self.entry(loaded).key(), common);
        }
        self.entries = entries;
        self.common = common;
        self.stale = false;
    }

    fn order(&self, a: &Loaded, b: &Loaded) -> Order {
        a.window.cmp(&b.window).then_with(|| {
            let (a, b) = (self.entry(a), self.entry(b));
            a.key().cmp(b.key()).then(a.trailer().cmp(&b.trailer()))
        })
    }

    /// Brings the entries into the order of their keys.
    pub fn sort(&mut self) {
        self.set_common(self.common);
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_unstable_by(|a, b| self.order(a, b));
        self.entries = entries;
    }
}

/// Fills one memtable, to which nobody else writes meanwhile.
#[derive(Debug)]
pub struct Loader {
    run: Run,
    counts: Counts,
}

impl Loader {
    /// For an empty memtable.
    pub fn new(memtable: &Memtable) -> Self {
        Self {
            run: Run::new(&memtable.tree, usize::MAX),
            counts: Counts {
                tombstones: 0,
                min_seqno: u64::MAX,
                max_seqno: 0,
            },
        }
    }

    /// Adds a version of a key, once [`finish`](Self::finish) was called.
    ///
    /// # Panics
    ///
    /// If key or value are 4 GiB or longer.
    pub fn push(&mut self, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) {
        let run = &mut self.run;
        let entry = run.tree.write_entry(key, seqno, kind, value);
        let shared = match run.entries.first() {
            None => run.common.min(key.len()),
            Some(first) => {
                let pairs = run.entry(first).key().iter().zip(key);
                pairs.take_while(|(a, b)| a == b).count()
            }
        };
        if shared < run.common {
            if run.entries.len() <= FEW {
                run.set_common(shared);
            } else {
                run.common = shared;
                run.stale = true;
            }
        }
        let window = window(key, run.common);
        run.entries.push(Loaded { window, entry });
        let counts = &mut self.counts;
        counts.tombstones += usize::from(kind == Kind::Delete);
        counts.min_seqno = counts.min_seqno.min(seqno.0);
        counts.max_seqno = counts.max_seqno.max(seqno.0);
    }

    /// What is to be sorted elsewhere, now and then; it must come back to [`finish`](Self::finish).
    pub fn take_run(&mut self) -> Option<Run> {
        (self.run.entries.len() >= RUN).then(|| self.take_any_run())
    }

    pub(super) fn take_any_run(&mut self) -> Run {
        let next = Run::new(&self.run.tree, self.run.common);
        std::mem::replace(&mut self.run, next)
    }

    /// Puts everything into the memtable: what was pushed last and the sorted runs.
    ///
    /// # Panics
    ///
    /// If a run is of another memtable's.
    pub fn finish(self, runs: Vec<Run>) {
        let mut all = self.run;
        all.sort();
        assert!(
            runs.iter().all(|run| Arc::ptr_eq(&run.tree, &all.tree)),
            "a run of another memtable"
        );
        // A run's prefix may be one that later keys do not share, and an empty run knows none.
        let filled = || runs.iter().chain([&all]).filter(|r| !r.entries.is_empty());
        let mut common = filled().map(|run| run.common).min().unwrap_or(0);
        if let Some(first) = filled().next().and_then(|run| run.entries.first()) {
            let first = all.entry(first).key();
            for run in filled() {
                let other = run.entries.first().map_or(first, |e| all.entry(e).key());
                let shared = first.iter().zip(other).take_while(|(a, b)| a == b);
                common = common.min(shared.count());
            }
        }
        all.set_common(common);
        for mut run in runs {
            run.set_common(common);
            all.entries.append(&mut run.entries);
        }
        let mut entries = std::mem::take(&mut all.entries);
        // The stable sort finds the runs that are in order and merges them.
        entries.sort_by(|a, b| all.order(a, b));
        // Of a key's first eight bytes those that all share, and from the window the rest.
        let Some(first) = entries.first() else { return };
        let shared = window(&all.entry(first).key()[..common], 0);
        let sorted = entries.iter().map(|loaded| Sorted {
            entry: loaded.entry,
            window: loaded.window,
            first_window: match common {
                0..8 => shared | loaded.window >> (8 * common),
                _ => shared,
            },
        });
        // SAFETY: `write_entry` of this tree made each of them, they are in order, and each is in one
        // run, once.
        unsafe { all.tree.load(sorted, &self.counts) };
    }
}
