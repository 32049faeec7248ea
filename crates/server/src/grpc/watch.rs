//! The changefeed as a stream of messages.
//!
//! As over HTTP a task of its own ([`watch::tell`]) renders chunks and sends them to the reply; it
//! ends when the client goes away, the server stops, or the feed fails. A chunk is the bytes of a
//! `WatchResponse`. When the server stops, the last one says how far it came, and the status is that of
//! `shutting_down`; when the feed fails, the status says why.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use firn_engine::Change;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::Stream;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request as Call, Response as Answer, Status};

use crate::grpc::proto::watch_event::{self, Delete, DeleteRange, DropNamespace, Put};
use crate::grpc::proto::{WatchEvent, WatchRequest};
use crate::grpc::unary::CallBody;
use crate::grpc::wire::Rendered;
use crate::grpc::{Calling, Reply, kv, status};
use crate::http::Door;
use crate::http::request::Request;
use crate::service::error::{Error, Result};
use crate::service::watch::{self, ChangeRef, Heartbeat, Sink, Story, WatchQuery};

pub(crate) const PATH: &str = "/firn.v1.KV/Watch";

// Fields of `WatchResponse`; a test compares with the generated code.
const EVENTS: u32 = 1;
const PROGRESS: u32 = 2;

/// Serves `KV.Watch`.
pub(crate) async fn call(door: Arc<Door>, call: Calling<'_>) -> Reply {
    call.running.set_code(Code::InvalidArgument.name());
    let method = Method {
        door,
        running: Arc::clone(call.running),
    };
    Grpc::new(Rendered::default())
        .max_decoding_message_size(usize::MAX)
        .server_streaming(method, call.into_request())
        .await
        .map(CallBody::Stream)
}

struct Method {
    door: Arc<Door>,
    running: Arc<Request>,
}

impl ServerStreamingService<WatchRequest> for Method {
    type Response = Bytes;
    type ResponseStream = Told;
    type Future = tonic::codegen::BoxFuture<Answer<Told>, Status>;

    fn call(&mut self, call: Call<WatchRequest>) -> Self::Future {
        let (door, running) = (Arc::clone(&self.door), Arc::clone(&self.running));
        Box::pin(async move {
            match open(&door, call.into_inner()).await {
                Ok(chunks) => {
                    // Who goes away has seen what it wanted.
                    running.set_code("ok");
                    Ok(Answer::new(Told { chunks, running }))
                }
                Err(error) => {
                    running.set_code(error.code.name());
                    Err(status::of(&error))
                }
            }
        })
    }
}

async fn open(door: &Door, asked: WatchRequest) -> Result<mpsc::Receiver<Result<Bytes>>> {
    if asked.all_namespaces && !asked.namespace.is_empty() {
        let detail = "all_namespaces: not together with a namespace";
        return Err(Error::invalid(detail));
    }
    let range = kv::range(asked.range);
    if range.is_empty() {
        let detail = "range: the start is not before the end";
        return Err(Error::invalid(detail));
    }
    let heartbeat = Heartbeat::every(asked.heartbeat_ms.map(Duration::from_millis))
        .map_err(|e| e.about("heartbeat_ms"))?;
    let renderer = Renderer {
        out: Vec::new(),
        keys_only: asked.keys_only,
        told: 0,
        ended: None,
    };
    let query = WatchQuery {
        namespace: (!asked.all_namespaces).then(|| kv::namespace(&asked.namespace).to_owned()),
        range,
        from: asked.from_version,
    };
    let feed = door.service.watch(query, renderer).await?;
    let (chunks, received) = mpsc::channel(1);
    tokio::spawn(watch::tell(door.service.clone(), feed, heartbeat, chunks));
    Ok(received)
}

/// Renders changes as the field `events` of a `WatchResponse`.
#[derive(Debug)]
struct Renderer {
    out: Vec<u8>,
    keys_only: bool,
    /// The version of the last change.
    told: u64,
    ended: Option<Error>,
}

impl Sink for Renderer {
    fn change(&mut self, change: ChangeRef<'_>) -> Result<()> {
        let bytes = Bytes::copy_from_slice;
        let what = match change.change {
            Change::Put {
                key,
                value,
                expires_at_ms,
            } => watch_event::Change::Put(Put {
                key: bytes(key),
                value: bytes(if self.keys_only { b"" } else { value }),
                expires_at_ms,
            }),
            Change::Delete { key } => watch_event::Change::Delete(Delete { key: bytes(key) }),
            Change::DeleteRange { start, end } => watch_event::Change::DeleteRange(DeleteRange {
                start: bytes(start),
                end: bytes(end),
            }),
            Change::DropNamespace => watch_event::Change::DropNamespace(DropNamespace {}),
        };
        let event = WatchEvent {
            version: change.version,
            commit: change.commit,
            more: change.more,
            namespace: change.namespace.to_owned(),
            change: Some(what),
        };
        let len = event.encoded_len();
        self.out.reserve(len + 32);
        encode_key(EVENTS, WireType::LengthDelimited, &mut self.out);
        encode_varint(len as u64, &mut self.out);
        event.encode_raw(&mut self.out);
        self.told = change.version;
        Ok(())
    }

    fn waiting_bytes(&self) -> usize {
        self.out.len()
    }
}

impl Story for Renderer {
    type Chunk = Result<Bytes>;

    fn progress(&mut self, version: u64) {
        encode_key(PROGRESS, WireType::Varint, &mut self.out);
        encode_varint(version, &mut self.out);
        self.told = 0;
    }

    fn end(&mut self, version: u64) {
        self.progress(version);
        self.ended = Some(Error::shutting_down());
    }

    fn failed(&mut self, error: Error) {
        self.ended = Some(error);
    }

    fn take(&mut self) -> Option<Result<Bytes>> {
        if self.out.is_empty() {
            return self.ended.take().map(Err);
        }
        if self.told > 0 {
            self.progress(self.told);
        }
        Some(Ok(std::mem::take(&mut self.out).into()))
    }
}

/// Messages as the client takes them.
struct Told {
    chunks: mpsc::Receiver<Result<Bytes>>,
    running: Arc<Request>,
}

impl Stream for Told {
    type Item = std::result::Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(cx).map(|next| {
            // Without a last word: the runtime stops, or the task met a mistake of ours.
            let next = next.unwrap_or_else(|| Err(Error::shutting_down()));
            Some(next.map_err(|error| {
                self.running.set_code(error.code.name());
                status::of(&error)
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::WatchResponse;

    #[test]
    fn what_is_rendered_is_what_the_generated_code_reads() {
        let mut renderer = Renderer {
            out: Vec::new(),
            keys_only: false,
            told: 0,
            ended: None,
        };
        let mut tell = |version, change| {
            let change = ChangeRef {
                version,
                commit: 300,
                more: version < 300,
                namespace: "x",
                change,
            };
            renderer.change(change).unwrap();
        };
        let put = Change::Put {
            key: b"\xff",
            value: b"",
            expires_at_ms: Some(0),
        };
        tell(298, put);
        tell(300, Change::DropNamespace);
        let message = WatchResponse::decode(renderer.take().unwrap().unwrap()).unwrap();
        assert_eq!(message.progress, 300);
        let event = |version, change| WatchEvent {
            version,
            commit: 300,
            more: version < 300,
            namespace: "x".into(),
            change: Some(change),
        };
        let put = watch_event::Change::Put(Put {
            key: Bytes::from_static(b"\xff"),
            value: Bytes::new(),
            expires_at_ms: Some(0),
        });
        let drop = watch_event::Change::DropNamespace(DropNamespace {});
        assert_eq!(message.events, [event(298, put), event(300, drop)]);
        assert!(renderer.take().is_none());

        renderer.end(7);
        let message = WatchResponse::decode(renderer.take().unwrap().unwrap()).unwrap();
        assert_eq!((message.progress, message.events.len()), (7, 0));
        let error = renderer.take().unwrap().unwrap_err();
        assert_eq!(error.code, Code::ShuttingDown);
        assert!(renderer.take().is_none());
    }
}
