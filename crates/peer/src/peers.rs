//! A node's end of everything: the ways to others, and the listener for them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firn_io::Env;
use firn_replica::NodeId;
use firn_replica::transport::{BoxFuture, Class, Peer, Transport, TransportError};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::incoming::{self, Listener};
use crate::known::Known;
use crate::options::{PeerError, PeerOptions};
use crate::outgoing::Lanes;
use crate::stats::{Direction, LinkStats, Registry};

/// The other nodes, as seen from this one. It is the [`Transport`] of the node.
pub struct Peers {
    options: Arc<PeerOptions>,
    known: Arc<Known>,
    registry: Arc<Registry>,
    lanes: Arc<Lanes>,
    close: watch::Sender<bool>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers")
            .field("node", &self.options.node)
            .finish_non_exhaustive()
    }
}

impl Peers {
    /// Connects to nobody yet. `root` is the directory of the node, where is kept who was seen;
    /// `runtime` runs the connections, and must have timers and sockets enabled. Best it is the
    /// node's, whose thread a message then need not wake.
    ///
    /// # Errors
    /// The file with those who were seen is damaged or cannot be read.
    pub fn new(
        options: PeerOptions,
        env: &Env,
        root: &Path,
        runtime: Handle,
    ) -> Result<Arc<Self>, PeerError> {
        let options = Arc::new(options);
        let known = Arc::new(Known::open(Arc::clone(&env.fs), root.to_path_buf())?);
        let registry = Arc::<Registry>::default();
        let (close, closed) = watch::channel(false);
        let lanes = Lanes::new(
            Arc::clone(&options),
            Arc::clone(&known),
            Arc::clone(&env.entropy),
            Arc::clone(&registry),
            (runtime, closed),
        );
        Ok(Arc::new(Self {
            options,
            known,
            registry,
            lanes: Arc::new(lanes),
            close,
        }))
    }

    /// Binds an address for other nodes. Nobody is accepted before [`Listener::serve`] runs.
    ///
    /// # Errors
    /// The address is in use, is not this machine's, or can be reached from others although there are
    /// no certificates.
    pub async fn listen(&self, address: &str) -> Result<Listener, PeerError> {
        let bound = async {
            let listener = incoming::bind(address, &self.options).await?;
            let local = listener.local_addr()?;
            Ok((listener, local))
        };
        let bound = bound.await.map_err(|cause| PeerError::Bind {
            address: address.to_owned(),
            cause,
        });
        let (listener, address) = bound?;
        Ok(Listener {
            listener,
            address,
            options: Arc::clone(&self.options),
            known: Arc::clone(&self.known),
            registry: Arc::clone(&self.registry),
            closed: self.close.subscribe(),
        })
    }

    /// What every connection did, by node, class and direction.
    pub fn stats(&self) -> Vec<(NodeId, Class, Direction, LinkStats)> {
        self.registry.read()
    }

    /// Ends all connections, and accepts none any more. Requests that are on their way are lost.
    pub fn close(&self) {
        self.close.send_replace(true);
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.close();
    }
}

impl Transport for Peers {
    fn call(
        &self,
        to: &Peer,
        class: Class,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        self.lanes.call(to, class, request, timeout)
    }
}
