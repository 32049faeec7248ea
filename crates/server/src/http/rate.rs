//! The limit of the rate as HTTP shows it: the headers `RateLimit` and `RateLimit-Policy` of
//! draft-ietf-httpapi-ratelimit-headers on every reply, `Retry-After` with a 429.
//!
//! `RateLimit-Policy: "client";q=40;w=2` says that a rested client may send 40 requests, which come
//! back within 2 seconds; `RateLimit: "client";r=39;t=1` that 39 are left, and all of them in a
//! second.

use std::time::Duration;

use firn_api::limits::Limits;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::route::Target;
use crate::service::Service;
use crate::service::error::{Error, Result};
use crate::service::rate::{Allowance, Client};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Counts a request of `client`. Who asks whether the server lives is always answered.
pub(crate) fn admit(
    service: &Service,
    path: &str,
    client: &Client,
) -> (Result<()>, Option<Allowance>) {
    if matches!(
        Target::parse(path),
        Some(Target::Livez | Target::Readyz | Target::Metrics)
    ) {
        return (Ok(()), None);
    }
    match service.admit(client) {
        Ok(allowance) => (Ok(()), allowance),
        Err(refused) => {
            let spent = spent(&refused, service.limits());
            (Err(refused), Some(spent))
        }
    }
}

fn spent(refused: &Error, limits: &Limits) -> Allowance {
    let burst = burst(limits);
    let full = f64::from(burst) / limits.rate.max(1) as f64;
    Allowance {
        burst,
        remaining: 0,
        full_in: Duration::from_secs_f64(full)
            .max(Duration::from_millis(refused.retry_after_ms.unwrap_or(0))),
    }
}

fn burst(limits: &Limits) -> u32 {
    let burst = if limits.rate_burst == 0 {
        limits.rate
    } else {
        limits.rate_burst
    };
    u32::try_from(burst).unwrap_or(u32::MAX)
}

/// Says what the client may still do.
pub(crate) fn describe(allowance: Allowance, limits: &Limits, headers: &mut HeaderMap) {
    let window = u64::from(allowance.burst).div_ceil(limits.rate.max(1));
    let policy = format!("\"client\";q={};w={}", allowance.burst, window.max(1));
    let reset = allowance.full_in.as_secs_f64().ceil() as u64;
    let state = format!("\"client\";r={};t={reset}", allowance.remaining);
    for (name, text) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, state)] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
}
