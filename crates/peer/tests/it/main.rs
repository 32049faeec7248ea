//! Nodes over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod certificates;
mod cluster;
mod common;
mod hostile;
mod loopback;
mod tls;
