//! `kv-json`: a JSON object under `/kv/{key}`.
//!
//! | Request | Answer |
//! |---|---|
//! | `POST /kv/{key}` `{"value":"x"}` | 201 |
//! | `GET /kv/{key}` | 200 `{"key":"k","value":"x"}` |
//! | `DELETE /kv/{key}` | 204; 500 if the key does not exist |
//! | `GET /kv/?start=a&end=b` | 200 `{"a":"1","b":"2"}`, both ends inclusive |
//! | `POST /kv/batch` `[{"key":"a","value":"1"}]` | 201, all or nothing |
//! | any `/health` | 200 `{"status": "ok"}` |
//!
//! The key is the second segment of the decoded path; what follows it is ignored. An empty value
//! cannot be stored. A connection has ten requests in five seconds ([`super::allowance`]).

use firn_api::code::Code;
use http::{HeaderValue, Method, StatusCode};

use crate::dialect::form::{BadEscape, Params, decode};
use crate::dialect::json::{Json, Kind, Syntax, Utf8};
use crate::dialect::render::{Shape, push_page_safe, push_pair};
use crate::dialect::{Answer, Call, plain};
use crate::http::{empty, json_bytes};

const FAILED_READ: &str = "Internal server error";
const FAILED_WRITE: &str = "SSTable Write Failed";
const FAILED_BATCH: &str = "Batch WAL Write Failed";
const FAILED_DELETE: &str = "Failed to delete key";
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub(super) fn too_many() -> Answer {
    // The code of what the server cannot take now; the status is this dialect's.
    let status = StatusCode::TOO_MANY_REQUESTS;
    plain::line(Code::Overloaded, status, "Too many requests")
}

pub(super) async fn handle(call: &mut Call<'_>) -> Answer {
    let path = call.path();
    let tidy = cleaned(path);
    if tidy != path || path == "/kv" {
        let mut to = if path == "/kv" { "/kv/".into() } else { tidy };
        if let Some(query) = call.parts.uri.query() {
            to = format!("{to}?{query}");
        }
        return plain::moved(&to, call.method() == Method::GET);
    }
    if path == "/health" {
        call.op = "health";
        return Answer::ok(plain::text(StatusCode::OK, "{\"status\": \"ok\"}"));
    }
    if !path.starts_with("/kv/") {
        return plain::nowhere();
    }
    let not_allowed = || {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        plain::line(Code::MethodNotAllowed, status, "Method Not Allowed")
    };
    let Some(decoded) = decode(path, false) else {
        return plain::bad(
            Code::InvalidEncoding,
            "400 Bad Request: a % in the path is no escape",
        );
    };
    if path == "/kv/batch" {
        return match *call.method() {
            Method::POST => batch(call).await,
            _ => not_allowed(),
        };
    }
    let key = decoded.split(|&b| b == b'/').nth(2).unwrap_or_default();
    let key = key.to_vec();
    let no_key = || plain::bad(Code::InvalidArgument, "Missing key in URL");
    match *call.method() {
        Method::GET => {
            let params = Params::parse(call.raw_query(), BadEscape::Drop);
            if let (Some(start), Some(end)) = (params.get("start"), params.get("end")) {
                return range(call, start, end).await;
            }
            if key.is_empty() {
                return no_key();
            }
            get(call, key).await
        }
        Method::POST if key.is_empty() => no_key(),
        Method::POST => put(call, key).await,
        Method::DELETE if key.is_empty() => no_key(),
        Method::DELETE => match call.delete_existing(key).await {
            Ok(true) => Answer::ok(empty(StatusCode::NO_CONTENT)),
            Ok(false) => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                plain::line(Code::NotFound, status, FAILED_DELETE)
            }
            Err(error) => plain::refused(&error, FAILED_DELETE),
        },
        _ => not_allowed(),
    }
}

async fn get(call: &mut Call<'_>, key: Vec<u8>) -> Answer {
    match call.get(key.clone()).await {
        Ok(Some(value)) => {
            let room = match call.room_to_render(&key, &value) {
                Ok(room) => room,
                Err(error) => return plain::refused(&error, FAILED_READ),
            };
            let mut body = Vec::with_capacity(key.len() + value.len() + 24);
            push_pair(&mut body, &key, &value, push_page_safe);
            drop(room);
            body.push(b'\n');
            Answer::ok(json_bytes(StatusCode::OK, body))
        }
        Ok(None) => plain::line(Code::NotFound, StatusCode::NOT_FOUND, "Key not found"),
        Err(error) => plain::refused(&error, FAILED_READ),
    }
}

async fn range(call: &mut Call<'_>, start: &[u8], end: &[u8]) -> Answer {
    if start.is_empty() || end.is_empty() {
        let what = "Missing start or end key in query";
        return plain::bad(Code::InvalidArgument, what);
    }
    match call.range(start, end, Shape::Object).await {
        Ok(body) => Answer::ok(plain::with_body(StatusCode::OK, JSON, body)),
        Err(error) => plain::refused(&error, FAILED_READ),
    }
}

fn not_json() -> Answer {
    plain::bad(Code::InvalidJson, "Invalid JSON request")
}

async fn put(call: &mut Call<'_>, key: Vec<u8>) -> Answer {
    let body = match call.whole_body().await {
        Ok(body) => body,
        Err(error) => return plain::refused(&error, FAILED_WRITE),
    };
    // What follows the value is ignored.
    let read = fields(&mut Json::new(&body, Utf8::EachByte), ["value"]);
    call.forget(body);
    match read {
        Err(_) | Ok(Err(WrongType)) => not_json(),
        Ok(Ok([value])) if value.is_empty() => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            plain::line(Code::InvalidArgument, status, "WAL Write Failed")
        }
        Ok(Ok([value])) => match call.put(key, value).await {
            Ok(()) => Answer::ok(empty(StatusCode::CREATED)),
            Err(error) => plain::refused(&error, FAILED_WRITE),
        },
    }
}

async fn batch(call: &mut Call<'_>) -> Answer {
    let body = match call.whole_body().await {
        Ok(body) => body,
        Err(error) => return plain::refused(&error, FAILED_BATCH),
    };
    let mut json = Json::new(&body, Utf8::EachByte);
    let (mut entries, mut wrong) = (Vec::new(), false);
    let read = match json.kind() {
        Ok(Kind::Null) => json.skip(),
        _ => json.array(&mut |json| {
            match fields(json, ["key", "value"])? {
                Ok([key, value]) if call.room_for(entries.len()) => entries.push((key, value)),
                Ok(_) => {}
                Err(WrongType) => wrong = true,
            }
            Ok(())
        }),
    };
    call.forget(body);
    if read.is_err() || wrong {
        return not_json();
    }
    let hollow = |(key, value): &(String, String)| key.is_empty() || value.is_empty();
    if entries.iter().any(hollow) {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        return plain::line(Code::InvalidArgument, status, FAILED_BATCH);
    }
    let entries = entries.into_iter().map(|(key, value)| (key, Some(value)));
    match call.batch(entries.collect()).await {
        Ok(()) => Answer::ok(empty(StatusCode::CREATED)),
        Err(error) => plain::refused(&error, FAILED_BATCH),
    }
}

/// A field is something else than text.
#[derive(Debug)]
pub(super) struct WrongType;

/// The text fields of an object by name, in any letter case; empty where they are absent or null. A
/// `null` in place of the object has none. Other fields are ignored.
pub(super) fn fields<const N: usize>(
    json: &mut Json<'_>,
    names: [&str; N],
) -> Result<Result<[String; N], WrongType>, Syntax> {
    let mut values = [const { String::new() }; N];
    let mut wrong = false;
    match json.kind()? {
        Kind::Object => json.object(&mut |json, name| {
            let at = names.iter().position(|n| n.eq_ignore_ascii_case(&name));
            let Some(at) = at else {
                return json.skip();
            };
            match json.string_or_kind()? {
                Ok(text) => values[at] = text,
                Err(Kind::Null) => {}
                Err(_) => wrong = true,
            }
            Ok(())
        })?,
        Kind::Null => json.skip()?,
        _ => {
            json.skip()?;
            wrong = true;
        }
    }
    Ok(if wrong { Err(WrongType) } else { Ok(values) })
}

/// The path without `//`, `/./` and `/../`.
fn cleaned(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len() + 1);
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() || path.ends_with('/') {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_tidied() {
        for (path, tidy) in [
            ("/", "/"),
            ("/kv/", "/kv/"),
            ("/kv//dbl", "/kv/dbl"),
            ("/kv/../x", "/x"),
            ("/kv/./x/", "/kv/x/"),
            ("/..", "/"),
            ("/kv/p/q", "/kv/p/q"),
        ] {
            assert_eq!(cleaned(path), tidy);
        }
    }

    #[test]
    fn fields_are_found_in_any_letter_case() {
        let read = |text: &str| fields(&mut Json::new(text.as_bytes(), Utf8::EachByte), ["value"]);
        assert_eq!(
            read("{\"VALUE\":\"x\",\"o\":[1]} rest").unwrap().unwrap(),
            ["x"]
        );
        assert_eq!(read("null").unwrap().unwrap(), [""]);
        assert!(read("{\"value\":5}").unwrap().is_err());
        assert!(read("[]").unwrap().is_err());
        assert!(read("{\"value\":\"x\"").is_err());
    }
}
