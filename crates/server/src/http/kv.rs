//! One key over HTTP: the value is the body, the version is the `ETag`.

use bytes::Bytes;
use firn_api::code::Code;
use firn_api::http::{KV_CONSISTENCY, KV_EXPIRES_AT};
use firn_api::text;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderValue, StatusCode};

use crate::http::body::{ReplyBody, Upload, receive};
use crate::http::query::Params;
use crate::http::{Door, Reply, empty, key_of, written};
use crate::service::checked_expiry;
use crate::service::error::{Error, Result};
use crate::service::kv::{Condition, Write};

/// `GET` and `HEAD`: hyper leaves the body of a `HEAD` reply out.
pub(crate) async fn get(door: &Door, ns: &str, raw: &str, parts: &Parts) -> Result<Reply> {
    let params = Params::parse(parts.uri.query(), &["consistency", "key_enc"])?;
    let consistency = params.consistency()?;
    let must_match = tags(parts, IF_MATCH)?;
    let must_differ = tags(parts, IF_NONE_MATCH)?;
    let key = key_of(raw, params.keys_are_base64()?)?;
    let entry = door.service.get(ns, key, consistency).await?;
    let version = entry.as_ref().map(|e| e.version.0);
    if let Some(tags) = must_match
        && !tags.iter().any(|tag| !tag.weak && tag.matches(version))
    {
        let detail = "the version is not among those of If-Match";
        return Err(Error {
            version,
            ..Error::new(Code::ConditionFailed, detail)
        });
    }
    let Some(entry) = entry else {
        return Err(Error::new(Code::NotFound, "the key does not exist"));
    };
    let unchanged = must_differ.is_some_and(|tags| tags.iter().any(|tag| tag.matches(version)));
    let mut reply = if unchanged {
        empty(StatusCode::NOT_MODIFIED)
    } else {
        // The value stays where it is, in a cached block perhaps, until the socket took it.
        let mut reply = Reply::new(ReplyBody::full(Bytes::from_owner(entry.value)));
        let kind = HeaderValue::from_static("application/octet-stream");
        reply.headers_mut().insert(CONTENT_TYPE, kind);
        reply
    };
    let headers = reply.headers_mut();
    headers.insert(ETAG, etag(entry.version.0));
    headers.insert(KV_CONSISTENCY, HeaderValue::from_static(consistency.name()));
    if let Some(ms) = entry.expires_at_ms {
        let seconds = format!("{}.{:03}", ms / 1_000, ms % 1_000);
        if let Ok(value) =
            HeaderValue::from_str(seconds.trim_end_matches('0').trim_end_matches('.'))
        {
            headers.insert(KV_EXPIRES_AT, value);
        }
    }
    Ok(reply)
}

/// `PUT`: 204, or 201 where `If-None-Match: *` shows that the key is new.
pub(crate) async fn put(
    door: &Door,
    ns: &str,
    raw: &str,
    parts: &Parts,
    body: &mut Upload,
) -> Result<Reply> {
    let known = ["ttl", "expires_at", "durability", "key_enc"];
    let params = Params::parse(parts.uri.query(), &known)?;
    let durability = params.durability(&door.service)?;
    let expires_at_ms = match (params.ttl()?, params.parsed("expires_at", unix_seconds)?) {
        (Some(_), Some(_)) => return Err(Error::invalid("ttl and expires_at exclude each other")),
        (Some(ttl), None) => Some(door.service.expiry_of(ttl)?),
        (None, Some(ms)) => Some(checked_expiry(ms)?),
        (None, None) => None,
    };
    let condition = condition(parts)?;
    let key = key_of(raw, params.keys_are_base64()?)?;
    crate::service::limits::key(door.service.limits(), &key)?;
    let limit = door.service.limits().value_bytes;
    let (code, name) = (Code::ValueTooLarge, "limits.value_bytes");
    let mut value = receive(&door.service, body, door.body_timeout, code, name, limit).await?;
    let write = Write {
        key,
        value: Some(value.take()),
        expires_at_ms,
        condition,
        durability,
    };
    let done = door.service.write(ns, write).await?;
    let created = condition == Some(Condition::Absent);
    let status = if created {
        StatusCode::CREATED
    } else {
        StatusCode::NO_CONTENT
    };
    let mut reply = written(empty(status), done.version, done.durability);
    reply.headers_mut().insert(ETAG, etag(done.version));
    Ok(reply)
}

/// `DELETE`: 204, whether or not the key existed.
pub(crate) async fn delete(door: &Door, ns: &str, raw: &str, parts: &Parts) -> Result<Reply> {
    let params = Params::parse(parts.uri.query(), &["durability", "key_enc"])?;
    let durability = params.durability(&door.service)?;
    let condition = condition(parts)?;
    if condition == Some(Condition::Absent) {
        return Err(Error::invalid("If-None-Match makes no sense for DELETE"));
    }
    let key = key_of(raw, params.keys_are_base64()?)?;
    let write = Write {
        key,
        value: None,
        expires_at_ms: None,
        condition,
        durability,
    };
    let done = door.service.write(ns, write).await?;
    Ok(written(
        empty(StatusCode::NO_CONTENT),
        done.version,
        done.durability,
    ))
}

/// The entity tag of a version.
pub(crate) fn etag(version: u64) -> HeaderValue {
    let mut tag = Vec::with_capacity(22);
    tag.push(b'"');
    text::push_number(&mut tag, version);
    tag.push(b'"');
    // Digits and quotes are valid in a header.
    HeaderValue::from_maybe_shared(Bytes::from(tag)).unwrap_or(HeaderValue::from_static("\"0\""))
}

/// Whether the client names this media type. That it accepts anything does not count.
pub(crate) fn accepts(parts: &Parts, media_type: &str) -> bool {
    let list = parts
        .headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    list.flat_map(|value| value.split(',')).any(|item| {
        item.split(';')
            .next()
            .is_some_and(|t| t.trim().eq_ignore_ascii_case(media_type))
    })
}

/// Unix seconds with up to three decimals, in milliseconds.
fn unix_seconds(text: &str) -> std::result::Result<u64, String> {
    let bad =
        || format!("{text:?} is not a time: write Unix seconds, as 1800000000 or 1800000000.250");
    if !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(bad());
    }
    let time = firn_api::duration::parse(text).map_err(|_| bad())?;
    u64::try_from(time.as_millis()).map_err(|_| bad())
}

/// An entity tag of a condition; `version: None` with `any` is `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    weak: bool,
    any: bool,
    /// `None`: a tag that is none of ours and matches nothing.
    version: Option<u64>,
}

impl Tag {
    fn matches(&self, version: Option<u64>) -> bool {
        version.is_some() && (self.any || self.version == version)
    }
}

/// The tags of a header; `None` if it is absent.
fn tags(parts: &Parts, name: HeaderName) -> Result<Option<Vec<Tag>>> {
    let mut tags = Vec::new();
    let mut present = false;
    for value in parts.headers.get_all(&name) {
        present = true;
        let bad = || {
            let shown = value.as_bytes().escape_ascii();
            Error::invalid(format!(
                "{name}: {shown} is not a list of entity tags, as \"12\", or *"
            ))
        };
        let text = value.to_str().map_err(|_| bad())?;
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            if item == "*" {
                tags.push(Tag {
                    weak: false,
                    any: true,
                    version: None,
                });
                continue;
            }
            let (weak, quoted) = match item.strip_prefix("W/") {
                Some(rest) => (true, rest),
                None => (false, item),
            };
            let inner = quoted
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'));
            tags.push(Tag {
                weak,
                any: false,
                // Compared as text: `"07"` and `"+7"` are not our tag of version 7.
                version: inner
                    .ok_or_else(bad)?
                    .parse()
                    .ok()
                    .filter(|version: &u64| inner == Some(version.to_string().as_str())),
            });
        }
        if tags.is_empty() {
            return Err(bad());
        }
    }
    Ok(present.then_some(tags))
}

/// The condition of a write.
fn condition(parts: &Parts) -> Result<Option<Condition>> {
    match (tags(parts, IF_MATCH)?, tags(parts, IF_NONE_MATCH)?) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Error::invalid(
            "If-Match and If-None-Match exclude each other",
        )),
        (None, Some(tags)) => match tags.as_slice() {
            [Tag { any: true, .. }] => Ok(Some(Condition::Absent)),
            _ => Err(Error::invalid("a write takes If-None-Match: * only")),
        },
        (Some(tags), None) => match tags.as_slice() {
            [Tag { any: true, .. }] => Ok(Some(Condition::Exists)),
            [
                Tag {
                    weak: false,
                    version: Some(version),
                    ..
                },
            ] => Ok(Some(Condition::Version(*version))),
            [_] => {
                let detail = "If-Match does not name a version: no key has this tag";
                Err(Error::new(Code::ConditionFailed, detail))
            }
            _ => Err(Error::invalid("a write takes a single tag in If-Match")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(headers: &[(HeaderName, &'static str)]) -> Parts {
        let mut request = http::Request::new(());
        for (name, value) in headers {
            request
                .headers_mut()
                .append(name, HeaderValue::from_static(value));
        }
        request.into_parts().0
    }

    #[test]
    fn conditions_of_writes() {
        let of = |headers: &[_]| condition(&parts(headers)).map_err(|e| e.code);
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[(IF_MATCH, "\"7\"")]), Ok(Some(Condition::Version(7))));
        assert_eq!(of(&[(IF_MATCH, "*")]), Ok(Some(Condition::Exists)));
        assert_eq!(of(&[(IF_NONE_MATCH, "*")]), Ok(Some(Condition::Absent)));
        assert_eq!(of(&[(IF_MATCH, "W/\"7\"")]), Err(Code::ConditionFailed));
        assert_eq!(of(&[(IF_MATCH, "\"abc\"")]), Err(Code::ConditionFailed));
        assert_eq!(of(&[(IF_MATCH, "\"+7\"")]), Err(Code::ConditionFailed));
        assert_eq!(of(&[(IF_MATCH, "\"07\"")]), Err(Code::ConditionFailed));
        assert_eq!(of(&[(IF_MATCH, "7")]), Err(Code::InvalidArgument));
        assert_eq!(of(&[(IF_MATCH, "")]), Err(Code::InvalidArgument));
        assert_eq!(
            of(&[(IF_MATCH, "\"1\", \"2\"")]),
            Err(Code::InvalidArgument)
        );
        assert_eq!(of(&[(IF_NONE_MATCH, "\"1\"")]), Err(Code::InvalidArgument));
        assert_eq!(
            of(&[(IF_MATCH, "*"), (IF_NONE_MATCH, "*")]),
            Err(Code::InvalidArgument)
        );
    }

    #[test]
    fn times_are_unix_seconds() {
        assert_eq!(unix_seconds("1800000000"), Ok(1_800_000_000_000));
        assert_eq!(unix_seconds("1800000000.25"), Ok(1_800_000_000_250));
        for bad in ["", "1h", "-1", "now", "2026-01-01", "1.2.3"] {
            assert!(unix_seconds(bad).is_err(), "{bad}");
        }
    }
}
