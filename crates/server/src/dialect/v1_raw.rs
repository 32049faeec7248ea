//! `v1-raw`: the value is the body, the key one segment of the path.
//!
//! | Request | Answer |
//! |---|---|
//! | `PUT /v1/{key}` | 201; 400 if key or value are longer than 1,024 bytes |
//! | `GET /v1/{key}` | 200 and the bytes, with a guessed media type; 404 |
//! | `DELETE /v1/{key}` | 204, whether or not the key existed |
//! | `GET /healthz` | 200 |
//! | `GET /metrics` | Prometheus: this dialect's series and the server's |
//!
//! A key is decoded if the path is escaped as Go escapes paths, and is taken as it stands
//! otherwise: `/v1/sp%20ace` is `sp ace`, `/v1/a%2Fb` is `a%2Fb`, five characters. Pages of any
//! origin may ask (CORS), which is why this dialect should not listen where nobody asked for it.

use std::time::Duration;

use firn_api::code::Code;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ALLOW, CONTENT_TYPE, ORIGIN,
    VARY,
};
use http::{HeaderValue, Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::dialect::form::decode;
use crate::dialect::{Answer, Call, plain, sniff};
use crate::http::body::ReplyBody;
use crate::http::{Reply, empty};
use crate::metrics;

const FAILED: &str = "Internal Server Error";

pub(super) async fn handle(call: &mut Call<'_>) -> Answer {
    let asked = call.parts.headers.get(ACCESS_CONTROL_REQUEST_METHOD);
    let from_page = call.parts.headers.contains_key(ORIGIN);
    let mut answer = match asked {
        Some(method) if from_page && call.method() == Method::OPTIONS => {
            let mut reply = empty(StatusCode::OK);
            let headers = reply.headers_mut();
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
            if let Some(names) = call.parts.headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
            }
            for name in [
                ACCESS_CONTROL_REQUEST_METHOD,
                ACCESS_CONTROL_REQUEST_HEADERS,
            ] {
                headers.append(VARY, HeaderValue::from(name));
            }
            Answer::ok(reply)
        }
        _ => route(call).await,
    };
    let headers = answer.reply.headers_mut();
    headers.append(VARY, HeaderValue::from(ORIGIN));
    if from_page {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    answer
}

async fn route(call: &mut Call<'_>) -> Answer {
    match call.path() {
        "/healthz" => {
            call.op = "health";
            if call.method() != Method::GET {
                return not_allowed(&[Method::GET]);
            }
            Answer::ok(plain::text(StatusCode::OK, "kv-store up and healthy"))
        }
        "/metrics" => {
            call.op = "metrics";
            if call.method() != Method::GET {
                return not_allowed(&[Method::GET]);
            }
            page(call).await
        }
        path => match key_of(path) {
            Ok(Some(key)) => {
                let begin = call.speaker.door.service.clock().monotonic();
                let answer = one(call, key).await;
                let end = call.speaker.door.service.clock().monotonic();
                let took = end.saturating_sub(begin);
                let counters = &call.speaker.counters;
                counters.note(call.op, call.method(), &answer, took);
                answer
            }
            Ok(None) => plain::nowhere(),
            Err(()) => {
                let what = "400 Bad Request: a % in the path is no escape";
                plain::bad(Code::InvalidEncoding, what)
            }
        },
    }
}

async fn one(call: &mut Call<'_>, key: Vec<u8>) -> Answer {
    match *call.method() {
        Method::PUT => {
            call.op = "put";
            let numbers = &call.speaker.numbers;
            if key.len() as u64 > numbers.key_bytes {
                return plain::bad(Code::KeyTooLarge, "key too large");
            }
            let value = match call.body("dialects.value_bytes", numbers.value_bytes).await {
                Ok(value) => value,
                Err(error) if error.code == Code::BodyTooLarge => {
                    return plain::bad(Code::ValueTooLarge, "value too large");
                }
                Err(error) => return plain::refused(&error, FAILED),
            };
            match call.put(key, value).await {
                Ok(()) => Answer::ok(empty(StatusCode::CREATED)),
                Err(error) => plain::refused(&error, FAILED),
            }
        }
        Method::GET => match call.get(key).await {
            Ok(Some(value)) => {
                let kind = (!value.is_empty()).then(|| sniff::media_type(&value));
                let mut reply = Reply::new(ReplyBody::full(value));
                if let Some(kind) = kind {
                    let kind = HeaderValue::from_static(kind);
                    reply.headers_mut().insert(CONTENT_TYPE, kind);
                }
                Answer::ok(reply)
            }
            // A key that cannot exist is not there.
            Ok(None) => nothing(),
            Err(error) if error.code == Code::KeyTooLarge => nothing(),
            Err(error) => plain::refused(&error, FAILED),
        },
        Method::DELETE => match call.delete(key).await {
            Ok(()) => Answer::ok(empty(StatusCode::NO_CONTENT)),
            Err(error) if error.code == Code::KeyTooLarge => {
                Answer::ok(empty(StatusCode::NO_CONTENT))
            }
            Err(error) => plain::refused(&error, FAILED),
        },
        _ => not_allowed(&[Method::PUT, Method::GET, Method::DELETE]),
    }
}

fn nothing() -> Answer {
    Answer {
        code: Some(Code::NotFound),
        ..plain::nowhere()
    }
}

fn not_allowed(methods: &[Method]) -> Answer {
    let mut reply = empty(StatusCode::METHOD_NOT_ALLOWED);
    for method in methods {
        // A header for each, as before.
        if let Ok(name) = HeaderValue::from_str(method.as_str()) {
            reply.headers_mut().append(ALLOW, name);
        }
    }
    Answer::new(Code::MethodNotAllowed, reply)
}

/// The key of a path below `/v1/`: `None` if it is none, an error if an escape is none.
fn key_of(path: &str) -> Result<Option<Vec<u8>>, ()> {
    let decoded = decode(path, false).ok_or(())?;
    let usual = escape(&decoded) == path;
    let whole = if usual {
        decoded
    } else {
        path.as_bytes().to_vec()
    };
    let key = whole.strip_prefix(b"/v1/").unwrap_or_default();
    let one = !key.is_empty() && !key.contains(&b'/');
    Ok(one.then(|| key.to_vec()))
}

/// Escapes a path as Go's `net/url` does when it is not told otherwise.
fn escape(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for &byte in path {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'='
            | b'@' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

async fn page(call: &Call<'_>) -> Answer {
    let metrics = std::sync::Arc::clone(&call.speaker.door.metrics);
    let own = call.speaker.counters.page();
    let page = call.speaker.door.service.blocking(move || {
        let internal =
            |e: std::fmt::Error| crate::service::error::Error::new(Code::Internal, e.to_string());
        Ok(own.map_err(internal)? + &metrics.prometheus_page().map_err(internal)?)
    });
    match page.await {
        Ok(page) => {
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            Answer::ok(plain::with_body(
                StatusCode::OK,
                kind,
                ReplyBody::full(page),
            ))
        }
        Err(error) => plain::refused(&error, FAILED),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabels {
    transport: &'static str,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    transport: &'static str,
    code: u16,
    method: &'static str,
    endpoint: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The series that dashboards of this dialect know. Keys are no labels: there would be a series
/// for each.
#[derive(Debug)]
pub(crate) struct Counters {
    registry: Registry,
    operations: Family<OpLabels, Counter>,
    latencies: Histograms<OpLabels>,
    requests: Family<RequestLabels, Counter>,
    durations: Histograms<RequestLabels>,
}

fn histogram() -> Histogram {
    Histogram::new([
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
        5.0, 10.0,
    ])
}

impl Default for Counters {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (operations, requests) = (Family::default(), Family::default());
        let latencies: Histograms<_> = Family::new_with_constructor(histogram);
        let durations: Histograms<_> = Family::new_with_constructor(histogram);
        registry.register(
            "kv_operations",
            "Operations that succeeded",
            operations.clone(),
        );
        let help = "Time of operations that succeeded";
        registry.register("kv_operations_latency_seconds", help, latencies.clone());
        registry.register("requests", "Requests below /v1/", requests.clone());
        let help = "Time of requests below /v1/";
        registry.register("requests_seconds", help, durations.clone());
        Self {
            registry,
            operations,
            latencies,
            requests,
            durations,
        }
    }
}

impl Counters {
    fn note(&self, op: &'static str, method: &Method, answer: &Answer, took: Duration) {
        let took = took.as_secs_f64();
        let transport = "http";
        if answer.code.is_none() {
            let labels = OpLabels {
                transport,
                operation: op,
            };
            self.operations.get_or_create(&labels).inc();
            self.latencies.get_or_create(&labels).observe(took);
        }
        // A client may make up methods; a label must not.
        let known = ["PUT", "GET", "DELETE", "POST", "HEAD", "OPTIONS", "PATCH"];
        let method = known.iter().find(|name| method == **name);
        let labels = RequestLabels {
            transport,
            code: answer.reply.status().as_u16(),
            method: method.copied().unwrap_or("other"),
            endpoint: "/v1/{key}",
        };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&labels).observe(took);
    }

    fn page(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(metrics::to_prometheus(&page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_only_if_escaped_as_usual() {
        for (path, key) in [
            ("/v1/a%2Fb", Some(&b"a%2Fb"[..])),
            ("/v1/sp%20ace", Some(b"sp ace")),
            ("/v1/sp+ace", Some(b"sp+ace")),
            ("/v1/%C3%A9", Some("\u{e9}".as_bytes())),
            ("/v1/%c3%a9", Some(b"%c3%a9")),
            ("/v1/%FF", Some(b"\xff")),
            ("/v1/a!b", Some(b"a!b")),
            ("/v1/a:b", Some(b"a:b")),
            ("/v1/", None),
            ("/v1", None),
            ("/v1/a/b", None),
            ("/nope", None),
        ] {
            assert_eq!(key_of(path), Ok(key.map(<[u8]>::to_vec)), "{path}");
        }
        assert_eq!(key_of("/v1/%zz"), Err(()));
    }
}
