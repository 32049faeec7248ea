//! The opaque token that continues a range where the last page ended.
//!
//! base64url without padding of
//!
//! ```text
//!  0         1            5            9
//!  +---------+------------+------------+-----------------+
//!  | version |  checksum  |   query    |    last key     |
//!  |    1    | crc32c of  | crc32c of  | of the page     |
//!  |         | the rest   | the bounds |                 |
//!  +---------+------------+------------+-----------------+
//! ```
//!
//! `query` ties the token to the bounds and the direction it was made for, so that it cannot
//! silently continue another range. It is a guard against mistakes, not against forgery: a forged
//! token reaches only what a `start` could reach.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const VERSION: u8 = 1;

/// What a range asks for, as far as a cursor must agree with it.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The inclusive start, after `prefix` was applied.
    pub start: Option<&'a [u8]>,
    /// The exclusive end, after `prefix` was applied.
    pub end: Option<&'a [u8]>,
    /// From the end to the start.
    pub reverse: bool,
}

impl Query<'_> {
    fn fingerprint(&self) -> u32 {
        let mut sum = crc32c::crc32c(&[u8::from(self.reverse)]);
        for part in [Some(self.namespace.as_bytes()), self.start, self.end] {
            let len = part.map_or(u64::MAX, |p| p.len() as u64);
            sum = crc32c::crc32c_append(sum, &len.to_le_bytes());
            sum = crc32c::crc32c_append(sum, part.unwrap_or_default());
        }
        sum
    }
}

/// The token for "after `last_key`, in the direction of `query`".
pub fn encode(query: &Query<'_>, last_key: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(9 + last_key.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&query.fingerprint().to_le_bytes());
    bytes.extend_from_slice(last_key);
    let sum = crc32c::crc32c(&bytes[5..]);
    bytes[1..5].copy_from_slice(&sum.to_le_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The last key of the page that `token` ended.
///
/// # Errors
/// A sentence that says what is wrong with the token.
pub fn decode(query: &Query<'_>, token: &str) -> Result<Vec<u8>, &'static str> {
    let mut bytes = URL_SAFE_NO_PAD
        .decode(token)
        .map_err(|_| "the cursor is not base64url")?;
    let Some((&VERSION, rest)) = bytes.split_first() else {
        return Err("the cursor is of a version that this server does not know");
    };
    let (Some((sum, tail)), Some((_, after))) =
        (rest.split_first_chunk::<4>(), rest.split_at_checked(4))
    else {
        return Err("the cursor is cut short");
    };
    if u32::from_le_bytes(*sum) != crc32c::crc32c(after) {
        return Err("the cursor is damaged");
    }
    let Some((made_for, _)) = tail.split_first_chunk::<4>() else {
        return Err("the cursor is cut short");
    };
    if u32::from_le_bytes(*made_for) != query.fingerprint() {
        return Err("the cursor was made for other bounds, direction or namespace");
    }
    bytes.drain(..9);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUERY: Query<'_> = Query {
        namespace: "default",
        start: Some(b"a"),
        end: None,
        reverse: false,
    };

    #[test]
    fn golden_token() {
        // Clients may hold a token while the server is replaced by a newer one.
        let bytes = URL_SAFE_NO_PAD.decode(encode(&QUERY, b"key")).unwrap();
        let bounds = [
            &[0][..],
            &7_u64.to_le_bytes(),
            b"default",
            &1_u64.to_le_bytes(),
            b"a",
            &u64::MAX.to_le_bytes(),
        ];
        let bounds = crc32c::crc32c(&bounds.concat()).to_le_bytes();
        let rest = [&bounds[..], b"key"].concat();
        let sum = crc32c::crc32c(&rest).to_le_bytes();
        assert_eq!(bytes, [&[1], &sum[..], &rest].concat());
    }

    #[test]
    fn refuses_other_queries() {
        let token = encode(&QUERY, b"key");
        assert_eq!(decode(&QUERY, &token), Ok(b"key".to_vec()));
        for other in [
            Query {
                reverse: true,
                ..QUERY
            },
            Query {
                start: Some(b"b"),
                ..QUERY
            },
            Query {
                start: None,
                end: Some(b"a"),
                ..QUERY
            },
            Query {
                namespace: "other",
                ..QUERY
            },
        ] {
            assert!(decode(&other, &token).is_err());
        }
        for broken in ["", "!", "AQ", "AQAAAAAA", "AgAAAAAAAAAA", &token[1..]] {
            assert!(decode(&QUERY, broken).is_err(), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn any_key_comes_back_and_any_damage_is_seen(
            key in proptest::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            with in "[A-Za-z0-9_-]",
        ) {
            let token = encode(&QUERY, &key);
            prop_assert_eq!(decode(&QUERY, &token), Ok(key));
            let at = at.index(token.len());
            let mut damaged = token.clone();
            damaged.replace_range(at..=at, &with);
            prop_assert!(damaged == token || decode(&QUERY, &damaged).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(token in ".{0,60}") {
            let _ = decode(&QUERY, &token);
        }
    }
}
