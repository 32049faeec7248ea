//! A connection that watches its client's pace.
//!
//! hyper can limit the time for a request's head, but not tell a connection that rests between
//! requests from one that drips a head byte by byte, nor notice a client that stops reading a reply.
//! [`Guarded`] sits between hyper and the socket and knows which of three phases the connection is
//! in:
//!
//! | Phase | From | Limit |
//! |---|---|---|
//! | idle | accept, or the end of a reply | `limits.idle_timeout` |
//! | head | the first byte of a request | `limits.header_timeout`; then 408 |
//! | busy | the head is complete | none here: the body has its own clock |
//!
//! In every phase a write that makes no progress for `limits.write_timeout` ends the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

const IDLE: u64 = 0;
const HEAD: u64 = 1;
const BUSY: u64 = 2;
const PHASE: u64 = 3;

/// The phase of a connection, shared with the requests on it. The low two bits are the phase; the
/// rest counts requests, so that the same phase of another request is not taken for this one's.
#[derive(Debug, Default)]
pub struct Activity(AtomicU64);

impl Activity {
    /// A request's head is complete.
    pub(crate) fn busy(&self) {
        self.0.fetch_or(BUSY | HEAD, Ordering::Relaxed);
    }

    /// Its reply was sent.
    pub(crate) fn idle(&self) {
        let counted = (self.0.load(Ordering::Relaxed) | PHASE) + 1;
        self.0.store(counted, Ordering::Relaxed);
    }

    fn bytes_arrived(&self) {
        let now = self.0.load(Ordering::Relaxed);
        if now & PHASE == IDLE {
            self.0.store(now | HEAD, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long a connection may wait for its client.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between requests.
    pub idle: Duration,
    /// For a request's head.
    pub header: Duration,
    /// For the next bytes of a reply to be taken.
    pub write: Duration,
}

/// A socket that fails with a time-out when its client is too slow.
#[derive(Debug)]
pub struct Guarded {
    stream: TcpStream,
    activity: Arc<Activity>,
    pace: Pace,
    /// The timer of reading, and the activity that it was set for.
    reading: Option<(u64, Pin<Box<Sleep>>)>,
    writing: Option<Pin<Box<Sleep>>>,
}

const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
content-type: application/problem+json\r\ncontent-length: 157\r\n\r\n\
{\"type\":\"urn:firn:error:request_timeout\",\"title\":\"The request arrived too slowly\",\
\"status\":408,\"detail\":\"see limits.header_timeout\",\"code\":\"request_timeout\"}";

impl Guarded {
    /// Guards a socket.
    pub fn new(stream: TcpStream, activity: Arc<Activity>, pace: Pace) -> Self {
        Self {
            stream,
            activity,
            pace,
            reading: None,
            writing: None,
        }
    }

    fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.activity.now();
        let allowed = match now & PHASE {
            IDLE => self.pace.idle,
            HEAD => self.pace.header,
            _ => {
                self.reading = None;
                return Poll::Pending;
            }
        };
        let deadline = || Instant::now() + allowed;
        let (set_for, timer) = self
            .reading
            .get_or_insert_with(|| (now, Box::pin(tokio::time::sleep_until(deadline()))));
        if *set_for != now {
            *set_for = now;
            timer.as_mut().reset(deadline());
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if now & PHASE == HEAD {
            // As far as it goes: the client may be gone.
            let _ = self.stream.try_write(TOO_SLOW);
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn guard_write(
        &mut self,
        cx: &mut Context<'_>,
        done: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if done.is_ready() {
            self.writing = None;
            return done;
        }
        let allowed = self.pace.write;
        let timer = self
            .writing
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(allowed)));
        match timer.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(done) => {
                if buf.filled().len() > before {
                    self.activity.bytes_arrived();
                }
                Poll::Ready(done)
            }
            Poll::Pending => self.poll_too_slow(cx),
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.guard_write(cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.guard_write(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_and_requests_are_told_apart() {
        let activity = Activity::default();
        assert_eq!(activity.now() & PHASE, IDLE);
        activity.bytes_arrived();
        let first_head = activity.now();
        assert_eq!(first_head & PHASE, HEAD);
        activity.busy();
        activity.bytes_arrived();
        assert_eq!(activity.now() & BUSY, BUSY);
        activity.idle();
        assert_eq!(activity.now() & PHASE, IDLE);
        activity.bytes_arrived();
        assert_eq!(activity.now() & PHASE, HEAD);
        assert_ne!(activity.now(), first_head);
    }

    #[test]
    fn the_reply_to_slow_heads_is_well_formed() {
        let text = std::str::from_utf8(TOO_SLOW).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        assert!(serde_json::from_str::<firn_api::http::Problem>(body).is_ok());
    }
}
