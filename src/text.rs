//! Bytes and numbers as people type and read them. JSON forms are `firn_api`'s.

use firn_api::text::{base64_decode, base64url_decode};

use crate::exit::{Failure, Result};

/// How keys are written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KeyEncoding {
    /// The bytes of the argument
    Text,
    /// Two hexadecimal digits a byte
    Hex,
    /// Base64, standard or URL-safe
    Base64,
}

impl KeyEncoding {
    /// The bytes that the argument means.
    pub(crate) fn decode(self, argument: &[u8]) -> Result<Vec<u8>> {
        let wrong = |what: &str| {
            Failure::usage(format!(
                "{} is not {what}",
                String::from_utf8_lossy(argument)
            ))
        };
        match self {
            Self::Text => Ok(argument.to_vec()),
            Self::Hex => {
                let (pairs, rest) = argument.as_chunks::<2>();
                if !rest.is_empty() {
                    return Err(wrong("an even number of hexadecimal digits"));
                }
                pairs
                    .iter()
                    .map(|pair| Some(hex_digit(pair[0])? << 4 | hex_digit(pair[1])?))
                    .collect::<Option<Vec<u8>>>()
                    .ok_or_else(|| wrong("hexadecimal"))
            }
            Self::Base64 => std::str::from_utf8(argument)
                .ok()
                .and_then(|text| base64_decode(text).or_else(|_| base64url_decode(text)).ok())
                .ok_or_else(|| wrong("base64")),
        }
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

/// One line for a terminal: printable text as it is, `\\`, `\n`, `\r`, `\t` and `\xHH` for the
/// rest, so that no key can move the cursor or end the line.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() => {
                    let mut buffer = [0; 4];
                    push_hex(&mut out, c.encode_utf8(&mut buffer).as_bytes());
                }
                c => out.push(c),
            }
        }
        push_hex(&mut out, chunk.invalid());
    }
    out
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    for &byte in bytes {
        out.push_str("\\x");
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// The bytes that an argument with escapes means: the inverse of [`escape`], and `\0`.
pub(crate) fn unescape(argument: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(argument.len());
    let mut rest = argument.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let mut digit = || rest.next().and_then(hex_digit);
                match (digit(), digit()) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(Failure::usage("\\x wants two hexadecimal digits")),
                }
            }
            _ => return Err(Failure::usage("known escapes: \\n \\r \\t \\0 \\\\ \\xHH")),
        });
    }
    Ok(out)
}

/// Bytes for people: `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A number for people: `1_234_567` as `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// What is wrong with the JSON of a line whose number the caller names: JSON's own is always 1.
pub(crate) fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.replace(" at line 1 column ", " at column ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_come_back() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [
            &b""[..],
            b"plain",
            b"a\tb\nc\\",
            "gr\u{fc}n \u{85}".as_bytes(),
            &all,
        ] {
            let line = escape(bytes);
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert_eq!(unescape(line.as_bytes()).unwrap(), bytes);
        }
        assert!(unescape(b"\\x1").is_err());
        assert!(unescape(b"\\q").is_err());
        assert!(unescape(b"\\").is_err());
    }

    #[test]
    fn keys_decode() {
        assert_eq!(KeyEncoding::Hex.decode(b"00fF").unwrap(), [0, 255]);
        assert!(KeyEncoding::Hex.decode(b"0").is_err());
        assert!(KeyEncoding::Hex.decode(b"0g").is_err());
        assert_eq!(KeyEncoding::Base64.decode(b"AP8=").unwrap(), [0, 255]);
        assert_eq!(KeyEncoding::Base64.decode(b"_w").unwrap(), [255]);
        assert!(KeyEncoding::Base64.decode(b"!").is_err());
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
    }
}
