//! The door without a connection: a message in, a status out. For fuzzing, which is why it is public
//! and hidden.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as _;
use tonic::Status;

use crate::connection::Activity;
use crate::grpc::{GrpcDoor, METHODS};
use crate::http::loopback::Loopback;
use crate::http::request::Request;

/// A door that answers one call after the other.
#[derive(Debug)]
pub struct GrpcLoopback {
    door: GrpcDoor,
}

impl GrpcLoopback {
    /// Before the database of that door.
    pub fn new(http: &Loopback) -> Self {
        let door = GrpcDoor::new(http.door());
        Self { door }
    }

    /// Calls one of our methods, which `method` chooses, with the frames of a request: a byte for the
    /// compression, four for the length, the message. The number of the code that the call ends with.
    ///
    /// # Panics
    /// If it does not end with a status, as every call must.
    pub async fn call(&self, method: usize, frames: Bytes) -> i32 {
        let ours = || METHODS.iter().filter(|row| row.0.starts_with("/firn."));
        let (path, _, _) = ours().nth(method % ours().count()).unwrap_or(&METHODS[0]);
        let mut request = http::Request::new(());
        *request.uri_mut() = http::Uri::from_static(path);
        let (parts, ()) = request.into_parts();
        let (service, metrics) = (
            self.door.door.service.clone(),
            Arc::clone(&self.door.door.metrics),
        );
        let activity = Arc::new(Activity::default());
        let slow = self.door.door.slow_request;
        let uri = parts.uri.clone();
        let running = Request::begin(service, metrics, activity, "grpc", slow, uri);
        let reply = self.door.answer(parts, frames, path, &running).await;
        let (head, mut body) = reply.into_parts();
        let mut trailers = HeaderMap::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
        {
            match frame.map(http_body::Frame::into_trailers) {
                Ok(Ok(last)) => trailers = last,
                Ok(Err(_)) => {}
                Err(status) => return status.code() as i32,
            }
        }
        let status = Status::from_header_map(&trailers).or(Status::from_header_map(&head.headers));
        assert!(status.is_some(), "{path} ended without a status");
        status.map_or(tonic::Code::Unknown, |status| status.code()) as i32
    }
}
