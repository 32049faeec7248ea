//! Client for FirnDB over HTTP: pooled connections, a deadline for every call, and care about what
//! may be repeated.
//!
//! ```no_run
//! # async fn example() -> Result<(), firn_client::Error> {
//! let client = firn_client::Client::connect("127.0.0.1:8080")?;
//! client.put("greeting", "hello").await?;
//! let entry = client.get("greeting").await?;
//! let mut scan = client.scan(firn_client::ScanOptions::prefix("gre"));
//! while let Some(entry) = scan.next().await? {
//!     println!("{:?} {:?}", entry.key, entry.value);
//! }
//! # Ok(()) }
//! ```
//!
//! **What is repeated.** A request is sent again, after a pause and within the deadline, when the
//! server said that it did nothing (503 with `Retry-After`), or when no connection could be made.
//! Reads are also repeated when a connection broke. Writes then are not: whether they happened is
//! unknown, and the error says so ([`ErrorKind::Unknown`]). Make them conditional to repeat them
//! safely, or say with [`Builder::repeat_writes`] that an unconditional write may happen twice.
//!
//! | Module | Owns |
//! |---|---|
//! | [`client`] | the client and its calls |
//! | [`batch`] | batches |
//! | [`scan`] | ranges, page by page or as they were at one instant |
//! | [`watch`] | the changefeed, across reconnections |
//! | [`error`] | what can go wrong |
//! | [`stream`] | scans and watches as streams |
//! | [`blocking`] | the same calls for threads |
//! | `connection` | a connection on which an answer is read though sending failed |
//! | `lines` | a reply that comes line by line |
//! | `transport` | one call: connections, deadline, repetition |
#![deny(missing_docs)]

pub mod batch;
pub mod blocking;
pub mod client;
mod connection;
pub mod error;
mod lines;
pub mod scan;
pub mod stream;
mod transport;
pub mod watch;

pub use crate::batch::Batch;
pub use crate::client::{
    Builder, Client, Condition, DeleteOptions, Durability, Entry, PutOptions, Written,
};
pub use crate::error::{Error, ErrorKind};
pub use crate::scan::{Scan, ScanEntry, ScanOptions};
pub use crate::watch::{Change, Watch, WatchEvent, WatchOptions};
