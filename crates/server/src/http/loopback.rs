//! The door without a socket: bytes in, bytes out. For fuzzing, which is why it is public and hidden.

use std::sync::Arc;
use std::time::Duration;

use firn_api::limits::Limits;
use firn_engine::{Db, Durability};
use firn_io::Env;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::connection::Activity;
use crate::dialect::{Dialect, Numbers, Session, Speaker};
use crate::http::Door;
use crate::metrics::Metrics;
use crate::service::{DEFAULT_NAMESPACE, Parts, Service};

/// Memory for a database behind it.
pub const MEMORY_BYTES: usize = 8 << 20;
const PACE: Duration = Duration::from_secs(5);
const BUFFER_BYTES: usize = 64 << 10;

/// A door that answers one connection after the other.
#[derive(Debug)]
pub struct Loopback {
    door: Arc<Door>,
    speaker: Option<Arc<Speaker>>,
}

impl Loopback {
    /// Before this database, with small limits.
    pub fn new(db: Db, env: &Env) -> Self {
        let limits = Limits {
            value_bytes: 64 << 10,
            body_bytes: 64 << 10,
            // A watch has no end, and an exchange waits for one.
            watches: 0,
            ..Limits::default()
        };
        let parts = Parts {
            clock: Arc::clone(&env.clock),
            fs: Arc::clone(&env.fs),
            limits,
            durability: Durability::Buffered,
            write_delay: PACE,
            checkpoint_dir: "/checkpoints".into(),
        };
        let service = Service::new(db, parts);
        let door = Arc::new(Door {
            metrics: Metrics::new(service.clone()),
            service,
            body_timeout: PACE,
            slow_request: PACE,
            // Seeds and their mutations name any host.
            local: false,
            started: env.clock.monotonic(),
        });
        let speaker = None;
        Self { door, speaker }
    }

    /// The same, speaking a dialect.
    #[must_use]
    pub fn speaking(self, dialect: Dialect) -> Self {
        let (door, numbers) = (Arc::clone(&self.door), Numbers::default());
        let speaker = Speaker::new(door, dialect, DEFAULT_NAMESPACE.into(), numbers);
        Self {
            speaker: Some(Arc::new(speaker)),
            ..self
        }
    }

    /// The door itself.
    pub(crate) fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door)
    }

    /// What a client reads that sends these bytes and then no more.
    pub async fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let (client, server) = tokio::io::duplex(BUFFER_BYTES);
        let (mut from, mut to) = tokio::io::split(client);
        let (door, speaker) = (Arc::clone(&self.door), self.speaker.clone());
        let session = Arc::new(Session::default());
        let activity = Arc::new(Activity::default());
        let service = service_fn(move |request| {
            let (door, activity) = (Arc::clone(&door), Arc::clone(&activity));
            let (speaker, session) = (speaker.clone(), Arc::clone(&session));
            async move {
                let reply = match speaker {
                    None => door.handle(request, activity).await,
                    Some(speaker) => speaker.handle(request, activity, &session).await,
                };
                Ok::<_, std::convert::Infallible>(reply)
            }
        });
        let mut builder = http1::Builder::new();
        builder.half_close(true).header_read_timeout(None);
        let serve = builder.serve_connection(TokioIo::new(server), service);
        let send = async {
            // A server that closes early is its right.
            let _ = to.write_all(bytes).await;
            let _ = to.shutdown().await;
        };
        let mut reply = Vec::new();
        let receive = from.read_to_end(&mut reply);
        let _ = tokio::join!(serve, send, receive);
        reply
    }
}
