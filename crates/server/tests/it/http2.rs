//! HTTP/2 on the port of HTTP/1: the same answers, and the limits of a connection on which requests
//! overlap.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::support::Running;

/// A request's body: bytes, after which nothing may come for ever.
struct Payload {
    bytes: Bytes,
    ends: bool,
}

impl Body for Payload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if !self.bytes.is_empty() {
            let bytes = std::mem::take(&mut self.bytes);
            return std::task::Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.ends {
            std::task::Poll::Ready(None)
        } else {
            std::task::Poll::Pending
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ends && self.bytes.is_empty()
    }
}

type Sender = SendRequest<Payload>;

async fn connect(server: &Running) -> (Sender, JoinHandle<hyper::Result<()>>) {
    let stream = server.connect().await;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(64 << 10);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn request(
    server: &Running,
    method: &str,
    target: &str,
    body: impl Into<Bytes>,
) -> Request<Payload> {
    Request::builder()
        .method(method)
        .uri(format!("http://{}{target}", server.address))
        .body(Payload {
            bytes: body.into(),
            ends: true,
        })
        .unwrap()
}

async fn read(body: &mut Incoming) -> Result<Bytes, hyper::Error> {
    let mut all = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

async fn exchange(sender: &mut Sender, request: Request<Payload>) -> (Response<()>, Bytes) {
    let reply = sender.send_request(request).await.unwrap();
    let (parts, mut body) = reply.into_parts();
    let bytes = read(&mut body).await.unwrap();
    (Response::from_parts(parts, ()), bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_native_api_speaks_http2() {
    let server = Running::start().await;
    let (mut sender, connection) = connect(&server).await;
    let value = vec![b'v'; 200_000];
    let put = request(&server, "PUT", "/v1/keys/a%2Fb", value.clone());
    let (reply, _) = exchange(&mut sender, put).await;
    assert_eq!(
        (reply.status().as_u16(), reply.version()),
        (204, Version::HTTP_2)
    );
    let (reply, body) = exchange(&mut sender, request(&server, "GET", "/v1/keys/a/b", "")).await;
    assert_eq!(reply.status(), 200);
    assert_eq!(reply.headers()["content-length"], "200000");
    assert!(body == value);
    let (reply, body) = exchange(&mut sender, request(&server, "HEAD", "/v1/keys/a/b", "")).await;
    assert_eq!((reply.status().as_u16(), body.len()), (200, 0));
    assert_eq!(reply.headers()["content-length"], "200000");
    let (reply, body) = exchange(&mut sender, request(&server, "GET", "/v1/keys/none", "")).await;
    assert_eq!(reply.status(), 404);
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem["code"], "not_found");
    let (_, page) = exchange(&mut sender, request(&server, "GET", "/v1/range", "")).await;
    let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
    assert_eq!(page["count"], 1);
    // HTTP/1 goes on beside it, and gRPC is not spoken there.
    assert_eq!(server.get("/v1/keys/a/b").await.status, 200);
    let kind = [("content-type", "application/grpc")];
    let reply = server.send("POST", "/firn.v1.KV/Get", &kind, b"").await;
    reply.problem(404, "route_not_found");
    drop(sender);
    connection.await.unwrap().unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upload_is_answered_and_the_connection_goes_on() {
    let server = Running::start_with(|config| config.limits.value_bytes = 1_000).await;
    let (mut sender, _connection) = connect(&server).await;
    let large = request(&server, "PUT", "/v1/keys/a", vec![0; 10 << 20]);
    let (reply, body) = exchange(&mut sender, large).await;
    assert_eq!(reply.status(), 413);
    assert!(body.starts_with(b"{"));
    let (reply, _) = exchange(&mut sender, request(&server, "PUT", "/v1/keys/a", "x")).await;
    assert_eq!(reply.status(), 204);
    assert_eq!(server.metric("firn_request_body_bytes").await, 0);
    drop(sender);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_and_large_heads_are_refused() {
    let server = Running::start_with(|config| {
        config.body_timeout = Duration::from_millis(50);
        config.header_bytes = 8 << 10;
    })
    .await;
    let (mut sender, _connection) = connect(&server).await;
    let mut slow = request(&server, "PUT", "/v1/keys/a", "x");
    slow.body_mut().ends = false;
    let (reply, _) = exchange(&mut sender, slow).await;
    assert_eq!(reply.status(), 408);
    let mut heavy = request(&server, "GET", "/v1/keys/a", "");
    for i in 0..30 {
        let name = http::HeaderName::try_from(format!("x-{i}")).unwrap();
        let value = http::HeaderValue::try_from("v".repeat(500)).unwrap();
        heavy.headers_mut().insert(name, value);
    }
    // The client was told the limit and may keep to it by itself.
    if let Ok(reply) = sender.send_request(heavy).await {
        assert_eq!(reply.status(), 431);
    }
    let (mut sender, _connection) = connect(&server).await;
    let (reply, _) = exchange(&mut sender, request(&server, "GET", "/livez", "")).await;
    assert_eq!(reply.status(), 200);
    drop(sender);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_nobody_takes_is_dropped_and_others_go_on() {
    let server =
        Running::start_with(|config| config.write_timeout = Duration::from_millis(50)).await;
    for i in 0..4 {
        let target = format!("/v1/keys/{i}");
        assert_eq!(server.put(&target, &vec![7; 1 << 20]).await.status, 204);
    }
    let (mut sender, _connection) = connect(&server).await;
    let mut stream = request(&server, "GET", "/v1/range", "");
    let ndjson = http::HeaderValue::from_static("application/x-ndjson");
    stream.headers_mut().insert("accept", ndjson);
    let stream = sender.send_request(stream).await.unwrap();
    let value = request(&server, "GET", "/v1/keys/0", "");
    let value = sender.send_request(value).await.unwrap();
    // Neither is read; both are let go of.
    let freed = async {
        while server.metric("firn_requests_in_flight").await > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), freed)
        .await
        .unwrap();
    let (reply, _) = exchange(&mut sender, request(&server, "GET", "/livez", "")).await;
    assert_eq!(reply.status(), 200);
    for reply in [stream, value] {
        assert!(read(&mut reply.into_body()).await.is_err());
    }
    drop(sender);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_at_rest_is_told_to_go() {
    let server = Running::start_with(|config| {
        config.idle_timeout = Duration::from_millis(50);
        config.header_timeout = Duration::from_millis(50);
    })
    .await;
    let (mut sender, connection) = connect(&server).await;
    let (reply, _) = exchange(&mut sender, request(&server, "GET", "/livez", "")).await;
    assert_eq!(reply.status(), 200);
    let ended = tokio::time::timeout(Duration::from_secs(30), connection).await;
    ended.unwrap().unwrap().unwrap();

    // One that does not even answer is cut.
    let mut mute = server.connect().await;
    mute.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    let cut = tokio::time::timeout(Duration::from_secs(30), mute.read_to_end(&mut bytes)).await;
    cut.unwrap().unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_in_a_rush_do_no_harm() {
    let server = Running::start_with(|config| config.streams = 10).await;
    assert_eq!(server.put("/v1/keys/a", b"1").await.status, 204);
    for _ in 0..20 {
        let (mut sender, _connection) = connect(&server).await;
        for _ in 0..200 {
            let sent = sender.send_request(request(&server, "GET", "/v1/keys/a", ""));
            // Sent, and reset before it is answered.
            let _ = tokio::time::timeout(Duration::ZERO, sent).await;
            tokio::task::yield_now().await;
            if sender.is_closed() {
                break;
            }
        }
    }
    let settled = async {
        while server.metric("firn_requests_in_flight").await > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), settled)
        .await
        .unwrap();
    assert_eq!(server.get("/v1/keys/a").await.status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beginnings_that_look_like_http2_are_answered_as_http1() {
    let server = Running::start_with(|config| {
        config.header_timeout = Duration::from_millis(50);
    })
    .await;
    let reply = server
        .raw(b"PRI * HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await;
    assert!(matches!(reply.status, 400 | 404), "{}", reply.status);
    // Byte by byte.
    let mut slow = server.connect().await;
    for byte in b"PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    {
        slow.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(crate::support::read_reply(&mut slow).await.status, 204);
    // Half of it, and no more.
    let mut half = server.connect().await;
    half.write_all(b"PRI * HTTP/2").await.unwrap();
    assert_eq!(crate::support::read_reply(&mut half).await.status, 408);
    // Garbage after it.
    let mut broken = server.connect().await;
    broken
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(30), broken.read_to_end(&mut bytes));
    let _ = closed.await.expect("it is closed");
    server.stop().await;
}
