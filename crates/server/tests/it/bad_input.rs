//! Whatever is wrong, the answer says what, in the same form; and the server goes on.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Running, read_reply};

#[tokio::test(flavor = "multi_thread")]
async fn paths_methods_and_parameters() {
    let server = Running::start().await;
    for (method, target, status, code, part) in [
        ("GET", "/", 404, "route_not_found", "openapi"),
        ("GET", "/v1/keys", 404, "route_not_found", "openapi"),
        ("GET", "/v1/nonsense", 404, "route_not_found", "openapi"),
        (
            "POST",
            "/v1/keys/a",
            405,
            "method_not_allowed",
            "POST is not among GET, HEAD, PUT, DELETE",
        ),
        (
            "PUT",
            "/v1/range",
            405,
            "method_not_allowed",
            "GET, HEAD, DELETE",
        ),
        ("GET", "/v1/batch", 405, "method_not_allowed", "POST"),
        ("DELETE", "/metrics", 405, "method_not_allowed", "GET, HEAD"),
        ("BREW", "/v1/keys/a", 405, "method_not_allowed", "BREW"),
        (
            "GET",
            "/v1/keys/a?tll=3",
            400,
            "unknown_parameter",
            "\"tll\" is not a parameter",
        ),
        (
            "PUT",
            "/v1/keys/a?tll=3",
            400,
            "unknown_parameter",
            "it takes: ttl, expires_at, durability, key_enc",
        ),
        (
            "GET",
            "/metrics?x",
            400,
            "unknown_parameter",
            "it takes: none",
        ),
        (
            "PUT",
            "/v1/keys/a?ttl=soon",
            400,
            "invalid_argument",
            "ttl: \"soon\" is not a duration",
        ),
        (
            "PUT",
            "/v1/keys/a?ttl=0",
            400,
            "invalid_argument",
            "more than 0",
        ),
        (
            "PUT",
            "/v1/keys/a?ttl=1s&ttl=2s",
            400,
            "invalid_argument",
            "ttl is given twice",
        ),
        (
            "PUT",
            "/v1/keys/a?ttl=1s&expires_at=4000000000",
            400,
            "invalid_argument",
            "exclude each other",
        ),
        (
            "PUT",
            "/v1/keys/a?expires_at=1700000000000",
            400,
            "invalid_argument",
            "year 9999",
        ),
        (
            "PUT",
            "/v1/keys/a?durability=maybe",
            400,
            "invalid_argument",
            "neither sync nor buffered",
        ),
        (
            "GET",
            "/v1/keys/a?consistency=eventual",
            400,
            "invalid_argument",
            "linearizable, lease, stale",
        ),
        (
            "GET",
            "/v1/keys/a?key_enc=hex",
            400,
            "invalid_argument",
            "neither percent nor base64url",
        ),
        ("GET", "/v1/keys/%", 400, "invalid_encoding", "offset 0"),
        (
            "GET",
            "/v1/keys/ab%4",
            400,
            "invalid_encoding",
            "the % at offset 2",
        ),
        (
            "GET",
            "/v1/keys/%zz",
            400,
            "invalid_encoding",
            "hexadecimal",
        ),
        (
            "GET",
            "/v1/keys/!!!?key_enc=base64url",
            400,
            "invalid_encoding",
            "not base64url",
        ),
        (
            "GET",
            "/v1/ns/%FF/keys/a",
            400,
            "invalid_encoding",
            "namespace: not valid UTF-8",
        ),
        (
            "GET",
            "/v1/range?start=%",
            400,
            "invalid_encoding",
            "start: the %",
        ),
        (
            "GET",
            "/v1/range?limit=0",
            400,
            "invalid_argument",
            "at least 1",
        ),
        (
            "GET",
            "/v1/range?limit=-1",
            400,
            "invalid_argument",
            "not a whole number",
        ),
        (
            "GET",
            "/v1/range?limit=10001",
            400,
            "invalid_argument",
            "limits.page_entries is 10000, got 10001",
        ),
        (
            "GET",
            "/v1/range?max_bytes=1TiB",
            400,
            "invalid_argument",
            "limits.page_bytes",
        ),
        (
            "GET",
            "/v1/range?reverse=maybe",
            400,
            "invalid_argument",
            "neither true nor false",
        ),
        (
            "GET",
            "/v1/range?enc=hex",
            400,
            "invalid_argument",
            "auto, utf8, base64",
        ),
        (
            "GET",
            "/v1/range?cursor=abc",
            400,
            "invalid_cursor",
            "cursor",
        ),
        ("GET", "/v1/range?cursor=", 400, "invalid_cursor", "cursor"),
        (
            "GET",
            "/v1/ns/none/range",
            404,
            "namespace_not_found",
            "\"none\"",
        ),
        ("PUT", "/v1/ns/", 400, "invalid_argument", "empty"),
        (
            "GET",
            "/readyz?exclude=moon",
            400,
            "invalid_argument",
            "there is no check moon",
        ),
        (
            "POST",
            "/v1/admin/compact?ns=none",
            404,
            "namespace_not_found",
            "none",
        ),
        (
            "POST",
            "/v1/admin/compact?start=b&end=a",
            400,
            "invalid_argument",
            "not before",
        ),
    ] {
        let reply = server.send(method, target, &[], b"").await;
        let problem = reply.problem(status, code);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{method} {target}: {detail}");
        assert_eq!(problem["instance"], target.split('?').next().unwrap());
        assert_eq!(reply.header("allow").is_some(), status == 405);
    }
    let options = server.send("OPTIONS", "/v1/keys/a", &[], b"").await;
    assert_eq!(
        (options.status, options.header("allow")),
        (204, Some("GET, HEAD, PUT, DELETE"))
    );
    let problem = server.get("/v1/range?limit=10001").await.json();
    assert_eq!(
        (&problem["limit"], &problem["actual"]),
        (&10_000.into(), &10_001.into())
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_carry_their_value_and_the_actual_one() {
    let server = Running::start_with(|config| {
        config.limits.key_bytes = 10;
        config.limits.value_bytes = 1_000;
        config.limits.body_bytes = 2_000;
        config.limits.batch_ops = 3;
        config.limits.mget_keys = 3;
    })
    .await;
    let expect = |problem: serde_json::Value, limit: u64, actual: u64| {
        assert_eq!(
            (&problem["limit"], &problem["actual"]),
            (&limit.into(), &actual.into()),
            "{problem}"
        );
    };
    for method in ["GET", "PUT", "DELETE"] {
        let reply = server.send(method, "/v1/keys/12345678901", &[], b"").await;
        expect(reply.problem(413, "key_too_large"), 10, 11);
    }
    expect(
        server
            .get("/v1/range?start=12345678901")
            .await
            .problem(413, "key_too_large"),
        10,
        11,
    );
    assert_eq!(
        server.put("/v1/keys/1234567890", &[0; 1_000]).await.status,
        204
    );
    expect(
        server
            .put("/v1/keys/k", &[0; 1_001])
            .await
            .problem(413, "value_too_large"),
        1_000,
        1_001,
    );
    // Also if the length is not announced, and the client sends far more than it is read.
    let mut chunked =
        b"PUT /v1/keys/k HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..100 {
        chunked.extend_from_slice(b"400\r\n");
        chunked.extend_from_slice(&[b'x'; 1024]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let reply = server.raw(&chunked).await;
    assert_eq!(reply.problem(413, "value_too_large")["limit"], 1_000);
    assert_eq!(reply.header("connection"), Some("close"));

    let post = |target: &'static str, body: String| {
        let server = &server;
        async move { server.send("POST", target, &[], body.as_bytes()).await }
    };
    let ops = |n| vec![r#"{"op":"delete","key":"a"}"#; n].join(",");
    let reply = post("/v1/batch", format!("{{\"ops\":[{}]}}", ops(4))).await;
    expect(reply.problem(413, "limit_exceeded"), 3, 4);
    let reply = post("/v1/batch", format!("{{\"ops\":[{}]}}", ops(100))).await;
    expect(reply.problem(413, "body_too_large"), 2_000, 2_609);
    let reply = post("/v1/mget", r#"{"keys":["a","b","c","d"]}"#.into()).await;
    expect(reply.problem(413, "limit_exceeded"), 3, 4);
    assert_eq!(server.get("/v1/keys/k").await.status, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_json_is_shown_where_it_breaks() {
    let server = Running::start().await;
    for (target, body, part) in [
        ("/v1/batch", "", "line 1 column 0"),
        ("/v1/batch", "{\"ops\":\n [}", "line 2 column 3"),
        ("/v1/batch", "[]", "line 1"),
        (
            "/v1/batch",
            "{\"ops\":[{\"op\":\"put\",\"kee\":1}]}",
            "unknown field `kee`",
        ),
        (
            "/v1/batch",
            "{\"ops\":[{\"op\":\"put\",\"key\":1}]}",
            "invalid type: integer `1`",
        ),
        ("/v1/batch", "{\"ops\":[]}x", "trailing characters"),
        ("/v1/batch", "\u{fffd}", "line 1 column 1"),
        ("/v1/mget", "{\"keys\":[1]}", "line 1"),
        ("/v1/mget", "{}", "missing field `keys`"),
    ] {
        let reply = server.send("POST", target, &[], body.as_bytes()).await;
        let problem = reply.problem(400, "invalid_json");
        assert!(
            problem["detail"].as_str().unwrap().contains(part),
            "{body}: {problem}"
        );
    }
    // Deep nesting is an error, not an overflow.
    let deep = format!("{{\"ops\":{}", "[".repeat(100_000));
    server
        .send("POST", "/v1/batch", &[], deep.as_bytes())
        .await
        .problem(400, "invalid_json");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_cut_short_write_nothing() {
    let server = Running::start().await;
    for request in [
        &b"PUT /v1/keys/k HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nabc"[..],
        b"PUT /v1/keys/k HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"PUT /v1/keys/k HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n",
    ] {
        let mut stream = server.connect().await;
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let reply = read_reply(&mut stream).await;
        reply.problem(400, "body_incomplete");
    }
    assert_eq!(server.get("/v1/keys/k").await.status, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_let_go() {
    let server = Running::start_with(|config| {
        config.header_timeout = Duration::from_millis(50);
        config.body_timeout = Duration::from_millis(50);
        config.idle_timeout = Duration::from_millis(50);
    })
    .await;
    // A head that never ends.
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /v1/keys/a HTTP/1.1\r\nhost:")
        .await
        .unwrap();
    read_reply(&mut stream)
        .await
        .problem(408, "request_timeout");
    // A body that never comes.
    let mut stream = server.connect().await;
    stream
        .write_all(b"PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nab")
        .await
        .unwrap();
    let reply = read_reply(&mut stream).await;
    reply.problem(408, "request_timeout");
    assert_eq!(reply.header("connection"), Some("close"));
    // Nothing at all: closed without a word, before the first request and after one.
    for first in [&b""[..], b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let mut stream = server.connect().await;
        stream.write_all(first).await.unwrap();
        let mut answer = Vec::new();
        let reading = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
        tokio::time::timeout(Duration::from_secs(30), reading)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(answer.is_empty(), first.is_empty());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_is_closed_and_the_server_goes_on() {
    let server = Running::start().await;
    let long_target = format!(
        "GET /v1/keys/{} HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "a".repeat(70_000)
    );
    let long_head = format!(
        "GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "a".repeat(300_000)
    );
    let many_headers = format!(
        "GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n",
        "a: b\r\n".repeat(200)
    );
    for (request, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], 400),
        (b"PING\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (
            b"PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
            400,
        ),
        (
            b"PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            400,
        ),
        (long_target.as_bytes(), 414),
        (long_head.as_bytes(), 431),
        (many_headers.as_bytes(), 431),
    ] {
        let mut stream = server.connect().await;
        // The server may close before it has read everything.
        let _ = stream.write_all(request).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
        if !answer.is_empty() {
            assert_eq!(crate::support::parse_reply(&answer).status, status);
        }
    }
    assert_eq!(server.get("/livez").await.status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_flight_are_bounded() {
    let server = Running::start_with(|config| {
        config.limits.value_bytes = 1 << 20;
        config.limits.body_bytes = 1 << 20;
        config.limits.inflight_bytes = 1 << 20;
    })
    .await;
    // One client holds most of the room, with a body that is not complete.
    let mut holder = server.connect().await;
    holder.write_all(b"PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
    holder.write_all(&vec![b'x'; 900_000]).await.unwrap();
    // When the server has read it, what others send does not fit beside it.
    while server.metric("firn_request_body_bytes").await < 900_000 {
        tokio::task::yield_now().await;
    }
    let refused = server.put("/v1/keys/b", &vec![b'y'; 500_000]).await;
    let problem = refused.problem(503, "overloaded");
    assert_eq!(problem["limit"], 1 << 20);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(problem["retry_after_ms"].as_u64().unwrap() > 0);
    holder.write_all(&vec![b'x'; 100_000]).await.unwrap();
    assert_eq!(read_reply(&mut holder).await.status, 204);
    assert_eq!(
        server.put("/v1/keys/b", &vec![b'y'; 500_000]).await.status,
        204
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_read_although_the_body_was_not() {
    let server = Running::start().await;
    let body = vec![b'x'; 20 << 20];
    for (method, target, status, code) in [
        ("PUT", "/nothing/here", 404, "route_not_found"),
        ("PUT", "/v1/keys/a?tll=1", 400, "unknown_parameter"),
        ("PUT", "/v1/keys/%zz", 400, "invalid_encoding"),
        ("PUT", "/metrics", 405, "method_not_allowed"),
    ] {
        // The whole body is sent before anything is read.
        let reply = server.send(method, target, &[], &body).await;
        reply.problem(status, code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_first_is_refused_before_it_sends() {
    let server = Running::start_with(|config| config.limits.value_bytes = 1_000).await;
    for target in ["/v1/keys/a", "/nothing/here"] {
        let head = format!(
            "PUT {target} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 1001\r\n\r\n"
        );
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("HTTP/1.1 4"), "{text}");
        assert!(!text.contains("100 Continue"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_of_other_origins_are_kept_out() {
    let server = Running::start().await;
    let own = format!("http://{}", server.address);
    let ask = async |host: &str, origin: &str| {
        let origin = match origin {
            "" => String::new(),
            _ => format!("origin: {origin}\r\n"),
        };
        let head = format!(
            "POST /v1/batch HTTP/1.1\r\nhost: {host}\r\n{origin}connection: close\r\n\
             content-type: text/plain\r\ncontent-length: 42\r\n\r\n"
        );
        let body = r#"{"ops":[{"op":"delete_range","prefix":""}]}"#;
        server
            .raw(format!("{head}{}", &body[..42]).as_bytes())
            .await
    };
    let address = server.address.to_string();
    // What follows is no JSON, cut as it is: nobody else is to come that far.
    for (host, origin) in [(address.as_str(), ""), (&address, &own), ("localhost", "")] {
        ask(host, origin).await.problem(400, "invalid_json");
    }
    for (host, origin) in [
        (address.as_str(), "http://evil.example"),
        (&address, "null"),
        (&address, "http://localhost:1"),
        ("evil.example", ""),
        ("evil.example:80", "http://evil.example:80"),
    ] {
        ask(host, origin).await.problem(403, "foreign_origin");
    }
    let twice = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: a\r\nconnection: close\r\n\r\n";
    server.raw(twice).await.problem(400, "invalid_argument");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_for_others_answers_to_any_name() {
    let server = Running::start_with(|config| config.insecure = true).await;
    let get = b"GET /livez HTTP/1.1\r\nhost: store.example\r\nconnection: close\r\n\r\n";
    assert_eq!(server.raw(get).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_namespaces_can_be_shown() {
    let server = Running::start().await;
    for name in ["a%00", "%0A", "x%1B[2J", "%C2%85", "a%7Fb"] {
        let reply = server.put(&format!("/v1/ns/{name}"), b"").await;
        let problem = reply.problem(400, "invalid_argument");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("control characters, as \\u{"), "{detail}");
    }
    assert_eq!(server.put("/v1/ns/%C3%A9%20x", b"").await.status, 201);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arrays_are_no_objects() {
    let server = Running::start().await;
    for (target, body) in [
        ("/v1/batch", "[]"),
        ("/v1/batch", "[[]]"),
        ("/v1/batch", "{\"ops\":[[\"put\",null,\"k\",null,\"v\"]]}"),
        ("/v1/mget", "[]"),
        ("/v1/mget", "[[\"k\"]]"),
        ("/v1/mget", "{\"keys\":[[\"aw==\"]]}"),
        ("/v1/admin/checkpoint", "[]"),
        ("/v1/admin/checkpoint", "[\"name\"]"),
        ("/v1/admin/checkpoint", "null"),
    ] {
        let reply = server.send("POST", target, &[], body.as_bytes()).await;
        reply.problem(400, "invalid_json");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_other_codings_are_refused() {
    let server = Running::start_with(|config| {
        config.dialect = vec![firn_server::dialect::Listen {
            speech: firn_server::dialect::Speech::parse("v1-raw").unwrap(),
            address: "127.0.0.1:0".into(),
        }];
    })
    .await;
    let body = "5\r\nabcde\r\n0\r\n\r\n";
    for coding in [
        "gzip, chunked",
        "chunked, chunked",
        "gzip\r\ntransfer-encoding: chunked",
    ] {
        for (address, path) in [
            (server.address, "/v1/keys/k"),
            (server.dialects[0], "/v1/k"),
        ] {
            let request = format!(
                "PUT {path} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: {coding}\r\n\r\n{body}"
            );
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let reply = read_reply(&mut stream).await;
            // hyper refuses some of it by itself.
            assert_eq!(reply.status, 400, "{coding}: {reply:?}");
            assert_eq!(reply.header("connection"), Some("close"), "{coding}");
        }
    }
    assert_eq!(server.get("/v1/keys/k").await.status, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_of_a_next_head_has_the_time_of_a_head() {
    let server = Running::start_with(|config| {
        config.header_timeout = Duration::from_millis(50);
        config.idle_timeout = Duration::from_secs(600);
    })
    .await;
    let mut stream = server.connect().await;
    let both = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\nGET /v1/keys/a HTTP/1.1\r\nho";
    stream.write_all(both).await.unwrap();
    let mut all = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut all);
    let ended = tokio::time::timeout(Duration::from_secs(60), reading).await;
    ended.expect("not as long as an idle connection").unwrap();
    let text = String::from_utf8_lossy(&all);
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert!(text.contains("HTTP/1.1 408 "), "{text}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_replies_are_counted_until_they_are_sent() {
    let server = Running::start().await;
    let value = vec![b'v'; 100_000];
    assert_eq!(server.put("/v1/keys/large", &value).await.status, 204);
    assert_eq!(server.put("/v1/keys/small", b"x").await.status, 204);
    let all = usize::try_from(server.service.limits().inflight_bytes).unwrap();
    let taken = server.service.reserve_body(all - 99_999).unwrap();
    let refused = server.get("/v1/keys/large").await;
    let problem = refused.problem(503, "overloaded");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("limits.inflight_bytes"), "{detail}");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(server.get("/v1/keys/small").await.text(), "x");
    let head = server.send("HEAD", "/v1/keys/large", &[], b"").await;
    assert_eq!(head.status, 200);
    drop(taken);
    assert_eq!(server.get("/v1/keys/large").await.body, value);
    server.stop().await;
}

/// Also when all of it was handed to the connection, and the client does not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_nobody_reads_is_counted() {
    // More than sockets take.
    let value = vec![b'v'; 24 << 20];
    let server = Running::start_with(|config| {
        config.limits.value_bytes = 32 << 20;
        config.limits.body_bytes = 32 << 20;
        config.limits.inflight_bytes = 40 << 20;
    })
    .await;
    assert_eq!(server.put("/v1/keys/large", &value).await.status, 204);
    let mut idle = server.connect().await;
    let head = b"GET /v1/keys/large HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    idle.write_all(head).await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    assert_eq!(server.service.inflight_bytes(), value.len() as u64);
    let refused = server.get("/v1/keys/large").await;
    refused.problem(503, "overloaded");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(&value));
    while server.service.inflight_bytes() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.get("/v1/keys/large").await.body, value);
    server.stop().await;
}

/// What a client takes its time for is not the server's.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_no_slow_requests() {
    let clock = std::sync::Arc::new(firn_io::clock::ManualClock::new(1_700_000_000_000));
    let env = firn_io::Env {
        clock: clock.clone(),
        ..firn_io::Env::os(2)
    };
    let server = Running::start_by(env, tempfile::tempdir().unwrap(), |_| {}).await;
    let mut stream = server.connect().await;
    let head = b"PUT /v1/keys/k HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 4\r\n\r\nab";
    stream.write_all(head).await.unwrap();
    while server.service.inflight_bytes() < 2 {
        tokio::task::yield_now().await;
    }
    clock.advance(Duration::from_secs(100));
    stream.write_all(b"cd").await.unwrap();
    assert_eq!(read_reply(&mut stream).await.status, 204);
    let line = "firn_request_duration_seconds_count{proto=\"http\",op=\"put\"} 1\n";
    let page = loop {
        let page = server.get("/metrics").await.text().to_owned();
        if page.contains(line) {
            break page;
        }
    };
    let sum = "firn_request_duration_seconds_sum{proto=\"http\",op=\"put\"} ";
    let sum = page
        .lines()
        .find_map(|line| line.strip_prefix(sum))
        .unwrap();
    assert!(sum.parse::<f64>().unwrap() < 1.0, "{sum}");
    server.stop().await;
}

/// Requests that a client sends without waiting are answered in their order; those that the server did
/// not read yet cost it nothing.
#[tokio::test(flavor = "multi_thread")]
async fn requests_sent_ahead_wait_their_turn() {
    let server = Running::start_with(|config| config.header_bytes = 8 << 10).await;
    for i in 0..10 {
        let value = i.to_string();
        server.put(&format!("/v1/keys/{i}"), value.as_bytes()).await;
    }
    let mut stream = server.connect().await;
    let (mut from, mut to) = stream.split();
    let send = async {
        for i in 0..5_000 {
            let last = if i == 4_999 {
                "connection: close\r\n"
            } else {
                ""
            };
            let key = i % 10;
            let request = format!("GET /v1/keys/{key} HTTP/1.1\r\nhost: localhost\r\n{last}\r\n");
            to.write_all(request.as_bytes()).await.unwrap();
        }
    };
    let mut all = Vec::new();
    let receive = tokio::io::AsyncReadExt::read_to_end(&mut from, &mut all);
    let ((), received) = tokio::join!(send, receive);
    received.unwrap();
    let text = String::from_utf8(all).unwrap();
    let replies: Vec<_> = text.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
    assert_eq!(replies.len(), 5_000);
    for (i, reply) in replies.iter().enumerate() {
        assert!(
            reply.ends_with(&format!("\r\n\r\n{}", i % 10)),
            "{i}: {reply}"
        );
    }
    server.stop().await;
}
