//! Messages to bytes and back. tonic's own codec calls a message that cannot be read an internal
//! error; here it is the client's, with the details of every refusal.

use std::marker::PhantomData;

use bytes::{Buf, BufMut as _, Bytes};
use firn_api::code::Code;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::grpc::status;
use crate::service::error::Error;

/// Reads messages `M`.
#[derive(Debug)]
pub(crate) struct Wire<M>(PhantomData<fn() -> M>);

impl<M: Message + Default> Decoder for Wire<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        decode(from).map(Some)
    }
}

/// The message that these bytes are.
pub(crate) fn decode<M: Message + Default>(from: impl Buf) -> Result<M, Status> {
    M::decode(from).map_err(|e| {
        let detail = format!("the message cannot be read: {e}");
        status::of(&Error::new(Code::InvalidEncoding, detail))
    })
}

/// Reads messages `M`, writes messages that are bytes already.
#[derive(Debug)]
pub(crate) struct Rendered<M>(PhantomData<fn() -> M>);

impl<M> Default for Rendered<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + Default + Send + 'static> Codec for Rendered<M> {
    type Encode = Bytes;
    type Decode = M;
    type Encoder = Self;
    type Decoder = Wire<M>;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Wire<M> {
        Wire(PhantomData)
    }
}

impl<M> Encoder for Rendered<M> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(item.len());
        to.put(item);
        Ok(())
    }
}
