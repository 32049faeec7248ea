//! JSON as the systems before read it: pulled piece by piece, so that a body costs no more memory
//! than it has bytes, whatever it nests or repeats.
//!
//! A library will not do: these clients send strings that are not UTF-8, lone surrogates, text
//! after the value and field names in any letter case, and each system took them in its own way.
//! What differs is [`Utf8`] and what the caller does with names and with what follows the value.

/// What becomes of bytes in a string that are not UTF-8, and of lone surrogates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Utf8 {
    /// Each such byte is U+FFFD.
    EachByte,
    /// Each longest beginning of a character is U+FFFD, as browsers do.
    Longest,
    /// They are an error.
    Refuse,
}

/// Where the text stops being JSON, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syntax {
    /// Offset of the byte.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl std::fmt::Display for Syntax {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at offset {}", self.what, self.at)
    }
}

type Result<T> = std::result::Result<T, Syntax>;

/// Objects and arrays inside of each other.
const DEPTH: u32 = 200;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number
    Number,
    /// A string
    String,
    /// `[...]`
    Array,
    /// `{...}`
    Object,
}

/// A reader at some place of the text.
#[derive(Debug)]
pub struct Json<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
    utf8: Utf8,
}

impl<'a> Json<'a> {
    /// A reader at the beginning of `bytes`.
    pub fn new(bytes: &'a [u8], utf8: Utf8) -> Self {
        Self {
            bytes,
            at: 0,
            depth: 0,
            utf8,
        }
    }

    fn wrong<T>(&self, what: &'static str) -> Result<T> {
        Err(Syntax { at: self.at, what })
    }

    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn blank(&mut self) {
        while matches!(self.byte(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.byte() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// What the next value is, by its first byte.
    ///
    /// # Errors
    /// The text is no JSON here.
    pub fn kind(&mut self) -> Result<Kind> {
        self.blank();
        Ok(match self.byte() {
            Some(b'n') => Kind::Null,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            Some(b'"') => Kind::String,
            Some(b'[') => Kind::Array,
            Some(b'{') => Kind::Object,
            Some(_) => return self.wrong("a value was expected"),
            None => return self.wrong("the text ends where a value was expected"),
        })
    }

    /// Nothing but blanks may follow.
    ///
    /// # Errors
    /// Something follows.
    pub fn end(&mut self) -> Result<()> {
        self.blank();
        match self.byte() {
            None => Ok(()),
            Some(_) => self.wrong("the text goes on after the value"),
        }
    }

    /// Passes over a value, whatever it is.
    ///
    /// # Errors
    /// The text is no JSON here.
    pub fn skip(&mut self) -> Result<()> {
        match self.kind()? {
            Kind::Null => self.word(b"null"),
            Kind::Bool if self.byte() == Some(b't') => self.word(b"true"),
            Kind::Bool => self.word(b"false"),
            Kind::Number => self.number(),
            Kind::String => self.string().map(drop),
            Kind::Array => self.array(&mut Self::skip),
            Kind::Object => self.object(&mut |json, _| json.skip()),
        }
    }

    /// Passes over a value and returns its text as it stands there.
    ///
    /// # Errors
    /// The text is no JSON here.
    pub fn source(&mut self) -> Result<&'a [u8]> {
        self.blank();
        let from = self.at;
        self.skip()?;
        Ok(&self.bytes[from..self.at])
    }

    /// The next value if it is a string; passes over any other and says what it was.
    ///
    /// # Errors
    /// The text is no JSON here.
    pub fn string_or_kind(&mut self) -> Result<std::result::Result<String, Kind>> {
        let kind = self.kind()?;
        if kind == Kind::String {
            return self.string().map(Ok);
        }
        self.skip().map(|()| Err(kind))
    }

    fn word(&mut self, word: &[u8]) -> Result<()> {
        if !self.bytes[self.at..].starts_with(word) {
            return self.wrong("a value was expected");
        }
        self.at += word.len();
        Ok(())
    }

    fn digits(&mut self) -> Result<()> {
        let from = self.at;
        while matches!(self.byte(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == from {
            return self.wrong("a digit was expected");
        }
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
        }
        Ok(())
    }

    fn enter(&mut self) -> Result<()> {
        self.depth += 1;
        self.at += 1;
        if self.depth > DEPTH {
            return self.wrong("more than 200 objects and arrays inside of each other");
        }
        Ok(())
    }

    /// Gives each element of an array to `element`, which must take it.
    ///
    /// # Errors
    /// The text is something else here, or what the function says.
    pub fn array(&mut self, element: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if self.kind()? != Kind::Array {
            return self.wrong("an array was expected");
        }
        self.enter()?;
        self.blank();
        if !self.eat(b']') {
            loop {
                element(self)?;
                self.blank();
                if self.eat(b']') {
                    break;
                }
                if !self.eat(b',') {
                    return self.wrong("a comma or ] was expected");
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Gives each member's name to `member`, which must take the value.
    ///
    /// # Errors
    /// The text is something else here, or what the function says.
    pub fn object(
        &mut self,
        member: &mut dyn FnMut(&mut Self, String) -> Result<()>,
    ) -> Result<()> {
        if self.kind()? != Kind::Object {
            return self.wrong("an object was expected");
        }
        self.enter()?;
        self.blank();
        if !self.eat(b'}') {
            loop {
                self.blank();
                if self.byte() != Some(b'"') {
                    return self.wrong("a name in quotes was expected");
                }
                let name = self.string()?;
                self.blank();
                if !self.eat(b':') {
                    return self.wrong("a colon was expected");
                }
                member(self, name)?;
                self.blank();
                if self.eat(b'}') {
                    break;
                }
                if !self.eat(b',') {
                    return self.wrong("a comma or } was expected");
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn string(&mut self) -> Result<String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let from = self.at;
            while matches!(self.byte(), Some(b) if b >= 0x20 && b != b'"' && b != b'\\') {
                self.at += 1;
            }
            self.push_text(&mut out, from)?;
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escape(&mut out)?;
                }
                Some(_) => return self.wrong("a control character in a string"),
                None => return self.wrong("the text ends inside of a string"),
            }
        }
    }

    fn push_text(&self, out: &mut String, from: usize) -> Result<()> {
        let mut rest = &self.bytes[from..self.at];
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    return Ok(());
                }
                Err(error) => error,
            };
            let (good, bad) = rest.split_at(error.valid_up_to());
            if self.utf8 == Utf8::Refuse {
                let at = self.at - bad.len();
                let what = "a string that is not UTF-8";
                return Err(Syntax { at, what });
            }
            // What was found valid just now is not checked again byte by byte.
            out.push_str(&String::from_utf8_lossy(good));
            out.push(char::REPLACEMENT_CHARACTER);
            let width = match self.utf8 {
                Utf8::Longest => error.error_len().unwrap_or(bad.len()),
                _ => 1,
            };
            rest = &bad[width..];
        }
    }

    fn escape(&mut self, out: &mut String) -> Result<()> {
        let Some(byte) = self.byte() else {
            return self.wrong("the text ends inside of a string");
        };
        self.at += 1;
        out.push(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex()?;
                match char::from_u32(unit) {
                    Some(c) => c,
                    None => self.surrogate(unit)?,
                }
            }
            _ => {
                self.at -= 1;
                return self.wrong("an escape that JSON does not have");
            }
        });
        Ok(())
    }

    /// The character that a surrogate begins, with the one that follows.
    fn surrogate(&mut self, high: u32) -> Result<char> {
        let rest = &self.bytes[self.at..];
        if high < 0xdc00 && rest.starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                let c = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            // The second one stands for itself.
            self.at = back;
        }
        if self.utf8 == Utf8::Refuse {
            return self.wrong("half of a surrogate pair");
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn hex(&mut self) -> Result<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.byte().and_then(|b| char::from(b).to_digit(16));
            let Some(digit) = digit else {
                return self.wrong("four hexadecimal digits were expected");
            };
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &[u8], utf8: Utf8) -> Result<String> {
        let mut json = Json::new(text, utf8);
        let string = json.string_or_kind()?;
        json.end()?;
        Ok(string.expect("a string"))
    }

    #[test]
    fn strings_are_read_as_each_system_did() {
        assert_eq!(
            one(br#""a\n\u00e9\ud83d\ude00\/""#, Utf8::Refuse).unwrap(),
            "a\n\u{e9}\u{1f600}/"
        );
        // The first three bytes of a character of four.
        let cut = b"\"\xf0\x9f\x98x\"";
        assert_eq!(
            one(cut, Utf8::EachByte).unwrap(),
            "\u{fffd}\u{fffd}\u{fffd}x"
        );
        assert_eq!(one(cut, Utf8::Longest).unwrap(), "\u{fffd}x");
        assert_eq!(one(cut, Utf8::Refuse).unwrap_err().at, 1);
        let lone = br#""\ud800\u0041""#;
        assert_eq!(one(lone, Utf8::EachByte).unwrap(), "\u{fffd}A");
        assert!(one(lone, Utf8::Refuse).is_err());
        for bad in [
            &b"\"\x00\""[..],
            b"\"\\x\"",
            b"\"\\u12g4\"",
            b"\"",
            b"\"\\",
            b"",
        ] {
            assert!(one(bad, Utf8::EachByte).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sources_stand_as_they_were_written() {
        let text = b" {\"a\" : 1.0e400 } x";
        let mut json = Json::new(text, Utf8::Longest);
        assert_eq!(json.source().unwrap(), b"{\"a\" : 1.0e400 }");
        assert!(json.end().is_err());
        assert!(Json::new(b"[1,", Utf8::Longest).source().is_err());
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = vec![b'['; 100_000];
        assert!(Json::new(&deep, Utf8::Longest).skip().is_err());
        let fine = [vec![b'['; 200], vec![b']'; 200]].concat();
        assert!(Json::new(&fine, Utf8::Longest).skip().is_ok());
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_library_on_what_is_json(text in "[\\[\\]{}:,\"a0-9.eE+\\- \\\\tfnulrs]{0,12}") {
            let mut json = Json::new(text.as_bytes(), Utf8::Refuse);
            let ours = json.skip().and_then(|()| json.end()).is_ok();
            // The library refuses numbers that a double cannot hold.
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(ours, theirs, "{}", text);
        }

        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for utf8 in [Utf8::EachByte, Utf8::Longest, Utf8::Refuse] {
                let _ = Json::new(&bytes, utf8).skip();
            }
        }

        #[test]
        fn strings_come_back(text in any::<String>()) {
            let mut out = Vec::new();
            crate::text::push_json_string(&mut out, &text);
            prop_assert_eq!(one(&out, Utf8::Refuse).unwrap(), text);
        }
    }
}
