//! A server on a port of its own, and a client that is nothing but a socket.

use std::net::SocketAddr;
use std::time::Duration;

use firn_client::Client;
use firn_io::Env;
use firn_server::config::Config;
use firn_server::serve::{ServeError, Server};
use firn_server::service::Service;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A running server. Its data goes when it goes.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) resp: Option<SocketAddr>,
    pub(crate) client: Client,
    /// Where the listeners of `dialect` are.
    pub(crate) dialects: Vec<SocketAddr>,
    pub(crate) service: Service,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServeError>>,
    pub(crate) dir: tempfile::TempDir,
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change).await
    }

    pub(crate) async fn start_in(dir: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_by(Env::os(2), dir, change).await
    }

    /// In an environment of the test's: its clock.
    pub(crate) async fn start_by(
        env: Env,
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config {
            data_dir: dir.path().join("data"),
            http: "127.0.0.1:0".into(),
            resp: Some("127.0.0.1:0".into()),
            memory_bytes: 64 << 20,
            ..Config::default()
        };
        change(&mut config);
        let server = Server::start_in(env, config).await.unwrap();
        let (address, resp) = (server.http_addr(), server.resp_addr());
        let (dialects, service) = (server.dialect_addrs(), server.service().clone());
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        let client = Client::connect(&address.to_string()).unwrap();
        Self {
            address,
            resp,
            client,
            dialects,
            service,
            stop,
            ended,
            dir,
        }
    }

    /// Stops the server and hands its directory back.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        let Self {
            client,
            service,
            stop,
            ended,
            dir,
            ..
        } = self;
        drop((client, service));
        stop.send(()).unwrap();
        ended.await.unwrap().unwrap();
        dir
    }

    /// Tells it to stop; the caller watches.
    pub(crate) fn begin_stop(self) -> (JoinHandle<Result<(), ServeError>>, tempfile::TempDir) {
        self.stop.send(()).unwrap();
        (self.ended, self.dir)
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes, then reads until the server closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        read_reply(&mut stream).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        request(self.address, method, target, headers, body).await
    }

    pub(crate) async fn get(&self, target: &str) -> Reply {
        self.send("GET", target, &[], b"").await
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let reply = self.get("/metrics").await;
        let line = reply
            .text()
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name}"))
            .parse()
            .unwrap()
    }

    pub(crate) async fn put(&self, target: &str, body: &[u8]) -> Reply {
        self.send("PUT", target, &[], body).await
    }
}

/// One request on a connection of its own.
pub(crate) async fn request(
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut head =
        format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    if !body.is_empty() || matches!(method, "PUT" | "POST") {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut stream = TcpStream::connect(to).await.unwrap();
    let bytes = [head.as_bytes(), body].concat();
    stream.write_all(&bytes).await.unwrap();
    read_reply(&mut stream).await
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Checks that it is a problem of this code and returns it.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert!(!problem["detail"].as_str().unwrap().is_empty());
        assert!(!problem["title"].as_str().unwrap().is_empty());
        assert_eq!(problem["type"], format!("urn:firn:error:{code}"));
        problem
    }
}

/// Reads to the end of the connection and takes the reply apart.
pub(crate) async fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
    read.expect("the server neither answered nor closed")
        .unwrap();
    parse_reply(&bytes)
}

pub(crate) fn parse_reply(bytes: &[u8]) -> Reply {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut reply = Reply {
        status,
        head,
        body: bytes[end + 4..].to_vec(),
    };
    if status == 100 {
        return parse_reply(&bytes[end + 4..]);
    }
    if reply.header("transfer-encoding") == Some("chunked") {
        reply.body = dechunk(&reply.body);
    }
    reply
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(at) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
        out.extend_from_slice(&bytes[at + 2..at + 2 + size]);
        bytes = &bytes[at + 4 + size..];
    }
    out
}
