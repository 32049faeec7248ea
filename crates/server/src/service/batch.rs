//! Many writes, all or nothing, with conditions.

use bytes::Bytes;
use firn_api::code::Code;
use firn_engine::Durability;
use firn_engine::{Namespace, WriteBatch};

use crate::service::error::{Error, Result};
use crate::service::kv::Condition;
use crate::service::scan::Range;
use crate::service::{Cost, OPERATION_BYTES, Service, limits};

/// What an operation does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Writes a key.
    Put {
        /// The value.
        value: Bytes,
        /// When it expires, in Unix milliseconds.
        expires_at_ms: Option<u64>,
    },
    /// Deletes a key.
    Delete,
    /// Deletes every key of a range; `key` and `condition` are unused.
    DeleteRange(Range),
    /// Nothing but its condition.
    Check,
}

/// An operation of a batch.
#[derive(Clone, Debug)]
pub struct Op {
    /// The namespace; `None`: that of the batch.
    pub namespace: Option<String>,
    /// The key.
    pub key: Bytes,
    /// What to do.
    pub action: Action,
    /// What must hold before the batch.
    pub condition: Option<Condition>,
}

/// An acknowledged batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchWritten {
    /// The version that each operation wrote.
    pub versions: Vec<Option<u64>>,
    /// What was promised.
    pub durability: Durability,
}

impl Service {
    /// Writes all of `ops`, or nothing.
    ///
    /// # Errors
    /// As [`Service::write`]; [`Error::index`] is the operation that failed.
    pub async fn batch(
        &self,
        namespace: &str,
        ops: Vec<Op>,
        durability: Durability,
    ) -> Result<BatchWritten> {
        let most = self.limits().batch_ops;
        limits::within(
            Code::LimitExceeded,
            "limits.batch_ops",
            most,
            ops.len() as u64,
        )?;
        if ops.is_empty() {
            return Err(Error::invalid("the batch has no operations"));
        }
        let durability = self.promised(durability);
        let mut resolved: Vec<(Op, Namespace)> = Vec::with_capacity(ops.len());
        let mut bytes = 0;
        for (index, op) in ops.into_iter().enumerate() {
            let value = match &op.action {
                Action::Put { value, .. } => value.len(),
                _ => 0,
            };
            bytes += op.key.len() + value;
            limits::key(self.limits(), &op.key)
                .and_then(|()| limits::value(self.limits(), value as u64))
                .map_err(|e| e.at(index))?;
            let found = match resolved.last() {
                // Most batches have one: it is not looked up a hundred thousand times.
                Some((before, found)) if before.namespace == op.namespace => found.clone(),
                _ => {
                    let name = op.namespace.as_deref().unwrap_or(namespace);
                    let found = self.namespace_to_write(name).await;
                    found.map_err(|e| e.at(index))?
                }
            };
            resolved.push((op, found));
        }
        // Where the engine numbers conditions and operations, we number what the caller sent.
        let conditions: Vec<usize> = (0..resolved.len())
            .filter(|&i| resolved[i].0.condition.is_some())
            .collect();
        let mut offsets = Vec::with_capacity(resolved.len());
        let mut next = 0_u64;
        for (op, _) in &resolved {
            let width = op.action.width();
            offsets.push((width > 0).then_some(next));
            next += width;
        }
        if next == 0 {
            return Err(Error::invalid("the batch only checks: it must also write"));
        }
        let cost = Cost {
            bytes,
            reads: !conditions.is_empty(),
        };
        let outcome = self
            .commit(cost, durability, move || {
                let all = bytes + resolved.len() * OPERATION_BYTES;
                let mut batch = WriteBatch::with_capacity(all);
                for (index, (op, namespace)) in resolved.iter().enumerate() {
                    op.add_to(&mut batch, namespace).map_err(|e| e.at(index))?;
                }
                Ok(batch)
            })
            .await;
        let commit = outcome.map_err(|error| match (error.code, error.index) {
            (Code::ConditionFailed, Some(i)) => {
                let index = usize::try_from(i)
                    .ok()
                    .and_then(|i| conditions.get(i).copied());
                let detail = match error.version {
                    Some(version) => format!("the key has version {version}"),
                    None => "the key does not exist".into(),
                };
                Error { detail, ..error }.at(index.unwrap_or_default())
            }
            _ => error,
        })?;
        let versions = offsets
            .into_iter()
            .map(|o| o.map(|o| commit.first.0 + o))
            .collect();
        Ok(BatchWritten {
            versions,
            durability,
        })
    }

    /// Deletes every key of a range, at once.
    ///
    /// # Errors
    /// As [`Service::batch`].
    pub async fn delete_range(
        &self,
        namespace: &str,
        range: Range,
        durability: Durability,
    ) -> Result<BatchWritten> {
        let (key, action) = (Bytes::new(), Action::DeleteRange(range));
        let op = Op {
            namespace: None,
            key,
            action,
            condition: None,
        };
        self.batch(namespace, vec![op], durability)
            .await
            .map_err(|e| Error { index: None, ..e })
    }
}

impl Action {
    /// How many of the engine's operations it takes.
    fn width(&self) -> u64 {
        match self {
            Self::Put { .. } | Self::Delete => 1,
            Self::DeleteRange(range) if range.end.is_none() => 2,
            Self::DeleteRange(_) => 1,
            Self::Check => 0,
        }
    }
}

impl Op {
    fn add_to(&self, batch: &mut WriteBatch, namespace: &Namespace) -> Result<()> {
        if let Some(condition) = self.condition {
            batch.require(namespace, &self.key, condition.to_engine())?;
        }
        match &self.action {
            Action::Put {
                value,
                expires_at_ms: Some(at),
            } => {
                batch.put_expiring(namespace, &self.key, value, *at)?;
            }
            Action::Put {
                value,
                expires_at_ms: None,
            } => {
                batch.put(namespace, &self.key, value)?;
            }
            Action::Delete => {
                batch.delete(namespace, &self.key)?;
            }
            Action::DeleteRange(range) => {
                let start = range.start.as_deref().unwrap_or_default();
                match &range.end {
                    Some(end) => {
                        batch.delete_range(namespace, start, end)?;
                    }
                    None => {
                        // The engine's ranges have an end: the greatest key there can be, which is
                        // then deleted on its own.
                        let last = vec![0xff; firn_engine::options::MAX_KEY_BYTES];
                        batch.delete_range(namespace, start, &last)?;
                        batch.delete(namespace, &last)?;
                    }
                }
            }
            Action::Check => {}
        }
        Ok(())
    }
}
