//! A node without a store: it answers what a test tells it to.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firn_io::Env;
use firn_peer::{ClusterId, Handler, PeerOptions, Peers};
use firn_replica::NodeId;
use firn_replica::transport::{BoxFuture, Class, Peer, Transport, TransportError};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub(crate) const CLUSTER: ClusterId = ClusterId([5; 16]);
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// An answer made of a request by a function.
pub(crate) struct Answers<F>(pub(crate) F);

impl<F> Handler for Answers<F>
where
    F: Fn(Bytes) -> BoxFuture<'static, Bytes> + Send + Sync + 'static,
{
    fn handle(&self, _: NodeId, _: Class, request: Bytes) -> BoxFuture<'static, Bytes> {
        (self.0)(request)
    }
}

/// Gives every request back.
pub(crate) fn echo() -> Arc<dyn Handler> {
    Arc::new(Answers(|request: Bytes| -> BoxFuture<'static, Bytes> {
        Box::pin(async move { request })
    }))
}

pub(crate) fn options(node: NodeId) -> PeerOptions {
    let mut options = PeerOptions::new(CLUSTER, node, 100 + node);
    // Machines that run tests may be slow.
    options.silence = Duration::from_secs(5);
    options
}

/// One end.
pub(crate) struct End {
    pub(crate) peers: Arc<Peers>,
    dir: TempDir,
}

impl End {
    pub(crate) fn new(options: PeerOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let peers = Peers::new(options, &Env::os(1), dir.path(), Handle::current()).unwrap();
        Self { peers, dir }
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Listens, on any port or on a given one.
    pub(crate) async fn serve(
        &self,
        address: &str,
        handler: Arc<dyn Handler>,
    ) -> (String, JoinHandle<()>) {
        let listener = self.peers.listen(address).await.unwrap();
        let address = listener.address().to_string();
        (address, tokio::spawn(listener.serve(handler)))
    }

    pub(crate) async fn ask(
        &self,
        to: &Peer,
        class: Class,
        request: &'static [u8],
    ) -> Result<Bytes, TransportError> {
        let request = Bytes::from_static(request);
        self.peers.call(to, class, request, LONG).await
    }

    /// Asks until there is an answer: a listener may just be coming back.
    pub(crate) async fn ask_until_answered(&self, to: &Peer) -> Bytes {
        let begin = tokio::time::Instant::now();
        loop {
            match self.ask(to, Class::Urgent, b"again").await {
                Ok(answer) => return answer,
                Err(error) => assert!(begin.elapsed() < LONG, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn peer(id: NodeId, address: &str) -> Peer {
    Peer {
        id,
        address: address.to_owned(),
    }
}

/// Why a call could not be delivered.
pub(crate) fn why(result: Result<Bytes, TransportError>) -> String {
    match result {
        Err(TransportError::Unreachable(why)) => why,
        other => panic!("{other:?}"),
    }
}
