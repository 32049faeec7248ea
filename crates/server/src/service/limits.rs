//! The limits of requests, checked once for every door.

use firn_api::code::Code;
use firn_api::limits::Limits;

use crate::service::error::{Error, Result};

/// Refuses a key that is too long.
pub(crate) fn key(limits: &Limits, key: &[u8]) -> Result<()> {
    within(
        Code::KeyTooLarge,
        "limits.key_bytes",
        limits.key_bytes,
        key.len() as u64,
    )
}

/// Refuses a value that is too large.
pub(crate) fn value(limits: &Limits, len: u64) -> Result<()> {
    within(
        Code::ValueTooLarge,
        "limits.value_bytes",
        limits.value_bytes,
        len,
    )
}

/// Refuses what exceeds the limit called `name`.
pub(crate) fn within(code: Code, name: &str, limit: u64, actual: u64) -> Result<()> {
    if actual <= limit {
        Ok(())
    } else {
        Err(Error::limit(code, name, limit, actual))
    }
}
