//! The contract of every iterator inside the engine: over a memtable, an SSTable, a level, a merge.

use crate::error::Result;
use crate::key::Trailer;

/// Walks entries in internal order (user key ascending, newest first), in both directions.
///
/// A new iterator is not positioned. After an error it is not valid, and the error is returned by
/// the call that met it; a later seek may succeed. [`key`](InternalIterator::key),
/// [`trailer`](InternalIterator::trailer) and [`value`](InternalIterator::value) may be called only
/// while it is valid; what they return holds until the next move. Range tombstones are not among
/// the entries.
pub trait InternalIterator: Send {
    /// Whether it stands on an entry.
    fn valid(&self) -> bool;
    /// To the first entry.
    fn seek_to_first(&mut self) -> Result<()>;
    /// To the last entry.
    fn seek_to_last(&mut self) -> Result<()>;
    /// To the first entry (the newest) of the first user key at or after `key`.
    fn seek(&mut self, key: &[u8]) -> Result<()>;
    /// To the last entry (the oldest) of the last user key before `key`.
    fn seek_before(&mut self, key: &[u8]) -> Result<()>;
    /// To the next entry. REQUIRES: valid.
    fn next(&mut self) -> Result<()>;
    /// To the previous entry. REQUIRES: valid.
    fn prev(&mut self) -> Result<()>;
    /// The user key.
    fn key(&self) -> &[u8];
    /// Sequence number and kind.
    fn trailer(&self) -> Trailer;
    /// The stored value, whose meaning the kind tells.
    fn value(&self) -> &[u8];

    /// To the newest entry of the next user key. REQUIRES: valid. Faster than repeated
    /// [`next`](InternalIterator::next) where a key has many versions.
    fn next_key(&mut self) -> Result<()> {
        let current = self.key().to_vec();
        while self.valid() && self.key() == current {
            self.next()?;
        }
        Ok(())
    }
}

impl<I: InternalIterator + ?Sized> InternalIterator for Box<I> {
    fn valid(&self) -> bool {
        (**self).valid()
    }
    fn seek_to_first(&mut self) -> Result<()> {
        (**self).seek_to_first()
    }
    fn seek_to_last(&mut self) -> Result<()> {
        (**self).seek_to_last()
    }
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        (**self).seek(key)
    }
    fn seek_before(&mut self, key: &[u8]) -> Result<()> {
        (**self).seek_before(key)
    }
    fn next(&mut self) -> Result<()> {
        (**self).next()
    }
    fn prev(&mut self) -> Result<()> {
        (**self).prev()
    }
    fn key(&self) -> &[u8] {
        (**self).key()
    }
    fn trailer(&self) -> Trailer {
        (**self).trailer()
    }
    fn value(&self) -> &[u8] {
        (**self).value()
    }
    fn next_key(&mut self) -> Result<()> {
        (**self).next_key()
    }
}
