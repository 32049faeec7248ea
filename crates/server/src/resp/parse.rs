//! Requests: bytes to arguments, in place.
//!
//! ```text
//! request := '*' count CRLF ( '$' length CRLF bytes CRLF )*     what clients send
//!          | words LF                                           inline, what people type
//! ```
//!
//! [`Parser`] looks at a buffer that grows at its end and says where the arguments are; it copies
//! nothing except the few inline arguments that are written with quotes. It remembers how far it
//! came, so a request that arrives byte by byte costs as much as one that arrives whole. After an
//! error the stream has no meaning any more: the caller says so to the client and closes.
//!
//! Invariants: every span lies within the bytes seen so far; the same bytes give the same requests
//! and the same error however they are cut.

/// Most arguments in a request.
pub const MAX_ARGS: i64 = 1 << 20;
/// Longest inline request, and longest line with a number.
pub const MAX_INLINE_BYTES: usize = 64 << 10;

/// Where an argument is: from, to.
pub type Span = (u32, u32);

/// The arguments of a request.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Arguments that lie in `bytes` at `spans`, which are within them.
    pub fn new(bytes: &'a [u8], spans: &'a [Span]) -> Self {
        Self { bytes, spans }
    }

    /// How many, the command's name included.
    pub fn len(self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.spans.is_empty()
    }

    /// The argument at `index`; nothing beyond the last.
    #[inline]
    pub fn get(self, index: usize) -> &'a [u8] {
        match self.spans.get(index) {
            Some(&(from, to)) => &self.bytes[from as usize..to as usize],
            None => &[],
        }
    }

    /// The arguments from `index` on.
    #[must_use]
    pub fn from(self, index: usize) -> Self {
        Self {
            bytes: self.bytes,
            spans: self.spans.get(index..).unwrap_or_default(),
        }
    }

    /// How many bytes they take where they are.
    #[inline]
    pub fn size(self) -> usize {
        match (self.spans.first(), self.spans.last()) {
            (Some(first), Some(last)) => (last.1 - first.0) as usize,
            _ => 0,
        }
    }

    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> + Clone {
        let bytes = self.bytes;
        self.spans
            .iter()
            .map(move |&(from, to)| &bytes[from as usize..to as usize])
    }
}

/// Why a stream cannot be understood. The text is what Redis says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// An inline request without an end.
    BigInline,
    /// A line with the number of arguments without an end.
    BigCount,
    /// A line with the length of an argument without an end.
    BigLength,
    /// A number of arguments that is none, or too large.
    BadCount,
    /// A length that is none, or too large.
    BadLength,
    /// An argument that does not start with its length.
    NoDollar(u8),
    /// Quotes that do not end.
    Quotes,
    /// More bytes than a request may have.
    BigRequest(usize),
}

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BigInline => f.write_str("Protocol error: too big inline request"),
            Self::BigCount => f.write_str("Protocol error: too big mbulk count string"),
            Self::BigLength => f.write_str("Protocol error: too big bulk count string"),
            Self::BadCount => f.write_str("Protocol error: invalid multibulk length"),
            Self::BadLength => f.write_str("Protocol error: invalid bulk length"),
            Self::NoDollar(byte) => {
                let shown = match byte {
                    b'\r' | b'\n' => ' ',
                    0x20..=0x7e => char::from(*byte),
                    _ => '?',
                };
                write!(f, "Protocol error: expected '$', got '{shown}'")
            }
            Self::Quotes => f.write_str("Protocol error: unbalanced quotes in request"),
            Self::BigRequest(most) => {
                write!(f, "Protocol error: a request has at most {most} bytes")
            }
        }
    }
}

/// What there is in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A request; its arguments are in [`Parser::args`].
    Request,
    /// Not yet a whole one.
    Incomplete,
}

/// Takes requests from a growing buffer.
#[derive(Debug)]
pub struct Parser {
    /// Where the request begins that is being read.
    start: usize,
    /// What was looked at and need not be again.
    at: usize,
    /// Arguments that are still to come, of a request whose count was read.
    missing: Option<u32>,
    /// The length of the argument that is being read.
    length: Option<usize>,
    spans: Vec<Span>,
    /// Inline arguments that are not in the buffer as they are.
    unquoted: Vec<u8>,
    is_unquoted: bool,
    max_bulk: usize,
    max_request: usize,
}

/// Appends the keys of the `GET`s that `buffer` begins with to `keys`, until there are `most`. Ends at
/// what is not there in full, or not written as all clients do: it only looks ahead, and the parser
/// decides what is a request.
pub fn gets_ahead<'a>(mut buffer: &'a [u8], most: usize, keys: &mut Vec<&'a [u8]>) {
    while keys.len() < most {
        let Some((key, rest)) = get_ahead(buffer) else {
            return;
        };
        keys.push(key);
        buffer = rest;
    }
}

fn get_ahead(buffer: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = buffer.strip_prefix(b"*2\r\n$3\r\n")?.split_at_checked(3)?;
    let mut rest = rest.strip_prefix(b"\r\n$")?;
    if !name.eq_ignore_ascii_case(b"get") {
        return None;
    }
    let mut len = 0;
    // Keys have at most 64 KiB.
    for _ in 0..5 {
        match rest.split_first()? {
            (digit @ b'0'..=b'9', after) => {
                len = 10 * len + usize::from(digit - b'0');
                rest = after;
            }
            _ => break,
        }
    }
    let (key, rest) = rest.strip_prefix(b"\r\n")?.split_at_checked(len)?;
    Some((key, rest.strip_prefix(b"\r\n")?))
}

impl Parser {
    /// A parser at the start of a stream. `max_bulk` is the longest argument, `max_request` what a
    /// request may have in all (below 4 GiB).
    pub fn new(max_bulk: usize, max_request: usize) -> Self {
        Self {
            start: 0,
            at: 0,
            missing: None,
            length: None,
            spans: Vec::new(),
            unquoted: Vec::new(),
            is_unquoted: false,
            max_bulk,
            max_request: max_request.min(u32::MAX as usize / 2),
        }
    }

    /// The arguments of the request that [`Parser::next`] found.
    pub fn args<'a>(&'a self, buffer: &'a [u8]) -> Args<'a> {
        let bytes = if self.is_unquoted {
            &self.unquoted[..]
        } else {
            buffer
        };
        Args::new(bytes, &self.spans)
    }

    /// How many bytes of the buffer belong to finished requests.
    pub fn consumed(&self) -> usize {
        self.start
    }

    /// The caller removed the first [`Parser::consumed`] bytes. Only while a request is incomplete.
    pub fn removed(&mut self) {
        let by = self.start;
        self.at -= by;
        self.start = 0;
        for (from, to) in &mut self.spans {
            *from = from.saturating_sub(by as u32);
            *to = to.saturating_sub(by as u32);
        }
        if self.spans.capacity() > 4_096 && self.missing.is_none() {
            self.spans = Vec::new();
        }
    }

    /// How many bytes the argument that is being read still lacks, if its length is known.
    pub fn lacks(&self, buffer: &[u8]) -> usize {
        match self.length {
            Some(length) => (self.at + length + 2).saturating_sub(buffer.len()),
            None => 0,
        }
    }

    /// Looks for the next request. The spans of the one before are gone.
    ///
    /// # Errors
    /// What is wrong with the stream; it stays wrong.
    pub fn next(&mut self, buffer: &[u8]) -> Result<Found, ProtocolError> {
        if self.missing.is_none() {
            // A request of no arguments is none, and no answer is due.
            loop {
                self.is_unquoted = false;
                self.spans.clear();
                let Some(&first) = buffer.get(self.start) else {
                    return Ok(Found::Incomplete);
                };
                if first != b'*' {
                    match self.inline(buffer)? {
                        None => return Ok(Found::Incomplete),
                        Some(true) => return Ok(Found::Request),
                        Some(false) => continue,
                    }
                }
                let Some(line) = self.line(buffer, ProtocolError::BigCount)? else {
                    return Ok(Found::Incomplete);
                };
                let count = integer(&buffer[line.0..line.1]);
                let Some(count) = count.filter(|&count| count <= MAX_ARGS) else {
                    return Err(ProtocolError::BadCount);
                };
                if count > 0 {
                    self.missing = Some(count as u32);
                    break;
                }
                self.start = self.at;
            }
        }
        while let Some(missing) = self.missing.filter(|&missing| missing > 0) {
            if !self.argument(buffer)? {
                return Ok(Found::Incomplete);
            }
            self.missing = Some(missing - 1);
        }
        self.missing = None;
        self.start = self.at;
        Ok(Found::Request)
    }

    fn argument(&mut self, buffer: &[u8]) -> Result<bool, ProtocolError> {
        let length = match self.length {
            Some(length) => length,
            None => {
                let Some(&first) = buffer.get(self.at) else {
                    return Ok(false);
                };
                if first != b'$' {
                    // Redis looks for the end of the line first.
                    return match self.line_from(buffer, self.at, ProtocolError::BigLength)? {
                        None => Ok(false),
                        Some(_) => Err(ProtocolError::NoDollar(first)),
                    };
                }
                let Some(line) = self.line(buffer, ProtocolError::BigLength)? else {
                    return Ok(false);
                };
                let length = integer(&buffer[line.0..line.1])
                    .and_then(|length| usize::try_from(length).ok())
                    .filter(|&length| length <= self.max_bulk)
                    .ok_or(ProtocolError::BadLength)?;
                let whole = self.at - self.start + length;
                if whole > self.max_request {
                    return Err(ProtocolError::BigRequest(self.max_request));
                }
                self.length = Some(length);
                length
            }
        };
        let end = self.at + length;
        if buffer.len() < end + 2 {
            return Ok(false);
        }
        self.spans.push((self.at as u32, end as u32));
        self.at = end + 2;
        self.length = None;
        Ok(true)
    }

    /// The rest of the line whose first byte is at `self.at`; moves behind it.
    fn line(
        &mut self,
        buffer: &[u8],
        too_long: ProtocolError,
    ) -> Result<Option<(usize, usize)>, ProtocolError> {
        let from = self.at.max(self.start);
        let Some(end) = self.line_from(buffer, from, too_long)? else {
            return Ok(None);
        };
        // The byte after the carriage return is taken for a line feed, as Redis does.
        if buffer.len() < end + 2 {
            return Ok(None);
        }
        self.at = end + 2;
        Ok(Some((from + 1, end)))
    }

    fn line_from(
        &self,
        buffer: &[u8],
        from: usize,
        too_long: ProtocolError,
    ) -> Result<Option<usize>, ProtocolError> {
        let rest = &buffer[from..];
        // At most this much is looked at again and again while the end of a line is missing.
        let seen = &rest[..rest.len().min(MAX_INLINE_BYTES + 1)];
        match seen.iter().position(|&b| b == b'\r') {
            Some(end) => Ok(Some(from + end)),
            None if rest.len() > MAX_INLINE_BYTES => Err(too_long),
            None => Ok(None),
        }
    }

    /// An inline request: whether it has words; `None` if its end is missing.
    fn inline(&mut self, buffer: &[u8]) -> Result<Option<bool>, ProtocolError> {
        let from = self.at.max(self.start);
        let rest = &buffer[from..];
        let Some(end) = rest.iter().position(|&b| b == b'\n') else {
            // What was looked at has no line feed.
            self.at = buffer.len();
            if buffer.len() - self.start > MAX_INLINE_BYTES {
                return Err(ProtocolError::BigInline);
            }
            return Ok(None);
        };
        let end = from + end;
        if end - self.start > MAX_INLINE_BYTES {
            return Err(ProtocolError::BigInline);
        }
        let mut line = &buffer[self.start..end];
        if let [head @ .., b'\r'] = line {
            line = head;
        }
        if let Some(end) = line.iter().position(|&b| b == 0) {
            line = &line[..end];
        }
        self.unquoted.clear();
        self.is_unquoted = true;
        split_words(line, &mut self.unquoted, &mut self.spans)?;
        self.at = end + 1;
        self.start = self.at;
        Ok(Some(!self.spans.is_empty()))
    }
}

/// A whole number as Redis reads one: no sign of plus, no leading zeros, no spaces.
pub fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [] | [b'0', ..] => return None,
        _ if digits.len() > 19 => return None,
        _ => {}
    }
    let mut value: u64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // 19 digits fit.
        value = value * 10 + u64::from(digit - b'0');
    }
    if negative {
        (value <= 1 << 63).then(|| (value as i64).wrapping_neg())
    } else {
        i64::try_from(value).ok()
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// Splits a line into words: bare, in double quotes with escapes, in single quotes.
fn split_words(line: &[u8], out: &mut Vec<u8>, spans: &mut Vec<Span>) -> Result<(), ProtocolError> {
    let mut rest = line;
    loop {
        while let [first, tail @ ..] = rest
            && is_space(*first)
        {
            rest = tail;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let from = out.len();
        let mut quote = None;
        loop {
            let Some((&byte, tail)) = rest.split_first() else {
                if quote.is_some() {
                    return Err(ProtocolError::Quotes);
                }
                break;
            };
            rest = tail;
            match (quote, byte) {
                (None, byte) if is_space(byte) => break,
                (None, b'"' | b'\'') => quote = Some(byte),
                (Some(open), byte) if open == byte => {
                    // A closing quote is followed by a space or nothing at all.
                    if rest.first().is_some_and(|&next| !is_space(next)) {
                        return Err(ProtocolError::Quotes);
                    }
                    break;
                }
                (Some(b'"'), b'\\') => rest = unescape(rest, out),
                (Some(b'\''), b'\\') if rest.first() == Some(&b'\'') => {
                    out.push(b'\'');
                    rest = &rest[1..];
                }
                (_, byte) => out.push(byte),
            }
        }
        spans.push((from as u32, out.len() as u32));
    }
}

/// What follows a backslash in double quotes; returns what follows that.
fn unescape<'a>(rest: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let hex = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
    if let [b'x', high, low, tail @ ..] = rest
        && let (Some(high), Some(low)) = (hex(*high), hex(*low))
    {
        out.push(high << 4 | low);
        return tail;
    }
    let Some((&byte, tail)) = rest.split_first() else {
        out.push(b'\\');
        return rest;
    };
    out.push(match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    });
    tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Outcome = (Vec<Vec<Vec<u8>>>, Option<ProtocolError>);

    /// Feeds the pieces one after the other, as a connection does.
    fn feed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
        let mut parser = Parser::new(1_000, 100_000);
        let (mut buffer, mut requests) = (Vec::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match parser.next(&buffer) {
                    Ok(Found::Request) => {
                        requests.push(parser.args(&buffer).iter().map(<[u8]>::to_vec).collect());
                    }
                    Ok(Found::Incomplete) => break,
                    Err(error) => return (requests, Some(error)),
                }
            }
            buffer.drain(..parser.consumed());
            parser.removed();
        }
        (requests, None)
    }

    fn words(bytes: &[u8]) -> Vec<Vec<String>> {
        let (requests, error) = feed([bytes]);
        assert_eq!(error, None);
        let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
        requests
            .iter()
            .map(|r| r.iter().map(text).collect())
            .collect()
    }

    #[test]
    fn gets_ahead_are_those_that_the_parser_would_find() {
        let ahead = |bytes: &[u8]| {
            let mut keys = Vec::new();
            gets_ahead(bytes, 3, &mut keys);
            keys.iter().map(|key| key.to_vec()).collect::<Vec<_>>()
        };
        let get = b"*2\r\n$3\r\nGeT\r\n$2\r\nab\r\n";
        assert_eq!(ahead(&get.repeat(2)), [b"ab", b"ab"]);
        assert_eq!(ahead(&get.repeat(9)).len(), 3);
        for cut in 0..get.len() {
            assert!(ahead(&get[..cut]).is_empty());
        }
        for other in [
            &b"*2\r\n$3\r\nset\r\n$2\r\nab\r\n"[..],
            b"*3\r\n$3\r\nget\r\n$2\r\nab\r\n",
            b"*2\r\n$3\r\nget\r\n$999999\r\nab\r\n",
            b"*2\r\n$3\r\nget\r\n$3\r\nab\r\n",
            b"*2\r\n$3\r\nget\r\n$-1\r\nab\r\n",
            b"*2\r\n$3\r\nget\r\n$2\r\nabc\r\n",
            b"get ab\r\n",
        ] {
            assert!(ahead(other).is_empty());
        }
    }

    #[test]
    fn bulk_and_inline_requests_follow_each_other() {
        let bytes = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n*0\r\n\r\n*-1\r\n\r\n*1\r\n$0\r\n\r\n set a \"b\\x41\\n\" 'c\\'d' \n";
        let expected: Vec<Vec<&str>> = vec![
            vec!["GET", "a"],
            vec!["PING"],
            vec![""],
            vec!["set", "a", "bA\n", "c'd"],
        ];
        assert_eq!(words(bytes), expected);
    }

    #[test]
    fn errors_have_the_words_of_redis() {
        let long = vec![b'a'; MAX_INLINE_BYTES + 1];
        let mut count = b"*".to_vec();
        count.extend(vec![b'1'; MAX_INLINE_BYTES + 1]);
        let mut length = b"*1\r\n$".to_vec();
        length.extend(vec![b'1'; MAX_INLINE_BYTES + 1]);
        for (bytes, text) in [
            (&b"*x\r\n"[..], "invalid multibulk length"),
            (b"*1048577\r\n", "invalid multibulk length"),
            (b"*1\r\n$x\r\n", "invalid bulk length"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$1001\r\n", "invalid bulk length"),
            (b"*1\r\n+OK\r\n", "expected '$', got '+'"),
            (b"*1\r\n\r\n", "expected '$', got ' '"),
            (b"set \"a\n", "unbalanced quotes in request"),
            (b"set \"a\"b\n", "unbalanced quotes in request"),
            (&long, "too big inline request"),
            (&count, "too big mbulk count string"),
            (&length, "too big bulk count string"),
        ] {
            let (_, error) = feed([bytes]);
            assert_eq!(
                error.map(|e| e.to_string()),
                Some(format!("Protocol error: {text}"))
            );
        }
        let mut many = b"*200\r\n".to_vec();
        for _ in 0..200 {
            many.extend_from_slice(b"$1000\r\n");
            many.extend_from_slice(&[b'x'; 1000]);
            many.extend_from_slice(b"\r\n");
        }
        let (_, error) = feed([&many[..]]);
        assert_eq!(error, Some(ProtocolError::BigRequest(100_000)));
    }

    #[test]
    fn numbers_are_strict() {
        for (text, value) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("-0", None),
            ("01", None),
            ("+1", None),
            (" 1", None),
            ("1 ", None),
            ("", None),
            ("-", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(integer(text.as_bytes()), value, "{text}");
        }
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..8),
            Just(b"GET".to_vec()),
        ];
        let bulk = proptest::collection::vec(word, 0..5).prop_map(|words| {
            let mut out = format!("*{}\r\n", words.len()).into_bytes();
            for word in words {
                out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                out.extend_from_slice(&word);
                out.extend_from_slice(b"\r\n");
            }
            out
        });
        let inline = "[ a-c'\"\\\\x0-9]{0,12}\r?\n".prop_map(String::into_bytes);
        let noise = proptest::collection::vec(
            prop_oneof![
                Just(b'*'),
                Just(b'$'),
                Just(b'\r'),
                Just(b'\n'),
                Just(b'1'),
                any::<u8>()
            ],
            0..12,
        );
        let part = prop_oneof![6 => bulk, 3 => inline, 1 => noise];
        proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            bytes in stream(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let whole = feed([&bytes[..]]);
            prop_assert_eq!(&feed(bytes.chunks(1)), &whole);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(&feed(pieces), &whole);
        }

        #[test]
        fn what_is_encoded_is_parsed(
            words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..8),
        ) {
            let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
            for word in &words {
                bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                bytes.extend_from_slice(word);
                bytes.extend_from_slice(b"\r\n");
            }
            prop_assert_eq!(feed([&bytes[..]]), (vec![words], None));
        }
    }
}
