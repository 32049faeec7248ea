//! What an operator asks for: flush, compact, checkpoint, verify, statistics.

use std::collections::BTreeMap;

use firn_api::code::Code;
use firn_api::http::{LevelBody, StatsReply, VerifyProblem, VerifyReply};

use crate::service::Service;
use crate::service::error::{Error, Result};
use crate::service::scan::Range;

impl Service {
    /// Writes all memtables to SSTables.
    ///
    /// # Errors
    /// I/O.
    pub async fn flush(&self) -> Result<()> {
        let service = self.clone();
        self.blocking(move || Ok(service.db().flush()?)).await
    }

    /// Compacts a range of a namespace to the bottom.
    ///
    /// # Errors
    /// Namespace not found, I/O.
    pub async fn compact(&self, namespace: &str, range: Range) -> Result<()> {
        let (service, namespace) = (self.clone(), self.namespace(namespace)?);
        self.blocking(move || {
            let (start, end) = (range.start.as_deref(), range.end.as_deref());
            Ok(service.db().compact_range(&namespace, start, end)?)
        })
        .await
    }

    /// Makes a checkpoint called `name` under the checkpoint directory and returns its path.
    ///
    /// # Errors
    /// A name that is not one plain component, or that is taken; I/O.
    pub async fn checkpoint(&self, name: Option<String>) -> Result<String> {
        let name = name.unwrap_or_else(|| format!("checkpoint-{}", self.clock().unix_ms()));
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.bytes().all(plain)
        {
            let rule = "up to 100 letters, digits, '-', '_' or '.', not starting with '.'";
            return Err(Error::invalid(format!(
                "{name:?} is no name of a checkpoint: {rule}"
            )));
        }
        let service = self.clone();
        self.blocking(move || {
            let parts = &service.inner.parts;
            let path = parts.checkpoint_dir.join(&name);
            parts
                .fs
                .create_dir_all(&parts.checkpoint_dir)
                .map_err(firn_engine::Error::from)?;
            if parts.fs.exists(&path).map_err(firn_engine::Error::from)? {
                let detail = format!("{} exists already", path.display());
                return Err(Error::new(Code::CheckpointExists, detail));
            }
            service.db().checkpoint(&path)?;
            Ok(path.display().to_string())
        })
        .await
    }

    /// Reads everything and checks every checksum and invariant, while the server goes on.
    ///
    /// # Errors
    /// I/O. Damage is not an error here but the answer.
    pub async fn verify(&self) -> Result<VerifyReply> {
        let service = self.clone();
        self.blocking(move || {
            let report = service.db().verify()?;
            let problems: Vec<_> = report
                .problems
                .into_iter()
                .map(|p| VerifyProblem {
                    path: p.path.display().to_string(),
                    offset: p.offset,
                    detail: p.detail,
                })
                .collect();
            let clean = problems.is_empty();
            let (files, bytes, entries) = (report.files, report.bytes, report.entries);
            Ok(VerifyReply {
                clean,
                files,
                bytes,
                entries,
                log_operations: report.log_operations,
                problems,
            })
        })
        .await
    }

    /// The engine's gauges and counters. The door adds what only it knows.
    ///
    /// # Errors
    /// Only if the server is about to stop.
    pub async fn stats(&self) -> Result<StatsReply> {
        let service = self.clone();
        self.blocking(move || Ok(service.stats_now())).await
    }

    fn stats_now(&self) -> StatsReply {
        let stats = self.db().stats();
        let named = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect()
        };
        StatsReply {
            server_version: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: 0,
            connections: 0,
            last_version: stats.last_seqno.0,
            disk_bytes: stats.disk_bytes,
            compaction_debt_bytes: stats.compaction_debt_bytes,
            snapshots: stats.snapshots,
            oldest_snapshot_version: stats.oldest_snapshot.0,
            disk_full: stats.disk_full,
            poisoned: stats.poisoned,
            background_error: stats.background_error,
            memory: named(&[
                ("budget", stats.memory.budget),
                ("memtables", stats.memory.memtables),
                ("block_cache", stats.memory.block_cache),
                ("tables", stats.memory.tables),
            ]),
            log: named(&[
                ("segments", stats.log.segments),
                ("disk_bytes", stats.log.disk_bytes),
                ("unsynced_bytes", stats.log.unsynced_bytes),
            ]),
            blobs: named(&[
                ("files", stats.blob_files),
                ("bytes", stats.blob_bytes),
                ("garbage_bytes", stats.blob_garbage_bytes),
            ]),
            levels: stats
                .levels
                .iter()
                .map(|l| LevelBody {
                    level: l.level as u64,
                    files: l.files,
                    bytes: l.bytes,
                })
                .collect(),
            namespaces: self.namespaces_now(),
            counters: named(&stats.counters.named()),
        }
    }
}
