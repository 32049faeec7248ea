//! What a read returns: a value that may be a slice of a cached block, and its version and expiry.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::blob::BlobValue;
use crate::cache::BlockSlice;
use crate::key::SeqNo;
use crate::sstable::TableValue;

/// A value. Dereferences to its bytes. A value that was read from a cached block is a slice of it,
/// not a copy, and keeps the block in memory until it is dropped.
#[derive(Clone)]
pub struct Value(Repr);

#[derive(Clone)]
enum Repr {
    Owned(Box<[u8]>),
    Block(BlockSlice),
    Blob(Arc<BlobValue>),
}

impl Value {
    /// A copy of `bytes`.
    pub(crate) fn copied(bytes: &[u8]) -> Self {
        Self(Repr::Owned(bytes.into()))
    }

    /// The same bytes without the first `n` (all of them if it is shorter).
    #[must_use]
    pub(crate) fn skip(self, n: usize) -> Self {
        match self.0 {
            Repr::Block(slice) => Self(Repr::Block(slice.skip(n))),
            _ if n == 0 => self,
            _ => Self::copied(self.get(n..).unwrap_or_default()),
        }
    }

    /// The bytes, copied unless this is the only holder of a copy already.
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Repr::Owned(bytes) => bytes.into_vec(),
            Repr::Block(slice) => slice.to_vec(),
            Repr::Blob(value) => match Arc::try_unwrap(value) {
                Ok(value) => value.into_vec(),
                Err(shared) => shared.to_vec(),
            },
        }
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Repr::Owned(bytes.into()))
    }
}

impl From<TableValue> for Value {
    #[inline]
    fn from(value: TableValue) -> Self {
        Self(match value {
            TableValue::Slice(slice) => Repr::Block(slice),
            TableValue::Copy(bytes) => Repr::Owned(bytes),
        })
    }
}

impl From<BlobValue> for Value {
    fn from(value: BlobValue) -> Self {
        Self(Repr::Blob(Arc::new(value)))
    }
}

impl Deref for Value {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Owned(bytes) => bytes,
            Repr::Block(slice) => slice,
            Repr::Blob(value) => value,
        }
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Value {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for Value {}

/// A value with what else is stored of its key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// The sequence number of the operation that wrote it; what compare-and-set checks.
    pub version: SeqNo,
    /// When it ceases to exist, in Unix milliseconds, if ever.
    pub expires_at_ms: Option<u64>,
}
