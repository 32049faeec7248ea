//! The gRPC door: `firn.v1`, health, reflection. It translates; what things mean is in
//! [`crate::service`].
//!
//! It shares the port with HTTP: a POST over HTTP/2 whose content type is `application/grpc` comes
//! here. `unary` does what the protocol asks for where a call has one message each way, tonic where it
//! has many, and prost the messages, whose code is generated from `proto/` and kept in `generated`
//! (`cargo xtask proto` writes it anew; a test compares). What tonic's own server would do on the way
//! is done here as for HTTP, so that limits mean the same through both doors:
//!
//! 1. The method is looked up in `METHODS`, which says what it is counted under and how large its
//!    request may be.
//! 2. The rate of the client is counted; health is not.
//! 3. The request is read with the clock and the reservations of HTTP bodies.
//! 4. The handler runs. `grpc-timeout` bounds this and the sending of the reply.
//!
//! A handler returns a message or a [`crate::service::error::Error`]; `status` makes the latter a
//! status with details. `GrpcBody` ends the request where its trailers are sent.

mod admin;
mod health;
mod kv;
#[doc(hidden)]
pub mod loopback;
mod range;
mod status;
mod unary;
mod watch;
mod wire;

/// The messages of `proto/`.
#[allow(
    missing_docs,
    clippy::all,
    unreachable_pub,
    reason = "generated; what they mean is said in the .proto files"
)]
pub mod proto {
    include!("generated/firn.v1.rs");

    /// What is in the .proto files, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!("generated/firn.v1.bin");
}

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, Method, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use prost::Message;
use tokio::time::{Instant, Sleep, timeout_at};
use tonic::Status;
use tonic::body::Body as TonicBody;
use tonic::codegen::{BoxFuture, Service as _};

use crate::connection::Activity;
use crate::grpc::unary::CallBody;
use crate::http::Door;
use crate::http::body::{ReplyBody, Upload, receive};
use crate::http::origin;
use crate::http::request::Request;
use crate::service::Service;
use crate::service::error::{Error, Result};

const TIMEOUT: &str = "grpc-timeout";
/// Largest request of methods without values.
const SMALL: u64 = 256 << 10;
/// What a message may be longer than the key and the value in it.
const FRAMING: u64 = 4 << 10;

/// How large the request of a method may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// A few keys.
    Small,
    /// A key and a value.
    Value,
    /// `limits.body_bytes`.
    Body,
}

/// Path, what it is counted under, the size of its request.
const METHODS: &[(&str, &str, Size)] = &[
    ("/firn.v1.KV/Get", "get", Size::Small),
    ("/firn.v1.KV/Put", "put", Size::Value),
    ("/firn.v1.KV/Delete", "delete", Size::Small),
    ("/firn.v1.KV/MultiGet", "mget", Size::Body),
    ("/firn.v1.KV/Batch", "batch", Size::Body),
    ("/firn.v1.KV/Range", "range", Size::Small),
    ("/firn.v1.KV/DeleteRange", "delete_range", Size::Small),
    (watch::PATH, "watch", Size::Small),
    ("/firn.v1.Namespaces/List", "namespace", Size::Small),
    ("/firn.v1.Namespaces/Get", "namespace", Size::Small),
    ("/firn.v1.Namespaces/Create", "namespace", Size::Small),
    ("/firn.v1.Namespaces/Drop", "namespace", Size::Small),
    ("/firn.v1.Admin/Flush", "flush", Size::Small),
    ("/firn.v1.Admin/Compact", "compact", Size::Small),
    ("/firn.v1.Admin/Checkpoint", "checkpoint", Size::Small),
    ("/firn.v1.Admin/Verify", "verify", Size::Small),
    ("/firn.v1.Admin/Stats", "stats", Size::Small),
    (health::CHECK, "health", Size::Small),
    (health::WATCH, "health", Size::Small),
    (REFLECTION_V1, "reflection", Size::Small),
    (REFLECTION_V1ALPHA, "reflection", Size::Small),
];

const REFLECTION_V1: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const REFLECTION_V1ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

type Reply = Response<CallBody>;
type Reflection = Box<
    dyn Fn(http::Request<PacedRequest>) -> BoxFuture<Response<TonicBody>, Status> + Send + Sync,
>;

/// The door and what it needs for each call.
pub(crate) struct GrpcDoor {
    door: Arc<Door>,
    reflection_v1: Option<Reflection>,
    reflection_v1alpha: Option<Reflection>,
}

impl std::fmt::Debug for GrpcDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcDoor").finish_non_exhaustive()
    }
}

/// Whether a request is for this door.
pub(crate) fn is_grpc<B>(request: &http::Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).map(|v| v.as_bytes());
    let plain = |kind: &[u8]| {
        let rest = kind.strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    };
    request.version() == Version::HTTP_2
        && request.method() == Method::POST
        && kind.is_some_and(plain)
}

macro_rules! reflection {
    ($build:ident) => {{
        let built = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .$build();
        // The descriptors are part of the program, and a test asks for them.
        built.ok().map(|server| -> Reflection {
            let server = server.max_decoding_message_size(SMALL as usize);
            Box::new(move |call| {
                let mut server = server.clone();
                Box::pin(async move {
                    match server.call(call).await {
                        Ok(reply) => Ok(reply),
                        Err(never) => match never {},
                    }
                })
            })
        })
    }};
}

impl GrpcDoor {
    /// A door beside that of HTTP.
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self {
            door,
            reflection_v1: reflection!(build_v1),
            reflection_v1alpha: reflection!(build_v1alpha),
        }
    }

    /// Answers a call. Errors are replies too.
    pub(crate) async fn handle(
        &self,
        request: http::Request<Incoming>,
        activity: Arc<Activity>,
    ) -> Response<GrpcBody> {
        let (parts, body) = request.into_parts();
        let (service, metrics) = (self.door.service.clone(), Arc::clone(&self.door.metrics));
        let (slow, client) = (self.door.slow_request, activity.client());
        let uri = parts.uri.clone();
        let running = Request::begin(service, metrics, activity, "grpc", slow, uri);
        let method = METHODS.iter().find(|row| row.0 == parts.uri.path());
        let mut deadline = None;
        let answer = async {
            let Some(&(path, op, size)) = method else {
                let detail = format!(
                    "there is no method {:?}; reflection lists what there is",
                    cut(parts.uri.path())
                );
                return Err(Error::new(Code::RouteNotFound, detail));
            };
            running.set_op(op);
            if matches!(
                path,
                watch::PATH | health::WATCH | REFLECTION_V1 | REFLECTION_V1ALPHA
            ) {
                running.set_lasting();
            }
            origin::check(&parts, self.door.local)?;
            if op != "health" {
                self.door.service.admit(&client)?;
            }
            deadline = match timeout(&parts.headers)? {
                Some(time) => Instant::now().checked_add(time),
                None => None,
            };
            let work = self.dispatch(parts, body, path, size, &running);
            match deadline {
                None => work.await,
                Some(at) => timeout_at(at, work)
                    .await
                    .unwrap_or_else(|_| Err(status::too_late())),
            }
        };
        let answer = answer.await;
        let reply = answer.unwrap_or_else(|error| {
            if matches!(
                error.code,
                Code::Internal | Code::IoError | Code::Corruption
            ) {
                let (code, detail) = (error.code.name(), &error.detail);
                tracing::error!(code, detail, "call failed");
            }
            running.set_code(error.code.name());
            status::of(&error).into_http()
        });
        running.answered();
        reply.map(|inner| GrpcBody {
            inner: Some(inner),
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
            running,
        })
    }

    async fn dispatch(
        &self,
        parts: Parts,
        body: Incoming,
        path: &str,
        size: Size,
        running: &Arc<Request>,
    ) -> Result<Reply> {
        let reflection = match path {
            REFLECTION_V1 => self.reflection_v1.as_ref(),
            REFLECTION_V1ALPHA => self.reflection_v1alpha.as_ref(),
            _ => None,
        };
        if let Some(reflection) = reflection {
            let body = PacedRequest::new(body, self.door.body_timeout);
            let reply = reflection(http::Request::from_parts(parts, body)).await;
            running.set_code("ok");
            return Ok(reply.map_or_else(Status::into_http, |reply| reply.map(CallBody::Stream)));
        }
        let limits = self.door.service.limits();
        let (code, name, limit) = match size {
            Size::Small => (Code::BodyTooLarge, "the size of such a request", SMALL),
            Size::Value => (
                Code::ValueTooLarge,
                "limits.value_bytes with the key",
                limits.value_bytes + limits.key_bytes + FRAMING,
            ),
            Size::Body => (Code::BodyTooLarge, "limits.body_bytes", limits.body_bytes),
        };
        let (service, pace) = (&self.door.service, self.door.body_timeout);
        let mut body = Upload::from(body);
        let received = receive(service, &mut body, pace, code, name, limit).await;
        running.waited(body.waited());
        let received = received?;
        let reply = self.answer(parts, received.bytes.clone(), path, running);
        let reply = reply.await;
        // The message lived in what was received; the reply does not.
        drop(received);
        Ok(reply)
    }

    /// Answers a call whose request is in memory.
    async fn answer(
        &self,
        parts: Parts,
        bytes: Bytes,
        path: &str,
        running: &Arc<Request>,
    ) -> Reply {
        let call = Calling {
            parts,
            bytes,
            running,
        };
        let (door, service) = (&self.door, &self.door.service);
        // What is called often is answered in place, everything else in a box: a call's task is as
        // large as the largest of what it may do, and each is made anew.
        match path {
            "/firn.v1.KV/Get" => call.unary(|m| kv::get(door, m)).await,
            "/firn.v1.KV/Put" => call.unary(|m| kv::put(door, m)).await,
            _ => Box::pin(Self::answer_rare(door, service, path, call)).await,
        }
    }

    async fn answer_rare(
        door: &Arc<Door>,
        service: &Service,
        path: &str,
        call: Calling<'_>,
    ) -> Reply {
        match path {
            "/firn.v1.KV/Delete" => call.unary(|m| kv::delete(door, m)).await,
            "/firn.v1.KV/MultiGet" => call.unary(|m| kv::multi_get(door, m)).await,
            "/firn.v1.KV/Batch" => call.unary(|m| kv::batch(door, m)).await,
            "/firn.v1.KV/Range" => range::call(Arc::clone(door), call).await,
            "/firn.v1.KV/DeleteRange" => call.unary(|m| kv::delete_range(door, m)).await,
            watch::PATH => watch::call(Arc::clone(door), call).await,
            "/firn.v1.Namespaces/List" => call.unary(|m| admin::list(Arc::clone(door), m)).await,
            "/firn.v1.Namespaces/Get" => call.unary(|m| admin::info(Arc::clone(door), m)).await,
            "/firn.v1.Namespaces/Create" => {
                call.unary(|m| admin::create(Arc::clone(door), m)).await
            }
            "/firn.v1.Namespaces/Drop" => call.unary(|m| admin::remove(Arc::clone(door), m)).await,
            "/firn.v1.Admin/Flush" => call.unary(|m| admin::flush(Arc::clone(door), m)).await,
            "/firn.v1.Admin/Compact" => call.unary(|m| admin::compact(Arc::clone(door), m)).await,
            "/firn.v1.Admin/Checkpoint" => {
                call.unary(|m| admin::checkpoint(Arc::clone(door), m)).await
            }
            "/firn.v1.Admin/Verify" => call.unary(|m| admin::verify(Arc::clone(door), m)).await,
            "/firn.v1.Admin/Stats" => call.unary(|m| admin::stats(Arc::clone(door), m)).await,
            _ => health::call(service, call).await,
        }
    }
}

/// A call whose request is in memory.
pub(crate) struct Calling<'a> {
    parts: Parts,
    bytes: Bytes,
    running: &'a Arc<Request>,
}

impl Calling<'_> {
    /// As tonic wants it.
    fn into_request(self) -> http::Request<ReplyBody> {
        http::Request::from_parts(self.parts, ReplyBody::full(self.bytes))
    }

    /// Decodes the message, runs the handler, encodes its answer.
    async fn unary<M, R, F, Fut>(self, handler: F) -> Reply
    where
        M: Message + Default,
        R: Message,
        F: FnOnce(M) -> Fut,
        Fut: Future<Output = Result<R>>,
    {
        let asked = match unary::read(&self.parts.headers, self.bytes) {
            Ok(asked) => asked,
            Err(refused) => {
                self.running.set_code(Code::InvalidArgument.name());
                return refused.into_http();
            }
        };
        drop(self.parts);
        match handler(asked).await {
            Ok(answer) => {
                self.running.set_code("ok");
                unary::reply(&answer)
            }
            Err(error) => {
                self.running.set_code(error.code.name());
                status::of(&error).into_http()
            }
        }
    }
}

/// A path for an error's detail.
fn cut(path: &str) -> &str {
    let mut end = path.len().min(128);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    &path[..end]
}

/// The time that the client allows: up to eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get(TIMEOUT) else {
        return Ok(None);
    };
    let bad = || {
        let shown = value.as_bytes().escape_ascii();
        Error::invalid(format!(
            "{TIMEOUT}: {shown} is not up to eight digits and one of H, M, S, m, u, n"
        ))
    };
    let (unit, digits) = value.as_bytes().split_last().ok_or_else(bad)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let number = digits
        .iter()
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Ok(Some(match unit {
        b'H' => Duration::from_secs(number * 3_600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(bad()),
    }))
}

/// A reply's body. When it is dropped, sent or not, the call has ended.
#[derive(Debug)]
pub(crate) struct GrpcBody {
    /// `None`: the trailers were sent.
    inner: Option<CallBody>,
    deadline: Option<Pin<Box<Sleep>>>,
    running: Arc<Request>,
}

impl Body for GrpcBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            let error = status::too_late();
            this.running.set_code(error.code.name());
            this.inner = None;
            let mut trailers = HeaderMap::new();
            // The details are ours, and valid in a header.
            let _ = status::of(&error).add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The messages of a client that sends several, each within the clock of bodies and all within
/// [`SMALL`].
pub(crate) struct PacedRequest {
    body: Incoming,
    pace: Duration,
    timer: Pin<Box<Sleep>>,
    left: u64,
}

impl PacedRequest {
    fn new(body: Incoming, pace: Duration) -> Self {
        Self {
            body,
            pace,
            timer: Box::pin(tokio::time::sleep(pace)),
            left: SMALL,
        }
    }
}

impl Body for PacedRequest {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let error = Error::new(Code::RequestTimeout, "see limits.body_timeout");
            return Poll::Ready(Some(Err(status::of(&error))));
        };
        this.timer.as_mut().reset(Instant::now() + this.pace);
        let Some(Ok(frame)) = frame else {
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|e| Status::unknown(e.to_string()))),
            );
        };
        let arrived = frame.data_ref().map_or(0, Bytes::len) as u64;
        if arrived > this.left {
            let name = "the size of all requests on a stream";
            let error = Error::limit(Code::BodyTooLarge, name, SMALL, SMALL + 1);
            return Poll::Ready(Some(Err(status::of(&error))));
        }
        this.left -= arrived;
        Poll::Ready(Some(Ok(frame)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::collections::BTreeSet;

    #[test]
    fn every_method_of_the_descriptors_is_served_and_no_other() {
        let set = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
        let mut described = BTreeSet::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    described.insert(format!(
                        "/{}.{}/{}",
                        file.package(),
                        service.name(),
                        method.name()
                    ));
                }
            }
        }
        let served = METHODS.iter().map(|row| row.0.to_owned());
        let served: BTreeSet<_> = served.filter(|path| path.starts_with("/firn.")).collect();
        assert_eq!(served, described);
    }

    #[test]
    fn timeouts_have_eight_digits_and_a_unit() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, HeaderValue::from_static(text));
            timeout(&headers).map_err(|e| e.code)
        };
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(read("1H"), Ok(Some(Duration::from_secs(3_600))));
        assert_eq!(read("2M"), Ok(Some(Duration::from_secs(120))));
        assert_eq!(read("3S"), Ok(Some(Duration::from_secs(3))));
        assert_eq!(
            read("99999999m"),
            Ok(Some(Duration::from_millis(99_999_999)))
        );
        assert_eq!(read("5u"), Ok(Some(Duration::from_micros(5))));
        assert_eq!(read("0n"), Ok(Some(Duration::ZERO)));
        for bad in [
            "",
            "S",
            "1",
            "1s",
            "123456789m",
            "-1S",
            "1.5S",
            "+1S",
            " 1S",
        ] {
            assert_eq!(read(bad), Err(Code::InvalidArgument), "{bad}");
        }
    }

    #[test]
    fn what_comes_here() {
        let of = |version, method: &str, kind: &str| {
            let request = http::Request::builder()
                .version(version)
                .method(method)
                .header(CONTENT_TYPE, kind)
                .body(())
                .unwrap();
            is_grpc(&request)
        };
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        assert!(of(two, "POST", "application/grpc"));
        assert!(of(two, "POST", "application/grpc+proto"));
        assert!(of(two, "POST", "application/grpc;x=y"));
        assert!(!of(two, "POST", "application/grpc-web"));
        assert!(!of(two, "POST", "application/json"));
        assert!(!of(two, "GET", "application/grpc"));
        assert!(!of(one, "POST", "application/grpc"));
    }
}
