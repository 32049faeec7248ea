//! Bodies: requests are read with a limit and a clock, replies are bytes or a stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use firn_api::code::Code;
use firn_api::text::{self, Enc};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;

use crate::http::problem;
use crate::http::request::Request;
use crate::service::Service;
use crate::service::error::{Error, Result};
use crate::service::scan::{EntryRef, Sink, Walk};

/// A request's body as it comes, and how long the server waited for it.
#[derive(Debug)]
pub(crate) struct Upload {
    incoming: Incoming,
    waited: Duration,
}

impl From<Incoming> for Upload {
    fn from(incoming: Incoming) -> Self {
        let waited = Duration::ZERO;
        Self { incoming, waited }
    }
}

impl Upload {
    /// Time that passed while its bytes were awaited: the client's, not the server's.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether nothing more will come.
    pub(crate) fn is_end(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// Whether the client said how many bytes will come, and there are some.
    pub(crate) fn is_sized(&self) -> bool {
        !self.is_end() && self.announced().is_some()
    }

    /// How many bytes will come, if the client said so.
    fn announced(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    async fn frame(&mut self) -> Option<hyper::Result<Frame<Bytes>>> {
        std::future::poll_fn(|cx| Pin::new(&mut self.incoming).poll_frame(cx)).await
    }
}

/// A request's body in memory, and the memory's reservation.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Received {
    /// The bytes; what is made of them takes their place in the memory that is reserved.
    pub(crate) fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }
}

/// How much of a refused body is read and thrown away, so that the client reads our answer instead
/// of finding the connection reset.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Reads a body of at most `limit` bytes. Each piece must arrive within `pace`.
pub(crate) async fn receive(
    service: &Service,
    body: &mut Upload,
    pace: Duration,
    code: Code,
    name: &str,
    limit: u64,
) -> Result<Received> {
    let begin = service.clock().monotonic();
    let received = receive_all(service, body, pace, code, name, limit).await;
    body.waited += service.clock().monotonic().saturating_sub(begin);
    received
}

async fn receive_all(
    service: &Service,
    body: &mut Upload,
    pace: Duration,
    code: Code,
    name: &str,
    limit: u64,
) -> Result<Received> {
    let announced = body.announced().unwrap_or(0);
    if announced > limit {
        return Err(Error::limit(code, name, limit, announced));
    }
    let mut received = Received::default();
    let mut pieces = BytesMut::new();
    let mut total = 0;
    loop {
        let Ok(frame) = tokio::time::timeout(pace, body.frame()).await else {
            let detail = format!(
                "no byte of the body arrived for {} s (limits.body_timeout)",
                pace.as_secs_f64()
            );
            return Err(Error::new(Code::RequestTimeout, detail));
        };
        let data = match frame {
            None => break,
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(e)) => {
                let detail = format!("the body ended after {total} bytes: {e}");
                return Err(Error::new(Code::BodyIncomplete, detail));
            }
        };
        if data.is_empty() {
            continue;
        }
        total += data.len() as u64;
        if total > limit {
            return Err(Error::limit(code, name, limit, total));
        }
        match service.reserve_body(data.len()) {
            Ok(permit) => match received.permits.last_mut() {
                Some(first) => first.merge(permit),
                None => received.permits.push(permit),
            },
            Err(refused) => return Err(refused),
        }
        if received.bytes.is_empty() && pieces.is_empty() {
            received.bytes = data;
            continue;
        }
        if pieces.is_empty() {
            // Grows as bytes arrive: what a client merely announces costs nothing.
            pieces.extend_from_slice(&std::mem::take(&mut received.bytes));
        }
        pieces.extend_from_slice(&data);
    }
    if !pieces.is_empty() {
        received.bytes = pieces.freeze();
    }
    Ok(received)
}

/// Throws away what is left of a body; `false` if that was too much or took too long.
pub(crate) async fn drain(body: &mut Upload) -> bool {
    let reading = async {
        let mut left = DRAIN_BYTES;
        while left > 0 {
            let frame = match body.frame().await {
                None => return true,
                Some(Ok(frame)) => frame,
                Some(Err(_)) => return false,
            };
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
        false
    };
    tokio::time::timeout(DRAIN_TIME, reading)
        .await
        .unwrap_or(false)
}

/// A reply's body. When it is dropped, sent or not, the request has ended.
#[derive(Debug)]
pub struct ReplyBody {
    kind: Kind,
    /// Counts the request when the reply has been sent.
    pub(crate) request: Option<Arc<Request>>,
    /// The memory that its bytes hold until they are sent.
    room: Option<OwnedSemaphorePermit>,
}

/// Bytes with the place that they take: hyper lets go of the body when it has the last of them, and of
/// them when the socket has.
struct Held {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[derive(Debug)]
enum Kind {
    Full(Bytes),
    Stream(Box<EntryStream>),
    Chunks(Box<dyn Chunks>),
    /// Chunks that a task makes, which ends when this is dropped.
    Task(mpsc::Receiver<Bytes>),
}

/// A body that somebody else makes chunk by chunk.
pub(crate) trait Chunks: std::fmt::Debug + Send {
    /// The next chunk; an empty one is the end, an error cuts the connection.
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        request: Option<&Arc<Request>>,
    ) -> Poll<std::io::Result<Bytes>>;
    /// Bytes that are there already.
    fn ready_bytes(&self) -> usize;
}

impl ReplyBody {
    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self {
            kind: Kind::Full(bytes.into()),
            request: None,
            room: None,
        }
    }

    pub(crate) fn chunks(chunks: Box<dyn Chunks>) -> Self {
        Self {
            kind: Kind::Chunks(chunks),
            request: None,
            room: None,
        }
    }

    /// Counts its bytes among those in flight, unless it is made as it is sent.
    pub(crate) fn reserve(&mut self, service: &Service) -> Result<()> {
        let bytes = match &self.kind {
            Kind::Full(bytes) => bytes.len(),
            Kind::Chunks(chunks) => chunks.ready_bytes(),
            Kind::Stream(_) | Kind::Task(_) => 0,
        };
        self.room = service.reserve_reply(bytes)?;
        Ok(())
    }

    /// The bytes, unless it is made as it is sent.
    pub(crate) fn as_full(&self) -> Option<&Bytes> {
        match &self.kind {
            Kind::Full(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(crate) fn stream(walk: Walk<JsonSink>, path: &str) -> Self {
        let stream = EntryStream {
            state: State::Resting(Box::new(walk)),
            path: path.into(),
        };
        Self {
            kind: Kind::Stream(Box::new(stream)),
            request: None,
            room: None,
        }
    }
}

impl ReplyBody {
    /// What a task sends until it drops its end.
    pub(crate) fn task(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self {
            kind: Kind::Task(chunks),
            request: None,
            room: None,
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let bytes = match &mut this.kind {
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                match this.room.take() {
                    Some(_room) => Bytes::from_owner(Held { bytes, _room }),
                    None => bytes,
                }
            }
            Kind::Stream(stream) => ready!(stream.poll_chunk(cx, this.request.as_ref())),
            Kind::Chunks(chunks) => match ready!(chunks.poll_chunk(cx, this.request.as_ref())) {
                Ok(bytes) => bytes,
                Err(error) => return Poll::Ready(Some(Err(error))),
            },
            Kind::Task(chunks) => ready!(chunks.poll_recv(cx)).unwrap_or_default(),
        };
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Stream(stream) => matches!(stream.state, State::Done),
            Kind::Chunks(_) | Kind::Task(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(_) | Kind::Chunks(_) | Kind::Task(_) => SizeHint::default(),
        }
    }
}

/// Renders entries as JSON objects.
#[derive(Debug)]
pub(crate) struct JsonSink {
    pub(crate) out: Vec<u8>,
    enc: Enc,
    separator: u8,
    first: bool,
}

impl JsonSink {
    /// Objects separated by commas.
    pub(crate) fn list(out: Vec<u8>, enc: Enc) -> Self {
        Self {
            out,
            enc,
            separator: b',',
            first: true,
        }
    }

    /// One object a line.
    pub(crate) fn lines(enc: Enc) -> Self {
        Self {
            out: Vec::with_capacity(CHUNK_BYTES + 4096),
            enc,
            separator: b'\n',
            first: false,
        }
    }
}

impl Sink for JsonSink {
    fn entry(&mut self, e: EntryRef<'_>) -> Result<()> {
        if self.separator == b',' && !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        let before = self.out.len();
        let pushed = firn_api::http::push_entry(
            &mut self.out,
            e.key,
            e.value,
            e.version,
            e.expires_at_ms,
            self.enc,
        );
        if pushed.is_err() {
            self.out.truncate(before);
            let key = e.key.escape_ascii();
            let detail = format!(
                "the key or the value of \"{key}\" is not valid UTF-8, which enc=utf8 wants"
            );
            return Err(Error::new(Code::NotUtf8, detail));
        }
        if self.separator == b'\n' {
            self.out.push(b'\n');
        }
        Ok(())
    }

    fn waiting_bytes(&self) -> usize {
        self.out.len()
    }
}

/// Bytes of a stream that are rendered at a time. Two such chunks exist: one is being sent while
/// the next one is made.
const CHUNK_BYTES: usize = 128 << 10;

/// A range on its way to a client. The connection asks for a chunk when the socket has room; until
/// then no thread works for it. The walk is freed when the client goes away, since this is dropped.
#[derive(Debug)]
struct EntryStream {
    state: State,
    path: String,
}

#[derive(Debug)]
enum State {
    Resting(Box<Walk<JsonSink>>),
    Filling(JoinHandle<Filled>),
    Done,
}

/// A walk and how its last chunk went.
type Filled = (Box<Walk<JsonSink>>, Result<()>);

impl EntryStream {
    fn poll_chunk(&mut self, cx: &mut Context<'_>, request: Option<&Arc<Request>>) -> Poll<Bytes> {
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return Poll::Ready(Bytes::new()),
                State::Resting(walk) => self.state = State::Filling(fill(walk, request)),
                State::Filling(mut job) => {
                    let Poll::Ready(finished) = Pin::new(&mut job).poll(cx) else {
                        self.state = State::Filling(job);
                        return Poll::Pending;
                    };
                    // A cancelled job means that the runtime stops: a stream without a trailer.
                    let Ok((mut walk, outcome)) = finished else {
                        return Poll::Ready(Bytes::new());
                    };
                    let mut chunk = std::mem::take(&mut walk.sink.out);
                    match outcome {
                        Err(error) => {
                            // The status was sent long ago: the last line tells, and there is no
                            // trailer.
                            let problem = problem::body_of(&error, &self.path);
                            let line = serde_json::json!({ "error": problem });
                            chunk.extend_from_slice(line.to_string().as_bytes());
                            chunk.push(b'\n');
                        }
                        Ok(()) if walk.is_done() => push_end(&mut chunk, &walk),
                        Ok(()) => {
                            walk.sink.out = Vec::with_capacity(CHUNK_BYTES + 4096);
                            self.state = State::Filling(fill(walk, request));
                        }
                    }
                    return Poll::Ready(chunk.into());
                }
            }
        }
    }
}

fn fill(mut walk: Box<Walk<JsonSink>>, request: Option<&Arc<Request>>) -> JoinHandle<Filled> {
    spawn_counted(request, move || {
        let outcome = walk.fill(CHUNK_BYTES);
        (walk, outcome)
    })
}

/// Runs `work` on a thread that may wait, as time of the request.
pub(crate) fn spawn_counted<T: Send + 'static>(
    request: Option<&Arc<Request>>,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let request = request.cloned();
    tokio::task::spawn_blocking(move || match request {
        Some(request) => request.working(work),
        None => work(),
    })
}

fn push_end(out: &mut Vec<u8>, walk: &Walk<JsonSink>) {
    out.extend_from_slice(b"{\"end\":true,");
    push_count(out, walk);
    out.extend_from_slice(b"}\n");
}

/// `"count":3,"next_cursor":null`
pub(crate) fn push_count(out: &mut Vec<u8>, walk: &Walk<JsonSink>) {
    out.extend_from_slice(b"\"count\":");
    text::push_number(out, walk.count());
    out.extend_from_slice(b",\"next_cursor\":");
    match walk.next_cursor() {
        Some(cursor) => text::push_json_string(out, cursor),
        None => out.extend_from_slice(b"null"),
    }
}
