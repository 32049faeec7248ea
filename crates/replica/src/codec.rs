//! The small pieces that all encodings of this crate are made of.
//!
//! Integers are little-endian or varints as [`firn_io::codec`] has them; bytes are a varint length
//! and the bytes. An optional thing is a byte 0, or 1 and the thing. Whoever decodes takes any
//! bytes: nothing is allocated for a count before the bytes that it counts are seen, and what is
//! left over is an error. Every stored or sent thing begins with a version; an unknown one is
//! refused, never guessed.

use std::fmt;

use firn_io::codec::{Reader, put_u8};

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// What they should be.
    pub what: &'static str,
    /// What is wrong with them.
    pub detail: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed {}: {}", self.what, self.detail)
    }
}

impl std::error::Error for DecodeError {}

/// Reads all of `bytes` with `get`.
pub(crate) fn decode_all<'a, T>(
    what: &'static str,
    bytes: &'a [u8],
    get: impl FnOnce(&mut Reader<'a>) -> Option<T>,
) -> Result<T, DecodeError> {
    let error = |detail| DecodeError { what, detail };
    let mut reader = Reader::new(bytes);
    let value = get(&mut reader).ok_or(error("a field is cut short or impossible"))?;
    if !reader.is_empty() {
        return Err(error("bytes are left over"));
    }
    Ok(value)
}

pub(crate) fn put_option<T>(
    out: &mut Vec<u8>,
    value: Option<&T>,
    put: impl FnOnce(&mut Vec<u8>, &T),
) {
    put_u8(out, u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

/// The outer `None` is malformed, the inner one absent.
pub(crate) fn get_option<'a, T>(
    r: &mut Reader<'a>,
    get: impl FnOnce(&mut Reader<'a>) -> Option<T>,
) -> Option<Option<T>> {
    match r.u8()? {
        0 => Some(None),
        1 => get(r).map(Some),
        _ => None,
    }
}

pub(crate) fn put_bool(out: &mut Vec<u8>, value: bool) {
    put_u8(out, u8::from(value));
}

pub(crate) fn get_bool(r: &mut Reader<'_>) -> Option<bool> {
    match r.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}
