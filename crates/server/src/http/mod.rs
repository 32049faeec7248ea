//! The HTTP door: routes, headers and bodies. It translates; what things mean is in
//! [`crate::service`].
//!
//! It stands on hyper alone. Keys are any bytes, so paths are matched raw; a frame of extractors
//! would have to be worked around for that, and would cost more than the read it wraps.
//!
//! Every error is `application/problem+json`. The exceptions are requests that are no HTTP at all:
//! hyper answers those itself, with an empty 400, 414 or 431, and closes.

mod admin;
mod batch;
pub mod body;
mod cluster;
pub(crate) mod coding;
pub(crate) mod kv;
#[doc(hidden)]
pub mod loopback;
pub mod openapi;
pub(crate) mod origin;
pub(crate) mod problem;
mod query;
mod range;
pub(crate) mod rate;
pub(crate) mod request;
mod route;
mod watch;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use firn_api::http::{KV_DURABILITY, KV_VERSION, Object, StatsReply};
use firn_api::text;
use firn_engine::Durability;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, EXPECT, LOCATION, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, Version};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::Activity;
use crate::health;
use crate::http::body::{Received, ReplyBody, Upload, drain, receive};
use crate::http::query::Params;
use crate::http::request::Request;
use crate::http::route::Target;
use crate::metrics::Metrics;
use crate::service::error::{Error, Result};
use crate::service::{DEFAULT_NAMESPACE, Service, durability_name};

pub(crate) type Reply = Response<ReplyBody>;

/// The door and what it needs for each request.
#[derive(Debug)]
pub struct Door {
    pub(crate) service: Service,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) body_timeout: Duration,
    pub(crate) slow_request: Duration,
    /// Nobody but this machine is meant to reach it.
    pub(crate) local: bool,
    pub(crate) started: Duration,
}

impl Door {
    /// Answers a request. Errors are replies too.
    pub(crate) async fn handle(
        &self,
        request: http::Request<Incoming>,
        activity: Arc<Activity>,
    ) -> Reply {
        let (parts, body) = request.into_parts();
        let mut body = Upload::from(body);
        activity.sized(body.is_sized());
        let (service, metrics) = (self.service.clone(), Arc::clone(&self.metrics));
        let (slow, client) = (self.slow_request, activity.client());
        let running = Request::begin(service, metrics, activity, "http", slow, parts.uri.clone());
        let (admitted, allowance) = rate::admit(&self.service, parts.uri.path(), &client);
        let answer = match admitted {
            Ok(()) => self.dispatch(&parts, &mut body, &running).await,
            Err(refused) => Err(refused),
        };
        let answer = answer.and_then(|mut reply| {
            // hyper leaves the body of such a reply out.
            if parts.method != Method::HEAD {
                reply.body_mut().reserve(&self.service)?;
            }
            Ok(reply)
        });
        let (mut reply, code) = match answer {
            Ok(reply) => (reply, "ok"),
            Err(error) => {
                if matches!(
                    error.code,
                    Code::Internal | Code::IoError | Code::Corruption
                ) {
                    tracing::error!(
                        code = error.code.name(),
                        detail = error.detail,
                        "request failed"
                    );
                }
                let path = parts.uri.path();
                let mut reply = match self.service.cluster() {
                    Some(cluster) if error.code == Code::NotLeader => {
                        problem::reply_of_other(&error, path, cluster.leader_http())
                    }
                    _ => problem::reply(&error, path),
                };
                if let (Code::MethodNotAllowed, Some(target)) = (error.code, Target::parse(path)) {
                    reply = allow(reply, target.methods());
                }
                (reply, error.code.name())
            }
        };
        if let Some(allowance) = allowance {
            rate::describe(allowance, self.service.limits(), reply.headers_mut());
        }
        running.waited(body.waited());
        running.answered();
        // A stream of HTTP/2 ends without harm to the others of its connection.
        if parts.version < Version::HTTP_2 && !settle(&parts, &mut body, code).await {
            let close = HeaderValue::from_static("close");
            reply.headers_mut().insert(CONNECTION, close);
        }
        running.set_code(code);
        reply.body_mut().request = Some(running);
        reply
    }

    /// The service's statistics with what only the server knows.
    pub(crate) async fn stats(&self) -> Result<StatsReply> {
        let mut stats = self.service.stats().await?;
        let uptime = self.service.clock().monotonic();
        let uptime = uptime.saturating_sub(self.started);
        stats.uptime_ms = u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX);
        stats.connections = u64::try_from(self.metrics.connections.get()).unwrap_or(0);
        Ok(stats)
    }

    async fn dispatch(&self, parts: &Parts, body: &mut Upload, running: &Request) -> Result<Reply> {
        coding::check(parts)?;
        origin::check(parts, self.local)?;
        let path = parts.uri.path();
        let Some(target) = Target::parse(path) else {
            let detail = "there is nothing at this path; /openapi.json lists what there is";
            return Err(Error::new(Code::RouteNotFound, detail));
        };
        let methods = target.methods();
        if parts.method == Method::OPTIONS {
            return Ok(allow(empty(StatusCode::NO_CONTENT), methods));
        }
        if !methods.contains(&parts.method) {
            let names = methods
                .iter()
                .map(Method::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            let detail = format!("{} is not among {names}", parts.method);
            return Err(Error::new(Code::MethodNotAllowed, detail));
        }
        running.set_op(target.op(&parts.method));
        if let Some(reply) = redirect(&self.service, parts, target)? {
            return Ok(reply);
        }
        let query = parts.uri.query();
        match target {
            Target::Key { ns, key } => {
                let ns = namespace(ns)?;
                match parts.method {
                    Method::PUT => kv::put(self, &ns, key, parts, body).await,
                    Method::DELETE => kv::delete(self, &ns, key, parts).await,
                    _ => kv::get(self, &ns, key, parts).await,
                }
            }
            Target::Range { ns } if parts.method == Method::DELETE => {
                range::delete(self, &namespace(ns)?, query).await
            }
            Target::Range { ns } => range::get(self, &namespace(ns)?, parts).await,
            Target::Batch { ns } => batch::batch(self, &namespace(ns)?, query, body).await,
            Target::Mget { ns } => batch::mget(self, &namespace(ns)?, query, body).await,
            Target::Watch { ns } => {
                running.set_lasting();
                let ns = ns.map(|ns| namespace(Some(ns))).transpose()?;
                watch::get(self, ns, parts).await
            }
            Target::Namespaces => admin::namespaces(self, query).await,
            Target::Namespace { ns } => {
                admin::namespace(self, &namespace(Some(ns))?, &parts.method, query).await
            }
            Target::Flush => admin::flush(self, query).await,
            Target::Compact => admin::compact(self, query).await,
            Target::Checkpoint => admin::checkpoint(self, query, body).await,
            Target::Verify => admin::verify(self, query).await,
            Target::Stats => admin::stats(self, query).await,
            Target::Cluster => cluster::describe(self, query),
            Target::Members => cluster::admit(self, query, body).await,
            Target::Promote | Target::Demote | Target::Remove | Target::Transfer => {
                cluster::change(self, target, query, body).await
            }
            Target::Livez => self.livez(query),
            Target::Readyz => self.readyz(path, query).await,
            Target::Metrics => self.metrics_page(parts).await,
            Target::OpenApi => {
                Params::parse(query, &[])?;
                Ok(json(StatusCode::OK, &openapi::document()))
            }
        }
    }

    fn livez(&self, query: Option<&str>) -> Result<Reply> {
        let params = Params::parse(query, &["verbose", "exclude"])?;
        check_excluded(&params)?;
        Ok(text_page(
            StatusCode::OK,
            health::page("livez", &[], params.flag("verbose")?),
        ))
    }

    async fn readyz(&self, path: &str, query: Option<&str>) -> Result<Reply> {
        let params = Params::parse(query, &["verbose", "exclude"])?;
        check_excluded(&params)?;
        let service = self.service.clone();
        let mut checks = self
            .service
            .blocking(move || Ok(health::ready(&service)))
            .await?;
        checks.retain(|check| {
            !params
                .all("exclude")
                .any(|name| name == check.name.as_bytes())
        });
        let failed = checks.iter().any(|check| check.failure.is_some());
        let status = if failed {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        let name = path.trim_start_matches('/');
        let mut reply = text_page(status, health::page(name, &checks, params.flag("verbose")?));
        if failed {
            reply
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(1));
        }
        Ok(reply)
    }

    async fn metrics_page(&self, parts: &Parts) -> Result<Reply> {
        Params::parse(parts.uri.query(), &[])?;
        let metrics = Arc::clone(&self.metrics);
        let open = kv::accepts(parts, "application/openmetrics-text");
        let page = self
            .service
            .blocking(move || {
                let page = if open {
                    metrics.page()
                } else {
                    metrics.prometheus_page()
                };
                page.map_err(|e| Error::new(Code::Internal, e.to_string()))
            })
            .await?;
        let kind = if open {
            "application/openmetrics-text; version=1.0.0; charset=utf-8"
        } else {
            "text/plain; version=0.0.4; charset=utf-8"
        };
        let mut reply = text_page(StatusCode::OK, page);
        reply
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Ok(reply)
    }

    /// Reads and parses a JSON body, and makes of it what `then` does.
    /// What it holds keeps the body's place in the memory that is reserved.
    async fn json_body<T: DeserializeOwned, U: Send + 'static>(
        &self,
        body: &mut Upload,
        then: impl FnOnce(&Service, T) -> Result<U> + Send + 'static,
    ) -> Result<(U, Received)> {
        let limit = self.service.limits().body_bytes;
        let (code, name) = (Code::BodyTooLarge, "limits.body_bytes");
        let pace = self.body_timeout;
        let mut received = receive(&self.service, body, pace, code, name, limit).await?;
        let bytes = received.take();
        let len = bytes.len();
        let parse = move |service: &Service| {
            let parsed = serde_json::from_slice::<Object<T>>(&bytes).map_err(|e| {
                let detail = format!("the body is not what this route takes: {e}");
                Error::new(Code::InvalidJson, detail)
            })?;
            then(service, parsed.0)
        };
        let made = self.service.inline_or_blocking(len, parse).await;
        Ok((made?, received))
    }
}

/// `?redirect=1`: whoever asks for it is sent to the leader, which would be asked anyway.
fn redirect(service: &Service, parts: &Parts, target: Target<'_>) -> Result<Option<Reply>> {
    let pairs = parts.uri.query().unwrap_or_default().split('&');
    let wish = pairs
        .filter_map(|pair| pair.strip_prefix("redirect"))
        .next_back();
    let wants = match wish {
        None | Some("=0" | "=false") => false,
        Some("" | "=" | "=1" | "=true") => true,
        Some(_) => return Err(Error::invalid("redirect is neither true nor false")),
    };
    let is_about_this_node = matches!(
        target,
        Target::Livez | Target::Readyz | Target::Metrics | Target::OpenApi | Target::Stats
    );
    if !wants || is_about_this_node {
        return Ok(None);
    }
    let Some(leader) = service.cluster().and_then(|cluster| cluster.leader_http()) else {
        return Ok(None);
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut reply = empty(StatusCode::TEMPORARY_REDIRECT);
    let location = HeaderValue::from_str(&format!("http://{leader}{path}"))
        .map_err(|_| Error::new(Code::Internal, "the leader's address is no text"))?;
    reply.headers_mut().insert(LOCATION, location);
    Ok(Some(reply))
}

/// Refuses to leave out checks that there are not.
fn check_excluded(params: &Params<'_>) -> Result<()> {
    for name in params.all("exclude") {
        if !health::CHECKS.iter().any(|check| check.as_bytes() == name) {
            let (name, known) = (name.escape_ascii(), health::CHECKS.join(", "));
            return Err(Error::invalid(format!(
                "exclude: there is no check {name}; there are: {known}"
            )));
        }
    }
    Ok(())
}

/// Gets rid of what nobody wanted of a request's body, so that the client comes to read the answer
/// instead of finding the connection reset; `false` if the connection cannot be used any more.
pub(crate) async fn settle(parts: &Parts, body: &mut Upload, code: &str) -> bool {
    if coding::check(parts).is_err() {
        return false;
    }
    if body.is_end() {
        return true;
    }
    let gone = [
        Code::RequestTimeout,
        Code::BodyIncomplete,
        Code::ShuttingDown,
    ];
    // Who waits for a 100 has sent nothing yet, and reading would invite it.
    if parts.headers.contains_key(EXPECT) || gone.iter().any(|gone| gone.name() == code) {
        return false;
    }
    drain(body).await
}

/// The name of a namespace out of a path.
fn namespace(raw: Option<&str>) -> Result<Cow<'_, str>> {
    let Some(raw) = raw else {
        return Ok(Cow::Borrowed(DEFAULT_NAMESPACE));
    };
    if !raw.contains('%') {
        return Ok(Cow::Borrowed(raw));
    }
    let broken = |e: String| Error::new(Code::InvalidEncoding, format!("namespace: {e}"));
    let bytes = text::percent_decode(raw).map_err(broken)?;
    String::from_utf8(bytes)
        .map(Cow::Owned)
        .map_err(|_| broken("not valid UTF-8".into()))
}

/// A key out of a path.
pub(crate) fn key_of(raw: &str, base64: bool) -> Result<Bytes> {
    let broken = |e: String| Error::new(Code::InvalidEncoding, format!("key: {e}"));
    let bytes = text::percent_decode(raw).map_err(broken)?;
    if !base64 {
        return Ok(bytes.into());
    }
    let text = String::from_utf8(bytes).map_err(|_| broken("not base64url".into()))?;
    Ok(text::base64url_decode(&text).map_err(broken)?.into())
}

pub(crate) fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(ReplyBody::empty());
    *reply.status_mut() = status;
    reply
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    // Our bodies are plain structures with text keys: serializing them cannot fail.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    json_bytes(status, bytes)
}

pub(crate) fn json_bytes(status: StatusCode, bytes: Vec<u8>) -> Reply {
    let mut reply = Response::new(ReplyBody::full(bytes));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

fn text_page(status: StatusCode, page: String) -> Reply {
    let mut reply = Response::new(ReplyBody::full(page));
    *reply.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply
}

fn allow(mut reply: Reply, methods: &[Method]) -> Reply {
    let list = methods
        .iter()
        .map(Method::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if let Ok(list) = HeaderValue::from_str(&list) {
        reply.headers_mut().insert(ALLOW, list);
    }
    reply
}

/// Says what a write was promised and which version it has.
pub(crate) fn written(mut reply: Reply, version: u64, durability: Durability) -> Reply {
    let headers = reply.headers_mut();
    headers.insert(KV_VERSION, HeaderValue::from(version));
    headers.insert(
        KV_DURABILITY,
        HeaderValue::from_static(durability_name(durability)),
    );
    reply
}
