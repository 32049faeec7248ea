//! Batches: many writes, all or nothing.

use firn_api::http::{BatchBody, BatchOp, Ttl};
use firn_api::text;

use crate::client::{Condition, PutOptions};

/// Writes that happen together or not at all. Conditions look at the state before the batch.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    ops: Vec<BatchOp>,
}

impl Batch {
    /// No operations yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many operations it has.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Writes a key.
    #[must_use]
    pub fn put(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.put_with(key, value, &PutOptions::default())
    }

    /// Writes a key with a time to live or under a condition. The durability is the batch's.
    #[must_use]
    pub fn put_with(
        self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: &PutOptions,
    ) -> Self {
        let (value, value_b64) = split(value.as_ref());
        let ttl = options
            .ttl
            .map(|ttl| Ttl::Text(firn_api::duration::print(ttl)));
        let op = BatchOp {
            value,
            value_b64,
            ttl,
            expires_at_ms: options.expires_at_ms,
            ..keyed("put", key)
        };
        self.with(conditional(op, options.condition))
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(self, key: impl AsRef<[u8]>) -> Self {
        self.delete_with(key, None)
    }

    /// Deletes a key under a condition.
    #[must_use]
    pub fn delete_with(self, key: impl AsRef<[u8]>, condition: Option<Condition>) -> Self {
        self.with(conditional(keyed("delete", key), condition))
    }

    /// Deletes every key from `start` (inclusive) to `end` (exclusive).
    #[must_use]
    pub fn delete_range(self, start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        let (start, start_b64) = split(start.as_ref());
        let (end, end_b64) = split(end.as_ref());
        self.with(BatchOp {
            op: "delete_range".into(),
            start,
            start_b64,
            end,
            end_b64,
            ..BatchOp::default()
        })
    }

    /// Deletes every key with a prefix.
    #[must_use]
    pub fn delete_prefix(self, prefix: impl AsRef<[u8]>) -> Self {
        let (prefix, prefix_b64) = split(prefix.as_ref());
        self.with(BatchOp {
            op: "delete_range".into(),
            prefix,
            prefix_b64,
            ..BatchOp::default()
        })
    }

    /// Only checks.
    #[must_use]
    pub fn check(self, key: impl AsRef<[u8]>, condition: Condition) -> Self {
        self.with(conditional(keyed("check", key), Some(condition)))
    }

    /// The last operation works on another namespace than the client's.
    #[must_use]
    pub fn in_namespace(mut self, name: &str) -> Self {
        if let Some(op) = self.ops.last_mut() {
            op.ns = Some(name.into());
        }
        self
    }

    fn with(mut self, op: BatchOp) -> Self {
        self.ops.push(op);
        self
    }

    pub(crate) fn has_conditions(&self) -> bool {
        self.ops
            .iter()
            .any(|op| op.if_absent || op.if_exists || op.if_version.is_some())
    }

    pub(crate) fn into_body(self) -> BatchBody {
        BatchBody { ops: self.ops }
    }
}

fn keyed(op: &str, key: impl AsRef<[u8]>) -> BatchOp {
    let (key, key_b64) = split(key.as_ref());
    BatchOp {
        op: op.into(),
        key,
        key_b64,
        ..BatchOp::default()
    }
}

fn conditional(mut op: BatchOp, condition: Option<Condition>) -> BatchOp {
    match condition {
        None => {}
        Some(Condition::Absent) => op.if_absent = true,
        Some(Condition::Exists) => op.if_exists = true,
        Some(Condition::Version(version)) => op.if_version = Some(version),
    }
    op
}

/// Text where it is text, else base64.
fn split(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.into()), None),
        Err(_) => (None, Some(text::base64_encode(bytes))),
    }
}
