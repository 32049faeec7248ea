//! The changefeed over HTTP: lines of JSON, or server-sent events.
//!
//! A task of its own ([`watch::tell`]) sends chunks to the reply's body; it ends when the client goes
//! away, the server stops, or the feed fails. What it sends besides changes:
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
use crate::service::DEFAULT_NAMESPACE;
use crate::service::error::{Error, Result};
use crate::service::watch::{self, ChangeRef, Heartbeat, Sink, Story, WatchQuery};

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
    let heartbeat = Heartbeat::every(params.parsed("heartbeat", firn_api::duration::parse)?)?;
    let sse = kv::accepts(parts, SSE);
    let renderer = Renderer {
        out: Vec::new(),
        sse,
        enc: params.enc()?,
        keys_only: params.flag("keys_only")?,
        path: parts.uri.path().into(),
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
    let (chunks, received) = mpsc::channel(1);
    tokio::spawn(watch::tell(door.service.clone(), feed, heartbeat, chunks));
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

/// Renders changes.
struct Renderer {
    out: Vec<u8>,
    sse: bool,
    enc: Enc,
    keys_only: bool,
    path: Box<str>,
}

impl Renderer {
    fn push(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, name: &str, number: u64) {
        self.push(name);
        text::push_number(&mut self.out, number);
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

impl Story for Renderer {
    type Chunk = Bytes;

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

    fn failed(&mut self, error: Error) {
        if self.sse {
            self.push("event: failed\ndata: ");
        }
        let line = serde_json::json!({ "error": problem::body_of(&error, &self.path) });
        self.push(&line.to_string());
        self.push(if self.sse { "\n\n" } else { "\n" });
    }

    fn take(&mut self) -> Option<Bytes> {
        let chunk = std::mem::take(&mut self.out);
        (!chunk.is_empty()).then(|| chunk.into())
    }
}
