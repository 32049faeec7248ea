//! Calls with one message each way: frame, status and trailers, as
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md> has them.
//!
//! tonic can do this, but by its machinery for streams, which makes two buffers of 8 KiB and a state of
//! 3 KiB a call: that was a quarter of what a `Get` cost.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use firn_api::code::Code;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::grpc::{Reply, status, wire};
use crate::service::error::Error;

/// A flag (1: compressed) and the length.
const PREFIX_BYTES: usize = 5;
const ENCODING: &str = "grpc-encoding";
const ACCEPTED: &str = "grpc-accept-encoding";
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");

/// The only message of a request.
pub(crate) fn read<M: Message + Default>(
    headers: &HeaderMap,
    mut body: Bytes,
) -> Result<M, Status> {
    if let Some(encoding) = headers.get(ENCODING)
        && encoding != "identity"
    {
        let shown = encoding.as_bytes().escape_ascii();
        let detail = format!("{ENCODING}: {shown} is not supported; messages are sent as they are");
        let mut status = Status::unimplemented(detail);
        // By which clients know what to do instead.
        let identity = MetadataValue::from_static("identity");
        status.metadata_mut().insert(ACCEPTED, identity);
        return Err(status);
    }
    let broken = |detail: String| Err(status::of(&Error::new(Code::InvalidEncoding, detail)));
    if body.len() < PREFIX_BYTES {
        return broken(format!(
            "the request has {} bytes, a message begins with {PREFIX_BYTES}",
            body.len()
        ));
    }
    let is_compressed = body.get_u8() != 0;
    let len = body.get_u32();
    if is_compressed {
        // That code is what gRPC's page on compression asks for.
        let detail = "the message is marked as compressed, and nothing says how";
        return Err(Status::internal(detail));
    }
    if body.len() as u64 != u64::from(len) {
        return broken(format!(
            "the message says that it has {len} bytes, {} follow; such a call has one message",
            body.len()
        ));
    }
    wire::decode(body)
}

/// The reply with this message.
pub(crate) fn reply(message: &impl Message) -> Reply {
    let len = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + len);
    framed.put_u8(0);
    let Ok(len) = u32::try_from(len) else {
        let detail = format!("the reply has {len} bytes, a message at most {}", u32::MAX);
        return Status::resource_exhausted(detail).into_http();
    };
    framed.put_u32(len);
    // The buffer grows as it must.
    if let Err(error) = message.encode(&mut framed) {
        return Status::internal(error.to_string()).into_http();
    }
    let mut reply = Response::new(CallBody::Message(framed.freeze()));
    let kind = HeaderValue::from_static("application/grpc");
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply
}

/// The body of a reply.
#[derive(Debug, Default)]
pub(crate) enum CallBody {
    /// A message that is yet to be sent.
    Message(Bytes),
    /// It was.
    Trailers,
    /// Nothing more; the head says how the call ended, if nothing was sent.
    #[default]
    Ended,
    /// Many messages.
    Stream(tonic::body::Body),
}

impl Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match this {
            Self::Message(message) => {
                let message = std::mem::take(message);
                *this = Self::Trailers;
                Poll::Ready(Some(Ok(Frame::data(message))))
            }
            Self::Trailers => {
                *this = Self::Ended;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(STATUS, OK);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Self::Ended => Poll::Ready(None),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message(_) | Self::Trailers => false,
            Self::Ended => true,
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Exact would be told as `content-length`, and the deadline may yet come before it.
            Self::Message(_) | Self::Trailers => SizeHint::default(),
            Self::Ended => SizeHint::with_exact(0),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::grpc::proto::GetRequest;

    fn framed(flag: u8, len: u32, message: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(flag);
        out.put_u32(len);
        out.put_slice(message);
        out.freeze()
    }

    #[test]
    fn a_request_is_one_whole_message() {
        let asked = GetRequest {
            key: Bytes::from_static(b"k"),
            ..GetRequest::default()
        };
        let message = asked.encode_to_vec();
        let len = message.len() as u32;
        let none = HeaderMap::new();
        let of = |headers: &HeaderMap, body: Bytes| {
            let read: Result<GetRequest, _> = read(headers, body);
            read.map_err(|status| (status.code(), status.message().to_owned()))
        };
        assert_eq!(of(&none, framed(0, len, &message)), Ok(asked.clone()));
        let twice = [&message[..], &framed(0, len, &message)].concat();
        for (body, named) in [
            (Bytes::new(), "0 bytes"),
            (Bytes::from_static(&[0; 4]), "4 bytes"),
            (framed(0, len + 1, &message), "4 bytes, 3 follow"),
            (framed(0, u32::MAX, &message), "4294967295 bytes"),
            (framed(0, len, &twice), "one message"),
            (framed(0, 1, &[0xff]), "cannot be read"),
        ] {
            let (code, detail) = of(&none, body).unwrap_err();
            assert_eq!(code, tonic::Code::InvalidArgument);
            assert!(detail.contains(named), "{detail}");
        }
        let (code, detail) = of(&none, framed(1, len, &message)).unwrap_err();
        assert_eq!(code, tonic::Code::Internal);
        assert!(detail.contains("compressed"), "{detail}");
        let mut headers = HeaderMap::new();
        headers.insert(ENCODING, HeaderValue::from_static("identity"));
        assert_eq!(of(&headers, framed(0, len, &message)), Ok(asked));
        headers.insert(ENCODING, HeaderValue::from_static("gzip"));
        let (code, detail) = of(&headers, framed(0, len, &message)).unwrap_err();
        assert_eq!(code, tonic::Code::Unimplemented);
        assert!(detail.contains("gzip"), "{detail}");
        let status = read::<GetRequest>(&headers, Bytes::new()).unwrap_err();
        assert_eq!(status.metadata().get(ACCEPTED).unwrap(), "identity");
    }

    #[tokio::test]
    async fn a_reply_is_a_message_and_its_status() {
        let message = GetRequest {
            namespace: "n".into(),
            ..GetRequest::default()
        };
        let reply = reply(&message);
        assert_eq!(reply.headers()[CONTENT_TYPE], "application/grpc");
        let mut body = reply.into_body();
        assert_eq!(body.size_hint().exact(), None);
        let mut next = async || poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let sent = next().await.unwrap().unwrap().into_data().unwrap();
        let whole = message.encode_to_vec();
        assert_eq!(sent, framed(0, whole.len() as u32, &whole));
        let trailers = next().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers.get(&STATUS), Some(&OK));
        assert_eq!(trailers.len(), 1);
        assert!(next().await.is_none() && body.is_end_stream());
    }
}
