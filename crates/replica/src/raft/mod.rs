//! The consensus library, and everything that knows its name. Nothing of it leaves this module: the
//! rest of the crate, files and messages have types of their own.
//!
//! * [`watch`], [`rt`]: the asynchronous runtime that the library runs on.
//! * [`config`]: its types, and its settings with the reason of each.
//! * [`log`], [`machine`]: its storage, on [`crate::log_store`] and [`crate::machine`].
//! * [`net`]: its network, on [`crate::transport`].

pub(crate) mod config;
pub(crate) mod errors;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod net;
pub(crate) mod rt;
pub(crate) mod watch;

#[cfg(test)]
mod suite_tests;
