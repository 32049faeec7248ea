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
//! # In memory
//!
//! Of each tail the first eight bytes are kept as an integer in the order of bytes, eight blocks to a
//! [`Group`] that has their integers in one cache line and their places in the next. A search goes
//! down a pyramid of every eighth integer, every 64th and so on, the upper steps of which stay in the
//! processor's caches, and looks at what tails have beyond eight bytes only where integers are equal.

use firn_io::codec::{Reader, put_bytes, put_varint_u64};

use crate::cache::Hint;
use crate::key::window;
use crate::prefetch::prefetch_lines;
use crate::sstable::block::common_prefix;
use crate::sstable::stored::ENVELOPE_BYTES;

/// Blocks in a group, and the step of the pyramid.
const FANOUT: usize = 8;

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

/// Eight blocks. Eight of the longest that there can be are shorter than 4 GiB.
#[derive(Debug)]
#[repr(align(64))]
struct Group {
    /// The first eight bytes of each tail; behind the last block, the greatest integer.
    prefixes: [u64; FANOUT],
    /// Where the first block starts in the file.
    base: u64,
    /// Where each block ends, from `base` on.
    ends: [u32; FANOUT],
    /// How many bytes each tail has, at most eight.
    lens: [u8; FANOUT],
    /// Where each block is in the cache.
    hints: [Hint; FANOUT],
}

/// Two cache lines.
const _: () = assert!(size_of::<Group>() == 128);

/// A decoded index. See the module's page.
#[derive(Debug)]
pub(crate) struct Index {
    common: Vec<u8>,
    groups: Vec<Group>,
    /// The first prefix of every group, of every eighth group and so on, the longest array last.
    pyramid: Vec<Vec<u64>>,
    len: usize,
    data_end: u64,
    /// What tails have beyond eight bytes; of block `i` it ends at `long_ends[i]`. Both are empty if
    /// no tail is that long.
    long: Vec<u8>,
    long_ends: Vec<u32>,
}

impl Index {
    /// Decodes an index whose blocks lie in the first `data_bytes` of the file and fill them.
    pub(crate) fn decode(bytes: &[u8], data_bytes: u64) -> Result<Self, &'static str> {
        const CUT: &str = "the index is cut off";
        const OUTSIDE: &str = "the index has a block outside of the data";
        let mut reader = Reader::new(bytes);
        let count = reader.varint_u64().ok_or(CUT)?;
        let common = reader.bytes().ok_or(CUT)?.to_vec();
        // An entry has at least two bytes.
        if count > reader.remaining() as u64 / 2 || bytes.len() > u32::MAX as usize {
            return Err("the index says that it has more blocks than it has bytes for");
        }
        let n = count as usize;
        let mut groups: Vec<Group> = Vec::with_capacity(n.div_ceil(FANOUT));
        let mut long = Vec::new();
        let mut long_ends = Vec::new();
        let mut offset = 0_u64;
        let mut before: &[u8] = &[];
        for i in 0..n {
            let stored_len = reader.varint_u64().ok_or(CUT)?;
            let tail = reader.bytes().ok_or(CUT)?;
            if tail < before {
                return Err("the separators of the index do not ascend");
            }
            before = tail;
            if stored_len <= ENVELOPE_BYTES as u64 || stored_len > data_bytes - offset {
                return Err(OUTSIDE);
            }
            offset += stored_len;
            if i % FANOUT == 0 {
                groups.push(Group {
                    prefixes: [u64::MAX; FANOUT],
                    base: offset - stored_len,
                    ends: [0; FANOUT],
                    lens: [0; FANOUT],
                    hints: Default::default(),
                });
            }
            if let Some(group) = groups.last_mut() {
                group.prefixes[i % FANOUT] = window(tail, 0);
                group.ends[i % FANOUT] = u32::try_from(offset - group.base).or(Err(OUTSIDE))?;
                group.lens[i % FANOUT] = tail.len().min(8) as u8;
            }
            if tail.len() > 8 && long_ends.is_empty() {
                long_ends = Vec::with_capacity(n);
                long_ends.resize(i, 0);
            }
            if !long_ends.is_empty() || tail.len() > 8 {
                long.extend_from_slice(tail.get(8..).unwrap_or_default());
                long_ends.push(long.len() as u32);
            }
        }
        if !reader.is_empty() || offset != data_bytes {
            return Err("the index does not cover the data");
        }
        long.shrink_to_fit();
        let mut pyramid: Vec<Vec<u64>> = Vec::new();
        let mut below: Vec<u64> = groups.iter().map(|group| group.prefixes[0]).collect();
        while below.len() > FANOUT {
            let above = below.iter().step_by(FANOUT).copied().collect();
            pyramid.insert(0, std::mem::replace(&mut below, above));
        }
        pyramid.insert(0, below);
        Ok(Self {
            common,
            groups,
            pyramid,
            len: n,
            data_end: data_bytes,
            long,
            long_ends,
        })
    }

    /// The number of data blocks.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where block `i` is, and its stored length.
    #[inline]
    pub(crate) fn block(&self, i: usize) -> (u64, usize) {
        let (group, i) = (&self.groups[i / FANOUT], i % FANOUT);
        let start = if i == 0 { 0 } else { group.ends[i - 1] };
        let len = group.ends[i] - start;
        (group.base + u64::from(start), len as usize)
    }

    /// Where block `i` is in the cache.
    #[inline]
    pub(crate) fn hint(&self, i: usize) -> &Hint {
        &self.groups[i / FANOUT].hints[i % FANOUT]
    }

    /// Where the data ends.
    pub(crate) fn data_end(&self) -> u64 {
        self.data_end
    }

    /// The end of the last block from `i` on that ends at or before `offset`; that of block `i` if
    /// there is none. Takes time by the number of blocks between.
    pub(crate) fn end_within(&self, mut i: usize, offset: u64) -> u64 {
        let mut end = self.end(i);
        // Whole groups first. A group starts where the one before it ends.
        while let Some(group) = self.groups.get(i / FANOUT + 1)
            && group.base <= offset
        {
            end = end.max(group.base);
            i = (i / FANOUT + 1) * FANOUT;
        }
        while i < self.len && self.end(i) <= offset {
            end = end.max(self.end(i));
            i += 1;
        }
        end
    }

    /// The start of the first block up to `i` that starts at or after `offset`; that of block `i` if
    /// there is none. Takes time by the number of blocks between.
    pub(crate) fn start_within(&self, mut i: usize, offset: u64) -> u64 {
        while let Some(before) = (i / FANOUT).checked_sub(1)
            && self.groups[before].base >= offset
        {
            i = before * FANOUT;
        }
        while i > 0 && self.block(i - 1).0 >= offset {
            i -= 1;
        }
        self.block(i).0
    }

    #[inline]
    fn end(&self, i: usize) -> u64 {
        let group = &self.groups[i / FANOUT];
        group.base + u64::from(group.ends[i % FANOUT])
    }

    #[inline]
    fn prefix(&self, i: usize) -> u64 {
        self.groups[i / FANOUT].prefixes[i % FANOUT]
    }

    /// How many of the first eight bytes the tail of block `i` has, and what it has beyond them.
    #[inline]
    fn rest(&self, i: usize) -> (usize, &[u8]) {
        let len = usize::from(self.groups[i / FANOUT].lens[i % FANOUT]);
        let long = match self.long_ends.get(i) {
            Some(&end) => {
                let start = if i == 0 { 0 } else { self.long_ends[i - 1] };
                &self.long[start as usize..end as usize]
            }
            None => &[],
        };
        (len, long)
    }

    /// The separator of block `i`.
    pub(crate) fn separator(&self, i: usize) -> Vec<u8> {
        let (len, long) = self.rest(i);
        let first = self.prefix(i).swap_bytes().to_le_bytes();
        [&self.common, &first[..len], long].concat()
    }

    /// Whether the separator of block `i` is `key`, so that further versions of it may be in the
    /// next block.
    #[inline]
    pub(crate) fn separator_is(&self, i: usize, key: &[u8]) -> bool {
        key.strip_prefix(&self.common[..]).is_some_and(|tail| {
            window(key, self.common.len()) == self.prefix(i) && rest_of(tail) == self.rest(i)
        })
    }

    /// The first block that may contain `key` or a key after it: the first whose separator is not
    /// before it. The number of blocks if there is none.
    #[inline]
    pub(crate) fn find(&self, key: &[u8]) -> usize {
        self.find_on(self.descend(key), key)
    }

    /// [`find`](Self::find) on from what [`descend`](Self::descend) said.
    #[inline]
    pub(crate) fn find_on(&self, way: Result<usize, usize>, key: &[u8]) -> usize {
        match way {
            Ok(from) => self.find_from(from, key),
            Err(block) => block,
        }
    }

    /// The way of [`find`](Self::find) down to a group, whose memory is fetched: the number of its
    /// first block, for [`find_from`](Self::find_from). An error is the answer of `find`, for a key
    /// that has not what all separators have in common.
    #[inline]
    pub(crate) fn descend(&self, key: &[u8]) -> Result<usize, usize> {
        let n = self.len;
        let Some((head, _)) = key.split_at_checked(self.common.len()) else {
            return Err(if key < &self.common[..] { 0 } else { n });
        };
        if common_prefix(head, &self.common) < head.len() {
            return Err(if *head < self.common[..] { 0 } else { n });
        }
        let wanted = window(key, self.common.len());
        // Of the entries below one, all before the last smaller one are smaller too.
        let mut from = 0;
        for step in &self.pyramid {
            let part = &step[from..step.len().min(from + FANOUT)];
            let smaller = part.iter().filter(|&&p| p < wanted).count();
            from = (from + smaller.saturating_sub(1)) * FANOUT;
        }
        if let Some(group) = self.groups.get(from / FANOUT) {
            prefetch_lines(group, 1);
        }
        Ok(from)
    }

    /// The rest of the way; see [`descend`](Self::descend).
    #[inline]
    fn find_from(&self, from: usize, key: &[u8]) -> usize {
        let n = self.len;
        let tail = key.get(self.common.len()..).unwrap_or_default();
        let wanted = window(key, self.common.len());
        let Some(group) = self.groups.get(from / FANOUT) else {
            return n;
        };
        let smaller = group.prefixes.iter().filter(|&&p| p < wanted).count();
        let low = (from + smaller).min(n);
        if low < n && self.prefix(low) == wanted {
            self.find_among_equals(low, wanted, tail)
        } else {
            low
        }
    }

    /// The same among blocks from `low` on whose tails begin with the same eight bytes as `tail`.
    fn find_among_equals(&self, low: usize, wanted: u64, tail: &[u8]) -> usize {
        let rest = rest_of(tail);
        if self.rest(low) >= rest {
            return low;
        }
        partition_point(low + 1, self.len, |i| {
            self.prefix(i) == wanted && self.rest(i) < rest
        })
    }

    /// Memory, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        let pyramid: usize = self.pyramid.iter().map(Vec::capacity).sum();
        self.common.capacity()
            + size_of::<Group>() * self.groups.capacity()
            + 8 * pyramid
            + self.long.capacity()
            + 4 * self.long_ends.capacity()
    }
}

/// As [`Index::rest`], of a tail that is looked for.
#[inline]
fn rest_of(tail: &[u8]) -> (usize, &[u8]) {
    (tail.len().min(8), tail.get(8..).unwrap_or_default())
}

/// The first of `low..high` for which `before` does not hold, or `high`.
#[inline]
fn partition_point(mut low: usize, mut high: usize, before: impl Fn(usize) -> bool) -> usize {
    while low < high {
        let middle = low.midpoint(high);
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
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
            for i in 0..keys.len().min(40) {
                let (start, len) = index.block(i);
                let end = start + len as u64;
                for at in [0, start, end, end + 1, start + 500, end + 3000, data, data + 1] {
                    let ends = (i..keys.len()).map(|j| index.block(j).0 + index.block(j).1 as u64);
                    let last = ends.filter(|&e| e <= at).max().unwrap_or(end).max(end);
                    prop_assert_eq!(index.end_within(i, at), last);
                    let first = (0..i).map(|j| index.block(j).0).find(|&s| s >= at).unwrap_or(start);
                    prop_assert_eq!(index.start_within(i, at), first.min(start));
                }
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
