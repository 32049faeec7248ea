//! What is counted, and the page `/metrics`.
//!
//! Requests are counted where they end, whatever the door; the engine's own numbers are asked for
//! when the page is. Names have one prefix and base units; labels have few values: never a key,
//! never a namespace.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use firn_engine::Stats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::cluster::Cluster;
use crate::service::Service;

/// What a request is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    proto: &'static str,
    op: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabels {
    proto: &'static str,
    op: &'static str,
}

/// The counters of the server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<OpLabels, Histogram, fn() -> Histogram>,
    /// What of these was used, to be found without hashing.
    known: RwLock<Vec<(RequestLabels, Counter, Histogram)>>,
    /// Requests that are being served.
    pub in_flight: Gauge,
    /// Open connections.
    pub connections: Gauge,
    /// Connections that were refused because there were too many.
    pub refused_connections: Counter,
}

const BUCKETS: [f64; 17] = [
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Metrics {
    /// Counters at zero, and the engine of `service` behind the page.
    pub fn new(service: Service) -> Arc<Self> {
        let mut registry = Registry::with_prefix("firn");
        let requests = Family::default();
        let durations: Family<_, _, fn() -> Histogram> = Family::new_with_constructor(histogram);
        let (in_flight, connections) = (Gauge::default(), Gauge::default());
        let refused_connections = Counter::default();
        registry.register("requests", "Requests by outcome", requests.clone());
        let help = "Time that the server worked on a request, without waiting for its client";
        registry.register_with_unit("request_duration", help, Unit::Seconds, durations.clone());
        registry.register(
            "requests_in_flight",
            "Requests being served",
            in_flight.clone(),
        );
        registry.register("connections", "Open connections", connections.clone());
        let help = "Connections refused because there were too many";
        registry.register("connections_refused", help, refused_connections.clone());
        registry.register_collector(Box::new(EngineCollector { service }));
        Arc::new(Self {
            registry,
            requests,
            durations,
            known: RwLock::default(),
            in_flight,
            connections,
            refused_connections,
        })
    }

    /// Counts a request that ended. `code` is `ok` or the name of an error code.
    pub fn request(
        &self,
        proto: &'static str,
        op: &'static str,
        code: &'static str,
        took: Duration,
    ) {
        let labels = RequestLabels { proto, op, code };
        let seconds = took.as_secs_f64();
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, count, duration)) = known.iter().find(|row| row.0 == labels) {
                count.inc();
                duration.observe(seconds);
                return;
            }
        }
        let count = self.requests.get_or_create(&labels).clone();
        let duration = self
            .durations
            .get_or_create(&OpLabels { proto, op })
            .clone();
        count.inc();
        duration.observe(seconds);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.iter().all(|row| row.0 != labels) {
            known.push((labels, count, duration));
        }
    }

    /// The counter of requests with this outcome, for a door that counts many at a time.
    pub fn requests_of(
        &self,
        proto: &'static str,
        op: &'static str,
        code: &'static str,
    ) -> Counter {
        self.requests
            .get_or_create_owned(&RequestLabels { proto, op, code })
    }

    /// The times, in seconds, of requests that are counted by [`Metrics::requests_of`].
    pub fn durations_of(&self, proto: &'static str, op: &'static str) -> Histogram {
        self.durations.get_or_create_owned(&OpLabels { proto, op })
    }

    /// The page in the text format of Prometheus (0.0.4). There a counter is described by the whole
    /// name of its samples, where OpenMetrics leaves `_total` out; units and the end have no line.
    ///
    /// # Errors
    /// As [`Metrics::page`].
    pub fn prometheus_page(&self) -> Result<String, fmt::Error> {
        Ok(to_prometheus(&self.page()?))
    }

    /// The page, in the OpenMetrics text format.
    ///
    /// # Errors
    /// None that can happen: writing to a string does not fail.
    pub fn page(&self) -> Result<String, fmt::Error> {
        let mut page = String::with_capacity(16 << 10);
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

/// Rewrites a page of OpenMetrics in the text format of Prometheus.
pub(crate) fn to_prometheus(page: &str) -> String {
    let mut out = String::with_capacity(page.len());
    let mut help = None;
    for line in page.lines() {
        if line.starts_with("# HELP ") {
            // Waits for the type, which decides the name.
            help = Some(line);
            continue;
        }
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        let Some(described) = line.strip_prefix("# TYPE ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let (name, kind) = described.split_once(' ').unwrap_or((described, "untyped"));
        let (suffix, kind) = match kind {
            "counter" => ("_total", kind),
            "info" => ("_info", "gauge"),
            "unknown" => ("", "untyped"),
            _ => ("", kind),
        };
        let text = help
            .take()
            .and_then(|h| h.strip_prefix("# HELP ")?.split_once(' '));
        if let Some((_, text)) = text {
            out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
        }
        out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
    }
    out
}

/// Asks the engine for its numbers when somebody asks for the page.
#[derive(Debug)]
struct EngineCollector {
    service: Service,
}

type Reading = fn(&Stats) -> u64;

const COUNTERS: &[(&str, &str, Reading)] = &[
    ("writes", "Batches written", |s| s.counters.writes),
    ("write_ops", "Operations written", |s| s.counters.write_ops),
    ("write_bytes", "Bytes of keys and values written", |s| {
        s.counters.write_bytes
    }),
    ("wal_bytes", "Bytes appended to the log", |s| {
        s.counters.log_bytes
    }),
    ("reads", "Point reads", |s| s.counters.reads),
    ("read_hits", "Point reads that found the key", |s| {
        s.counters.read_hits
    }),
    ("scans", "Scans opened", |s| s.counters.scans),
    ("scan_entries", "Entries that scans returned", |s| {
        s.counters.scan_entries
    }),
    ("block_reads", "Blocks read from disk", |s| {
        s.counters.block_reads
    }),
    ("block_read_bytes", "Bytes of blocks read from disk", |s| {
        s.counters.block_read_bytes
    }),
    ("cache_hits", "Blocks found in the cache", |s| {
        s.counters.cache_hits
    }),
    ("cache_misses", "Blocks not found in the cache", |s| {
        s.counters.cache_misses
    }),
    ("filter_checks", "Filters asked", |s| {
        s.counters.filter_checks
    }),
    ("filter_negatives", "Filters that saved a read", |s| {
        s.counters.filter_negatives
    }),
    ("filter_false_positives", "Filters that did not", |s| {
        s.counters.filter_false_positives
    }),
    ("flushes", "Memtables flushed", |s| s.counters.flushes),
    ("flush_bytes", "Bytes that flushes wrote", |s| {
        s.counters.flush_bytes
    }),
    ("compactions", "Compactions run", |s| s.counters.compactions),
    (
        "compaction_read_bytes",
        "Bytes that compactions read",
        |s| s.counters.compaction_read_bytes,
    ),
    (
        "compaction_write_bytes",
        "Bytes that compactions wrote",
        |s| s.counters.compaction_write_bytes,
    ),
    (
        "compaction_dropped_entries",
        "Entries that compactions dropped",
        |s| s.counters.compaction_dropped_entries,
    ),
    (
        "background_failures",
        "Flushes and compactions that failed and were repeated",
        |s| s.counters.background_failures,
    ),
    (
        "trivial_moves",
        "SSTables moved down without rewriting",
        |s| s.counters.trivial_moves,
    ),
    ("blob_write_bytes", "Bytes written to blob files", |s| {
        s.counters.blob_bytes_written
    }),
    (
        "blob_relocated_bytes",
        "Bytes moved between blob files",
        |s| s.counters.blob_bytes_relocated,
    ),
    ("expired_dropped", "Expired entries dropped", |s| {
        s.counters.expired_dropped
    }),
    ("watch_batches", "Batches that watches were given", |s| {
        s.counters.watch_batches
    }),
    ("watch_events", "Changes that watches were given", |s| {
        s.counters.watch_events
    }),
    ("watch_records", "Log records read for watches", |s| {
        s.counters.watch_records
    }),
    (
        "watch_too_old",
        "Watches that wanted log that is gone",
        |s| s.counters.watch_too_old,
    ),
    ("corruptions", "Damage found in stored bytes", |s| {
        s.counters.corruptions
    }),
    (
        "tables_refilled",
        "Damaged tables made whole by other nodes",
        |s| s.counters.tables_refilled,
    ),
];

const GAUGES: &[(&str, &str, Reading)] = &[
    ("wal_segments", "Segments of the log", |s| s.log.segments),
    ("wal_size_bytes", "Bytes of the log", |s| s.log.disk_bytes),
    (
        "wal_unsynced_bytes",
        "Bytes of the log not yet synced",
        |s| s.log.unsynced_bytes,
    ),
    ("disk_bytes", "Bytes of all files", |s| s.disk_bytes),
    ("blob_files", "Blob files", |s| s.blob_files),
    ("blob_bytes", "Bytes of blob files", |s| s.blob_bytes),
    (
        "blob_garbage_bytes",
        "Bytes of blob files that nobody refers to",
        |s| s.blob_garbage_bytes,
    ),
    (
        "compaction_debt_bytes",
        "Bytes that compaction has yet to move",
        |s| s.compaction_debt_bytes,
    ),
    (
        "memory_budget_bytes",
        "Memory that the engine may use",
        |s| s.memory.budget,
    ),
    ("watches", "Open watches", |s| s.watch.watches),
    (
        "watch_lag_versions",
        "How many versions the slowest watch is behind",
        |s| s.watch.lag,
    ),
    (
        "changefeed_kept_bytes",
        "Bytes of log kept for watches only",
        |s| s.watch.kept_bytes,
    ),
    ("snapshots", "Snapshots held", |s| s.snapshots),
    ("last_version", "The last sequence number", |s| {
        s.last_seqno.0
    }),
    (
        "disk_full",
        "1 while writes are refused because the disk is full",
        |s| u64::from(s.disk_full),
    ),
    (
        "log_poisoned",
        "1 once writes are refused because the log failed",
        |s| u64::from(s.poisoned.is_some()),
    ),
    (
        "background_error",
        "1 while background work cannot go on",
        |s| u64::from(s.background_error.is_some()),
    ),
];

/// What a node of a cluster adds.
fn encode_raft(to: &mut DescriptorEncoder<'_>, cluster: &Cluster) -> fmt::Result {
    let (known, counts) = (cluster.describe(), cluster.node().counts());
    let mut gauge = |name: &str, help: &str, value: u64| {
        to.encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    };
    gauge("raft_node", "The number of this node", known.node)?;
    gauge("raft_term", "The term", known.term)?;
    let leader = known.leader.unwrap_or(0);
    gauge(
        "raft_leader",
        "The number of the node that leads; 0: nobody is known to",
        leader,
    )?;
    let leads = u64::from(known.leader == Some(known.node));
    gauge("raft_is_leader", "1 on the node that leads", leads)?;
    let help =
        "1 while the node can be read: it has a leader that a majority follows and is not behind";
    gauge("raft_ready", help, u64::from(known.trouble.is_none()))?;
    gauge(
        "raft_members",
        "Nodes of the cluster",
        known.members.len() as u64,
    )?;
    let index = |index: Option<u64>| index.unwrap_or(0);
    gauge(
        "raft_last_index",
        "The last entry of the log",
        index(known.last_index),
    )?;
    let help = "The last entry that a majority is known to have";
    gauge("raft_committed_index", help, index(known.committed_index))?;
    gauge(
        "raft_applied_index",
        "The last entry in the state",
        index(known.applied_index),
    )?;
    gauge(
        "raft_proposals_waiting",
        "Proposals that wait for their turn",
        counts.queued_writes,
    )?;
    gauge(
        "raft_proposals_waiting_bytes",
        "Their bytes",
        counts.queued_bytes,
    )?;
    gauge(
        "raft_log_size_bytes",
        "Bytes of the log",
        counts.log.disk_bytes,
    )?;
    let mut counter = |name: &str, help: &str, value: u64| {
        to.encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabels, _, u64>(&value, None)
    };
    let changes = cluster.leader_changes();
    counter(
        "raft_leader_changes",
        "Leaders that this node has seen begin",
        changes,
    )?;
    counter(
        "raft_proposed_entries",
        "Entries with writes that this node proposed",
        counts.entries,
    )?;
    counter("raft_proposed_writes", "Writes in them", counts.writes)?;
    counter(
        "raft_forwarded_writes",
        "Writes that were passed on to the leader",
        counts.forwarded,
    )?;
    for (name, help, value) in cluster.network().counters() {
        counter(name, help, value)?;
    }
    let seconds = counts.log.sync_micros as f64 / 1e6;
    let (help, unit) = ("Time that syncs of the log took", Unit::Seconds);
    let mut metric = to.encode_descriptor(
        "raft_log_fsync_duration",
        help,
        Some(&unit),
        MetricType::Histogram,
    )?;
    let syncs = counts.log.syncs;
    metric.encode_histogram::<NoLabels>(seconds, syncs, &[(f64::MAX, syncs)], None)?;
    let help = "What this node is";
    let mut metric = to.encode_descriptor("raft_role", help, None, MetricType::Gauge)?;
    for role in ["leader", "follower", "candidate", "learner", "stopped"] {
        let is = u64::from(known.role == role);
        metric.encode_family(&[("role", role)])?.encode_gauge(&is)?;
    }
    if leads == 1 {
        let help = "Entries that another node lacks, as the leader knows it";
        let mut metric = to.encode_descriptor("raft_lag_entries", help, None, MetricType::Gauge)?;
        for member in known.members.iter().filter(|m| m.node != known.node) {
            let lag = member.lag.or(known.last_index).unwrap_or(0);
            let labels = [("node", member.node.to_string())];
            metric.encode_family(&labels)?.encode_gauge(&lag)?;
        }
    }
    Ok(())
}

type NoLabels = [(&'static str, &'static str); 0];

impl Collector for EngineCollector {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.service.db().stats();
        for (name, help, read) in COUNTERS {
            let mut metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabels, _, u64>(&read(&stats), None)?;
        }
        for (name, help, read) in GAUGES {
            to.encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&read(&stats))?;
        }
        let inflight = self.service.inflight_bytes();
        let help = "Bytes of request bodies in memory";
        to.encode_descriptor("request_body_bytes", help, None, MetricType::Gauge)?
            .encode_gauge(&inflight)?;

        let help = "Clients whose rate of requests is remembered";
        to.encode_descriptor("rate_clients", help, None, MetricType::Gauge)?
            .encode_gauge(&self.service.rate_clients())?;

        // The engine keeps sums and counts: histograms of one bucket.
        let c = &stats.counters;
        let (stalls, stall_micros) = self.service.stalls();
        for (name, help, micros, count) in [
            (
                "wal_fsync_duration",
                "Time that syncs of the log took",
                c.log_sync_micros,
                c.log_syncs,
            ),
            (
                "write_stall",
                "Time that writes waited for flushes and compactions",
                c.write_stall_micros + stall_micros,
                stalls,
            ),
        ] {
            let seconds = micros as f64 / 1e6;
            let unit = Unit::Seconds;
            let mut metric =
                to.encode_descriptor(name, help, Some(&unit), MetricType::Histogram)?;
            metric.encode_histogram::<NoLabels>(seconds, count, &[(f64::MAX, count)], None)?;
        }
        let unit = Unit::Seconds;
        let help = "The longest sync of the log so far";
        to.encode_descriptor(
            "wal_fsync_duration_max",
            help,
            Some(&unit),
            MetricType::Gauge,
        )?
        .encode_gauge(&(c.log_sync_max_micros as f64 / 1e6))?;

        let levels = [
            ("level_bytes", "Bytes of a level"),
            ("level_files", "SSTables of a level"),
        ];
        for (name, help) in levels {
            let mut metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for level in &stats.levels {
                let value = if name == "level_bytes" {
                    level.bytes
                } else {
                    level.files
                };
                let labels = [("level", level.level.to_string())];
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        let help = "Memory in use by part";
        let mut metric = to.encode_descriptor("memory_bytes", help, None, MetricType::Gauge)?;
        let memory = &stats.memory;
        for (part, bytes) in [
            ("memtables", memory.memtables),
            ("block_cache", memory.block_cache),
            ("tables", memory.tables),
            ("changefeed", stats.watch.memory_bytes),
        ] {
            metric
                .encode_family(&[("part", part)])?
                .encode_gauge(&bytes)?;
        }
        if let Some(cluster) = self.service.cluster() {
            encode_raft(&mut to, cluster)?;
        }
        let help = "The version of the server";
        to.encode_descriptor("build", help, None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
    }
}
