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
//! A head may begin behind another request, whose reply is not there yet. If the bytes that came with
//! that request do not end as a head does, the phase after the reply is the head's. (Behind a body
//! with a length that cannot be told; there it is idle until the next byte.)
//!
//! In every phase a write that makes no progress for `limits.write_timeout` ends the connection.
//!
//! The first bytes tell HTTP/2 from HTTP/1 ([`Guarded::protocol`]). On HTTP/2 requests overlap and
//! frames come at any time, so that there are no such phases: from there on the connection watches
//! writes only, and [`crate::multiplex`] the rest.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::service::rate::Client;

const IDLE: u64 = 0;
const HEAD: u64 = 1;
const BUSY: u64 = 2;
const PHASE: u64 = 3;

/// Writes of HTTP/2 that are no shorter carry more than the answer to a ping.
const PROGRESS_BYTES: usize = 64;

/// What a connection and the requests on it know of each other.
#[derive(Debug)]
pub struct Activity {
    /// The low two bits are the phase; the rest counts requests, so that the same phase of another
    /// request is not taken for this one's.
    phase: AtomicU64,
    /// Requests that are being served.
    open: AtomicU64,
    /// Grows with every request and every write of some size.
    progress: AtomicU64,
    /// The last bytes that arrived were neither the end of a head nor that of a chunked body.
    cut: AtomicBool,
    /// The request has a body whose end cannot be told from its bytes.
    sized: AtomicBool,
    peer: IpAddr,
}

impl Default for Activity {
    fn default() -> Self {
        Self::of(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }
}

impl Activity {
    /// A connection with this host.
    pub fn of(peer: IpAddr) -> Self {
        let (phase, open, progress) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self {
            phase,
            open,
            progress,
            cut: AtomicBool::new(false),
            sized: AtomicBool::new(false),
            peer,
        }
    }

    /// Whose requests they are.
    pub(crate) fn client(&self) -> Client {
        Client::at(self.peer)
    }

    /// Whether a body of so many bytes follows the head.
    pub(crate) fn sized(&self, sized: bool) {
        self.sized.store(sized, Ordering::Relaxed);
    }

    /// A request's head is complete.
    pub(crate) fn busy(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.progress.fetch_add(1, Ordering::Relaxed);
        self.phase.fetch_or(BUSY | HEAD, Ordering::Relaxed);
    }

    /// Its reply was sent.
    pub(crate) fn idle(&self) {
        let mut counted = (self.phase.load(Ordering::Relaxed) | PHASE) + 1;
        if self.cut.load(Ordering::Relaxed) && !self.sized.load(Ordering::Relaxed) {
            // The beginning of the next head came with this request.
            counted |= HEAD;
        }
        self.phase.store(counted, Ordering::Relaxed);
        self.progress.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// `None` while requests are served; otherwise a number that stays the same while nothing
    /// happens.
    pub(crate) fn rest(&self) -> Option<u64> {
        let open = self.open.load(Ordering::Relaxed);
        (open == 0).then(|| self.progress.load(Ordering::Relaxed))
    }

    fn bytes_arrived(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
        let now = self.phase.load(Ordering::Relaxed);
        if now & PHASE == IDLE {
            self.phase.store(now | HEAD, Ordering::Relaxed);
        }
    }

    fn bytes_sent(&self, count: usize) {
        if count >= PROGRESS_BYTES {
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        self.phase.load(Ordering::Relaxed)
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
    reading: Option<ReadTimer>,
    writing: Option<Pin<Box<Sleep>>>,
    /// Runs out for a client that does not close after we have.
    closing: Option<Pin<Box<Sleep>>>,
    /// Bytes that were read to learn the protocol, and are to be read again.
    first: Vec<u8>,
    /// The last bytes that were read.
    last: [u8; 4],
    multiplexed: bool,
}

/// The clock of reading. Its timer is moved when it fires, not whenever the time that is allowed begins
/// anew, which is with every request; and it goes on while requests are served.
#[derive(Debug)]
struct ReadTimer {
    /// The activity that `deadline` is of.
    of: u64,
    deadline: Instant,
    /// Fires no later than at `deadline`.
    timer: Pin<Box<Sleep>>,
}

impl ReadTimer {
    fn new(of: u64, allowed: Duration) -> Self {
        let deadline = Instant::now() + allowed;
        let timer = Box::pin(tokio::time::sleep_until(deadline));
        Self {
            of,
            deadline,
            timer,
        }
    }

    /// Ready when `of` has lasted for longer than is allowed.
    fn poll(&mut self, of: u64, allowed: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if self.of != of {
            self.of = of;
            self.deadline = Instant::now() + allowed;
            if self.deadline < self.timer.deadline() {
                self.timer.as_mut().reset(self.deadline);
            }
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.timer.deadline() >= self.deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 or 1.0, or something that is answered as if it were.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// What every client of HTTP/2 sends first; no method of HTTP/1 begins like it (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
content-type: application/problem+json\r\ncontent-length: 157\r\n\r\n\
{\"type\":\"urn:firn:error:request_timeout\",\"title\":\"The request arrived too slowly\",\
\"status\":408,\"detail\":\"see limits.header_timeout\",\"code\":\"request_timeout\"}";

/// How long a client may take to read the last reply and close, once we have nothing more to say.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Guarded {
    /// Guards a socket.
    pub fn new(stream: TcpStream, activity: Arc<Activity>, pace: Pace) -> Self {
        Self {
            stream,
            activity,
            pace,
            reading: None,
            writing: None,
            closing: None,
            first: Vec::new(),
            last: [0; 4],
            multiplexed: false,
        }
    }

    /// Waits for as many bytes as it takes to know what the client speaks. They are read again by
    /// who reads next.
    ///
    /// # Errors
    /// The socket's; too slow.
    pub async fn protocol(&mut self) -> io::Result<Protocol> {
        let mut seen = Vec::with_capacity(PREFACE.len());
        let mut protocol = Protocol::Http1;
        while PREFACE.starts_with(&seen) {
            if seen.len() == PREFACE.len() {
                protocol = Protocol::Http2;
                self.multiplexed = true;
                self.reading = None;
                break;
            }
            let mut next = [0; PREFACE.len()];
            let count = self.read(&mut next[seen.len()..]).await?;
            if count == 0 {
                break;
            }
            let from = seen.len();
            seen.extend_from_slice(&next[from..from + count]);
        }
        self.first = seen;
        Ok(protocol)
    }

    fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.multiplexed {
            return Poll::Pending;
        }
        let now = self.activity.now();
        let allowed = match now & PHASE {
            IDLE => self.pace.idle,
            HEAD => self.pace.header,
            _ => return Poll::Pending,
        };
        let timer = self
            .reading
            .get_or_insert_with(|| ReadTimer::new(now, allowed));
        if timer.poll(now, allowed, cx).is_pending() {
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
        if let Poll::Ready(sent) = &done {
            self.activity.bytes_sent(*sent.as_ref().unwrap_or(&0));
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
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..count]);
            self.first.drain(..count);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(done) => {
                let new = &buf.filled()[before..];
                if !new.is_empty() {
                    let tail = &new[new.len().saturating_sub(4)..];
                    self.last.rotate_left(tail.len());
                    self.last[4 - tail.len()..].copy_from_slice(tail);
                    let ended = self.last == *b"\r\n\r\n" || self.last.ends_with(b"\n\n");
                    self.activity.bytes_arrived(!ended);
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

    /// Ends our half and waits briefly for the client to end its own, leaving aside what it sends: a socket
    /// that is closed while bytes of the client are unread, of HTTP/2's windows for example, resets the
    /// connection under a reply that the client has not read yet.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            std::task::ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let timer = this
            .closing
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)));
        let mut bytes = [0; 4096];
        while timer.as_mut().poll(cx).is_pending() {
            let mut rest = ReadBuf::new(&mut bytes);
            match Pin::new(&mut this.stream).poll_read(cx, &mut rest) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !rest.filled().is_empty() => {}
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_and_requests_are_told_apart() {
        let activity = Activity::default();
        assert_eq!(activity.now() & PHASE, IDLE);
        activity.bytes_arrived(true);
        let first_head = activity.now();
        assert_eq!(first_head & PHASE, HEAD);
        activity.busy();
        activity.bytes_arrived(false);
        assert_eq!(activity.now() & BUSY, BUSY);
        activity.idle();
        assert_eq!(activity.now() & PHASE, IDLE);
        activity.bytes_arrived(false);
        assert_eq!(activity.now() & PHASE, HEAD);
        assert_ne!(activity.now(), first_head);
        activity.busy();
        // With the rest of a request there came the beginning of the next one.
        activity.bytes_arrived(true);
        activity.idle();
        assert_eq!(activity.now() & PHASE, HEAD);
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

    #[tokio::test(start_paused = true)]
    async fn time_to_read_begins_anew_with_each_phase() {
        let second = Duration::from_secs(1);
        let begin = Instant::now();
        let mut timer = ReadTimer::new(1, 10 * second);
        let mut of = 1;
        let mut wait = async |of, allowed| {
            std::future::poll_fn(|cx| timer.poll(of, allowed, cx)).await;
        };
        let soon = tokio::time::timeout(9 * second, wait(of, 10 * second)).await;
        assert!(soon.is_err());
        // Later than what the timer is set for,
        of += 1;
        let later = tokio::time::timeout(9 * second, wait(of, 10 * second)).await;
        assert!(later.is_err());
        assert_eq!(begin.elapsed(), 18 * second);
        wait(of, 10 * second).await;
        assert_eq!(begin.elapsed(), 19 * second);
        // and earlier.
        of += 1;
        let rest = tokio::time::timeout(second, wait(of, 10 * second)).await;
        assert!(rest.is_err());
        of += 1;
        wait(of, second).await;
        assert_eq!(begin.elapsed(), 21 * second);
    }
}
