//! Patterns of `KEYS`, `SCAN`, `PSUBSCRIBE` and `CONFIG GET`: `*`, `?`, `[a-z]`, `[^a]`, `\`.
//!
//! What matches is what Redis matches, byte by byte. A star is retried from one place only, so that
//! no pattern takes more than the product of both lengths.

/// Whether the whole of `text` matches `pattern`.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when it does not match: behind the last star, and one byte later.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = if p < pattern.len() && pattern[p] == b'*' {
            while p < pattern.len() && pattern[p] == b'*' {
                p += 1;
            }
            if p == pattern.len() {
                return true;
            }
            retry = Some((p, t));
            continue;
        } else if t == text.len() {
            return p == pattern.len();
        } else {
            one(&pattern[p..], text[t])
        };
        match step {
            Some(width) => {
                p += width;
                t += 1;
            }
            None => {
                let Some((after_star, from)) = retry else {
                    return false;
                };
                (p, t) = (after_star, from + 1);
                retry = Some((after_star, from + 1));
                if t > text.len() {
                    return false;
                }
            }
        }
    }
}

/// How many bytes of the pattern the one byte took, if it matches.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', ..] => class(pattern, byte),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [plain, ..] => (*plain == byte).then_some(1),
    }
}

/// `[...]`, of which a missing end is forgiven.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let mut found = false;
    loop {
        match &pattern[at..] {
            [] => break,
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [low, b'-', high, ..] => {
                let (low, high) = (*low.min(high), *low.max(high));
                found |= (low..=high).contains(&byte);
                at += 3;
            }
            [plain, ..] => {
                found |= *plain == byte;
                at += 1;
            }
        }
    }
    (found != negated).then_some(at)
}

/// The bytes that everything that matches begins with, and whether nothing else is asked for.
pub fn literal_prefix(pattern: &[u8]) -> (Vec<u8>, bool) {
    let mut prefix = Vec::new();
    let mut rest = pattern;
    loop {
        match rest {
            [] => return (prefix, false),
            [b'*'] => return (prefix, true),
            [b'*' | b'?' | b'[', ..] => return (prefix, false),
            [b'\\', escaped, tail @ ..] => {
                prefix.push(*escaped);
                rest = tail;
            }
            [plain, tail @ ..] => {
                prefix.push(*plain);
                rest = tail;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*e", "abcde", true),
            ("a*c*f", "abcde", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[c-a]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a]x", "bx", true),
            ("[abc", "c", true),
            ("[]x", "x", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("[\\]]", "]", true),
            ("**a**", "bab", true),
            ("h[^e]llo", "hello", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn prefixes_are_found() {
        assert_eq!(literal_prefix(b"user:*"), (b"user:".to_vec(), true));
        assert_eq!(literal_prefix(b"a\\*b?"), (b"a*b".to_vec(), false));
        assert_eq!(literal_prefix(b"abc"), (b"abc".to_vec(), false));
        assert_eq!(literal_prefix(b"*"), (Vec::new(), true));
    }

    proptest! {
        #[test]
        fn what_matches_begins_with_the_prefix(pattern in "[ab*?\\\\\\[\\]^-]{0,8}", text in "[ab*\\]]{0,8}") {
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            let (prefix, whole) = literal_prefix(pattern);
            if matches(pattern, text) {
                prop_assert!(text.starts_with(&prefix));
            } else {
                prop_assert!(!whole || !text.starts_with(&prefix));
            }
        }

        #[test]
        fn any_bytes_are_taken(
            pattern in proptest::collection::vec(any::<u8>(), 0..30),
            text in proptest::collection::vec(any::<u8>(), 0..30),
        ) {
            let _ = matches(&pattern, &text);
        }
    }
}
