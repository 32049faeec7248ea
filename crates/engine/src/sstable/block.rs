//! A data block: some entries in order, prefix-compressed, searchable without decoding them all.
//!
//! # Bytes, before compression
//!
//! ```text
//! count varint | restart interval varint | common varint | widths u8 | least sequence number varint
//! shared      * count     1, 2 or 4 bytes each, by bits 0-1 of `widths` (0, 1 or 2)
//! suffix len  * count     the same
//! value len   * count     1, 2 or 4 bytes each, by bits 2-3
//! kind        * count     1 byte each
//! sequence no * count     less the least one; 0 to 7 bytes each, by bits 4-6
//! (suffix | value) * count
//! ```
//!
//! Every `restart interval`-th entry, from the first on, is a *restart point* and holds its whole
//! key (shared = 0). The key of any other entry is the first `shared` bytes of **the restart
//! point's** key, then the suffix. (LevelDB shares with the entry before instead; sharing with the
//! restart point costs a few bytes, which LZ4 finds again, and lets any entry be decoded alone.)
//! Since keys ascend, `shared` never grows within an interval, so walking forward can cut and
//! extend one key buffer. `common` is the number of leading bytes that all keys have in common.
//!
//! Numbers of one kind lie together, as columnar formats have them: lengths and kinds hardly differ
//! from entry to entry and compress to nothing, and sequence numbers take no more bytes than their
//! spread. Before each key and value they cost six bytes of a hundred after LZ4, and its decoder time.
//!
//! # In memory
//!
//! Decoding a block walks its lengths once, checks every one, and builds for each entry the offset of
//! its suffix and, above it in the same 64 bits, the four bytes of its key that follow the common
//! ones, as an integer whose order is that of the bytes (a shorter key is filled with zeros). A
//! search then is a search for an integer among integers that lie next to each other; keys are
//! compared only where those are equal. Everything after decoding relies on the checks done there
//! and cannot fail.
//!
//! All of it is one run of bytes, the *image*, so that a cached block is one allocation of exactly
//! its size:
//!
//! ```text
//! layout (see `Layout::put`), 36 bytes | the block | index: count x u64
//! ```
//!
//! [`BlockBuf`] makes images, in a buffer that serves again and again; [`View`] reads them.

use std::cmp::Ordering;

use firn_io::codec::{
    get_u32, get_u64, get_varint_u32, get_varint_u64, put_varint_u32, put_varint_u64,
};

use crate::key::{SeqNo, window};
use crate::options::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::prefetch::prefetch_span;
use crate::sstable::stored::{self, Bad};

/// The least bytes of an entry: three lengths and a kind.
const MIN_ENTRY_BYTES: usize = 4;
/// The most bytes before the columns.
const MAX_HEAD_BYTES: usize = 3 * 5 + 1 + 10;
/// So much of an entry is fetched ahead: a short key and a short value.
const BODY_BYTES: usize = 128;
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

/// How many bytes numbers up to `largest` take each in a column of lengths, as `widths` has it.
#[inline]
fn length_width(largest: usize) -> u8 {
    match largest {
        0..=0xff => 0,
        0x100..=0xffff => 1,
        _ => 2,
    }
}

/// Appends a column of lengths.
fn put_lengths(out: &mut Vec<u8>, lengths: impl Iterator<Item = u32>, width: u8) {
    match width {
        0 => out.extend(lengths.map(|n| n as u8)),
        1 => lengths.for_each(|n| out.extend_from_slice(&(n as u16).to_le_bytes())),
        _ => lengths.for_each(|n| out.extend_from_slice(&n.to_le_bytes())),
    }
}

/// What the columns say of an entry that is being built.
#[derive(Clone, Copy, Debug)]
struct Added {
    shared: u32,
    suffix_len: u32,
    value_len: u32,
    trailer: u64,
}

/// Encodes a block.
#[derive(Debug)]
pub(crate) struct BlockBuilder {
    entries: Vec<Added>,
    /// Suffixes and values.
    bodies: Vec<u8>,
    /// The finished block.
    out: Vec<u8>,
    restart_interval: u32,
    /// Entries until the next restart point.
    left: u32,
    /// Where the key of the current restart point is.
    restart_key: (usize, usize),
    first_key_len: usize,
    longest_key: usize,
    longest_value: usize,
    /// The least and the greatest sequence number.
    seqnos: (u64, u64),
}

impl BlockBuilder {
    pub(crate) fn new(restart_interval: u32) -> Self {
        Self {
            entries: Vec::new(),
            bodies: Vec::new(),
            out: Vec::new(),
            restart_interval: restart_interval.max(1),
            left: 0,
            restart_key: (0, 0),
            first_key_len: 0,
            longest_key: 0,
            longest_value: 0,
            seqnos: (u64::MAX, 0),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn count(&self) -> u32 {
        self.entries.len() as u32
    }

    fn widths(&self) -> (u8, u8, usize) {
        let spread = self.seqnos.1.saturating_sub(self.seqnos.0);
        let seqno = (u64::BITS - spread.leading_zeros()).div_ceil(8) as usize;
        let (key, value) = (
            length_width(self.longest_key),
            length_width(self.longest_value),
        );
        (key, value, seqno)
    }

    /// Bytes of the block if it were finished now, or a few more.
    pub(crate) fn len(&self) -> usize {
        let (key, value, seqno) = self.widths();
        let each = (2 << key) + (1 << value) + 1 + seqno;
        MAX_HEAD_BYTES / 2 + self.entries.len() * each + self.bodies.len()
    }

    /// Appends an entry, which comes after all before it.
    #[inline]
    pub(crate) fn add(&mut self, key: &[u8], trailer: u64, value: &[u8]) {
        let restart = self.left == 0;
        let shared = if restart {
            self.left = self.restart_interval;
            0
        } else {
            common_prefix(&self.bodies[self.restart_key.0..self.restart_key.1], key)
        };
        self.left -= 1;
        let suffix = &key[shared..];
        let start = self.bodies.len();
        self.bodies.extend_from_slice(suffix);
        if restart {
            self.restart_key = (start, self.bodies.len());
        }
        self.bodies.extend_from_slice(value);
        if self.entries.is_empty() {
            self.first_key_len = key.len();
        }
        // Lengths are below 4 GiB by the limits on keys and values.
        self.entries.push(Added {
            shared: shared as u32,
            suffix_len: suffix.len() as u32,
            value_len: value.len() as u32,
            trailer,
        });
        self.longest_key = self.longest_key.max(key.len());
        self.longest_value = self.longest_value.max(value.len());
        let seqno = trailer >> 8;
        self.seqnos = (self.seqnos.0.min(seqno), self.seqnos.1.max(seqno));
    }

    /// Completes the block, whose last entry has the key `last_key`.
    pub(crate) fn finish(&mut self, last_key: &[u8]) -> &[u8] {
        let common = common_prefix(&self.bodies[..self.first_key_len], last_key);
        let (key, value, seqno) = self.widths();
        let (entries, out) = (&self.entries, &mut self.out);
        out.clear();
        put_varint_u32(out, entries.len() as u32);
        put_varint_u32(out, self.restart_interval);
        put_varint_u32(out, common as u32);
        out.push(key | value << 2 | (seqno as u8) << 4);
        put_varint_u64(out, self.seqnos.0);
        put_lengths(out, entries.iter().map(|e| e.shared), key);
        put_lengths(out, entries.iter().map(|e| e.suffix_len), key);
        put_lengths(out, entries.iter().map(|e| e.value_len), value);
        out.extend(entries.iter().map(|e| e.trailer as u8));
        for entry in entries {
            let above = (entry.trailer >> 8) - self.seqnos.0;
            out.extend_from_slice(&above.to_le_bytes()[..seqno]);
        }
        out.extend_from_slice(&self.bodies);
        out
    }

    /// Starts the next block.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bodies.clear();
        self.left = 0;
        self.first_key_len = 0;
        (self.longest_key, self.longest_value) = (0, 0);
        self.seqnos = (u64::MAX, 0);
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

/// Where the columns of a decoded block are, and what is said once for all entries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layout {
    /// How many entries.
    count: u32,
    /// Entries from one restart point to the next.
    restart_interval: u32,
    /// How many bytes all keys have in common at their start.
    common: u32,
    /// Bytes of the block; the index follows.
    len: u32,
    /// Where the columns start.
    columns: u32,
    /// Where the bodies start: the first is the first key.
    bodies: u32,
    /// Widths of a length in a key's columns and in the values', as logarithms, and of a sequence
    /// number in bytes.
    key_width: u8,
    value_width: u8,
    seqno_width: u8,
    /// The least sequence number.
    seqno: u64,
}

/// Bytes of an image before the block.
pub(crate) const IMAGE_HEADER_BYTES: usize = 36;

/// A length from a column that starts at `column`.
#[inline]
fn length(bytes: &[u8], column: usize, width: u8, i: usize) -> usize {
    if width == 0 {
        return usize::from(bytes[column + i]);
    }
    wide_length(bytes, column, width, i)
}

#[inline(never)]
fn wide_length(bytes: &[u8], column: usize, width: u8, i: usize) -> usize {
    let at = column + (i << width);
    if width == 1 {
        usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
    } else {
        get_u32(bytes, at).unwrap_or_default() as usize
    }
}

impl Layout {
    /// Reads what comes before the columns, and checks that there is room for these.
    fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "the block is too short";
        let mut at = 0;
        let mut number = || {
            let (number, len) = get_varint_u32(bytes.get(at..)?)?;
            at += len;
            Some(number)
        };
        let count = number().ok_or(SHORT)?;
        let restart_interval = number().ok_or(SHORT)?;
        let common = number().ok_or(SHORT)?;
        let widths = *bytes.get(at).ok_or(SHORT)?;
        let (seqno, len) = get_varint_u64(&bytes[at + 1..]).ok_or(SHORT)?;
        let columns = at + 1 + len;
        if count == 0 || restart_interval == 0 {
            return Err("the block says that it has no entries or no restart points");
        }
        if count as usize > bytes.len() / MIN_ENTRY_BYTES || bytes.len() > MAX_BLOCK_BYTES {
            return Err("the block is too short for its number of entries, or too long");
        }
        let (key_width, value_width, seqno_width) = (widths & 3, widths >> 2 & 3, widths >> 4);
        if key_width > 2 || value_width > 2 || seqno_width > 7 {
            return Err("the block says that it has numbers of an unknown width");
        }
        let each = (2 << key_width) + (1 << value_width) + 1 + usize::from(seqno_width);
        let bodies = columns + count as usize * each;
        if bodies > bytes.len() {
            return Err("the block is too short for its number of entries");
        }
        let layout = Self {
            count,
            restart_interval,
            common,
            // Below `MAX_BLOCK_BYTES`, all three.
            len: bytes.len() as u32,
            columns: columns as u32,
            bodies: bodies as u32,
            key_width,
            value_width,
            seqno_width,
            seqno,
        };
        let highest = seqno.saturating_add((1 << (8 * seqno_width)) - 1);
        let is_valid = |i| layout.seqno_above(bytes, i) <= SeqNo::MAX.0 - seqno;
        if seqno > SeqNo::MAX.0 || highest > SeqNo::MAX.0 && !(0..count as usize).all(is_valid) {
            return Err("a sequence number is too large");
        }
        Ok(layout)
    }

    /// Writes it to the start of an image.
    fn put(&self, image: &mut [u8]) {
        let numbers = [
            self.count,
            self.restart_interval,
            self.common,
            self.len,
            self.columns,
            self.bodies,
            u32::from_le_bytes([self.key_width, self.value_width, self.seqno_width, 0]),
            self.seqno as u32,
            (self.seqno >> 32) as u32,
        ];
        for (place, number) in image.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
            *place = number.to_le_bytes();
        }
    }

    /// Reads it from an image; that of a block without entries if there is no image.
    #[inline]
    pub(crate) fn of(image: &[u8]) -> Self {
        let Some(header) = image.first_chunk::<IMAGE_HEADER_BYTES>() else {
            return Self {
                restart_interval: 1,
                ..Self::default()
            };
        };
        let (numbers, _) = header.as_chunks::<4>();
        let number = |i: usize| u32::from_le_bytes(numbers[i]);
        let [key_width, value_width, seqno_width, _] = numbers[6];
        Self {
            count: number(0),
            restart_interval: number(1),
            common: number(2),
            len: number(3),
            columns: number(4),
            bodies: number(5),
            key_width,
            value_width,
            seqno_width,
            seqno: u64::from(number(8)) << 32 | u64::from(number(7)),
        }
    }

    /// How many entries.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    #[inline]
    fn shared(&self, bytes: &[u8], i: usize) -> usize {
        length(bytes, self.columns as usize, self.key_width, i)
    }

    #[inline]
    fn suffix_len(&self, bytes: &[u8], i: usize) -> usize {
        let column = self.columns as usize + (self.count() << self.key_width);
        length(bytes, column, self.key_width, i)
    }

    #[inline]
    fn value_len(&self, bytes: &[u8], i: usize) -> usize {
        let column = self.columns as usize + (self.count() << (self.key_width + 1));
        length(bytes, column, self.value_width, i)
    }

    /// Where the kinds start.
    #[inline]
    fn kinds(&self) -> usize {
        let count = self.count();
        self.columns as usize + (count << (self.key_width + 1)) + (count << self.value_width)
    }

    /// How far a sequence number is above the least.
    #[inline]
    fn seqno_above(&self, bytes: &[u8], i: usize) -> u64 {
        let width = usize::from(self.seqno_width);
        let at = self.kinds() + self.count() + width * i;
        let mask = (1 << (8 * width)) - 1;
        match get_u64(bytes, at) {
            Some(number) => number & mask,
            None => {
                let mut number = [0; 8];
                number[..width].copy_from_slice(&bytes[at..at + width]);
                u64::from_le_bytes(number)
            }
        }
    }

    /// Where the suffix of entry `i` starts.
    #[inline]
    fn offset(&self, bytes: &[u8], i: usize) -> usize {
        // There is a place in the index for every entry.
        get_u32(bytes, self.len as usize + 8 * i).unwrap_or_default() as usize
    }

    /// The entry `i` of a decoded block; `bytes` are the block and its index.
    #[inline]
    pub(crate) fn entry(&self, bytes: &[u8], i: usize) -> Entry {
        let end = match i + 1 < self.count() {
            true => self.offset(bytes, i + 1),
            false => self.len as usize,
        };
        self.entry_between(bytes, i, self.offset(bytes, i), end)
    }

    /// The same for the entry after one that ends at `start`.
    #[inline]
    pub(crate) fn entry_from(&self, bytes: &[u8], i: usize, start: usize) -> Entry {
        let end = start + self.suffix_len(bytes, i) + self.value_len(bytes, i);
        self.entry_between(bytes, i, start, end)
    }

    #[inline]
    fn entry_between(&self, bytes: &[u8], i: usize, start: usize, end: usize) -> Entry {
        let kind = bytes[self.kinds() + i];
        let seqno = self.seqno + self.seqno_above(bytes, i);
        Entry {
            trailer: seqno << 8 | u64::from(kind),
            shared: self.shared(bytes, i),
            suffix: start,
            value: start + self.suffix_len(bytes, i),
            end,
        }
    }
}

/// The four bytes at `offset` as an integer in the order of bytes; those at and after `len` count
/// as zero.
#[inline]
fn ordered_prefix(bytes: &[u8], offset: usize, len: usize) -> u32 {
    let word = match bytes.get(offset..).and_then(|b| b.first_chunk()) {
        Some(chunk) => u32::from_le_bytes(*chunk).swap_bytes(),
        None => {
            let rest = bytes.get(offset..).unwrap_or_default();
            return first_window(&rest[..len.min(rest.len())], 0);
        }
    };
    if len >= 4 {
        word
    } else {
        word & !(u32::MAX >> (8 * len))
    }
}

/// The upper half of [`window`].
#[inline]
fn first_window(bytes: &[u8], skip: usize) -> u32 {
    (window(bytes, skip) >> 32) as u32
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
        let layout = Layout::read(&self.bytes[IMAGE_HEADER_BYTES..block_end])?;
        let image_end = block_end + 8 * layout.count();
        if self.bytes.len() < image_end {
            self.bytes.resize(image_end, 0);
        }
        let (front, index) = self.bytes.split_at_mut(block_end);
        let (header, bytes) = front.split_at_mut(IMAGE_HEADER_BYTES);
        let (index, _) = index[..8 * layout.count()].as_chunks_mut::<8>();
        if layout.key_width == 0 && layout.value_width == 0 {
            // Every column of lengths is one of bytes, and known to be as long as the index.
            let (shared, rest) = bytes[layout.columns as usize..].split_at(layout.count());
            let (suffix, rest) = rest.split_at(layout.count());
            let value = &rest[..layout.count()];
            let lengths = shared.iter().zip(suffix).zip(value);
            let lengths =
                lengths.map(|((a, b), c)| (usize::from(*a), usize::from(*b), usize::from(*c)));
            build_index(bytes, &layout, lengths, index)?;
        } else {
            let lengths = (0..layout.count()).map(|i| {
                let suffix_len = layout.suffix_len(bytes, i);
                (
                    layout.shared(bytes, i),
                    suffix_len,
                    layout.value_len(bytes, i),
                )
            });
            build_index(bytes, &layout, lengths, index)?;
        }
        layout.put(header);
        self.len = image_end;
        Ok(())
    }
}

/// Checks the lengths of a block, each entry's (shared, suffix, value), and writes the index.
#[inline]
fn build_index(
    bytes: &[u8],
    layout: &Layout,
    lengths: impl Iterator<Item = (usize, usize, usize)>,
    index: &mut [[u8; 8]],
) -> Result<(), &'static str> {
    let common = layout.common as usize;
    let first_key = layout.bodies as usize;
    let mut offset = first_key;
    let mut left = 0;
    let mut max_shared = 0;
    let mut restart_prefix = 0;
    for (place, (shared, suffix_len, value_len)) in index.iter_mut().zip(lengths) {
        let prefix;
        let end = offset + suffix_len + value_len;
        if end > bytes.len() {
            return Err("an entry is longer than the block");
        }
        if left == 0 {
            left = layout.restart_interval;
            if shared != 0 || suffix_len < common {
                return Err("a restart point does not hold its key");
            }
            if bytes[offset..offset + common] != bytes[first_key..first_key + common] {
                return Err("a key does not have the block's common prefix");
            }
            max_shared = suffix_len;
            restart_prefix = ordered_prefix(bytes, offset + common, suffix_len - common);
            prefix = restart_prefix;
        } else {
            if shared > max_shared || shared < common {
                return Err("an entry shares too much or too little of its restart point's key");
            }
            max_shared = shared;
            let from_restart = shared - common;
            prefix = if from_restart >= 4 {
                restart_prefix
            } else {
                let bits = 8 * from_restart;
                let kept = restart_prefix & !(u32::MAX >> bits);
                kept | ordered_prefix(bytes, offset, suffix_len) >> bits
            };
        }
        left -= 1;
        *place = (u64::from(prefix) << 32 | offset as u64).to_le_bytes();
        offset = end;
    }
    if offset != bytes.len() {
        return Err("there are bytes behind the last entry");
    }
    Ok(())
}

/// The block in an image.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    /// The block and its index.
    bytes: &'a [u8],
    /// Of each entry, a prefix of its key (upper half) and its offset.
    index: &'a [[u8; 8]],
    layout: Layout,
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
        let layout = Layout::of(image);
        let bytes = block_bytes(image);
        Self {
            bytes,
            index: bytes[layout.len as usize..].as_chunks().0,
            layout,
        }
    }

    /// How many entries.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.index.len()
    }

    /// The entry `i`.
    #[inline]
    pub(crate) fn entry(&self, i: usize) -> Entry {
        self.layout.entry(self.bytes, i)
    }

    /// The whole key of the restart point of entry `i`.
    #[inline]
    fn restart_key(&self, i: usize) -> &'a [u8] {
        let restart = i - i % self.layout.restart_interval as usize;
        let offset = self.layout.offset(self.bytes, restart);
        &self.bytes[offset..offset + self.layout.suffix_len(self.bytes, restart)]
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
        let common = self.layout.common as usize;
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

    /// The entries (from, to) whose prefix is that of a key, which is at least as long as the common prefix.
    #[inline]
    fn same_prefix(&self, key: &[u8]) -> (usize, usize) {
        let wanted = first_window(key, self.layout.common as usize);
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
        let first = self.layout.bodies as usize;
        let prefix = &self.bytes[first..first + self.layout.common as usize];
        let Some((head, tail)) = key.split_at_checked(prefix.len()) else {
            return if key < prefix { 0 } else { n };
        };
        match head.cmp(prefix) {
            Ordering::Less => 0,
            Ordering::Greater => n,
            Ordering::Equal => self.halve(self.same_prefix(key), tail, trailer).0,
        }
    }

    /// The newest entry of `key` whose trailer is at most `trailer`.
    #[inline]
    pub(crate) fn get(&self, key: &[u8], trailer: u64) -> Found {
        self.get_among(self.candidates(key), key, trailer)
    }

    /// The entries (from, to) that may be of `key`, by what the index has of them.
    #[inline]
    pub(crate) fn candidates(&self, key: &[u8]) -> (usize, usize) {
        if key.len() < self.layout.common as usize {
            return (0, 0);
        }
        self.same_prefix(key)
    }

    /// Has what [`get_among`](Self::get_among) reads of the first candidate fetched, and its value.
    #[inline]
    pub(crate) fn prefetch(&self, (from, to): (usize, usize)) {
        if from < to {
            let layout = &self.layout;
            let base = self.bytes.as_ptr();
            // Its places in the columns.
            let (columns, count) = (layout.columns as usize, layout.count());
            let (key_width, value_width) = (layout.key_width, layout.value_width);
            for at in [
                columns + (from << key_width),
                columns + ((count + from) << key_width),
                columns + (count << (key_width + 1)) + (from << value_width),
                layout.kinds() + from,
                layout.kinds() + count + usize::from(layout.seqno_width) * from,
            ] {
                prefetch_span(base.wrapping_add(at), 1);
            }
            let restart = from - from % self.layout.restart_interval as usize;
            for i in [restart, from] {
                let at = self.layout.offset(self.bytes, i);
                prefetch_span(base.wrapping_add(at), BODY_BYTES);
            }
        }
    }

    /// [`get`](Self::get) among the [`candidates`](Self::candidates).
    ///
    /// What the keys of the block have in common is compared last, and with the restart point of
    /// the entry found, not with the first key: that spares a cache line.
    #[inline]
    pub(crate) fn get_among(&self, range: (usize, usize), key: &[u8], trailer: u64) -> Found {
        let Some((head, tail)) = key.split_at_checked(self.layout.common as usize) else {
            return Found::Nothing;
        };
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
            // 3 entries, a restart point every 2, 2 bytes in common, sequence numbers from 2 on in a
            // byte each.
            &[3, 2, 2, 0x10, 2][..],
            &[0, 4, 0],
            &[5, 1, 3],
            &[1, 0, 3],
            &[1, 1, 0],
            &[0, 1, 2],
            b"apple1yaptxyz",
        ]
        .concat();
        assert_eq!(build(&entries, 2), expected);
    }

    #[test]
    fn widths_follow_what_is_stored() {
        let long = [b"long".to_vec(), vec![b'k'; 300]].concat();
        let entries = vec![
            (b"a".to_vec(), u64::MAX, vec![7; 70_000]),
            (b"b".to_vec(), 0x01, b"".to_vec()),
            (long.clone(), 0x0101, vec![8; 200]),
        ];
        let bytes = build(&entries, 16);
        // Two bytes a length of a key, four of a value, seven a sequence number.
        assert_eq!(bytes[3], 0x79);
        let buf = BlockBuf::decode(&bytes).unwrap();
        let block = buf.view();
        for (i, (key, trailer, value)) in entries.iter().enumerate() {
            let entry = block.entry(i);
            assert_eq!(&key_of(&block, i), key);
            assert_eq!((entry.trailer, block.value(&entry)), (*trailer, &value[..]));
        }
        // One sequence number needs no bytes.
        let one = vec![
            (b"a".to_vec(), 0x0501, b"1".to_vec()),
            (b"b".to_vec(), 0x0501, b"2".to_vec()),
        ];
        assert_eq!(build(&one, 16)[3..5], [0, 5]);
    }

    #[test]
    fn sequence_numbers_beyond_the_last_are_refused() {
        let one = vec![
            (b"a".to_vec(), u64::MAX, b"1".to_vec()),
            (b"b".to_vec(), (u64::MAX << 8) - 0xff, b"".to_vec()),
        ];
        let mut bytes = build(&one, 16);
        assert!(BlockBuf::decode(&bytes).is_ok());
        // Three numbers, the widths, a varint of eight bytes, three columns of lengths, the kinds.
        let above = 4 + 8 + 3 * 2 + 2;
        assert_eq!(bytes[above..above + 2], [1, 0]);
        bytes[above] = 2;
        assert_eq!(
            BlockBuf::decode(&bytes).err(),
            Some("a sequence number is too large")
        );
    }

    #[test]
    fn prefixes_keep_the_order_of_bytes() {
        assert_eq!(first_window(b"\x01\x02\x03\x04\x05", 1), 0x0203_0405);
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
            let mut offset = block.layout.bodies as usize;
            for (i, (key, trailer, value)) in entries.iter().enumerate() {
                let entry = block.entry(i);
                let next = block.layout.entry_from(block.bytes, i, offset);
                prop_assert_eq!((next.trailer, next.shared, next.value, next.end),
                    (entry.trailer, entry.shared, entry.value, entry.end));
                prop_assert_eq!(&key_of(&block, i), key);
                prop_assert_eq!(entry.trailer, *trailer);
                prop_assert_eq!(block.value(&entry), &value[..]);
                prop_assert_eq!(entry.suffix, offset);
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
            let head = [count as u8, 2, common as u8, flip.1, 9];
            check_decodes_safely([&head[..], &bytes].concat());
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
