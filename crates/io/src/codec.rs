//! Bytes from and to numbers: little-endian integers, varints, length-prefixed bytes.
//!
//! Writers are `put_*` functions that append to a `Vec<u8>`. Readers are the methods of [`Reader`],
//! a cursor over a byte slice; each answers `None` when the bytes end early or are malformed, and
//! then leaves the cursor where it was. Nothing here panics on any input: whoever decodes turns
//! `None` into an error that names the file and `base + reader.position()`.
//!
//! ```text
//! u16, u32, u64   2, 4, 8 bytes, least significant first
//! varint          LEB128: 7 bits per byte, least significant first, the top bit set on all but the
//!                 last byte; at most 5 bytes for a u32, 10 for a u64. The shortest form only: a
//!                 value has one encoding, a padded one is malformed.
//! bytes           varint length, then that many bytes
//! ```

/// The longest varint of a `u32`, in bytes.
pub const MAX_VARINT_U32_LEN: usize = 5;
/// The longest varint of a `u64`, in bytes.
pub const MAX_VARINT_U64_LEN: usize = 10;

/// Appends one byte.
#[inline]
pub fn put_u8(out: &mut Vec<u8>, value: u8) {
    out.push(value);
}

/// Appends two bytes.
#[inline]
pub fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends four bytes.
#[inline]
pub fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends eight bytes.
#[inline]
pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a varint of one to five bytes.
#[inline]
pub fn put_varint_u32(out: &mut Vec<u8>, value: u32) {
    put_varint_u64(out, u64::from(value));
}

/// Appends a varint of one to ten bytes.
#[inline]
pub fn put_varint_u64(out: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        out.push(value as u8);
    } else {
        put_long_varint(out, value);
    }
}

fn put_long_varint(out: &mut Vec<u8>, mut value: u64) {
    let mut buf = [0; MAX_VARINT_U64_LEN];
    let mut len = 0;
    while value >= 0x80 {
        buf[len] = value as u8 | 0x80;
        value >>= 7;
        len += 1;
    }
    buf[len] = value as u8;
    out.extend_from_slice(&buf[..=len]);
}

/// Appends a varint length and `bytes`.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// How many bytes the varint of `value` takes.
#[inline]
pub fn varint_len(value: u64) -> usize {
    // 7 bits per byte; 0 takes one.
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// The `u16` at `offset` of `bytes`, or `None` if they end before.
#[inline]
pub fn get_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The `u32` at `offset` of `bytes`, or `None` if they end before.
#[inline]
pub fn get_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The `u64` at `offset` of `bytes`, or `None` if they end before.
#[inline]
pub fn get_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The varint at the start of `bytes` and its length in bytes; `None` if the bytes end early, the
/// value does not fit, or it is padded.
#[inline]
pub fn get_varint_u64(bytes: &[u8]) -> Option<(u64, usize)> {
    match bytes.first() {
        Some(&byte) if byte < 0x80 => Some((u64::from(byte), 1)),
        _ => get_long_varint(bytes),
    }
}

/// As [`get_varint_u64`], also `None` if the value does not fit into 32 bits.
#[inline]
pub fn get_varint_u32(bytes: &[u8]) -> Option<(u32, usize)> {
    let (value, len) = get_varint_u64(bytes)?;
    Some((u32::try_from(value).ok()?, len))
}

fn get_long_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0;
    for (i, &byte) in bytes.iter().take(MAX_VARINT_U64_LEN).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            // The tenth byte holds the 64th bit alone; a last byte of zero is padding.
            let fits = i + 1 < MAX_VARINT_U64_LEN || byte == 1;
            return (fits && (byte != 0 || i == 0)).then_some((value, i + 1));
        }
    }
    None
}

/// A cursor over bytes. See the module's page for the formats.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// A cursor at the start of `bytes`.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            position: 0,
        }
    }

    /// How many bytes were read.
    #[inline]
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many bytes are left.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether no byte is left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The bytes that are left; the cursor stays.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(len)?;
        self.rest = tail;
        self.position += len;
        Some(head)
    }

    /// The next `N` bytes as an array.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.rest.split_first_chunk()?;
        self.rest = tail;
        self.position += N;
        Some(*head)
    }

    /// The next byte.
    #[inline]
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The next two bytes.
    #[inline]
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next four bytes.
    #[inline]
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next eight bytes.
    #[inline]
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next varint, if it fits into 32 bits.
    #[inline]
    pub fn varint_u32(&mut self) -> Option<u32> {
        let (value, len) = get_varint_u32(self.rest)?;
        self.take(len)?;
        Some(value)
    }

    /// The next varint.
    #[inline]
    pub fn varint_u64(&mut self) -> Option<u64> {
        let (value, len) = get_varint_u64(self.rest)?;
        self.take(len)?;
        Some(value)
    }

    /// The next length-prefixed bytes.
    #[inline]
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let before = *self;
        let len = self.varint_u64()?;
        let bytes = usize::try_from(len).ok().and_then(|len| self.take(len));
        if bytes.is_none() {
            *self = before;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let mut out = Vec::new();
        put_u8(&mut out, 1);
        put_u16(&mut out, 0x0302);
        put_u32(&mut out, 0x0706_0504);
        put_u64(&mut out, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(out, (1..=15).collect::<Vec<u8>>());

        out.clear();
        put_varint_u32(&mut out, 0);
        put_varint_u32(&mut out, 127);
        put_varint_u32(&mut out, 128);
        put_varint_u64(&mut out, 300);
        put_bytes(&mut out, b"ab");
        assert_eq!(out, [0, 0x7f, 0x80, 1, 0xac, 2, 2, b'a', b'b']);
    }

    #[test]
    fn varint_limits() {
        for value in [
            0,
            1,
            127,
            128,
            16383,
            16384,
            u64::from(u32::MAX),
            1 << 63,
            u64::MAX,
        ] {
            let mut out = Vec::new();
            put_varint_u64(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            assert_eq!(get_varint_u64(&out), Some((value, out.len())));
        }
        let mut big = Vec::new();
        put_varint_u64(&mut big, u64::from(u32::MAX) + 1);
        assert_eq!(get_varint_u32(&big), None);
    }

    #[test]
    fn malformed_varints_are_refused() {
        let too_long = [0x80; 11];
        let overflow = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        let padded: &[u8] = &[0x80, 0];
        for bytes in [&[][..], &[0x80], &too_long, &overflow, padded] {
            assert_eq!(get_varint_u64(bytes), None, "{bytes:?}");
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.varint_u64(), None);
            assert_eq!(reader.position(), 0);
        }
    }

    #[test]
    fn a_failed_read_does_not_move_the_cursor() {
        let mut reader = Reader::new(&[9, 1, 2]);
        assert_eq!(reader.bytes(), None);
        assert_eq!(reader.u32(), None);
        assert_eq!(reader.take(4), None);
        assert_eq!(reader.position(), 0);
        assert_eq!(reader.u8(), Some(9));
        assert_eq!(reader.u16(), Some(0x0201));
        assert!(reader.is_empty());
        // A length near the top of the address space must not overflow.
        let mut out = Vec::new();
        put_varint_u64(&mut out, u64::MAX);
        assert_eq!(Reader::new(&out).bytes(), None);
        assert_eq!(get_u32(&out, usize::MAX), None);
    }

    proptest! {
        #[test]
        fn what_was_put_is_read(a: u8, b: u16, c: u32, d: u64, e: u32, f: u64, g: Vec<u8>) {
            let f = f >> (a % 64);
            let mut out = Vec::new();
            put_u8(&mut out, a);
            put_u16(&mut out, b);
            put_u32(&mut out, c);
            put_u64(&mut out, d);
            put_varint_u32(&mut out, e);
            put_varint_u64(&mut out, f);
            put_bytes(&mut out, &g);
            let mut r = Reader::new(&out);
            prop_assert_eq!((r.u8(), r.u16(), r.u32(), r.u64()), (Some(a), Some(b), Some(c), Some(d)));
            prop_assert_eq!((r.varint_u32(), r.varint_u64()), (Some(e), Some(f)));
            prop_assert_eq!(r.bytes(), Some(&g[..]));
            prop_assert!(r.is_empty());
            prop_assert_eq!(r.position(), out.len());
        }

        #[test]
        fn a_varint_that_decodes_is_the_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            if let Some((value, len)) = get_varint_u64(&bytes) {
                let mut out = Vec::new();
                put_varint_u64(&mut out, value);
                prop_assert_eq!(&out[..], &bytes[..len]);
            }
            let mut reader = Reader::new(&bytes);
            let _ = (reader.bytes(), reader.varint_u32(), reader.u64(), reader.u16());
        }
    }
}
