//! A reply that comes line by line, for as long as it takes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::error::{Error, ErrorKind, Result};
use crate::transport::chain;

/// The longest line: a value of 256 MiB in base64 or with every byte escaped, and its key.
const MAX_LINE_BYTES: usize = 2 << 30;

/// The lines of a reply.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    buf: BytesMut,
    /// How much of `buf` was searched for the end of a line.
    searched: usize,
}

impl Lines {
    pub(crate) fn new(body: Incoming) -> Self {
        Self {
            body,
            buf: BytesMut::new(),
            searched: 0,
        }
    }

    /// The next line that is not blank; `None` at the end of the reply. It may be dropped and called
    /// again without losing anything.
    ///
    /// # Errors
    /// Of the kind [`ErrorKind::Protocol`] if a line is too long; else the connection broke, or
    /// nothing came for as long as `silence`.
    pub(crate) async fn next(&mut self, silence: Duration) -> Result<Option<Bytes>> {
        loop {
            while let Some(line) = self.whole() {
                if !line.iter().all(u8::is_ascii_whitespace) {
                    return Ok(Some(line));
                }
            }
            let frame = match tokio::time::timeout(silence, self.body.frame()).await {
                Err(_) => {
                    let detail = "no sign of life from the server";
                    return Err(Error::new(ErrorKind::Unknown, detail));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(Error::new(ErrorKind::Unknown, chain(&error)));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            if let Ok(data) = frame.into_data() {
                if self.buf.len() + data.len() > MAX_LINE_BYTES {
                    let detail = format!("a line of more than {MAX_LINE_BYTES} bytes");
                    return Err(Error::new(ErrorKind::Protocol, detail));
                }
                self.buf.extend_from_slice(&data);
            }
        }
    }

    /// The next whole line that has arrived.
    fn whole(&mut self) -> Option<Bytes> {
        let end = self.buf[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n');
        let Some(end) = end else {
            self.searched = self.buf.len();
            return None;
        };
        let line = self.buf.split_to(self.searched + end + 1).freeze();
        self.searched = 0;
        Some(line)
    }
}
