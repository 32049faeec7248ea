//! The real network between nodes: [`firn_peer`] on the node's own thread, where a message wakes one
//! thread on its way into the log, not three. Heartbeats do not wait for clients there, but for those whom
//! the thread serves on a machine with one or two processors (see `crate::serve`).

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use firn_io::Env;
use firn_peer::{Direction, LinkStats, Listener, PeerOptions, Peers, Tls, TlsFiles};
use firn_replica::home::Home;
use firn_replica::transport::Transport;
use firn_replica::{Node, Timing};
use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime};

use crate::cluster::identity::Identity;
use crate::cluster::{Network, Wiring};
use crate::config::Config;

/// How the sockets of a node are made.
#[derive(Debug)]
pub struct Sockets {
    tls: Option<TlsFiles>,
    insecure: bool,
    timing: Timing,
    address: Mutex<String>,
}

impl Sockets {
    /// As the settings say.
    pub fn new(config: &Config) -> Self {
        Self {
            tls: config.peer_tls(),
            insecure: config.insecure,
            timing: config.timing(),
            address: Mutex::default(),
        }
    }
}

impl Wiring for Sockets {
    fn bind(&self, address: &str) -> std::io::Result<String> {
        let mut taken = address.to_owned();
        if let Some(host) = address.strip_suffix(":0") {
            // The port must be known before the node has a number, and is taken after.
            let port = TcpListener::bind(address)?.local_addr()?.port();
            taken = format!("{host}:{port}");
        }
        *self.address.lock() = taken.clone();
        Ok(taken)
    }

    fn connect(
        &self,
        env: &Env,
        identity: Identity,
        dir: &Path,
    ) -> Result<Arc<dyn Network>, String> {
        let home = Home::open(Arc::clone(&env.fs), dir, identity.node, &*env.entropy);
        let home = home.map_err(|error| error.to_string())?;
        let cluster = firn_peer::ClusterId(identity.cluster.to_bytes());
        let tls = match &self.tls {
            Some(files) => Some(Tls::load(env, files.clone()).map_err(|e| e.to_string())?),
            None => None,
        };
        let options = PeerOptions {
            tls: tls.clone(),
            insecure: self.insecure,
            ..PeerOptions::new(cluster, identity.node, home.incarnation())
        };
        let options = options.timed(&self.timing);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let handle = runtime.handle().clone();
        let address = self.address.lock().clone();
        let made = Peers::new(options, env, dir, handle.clone()).and_then(|peers| {
            let listening = || runtime.block_on(peers.listen(&address));
            let listener = tokio::task::block_in_place(listening)?;
            Ok((peers, listener))
        });
        let (peers, listener) = match made {
            Ok(made) => made,
            Err(error) => {
                // Dropped here it would wait, which tasks must not.
                runtime.shutdown_background();
                return Err(error.to_string());
            }
        };
        Ok(Arc::new(Connected {
            peers,
            listener: Mutex::new(Some(listener)),
            runtime: Mutex::new(Some(runtime)),
            handle,
            tls,
        }))
    }
}

/// A node's sockets.
#[derive(Debug)]
struct Connected {
    peers: Arc<Peers>,
    /// Until there is a node.
    listener: Mutex<Option<Listener>>,
    /// Until the node's thread drives it.
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
    tls: Option<Arc<Tls>>,
}

impl Network for Connected {
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.peers) as Arc<dyn Transport>
    }

    fn take_runtime(&self) -> Option<Runtime> {
        self.runtime.lock().take()
    }

    fn sockets(&self) -> Option<Handle> {
        Some(self.handle.clone())
    }

    fn attach(&self, node: Node) {
        if let Some(listener) = self.listener.lock().take() {
            self.handle.spawn(listener.serve(Arc::new(node)));
        }
    }

    fn detach(&self) {
        self.peers.close();
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }

    fn renew(&self) -> Result<(), String> {
        match &self.tls {
            Some(tls) => tls.reload().map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let links = self.peers.stats();
        let sum = |of: fn(&LinkStats) -> u64| links.iter().map(|link| of(&link.3)).sum();
        let out = |of: fn(&LinkStats) -> u64| {
            let outgoing = links.iter().filter(|link| link.2 == Direction::Outgoing);
            outgoing.map(|link| of(&link.3)).sum()
        };
        vec![
            (
                "raft_connects",
                "Connections made to other nodes",
                out(|l| l.connects),
            ),
            (
                "raft_connect_failures",
                "Attempts to connect to another node that failed",
                out(|l| l.connect_failures),
            ),
            (
                "raft_connection_losses",
                "Connections between nodes that broke",
                sum(|l| l.losses),
            ),
            (
                "raft_messages_sent",
                "Requests sent to other nodes",
                out(|l| l.requests),
            ),
            (
                "raft_message_failures",
                "Requests to other nodes that were given up",
                out(|l| l.failures),
            ),
            (
                "raft_sent_bytes",
                "Bytes sent to other nodes",
                sum(|l| l.bytes_sent),
            ),
            (
                "raft_received_bytes",
                "Bytes received from other nodes",
                sum(|l| l.bytes_received),
            ),
        ]
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.detach();
    }
}
