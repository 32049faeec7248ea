//! Three servers that are one cluster: a test of its own, as building all of `it` takes long.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
#![allow(clippy::disallowed_methods, reason = "a disk is lost in between")]

mod nodes;
#[allow(dead_code, reason = "the other tests use all of it")]
#[path = "../it/resp_client.rs"]
mod resp_client;
#[allow(dead_code, reason = "the other tests use all of it")]
#[path = "../it/support.rs"]
mod support;
