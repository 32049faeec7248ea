//! Every limit of the service: its name, its default, and why. A refusal always carries the limit's
//! value and the actual one. Servers read them from `limits.*` of their configuration.

/// Limits on what one request may carry or ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest key, in bytes. At most (and by default) 64 KiB, which is the engine's bound.
    pub key_bytes: u64,
    /// Largest value, in bytes. Default 64 MiB; the engine's bound is 256 MiB.
    pub value_bytes: u64,
    /// Largest JSON body of a batch or a multi-get, in bytes. Default 64 MiB.
    pub body_bytes: u64,
    /// Most operations in a batch. Default 100,000.
    pub batch_ops: u64,
    /// Most keys in a multi-get. Default 10,000.
    pub mget_keys: u64,
    /// Most entries in a page. Default 10,000. A larger `limit` is an error, not a smaller page.
    pub page_entries: u64,
    /// Most bytes of keys and values in a page. Default 16 MiB. A single larger entry still fits.
    pub page_bytes: u64,
    /// Bytes of request bodies, and of replies from 64 KiB on, held in memory at the same time, over
    /// all connections. Beyond it requests are refused as overloaded. Default 256 MiB.
    pub inflight_bytes: u64,
    /// Open watches. Default 1,000.
    pub watches: u64,
    /// Requests a second that one client may send; 0, the default: as many as it likes.
    pub rate: u64,
    /// Requests that a client may send at once after a rest. Default 0: as many as in a second.
    pub rate_burst: u64,
    /// Clients whose rate is remembered at the same time. Default 65,536.
    pub rate_clients: u64,
}

/// Entries in a page whose request names no limit.
pub const DEFAULT_PAGE_ENTRIES: u64 = 1_000;
/// Bytes in a page whose request names no limit.
pub const DEFAULT_PAGE_BYTES: u64 = 1 << 20;
/// The engine's bound on keys.
pub const MAX_KEY_BYTES: u64 = 64 << 10;
/// The engine's bound on values.
pub const MAX_VALUE_BYTES: u64 = 256 << 20;
/// The engine's bound on batches.
pub const MAX_BATCH_BYTES: u64 = 512 << 20;
/// The engine's bound on the names of namespaces.
pub const MAX_NAMESPACE_BYTES: u64 = 255;
/// Most requests a second, and at once, that a limit of the rate may name.
pub const MAX_RATE: u64 = 100_000_000;
/// Most clients whose rate may be remembered.
pub const MAX_RATE_CLIENTS: u64 = 16 << 20;
/// The longest request target (path and query) that an HTTP server takes. Longer keys go through
/// `/v1/batch` and `/v1/mget`.
pub const MAX_TARGET_BYTES: usize = 65_534;

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes: MAX_KEY_BYTES,
            value_bytes: 64 << 20,
            body_bytes: 64 << 20,
            batch_ops: 100_000,
            mget_keys: 10_000,
            page_entries: 10_000,
            page_bytes: 16 << 20,
            inflight_bytes: 256 << 20,
            watches: 1_000,
            rate: 0,
            rate_burst: 0,
            rate_clients: 65_536,
        }
    }
}
