//! Point reads and writes, batches, range deletes over gRPC.

use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use firn_engine::Durability as Level;

use crate::grpc::proto::batch_request::op::Kind as OpKind;
use crate::grpc::proto::batch_request::{Op as ProtoOp, put};
use crate::grpc::proto::condition::Kind as ConditionKind;
use crate::grpc::proto::multi_get_response::Found;
use crate::grpc::proto::put_request::Expiry;
use crate::grpc::proto::{
    BatchRequest, BatchResponse, Condition as ProtoCondition, Consistency as ProtoConsistency,
    DeleteRangeRequest, DeleteRangeResponse, DeleteRequest, DeleteResponse, Durability, Entry,
    GetRequest, GetResponse, KeyRange, MultiGetRequest, MultiGetResponse, PutRequest, PutResponse,
};
use crate::http::Door;
use crate::service::batch::{Action, Op};
use crate::service::error::{Error, Result};
use crate::service::kv::{Condition, Write};
use crate::service::scan::Range;
use crate::service::{Consistency, DEFAULT_NAMESPACE, Service, checked_expiry};

/// The namespace of this name; none is the default one.
pub(crate) fn namespace(name: &str) -> &str {
    if name.is_empty() {
        DEFAULT_NAMESPACE
    } else {
        name
    }
}

/// Which consistency a number means.
pub(crate) fn consistency(number: i32) -> Result<Consistency> {
    Ok(match ProtoConsistency::try_from(number) {
        Ok(ProtoConsistency::Unspecified) => Consistency::default(),
        Ok(ProtoConsistency::Linearizable) => Consistency::Linearizable,
        Ok(ProtoConsistency::Lease) => Consistency::Lease,
        Ok(ProtoConsistency::Stale) => Consistency::Stale,
        Err(_) => {
            return Err(Error::invalid(format!(
                "consistency: {number} is not one of linearizable (1), lease (2), stale (3)"
            )));
        }
    })
}

fn durability(service: &Service, number: i32) -> Result<Level> {
    Ok(match Durability::try_from(number) {
        Ok(Durability::Unspecified) => service.default_durability(),
        Ok(Durability::Sync) => Level::Sync,
        Ok(Durability::Buffered) => Level::Buffered,
        Err(_) => {
            return Err(Error::invalid(format!(
                "durability: {number} is neither sync (1) nor buffered (2)"
            )));
        }
    })
}

fn promised(level: Level) -> i32 {
    let named = match level {
        Level::Sync => Durability::Sync,
        Level::Buffered => Durability::Buffered,
    };
    named.into()
}

fn condition(asked: Option<ProtoCondition>) -> Result<Option<Condition>> {
    let Some(asked) = asked else {
        return Ok(None);
    };
    Ok(Some(match asked.kind {
        Some(ConditionKind::Absent(true)) => Condition::Absent,
        Some(ConditionKind::Exists(true)) => Condition::Exists,
        Some(ConditionKind::Version(version)) => Condition::Version(version),
        Some(ConditionKind::Absent(false) | ConditionKind::Exists(false)) => {
            let detail = "condition: absent and exists are set to true or left out";
            return Err(Error::invalid(detail));
        }
        None => {
            let detail = "condition: one of absent, exists and version is needed";
            return Err(Error::invalid(detail));
        }
    }))
}

fn expiry(service: &Service, asked: Option<Expiry>) -> Result<Option<u64>> {
    Ok(match asked {
        None => None,
        Some(Expiry::TtlMs(ms)) => Some(
            service
                .expiry_of(Duration::from_millis(ms))
                .map_err(|e| e.about("ttl_ms"))?,
        ),
        Some(Expiry::ExpiresAtMs(ms)) => {
            Some(checked_expiry(ms).map_err(|e| e.about("expires_at_ms"))?)
        }
    })
}

/// The keys of a message; what is absent does not bound.
pub(crate) fn range(asked: Option<KeyRange>) -> Range {
    let KeyRange { start, end, prefix } = asked.unwrap_or_default();
    let owned = |bytes: Option<Bytes>| bytes.map(Vec::from);
    Range::new(owned(start), owned(end), owned(prefix))
}

/// A range that must have keys.
pub(crate) fn some_range(asked: Option<KeyRange>) -> Result<Range> {
    let range = range(asked);
    if range.is_empty() {
        let detail = "range: the start is not before the end";
        return Err(Error::invalid(detail));
    }
    Ok(range)
}

/// Whether a range leaves something out. Empty bounds do not: what a caller leaves of a variable must
/// not delete everything.
fn is_bounded(KeyRange { start, end, prefix }: &KeyRange) -> bool {
    let bounds = [start, end, prefix];
    bounds
        .iter()
        .any(|bound| bound.as_ref().is_some_and(|bytes| !bytes.is_empty()))
}

pub(crate) async fn get(door: &Door, asked: GetRequest) -> Result<GetResponse> {
    let level = consistency(asked.consistency)?;
    let found = door
        .service
        .get(namespace(&asked.namespace), asked.key, level);
    let Some(entry) = found.await? else {
        return Err(Error::new(Code::NotFound, "the key does not exist"));
    };
    Ok(GetResponse {
        version: entry.version.0,
        expires_at_ms: entry.expires_at_ms,
        value: Bytes::from_owner(entry.value),
    })
}

pub(crate) async fn put(door: &Door, asked: PutRequest) -> Result<PutResponse> {
    let service = &door.service;
    let write = Write {
        key: asked.key,
        value: Some(asked.value),
        expires_at_ms: expiry(service, asked.expiry)?,
        condition: condition(asked.condition)?,
        durability: durability(service, asked.durability)?,
    };
    let done = service.write(namespace(&asked.namespace), write).await?;
    Ok(PutResponse {
        version: done.version,
        durability: promised(done.durability),
    })
}

pub(crate) async fn delete(door: &Door, asked: DeleteRequest) -> Result<DeleteResponse> {
    let condition = condition(asked.condition)?;
    if condition == Some(Condition::Absent) {
        let detail = "condition: absent makes no sense for a delete";
        return Err(Error::invalid(detail));
    }
    let write = Write {
        key: asked.key,
        value: None,
        expires_at_ms: None,
        condition,
        durability: durability(&door.service, asked.durability)?,
    };
    let done = door
        .service
        .write(namespace(&asked.namespace), write)
        .await?;
    Ok(DeleteResponse {
        version: done.version,
        durability: promised(done.durability),
    })
}

pub(crate) async fn multi_get(door: &Door, asked: MultiGetRequest) -> Result<MultiGetResponse> {
    let level = consistency(asked.consistency)?;
    let keys = asked.keys.into_iter().map(Vec::from).collect();
    let entries = door
        .service
        .multi_get(namespace(&asked.namespace), keys, level)
        .await?;
    let found = entries.into_iter().map(|(key, entry)| Found {
        entry: entry.map(|entry| Entry {
            key: key.into(),
            version: entry.version.0,
            expires_at_ms: entry.expires_at_ms,
            value: Bytes::from_owner(entry.value),
        }),
    });
    Ok(MultiGetResponse {
        found: found.collect(),
    })
}

pub(crate) async fn batch(door: &Door, asked: BatchRequest) -> Result<BatchResponse> {
    let service = &door.service;
    let durability = durability(service, asked.durability)?;
    let most = service.limits().batch_ops;
    let name = "limits.batch_ops";
    crate::service::limits::within(Code::LimitExceeded, name, most, asked.ops.len() as u64)?;
    let mut ops = Vec::with_capacity(asked.ops.len());
    for (index, op) in asked.ops.into_iter().enumerate() {
        ops.push(operation(service, op).map_err(|e| e.at(index))?);
    }
    let done = service
        .batch(namespace(&asked.namespace), ops, durability)
        .await?;
    let versions = done.versions.into_iter().map(Option::unwrap_or_default);
    Ok(BatchResponse {
        versions: versions.collect(),
        durability: promised(done.durability),
    })
}

fn operation(service: &Service, op: ProtoOp) -> Result<Op> {
    let condition = condition(op.condition)?;
    let (key, action) = match op.kind {
        Some(OpKind::Put(it)) => {
            let asked = it.expiry.map(|asked| match asked {
                put::Expiry::TtlMs(ms) => Expiry::TtlMs(ms),
                put::Expiry::ExpiresAtMs(ms) => Expiry::ExpiresAtMs(ms),
            });
            let expires_at_ms = expiry(service, asked)?;
            let value = it.value;
            let action = Action::Put {
                value,
                expires_at_ms,
            };
            (it.key, action)
        }
        Some(OpKind::Delete(it)) => (it.key, Action::Delete),
        Some(OpKind::Check(it)) => {
            if condition.is_none() {
                return Err(Error::invalid("condition: a check needs one"));
            }
            (it.key, Action::Check)
        }
        Some(OpKind::DeleteRange(range)) => {
            if condition.is_some() {
                return Err(Error::invalid("condition: delete_range takes none"));
            }
            if !is_bounded(&range) {
                let detail = "delete_range: start, end or prefix is needed";
                return Err(Error::invalid(detail));
            }
            (Bytes::new(), Action::DeleteRange(some_range(Some(range))?))
        }
        None => {
            let detail = "kind: one of put, delete, delete_range and check is needed";
            return Err(Error::invalid(detail));
        }
    };
    Ok(Op {
        namespace: (!op.namespace.is_empty()).then_some(op.namespace),
        key,
        action,
        condition,
    })
}

pub(crate) async fn delete_range(
    door: &Door,
    asked: DeleteRangeRequest,
) -> Result<DeleteRangeResponse> {
    let durability = durability(&door.service, asked.durability)?;
    if asked.range.as_ref().is_some_and(is_bounded) == asked.all {
        let detail =
            "range: give start, end or prefix, or all to delete every key of the namespace";
        return Err(Error::invalid(detail));
    }
    let range = some_range(asked.range)?;
    let done = door
        .service
        .delete_range(namespace(&asked.namespace), range, durability)
        .await?;
    Ok(DeleteRangeResponse {
        version: done.versions.first().copied().flatten().unwrap_or_default(),
        durability: promised(done.durability),
    })
}
