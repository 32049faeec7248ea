//! Dialects: HTTP as five systems before FirnDB spoke it, so that their clients need not change.
//!
//! A listener speaks the native API or one dialect. A dialect translates, like every door: its
//! routes, bodies, statuses and words are its own, what they mean is in [`crate::service`], and the
//! body limits, budgets, clocks and counters are those of [`crate::http`].
//!
//! | Dialect | Alias | In one request | Module |
//! |---|---|---|---|
//! | `kv-json` | `000` | `POST /kv/{key}` with `{"value":"x"}` | `kv_json` |
//! | `put-read` | `001` | `POST /put` with `{"key":"k","data":"x"}`, `GET /read?key=k` | `put_read` |
//! | `v1-raw` | `002` | `PUT /v1/{key}` with the bytes | `v1_raw` |
//! | `query` | `003` | `PUT /?key=k&value=x` | `query` |
//! | `kv-verbs` | `004` | `POST /kv/put` with `{"key":"k","value":"x"}` | `kv_verbs` |
//! | `auto` | | all five on one port, told apart by route and body | `auto` |
//!
//! What these dialects promised and how it is kept, case by case, is in `docs/dialects.md`, which a
//! test prints. Where they lost data, hung or answered wrongly, FirnDB does not.

mod allowance;
mod auto;
mod form;
mod kv_json;
mod kv_verbs;
mod plain;
mod put_read;
mod query;
mod render;
mod sniff;
mod v1_raw;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use firn_api::json;
use http::header::{CONNECTION, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::Activity;
use crate::dialect::allowance::{Rate, Used};
use crate::http::body::{Received, Upload, receive};
use crate::http::request::Request;
use crate::http::{Door, Reply, coding, origin, problem, rate, settle};
use crate::service::batch::{Action, Op};
use crate::service::error::{Error, Result};
use crate::service::kv::{Condition, Write};
use crate::service::scan::{Range, RangeQuery};
use crate::service::{Consistency, DEFAULT_NAMESPACE, Service};

/// Which dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `kv-json`
    KvJson,
    /// `put-read`
    PutRead,
    /// `v1-raw`
    V1Raw,
    /// `query`
    Query,
    /// `kv-verbs`
    KvVerbs,
    /// `auto`
    Auto,
}

impl Dialect {
    /// Every dialect, its name and its other name.
    pub const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::KvJson, "kv-json", "000"),
        (Self::PutRead, "put-read", "001"),
        (Self::V1Raw, "v1-raw", "002"),
        (Self::Query, "query", "003"),
        (Self::KvVerbs, "kv-verbs", "004"),
        (Self::Auto, "auto", "auto"),
    ];

    /// The dialect of this name or alias.
    pub fn parse(text: &str) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(_, name, alias)| text == *name || text == *alias)
            .map(|row| row.0)
    }

    /// Whether somebody who asks for this path wants to know if the server lives. Such requests are
    /// answered at any rate.
    fn is_health(self, path: &str) -> bool {
        let all = self == Self::Auto;
        match path {
            "/health" => all || self == Self::KvJson,
            "/health-check" => all || self == Self::PutRead,
            "/healthz" | "/metrics" => all || self == Self::V1Raw,
            _ => false,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|row| row.0 == self).map_or("", |row| row.1)
    }
}

/// What a listener speaks, and the namespace that it speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speech {
    /// `None`: the native API, where paths name namespaces.
    pub dialect: Option<Dialect>,
    /// The namespace of a dialect. It is made if it is not there.
    pub namespace: String,
}

impl Default for Speech {
    fn default() -> Self {
        let namespace = DEFAULT_NAMESPACE.into();
        Self {
            dialect: None,
            namespace,
        }
    }
}

impl Speech {
    /// Reads `NAME` or `NAME/NAMESPACE`.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let (name, namespace) = match text.split_once('/') {
            Some((name, namespace)) => (name, namespace),
            None => (text, DEFAULT_NAMESPACE),
        };
        let dialect = match Dialect::parse(name) {
            None if name == "native" => None,
            None => {
                let rows = Dialect::ALL.iter();
                let known: Vec<_> = rows.map(|(_, name, _)| *name).collect();
                let known = known.join(", ");
                return Err(format!(
                    "{name:?} is no dialect; there are: native, {known}"
                ));
            }
            known => known,
        };
        if namespace.is_empty() || dialect.is_none() && namespace != DEFAULT_NAMESPACE {
            return Err(format!(
                "{text:?}: only a dialect has a namespace, and it needs a name"
            ));
        }
        Ok(Self {
            dialect,
            namespace: namespace.into(),
        })
    }
}

impl std::fmt::Display for Speech {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.dialect.map_or("native", Dialect::name))?;
        match self.namespace.as_str() {
            DEFAULT_NAMESPACE => Ok(()),
            namespace => write!(f, "/{namespace}"),
        }
    }
}

/// One more HTTP listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// What it speaks.
    pub speech: Speech,
    /// Host and port.
    pub address: String,
}

/// The numbers of dialects that can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// `kv-json`: requests of a connection in a window; 0: no limit.
    pub rate_requests: u64,
    /// `kv-json`: the window.
    pub rate_window: Duration,
    /// `v1-raw`: longest key.
    pub key_bytes: u64,
    /// `v1-raw`: largest value.
    pub value_bytes: u64,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            rate_requests: 10,
            rate_window: Duration::from_secs(5),
            key_bytes: 1_024,
            value_bytes: 1_024,
        }
    }
}

/// What one connection has used of the dialect's allowance.
#[derive(Debug, Default)]
pub(crate) struct Session(Used);

/// A dialect on a listener.
#[derive(Debug)]
pub(crate) struct Speaker {
    pub(crate) door: Arc<Door>,
    pub(crate) dialect: Dialect,
    pub(crate) namespace: String,
    pub(crate) numbers: Numbers,
    counters: v1_raw::Counters,
}

impl Speaker {
    pub(crate) fn new(
        door: Arc<Door>,
        dialect: Dialect,
        namespace: String,
        numbers: Numbers,
    ) -> Self {
        Self {
            door,
            dialect,
            namespace,
            numbers,
            counters: v1_raw::Counters::default(),
        }
    }

    /// Answers a request. Errors are replies too.
    pub(crate) async fn handle(
        &self,
        request: http::Request<Incoming>,
        activity: Arc<Activity>,
        session: &Session,
    ) -> Reply {
        let (parts, incoming) = request.into_parts();
        let mut incoming = Upload::from(incoming);
        activity.sized(incoming.is_sized());
        let door = &self.door;
        let (service, metrics) = (door.service.clone(), Arc::clone(&door.metrics));
        let client = activity.client();
        let running = Request::begin(
            service,
            metrics,
            activity,
            "http",
            door.slow_request,
            parts.uri.clone(),
        );
        let mut call = Call {
            speaker: self,
            parts: &parts,
            incoming: &mut incoming,
            received: None,
            op: "other",
        };
        let admitted = match self.dialect.is_health(parts.uri.path()) {
            true => Ok(()),
            false => rate::admit(&door.service, parts.uri.path(), &client).0,
        };
        let refused = admitted.and_then(|()| coding::check(&parts));
        let answer = match refused {
            Ok(()) => call.answer(session).await,
            // The limit of the server, not of a dialect.
            Err(error) => Answer::new(error.code, problem::reply(&error, parts.uri.path())),
        };
        let op = call.op;
        drop(call);
        let answer = answer.in_room(&door.service, parts.uri.path());
        let Answer { mut reply, code } = answer;
        let code = code.map_or("ok", Code::name);
        running.waited(incoming.waited());
        running.answered();
        if !settle(&parts, &mut incoming, code).await {
            let close = HeaderValue::from_static("close");
            reply.headers_mut().insert(CONNECTION, close);
        }
        running.set_op(op);
        running.set_code(code);
        reply.body_mut().request = Some(running);
        reply
    }
}

/// A reply, and what it is counted under: a code of the table, or `ok`.
#[derive(Debug)]
pub(crate) struct Answer {
    reply: Reply,
    code: Option<Code>,
}

impl Answer {
    fn ok(reply: Reply) -> Self {
        Self { reply, code: None }
    }

    fn new(code: Code, reply: Reply) -> Self {
        let code = Some(code);
        Self { reply, code }
    }

    /// Itself with its bytes counted among those in flight, or that there are too many.
    fn in_room(mut self, service: &Service, path: &str) -> Self {
        match self.reply.body_mut().reserve(service) {
            Ok(()) => self,
            Err(error) => Self::new(error.code, problem::reply(&error, path)),
        }
    }
}

/// Says when to try again, where the status asks for it.
fn retry_after(reply: &mut Reply, error: &Error) {
    if matches!(error.code.http_status(), 429 | 503) {
        let seconds = error.retry_after_ms.unwrap_or(1_000).div_ceil(1_000).max(1);
        reply
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if matches!(error.code.http_status(), 408 | 413)
        || matches!(error.code, Code::BodyIncomplete | Code::ShuttingDown)
    {
        let close = HeaderValue::from_static("close");
        reply.headers_mut().insert(CONNECTION, close);
    }
}

/// A request on its way through a dialect, and what dialects ask of the service.
#[derive(Debug)]
struct Call<'a> {
    speaker: &'a Speaker,
    parts: &'a Parts,
    incoming: &'a mut Upload,
    /// The body, once it was read.
    received: Option<Received>,
    op: &'static str,
}

impl<'a> Call<'a> {
    async fn answer(&mut self, session: &Session) -> Answer {
        let dialect = self.speaker.dialect;
        // The one dialect that was made for web pages of other origins.
        let open = dialect == Dialect::V1Raw || dialect == Dialect::Auto && self.is_v1();
        if !open && let Err(error) = origin::check(self.parts, self.speaker.door.local) {
            return Answer::new(error.code, problem::reply(&error, self.path()));
        }
        match dialect {
            Dialect::KvJson => {
                let numbers = &self.speaker.numbers;
                let rate = Rate {
                    requests: numbers.rate_requests,
                    window: numbers.rate_window,
                };
                let now = self.speaker.door.service.clock().monotonic();
                if !session.0.take(rate, now) {
                    return kv_json::too_many();
                }
                kv_json::handle(self).await
            }
            Dialect::PutRead => put_read::handle(self).await,
            Dialect::V1Raw => v1_raw::handle(self).await,
            Dialect::Query => query::handle(self).await,
            Dialect::KvVerbs => kv_verbs::handle(self).await,
            Dialect::Auto => auto::handle(self).await,
        }
    }

    fn is_v1(&self) -> bool {
        self.path() == "/v1" || self.path().starts_with("/v1/")
    }

    fn path(&self) -> &'a str {
        self.parts.uri.path()
    }

    fn raw_query(&self) -> &'a str {
        self.parts.uri.query().unwrap_or_default()
    }

    fn method(&self) -> &'a Method {
        &self.parts.method
    }

    /// The body, of at most `limit` bytes and of what the server allows.
    async fn body(&mut self, name: &str, limit: u64) -> Result<Bytes> {
        let door = &self.speaker.door;
        let (most, code) = (door.service.limits().body_bytes, Code::BodyTooLarge);
        let (name, limit) = if most < limit {
            ("limits.body_bytes", most)
        } else {
            (name, limit)
        };
        if self.received.is_none() {
            let pace = door.body_timeout;
            let body = receive(&door.service, self.incoming, pace, code, name, limit).await?;
            self.received = Some(body);
        }
        let bytes = self.received.as_ref().map(|r| r.bytes.clone());
        let bytes = bytes.unwrap_or_default();
        // It may have been read before under another limit.
        if bytes.len() as u64 > limit {
            return Err(Error::limit(code, name, limit, bytes.len() as u64));
        }
        Ok(bytes)
    }

    /// The memory that a key and a value take as JSON, at most, before they are made so.
    fn room_to_render(&self, key: &[u8], value: &[u8]) -> Result<Option<OwnedSemaphorePermit>> {
        let bytes = key.iter().chain(value).map(|byte| match byte {
            b'"' | b'\\' | b'<' | b'>' | b'&' | ..0x20 => 6,
            // Where it makes no sense it becomes the three of U+FFFD; three of them may be a line
            // separator, which takes six.
            0x80.. => 3,
            _ => 1,
        });
        self.speaker.door.service.reserve_reply(bytes.sum())
    }

    /// The body was read: what was made of it takes its place.
    fn forget(&mut self, body: Bytes) {
        drop(body);
        if let Some(received) = &mut self.received {
            received.take();
        }
    }

    /// The body, as large as the server takes one.
    async fn whole_body(&mut self) -> Result<Bytes> {
        self.body("limits.body_bytes", u64::MAX).await
    }

    fn has_body(&self) -> bool {
        match &self.received {
            Some(received) => !received.bytes.is_empty(),
            None => !self.incoming.is_end(),
        }
    }

    async fn get(&mut self, key: impl Into<Bytes>) -> Result<Option<Bytes>> {
        self.op = "get";
        let (service, ns) = (&self.speaker.door.service, &self.speaker.namespace);
        let entry = service.get(ns, key.into(), Consistency::default()).await?;
        Ok(entry.map(|entry| Bytes::from_owner(entry.value)))
    }

    async fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<()> {
        self.op = "put";
        self.write(key.into(), Some(value.into()), None).await
    }

    async fn delete(&mut self, key: impl Into<Bytes>) -> Result<()> {
        self.op = "delete";
        self.write(key.into(), None, None).await
    }

    /// Deletes a key that must be there; `false` if it is not.
    async fn delete_existing(&mut self, key: impl Into<Bytes>) -> Result<bool> {
        self.op = "delete";
        let condition = Some(Condition::Exists);
        match self.write(key.into(), None, condition).await {
            Ok(()) => Ok(true),
            Err(error) if error.code == Code::ConditionFailed => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn write(
        &self,
        key: Bytes,
        value: Option<Bytes>,
        condition: Option<Condition>,
    ) -> Result<()> {
        let (service, ns) = (&self.speaker.door.service, &self.speaker.namespace);
        let write = Write {
            key,
            value,
            expires_at_ms: None,
            condition,
            durability: service.default_durability(),
        };
        service.write(ns, write).await.map(drop)
    }

    /// Writes all of these, or nothing; `None` deletes. Of a key that comes again the last counts.
    async fn batch(&mut self, entries: Vec<(String, Option<String>)>) -> Result<()> {
        self.op = "batch";
        if entries.is_empty() {
            return Ok(());
        }
        let ops = entries
            .into_iter()
            .map(|(key, value)| Op {
                namespace: None,
                key: key.into(),
                action: match value {
                    Some(value) => Action::Put {
                        value: value.into(),
                        expires_at_ms: None,
                    },
                    None => Action::Delete,
                },
                condition: None,
            })
            .collect();
        let (service, ns) = (&self.speaker.door.service, &self.speaker.namespace);
        let durability = service.default_durability();
        service.batch(ns, ops, durability).await.map(drop)
    }

    /// Whether another entry fits into a batch of `count`; more would be refused anyhow, and
    /// meanwhile cost many times the bytes of the body.
    fn room_for(&self, count: usize) -> bool {
        (count as u64) <= self.speaker.door.service.limits().batch_ops
    }

    /// The keys from `start` to `end`, both inclusive.
    async fn range(
        &mut self,
        start: &[u8],
        end: &[u8],
        shape: render::Shape,
    ) -> Result<crate::http::body::ReplyBody> {
        self.op = "range";
        if start > end {
            return Ok(render::nothing(shape));
        }
        let query = RangeQuery {
            namespace: self.speaker.namespace.clone(),
            range: inclusive(start, end, self.speaker.door.service.limits().key_bytes),
            ..RangeQuery::default()
        };
        render::range(&self.speaker.door.service, query, shape).await
    }
}

/// The range that has its end in it.
fn inclusive(start: &[u8], end: &[u8], longest: u64) -> Range {
    let longest = usize::try_from(longest).unwrap_or(usize::MAX);
    // The next key is one zero byte longer, or as long as keys can be.
    let end = if end.len() < longest {
        Some([end, &[0]].concat())
    } else {
        firn_engine::key::prefix_end(&end[..longest])
    };
    Range {
        start: Some(start.to_vec()),
        end,
    }
}
