//! Three servers in one process that are one cluster, over real sockets for clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firn_io::Env;
use firn_replica::transport::{BoxFuture, Class, Peer, Transport, TransportError};
use firn_replica::{Node, Replicator};
use firn_server::cluster::identity::Identity;
use firn_server::cluster::{Network, Wiring};
use firn_server::config::Config;
use firn_server::serve::{Home, ServeError, Server};
use firn_server::service::Service;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::resp_client::{Reply, Resp, bulk, ok};
use crate::support;

/// Nodes of one process, by the address at which they are known.
#[derive(Debug, Default)]
struct Hub(Mutex<BTreeMap<String, Node>>);

/// What a node's thread drives, until it is taken.
#[derive(Debug, Default)]
struct Spare(Mutex<Option<Runtime>>);

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.lock().take() {
            // Dropped it would wait, which tasks must not.
            runtime.shutdown_background();
        }
    }
}

/// One node's end of it.
#[derive(Clone, Debug)]
struct Plug {
    hub: Arc<Hub>,
    address: String,
    runtime: Arc<Spare>,
    sockets: Option<Handle>,
}

impl Wiring for Plug {
    fn bind(&self, _: &str) -> std::io::Result<String> {
        Ok(self.address.clone())
    }

    fn connect(&self, _: &Env, _: Identity, _: &Path) -> Result<Arc<dyn Network>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Ok(Arc::new(Self {
            sockets: Some(runtime.handle().clone()),
            runtime: Arc::new(Spare(Mutex::new(Some(runtime)))),
            ..self.clone()
        }))
    }
}

impl Network for Plug {
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.clone())
    }

    fn take_runtime(&self) -> Option<Runtime> {
        self.runtime.0.lock().take()
    }

    fn sockets(&self) -> Option<Handle> {
        self.sockets.clone()
    }

    fn attach(&self, node: Node) {
        self.hub.0.lock().insert(self.address.clone(), node);
    }

    fn detach(&self) {
        self.hub.0.lock().remove(&self.address);
    }
}

impl Plug {
    fn reach(&self, to: &Peer) -> Result<Node, TransportError> {
        let nodes = self.hub.0.lock();
        let from_here = nodes.contains_key(&self.address);
        let node = nodes.get(&to.address).filter(|_| from_here);
        node.cloned()
            .ok_or_else(|| TransportError::Unreachable(to.address.clone()))
    }
}

impl Transport for Plug {
    fn call(
        &self,
        to: &Peer,
        _: Class,
        request: Bytes,
        most: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let node = self.reach(to);
        let (plug, to) = (self.clone(), to.clone());
        Box::pin(async move {
            let answer = timeout(most, node?.handle(request)).await;
            plug.reach(&to)?;
            answer.map_err(|_| TransportError::Timeout)
        })
    }
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

struct Running {
    service: Service,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServeError>>,
}

struct Cluster {
    hub: Arc<Hub>,
    dir: tempfile::TempDir,
    http: Vec<SocketAddr>,
    resp: Vec<SocketAddr>,
    running: Vec<Option<Running>>,
    /// Where connections of HTTP are served.
    home: Home,
}

impl Cluster {
    fn new(nodes: usize) -> Self {
        Self {
            home: Home::Runtime,
            hub: Arc::default(),
            dir: tempfile::tempdir().unwrap(),
            http: (0..nodes).map(|_| free_port()).collect(),
            resp: (0..nodes).map(|_| free_port()).collect(),
            running: (0..nodes).map(|_| None).collect(),
        }
    }

    fn config(&self, at: usize) -> Config {
        Config {
            data_dir: self.dir.path().join(format!("d{at}")),
            http: self.http[at].to_string(),
            resp: Some(self.resp[at].to_string()),
            memory_bytes: 64 << 20,
            peer_addr: Some(format!("127.0.0.1:{}", at + 1)),
            init_cluster: at == 0,
            join: match at {
                0 => Vec::new(),
                _ => vec![self.http[0].to_string()],
            },
            election_timeout: Duration::from_millis(400),
            ..Config::default()
        }
    }

    async fn start(&mut self, at: usize) {
        self.start_as(self.config(at), at).await.unwrap();
    }

    async fn start_as(&mut self, config: Config, at: usize) -> Result<(), ServeError> {
        let plug = Plug {
            hub: Arc::clone(&self.hub),
            address: config.peer_addr.clone().unwrap_or_default(),
            runtime: Arc::default(),
            sockets: None,
        };
        let server = Server::start_wired(Env::os(2), config, &plug).await?;
        let server = server.at_home(self.home);
        let service = server.service().clone();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        self.running[at] = Some(Running {
            service,
            stop,
            ended,
        });
        Ok(())
    }

    async fn of_three() -> Self {
        Self::of_three_at(Home::Runtime).await
    }

    async fn of_three_at(home: Home) -> Self {
        let mut cluster = Self::new(3);
        cluster.home = home;
        for at in 0..3 {
            cluster.start(at).await;
        }
        cluster.ready(&[0, 1, 2]).await;
        cluster
    }

    fn service(&self, at: usize) -> &Service {
        &self.running[at].as_ref().unwrap().service
    }

    /// Waits until these are ready voters.
    async fn ready(&self, which: &[usize]) {
        for &at in which {
            let service = self.service(at);
            let cluster = service.cluster().unwrap();
            let is_ready = || {
                let status = cluster.node().status();
                status.membership.is_voter(status.node) && cluster.trouble().is_none()
            };
            wait_until(is_ready).await;
        }
    }

    /// Which of those that run leads.
    async fn leader(&self) -> usize {
        let leader = || {
            let leads = |running: &Running| running.service.cluster().unwrap().leads();
            self.running
                .iter()
                .position(|r| r.as_ref().is_some_and(leads))
        };
        wait_until(|| leader().is_some()).await;
        leader().unwrap()
    }

    async fn stop(&mut self, at: usize) {
        let Running {
            service,
            stop,
            ended,
        } = self.running[at].take().unwrap();
        drop(service);
        stop.send(()).unwrap();
        ended.await.unwrap().unwrap();
    }

    /// Nobody reaches it any more, nor does it reach anybody.
    fn unplug(&self, at: usize) -> Node {
        let address = format!("127.0.0.1:{}", at + 1);
        self.hub.0.lock().remove(&address).unwrap()
    }

    fn plug(&self, at: usize, node: Node) {
        let address = format!("127.0.0.1:{}", at + 1);
        self.hub.0.lock().insert(address, node);
    }

    async fn send(
        &self,
        at: usize,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> support::Reply {
        let request = support::request(self.http[at], method, target, headers, body);
        let answer = timeout(Duration::from_secs(20), request).await;
        answer.unwrap_or_else(|_| panic!("{method} {target}: no answer"))
    }

    async fn resp(&self, at: usize) -> Resp {
        Resp::connect(self.resp[at]).await
    }
}

async fn wait_until(mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), waiting)
        .await
        .expect("it takes too long");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_takes_all_have() {
    what_one_node_takes_all_have_at(Home::Runtime).await;
}

/// As on a machine with one or two processors.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_takes_all_have_where_its_thread_serves_clients() {
    what_one_node_takes_all_have_at(Home::Node).await;
}

async fn what_one_node_takes_all_have_at(home: Home) {
    let cluster = Cluster::of_three_at(home).await;
    for at in 0..3 {
        let key = format!("/v1/keys/k{at}");
        let put = cluster.send(at, "PUT", &key, &[], b"v").await;
        assert_eq!(put.status, 204, "{}", put.text());
        assert_eq!(put.header("kv-durability"), Some("sync"));
        for other in 0..3 {
            let got = cluster.send(other, "GET", &key, &[], b"").await;
            assert_eq!((got.status, &*got.body), (200, &b"v"[..]));
            let tag = got.header("etag").unwrap().to_owned();
            let stale = [("if-match", "\"999999\"")];
            let refused = cluster.send(other, "PUT", &key, &stale, b"w").await;
            assert_eq!(refused.status, 412);
            let same = [("if-match", tag.as_str())];
            let put = cluster.send(other, "PUT", &key, &same, b"v").await;
            assert_eq!(put.status, 204, "{}", put.text());
        }
        for level in ["lease", "stale", "linearizable"] {
            let target = format!("{key}?consistency={level}");
            let got = cluster.send(at, "GET", &target, &[], b"").await;
            assert_eq!(got.header("kv-consistency"), Some(level));
        }
    }
    // Namespaces, batches, ranges.
    assert_eq!(
        cluster.send(1, "PUT", "/v1/ns/shop", &[], b"").await.status,
        201
    );
    assert_eq!(
        cluster.send(2, "PUT", "/v1/ns/shop", &[], b"").await.status,
        204
    );
    let batch =
        br#"{"ops":[{"op":"put","key":"a","value":"1"},{"op":"put","key":"b","value":"2"}]}"#;
    let done = cluster
        .send(2, "POST", "/v1/ns/shop/batch", &[], batch)
        .await;
    assert_eq!(done.status, 200, "{}", done.text());
    for at in 0..3 {
        let page = cluster
            .send(at, "GET", "/v1/ns/shop/range?limit=1", &[], b"")
            .await;
        let cursor = page.json()["next_cursor"].as_str().unwrap().to_owned();
        // A page goes on at another node.
        let target = format!("/v1/ns/shop/range?cursor={cursor}");
        let rest = cluster.send((at + 1) % 3, "GET", &target, &[], b"").await;
        assert_eq!(rest.json()["entries"][0]["key"], "b", "{}", rest.text());
        let mget = br#"{"keys":["a","c"]}"#;
        let found = cluster
            .send(at, "POST", "/v1/ns/shop/mget", &[], mget)
            .await;
        assert_eq!(found.json()["entries"][0]["value"], "1");
    }
    assert_eq!(
        cluster
            .send(0, "DELETE", "/v1/ns/shop", &[], b"")
            .await
            .status,
        204
    );
    for at in 0..3 {
        let gone = cluster
            .send(at, "GET", "/v1/ns/shop/keys/a", &[], b"")
            .await;
        assert_eq!(gone.json()["code"], "namespace_not_found");
    }
    let ahead = "/v1/watch?from=1000000";
    let refused = cluster.send(0, "GET", ahead, &[], b"").await;
    assert_eq!(refused.status, 400);
    let ready = cluster.send(2, "GET", "/readyz", &[], b"").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    // Whoever asks is sent to the leader.
    let leader = cluster.leader().await;
    let other = (leader + 1) % 3;
    let sent = cluster
        .send(other, "PUT", "/v1/keys/x?redirect=1", &[], b"1")
        .await;
    assert_eq!(sent.status, 307);
    let there = format!("http://{}/v1/keys/x?redirect=1", cluster.http[leader]);
    assert_eq!(sent.header("location"), Some(there.as_str()));
    let put = cluster
        .send(leader, "PUT", "/v1/keys/x?redirect=1", &[], b"1")
        .await;
    assert_eq!(put.status, 204);
    let metrics = cluster.send(leader, "GET", "/metrics", &[], b"").await;
    assert!(
        metrics.text().contains("firn_raft_is_leader 1"),
        "{}",
        metrics.text()
    );
    assert!(metrics.text().contains("firn_raft_lag_entries{node="));
    // It was served where it should be: each connection is a task there. Some others come and go.
    let sockets = cluster.service(0).cluster().unwrap().network().sockets();
    let tasks = sockets.unwrap().metrics();
    let before = tasks.num_alive_tasks();
    let mut connections = Vec::new();
    for _ in 0..100 {
        let mut client = TcpStream::connect(cluster.http[0]).await.unwrap();
        let request = b"GET /v1/keys/k0 HTTP/1.1\r\nhost: here\r\n\r\n";
        client.write_all(request).await.unwrap();
        // A part of the answer says that somebody serves it.
        assert!(client.read(&mut [0; 16]).await.unwrap() > 0);
        connections.push(client);
    }
    let came = tasks.num_alive_tasks().saturating_sub(before);
    match home {
        Home::Node => assert!(came >= 90, "{came} tasks"),
        _ => assert!(came < 50, "{came} tasks"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_commands_are_right_on_all_nodes_at_once() {
    let cluster = Cluster::of_three().await;
    let mut tasks = Vec::new();
    const EACH: i64 = 40;
    for at in 0..3 {
        for client in 0..2 {
            let mut connection = cluster.resp(at).await;
            tasks.push(tokio::spawn(async move {
                for n in 0..EACH {
                    assert!(matches!(
                        connection.run(&["INCR", "count"]).await,
                        Reply::Int(_)
                    ));
                    let own = format!("own{at}{client}");
                    // A pipeline sees what it wrote.
                    let value = n.to_string();
                    let lines = [
                        format!("SET {own} {value}"),
                        format!("GET {own}"),
                        format!("APPEND {own} x"),
                        format!("STRLEN {own}"),
                    ];
                    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                    let replies = connection.pipeline(&lines).await;
                    let len = value.len() as i64 + 1;
                    let want = [ok(), bulk(&value), Reply::Int(len), Reply::Int(len)];
                    assert_eq!(replies, want);
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut one = cluster.resp(0).await;
    assert_eq!(
        one.run(&["GET", "count"]).await,
        bulk(&(6 * EACH).to_string())
    );
    // WATCH on one node, a write on another, EXEC on the first.
    let mut two = cluster.resp(1).await;
    assert_eq!(one.run(&["WATCH", "w"]).await, ok());
    assert_eq!(two.run(&["SET", "w", "1"]).await, ok());
    assert_eq!(one.run(&["MULTI"]).await, ok());
    one.run(&["SET", "w", "2"]).await;
    assert_eq!(one.run(&["EXEC"]).await, Reply::NullArray);
    assert_eq!(one.run(&["MULTI"]).await, ok());
    one.run(&["INCR", "w"]).await;
    one.run(&["GET", "w"]).await;
    one.run(&["INCR", "nothing"]).await;
    let done = one.run(&["EXEC"]).await;
    assert_eq!(done.items(), [Reply::Int(2), bulk("2"), Reply::Int(1)]);
    assert_eq!(two.run(&["GET", "w"]).await, bulk("2"));
    assert_eq!(two.run(&["SET", "w", "3", "NX"]).await, Reply::Null);
    assert_eq!(two.run(&["SETNX", "fresh", "1"]).await, Reply::Int(1));
    assert_eq!(one.run(&["SETNX", "fresh", "1"]).await, Reply::Int(0));
    assert!(
        two.run(&["LPUSH", "x", "y"])
            .await
            .error()
            .starts_with("ERR unknown")
    );
    assert_eq!(two.run(&["SET", "text", "abc"]).await, ok());
    assert!(
        one.run(&["INCR", "text"])
            .await
            .error()
            .contains("not an integer")
    );
    assert_eq!(
        two.run(&["MGET", "w", "none"]).await.items(),
        [bulk("2"), Reply::Null]
    );
    // Another database is made on one node and seen on the other.
    assert_eq!(two.run(&["SELECT", "3"]).await, ok());
    assert_eq!(two.run(&["SET", "in3", "1"]).await, ok());
    assert_eq!(one.run(&["SELECT", "3"]).await, ok());
    assert_eq!(one.run(&["GET", "in3"]).await, bulk("1"));
    assert_eq!(one.run(&["DBSIZE"]).await, Reply::Int(1));
    assert_eq!(two.run(&["FLUSHDB"]).await, ok());
    assert_eq!(one.run(&["DBSIZE"]).await, Reply::Int(0));
    // What is said about the cluster is so.
    let leader = cluster.leader().await;
    let mut at_leader = cluster.resp(leader).await;
    let mut at_other = cluster.resp((leader + 1) % 3).await;
    assert_eq!(at_leader.run(&["ROLE"]).await.items()[0], bulk("master"));
    assert_eq!(at_other.run(&["ROLE"]).await.items()[0], bulk("slave"));
    at_leader.run(&["SET", "waited", "for"]).await;
    assert!(at_leader.run(&["WAIT", "1", "1000"]).await.int() >= 1);
    assert_eq!(at_leader.run(&["WAIT", "9", "1"]).await.int().signum(), 1);
    let info = at_other.run(&["INFO", "replication"]).await.text();
    assert!(
        info.contains("role:slave") && info.contains("master_link_status:up"),
        "{info}"
    );
    let shards = at_other.run(&["CLUSTER", "SHARDS"]).await;
    let nodes = &shards.items()[0].items()[3];
    assert_eq!(nodes.items().len(), 3);
    assert_eq!(at_other.run(&["READONLY"]).await, ok());
    at_other.run(&["GET", "waited"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_serves_nobody_and_loses_nothing() {
    let mut cluster = Cluster::of_three().await;
    assert_eq!(
        cluster.send(0, "PUT", "/v1/keys/a", &[], b"1").await.status,
        204
    );
    let old = cluster.leader().await;
    let node = cluster.unplug(old);
    let (one, two) = ((old + 1) % 3, (old + 2) % 3);
    // The others have a leader soon, and take writes all the while.
    let put = cluster.send(one, "PUT", "/v1/keys/a", &[], b"2").await;
    assert_eq!(put.status, 204, "{}", put.text());
    let got = cluster.send(two, "GET", "/v1/keys/a", &[], b"").await;
    assert_eq!(&*got.body, b"2");
    // It may be read as it is, by who asks for that, and is not ready.
    let stale = cluster
        .send(old, "GET", "/v1/keys/a?consistency=stale", &[], b"")
        .await;
    assert_eq!(&*stale.body, b"1");
    let service = cluster.service(old).clone();
    wait_until(|| service.cluster().unwrap().trouble().is_some()).await;
    let ready = cluster.send(old, "GET", "/readyz?verbose", &[], b"").await;
    assert_eq!(ready.status, 503);
    assert!(
        ready.text().contains("[-]cluster failed"),
        "{}",
        ready.text()
    );
    cluster.plug(old, node);
    cluster.ready(&[0, 1, 2]).await;
    let got = cluster.send(old, "GET", "/v1/keys/a", &[], b"").await;
    assert_eq!(&*got.body, b"2");
    drop(service);
    // A planned stop of the leader hands over first; then all restart.
    for _ in 0..2 {
        let leader = cluster.leader().await;
        cluster.stop(leader).await;
        let other = (leader + 1) % 3;
        let put = cluster.send(other, "PUT", "/v1/keys/b", &[], b"3").await;
        assert_eq!(put.status, 204, "{}", put.text());
        cluster.start(leader).await;
        cluster.ready(&[0, 1, 2]).await;
    }
    for at in 0..3 {
        cluster.stop(at).await;
    }
    for at in 0..3 {
        cluster.start(at).await;
    }
    cluster.ready(&[0, 1, 2]).await;
    let got = cluster.send(2, "GET", "/v1/keys/b", &[], b"").await;
    assert_eq!(&*got.body, b"3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_by_itself_becomes_a_cluster_that_grows_and_shrinks() {
    let mut cluster = Cluster::new(4);
    // By itself first.
    let alone = Config {
        peer_addr: None,
        init_cluster: false,
        ..cluster.config(0)
    };
    cluster.start_as(alone.clone(), 0).await.unwrap();
    let put = cluster.send(0, "PUT", "/v1/keys/old", &[], b"kept").await;
    assert_eq!(put.status, 204);
    let none = cluster.send(0, "GET", "/v1/cluster", &[], b"").await;
    assert_eq!(none.json()["code"], "unsupported");
    cluster.stop(0).await;
    // It must be said that it is to be one.
    let unsaid = Config {
        init_cluster: false,
        ..cluster.config(0)
    };
    let error = cluster.start_as(unsaid, 0).await.unwrap_err();
    assert!(error.to_string().contains("--init-cluster"), "{error}");
    cluster.start(0).await;
    cluster.ready(&[0]).await;
    // It is no server by itself any more.
    cluster.start(1).await;
    cluster.ready(&[0, 1]).await;
    cluster.start(2).await;
    cluster.ready(&[0, 1, 2]).await;
    for at in 0..3 {
        let got = cluster.send(at, "GET", "/v1/keys/old", &[], b"").await;
        assert_eq!(&*got.body, b"kept");
    }
    let known = cluster.send(1, "GET", "/v1/cluster", &[], b"").await.json();
    assert_eq!(known["members"].as_array().unwrap().len(), 3);
    assert_eq!(
        known["node"],
        cluster.service(1).cluster().unwrap().identity().node
    );
    // Who is not the leader says who is.
    let leader = cluster.leader().await;
    let other = (leader + 1) % 3;
    let refused = cluster
        .send(other, "POST", "/v1/cluster/transfer", &[], b"{}")
        .await;
    assert_eq!(refused.json()["leader"], cluster.http[leader].to_string());
    let moved = cluster
        .send(leader, "POST", "/v1/cluster/transfer", &[], b"{}")
        .await;
    assert_eq!(moved.status, 200, "{}", moved.text());
    wait_until(|| !cluster.service(leader).cluster().unwrap().leads()).await;
    // One is lost with its disk: it cannot come back as it was, but as a new one.
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    let lost_node = cluster.service(lost).cluster().unwrap().identity().node;
    cluster.stop(lost).await;
    std::fs::remove_dir_all(cluster.config(lost).data_dir).unwrap();
    let again = Config {
        init_cluster: false,
        join: vec![cluster.http[leader].to_string()],
        ..cluster.config(lost)
    };
    let error = cluster.start_as(again.clone(), lost).await.unwrap_err();
    assert!(error.to_string().contains("remove it first"), "{error}");
    let body = format!("{{\"node\":{lost_node}}}");
    let removed = cluster
        .send(leader, "POST", "/v1/cluster/remove", &[], body.as_bytes())
        .await;
    assert_eq!(removed.status, 204, "{}", removed.text());
    cluster.start_as(again, lost).await.unwrap();
    cluster.ready(&[0, 1, 2]).await;
    let new_node = cluster.service(lost).cluster().unwrap().identity().node;
    assert!(new_node > lost_node && new_node > 3, "{new_node}");
    // What makes no sense.
    for (path, body, part) in [
        ("promote", "{\"node\":99}", "no member"),
        ("promote", "{}", "a number is needed"),
        ("remove", "{\"node\":99}", "no member"),
        ("members", "{\"peer\":\"nonsense\"}", "is not an address"),
        ("members", "{\"peer\":\"127.0.0.1:1\"}", "already"),
        (
            "members",
            "{\"peer\":\"127.0.0.1:77\",\"node\":1}",
            "above 1",
        ),
        ("transfer", "{\"node\":99}", "no vote"),
    ] {
        let leader = cluster.leader().await;
        let target = format!("/v1/cluster/{path}");
        let refused = cluster
            .send(leader, "POST", &target, &[], body.as_bytes())
            .await;
        assert_eq!(refused.status, 400, "{path} {body}: {}", refused.text());
        assert!(
            refused.text().contains(part),
            "{path} {body}: {}",
            refused.text()
        );
    }
    // Without a majority nothing is taken.
    let leader = cluster.leader().await;
    let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.stop(one).await;
    let other_node = cluster.service(two).cluster().unwrap().identity().node;
    let body = format!("{{\"node\":{other_node}}}");
    let leader = cluster.leader().await;
    let refused = cluster
        .send(leader, "POST", "/v1/cluster/remove", &[], body.as_bytes())
        .await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("no majority"), "{}", refused.text());
    // The directory is a replica's now.
    for at in 0..3 {
        if cluster.running[at].is_some() {
            cluster.stop(at).await;
        }
    }
    let error = cluster.start_as(alone, 0).await.unwrap_err();
    assert!(error.to_string().contains("replica"), "{error}");
    assert_eq!(error.exit_code(), 4);
}
