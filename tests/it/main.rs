//! The whole product as a user meets it: the binary, real processes, temporary directories, free
//! ports.
#![allow(
    clippy::disallowed_methods,
    reason = "tests of processes, from outside of the database"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "seeds and counts of long tests"
)]

#[path = "../../crates/peer/tests/it/certificates.rs"]
mod certificates;
mod cli;
mod cluster;
mod deploy;
mod http;
mod kill;
mod process;
mod readme;
mod renewal;
mod serve;
