//! `auto`: all five dialects on one port.
//!
//! Most routes belong to one dialect alone. Where two want the same one, the body, the number of
//! segments or a parameter decides:
//!
//! | Request | Whose |
//! |---|---|
//! | `POST /batchput` | `query` if `Keys` and `Values` (or in lower case) are both arrays, else `put-read` |
//! | `POST /kv/put` | `kv-verbs` if the body has a `key` that is not null, or is a form; else `kv-json` |
//! | `POST /kv/batch-put` | `kv-json` if the body has a `value` and no `items`, else `kv-verbs` |
//! | `GET /kv/read/{key}`, `DELETE /kv/delete/{key}` | `kv-verbs`; with one segment `kv-json` |
//! | `GET /kv/read-range` with `start` or `end` | `kv-verbs`; without `kv-json` |
//! | any other `/kv/...` | `kv-json`; where the letters are not these, as `/KV/PUT`, `kv-verbs` |
//! | `/` | `query` if there is a `key` or the method writes, else `kv-verbs` |
//!
//! `query` has no other path than these and `/range`. Nothing is limited per connection. Errors are
//! those of the dialect that the route belongs to; what belongs to none is a 404.

use http::Method;

use crate::dialect::form::{BadEscape, Params};
use crate::dialect::json::{Json, Kind, Syntax, Utf8};
use crate::dialect::{Answer, Call, kv_json, kv_verbs, plain, put_read, query, v1_raw};

pub(super) async fn handle(call: &mut Call<'_>) -> Answer {
    let path = call.path();
    let post = call.method() == Method::POST;
    match path {
        "/health" => return kv_json::handle(call).await,
        "/batchput" if post => {
            return match Members::of(call).await {
                Err(refused) => refused,
                Ok(members) if members.lists() => query::handle(call).await,
                Ok(_) => put_read::handle(call).await,
            };
        }
        "/put" | "/read" | "/readrange" | "/batchput" | "/delete" | "/health-check" => {
            return put_read::handle(call).await;
        }
        "/healthz" | "/metrics" => return v1_raw::handle(call).await,
        "/" => {
            let keyed = Params::parse(call.raw_query(), BadEscape::Keep).joined("key");
            let greets = matches!(*call.method(), Method::GET | Method::HEAD);
            return match keyed.is_none() && greets {
                true => kv_verbs::handle(call).await,
                false => query::handle(call).await,
            };
        }
        _ if call.is_v1() => return v1_raw::handle(call).await,
        _ => {}
    }
    if path.eq_ignore_ascii_case("/range") || path.eq_ignore_ascii_case("/batchput") {
        return query::handle(call).await;
    }
    if path == "/kv" || path.starts_with("/kv/") {
        return match verbs(call).await {
            Err(refused) => refused,
            Ok(true) => kv_verbs::handle(call).await,
            Ok(false) => kv_json::handle(call).await,
        };
    }
    let loose = path.get(..4);
    if loose.is_some_and(|head| head.eq_ignore_ascii_case("/kv/")) {
        return kv_verbs::handle(call).await;
    }
    plain::nowhere()
}

/// Whether a path below `/kv` is one of `kv-verbs`.
async fn verbs(call: &mut Call<'_>) -> Result<bool, Answer> {
    let rest = call.path().strip_prefix("/kv/").unwrap_or_default();
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (first, key) = rest.split_once('/').unwrap_or((rest, ""));
    let with_key = !key.is_empty();
    let reads = matches!(*call.method(), Method::GET | Method::HEAD);
    Ok(match first {
        "read" => reads && with_key,
        "delete" => call.method() == Method::DELETE && with_key,
        "read-range" if reads && !with_key => {
            let params = Params::parse(call.raw_query(), BadEscape::Keep);
            params.get("start").is_some() || params.get("end").is_some()
        }
        "put" if call.method() == Method::POST && !with_key => {
            is_form(call) || Members::of(call).await?.key
        }
        "batch-put" if call.method() == Method::POST && !with_key => {
            let members = Members::of(call).await?;
            members.items || !members.value
        }
        _ => false,
    })
}

fn is_form(call: &Call<'_>) -> bool {
    let kind = call.parts.headers.get(http::header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let form = "application/x-www-form-urlencoded";
    kind.get(..form.len())
        .is_some_and(|head| head.eq_ignore_ascii_case(form))
}

/// The members of a body that tell dialects apart.
#[derive(Debug, Default)]
struct Members {
    /// Not null.
    key: bool,
    value: bool,
    items: bool,
    /// Arrays.
    keys: bool,
    values: bool,
}

impl Members {
    /// What there is before the body ends or stops being JSON.
    async fn of(call: &mut Call<'_>) -> Result<Self, Answer> {
        let body = match call.whole_body().await {
            Ok(body) => body,
            Err(error) => return Err(plain::refused(&error, "Internal server error")),
        };
        let mut members = Self::default();
        // Who gets the body says what is wrong with it.
        let _ = members.read(&mut Json::new(&body, Utf8::Longest));
        Ok(members)
    }

    fn read(&mut self, json: &mut Json<'_>) -> Result<(), Syntax> {
        json.object(&mut |json, name| {
            let kind = json.kind()?;
            match name.as_str() {
                "key" => self.key = kind != Kind::Null,
                "value" => self.value = true,
                "items" => self.items = true,
                "Keys" | "keys" => self.keys = kind == Kind::Array,
                "Values" | "values" => self.values = kind == Kind::Array,
                _ => {}
            }
            json.skip()
        })
    }

    fn lists(&self) -> bool {
        self.keys && self.values
    }
}
