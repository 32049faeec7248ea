//! The index block: for every data block, how long it is and a key that separates it from the next.
//!
//! ```text
//! block count varint | common length varint | common bytes | (stored length varint, tail length varint, tail)*
//! ```
//!
//! Data blocks lie one after the other from the start of the file, so lengths give offsets. The
//! separator of a block is `common` followed by its tail: a key that is at or after the last key of
//! the block and before the first key of the next (unless a key's versions cross from the one to
//! the other: then it is that key). It is as short as can be.
//!
//! In memory the tails lie behind each other in one buffer, and the first eight bytes of each, as an
//! integer in the order of bytes, in an array of their own: a search compares integers and touches
//! the bytes of a tail only where integers are equal. A second array holds every 64th of them, so
//! that a search in a large table meets few cache lines.

use firn_io::codec::{Reader, put_bytes, put_varint_u64};

use crate::sstable::block::common_prefix;
use crate::sstable::stored::ENVELOPE_BYTES;

/// One in this many prefixes is in the upper array.
const FANOUT: usize = 64;

/// Collects separators while a table is written.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    keys: Vec<u8>,
    /// (end of the separator in `keys`, stored length of the block).
    blocks: Vec<(usize, u64)>,
}

impl IndexBuilder {
    pub(crate) fn add(&mut self, separator: &[u8], stored_len: u64) {
        self.keys.extend_from_slice(separator);
        self.blocks.push((self.keys.len(), stored_len));
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// About how many bytes the block will have.
    pub(crate) fn bytes(&self) -> usize {
        self.keys.len() + 4 * self.blocks.len()
    }

    fn key(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.blocks[i - 1].0 };
        &self.keys[start..self.blocks[i].0]
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes() + 16);
        let n = self.blocks.len();
        put_varint_u64(&mut out, n as u64);
        let common = match n.checked_sub(1) {
            Some(last) => common_prefix(self.key(0), self.key(last)),
            None => 0,
        };
        put_bytes(&mut out, if n > 0 { &self.key(0)[..common] } else { &[] });
        for (i, &(_, stored_len)) in self.blocks.iter().enumerate() {
            put_varint_u64(&mut out, stored_len);
            put_bytes(&mut out, &self.key(i)[common..]);
        }
        out
    }
}

/// A short key that is at or after `last` and before `next`, which is after `last`.
pub(crate) fn separator<'a>(last: &'a [u8], next: &'a [u8], room: &'a mut Vec<u8>) -> &'a [u8] {
    let common = common_prefix(last, next);
    // `last` is a prefix of `next`, or they are equal.
    let Some(&at_last) = last.get(common) else {
        return last;
    };
    if common + 1 >= last.len() {
        return last;
    }
    if let Some(&at_next) = next.get(common) {
        if at_last + 1 < at_next {
            room.clear();
            room.extend_from_slice(&last[..common]);
            room.push(at_last + 1);
            return room;
        }
        if common + 1 < next.len() {
            return &next[..=common];
        }
    }
    last
}

/// A decoded index. See the module's page.
#[derive(Debug)]
pub(crate) struct Index {
    common: Vec<u8>,
    upper: Vec<u64>,
    prefixes: Vec<u64>,
    tails: Vec<u8>,
    tail_ends: Vec<u32>,
    /// Of each block; and the end of the last.
    offsets: Vec<u64>,
}

/// The first eight bytes as an integer in the order of bytes, filled with zeros.
#[inline]
fn ordered_prefix(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(chunk) => u64::from_le_bytes(*chunk).swap_bytes(),
        None => {
            let mut word = 0;
            for (i, &byte) in bytes.iter().enumerate() {
                word |= u64::from(byte) << (56 - 8 * i);
            }
            word
        }
    }
}

impl Index {
    /// Decodes an index whose blocks lie in the first `data_bytes` of the file and fill them.
    pub(crate) fn decode(bytes: &[u8], data_bytes: u64) -> Result<Self, &'static str> {
        const CUT: &str = "the index is cut off";
        let mut reader = Reader::new(bytes);
        let count = reader.varint_u64().ok_or(CUT)?;
        let common = reader.bytes().ok_or(CUT)?.to_vec();
        // An entry has at least two bytes.
        if count > reader.remaining() as u64 / 2 || bytes.len() > u32::MAX as usize {
            return Err("the index says that it has more blocks than it has bytes for");
        }
        let n = count as usize;
        let mut index = Self {
            common,
            upper: Vec::with_capacity(n.div_ceil(FANOUT)),
            prefixes: Vec::with_capacity(n),
            tails: Vec::with_capacity(reader.remaining().saturating_sub(2 * n)),
            tail_ends: Vec::with_capacity(n),
            offsets: Vec::with_capacity(n + 1),
        };
        index.offsets.push(0);
        let mut offset = 0_u64;
        for i in 0..n {
            let stored_len = reader.varint_u64().ok_or(CUT)?;
            let tail = reader.bytes().ok_or(CUT)?;
            if i > 0 && tail < index.tail(i - 1) {
                return Err("the separators of the index do not ascend");
            }
            if stored_len <= ENVELOPE_BYTES as u64 || stored_len > data_bytes - offset {
                return Err("the index has a block outside of the data");
            }
            offset += stored_len;
            index.offsets.push(offset);
            let prefix = ordered_prefix(tail);
            if i % FANOUT == 0 {
                index.upper.push(prefix);
            }
            index.prefixes.push(prefix);
            index.tails.extend_from_slice(tail);
            index.tail_ends.push(index.tails.len() as u32);
        }
        if !reader.is_empty() || offset != data_bytes {
            return Err("the index does not cover the data");
        }
        index.tails.shrink_to_fit();
        Ok(index)
    }

    /// The number of data blocks.
    pub(crate) fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Where block `i` is, and its stored length.
    #[inline]
    pub(crate) fn block(&self, i: usize) -> (u64, usize) {
        (
            self.offsets[i],
            (self.offsets[i + 1] - self.offsets[i]) as usize,
        )
    }

    /// Where the data ends.
    pub(crate) fn data_end(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// The first start of a block, or end of the data, at or after `offset`.
    pub(crate) fn first_boundary(&self, offset: u64) -> u64 {
        let i = self.offsets.partition_point(|&o| o < offset);
        self.offsets.get(i).copied().unwrap_or(self.data_end())
    }

    /// The last start of a block, or end of the data, at or before `offset`.
    pub(crate) fn last_boundary(&self, offset: u64) -> u64 {
        let i = self.offsets.partition_point(|&o| o <= offset);
        i.checked_sub(1).map_or(0, |i| self.offsets[i])
    }

    #[inline]
    fn tail(&self, i: usize) -> &[u8] {
        let start = if i == 0 {
            0
        } else {
            self.tail_ends[i - 1] as usize
        };
        &self.tails[start..self.tail_ends[i] as usize]
    }

    /// The separator of block `i`.
    pub(crate) fn separator(&self, i: usize) -> Vec<u8> {
        [&self.common, self.tail(i)].concat()
    }

    /// Whether the separator of block `i` is `key`, so that further versions of it may be in the
    /// next block.
    #[inline]
    pub(crate) fn separator_is(&self, i: usize, key: &[u8]) -> bool {
        key.strip_prefix(&self.common[..])
            .is_some_and(|tail| tail == self.tail(i))
    }

    /// The first block that may contain `key` or a key after it: the first whose separator is not
    /// before it. The number of blocks if there is none.
    #[inline]
    pub(crate) fn find(&self, key: &[u8]) -> usize {
        let n = self.len();
        let Some((head, tail)) = key.split_at_checked(self.common.len()) else {
            return if key < &self.common[..] { 0 } else { n };
        };
        match head.cmp(&self.common) {
            std::cmp::Ordering::Less => return 0,
            std::cmp::Ordering::Greater => return n,
            std::cmp::Ordering::Equal => {}
        }
        let wanted = ordered_prefix(tail);
        // All before the last upper prefix that is smaller are smaller too.
        let group = self
            .upper
            .partition_point(|&p| p < wanted)
            .saturating_sub(1)
            * FANOUT;
        let end = n.min(group + FANOUT);
        let mut low = group + self.prefixes[group..end].partition_point(|&p| p < wanted);
        if low < n && self.prefixes[low] == wanted {
            let mut high = low + self.prefixes[low..].partition_point(|&p| p == wanted);
            while low < high {
                let middle = low.midpoint(high);
                if self.tail(middle) < tail {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
        }
        low
    }

    /// Memory, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.common.capacity()
            + 8 * (self.upper.capacity() + self.prefixes.capacity() + self.offsets.capacity())
            + self.tails.capacity()
            + 4 * self.tail_ends.capacity()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn build(keys: &[Vec<u8>]) -> (Vec<u8>, u64) {
        let mut builder = IndexBuilder::default();
        for (i, key) in keys.iter().enumerate() {
            builder.add(key, 10 + i as u64);
        }
        let n = keys.len() as u64;
        (builder.finish(), 10 * n + n * n.saturating_sub(1) / 2)
    }

    #[test]
    fn golden_bytes() {
        let (bytes, data) = build(&[b"user/a".to_vec(), b"user/cc".to_vec()]);
        assert_eq!(bytes, b"\x02\x05user/\x0a\x01a\x0b\x02cc");
        assert_eq!(data, 21);
        let (empty, data) = build(&[]);
        assert_eq!((&empty[..], data), (&b"\0\0"[..], 0));
        assert_eq!(Index::decode(&empty, 0).unwrap().find(b"x"), 0);
    }

    #[test]
    fn separators_are_short_and_separate() {
        let mut room = Vec::new();
        for (last, next, expected) in [
            ("abcdef", "abzzzz", "abd"),
            ("abcdef", "abdzzz", "abd"),
            ("abcdef", "abd", "abcdef"),
            ("abc", "abcdef", "abc"),
            ("abc", "abc", "abc"),
            ("", "abc", ""),
            ("abc", "b", "abc"),
            ("a\u{7f}x", "b", "a\u{7f}x"),
        ] {
            let got = separator(last.as_bytes(), next.as_bytes(), &mut room);
            assert_eq!(got, expected.as_bytes(), "{last} {next}");
        }
        let mut room = Vec::new();
        assert_eq!(
            separator(b"\xff\xff", b"\xff\xff\x01", &mut room),
            b"\xff\xff"
        );
    }

    proptest! {
        #[test]
        fn a_separator_separates(mut a in proptest::collection::vec(any::<u8>(), 0..6), mut b in proptest::collection::vec(any::<u8>(), 0..6), common in "[a-b]{0,3}") {
            a.splice(0..0, common.bytes());
            b.splice(0..0, common.bytes());
            let (last, next) = if a < b { (a, b) } else { (b, a) };
            let mut room = Vec::new();
            let s = separator(&last, &next, &mut room);
            prop_assert!(s >= &last[..]);
            prop_assert!(s < &next[..] || last == next);
            prop_assert!(s.len() <= last.len());
        }

        #[test]
        fn finds_the_first_not_before(mut keys in proptest::collection::vec("(p/)?[ab]{0,11}", 0..400), probes in proptest::collection::vec("(p/)?[ab]{0,12}", 20)) {
            keys.sort();
            let keys: Vec<Vec<u8>> = keys.into_iter().map(String::into_bytes).collect();
            let (bytes, data) = build(&keys);
            let index = Index::decode(&bytes, data).unwrap();
            prop_assert!(Index::decode(&bytes, data + 1).is_err());
            prop_assert_eq!(index.len(), keys.len());
            let mut offset = 0;
            for (i, key) in keys.iter().enumerate() {
                prop_assert_eq!(&index.separator(i), key);
                prop_assert!(index.separator_is(i, key));
                prop_assert_eq!(index.block(i), (offset, 10 + i));
                offset += 10 + i as u64;
            }
            for probe in probes.iter().map(|p| p.as_bytes()).chain(keys.iter().map(|k| &k[..])) {
                prop_assert_eq!(index.find(probe), keys.partition_point(|k| &k[..] < probe));
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>, data in 0_u64..10_000, at: usize, flip: u8) {
            let _ = Index::decode(&bytes, data);
            let (mut good, data) = build(&[b"ka".to_vec(), b"kb".to_vec(), b"kcc".to_vec()]);
            let at = at % good.len();
            good[at] ^= flip;
            if let Ok(index) = Index::decode(&good, data) {
                let _ = (index.find(b"kb"), index.data_end());
            }
        }
    }
}
