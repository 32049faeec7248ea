//! Many keys at once.

use std::ptr;

use crate::memtable::arena::Entry;
use crate::memtable::btree::{Link, Tree, is_leaf};
use crate::prefetch::prefetch_lines;
use crate::sync::Ordering;

impl<const L: usize, const I: usize> Tree<L, I> {
    /// [`Tree::head`] for many keys: each step of the way down is done for all of them before the next,
    /// so that the processor waits for the memory of many nodes at once.
    pub(in crate::memtable) fn heads<'a>(
        &'a self,
        keys: &[&[u8]],
        links: &mut Vec<Link>,
        mut found: impl FnMut(usize, Option<Entry<'a>>),
    ) {
        links.clear();
        links.resize(keys.len(), self.root.load(Ordering::Acquire));
        let mut on_the_way = true;
        while on_the_way {
            on_the_way = false;
            for (link, key) in links.iter_mut().zip(keys) {
                if link.is_null() || is_leaf(*link) {
                    continue;
                }
                let index = self.inner(*link).find(key);
                // It changes just now: from the beginning, below.
                *link = self.child(*link, index).unwrap_or(ptr::null_mut());
                if link.is_null() {
                    continue;
                }
                if is_leaf(*link) {
                    prefetch_lines(self.leaf(*link), 1);
                } else {
                    // Of an inner node every other line of the windows, where a search looks first.
                    prefetch_lines(self.inner(*link), 2);
                    on_the_way = true;
                }
            }
        }
        for (at, (&link, key)) in links.iter().zip(keys).enumerate() {
            let place = (!link.is_null()).then(|| {
                let leaf = self.leaf(link);
                leaf.find(leaf.order.load(Ordering::Acquire), key)
            });
            match place.flatten() {
                Some(place) if self.leaf_unchanged(link) => {
                    found(at, place.found.map(|(_, entry)| entry));
                }
                _ => found(at, self.head(key)),
            }
        }
    }
}
