//! Errors on the wire: `application/problem+json`.

use firn_api::http::{PROBLEM_JSON, Problem};
use http::header::{CONNECTION, CONTENT_TYPE, ETAG, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::http::body::ReplyBody;
use crate::service::error::Error;
use firn_api::code::Code;

/// Longest path that is repeated in an error.
const INSTANCE_BYTES: usize = 256;

/// The problem document of an error at this path.
pub(crate) fn body_of(error: &Error, path: &str) -> Problem {
    let mut cut = path.len().min(INSTANCE_BYTES);
    while !path.is_char_boundary(cut) {
        cut -= 1;
    }
    Problem {
        instance: path[..cut].into(),
        limit: error.limit,
        actual: error.actual,
        version: error.version,
        index: error.index.map(u64::from),
        oldest_version: error.oldest_version,
        retry_after_ms: error.retry_after_ms,
        ..Problem::new(error.code, error.detail.clone())
    }
}

/// The reply to a request that failed.
pub(crate) fn reply(error: &Error, path: &str) -> Response<ReplyBody> {
    reply_with(error, body_of(error, path))
}

/// The reply to a request that only the leader of the cluster can help with.
pub(crate) fn reply_of_other(
    error: &Error,
    path: &str,
    leader: Option<String>,
) -> Response<ReplyBody> {
    let body = Problem {
        leader,
        ..body_of(error, path)
    };
    reply_with(error, body)
}

fn reply_with(error: &Error, body: Problem) -> Response<ReplyBody> {
    // Serializing plain members cannot fail.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let mut reply = Response::new(ReplyBody::full(body));
    let status = StatusCode::from_u16(error.code.http_status());
    *reply.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    if matches!(error.code.http_status(), 429 | 503) {
        let seconds = error.retry_after_ms.unwrap_or(1_000).div_ceil(1_000).max(1);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(version) = error.version {
        headers.insert(ETAG, crate::http::kv::etag(version));
    }
    // The client sends what we do not want, or nothing more: better with a new connection.
    if matches!(error.code.http_status(), 408 | 413)
        || matches!(error.code, Code::BodyIncomplete | Code::ShuttingDown)
    {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    reply
}
