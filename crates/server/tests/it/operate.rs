//! What an operator sees: health, metrics, the description, administration.

use serde_json::Value;

use crate::support::Running;

#[tokio::test(flavor = "multi_thread")]
async fn health_is_plain_and_verbose() {
    let server = Running::start().await;
    for path in ["/livez", "/readyz", "/healthz", "/health"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.text()), (200, "ok\n"), "{path}");
        assert_eq!(server.send("HEAD", path, &[], b"").await.status, 200);
    }
    let verbose = server.get("/readyz?verbose").await;
    let page = "[+]shutdown ok\n[+]log ok\n[+]disk ok\n[+]background ok\nreadyz check passed\n";
    assert_eq!(verbose.text(), page);
    let some = server.get("/readyz?verbose&exclude=disk&exclude=log").await;
    assert_eq!(
        some.text(),
        "[+]shutdown ok\n[+]background ok\nreadyz check passed\n"
    );
    // What the server is about to do, its health tells first.
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_their_names() {
    let server = Running::start().await;
    server.put("/v1/keys/a", b"x").await;
    server.get("/v1/keys/a").await;
    server.get("/v1/keys/b").await;
    server.send("POST", "/v1/keys/b", &[], b"").await;
    let reply = server.get("/metrics").await;
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let page = reply.text();
    for line in [
        "firn_requests_total{proto=\"http\",op=\"put\",code=\"ok\"} 1\n",
        "firn_requests_total{proto=\"http\",op=\"get\",code=\"ok\"} 1\n",
        "firn_requests_total{proto=\"http\",op=\"get\",code=\"not_found\"} 1\n",
        "firn_requests_total{proto=\"http\",op=\"other\",code=\"method_not_allowed\"} 1\n",
        "firn_request_duration_seconds_count{proto=\"http\",op=\"put\"} 1\n",
        "firn_build_info{version=\"",
        "firn_writes_total 1\n",
    ] {
        assert!(page.contains(line), "{line} is missing in\n{page}");
    }
    for name in [
        "firn_requests_in_flight",
        "firn_connections",
        "firn_connections_refused_total",
        "firn_wal_fsync_duration_seconds_sum",
        "firn_wal_fsync_duration_seconds_count",
        "firn_write_stall_seconds_sum",
        "firn_write_stall_seconds_count",
        "firn_compaction_read_bytes_total",
        "firn_compaction_write_bytes_total",
        "firn_level_bytes{level=\"0\"}",
        "firn_memory_bytes{part=\"block_cache\"}",
        "firn_memory_budget_bytes",
        "firn_disk_full",
        "firn_log_poisoned",
    ] {
        assert!(
            page.lines().any(|l| l.starts_with(name)),
            "{name} is missing in\n{page}"
        );
    }
    let accept = [(
        "accept",
        "application/openmetrics-text; version=1.0.0, text/plain;q=0.5",
    )];
    let open = server.send("GET", "/metrics", &accept, b"").await;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(open.header("content-type"), Some(kind));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_served() {
    let server = Running::start().await;
    let reply = server.get("/openapi.json").await;
    assert_eq!(reply.json(), firn_server::http::openapi::document());
    assert_eq!(reply.json()["openapi"], "3.1.0");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administration_works() {
    let server = Running::start().await;
    for i in 0..100 {
        server.client.put(format!("k{i}"), "x").await.unwrap();
    }
    assert_eq!(
        server
            .send("POST", "/v1/admin/flush", &[], b"")
            .await
            .status,
        204
    );
    assert_eq!(
        server
            .send("POST", "/v1/admin/compact", &[], b"")
            .await
            .status,
        204
    );
    assert_eq!(
        server
            .send("POST", "/v1/admin/compact?ns=default&prefix=k", &[], b"")
            .await
            .status,
        204
    );
    let report = server
        .send("POST", "/v1/admin/verify", &[], b"")
        .await
        .json();
    assert_eq!(
        (&report["clean"], &report["problems"]),
        (&Value::Bool(true), &Value::Array(vec![]))
    );

    let named = server
        .send("POST", "/v1/admin/checkpoint", &[], br#"{"name":"monday"}"#)
        .await;
    assert_eq!(named.status, 201);
    let path = named.json()["path"].as_str().unwrap().to_owned();
    assert!(path.ends_with("data.checkpoints/monday"));
    assert!(std::path::Path::new(&path).is_dir());
    let again = server
        .send("POST", "/v1/admin/checkpoint", &[], br#"{"name":"monday"}"#)
        .await;
    again.problem(409, "checkpoint_exists");
    for bad in ["../x", "", ".x", "a/b", "a\\u0000"] {
        let body = format!("{{\"name\":\"{bad}\"}}");
        let reply = server
            .send("POST", "/v1/admin/checkpoint", &[], body.as_bytes())
            .await;
        reply.problem(400, "invalid_argument");
    }
    let unnamed = server.send("POST", "/v1/admin/checkpoint", &[], b"").await;
    assert!(
        unnamed.json()["path"]
            .as_str()
            .unwrap()
            .contains("checkpoint-")
    );

    let stats = server.client.stats().await.unwrap();
    assert!(stats.last_version >= 100);
    assert_eq!(stats.counters["writes"], 100);
    assert_eq!(stats.namespaces[0].name, "default");
    assert!(stats.connections >= 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sample_of_the_metrics_is_described() {
    let server = Running::start().await;
    server.put("/v1/keys/a", b"1").await;
    let reply = server.get("/metrics").await;
    let mut types = std::collections::HashMap::new();
    for line in reply.text().lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').unwrap();
            assert!(
                ["counter", "gauge", "histogram"].contains(&kind),
                "{described}"
            );
            assert!(types.insert(name, kind).is_none(), "{name} comes twice");
        } else if !line.starts_with("# HELP ") {
            let name = line.split(['{', ' ']).next().unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| types.get(name.strip_suffix(suffix)?));
            let kind = types.get(name).or(of_histogram);
            assert!(kind.is_some(), "{line}");
        }
    }
    assert_eq!(types.get("firn_requests_total"), Some(&"counter"));
    assert_eq!(types.get("firn_build_info"), Some(&"gauge"));
}
