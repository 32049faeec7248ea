//! Paths and queries, decoded as each of the systems did. None of them refuses a parameter that it
//! does not know, and they differ in what they do with an escape that is none.

/// What becomes of a `%` without two hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadEscape {
    /// It stands for itself.
    Keep,
    /// The parameter is left out.
    Drop,
}

/// Decodes percent escapes, and `+` if `plus`; `None` if an escape is none.
pub(crate) fn decode(raw: &str, plus: bool) -> Option<Vec<u8>> {
    scan(raw, plus, false)
}

/// The same, where what is no escape stands for itself.
pub(crate) fn decode_kept(raw: &str, plus: bool) -> Vec<u8> {
    scan(raw, plus, true).unwrap_or_default()
}

fn scan(raw: &str, plus: bool, keep: bool) -> Option<Vec<u8>> {
    let bytes = raw.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'+' if plus => out.push(b' '),
            b'%' => {
                let hex = |i: usize| bytes.get(i).and_then(|&b| char::from(b).to_digit(16));
                match (hex(at), hex(at + 1)) {
                    (Some(high), Some(low)) => {
                        // Two digits make a byte.
                        out.push((high << 4 | low) as u8);
                        at += 2;
                    }
                    _ if keep => out.push(byte),
                    _ => return None,
                }
            }
            _ => out.push(byte),
        }
    }
    Some(out)
}

/// The parameters of a query or of a form.
#[derive(Debug, Default)]
pub(crate) struct Params {
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Params {
    /// Reads a raw query. With [`BadEscape::Drop`] a pair with a `;` is left out as well.
    pub(crate) fn parse(raw: &str, bad: BadEscape) -> Self {
        let mut pairs = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if bad == BadEscape::Keep {
                pairs.push((decode_kept(name, true), decode_kept(value, true)));
            } else if !pair.contains(';')
                && let (Some(name), Some(value)) = (decode(name, true), decode(value, true))
            {
                pairs.push((name, value));
            }
        }
        Self { pairs }
    }

    /// The first value under this name.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        let mut found = self.pairs.iter().filter(|(n, _)| n == name.as_bytes());
        found.next().map(|(_, value)| value.as_slice())
    }

    /// All values under this name in any letter case, with commas between.
    pub(crate) fn joined(&self, name: &str) -> Option<Vec<u8>> {
        let mut found = self
            .pairs
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value.as_slice())
            .peekable();
        found.peek()?;
        Some(found.collect::<Vec<_>>().join(&b','))
    }

    /// How many values there are under this name.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.pairs
            .iter()
            .filter(|(n, _)| n == name.as_bytes())
            .count()
    }
}

/// Text from bytes that came percent-encoded.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let params = Params::parse("a=b+c%2B&a=2&x&=y&e=%GG&s=1;t=2", BadEscape::Drop);
        assert_eq!(params.get("a"), Some(&b"b c+"[..]));
        assert_eq!(params.joined("A"), Some(b"b c+,2".to_vec()));
        assert_eq!(params.get("x"), Some(&b""[..]));
        assert_eq!(params.get("e"), None);
        assert_eq!(params.get("s"), None);
        let params = Params::parse("e=%GG%4&s=1;t=2", BadEscape::Keep);
        assert_eq!(params.get("e"), Some(&b"%GG%4"[..]));
        assert_eq!(params.get("s"), Some(&b"1;t=2"[..]));
        assert_eq!(decode("%C3%a9+", false), Some("\u{e9}+".into()));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let text = firn_api::text::percent_encode(&bytes, false);
            prop_assert_eq!(decode(&text, true), Some(bytes.clone()));
            prop_assert_eq!(decode_kept(&text, true), bytes);
        }

        #[test]
        fn any_query_is_taken_apart(text in any::<String>()) {
            Params::parse(&text, BadEscape::Keep);
            Params::parse(&text, BadEscape::Drop);
        }
    }
}
