//! The changefeed over gRPC: order, filters, progress, refusals, and how it ends.

use std::time::Duration;

use firn_client::Batch;
use firn_server::grpc::proto::watch_event::{Change, Delete, DeleteRange, DropNamespace, Put};
use firn_server::grpc::proto::{KeyRange, WatchEvent, WatchRequest, WatchResponse};
use prost::Message as _;
use tonic::{Code, Request, Status, Streaming};

use crate::grpc::{Rpc, refused};
use crate::support::Running;

const PATH: &str = "/firn.v1.KV/Watch";

struct Watch {
    stream: Streaming<bytes::Bytes>,
    progress: u64,
}

impl Watch {
    async fn open(rpc: &Rpc, asked: WatchRequest) -> Result<Self, Status> {
        let request = Request::new(asked.encode_to_vec().into());
        let stream = rpc.stream(PATH, request).await?;
        let mut watch = Self {
            stream,
            progress: 0,
        };
        let first = watch.message().await?.unwrap();
        assert_eq!(first.events, [], "the first message says where it begins");
        Ok(watch)
    }

    /// The next message; versions only grow.
    async fn message(&mut self) -> Result<Option<WatchResponse>, Status> {
        let coming = tokio::time::timeout(Duration::from_secs(30), self.stream.message());
        let Some(message) = coming.await.expect("nothing came")? else {
            return Ok(None);
        };
        let message = WatchResponse::decode(message).unwrap();
        assert!(message.progress >= self.progress);
        for event in &message.events {
            assert!(event.version > self.progress && event.version <= message.progress);
        }
        self.progress = message.progress;
        Ok(Some(message))
    }

    async fn events(&mut self, count: usize) -> Vec<WatchEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            events.extend(self.message().await.unwrap().unwrap().events);
        }
        assert_eq!(events.len(), count);
        events
    }
}

fn from(version: u64) -> WatchRequest {
    WatchRequest {
        from_version: Some(version),
        ..WatchRequest::default()
    }
}

fn prefix(prefix: &'static str) -> Option<KeyRange> {
    Some(KeyRange {
        prefix: Some(prefix.into()),
        ..KeyRange::default()
    })
}

fn event(version: u64, commit: u64, namespace: &str, change: Change) -> WatchEvent {
    WatchEvent {
        version,
        commit,
        more: version < commit,
        namespace: namespace.into(),
        change: Some(change),
    }
}

fn put(key: &'static str, value: &'static str) -> Change {
    Change::Put(Put {
        key: key.into(),
        value: value.into(),
        expires_at_ms: None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_come_in_order_filtered_and_from_any_version() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    server.client.create_namespace("x").await.unwrap();
    let everything = WatchRequest {
        all_namespaces: true,
        ..WatchRequest::default()
    };
    let mut all = Watch::open(&rpc, everything).await.unwrap();
    let batch = Batch::new()
        .put("a", "1")
        .delete("b")
        .delete_prefix("c")
        .put("d", "2");
    server.client.batch(batch).await.unwrap();
    server
        .put("/v1/ns/x/keys/a?expires_at=4000000000", b"\xff")
        .await;
    server.client.drop_namespace("x").await.unwrap();
    let expiring = Change::Put(Put {
        key: "a".into(),
        value: b"\xff"[..].into(),
        expires_at_ms: Some(4_000_000_000_000),
    });
    let expected = [
        event(1, 4, "default", put("a", "1")),
        event(2, 4, "default", Change::Delete(Delete { key: "b".into() })),
        event(
            3,
            4,
            "default",
            Change::DeleteRange(DeleteRange {
                start: "c".into(),
                end: "d".into(),
            }),
        ),
        event(4, 4, "default", put("d", "2")),
        event(5, 5, "x", expiring),
        event(6, 6, "x", Change::DropNamespace(DropNamespace {})),
    ];
    assert_eq!(all.events(6).await, expected);
    assert_eq!(all.progress, 6);

    // From within the batch; one prefix; no values.
    let one = WatchRequest {
        range: prefix("d"),
        keys_only: true,
        ..from(2)
    };
    let mut one = Watch::open(&rpc, one).await.unwrap();
    assert_eq!(one.events(1).await, [event(4, 4, "default", put("d", ""))]);
    drop((all, one, rpc));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_passed_over_is_progress() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    let asked = WatchRequest {
        range: prefix("quiet"),
        heartbeat_ms: Some(100),
        ..from(1)
    };
    let mut watch = Watch::open(&rpc, asked.clone()).await.unwrap();
    let busy = async {
        for key in 0_u64.. {
            server.client.put(key.to_string(), "").await.unwrap();
        }
    };
    // Others write all the time, and still it hears how far it is.
    let heard = async {
        while watch.progress < 10 {
            assert_eq!(watch.message().await.unwrap().unwrap().events, []);
        }
    };
    tokio::select! {
        () = busy => unreachable!(),
        () = heard => {}
    }
    let asked = WatchRequest {
        from_version: Some(watch.progress + 1),
        ..asked
    };
    let mut later = Watch::open(&rpc, asked).await.unwrap();
    server.client.put("quiet", "1").await.unwrap();
    for watch in [&mut watch, &mut later] {
        while watch.message().await.unwrap().unwrap().events.is_empty() {}
    }
    drop((watch, later, rpc));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_watched_is_refused() {
    let server = Running::start_with(|config| {
        config.memory_bytes = 8 << 20;
        config.changefeed_bytes = 0;
        config.limits.watches = 1;
    })
    .await;
    let rpc = Rpc::to(&server).await;
    let wrong = Code::InvalidArgument;
    for (asked, field) in [
        (from(9), ""),
        (
            WatchRequest {
                all_namespaces: true,
                namespace: "default".into(),
                ..from(1)
            },
            "all_namespaces",
        ),
        (
            WatchRequest {
                heartbeat_ms: Some(99),
                ..from(1)
            },
            "heartbeat_ms",
        ),
        (
            WatchRequest {
                heartbeat_ms: Some(u64::MAX),
                ..from(1)
            },
            "heartbeat_ms",
        ),
        (
            WatchRequest {
                range: Some(KeyRange {
                    start: Some("b".into()),
                    end: Some("b".into()),
                    prefix: None,
                }),
                ..from(1)
            },
            "range",
        ),
    ] {
        let outcome = Watch::open(&rpc, asked).await.map(|_| ());
        let details = refused(outcome, wrong, "invalid_argument");
        assert_eq!(
            details.bad_request().unwrap().field_violations[0].field,
            field
        );
    }
    let large = WatchRequest {
        range: Some(KeyRange {
            start: Some(vec![1; 70_000].into()),
            ..KeyRange::default()
        }),
        ..from(1)
    };
    refused(
        Watch::open(&rpc, large).await.map(|_| ()),
        wrong,
        "key_too_large",
    );
    let nowhere = WatchRequest {
        namespace: "nowhere".into(),
        ..from(1)
    };
    let outcome = Watch::open(&rpc, nowhere).await.map(|_| ());
    refused(outcome, Code::NotFound, "namespace_not_found");
    let broken = rpc.stream(PATH, Request::new(b"\x0a\xff"[..].into())).await;
    refused(broken.map(drop), wrong, "invalid_encoding");

    for _ in 0..4 {
        server.put("/v1/keys/large", &vec![b'x'; 900 << 10]).await;
        server.client.flush().await.unwrap();
    }
    let outcome = Watch::open(&rpc, from(1)).await.map(|_| ());
    let details = refused(outcome, Code::OutOfRange, "version_too_old");
    let oldest = &details.error_info().unwrap().metadata["oldest_version"];
    let open = Watch::open(&rpc, from(oldest.parse().unwrap()))
        .await
        .unwrap();

    let outcome = Watch::open(&rpc, from(5)).await.map(|_| ());
    let details = refused(outcome, Code::ResourceExhausted, "overloaded");
    assert_eq!(details.error_info().unwrap().metadata["limit"], "1");
    // Who goes away leaves the place to others.
    drop(open);
    while server.metric("firn_watches").await > 0 {
        tokio::task::yield_now().await;
    }
    let page = server.get("/metrics").await;
    let counted = r#"firn_requests_total{proto="grpc",op="watch",code="ok"} 1"#;
    assert!(page.text().contains(counted), "{}", page.text());
    drop(rpc);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_says_how_far_it_came() {
    let server =
        Running::start_with(|config| config.drain_timeout = Duration::from_secs(600)).await;
    let rpc = Rpc::to(&server).await;
    let mut watch = Watch::open(&rpc, from(1)).await.unwrap();
    server.client.put("a", "1").await.unwrap();
    assert_eq!(
        watch.events(1).await,
        [event(1, 1, "default", put("a", "1"))]
    );
    let (ended, _dir) = server.begin_stop();
    let last = watch.message().await.unwrap().unwrap();
    assert_eq!((last.progress, last.events.len()), (1, 0));
    let outcome = watch.message().await;
    refused(outcome, Code::Unavailable, "shutting_down");
    ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_end_a_watch() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    let mut request = Request::new(from(1).encode_to_vec().into());
    let timeout = "200m".parse().unwrap();
    request.metadata_mut().insert("grpc-timeout", timeout);
    let mut stream = rpc.stream(PATH, request).await.unwrap();
    assert!(stream.message().await.unwrap().is_some());
    // The client's own clock may be the first.
    let code = stream.message().await.unwrap_err().code();
    assert!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{code}"
    );
    drop((stream, rpc));
    server.stop().await;
}

/// A client that takes nothing loses its watch, and is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_is_cut_off() {
    let server =
        Running::start_with(|config| config.write_timeout = Duration::from_millis(300)).await;
    let rpc = Rpc::to(&server).await;
    let value = vec![b'x'; 1 << 20];
    let slow = rpc.stream(PATH, Request::new(from(1).encode_to_vec().into()));
    let slow = slow.await.unwrap();
    for key in 0..16 {
        server.put(&format!("/v1/keys/{key}"), &value).await;
    }
    let cut = async {
        while server.metric("firn_watches").await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), cut)
        .await
        .unwrap();
    // Whoever reads goes on where it was.
    let mut watch = Watch::open(&rpc, from(2)).await.unwrap();
    assert_eq!(watch.events(15).await.len(), 15);
    drop((slow, watch, rpc));
    server.stop().await;
}
