//! The RESP door: the protocol of Redis, versions 2 and 3, on a listener of its own.
//!
//! | Module | Owns |
//! |---|---|
//! | [`parse`] | bytes to arguments, in place |
//! | [`reply`] | values to bytes, in both protocols |
//! | [`table`] | the one table of commands |
//! | [`session`] | how commands run: reads, runs of writes, conditions, acknowledgements |
//! | `ahead` | `GET`s of a pipeline, looked up together |
//! | [`connection`] | the loop of a connection: read, run, acknowledge, write |
//! | [`shared`] | what connections share |
//! | [`client`] | who is connected; commands about connections |
//! | `strings`, `keys`, `txn`, `pubsub`, `operate`, `own` | the commands |
//! | [`number`], [`glob`], [`dump`] | decimal fractions, patterns, the form of `DUMP` |
//! | [`page`] | `docs/api/resp.md`, from the table |
//!
//! Values are strings only. What Redis has beyond that is answered as a command that Redis does not
//! know, so that clients take it for an older server, not for a broken one.
//!
//! **Threads.** Connections are dealt out to threads of the door's own, one for two processors, each
//! with a runtime of one thread. A command takes a microsecond, and what a runtime of many threads
//! spends on sharing its tasks (waking a thread, moving a task) costs more than that: measured with
//! one request in flight on each of 50 connections, half as much processor time again. What takes
//! long does not run there anyway, but on blocking threads.
//!
//! A connection is one task. It takes all that its client has sent, runs it as plain code, waits
//! once for the acknowledgement of what was written, and answers with one write to the socket.

mod ahead;
pub mod client;
pub mod connection;
pub mod dump;
pub mod glob;
mod keys;
pub mod number;
mod operate;
mod own;
pub mod page;
pub mod parse;
mod pubsub;
pub mod reply;
pub mod session;
pub mod shared;
mod strings;
pub mod table;
mod txn;

use std::sync::Arc;
use std::time::Duration;

use firn_io::rng::Entropy;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::resp::client::drain_all;
use crate::resp::connection::{Pace, serve_connection};
use crate::resp::shared::Shared;
use crate::serve::{Phase, reached};
use crate::service::Service;

/// The listener of the door and what its connections share.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    shared: Arc<Shared>,
    pace: Pace,
    most: u64,
}

impl Door {
    /// A door on a bound listener.
    pub fn new(
        listener: TcpListener,
        service: Service,
        metrics: Arc<Metrics>,
        entropy: Arc<dyn Entropy>,
        config: &Config,
    ) -> Self {
        let port = listener.local_addr().map_or(0, |address| address.port());
        let mut shared = Shared::new(service, metrics, entropy, port);
        shared.max_clients = config.connections;
        Self {
            listener,
            shared: Arc::new(shared),
            pace: Pace {
                idle: config.resp_idle_timeout,
                write: config.write_timeout,
            },
            most: config.connections,
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the phase is draining; sees to it that connections end. Each holds a clone of
    /// `alive` while it lasts.
    pub(crate) async fn serve(self, mut phase: watch::Receiver<Phase>, alive: mpsc::Sender<()>) {
        let Self {
            listener,
            shared,
            pace,
            most,
        } = self;
        let workers: Vec<_> = (0..worker_count())
            .map(|_| start_worker(&shared, pace))
            .collect();
        let mut turn = 0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = reached(&mut phase, Phase::Draining) => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: what helps is that somebody closes one.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let metrics = &shared.metrics;
            if metrics.connections.get() >= i64::try_from(most).unwrap_or(i64::MAX) {
                metrics.refused_connections.inc();
                tokio::spawn(refuse(stream));
                continue;
            }
            // Small replies must not wait for the acknowledgement of earlier ones.
            let _ = stream.set_nodelay(true);
            let Ok(stream) = stream.into_std() else {
                continue;
            };
            metrics.connections.inc();
            let worker = &workers[turn % workers.len()];
            turn += 1;
            // Workers last as long as this sender.
            let _ = worker.send((stream, alive.clone()));
        }
        drop(workers);
        drop(listener);
        // A connection that is opened in between asks by itself.
        drain_all(&shared, false);
        drop(alive);
        reached(&mut phase, Phase::Cut).await;
        drain_all(&shared, true);
    }
}

fn worker_count() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().div_ceil(2))
}

/// A connection for a worker, and what it holds while it lasts.
type Dealt = (std::net::TcpStream, mpsc::Sender<()>);

/// Starts a thread that serves what it is sent, until the sender and its connections are gone.
fn start_worker(shared: &Arc<Shared>, pace: Pace) -> mpsc::UnboundedSender<Dealt> {
    let (deal, mut dealt) = mpsc::unbounded_channel::<Dealt>();
    let shared = Arc::clone(shared);
    let serve = async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                next = dealt.recv() => {
                    let Some((stream, alive)) = next else { break };
                    let shared = Arc::clone(&shared);
                    match TcpStream::from_std(stream) {
                        Ok(stream) => {
                            connections.spawn(serve_connection(stream, shared, pace, alive));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot serve a connection");
                            shared.metrics.connections.dec();
                        }
                    }
                }
                Some(_) = connections.join_next() => {}
            }
        }
        while connections.join_next().await.is_some() {}
    };
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(serve),
            Err(error) => tracing::error!(%error, "cannot start a thread of the RESP door"),
        }
    });
    deal
}

/// Tells a client that there are too many.
async fn refuse(mut stream: TcpStream) {
    let talk = async {
        stream
            .write_all(b"-ERR max number of clients reached\r\n")
            .await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), talk).await;
}
