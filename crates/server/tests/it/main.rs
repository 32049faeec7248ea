//! The server as its clients meet it: in process, over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod bad_input;
mod batch;
mod client;
mod dialects;
mod fuzz;
mod grpc;
mod grpc_limits;
mod grpc_watch;
mod http2;
mod kv;
mod lifecycle;
mod operate;
mod proto;
mod range;
mod rate;
mod resp;
mod resp_client;
mod resp_handshakes;
mod resp_redis;
mod support;
mod watch;
