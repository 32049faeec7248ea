//! Many keys at once.

use std::cmp::Ordering as Order;
use std::ptr;

use crate::key::window;
use crate::memtable::arena::Entry;
use crate::memtable::btree::{ENTRY_BYTES, Leaf, Link, Tree, is_leaf, order_len};
use crate::prefetch::{prefetch_lines, prefetch_span};
use crate::sync::Ordering;

/// How far a search has come: a node, and which of its children is next. No node if it begins anew.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    link: Link,
    index: usize,
}

impl Way {
    #[inline]
    fn is_at_inner(&self) -> bool {
        !self.link.is_null() && !is_leaf(self.link)
    }
}

impl<const L: usize, const I: usize> Tree<L, I> {
    /// [`Tree::head`] for many keys: each step of the way down is done for all of them before the next,
    /// so that the processor waits for the memory of many nodes at once, and then of many entries.
    pub(in crate::memtable) fn heads<'a>(
        &'a self,
        keys: &[&[u8]],
        ways: &mut Vec<Way>,
        mut found: impl FnMut(usize, Option<Entry<'a>>),
    ) {
        ways.clear();
        let link = self.root.load(Ordering::Acquire);
        ways.resize(keys.len(), Way { link, index: 0 });
        let mut on_the_way = true;
        while on_the_way {
            on_the_way = false;
            for (way, key) in ways.iter_mut().zip(keys) {
                if way.is_at_inner() {
                    let inner = self.inner(way.link);
                    way.index = inner.find(key);
                    if let Some(child) = inner.child.get(way.index) {
                        prefetch_lines(child, 1);
                    }
                }
            }
            for way in ways.iter_mut().filter(|way| way.is_at_inner()) {
                // It changes just now: from the beginning, below.
                way.link = self.child(way.link, way.index).unwrap_or(ptr::null_mut());
                if way.is_at_inner() {
                    // Of an inner node the lines of the windows: a search looks at each.
                    prefetch_lines(self.inner(way.link), 1);
                    on_the_way = true;
                } else if !way.link.is_null() {
                    prefetch_lines(self.leaf(way.link), 1);
                }
            }
        }
        let mut first = 0;
        for (ways, keys) in ways.chunks(AHEAD).zip(keys.chunks(AHEAD)) {
            let mut seen = [Seen::Unsure; AHEAD];
            for ((way, key), seen) in ways.iter().zip(keys).zip(&mut seen) {
                if !way.link.is_null() {
                    *seen = self.leaf(way.link).see(key);
                }
                if let Seen::One(entry) = seen {
                    prefetch_span(entry.raw().as_ptr().cast(), ENTRY_BYTES);
                }
            }
            for (at, ((way, key), seen)) in ways.iter().zip(keys).zip(seen).enumerate() {
                let head = match seen {
                    Seen::None if self.leaf_unchanged(way.link) => None,
                    Seen::One(entry) if self.leaf_unchanged(way.link) => {
                        (entry.cmp_key(key) == Order::Equal).then_some(entry)
                    }
                    _ => self.head(key),
                };
                found(first + at, head);
            }
            first += AHEAD;
        }
    }
}

/// Keys whose entries are fetched together: these stay in the nearest cache until they are read.
const AHEAD: usize = 32;

/// What a leaf has with a key's window.
#[derive(Clone, Copy)]
enum Seen<'a> {
    None,
    /// One entry, which may be another key's.
    One(Entry<'a>),
    Unsure,
}

impl<const L: usize> Leaf<L> {
    /// Looks at the windows alone. Holds if the leaf is unchanged afterwards.
    #[inline]
    fn see(&self, key: &[u8]) -> Seen<'_> {
        let len = order_len(self.order.load(Ordering::Acquire)).min(L);
        let wanted = window(key, self.skip.load(Ordering::Relaxed) as usize);
        let mut equal = 0_u32;
        for (slot, window) in self.window[..len].iter().enumerate() {
            equal |= u32::from(window.load(Ordering::Relaxed) == wanted) << slot;
        }
        match equal.count_ones() {
            0 => Seen::None,
            1 => match self.entry(equal.trailing_zeros() as usize) {
                Some(entry) => Seen::One(entry),
                None => Seen::Unsure,
            },
            _ => Seen::Unsure,
        }
    }
}
