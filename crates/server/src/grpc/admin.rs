//! Namespaces and administration over gRPC.

use std::sync::Arc;

use firn_api::http::NamespaceBody;

use crate::grpc::kv;
use crate::grpc::proto::stats_response::Level;
use crate::grpc::proto::verify_response::Problem;
use crate::grpc::proto::{
    CheckpointRequest, CheckpointResponse, CompactRequest, CompactResponse, CreateNamespaceRequest,
    CreateNamespaceResponse, DropNamespaceRequest, DropNamespaceResponse, FlushRequest,
    FlushResponse, GetNamespaceRequest, ListNamespacesRequest, ListNamespacesResponse, Namespace,
    StatsRequest, StatsResponse, VerifyRequest, VerifyResponse,
};
use crate::http::Door;
use crate::service::error::Result;

fn namespace(ns: NamespaceBody) -> Namespace {
    Namespace {
        name: ns.name,
        approximate_keys: ns.approximate_keys,
        disk_bytes: ns.disk_bytes,
        memtable_bytes: ns.memtable_bytes,
    }
}

pub(crate) async fn list(
    door: Arc<Door>,
    _: ListNamespacesRequest,
) -> Result<ListNamespacesResponse> {
    let namespaces = door.service.namespaces().await?;
    Ok(ListNamespacesResponse {
        namespaces: namespaces.into_iter().map(namespace).collect(),
    })
}

pub(crate) async fn info(door: Arc<Door>, asked: GetNamespaceRequest) -> Result<Namespace> {
    Ok(namespace(door.service.namespace_info(&asked.name).await?))
}

pub(crate) async fn create(
    door: Arc<Door>,
    asked: CreateNamespaceRequest,
) -> Result<CreateNamespaceResponse> {
    let created = door.service.create_namespace(&asked.name).await?;
    Ok(CreateNamespaceResponse { created })
}

pub(crate) async fn remove(
    door: Arc<Door>,
    asked: DropNamespaceRequest,
) -> Result<DropNamespaceResponse> {
    door.service.drop_namespace(&asked.name).await?;
    Ok(DropNamespaceResponse {})
}

pub(crate) async fn flush(door: Arc<Door>, _: FlushRequest) -> Result<FlushResponse> {
    door.service.flush().await?;
    Ok(FlushResponse {})
}

pub(crate) async fn compact(door: Arc<Door>, asked: CompactRequest) -> Result<CompactResponse> {
    let range = kv::some_range(asked.range)?;
    door.service
        .compact(kv::namespace(&asked.namespace), range)
        .await?;
    Ok(CompactResponse {})
}

pub(crate) async fn checkpoint(
    door: Arc<Door>,
    asked: CheckpointRequest,
) -> Result<CheckpointResponse> {
    let name = (!asked.name.is_empty()).then_some(asked.name);
    let path = door.service.checkpoint(name).await?;
    Ok(CheckpointResponse { path })
}

pub(crate) async fn verify(door: Arc<Door>, _: VerifyRequest) -> Result<VerifyResponse> {
    let report = door.service.verify().await?;
    let problems = report.problems.into_iter().map(|problem| Problem {
        path: problem.path,
        offset: problem.offset,
        detail: problem.detail,
    });
    Ok(VerifyResponse {
        clean: report.clean,
        files: report.files,
        bytes: report.bytes,
        entries: report.entries,
        log_operations: report.log_operations,
        problems: problems.collect(),
    })
}

pub(crate) async fn stats(door: Arc<Door>, _: StatsRequest) -> Result<StatsResponse> {
    let stats = door.stats().await?;
    let levels = stats.levels.into_iter().map(|level| Level {
        level: level.level,
        files: level.files,
        bytes: level.bytes,
    });
    Ok(StatsResponse {
        server_version: stats.server_version,
        uptime_ms: stats.uptime_ms,
        connections: stats.connections,
        last_version: stats.last_version,
        disk_bytes: stats.disk_bytes,
        compaction_debt_bytes: stats.compaction_debt_bytes,
        snapshots: stats.snapshots,
        oldest_snapshot_version: stats.oldest_snapshot_version,
        disk_full: stats.disk_full,
        poisoned: stats.poisoned,
        background_error: stats.background_error,
        memory: stats.memory,
        log: stats.log,
        blobs: stats.blobs,
        levels: levels.collect(),
        namespaces: stats.namespaces.into_iter().map(namespace).collect(),
        counters: stats.counters,
    })
}
