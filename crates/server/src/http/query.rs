//! The query of a request: decoded, each parameter once, and none that the route does not take.
//!
//! In a query, unlike in a path, `+` is a space: that is how browsers and most libraries write one.

use std::borrow::Cow;
use std::time::Duration;

use firn_api::code::Code;
use firn_api::{duration, size, text};
use firn_engine::Durability;

use crate::service::error::{Error, Result};
use crate::service::scan::Range;
use crate::service::{Consistency, Service};

/// The parameters of a request.
#[derive(Debug)]
pub(crate) struct Params<'a> {
    pairs: Vec<Pair<'a>>,
}

/// Name and value, borrowed where nothing had to be decoded.
type Pair<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

impl<'a> Params<'a> {
    /// Reads a raw query; refuses parameters that are not in `known`.
    pub(crate) fn parse(raw: Option<&'a str>, known: &[&str]) -> Result<Self> {
        let mut pairs: Vec<Pair<'a>> = Vec::new();
        let raw = raw.unwrap_or_default();
        for pair in raw.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name)?;
            // Looked at before the route is ([`crate::http::redirect`]).
            if &*name == b"redirect" {
                continue;
            }
            if !known.iter().any(|known| known.as_bytes() == &*name) {
                let name = String::from_utf8_lossy(&name);
                let takes = if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                };
                let detail =
                    format!("{name:?} is not a parameter of this route; it takes: {takes}");
                return Err(Error::new(Code::UnknownParameter, detail));
            }
            // Only checks may be excluded several times.
            if &*name != b"exclude" && pairs.iter().any(|(other, _)| *other == name) {
                let name = String::from_utf8_lossy(&name);
                return Err(Error::invalid(format!(
                    "the parameter {name} is given twice"
                )));
            }
            let value = decode(value).map_err(|e| e.about(&String::from_utf8_lossy(&name)))?;
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.pairs
            .iter()
            .find(|(n, _)| **n == *name.as_bytes())
            .map(|(_, value)| &**value)
    }

    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.pairs
            .iter()
            .filter(move |(n, _)| **n == *name.as_bytes())
            .map(|(_, value)| &**value)
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        let read = |bytes| {
            std::str::from_utf8(bytes).map_err(|_| {
                Error::new(Code::InvalidEncoding, format!("{name} is not valid UTF-8"))
            })
        };
        self.bytes(name).map(read).transpose()
    }

    /// Reads a parameter with `read`, whose error is a sentence.
    pub(crate) fn parsed<T>(
        &self,
        name: &str,
        read: impl FnOnce(&str) -> std::result::Result<T, String>,
    ) -> Result<Option<T>> {
        let text = self.text(name)?;
        text.map(read)
            .transpose()
            .map_err(|e| Error::invalid(format!("{name}: {e}")))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>> {
        self.parsed(name, |text| {
            text.parse()
                .map_err(|_| format!("{text:?} is not a whole number"))
        })
    }

    pub(crate) fn size(&self, name: &str) -> Result<Option<u64>> {
        self.parsed(name, size::parse)
    }

    /// `name`, `name=true`, `name=1`, `name=false`, `name=0`.
    pub(crate) fn flag(&self, name: &str) -> Result<bool> {
        match self.bytes(name) {
            Some([]) => Ok(true),
            _ => self.spelled_flag(name),
        }
    }

    /// The same where leaving the value empty is more likely a mistake.
    pub(crate) fn spelled_flag(&self, name: &str) -> Result<bool> {
        let flag = self.parsed(name, |text| match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        });
        Ok(flag?.unwrap_or(false))
    }

    pub(crate) fn ttl(&self) -> Result<Option<Duration>> {
        self.parsed("ttl", duration::parse)
    }

    /// The durability asked for, or the server's default.
    pub(crate) fn durability(&self, service: &Service) -> Result<Durability> {
        let asked = self.parsed("durability", |text| match text {
            "sync" => Ok(Durability::Sync),
            "buffered" => Ok(Durability::Buffered),
            _ => Err(format!("{text:?} is neither sync nor buffered")),
        });
        Ok(asked?.unwrap_or_else(|| service.default_durability()))
    }

    pub(crate) fn consistency(&self) -> Result<Consistency> {
        let asked = self.parsed("consistency", |text| {
            Consistency::parse(text)
                .ok_or_else(|| format!("{text:?} is not one of linearizable, lease, stale"))
        });
        Ok(asked?.unwrap_or_default())
    }

    pub(crate) fn enc(&self) -> Result<text::Enc> {
        let asked = self.parsed("enc", |text| {
            text::Enc::parse(text)
                .ok_or_else(|| format!("{text:?} is not one of auto, utf8, base64"))
        });
        Ok(asked?.unwrap_or_default())
    }

    /// Whether keys in path and query are base64url.
    pub(crate) fn keys_are_base64(&self) -> Result<bool> {
        let asked = self.parsed("key_enc", |text| match text {
            "percent" => Ok(false),
            "base64url" => Ok(true),
            _ => Err(format!("{text:?} is neither percent nor base64url")),
        });
        Ok(asked?.unwrap_or(false))
    }

    /// `start`, `end` and `prefix`.
    pub(crate) fn range(&self) -> Result<Range> {
        let base64 = self.keys_are_base64()?;
        let bound = |name: &str| -> Result<Option<Vec<u8>>> {
            let Some(bytes) = self.bytes(name) else {
                return Ok(None);
            };
            if !base64 {
                return Ok(Some(bytes.to_vec()));
            }
            let text = std::str::from_utf8(bytes).map_err(|_| "not base64url".to_owned());
            let decoded = text.and_then(text::base64url_decode);
            decoded
                .map(Some)
                .map_err(|e| Error::new(Code::InvalidEncoding, format!("{name} is {e}")))
        };
        Ok(Range::new(bound("start")?, bound("end")?, bound("prefix")?))
    }
}

fn decode(raw: &str) -> Result<Cow<'_, [u8]>> {
    if !raw.bytes().any(|byte| matches!(byte, b'+' | b'%')) {
        return Ok(Cow::Borrowed(raw.as_bytes()));
    }
    text::percent_decode(&raw.replace('+', " "))
        .map(Cow::Owned)
        .map_err(|e| Error::new(Code::InvalidEncoding, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_checked() {
        let params = Params::parse(
            Some("start=a+b%2Bc&reverse&limit=5"),
            &["start", "reverse", "limit"],
        );
        let params = params.unwrap();
        assert_eq!(params.bytes("start"), Some(&b"a b+c"[..]));
        assert!(params.flag("reverse").unwrap());
        let error = params.spelled_flag("reverse").unwrap_err();
        assert!(
            error.detail.contains("reverse: \"\" is neither"),
            "{}",
            error.detail
        );
        assert_eq!(params.number("limit").unwrap(), Some(5));
        for (raw, code, part) in [
            ("x=1", Code::UnknownParameter, "\"x\" is not a parameter"),
            ("a=1&a=2", Code::InvalidArgument, "twice"),
            ("a=%G1", Code::InvalidEncoding, "a: the % at offset 0"),
        ] {
            let error = Params::parse(Some(raw), &["a"]).unwrap_err();
            assert_eq!(error.code, code);
            assert!(error.detail.contains(part), "{}", error.detail);
        }
    }
}
