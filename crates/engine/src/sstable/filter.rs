//! The filter: a blocked Bloom filter over the user keys, which answers "certainly not here" at the
//! price of one cache line.
//!
//! ```text
//! version u8 (1) | probes u8 | zeros u16 | line count u32 | lines: 64 bytes each
//! ```
//!
//! **Frozen format.** With `h` the XXH3 hash (64 bits, seed 0) of the key:
//!
//! 1. the line is the upper 64 bits of `h * line count`;
//! 2. the bits in it: `m = h * 0x9e3779b97f4a7c15` (modulo 2^64); probe i of the first seven is bit
//!    `(m >> (9 i + 1)) mod 512`; for the next seven `m` is multiplied by the same constant again,
//!    and so on;
//! 3. bit b of a line is bit `b mod 8` of its byte `b / 8`.
//!
//! A key may be present if all its bits are set. (The form, one line of 512 bits for all probes of a
//! key, is Putze, Sanders and Singler's blocked Bloom filter.)

use firn_io::checksum::xxh3_64;
use firn_io::codec::{Reader, put_u32};

use crate::prefetch::prefetch_lines;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8;
const LINE_BYTES: usize = 64;
const PROBES_PER_WORD: u32 = 7;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const MAX_PROBES: u32 = 14;

/// The hash of a key for the filters, computed once for all tables that are asked.
#[inline]
pub fn key_hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// One cache line of the filter.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line([u64; 8]);

/// A filter in memory.
#[derive(Debug)]
pub(crate) struct Filter {
    lines: Vec<Line>,
    probes: u32,
}

#[inline]
fn line_of(hash: u64, lines: usize) -> usize {
    ((u128::from(hash) * lines as u128) >> 64) as usize
}

/// Hashes of keys that wait for their number to be known. In pieces: a vector that grows is copied, and
/// what it was copied from stays with the allocator.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    pieces: Vec<Vec<u64>>,
}

/// Hashes in a piece.
const PIECE: usize = 16 << 10;

impl Hashes {
    pub(crate) fn push(&mut self, hash: u64) {
        match self.pieces.last_mut() {
            Some(piece) if piece.len() < PIECE => piece.push(hash),
            _ => {
                // The first one grows: most tables of a small database have few keys.
                let room = if self.pieces.is_empty() { 64 } else { PIECE };
                let mut piece = Vec::with_capacity(room);
                piece.push(hash);
                self.pieces.push(piece);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        let full = self.pieces.len().saturating_sub(1) * PIECE;
        full + self.pieces.last().map_or(0, Vec::len)
    }

    fn iter(&self) -> impl Iterator<Item = u64> {
        self.pieces.iter().flatten().copied()
    }
}

impl Filter {
    /// A filter of keys with these hashes (repetitions do no harm), with `bits_per_key` bits each.
    pub(crate) fn build(hashes: &Hashes, bits_per_key: u32) -> Self {
        let bits = hashes.len() as u64 * u64::from(bits_per_key);
        let count = bits.div_ceil(512).clamp(1, u64::from(u32::MAX)) as usize;
        // ln 2 probes per bit are the best for an unblocked filter; a line whose share of keys is
        // above the average wants less, which is why this rounds down.
        let probes = (bits_per_key * 69 / 100).clamp(1, MAX_PROBES);
        let mut filter = Self {
            lines: vec![Line([0; 8]); count],
            probes,
        };
        for hash in hashes.iter() {
            let line = &mut filter.lines[line_of(hash, count)].0;
            let mut word = hash;
            let mut left = probes;
            while left > 0 {
                word = word.wrapping_mul(MULTIPLIER);
                let mut m = word >> 1;
                for _ in 0..left.min(PROBES_PER_WORD) {
                    line[(m >> 6) as usize & 7] |= 1 << (m & 63);
                    m >>= 9;
                }
                left = left.saturating_sub(PROBES_PER_WORD);
            }
        }
        filter
    }

    /// Has the line that [`may_contain`](Self::may_contain) reads fetched.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        if let Some(line) = self.lines.get(line_of(hash, self.lines.len())) {
            prefetch_lines(line, 1);
        }
    }

    /// Whether the key with this hash may be in the table; `false` is certain.
    #[inline]
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let Some(Line(line)) = self.lines.get(line_of(hash, self.lines.len())) else {
            return true;
        };
        let mut word = hash;
        let mut left = self.probes;
        loop {
            word = word.wrapping_mul(MULTIPLIER);
            let mut m = word >> 1;
            let mut missing = 0;
            for _ in 0..left.min(PROBES_PER_WORD) {
                missing |= !line[(m >> 6) as usize & 7] >> (m & 63) & 1;
                m >>= 9;
            }
            if missing != 0 {
                return false;
            }
            if left <= PROBES_PER_WORD {
                return true;
            }
            left -= PROBES_PER_WORD;
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.lines.len() * LINE_BYTES);
        out.extend_from_slice(&[VERSION, self.probes as u8, 0, 0]);
        put_u32(&mut out, self.lines.len() as u32);
        for Line(line) in &self.lines {
            for word in line {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut reader = Reader::new(bytes);
        let header = reader.array::<4>().ok_or("the filter is cut off")?;
        let count = reader.u32().ok_or("the filter is cut off")?;
        let [version, probes, 0, 0] = header else {
            return Err("the filter's header is wrong");
        };
        if version != VERSION || probes == 0 || u32::from(probes) > MAX_PROBES || count == 0 {
            return Err("the filter's header is wrong");
        }
        if reader.remaining() as u64 != u64::from(count) * LINE_BYTES as u64 {
            return Err("the filter does not have as many lines as it says");
        }
        let mut lines = Vec::with_capacity(count as usize);
        for chunk in reader.rest().chunks_exact(LINE_BYTES) {
            let mut line = [0; 8];
            for (word, bytes) in line.iter_mut().zip(chunk.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            lines.push(Line(line));
        }
        Ok(Self {
            lines,
            probes: u32::from(probes),
        })
    }

    /// Memory, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.lines.capacity() * LINE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(hashes: &[u64]) -> Hashes {
        let mut kept = Hashes::default();
        for (len, &hash) in hashes.iter().enumerate() {
            assert_eq!(kept.len(), len);
            kept.push(hash);
        }
        assert!(kept.iter().eq(hashes.iter().copied()));
        kept
    }

    #[test]
    fn golden_bytes() {
        let hashes: Vec<u64> = [&b"a"[..], b"b", b"c"]
            .iter()
            .map(|k| key_hash(k))
            .collect();
        let bytes = Filter::build(&kept(&hashes), 10).encode();
        assert_eq!(bytes[..8], [1, 6, 0, 0, 1, 0, 0, 0]);
        // By the formula of the module's page, step by step.
        let mut line = [0_u8; 64];
        for h in hashes {
            let m = h.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for i in 0..6 {
                let bit = (m >> (9 * i + 1)) % 512;
                line[bit as usize / 8] |= 1 << (bit % 8);
            }
        }
        assert_eq!(bytes[8..], line);
        // And as they came out when the format was made.
        assert_eq!(firn_io::checksum::crc32c(&bytes), GOLDEN_CRC);
    }

    const GOLDEN_CRC: u32 = 1_975_222_029;

    #[test]
    fn few_false_positives() {
        for (bits, limit) in [(5, 0.12), (10, 0.0125), (15, 0.0025), (20, 0.0006)] {
            let hash = |i: u32| key_hash(format!("key{i}").as_bytes());
            let hashes: Vec<u64> = (0..100_000).map(hash).collect();
            let filter = Filter::decode(&Filter::build(&kept(&hashes), bits).encode()).unwrap();
            assert!(hashes.iter().all(|&h| filter.may_contain(h)));
            let wrong = (100_000..300_000)
                .filter(|&i| filter.may_contain(hash(i)))
                .count();
            let rate = wrong as f64 / 200_000.0;
            println!("{bits} bits per key: {rate:.5} false positives");
            assert!(rate < limit, "{bits} bits per key: {rate}");
        }
    }

    proptest! {
        #[test]
        fn never_denies_a_key(hashes: Vec<u64>, bits in 1_u32..40) {
            let filter = Filter::decode(&Filter::build(&kept(&hashes), bits).encode()).unwrap();
            for &hash in &hashes {
                prop_assert!(filter.may_contain(hash));
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            if let Ok(filter) = Filter::decode(&bytes) {
                let _ = filter.may_contain(1 << 63);
            }
        }
    }
}
