//! Ranges, page by page or as a stream.
//!
//! A page is of one instant, and the next one of a later one; it can be asked for again when a
//! connection breaks. A stream ([`Scan::one_instant`]) is of one instant from its first entry
//! to its last, and is over when its connection breaks.

use bytes::Bytes;
use firn_api::http::{EntryBody, KV_CURSOR, NDJSON, PageBody, StreamEnd, bytes_member};
use http::Method;

use crate::client::{Client, Query};
use crate::error::{Error, ErrorKind, Result};
use crate::lines::Lines;
use crate::transport::Call;

/// What to walk. The default is everything, forward.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// The first key, inclusive.
    pub start: Option<Vec<u8>>,
    /// The end, exclusive.
    pub end: Option<Vec<u8>>,
    /// Only keys with this prefix.
    pub prefix: Option<Vec<u8>>,
    /// From the end to the start.
    pub reverse: bool,
    /// At most so many entries.
    pub limit: Option<u64>,
    /// Without values.
    pub keys_only: bool,
    /// Entries a page; `None`: as the server likes.
    pub page: Option<u64>,
}

impl ScanOptions {
    /// Every key from `start` (inclusive) to `end` (exclusive).
    pub fn range(start: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        Self {
            start: Some(start.into()),
            end: Some(end.into()),
            ..Self::default()
        }
    }

    /// Every key with a prefix.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        Self {
            prefix: Some(prefix.into()),
            ..Self::default()
        }
    }

    /// From the end to the start.
    #[must_use]
    pub fn reverse(self) -> Self {
        Self {
            reverse: true,
            ..self
        }
    }

    /// At most so many entries.
    #[must_use]
    pub fn limit(self, limit: u64) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }
}

/// An entry of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanEntry {
    /// The key.
    pub key: Bytes,
    /// The value; empty if only keys were asked for.
    pub value: Bytes,
    /// The sequence number of the write.
    pub version: u64,
    /// When it expires, in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
}

/// A range being walked. Each page is of one instant, the next page of a later one, unless
/// [`Scan::one_instant`] is asked for.
#[derive(Debug)]
pub struct Scan {
    client: Client,
    options: ScanOptions,
    page: std::vec::IntoIter<EntryBody>,
    one_instant: bool,
    stream: Option<Lines>,
    /// Entries that the stream gave.
    streamed: u64,
    cursor: Option<String>,
    left: Option<u64>,
    done: bool,
}

impl Scan {
    pub(crate) fn new(client: Client, options: ScanOptions) -> Self {
        let left = options.limit;
        Self {
            client,
            options,
            page: Vec::new().into_iter(),
            one_instant: false,
            stream: None,
            streamed: 0,
            cursor: None,
            left,
            done: left == Some(0),
        }
    }

    /// Everything as it is at one instant, that of the first entry. An error then ends the scan: what
    /// was told stays true, but to go on would mean a later instant. To be said before the first
    /// entry; the size of pages means nothing then.
    #[must_use]
    pub fn one_instant(self) -> Self {
        Self {
            one_instant: true,
            ..self
        }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// The server's, or that it could not be asked. The call may be repeated, unless the scan is of
    /// one instant and began.
    pub async fn next(&mut self) -> Result<Option<ScanEntry>> {
        if self.one_instant {
            return self.next_of_stream().await;
        }
        loop {
            if let Some(body) = self.page.next() {
                return read(body).map(Some);
            }
            if self.done {
                return Ok(None);
            }
            self.fetch().await?;
        }
    }

    async fn next_of_stream(&mut self) -> Result<Option<ScanEntry>> {
        if self.done {
            return Ok(None);
        }
        if self.stream.is_none() {
            let mut query = self.query();
            query.add("limit", self.left.map(|left| left.to_string()));
            let mut call = Call::new(Method::GET, query.after(self.client.target("range")));
            call.headers.push(("accept", NDJSON.into()));
            let body = self.client.transport().open_repeatedly(&call).await?;
            self.stream = Some(Lines::new(body));
        }
        let silence = self.client.transport().longest_wait();
        let Some(stream) = &mut self.stream else {
            return Ok(None);
        };
        let Some(line) = stream.next(silence).await? else {
            // Of the server's own accord only behind the last line.
            return Err(Error::new(ErrorKind::Unknown, "the stream was cut"));
        };
        let broken = |e| Error::new(ErrorKind::Protocol, format!("a line of the range: {e}"));
        let body: EntryBody = serde_json::from_slice(&line).map_err(broken)?;
        if body.key.is_some() || body.key_b64.is_some() {
            self.streamed += 1;
            return read(body).map(Some);
        }
        let end: StreamEnd = serde_json::from_slice(&line).map_err(broken)?;
        if !end.end || end.count != self.streamed {
            let (told, came) = (end.count, self.streamed);
            let detail = format!("a range of {told} entries, of which {came} came");
            return Err(Error::new(ErrorKind::Protocol, detail));
        }
        self.done = true;
        self.stream = None;
        Ok(None)
    }

    /// What to walk, as parameters.
    fn query(&self) -> Query {
        let options = &self.options;
        let mut query = Query::default();
        query.add_bytes("start", options.start.as_deref());
        query.add_bytes("end", options.end.as_deref());
        query.add_bytes("prefix", options.prefix.as_deref());
        query.add("reverse", options.reverse.then(|| "true".into()));
        query.add("keys_only", options.keys_only.then(|| "true".into()));
        query
    }

    async fn fetch(&mut self) -> Result<()> {
        let options = &self.options;
        let mut query = self.query();
        let limit = match (options.page, self.left) {
            (Some(page), Some(left)) => Some(page.min(left)),
            // A page has at most a thousand entries unless more is asked for; ask for fewer only.
            (None, Some(left)) => Some(left.min(firn_api::limits::DEFAULT_PAGE_ENTRIES)),
            (page, None) => page,
        };
        query.add("limit", limit.map(|limit| limit.to_string()));
        let mut call = Call::new(Method::GET, query.after(self.client.target("range")));
        if let Some(cursor) = &self.cursor {
            // In a header: a cursor holds a key, which may be too long for a query.
            call.headers.push((KV_CURSOR, cursor.clone()));
        }
        let page: PageBody = self.client.json(call).await?;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(page.entries.len() as u64);
        }
        self.done = page.next_cursor.is_none() || self.left == Some(0);
        self.cursor = page.next_cursor;
        self.page = page.entries.into_iter();
        Ok(())
    }
}

fn read(body: EntryBody) -> Result<ScanEntry> {
    let member = |name, text: Option<String>, b64: Option<String>| {
        // Text becomes bytes without a copy.
        match (text, b64) {
            (Some(text), None) => Ok(Some(Bytes::from(text))),
            (text, b64) => bytes_member(name, text.as_deref(), b64.as_deref())
                .map(|bytes| bytes.map(Bytes::from))
                .map_err(|e| Error::new(ErrorKind::Protocol, e)),
        }
    };
    let missing = || Error::new(ErrorKind::Protocol, "an entry without a key or a version");
    Ok(ScanEntry {
        key: member("key", body.key, body.key_b64)?.ok_or_else(missing)?,
        value: member("value", body.value, body.value_b64)?.unwrap_or_default(),
        version: body.version.ok_or_else(missing)?,
        expires_at_ms: body.expires_at_ms,
    })
}
