//! The changefeed over HTTP: lines of JSON, or server-sent events.
//!
//! A task of its own drives each [`Feed`] and sends chunks to the reply's body; it ends when the
//! client goes away, the server stops, or the feed fails. What it sends besides changes:
//!
//! | | NDJSON | SSE |
//! |---|---|---|
//! | at the beginning, and each `heartbeat` without changes | `{"progress":12}` | a comment and `id: 12` without data: sets `Last-Event-ID`, fires nothing |
//! | the server stops | `{"end":true,"progress":12}` | `event: end`, the same data |
//! | the feed failed | `{"error":{..problem..}}` | `event: failed`, the same data |
//!
//! A stream that ends otherwise was cut. Either way a client goes on after the last version that it
//! saw, as `from` or by `Last-Event-ID`.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use firn_api::http::{NDJSON, SSE};
use firn_api::text::{self, Enc};
use firn_engine::Change;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;
use tokio::sync::mpsc;

use crate::http::body::ReplyBody;
use crate::http::query::Params;
use crate::http::{Door, Reply, kv, problem};
use crate::service::error::{Error, Result};
use crate::service::watch::{ChangeRef, Feed, Sink, WatchQuery};
use crate::service::{DEFAULT_NAMESPACE, Service};

/// Bytes rendered at a time. One more chunk may wait for the socket.
const CHUNK_BYTES: usize = 64 << 10;
/// Without changes, how often a sign of life is sent unless the client says.
const HEARTBEAT: Duration = Duration::from_secs(15);
const HEARTBEATS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(300);
/// How long a browser waits before it connects again.
const SSE_BEGIN: &[u8] = b"retry: 1000\n";

/// `GET`: the changes of the namespace in the path, or of that in the query, or of all.
pub(crate) async fn get(door: &Door, ns: Option<Cow<'_, str>>, parts: &Parts) -> Result<Reply> {
    let known = [
        "ns",
        "all_ns",
        "start",
        "end",
        "prefix",
        "from",
        "keys_only",
        "heartbeat",
        "enc",
        "key_enc",
    ];
    let params = Params::parse(parts.uri.query(), &known)?;
    let all = params.flag("all_ns")?;
    let namespace = match (ns.as_deref(), params.text("ns")?) {
        (Some(_), Some(_)) => return Err(Error::invalid("the namespace is given twice")),
        (Some(name), None) | (None, Some(name)) if !all => Some(name.to_owned()),
        (None, None) if !all => Some(DEFAULT_NAMESPACE.to_owned()),
        (None, None) => None,
        _ => return Err(Error::invalid("all_ns and a namespace exclude each other")),
    };
    let range = params.range()?;
    if range.is_empty() {
        return Err(Error::invalid(
            "the start of the range is not before its end",
        ));
    }
    let heartbeat = params
        .parsed("heartbeat", firn_api::duration::parse)?
        .unwrap_or(HEARTBEAT);
    if !HEARTBEATS.contains(&heartbeat) {
        return Err(Error::invalid("heartbeat must be from 100ms to 5m"));
    }
    let sse = kv::accepts(parts, SSE);
    let renderer = Renderer {
        out: Vec::new(),
        sse,
        enc: params.enc()?,
        keys_only: params.flag("keys_only")?,
    };
    let query = WatchQuery {
        namespace,
        range,
        // A browser repeats the request as it was, and says how far it came.
        from: match last_event_id(parts)? {
            Some(last) => Some(last.saturating_add(1)),
            None => params.number("from")?,
        },
    };
    let mut feed = door.service.watch(query, renderer).await?;
    if sse {
        feed.sink.out.extend_from_slice(SSE_BEGIN);
    }
    let progress = feed.progress();
    feed.sink.progress(progress);
    let (chunks, received) = mpsc::channel(1);
    let path = parts.uri.path().to_owned();
    tokio::spawn(drive(door.service.clone(), feed, heartbeat, path, chunks));
    let mut reply = Reply::new(ReplyBody::task(received));
    let kind = HeaderValue::from_static(if sse { SSE } else { NDJSON });
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(reply)
}

fn last_event_id(parts: &Parts) -> Result<Option<u64>> {
    let Some(value) = parts.headers.get("last-event-id") else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    id.map(Some).ok_or_else(|| {
        Error::invalid("Last-Event-ID is not a version of this changefeed: a whole number")
    })
}

/// Tells a client what there is until one of them ends.
async fn drive(
    service: Service,
    mut feed: Feed<Renderer>,
    heartbeat: Duration,
    path: String,
    chunks: mpsc::Sender<Bytes>,
) {
    loop {
        let filling = tokio::task::spawn_blocking(move || {
            let outcome = feed.fill(CHUNK_BYTES);
            (feed, outcome)
        });
        // A cancelled job means that the runtime stops: a stream without an end.
        let Ok((back, outcome)) = filling.await else {
            return;
        };
        feed = back;
        if let Err(error) = &outcome {
            // Who reads on while the server stops is told that it stops.
            if error.code == Code::ShuttingDown || service.is_draining() {
                let progress = feed.progress();
                feed.sink.end(progress);
            } else {
                feed.sink.failed(error, &path);
            }
        }
        // Sent also when there is nothing to send: who is gone shows here.
        let chunk = std::mem::take(&mut feed.sink.out);
        if !chunk.is_empty() && chunks.send(chunk.into()).await.is_err() {
            return;
        }
        match outcome {
            Err(_) => return,
            Ok(false) if !service.is_draining() => {}
            Ok(false) => {
                let progress = feed.progress();
                feed.sink.end(progress);
                let _ = chunks.send(std::mem::take(&mut feed.sink.out).into()).await;
                return;
            }
            Ok(true) => tokio::select! {
                () = feed.changed() => {}
                () = chunks.closed() => return,
                () = service.draining() => {
                    let progress = feed.progress();
                    feed.sink.end(progress);
                    let _ = chunks.send(std::mem::take(&mut feed.sink.out).into()).await;
                    return;
                }
                () = tokio::time::sleep(heartbeat) => {
                    let progress = feed.progress();
                    feed.sink.progress(progress);
                }
            },
        }
    }
}

/// Renders changes.
struct Renderer {
    out: Vec<u8>,
    sse: bool,
    enc: Enc,
    keys_only: bool,
}

impl Renderer {
    fn push(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, name: &str, number: u64) {
        self.push(name);
        text::push_number(&mut self.out, number);
    }

    /// Everything up to `version` was told.
    fn progress(&mut self, version: u64) {
        if self.sse {
            self.number(": progress\nid: ", version);
            self.push("\n\n");
        } else {
            self.number("{\"progress\":", version);
            self.push("}\n");
        }
    }

    fn end(&mut self, progress: u64) {
        if self.sse {
            self.number("event: end\nid: ", progress);
            self.push("\ndata: ");
        }
        self.number("{\"end\":true,\"progress\":", progress);
        self.push(if self.sse { "}\n\n" } else { "}\n" });
    }

    fn failed(&mut self, error: &Error, path: &str) {
        if self.sse {
            self.push("event: failed\ndata: ");
        }
        let line = serde_json::json!({ "error": problem::body_of(error, path) });
        self.push(&line.to_string());
        self.push(if self.sse { "\n\n" } else { "\n" });
    }

    fn render(&mut self, change: &ChangeRef<'_>) -> std::result::Result<(), text::NotUtf8> {
        if self.sse {
            self.number("id: ", change.version);
            self.push("\ndata: ");
        }
        let op = match change.change {
            Change::Put { .. } => "{\"op\":\"put\",\"version\":",
            Change::Delete { .. } => "{\"op\":\"delete\",\"version\":",
            Change::DeleteRange { .. } => "{\"op\":\"delete_range\",\"version\":",
            Change::DropNamespace => "{\"op\":\"drop_namespace\",\"version\":",
        };
        self.number(op, change.version);
        self.number(",\"commit\":", change.commit);
        if change.more {
            self.push(",\"more\":true");
        }
        self.push(",\"ns\":");
        text::push_json_string(&mut self.out, change.namespace);
        let (enc, keys_only) = (self.enc, self.keys_only);
        let mut member = |name, bytes| {
            self.out.push(b',');
            text::push_member(&mut self.out, name, bytes, enc)
        };
        match change.change {
            Change::Put {
                key,
                value,
                expires_at_ms,
            } => {
                member("key", key)?;
                if !keys_only {
                    member("value", value)?;
                }
                if let Some(ms) = expires_at_ms {
                    self.number(",\"expires_at_ms\":", ms);
                }
            }
            Change::Delete { key } => member("key", key)?,
            Change::DeleteRange { start, end } => {
                member("start", start)?;
                member("to", end)?;
            }
            Change::DropNamespace => {}
        }
        self.push(if self.sse { "}\n\n" } else { "}\n" });
        Ok(())
    }
}

impl Sink for Renderer {
    fn change(&mut self, change: ChangeRef<'_>) -> Result<()> {
        let before = self.out.len();
        if self.render(&change).is_err() {
            self.out.truncate(before);
            let detail = format!(
                "the key or the value of version {} is not valid UTF-8, which enc=utf8 wants",
                change.version
            );
            return Err(Error::new(Code::NotUtf8, detail));
        }
        Ok(())
    }

    fn waiting_bytes(&self) -> usize {
        self.out.len()
    }
}
