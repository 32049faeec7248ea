//! Starting and stopping.

use std::time::Duration;

use firn_server::config::Config;
use firn_server::serve::{ServeError, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Running, read_reply};

#[tokio::test(flavor = "multi_thread")]
async fn other_machines_are_refused_unless_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: dir.path().into(),
        http: "0.0.0.0:0".into(),
        resp: None,
        ..Config::default()
    };
    let error = Server::start(config.clone()).await.unwrap_err();
    assert!(error.to_string().contains("--insecure"), "{error}");
    assert_eq!(error.exit_code(), 2);
    Server::start(Config {
        insecure: true,
        ..config.clone()
    })
    .await
    .unwrap();
    let bad = Config {
        http: "no.such.host.invalid:1".into(),
        ..config
    };
    assert!(matches!(
        Server::start(bad).await.unwrap_err(),
        ServeError::Bind { .. }
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_names_the_flag() {
    let server = Running::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: dir.path().into(),
        http: server.address.to_string(),
        ..Config::default()
    };
    let error = Server::start(config).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("is in use; choose another with --http"),
        "{error}"
    );
    let config = Config {
        data_dir: dir.path().into(),
        http: "127.0.0.1:0".into(),
        resp: server.resp.map(|address| address.to_string()),
        ..Config::default()
    };
    let error = Server::start(config).await.unwrap_err();
    assert!(error.to_string().contains("with --resp"), "{error}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_are_finished_and_idle_connections_closed() {
    let server = Running::start().await;
    let address = server.address;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    // A write whose body is half here.
    let mut busy = server.connect().await;
    busy.write_all(
        b"PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n",
    )
    .await
    .unwrap();
    let mut line = [0; 25];
    busy.read_exact(&mut line).await.unwrap();
    assert!(line.starts_with(b"HTTP/1.1 100"));
    busy.write_all(b"abc").await.unwrap();

    let (ended, _dir) = server.begin_stop();
    // The idle connection goes first.
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    // Nobody new comes in.
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!ended.is_finished());
    busy.write_all(b"def").await.unwrap();
    let reply = read_reply(&mut busy).await;
    assert_eq!(reply.status, 204);
    ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_is_cut() {
    let server =
        Running::start_with(|config| config.drain_timeout = Duration::from_millis(50)).await;
    let mut stuck = server.connect().await;
    stuck.write_all(b"PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n").await.unwrap();
    let mut line = [0; 25];
    stuck.read_exact(&mut line).await.unwrap();
    let (ended, _dir) = server.begin_stop();
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
    ended
        .expect("the server waits for a client that never sends")
        .unwrap()
        .unwrap();
}

/// A reply is read to its end though the server closes the connection and the client has sent bytes that
/// nobody reads: a socket that is closed with such bytes resets the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_arrives_whole_on_a_connection_that_is_closed() {
    let server = Running::start().await;
    let value = vec![7; 4 << 20];
    assert_eq!(server.put("/v1/keys/large", &value).await.status, 204);
    for _ in 0..4 {
        let mut stream = server.connect().await;
        let head = "GET /v1/keys/large HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut reply = vec![0; 1 << 20];
        stream.read_exact(&mut reply).await.unwrap();
        // No request: the server has read the last one that it serves here.
        stream.write_all(&[0; 1000]).await.unwrap();
        stream.read_to_end(&mut reply).await.unwrap();
        assert!(reply.ends_with(&value[..4 << 20]), "{} bytes", reply.len());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_are_told_so() {
    let server = Running::start_with(|config| config.connections = 3).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = server.connect().await;
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        open.push(stream);
    }
    let reply = server.get("/livez").await;
    assert_eq!(reply.problem(503, "too_many_connections")["limit"], 3);
    assert_eq!(reply.header("retry-after"), Some("1"));
    // A place that is given up can be taken.
    drop(open);
    while server.get("/livez").await.status != 200 {
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_idle_connections_do_no_harm() {
    let server = Running::start().await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(server.connect().await);
    }
    assert_eq!(server.put("/v1/keys/a", b"x").await.status, 204);
    // Each of them can still be used.
    for stream in &mut idle {
        stream
            .write_all(b"GET /v1/keys/a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
    }
    for stream in &mut idle {
        assert_eq!(read_reply(stream).await.text(), "x");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let server = Running::start().await;
    server.client.create_namespace("app").await.unwrap();
    for i in 0..50 {
        server
            .put(&format!("/v1/keys/k{i}?durability=buffered"), b"v")
            .await;
        server.put(&format!("/v1/ns/app/keys/k{i}"), b"w").await;
    }
    let dir = server.stop().await;
    let server = Running::start_in(dir, |_| {}).await;
    for i in 0..50 {
        assert_eq!(server.get(&format!("/v1/keys/k{i}")).await.text(), "v");
        assert_eq!(
            server.get(&format!("/v1/ns/app/keys/k{i}")).await.text(),
            "w"
        );
    }
    server.stop().await;
}
