//! Ranges: pages, cursors, streams.

use std::collections::BTreeMap;
use std::time::Duration;

use firn_client::{Batch, ScanOptions};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Reply, Running};

const NDJSON: [(&str, &str); 1] = [("accept", "application/x-ndjson")];

fn keys(page: &Value) -> Vec<&str> {
    page["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["key"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_bounds_order_and_limits() {
    let server = Running::start().await;
    for key in ["a", "b/1", "b/2", "b/3", "c"] {
        server.put(&format!("/v1/keys/{key}"), key.as_bytes()).await;
    }
    for (query, expected) in [
        ("", &["a", "b/1", "b/2", "b/3", "c"][..]),
        ("?prefix=b/", &["b/1", "b/2", "b/3"]),
        ("?prefix=b/&reverse", &["b/3", "b/2", "b/1"]),
        ("?start=b/2", &["b/2", "b/3", "c"]),
        ("?start=b/2&end=c", &["b/2", "b/3"]),
        ("?end=b%2F2&reverse=true", &["b/1", "a"]),
        ("?start=YQ&end=Yg&key_enc=base64url", &["a"]),
        ("?start=x&end=b", &[]),
        ("?prefix=", &["a", "b/1", "b/2", "b/3", "c"]),
    ] {
        let page = server.get(&format!("/v1/range{query}")).await.json();
        assert_eq!(keys(&page), expected, "{query}");
        assert_eq!(page["count"], expected.len());
        assert!(page["next_cursor"].is_null(), "{query}");
    }
    let page = server.get("/v1/range?limit=2&keys_only").await.json();
    assert_eq!(keys(&page), ["a", "b/1"]);
    assert!(page["entries"][0].get("value").is_none());
    let cursor = page["next_cursor"].as_str().unwrap();
    let next = server
        .get(&format!("/v1/range?cursor={cursor}"))
        .await
        .json();
    assert_eq!(keys(&next), ["b/2", "b/3", "c"]);
    let next = server
        .send("GET", "/v1/range", &[("kv-cursor", cursor)], b"")
        .await
        .json();
    assert_eq!(keys(&next), ["b/2", "b/3", "c"]);
    // A page that ends exactly at the end has no next one.
    assert!(server.get("/v1/range?limit=5").await.json()["next_cursor"].is_null());
    // Bytes: the first entry always fits.
    assert_eq!(
        keys(&server.get("/v1/range?max_bytes=1B").await.json()),
        ["a"]
    );
    assert_eq!(
        keys(&server.get("/v1/range?max_bytes=8").await.json()),
        ["a", "b/1"]
    );
    // Other bounds, another direction: not this cursor.
    for query in ["&start=a", "&reverse", "&prefix=b"] {
        let reply = server
            .get(&format!("/v1/range?cursor={cursor}{query}"))
            .await;
        reply.problem(400, "invalid_cursor");
    }
    let head = server.send("HEAD", "/v1/range", &[], b"").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_text_or_base64_as_asked() {
    let server = Running::start().await;
    server.put("/v1/keys/t", b"text\n").await;
    server.put("/v1/keys/%FF", b"\x00\xff").await;
    let page = server.get("/v1/range").await.json();
    assert_eq!(
        (&page["entries"][0]["key"], &page["entries"][0]["value"]),
        (&json!("t"), &json!("text\n"))
    );
    assert_eq!(
        (
            &page["entries"][1]["key_b64"],
            &page["entries"][1]["value_b64"]
        ),
        (&json!("/w=="), &json!("AP8="))
    );
    let page = server.get("/v1/range?enc=base64").await.json();
    assert_eq!(page["entries"][0]["key_b64"], "dA==");
    server
        .get("/v1/range?enc=utf8")
        .await
        .problem(400, "not_utf8");
    assert_eq!(server.get("/v1/range?enc=utf8&end=z").await.status, 200);
    // In a stream the status is sent before the trouble is met: the last line tells.
    let reply = server.send("GET", "/v1/range?enc=utf8", &NDJSON, b"").await;
    assert_eq!(reply.status, 200);
    let lines: Vec<Value> = lines(&reply);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["error"]["code"], "not_utf8");
    server.stop().await;
}

fn lines(reply: &Reply) -> Vec<Value> {
    reply
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_deleted_at_once() {
    let server = Running::start().await;
    for key in ["a", "b1", "b2", "c"] {
        server.put(&format!("/v1/keys/{key}"), b"x").await;
    }
    server
        .send("DELETE", "/v1/range", &[], b"")
        .await
        .problem(400, "invalid_argument");
    server
        .send("DELETE", "/v1/range?start=b&end=a", &[], b"")
        .await
        .problem(400, "invalid_argument");
    server
        .send("DELETE", "/v1/range?prefix=b&all=true", &[], b"")
        .await
        .problem(400, "invalid_argument");
    // What a script leaves of `all=$EVERYTHING` or `prefix=$PREFIX` deletes nothing.
    for query in [
        "all=",
        "all",
        "all=false",
        "all=yes",
        "prefix=",
        "start=",
        "start=&end=&prefix=",
    ] {
        let target = format!("/v1/range?{query}");
        let reply = server.send("DELETE", &target, &[], b"").await;
        reply.problem(400, "invalid_argument");
    }
    let reply = server.send("DELETE", "/v1/range?prefix=b", &[], b"").await;
    assert_eq!(reply.status, 204);
    assert!(reply.header("kv-version").is_some());
    assert_eq!(keys(&server.get("/v1/range").await.json()), ["a", "c"]);
    assert_eq!(
        server
            .send("DELETE", "/v1/range?all=true", &[], b"")
            .await
            .status,
        204
    );
    assert!(keys(&server.get("/v1/range").await.json()).is_empty());
    server.stop().await;
}

async fn fill(server: &Running, count: usize, value: &str) {
    for chunk in (0..count).collect::<Vec<_>>().chunks(5_000) {
        let batch = chunk
            .iter()
            .fold(Batch::new(), |b, i| b.put(format!("key{i:08}"), value));
        server
            .client
            .batch_with(batch, Some(firn_client::Durability::Buffered))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_every_entry_and_a_trailer() {
    let server = Running::start().await;
    fill(&server, 100_000, "value").await;
    let reply = server.send("GET", "/v1/range", &NDJSON, b"").await;
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
    let lines = lines(&reply);
    assert_eq!(lines.len(), 100_001);
    for (i, line) in lines[..100_000].iter().enumerate() {
        assert_eq!(line["key"], format!("key{i:08}"));
        assert_eq!(line["value"], "value");
    }
    assert_eq!(
        lines[100_000],
        json!({ "end": true, "count": 100_000, "next_cursor": null })
    );
    // A limit ends it early, and says where to go on.
    let reply = server
        .send("GET", "/v1/range?limit=10&reverse", &NDJSON, b"")
        .await;
    let limited = self::lines(&reply);
    assert_eq!(limited.len(), 11);
    let target = format!(
        "/v1/range?limit=1&reverse&cursor={}",
        limited[10]["next_cursor"].as_str().unwrap()
    );
    assert_eq!(keys(&server.get(&target).await.json()), ["key00099989"]);
    // The client's pages say the same.
    let mut scan = server.client.scan(ScanOptions::default());
    let mut count = 0;
    while let Some(entry) = scan.next().await.unwrap() {
        assert_eq!(entry.key, format!("key{count:08}"));
        count += 1;
    }
    assert_eq!(count, 100_000);
    server.stop().await;
}

/// A reader that stops must not make the server read ahead, hold threads, or keep the scan once the
/// reader is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_costs_nothing() {
    let server = Running::start().await;
    fill(&server, 100_000, &"x".repeat(500)).await;
    let mut readers = Vec::new();
    for _ in 0..40 {
        let mut stream = server.connect().await;
        stream
            .write_all(b"GET /v1/range HTTP/1.1\r\nhost: localhost\r\naccept: application/x-ndjson\r\n\r\n")
            .await
            .unwrap();
        let mut start = [0; 1000];
        stream.read_exact(&mut start).await.unwrap();
        assert!(start.starts_with(b"HTTP/1.1 200"));
        readers.push(stream);
    }
    // The server goes on while they sit there.
    assert_eq!(server.get("/v1/keys/key00000007").await.status, 200);
    assert!(server.metric("firn_requests_in_flight").await >= 40);
    // One of them goes on reading and gets everything.
    let mut patient = readers.pop().unwrap();
    patient.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), patient.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("{\"end\":true,\"count\":100000,"));
    // The others leave; their requests end.
    drop(readers);
    for attempt in 0.. {
        // The one that is left is this one.
        if server.metric("firn_requests_in_flight").await == 1 {
            break;
        }
        assert!(attempt < 1_000, "streams outlive their readers");
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

#[test]
fn pages_of_any_size_are_the_whole_range() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Running::start());
    let key = || {
        proptest::collection::vec(
            prop_oneof![Just(0_u8), Just(0xff), Just(b'a'), any::<u8>()],
            0..4,
        )
    };
    let config = ProptestConfig::with_cases(40);
    proptest!(config, |(
        entries in proptest::collection::btree_map(key(), proptest::collection::vec(any::<u8>(), 0..5), 0..40),
        start in proptest::option::of(key()),
        end in proptest::option::of(key()),
        prefix in proptest::option::of(key()),
        reverse in any::<bool>(),
        page in 1_u64..50,
        limit in proptest::option::of(0_u64..60),
    )| {
        let entries: BTreeMap<Vec<u8>, Vec<u8>> = entries;
        runtime.block_on(async {
            let mut batch = Batch::new().delete_prefix("");
            for (key, value) in &entries {
                batch = batch.put(key, value);
            }
            server.client.batch(batch).await.unwrap();
            let inside = |key: &&Vec<u8>| {
                start.as_ref().is_none_or(|s| *key >= s)
                    && end.as_ref().is_none_or(|e| *key < e)
                    && prefix.as_ref().is_none_or(|p| key.starts_with(p))
            };
            let mut expected: Vec<&Vec<u8>> = entries.keys().filter(inside).collect();
            if reverse {
                expected.reverse();
            }
            expected.truncate(limit.unwrap_or(u64::MAX).min(1000) as usize);
            let options = ScanOptions {
                start: start.clone(), end: end.clone(), prefix: prefix.clone(),
                reverse, limit, keys_only: false, page: Some(page),
            };
            let mut scan = server.client.scan(options);
            let mut found = Vec::new();
            while let Some(entry) = scan.next().await.unwrap() {
                prop_assert_eq!(&entry.value[..], &entries[&entry.key[..]][..]);
                found.push(entry.key.to_vec());
            }
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
            Ok(())
        })?;
    });
    runtime.block_on(server.stop());
}
