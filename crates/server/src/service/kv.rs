//! One key: read, write, delete.

use bytes::Bytes;
use firn_api::code::Code;
use firn_engine::Durability;
use firn_engine::key::SeqNo;
use firn_engine::{Condition as EngineCondition, Db, Entry, Namespace, WriteBatch};

use crate::service::error::{Error, Result};
use crate::service::{Consistency, Cost, OPERATION_BYTES, Service, limits};

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent,
    /// It does.
    Exists,
    /// It has this version.
    Version(u64),
}

impl Condition {
    pub(crate) fn to_engine(self) -> EngineCondition {
        match self {
            Self::Absent => EngineCondition::Absent,
            Self::Exists => EngineCondition::Exists,
            Self::Version(version) => EngineCondition::VersionEquals(SeqNo(version)),
        }
    }
}

/// A write of one key.
#[derive(Clone, Debug)]
pub struct Write {
    /// The key.
    pub key: Bytes,
    /// The value; `None` deletes.
    pub value: Option<Bytes>,
    /// When it expires, in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
    /// What must hold.
    pub condition: Option<Condition>,
    /// When it is acknowledged.
    pub durability: Durability,
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version of the key from now on, and of the deletion for a delete.
    pub version: u64,
    /// What was promised.
    pub durability: Durability,
}

impl Service {
    /// The entry of a key, if it exists.
    ///
    /// # Errors
    /// Key too large, namespace not found, corruption, I/O; on a node of a cluster: no leader.
    pub async fn get(
        &self,
        namespace: &str,
        key: Bytes,
        consistency: Consistency,
    ) -> Result<Option<Entry>> {
        limits::key(self.limits(), &key)?;
        if let Some(cluster) = self.cluster() {
            let work =
                move |service: &Self, db: &Db, ns: &Namespace| service.timed_get(db, ns, &key);
            return self
                .read_replicated(cluster, consistency, namespace, true, work)
                .await;
        }
        let namespace = self.namespace(namespace)?;
        if self.inner.read_cost.is_low() {
            return self.timed_get(&self.db(), &namespace, &key);
        }
        let service = self.clone();
        self.blocking(move || service.timed_get(&service.db(), &namespace, &key))
            .await
    }

    fn timed_get(&self, db: &Db, namespace: &Namespace, key: &[u8]) -> Result<Option<Entry>> {
        let begin = self.clock().monotonic();
        let entry = db.get_entry(namespace, key)?;
        self.inner
            .read_cost
            .note(self.clock().monotonic().saturating_sub(begin));
        Ok(entry)
    }

    /// The entries of many keys at one instant, in their order.
    ///
    /// # Errors
    /// As [`Service::get`]; more keys than allowed, or more bytes in reply than
    /// `limits.body_bytes`.
    pub async fn multi_get(
        &self,
        namespace: &str,
        keys: Vec<Vec<u8>>,
        consistency: Consistency,
    ) -> Result<Vec<(Vec<u8>, Option<Entry>)>> {
        let code = Code::LimitExceeded;
        limits::within(
            code,
            "limits.mget_keys",
            self.limits().mget_keys,
            keys.len() as u64,
        )?;
        for (index, key) in keys.iter().enumerate() {
            limits::key(self.limits(), key).map_err(|e| e.at(index))?;
        }
        if let Some(cluster) = self.cluster() {
            let work = move |service: &Self, db: &Db, ns: &Namespace| {
                service.multi_get_now(db, ns, keys.clone())
            };
            return self
                .read_replicated(cluster, consistency, namespace, false, work)
                .await;
        }
        let namespace = self.namespace(namespace)?;
        let service = self.clone();
        self.blocking(move || service.multi_get_now(&service.db(), &namespace, keys))
            .await
    }

    /// One by one, so that it ends where the reply would outgrow what it may take.
    fn multi_get_now(
        &self,
        db: &Db,
        namespace: &Namespace,
        keys: Vec<Vec<u8>>,
    ) -> Result<Vec<(Vec<u8>, Option<Entry>)>> {
        let snapshot = db.snapshot();
        let (most, mut bytes) = (self.limits().body_bytes, 0);
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let entry = snapshot.get_entry(namespace, &key)?;
            bytes += entry.as_ref().map_or(0, |e| key.len() + e.value.len()) as u64;
            let within = limits::within(Code::LimitExceeded, "limits.body_bytes", most, bytes);
            within.map_err(|e| Error {
                detail: format!(
                    "{} bytes of reply so far: ask for fewer keys at a time",
                    e.detail
                ),
                ..e
            })?;
            found.push((key, entry));
        }
        Ok(found)
    }

    /// Writes or deletes a key. Deleting a key that does not exist succeeds.
    ///
    /// # Errors
    /// Limits, a failed condition, namespace not found, and everything that keeps the engine from
    /// writing: overload, full disk, poisoned log.
    pub async fn write(&self, namespace: &str, write: Write) -> Result<Written> {
        limits::key(self.limits(), &write.key)?;
        limits::value(
            self.limits(),
            write.value.as_ref().map_or(0, Bytes::len) as u64,
        )?;
        let namespace = self.namespace_to_write(namespace).await?;
        let bytes = write.key.len() + write.value.as_ref().map_or(0, Bytes::len);
        let cost = Cost {
            bytes,
            reads: write.condition.is_some(),
        };
        let durability = self.promised(write.durability);
        let commit = self
            .commit(cost, durability, move || {
                let mut batch = WriteBatch::with_capacity(bytes + OPERATION_BYTES);
                if let Some(condition) = write.condition {
                    batch.require(&namespace, &write.key, condition.to_engine())?;
                }
                match (&write.value, write.expires_at_ms) {
                    (Some(value), Some(at)) => {
                        batch.put_expiring(&namespace, &write.key, value, at)?
                    }
                    (Some(value), None) => batch.put(&namespace, &write.key, value)?,
                    (None, _) => batch.delete(&namespace, &write.key)?,
                };
                Ok(batch)
            })
            .await
            // The only condition of the only operation: no position to speak of.
            .map_err(|error| {
                let detail = match (error.code, error.version) {
                    (Code::ConditionFailed, Some(version)) => {
                        format!("the key has version {version}")
                    }
                    (Code::ConditionFailed, None) => "the key does not exist".into(),
                    _ => error.detail,
                };
                Error {
                    index: None,
                    detail,
                    ..error
                }
            })?;
        Ok(Written {
            version: commit.first.0,
            durability,
        })
    }
}
