//! Checksums: CRC-32C for everything on disk and on the wire, XXH3 where 64 bits are wanted.
//!
//! CRC-32C (Castagnoli) finds every burst of up to 32 flipped bits and has a processor instruction;
//! it guards records, blocks and edits. XXH3 is a fast 64-bit hash for places that need few
//! collisions rather than burst detection (filters, fingerprints). Neither resists an attacker.
//!
//! A checksum that is stored next to other checksummed bytes is stored [`mask`]ed: the CRC of data
//! that contains its own CRC is a constant, which would hide damage (the observation is LevelDB's).

/// The CRC-32C of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// Continues a CRC-32C: `crc32c_append(crc32c(a), b)` is the CRC-32C of `a` followed by `b`.
#[inline]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, bytes)
}

/// The CRC-32C of the four little-endian bytes of `seed` followed by `bytes`.
///
/// A seed that names the place (a file number, a log's incarnation) makes bytes that are valid
/// elsewhere invalid here: left-overs in a recycled file, blocks written to the wrong file.
#[inline]
pub fn crc32c_seeded(seed: u32, bytes: &[u8]) -> u32 {
    crc32c_append(crc32c(&seed.to_le_bytes()), bytes)
}

const MASK_DELTA: u32 = 0xa282_ead8;

/// The stored form of a checksum over bytes that may contain checksums themselves.
#[inline]
pub fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(MASK_DELTA)
}

/// The inverse of [`mask`].
#[inline]
pub fn unmask(masked: u32) -> u32 {
    masked.wrapping_sub(MASK_DELTA).rotate_left(15)
}

/// The 64-bit XXH3 hash of `bytes`.
#[inline]
pub fn xxh3_64(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// The 64-bit XXH3 hash of `bytes` with a seed.
#[inline]
pub fn xxh3_64_seeded(seed: u64, bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // The reference implementation's value for no input.
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn append_continues_and_a_seed_is_a_prefix() {
        let bytes: Vec<u8> = (0..=255).collect();
        for cut in [0, 1, 7, 8, 100, 256] {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(crc32c_append(crc32c(a), b), crc32c(&bytes));
        }
        assert_eq!(
            crc32c_seeded(0x0403_0201, &[5, 6]),
            crc32c(&[1, 2, 3, 4, 5, 6])
        );
        assert_ne!(crc32c_seeded(1, b"x"), crc32c_seeded(2, b"x"));
    }

    #[test]
    fn mask_is_invertible_and_changes_the_value() {
        for crc in [0, 1, 0x8a91_36aa, u32::MAX] {
            assert_eq!(unmask(mask(crc)), crc);
            assert_ne!(mask(crc), crc);
        }
    }
}
