//! The footer: the last 80 bytes of an SSTable, which say where everything but the data is.
//!
//! ```text
//!  0  index             offset u64, stored length u64
//! 16  filter            offset u64, stored length u64     (both 0: no filter)
//! 32  range tombstones  offset u64, stored length u64     (both 0: none)
//! 48  properties        offset u64, stored length u64
//! 64  format version    u32
//! 68  checksum          u32, CRC-32C of bytes 0 to 68 and the magic, masked
//! 72  magic             "FIRNSST" 0
//! ```
//!
//! Data blocks fill the file from its start to the filter (or whatever comes first of the others),
//! and the other blocks follow each other without a gap up to the footer, so that every byte of the
//! file is under a checksum.

use firn_io::checksum::{crc32c, crc32c_append, mask};
use firn_io::codec::{Reader, put_u32, put_u64};

use crate::names::{FORMAT_VERSION, SSTABLE_MAGIC};
use crate::sstable::stored::ENVELOPE_BYTES;

/// Its length.
pub(crate) const FOOTER_BYTES: usize = 80;
const CHECKED_BYTES: usize = 68;

/// Where a block is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The decoded footer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) filter: Option<Handle>,
    pub(crate) range_tombstones: Option<Handle>,
    pub(crate) index: Handle,
    pub(crate) properties: Handle,
}

/// Why a footer cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadFooter {
    Damaged(&'static str),
    Version(u32),
}

impl Footer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        let handles = [
            self.index,
            self.filter.unwrap_or_default(),
            self.range_tombstones.unwrap_or_default(),
            self.properties,
        ];
        for handle in handles {
            put_u64(&mut out, handle.offset);
            put_u64(&mut out, handle.len);
        }
        put_u32(&mut out, FORMAT_VERSION);
        let crc = crc32c_append(crc32c(&out), &SSTABLE_MAGIC);
        put_u32(&mut out, mask(crc));
        out.extend_from_slice(&SSTABLE_MAGIC);
        out
    }

    /// Decodes the last bytes of a file of `file_bytes`.
    pub(crate) fn decode(bytes: &[u8], file_bytes: u64) -> Result<Self, BadFooter> {
        const CUT: BadFooter = BadFooter::Damaged("the footer is cut off");
        if bytes.len() != FOOTER_BYTES || file_bytes < FOOTER_BYTES as u64 {
            return Err(CUT);
        }
        let mut reader = Reader::new(bytes);
        let mut handle = || -> Result<Handle, BadFooter> {
            Ok(Handle {
                offset: reader.u64().ok_or(CUT)?,
                len: reader.u64().ok_or(CUT)?,
            })
        };
        let (index, filter, range_tombstones, properties) =
            (handle()?, handle()?, handle()?, handle()?);
        let version = reader.u32().ok_or(CUT)?;
        let crc = reader.u32().ok_or(CUT)?;
        if reader.rest() != SSTABLE_MAGIC {
            return Err(BadFooter::Damaged(
                "the file does not end as an SSTable does",
            ));
        }
        if crc
            != mask(crc32c_append(
                crc32c(&bytes[..CHECKED_BYTES]),
                &SSTABLE_MAGIC,
            ))
        {
            return Err(BadFooter::Damaged(
                "the checksum of the footer does not match",
            ));
        }
        // Checked after the checksum: a flipped bit is damage, not a newer version.
        if version == 0 || version > FORMAT_VERSION {
            return Err(BadFooter::Version(version));
        }
        let some = |h: Handle| (h != Handle::default()).then_some(h);
        let footer = Self {
            index,
            filter: some(filter),
            range_tombstones: some(range_tombstones),
            properties,
        };
        // In the order in which they are written.
        let mut end = footer.data_bytes();
        for handle in footer.blocks() {
            if handle.offset != end || handle.len <= ENVELOPE_BYTES as u64 {
                return Err(BadFooter::Damaged(
                    "the blocks of the footer do not follow each other",
                ));
            }
            end = end.checked_add(handle.len).ok_or(BadFooter::Damaged(
                "a block of the footer is outside of the file",
            ))?;
        }
        if end != file_bytes - FOOTER_BYTES as u64 {
            return Err(BadFooter::Damaged(
                "the footer does not describe the whole file",
            ));
        }
        Ok(footer)
    }

    fn blocks(&self) -> impl Iterator<Item = Handle> {
        let optional = [self.filter, self.range_tombstones].into_iter().flatten();
        optional.chain([self.index, self.properties])
    }

    /// Bytes of data blocks.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.blocks().next().map_or(0, |h| h.offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Footer {
        Footer {
            filter: Some(Handle {
                offset: 100,
                len: 20,
            }),
            range_tombstones: None,
            index: Handle {
                offset: 120,
                len: 30,
            },
            properties: Handle {
                offset: 150,
                len: 50,
            },
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample().encode();
        let mut expected = Vec::new();
        for n in [120_u64, 30, 100, 20, 0, 0, 150, 50] {
            expected.extend(n.to_le_bytes());
        }
        expected.extend(1_u32.to_le_bytes());
        let crc = mask(crc32c_append(crc32c(&expected), b"FIRNSST\0"));
        expected.extend(crc.to_le_bytes());
        expected.extend(b"FIRNSST\0");
        assert_eq!(bytes, expected);
        assert_eq!(Footer::decode(&bytes, 280), Ok(sample()));
        assert_eq!(sample().data_bytes(), 100);
        assert!(Footer::decode(&bytes, 281).is_err());
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = sample().encode();
        bytes[64] = 2;
        assert!(matches!(
            Footer::decode(&bytes, 280),
            Err(BadFooter::Damaged(_))
        ));
        let crc = mask(crc32c_append(crc32c(&bytes[..68]), &SSTABLE_MAGIC));
        bytes[68..72].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Footer::decode(&bytes, 280), Err(BadFooter::Version(2)));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(
                Footer::decode(&bytes, 280),
                Err(BadFooter::Damaged(_))
            ));
        }
    }

    proptest! {
        #[test]
        fn any_numbers_are_refused_or_consistent(mut bytes in proptest::collection::vec(any::<u8>(), 68), len: u64) {
            bytes[64..68].copy_from_slice(&1_u32.to_le_bytes());
            let crc = mask(crc32c_append(crc32c(&bytes), &SSTABLE_MAGIC));
            bytes.extend(crc.to_le_bytes());
            bytes.extend(SSTABLE_MAGIC);
            let _ = Footer::decode(&bytes, len);
        }
    }
}
