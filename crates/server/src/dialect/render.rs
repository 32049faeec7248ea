//! JSON as the systems before wrote it, and ranges rendered with it.
//!
//! A range has no limit in any of these dialects, so it is sent while it is read: a first chunk is
//! made before the answer begins, and if it is all there is, the answer has a length. Otherwise the
//! rest follows chunk by chunk. If it fails on the way the connection is cut, which a client can
//! tell from an end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use firn_api::text;
use tokio::task::JoinHandle;

use crate::http::body::{Chunks, ReplyBody, spawn_counted};
use crate::http::request::Request;
use crate::service::Service;
use crate::service::error::Result;
use crate::service::scan::{EntryRef, RangeQuery, Sink, Walk};

/// A JSON string in which `<`, `>`, `&`, U+2028 and U+2029 are escaped, so that it may stand in a
/// web page. Bytes that are not UTF-8 are U+FFFD.
pub(crate) fn push_page_safe(out: &mut Vec<u8>, bytes: &[u8]) {
    push_escaped(out, bytes, |out, c| {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                push_unit(out, c as u32, b"0123456789abcdef")
            }
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            _ => return false,
        }
        true
    });
}

/// A JSON string of ASCII only, with everything escaped that means something in HTML.
pub(crate) fn push_ascii(out: &mut Vec<u8>, bytes: &[u8]) {
    push_escaped(out, bytes, |out, c| {
        match c {
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '\t' | '\n' | '\r' | '\\' => return false,
            '"' | '&' | '\'' | '+' | '<' | '>' | '`' | '\0'..='\u{1f}' | '\u{7f}'.. => {
                let mut units = [0; 2];
                for &mut unit in c.encode_utf16(&mut units) {
                    push_unit(out, u32::from(unit), b"0123456789ABCDEF");
                }
            }
            _ => return false,
        }
        true
    });
}

/// A JSON string with nothing escaped that need not be.
pub(crate) fn push_plain(out: &mut Vec<u8>, bytes: &[u8]) {
    push_escaped(out, bytes, |out, c| {
        match c {
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            _ => return false,
        }
        true
    });
}

/// Writes a string; `special` writes the characters that it takes.
fn push_escaped(out: &mut Vec<u8>, bytes: &[u8], special: fn(&mut Vec<u8>, char) -> bool) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if special(out, c) {
                continue;
            }
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                '\0'..='\u{1f}' => push_unit(out, c as u32, b"0123456789abcdef"),
                _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() && !special(out, char::REPLACEMENT_CHARACTER) {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}

fn push_unit(out: &mut Vec<u8>, unit: u32, digits: &[u8; 16]) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(digits[(unit >> shift & 15) as usize]);
    }
}

/// How a range looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `{"a":"1"}` and a newline.
    Object,
    /// The same with values in base64; entries without a value do not show.
    Base64Object,
    /// `["1"]`, in ASCII.
    Values,
    /// `{"data":[{"key":"a","value":"1"}]}`
    Data,
}

impl Shape {
    fn around(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Self::Object | Self::Base64Object => (b"{", b"}\n"),
            Self::Values => (b"[", b"]"),
            Self::Data => (b"{\"data\":[", b"]}"),
        }
    }
}

/// Renders entries in a shape.
#[derive(Debug)]
pub(crate) struct Rows {
    shape: Shape,
    out: Vec<u8>,
    first: bool,
}

impl Sink for Rows {
    fn entry(&mut self, entry: EntryRef<'_>) -> Result<()> {
        let (key, value) = (entry.key, entry.value.unwrap_or_default());
        if self.shape == Shape::Base64Object && value.is_empty() {
            return Ok(());
        }
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        let out = &mut self.out;
        match self.shape {
            Shape::Object => {
                push_page_safe(out, key);
                out.push(b':');
                push_page_safe(out, value);
            }
            Shape::Base64Object => {
                push_page_safe(out, key);
                out.extend_from_slice(b":\"");
                out.extend_from_slice(text::base64_encode(value).as_bytes());
                out.push(b'"');
            }
            Shape::Values => push_ascii(out, value),
            Shape::Data => push_pair(out, key, value, push_plain),
        }
        Ok(())
    }

    fn waiting_bytes(&self) -> usize {
        self.out.len()
    }
}

/// `{"key":"a","value":"1"}`
pub(crate) fn push_pair(
    out: &mut Vec<u8>,
    key: &[u8],
    value: &[u8],
    push: fn(&mut Vec<u8>, &[u8]),
) {
    out.extend_from_slice(b"{\"key\":");
    push(out, key);
    out.extend_from_slice(b",\"value\":");
    push(out, value);
    out.push(b'}');
}

/// Bytes rendered at a time; two such chunks exist.
const CHUNK_BYTES: usize = 128 << 10;

/// A range in this shape: whole if it is small, else a stream.
pub(crate) async fn range(service: &Service, query: RangeQuery, shape: Shape) -> Result<ReplyBody> {
    let (begin, _) = shape.around();
    let sink = Rows {
        shape,
        out: begin.to_vec(),
        first: true,
    };
    let walk = Box::new(service.stream(query, sink).await?);
    let filled = service.blocking(move || Ok(fill_now(walk))).await?;
    let (chunk, rest) = take(filled)?;
    // Values alone were always sent in chunks.
    if rest.is_none() && shape != Shape::Values {
        return Ok(ReplyBody::full(chunk));
    }
    let state = rest.map_or(State::Done, State::Resting);
    Ok(ReplyBody::chunks(Box::new(Stream {
        ready: chunk,
        state,
    })))
}

/// A range without entries.
pub(crate) fn nothing(shape: Shape) -> ReplyBody {
    let (begin, end) = shape.around();
    let both = [begin, end].concat();
    match shape {
        Shape::Values => ReplyBody::chunks(Box::new(Chunked(both.into()))),
        _ => ReplyBody::full(both),
    }
}

type Filled = (Box<Walk<Rows>>, Result<()>);

fn fill_now(mut walk: Box<Walk<Rows>>) -> Filled {
    let outcome = walk.fill(CHUNK_BYTES);
    (walk, outcome)
}

/// The bytes that a walk has ready, and the walk if it goes on.
fn take((mut walk, outcome): Filled) -> Result<(Bytes, Option<Box<Walk<Rows>>>)> {
    outcome?;
    let mut chunk = std::mem::take(&mut walk.sink.out);
    if walk.is_done() {
        chunk.extend_from_slice(walk.sink.shape.around().1);
        return Ok((chunk.into(), None));
    }
    walk.sink.out = Vec::with_capacity(CHUNK_BYTES + 4096);
    Ok((chunk.into(), Some(walk)))
}

/// The rest of a range on its way. No thread works for it while the socket is full; dropping it
/// frees the scan.
#[derive(Debug)]
struct Stream {
    ready: Bytes,
    state: State,
}

#[derive(Debug)]
enum State {
    Resting(Box<Walk<Rows>>),
    Filling(JoinHandle<Filled>),
    Done,
}

impl Chunks for Stream {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        request: Option<&Arc<Request>>,
    ) -> Poll<io::Result<Bytes>> {
        loop {
            if !self.ready.is_empty() {
                return Poll::Ready(Ok(std::mem::take(&mut self.ready)));
            }
            match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return Poll::Ready(Ok(Bytes::new())),
                State::Resting(walk) => {
                    let job = spawn_counted(request, move || fill_now(walk));
                    self.state = State::Filling(job);
                }
                State::Filling(mut job) => {
                    let Poll::Ready(filled) = Pin::new(&mut job).poll(cx) else {
                        self.state = State::Filling(job);
                        return Poll::Pending;
                    };
                    let filled = filled.map_err(io::Error::other)?;
                    let (chunk, rest) = take(filled).map_err(|error| {
                        tracing::error!(%error, "a range was cut");
                        io::Error::other(error)
                    })?;
                    self.ready = chunk;
                    self.state = rest.map_or(State::Done, State::Resting);
                }
            }
        }
    }

    fn ready_bytes(&self) -> usize {
        // One chunk, or one entry if that is larger.
        self.ready.len()
    }
}

/// A body that is sent in chunks although its length is known.
#[derive(Debug)]
pub(crate) struct Chunked(pub(crate) Bytes);

impl Chunks for Chunked {
    fn poll_chunk(
        &mut self,
        _: &mut Context<'_>,
        _: Option<&Arc<Request>>,
    ) -> Poll<io::Result<Bytes>> {
        Poll::Ready(Ok(std::mem::take(&mut self.0)))
    }

    fn ready_bytes(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Push = fn(&mut Vec<u8>, &[u8]);

    fn pushed(push: Push, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        push(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_writer_escapes_its_own() {
        let text = "<&>'\"+`\\/\u{e9}\u{1f600}\u{2028}\u{7f}\u{8}\u{1}\n";
        assert_eq!(
            pushed(push_page_safe, text.as_bytes()),
            "\"\\u003c\\u0026\\u003e'\\\"+`\\\\/\u{e9}\u{1f600}\\u2028\u{7f}\\b\\u0001\\n\""
        );
        assert_eq!(
            pushed(push_ascii, text.as_bytes()),
            "\"\\u003C\\u0026\\u003E\\u0027\\u0022\\u002B\\u0060\\\\/\\u00E9\\uD83D\\uDE00\\u2028\\u007F\\b\\u0001\\n\""
        );
        assert_eq!(
            pushed(push_plain, text.as_bytes()),
            "\"<&>'\\\"+`\\\\/\u{e9}\u{1f600}\u{2028}\u{7f}\\b\\u0001\\n\""
        );
        assert_eq!(pushed(push_plain, b"\xff"), "\"\u{fffd}\"");
        assert_eq!(pushed(push_ascii, b"\xff"), "\"\\uFFFD\"");
    }

    proptest! {
        #[test]
        fn any_text_is_json_again(text in any::<String>()) {
            for push in [push_page_safe as Push, push_ascii, push_plain] {
                let json = pushed(push, text.as_bytes());
                prop_assert_eq!(&serde_json::from_str::<String>(&json).unwrap(), &text);
            }
        }
    }
}
