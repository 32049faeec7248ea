//! `query`: everything in the query, any path.
//!
//! | Request | Answer |
//! |---|---|
//! | `PUT /?key=k&value=x` | 200; without `value` an empty one is stored |
//! | `GET /?key=k` | 200 and the bytes; 404 |
//! | `DELETE /?key=k` | 200, whether or not the key existed |
//! | `GET /range?start=a&end=b` | 200 `["1","2"]`: values in key order, both ends inclusive |
//! | `POST /batchput` `{"Keys":["a"],"Values":["1"]}` | 200, all or nothing; lower case names too |
//!
//! Answers have no text: 400 (and `Connection: close`) says that the key is missing, 500 that a
//! batch is not what it should be. What the system before could not refuse says what it is.

use bytes::Bytes;
use firn_api::code::Code;
use http::header::{CONNECTION, CONTENT_TYPE, SERVER};
use http::{HeaderValue, Method, StatusCode};

use crate::dialect::form::{BadEscape, Params, lossy};
use crate::dialect::json::{Json, Kind, Syntax, Utf8};
use crate::dialect::render::{Chunked, Shape};
use crate::dialect::{Answer, Call, plain, retry_after};
use crate::http::Reply;
use crate::http::body::ReplyBody;
use crate::service::error::Error;

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 32_768;

pub(super) async fn handle(call: &mut Call<'_>) -> Answer {
    let mut answer = if head_bytes(call) > HEAD_BYTES {
        let kind = HeaderValue::from_static("text/html");
        let page = "<h1>Bad Request (Bad Request)</h1>";
        let body = ReplyBody::full(page);
        let reply = plain::with_body(StatusCode::BAD_REQUEST, kind, body);
        Answer::new(Code::LimitExceeded, reply)
    } else {
        route(call).await
    };
    let status = answer.reply.status();
    let headers = answer.reply.headers_mut();
    // Clients of this dialect may look for it.
    headers.insert(SERVER, HeaderValue::from_static("Microsoft-NetCore/2.0"));
    if matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::INTERNAL_SERVER_ERROR
    ) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// The size of the request line and the headers.
fn head_bytes(call: &Call<'_>) -> usize {
    let target = call.parts.uri.path().len() + call.parts.uri.query().map_or(0, |q| q.len() + 1);
    let headers = call.parts.headers.iter();
    let lines: usize = headers
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    call.method().as_str().len() + target + " HTTP/1.1\r\n \r\n".len() + lines
}

async fn route(call: &mut Call<'_>) -> Answer {
    let path = call.path();
    let params = Params::parse(call.raw_query(), BadEscape::Keep);
    let param = |name| params.joined(name).map(|value| lossy(&value));
    let key = param("key").filter(|key| !key.is_empty());
    let no_key = || said(Code::InvalidArgument, StatusCode::BAD_REQUEST);
    match *call.method() {
        Method::GET if path.eq_ignore_ascii_case("/range") => {
            let start = param("start").unwrap_or_default();
            let end = param("end").unwrap_or_default();
            let range = call.range(start.as_bytes(), end.as_bytes(), Shape::Values);
            match range.await {
                Ok(body) => {
                    let kind = HeaderValue::from_static("application/json");
                    Answer::ok(plain::with_body(StatusCode::OK, kind, body))
                }
                Err(error) => refused(&error),
            }
        }
        Method::GET => match key {
            None => no_key(),
            Some(key) => match call.get(key).await {
                Ok(Some(value)) => {
                    let kind = HeaderValue::from_static("application/octet-stream");
                    Answer::ok(plain::with_body(StatusCode::OK, kind, chunked(value)))
                }
                Ok(None) => said(Code::NotFound, StatusCode::NOT_FOUND),
                Err(error) => refused(&error),
            },
        },
        Method::PUT => match key {
            None => no_key(),
            Some(key) => {
                let value = param("value").unwrap_or_default();
                done(call.put(key, value).await)
            }
        },
        Method::DELETE => match key {
            None => no_key(),
            Some(key) => done(call.delete(key).await),
        },
        Method::POST if path.eq_ignore_ascii_case("/batchput") => batch(call).await,
        Method::POST => said(Code::RouteNotFound, StatusCode::NOT_FOUND),
        _ => said(Code::MethodNotAllowed, StatusCode::METHOD_NOT_ALLOWED),
    }
}

fn chunked(bytes: impl Into<Bytes>) -> ReplyBody {
    ReplyBody::chunks(Box::new(Chunked(bytes.into())))
}

fn nothing(status: StatusCode) -> Reply {
    let mut reply = Reply::new(chunked(Bytes::new()));
    *reply.status_mut() = status;
    reply
}

/// A status without words.
fn said(code: Code, status: StatusCode) -> Answer {
    Answer::new(code, nothing(status))
}

fn done(outcome: Result<(), Error>) -> Answer {
    match outcome {
        Ok(()) => Answer::ok(nothing(StatusCode::OK)),
        Err(error) => refused(&error),
    }
}

fn refused(error: &Error) -> Answer {
    let status = error.code.http_status();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        return said(error.code, status);
    }
    let mut reply = nothing(status);
    *reply.body_mut() = chunked(format!("{}\n", error.detail));
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    retry_after(&mut reply, error);
    Answer::new(error.code, reply)
}

async fn batch(call: &mut Call<'_>) -> Answer {
    let body = match call.whole_body().await {
        Ok(body) => body,
        Err(error) => return refused(&error),
    };
    let broken = || said(Code::InvalidJson, StatusCode::INTERNAL_SERVER_ERROR);
    let uneven = || said(Code::InvalidArgument, StatusCode::BAD_REQUEST);
    let most = |count| call.room_for(count);
    let read = lists(&mut Json::new(&body, Utf8::Refuse), &most);
    call.forget(body);
    match read {
        Err(_) | Ok(Lists::Wrong) => broken(),
        Ok(Lists::Null) => uneven(),
        Ok(Lists::Both(keys, values)) if keys.len() != values.len() => uneven(),
        Ok(Lists::Both(keys, values)) => {
            let entries = keys.into_iter().zip(values.into_iter().map(Some));
            done(call.batch(entries.collect()).await)
        }
    }
}

/// What a body of a batch holds.
#[derive(Debug, PartialEq, Eq)]
enum Lists {
    Both(Vec<String>, Vec<String>),
    Null,
    Wrong,
}

fn lists(json: &mut Json<'_>, room: &dyn Fn(usize) -> bool) -> Result<Lists, Syntax> {
    let (mut keys, mut values) = (None, None);
    match json.kind()? {
        Kind::Null => {
            json.skip()?;
            json.end()?;
            return Ok(Lists::Null);
        }
        Kind::Object => json.object(&mut |json, name| {
            let list = match name.as_str() {
                "Keys" | "keys" => &mut keys,
                "Values" | "values" => &mut values,
                _ => return json.skip(),
            };
            if json.kind()? != Kind::Array {
                *list = None;
                return json.skip();
            }
            let (mut texts, mut wrong) = (Vec::new(), false);
            json.array(&mut |json| {
                match json.string_or_kind()? {
                    // More are refused anyhow.
                    Ok(_) if !room(texts.len()) => {}
                    Ok(text) => texts.push(text),
                    Err(_) => wrong = true,
                }
                Ok(())
            })?;
            *list = (!wrong).then_some(texts);
            Ok(())
        })?,
        _ => {
            json.skip()?;
            return Ok(Lists::Wrong);
        }
    }
    json.end()?;
    Ok(match (keys, values) {
        (Some(keys), Some(values)) => Lists::Both(keys, values),
        _ => Lists::Wrong,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_under_both_names() {
        let read = |text: &str| lists(&mut Json::new(text.as_bytes(), Utf8::Refuse), &|_| true);
        let pair = || Lists::Both(vec!["a".into()], vec!["1".into()]);
        assert_eq!(read("{\"Keys\":[\"a\"],\"Values\":[\"1\"]}"), Ok(pair()));
        assert_eq!(read("{\"keys\":[\"a\"],\"values\":[\"1\"]}"), Ok(pair()));
        assert_eq!(read("null"), Ok(Lists::Null));
        for wrong in [
            "{}",
            "{\"Keys\":[null],\"Values\":[\"1\"]}",
            "{\"KEYS\":[],\"Values\":[]}",
            "[]",
            "{\"Keys\":1,\"Values\":[]}",
        ] {
            assert_eq!(read(wrong), Ok(Lists::Wrong), "{wrong}");
        }
        assert!(read("{bad").is_err() && read("").is_err());
        assert!(read("{\"Keys\":[],\"Values\":[]} x").is_err());
    }
}
