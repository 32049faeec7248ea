//! The configuration: file, then environment, then flags; the later wins.
//!
//! [`SETTINGS`] is the one table. A row is a key of the TOML file (`limits.value_bytes`), a variable
//! (`FIRN_LIMITS_VALUE_BYTES`), a flag (`--limits-value-bytes`), a default and a sentence; the
//! command line's help and the documentation are printed from it. A key that is not in the table is
//! an error that names it and the nearest one that is: a typing mistake never means "the default".
//!
//! Sizes are written `512MiB`, durations `30s`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use firn_api::limits::{self, Limits};
use firn_api::{duration, size};
use firn_engine::Durability;
use firn_peer::TlsFiles;
use firn_replica::{Member, Timing};

use crate::cluster::identity::ClusterId;
use crate::dialect::{Listen, Numbers, Speech};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a server is told when it starts. See [`SETTINGS`] for each value's meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `data_dir`
    pub data_dir: PathBuf,
    /// `checkpoint_dir`; `None`: beside the data directory.
    pub checkpoint_dir: Option<PathBuf>,
    /// `http`: host and port.
    pub http: String,
    /// `http_dialect`
    pub http_dialect: Speech,
    /// `dialect`: more HTTP listeners.
    pub dialect: Vec<Listen>,
    /// `dialects.*`
    pub dialects: Numbers,
    /// `resp`: host and port; `None`: it does not listen.
    pub resp: Option<String>,
    /// `insecure`
    pub insecure: bool,
    /// `peer_addr`: host and port; `None`: the server is no node of a cluster.
    pub peer_addr: Option<String>,
    /// `init_cluster`
    pub init_cluster: bool,
    /// `join`: where members answer HTTP.
    pub join: Vec<String>,
    /// `node_id`: zero: the cluster gives one.
    pub node_id: u64,
    /// `cluster_id`
    pub cluster_id: Option<ClusterId>,
    /// `advertise_peer`
    pub advertise_peer: Option<String>,
    /// `advertise_http`
    pub advertise_http: Option<String>,
    /// `advertise_resp`
    pub advertise_resp: Option<String>,
    /// `peer_cert`
    pub peer_cert: Option<PathBuf>,
    /// `peer_key`
    pub peer_key: Option<PathBuf>,
    /// `peer_ca`
    pub peer_ca: Option<PathBuf>,
    /// `peer_name`
    pub peer_name: Option<String>,
    /// `cluster.election_timeout`
    pub election_timeout: Duration,
    /// `cluster.request_timeout`
    pub request_timeout: Duration,
    /// `cluster.log_bytes`
    pub cluster_log_bytes: u64,
    /// `memory`, in bytes.
    pub memory_bytes: u64,
    /// `durability`
    pub durability: Durability,
    /// `changefeed.bytes`
    pub changefeed_bytes: u64,
    /// `changefeed.age`
    pub changefeed_age: Duration,
    /// `drain_timeout`
    pub drain_timeout: Duration,
    /// `log.format`
    pub log_format: LogFormat,
    /// `log.level`
    pub log_level: tracing::Level,
    /// `log.slow_request`
    pub slow_request: Duration,
    /// `limits.*`, of requests.
    pub limits: Limits,
    /// `limits.write_delay`
    pub write_delay: Duration,
    /// `limits.connections`
    pub connections: u64,
    /// `limits.streams`
    pub streams: u64,
    /// `limits.header_bytes`
    pub header_bytes: u64,
    /// `limits.header_timeout`
    pub header_timeout: Duration,
    /// `limits.idle_timeout`
    pub idle_timeout: Duration,
    /// `limits.resp_idle_timeout`; zero: for ever.
    pub resp_idle_timeout: Duration,
    /// `limits.body_timeout`
    pub body_timeout: Duration,
    /// `limits.write_timeout`
    pub write_timeout: Duration,
}

/// A row of the table.
pub struct Setting {
    /// The key in the file; a dot separates table and key.
    pub key: &'static str,
    /// The environment variable.
    pub env: &'static str,
    /// The flag.
    pub flag: &'static str,
    /// What stands for the value in help texts.
    pub metavar: &'static str,
    /// The default, as one would write it; empty: none.
    pub default: &'static str,
    /// What it is, in a sentence or two.
    pub help: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
    get: fn(&Config) -> String,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

macro_rules! settings {
    ($($key:literal $env:literal $flag:literal $metavar:literal $default:literal $help:literal
       $($field:ident).+ $kind:ident;)*) => {
        /// Every setting.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key, env: $env, flag: $flag, metavar: $metavar, default: $default, help: $help,
            set: |config, text| { config.$($field).+ = $kind::read(text)?; Ok(()) },
            get: |config| $kind::show(&config.$($field).+),
        },)*];
    };
}

settings! {
    "data_dir" "FIRN_DATA_DIR" "--data-dir" "DIR" "firn-data"
        "Where the data is. It is made if it is not there."
        data_dir path;
    "http" "FIRN_HTTP" "--http" "ADDR" "127.0.0.1:8080"
        "Where HTTP listens. Port 0 picks a free one."
        http address;
    "http_dialect" "FIRN_HTTP_DIALECT" "--http-dialect" "NAME" "native"
        "What HTTP speaks there: native, kv-json, put-read, v1-raw, query, kv-verbs or auto; after a \
         slash a namespace."
        http_dialect speech;
    "dialect" "FIRN_DIALECT" "--dialect" "NAME=ADDR" ""
        "One more HTTP listener, and what it speaks, as kv-json=127.0.0.1:8081 or \
         kv-json/shop=127.0.0.1:8081. Several are separated by commas; the flag may be repeated."
        dialect listeners;
    "resp" "FIRN_RESP" "--resp" "ADDR" "127.0.0.1:6379"
        "Where RESP (the protocol of Redis) listens; off: nowhere. Port 0 picks a free one."
        resp address_or_off;
    "insecure" "FIRN_INSECURE" "--insecure" "BOOL" "false"
        "Allow listening beyond this machine without authentication."
        insecure boolean;
    "peer_addr" "FIRN_PEER_ADDR" "--peer-addr" "ADDR" ""
        "Where other nodes of the cluster reach this one. Without it the server is by itself."
        peer_addr optional_address;
    "init_cluster" "FIRN_INIT_CLUSTER" "--init-cluster" "BOOL" "false"
        "A directory that is no node yet becomes the first one of a new cluster, with what is in it.          Together with join: only if nobody there is a member of one."
        init_cluster boolean;
    "join" "FIRN_JOIN" "--join" "ADDRS" ""
        "A directory that is no node yet joins the cluster of these: where they answer HTTP, separated by          commas."
        join addresses;
    "node_id" "FIRN_NODE_ID" "--node-id" "COUNT" "0"
        "The number that a new node asks for, which no node ever had; 0: the cluster gives it one."
        node_id count;
    "cluster_id" "FIRN_CLUSTER_ID" "--cluster-id" "ID" ""
        "16 hexadecimal digits: names a new cluster; a directory of another cluster is refused."
        cluster_id cluster_name;
    "advertise_peer" "FIRN_ADVERTISE_PEER" "--advertise-peer" "ADDR" ""
        "What a new node tells the others as its peer_addr, if that is not it."
        advertise_peer optional_address;
    "advertise_http" "FIRN_ADVERTISE_HTTP" "--advertise-http" "ADDR" ""
        "What a new node tells the others as where clients reach its HTTP, if http is not it."
        advertise_http optional_address;
    "advertise_resp" "FIRN_ADVERTISE_RESP" "--advertise-resp" "ADDR" ""
        "What a new node tells the others as where clients reach its RESP, if resp is not it."
        advertise_resp optional_address;
    "peer_cert" "FIRN_PEER_CERT" "--peer-cert" "FILE" ""
        "The certificate (PEM) by which this node shows the others who it is. Without certificates nodes \
         talk within one machine only, unless insecure. At SIGHUP it is read anew, with peer_key and peer_ca."
        peer_cert optional_path;
    "peer_key" "FIRN_PEER_KEY" "--peer-key" "FILE" ""
        "The private key of peer_cert."
        peer_key optional_path;
    "peer_ca" "FIRN_PEER_CA" "--peer-ca" "FILE" ""
        "The certificates of who signed those of all nodes, this one's too."
        peer_ca optional_path;
    "peer_name" "FIRN_PEER_NAME" "--peer-name" "NAME" ""
        "The name that the certificates of the others have, if it is not the host of their address."
        peer_name optional_text;
    "memory" "FIRN_MEMORY" "--memory" "SIZE" "512MiB"
        "Memory for memtables, caches, indexes and filters together."
        memory_bytes bytes;
    "durability" "FIRN_DURABILITY" "--durability" "LEVEL" "sync"
        "When a write that does not say otherwise is acknowledged: sync (it survives power loss) or \
         buffered (it survives the death of the process)."
        durability durability_level;
    "checkpoint_dir" "FIRN_CHECKPOINT_DIR" "--checkpoint-dir" "DIR" ""
        "Where checkpoints are made; by default the data directory's name with .checkpoints. On the \
         same file system they are hard links."
        checkpoint_dir optional_path;
    "drain_timeout" "FIRN_DRAIN_TIMEOUT" "--drain-timeout" "DURATION" "20s"
        "How long requests in flight may go on after SIGTERM."
        drain_timeout time;
    "cluster.election_timeout" "FIRN_CLUSTER_ELECTION_TIMEOUT" "--cluster-election-timeout" "DURATION" "500ms"
        "A leader that is not heard of for half of this to all of it is replaced. The same on all nodes;          at least ten times what a message takes."
        election_timeout time;
    "cluster.request_timeout" "FIRN_CLUSTER_REQUEST_TIMEOUT" "--cluster-request-timeout" "DURATION" "10s"
        "How long a request waits for the cluster before it is refused."
        request_timeout time;
    "cluster.log_bytes" "FIRN_CLUSTER_LOG_BYTES" "--cluster-log-bytes" "SIZE" "256MiB"
        "Bytes of log beyond which a snapshot is made, and what it has leaves the log."
        cluster_log_bytes bytes;
    "dialects.rate_requests" "FIRN_DIALECTS_RATE_REQUESTS" "--dialects-rate-requests" "COUNT" "10"
        "Dialect kv-json: requests of a connection in a window; 0 is no limit."
        dialects.rate_requests count;
    "dialects.rate_window" "FIRN_DIALECTS_RATE_WINDOW" "--dialects-rate-window" "DURATION" "5s"
        "Dialect kv-json: the window."
        dialects.rate_window time;
    "dialects.key_bytes" "FIRN_DIALECTS_KEY_BYTES" "--dialects-key-bytes" "SIZE" "1KiB"
        "Dialect v1-raw: longest key."
        dialects.key_bytes bytes;
    "dialects.value_bytes" "FIRN_DIALECTS_VALUE_BYTES" "--dialects-value-bytes" "SIZE" "1KiB"
        "Dialect v1-raw: largest value."
        dialects.value_bytes bytes;
    "changefeed.bytes" "FIRN_CHANGEFEED_BYTES" "--changefeed-bytes" "SIZE" "64MiB"
        "Log kept for watches beyond what recovery needs, so that they can resume; 0 keeps none. In a cluster: memory for changes, up to a sixteenth of all."
        changefeed_bytes bytes;
    "changefeed.age" "FIRN_CHANGEFEED_AGE" "--changefeed-age" "DURATION" "10m"
        "How long that log is kept, if the bytes allow it."
        changefeed_age time;
    "log.format" "FIRN_LOG_FORMAT" "--log-format" "FORMAT" "text"
        "How log lines look: text or json."
        log_format format;
    "log.level" "FIRN_LOG_LEVEL" "--log-level" "LEVEL" "info"
        "What is logged: error, warn, info, debug or trace."
        log_level level;
    "log.slow_request" "FIRN_LOG_SLOW_REQUEST" "--log-slow-request" "DURATION" "1s"
        "Requests that take longer are logged as warnings."
        slow_request time;
    "limits.key_bytes" "FIRN_LIMITS_KEY_BYTES" "--limits-key-bytes" "SIZE" "64KiB"
        "Longest key; at most 64KiB."
        limits.key_bytes bytes;
    "limits.value_bytes" "FIRN_LIMITS_VALUE_BYTES" "--limits-value-bytes" "SIZE" "64MiB"
        "Largest value; at most 256MiB."
        limits.value_bytes bytes;
    "limits.body_bytes" "FIRN_LIMITS_BODY_BYTES" "--limits-body-bytes" "SIZE" "64MiB"
        "Largest body of a batch or a multi-get, and reply to the latter."
        limits.body_bytes bytes;
    "limits.batch_ops" "FIRN_LIMITS_BATCH_OPS" "--limits-batch-ops" "COUNT" "100000"
        "Most operations in a batch."
        limits.batch_ops count;
    "limits.mget_keys" "FIRN_LIMITS_MGET_KEYS" "--limits-mget-keys" "COUNT" "10000"
        "Most keys in a multi-get."
        limits.mget_keys count;
    "limits.page_entries" "FIRN_LIMITS_PAGE_ENTRIES" "--limits-page-entries" "COUNT" "10000"
        "Most entries in a page of a range."
        limits.page_entries count;
    "limits.page_bytes" "FIRN_LIMITS_PAGE_BYTES" "--limits-page-bytes" "SIZE" "16MiB"
        "Most bytes of keys and values in a page of a range."
        limits.page_bytes bytes;
    "limits.inflight_bytes" "FIRN_LIMITS_INFLIGHT_BYTES" "--limits-inflight-bytes" "SIZE" "256MiB"
        "Bytes of request bodies, and of replies from 64KiB on, in memory at the same time; beyond it \
         requests are refused as overloaded."
        limits.inflight_bytes bytes;
    "limits.watches" "FIRN_LIMITS_WATCHES" "--limits-watches" "COUNT" "1000"
        "Open watches; further ones are refused as overloaded."
        limits.watches count;
    "limits.write_delay" "FIRN_LIMITS_WRITE_DELAY" "--limits-write-delay" "DURATION" "5s"
        "How long a write may wait while the disk catches up before it is refused as overloaded."
        write_delay time;
    "limits.connections" "FIRN_LIMITS_CONNECTIONS" "--limits-connections" "COUNT" "20000"
        "Open connections; further ones are answered 503 and closed."
        connections count;
    "limits.streams" "FIRN_LIMITS_STREAMS" "--limits-streams" "COUNT" "128"
        "Requests at the same time on one HTTP/2 connection; further ones wait at the client."
        streams count;
    "limits.rate" "FIRN_LIMITS_RATE" "--limits-rate" "COUNT" "0"
        "Requests a second that one client (an address; of IPv6 a /64) may send; 0: no limit. Beyond \
         it the answer is 429. Health and metrics do not count."
        limits.rate count;
    "limits.rate_burst" "FIRN_LIMITS_RATE_BURST" "--limits-rate-burst" "COUNT" "0"
        "Requests that a client may send at once after a rest; 0: as many as in a second."
        limits.rate_burst count;
    "limits.rate_clients" "FIRN_LIMITS_RATE_CLIENTS" "--limits-rate-clients" "COUNT" "65536"
        "Clients whose rate is remembered at the same time; those not seen for longest are forgotten first."
        limits.rate_clients count;
    "limits.header_bytes" "FIRN_LIMITS_HEADER_BYTES" "--limits-header-bytes" "SIZE" "256KiB"
        "Most bytes of a request's head; beyond it the answer is 431."
        header_bytes bytes;
    "limits.header_timeout" "FIRN_LIMITS_HEADER_TIMEOUT" "--limits-header-timeout" "DURATION" "10s"
        "How long a request's head may take from its first byte."
        header_timeout time;
    "limits.idle_timeout" "FIRN_LIMITS_IDLE_TIMEOUT" "--limits-idle-timeout" "DURATION" "5m"
        "How long a connection may be idle between requests."
        idle_timeout time;
    "limits.resp_idle_timeout" "FIRN_LIMITS_RESP_IDLE_TIMEOUT" "--limits-resp-idle-timeout" "DURATION" "0s"
        "How long a RESP connection may be idle between commands; 0s: for ever, as in Redis."
        resp_idle_timeout time;
    "limits.body_timeout" "FIRN_LIMITS_BODY_TIMEOUT" "--limits-body-timeout" "DURATION" "30s"
        "How long a request's body may go without progress."
        body_timeout time;
    "limits.write_timeout" "FIRN_LIMITS_WRITE_TIMEOUT" "--limits-write-timeout" "DURATION" "1m"
        "How long a client may take to accept the next bytes of a reply."
        write_timeout time;
}

/// The kinds of values: how each is read and shown.
macro_rules! kinds {
    ($($name:ident $type:ty, $read:expr, $show:expr;)*) => {
        $(mod $name {
            #[allow(unused_imports, reason = "each kind uses some of them")]
            use super::{
                ClusterId, Duration, Durability, Listen, LogFormat, PathBuf, Speech, duration, size,
            };
            pub(super) fn read(text: &str) -> Result<$type, String> {
                let read: fn(&str) -> Result<$type, String> = $read;
                read(text)
            }
            pub(super) fn show(value: &$type) -> String {
                let show: fn(&$type) -> String = $show;
                show(value)
            }
        })*
    };
}

kinds! {
    path PathBuf,
        |text| if text.is_empty() { Err("a directory is needed".into()) } else { Ok(text.into()) },
        |path| path.display().to_string();
    optional_path Option<PathBuf>,
        |text| Ok((!text.is_empty()).then(|| text.into())),
        |path| path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    address String,
        |text| match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.into()),
            _ => Err(format!("{text:?} is not an address: write host:port, as 127.0.0.1:8080")),
        },
        String::clone;
    speech Speech, Speech::parse, Speech::to_string;
    listeners Vec<Listen>,
        |text| text
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty())
            .map(|one| {
                let Some((speech, address)) = one.rsplit_once('=') else {
                    return Err(format!("{one:?} is not a listener: write NAME=host:port"));
                };
                let (speech, address) = (Speech::parse(speech)?, super::address::read(address)?);
                Ok(Listen { speech, address })
            })
            .collect(),
        |list| list
            .iter()
            .map(|one| format!("{}={}", one.speech, one.address))
            .collect::<Vec<_>>()
            .join(",");
    address_or_off Option<String>,
        |text| match text.rsplit_once(':') {
            _ if text == "off" => Ok(None),
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Some(text.into()))
            }
            _ => Err(format!(
                "{text:?} is neither off nor an address: write host:port, as 127.0.0.1:6379"
            )),
        },
        |address| address.clone().unwrap_or_else(|| "off".into());
    optional_address Option<String>,
        |text| match text {
            "" => Ok(None),
            text => super::address::read(text).map(Some),
        },
        |address| address.clone().unwrap_or_default();
    optional_text Option<String>,
        |text| Ok((!text.is_empty()).then(|| text.into())),
        |text| text.clone().unwrap_or_default();
    addresses Vec<String>,
        |text| text
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty())
            .map(super::address::read)
            .collect(),
        |list| list.join(",");
    cluster_name Option<ClusterId>,
        |text| match text {
            "" => Ok(None),
            text => ClusterId::parse(text)
                .map(Some)
                .ok_or_else(|| format!("{text:?} is not 16 hexadecimal digits")),
        },
        |id| id.map(|id| id.to_string()).unwrap_or_default();
    boolean bool,
        |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        },
        bool::to_string;
    bytes u64, size::parse, |bytes| size::print(*bytes);
    count u64,
        |text| text.parse().map_err(|_| format!("{text:?} is not a whole number")),
        u64::to_string;
    time Duration, duration::parse, |time| duration::print(*time);
    durability_level Durability,
        |text| match text {
            "sync" => Ok(Durability::Sync),
            "buffered" => Ok(Durability::Buffered),
            _ => Err(format!("{text:?} is neither sync nor buffered")),
        },
        |level| match level { Durability::Sync => "sync".into(), Durability::Buffered => "buffered".into() };
    format LogFormat,
        |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("{text:?} is neither text nor json")),
        },
        |format| match format { LogFormat::Text => "text".into(), LogFormat::Json => "json".into() };
    level tracing::Level,
        |text| text.parse().map_err(|_| format!("{text:?} is not one of error, warn, info, debug, trace")),
        |level| level.to_string().to_lowercase();
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "firn-data".into(),
            checkpoint_dir: None,
            http: "127.0.0.1:8080".into(),
            http_dialect: Speech::default(),
            dialect: Vec::new(),
            dialects: Numbers::default(),
            resp: Some("127.0.0.1:6379".into()),
            insecure: false,
            peer_addr: None,
            init_cluster: false,
            join: Vec::new(),
            node_id: 0,
            cluster_id: None,
            advertise_peer: None,
            advertise_http: None,
            advertise_resp: None,
            peer_cert: None,
            peer_key: None,
            peer_ca: None,
            peer_name: None,
            election_timeout: Duration::from_millis(500),
            request_timeout: Duration::from_secs(10),
            cluster_log_bytes: 256 << 20,
            memory_bytes: 512 << 20,
            durability: Durability::Sync,
            changefeed_bytes: 64 << 20,
            changefeed_age: Duration::from_secs(600),
            drain_timeout: Duration::from_secs(20),
            log_format: LogFormat::Text,
            log_level: tracing::Level::INFO,
            slow_request: Duration::from_secs(1),
            limits: Limits::default(),
            write_delay: Duration::from_secs(5),
            connections: 20_000,
            streams: 128,
            header_bytes: 256 << 10,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            resp_idle_timeout: Duration::ZERO,
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
        }
    }
}

/// What is wrong with the configuration, and where it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, the variable or the flag.
    pub origin: String,
    /// What is wrong.
    pub detail: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.detail)
    }
}

impl std::error::Error for ConfigError {}

fn refuse<T>(origin: impl Into<String>, detail: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError {
        origin: origin.into(),
        detail: detail.into(),
    })
}

/// Puts the configuration together. `env` may hold any variables; only those that start with
/// `FIRN_` are looked at, and of those not `FIRN_CONFIG` (the caller's: the file's path) and not the
/// ones that Kubernetes sets for a service called `firn`. `flags` are pairs of [`Setting::key`] and
/// the value as it was typed.
///
/// # Errors
/// The first thing that is wrong.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    if let Some(path) = file {
        #[allow(
            clippy::disallowed_methods,
            reason = "read once, before there is a store"
        )]
        let text = std::fs::read_to_string(path)
            .or_else(|e| refuse(path.display().to_string(), e.to_string()))?;
        config.apply_toml(&path.display().to_string(), &text)?;
    }
    // Sorted, so that of several mistakes the same one is reported each time.
    let env: BTreeMap<_, _> = env.into_iter().filter(|(name, _)| is_ours(name)).collect();
    for (name, value) in env {
        let Some(setting) = SETTINGS.iter().find(|s| s.env == name) else {
            let near = nearest(&name, SETTINGS.iter().map(|s| s.env));
            return refuse(name, format!("no such setting{near}"));
        };
        (setting.set)(&mut config, &value).or_else(|e| refuse(setting.env, e))?;
    }
    for (key, value) in flags {
        let Some(setting) = SETTINGS.iter().find(|s| s.key == key) else {
            let near = nearest(key, SETTINGS.iter().map(|s| s.key));
            return refuse(key.as_str(), format!("no such setting{near}"));
        };
        (setting.set)(&mut config, value).or_else(|e| refuse(setting.flag, e))?;
    }
    config.validate()?;
    Ok(config)
}

fn is_ours(name: &str) -> bool {
    let kubernetes = name.starts_with("FIRN_SERVICE_") || name.starts_with("FIRN_PORT");
    name.starts_with("FIRN_") && name != "FIRN_CONFIG" && !kubernetes
}

impl Config {
    fn apply_toml(&mut self, origin: &str, text: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text
            .parse()
            .or_else(|e: toml::de::Error| refuse(origin, e.to_string()))?;
        let mut pairs = Vec::new();
        flatten(&mut pairs, "", table).or_else(|e| refuse(origin, e))?;
        for (key, value) in pairs {
            let Some(setting) = SETTINGS.iter().find(|s| s.key == key) else {
                let near = nearest(&key, SETTINGS.iter().map(|s| s.key));
                return refuse(origin, format!("unknown key {key:?}{near}"));
            };
            (setting.set)(self, &value).or_else(|e| refuse(origin, format!("{key}: {e}")))?;
        }
        Ok(())
    }

    /// Checks what a single value cannot show.
    ///
    /// # Errors
    /// The first value that contradicts a bound or another value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        for (key, value, max) in [
            ("limits.key_bytes", limits.key_bytes, limits::MAX_KEY_BYTES),
            (
                "limits.value_bytes",
                limits.value_bytes,
                limits::MAX_VALUE_BYTES,
            ),
            (
                "limits.body_bytes",
                limits.body_bytes,
                limits::MAX_BATCH_BYTES,
            ),
        ] {
            if value > max {
                return refuse(
                    key,
                    format!("{} is more than {}", size::print(value), size::print(max)),
                );
            }
        }
        let largest = limits.value_bytes.max(limits.body_bytes);
        if limits.inflight_bytes < largest {
            let detail = format!(
                "{} is less than the largest body, {}",
                size::print(limits.inflight_bytes),
                size::print(largest)
            );
            return refuse("limits.inflight_bytes", detail);
        }
        for (key, value, min) in [
            ("memory", self.memory_bytes, 8 << 20),
            ("limits.header_bytes", self.header_bytes, 8 << 10),
            ("limits.connections", self.connections, 1),
            ("limits.streams", self.streams, 1),
            ("limits.page_entries", limits.page_entries, 1),
            ("limits.rate_clients", limits.rate_clients, 1),
            ("cluster.log_bytes", self.cluster_log_bytes, 1 << 20),
        ] {
            if value < min {
                return refuse(key, format!("{value} is less than {min}"));
            }
        }
        for (key, is_given) in [
            ("init_cluster", self.init_cluster),
            ("join", !self.join.is_empty()),
            ("node_id", self.node_id != 0),
            ("cluster_id", self.cluster_id.is_some()),
            ("advertise_peer", self.advertise_peer.is_some()),
            ("advertise_http", self.advertise_http.is_some()),
            ("advertise_resp", self.advertise_resp.is_some()),
            ("peer_cert", self.peer_cert.is_some()),
        ] {
            if is_given && self.peer_addr.is_none() {
                return refuse(key, "a node of a cluster needs peer_addr too");
            }
        }
        let files = [&self.peer_cert, &self.peer_key, &self.peer_ca];
        if files.iter().any(|file| file.is_some()) && files.iter().any(|file| file.is_none()) {
            let detail = "peer_cert, peer_key and peer_ca go together";
            return refuse("peer_cert", detail);
        }
        let (election, least) = (self.election_timeout, Duration::from_millis(100));
        if !(least..=Duration::from_secs(60)).contains(&election) {
            let detail = format!("{} is not from 100ms to 1m", duration::print(election));
            return refuse("cluster.election_timeout", detail);
        }
        if self.request_timeout < election {
            let detail = "it is less than cluster.election_timeout";
            return refuse("cluster.request_timeout", detail);
        }
        for (key, value, max) in [
            ("limits.streams", self.streams, 10_000),
            ("limits.header_bytes", self.header_bytes, 16 << 20),
            ("limits.rate", limits.rate, limits::MAX_RATE),
            ("limits.rate_burst", limits.rate_burst, limits::MAX_RATE),
            (
                "limits.rate_clients",
                limits.rate_clients,
                limits::MAX_RATE_CLIENTS,
            ),
        ] {
            if value > max {
                return refuse(key, format!("{value} is more than {max}"));
            }
        }
        Ok(())
    }

    /// Where checkpoints are made.
    pub fn checkpoint_dir(&self) -> PathBuf {
        self.checkpoint_dir.clone().unwrap_or_else(|| {
            let mut name = self.data_dir.clone().into_os_string();
            name.push(".checkpoints");
            name.into()
        })
    }

    /// What the other nodes are told of this one, if it is one: where it listens, by the addresses
    /// that were bound.
    pub fn member(&self, peer: &str, http: &str, resp: Option<&str>) -> Member {
        let told = |given: &Option<String>, bound: &str| given.clone().unwrap_or(bound.into());
        Member {
            address: told(&self.advertise_peer, peer),
            http: told(&self.advertise_http, http),
            resp: told(&self.advertise_resp, resp.unwrap_or_default()),
        }
    }

    /// By which the nodes know each other, if there are certificates.
    pub fn peer_tls(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            cert: self.peer_cert.clone()?,
            key: self.peer_key.clone()?,
            ca: self.peer_ca.clone()?,
            server_name: self.peer_name.clone(),
        })
    }

    /// How long a node waits before it does something about silence.
    pub fn timing(&self) -> Timing {
        Timing {
            heartbeat: self.election_timeout / 8,
            election_min: self.election_timeout / 2,
            election_max: self.election_timeout,
        }
    }

    /// The effective configuration as a file that would give it again.
    pub fn to_toml(&self) -> String {
        let mut page = String::new();
        let mut table = "";
        for setting in SETTINGS {
            let (section, name) = setting.key.split_once('.').unwrap_or(("", setting.key));
            if section != table {
                page.push_str(&format!("\n[{section}]\n"));
                table = section;
            }
            let value = (setting.get)(self);
            if value.is_empty() {
                continue;
            }
            let bare = matches!(setting.metavar, "BOOL" | "COUNT");
            page.push_str(&format!("{name} = "));
            if bare {
                page.push_str(&value);
            } else {
                // A JSON string is a TOML string.
                let mut quoted = Vec::new();
                firn_api::text::push_json_string(&mut quoted, &value);
                page.push_str(&String::from_utf8_lossy(&quoted));
            }
            page.push('\n');
        }
        page
    }
}

fn flatten(
    out: &mut Vec<(String, String)>,
    prefix: &str,
    table: toml::Table,
) -> Result<(), String> {
    for (key, value) in table {
        let key = if prefix.is_empty() {
            key
        } else {
            format!("{prefix}.{key}")
        };
        let text = match value {
            toml::Value::Table(inner) => {
                flatten(out, &key, inner)?;
                continue;
            }
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(flag) => flag.to_string(),
            toml::Value::Array(list)
                if list.iter().all(toml::Value::is_str) && !list.is_empty() =>
            {
                let texts: Vec<_> = list.iter().filter_map(toml::Value::as_str).collect();
                texts.join(",")
            }
            toml::Value::Datetime(_) | toml::Value::Array(_) => {
                return Err(format!("{key}: a text, a number, true or false is needed"));
            }
        };
        out.push((key, text));
    }
    Ok(())
}

/// `; did you mean "memory"?`, or nothing if nothing is near: a slip of the finger in three letters.
fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> String {
    let best = known.map(|name| (distance(typed, name), name)).min();
    match best {
        Some((far, name)) if far <= name.len().min(typed.len()).div_ceil(3).min(4) => {
            format!("; did you mean {name:?}?")
        }
        _ => String::new(),
    }
}

/// Insertions, removals and replacements from one to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "the test writes a configuration file"
    )]
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(a, b)| ((*a).into(), (*b).into()))
            .collect()
    }

    fn toml(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.apply_toml("firn.toml", text)?;
        config.validate()?;
        Ok(config)
    }

    #[test]
    fn the_table_is_consistent_and_shows_the_defaults() {
        for setting in SETTINGS {
            let name = setting.key.replace('.', "_");
            assert_eq!(setting.env, format!("FIRN_{}", name.to_uppercase()));
            assert_eq!(setting.flag, format!("--{}", name.replace('_', "-")));
            assert_eq!(
                (setting.get)(&Config::default()),
                setting.default,
                "{}",
                setting.key
            );
        }
    }

    #[test]
    fn flags_beat_variables_beat_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firn.toml");
        std::fs::write(
            &path,
            "memory = \"1GiB\"\nhttp = \"127.0.0.1:1\"\ndata_dir = \"f\"\n",
        )
        .unwrap();
        let env = pairs(&[
            ("FIRN_HTTP", "127.0.0.1:2"),
            ("FIRN_DATA_DIR", "e"),
            ("PATH", "x"),
        ]);
        let config = load(Some(&path), env, &pairs(&[("data_dir", "a")])).unwrap();
        assert_eq!(config.memory_bytes, 1 << 30);
        assert_eq!(config.http, "127.0.0.1:2");
        assert_eq!(config.data_dir, Path::new("a"));
        assert_eq!(config.checkpoint_dir(), Path::new("a.checkpoints"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            (
                "memroy = 1",
                "unknown key \"memroy\"; did you mean \"memory\"?",
            ),
            (
                "[limits]\nvalue_byte = 1",
                "did you mean \"limits.value_bytes\"?",
            ),
            ("memory = \"lots\"", "memory: \"lots\" is not a size"),
            ("memory = [1]", "memory: a text, a number"),
            ("http = \"8080\"", "is not an address"),
            ("memory = ", "line 1"),
            ("limits.key_bytes = \"1MiB\"", "1MiB is more than 64KiB"),
            ("limits.inflight_bytes = 1", "less than the largest body"),
            ("drain_timeout = \"soon\"", "is not a duration"),
            (
                "dialect = \"kv=1:2\"",
                "\"kv\" is no dialect; there are: native, kv-json",
            ),
            ("dialect = \"kv-json\"", "is not a listener"),
            ("dialect = [\"000=1\"]", "is not an address"),
            (
                "http_dialect = \"native/x\"",
                "only a dialect has a namespace",
            ),
        ] {
            let error = toml(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let error = load(None, pairs(&[("FIRN_MEMROY", "1")]), &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "FIRN_MEMROY: no such setting; did you mean \"FIRN_MEMORY\"?"
        );
        let error = load(None, [], &pairs(&[("insecure", "yes")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--insecure: \"yes\" is neither true nor false"
        );
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        for far in ["tls", "port", "host", "verbose", "replicas", "log.file"] {
            let error = toml(&format!("{far} = 1")).unwrap_err().to_string();
            assert!(!error.contains("did you mean"), "{error}");
        }
        for near in ["htpp", "memori", "log.levl", "limits.rates", "drain_timeot"] {
            let error = toml(&format!("{near} = 1")).unwrap_err().to_string();
            assert!(error.contains("did you mean"), "{error}");
        }
    }

    #[test]
    fn listeners_are_a_list_in_the_file_and_words_elsewhere() {
        let config = toml("dialect = [\"000=[::1]:1\", \"query/a=b:2\"]").unwrap();
        let env = pairs(&[("FIRN_DIALECT", "kv-json=[::1]:1, 003/a=b:2")]);
        assert_eq!(config, load(None, env, &[]).unwrap());
        assert_eq!(config.dialect[1].speech.to_string(), "query/a");
    }

    #[test]
    fn kubernetes_service_variables_are_not_settings() {
        let env = pairs(&[
            ("FIRN_PORT_8080_TCP", "tcp://x"),
            ("FIRN_SERVICE_HOST", "x"),
        ]);
        assert_eq!(load(None, env, &[]), Ok(Config::default()));
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let config = Config {
            insecure: true,
            data_dir: "a \"b\"".into(),
            dialect: vec![Listen {
                speech: Speech::parse("001/shop").unwrap(),
                address: "127.0.0.1:1".into(),
            }],
            slow_request: Duration::from_millis(1500),
            ..Config::default()
        };
        assert_eq!(toml(&config.to_toml()), Ok(config));
    }
}
