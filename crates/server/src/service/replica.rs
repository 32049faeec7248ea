//! The service on a node of a cluster: writes are proposed, reads wait for their place in the order.
//!
//! * *Writes* go to the leader, from whichever node took them, and are answered when a majority has
//!   them on disk and they are applied. Their conditions are decided where they are applied, in the
//!   order of the log.
//! * *Reads* ask up to which entry the state must reach ([`crate::service::Consistency`]), wait until
//!   it does, and read what this node has. One question serves all who wait for one.
//! * *Scans* ask once and then walk over one instant of this node; `lease` is answered as
//!   `linearizable`. A cursor is a place among the keys, nothing of this node: the next page may be
//!   asked of any node, and sees an instant at or after that of the page before.
//!
//! The database may be replaced by a snapshot at any time. Nothing of it is kept from one request to
//! the next, and handles of namespaces are looked up again (`Service::pinned`).

use std::ops::Deref;
use std::sync::Arc;

use firn_api::code::Code;
use firn_engine::{Commit, Db, Namespace, Outcome, WriteBatch};
use firn_replica::{Error as ReplicaError, ReadLevel, Replicator, Write, Written};

use crate::cluster::Cluster;
use crate::service::error::{Error, Result};
use crate::service::{Consistency, Service, Store};

/// A database to read now.
#[derive(Debug)]
pub enum DbRef<'a> {
    /// This server's own.
    Own(&'a Db),
    /// A node's, as it is now.
    Node(Db),
}

impl Deref for DbRef<'_> {
    type Target = Db;

    #[inline]
    fn deref(&self) -> &Db {
        match self {
            Self::Own(db) => db,
            Self::Node(db) => db,
        }
    }
}

/// Reads under a lease that did not last are made again so often; then a majority is asked.
const LEASE_TRIES: usize = 2;

/// What a failed read of a node's database means: while a snapshot takes its place it is closed for a
/// moment.
pub(crate) fn read_error(error: firn_engine::Error) -> Error {
    match error {
        firn_engine::Error::Closed(_) => Error {
            retry_after_ms: Some(100),
            ..Error::new(Code::NoLeader, "the node's state is being replaced")
        },
        error => error.into(),
    }
}

impl From<ReplicaError> for Error {
    fn from(error: ReplicaError) -> Self {
        let detail = error.to_string();
        let later = |code, detail: String| Self {
            retry_after_ms: Some(1_000),
            ..Self::new(code, detail)
        };
        match error {
            ReplicaError::InvalidArgument(_) => Self::invalid(detail),
            ReplicaError::NotLeader { .. } | ReplicaError::NoQuorum => {
                later(Code::NoLeader, detail)
            }
            ReplicaError::Unknown(_) => Self::new(Code::OutcomeUnknown, detail),
            ReplicaError::Overloaded => Self::overloaded(detail, 100),
            ReplicaError::Engine(error) => read_error(error),
            ReplicaError::Failed(_) => later(Code::NoLeader, detail),
            ReplicaError::Closed => Self::shutting_down(),
            ReplicaError::Io(_) => Self::new(Code::IoError, detail),
            _ => Self::new(Code::Internal, detail),
        }
    }
}

/// What became of a batch, as the engine says it of its own writes.
pub(crate) fn commit_of(written: Written) -> Result<Commit> {
    match written.outcome {
        Outcome::Written { first, last } => Ok(Commit { first, last }),
        Outcome::ConditionFailed { index, actual } => Err(Error {
            version: actual.map(|version| version.0),
            index: Some(index),
            ..Error::new(Code::ConditionFailed, "a condition did not hold")
        }),
        Outcome::NamespaceNotFound => Err(Error::new(
            Code::NamespaceNotFound,
            "the namespace was dropped",
        )),
        other => Err(Error::new(
            Code::Internal,
            format!("a batch came to {other:?}"),
        )),
    }
}

impl Consistency {
    fn level(self) -> ReadLevel {
        match self {
            Self::Linearizable => ReadLevel::Linearizable,
            Self::Lease => ReadLevel::Lease,
            Self::Stale => ReadLevel::Stale,
        }
    }
}

impl Service {
    /// Proposes a batch.
    pub(super) async fn commit_replicated(
        &self,
        cluster: &Arc<Cluster>,
        mut batch: WriteBatch,
    ) -> Result<Commit> {
        let write = Write::batch(&mut batch);
        drop(batch);
        let written = cluster.node().propose(write).await?;
        let at = written.id.index;
        let commit = commit_of(written);
        if let Err(error) = &commit
            && error.code == Code::NamespaceNotFound
        {
            // So that the next attempt looks for it in a state that knows what became of it.
            cluster.node().wait_applied(at).await?;
        }
        commit
    }

    /// A namespace to write to. One that this node does not know may be new.
    pub(crate) async fn namespace_to_write(&self, name: &str) -> Result<Namespace> {
        match (self.namespace(name), &self.inner.store) {
            (Err(error), Store::Node(cluster)) if error.code == Code::NamespaceNotFound => {
                cluster.node().read_barrier(ReadLevel::Linearizable).await?;
                self.namespace(name)
            }
            (found, _) => found,
        }
    }

    /// A namespace in the database as it is now, by a handle that may be of one before it.
    pub(crate) fn pinned(&self, namespace: &Namespace) -> Result<(DbRef<'_>, Namespace)> {
        match &self.inner.store {
            Store::Own { db, .. } => Ok((DbRef::Own(db), namespace.clone())),
            Store::Node(cluster) => {
                let db = cluster.node().db();
                let namespace = db.namespace(namespace.name()).map_err(read_error)?;
                Ok((DbRef::Node(db), namespace))
            }
        }
    }

    /// Returns when this node may be read for a scan.
    pub(crate) async fn may_scan(&self, consistency: Consistency) -> Result<()> {
        if let Store::Node(cluster) = &self.inner.store
            && consistency != Consistency::Stale
        {
            cluster.node().read_barrier(ReadLevel::Linearizable).await?;
        }
        Ok(())
    }

    /// Reads with `work` what the node has when it may be read; again if the lease did not last.
    /// `inline`: `work` is a point read, which seldom waits for a disk.
    pub(super) async fn read_replicated<T, F>(
        &self,
        cluster: &Arc<Cluster>,
        consistency: Consistency,
        namespace: &str,
        inline: bool,
        work: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Self, &Db, &Namespace) -> Result<T> + Clone + Send + 'static,
    {
        let node = cluster.node();
        let mut level = consistency.level();
        for tries in 0.. {
            if tries == LEASE_TRIES {
                level = ReadLevel::Linearizable;
            }
            let point = node.read_barrier(level).await?;
            let namespace = point.db.namespace(namespace).map_err(read_error)?;
            // Asked now and not before the wait: many who waited together go on together, and when the
            // first of them find the disk slow the others must not follow them.
            let value = if inline && self.inner.read_cost.is_low() {
                work(self, &point.db, &namespace)
            } else {
                let (service, db, work) = (self.clone(), point.db.clone(), work.clone());
                self.blocking(move || work(&service, &db, &namespace)).await
            };
            let value = value.map_err(|error| match error.code {
                // The database was closed under it, and not by us.
                Code::ShuttingDown if !self.is_draining() => {
                    read_error(firn_engine::Error::Closed("replaced"))
                }
                _ => error,
            })?;
            match node.confirm_lease(&point).await {
                Ok(()) => return Ok(value),
                Err(ReplicaError::NotLeader { .. } | ReplicaError::NoQuorum)
                    if tries < LEASE_TRIES => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::new(Code::Internal, "a read without an end"))
    }
}
