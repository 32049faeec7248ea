//! The same calls for threads that may wait. Not for use inside an asynchronous runtime.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firn_api::http::{BatchReply, ClusterReply, NamespaceBody, StatsReply, VerifyReply};
use tokio::runtime::Runtime;

use crate::batch::Batch;
use crate::client::{self, Builder, DeleteOptions, Durability, Entry, PutOptions, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::scan::{self, ScanEntry, ScanOptions};
use crate::watch::{self, WatchEvent, WatchOptions};

/// A client whose calls wait. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: client::Client,
    runtime: Arc<Runtime>,
}

macro_rules! waiting {
    ($(
        $(#[$doc:meta])*
        $name:ident($($argument:ident: $type:ty),*) -> $result:ty;
    )*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// As the asynchronous call of the same name.
            pub fn $name(&self, $($argument: $type),*) -> Result<$result> {
                self.runtime.block_on(self.inner.$name($($argument),*))
            }
        )*
    };
}

impl Client {
    /// As [`client::Client::connect`].
    ///
    /// # Errors
    /// If the address is none.
    pub fn connect(address: &str) -> Result<Self> {
        Self::build(client::Client::builder(address))
    }

    /// The client of a builder.
    ///
    /// # Errors
    /// If the address is none.
    pub fn build(builder: Builder) -> Result<Self> {
        // One worker, so that connections are looked after between calls, and calls of many
        // threads do not wait for each other.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("firn-client")
            .enable_all()
            .build()
            .map_err(|e| Error::new(ErrorKind::Usage, e))?;
        Ok(Self {
            inner: builder.build()?,
            runtime: Arc::new(runtime),
        })
    }

    /// The same connections, another namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Self {
        Self {
            inner: self.inner.namespace(name),
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// As [`client::Client::deadline`].
    #[must_use]
    pub fn deadline(&self, deadline: Duration) -> Self {
        Self {
            inner: self.inner.deadline(deadline),
            runtime: Arc::clone(&self.runtime),
        }
    }

    waiting! {
        /// Reads a key.
        get(key: impl AsRef<[u8]>) -> Option<Entry>;
        /// Reads many keys at one instant.
        multi_get(keys: &[impl AsRef<[u8]>]) -> Vec<Option<Entry>>;
        /// Writes a key.
        put(key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Written;
        /// Writes a key with options.
        put_with(key: impl AsRef<[u8]>, value: impl Into<Bytes>, options: &PutOptions) -> Written;
        /// Deletes a key.
        delete(key: impl AsRef<[u8]>) -> Written;
        /// Deletes a key with options.
        delete_with(key: impl AsRef<[u8]>, options: &DeleteOptions) -> Written;
        /// Deletes a range.
        delete_range(start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Written;
        /// Deletes every key with a prefix.
        delete_prefix(prefix: impl AsRef<[u8]>) -> Written;
        /// Writes a batch.
        batch(batch: Batch) -> BatchReply;
        /// Writes a batch with another durability.
        batch_with(batch: Batch, durability: Option<Durability>) -> BatchReply;
        /// Lists namespaces.
        namespaces() -> Vec<NamespaceBody>;
        /// Creates a namespace; `false` if it was there.
        create_namespace(name: &str) -> bool;
        /// Drops a namespace.
        drop_namespace(name: &str) -> ();
        /// The engine's gauges and counters.
        stats() -> StatsReply;
        /// Writes memtables to SSTables.
        flush() -> ();
        /// Compacts a range.
        compact(start: Option<&[u8]>, end: Option<&[u8]>) -> ();
        /// Makes a checkpoint.
        checkpoint(name: Option<&str>) -> String;
        /// Checks every checksum.
        verify() -> VerifyReply;
        /// The cluster, as the server sees it.
        cluster() -> ClusterReply;
        /// Gives a node a vote.
        promote(node: u64) -> ();
        /// Takes the vote of a node.
        demote(node: u64) -> ();
        /// Removes a node.
        remove(node: u64, force: bool) -> ();
        /// Makes another node lead.
        transfer(node: Option<u64>) -> u64;
    }

    /// Walks a range.
    pub fn scan(&self, options: ScanOptions) -> Scan {
        Scan {
            inner: self.inner.scan(options),
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// Watches.
    pub fn watch(&self, options: WatchOptions) -> Watch {
        Watch {
            inner: self.inner.watch(options),
            runtime: Arc::clone(&self.runtime),
        }
    }
}

/// A watch: an iterator that waits for each change, and never ends but by an error.
#[derive(Debug)]
pub struct Watch {
    inner: watch::Watch,
    runtime: Arc<Runtime>,
}

impl Watch {
    /// As [`watch::Watch::next_version`].
    pub fn next_version(&self) -> Option<u64> {
        self.inner.next_version()
    }

    /// As [`watch::Watch::begin`].
    ///
    /// # Errors
    /// As there.
    pub fn begin(&mut self) -> Result<u64> {
        self.runtime.block_on(self.inner.begin())
    }
}

impl Iterator for Watch {
    type Item = Result<WatchEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.runtime.block_on(self.inner.next()))
    }
}

/// A range being walked: an iterator that waits for each page, or each entry.
#[derive(Debug)]
pub struct Scan {
    inner: scan::Scan,
    runtime: Arc<Runtime>,
}

impl Scan {
    /// As [`scan::Scan::one_instant`].
    #[must_use]
    pub fn one_instant(self) -> Self {
        Self {
            inner: self.inner.one_instant(),
            ..self
        }
    }
}

impl Iterator for Scan {
    type Item = Result<ScanEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.runtime.block_on(self.inner.next()).transpose()
    }
}
