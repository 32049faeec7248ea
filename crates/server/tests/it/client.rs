//! The Rust client against the server.

use std::time::Duration;

use firn_api::code::Code;
use firn_client::{
    Batch, Client, Condition, DeleteOptions, Durability, ErrorKind, PutOptions, ScanOptions,
    WatchOptions,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::Running;

#[tokio::test(flavor = "multi_thread")]
async fn everything_once() {
    let server = Running::start().await;
    let client = &server.client;
    assert_eq!(client.get("a").await.unwrap(), None);
    let options = PutOptions {
        ttl: Some(Duration::from_secs(3600)),
        condition: Some(Condition::Absent),
        durability: Some(Durability::Buffered),
        ..PutOptions::default()
    };
    let written = client.put_with("a", "1", &options).await.unwrap();
    assert_eq!(written.durability, Durability::Buffered);
    let entry = client.get("a").await.unwrap().unwrap();
    assert_eq!(
        (&entry.value[..], entry.version),
        (&b"1"[..], written.version)
    );
    assert!(entry.expires_at_ms.unwrap() > 1_700_000_000_000);
    let error = client.put_with("a", "2", &options).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::ConditionFailed));
    assert_eq!(error.problem().unwrap().version, Some(written.version));
    assert_eq!(error.exit_code(), 1);
    let delete = DeleteOptions {
        condition: Some(Condition::Version(written.version)),
        durability: None,
    };
    client.delete_with("a", &delete).await.unwrap();
    assert_eq!(
        client.delete_with("a", &delete).await.unwrap_err().code(),
        Some(Code::ConditionFailed)
    );

    let exact = PutOptions {
        expires_at_ms: Some(4_000_000_000_123),
        ..PutOptions::default()
    };
    client.put_with("t", "x", &exact).await.unwrap();
    assert_eq!(
        client.get("t").await.unwrap().unwrap().expires_at_ms,
        Some(4_000_000_000_123)
    );

    assert!(client.create_namespace("app").await.unwrap());
    assert!(!client.create_namespace("app").await.unwrap());
    let app = client.namespace("app");
    let reply = app
        .batch(
            Batch::new()
                .put("k", "v")
                .put("t2", "x")
                .in_namespace("default"),
        )
        .await
        .unwrap();
    assert_eq!(reply.versions.len(), 2);
    assert_eq!(&app.get("k").await.unwrap().unwrap().value[..], b"v");
    let many = app.multi_get(&["k", "none"]).await.unwrap();
    assert!(many[0].is_some() && many[1].is_none());
    app.delete_range("a", "z").await.unwrap();
    app.delete_prefix("").await.unwrap();
    assert_eq!(app.scan(ScanOptions::default()).next().await.unwrap(), None);
    assert_eq!(client.namespaces().await.unwrap().len(), 2);
    client.drop_namespace("app").await.unwrap();
    assert_eq!(
        app.get("k").await.unwrap_err().code(),
        Some(Code::NamespaceNotFound)
    );
    client.flush().await.unwrap();
    client.compact(Some(b"a"), None).await.unwrap();
    assert!(client.verify().await.unwrap().clean);
    assert!(client.checkpoint(Some("c")).await.unwrap().ends_with("/c"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_fit_a_path_go_another_way() {
    let server = Running::start().await;
    let client = &server.client;
    let long = vec![0xfe; 65_536];
    for key in [&long[..], b".", b"..", b"a/../b"] {
        client.put(key, "v").await.unwrap();
        assert_eq!(&client.get(key).await.unwrap().unwrap().value[..], b"v");
    }
    // The cursor after the long key is longer than a query may be.
    client.put(b"\xff", "v").await.unwrap();
    let mut scan = client.scan(ScanOptions {
        page: Some(1),
        ..ScanOptions::default()
    });
    let mut count = 0;
    while scan.next().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 5);
    client.delete(&long).await.unwrap();
    assert_eq!(client.get(&long).await.unwrap(), None);
    server.stop().await;
}

#[test]
fn threads_may_wait() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Running::start());
    let client = firn_client::blocking::Client::connect(&server.address.to_string()).unwrap();
    for i in 0..10 {
        client.put(format!("k{i}"), format!("{i}")).unwrap();
    }
    assert_eq!(&client.get("k3").unwrap().unwrap().value[..], b"3");
    let keys: Vec<_> = client
        .scan(ScanOptions::default().reverse().limit(2))
        .map(|e| e.unwrap().key)
        .collect();
    assert_eq!(keys, ["k9", "k8"]);
    assert!(client.namespace("none").get("k").is_err());
    drop(client);
    runtime.block_on(server.stop());
}

/// A server that answers as told, one connection after the other.
async fn scripted(replies: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        for reply in replies {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await.unwrap();
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    address
}

const BUSY: &str =
    "HTTP/1.1 503 Busy\r\nconnection: close\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n";
const VALUE: &str =
    "HTTP/1.1 200 OK\r\nconnection: close\r\netag: \"7\"\r\ncontent-length: 1\r\n\r\nx";
const DONE: &str =
    "HTTP/1.1 204 OK\r\nconnection: close\r\nkv-version: 8\r\nkv-durability: sync\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_safe_is_repeated_and_nothing_else() {
    // Refused with a delay: also writes go again.
    let client = Client::connect(&scripted(&[BUSY, BUSY, DONE]).await).unwrap();
    assert_eq!(client.put("a", "x").await.unwrap().version, 8);
    // A broken connection: reads go again.
    let client = Client::connect(&scripted(&["", "HTTP/1.1 200", VALUE]).await).unwrap();
    assert_eq!(client.get("a").await.unwrap().unwrap().version, 7);
    // Writes do not: nobody knows.
    let client = Client::connect(&scripted(&["", DONE]).await).unwrap();
    let error = client.put("a", "x").await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Unknown), "{error}");
    // Unless that was allowed, and there is no condition that the first one may have changed.
    let client = async |replies| {
        let builder = Client::builder(&scripted(replies).await).repeat_writes(true);
        builder.build().unwrap()
    };
    let twice = client(&["", DONE]).await;
    assert_eq!(twice.put("a", "x").await.unwrap().version, 8);
    let once = client(&["", DONE]).await;
    let options = PutOptions {
        condition: Some(Condition::Absent),
        ..PutOptions::default()
    };
    let error = once.put_with("a", "x", &options).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Unknown), "{error}");
    let checked = Batch::new().check("a", Condition::Exists).put("b", "");
    let once = client(&["", DONE]).await;
    let error = once.batch(checked).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Unknown), "{error}");
    // Nobody there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let client = Client::builder(&address).retries(1).build().unwrap();
    let error = client.put("a", "x").await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Unreachable), "{error}");
    assert_eq!(error.exit_code(), 3);
    // Somebody who never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client = Client::builder(&address)
        .deadline(Duration::from_millis(100))
        .build()
        .unwrap();
    assert!(matches!(
        client.get("a").await.unwrap_err().kind,
        ErrorKind::Deadline
    ));
    let client = Client::connect(&address).unwrap();
    let hurried = client.deadline(Duration::from_millis(100));
    assert!(matches!(
        hurried.get("a").await.unwrap_err().kind,
        ErrorKind::Deadline
    ));
    // Not an address; not an API.
    assert!(Client::connect("https://x").is_err());
    assert!(Client::connect("a b").is_err());
    const FOREIGN: &str =
        "HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\ncontent-length: 5\r\n\r\nproxy";
    let client = Client::connect(&scripted(&[FOREIGN]).await).unwrap();
    let error = client.get("a").await.unwrap_err();
    assert_eq!((error.code(), error.problem().unwrap().status), (None, 502));
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_and_watches_are_streams() {
    use tonic::codegen::tokio_stream::StreamExt as _;
    let server = Running::start().await;
    for key in 0..25 {
        server.client.put(format!("{key:02}"), "").await.unwrap();
    }
    let scan = server.client.scan(ScanOptions {
        page: Some(10),
        ..ScanOptions::default()
    });
    let mut stream = scan.into_stream();
    let mut count = 0;
    while let Some(entry) = stream.next().await {
        assert_eq!(entry.unwrap().key, format!("{count:02}"));
        count += 1;
    }
    assert_eq!(count, 25);
    assert!(stream.next().await.is_none(), "it stays at its end");
    let changes = server.client.watch(WatchOptions::from(1)).into_stream();
    let versions: Vec<_> = changes.take(25).map(|c| c.unwrap().version).collect().await;
    assert_eq!(versions, (1..=25).collect::<Vec<_>>());
    let mut missing = server
        .client
        .namespace("none")
        .scan(ScanOptions::default())
        .into_stream();
    for _ in 0..2 {
        let error = missing.next().await.unwrap().unwrap_err();
        assert_eq!(error.exit_code(), 1);
    }
    server.stop().await;
}
