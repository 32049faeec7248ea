//! Keeps web pages out.
//!
//! A server on a loopback address without a password is safe from other machines, but not from the
//! browser on this one: any page can send requests to `127.0.0.1`, although it cannot read the
//! replies, and a page whose name is made to resolve to `127.0.0.1` (DNS rebinding) can read them
//! too. Two headers that a page cannot forge give both away:
//!
//! 1. A browser names the page in `Origin`. It must be the origin that the request is sent to.
//! 2. `Host` is the name by which the server was reached. On loopback without a password this must
//!    be `localhost` or an address, which no foreign name resolves to.

use std::net::IpAddr;

use firn_api::code::Code;
use http::header::{HOST, HeaderName, ORIGIN};
use http::request::Parts;

use crate::service::error::{Error, Result};

/// Refuses a request that comes from a web page of another origin. With `local` the name of the
/// server must be this machine's.
pub(crate) fn check(parts: &Parts, local: bool) -> Result<()> {
    let host = match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => text(parts, HOST)?,
    };
    if local && host.is_some_and(|host| !is_local(host)) {
        let detail = "Host is not this machine's: a server that asks for no password answers to \
                      localhost and to addresses only; a proxy in front of it must send such a Host";
        return Err(Error::new(Code::ForeignOrigin, detail));
    }
    let Some(origin) = text(parts, ORIGIN)? else {
        return Ok(());
    };
    // `null` has no host and is nobody's origin.
    let own = origin.split_once("://").map(|(_, authority)| authority);
    match (own, host) {
        (Some(own), Some(host)) if own.eq_ignore_ascii_case(host) => Ok(()),
        _ => {
            let detail = "Origin is another than this server's: web pages may not send requests";
            Err(Error::new(Code::ForeignOrigin, detail))
        }
    }
}

fn text(parts: &Parts, name: HeaderName) -> Result<Option<&str>> {
    let mut values = parts.headers.get_all(&name).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Error::invalid(format!("{name} is given twice")));
    }
    let read = |value: &'_ http::HeaderValue| value.to_str().is_ok();
    match first {
        Some(value) if !read(value) => Err(Error::invalid(format!("{name} is not text"))),
        _ => Ok(first.and_then(|value| value.to_str().ok())),
    }
}

fn is_local(host: &str) -> bool {
    // What follows the last colon is a port, unless the colon is inside of brackets.
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let name = name.trim_end_matches('.');
    let last = name.rsplit('.').next();
    name.is_empty()
        || last.is_some_and(|label| label.eq_ignore_ascii_case("localhost"))
        || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for host in [
            "localhost",
            "LocalHost:8080",
            "a.localhost",
            "localhost.:1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
            "192.168.1.2",
            "",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "notlocalhost",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
