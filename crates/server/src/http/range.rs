//! Ranges over HTTP: a JSON page, or a stream of lines.

use firn_api::http::{KV_CONSISTENCY, KV_CURSOR, NDJSON};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};

use crate::http::body::{JsonSink, ReplyBody, push_count};
use crate::http::query::Params;
use crate::http::{Door, Reply, empty, json_bytes, kv, written};
use crate::service::error::{Error, Result};
use crate::service::scan::RangeQuery;

/// `GET`: a page; with `Accept: application/x-ndjson` a stream that ends with a trailer line.
pub(crate) async fn get(door: &Door, ns: &str, parts: &Parts) -> Result<Reply> {
    let known = [
        "start",
        "end",
        "prefix",
        "reverse",
        "limit",
        "max_bytes",
        "keys_only",
        "cursor",
        "enc",
        "key_enc",
        "consistency",
    ];
    let params = Params::parse(parts.uri.query(), &known)?;
    let consistency = params.consistency()?;
    let enc = params.enc()?;
    let cursor = match (params.text("cursor")?, parts.headers.get(KV_CURSOR)) {
        (Some(_), Some(_)) => return Err(Error::invalid("cursor is given twice")),
        (None, Some(value)) => {
            let text = value
                .to_str()
                .map_err(|_| Error::invalid("KV-Cursor is not text"))?;
            Some(text.to_owned())
        }
        (text, None) => text.map(str::to_owned),
    };
    let query = RangeQuery {
        namespace: ns.into(),
        range: params.range()?,
        reverse: params.flag("reverse")?,
        keys_only: params.flag("keys_only")?,
        limit: params.number("limit")?,
        max_bytes: params.size("max_bytes")?,
        cursor,
        consistency,
    };
    let mut reply = if kv::accepts(parts, NDJSON) {
        let walk = door.service.stream(query, JsonSink::lines(enc)).await?;
        // A HEAD reply has no body: nothing is walked.
        let body = if parts.method == Method::HEAD {
            ReplyBody::empty()
        } else {
            ReplyBody::stream(walk, parts.uri.path())
        };
        let mut reply = Reply::new(body);
        reply
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
        reply
    } else {
        let sink = JsonSink::list(b"{\"entries\":[".to_vec(), enc);
        let mut walk = door.service.page(query, sink).await?;
        let mut out = std::mem::take(&mut walk.sink.out);
        out.extend_from_slice(b"],");
        push_count(&mut out, &walk);
        out.push(b'}');
        json_bytes(StatusCode::OK, out)
    };
    let value = HeaderValue::from_static(consistency.name());
    reply.headers_mut().insert(KV_CONSISTENCY, value);
    Ok(reply)
}

/// `DELETE`: everything in the range, at once.
pub(crate) async fn delete(door: &Door, ns: &str, query: Option<&str>) -> Result<Reply> {
    let known = ["start", "end", "prefix", "all", "durability", "key_enc"];
    let params = Params::parse(query, &known)?;
    let durability = params.durability(&door.service)?;
    let bounded = ["start", "end", "prefix"]
        .iter()
        .any(|name| params.bytes(name).is_some_and(|bound| !bound.is_empty()));
    if bounded == params.spelled_flag("all")? {
        let detail = "give start, end or prefix, or all=true to delete every key of the namespace";
        return Err(Error::invalid(detail));
    }
    let range = params.range()?;
    if range.is_empty() {
        return Err(Error::invalid(
            "the start of the range is not before its end",
        ));
    }
    let done = door.service.delete_range(ns, range, durability).await?;
    let version = done.versions.first().copied().flatten().unwrap_or_default();
    Ok(written(
        empty(StatusCode::NO_CONTENT),
        version,
        done.durability,
    ))
}
