//! What a connection of HTTP/2 needs beyond one of HTTP/1, where requests follow each other and the
//! socket shows how fast the client is.
//!
//! * **Replies.** A client may keep the socket flowing and one reply waiting for ever, by not
//!   opening its window. `Replies` knows every reply of a connection and whose turn it is: ours
//!   while the next piece is made, the client's once it was handed over. One that stays the client's
//!   for `limits.write_timeout` is dropped with all that it holds, and its stream is reset.
//! * **Pieces.** A reply is handed over in pieces, each when there is room for it, so that a large
//!   value counts as being sent until it is.
//! * **Streams.** What answers the requests of a connection are futures of one task, that of the
//!   connection, not tasks of their own: what a hundred of them have to send is then written together,
//!   nothing is handed from thread to thread, and nobody waits for the lock that the library has
//!   around a connection. A connection has one core; what would take long runs on other threads
//!   anyway (see [`crate::service`]). The runtime gives a task so many steps before it lets others go
//!   on: that is for all streams of a connection together.
//! * **Rest.** A connection without requests, to which nothing flows, for `limits.idle_timeout` is
//!   told to go away. Pings do not keep it.
//!
//! Heads and their number are limited by `limits.header_bytes` and `limits.streams`, streams that
//! are opened and reset in a rush (CVE-2023-44487) by `builder`; the window of requests that
//! nobody reads is [`CONNECTION_WINDOW`] a connection; a body that makes no progress has the clock
//! of bodies; a peer that is gone is found by pings.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;

use crate::config::Config;
use crate::grpc::GrpcBody;
use crate::http::body::ReplyBody;

/// Bytes that all requests of a connection may send before somebody reads them.
pub const CONNECTION_WINDOW: u32 = 1 << 20;
/// The same for one request.
pub const STREAM_WINDOW: u32 = 512 << 10;
/// Bytes of a reply that are handed over at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes of a reply that may wait to be written.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// A connection is asked whether it lives when nothing was read for this long.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams that a client may open and reset before we came to look at them.
const RESETS_PENDING: usize = 20;
/// Streams that we reset for a client's errors before the connection ends.
const RESETS_OF_ERRORS: usize = 256;

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the library puts what answers a request.
#[derive(Clone, Default)]
pub(crate) struct Streams {
    begun: Arc<Mutex<Vec<Stream>>>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        // One that panics ends its own stream, whose reply was dropped, and no other.
        let stream = AssertUnwindSafe(stream).catch_unwind();
        lock(&self.begun).push(Box::pin(stream.map(drop)));
    }
}

/// The streams of a connection that run.
#[derive(Debug, Default)]
pub(crate) struct Running {
    begun: Streams,
    streams: FuturesUnordered<Stream>,
}

impl Running {
    /// Where to put new ones.
    pub(crate) fn begun(&self) -> Streams {
        self.begun.clone()
    }

    /// Drives the connection and its streams until the connection has ended. May be dropped and called
    /// again.
    pub(crate) async fn beside<T>(
        &mut self,
        mut connection: Pin<&mut impl Future<Output = T>>,
    ) -> T {
        poll_fn(|cx| {
            // First what comes in, then what is done about it. The library wakes the task when a stream
            // has something to send.
            let ended = connection.as_mut().poll(cx);
            if ended.is_pending() {
                self.streams.extend(lock(&self.begun.begun).drain(..));
                while let Poll::Ready(Some(())) = self.streams.poll_next_unpin(cx) {}
            }
            ended
        })
        .await
    }
}

/// What speaks HTTP/2, with all its limits.
pub(crate) fn builder(config: &Config, streams: Streams) -> http2::Builder<Streams> {
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(count(config.streams))
        .max_header_list_size(count(config.header_bytes))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESETS_PENDING)
        .max_local_error_reset_streams(RESETS_OF_ERRORS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A reply of either door.
#[derive(Debug)]
pub(crate) enum AnyBody {
    Http(ReplyBody),
    Grpc(GrpcBody),
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl AnyBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self {
            Self::Http(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Grpc(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(body) => body.is_end_stream(),
            Self::Grpc(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http(body) => body.size_hint(),
            Self::Grpc(body) => body.size_hint(),
        }
    }
}

/// The replies of a connection.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    next: u64,
    /// With the turn at which the client was seen to have it; 0: it had not.
    by_id: BTreeMap<u64, (Arc<Slot>, u64)>,
}

#[derive(Debug)]
struct Slot {
    /// Odd: the client's.
    turn: AtomicU64,
    /// Gone when the client took too long.
    content: Mutex<Option<Content>>,
}

#[derive(Debug)]
struct Content {
    /// What is left of a frame that is larger than a piece.
    rest: Bytes,
    body: AnyBody,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replies {
    /// A reply as HTTP/2 has it.
    pub(crate) fn adopt(
        self: &Arc<Self>,
        method: &Method,
        reply: Response<AnyBody>,
    ) -> Response<PacedBody> {
        let (mut parts, body) = reply.into_parts();
        // There is no such header in HTTP/2.
        parts.headers.remove(CONNECTION);
        let mut body = Some(body);
        if *method == Method::HEAD
            && let Some(length) = body.take().and_then(|body| body.size_hint().exact())
        {
            // hyper would send the body.
            parts
                .headers
                .entry(CONTENT_LENGTH)
                .or_insert(HeaderValue::from(length));
        }
        let slot = Arc::new(Slot {
            turn: AtomicU64::new(0),
            content: Mutex::new(body.map(|body| Content {
                rest: Bytes::new(),
                body,
            })),
        });
        let mut slots = lock(&self.slots);
        let id = slots.next;
        slots.next += 1;
        slots.by_id.insert(id, (Arc::clone(&slot), 0));
        drop(slots);
        let empty = lock(&slot.content).is_none();
        let body = PacedBody {
            empty,
            replies: Arc::clone(self),
            slot,
            id,
        };
        Response::from_parts(parts, body)
    }

    /// Drops replies that were the client's turn the last time already; how many. Called every
    /// `limits.write_timeout`.
    pub(crate) fn drop_stalled(&self) -> usize {
        let mut stalled = Vec::new();
        for (slot, seen) in lock(&self.slots).by_id.values_mut() {
            let turn = slot.turn.load(Ordering::Acquire);
            if turn % 2 == 0 {
                *seen = 0;
            } else if *seen == turn {
                stalled.extend(lock(&slot.content).take());
            } else {
                *seen = turn;
            }
        }
        // Outside of the lock: what they hold may take a while to free.
        stalled.len()
    }
}

/// A reply that ends if its client does not take it.
#[derive(Debug)]
pub(crate) struct PacedBody {
    replies: Arc<Replies>,
    slot: Arc<Slot>,
    id: u64,
    empty: bool,
}

impl Drop for PacedBody {
    fn drop(&mut self) {
        lock(&self.replies.slots).by_id.remove(&self.id);
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if self.empty {
            return Poll::Ready(None);
        }
        let mut content = lock(&self.slot.content);
        let Some(Content { rest, body }) = &mut *content else {
            let detail = "the client did not take the reply: see limits.write_timeout";
            return Poll::Ready(Some(Err(detail.into())));
        };
        let turn = &self.slot.turn;
        if turn.load(Ordering::Relaxed) % 2 == 1 {
            turn.fetch_add(1, Ordering::Release);
        }
        if rest.is_empty() {
            let frame = match body.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => frame,
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => *rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        turn.fetch_add(1, Ordering::Release);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.empty
            || lock(&self.slot.content)
                .as_ref()
                .is_some_and(|content| content.rest.is_empty() && content.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.empty {
            return SizeHint::with_exact(0);
        }
        match &*lock(&self.slot.content) {
            Some(content) if content.rest.is_empty() => content.body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(bytes: usize) -> Response<AnyBody> {
        Response::new(AnyBody::Http(ReplyBody::full(vec![7; bytes])))
    }

    async fn next(body: &mut PacedBody) -> Option<Result<usize, String>> {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(match frame {
            Ok(frame) => Ok(frame.into_data().unwrap().len()),
            Err(error) => Err(error.to_string()),
        })
    }

    #[tokio::test]
    async fn a_reply_is_sent_in_pieces_and_dropped_when_nobody_takes_them() {
        let replies = Arc::new(Replies::default());
        let mut body = replies.adopt(&Method::GET, reply(100_000)).into_body();
        assert_eq!(body.size_hint().exact(), Some(100_000));
        assert_eq!(next(&mut body).await, Some(Ok(PIECE_BYTES)));
        assert!(!body.is_end_stream());
        assert_eq!(replies.drop_stalled(), 0);
        // It went on in between.
        assert_eq!(next(&mut body).await, Some(Ok(100_000 - PIECE_BYTES)));
        assert!(body.is_end_stream());
        drop(body);

        let mut slow = replies.adopt(&Method::GET, reply(200_000)).into_body();
        assert_eq!(next(&mut slow).await, Some(Ok(PIECE_BYTES)));
        assert_eq!(replies.drop_stalled(), 0);
        assert_eq!(replies.drop_stalled(), 1);
        let error = next(&mut slow).await.unwrap().unwrap_err();
        assert!(error.contains("limits.write_timeout"), "{error}");
        drop(slow);
        assert!(lock(&replies.slots).by_id.is_empty());
    }

    #[tokio::test]
    async fn a_reply_that_we_have_yet_to_make_waits() {
        let replies = Arc::new(Replies::default());
        let mut body = replies.adopt(&Method::GET, reply(10)).into_body();
        for _ in 0..3 {
            assert_eq!(replies.drop_stalled(), 0);
        }
        assert_eq!(next(&mut body).await, Some(Ok(10)));
    }

    #[test]
    fn a_head_has_the_length_of_what_it_leaves_out() {
        let replies = Arc::new(Replies::default());
        let reply = replies.adopt(&Method::HEAD, reply(10));
        assert_eq!(reply.headers()[CONTENT_LENGTH], "10");
        assert!(reply.body().is_end_stream());
    }
}
