//! Write batches: the unit of atomicity, encoded once as the log record that carries them.
//!
//! ```text
//! batch     := base_seqno u56 | count u8 [ | count u32 if that is 255 ] | operation * count
//!                                                                       (little-endian)
//! operation := kind u8 | namespace varint | key_len varint | key
//!              [ value_len varint | value ]          unless kind is Delete
//! ```
//!
//! The value has the form that the kind prescribes (see [`Kind`]): `PutExpiring` starts with the
//! expiry, `RangeDelete` holds the end of the range. Operation `i` has sequence number
//! `base_seqno + i`; the commit fills in the base just before the record is appended.
//!
//! Conditions travel beside the operations, never in the log: they are decided before the append.

use crate::error::{Error, Result};
use crate::key::{Kind, NamespaceId, SeqNo};
use crate::options::{MAX_BATCH_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use firn_io::codec;

/// Room before the first operation: the longest header. A shorter one ends there too.
const HEADER_BYTES: usize = 12;
/// Bytes of the count that a header of fewer operations than [`MANY`] lacks.
const SPARED_BYTES: usize = 4;
/// This many operations and more have their count in four bytes of its own.
const MANY: u32 = 255;

/// The first word of a header: the number of the first operation, and the count if it fits.
fn header_word(base: SeqNo, count: u32) -> u64 {
    base.0 | u64::from(count.min(MANY)) << 56
}

/// Bytes by which the header of so many operations is shorter than the longest one.
fn spared_bytes(count: u32) -> usize {
    if count < MANY { SPARED_BYTES } else { 0 }
}

/// What must be true of a key for a batch to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent,
    /// The key exists, in whatever version.
    Exists,
    /// The key exists and was last written by the operation with this sequence number.
    VersionEquals(SeqNo),
}

impl Condition {
    /// Whether it holds for a key whose newest version is `version` (`None`: it does not exist).
    pub fn holds(self, version: Option<SeqNo>) -> bool {
        match self {
            Self::Absent => version.is_none(),
            Self::Exists => version.is_some(),
            Self::VersionEquals(wanted) => version == Some(wanted),
        }
    }
}

/// A condition on a key.
#[derive(Clone, Debug)]
pub struct Requirement {
    /// Whose key.
    pub namespace: NamespaceId,
    /// The key.
    pub key: Vec<u8>,
    /// What must be true of it.
    pub condition: Condition,
}

/// Operations that take effect together or not at all, across namespaces too. Of several operations
/// on one key the last one wins.
///
/// Limits are checked as operations are added: keys up to [`MAX_KEY_BYTES`], values up to
/// [`MAX_VALUE_BYTES`], the whole up to [`MAX_BATCH_BYTES`]. An operation that is refused leaves the
/// batch as it was.
#[derive(Clone, Debug)]
pub struct WriteBatch {
    encoded: Vec<u8>,
    count: u32,
    requirements: Vec<Requirement>,
    /// Every namespace that an operation names, once.
    namespaces: Vec<NamespaceId>,
    only_deletes: bool,
}

impl Default for WriteBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// An empty batch with room for `bytes` of operations.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut encoded = Vec::with_capacity(HEADER_BYTES + bytes);
        encoded.resize(HEADER_BYTES, 0);
        Self {
            encoded,
            count: 0,
            requirements: Vec::new(),
            namespaces: Vec::new(),
            only_deletes: true,
        }
    }

    /// Sets a key. Errors: a limit is exceeded.
    pub fn put(
        &mut self,
        namespace: impl Into<NamespaceId>,
        key: &[u8],
        value: &[u8],
    ) -> Result<&mut Self> {
        self.add(namespace.into(), Kind::Put, key, [value, &[]])
    }

    /// Sets a key that ceases to exist at `expires_at_ms` (Unix milliseconds). Errors: a limit is
    /// exceeded.
    pub fn put_expiring(
        &mut self,
        namespace: impl Into<NamespaceId>,
        key: &[u8],
        value: &[u8],
        expires_at_ms: u64,
    ) -> Result<&mut Self> {
        let expiry = expires_at_ms.to_le_bytes();
        self.add(namespace.into(), Kind::PutExpiring, key, [&expiry, value])
    }

    /// Removes a key, whether it exists or not. Errors: the key is too long.
    pub fn delete(&mut self, namespace: impl Into<NamespaceId>, key: &[u8]) -> Result<&mut Self> {
        self.add(namespace.into(), Kind::Delete, key, [&[], &[]])
    }

    /// Removes every key from `start` (inclusive) to `end` (exclusive). Costs the same however many
    /// there are. Errors: a bound is too long, or `start` is not before `end`.
    pub fn delete_range(
        &mut self,
        namespace: impl Into<NamespaceId>,
        start: &[u8],
        end: &[u8],
    ) -> Result<&mut Self> {
        if start >= end {
            return Err(Error::InvalidArgument(
                "the start of a range delete must be before its end".into(),
            ));
        }
        check("key_bytes", MAX_KEY_BYTES, end.len())?;
        self.add(namespace.into(), Kind::RangeDelete, start, [end, &[]])
    }

    /// Makes the whole batch depend on the state of a key just before it. Errors: the key is too
    /// long.
    pub fn require(
        &mut self,
        namespace: impl Into<NamespaceId>,
        key: &[u8],
        condition: Condition,
    ) -> Result<&mut Self> {
        check("key_bytes", MAX_KEY_BYTES, key.len())?;
        let namespace = namespace.into();
        self.requirements.push(Requirement {
            namespace,
            key: key.to_vec(),
            condition,
        });
        Ok(self)
    }

    fn add(
        &mut self,
        namespace: NamespaceId,
        kind: Kind,
        key: &[u8],
        value: [&[u8]; 2],
    ) -> Result<&mut Self> {
        check("key_bytes", MAX_KEY_BYTES, key.len())?;
        let value_len = value[0].len() + value[1].len();
        let user_len = if kind == Kind::PutExpiring {
            value[1].len()
        } else {
            value_len
        };
        check("value_bytes", MAX_VALUE_BYTES, user_len)?;
        let most = 1 + 5 + 5 + key.len() + 5 + value_len;
        check("batch_bytes", MAX_BATCH_BYTES, self.encoded.len() + most)?;
        check(
            "batch_operations",
            u32::MAX as usize - 1,
            self.count as usize + 1,
        )?;
        self.encoded.push(kind as u8);
        codec::put_varint_u32(&mut self.encoded, namespace.0);
        codec::put_varint_u32(&mut self.encoded, key.len() as u32);
        self.encoded.extend_from_slice(key);
        if kind != Kind::Delete {
            codec::put_varint_u32(&mut self.encoded, value_len as u32);
            self.encoded.extend_from_slice(value[0]);
            self.encoded.extend_from_slice(value[1]);
        }
        self.count += 1;
        if !self.namespaces.contains(&namespace) {
            self.namespaces.push(namespace);
        }
        self.only_deletes &= matches!(kind, Kind::Delete | Kind::RangeDelete);
        Ok(self)
    }

    /// The number of operations.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is no operation.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the log record.
    pub fn encoded_len(&self) -> usize {
        self.encoded.len() - self.spared()
    }

    /// Bytes of the room for the header that it does not need.
    fn spared(&self) -> usize {
        spared_bytes(self.count)
    }

    /// Empties the batch, keeping its memory.
    pub fn clear(&mut self) {
        self.encoded.truncate(HEADER_BYTES);
        self.count = 0;
        self.requirements.clear();
        self.namespaces.clear();
        self.only_deletes = true;
    }

    /// Whether it can only free space, never take it (beyond the record itself).
    pub(crate) fn only_deletes(&self) -> bool {
        self.only_deletes
    }

    /// The namespaces that its operations name.
    pub(crate) fn namespaces(&self) -> &[NamespaceId] {
        &self.namespaces
    }

    /// What must hold for it to be written.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Gives the first operation its sequence number and returns the log record.
    pub fn seal(&mut self, base: SeqNo) -> &[u8] {
        let start = self.spared();
        let word = header_word(base, self.count);
        self.encoded[start..start + 8].copy_from_slice(&word.to_le_bytes());
        if self.count >= MANY {
            self.encoded[8..12].copy_from_slice(&self.count.to_le_bytes());
        }
        &self.encoded[start..]
    }

    /// The operations, in order.
    pub(crate) fn operations(&self) -> Operations<'_> {
        Operations {
            rest: codec::Reader::new(&self.encoded[HEADER_BYTES..]),
            left: self.count,
        }
    }
}

fn check(limit: &'static str, max: usize, actual: usize) -> Result<()> {
    if actual > max {
        return Err(Error::LimitExceeded {
            limit,
            max: max as u64,
            actual: actual as u64,
        });
    }
    Ok(())
}

/// One operation of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation<'a> {
    /// What it does.
    pub kind: Kind,
    /// Where.
    pub namespace: NamespaceId,
    /// To which key; the start of a range delete.
    pub key: &'a [u8],
    /// The value in the form that the kind prescribes.
    pub value: &'a [u8],
}

/// A decoded log record.
#[derive(Clone, Debug)]
pub struct BatchReader<'a> {
    /// Sequence number of the first operation.
    pub base: SeqNo,
    /// How many operations follow.
    pub count: u32,
    operations: Operations<'a>,
}

impl<'a> BatchReader<'a> {
    /// Reads the header of a log record; says what is wrong with it.
    pub fn new(record: &'a [u8]) -> std::result::Result<Self, &'static str> {
        let mut reader = codec::Reader::new(record);
        const SHORT: &str = "the batch is shorter than its header";
        let word = reader.u64().ok_or(SHORT)?;
        let base = word & SeqNo::MAX.0;
        let count = match (word >> 56) as u32 {
            MANY => reader.u32().ok_or(SHORT)?,
            few => few,
        };
        if count < MANY && word >> 56 == u64::from(MANY) {
            return Err("the batch has its count in the wrong place");
        }
        let last = base
            .checked_add(u64::from(count))
            .ok_or("the sequence number overflows")?;
        if last > SeqNo::MAX.0 {
            return Err("the sequence number is out of range");
        }
        let operations = Operations {
            rest: reader,
            left: count,
        };
        Ok(Self {
            base: SeqNo(base),
            count,
            operations,
        })
    }

    /// The batch as it would be logged if its first operation had this number.
    pub fn encode_at(&self, base: SeqNo) -> Vec<u8> {
        let operations = self.operations.rest.rest();
        let header = HEADER_BYTES - spared_bytes(self.count);
        let mut out = Vec::with_capacity(header + operations.len());
        codec::put_u64(&mut out, header_word(base, self.count));
        if self.count >= MANY {
            codec::put_u32(&mut out, self.count);
        }
        out.extend_from_slice(operations);
        out
    }

    /// The operations, in order. After an error there is no further item.
    pub fn operations(self) -> Operations<'a> {
        self.operations
    }
}

/// Iterates over the operations of a batch.
#[derive(Clone, Debug)]
pub struct Operations<'a> {
    rest: codec::Reader<'a>,
    left: u32,
}

impl<'a> Operations<'a> {
    /// How many bytes and operations are left.
    pub(crate) fn left(&self) -> (usize, u32) {
        (self.rest.remaining(), self.left)
    }

    /// Goes on where an iterator over the same record had so much left.
    pub(crate) fn resume(record: &'a [u8], (bytes, left): (usize, u32)) -> Self {
        let skip = record.len().saturating_sub(bytes);
        let rest = codec::Reader::new(record.get(skip..).unwrap_or_default());
        Self { rest, left }
    }

    fn decode(&mut self) -> std::result::Result<Operation<'a>, &'static str> {
        let rest = &mut self.rest;
        let kind = rest.u8().ok_or("an operation is missing")?;
        let kind = Kind::from_u8(kind).ok_or("an operation has an unknown kind")?;
        if kind.is_blob() {
            return Err("a blob pointer in a batch");
        }
        let namespace = NamespaceId(rest.varint_u32().ok_or("a namespace is cut short")?);
        let key = rest.bytes().ok_or("a key is cut short")?;
        let value = match kind {
            Kind::Delete => &[],
            _ => rest.bytes().ok_or("a value is cut short")?,
        };
        if kind.is_expiring() && value.len() < 8 {
            return Err("an expiry is cut short");
        }
        Ok(Operation {
            kind,
            namespace,
            key,
            value,
        })
    }
}

impl<'a> Iterator for Operations<'a> {
    type Item = std::result::Result<Operation<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.rest.is_empty() {
                return None;
            }
            self.rest = codec::Reader::new(&[]);
            return Some(Err("bytes follow the last operation"));
        }
        self.left -= 1;
        let item = self.decode();
        if item.is_err() {
            self.left = 0;
            self.rest = codec::Reader::new(&[]);
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NS: NamespaceId = NamespaceId(3);

    #[test]
    fn golden_bytes() {
        let mut batch = WriteBatch::new();
        batch.put(NS, b"k", b"v").unwrap();
        batch
            .put_expiring(NamespaceId(300), b"", b"", 0x0102)
            .unwrap();
        batch.delete(NS, b"d").unwrap();
        batch.delete_range(NS, b"a", b"b").unwrap();
        let bytes = batch.seal(SeqNo(9)).to_vec();
        let expected = [
            &[9, 0, 0, 0, 0, 0, 0, 4][..],
            &[1, 3, 1, b'k', 1, b'v'],
            &[2, 0xac, 0x02, 0, 8, 2, 1, 0, 0, 0, 0, 0, 0],
            &[0, 3, 1, b'd'],
            &[5, 3, 1, b'a', 1, b'b'],
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn many_operations_have_a_count_of_their_own() {
        for count in [1, 254, 255, 256, 1000] {
            let mut batch = WriteBatch::new();
            for i in 0..count {
                batch.delete(NS, &[i as u8]).unwrap();
            }
            let base = SeqNo(SeqNo::MAX.0 - 1000);
            let record = batch.seal(base).to_vec();
            assert_eq!(record.len(), batch.encoded_len());
            assert_eq!(record.len(), if count < 255 { 8 } else { 12 } + 4 * count);
            let elsewhere = batch.seal(SeqNo::ZERO).to_vec();
            let elsewhere = BatchReader::new(&elsewhere).unwrap();
            assert_eq!(elsewhere.encode_at(base), record);
            let reader = BatchReader::new(&record).unwrap();
            assert_eq!((reader.base, reader.count as usize), (base, count));
            assert_eq!(reader.operations().filter(|o| o.is_ok()).count(), count);
        }
        let few = [[0; 7].as_slice(), &[255, 254, 0, 0, 0]].concat();
        assert!(BatchReader::new(&few).is_err());
    }

    #[test]
    fn limits_are_named_and_leave_the_batch_as_it_was() {
        let mut batch = WriteBatch::new();
        let long = vec![0; MAX_KEY_BYTES + 1];
        for error in [
            batch.put(NS, &long, b"").unwrap_err(),
            batch.delete(NS, &long).unwrap_err(),
            batch.delete_range(NS, b"", &long).unwrap_err(),
            batch.require(NS, &long, Condition::Absent).unwrap_err(),
        ] {
            assert_eq!(
                error.to_string(),
                "limit key_bytes exceeded: at most 65536, got 65537"
            );
        }
        assert!(batch.delete_range(NS, b"b", b"b").is_err());
        assert!(batch.is_empty());
        assert_eq!(batch.encoded_len(), 8);
        batch.put(NS, &long[1..], b"").unwrap();
        assert_eq!(batch.len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            if let Ok(reader) = BatchReader::new(&bytes) {
                for operation in reader.operations().take(1000) {
                    let _ = operation;
                }
            }
        }

        #[test]
        fn round_trip(ops: Vec<(u8, u32, Vec<u8>, Vec<u8>)>) {
            let mut batch = WriteBatch::new();
            let mut expected = Vec::new();
            for (kind, ns, key, value) in &ops {
                let ns = NamespaceId(*ns);
                match kind % 3 {
                    0 => batch.delete(ns, key).unwrap(),
                    1 => batch.put(ns, key, value).unwrap(),
                    _ => batch.put_expiring(ns, key, value, 7).unwrap(),
                };
                expected.push((ns, key.clone()));
            }
            let record = batch.seal(SeqNo(1)).to_vec();
            let reader = BatchReader::new(&record).unwrap();
            prop_assert_eq!(reader.count as usize, ops.len());
            let read: Vec<_> =
                reader.operations().map(|o| o.map(|o| (o.namespace, o.key.to_vec())).unwrap()).collect();
            prop_assert_eq!(read, expected);
            for cut in 8..record.len() {
                let reader = BatchReader::new(&record[..cut]).unwrap();
                prop_assert!(reader.operations().any(|o| o.is_err()));
            }
        }
    }
}
