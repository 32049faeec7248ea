//! Replies: values to bytes, in RESP2 or RESP3.
//!
//! Everything goes to the end of one buffer, which the connection sends when it has run what the
//! client sent. The functions are named after the types of RESP3; what RESP2 lacks is written there
//! as Redis writes it (a map as a flat array, a null as a null bulk string).

use std::io::Write as _;

/// The protocol that a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// RESP2, the default.
    V2,
    /// RESP3, after `HELLO 3`.
    V3,
}

/// The replies that wait to be sent.
#[derive(Debug)]
pub struct Out {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How they are written.
    pub proto: Proto,
}

impl Out {
    /// An empty buffer.
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            proto: Proto::V2,
        }
    }

    fn v3(&self) -> bool {
        self.proto == Proto::V3
    }

    /// `+OK`.
    #[inline]
    pub fn ok(&mut self) {
        self.bytes.extend_from_slice(b"+OK\r\n");
    }

    /// A short text without line ends.
    pub fn simple(&mut self, text: &str) {
        self.bytes.push(b'+');
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// An error; the first word is its code. Line ends become spaces.
    pub fn error(&mut self, text: &str) {
        self.bytes.push(b'-');
        let clean = |b: u8| if matches!(b, b'\r' | b'\n') { b' ' } else { b };
        self.bytes.extend(text.bytes().map(clean));
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// A whole number.
    #[inline]
    pub fn int(&mut self, value: i64) {
        self.head(b':', value);
    }

    /// The number of something.
    pub fn count(&mut self, value: usize) {
        self.int(i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// Bytes.
    #[inline]
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.bytes.reserve(bytes.len() + 24);
        self.head(b'$', bytes.len() as i64);
        self.bytes.extend_from_slice(bytes);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Bytes, or nothing.
    pub fn bulk_or_null(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// Nothing.
    #[inline]
    pub fn null(&mut self) {
        let null: &[u8] = if self.v3() { b"_\r\n" } else { b"$-1\r\n" };
        self.bytes.extend_from_slice(null);
    }

    /// Nothing where an array was asked for.
    pub fn null_array(&mut self) {
        let null: &[u8] = if self.v3() { b"_\r\n" } else { b"*-1\r\n" };
        self.bytes.extend_from_slice(null);
    }

    /// The head of an array.
    pub fn array(&mut self, len: usize) {
        self.head(b'*', len as i64);
    }

    /// The head of a map of `pairs`.
    pub fn map(&mut self, pairs: usize) {
        if self.v3() {
            self.head(b'%', pairs as i64);
        } else {
            self.head(b'*', 2 * pairs as i64);
        }
    }

    /// The head of a set.
    pub fn set(&mut self, len: usize) {
        let kind = if self.v3() { b'~' } else { b'*' };
        self.head(kind, len as i64);
    }

    /// The head of a message that nobody asked for.
    pub fn push(&mut self, len: usize) {
        let kind = if self.v3() { b'>' } else { b'*' };
        self.head(kind, len as i64);
    }

    /// A text for people.
    pub fn verbatim(&mut self, text: &str) {
        if self.v3() {
            self.head(b'=', text.len() as i64 + 4);
            self.bytes.extend_from_slice(b"txt:");
            self.bytes.extend_from_slice(text.as_bytes());
            self.bytes.extend_from_slice(b"\r\n");
        } else {
            self.bulk(text.as_bytes());
        }
    }

    #[inline]
    fn head(&mut self, kind: u8, value: i64) {
        self.bytes.push(kind);
        if (0..10).contains(&value) {
            self.bytes.push(b'0' + value as u8);
        } else {
            // Writing to a vector does not fail.
            let _ = write!(self.bytes, "{value}");
        }
        self.bytes.extend_from_slice(b"\r\n");
    }
}

impl Default for Out {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(write: impl Fn(&mut Out)) -> (String, String) {
        let mut texts = [Proto::V2, Proto::V3].into_iter().map(|proto| {
            let mut out = Out::new();
            out.proto = proto;
            write(&mut out);
            String::from_utf8(out.bytes).unwrap()
        });
        (texts.next().unwrap(), texts.next().unwrap())
    }

    #[test]
    fn each_type_has_its_form_in_both_protocols() {
        let same = |write: &dyn Fn(&mut Out), text: &str| {
            assert_eq!(both(write), (text.to_owned(), text.to_owned()));
        };
        same(&|o| o.ok(), "+OK\r\n");
        same(&|o| o.error("ERR a\r\nb"), "-ERR a  b\r\n");
        same(&|o| o.int(i64::MIN), ":-9223372036854775808\r\n");
        same(&|o| o.bulk(b"\r\n"), "$2\r\n\r\n\r\n");
        same(&|o| o.array(12), "*12\r\n");
        let differ = |write: &dyn Fn(&mut Out), v2: &str, v3: &str| {
            assert_eq!(both(write), (v2.to_owned(), v3.to_owned()));
        };
        differ(&|o| o.null(), "$-1\r\n", "_\r\n");
        differ(&|o| o.null_array(), "*-1\r\n", "_\r\n");
        differ(&|o| o.map(2), "*4\r\n", "%2\r\n");
        differ(&|o| o.set(2), "*2\r\n", "~2\r\n");
        differ(&|o| o.push(3), "*3\r\n", ">3\r\n");
        differ(&|o| o.verbatim("ab"), "$2\r\nab\r\n", "=6\r\ntxt:ab\r\n");
    }
}
