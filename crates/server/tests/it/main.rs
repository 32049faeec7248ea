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
mod kv;
mod lifecycle;
mod operate;
mod range;
mod support;
