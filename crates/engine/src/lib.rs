//! FirnDB's storage engine.
pub mod blob;
pub mod cache;
pub mod compaction;
pub mod error;
pub mod iterator;
pub mod key;
pub mod merge;
pub mod names;
pub mod options;
pub mod range_del;
pub mod sstable;

pub use crate::error::{Error, Result};
