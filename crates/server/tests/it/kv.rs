//! One key: values as bodies, versions as entity tags, conditions, expiry.

use proptest::prelude::*;

use crate::support::Running;

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_written_read_and_deleted() {
    let server = Running::start().await;
    assert_eq!(server.get("/v1/keys/a/b").await.status, 404);
    let put = server.put("/v1/keys/a/b", b"hello").await;
    assert_eq!(put.status, 204);
    assert_eq!(put.header("kv-durability"), Some("sync"));
    let tag = put.header("etag").unwrap().to_owned();
    assert_eq!(tag, format!("\"{}\"", put.header("kv-version").unwrap()));

    let got = server.get("/v1/keys/a%2Fb").await;
    assert_eq!((got.status, got.text()), (200, "hello"));
    assert_eq!(got.header("etag"), Some(tag.as_str()));
    assert_eq!(got.header("content-type"), Some("application/octet-stream"));
    assert_eq!(got.header("kv-consistency"), Some("linearizable"));

    let head = server.send("HEAD", "/v1/keys/a/b", &[], b"").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some("5"));
    assert_eq!(head.header("etag"), Some(tag.as_str()));
    assert_eq!(
        server.send("HEAD", "/v1/keys/none", &[], b"").await.status,
        404
    );

    for _ in 0..2 {
        assert_eq!(
            server.send("DELETE", "/v1/keys/a/b", &[], b"").await.status,
            204
        );
    }
    server.get("/v1/keys/a/b").await.problem(404, "not_found");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_hold_or_nothing_happens() {
    let server = Running::start().await;
    let create = [("if-none-match", "*")];
    let first = server.send("PUT", "/v1/keys/k", &create, b"1").await;
    assert_eq!(first.status, 201);
    let tag = first.header("etag").unwrap().to_owned();
    let refused = server.send("PUT", "/v1/keys/k", &create, b"2").await;
    let problem = refused.problem(412, "condition_failed");
    assert_eq!(format!("\"{}\"", problem["version"]), tag);
    assert_eq!(refused.header("etag"), Some(tag.as_str()));

    // Reads: 304 while it is unchanged, 412 when it is not what was asked for.
    let same = server
        .send("GET", "/v1/keys/k", &[("if-none-match", &tag)], b"")
        .await;
    assert_eq!((same.status, same.body.len()), (304, 0));
    assert_eq!(same.header("etag"), Some(tag.as_str()));
    let weak = format!("\"1000000\", W/{tag}");
    assert_eq!(
        server
            .send("GET", "/v1/keys/k", &[("if-none-match", &weak)], b"")
            .await
            .status,
        304
    );
    assert_eq!(
        server
            .send("GET", "/v1/keys/k", &[("if-none-match", "\"999\"")], b"")
            .await
            .status,
        200
    );
    assert_eq!(
        server
            .send("GET", "/v1/keys/k", &[("if-match", &tag)], b"")
            .await
            .status,
        200
    );
    assert_eq!(
        server
            .send("GET", "/v1/keys/k", &[("if-match", "\"999\"")], b"")
            .await
            .status,
        412
    );
    assert_eq!(
        server
            .send("HEAD", "/v1/keys/none", &[("if-match", "*")], b"")
            .await
            .status,
        412
    );

    // Writes: only over the version that was read.
    let second = server
        .send("PUT", "/v1/keys/k", &[("if-match", &tag)], b"2")
        .await;
    assert_eq!(second.status, 204);
    let stale = server
        .send("PUT", "/v1/keys/k", &[("if-match", &tag)], b"3")
        .await;
    stale.problem(412, "condition_failed");
    let stale = server
        .send("DELETE", "/v1/keys/k", &[("if-match", &tag)], b"")
        .await;
    stale.problem(412, "condition_failed");
    assert_eq!(server.get("/v1/keys/k").await.text(), "2");
    let tag = second.header("etag").unwrap();
    assert_eq!(
        server
            .send("DELETE", "/v1/keys/k", &[("if-match", tag)], b"")
            .await
            .status,
        204
    );
    let gone = server
        .send("PUT", "/v1/keys/k", &[("if-match", "*")], b"4")
        .await;
    assert!(
        gone.problem(412, "condition_failed")
            .get("version")
            .is_none()
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_expire() {
    let server = Running::start().await;
    server.put("/v1/keys/forever", b"x").await;
    assert_eq!(
        server.get("/v1/keys/forever").await.header("kv-expires-at"),
        None
    );
    server
        .put("/v1/keys/later?expires_at=4000000000.25", b"x")
        .await;
    let later = server.get("/v1/keys/later").await;
    assert_eq!(later.header("kv-expires-at"), Some("4000000000.25"));
    server.put("/v1/keys/hour?ttl=1h", b"x").await;
    let seconds: f64 = server
        .get("/v1/keys/hour")
        .await
        .header("kv-expires-at")
        .unwrap()
        .parse()
        .unwrap();
    assert!(seconds > 1_700_000_000.0);
    // Expired entries are as good as deleted, also for conditions.
    assert_eq!(
        server
            .put("/v1/keys/past?expires_at=1000000000", b"x")
            .await
            .status,
        204
    );
    assert_eq!(server.get("/v1/keys/past").await.status, 404);
    let again = server
        .send("PUT", "/v1/keys/past", &[("if-none-match", "*")], b"y")
        .await;
    assert_eq!(again.status, 201);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_are_accepted_and_echoed() {
    let server = Running::start().await;
    for level in ["sync", "buffered"] {
        let put = server
            .put(&format!("/v1/keys/k?durability={level}"), b"x")
            .await;
        assert_eq!(put.header("kv-durability"), Some(level));
        let target = format!("/v1/keys/k?durability={level}");
        let delete = server.send("DELETE", &target, &[], b"").await;
        assert_eq!(delete.header("kv-durability"), Some(level));
    }
    server.put("/v1/keys/k", b"x").await;
    for level in ["linearizable", "lease", "stale"] {
        let got = server.get(&format!("/v1/keys/k?consistency={level}")).await;
        assert_eq!(got.header("kv-consistency"), Some(level));
    }
    server.stop().await;
    let buffered = Running::start_with(|c| c.durability = firn_engine::Durability::Buffered).await;
    assert_eq!(
        buffered
            .put("/v1/keys/k", b"x")
            .await
            .header("kv-durability"),
        Some("buffered")
    );
    buffered.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_apart() {
    let server = Running::start().await;
    server
        .put("/v1/ns/app/keys/k", b"x")
        .await
        .problem(404, "namespace_not_found");
    assert_eq!(server.put("/v1/ns/app", b"").await.status, 201);
    assert_eq!(server.put("/v1/ns/app", b"").await.status, 204);
    assert_eq!(server.put("/v1/ns/a%2Fb%20c", b"").await.status, 201);
    server.put("/v1/ns/app/keys/k", b"app").await;
    server.put("/v1/ns/a%2Fb%20c/keys/k", b"abc").await;
    server.put("/v1/ns/default/keys/k", b"default").await;
    assert_eq!(server.get("/v1/keys/k").await.text(), "default");
    assert_eq!(server.get("/v1/ns/app/keys/k").await.text(), "app");
    assert_eq!(server.get("/v1/ns/a%2Fb%20c/keys/k").await.text(), "abc");
    let list = server.get("/v1/ns").await.json();
    let names: Vec<_> = list["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["name"].clone())
        .collect();
    assert_eq!(names, ["a/b c", "app", "default"]);
    assert_eq!(server.get("/v1/ns/app").await.json()["name"], "app");
    assert_eq!(
        server.send("DELETE", "/v1/ns/app", &[], b"").await.status,
        204
    );
    server
        .send("DELETE", "/v1/ns/app", &[], b"")
        .await
        .problem(404, "namespace_not_found");
    server
        .get("/v1/ns/app/keys/k")
        .await
        .problem(404, "namespace_not_found");
    server
        .get("/v1/ns/app")
        .await
        .problem(404, "namespace_not_found");
    server
        .send("DELETE", "/v1/ns/default", &[], b"")
        .await
        .problem(400, "invalid_argument");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_empty_values_come_back() {
    let server = Running::start().await;
    let large: Vec<u8> = (0..5_000_000_u32).map(|i| (i % 251) as u8).collect();
    for (key, value) in [("large", large.as_slice()), ("empty", b"")] {
        assert_eq!(
            server.put(&format!("/v1/keys/{key}"), value).await.status,
            204
        );
        let got = server.get(&format!("/v1/keys/{key}")).await;
        assert_eq!(got.status, 200);
        assert!(got.body == value);
    }
    // The empty key is a key.
    assert_eq!(server.put("/v1/keys/", b"nameless").await.status, 204);
    assert_eq!(server.get("/v1/keys/").await.text(), "nameless");
    // A body in chunks, after 100-continue.
    let chunked = b"PUT /v1/keys/c HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(server.raw(chunked).await.status, 204);
    assert_eq!(server.get("/v1/keys/c").await.text(), "abcde");
    server.stop().await;
}

#[test]
fn any_bytes_are_a_key_and_a_value() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Running::start());
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    proptest!(ProptestConfig::with_cases(60), |(key in bytes(), value in bytes(), slash in any::<bool>())| {
        runtime.block_on(async {
            let encoded = firn_api::text::percent_encode(&key, slash);
            let put = server.put(&format!("/v1/keys/{encoded}"), &value).await;
            prop_assert_eq!(put.status, 204);
            let base64 = firn_api::text::base64url_encode(&key);
            let got = server.get(&format!("/v1/keys/{base64}?key_enc=base64url")).await;
            prop_assert_eq!(got.status, 200);
            prop_assert_eq!(&got.body, &value);
            let entry = server.client.get(&key).await.unwrap().unwrap();
            prop_assert_eq!(&entry.value[..], &value[..]);
            Ok(())
        })?;
    });
    runtime.block_on(server.stop());
}
