//! Batches: all or nothing, with conditions; multi-gets.

use serde_json::json;

use crate::support::{Reply, Running};

async fn batch(server: &Running, ops: serde_json::Value) -> Reply {
    let body = json!({ "ops": ops }).to_string();
    server.send("POST", "/v1/batch", &[], body.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_have_their_versions() {
    let server = Running::start().await;
    server.put("/v1/ns/other", b"").await;
    let old = server
        .put("/v1/keys/old", b"x")
        .await
        .header("kv-version")
        .unwrap()
        .parse::<u64>()
        .unwrap();
    let reply = batch(&server, json!([
        { "op": "put", "key": "a", "value": "1", "if_absent": true },
        { "op": "check", "key": "old", "if_version": old },
        { "op": "put", "key_b64": "/w==", "value_b64": "AAE=", "ttl": "1h" },
        { "op": "delete", "key": "old", "if_exists": true },
        { "op": "delete_range", "prefix": "gone/" },
        { "op": "put", "ns": "other", "key": "a", "value": "2", "expires_at_ms": 4_000_000_000_000_u64 },
    ]))
    .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("kv-durability"), Some("sync"));
    let reply = reply.json();
    let versions = reply["versions"].as_array().unwrap();
    assert_eq!(versions.len(), 6);
    assert!(versions[1].is_null());
    for (target, index) in [
        ("/v1/keys/a", 0),
        ("/v1/keys/%FF", 2),
        ("/v1/ns/other/keys/a", 5),
    ] {
        let got = server.get(target).await;
        assert_eq!(
            got.header("etag").unwrap(),
            format!("\"{}\"", versions[index])
        );
    }
    assert_eq!(server.get("/v1/keys/%FF").await.body, [0, 1]);
    assert_eq!(
        server
            .get("/v1/ns/other/keys/a")
            .await
            .header("kv-expires-at"),
        Some("4000000000")
    );
    assert_eq!(server.get("/v1/keys/old").await.status, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_condition_or_a_bad_operation_leaves_nothing_behind() {
    let server = Running::start().await;
    let version = server
        .put("/v1/keys/k", b"x")
        .await
        .header("kv-version")
        .unwrap()
        .parse::<u64>()
        .unwrap();
    for failing in [
        json!({ "op": "put", "key": "k", "value": "y", "if_absent": true }),
        json!({ "op": "delete", "key": "k", "if_version": version + 7 }),
        json!({ "op": "check", "key": "k", "if_version": version + 7 }),
    ] {
        let ops = json!([
            { "op": "put", "key": "before", "value": "1" },
            { "op": "check", "key": "k", "if_exists": true },
            failing,
            { "op": "put", "key": "after", "value": "1" },
        ]);
        let problem = batch(&server, ops).await.problem(412, "condition_failed");
        assert_eq!(
            (&problem["index"], &problem["version"]),
            (&json!(2), &json!(version))
        );
    }
    for (bad, code, status, part) in [
        (
            json!({ "op": "put", "key": "k" }),
            "invalid_argument",
            400,
            "put needs value",
        ),
        (
            json!({ "op": "put", "value": "k" }),
            "invalid_argument",
            400,
            "put needs key",
        ),
        (
            json!({ "op": "delete", "key": "k", "value": "" }),
            "invalid_argument",
            400,
            "delete takes no value",
        ),
        (
            json!({ "op": "check", "key": "k" }),
            "invalid_argument",
            400,
            "check needs if_absent",
        ),
        (
            json!({ "op": "rename", "key": "k" }),
            "invalid_argument",
            400,
            "\"rename\" is not one of",
        ),
        (
            json!({ "op": "delete_range" }),
            "invalid_argument",
            400,
            "delete_range needs",
        ),
        (
            json!({ "op": "delete_range", "start": "b", "end": "a" }),
            "invalid_argument",
            400,
            "not before",
        ),
        (
            json!({ "op": "delete", "key": "k", "key_b64": "AA==" }),
            "invalid_encoding",
            400,
            "exclude",
        ),
        (
            json!({ "op": "delete", "key_b64": "?" }),
            "invalid_encoding",
            400,
            "key_b64 is not base64",
        ),
        (
            json!({ "op": "put", "key": "k", "value": "", "ttl": "soon" }),
            "invalid_argument",
            400,
            "not a duration",
        ),
        (
            json!({ "op": "put", "key": "k", "value": "", "ttl": 0 }),
            "invalid_argument",
            400,
            "more than 0",
        ),
        (
            json!({ "op": "delete", "key": "k", "ns": "none" }),
            "namespace_not_found",
            404,
            "\"none\" does not exist",
        ),
        (
            json!({ "op": "delete", "key": "k".repeat(70_000) }),
            "key_too_large",
            413,
            "65536",
        ),
    ] {
        let ops = json!([{ "op": "put", "key": "before", "value": "1" }, bad]);
        let problem = batch(&server, ops).await.problem(status, code);
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.starts_with("operation 1: ") && detail.contains(part),
            "{detail}"
        );
        assert_eq!(problem["index"], 1);
    }
    batch(&server, json!([]))
        .await
        .problem(400, "invalid_argument");
    batch(
        &server,
        json!([{ "op": "check", "key": "k", "if_exists": true }]),
    )
    .await
    .problem(400, "invalid_argument");
    assert_eq!(server.get("/v1/keys/before").await.status, 404);
    assert_eq!(server.get("/v1/keys/after").await.status, 404);
    assert_eq!(server.get("/v1/keys/k").await.text(), "x");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_without_an_end_reach_the_last_key() {
    let server = Running::start().await;
    let last = vec![0xff; 65_536];
    server.client.put(&last, "last").await.unwrap();
    server.client.put(b"\xff\xff", "x").await.unwrap();
    server.client.put("a", "kept").await.unwrap();
    let reply = batch(&server, json!([{ "op": "delete_range", "start": "b" }, { "op": "put", "key": "c", "value": "new" }])).await;
    let versions = reply.json()["versions"].clone();
    let got = server.get("/v1/keys/c").await;
    assert_eq!(got.header("etag").unwrap(), format!("\"{}\"", versions[1]));
    assert_eq!(server.client.get(&last).await.unwrap(), None);
    assert_eq!(server.client.get(b"\xff\xff").await.unwrap(), None);
    assert_eq!(server.get("/v1/keys/a").await.text(), "kept");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_read_at_once() {
    let server = Running::start().await;
    server.put("/v1/keys/a", b"1").await;
    server.put("/v1/keys/%FF", b"\xfe").await;
    let ask = |enc: &'static str, keys: serde_json::Value| {
        let (server, body) = (&server, json!({ "keys": keys }).to_string());
        async move {
            server
                .send("POST", &format!("/v1/mget{enc}"), &[], body.as_bytes())
                .await
        }
    };
    let reply = ask("", json!(["a", "none", { "b64": "/w==" }, "a"]))
        .await
        .json();
    let entries = reply["entries"].as_array().unwrap();
    assert_eq!(entries[0]["value"], "1");
    assert!(entries[1].is_null());
    assert_eq!(
        (&entries[2]["key_b64"], &entries[2]["value_b64"]),
        (&json!("/w=="), &json!("/g=="))
    );
    assert_eq!(entries[3], entries[0]);
    ask("?enc=utf8", json!([{ "b64": "/w==" }]))
        .await
        .problem(400, "not_utf8");
    ask("", json!([{ "b64": "/" }]))
        .await
        .problem(400, "invalid_encoding");
    ask("", json!([{ "b65": "/" }]))
        .await
        .problem(400, "invalid_json");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_multi_get_whose_reply_would_be_too_large_is_refused() {
    let server = Running::start_with(|config| config.limits.body_bytes = 10_000).await;
    server.put("/v1/keys/a", &[b'x'; 3_000]).await;
    let keys = |count: usize| serde_json::json!({ "keys": vec!["a"; count] }).to_string();
    let fits = server
        .send("POST", "/v1/mget", &[], keys(3).as_bytes())
        .await;
    assert_eq!(fits.status, 200);
    let reply = server
        .send("POST", "/v1/mget", &[], keys(1_000).as_bytes())
        .await;
    let problem = reply.problem(413, "limit_exceeded");
    assert_eq!(problem["limit"], 10_000);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("limits.body_bytes"), "{detail}");
}
