//! Rewriting tables into fewer, larger ones without what no reader needs any more.

pub mod drop;
pub mod output;
pub mod pacing;
pub mod pick;
pub mod run;
