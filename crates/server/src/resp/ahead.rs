//! `GET`s of a pipeline, looked up together.
//!
//! A lookup waits for memory some ten times, one after the other; many of them wait side by side. So
//! before the first of several `GET`s that were received together runs, the keys of those that follow
//! it are read with its own, and each takes its answer when it is its turn.

use firn_engine::{Entry, Namespace};

use crate::resp::parse::gets_ahead;
use crate::service::Service;

/// Fewer are not worth it.
const FEWEST: usize = 4;
/// What they hold until it is their turn is bounded.
const MOST: usize = 32;

/// What was found, in the order in which it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The keys, one behind the other.
    keys: Vec<u8>,
    /// Where each key ends, and what was found.
    found: Vec<(usize, Option<Entry>)>,
    next: usize,
}

impl Ahead {
    /// Whether nothing is left of what was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Reads `key` and the keys of the `GET`s that `rest` begins with, if they are many and reads are
    /// cheap.
    pub(crate) fn look(&mut self, service: &Service, ns: &Namespace, key: &[u8], rest: &[u8]) {
        if !service.reads_are_cheap() {
            return;
        }
        let mut keys = Vec::with_capacity(MOST);
        keys.push(key);
        gets_ahead(rest, MOST, &mut keys);
        let most = service.limits().key_bytes;
        let is_sound = |key: &&[u8]| key.len() as u64 <= most;
        if keys.len() < FEWEST || !keys.iter().all(is_sound) {
            return;
        }
        // If it fails each finds out for itself.
        if let Ok(found) = service.db().multi_get(ns, &keys) {
            for (key, entry) in keys.iter().zip(found) {
                self.keys.extend_from_slice(key);
                self.found.push((self.keys.len(), entry));
            }
        }
    }

    /// What was read is of no use, or no longer true.
    #[inline]
    pub(crate) fn forget(&mut self) {
        if !self.found.is_empty() {
            self.keys.clear();
            self.found.clear();
            self.next = 0;
        }
    }

    /// What was found for `key`, whose turn it is; `None` if it was not read.
    pub(crate) fn take(&mut self, key: &[u8]) -> Option<Option<Entry>> {
        let start = match self.next.checked_sub(1) {
            Some(before) => self.found.get(before)?.0,
            None => 0,
        };
        let (end, entry) = self.found.get_mut(self.next)?;
        if self.keys[start..*end] != *key {
            self.forget();
            return None;
        }
        let entry = entry.take();
        self.next += 1;
        if self.next == self.found.len() {
            self.forget();
        }
        Some(entry)
    }
}
