//! Replies of the dialects whose errors are lines of plain text: `kv-json`, `put-read`, `v1-raw`.

use firn_api::code::Code;
use http::header::{CONTENT_TYPE, HeaderName, LOCATION, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};

use crate::dialect::{Answer, retry_after};
use crate::http::body::ReplyBody;
use crate::http::{Reply, empty};
use crate::service::error::Error;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A text as it is.
pub(crate) fn text(status: StatusCode, body: &'static str) -> Reply {
    with_body(status, TEXT, ReplyBody::full(body))
}

/// A body of some type.
pub(crate) fn with_body(status: StatusCode, kind: HeaderValue, body: ReplyBody) -> Reply {
    let mut reply = Reply::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply
}

/// An error: one line, which no browser shall take for something else.
pub(crate) fn line(code: Code, status: StatusCode, what: &str) -> Answer {
    let mut reply = with_body(status, TEXT, ReplyBody::full(format!("{what}\n")));
    let nosniff = HeaderValue::from_static("nosniff");
    reply.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, nosniff);
    Answer::new(code, reply)
}

/// The client did something wrong.
pub(crate) fn bad(code: Code, what: &str) -> Answer {
    line(code, StatusCode::BAD_REQUEST, what)
}

/// There is nothing at this path.
pub(crate) fn nowhere() -> Answer {
    line(
        Code::RouteNotFound,
        StatusCode::NOT_FOUND,
        "404 page not found",
    )
}

/// A refusal of the service. What goes wrong inside is `words`, as these clients know it; what the
/// systems before could not refuse (a full disk, an overload, a limit) has its own status and says
/// what it is.
pub(crate) fn refused(error: &Error, words: &str) -> Answer {
    let status = error.code.http_status();
    let what = match status {
        500 => words,
        _ => error.detail.as_str(),
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = line(error.code, status, what);
    retry_after(&mut answer.reply, error);
    answer
}

/// Moved for good.
pub(crate) fn moved(to: &str, with_link: bool) -> Answer {
    let mut reply = empty(StatusCode::MOVED_PERMANENTLY);
    if with_link {
        let mut link = String::from("<a href=\"");
        for c in to.chars() {
            match c {
                '&' => link.push_str("&amp;"),
                '<' => link.push_str("&lt;"),
                '>' => link.push_str("&gt;"),
                '"' => link.push_str("&#34;"),
                '\'' => link.push_str("&#39;"),
                _ => link.push(c),
            }
        }
        link.push_str("\">Moved Permanently</a>.\n\n");
        let kind = HeaderValue::from_static("text/html; charset=utf-8");
        reply = with_body(StatusCode::MOVED_PERMANENTLY, kind, ReplyBody::full(link));
    }
    set(&mut reply, LOCATION, to);
    Answer::ok(reply)
}

/// Sets a header, unless the text cannot stand in one.
pub(crate) fn set(reply: &mut Reply, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
        reply.headers_mut().insert(name, value);
    }
}
