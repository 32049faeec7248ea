//! `put-read`: verbs as paths, keys in the query.
//!
//! | Request | Answer |
//! |---|---|
//! | `POST /put` `{"key":"k","data":"x"}` | 200; `value` is as good as `data` |
//! | `GET /read?key=k` | 200 and the bytes |
//! | `GET /readrange?start=a&end=b` | 200 `{"a":"MQ=="}`: base64, in key order, both ends inclusive |
//! | `POST /batchput` `{"a":"1","b":"2"}` | 200, all or nothing |
//! | `DELETE /delete?key=k`, also `POST` | 200, whether or not the key existed |
//! | any `/health-check` | 200 `OK` |
//!
//! To write an empty value is to delete; an empty value that came through another door reads as
//! absent. Both ends of a range must be keys that exist.

use firn_api::code::Code;
use http::{HeaderValue, Method, StatusCode};

use crate::dialect::form::{BadEscape, Params};
use crate::dialect::json::{Json, Kind, Syntax, Utf8};
use crate::dialect::kv_json::WrongType;
use crate::dialect::render::Shape;
use crate::dialect::{Answer, Call, plain};
use crate::http::body::ReplyBody;
use crate::http::empty;

const FAILED_PUT: &str = "Failed to store data";
const FAILED_READ: &str = "Failed to fetch data";
const FAILED_BATCH: &str = "Failed to store batch data";
const FAILED_DELETE: &str = "Failed to delete key";

pub(super) async fn handle(call: &mut Call<'_>) -> Answer {
    let path = call.path();
    let methods: &[Method] = match path {
        "/health-check" => {
            call.op = "health";
            return Answer::ok(plain::text(StatusCode::OK, "OK"));
        }
        "/put" | "/batchput" => &[Method::POST],
        "/read" | "/readrange" => &[Method::GET],
        "/delete" => &[Method::DELETE, Method::POST],
        _ => return plain::nowhere(),
    };
    if !methods.contains(call.method()) {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return plain::line(Code::MethodNotAllowed, status, "Invalid request method");
    }
    let params = Params::parse(call.raw_query(), BadEscape::Drop);
    let param = |name| params.get(name).filter(|value| !value.is_empty());
    match (path, param("key")) {
        ("/put", _) => put(call).await,
        ("/batchput", _) => batch(call).await,
        ("/readrange", _) => match (param("start"), param("end")) {
            (Some(start), Some(end)) => range(call, start, end).await,
            _ => plain::bad(Code::InvalidArgument, "Start and End keys are required"),
        },
        (_, None) => plain::bad(Code::InvalidArgument, "Key is required"),
        ("/read", Some(key)) => match call.get(key.to_vec()).await {
            Ok(Some(value)) if !value.is_empty() => {
                let kind = HeaderValue::from_static("application/octet-stream");
                let body = ReplyBody::full(value);
                Answer::ok(plain::with_body(StatusCode::OK, kind, body))
            }
            Ok(_) => not_found(),
            Err(error) => plain::refused(&error, FAILED_READ),
        },
        (_, Some(key)) => match call.delete(key.to_vec()).await {
            Ok(()) => done(),
            Err(error) => plain::refused(&error, FAILED_DELETE),
        },
    }
}

fn done() -> Answer {
    Answer::ok(empty(StatusCode::OK))
}

fn not_found() -> Answer {
    plain::line(Code::NotFound, StatusCode::NOT_FOUND, "Key not found")
}

async fn range(call: &mut Call<'_>, start: &[u8], end: &[u8]) -> Answer {
    for bound in [start, end] {
        match call.get(bound.to_vec()).await {
            Ok(Some(value)) if !value.is_empty() => {}
            Ok(_) => return not_found(),
            Err(error) => return plain::refused(&error, FAILED_READ),
        }
    }
    match call.range(start, end, Shape::Base64Object).await {
        Ok(body) => {
            let kind = HeaderValue::from_static("text/plain; charset=utf-8");
            Answer::ok(plain::with_body(StatusCode::OK, kind, body))
        }
        Err(error) => plain::refused(&error, FAILED_READ),
    }
}

async fn put(call: &mut Call<'_>) -> Answer {
    let body = match call.whole_body().await {
        Ok(body) => body,
        Err(error) => return plain::refused(&error, FAILED_PUT),
    };
    // What follows the value is ignored.
    let read = entry(&mut Json::new(&body, Utf8::EachByte));
    call.forget(body);
    let Ok(Ok((key, data))) = read else {
        return plain::bad(Code::InvalidJson, "Invalid request body");
    };
    let written = match data.is_empty() {
        true => call.delete(key).await,
        false => call.put(key, data).await,
    };
    match written {
        Ok(()) => done(),
        Err(error) => plain::refused(&error, FAILED_PUT),
    }
}

/// `key` and `data`, in any letter case; `value` counts where there is no `data`.
fn entry(json: &mut Json<'_>) -> Result<Result<(String, String), WrongType>, Syntax> {
    let (mut key, mut data, mut value) = (Ok(String::new()), None, None);
    match json.kind()? {
        Kind::Null => json.skip()?,
        _ => json.object(&mut |json, name| {
            let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
            if !is("key") && !is("data") && !is("value") {
                return json.skip();
            }
            let text = match json.string_or_kind()? {
                Ok(text) => Ok(text),
                // As if it were not there.
                Err(Kind::Null) => return Ok(()),
                Err(_) => Err(WrongType),
            };
            if is("key") {
                key = text;
            } else if is("data") {
                data = Some(text);
            } else {
                value = Some(text);
            }
            Ok(())
        })?,
    }
    let data = data.or(value).unwrap_or(Ok(String::new()));
    Ok(key.and_then(|key| Ok((key, data?))))
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
        _ => json.object(&mut |json, key| {
            match json.string_or_kind()? {
                Ok(_) | Err(Kind::Null) if !call.room_for(entries.len()) => {}
                Ok(value) => entries.push((key, (!value.is_empty()).then_some(value))),
                Err(Kind::Null) => entries.push((key, None)),
                Err(_) => wrong = true,
            }
            Ok(())
        }),
    };
    let read = read.and_then(|()| json.end());
    call.forget(body);
    if read.is_err() || wrong {
        return plain::bad(Code::InvalidJson, "Invalid JSON format");
    }
    match call.batch(entries).await {
        Ok(()) => done(),
        Err(error) => plain::refused(&error, FAILED_BATCH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_stands_in_for_data() {
        let read = |text: &str| entry(&mut Json::new(text.as_bytes(), Utf8::EachByte));
        let good = |text: &str| read(text).unwrap().unwrap().1;
        assert_eq!(good("{\"key\":\"k\",\"value\":\"v\"}"), "v");
        assert_eq!(good("{\"value\":\"v\",\"data\":\"d\",\"key\":\"k\"}"), "d");
        assert_eq!(good("{\"value\":5,\"data\":\"d\"}"), "d");
        assert_eq!(good("null"), "");
        assert!(read("{\"value\":5}").unwrap().is_err());
        assert!(read("{\"key\":1,\"data\":\"x\"}").unwrap().is_err());
        assert!(read("[]").is_err());
    }
}
