//! The properties block: what a table contains, for statistics, compaction, verification and repair.
//!
//! ```text
//! (tag varint | value length varint | value)*
//! ```
//!
//! Tags ascend, each occurs at most once, and a reader skips those that it does not know. Numbers
//! are varints. A property that is missing is zero or empty.
//!
//! ```text
//!  1  entries by kind: one number for each kind, from 0 up
//!  2  raw key bytes          3  raw value bytes        4  least sequence number
//!  5  greatest sequence number (of entries and range tombstones; 4 and 5 are missing if there are none)
//!  6  smallest key           7  largest key            (of the entries; missing if there are none)
//!  8  range tombstones       9  data blocks           10  data bytes, stored
//! 11  blob references: (file, count, bytes)*
//! 12  compression           13  block bytes           14  restart interval
//! 15  filter bits per key   16  name and version of the writer, as text
//! 17  distinct user keys
//! 18  number of the namespace   19  its name           (for repair; missing if not known)
//! ```

use firn_io::codec::{Reader, put_bytes, put_varint_u64};

use crate::key::{FileId, Kind, NamespaceId, SeqNo};

/// The number of kinds that are counted.
pub(crate) const KINDS: usize = 6;

/// What a table says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Entries of each kind, by the kind's number.
    pub kinds: [u64; KINDS],
    /// Bytes of user keys, before compression.
    pub raw_key_bytes: u64,
    /// Bytes of stored values, before compression.
    pub raw_value_bytes: u64,
    /// The least and the greatest sequence number, range tombstones included.
    pub seqnos: Option<(SeqNo, SeqNo)>,
    /// The smallest and the largest user key of the entries.
    pub keys: Option<(Vec<u8>, Vec<u8>)>,
    /// Range tombstones.
    pub range_tombstone_count: u64,
    /// Data blocks.
    pub block_count: u64,
    /// Bytes of the data blocks as stored.
    pub data_bytes: u64,
    /// Blob files that the entries point into, with the number of pointers and of bytes there.
    pub blob_refs: Vec<(FileId, u64, u64)>,
    /// The compression asked for, by number.
    pub compression: u64,
    /// The block size asked for.
    pub block_bytes: u64,
    /// The restart interval asked for.
    pub restart_interval: u64,
    /// Filter bits per key; 0 if there is no filter.
    pub filter_bits_per_key: u64,
    /// Who wrote it.
    pub writer: String,
    /// Distinct user keys.
    pub key_count: u64,
    /// The namespace that the table was written for: its number and its name.
    pub namespace: Option<(NamespaceId, String)>,
}

impl Properties {
    /// All entries.
    pub fn entry_count(&self) -> u64 {
        self.kinds.iter().fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// Entries that are tombstones.
    pub fn tombstone_count(&self) -> u64 {
        self.kinds[Kind::Delete as usize]
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut list = Vec::new();
        let numbers = |out: &mut Vec<u8>, list: &mut Vec<u8>, tag: u64, numbers: &[u64]| {
            list.clear();
            for &n in numbers {
                put_varint_u64(list, n);
            }
            put_varint_u64(out, tag);
            put_bytes(out, list);
        };
        numbers(&mut out, &mut list, 1, &self.kinds);
        numbers(&mut out, &mut list, 2, &[self.raw_key_bytes]);
        numbers(&mut out, &mut list, 3, &[self.raw_value_bytes]);
        if let Some((min, max)) = self.seqnos {
            numbers(&mut out, &mut list, 4, &[min.0]);
            numbers(&mut out, &mut list, 5, &[max.0]);
        }
        if let Some((smallest, largest)) = &self.keys {
            put_varint_u64(&mut out, 6);
            put_bytes(&mut out, smallest);
            put_varint_u64(&mut out, 7);
            put_bytes(&mut out, largest);
        }
        numbers(&mut out, &mut list, 8, &[self.range_tombstone_count]);
        numbers(&mut out, &mut list, 9, &[self.block_count]);
        numbers(&mut out, &mut list, 10, &[self.data_bytes]);
        if !self.blob_refs.is_empty() {
            let flat: Vec<u64> = self
                .blob_refs
                .iter()
                .flat_map(|&(file, count, bytes)| [file.0, count, bytes])
                .collect();
            numbers(&mut out, &mut list, 11, &flat);
        }
        numbers(&mut out, &mut list, 12, &[self.compression]);
        numbers(&mut out, &mut list, 13, &[self.block_bytes]);
        numbers(&mut out, &mut list, 14, &[self.restart_interval]);
        numbers(&mut out, &mut list, 15, &[self.filter_bits_per_key]);
        put_varint_u64(&mut out, 16);
        put_bytes(&mut out, self.writer.as_bytes());
        numbers(&mut out, &mut list, 17, &[self.key_count]);
        if let Some((id, name)) = &self.namespace {
            numbers(&mut out, &mut list, 18, &[u64::from(id.0)]);
            put_varint_u64(&mut out, 19);
            put_bytes(&mut out, name.as_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        const BAD: &str = "the properties are malformed";
        let mut reader = Reader::new(bytes);
        let mut properties = Self::default();
        let (mut min, mut max, mut smallest, mut largest) = (None, None, None, None);
        let (mut namespace, mut name) = (None, String::new());
        let mut last_tag = 0;
        while !reader.is_empty() {
            let tag = reader.varint_u64().ok_or(BAD)?;
            let value = reader.bytes().ok_or(BAD)?;
            if tag <= last_tag {
                return Err(BAD);
            }
            last_tag = tag;
            let mut value_reader = Reader::new(value);
            let mut number = || value_reader.varint_u64().ok_or(BAD);
            match tag {
                1 => {
                    for kind in &mut properties.kinds {
                        *kind = number()?;
                    }
                }
                2 => properties.raw_key_bytes = number()?,
                3 => properties.raw_value_bytes = number()?,
                4 => min = Some(SeqNo(number()?)),
                5 => max = Some(SeqNo(number()?)),
                6 => smallest = Some(value.to_vec()),
                7 => largest = Some(value.to_vec()),
                8 => properties.range_tombstone_count = number()?,
                9 => properties.block_count = number()?,
                10 => properties.data_bytes = number()?,
                11 => {
                    let mut list = Reader::new(value);
                    while !list.is_empty() {
                        let mut next = || list.varint_u64().ok_or(BAD);
                        properties
                            .blob_refs
                            .push((FileId(next()?), next()?, next()?));
                    }
                }
                12 => properties.compression = number()?,
                13 => properties.block_bytes = number()?,
                14 => properties.restart_interval = number()?,
                15 => properties.filter_bits_per_key = number()?,
                16 => properties.writer = String::from_utf8_lossy(value).into_owned(),
                17 => properties.key_count = number()?,
                18 => {
                    let id = u32::try_from(number()?).map_err(|_| BAD)?;
                    namespace = Some(NamespaceId(id));
                }
                19 => name = String::from_utf8_lossy(value).into_owned(),
                _ => {}
            }
        }
        properties.seqnos = min.zip(max);
        properties.keys = smallest.zip(largest);
        properties.namespace = namespace.map(|id| (id, name));
        let reversed_keys = properties.keys.as_ref().is_some_and(|(a, b)| a > b);
        if reversed_keys || properties.seqnos.is_some_and(|(a, b)| a > b) {
            return Err(BAD);
        }
        Ok(properties)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Properties {
        Properties {
            kinds: [1, 2, 3, 0, 300, 0],
            raw_key_bytes: 1000,
            raw_value_bytes: 2,
            seqnos: Some((SeqNo(3), SeqNo(4))),
            keys: Some((b"".to_vec(), b"z".to_vec())),
            range_tombstone_count: 1,
            block_count: 2,
            data_bytes: 3,
            blob_refs: vec![(FileId(7), 1, 4096)],
            compression: 1,
            block_bytes: 4096,
            restart_interval: 16,
            filter_bits_per_key: 10,
            writer: "w".into(),
            key_count: 5,
            namespace: Some((NamespaceId(3), "ns".into())),
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample().encode();
        let expected: &[u8] = &[
            1, 7, 1, 2, 3, 0, 0xac, 2, 0, 2, 2, 0xe8, 7, 3, 1, 2, 4, 1, 3, 5, 1, 4, 6, 0, 7, 1,
            b'z', 8, 1, 1, 9, 1, 2, 10, 1, 3, 11, 4, 7, 1, 0x80, 32, 12, 1, 1, 13, 2, 0x80, 32, 14,
            1, 16, 15, 1, 10, 16, 1, b'w', 17, 1, 5, 18, 1, 3, 19, 2, b'n', b's',
        ];
        assert_eq!(bytes, expected);
        assert_eq!(Properties::decode(&bytes), Ok(sample()));
        assert_eq!(sample().entry_count(), 306);
    }

    #[test]
    fn empty_and_unknown() {
        let empty = Properties::default();
        assert_eq!(Properties::decode(&empty.encode()), Ok(empty.clone()));
        assert_eq!(Properties::decode(&[]), Ok(empty.clone()));
        assert_eq!(Properties::decode(&[99, 2, 1, 2]), Ok(empty));
        assert!(Properties::decode(&[3, 1, 1, 2, 1, 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>, at: usize, flip: u8) {
            let _ = Properties::decode(&bytes);
            let mut good = sample().encode();
            let at = at % good.len();
            good[at] ^= flip;
            let _ = Properties::decode(&good);
        }
    }
}
