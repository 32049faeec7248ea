//! The form of `DUMP` and `RESTORE`: a string of an RDB file with a foot.
//!
//! ```text
//! payload := type u8 (0: string) | string | version u16 | crc64 u64        (little-endian)
//! string  := length bytes | 0xc0 i8 | 0xc1 i16 | 0xc2 i32 | 0xc3 length length lzf-bytes
//! length  := 00xxxxxx | 01xxxxxx x | 0x80 u32 (big-endian) | 0x81 u64 (big-endian)
//! ```
//!
//! What we write is the plain form only; what Redis writes is read in every form. The checksum is
//! CRC-64 of Jones over everything before it.

/// The version of RDB that we write: Redis 5 and later read it.
const VERSION: u16 = 9;

const BAD_FOOT: &str = "ERR DUMP payload version or checksum are wrong";
const BAD_DATA: &str = "ERR Bad data format";

/// The payload of a value.
pub fn dump(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 16);
    out.push(0);
    let len = value.len() as u64;
    match len {
        0..64 => out.push(len as u8),
        64..16_384 => out.extend([0x40 | (len >> 8) as u8, len as u8]),
        _ => {
            out.push(0x80);
            out.extend((0..4).rev().map(|i| (len >> (8 * i)) as u8));
        }
    }
    out.extend_from_slice(value);
    out.extend_from_slice(&VERSION.to_le_bytes());
    let crc = crc64(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// The value in a payload, of at most `most` bytes.
pub fn restore(payload: &[u8], most: usize) -> Result<Vec<u8>, &'static str> {
    let Some((summed, crc)) = payload.split_last_chunk::<8>() else {
        return Err(BAD_FOOT);
    };
    let Some((body, _version)) = summed.split_last_chunk::<2>() else {
        return Err(BAD_FOOT);
    };
    // A sum of zero was not computed.
    let crc = u64::from_le_bytes(*crc);
    if crc != 0 && crc != crc64(summed) {
        return Err(BAD_FOOT);
    }
    let mut reader = Reader(body);
    let value = reader.value(most).ok_or(BAD_DATA)?;
    if reader.0.is_empty() {
        Ok(value)
    } else {
        Err(BAD_DATA)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn big_endian(&mut self, len: usize) -> Option<u64> {
        let bytes = self.take(len)?;
        Some(
            bytes
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// A length whose first byte is known.
    fn length(&mut self, first: u8) -> Option<usize> {
        let len = match first >> 6 {
            0 => u64::from(first & 0x3f),
            1 => u64::from(first & 0x3f) << 8 | u64::from(self.byte()?),
            _ if first == 0x80 => self.big_endian(4)?,
            _ if first == 0x81 => self.big_endian(8)?,
            _ => return None,
        };
        usize::try_from(len).ok()
    }

    fn value(&mut self, most: usize) -> Option<Vec<u8>> {
        if self.byte()? != 0 {
            return None;
        }
        let first = self.byte()?;
        let number = match first {
            0xc0 => i32::from(i8::from_le_bytes(self.array()?)),
            0xc1 => i32::from(i16::from_le_bytes(self.array()?)),
            0xc2 => i32::from_le_bytes(self.array()?),
            0xc3 => {
                let first = self.byte()?;
                let packed = self.length(first)?;
                let first = self.byte()?;
                let len = self.length(first).filter(|&len| len <= most)?;
                return unpack(self.take(packed)?, len);
            }
            _ => {
                let len = self.length(first).filter(|&len| len <= most)?;
                return self.take(len).map(<[u8]>::to_vec);
            }
        };
        Some(number.to_string().into_bytes())
    }
}

/// Undoes LZF: runs of bytes, and references to what came before.
fn unpack(mut packed: &[u8], len: usize) -> Option<Vec<u8>> {
    // No more than the packed bytes can make: a reference of three bytes makes 264.
    let mut out: Vec<u8> = Vec::with_capacity(len.min(packed.len().saturating_mul(100)));
    while let Some((&control, rest)) = packed.split_first() {
        packed = rest;
        let control = usize::from(control);
        if control < 32 {
            let (run, rest) = packed.split_at_checked(control + 1)?;
            out.extend_from_slice(run);
            packed = rest;
        } else {
            let mut count = control >> 5;
            if count == 7 {
                let (&more, rest) = packed.split_first()?;
                count += usize::from(more);
                packed = rest;
            }
            let (&low, rest) = packed.split_first()?;
            packed = rest;
            let back = ((control & 0x1f) << 8 | usize::from(low)) + 1;
            let from = out.len().checked_sub(back)?;
            for i in from..from + count + 2 {
                out.push(*out.get(i)?);
            }
        }
        if out.len() > len {
            return None;
        }
    }
    (out.len() == len).then_some(out)
}

fn crc64(bytes: &[u8]) -> u64 {
    const fn table() -> [u64; 256] {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u64;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 {
                    crc >> 1 ^ 0x95ac_9329_ac4b_c9b5
                } else {
                    crc >> 1
                };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    }
    static TABLE: [u64; 256] = table();
    bytes.iter().fold(0, |crc, byte| {
        TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_that_of_redis() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn what_redis_7_dumps_is_read() {
        let foot = |mut body: Vec<u8>| {
            body.extend_from_slice(&10_u16.to_le_bytes());
            let crc = crc64(&body);
            body.extend_from_slice(&crc.to_le_bytes());
            body
        };
        for (body, value) in [
            (&b"\0\x05hello"[..], "hello"),
            (b"\0\xc0\x7f", "127"),
            (b"\0\xc1\x00\x80", "-32768"),
            (b"\0\xc2\x00\x00\x01\x00", "65536"),
            (b"\0\xc3\x04\x0b\x01aa\xe0\x00", ""),
        ] {
            let restored = restore(&foot(body.to_vec()), 1_000);
            if value.is_empty() {
                assert_eq!(restored, Err(BAD_DATA));
            } else {
                assert_eq!(restored, Ok(value.as_bytes().to_vec()));
            }
        }
        // "aa", then nine bytes from one before: eleven in all.
        let packed = foot(b"\0\xc3\x06\x0b\x01aa\xe0\x00\x00".to_vec());
        assert_eq!(restore(&packed, 1_000), Ok(vec![b'a'; 11]));
        assert_eq!(restore(&packed, 10), Err(BAD_DATA));
        assert_eq!(restore(b"\0\x01a\0\0\x01\0\0\0\0\0\0\0", 10), Err(BAD_FOOT));
        assert_eq!(restore(b"", 10), Err(BAD_FOOT));
    }

    proptest! {
        #[test]
        fn what_is_dumped_is_restored(value in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            prop_assert_eq!(restore(&dump(&value), 20_000), Ok(value));
        }

        #[test]
        fn any_bytes_are_taken(mut body in proptest::collection::vec(any::<u8>(), 0..60)) {
            body.extend_from_slice(&[0; 8]);
            let _ = restore(&body, 1_000);
        }
    }
}
