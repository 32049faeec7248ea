//! `kv-verbs`: verbs below `/kv`, JSON in and out.
//!
//! | Request | Answer |
//! |---|---|
//! | `POST /kv/put` `{"key":"k","value":"x"}` | 200 `{"status":"ok"}` |
//! | `GET /kv/read/{key}` | 200 `{"key":"k","value":"x"}`, or 200 `{"error":"NOT_FOUND"}` |
//! | `GET /kv/read-range?start=a&end=b` | 200 `{"data":[{"key":"a","value":"1"}]}`, both ends inclusive |
//! | `POST /kv/batch-put` `{"items":[{"key":"a","value":"1"}]}` | 200 `{"status":"ok","count":1}` |
//! | `DELETE /kv/delete/{key}` | 200 `{"status":"deleted"}`, whether or not the key existed |
//! | `GET /` | 200 `Hello World!` |
//!
//! Paths match in any letter case and with a slash at the end. Bodies have at most 102,400 bytes and
//! are JSON or a form, by their content type. Values are text: another JSON type is a 400. A field
//! that is missing is the 500 that it always was here. Ranges come in byte order.

use std::borrow::Cow;

use bytes::Bytes;
use firn_api::code::Code;
use firn_io::checksum::xxh3_64;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::dialect::form::{BadEscape, Params, decode, lossy};
use crate::dialect::json::{Json, Kind, Syntax, Utf8};
use crate::dialect::render::{Shape, nothing, push_pair, push_plain};
use crate::dialect::{Answer, Call, plain, retry_after};
use crate::http::body::ReplyBody;
use crate::service::error::Error;

/// Most bytes of a body.
const BODY_BYTES: u64 = 102_400;
const BODY_NAME: &str = "the largest body of this dialect";
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const POWERED_BY: HeaderName = HeaderName::from_static("x-powered-by");

pub(super) async fn handle(call: &mut Call<'_>) -> Answer {
    let mut answer = match body(call).await {
        Ok(body) => route(call, body).await,
        Err(refused) => refused,
    };
    let reply = &mut answer.reply;
    let express = HeaderValue::from_static("Express");
    reply.headers_mut().insert(POWERED_BY, express);
    let Some(bytes) = reply.body().as_full() else {
        return answer;
    };
    let tag = format!("W/\"{:x}-{:016x}\"", bytes.len(), xxh3_64(bytes));
    plain::set(reply, ETAG, &tag);
    let reads = matches!(*call.method(), Method::GET | Method::HEAD);
    if reads && reply.status() == StatusCode::OK && unchanged(call, &tag) {
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        *reply.body_mut() = ReplyBody::empty();
        reply.headers_mut().remove(CONTENT_TYPE);
    }
    answer
}

fn unchanged(call: &Call<'_>, tag: &str) -> bool {
    let strong = tag.trim_start_matches("W/");
    let lists = call.parts.headers.get_all(IF_NONE_MATCH);
    lists
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(|tag| tag.trim())
        .any(|one| one == "*" || one.trim_start_matches("W/") == strong)
}

/// A field of a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Field {
    /// Or `null`.
    #[default]
    Absent,
    Text(String),
    /// Of another type.
    Other,
}

/// What a body holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Body {
    key: Field,
    value: Field,
    items: Items,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Items {
    #[default]
    Absent,
    List(Vec<(Field, Field)>),
    Other,
}

/// Reads and parses the body, whatever the path.
async fn body(call: &mut Call<'_>) -> Result<Body, Answer> {
    if !call.has_body() {
        return Ok(Body::default());
    }
    let header = |name| {
        let value = call.parts.headers.get(name);
        value.and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let kind = header(CONTENT_TYPE).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let form = kind.eq_ignore_ascii_case("application/x-www-form-urlencoded");
    if !form && !kind.eq_ignore_ascii_case("application/json") {
        return Ok(Body::default());
    }
    if let Some(coding) = header(CONTENT_ENCODING)
        && !coding.eq_ignore_ascii_case("identity")
    {
        let what = format!("unsupported content encoding \"{coding}\"");
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(short(Code::InvalidEncoding, status, &what));
    }
    let bytes = call.body(BODY_NAME, BODY_BYTES).await;
    let bytes = bytes.map_err(|error| refused(&error))?;
    if form {
        let params = Params::parse(&String::from_utf8_lossy(&bytes), BadEscape::Keep);
        let field = |name| match (params.get(name), params.count(name)) {
            (Some(value), 1) => Field::Text(lossy(value)),
            (None, _) => Field::Absent,
            _ => Field::Other,
        };
        return Ok(Body {
            key: field("key"),
            value: field("value"),
            items: Items::Absent,
        });
    }
    parse(&bytes).map_err(|syntax| long(&format!("The body is not JSON: {syntax}")))
}

fn parse(bytes: &[u8]) -> Result<Body, Syntax> {
    if bytes.is_empty() {
        return Ok(Body::default());
    }
    let mut json = Json::new(bytes, Utf8::Longest);
    let mut body = Body::default();
    match json.kind()? {
        Kind::Object => json.object(&mut |json, name| {
            match name.as_str() {
                "key" => body.key = field(json)?,
                "value" => body.value = field(json)?,
                "items" => body.items = items(json)?,
                _ => json.skip()?,
            }
            Ok(())
        })?,
        Kind::Array => json.skip()?,
        _ => {
            let what = "neither an object nor an array";
            return Err(Syntax { at: 0, what });
        }
    }
    json.end()?;
    Ok(body)
}

fn field(json: &mut Json<'_>) -> Result<Field, Syntax> {
    Ok(match json.string_or_kind()? {
        Ok(text) => Field::Text(text),
        Err(Kind::Null) => Field::Absent,
        Err(_) => Field::Other,
    })
}

fn items(json: &mut Json<'_>) -> Result<Items, Syntax> {
    let mut list = Vec::new();
    match json.kind()? {
        Kind::Null => return json.skip().map(|()| Items::Absent),
        Kind::Array => json.array(&mut |json| {
            let (mut key, mut value) = (Field::Absent, Field::Absent);
            match json.kind()? {
                Kind::Object => json.object(&mut |json, name| {
                    match name.as_str() {
                        "key" => key = field(json)?,
                        "value" => value = field(json)?,
                        _ => json.skip()?,
                    }
                    Ok(())
                })?,
                _ => json.skip()?,
            }
            list.push((key, value));
            Ok(())
        })?,
        _ => return json.skip().map(|()| Items::Other),
    }
    Ok(Items::List(list))
}

async fn route(call: &mut Call<'_>, body: Body) -> Answer {
    let path = call.path();
    let bare = path.strip_suffix('/').unwrap_or(path);
    let mut segments = bare.split('/').skip(1);
    let first = segments.next().unwrap_or_default();
    let (verb, key) = (segments.next(), segments.next());
    let verb = verb.unwrap_or_default().to_ascii_lowercase();
    let more = segments.next().is_some();
    let reads = matches!(*call.method(), Method::GET | Method::HEAD);
    if path == "/" && reads {
        let kind = HeaderValue::from_static("text/html; charset=utf-8");
        let body = ReplyBody::full("Hello World!");
        return Answer::ok(plain::with_body(StatusCode::OK, kind, body));
    }
    if !first.eq_ignore_ascii_case("kv") || more {
        return nowhere(call);
    }
    let post = call.method() == Method::POST;
    match (verb.as_str(), key.filter(|key| !key.is_empty())) {
        ("put", None) if post && key.is_none() => put(call, body).await,
        ("batch-put", None) if post && key.is_none() => batch(call, body.items).await,
        ("read-range", None) if reads && key.is_none() => range(call).await,
        ("read", Some(key)) if reads => match key_of(key) {
            Ok(key) => read(call, key).await,
            Err(what) => long(&what),
        },
        ("delete", Some(key)) if call.method() == Method::DELETE => match key_of(key) {
            Ok(key) => match call.delete(key).await {
                Ok(()) => ok("{\"status\":\"deleted\"}"),
                Err(error) => refused(&error),
            },
            Err(what) => long(&what),
        },
        _ => nowhere(call),
    }
}

/// The key, or what is wrong with it.
fn key_of(raw: &str) -> Result<Vec<u8>, String> {
    let decoded = decode(raw, false).filter(|bytes| std::str::from_utf8(bytes).is_ok());
    decoded.ok_or_else(|| format!("Failed to decode param '{raw}'"))
}

async fn put(call: &mut Call<'_>, body: Body) -> Answer {
    let (key, value) = match (body.key, body.value) {
        (Field::Text(key), Field::Text(value)) => (key, value),
        (Field::Absent, _) | (_, Field::Absent) => return broken(Code::InvalidArgument),
        (Field::Other, _) => return long("key must be a string"),
        (_, Field::Other) => return long("value must be a string: other types are not stored"),
    };
    match call.put(key, value).await {
        Ok(()) => ok("{\"status\":\"ok\"}"),
        Err(error) => refused(&error),
    }
}

async fn batch(call: &mut Call<'_>, items: Items) -> Answer {
    let items = match items {
        Items::List(items) => items,
        Items::Absent => return broken(Code::InvalidArgument),
        Items::Other => return long("items must be an array"),
    };
    let count = items.len();
    let mut entries = Vec::with_capacity(count);
    let mut other = None;
    for (index, item) in items.into_iter().enumerate() {
        match item {
            (Field::Text(key), Field::Text(value)) => entries.push((key, Some(value))),
            (Field::Absent, _) | (_, Field::Absent) => return broken(Code::InvalidArgument),
            _ => other = other.or(Some(index)),
        }
    }
    if let Some(index) = other {
        return long(&format!("items[{index}]: key and value must be strings"));
    }
    match call.batch(entries).await {
        Ok(()) => ok(format!("{{\"status\":\"ok\",\"count\":{count}}}")),
        Err(error) => refused(&error),
    }
}

async fn read(call: &mut Call<'_>, key: Vec<u8>) -> Answer {
    match call.get(key.clone()).await {
        Ok(Some(value)) => {
            let room = match call.room_to_render(&key, &value) {
                Ok(room) => room,
                Err(error) => return refused(&error),
            };
            let mut body = Vec::with_capacity(key.len() + value.len() + 24);
            push_pair(&mut body, &key, &value, push_plain);
            drop(room);
            ok(body)
        }
        Ok(None) => Answer {
            code: Some(Code::NotFound),
            ..ok("{\"error\":\"NOT_FOUND\"}")
        },
        Err(error) => refused(&error),
    }
}

async fn range(call: &mut Call<'_>) -> Answer {
    let params = Params::parse(call.raw_query(), BadEscape::Keep);
    let body = match (params.get("start"), params.get("end")) {
        (Some(start), Some(end)) => call.range(start, end, Shape::Data).await,
        _ => Ok(nothing(Shape::Data)),
    };
    match body {
        Ok(body) => Answer::ok(plain::with_body(StatusCode::OK, JSON, body)),
        Err(error) => refused(&error),
    }
}

fn ok(body: impl Into<Bytes>) -> Answer {
    Answer::ok(plain::with_body(
        StatusCode::OK,
        JSON,
        ReplyBody::full(body),
    ))
}

/// `{"message":...,"error":...,"statusCode":...}`
fn full(code: Code, status: StatusCode, message: &str) -> Answer {
    let mut body = b"{\"message\":".to_vec();
    push_plain(&mut body, message.as_bytes());
    body.extend_from_slice(b",\"error\":");
    push_plain(
        &mut body,
        status.canonical_reason().unwrap_or_default().as_bytes(),
    );
    body.extend_from_slice(format!(",\"statusCode\":{}}}", status.as_u16()).as_bytes());
    Answer::new(code, plain::with_body(status, JSON, ReplyBody::full(body)))
}

fn long(message: &str) -> Answer {
    full(Code::InvalidArgument, StatusCode::BAD_REQUEST, message)
}

/// `{"statusCode":...,"message":...}`
fn short(code: Code, status: StatusCode, message: &str) -> Answer {
    let mut body = format!("{{\"statusCode\":{},\"message\":", status.as_u16()).into_bytes();
    push_plain(&mut body, message.as_bytes());
    body.push(b'}');
    Answer::new(code, plain::with_body(status, JSON, ReplyBody::full(body)))
}

fn broken(code: Code) -> Answer {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    short(code, status, "Internal server error")
}

fn nowhere(call: &Call<'_>) -> Answer {
    let target = match call.parts.uri.query() {
        Some(query) => Cow::Owned(format!("{}?{query}", call.path())),
        None => Cow::Borrowed(call.path()),
    };
    let message = format!("Cannot {} {target}", call.method());
    full(Code::RouteNotFound, StatusCode::NOT_FOUND, &message)
}

fn refused(error: &Error) -> Answer {
    let status = error.code.http_status();
    let mut answer = match error.code {
        Code::Overloaded => {
            let body = ReplyBody::full("{\"error\":\"STORE_OVERLOADED\"}");
            let reply = plain::with_body(StatusCode::SERVICE_UNAVAILABLE, JSON, body);
            Answer::new(error.code, reply)
        }
        Code::BodyTooLarge => {
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            short(error.code, status, "request entity too large")
        }
        _ if status == 500 => broken(error.code),
        _ => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            short(error.code, status, &error.detail)
        }
    };
    retry_after(&mut answer.reply, error);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_taken_apart() {
        let text = |s: &str| Field::Text(s.into());
        let body = parse(b"{\"key\":\"k\",\"value\":5,\"x\":{}}").unwrap();
        assert_eq!((body.key, body.value), (text("k"), Field::Other));
        assert_eq!(parse(b"[1,2]").unwrap(), Body::default());
        assert_eq!(parse(b"{\"key\":null}").unwrap(), Body::default());
        let body = parse(b"{\"items\":[{\"key\":\"k\",\"value\":\"v\"},7]}").unwrap();
        let items = vec![(text("k"), text("v")), (Field::Absent, Field::Absent)];
        assert_eq!(body.items, Items::List(items));
        assert_eq!(parse(b"{\"items\":{}}").unwrap().items, Items::Other);
        for bad in ["null", "{bad", "{} x", "5", " "] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
