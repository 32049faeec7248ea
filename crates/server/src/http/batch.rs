//! Batches and multi-gets over HTTP.

use bytes::Bytes;
use firn_api::code::Code;
use firn_api::http::{
    BatchBody, BatchOp, BatchReply, KV_CONSISTENCY, KeyRef, MgetBody, Ttl, bytes_member,
};
use firn_api::text::Enc;
use firn_api::{duration, text};
use firn_engine::Entry;
use http::{HeaderValue, StatusCode};
use std::time::Duration;

use crate::http::body::Upload;
use crate::http::query::Params;
use crate::http::{Door, Reply, json, json_bytes};
use crate::service::batch::{Action, Op};
use crate::service::error::{Error, Result};
use crate::service::kv::Condition;
use crate::service::scan::Range;
use crate::service::{Service, checked_expiry, durability_name};

/// `POST /v1/batch`.
pub(crate) async fn batch(
    door: &Door,
    ns: &str,
    query: Option<&str>,
    body: &mut Upload,
) -> Result<Reply> {
    let params = Params::parse(query, &["durability"])?;
    let durability = params.durability(&door.service)?;
    let translate_all = |service: &Service, body: BatchBody| -> Result<Vec<Op>> {
        let ops = body.ops.into_iter().enumerate();
        ops.map(|(index, op)| translate(service, op).map_err(|e| e.at(index)))
            .collect()
    };
    let (ops, _room) = door.json_body(body, translate_all).await?;
    let done = door.service.batch(ns, ops, durability).await?;
    let last = done
        .versions
        .iter()
        .flatten()
        .max()
        .copied()
        .unwrap_or_default();
    let name = durability_name(done.durability).into();
    let reply = json(
        StatusCode::OK,
        &BatchReply {
            versions: done.versions,
            durability: name,
        },
    );
    Ok(crate::http::written(reply, last, done.durability))
}

fn translate(service: &Service, op: BatchOp) -> Result<Op> {
    let bytes = |name: &str, plain: &Option<String>, b64: &Option<String>| {
        bytes_member(name, plain.as_deref(), b64.as_deref())
            .map_err(|e| Error::new(Code::InvalidEncoding, e))
    };
    let key = bytes("key", &op.key, &op.key_b64)?;
    let value = bytes("value", &op.value, &op.value_b64)?;
    let start = bytes("start", &op.start, &op.start_b64)?;
    let end = bytes("end", &op.end, &op.end_b64)?;
    let prefix = bytes("prefix", &op.prefix, &op.prefix_b64)?;
    let expires = match (&op.ttl, op.expires_at_ms) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("ttl and expires_at_ms exclude each other"));
        }
        (Some(Ttl::Seconds(seconds)), None) => {
            Some(service.expiry_of(Duration::from_secs(*seconds))?)
        }
        (Some(Ttl::Text(ttl)), None) => {
            let ttl = duration::parse(ttl).map_err(|e| Error::invalid(format!("ttl: {e}")))?;
            Some(service.expiry_of(ttl)?)
        }
        (None, Some(ms)) => Some(checked_expiry(ms)?),
        (None, None) => None,
    };
    let condition = match (op.if_absent, op.if_exists, op.if_version) {
        (false, false, None) => None,
        (true, false, None) => Some(Condition::Absent),
        (false, true, None) => Some(Condition::Exists),
        (false, false, Some(version)) => Some(Condition::Version(version)),
        _ => {
            return Err(Error::invalid(
                "if_absent, if_exists and if_version exclude each other",
            ));
        }
    };
    let takes = |name: &str, given: bool, taken: bool| {
        if given && !taken {
            return Err(Error::invalid(format!("{} takes no {name}", op.op)));
        }
        Ok(())
    };
    let (puts, ranges) = (op.op == "put", op.op == "delete_range");
    let keyed = matches!(op.op.as_str(), "put" | "delete" | "check");
    if !keyed && !ranges {
        let detail = format!(
            "op {:?} is not one of put, delete, delete_range, check",
            op.op
        );
        return Err(Error::invalid(detail));
    }
    takes("value", value.is_some(), puts)?;
    takes("expiry", expires.is_some(), puts)?;
    takes("key", key.is_some(), keyed)?;
    takes("condition", condition.is_some(), keyed)?;
    takes(
        "start, end or prefix",
        start.is_some() || end.is_some() || prefix.is_some(),
        ranges,
    )?;
    let needs = |name: &str| Error::invalid(format!("{} needs {name}", op.op));
    let action = match op.op.as_str() {
        "put" => Action::Put {
            value: value.ok_or_else(|| needs("value or value_b64"))?.into(),
            expires_at_ms: expires,
        },
        "delete" => Action::Delete,
        "delete_range" => {
            if start.is_none() && end.is_none() && prefix.is_none() {
                return Err(needs("start, end or prefix"));
            }
            let range = Range::new(start, end, prefix);
            if range.is_empty() {
                return Err(Error::invalid(
                    "the start of the range is not before its end",
                ));
            }
            Action::DeleteRange(range)
        }
        _ => {
            condition.ok_or_else(|| needs("if_absent, if_exists or if_version"))?;
            Action::Check
        }
    };
    let key = match key {
        Some(key) => Bytes::from(key),
        None if ranges => Bytes::new(),
        None => return Err(needs("key or key_b64")),
    };
    Ok(Op {
        namespace: op.ns,
        key,
        action,
        condition,
    })
}

/// `POST /v1/mget`.
pub(crate) async fn mget(
    door: &Door,
    ns: &str,
    query: Option<&str>,
    body: &mut Upload,
) -> Result<Reply> {
    let params = Params::parse(query, &["consistency", "enc"])?;
    let (consistency, enc) = (params.consistency()?, params.enc()?);
    let decode = |_: &Service, body: MgetBody| -> Result<Vec<Vec<u8>>> {
        let keys = body.keys.into_iter().enumerate();
        keys.map(|(index, key)| match key {
            KeyRef::Text(text) => Ok(text.into_bytes()),
            KeyRef::Bytes { b64 } => text::base64_decode(&b64).map_err(|e| {
                Error::new(Code::InvalidEncoding, format!("keys[{index}].b64 is {e}"))
            }),
        })
        .collect()
    };
    let (keys, _room) = door.json_body(body, decode).await?;
    let entries = door.service.multi_get(ns, keys, consistency).await?;
    let bytes = |(key, entry): &(Vec<u8>, Option<Entry>)| {
        key.len() + entry.as_ref().map_or(0, |entry| entry.value.len())
    };
    let bytes = entries.iter().map(bytes).sum();
    let render = move |_: &Service| render(&entries, enc);
    let out = door.service.inline_or_blocking(bytes, render).await?;
    let mut reply = json_bytes(StatusCode::OK, out);
    reply
        .headers_mut()
        .insert(KV_CONSISTENCY, HeaderValue::from_static(consistency.name()));
    Ok(reply)
}

fn render(entries: &[(Vec<u8>, Option<Entry>)], enc: Enc) -> Result<Vec<u8>> {
    let mut out = b"{\"entries\":[".to_vec();
    for (index, (key, entry)) in entries.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let Some(entry) = entry else {
            out.extend_from_slice(b"null");
            continue;
        };
        let (value, version) = (Some(&*entry.value), entry.version.0);
        firn_api::http::push_entry(&mut out, key, value, version, entry.expires_at_ms, enc)
            .map_err(|_| {
                Error::new(Code::NotUtf8, "not valid UTF-8, which enc=utf8 wants").at(index)
            })?;
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}
