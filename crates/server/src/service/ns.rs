//! Namespaces: list, create, drop.

use firn_api::code::Code;
use firn_api::http::NamespaceBody;

use firn_engine::Outcome;
use firn_engine::options::MAX_NAMESPACE_BYTES;
use firn_replica::{Replicator, Write};

use crate::cluster::Cluster;
use crate::service::error::{Error, Result};
use crate::service::{Consistency, DEFAULT_NAMESPACE, Service, limits};

fn unexpected(outcome: &Outcome) -> Error {
    Error::new(Code::Internal, format!("it came to {outcome:?}"))
}

impl Service {
    /// All namespaces, by name, with what they hold.
    ///
    /// # Errors
    /// Only if the server is about to stop.
    pub async fn namespaces(&self) -> Result<Vec<NamespaceBody>> {
        self.may_scan(Consistency::Linearizable).await?;
        let service = self.clone();
        self.blocking(move || Ok(service.namespaces_now())).await
    }

    pub(crate) fn namespaces_now(&self) -> Vec<NamespaceBody> {
        let mut list: Vec<_> = self
            .db()
            .stats()
            .namespaces
            .into_iter()
            .map(|ns| NamespaceBody {
                name: ns.name,
                approximate_keys: ns.approximate_keys,
                disk_bytes: ns.disk_bytes,
                memtable_bytes: ns.memtable_bytes,
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// What one namespace holds.
    ///
    /// # Errors
    /// Namespace not found.
    pub async fn namespace_info(&self, name: &str) -> Result<NamespaceBody> {
        let found = self
            .namespaces()
            .await?
            .into_iter()
            .find(|ns| ns.name == name);
        found.ok_or_else(|| {
            Error::new(
                Code::NamespaceNotFound,
                format!("namespace {name:?} does not exist"),
            )
        })
    }

    /// Creates a namespace; `false` if it was there already. Durable on return.
    ///
    /// # Errors
    /// A bad name; what keeps the engine from writing.
    pub async fn create_namespace(&self, name: &str) -> Result<bool> {
        if name.is_empty() {
            return Err(Error::invalid("the name of a namespace cannot be empty"));
        }
        // They would break every listing and log line that shows the name.
        if let Some((at, c)) = name.char_indices().find(|(_, c)| c.is_control()) {
            let c = c.escape_unicode();
            return Err(Error::invalid(format!(
                "the name of a namespace cannot hold control characters, as {c} at offset {at}"
            )));
        }
        if let Some(cluster) = self.cluster() {
            return self.create_namespace_replicated(cluster, name).await;
        }
        let (service, name) = (self.clone(), name.to_owned());
        self.blocking(move || match service.db().create_namespace(&name) {
            Ok(_) => Ok(true),
            Err(firn_engine::Error::NamespaceExists(_)) => Ok(false),
            Err(e) => Err(e.into()),
        })
        .await
    }

    /// Drops a namespace with everything in it. Durable on return.
    ///
    /// # Errors
    /// Namespace not found; the default one cannot be dropped.
    pub async fn drop_namespace(&self, name: &str) -> Result<()> {
        if let Some(cluster) = self.cluster() {
            return self.drop_namespace_replicated(cluster, name).await;
        }
        let (service, name) = (self.clone(), name.to_owned());
        self.blocking(move || Ok(service.db().drop_namespace(&name)?))
            .await
    }

    /// Returns when it can be used through this node.
    async fn create_namespace_replicated(&self, cluster: &Cluster, name: &str) -> Result<bool> {
        let most = MAX_NAMESPACE_BYTES as u64;
        let code = Code::LimitExceeded;
        limits::within(code, "namespace_bytes", most, name.len() as u64)?;
        let node = cluster.node();
        let written = node.propose(Write::create_namespace(name)).await?;
        node.wait_applied(written.id.index).await?;
        match written.outcome {
            Outcome::Created(_) => Ok(true),
            Outcome::NamespaceExists(_) => Ok(false),
            other => Err(unexpected(&other)),
        }
    }

    async fn drop_namespace_replicated(&self, cluster: &Cluster, name: &str) -> Result<()> {
        if name == DEFAULT_NAMESPACE {
            return Err(Error::invalid("the default namespace cannot be dropped"));
        }
        let missing = || {
            let detail = format!("namespace {name:?} does not exist");
            Error::new(Code::NamespaceNotFound, detail)
        };
        if name.is_empty() || name.len() > MAX_NAMESPACE_BYTES {
            return Err(missing());
        }
        let node = cluster.node();
        let written = node.propose(Write::drop_namespace(name)).await?;
        node.wait_applied(written.id.index).await?;
        match written.outcome {
            Outcome::Dropped => Ok(()),
            Outcome::NamespaceNotFound => Err(missing()),
            other => Err(unexpected(&other)),
        }
    }
}
