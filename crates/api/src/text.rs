//! Bytes as text: percent-encoding in paths and queries, base64 where a byte string is not text,
//! and JSON strings written straight into a buffer.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// How keys and values are shown in JSON lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Enc {
    /// Text where it is valid UTF-8, else base64 under `key_b64` or `value_b64`.
    #[default]
    Auto,
    /// Text; what is not valid UTF-8 is an error.
    Utf8,
    /// Base64, always.
    Base64,
}

impl Enc {
    /// Reads the parameter `enc`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "auto" => Self::Auto,
            "utf8" => Self::Utf8,
            "base64" => Self::Base64,
            _ => return None,
        })
    }
}

/// Undoes percent-encoding. Every byte that is not part of a `%XX` stands for itself, also `/` and
/// `+`.
///
/// # Errors
/// A sentence with the offset of the broken escape.
pub fn percent_decode(text: &str) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte != b'%' {
            out.push(byte);
            at += 1;
            continue;
        }
        let digit = |i: usize| bytes.get(i).and_then(|&b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else {
            return Err(format!(
                "the % at offset {at} is not followed by two hexadecimal digits"
            ));
        };
        out.push((high << 4 | low) as u8);
        at += 3;
    }
    Ok(out)
}

/// Percent-encodes every byte but the unreserved ones of RFC 3986 and, if asked, `/`.
pub fn percent_encode(bytes: &[u8], keep_slash: bool) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(bytes.len());
    for &b in bytes {
        let plain = b.is_ascii_alphanumeric() || b"-._~".contains(&b) || keep_slash && b == b'/';
        if plain {
            out.push(char::from(b));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(b >> 4)]));
            out.push(char::from(HEX[usize::from(b & 15)]));
        }
    }
    out
}

/// Base64url, with or without padding.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn base64url_decode(text: &str) -> Result<Vec<u8>, String> {
    let bare = text.trim_end_matches('=');
    URL_SAFE_NO_PAD
        .decode(bare)
        .map_err(|e| format!("not base64url: {e}"))
}

/// Base64url without padding.
pub fn base64url_encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Base64 as JSON members ending in `_b64` carry it: standard alphabet, padded.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn base64_decode(text: &str) -> Result<Vec<u8>, String> {
    STANDARD
        .decode(text)
        .map_err(|e| format!("not base64: {e}"))
}

/// Base64 as JSON members ending in `_b64` carry it.
pub fn base64_encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes are not valid UTF-8, and `enc=utf8` forbids base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

/// Appends `"name":"text"` or `"name_b64":"..."` to a JSON object.
///
/// # Errors
/// [`NotUtf8`] if `enc` wants text and there is none; `out` is unchanged.
pub fn push_member(out: &mut Vec<u8>, name: &str, bytes: &[u8], enc: Enc) -> Result<(), NotUtf8> {
    let text = match enc {
        Enc::Base64 => None,
        Enc::Auto => std::str::from_utf8(bytes).ok(),
        Enc::Utf8 => Some(std::str::from_utf8(bytes).map_err(|_| NotUtf8)?),
    };
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    match text {
        Some(text) => {
            out.extend_from_slice(b"\":");
            push_json_string(out, text);
        }
        None => {
            out.extend_from_slice(b"_b64\":\"");
            out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
            out.push(b'"');
        }
    }
    Ok(())
}

/// Appends a JSON string with its quotes.
pub fn push_json_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut clean_from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[clean_from..at]);
        clean_from = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            // By hand: a value may be megabytes of such bytes.
            _ => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
    }
    out.extend_from_slice(&bytes[clean_from..]);
    out.push(b'"');
}

/// Appends a decimal number.
pub fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn broken_escapes_are_named_by_offset() {
        assert_eq!(percent_decode("a%2Fb/+%00"), Ok(b"a/b/+\0".to_vec()));
        for (text, at) in [("a%", 1), ("%4", 0), ("ab%zz", 2), ("%+1", 0), ("%%", 0)] {
            let error = percent_decode(text).unwrap_err();
            assert!(error.contains(&format!("offset {at} ")), "{text}: {error}");
        }
    }

    #[test]
    fn members_are_text_or_base64() {
        let member = |bytes: &[u8], enc| {
            let mut out = Vec::new();
            push_member(&mut out, "k", bytes, enc).map(|()| String::from_utf8(out).unwrap())
        };
        assert_eq!(
            member(b"a\"\n\x01", Enc::Auto).unwrap(),
            r#""k":"a\"\n\u0001""#
        );
        assert_eq!(member(b"\xff", Enc::Auto).unwrap(), r#""k_b64":"/w==""#);
        assert_eq!(member(b"a", Enc::Base64).unwrap(), r#""k_b64":"YQ==""#);
        assert_eq!(member(b"\xff", Enc::Utf8), Err(NotUtf8));
    }

    #[test]
    fn every_control_byte_has_its_escape() {
        let text: String = (0..0x21).map(char::from).collect();
        let mut out = Vec::new();
        push_json_string(&mut out, &text);
        let mut expected = String::from("\"");
        for byte in 0..0x20 {
            match byte {
                b'\t' => expected.push_str("\\t"),
                b'\n' => expected.push_str("\\n"),
                b'\r' => expected.push_str("\\r"),
                _ => expected.push_str(&format!("\\u{byte:04x}")),
            }
        }
        expected.push_str(" \"");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn percent_encoding_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..60),
                                       keep in any::<bool>()) {
            prop_assert_eq!(percent_decode(&percent_encode(&bytes, keep)), Ok(bytes));
        }

        #[test]
        fn json_strings_are_what_serde_reads(text in ".*", number in any::<u64>()) {
            let mut out = Vec::new();
            push_json_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            out.clear();
            push_number(&mut out, number);
            prop_assert_eq!(out, number.to_string().into_bytes());
        }
    }
}
