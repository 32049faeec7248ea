//! Namespaces: list, create, drop.

use firn_api::code::Code;
use firn_api::http::NamespaceBody;

use crate::service::Service;
use crate::service::error::{Error, Result};

impl Service {
    /// All namespaces, by name, with what they hold.
    ///
    /// # Errors
    /// Only if the server is about to stop.
    pub async fn namespaces(&self) -> Result<Vec<NamespaceBody>> {
        let service = self.clone();
        self.blocking(move || Ok(service.namespaces_now())).await
    }

    pub(crate) fn namespaces_now(&self) -> Vec<NamespaceBody> {
        let mut list: Vec<_> = self
            .inner
            .db
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
        let (service, name) = (self.clone(), name.to_owned());
        self.blocking(move || match service.inner.db.create_namespace(&name) {
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
        let (service, name) = (self.clone(), name.to_owned());
        self.blocking(move || Ok(service.inner.db.drop_namespace(&name)?))
            .await
    }
}
