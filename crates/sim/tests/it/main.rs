//! The simulator's tests: scenarios with a script, seeds, and bugs that must be found.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod log;
mod refill;
mod scenarios;
mod seeds;
mod states;
mod writes;

#[cfg(feature = "planted-bugs")]
mod planted;
