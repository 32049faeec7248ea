//! Rewriting tables into fewer, larger ones without what no reader needs any more.

pub mod drop;
