//! Ranges as streams of messages.
//!
//! Entries are rendered as they are walked, as the bytes of a `RangeResponse`, so that a value is
//! copied once on its way from a block into the message. One chunk is made on a blocking thread
//! while the one before it is being sent; no more, until the client has room: what a slow reader
//! costs is two chunks and a snapshot. When it goes away the walk goes too.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use firn_api::code::Code;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tokio::task::JoinHandle;
use tonic::codegen::tokio_stream::Stream;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request as Call, Response as Answer, Status};

use crate::grpc::proto::RangeRequest;
use crate::grpc::unary::CallBody;
use crate::grpc::wire::Rendered;
use crate::grpc::{Calling, Reply, kv, status};
use crate::http::Door;
use crate::http::body::spawn_counted;
use crate::http::request::Request;
use crate::service::error::{Error, Result};
use crate::service::scan::{EntryRef, RangeQuery, Sink, Walk};

/// Bytes of a message, unless a single entry is larger.
const CHUNK_BYTES: usize = 128 << 10;

// Fields of `RangeResponse` and `Entry`; a test compares with the generated code.
const ENTRIES: u32 = 1;
const NEXT_CURSOR: u32 = 2;
const KEY: u32 = 1;
const VALUE: u32 = 2;
const VERSION: u32 = 3;
const EXPIRES_AT_MS: u32 = 4;

/// Serves `KV.Range`.
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

impl ServerStreamingService<RangeRequest> for Method {
    type Response = Bytes;
    type ResponseStream = Chunks;
    type Future = tonic::codegen::BoxFuture<Answer<Chunks>, Status>;

    fn call(&mut self, call: Call<RangeRequest>) -> Self::Future {
        let (door, running) = (Arc::clone(&self.door), Arc::clone(&self.running));
        Box::pin(async move {
            match open(&door, call.into_inner()).await {
                Ok(walk) => {
                    // Whoever goes away before the end has cancelled it.
                    running.set_code("cancelled");
                    let state = State::Filling(fill(Box::new(walk), &running));
                    Ok(Answer::new(Chunks { state, running }))
                }
                Err(error) => {
                    running.set_code(error.code.name());
                    Err(status::of(&error))
                }
            }
        })
    }
}

async fn open(door: &Door, asked: RangeRequest) -> Result<Walk<ProtoSink>> {
    let consistency = kv::consistency(asked.consistency)?;
    let query = RangeQuery {
        namespace: kv::namespace(&asked.namespace).to_owned(),
        range: kv::range(asked.range),
        reverse: asked.reverse,
        keys_only: asked.keys_only,
        limit: asked.limit,
        max_bytes: asked.max_bytes,
        cursor: (!asked.cursor.is_empty()).then_some(asked.cursor),
        consistency,
    };
    door.service.stream(query, ProtoSink::default()).await
}

/// Renders entries as the field `entries` of a `RangeResponse`.
#[derive(Debug, Default)]
struct ProtoSink {
    out: Vec<u8>,
}

impl Sink for ProtoSink {
    fn entry(&mut self, entry: EntryRef<'_>) -> Result<()> {
        let value = entry.value.unwrap_or_default();
        let bytes_len = |bytes: &[u8]| match bytes.len() {
            0 => 0,
            len => key_len(KEY) + encoded_len_varint(len as u64) + len,
        };
        let number_len = |number: u64| key_len(KEY) + encoded_len_varint(number);
        let len = bytes_len(entry.key)
            + bytes_len(value)
            + number_len(entry.version)
            + entry.expires_at_ms.map_or(0, number_len);
        let out = &mut self.out;
        out.reserve(len + 16);
        encode_key(ENTRIES, WireType::LengthDelimited, out);
        encode_varint(len as u64, out);
        for (field, bytes) in [(KEY, entry.key), (VALUE, value)] {
            if !bytes.is_empty() {
                push_bytes(field, bytes, out);
            }
        }
        encode_key(VERSION, WireType::Varint, out);
        encode_varint(entry.version, out);
        if let Some(at) = entry.expires_at_ms {
            encode_key(EXPIRES_AT_MS, WireType::Varint, out);
            encode_varint(at, out);
        }
        Ok(())
    }

    fn waiting_bytes(&self) -> usize {
        self.out.len()
    }
}

fn push_bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Messages as the client takes them.
struct Chunks {
    state: State,
    running: Arc<Request>,
}

enum State {
    Filling(JoinHandle<Filled>),
    Done,
}

/// A walk and how its last chunk went.
type Filled = (Box<Walk<ProtoSink>>, Result<()>);

fn fill(mut walk: Box<Walk<ProtoSink>>, running: &Arc<Request>) -> JoinHandle<Filled> {
    spawn_counted(Some(running), move || {
        let outcome = walk.fill(CHUNK_BYTES);
        (walk, outcome)
    })
}

impl Chunks {
    fn fail(&self, error: &Error) -> Poll<Option<std::result::Result<Bytes, Status>>> {
        self.running.set_code(error.code.name());
        Poll::Ready(Some(Err(status::of(error))))
    }
}

impl Stream for Chunks {
    type Item = std::result::Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Done => Poll::Ready(None),
            State::Filling(mut job) => {
                let Poll::Ready(finished) = Pin::new(&mut job).poll(cx) else {
                    self.state = State::Filling(job);
                    return Poll::Pending;
                };
                // A cancelled job means that the runtime stops.
                let Ok((mut walk, outcome)) = finished else {
                    return self.fail(&Error::shutting_down());
                };
                if let Err(error) = outcome {
                    return self.fail(&error);
                }
                let mut chunk = std::mem::take(&mut walk.sink.out);
                if walk.is_done() {
                    self.running.set_code("ok");
                    if let Some(cursor) = walk.next_cursor() {
                        push_bytes(NEXT_CURSOR, cursor.as_bytes(), &mut chunk);
                    }
                    // An empty range is an empty stream.
                    return Poll::Ready((!chunk.is_empty()).then(|| Ok(chunk.into())));
                }
                self.state = State::Filling(fill(walk, &self.running));
                Poll::Ready(Some(Ok(chunk.into())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto::{Entry, RangeResponse};
    use prost::Message as _;

    #[test]
    fn what_is_rendered_is_what_the_generated_code_reads_and_writes() {
        let entries: Vec<_> = [
            (&b"a"[..], &b"value"[..], 1, None),
            (b"", b"", 300, Some(0)),
            (b"\xff\x00", &[7; 300], u64::MAX, Some(u64::MAX)),
        ]
        .into_iter()
        .map(|(key, value, version, expires_at_ms)| Entry {
            key: Bytes::from_static(key),
            value: Bytes::copy_from_slice(value),
            version,
            expires_at_ms,
        })
        .collect();
        let mut sink = ProtoSink::default();
        for entry in &entries {
            sink.entry(EntryRef {
                key: &entry.key,
                value: Some(&entry.value),
                version: entry.version,
                expires_at_ms: entry.expires_at_ms,
            })
            .unwrap();
        }
        push_bytes(NEXT_CURSOR, b"cursor", &mut sink.out);
        let message = RangeResponse {
            entries,
            next_cursor: "cursor".into(),
        };
        assert_eq!(RangeResponse::decode(&sink.out[..]).unwrap(), message);
        assert_eq!(sink.out, message.encode_to_vec());
    }
}
