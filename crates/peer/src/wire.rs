//! A connection as frames: what arrives is cut into them, what is sent is put together until it is
//! worth a system call.
//!
//! Small bodies are copied behind their headers into one buffer, large ones are sent from where they
//! are. Nothing waits for a timer: whoever fills the connection stops at [`FULL_BYTES`] or when there
//! is nothing more to send, and flushes.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::Instant;

use crate::frame::{self, Decoded, Frame, FrameError, HEADER_BYTES, Kind};
use crate::stats::{Counters, add};

/// With so much to be sent it is sent before more is added.
pub(crate) const FULL_BYTES: usize = 64 << 10;
/// Bodies up to this length are copied.
const COPIED_BYTES: usize = 8 << 10;
/// Room for reading, at least.
const READ_BYTES: usize = 32 << 10;
/// The buffer of a long frame grows by as much as it has, at least by this: memory follows what
/// arrives, not what was announced.
const GROWTH_BYTES: usize = 1 << 20;
/// Pieces of one system call.
const SLICES: usize = 16;

/// A socket, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why a connection is of no use any more.
#[derive(Debug)]
pub(crate) enum WireError {
    /// The other end closed it, between two frames.
    Closed,
    Io(io::Error),
    Frame(FrameError),
    /// Frames that are right, but not now.
    Protocol(String),
    /// Nothing came for so long.
    Silent(std::time::Duration),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the other side closed the connection"),
            Self::Io(error) => write!(f, "{error}"),
            Self::Frame(error) => write!(f, "{error}"),
            Self::Protocol(detail) => write!(f, "{detail}"),
            Self::Silent(time) => write!(f, "nothing was heard for {} ms", time.as_millis()),
        }
    }
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FrameError> for WireError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

/// See the module's page.
pub(crate) struct Wire {
    io: Box<dyn Stream>,
    arrived: BytesMut,
    /// Longest body that is taken.
    most: usize,
    /// Headers and small bodies after the last large one.
    tail: BytesMut,
    parts: VecDeque<Bytes>,
    /// Bytes in `tail` and `parts`.
    backlog: usize,
    needs_flush: bool,
    stream: u32,
    counters: Arc<Counters>,
    /// When bytes arrived last, or a part of what could not be sent at once was taken.
    pub(crate) alive_at: Instant,
    /// When the other end took something last, or there was nothing to take.
    pub(crate) taken_at: Instant,
}

impl Wire {
    pub(crate) fn new(io: Box<dyn Stream>, stream: u32, counters: Arc<Counters>) -> Self {
        Self {
            io,
            arrived: BytesMut::new(),
            most: crate::hello::MAX_HELLO_BYTES,
            tail: BytesMut::new(),
            parts: VecDeque::new(),
            backlog: 0,
            needs_flush: false,
            stream,
            counters,
            alive_at: Instant::now(),
            taken_at: Instant::now(),
        }
    }

    /// Both ends know each other now: longer frames are taken.
    pub(crate) fn open(&mut self, stream: u32, counters: Arc<Counters>) {
        self.most = frame::MAX_BODY_BYTES;
        self.stream = stream;
        self.counters = counters;
    }

    /// Bytes that wait to be sent.
    pub(crate) fn backlog(&self) -> usize {
        self.backlog
    }

    /// Adds a frame to what is sent with the next flush.
    pub(crate) fn push(&mut self, kind: Kind, id: u64, body: Bytes) {
        let header = frame::header(kind, self.stream, id, &body);
        add(&self.counters.frames_sent, 1);
        if self.backlog == 0 {
            self.taken_at = Instant::now();
        }
        self.backlog += HEADER_BYTES + body.len();
        self.tail.extend_from_slice(&header);
        if body.len() <= COPIED_BYTES {
            self.tail.extend_from_slice(&body);
        } else {
            self.parts.push_back(self.tail.split().freeze());
            self.parts.push_back(body);
        }
    }

    /// Sends what was added. Ready when all of it is out.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        if !self.tail.is_empty() {
            self.parts.push_back(self.tail.split().freeze());
        }
        while !self.parts.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            for (slice, part) in slices.iter_mut().zip(&self.parts) {
                *slice = IoSlice::new(part);
            }
            let count = self.parts.len().min(SLICES);
            let io = Pin::new(&mut self.io);
            let mut written = ready!(io.poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(WireError::Io(io::ErrorKind::WriteZero.into())));
            }
            add(&self.counters.bytes_sent, written as u64);
            self.backlog -= written;
            self.needs_flush = true;
            if self.backlog > 0 {
                self.taken_at = Instant::now();
                self.alive_at = self.taken_at;
            }
            while let Some(first) = self.parts.front_mut() {
                if first.len() > written {
                    first.advance(written);
                    break;
                }
                written -= first.len();
                self.parts.pop_front();
            }
        }
        if self.needs_flush {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The next frame that arrives, which must be of this stream.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, WireError>> {
        loop {
            let more = match frame::decode(&mut self.arrived, self.most)? {
                Decoded::Frame(frame) if frame.stream == self.stream => {
                    add(&self.counters.frames_received, 1);
                    return Poll::Ready(Ok(frame));
                }
                Decoded::Frame(frame) => {
                    let detail = format!(
                        "a frame of stream {} on a connection of stream {}",
                        frame.stream, self.stream
                    );
                    return Poll::Ready(Err(WireError::Protocol(detail)));
                }
                Decoded::More(more) => more,
            };
            let growth = self.arrived.len().max(GROWTH_BYTES);
            self.arrived.reserve(more.min(growth).max(READ_BYTES));
            let read = pin!(self.io.read_buf(&mut self.arrived)).poll(cx);
            let read = match ready!(read) {
                // TLS says so when the other side just went.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                read => read?,
            };
            if read == 0 {
                let error = if self.arrived.is_empty() {
                    WireError::Closed
                } else {
                    WireError::Io(io::ErrorKind::UnexpectedEof.into())
                };
                return Poll::Ready(Err(error));
            }
            add(&self.counters.bytes_received, read as u64);
            self.alive_at = Instant::now();
        }
    }

    pub(crate) async fn frame(&mut self) -> Result<Frame, WireError> {
        std::future::poll_fn(|cx| self.poll_frame(cx)).await
    }

    pub(crate) async fn flush(&mut self) -> Result<(), WireError> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }
}
