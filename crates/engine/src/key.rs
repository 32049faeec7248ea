//! The order of entries: user key ascending, then sequence number descending.
//!
//! An *entry* is (user key, [`Trailer`], value). The trailer packs the sequence number and the kind
//! into 64 bits, in memory and on disk:
//!
//! ```text
//!   63                                   8 7      0
//!  +--------------------------------------+--------+
//!  |            sequence number           |  kind  |
//!  +--------------------------------------+--------+
//! ```
//!
//! Every operation of every batch has a sequence number of its own, so two entries of one tree
//! never have the same trailer and the kind takes no part in the order.

use std::fmt;

/// The position of an operation in the history of the whole database. The version of a key, which
/// compare-and-set checks, is the sequence number of the operation that wrote it. 56 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqNo(pub u64);

impl SeqNo {
    /// Before the first operation.
    pub const ZERO: Self = Self(0);
    /// After every possible operation: reads at it see everything.
    pub const MAX: Self = Self((1 << 56) - 1);
}

impl fmt::Display for SeqNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a namespace, never used again after a drop. 0 is the default namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub u32);

/// Number of an SSTable, blob or manifest file, never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// What an entry says about its key. **Stored on disk: never change these values.**
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The key does not exist. No value.
    Delete = 0,
    /// The value is the user's bytes.
    Put = 1,
    /// The value is the expiry (Unix milliseconds, u64, little-endian), then the user's bytes.
    PutExpiring = 2,
    /// The value is an encoded pointer into a blob file (see `blob`).
    BlobPut = 3,
    /// The value is the expiry as in `PutExpiring`, then an encoded pointer into a blob file.
    BlobPutExpiring = 4,
    /// Only in batches and logs: the key is the start, the value the (exclusive) end of a range of
    /// keys that do not exist. In trees range tombstones are stored apart.
    RangeDelete = 5,
}

impl Kind {
    /// The kind with this stored value.
    pub const fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Delete,
            1 => Self::Put,
            2 => Self::PutExpiring,
            3 => Self::BlobPut,
            4 => Self::BlobPutExpiring,
            5 => Self::RangeDelete,
            _ => return None,
        })
    }

    /// Whether the value starts with an expiry.
    pub const fn is_expiring(self) -> bool {
        matches!(self, Self::PutExpiring | Self::BlobPutExpiring)
    }

    /// Whether the value is (after the expiry, if any) a pointer into a blob file.
    pub const fn is_blob(self) -> bool {
        matches!(self, Self::BlobPut | Self::BlobPutExpiring)
    }
}

/// Sequence number and kind of an entry; a greater trailer is newer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Trailer(pub u64);

impl Trailer {
    /// Packs the two.
    pub const fn new(seqno: SeqNo, kind: Kind) -> Self {
        Self(seqno.0 << 8 | kind as u8 as u64)
    }

    /// When it was written.
    pub const fn seqno(self) -> SeqNo {
        SeqNo(self.0 >> 8)
    }

    /// What it says. `None` if the stored byte is no kind: damage.
    pub const fn kind(self) -> Option<Kind> {
        Kind::from_u8((self.0 & 0xff) as u8)
    }
}

impl fmt::Debug for Trailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:?}", self.seqno(), self.kind())
    }
}

/// The smallest key that is greater than every key with this prefix; `None` if there is none (the
/// prefix is empty or all 0xff).
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|&b| b != 0xff)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end)
}

/// Eight bytes of `key` from `skip` on, as an integer that orders like them. Where the key ends
/// zeros stand in, so equal windows do not mean equal keys: `a` and `a\0` have the same.
#[inline]
pub(crate) fn window(key: &[u8], skip: usize) -> u64 {
    let len = key.len().saturating_sub(skip);
    if len >= 8
        && let Some(bytes) = key[skip..].first_chunk()
    {
        return u64::from_le_bytes(*bytes).swap_bytes();
    }
    match key.last_chunk() {
        _ if len == 0 => 0,
        // The last eight bytes, without those before `skip`: one read, unlike a copy of a few bytes.
        Some(bytes) => u64::from_le_bytes(*bytes).swap_bytes() << (64 - 8 * len),
        None => {
            let bytes = key[skip..].iter().zip((0..64).step_by(8).rev());
            bytes.fold(0, |word, (&byte, shift)| word | u64::from(byte) << shift)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_order_like_the_bytes() {
        let key = b"0123456789";
        for len in 0..=key.len() {
            for skip in 0..=12 {
                let mut bytes = [0; 8];
                let rest = key[..len].get(skip..).unwrap_or_default();
                let kept = rest.len().min(8);
                bytes[..kept].copy_from_slice(&rest[..kept]);
                let wanted = u64::from_le_bytes(bytes).swap_bytes();
                assert_eq!(
                    window(&key[..len], skip),
                    wanted,
                    "{len} bytes from {skip} on"
                );
            }
        }
        assert!(window(b"a", 0) < window(b"a\x01", 0));
        assert!(window(b"a\xff", 0) < window(b"b", 0));
    }

    #[test]
    fn trailer_packs_and_orders() {
        let old = Trailer::new(SeqNo(7), Kind::PutExpiring);
        let new = Trailer::new(SeqNo(8), Kind::Delete);
        assert!(new > old);
        assert_eq!(
            (old.seqno(), old.kind()),
            (SeqNo(7), Some(Kind::PutExpiring))
        );
        assert_eq!(Trailer(0xff).kind(), None);
        assert_eq!(Trailer::new(SeqNo::MAX, Kind::Delete).seqno(), SeqNo::MAX);
    }

    #[test]
    fn prefix_end_is_the_next_sibling() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }
}
