//! How a request says where its body ends.
//!
//! hyper takes any list of transfer codings that ends in `chunked` and hands out what is inside of
//! the chunks, so that the body of `gzip, chunked` would be stored as it was compressed. Such a
//! request is refused, and its connection closed: another program on the way may have read its end
//! elsewhere (RFC 9112, 6.1 and 6.3).

use firn_api::code::Code;
use http::header::TRANSFER_ENCODING;
use http::request::Parts;

use crate::service::error::{Error, Result};

/// Refuses a body in another coding than `chunked`, once.
pub(crate) fn check(parts: &Parts) -> Result<()> {
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let Some(first) = codings.next() else {
        return Ok(());
    };
    let chunked = first
        .as_bytes()
        .trim_ascii()
        .eq_ignore_ascii_case(b"chunked");
    if chunked && codings.next().is_none() {
        return Ok(());
    }
    let shown = first.as_bytes().escape_ascii();
    let detail = format!("Transfer-Encoding: {shown}: only chunked is taken, and once");
    Err(Error::new(Code::InvalidEncoding, detail))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_chunks_are_taken() {
        let of = |values: &[&'static str]| {
            let mut request = http::Request::new(());
            for value in values {
                let value = HeaderValue::from_static(value);
                request.headers_mut().append(TRANSFER_ENCODING, value);
            }
            check(&request.into_parts().0).is_ok()
        };
        assert!(of(&[]) && of(&["chunked"]) && of(&[" Chunked "]));
        for bad in [
            &["gzip, chunked"][..],
            &["gzip", "chunked"],
            &["chunked, chunked"],
            &["identity"],
            &[""],
        ] {
            assert!(!of(bad), "{bad:?}");
        }
    }
}
