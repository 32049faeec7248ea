//! The changefeed, across reconnections.
//!
//! A [`Watch`] reads lines of JSON from `GET /v1/watch`. It remembers the version up to which
//! everything was told, by changes or by the server's progress lines; when the connection breaks, the
//! server stops, or no sign of life comes, it connects again and goes on with the next version. So
//! every change comes once, in order, however often the connection breaks. It gives up when the
//! server refuses (410 `version_too_old` after having been away too long, for instance), or when it
//! could not be reached for [`WatchOptions::patience`].

use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use firn_api::http::{NDJSON, WatchLine, bytes_member};
use http::Method;

use crate::client::{Client, Query};
use crate::error::{Error, ErrorKind, Result};
use crate::lines::Lines;
use crate::transport::{Call, Failed, scattered};

/// How often the server is asked to send something, and how long nothing may come.
const HEARTBEAT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(35);
/// The pause before the first reconnection; then doubled.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What to watch. The default is every change of the client's namespace from now on.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// The first version to be told; `None`: what is committed from now on.
    pub from: Option<u64>,
    /// The first key, inclusive.
    pub start: Option<Vec<u8>>,
    /// The end, exclusive.
    pub end: Option<Vec<u8>>,
    /// Only keys with this prefix.
    pub prefix: Option<Vec<u8>>,
    /// Every namespace, instead of the client's.
    pub all_namespaces: bool,
    /// Without values.
    pub keys_only: bool,
    /// How long the server may be unreachable before the watch gives up. Default: a minute.
    pub patience: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            from: None,
            start: None,
            end: None,
            prefix: None,
            all_namespaces: false,
            keys_only: false,
            patience: Duration::from_secs(60),
        }
    }
}

impl WatchOptions {
    /// Every change from this version on.
    pub fn from(version: u64) -> Self {
        Self {
            from: Some(version),
            ..Self::default()
        }
    }

    /// Only keys with this prefix.
    #[must_use]
    pub fn prefix(self, prefix: impl Into<Vec<u8>>) -> Self {
        Self {
            prefix: Some(prefix.into()),
            ..self
        }
    }
}

/// What a key, a range or a namespace has become.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The key has this value.
    Put {
        /// The key.
        key: Bytes,
        /// The value; empty if only keys were asked for.
        value: Bytes,
        /// When it expires, in Unix milliseconds. No event will say so.
        expires_at_ms: Option<u64>,
    },
    /// The key does not exist.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// No key from `start` (inclusive) to `end` (exclusive) exists.
    DeleteRange {
        /// The first key of the range.
        start: Bytes,
        /// The first key behind it.
        end: Bytes,
    },
    /// The namespace does not exist, with everything in it.
    DropNamespace,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// Its sequence number.
    pub version: u64,
    /// The last sequence number of its batch, which the changes of a batch have in common.
    pub commit: u64,
    /// Another change of the same batch follows.
    pub more: bool,
    /// In which namespace.
    pub namespace: String,
    /// What.
    pub change: Change,
}

/// A changefeed that is being read.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    options: WatchOptions,
    /// The first version that was not told; unknown before the server's first line, unless given.
    next: Option<u64>,
    lines: Option<Lines>,
    pause: Duration,
    /// For how long the server could not be reached.
    away: Duration,
}

/// Why a line did not come.
enum Stop {
    /// Connect again, after the pause that the server asked for or ours.
    Again(Failed),
    Final(Error),
}

impl Watch {
    pub(crate) fn new(client: Client, options: WatchOptions) -> Self {
        Self {
            next: options.from,
            client,
            options,
            lines: None,
            pause: FIRST_PAUSE,
            away: Duration::ZERO,
        }
    }

    /// Everything before this version was told or passed over: a watch from it on goes on here.
    /// `None` until the server said where "now" is.
    pub fn next_version(&self) -> Option<u64> {
        self.next
    }

    /// The first version that it will tell; a watch from now on asks the server for it. What is
    /// committed once this has returned will be told: read the state after it, then follow.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn begin(&mut self) -> Result<u64> {
        loop {
            if let Some(next) = self.next {
                return Ok(next);
            }
            // Its first line says where it begins: no change comes before.
            let advanced = self.advance().await;
            if let Err(stop) = advanced {
                self.stopped(stop).await?;
            }
        }
    }

    /// The next change, waiting for it and connecting again as often as needed. It may be dropped
    /// and called again without losing anything.
    ///
    /// # Errors
    /// The server refused, or could not be reached for as long as the options say. The call may be
    /// repeated.
    pub async fn next(&mut self) -> Result<WatchEvent> {
        loop {
            let stop = match self.advance().await {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => continue,
                Err(stop) => stop,
            };
            self.stopped(stop).await?;
        }
    }

    /// Waits until it is time to connect again, if that makes sense.
    async fn stopped(&mut self, stop: Stop) -> Result<()> {
        self.lines = None;
        let failed = match stop {
            Stop::Final(error) => return Err(error),
            Stop::Again(failed) => failed,
        };
        if self.away >= self.options.patience {
            (self.away, self.pause) = (Duration::ZERO, FIRST_PAUSE);
            return Err(failed.error);
        }
        let pause = failed.retry_after.unwrap_or(self.pause).max(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.away += pause;
        tokio::time::sleep(scattered(pause)).await;
        Ok(())
    }

    /// Reads a line, or connects.
    async fn advance(&mut self) -> std::result::Result<Option<WatchEvent>, Stop> {
        let Some(lines) = &mut self.lines else {
            return self.connect().await.map(|()| None);
        };
        match lines.next(SILENCE).await {
            Ok(Some(line)) => self.take(&line),
            Ok(None) => {
                let error = Error::new(ErrorKind::Unknown, "the stream was cut");
                Err(Stop::Again(error.into()))
            }
            Err(error) if matches!(error.kind, ErrorKind::Protocol) => Err(Stop::Final(error)),
            Err(error) => Err(Stop::Again(error.into())),
        }
    }

    fn take(&mut self, line: &[u8]) -> std::result::Result<Option<WatchEvent>, Stop> {
        let broken = |detail: String| Stop::Final(Error::new(ErrorKind::Protocol, detail));
        let line: WatchLine = serde_json::from_slice(line)
            .map_err(|e| broken(format!("a line of the watch: {e}")))?;
        if let Some(problem) = line.error {
            let error = Error::api(problem);
            return Err(match error.code() {
                Some(Code::ShuttingDown | Code::Overloaded) => Stop::Again(error.into()),
                _ => Stop::Final(error),
            });
        }
        (self.pause, self.away) = (FIRST_PAUSE, Duration::ZERO);
        if let Some(progress) = line.progress {
            self.next = self.next.max(Some(progress.saturating_add(1)));
        }
        if line.end {
            let error = Error::new(ErrorKind::Unknown, "the server ended the stream");
            return Err(Stop::Again(error.into()));
        }
        let Some(op) = line.op.as_deref() else {
            return Ok(None);
        };
        let (Some(version), Some(namespace)) = (line.version, line.ns) else {
            return Err(broken("a change without version or namespace".into()));
        };
        let member = |name: &str, text: Option<String>, b64: Option<String>| match (text, b64) {
            (Some(text), None) => Ok(Some(Bytes::from(text))),
            (text, b64) => bytes_member(name, text.as_deref(), b64.as_deref())
                .map(|bytes| bytes.map(Bytes::from))
                .map_err(broken),
        };
        let missing = |name: &str| broken(format!("a change without {name}"));
        let key = member("key", line.key, line.key_b64)?;
        let change = match op {
            "put" => Change::Put {
                key: key.ok_or_else(|| missing("a key"))?,
                value: member("value", line.value, line.value_b64)?.unwrap_or_default(),
                expires_at_ms: line.expires_at_ms,
            },
            "delete" => Change::Delete {
                key: key.ok_or_else(|| missing("a key"))?,
            },
            "delete_range" => Change::DeleteRange {
                start: member("start", line.start, line.start_b64)?
                    .ok_or_else(|| missing("a start"))?,
                end: member("to", line.to, line.to_b64)?.ok_or_else(|| missing("an end"))?,
            },
            "drop_namespace" => Change::DropNamespace,
            // Of a newer server: the version counts as told.
            _ => {
                self.next = Some(version.saturating_add(1));
                return Ok(None);
            }
        };
        self.next = Some(version.saturating_add(1));
        Ok(Some(WatchEvent {
            version,
            commit: line.commit.unwrap_or(version),
            more: line.more,
            namespace,
            change,
        }))
    }

    async fn connect(&mut self) -> std::result::Result<(), Stop> {
        let options = &self.options;
        let mut query = Query::default();
        query.add("from", self.next.map(|next| next.to_string()));
        query.add_bytes("start", options.start.as_deref());
        query.add_bytes("end", options.end.as_deref());
        query.add_bytes("prefix", options.prefix.as_deref());
        query.add("all_ns", options.all_namespaces.then(|| "true".into()));
        query.add("keys_only", options.keys_only.then(|| "true".into()));
        query.add("heartbeat", Some(firn_api::duration::print(HEARTBEAT)));
        let path = if options.all_namespaces {
            "/v1/watch".into()
        } else {
            self.client.target("watch")
        };
        let mut call = Call::new(Method::GET, query.after(path));
        call.headers.push(("accept", NDJSON.into()));
        match self.client.transport().open(&call).await {
            Ok(body) => {
                self.lines = Some(Lines::new(body));
                Ok(())
            }
            Err(failed) => {
                let again = match &failed.error.kind {
                    ErrorKind::Unreachable | ErrorKind::Unknown | ErrorKind::Deadline => true,
                    _ => failed.retry_after.is_some(),
                };
                Err(if again {
                    Stop::Again(failed)
                } else {
                    Stop::Final(failed.error)
                })
            }
        }
    }
}
