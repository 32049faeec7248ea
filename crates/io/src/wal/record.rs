//! The frame around each record, and the position of a record in the log.
//!
//! ```text
//! offset (multiple of 8)
//! +0   crc      u32   masked CRC-32C, see below
//! +4   len      u32   bytes of payload
//! +8   synced   u32   an offset, see `flags`
//! +12  kind     u8    1..=239 the user's, 240 end of segment, 241 sync marker, 242 filler; never 0
//! +13  flags    u8    what `synced` says about the time when the frame was made:
//!                       0  nothing
//!                       1  all earlier segments, and this one up to `synced`, were synced
//!                       2  all segments before the previous one, and that one up to `synced`, were
//! +14  check    u16   folded CRC-32C of the header alone
//! +16  payload, then zeros up to a multiple of 8 (not checksummed, never read)
//! ```
//!
//! Both checksums run over `segment number u64 | segment salt u64 | offset u32 | len u32 |
//! synced u32 | kind u8 | flags u8 | 0 u16`, and `crc` goes on over the payload. So a frame is valid
//! only in the segment and at the offset for which it was made: what a recycled file held before
//! and writes that went astray never validate, and each frame can be judged without its neighbours.
//! The salt keeps a client from planting valid frames in its values. `check` makes it cheap
//! to look for frames in garbage: a wrong length is believed once in 65536 times.
//!
//! All integers are little-endian.

use crate::checksum;
use crate::codec;

/// Bytes of a frame before its payload.
pub(crate) const FRAME_HEADER_BYTES: usize = 16;
/// The longest payload of a record.
pub const MAX_PAYLOAD_BYTES: u64 = 1 << 30;
/// The highest record kind that users of the log may give; 0 is not one either.
pub const MAX_KIND: u8 = 239;
/// Ends a segment; the payload is the number of the next one.
pub(crate) const KIND_END: u8 = 240;
/// Carries nothing but its own statement of what was synced.
pub(crate) const KIND_MARKER: u8 = 241;
/// Fills a range that recovery cut off.
pub(crate) const KIND_FILLER: u8 = 242;

/// A position in the log: a segment number and a byte offset in it. Later positions compare
/// greater; distances mean nothing, as segments differ in size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before every position.
    pub const ZERO: Self = Self(0);
    /// After every position.
    pub const MAX: Self = Self(u64::MAX);

    /// The position `offset` bytes into `segment`.
    pub fn new(segment: u32, offset: u32) -> Self {
        Self(u64::from(segment) << 32 | u64::from(offset))
    }

    /// The number of the segment.
    pub fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The offset in the segment's file, in bytes.
    pub fn offset(self) -> u32 {
        self.0 as u32
    }
}

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.segment(), self.offset())
    }
}

/// The bytes that a payload of `len` bytes takes in the log.
pub(crate) fn frame_bytes(len: u64) -> u64 {
    (FRAME_HEADER_BYTES as u64 + len).next_multiple_of(8)
}

/// What a frame states about how far the log was synced when the frame was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Synced {
    /// Nothing.
    Unknown,
    /// All earlier segments and this one up to the offset.
    This(u32),
    /// All before the previous segment, and the previous one up to the offset.
    Previous(u32),
}

impl Synced {
    /// What a frame in `segment`, whose predecessor is `previous`, can say of `synced`.
    pub(crate) fn state(synced: Lsn, segment: u32, previous: u32) -> Self {
        if synced.segment() == segment {
            Self::This(synced.offset())
        } else if synced.segment() == previous && previous != 0 {
            Self::Previous(synced.offset())
        } else {
            Self::Unknown
        }
    }

    /// The position that is stated by a frame in `segment`; `Lsn::ZERO` if none.
    pub(crate) fn position(self, segment: u32, previous: u32) -> Lsn {
        match self {
            Self::Unknown => Lsn::ZERO,
            Self::This(offset) => Lsn::new(segment, offset),
            Self::Previous(offset) => Lsn::new(previous, offset),
        }
    }
}

/// A frame's header without its checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) len: u32,
    pub(crate) kind: u8,
    pub(crate) synced: Synced,
}

/// Makes and checks the frames of one segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameKey {
    base: u32,
}

impl FrameKey {
    /// The key of the segment `number` with this salt.
    pub(crate) fn new(number: u32, salt: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&u64::from(number).to_le_bytes());
        bytes[8..].copy_from_slice(&salt.to_le_bytes());
        Self {
            base: checksum::crc32c(&bytes),
        }
    }

    /// The CRC over everything but the payload.
    fn header_crc(self, offset: u32, len: u32, synced: u32, kind: u8, flags: u8) -> u32 {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&offset.to_le_bytes());
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes[8..12].copy_from_slice(&synced.to_le_bytes());
        bytes[12] = kind;
        bytes[13] = flags;
        checksum::crc32c_append(self.base, &bytes)
    }

    /// The header of a frame at `offset` whose payload is the concatenation of `parts`.
    pub(crate) fn encode(
        self,
        offset: u32,
        header: FrameHeader,
        parts: &[&[u8]],
    ) -> [u8; FRAME_HEADER_BYTES] {
        let (flags, synced) = match header.synced {
            Synced::Unknown => (0, 0),
            Synced::This(synced) => (1, synced),
            Synced::Previous(synced) => (2, synced),
        };
        let header_crc = self.header_crc(offset, header.len, synced, header.kind, flags);
        let mut crc = header_crc;
        for part in parts {
            crc = checksum::crc32c_append(crc, part);
        }
        let mut out = [0; FRAME_HEADER_BYTES];
        out[..4].copy_from_slice(&checksum::mask(crc).to_le_bytes());
        out[4..8].copy_from_slice(&header.len.to_le_bytes());
        out[8..12].copy_from_slice(&synced.to_le_bytes());
        out[12] = header.kind;
        out[13] = flags;
        out[14..].copy_from_slice(&fold(header_crc).to_le_bytes());
        out
    }

    /// The header in `bytes` as one of a frame at `offset`; `None` if it is not one. The payload is
    /// yet to be checked by [`FrameKey::is_valid`].
    #[inline]
    pub(crate) fn decode(self, offset: u32, bytes: &[u8]) -> Option<FrameHeader> {
        let kind = *bytes.get(12)?;
        let flags = *bytes.get(13)?;
        if kind == 0 || flags > 2 {
            return None;
        }
        let len = codec::get_u32(bytes, 4)?;
        let synced = codec::get_u32(bytes, 8)?;
        let check = codec::get_u16(bytes, 14)?;
        if fold(self.header_crc(offset, len, synced, kind, flags)) != check {
            return None;
        }
        let synced = match flags {
            0 => Synced::Unknown,
            1 => Synced::This(synced),
            _ => Synced::Previous(synced),
        };
        Some(FrameHeader { len, kind, synced })
    }

    /// Whether the frame at `offset`, whose header bytes [`FrameKey::decode`] accepted, is whole:
    /// `bytes` are the header and the payload.
    pub(crate) fn is_valid(self, offset: u32, bytes: &[u8]) -> bool {
        let (Some(crc), Some(len), Some(synced)) = (
            codec::get_u32(bytes, 0),
            codec::get_u32(bytes, 4),
            codec::get_u32(bytes, 8),
        ) else {
            return false;
        };
        let Some((header, payload)) = bytes.split_at_checked(FRAME_HEADER_BYTES) else {
            return false;
        };
        if payload.len() as u64 != u64::from(len) {
            return false;
        }
        let header_crc = self.header_crc(offset, len, synced, header[12], header[13]);
        checksum::mask(checksum::crc32c_append(header_crc, payload)) == crc
    }
}

fn fold(crc: u32) -> u16 {
    (crc ^ (crc >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(key: FrameKey, offset: u32, header: FrameHeader, payload: &[u8]) -> Vec<u8> {
        let mut out = key.encode(offset, header, &[payload]).to_vec();
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn golden_bytes() {
        let key = FrameKey::new(7, 0x0123_4567_89ab_cdef);
        let header = FrameHeader {
            len: 5,
            kind: 3,
            synced: Synced::This(4096),
        };
        let bytes = frame(key, 8192, header, b"hello");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "f47ca35a05000000001000000301245a68656c6c6f");
    }

    #[test]
    fn a_frame_is_valid_in_its_place_only() {
        let key = FrameKey::new(7, 1);
        for synced in [Synced::Unknown, Synced::This(64), Synced::Previous(88)] {
            let header = FrameHeader {
                len: 5,
                kind: 3,
                synced,
            };
            let bytes = frame(key, 64, header, b"hello");
            assert_eq!(key.decode(64, &bytes), Some(header));
            assert!(key.is_valid(64, &bytes));
            assert!(!key.is_valid(72, &bytes));
            assert!(!FrameKey::new(8, 1).is_valid(64, &bytes));
            assert!(!FrameKey::new(7, 2).is_valid(64, &bytes));
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let key = FrameKey::new(7, 1);
        let header = FrameHeader {
            len: 5,
            kind: 3,
            synced: Synced::This(64),
        };
        let bytes = frame(key, 64, header, b"hello");
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                key.decode(64, &bad).is_none() || !key.is_valid(64, &bad),
                "bit {bit}"
            );
        }
        for len in 0..bytes.len() {
            let cut = &bytes[..len];
            assert!(key.decode(64, cut).is_none() || !key.is_valid(64, cut));
        }
        assert!(key.decode(64, &[0; 64]).is_none());
    }
}
