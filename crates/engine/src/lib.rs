//! FirnDB's storage engine: a durable, ordered, log-structured merge tree for embedding.
//!
//! [`Db`] is the door; its page has an example. Keys and values are any bytes, up to
//! [`options::MAX_KEY_BYTES`] and [`options::MAX_VALUE_BYTES`]. An acknowledged write survives what
//! its [`Durability`] says; a batch is atomic, across namespaces too; damage on disk is found and
//! reported, never returned as data.
//!
//! The engine is synchronous. It starts no thread, opens no file and reads no clock itself: all that
//! comes from the [`firn_io::Env`] it is opened with. It writes no log; [`Db::set_listener`] and
//! [`Db::stats`] tell what happens.
//!
//! Module order, bottom first (a module names only modules above it in this list): `sync`, `prefetch`,
//! `error`, `key`, `options`, `names`, `event`, `read_debt`, `range_del`, `batch`, `iterator`, `cache`,
//! `memtable`, `file_writer`, `sstable`, `blob`, `value`, `version`, `merge`, `compaction::pick`,
//! `compaction::pacing`, `compaction::drop`, `publish`, `snapshot`, `tree`, `feed`, `external::state`,
//! `core`, `read`, `multi_get`, `compaction::output`, `flush`, `external::flush`, `external::own_log`,
//! `compaction::run`, `work`, `verify`, `refill`, `commit`, `watch`, `checkpoint`, `external::apply`,
//! `repair`, `inspect`, `recovery`, `db`.

#![deny(missing_docs)]

pub mod batch;
pub mod blob;
pub mod cache;
pub mod checkpoint;
pub mod commit;
pub mod compaction;
pub mod core;
pub mod db;
pub mod error;
pub mod event;
pub mod external;
pub mod feed;
mod file_writer;
pub mod flush;
pub mod inspect;
pub mod iterator;
pub mod key;
pub mod memtable;
pub mod merge;
pub mod multi_get;
pub mod names;
pub mod options;
mod prefetch;
pub mod publish;
pub mod range_del;
pub mod read;
pub mod read_debt;
pub mod recovery;
pub mod refill;
pub mod repair;
pub mod snapshot;
pub mod sstable;
mod sync;
pub mod tree;
pub mod value;
pub mod verify;
pub mod version;
pub mod watch;
pub mod work;

pub use crate::batch::{Condition, WriteBatch};
pub use crate::commit::{Commit, Ticket, WriteOptions};
pub use crate::db::{DEFAULT_NAMESPACE, Db, Namespace, Snapshot};
pub use crate::error::{Error, Result};
pub use crate::event::{Counters, Event, EventListener, Stats};
pub use crate::external::apply::{Applier, Outcome};
pub use crate::external::state::ExternalLog;
pub use crate::key::SeqNo;
pub use crate::options::{Compression, Durability, Options};
pub use crate::read::{Scan, ScanOptions};
pub use crate::refill::{Damage, RangeView, Refill, ViewEntry};
pub use crate::repair::{RepairReport, repair_dir};
pub use crate::value::{Entry, Value};
pub use crate::verify::{Problem, VerifyProgress, VerifyReport, verify_dir};
pub use crate::watch::{Change, Watch, WatchBatch, WatchEvent, WatchOptions};

/// The program in the README is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
