//! The `firn` dump: the keys and values of one namespace as a byte stream, checksummed, with an
//! end that proves that nothing was cut off. All integers are little-endian.
//!
//! ```text
//! dump    = magic record* end
//! magic   = "FIRNDMP1"
//! record  = key_len u32 | value_len u32 | expires_at_ms u64 (0: never) | key | value | crc u32
//! end     = 0xffffffff  | 0xffffffff    | number of records u64              | crc u32
//! ```
//!
//! `crc` is the CRC-32C of everything in the record (or end) before it. Lengths are bounded by the
//! limits of the store, so a damaged length is refused and never allocated.

use std::io::{Read, Write};

use firn_engine::options::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

use crate::exit::{Exit, Failure, Result};

const MAGIC: [u8; 8] = *b"FIRNDMP1";
const HEAD: usize = 16;

/// Writes a dump.
pub(crate) struct Writer<W> {
    out: W,
    records: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(mut out: W) -> Result<Self> {
        out.write_all(&MAGIC)?;
        Ok(Self { out, records: 0 })
    }

    pub(crate) fn entry(&mut self, key: &[u8], value: &[u8], expires: Option<u64>) -> Result<()> {
        let lengths = (u32::try_from(key.len()), u32::try_from(value.len()));
        let (Ok(key_len), Ok(value_len)) = lengths else {
            return Err(Failure::new(
                Exit::Refused,
                "an entry is too long for a dump",
            ));
        };
        let head = head(key_len, value_len, expires.unwrap_or(0));
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&head), key), value);
        for part in [&head[..], key, value, &crc.to_le_bytes()] {
            self.out.write_all(part)?;
        }
        self.records += 1;
        Ok(())
    }

    /// Writes the end.
    pub(crate) fn finish(mut self) -> Result<()> {
        let head = head(u32::MAX, u32::MAX, self.records);
        self.out.write_all(&head)?;
        self.out.write_all(&crc32c::crc32c(&head).to_le_bytes())?;
        self.out.flush()?;
        Ok(())
    }
}

fn head(key_len: u32, value_len: u32, number: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&key_len.to_le_bytes());
    head[4..8].copy_from_slice(&value_len.to_le_bytes());
    head[8..].copy_from_slice(&number.to_le_bytes());
    head
}

/// One entry of a dump.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) expires_at_ms: Option<u64>,
}

/// Reads a dump.
pub(crate) struct Reader<R> {
    input: R,
    offset: u64,
    records: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(input: R) -> Result<Self> {
        let mut reader = Self {
            input,
            offset: 0,
            records: 0,
            ended: false,
        };
        let mut magic = [0; 8];
        reader.fill(&mut magic)?;
        if magic != MAGIC {
            return Err(Failure::usage("this is not a firn dump of version 1"));
        }
        Ok(reader)
    }

    fn damaged(&self, detail: &str) -> Failure {
        Failure::new(
            Exit::Corruption,
            format!("dump: {detail} at offset {}", self.offset),
        )
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => self.damaged("cut short"),
                _ => Failure::from(error),
            })
    }

    /// The next entry; `None` at a proper end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        self.fill(&mut head)?;
        let [a, b, c, d, e, f, g, h, number @ ..] = head;
        let key_len = u32::from_le_bytes([a, b, c, d]);
        let value_len = u32::from_le_bytes([e, f, g, h]);
        let number = u64::from_le_bytes(number);
        if (key_len, value_len) == (u32::MAX, u32::MAX) {
            self.check(crc32c::crc32c(&head))?;
            if number != self.records {
                let detail = format!("{number} records promised, {} found,", self.records);
                return Err(self.damaged(&detail));
            }
            if self.input.read(&mut [0])? != 0 {
                return Err(self.damaged("bytes after the end"));
            }
            self.ended = true;
            return Ok(None);
        }
        if key_len as usize > MAX_KEY_BYTES || value_len as usize > MAX_VALUE_BYTES {
            return Err(self.damaged("impossible length"));
        }
        let mut key = vec![0; key_len as usize];
        self.fill(&mut key)?;
        let mut value = vec![0; value_len as usize];
        self.fill(&mut value)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &key);
        self.check(crc32c::crc32c_append(crc, &value))?;
        self.offset += HEAD as u64 + u64::from(key_len) + u64::from(value_len) + 4;
        self.records += 1;
        Ok(Some(Entry {
            key,
            value,
            expires_at_ms: (number != 0).then_some(number),
        }))
    }

    fn check(&mut self, computed: u32) -> Result<()> {
        let mut stored = [0; 4];
        self.fill(&mut stored)?;
        if u32::from_le_bytes(stored) == computed {
            Ok(())
        } else {
            Err(self.damaged("wrong checksum"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        writer.entry(b"", b"empty key", None).unwrap();
        writer.entry(b"k\0\xff", b"", Some(7)).unwrap();
        writer.entry(b"z", &[9; 3000], None).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<Entry>> {
        let mut reader = Reader::new(bytes)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        writer.entry(b"k", b"va", Some(7)).unwrap();
        writer.finish().unwrap();
        let mut want = b"FIRNDMP1".to_vec();
        let record = b"\x01\0\0\0\x02\0\0\0\x07\0\0\0\0\0\0\0kva";
        let end = b"\xff\xff\xff\xff\xff\xff\xff\xff\x01\0\0\0\0\0\0\0";
        for part in [&record[..], end] {
            want.extend(part);
            want.extend(crc32c::crc32c(part).to_le_bytes());
        }
        assert_eq!(bytes, want);
    }

    #[test]
    fn comes_back() {
        let entries = read_all(&sample()).unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(
            (&entries[1].key[..], entries[1].expires_at_ms),
            (&b"k\0\xff"[..], Some(7))
        );
        assert_eq!(entries[2].value, [9; 3000]);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_found() {
        let bytes = sample();
        for len in 0..bytes.len() {
            assert!(read_all(&bytes[..len]).is_err(), "cut at {len}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(read_all(&damaged).is_err(), "flipped at {at}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(read_all(&longer).is_err());
    }
}
