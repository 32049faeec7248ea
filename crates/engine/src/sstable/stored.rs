//! The envelope of every block in an SSTable: compression and checksum.
//!
//! ```text
//! payload | compression u8 | crc32c u32
//!
//! payload, if the compression byte is 0:   the block's bytes
//!          if it is 1 (LZ4) or 2 (Zstd):   uncompressed length u32 | compressed bytes
//! ```
//!
//! The checksum is taken over the offset of the block in its file (u64), the payload and the
//! compression byte, and stored masked. The offset in it makes a block that the disk delivers from
//! another place of the file as wrong as a damaged one. A block is stored uncompressed where
//! compression saves less than an eighth: the reader would pay for nothing.

use std::fmt;

use firn_io::checksum::{crc32c, crc32c_append, mask};
use firn_io::codec::get_u32;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::error::{Error, Result};
use crate::options::Compression;
use crate::sstable::lz4;

/// Bytes of the envelope after the payload.
pub(crate) const ENVELOPE_BYTES: usize = 5;
/// LZ4 cannot expand more than this (a length byte of 255 adds 255 bytes).
const MAX_LZ4_RATIO: u64 = 255;

/// Compresses, keeping its tables and buffers from call to call.
pub(crate) struct Compressor {
    compression: Compression,
    table: CompressTable,
    out: Vec<u8>,
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compressor({:?})", self.compression)
    }
}

impl Compressor {
    /// An error if this build cannot compress so.
    pub(crate) fn new(compression: Compression) -> Result<Self> {
        check_supported(compression)?;
        Ok(Self {
            compression,
            table: CompressTable::default(),
            out: Vec::new(),
            #[cfg(feature = "zstd")]
            zstd: match compression {
                Compression::Zstd => Some(
                    zstd::bulk::Compressor::new(0)
                        .map_err(|e| Error::InvalidArgument(format!("zstd: {e}")))?,
                ),
                _ => None,
            },
        })
    }

    /// The compressed form of `bytes`; `None` if it is not worth it.
    pub(crate) fn compress(&mut self, bytes: &[u8]) -> Option<(Compression, &[u8])> {
        let most = bytes.len() - bytes.len() / 8;
        let len = match self.compression {
            Compression::None => return None,
            Compression::Lz4 => {
                let room = get_maximum_output_size(bytes.len());
                if self.out.len() < room {
                    self.out.resize(room, 0);
                }
                compress_into_with_table(bytes, &mut self.out, &mut self.table).ok()?
            }
            #[cfg(feature = "zstd")]
            Compression::Zstd => {
                let room = zstd::zstd_safe::compress_bound(bytes.len());
                if self.out.len() < room {
                    self.out.resize(room, 0);
                }
                self.zstd
                    .as_mut()?
                    .compress_to_buffer(bytes, &mut self.out[..])
                    .ok()?
            }
            #[cfg(not(feature = "zstd"))]
            Compression::Zstd => return None,
        };
        (len + 4 < most).then_some((self.compression, &self.out[..len]))
    }

    /// Appends the stored form of `bytes` to `out`, for a place at `offset` of the file; returns
    /// how long it is.
    pub(crate) fn store(&mut self, bytes: &[u8], offset: u64, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let compression = match self.compress(bytes) {
            Some((compression, compressed)) => {
                // A block is shorter than 4 GiB: see `block::MAX_BLOCK_BYTES`.
                out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                out.extend_from_slice(compressed);
                compression
            }
            None => {
                out.extend_from_slice(bytes);
                Compression::None
            }
        };
        seal(out, start, compression, offset)
    }
}

/// Whether this build can read and write it.
pub(crate) fn check_supported(compression: Compression) -> Result<()> {
    if compression == Compression::Zstd && !cfg!(feature = "zstd") {
        let detail = "compression with zstd, which this build does not contain";
        return Err(Error::UnsupportedFormat(detail.into()));
    }
    Ok(())
}

/// What follows `bytes`, which are not compressed and stored at `offset`.
pub(crate) fn seal_raw(bytes: &[u8], offset: u64) -> [u8; ENVELOPE_BYTES] {
    let compression = Compression::None as u8;
    let crc = mask(crc32c_append(
        crc32c_append(crc32c(&offset.to_le_bytes()), bytes),
        &[compression],
    ));
    let [a, b, c, d] = crc.to_le_bytes();
    [compression, a, b, c, d]
}

fn seal(out: &mut Vec<u8>, start: usize, compression: Compression, offset: u64) -> usize {
    out.push(compression as u8);
    let crc = checksum(&out[start..], offset);
    out.extend_from_slice(&crc.to_le_bytes());
    out.len() - start
}

/// The stored checksum of bytes at a place.
#[inline]
pub(crate) fn checksum(bytes: &[u8], offset: u64) -> u32 {
    mask(crc32c_append(crc32c(&offset.to_le_bytes()), bytes))
}

/// Why stored bytes cannot be used.
#[derive(Debug)]
pub(crate) enum Bad {
    Damaged(&'static str),
    #[cfg_attr(
        feature = "zstd",
        allow(dead_code, reason = "such a build supports all")
    )]
    Unsupported(&'static str),
}

/// Checks a stored block that was read from `offset`; returns its payload and compression byte.
pub(crate) fn open(stored: &[u8], offset: u64) -> std::result::Result<(&[u8], u8), Bad> {
    let (checked, crc) = stored
        .split_last_chunk::<4>()
        .ok_or(Bad::Damaged("the block is too short"))?;
    if u32::from_le_bytes(*crc) != checksum(checked, offset) {
        return Err(Bad::Damaged("the checksum does not match"));
    }
    let (&compression, payload) = checked
        .split_last()
        .ok_or(Bad::Damaged("the block is too short"))?;
    Ok((payload, compression))
}

/// The length that a payload has uncompressed, if it is at most `max_bytes`.
pub(crate) fn unpacked_len(
    payload: &[u8],
    compression: u8,
    max_bytes: usize,
) -> std::result::Result<usize, Bad> {
    let len = if compression == Compression::None as u8 {
        payload.len()
    } else {
        let len = get_u32(payload, 0).ok_or(Bad::Damaged("the compressed block is too short"))?;
        check_len(payload.len() - 4, compression, len as usize)?;
        len as usize
    };
    if len > max_bytes {
        return Err(Bad::Damaged(TOO_LARGE));
    }
    Ok(len)
}

/// Decompresses a payload to `out`, which has exactly its [`unpacked_len`].
#[inline]
pub(crate) fn unpack_into(
    payload: &[u8],
    compression: u8,
    out: &mut [u8],
) -> std::result::Result<(), Bad> {
    if compression == Compression::None as u8 {
        out.copy_from_slice(payload);
        return Ok(());
    }
    let compressed = payload.get(4..).ok_or(Bad::Damaged(UNREADABLE))?;
    decompress_into(compressed, compression, out)
}

/// Decompresses a payload to `out`, replacing what is there, if the result has at most `max_bytes`.
pub(crate) fn unpack(
    payload: &[u8],
    compression: u8,
    max_bytes: usize,
    out: &mut Vec<u8>,
) -> std::result::Result<(), Bad> {
    out.clear();
    out.resize(unpacked_len(payload, compression, max_bytes)?, 0);
    unpack_into(payload, compression, out)
}

const UNREADABLE: &str = "the compressed block cannot be decompressed";
const TOO_LARGE: &str = "the block is larger than any block may be";

/// Refuses lengths that no compressed bytes of this length can have, before memory is taken for them.
fn check_len(compressed: usize, compression: u8, len: usize) -> std::result::Result<(), Bad> {
    if compression == Compression::Lz4 as u8 {
        if len as u64 > (compressed as u64).saturating_mul(MAX_LZ4_RATIO) + 64 {
            return Err(Bad::Damaged(UNREADABLE));
        }
    } else if compression != Compression::Zstd as u8 {
        return Err(Bad::Damaged("the compression is unknown"));
    }
    Ok(())
}

/// Decompresses bytes whose uncompressed length is known to `out`, replacing what is there.
pub(crate) fn decompress(
    compressed: &[u8],
    compression: u8,
    len: usize,
    max_bytes: usize,
    out: &mut Vec<u8>,
) -> std::result::Result<(), Bad> {
    if len > max_bytes {
        return Err(Bad::Damaged(TOO_LARGE));
    }
    check_len(compressed.len(), compression, len)?;
    out.clear();
    out.resize(len, 0);
    decompress_into(compressed, compression, out)
}

#[inline]
fn decompress_into(
    compressed: &[u8],
    compression: u8,
    out: &mut [u8],
) -> std::result::Result<(), Bad> {
    let written = if compression == Compression::Lz4 as u8 {
        lz4::decompress(compressed, out)
    } else if compression == Compression::Zstd as u8 {
        #[cfg(feature = "zstd")]
        {
            zstd::bulk::decompress_to_buffer(compressed, out).ok()
        }
        #[cfg(not(feature = "zstd"))]
        return Err(Bad::Unsupported("a block is compressed with zstd"));
    } else {
        None
    };
    if written == Some(out.len()) {
        Ok(())
    } else {
        Err(Bad::Damaged(UNREADABLE))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 20;

    fn read(stored: &[u8], offset: u64) -> std::result::Result<Vec<u8>, Bad> {
        let (payload, compression) = open(stored, offset)?;
        let mut out = Vec::new();
        unpack(payload, compression, MAX, &mut out)?;
        Ok(out)
    }

    #[test]
    fn golden_bytes() {
        let mut out = b"abc".to_vec();
        out.extend_from_slice(&seal_raw(b"abc", 0));
        let crc = mask(crc32c(b"\0\0\0\0\0\0\0\0abc\0"));
        assert_eq!(out, [&b"abc\0"[..], &crc.to_le_bytes()].concat());
        assert_eq!(out, [b'a', b'b', b'c', 0, out[4], out[5], out[6], out[7]]);
    }

    #[test]
    fn compresses_only_what_is_worth_it() {
        let zeros = vec![0; 4096];
        let noise: Vec<u8> = (0..4096_u64)
            .map(|i| firn_io::checksum::xxh3_64(&i.to_le_bytes()) as u8)
            .collect();
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let Ok(mut compressor) = Compressor::new(compression) else {
                continue;
            };
            for bytes in [&zeros, &noise, &Vec::new()] {
                let mut out = b"before".to_vec();
                let len = compressor.store(bytes, 77, &mut out);
                let stored = &out[6..];
                assert_eq!(stored.len(), len);
                assert_eq!(&read(stored, 77).unwrap(), bytes);
                let worth = bytes == &zeros && compression != Compression::None;
                assert_eq!(stored[len - 5], if worth { compression as u8 } else { 0 });
                assert!(worth == (len < bytes.len()));
                // Misdirected.
                assert!(matches!(read(stored, 78), Err(Bad::Damaged(_))));
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>, compression in 0_u8..4, len in 0_usize..3000) {
            let mut out = Vec::new();
            let _ = open(&bytes, 5);
            let _ = unpack(&bytes, compression, MAX, &mut out);
            let _ = decompress(&bytes, compression, len, MAX, &mut out);
            prop_assert!(out.len() <= MAX);
        }
    }
}
