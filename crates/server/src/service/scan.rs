//! Ranges: pages, cursors and streams.
//!
//! A [`Walk`] is a scan in progress. It runs on blocking threads one chunk at a time and rests,
//! holding no thread, while the door sends the chunk; dropping it frees the engine's scan. Entries
//! go to a [`Sink`] of the door, which renders them where they are, without a copy between.
//!
//! A page sees one instant; the next page sees a later one. A stream sees one instant throughout.

use std::ops::Bound;

use firn_api::cursor;
use firn_api::limits::{DEFAULT_PAGE_BYTES, DEFAULT_PAGE_ENTRIES};
use firn_engine::key::prefix_end;
use firn_engine::{Scan, ScanOptions};

use crate::service::error::{Error, Result};
use crate::service::{Consistency, Service, limits};

/// A range of keys: `start` inclusive, `end` exclusive; absent: unbounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first key that belongs to it.
    pub start: Option<Vec<u8>>,
    /// The first key that does not.
    pub end: Option<Vec<u8>>,
}

impl Range {
    /// The keys between `start` and `end` that begin with `prefix`.
    pub fn new(start: Option<Vec<u8>>, end: Option<Vec<u8>>, prefix: Option<Vec<u8>>) -> Self {
        let Some(prefix) = prefix else {
            return Self { start, end };
        };
        let after = prefix_end(&prefix);
        let start = start.map_or_else(|| prefix.clone(), |start| start.max(prefix.clone()));
        let end = match (end, after) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self {
            start: Some(start),
            end,
        }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Some(start), Some(end)) => start >= end,
            (None, Some(end)) => end.is_empty(),
            (_, None) => false,
        }
    }
}

/// What to walk.
#[derive(Clone, Debug, Default)]
pub struct RangeQuery {
    /// The namespace.
    pub namespace: String,
    /// The keys.
    pub range: Range,
    /// From the end to the start.
    pub reverse: bool,
    /// Without values.
    pub keys_only: bool,
    /// At most so many entries.
    pub limit: Option<u64>,
    /// At most so many bytes of keys and values; the first entry always fits.
    pub max_bytes: Option<u64>,
    /// Continues after another page.
    pub cursor: Option<String>,
    /// What it may miss.
    pub consistency: Consistency,
}

/// An entry on its way to a sink.
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value, unless only keys were asked for.
    pub value: Option<&'a [u8]>,
    /// The sequence number of the write.
    pub version: u64,
    /// When it expires.
    pub expires_at_ms: Option<u64>,
}

/// Where entries go.
pub trait Sink: Send + 'static {
    /// Takes an entry.
    ///
    /// # Errors
    /// Ends the walk.
    fn entry(&mut self, entry: EntryRef<'_>) -> Result<()>;
    /// The bytes that wait in the sink.
    fn waiting_bytes(&self) -> usize;
}

/// A scan in progress.
pub struct Walk<S> {
    /// Where the entries go.
    pub sink: S,
    query: RangeQuery,
    scan: Option<Scan>,
    entries_left: u64,
    bytes_left: u64,
    count: u64,
    last_key: Vec<u8>,
    next_cursor: Option<String>,
}

impl<S> std::fmt::Debug for Walk<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("query", &self.query)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl<S: Sink> Walk<S> {
    /// How many entries went to the sink so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there are no more.
    pub fn is_done(&self) -> bool {
        self.scan.is_none()
    }

    /// Continues after a limit ended the walk.
    pub fn next_cursor(&self) -> Option<&str> {
        self.next_cursor.as_deref()
    }

    /// Walks until the sink holds `chunk_bytes`, or to the end. Blocks.
    ///
    /// # Errors
    /// The engine's, and the sink's.
    pub fn fill(&mut self, chunk_bytes: usize) -> Result<()> {
        let Some(scan) = &mut self.scan else {
            return Ok(());
        };
        while self.sink.waiting_bytes() < chunk_bytes {
            if !scan.next()? {
                self.scan = None;
                return Ok(());
            }
            let (key, keys_only) = (scan.key(), self.query.keys_only);
            let value = if keys_only { &[][..] } else { scan.value() };
            let bytes = (key.len() + value.len()) as u64;
            if self.entries_left == 0 || bytes > self.bytes_left && self.count > 0 {
                let query = &self.query;
                self.next_cursor = Some(cursor::encode(&query.fingerprint(), &self.last_key));
                self.scan = None;
                return Ok(());
            }
            let (version, expires_at_ms) = (scan.version().0, scan.expires_at_ms());
            let value = (!keys_only).then_some(value);
            self.sink.entry(EntryRef {
                key,
                value,
                version,
                expires_at_ms,
            })?;
            self.entries_left -= 1;
            self.bytes_left = self.bytes_left.saturating_sub(bytes);
            self.count += 1;
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
        }
        Ok(())
    }
}

impl RangeQuery {
    fn fingerprint(&self) -> cursor::Query<'_> {
        cursor::Query {
            namespace: &self.namespace,
            start: self.range.start.as_deref(),
            end: self.range.end.as_deref(),
            reverse: self.reverse,
        }
    }
}

impl Service {
    /// One page into `sink`; the walk that comes back is done and has the cursor.
    ///
    /// # Errors
    /// Limits, a bad cursor, namespace not found, corruption, I/O.
    pub async fn page<S: Sink>(&self, mut query: RangeQuery, sink: S) -> Result<Walk<S>> {
        let limit = query
            .limit
            .unwrap_or(DEFAULT_PAGE_ENTRIES.min(self.limits().page_entries));
        let bytes = query
            .max_bytes
            .unwrap_or(DEFAULT_PAGE_BYTES.min(self.limits().page_bytes));
        let code = firn_api::code::Code::InvalidArgument;
        limits::within(
            code,
            "limits.page_entries",
            self.limits().page_entries,
            limit,
        )?;
        limits::within(code, "limits.page_bytes", self.limits().page_bytes, bytes)?;
        (query.limit, query.max_bytes) = (Some(limit), Some(bytes));
        self.may_scan(query.consistency).await?;
        let service = self.clone();
        self.blocking(move || {
            let mut walk = service.walk(query, sink)?;
            while !walk.is_done() {
                walk.fill(usize::MAX)?;
            }
            Ok(walk)
        })
        .await
    }

    /// A walk at its beginning, for streams: without limits unless the query has them.
    ///
    /// # Errors
    /// As [`Service::page`].
    pub async fn stream<S: Sink>(&self, query: RangeQuery, sink: S) -> Result<Walk<S>> {
        self.may_scan(query.consistency).await?;
        let service = self.clone();
        self.blocking(move || service.walk(query, sink)).await
    }

    fn walk<S: Sink>(&self, query: RangeQuery, sink: S) -> Result<Walk<S>> {
        // Once: the namespace and the scan are of the same database.
        let db = self.db();
        let namespace = self.namespace_in(&db, &query.namespace)?;
        for bound in [&query.range.start, &query.range.end].into_iter().flatten() {
            limits::key(self.limits(), bound)?;
        }
        if query.limit == Some(0) {
            return Err(Error::invalid("limit must be at least 1"));
        }
        let mut start = query
            .range
            .start
            .clone()
            .map_or(Bound::Unbounded, Bound::Included);
        let mut end = query
            .range
            .end
            .clone()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let mut empty = query.range.is_empty();
        if let Some(token) = &query.cursor {
            let key = cursor::decode(&query.fingerprint(), token)
                .map_err(|e| Error::new(firn_api::code::Code::InvalidCursor, e))?;
            if query.reverse {
                empty |= query
                    .range
                    .start
                    .as_ref()
                    .is_some_and(|start| &key <= start);
                end = Bound::Excluded(key);
            } else {
                empty |= query.range.end.as_ref().is_some_and(|end| &key >= end);
                start = Bound::Excluded(key);
            }
        }
        // A range that holds nothing is an answer, not an error.
        let options = ScanOptions {
            start,
            end,
            reverse: query.reverse,
            keys_only: query.keys_only,
        };
        let scan = if empty {
            None
        } else {
            Some(db.scan(&namespace, options)?)
        };
        Ok(Walk {
            sink,
            scan,
            entries_left: query.limit.unwrap_or(u64::MAX),
            bytes_left: query.max_bytes.unwrap_or(u64::MAX),
            count: 0,
            last_key: Vec::new(),
            next_cursor: None,
            query,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_narrows_the_bounds() {
        let bytes = |s: &str| Some(s.as_bytes().to_vec());
        let range = Range::new(bytes("a"), bytes("z"), bytes("k"));
        assert_eq!(
            range,
            Range {
                start: bytes("k"),
                end: bytes("l")
            }
        );
        let range = Range::new(bytes("kk"), bytes("kz"), bytes("k"));
        assert_eq!(
            range,
            Range {
                start: bytes("kk"),
                end: bytes("kz")
            }
        );
        assert!(Range::new(bytes("m"), None, bytes("k")).is_empty());
        assert_eq!(
            Range::new(None, None, Some(vec![0xff])),
            Range {
                start: Some(vec![0xff]),
                end: None
            }
        );
        assert!(Range::new(None, bytes(""), None).is_empty());
        assert!(!Range::default().is_empty());
    }
}
