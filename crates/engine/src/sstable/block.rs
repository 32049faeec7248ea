//! A data block: some entries in order, prefix-compressed, searchable without decoding them all.
//!
//! # Bytes, before compression
//!
//! ```text
//! entry*  count u32 | restart interval u32 | common u32
//!
//! entry:  shared varint | suffix length varint | value length varint | trailer u64 | suffix | value
//! ```
//!
//! Every `restart interval`-th entry, from the first on, is a *restart point* and holds its whole
//! key (shared = 0). The key of any other entry is the first `shared` bytes of **the restart
//! point's** key, then the suffix. (LevelDB shares with the entry before instead; sharing with the
//! restart point costs a few bytes, which LZ4 finds again, and lets any entry be decoded alone.)
//! Since keys ascend, `shared` never grows within an interval, so walking forward can cut and
//! extend one key buffer. `common` is the number of leading bytes that all keys have in common.
//!
//! # In memory
//!
//! Decoding a block walks its entries once, checks every length, and builds for each entry the
//! offset of the entry and, above it in the same 64 bits, the four bytes of its key that follow the
//! common ones, as an integer whose order is that of the bytes (a shorter key is filled with
//! zeros). A search then is a search for an integer among integers that lie next to each other; keys
//! are compared only where those are equal. Everything after decoding relies on the checks done
//! there and cannot fail.
//!
//! All of it is one run of bytes, the *image*, so that a cached block is one allocation of exactly
//! its size:
//!
//! ```text
//! count u32 | restart interval u32 | common u32 | first key u32 | length u32 | the block | index: count x u64
//! ```
//!
//! [`BlockBuf`] makes images, in a buffer that serves again and again; [`View`] reads them.

use std::cmp::Ordering;

use firn_io::codec::{get_u32, get_varint_u32, put_u32, put_varint_u32};

use crate::options::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::sstable::stored::{self, Bad};

/// Bytes of the three numbers at the end.
const TAIL_BYTES: usize = 12;
/// The least bytes of an entry.
const MIN_ENTRY_BYTES: usize = 11;
/// No block is larger: one entry with the longest key and value fits, with room for a block's worth
/// of entries before it.
pub(crate) const MAX_BLOCK_BYTES: usize = MAX_VALUE_BYTES + 2 * MAX_KEY_BYTES + (16 << 20);

/// How many leading bytes `a` and `b` have in common.
#[inline]
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let max = a.len().min(b.len());
    let mut n = 0;
    while let (Some(x), Some(y)) = (a[n..].first_chunk::<8>(), b[n..].first_chunk::<8>()) {
        let differ = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if differ != 0 {
            return n + differ.trailing_zeros() as usize / 8;
        }
        n += 8;
    }
    while n < max && a[n] == b[n] {
        n += 1;
    }
    n
}

/// Encodes a block.
#[derive(Debug)]
pub(crate) struct BlockBuilder {
    bytes: Vec<u8>,
    restart_interval: u32,
    count: u32,
    /// Entries until the next restart point.
    left: u32,
    /// Where the key of the current restart point is.
    restart_key: (usize, usize),
    first_key: (usize, usize),
}

impl BlockBuilder {
    pub(crate) fn new(restart_interval: u32) -> Self {
        Self {
            bytes: Vec::new(),
            restart_interval: restart_interval.max(1),
            count: 0,
            left: 0,
            restart_key: (0, 0),
            first_key: (0, 0),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the block if it were finished now.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + TAIL_BYTES
    }

    /// Appends an entry, which comes after all before it.
    #[inline]
    pub(crate) fn add(&mut self, key: &[u8], trailer: u64, value: &[u8]) {
        let restart = self.left == 0;
        let shared = if restart {
            self.left = self.restart_interval;
            0
        } else {
            common_prefix(&self.bytes[self.restart_key.0..self.restart_key.1], key)
        };
        self.left -= 1;
        let suffix = &key[shared..];
        let out = &mut self.bytes;
        if shared < 0x80 && suffix.len() < 0x80 && value.len() < 0x80 {
            let mut head = [
                shared as u8,
                suffix.len() as u8,
                value.len() as u8,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ];
            head[3..].copy_from_slice(&trailer.to_le_bytes());
            out.extend_from_slice(&head);
        } else {
            // Lengths are below 4 GiB by the limits on keys and values.
            put_varint_u32(out, shared as u32);
            put_varint_u32(out, suffix.len() as u32);
            put_varint_u32(out, value.len() as u32);
            out.extend_from_slice(&trailer.to_le_bytes());
        }
        let start = out.len();
        out.extend_from_slice(suffix);
        if restart {
            self.restart_key = (start, out.len());
            if self.count == 0 {
                self.first_key = self.restart_key;
            }
        }
        out.extend_from_slice(value);
        self.count += 1;
    }

    /// Completes the block, whose last entry has the key `last_key`.
    pub(crate) fn finish(&mut self, last_key: &[u8]) -> &[u8] {
        let common = common_prefix(&self.bytes[self.first_key.0..self.first_key.1], last_key);
        put_u32(&mut self.bytes, self.count);
        put_u32(&mut self.bytes, self.restart_interval);
        put_u32(&mut self.bytes, common as u32);
        &self.bytes
    }

    /// Starts the next block.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
        self.left = 0;
    }
}

/// Where the parts of an entry are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) trailer: u64,
    pub(crate) shared: usize,
    pub(crate) suffix: usize,
    /// The end of the suffix.
    pub(crate) value: usize,
    /// The end of the value, where the next entry starts.
    pub(crate) end: usize,
}

/// Reads the head of the entry at `offset`. Does not check that its bytes are inside of the block.
#[inline]
fn entry_head(bytes: &[u8], offset: usize) -> Option<Entry> {
    let bytes = bytes.get(offset..)?;
    let head = bytes.first_chunk::<MIN_ENTRY_BYTES>()?;
    let [shared, suffix_len, value_len, trailer @ ..] = *head;
    if (shared | suffix_len | value_len) < 0x80 {
        let suffix = offset + MIN_ENTRY_BYTES;
        let value = suffix + usize::from(suffix_len);
        return Some(Entry {
            trailer: u64::from_le_bytes(trailer),
            shared: usize::from(shared),
            suffix,
            value,
            end: value + usize::from(value_len),
        });
    }
    long_entry_head(bytes, offset)
}

#[inline(never)]
fn long_entry_head(bytes: &[u8], offset: usize) -> Option<Entry> {
    let (shared, a) = get_varint_u32(bytes)?;
    let (suffix_len, b) = get_varint_u32(&bytes[a..])?;
    let (value_len, c) = get_varint_u32(&bytes[a + b..])?;
    let head = a + b + c;
    let trailer = u64::from_le_bytes(*bytes.get(head..)?.first_chunk()?);
    let suffix = offset + head + 8;
    let value = suffix + suffix_len as usize;
    let end = value + value_len as usize;
    Some(Entry {
        trailer,
        shared: shared as usize,
        suffix,
        value,
        end,
    })
}

/// The four bytes at `offset` as an integer in the order of bytes; those at and after `len` count
/// as zero.
#[inline]
fn ordered_prefix(bytes: &[u8], offset: usize, len: usize) -> u32 {
    let word = match bytes.get(offset..).and_then(|b| b.first_chunk()) {
        Some(chunk) => u32::from_le_bytes(*chunk).swap_bytes(),
        None => {
            let rest = bytes.get(offset..).unwrap_or_default();
            return ordered_prefix_of(&rest[..len.min(rest.len())]);
        }
    };
    if len >= 4 {
        word
    } else {
        word & !(u32::MAX >> (8 * len))
    }
}

/// The first four bytes as an integer in the order of bytes, filled with zeros.
#[inline]
fn ordered_prefix_of(bytes: &[u8]) -> u32 {
    match bytes.first_chunk() {
        Some(chunk) => u32::from_le_bytes(*chunk).swap_bytes(),
        None => {
            let mut word = 0;
            for (i, &byte) in bytes.iter().enumerate() {
                word |= u32::from(byte) << (24 - 8 * i);
            }
            word
        }
    }
}

/// The entry that starts at `offset` of a decoded block, which must be the start of an entry.
#[inline]
pub(crate) fn entry_at(bytes: &[u8], offset: usize) -> Entry {
    // `build_index` has decoded every entry already: there is always one.
    entry_head(bytes, offset).unwrap_or_default()
}

/// What a search for one key in a block found.
#[derive(Debug)]
pub(crate) enum Found {
    /// This entry.
    Entry(Entry),
    /// The key's visible version is not in the block, nor in a later one.
    Nothing,
    /// Nor is it certain that it is not in the next block, if the separator is the key.
    PastEnd,
}

/// Bytes of an image before the block.
pub(crate) const IMAGE_HEADER_BYTES: usize = 20;
/// A buffer that has grown beyond this is given back after use.
const KEPT_BYTES: usize = 1 << 20;

/// Decodes blocks, one after the other, in the same buffer.
#[derive(Default)]
pub(crate) struct BlockBuf {
    /// Its length is the most that was ever needed, so that it need not be filled again.
    bytes: Vec<u8>,
    /// The length of the image in it; 0 if there is none.
    len: usize,
}

impl BlockBuf {
    /// Decodes a block from its uncompressed bytes.
    #[cfg(test)]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut buf = Self::default();
        buf.bytes.resize(IMAGE_HEADER_BYTES, 0);
        buf.bytes.extend_from_slice(bytes);
        buf.build(bytes.len())?;
        Ok(buf)
    }

    /// Decompresses the payload of a stored block and decodes it. After an error the buffer holds no
    /// block.
    pub(crate) fn unpack(&mut self, payload: &[u8], compression: u8) -> Result<(), Bad> {
        self.len = 0;
        if self.bytes.len() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        let len = stored::unpacked_len(payload, compression, MAX_BLOCK_BYTES)?;
        let end = IMAGE_HEADER_BYTES + len;
        if self.bytes.len() < end {
            // With room for the index of a usual block.
            self.bytes.resize(end + end / 4, 0);
        }
        let out = &mut self.bytes[IMAGE_HEADER_BYTES..end];
        stored::unpack_into(payload, compression, out)?;
        self.build(len).map_err(Bad::Damaged)
    }

    /// The image; empty if there is none.
    #[inline]
    pub(crate) fn image(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Forgets the block.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// The block in it, without entries if there is none.
    #[inline]
    pub(crate) fn view(&self) -> View<'_> {
        View::new(self.image())
    }

    /// Checks the block of `len` bytes that lies behind the header, and makes the image complete.
    fn build(&mut self, len: usize) -> Result<(), &'static str> {
        let block_end = IMAGE_HEADER_BYTES + len;
        let bytes = &self.bytes[IMAGE_HEADER_BYTES..block_end];
        let entries_end = len
            .checked_sub(TAIL_BYTES)
            .ok_or("the block is too short")?;
        let number = |at| get_u32(bytes, entries_end + at).ok_or("the block is too short");
        let (count, restart_interval, common) = (number(0)?, number(4)?, number(8)?);
        if count == 0 || restart_interval == 0 {
            return Err("the block says that it has no entries or no restart points");
        }
        if count as usize > entries_end / MIN_ENTRY_BYTES || len > MAX_BLOCK_BYTES {
            return Err("the block is too short for its number of entries, or too long");
        }
        let image_end = block_end + 8 * count as usize;
        if self.bytes.len() < image_end {
            self.bytes.resize(image_end, 0);
        }
        let (front, index) = self.bytes.split_at_mut(block_end);
        let (header, bytes) = front.split_at_mut(IMAGE_HEADER_BYTES);
        let (index, _) = index[..8 * count as usize].as_chunks_mut::<8>();
        let first_key = build_index(bytes, entries_end, restart_interval, common as usize, index)?;
        let numbers = [count, restart_interval, common, first_key, len as u32];
        for (place, number) in header.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
            *place = number.to_le_bytes();
        }
        self.len = image_end;
        Ok(())
    }
}

/// Checks the entries of a block and writes the index; returns where the first key is.
fn build_index(
    bytes: &[u8],
    entries_end: usize,
    restart_interval: u32,
    common: usize,
    index: &mut [[u8; 8]],
) -> Result<u32, &'static str> {
    let mut first_key = 0;
    let mut offset = 0;
    let mut left = 0;
    let mut max_shared = 0;
    let mut restart_prefix = 0;
    for place in index {
        let prefix;
        let entry = entry_head(bytes, offset).ok_or("an entry is cut off")?;
        if entry.end > entries_end {
            return Err("an entry is longer than the block");
        }
        let suffix_len = entry.value - entry.suffix;
        if left == 0 {
            left = restart_interval;
            if entry.shared != 0 || suffix_len < common {
                return Err("a restart point does not hold its key");
            }
            if offset == 0 {
                first_key = entry.suffix;
            } else if bytes[entry.suffix..entry.suffix + common]
                != bytes[first_key..first_key + common]
            {
                return Err("a key does not have the block's common prefix");
            }
            max_shared = suffix_len;
            restart_prefix = ordered_prefix(bytes, entry.suffix + common, suffix_len - common);
            prefix = restart_prefix;
        } else {
            if entry.shared > max_shared || entry.shared < common {
                return Err("an entry shares too much or too little of its restart point's key");
            }
            max_shared = entry.shared;
            let from_restart = entry.shared - common;
            prefix = if from_restart >= 4 {
                restart_prefix
            } else {
                let bits = 8 * from_restart;
                let kept = restart_prefix & !(u32::MAX >> bits);
                kept | ordered_prefix(bytes, entry.suffix, suffix_len) >> bits
            };
        }
        left -= 1;
        *place = (u64::from(prefix) << 32 | offset as u64).to_le_bytes();
        offset = entry.end;
    }
    if offset != entries_end {
        return Err("there are bytes between the last entry and the block's tail");
    }
    Ok(first_key as u32)
}

/// The block in an image.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    bytes: &'a [u8],
    /// Of each entry, a prefix of its key (upper half) and its offset.
    index: &'a [[u8; 8]],
    /// Entries from one restart point to the next.
    restart_interval: u32,
    /// How many bytes all keys have in common at their start.
    common: u32,
    /// Where the first key is in `bytes`.
    first_key: u32,
}

/// Of a place in the index, the prefix.
#[inline]
fn prefix_in(place: &[u8; 8]) -> u32 {
    (u64::from_le_bytes(*place) >> 32) as u32
}

/// Where in the image the value of an entry starts and ends.
#[inline]
pub(crate) fn in_image(entry: &Entry) -> (usize, usize) {
    (
        IMAGE_HEADER_BYTES + entry.value,
        IMAGE_HEADER_BYTES + entry.end,
    )
}

/// The block in an image, and what comes behind it: enough to follow offsets that were checked.
#[inline]
pub(crate) fn block_bytes(image: &[u8]) -> &[u8] {
    image.get(IMAGE_HEADER_BYTES..).unwrap_or_default()
}

impl<'a> View<'a> {
    /// Reads an image made by [`BlockBuf`]; an empty one is a block without entries.
    #[inline]
    pub(crate) fn new(image: &'a [u8]) -> Self {
        let Some((header, rest)) = image.split_first_chunk::<IMAGE_HEADER_BYTES>() else {
            return Self {
                bytes: &[],
                index: &[],
                restart_interval: 1,
                common: 0,
                first_key: 0,
            };
        };
        let (numbers, _) = header.as_chunks::<4>();
        let number = |i: usize| u32::from_le_bytes(numbers[i]);
        let (bytes, index) = rest.split_at(number(4) as usize);
        Self {
            bytes,
            index: index.as_chunks().0,
            restart_interval: number(1),
            common: number(2),
            first_key: number(3),
        }
    }

    /// How many entries.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.index.len()
    }

    /// The entry that starts at `offset`, which must be the start of an entry.
    #[inline]
    pub(crate) fn entry_at(&self, offset: usize) -> Entry {
        entry_at(self.bytes, offset)
    }

    #[inline]
    fn offset(&self, i: usize) -> usize {
        (u64::from_le_bytes(self.index[i]) & u64::from(u32::MAX)) as usize
    }

    /// The entry `i`.
    #[inline]
    pub(crate) fn entry(&self, i: usize) -> Entry {
        self.entry_at(self.offset(i))
    }

    /// The whole key of the restart point of entry `i`.
    #[inline]
    fn restart_key(&self, i: usize) -> &'a [u8] {
        let restart = self.entry(i - i % self.restart_interval as usize);
        &self.bytes[restart.suffix..restart.value]
    }

    /// The part of an entry's key that it stores itself.
    #[inline]
    pub(crate) fn suffix(&self, entry: &Entry) -> &'a [u8] {
        &self.bytes[entry.suffix..entry.value]
    }

    /// An entry's value.
    #[inline]
    pub(crate) fn value(&self, entry: &Entry) -> &'a [u8] {
        &self.bytes[entry.value..entry.end]
    }

    /// Writes the key of `entry`, which is entry `i`, to `key`.
    #[inline]
    pub(crate) fn key_into(&self, i: usize, entry: &Entry, key: &mut Vec<u8>) {
        key.clear();
        if entry.shared > 0 {
            key.extend_from_slice(&self.restart_key(i)[..entry.shared]);
        }
        key.extend_from_slice(self.suffix(entry));
    }

    /// Orders the key of entry `i` against one that starts with the block's common prefix and goes
    /// on with `tail`.
    #[inline]
    fn cmp_tail(&self, i: usize, entry: &Entry, tail: &[u8]) -> Ordering {
        let common = self.common as usize;
        let suffix = self.suffix(entry);
        if entry.shared == 0 {
            return suffix[common..].cmp(tail);
        }
        let start = &self.restart_key(i)[common..entry.shared];
        match tail.split_at_checked(start.len()) {
            Some((head, rest)) => start.cmp(head).then_with(|| suffix.cmp(rest)),
            // The key is longer than the tail: it is greater if the tail is its prefix.
            None => start.cmp(tail),
        }
    }

    /// The entries (from, to) whose prefix is that of `tail`.
    #[inline]
    fn same_prefix(&self, tail: &[u8]) -> (usize, usize) {
        let wanted = ordered_prefix_of(tail);
        let from = self.index.partition_point(|p| prefix_in(p) < wanted);
        // Usually none or one: look at a few before halving the rest.
        let rest = &self.index[from..];
        let same = |p: &[u8; 8]| prefix_in(p) == wanted;
        let near = rest.iter().take(8).take_while(|p| same(p)).count();
        if near < 8 {
            return (from, from + near);
        }
        (from, from + rest.partition_point(same))
    }

    /// The first of the entries `low..high` at or after (common prefix and `tail`, `trailer`); with
    /// it, if it is one of them, the entry and whether its key ends in `tail`.
    #[inline]
    fn halve(
        &self,
        (mut low, mut high): (usize, usize),
        tail: &[u8],
        trailer: u64,
    ) -> (usize, Option<(Entry, bool)>) {
        let mut found = None;
        while low < high {
            let middle = low.midpoint(high);
            let entry = self.entry(middle);
            let order = self.cmp_tail(middle, &entry, tail);
            let before = match order {
                Ordering::Less => true,
                Ordering::Equal => entry.trailer > trailer,
                Ordering::Greater => false,
            };
            if before {
                low = middle + 1;
            } else {
                high = middle;
                // The last one that ends up here is the one returned.
                found = Some((entry, order == Ordering::Equal));
            }
        }
        (low, found)
    }

    /// The number of the first entry at or after (`key`, `trailer`); the number of entries if there
    /// is none.
    #[inline]
    pub(crate) fn lower_bound(&self, key: &[u8], trailer: u64) -> usize {
        let n = self.count();
        let first = self.first_key as usize;
        let prefix = &self.bytes[first..first + self.common as usize];
        let Some((head, tail)) = key.split_at_checked(prefix.len()) else {
            return if key < prefix { 0 } else { n };
        };
        match head.cmp(prefix) {
            Ordering::Less => 0,
            Ordering::Greater => n,
            Ordering::Equal => self.halve(self.same_prefix(tail), tail, trailer).0,
        }
    }

    /// The newest entry of `key` whose trailer is at most `trailer`.
    ///
    /// What the keys of the block have in common is compared last, and with the restart point of
    /// the entry found, not with the first key: that spares a cache line.
    #[inline]
    pub(crate) fn get(&self, key: &[u8], trailer: u64) -> Found {
        let Some((head, tail)) = key.split_at_checked(self.common as usize) else {
            return Found::Nothing;
        };
        let range = self.same_prefix(tail);
        if range.0 == range.1 {
            return Found::Nothing;
        }
        match self.halve(range, tail, trailer) {
            (i, Some((entry, true))) => {
                let whole = if entry.shared == 0 {
                    self.suffix(&entry)
                } else {
                    self.restart_key(i)
                };
                if whole.starts_with(head) {
                    Found::Entry(entry)
                } else {
                    Found::Nothing
                }
            }
            (i, None) if i == self.count() => Found::PastEnd,
            _ => Found::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Entries = Vec<(Vec<u8>, u64, Vec<u8>)>;

    fn build(entries: &[(Vec<u8>, u64, Vec<u8>)], interval: u32) -> Vec<u8> {
        let mut builder = BlockBuilder::new(interval);
        for (key, trailer, value) in entries {
            builder.add(key, *trailer, value);
        }
        builder.finish(&entries.last().unwrap().0).to_vec()
    }

    fn sorted(mut entries: Entries) -> Entries {
        entries.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        entries.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
        entries
    }

    fn key_of(block: &View<'_>, i: usize) -> Vec<u8> {
        let mut key = Vec::new();
        block.key_into(i, &block.entry(i), &mut key);
        key
    }

    #[test]
    fn golden_bytes() {
        let entries = vec![
            (b"apple".to_vec(), 0x0201, b"1".to_vec()),
            (b"apply".to_vec(), 0x0301, b"".to_vec()),
            (b"apt".to_vec(), 0x0400, b"xyz".to_vec()),
        ];
        let expected = [
            &[0, 5, 1, 1, 2, 0, 0, 0, 0, 0, 0][..],
            b"apple1",
            &[4, 1, 0, 1, 3, 0, 0, 0, 0, 0, 0],
            b"y",
            &[0, 3, 3, 0, 4, 0, 0, 0, 0, 0, 0],
            b"aptxyz",
            &[3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0],
        ]
        .concat();
        assert_eq!(build(&entries, 2), expected);
    }

    #[test]
    fn prefixes_keep_the_order_of_bytes() {
        assert_eq!(ordered_prefix_of(b""), 0);
        assert_eq!(ordered_prefix_of(b"\x01\x02"), 0x0102_0000);
        assert_eq!(ordered_prefix_of(b"\x01\x02\x03\x04\x05"), 0x0102_0304);
        assert_eq!(ordered_prefix(b"\x01\x02\x03\x04\x05", 1, 2), 0x0203_0000);
        assert_eq!(ordered_prefix(b"\x01\x02\x03\x04\x05", 1, 0), 0);
        assert_eq!(common_prefix(b"abcdefghij", b"abcdefghiX"), 9);
        assert_eq!(common_prefix(b"abcdefghij", b"abcXefghiX"), 3);
        assert_eq!(common_prefix(b"abc", b"abcd"), 3);
    }

    fn entries() -> impl Strategy<Value = Entries> {
        let key = prop_oneof![
            proptest::collection::vec(
                prop_oneof![Just(0_u8), Just(1), Just(255), any::<u8>()],
                0..7
            ),
            "[ab]{0,12}".prop_map(String::into_bytes),
            "prefix/[a-c]{0,4}".prop_map(String::into_bytes),
        ];
        let value = proptest::collection::vec(any::<u8>(), 0..200);
        proptest::collection::vec((key, 0_u64..2000, value), 1..60).prop_map(sorted)
    }

    proptest! {
        #[test]
        fn finds_what_was_added(entries in entries(), interval in 1_u32..20, probes: Vec<(Vec<u8>, u64)>) {
            let buf = BlockBuf::decode(&build(&entries, interval)).unwrap();
            let block = buf.view();
            prop_assert_eq!(block.count(), entries.len());
            let mut offset = 0;
            for (i, (key, trailer, value)) in entries.iter().enumerate() {
                let entry = block.entry(i);
                prop_assert_eq!(&key_of(&block, i), key);
                prop_assert_eq!(entry.trailer, *trailer);
                prop_assert_eq!(block.value(&entry), &value[..]);
                prop_assert_eq!(block.offset(i), offset);
                offset = entry.end;
            }
            let around = entries.iter().flat_map(|(k, t, _)| {
                let longer = [&k[..], &[0]].concat();
                let shorter = k[..k.len() / 2].to_vec();
                [(k.clone(), *t), (k.clone(), t + 1), (k.clone(), t.saturating_sub(1)), (k.clone(), u64::MAX),
                 (longer, 5), (shorter, 5)]
            });
            for (key, trailer) in around.chain(probes) {
                let wanted = (&key, std::cmp::Reverse(&trailer));
                let before = entries.partition_point(|(k, t, _)| (k, std::cmp::Reverse(t)) < wanted);
                prop_assert_eq!(block.lower_bound(&key, trailer), before);
                let found = block.get(&key, trailer);
                match entries.get(before) {
                    None => {
                        let is_last = entries.last().unwrap().0 == key;
                        prop_assert!(matches!(found, Found::PastEnd) || !is_last && matches!(found, Found::Nothing));
                    }
                    Some((k, t, _)) if *k == key => match found {
                        Found::Entry(entry) => prop_assert_eq!(entry.trailer, *t),
                        other => prop_assert!(false, "{:?}", other),
                    },
                    Some(_) => prop_assert!(!matches!(found, Found::Entry(_))),
                }
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(
            mut bytes: Vec<u8>,
            count in 0_u32..4,
            common in 0_u32..3,
            flip: (usize, u8),
        ) {
            check_decodes_safely(bytes.clone());
            for n in [count, 2, common] {
                bytes.extend(n.to_le_bytes());
            }
            check_decodes_safely(bytes);
            let good = sorted(vec![(b"ab".to_vec(), 9, b"1".to_vec()), (b"abc".to_vec(), 8, b"2".to_vec()), (b"b".to_vec(), 8, vec![1; 300])]);
            let mut bytes = build(&good, 2);
            let at = flip.0 % bytes.len();
            bytes[at] ^= flip.1;
            check_decodes_safely(bytes);
        }
    }

    fn check_decodes_safely(bytes: Vec<u8>) {
        let Ok(buf) = BlockBuf::decode(&bytes) else {
            return;
        };
        let block = buf.view();
        for i in 0..block.count() {
            let key = key_of(&block, i);
            let _ = (
                block.value(&block.entry(i)),
                block.get(&key, 3),
                block.lower_bound(b"ab", 1),
            );
        }
    }
}
