//! Listens, limits, drains, stops.
//!
//! 1. [`Server::start`] checks that the address may be listened on, opens the database, binds.
//! 2. [`Server::run`] accepts connections. Each is a task of its own that lives as long as the
//!    connection; at most `limits.connections` exist, and a further client is told so.
//! 3. When told to stop: `/readyz` fails, the listener closes, idle connections close, requests in
//!    flight go on until `drain_timeout`, what is left is cut. Then the log is flushed and the
//!    database closed. A second signal ends the process at once; acknowledged writes are safe
//!    either way.

use std::fmt;
use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use firn_engine::Db;
use firn_engine::Options;
use firn_engine::{Event, EventListener};
use firn_io::Env;
use firn_io::exec::ThreadPool;
use firn_replica::log_store::LogStoreOptions;
use firn_replica::{Member, NodeOptions};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cluster::identity::Identity;
use crate::cluster::{self, Cluster, Wiring};
use crate::config::{Config, ConfigError, LogFormat};
use crate::connection::{Activity, Guarded, Pace, Protocol};
use crate::dialect::{Session, Speaker, Speech};
use crate::grpc::{self, GrpcDoor};
use crate::http::Door;
use crate::metrics::Metrics;
use crate::multiplex::{self, AnyBody, Replies};
use crate::resp;
use crate::service::{Parts, Service, durability_name};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4_096;
/// Background threads of the engine: one flushes, one compacts.
const BACKGROUND_THREADS: usize = 2;

/// Why a server did not start, or did not end well.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration.
    Config(ConfigError),
    /// The address cannot be listened on.
    Bind {
        /// The setting that names the address.
        setting: &'static str,
        /// Which.
        address: String,
        /// Why.
        cause: io::Error,
    },
    /// The database.
    Engine(firn_engine::Error),
    /// The node of a cluster.
    Replica(firn_replica::Error),
    /// The runtime or the standard output.
    Io(io::Error),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "{error}"),
            Self::Bind {
                setting,
                address,
                cause,
            } if cause.kind() == io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "{setting}: {address} is in use; choose another with --{setting} (port 0 picks a \
                     free one)"
                )
            }
            Self::Bind {
                setting,
                address,
                cause,
            } => {
                write!(
                    f,
                    "{setting}: cannot listen on {address} (see --{setting}): {cause}"
                )
            }
            Self::Engine(error) => write!(f, "{error}"),
            Self::Replica(error) => write!(f, "{error}"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for ServeError {}

impl From<firn_engine::Error> for ServeError {
    fn from(error: firn_engine::Error) -> Self {
        Self::Engine(error)
    }
}

impl From<firn_replica::Error> for ServeError {
    fn from(error: firn_replica::Error) -> Self {
        match error {
            firn_replica::Error::Engine(error) => Self::Engine(error),
            firn_replica::Error::Io(error) => Self::Engine(error.into()),
            error => Self::Replica(error),
        }
    }
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl ServeError {
    /// The exit code of the process: 2 usage, 3 could not serve, 4 the database refused to open
    /// (another process holds it, the disk), 5 damage found.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Engine(error) if error.is_corruption() => 5,
            Self::Engine(_) | Self::Replica(_) => 4,
            Self::Bind { .. } | Self::Io(_) => 3,
        }
    }
}

/// A server that listens but does not accept yet.
#[derive(Debug)]
pub struct Server {
    config: Config,
    service: Service,
    door: Arc<Door>,
    /// The first one is `http`, the others are those of `dialect`.
    sites: Vec<Site>,
    resp: Option<resp::Door>,
    home: Home,
}

/// Which threads serve the connections of HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// Those that suit the number of processors of this machine.
    #[default]
    Suited,
    /// Those of the runtime that the server runs in.
    Runtime,
    /// That of the node of a cluster, if sockets can be served there.
    Node,
}

/// A listener, and what it speaks; `None`: the native API.
#[derive(Debug)]
struct Site {
    listener: TcpListener,
    address: SocketAddr,
    speaker: Option<Arc<Speaker>>,
}

impl Server {
    /// Opens the database and binds. The database is recovered before the address is taken, so that
    /// a client that can connect is answered at once.
    ///
    /// # Errors
    /// What is wrong, in words for the operator.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        Self::start_in(Env::os(BACKGROUND_THREADS), config).await
    }

    /// The same in an environment of the caller's: a test's clock, a test's disk.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_in(env: Env, config: Config) -> Result<Self, ServeError> {
        let wiring = cluster::wiring(&config);
        Self::start_wired(env, config, &wiring).await
    }

    /// The same with another network between the nodes of a cluster.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_wired(
        env: Env,
        config: Config,
        wiring: &dyn Wiring,
    ) -> Result<Self, ServeError> {
        config.validate().map_err(ServeError::Config)?;
        let mut sockets = vec![(
            "http",
            prepare("http", &config.http, config.insecure).await?,
            config.http_dialect.clone(),
            config.http.clone(),
        )];
        for listen in &config.dialect {
            let socket = prepare("dialect", &listen.address, config.insecure).await?;
            let (speech, address) = (listen.speech.clone(), listen.address.clone());
            sockets.push(("dialect", socket, speech, address));
        }
        let resp_socket = match &config.resp {
            Some(address) => Some(prepare("resp", address, config.insecure).await?),
            None => None,
        };
        let options = engine_options(&config);
        let parts = Parts {
            clock: Arc::clone(&env.clock),
            fs: Arc::clone(&env.fs),
            limits: config.limits.clone(),
            durability: config.durability,
            write_delay: config.write_delay,
            checkpoint_dir: config.checkpoint_dir(),
        };
        let service = if let Some(peer_addr) = &config.peer_addr {
            let bound = |socket: &TcpSocket| socket.local_addr().map(|addr| addr.to_string());
            let http = bound(&sockets[0].1)?;
            let resp = resp_socket.as_ref().map(bound).transpose()?;
            let member = |peer: &str| config.member(peer, &http, resp.as_deref());
            let cluster = start_node(&env, &config, options, (peer_addr, wiring), member).await?;
            Service::on_node(Arc::new(cluster), parts)
        } else {
            let (env_of_db, dir) = (env.clone(), config.data_dir.clone());
            let open = move || Db::open_with(env_of_db, dir, options);
            let opening = tokio::task::spawn_blocking(open);
            Service::new(opening.await.map_err(io::Error::other)??, parts)
        };
        service.db().set_listener(Arc::new(LogEvents));
        if let Some(cluster) = service.cluster() {
            cluster.watch_over();
            if !config.join.is_empty() {
                let (weak, join) = (Arc::downgrade(cluster), config.join.clone());
                tokio::spawn(cluster::join::become_voter(weak, join));
            }
        }
        let metrics = Metrics::new(service.clone());
        let door = Arc::new(Door {
            service: service.clone(),
            metrics,
            body_timeout: config.body_timeout,
            slow_request: config.slow_request,
            local: !config.insecure,
            started: env.clock.monotonic(),
        });
        let mut sites = Vec::with_capacity(sockets.len());
        for (setting, socket, speech, address) in sockets {
            let speaker = speaker(&config, &door, speech).await?;
            let bind_failed = |cause| ServeError::Bind {
                setting,
                address: address.clone(),
                cause,
            };
            let listener = socket.listen(BACKLOG).map_err(bind_failed)?;
            let address = listener.local_addr().map_err(bind_failed)?;
            sites.push(Site {
                listener,
                address,
                speaker,
            });
        }
        let resp = match resp_socket {
            Some(socket) => {
                let listener = socket.listen(BACKLOG).map_err(|cause| ServeError::Bind {
                    setting: "resp",
                    address: config.resp.clone().unwrap_or_default(),
                    cause,
                })?;
                let (metrics, entropy) = (Arc::clone(&door.metrics), Arc::clone(&env.entropy));
                let service = service.clone();
                Some(resp::Door::new(
                    listener, service, metrics, entropy, &config,
                ))
            }
            None => None,
        };
        Ok(Self {
            config,
            service,
            door,
            sites,
            resp,
            home: Home::default(),
        })
    }

    /// Serves connections there whatever the machine is: not for users, who would choose no better.
    #[must_use]
    pub fn at_home(mut self, home: Home) -> Self {
        self.home = home;
        self
    }

    /// Where HTTP listens, with the port that was picked.
    pub fn http_addr(&self) -> SocketAddr {
        self.sites[0].address
    }

    /// Where the listeners of `dialect` are, in their order.
    pub fn dialect_addrs(&self) -> Vec<SocketAddr> {
        self.sites[1..].iter().map(|site| site.address).collect()
    }

    /// Where RESP listens, if it does.
    pub fn resp_addr(&self) -> Option<SocketAddr> {
        self.resp.as_ref()?.address().ok()
    }

    /// The service behind the doors.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Serves until `shutdown` resolves, then drains and closes the database.
    ///
    /// # Errors
    /// If the log cannot be flushed at the end.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let (stop, stopping) = watch::channel(Phase::Serving);
        // Every connection holds a sender; when the last is gone, `recv` ends.
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        if let Some(resp) = self.resp {
            tokio::spawn(resp.serve(stopping.clone(), alive.clone()));
        }
        // Clients that are told that there are too many are few at a time themselves.
        let refusals = Arc::new(Semaphore::new(64));
        let pace = Pace {
            idle: self.config.idle_timeout,
            header: self.config.header_timeout,
            write: self.config.write_timeout,
        };
        let mut builder = http1::Builder::new();
        builder
            .half_close(true)
            .header_read_timeout(None)
            .max_header_size(usize::try_from(self.config.header_bytes).unwrap_or(usize::MAX))
            .max_buf_size(usize::try_from(self.config.header_bytes).unwrap_or(usize::MAX));
        let builders = Builders {
            http1: builder,
            config: Arc::new(self.config.clone()),
            grpc: Arc::new(GrpcDoor::new(Arc::clone(&self.door))),
        };
        let home = home_of_connections(&self.service, self.home);
        let most = i64::try_from(self.config.connections).unwrap_or(i64::MAX);
        tokio::pin!(shutdown);
        let mut turn = 0;
        loop {
            turn += 1;
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = accept(&self.sites, turn) => accepted,
            };
            let (stream, peer, speaker) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: what helps is that somebody closes one.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let metrics = &self.door.metrics;
            if metrics.connections.get() >= most {
                metrics.refused_connections.inc();
                if let Ok(turn) = Arc::clone(&refusals).try_acquire_owned() {
                    let most = self.config.connections;
                    tokio::spawn(async move {
                        refuse(stream, most).await;
                        drop(turn);
                    });
                }
                continue;
            }
            // Small replies must not wait for the acknowledgement of earlier ones.
            let _ = stream.set_nodelay(true);
            metrics.connections.inc();
            let stream = match move_to(&home, stream) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot serve a connection");
                    metrics.connections.dec();
                    continue;
                }
            };
            let door = Arc::clone(&self.door);
            home.spawn(serve_connection(
                builders.clone(),
                stream,
                peer,
                (door, speaker),
                pace,
                stopping.clone(),
                alive.clone(),
            ));
        }
        let Self {
            config,
            service,
            sites,
            ..
        } = self;
        tracing::info!("draining");
        service.begin_drain();
        if let Some(cluster) = service.cluster()
            && cluster.leads()
        {
            // Requests go on meanwhile: they are passed on to who leads then.
            match cluster.transfer(None).await {
                Ok(node) => tracing::info!(node, "another node leads"),
                Err(error) => tracing::warn!(%error, "nobody else leads"),
            }
        }
        drop(sites);
        let _ = stop.send(Phase::Draining);
        drop((alive, stopping));
        let drained = tokio::time::timeout(config.drain_timeout, all_gone.recv()).await;
        if drained.is_err() {
            tracing::warn!("requests were still running after drain_timeout; they are cut");
            let _ = stop.send(Phase::Cut);
            let _ = all_gone.recv().await;
        }
        if let Some(cluster) = service.cluster() {
            cluster.close().await?;
        } else {
            let closing = tokio::task::spawn_blocking(move || {
                let synced = service.db().sync();
                service.db().close().and(synced)
            });
            closing.await.map_err(io::Error::other)??;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

fn misconfigured(setting: &str, detail: String) -> ServeError {
    ServeError::Config(ConfigError {
        origin: setting.into(),
        detail,
    })
}

/// Which node of which cluster the directory is: one already, or founded or joined now. Also whether
/// it is the first one of its cluster.
async fn identify(
    env: &Env,
    config: &Config,
    engine: &Options,
    member: &Member,
) -> Result<(Identity, bool), ServeError> {
    let dir = &config.data_dir;
    let known = Identity::read(env, dir).map_err(|detail| misconfigured("data_dir", detail))?;
    let mut is_first = known.is_some_and(|known| known.node == cluster::FIRST_NODE);
    let found = || {
        let (env, dir, engine) = (env.clone(), dir.clone(), engine.clone());
        let (name, member) = (config.cluster_id, member.clone());
        tokio::task::spawn_blocking(move || cluster::found(&env, &dir, name, &member, &engine))
    };
    let identity = match known {
        // A crash may have come between the name and the adoption.
        Some(_) if is_first => found().await.map_err(io::Error::other)??,
        Some(known) => known,
        None => {
            let joined = if config.join.is_empty() {
                None
            } else {
                if firn_replica::adopt::is_adoptable(env, dir)? {
                    let detail = "there is a database in data_dir, which a node that joins would \
                                  have to throw away: give it an empty directory";
                    return Err(misconfigured("join", detail.into()));
                }
                let wish = (config.node_id != 0).then_some(config.node_id);
                let or_alone = config.init_cluster;
                let joined = cluster::join::join(&config.join, member, wish, or_alone).await;
                joined.map_err(|detail| misconfigured("join", detail))?
            };
            match joined {
                Some(joined) => {
                    let written = joined.write(env, dir);
                    written.map_err(|detail| misconfigured("data_dir", detail))?;
                    joined
                }
                None if config.init_cluster => {
                    is_first = true;
                    found().await.map_err(io::Error::other)??
                }
                None => {
                    let detail = format!(
                        "{} is no node of a cluster yet: say --init-cluster to make it the first \
                         one, or --join with the address of a member",
                        dir.display()
                    );
                    return Err(misconfigured("peer_addr", detail));
                }
            }
        }
    };
    if let Some(wanted) = config.cluster_id
        && wanted != identity.cluster
    {
        let detail = format!("{} belongs to cluster {}", dir.display(), identity.cluster);
        return Err(misconfigured("cluster_id", detail));
    }
    if config.node_id != 0 && config.node_id != identity.node {
        let detail = format!("{} is node {}", dir.display(), identity.node);
        return Err(misconfigured("node_id", detail));
    }
    Ok((identity, is_first))
}

fn engine_options(config: &Config) -> Options {
    Options {
        memory_bytes: usize::try_from(config.memory_bytes).unwrap_or(usize::MAX),
        background_threads: BACKGROUND_THREADS,
        changefeed_bytes: config.changefeed_bytes,
        changefeed_age: config.changefeed_age,
        ..Options::default()
    }
}

/// Makes the directory a node, as a server with these settings would, and starts nothing. Blocks.
///
/// # Errors
/// As [`Server::start`]; an address whose port is picked at the start.
pub fn prepare_node(config: &Config) -> Result<Identity, ServeError> {
    config.validate().map_err(ServeError::Config)?;
    let Some(peer) = &config.peer_addr else {
        return Err(misconfigured(
            "peer_addr",
            "a node of a cluster needs one".into(),
        ));
    };
    let member = config.member(peer, &config.http, config.resp.as_deref());
    for (setting, address) in [
        ("peer_addr", &member.address),
        ("http", &member.http),
        ("resp", &member.resp),
    ] {
        if address.ends_with(":0") {
            let detail = "others must be told the port: it cannot be picked at the start";
            return Err(misconfigured(setting, detail.into()));
        }
    }
    let env = Env::os(BACKGROUND_THREADS);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let engine = engine_options(config);
    let (identity, _) = runtime.block_on(identify(&env, config, &engine, &member))?;
    Ok(identity)
}

/// Starts the node of a cluster. `told`: what others are told of it; where the peers listen is the
/// wiring's, the rest is known.
async fn start_node(
    env: &Env,
    config: &Config,
    engine: Options,
    (peer_addr, wiring): (&String, &dyn Wiring),
    told: impl Fn(&str) -> Member,
) -> Result<Cluster, ServeError> {
    let bound = wiring.bind(peer_addr).map_err(|cause| ServeError::Bind {
        setting: "peer-addr",
        address: peer_addr.clone(),
        cause,
    })?;
    let (member, dir) = (told(&bound), &config.data_dir);
    let (identity, is_first) = identify(env, config, &engine, &member).await?;
    let network = wiring.connect(env, identity, dir);
    let network = network.map_err(|detail| misconfigured("peer_addr", detail))?;
    let cache = usize::try_from(config.memory_bytes / 8).unwrap_or(usize::MAX);
    let options = NodeOptions {
        engine,
        timing: config.timing(),
        log_bytes: config.cluster_log_bytes,
        request_timeout: config.request_timeout,
        log: LogStoreOptions {
            segment_bytes: (config.cluster_log_bytes / 4).clamp(1 << 20, 64 << 20),
            cache_bytes: cache.min(64 << 20),
            ..LogStoreOptions::default()
        },
        ..NodeOptions::new(identity.node, dir)
    };
    let log_env = Env {
        // One syncs while another prepares the next segment.
        exec: Arc::new(ThreadPool::new(2)),
        ..env.clone()
    };
    let env = env.clone();
    let starting = tokio::task::spawn_blocking(move || {
        cluster::start(env, log_env, options, identity, network)
    });
    let cluster = starting.await.map_err(io::Error::other)??;
    if is_first {
        cluster.begin_alone(member).await?;
    }
    Ok(cluster)
}

/// Opens the database, binds, prints one line that begins with `ready` on the standard output,
/// serves until `shutdown` resolves, drains, flushes, closes. Runs inside a Tokio runtime.
///
/// # Errors
/// What kept it from starting, or from ending well.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    // Asked for before the database is opened: one that comes meanwhile is answered after. Without
    // certificates there is nothing to read anew, and the signal ends the process as it does others.
    let hangups = match config.peer_tls() {
        Some(_) => Some(signal(SignalKind::hangup())?),
        None => None,
    };
    let server = Server::start(config).await?;
    let config = &server.config;
    let auth = if config.insecure {
        "off"
    } else {
        "off (loopback only)"
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %config.data_dir.display(),
        durability = durability_name(config.durability),
        memory = firn_api::size::print(config.memory_bytes),
        auth,
        "listening on http://{}",
        server.http_addr()
    );
    if let Some(cluster) = server.service.cluster() {
        let Identity { cluster, node } = cluster.identity();
        tracing::info!(node, %cluster, "a node of a cluster");
    }
    if let Some(hangups) = hangups
        && let Some(cluster) = server.service.cluster()
    {
        tokio::spawn(renew_at(hangups, Arc::downgrade(cluster)));
    }
    let mut line = format!("ready http={}", server.http_addr());
    for (site, listen) in server.sites[1..].iter().zip(&config.dialect) {
        let (name, address) = (&listen.speech, site.address);
        tracing::info!("listening on http://{address}, speaking {name}");
        line.push_str(&format!(" {name}={address}"));
    }
    if let Some(address) = server.resp_addr() {
        line.push_str(&format!(" resp={address}"));
    }
    line.push_str(&format!(" data_dir={}\n", config.data_dir.display()));
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(line.as_bytes())
        .and_then(|()| stdout.flush())?;
    drop(stdout);
    server.run(shutdown).await
}

/// Reads the certificates between nodes anew at each SIGHUP.
async fn renew_at(mut hangups: Signal, cluster: Weak<Cluster>) {
    while hangups.recv().await.is_some() {
        let Some(cluster) = cluster.upgrade() else {
            return;
        };
        let renewing = tokio::task::spawn_blocking(move || cluster.network().renew());
        match renewing.await.unwrap_or_else(|e| Err(e.to_string())) {
            Ok(()) => {
                tracing::info!("certificates were read anew, for the connections from now on")
            }
            Err(error) => {
                tracing::error!("certificates were not changed, those from before stay: {error}");
            }
        }
    }
}

/// What the binary calls: starts logging and a runtime, serves until SIGTERM or SIGINT. Blocks.
///
/// # Errors
/// As [`run`].
pub fn main(config: Config) -> Result<(), ServeError> {
    start_logging(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("firn-http")
        .enable_all()
        .build()?;
    let ended = runtime.block_on(run(config, termination()));
    // What still runs was given its time.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Resolves at the first SIGTERM or SIGINT. From then on a second one ends the process at once,
/// with the exit code that a shell gives to a process that died of the signal.
pub async fn termination() {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(kinds[0]), signal(kinds[1])) else {
        // No signals can be received: the process ends as the system ends it.
        return std::future::pending().await;
    };
    // The same streams for both, so that a second signal right after the first is not lost.
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => kinds[0].as_raw_value(),
            _ = interrupt.recv() => kinds[1].as_raw_value(),
        }
    };
    let first = next().await;
    tracing::info!(signal = first, "asked to stop; again to stop at once");
    tokio::spawn(async move {
        let second = next().await;
        tracing::warn!("stopped at once");
        std::process::exit(128 + second);
    });
}

/// Log lines go to the standard error. A logger that is there already stays.
fn start_logging(config: &Config) {
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // The consensus library tells of every step, and of the same dead node again and again.
    let consensus = match config.log_level {
        tracing::Level::DEBUG => LevelFilter::INFO,
        tracing::Level::TRACE => LevelFilter::TRACE,
        _ => LevelFilter::OFF,
    };
    let filter = Targets::new()
        .with_default(config.log_level)
        .with_target("openraft", consensus);
    let lines = tracing_subscriber::fmt()
        .with_ansi(colours)
        .with_max_level(config.log_level)
        .with_writer(io::stderr);
    let _ = match config.log_format {
        LogFormat::Text => lines.with_target(false).finish().with(filter).try_init(),
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true);
            lines.finish().with(filter).try_init()
        }
    };
}

/// Who answers on a listener that speaks like this. The namespace is made if it is not there.
async fn speaker(
    config: &Config,
    door: &Arc<Door>,
    speech: Speech,
) -> Result<Option<Arc<Speaker>>, ServeError> {
    let Some(dialect) = speech.dialect else {
        return Ok(None);
    };
    let (service, namespace) = (door.service.clone(), speech.namespace);
    if service.cluster().is_some() {
        // It can be made when there is a leader, which may be later.
        let name = namespace.clone();
        tokio::spawn(async move {
            while let Err(error) = service.create_namespace(&name).await
                && error.code.is_transient()
            {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    } else {
        let made = service.create_namespace(&namespace).await;
        made.map_err(|error| {
            let detail = format!("namespace {namespace:?}: {}", error.detail);
            misconfigured("dialect", detail)
        })?;
    }
    let numbers = config.dialects.clone();
    let speaker = Speaker::new(Arc::clone(door), dialect, namespace, numbers);
    Ok(Some(Arc::new(speaker)))
}

/// The next connection, of whichever listener has one. Each is asked first in its turn, so that a
/// flood on one does not keep the others waiting.
async fn accept(
    sites: &[Site],
    turn: usize,
) -> io::Result<(TcpStream, SocketAddr, Option<Arc<Speaker>>)> {
    std::future::poll_fn(|cx| {
        let (later, first) = sites.split_at(turn % sites.len());
        for site in first.iter().chain(later) {
            if let Poll::Ready(accepted) = site.listener.poll_accept(cx) {
                let speaker = site.speaker.clone();
                return Poll::Ready(accepted.map(|(stream, peer)| (stream, peer, speaker)));
            }
        }
        Poll::Pending
    })
    .await
}

/// On a machine with so few processors the thread of a cluster's node serves its connections as well.
const FEW_PROCESSORS: usize = 2;

/// Who serves connections: the threads of this runtime, or that of the node.
///
/// Nearly every request of a node of a cluster has to do with its thread. Where the others would have a
/// processor of their own they work beside it. Where they would not, a request is no faster for being
/// handed over, and pays for waking two threads: a fifth of what a read costs on two processors.
fn home_of_connections(service: &Service, home: Home) -> Handle {
    let processors = std::thread::available_parallelism().map_or(usize::MAX, NonZero::get);
    let at_node = match home {
        Home::Suited => processors <= FEW_PROCESSORS,
        Home::Runtime => false,
        Home::Node => true,
    };
    let sockets = service.cluster().map(|cluster| cluster.network().sockets());
    let node = sockets.flatten().filter(|_| at_node);
    node.unwrap_or_else(Handle::current)
}

/// Lets another runtime's thread wait for this socket.
fn move_to(home: &Handle, stream: TcpStream) -> io::Result<TcpStream> {
    if home.id() == Handle::current().id() {
        return Ok(stream);
    }
    let stream = stream.into_std()?;
    let _there = home.enter();
    TcpStream::from_std(stream)
}

/// A bound socket on an address, which must be this machine's own unless `insecure`.
async fn prepare(
    setting: &'static str,
    wanted: &str,
    insecure: bool,
) -> Result<TcpSocket, ServeError> {
    let failed = |cause| ServeError::Bind {
        setting,
        address: wanted.to_owned(),
        cause,
    };
    let mut addresses = tokio::net::lookup_host(wanted).await.map_err(failed)?;
    let Some(address) = addresses.next() else {
        return Err(failed(io::Error::new(
            io::ErrorKind::NotFound,
            "the host has no address",
        )));
    };
    if !address.ip().is_loopback() && !insecure {
        let detail = format!(
            "{wanted} can be reached from other machines, and nobody is asked for a password; listen on \
             127.0.0.1, or allow it with --insecure (insecure = true)"
        );
        return Err(ServeError::Config(ConfigError {
            origin: setting.into(),
            detail,
        }));
    }
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    let socket = socket.map_err(failed)?;
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    Ok(socket)
}

/// Takes the connection's place back whatever ends it.
struct Place(Arc<Door>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.metrics.connections.dec();
    }
}

/// How far the server is with stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    Draining,
    Cut,
}

pub(crate) async fn reached(now: &mut watch::Receiver<Phase>, phase: Phase) {
    // A sender that is gone means that the server is.
    let _ = now.wait_for(|now| *now >= phase).await;
}

/// What speaks each protocol.
#[derive(Clone)]
struct Builders {
    http1: http1::Builder,
    config: Arc<Config>,
    grpc: Arc<GrpcDoor>,
}

async fn serve_connection(
    builders: Builders,
    stream: TcpStream,
    peer: SocketAddr,
    (door, speaker): (Arc<Door>, Option<Arc<Speaker>>),
    pace: Pace,
    mut phase: watch::Receiver<Phase>,
    alive: mpsc::Sender<()>,
) {
    let _place = Place(Arc::clone(&door));
    let activity = Arc::new(Activity::of(peer.ip()));
    let mut io = Guarded::new(stream, Arc::clone(&activity), pace);
    let protocol = match &speaker {
        // Dialects are older than HTTP/2.
        Some(_) => Ok(Protocol::Http1),
        None => tokio::select! {
            protocol = io.protocol() => protocol,
            () = reached(&mut phase, Phase::Draining) => return,
        },
    };
    let ended = match protocol {
        Err(error) => {
            tracing::debug!(%error, "connection ended");
            return;
        }
        Ok(Protocol::Http1) => {
            let (handler, activity) = (Arc::clone(&door), Arc::clone(&activity));
            let session = Arc::new(Session::default());
            let service = service_fn(move |request| {
                let (door, activity) = (Arc::clone(&handler), Arc::clone(&activity));
                let (speaker, session) = (speaker.clone(), Arc::clone(&session));
                async move {
                    let reply = match speaker {
                        None => door.handle(request, activity).await,
                        Some(speaker) => speaker.handle(request, activity, &session).await,
                    };
                    Ok::<_, std::convert::Infallible>(reply)
                }
            });
            let connection = builders.http1.serve_connection(TokioIo::new(io), service);
            tokio::pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = reached(&mut phase, Phase::Draining) => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection.as_mut() => ended,
                        () = reached(&mut phase, Phase::Cut) => Ok(()),
                    }
                }
            }
        }
        Ok(Protocol::Http2) => serve_http2(builders, io, door, activity, pace, &mut phase).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
    drop(alive);
}

/// A connection on which requests of both doors overlap.
async fn serve_http2(
    builders: Builders,
    io: Guarded,
    door: Arc<Door>,
    activity: Arc<Activity>,
    pace: Pace,
    phase: &mut watch::Receiver<Phase>,
) -> hyper::Result<()> {
    let replies = Arc::new(Replies::default());
    let (of_requests, grpc) = (Arc::clone(&replies), builders.grpc);
    let seen = Arc::clone(&activity);
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (door, grpc) = (Arc::clone(&door), Arc::clone(&grpc));
        let (activity, replies) = (Arc::clone(&seen), Arc::clone(&of_requests));
        async move {
            let method = request.method().clone();
            let reply = if grpc::is_grpc(&request) {
                grpc.handle(request, activity).await.map(AnyBody::Grpc)
            } else {
                door.handle(request, activity).await.map(AnyBody::Http)
            };
            Ok::<_, std::convert::Infallible>(replies.adopt(&method, reply))
        }
    });
    let mut streams = multiplex::Running::default();
    let builder = multiplex::builder(&builders.config, streams.begun());
    let connection = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let mut look = tokio::time::interval(pace.write.max(Duration::from_millis(1)));
    look.reset();
    let rest = tokio::time::sleep(pace.idle);
    tokio::pin!(rest);
    let mut rested = activity.rest();
    let (mut awaited, mut leaving) = (Phase::Draining, false);
    loop {
        tokio::select! {
            ended = streams.beside(connection.as_mut()) => return ended,
            () = reached(phase, awaited) => {
                if awaited == Phase::Cut {
                    return Ok(());
                }
                awaited = Phase::Cut;
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = look.tick() => {
                let stalled = replies.drop_stalled();
                if stalled > 0 {
                    tracing::debug!(stalled, "replies that their client did not take are dropped");
                }
            }
            () = rest.as_mut() => {
                let now = activity.rest();
                let idle = now.is_some() && now == rested;
                rested = now;
                let mut next = pace.idle;
                if idle && leaving {
                    // It was told, and had the time of a head to close.
                    return Ok(());
                } else if idle {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                    next = pace.header;
                }
                rest.as_mut().reset(tokio::time::Instant::now() + next);
            }
        }
    }
}

/// Tells a client that there are too many, and waits briefly so that it can read it.
async fn refuse(mut stream: TcpStream, most: u64) {
    let code = firn_api::code::Code::TooManyConnections;
    let mut problem =
        firn_api::http::Problem::new(code, "limits.connections are open; try again later");
    problem.limit = Some(most);
    problem.retry_after_ms = Some(1_000);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let reply = format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
         content-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let talk = async {
        stream.write_all(reply.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection under the reply.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), talk).await;
}

/// Turns the engine's events into log lines.
struct LogEvents;

impl EventListener for LogEvents {
    fn on_event(&self, event: &Event) {
        tracing::info!(target: "firn_engine", "{event}");
    }
}
