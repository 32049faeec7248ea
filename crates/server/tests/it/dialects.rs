//! Dialects: every case that their clients rely on, over a socket, and what the cases leave out.
//!
//! A line of `dialects/*.jsonl` is a request and the answer that clients of the dialect know
//! (`expect`). Where FirnDB answers otherwise, `ours` is that answer and `why` the reason; a case
//! with `skip` needs what a single HTTP listener has not. The cases of a file run in their order
//! against one server, those with `alone` after them. `docs/dialects.md` lists them all: the test
//! refuses a stale page, `UPDATE=1 cargo test -p firn-server` rewrites it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use firn_io::Env;
use firn_server::config::Config;
use firn_server::dialect::{Listen, Numbers, Speech};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Reply, Running, parse_reply, read_reply};

/// File, dialect, what it is.
const FILES: &[(&str, &str, &str)] = &[
    ("kv-json", "kv-json", "`kv-json` (000)"),
    ("put-read", "put-read", "`put-read` (001)"),
    ("v1-raw", "v1-raw", "`v1-raw` (002), single server"),
    ("v1-raw-cluster", "v1-raw", "`v1-raw` (002), cluster"),
    ("query", "query", "`query` (003)"),
    ("kv-verbs", "kv-verbs", "`kv-verbs` (004)"),
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    class: String,
    method: String,
    path: String,
    /// So many `x` after the path.
    #[serde(default)]
    path_fill: usize,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    body: Option<String>,
    body_hex: Option<String>,
    body_fill: Option<Fill>,
    repeat: Option<usize>,
    expect: Expect,
    ours: Option<Expect>,
    why: Option<String>,
    #[serde(default)]
    skip: bool,
    /// The route is not there; `ours` says so.
    #[serde(default)]
    absent: bool,
    #[serde(default)]
    alone: bool,
}

#[derive(Debug, Deserialize)]
struct Fill {
    prefix: String,
    char: String,
    count: usize,
    suffix: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    status: Option<u16>,
    #[serde(rename = "type")]
    kind: Option<String>,
    body: Option<String>,
    body_hex: Option<String>,
    contains: Option<String>,
    location: Option<String>,
    allow: Option<Vec<String>>,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
}

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/dialects")
}

#[allow(clippy::disallowed_methods, reason = "reads test data")]
fn cases(file: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(dir().join(format!("{file}.jsonl"))).unwrap();
    let read = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text.lines().map(read).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let pair = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(pair).collect()
}

impl Case {
    fn request(&self) -> Vec<u8> {
        let body = match (&self.body, &self.body_hex, &self.body_fill) {
            (Some(text), _, _) => text.clone().into_bytes(),
            (_, Some(hex), _) => unhex(hex),
            (_, _, Some(fill)) => {
                let middle = fill.char.repeat(fill.count);
                format!("{}{middle}{}", fill.prefix, fill.suffix).into_bytes()
            }
            _ => Vec::new(),
        };
        let (method, path) = (&self.method, &self.path);
        let fill = "x".repeat(self.path_fill);
        let mut head = format!("{method} {path}{fill} HTTP/1.1\r\n");
        if !self.headers.contains_key("Host") {
            head.push_str("Host: localhost\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {}\r\n", value.as_str().unwrap()));
        }
        if !body.is_empty() || matches!(method.as_str(), "PUT" | "POST") {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        [head.into_bytes(), body].concat()
    }

    fn outcome(&self) -> (&'static str, &str) {
        let why = self.why.as_deref().unwrap_or_default();
        match (&self.ours, self.skip || self.absent) {
            (_, true) => ("not reproduced", why),
            (Some(_), _) => ("decided otherwise", why),
            _ => ("as before", why),
        }
    }
}

/// One answer from a connection that may stay open: as much as its head announces.
async fn answer(stream: &mut TcpStream, head_only: bool) -> Reply {
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            if whole(&bytes, head_only) {
                return parse_reply(&bytes);
            }
            let mut chunk = [0; 4096];
            let read = stream.read(&mut chunk).await.unwrap();
            assert!(read > 0, "cut after {:?}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&chunk[..read]);
        }
    };
    let most = Duration::from_secs(30);
    tokio::time::timeout(most, reading)
        .await
        .expect("an answer")
}

fn whole(bytes: &[u8], head_only: bool) -> bool {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body = &bytes[end + 4..];
    if head_only || head.contains(" 204 ") || head.contains(" 304 ") {
        return true;
    }
    match head.split("content-length: ").nth(1) {
        Some(rest) => body.len() >= rest.lines().next().unwrap().parse().unwrap(),
        None => body.ends_with(b"0\r\n\r\n"),
    }
}

#[track_caller]
fn check(file: &str, case: &Case, reply: &Reply) {
    let expect = case.ours.as_ref().unwrap_or(&case.expect);
    let what = format!("{file}: {}: {reply:?}", case.name);
    assert_eq!(Some(reply.status), expect.status, "{what}");
    assert_eq!(
        reply.header("content-type"),
        expect.kind.as_deref(),
        "{what}"
    );
    if let Some(body) = &expect.body {
        assert_eq!(&String::from_utf8_lossy(&reply.body), body, "{what}");
    }
    if let Some(hex) = &expect.body_hex {
        assert_eq!(reply.body, unhex(hex), "{what}");
    }
    if let Some(part) = &expect.contains {
        assert!(reply.text().contains(part), "{what}");
    }
    if let Some(location) = &expect.location {
        assert_eq!(reply.header("location"), Some(location.as_str()), "{what}");
    }
    if let Some(allow) = &expect.allow {
        let lines = reply.head.lines();
        let mut found: Vec<_> = lines.filter_map(|l| l.strip_prefix("allow: ")).collect();
        found.sort_unstable();
        assert_eq!(&found, allow, "{what}");
    }
    for (name, value) in &expect.headers {
        assert_eq!(reply.header(name), value.as_str(), "{what}");
    }
    // Lines of text are errors here, and no browser shall guess.
    let plain = !matches!(file, "query" | "kv-verbs") && reply.status >= 400;
    if plain && expect.kind.as_deref() == Some("text/plain; charset=utf-8") {
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    }
}

fn speaking(name: &str) -> impl FnOnce(&mut Config) {
    let speech = Speech::parse(name).unwrap();
    |config| config.http_dialect = speech
}

/// The limiter would count the cases.
fn unlimited() -> Numbers {
    Numbers {
        rate_requests: 0,
        ..Numbers::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_in_its_dialect() {
    for (file, dialect, _) in FILES {
        let server = Running::start_with(|config| {
            speaking(dialect)(config);
            config.dialects = unlimited();
        })
        .await;
        let mut stream = server.connect().await;
        for case in cases(file).iter().filter(|case| !case.skip && !case.alone) {
            stream.write_all(&case.request()).await.unwrap();
            let reply = answer(&mut stream, case.method == "HEAD").await;
            check(file, case, &reply);
            if reply.header("connection") == Some("close") {
                stream = server.connect().await;
            }
        }
        server.stop().await;
    }
}

fn case(file: &str, name: &str) -> Case {
    let mut all = cases(file).into_iter();
    all.find(|case| case.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limiter_counts_for_each_connection_and_forgets() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(firn_io::clock::ManualClock::new(1_700_000_000_000));
    let env = Env {
        clock: clock.clone(),
        ..Env::os(2)
    };
    let server = Running::start_by(env, dir, speaking("000")).await;
    let case = case("kv-json", "rate-limit-10-per-5s-per-connection");
    let request = case.request();
    let mut stream = server.connect().await;
    for turn in 1..=case.repeat.unwrap() {
        stream.write_all(&request).await.unwrap();
        let reply = answer(&mut stream, false).await;
        match turn {
            11 => check("kv-json", &case, &reply),
            _ => assert_eq!(reply.status, 200),
        }
    }
    assert_eq!(server.get("/health").await.status, 200);
    clock.advance(Duration::from_secs(5));
    stream.write_all(&request).await.unwrap();
    assert_eq!(answer(&mut stream, false).await.status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_stays_deleted() {
    let server = Running::start_with(speaking("kv-json")).await;
    let body = b"{\"value\":\"a:\\nb\"}";
    for key in ["del1", "a:b"] {
        let reply = server.send("POST", &format!("/kv/{key}"), &[], body).await;
        assert_eq!(reply.status, 201);
    }
    let reply = server.send("DELETE", "/kv/del1", &[], b"").await;
    assert_eq!(reply.status, 204);
    let dir = server.stop().await;
    let server = Running::start_in(dir, speaking("kv-json")).await;
    assert_eq!(server.get("/kv/del1").await.status, 404);
    let kept = server.get("/kv/a:b").await;
    assert_eq!(kept.text(), "{\"key\":\"a:b\",\"value\":\"a:\\nb\"}\n");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_change_is_not_sent_again() {
    let server = Running::start_with(speaking("kv-verbs")).await;
    let json = ("content-type", "application/json");
    let body = b"{\"key\":\"user:1\",\"value\":\"hello\"}";
    assert_eq!(
        server.send("POST", "/kv/put", &[json], body).await.status,
        200
    );
    let case = case("kv-verbs", "conditional-get");
    let first = server.get(&case.path).await;
    let tag = first.header("etag").unwrap();
    assert!(tag.starts_with("W/\""));
    assert_eq!(first.header("x-powered-by"), Some("Express"));
    let again = server
        .send("GET", &case.path, &[("if-none-match", tag)], b"")
        .await;
    check("kv-verbs", &case, &again);
    let other = server
        .send("GET", &case.path, &[("if-none-match", "W/\"1-x\"")], b"")
        .await;
    assert_eq!(other.status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overload_is_told_in_the_dialect() {
    let server = Running::start_with(speaking("kv-verbs")).await;
    let most = server.service.limits().inflight_bytes;
    let all = server
        .service
        .reserve_body(usize::try_from(most).unwrap())
        .unwrap();
    let case = case("kv-verbs", "overloaded-put");
    let mut stream = server.connect().await;
    stream.write_all(&case.request()).await.unwrap();
    let reply = answer(&mut stream, false).await;
    check("kv-verbs", &case, &reply);
    assert_eq!(reply.header("retry-after"), Some("1"));
    drop(all);
    stream.write_all(&case.request()).await.unwrap();
    assert_eq!(answer(&mut stream, false).await.status, 200);
    server.stop().await;
}

async fn send_to(address: SocketAddr, method: &str, target: &str, body: &str) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    read_reply(&mut stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_share_a_store_and_keep_to_their_namespace() {
    let listen = |name: &str| Listen {
        speech: Speech::parse(name).unwrap(),
        address: "127.0.0.1:0".into(),
    };
    let server = Running::start_with(|config| {
        config.dialect = vec![listen("put-read"), listen("v1-raw"), listen("query/shop")];
    })
    .await;
    let [put_read, v1_raw, query] = server.dialects[..] else {
        panic!("three listeners");
    };
    let reply = send_to(put_read, "POST", "/put", "{\"key\":\"k\",\"data\":\"x\"}").await;
    assert_eq!(reply.status, 200);
    assert_eq!(send_to(v1_raw, "GET", "/v1/k", "").await.text(), "x");
    assert_eq!(server.get("/v1/keys/k").await.text(), "x");
    assert_eq!(send_to(query, "GET", "/?key=k", "").await.status, 404);
    assert_eq!(
        send_to(query, "PUT", "/?key=k&value=s", "").await.status,
        200
    );
    assert_eq!(server.get("/v1/ns/shop/keys/k").await.text(), "s");
    assert_eq!(server.get("/v1/keys/k").await.text(), "x");
    // An empty value of another door reads as absent where an empty value means deleted.
    assert_eq!(server.put("/v1/keys/empty", b"").await.status, 204);
    assert_eq!(
        send_to(put_read, "GET", "/read?key=empty", "").await.status,
        404
    );
    let metrics = send_to(v1_raw, "GET", "/metrics", "").await;
    let line = "kv_operations_total{transport=\"http\",operation=\"get\"} 1\n";
    assert!(metrics.text().contains(line), "{}", metrics.text());
    assert!(metrics.text().contains("\nfirn_requests_total{"));
    server.stop().await;
}

/// Where dialects want the same route, the body or the number of segments decides.
#[tokio::test(flavor = "multi_thread")]
async fn one_port_for_all() {
    let server = Running::start_with(speaking("auto")).await;
    for (method, target, body, status, reply) in [
        ("GET", "/health", "", 200, "{\"status\": \"ok\"}"),
        ("GET", "/health-check", "", 200, "OK"),
        ("GET", "/healthz", "", 200, "kv-store up and healthy"),
        ("GET", "/", "", 200, "Hello World!"),
        ("GET", "/nope", "", 404, "404 page not found\n"),
        ("POST", "/put", "{\"key\":\"a\",\"data\":\"1\"}", 200, ""),
        ("GET", "/read?key=a", "", 200, "1"),
        ("GET", "/v1/a", "", 200, "1"),
        ("GET", "/?key=a", "", 200, "1"),
        ("GET", "/kv/a", "", 200, "{\"key\":\"a\",\"value\":\"1\"}\n"),
        (
            "GET",
            "/kv/read/a",
            "",
            200,
            "{\"key\":\"a\",\"value\":\"1\"}",
        ),
        ("PUT", "/?value=1", "", 400, ""),
        ("POST", "/batchput", "{\"b\":\"2\"}", 200, ""),
        (
            "POST",
            "/batchput",
            "{\"Keys\":[\"c\"],\"Values\":[\"3\"]}",
            200,
            "",
        ),
        (
            "POST",
            "/batchput",
            "{\"keys\":[\"c\"],\"values\":[]}",
            400,
            "",
        ),
        ("POST", "/batchput", "{bad", 400, "Invalid JSON format\n"),
        ("POST", "/batchput", "null", 200, ""),
        (
            "GET",
            "/range?start=a&end=c",
            "",
            200,
            "[\"1\",\"2\",\"3\"]",
        ),
        (
            "GET",
            "/readrange?start=a&end=b",
            "",
            200,
            "{\"a\":\"MQ==\",\"b\":\"Mg==\"}\n",
        ),
        (
            "POST",
            "/kv/put",
            "{\"key\":\"d\",\"value\":\"4\"}",
            200,
            "{\"status\":\"ok\"}",
        ),
        ("POST", "/kv/put", "{\"value\":\"5\"}", 201, ""),
        (
            "GET",
            "/kv/put",
            "",
            200,
            "{\"key\":\"put\",\"value\":\"5\"}\n",
        ),
        (
            "POST",
            "/KV/PUT/",
            "{\"key\":\"e\",\"value\":\"6\"}",
            200,
            "{\"status\":\"ok\"}",
        ),
        (
            "POST",
            "/kv/batch-put",
            "{\"items\":[]}",
            200,
            "{\"status\":\"ok\",\"count\":0}",
        ),
        ("POST", "/kv/batch-put", "{\"value\":\"7\"}", 201, ""),
        (
            "POST",
            "/kv/batch",
            "[{\"key\":\"read\",\"value\":\"8\"}]",
            201,
            "",
        ),
        (
            "GET",
            "/kv/read",
            "",
            200,
            "{\"key\":\"read\",\"value\":\"8\"}\n",
        ),
        (
            "GET",
            "/kv/read-range?start=d&end=e",
            "",
            200,
            "{\"data\":[{\"key\":\"d\",\"value\":\"4\"},{\"key\":\"e\",\"value\":\"6\"}]}",
        ),
        (
            "GET",
            "/kv/?start=d&end=e",
            "",
            200,
            "{\"d\":\"4\",\"e\":\"6\"}\n",
        ),
        ("GET", "/kv/x?start=d&end=d", "", 200, "{\"d\":\"4\"}\n"),
        ("GET", "/kv/read-range", "", 404, "Key not found\n"),
        (
            "DELETE",
            "/kv/delete/d",
            "",
            200,
            "{\"status\":\"deleted\"}",
        ),
        ("DELETE", "/kv/delete", "", 500, "Failed to delete key\n"),
        ("DELETE", "/v1/e", "", 204, ""),
        ("GET", "/kv/read/e", "", 200, "{\"error\":\"NOT_FOUND\"}"),
    ] {
        let found = send_to(server.address, method, target, body).await;
        assert_eq!(
            (found.status, found.text()),
            (status, reply),
            "{method} {target} {body}"
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_without_a_limit_are_sent_as_they_are_read() {
    let server = Running::start_with(speaking("auto")).await;
    let value = "v".repeat(1_000);
    for batch in 0..4 {
        let items: Vec<_> = (0..500)
            .map(|i| serde_json::json!({"key": format!("k{batch}{i:03}"), "value": value}))
            .collect();
        let body = Value::Array(items).to_string();
        let reply = send_to(server.address, "POST", "/kv/batch", &body).await;
        assert_eq!(reply.status, 201);
    }
    let reply = server.get("/kv/?start=k0000&end=k3498").await;
    assert_eq!(reply.header("transfer-encoding"), Some("chunked"));
    assert_eq!(reply.json().as_object().unwrap().len(), 1_999);
    let reply = server.get("/kv/read-range?start=k0000&end=k3498").await;
    let list = reply.json()["data"].as_array().unwrap().len();
    assert_eq!(list, 1_999);
    let reply = server.get("/range?start=k&end=l").await;
    assert_eq!(reply.json().as_array().unwrap().len(), 2_000);
    let reply = server.get("/readrange?start=k0000&end=k3499").await;
    assert_eq!(reply.json()["k0000"].as_str().unwrap().len(), 1_336);
    assert_eq!(reply.json().as_object().unwrap().len(), 2_000);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_is_told_and_the_connection_goes_on() {
    let server = Running::start_with(|config| {
        speaking("auto")(config);
        config.limits.batch_ops = 2;
        config.limits.body_bytes = 4_096;
        config.limits.value_bytes = 4_096;
    })
    .await;
    let long = "k".repeat(65_000);
    let big = format!("{{\"key\":\"k\",\"data\":\"{}\"}}", "x".repeat(5_000));
    for (method, target, body, status, part) in [
        (
            "POST",
            "/put",
            big.as_str(),
            413,
            "limits.body_bytes is 4096",
        ),
        (
            "POST",
            "/kv/k",
            big.as_str(),
            413,
            "limits.body_bytes is 4096",
        ),
        ("POST", "/kv/put", big.as_str(), 413, "limits.body_bytes"),
        (
            "POST",
            "/batchput",
            big.as_str(),
            413,
            "limits.body_bytes is 4096",
        ),
        (
            "POST",
            "/batchput",
            "{\"a\":\"\",\"b\":\"\",\"c\":\"\",\"d\":\"\"}",
            413,
            "limits.batch_ops is 2",
        ),
        (
            "POST",
            "/kv/batch",
            "[{\"key\":\"a\",\"value\":\"1\"},{\"key\":\"a\",\"value\":\"1\"},{\"key\":\"a\",\"value\":\"1\"}]",
            413,
            "limits.batch_ops is 2",
        ),
        ("GET", "/kv/%zz", "", 400, "no escape"),
        ("GET", "/v1/%zz", "", 400, "no escape"),
        (
            "GET",
            "/kv/read/%zz",
            "",
            400,
            "Failed to decode param '%zz'",
        ),
        (
            "POST",
            "/kv/put",
            "{\"key\":5,\"value\":\"x\"}",
            400,
            "key must be a string",
        ),
        (
            "POST",
            "/kv/batch-put",
            "{\"items\":[{\"key\":\"a\",\"value\":[1]}]}",
            400,
            "items[0]",
        ),
        (
            "POST",
            "/kv/batch-put",
            "{\"items\":7}",
            400,
            "items must be an array",
        ),
    ] {
        let reply = send_to(server.address, method, target, body).await;
        assert_eq!(reply.status, status, "{method} {target}: {reply:?}");
        assert!(reply.text().contains(part), "{method} {target}: {reply:?}");
    }
    for target in [format!("/kv/{long}x{long}"), format!("/v1/{long}x{long}")] {
        let reply = server.get(&target[..65_530.min(target.len())]).await;
        assert!(matches!(reply.status, 404 | 414), "{reply:?}");
    }
    // A body that nobody wanted is read away: the connection goes on.
    let mut stream = server.connect().await;
    let request = format!(
        "POST /kv/k HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{big}",
        big.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream, false).await.status, 413);
    // A body that ends early stores nothing.
    let mut stream = server.connect().await;
    let cut =
        b"POST /kv/cut HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"value\":\"x\"}";
    stream.write_all(cut).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_reply(&mut stream).await.status, 400);
    assert_eq!(server.get("/kv/cut").await.status, 404);
    // Pages of other origins may ask the one dialect that was made for them.
    let origin = ("origin", "http://evil.example");
    assert_eq!(
        server.send("GET", "/kv/k", &[origin], b"").await.status,
        403
    );
    assert_eq!(
        server.send("GET", "/v1/k", &[origin], b"").await.status,
        404
    );
    server.stop().await;
}

/// Something like a request to a dialect.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let text = |s: &'static str| Just(s.as_bytes().to_vec());
    let start = prop_oneof![
        text("GET "),
        text("PUT "),
        text("DELETE "),
        text("POST "),
        text("HEAD "),
        text("OPTIONS "),
    ];
    let path = prop_oneof![
        text("/kv/"),
        text("/kv/batch"),
        text("/kv/put"),
        text("/kv/batch-put"),
        text("/kv/read/"),
        text("/kv/read-range?start=&end=~"),
        text("/kv/?start=a&end=z"),
        text("/put"),
        text("/batchput"),
        text("/read?key=a"),
        text("/readrange?start=a&end=a"),
        text("/delete?key=a"),
        text("/v1/a"),
        text("/?key=a&value=b"),
        text("/range?end=z"),
        text("/"),
        text("/kv"),
        text("/Kv/read/a"),
    ];
    let more = prop_oneof![
        text(""),
        text("a"),
        text("%ff"),
        text("%2F"),
        text("%"),
        text("/b"),
        text("?key=%ff"),
        text("//"),
    ];
    let kind = prop_oneof![
        text("content-type: application/json\r\n"),
        text(""),
        text("content-type: application/x-www-form-urlencoded\r\n"),
        text("if-none-match: *\r\n"),
    ];
    let piece = prop_oneof![
        text("{"),
        text("}"),
        text("["),
        text("]"),
        text(","),
        text(":"),
        text("\"key\""),
        text("\"value\""),
        text("\"data\""),
        text("\"items\""),
        text("\"Keys\""),
        text("\"Values\""),
        text("\"a\""),
        text("null"),
        text("5"),
        text("key=a&value=b"),
        text("{\"key\":\"a\",\"value\":\"b\"}"),
        text("\\ud800"),
        text("{\"Keys\":[\"a\"],\"Values\":[\"b\"]}"),
        text("[{\"key\":\"a\",\"value\":\"b\"}]"),
        proptest::collection::vec(any::<u8>(), 0..5),
    ];
    let body = proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat());
    (start, path, more, kind, body).prop_map(|(start, path, more, kind, body)| {
        let length = format!("content-length: {}\r\n", body.len()).into_bytes();
        [
            start,
            path,
            more,
            b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n".to_vec(),
            kind,
            length,
            b"\r\n".to_vec(),
            body,
        ]
        .concat()
    })
}

#[test]
fn any_request_is_answered() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let names = ["auto", "kv-json", "put-read", "v1-raw", "query", "kv-verbs"];
    let server = runtime.block_on(Running::start_with(|config| {
        config.dialects = unlimited();
        let listen = |name: &&str| Listen {
            speech: Speech::parse(name).unwrap(),
            address: "127.0.0.1:0".into(),
        };
        config.dialect = names.iter().map(listen).collect();
    }));
    proptest!(ProptestConfig::with_cases(300), |(bytes in request(), at in 0..names.len())| {
        runtime.block_on(async {
            let mut stream = TcpStream::connect(server.dialects[at]).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            let mut answer = Vec::new();
            let reading = stream.read_to_end(&mut answer);
            let ended = tokio::time::timeout(Duration::from_secs(30), reading).await;
            prop_assert!(ended.is_ok(), "neither answered nor closed");
            prop_assert!(answer.starts_with(b"HTTP/1."), "{}", answer.escape_ascii());
            Ok(())
        })?;
    });
    runtime.block_on(async {
        // None of it was the server's own failure.
        let page = server.get("/metrics").await;
        let failed = page
            .text()
            .lines()
            .any(|line| line.contains("code=\"internal\""));
        assert!(!failed, "{}", page.text());
        server.stop().await;
    });
}

const BEGIN: &str = "<!-- Below is printed from the cases by a test. -->\n";

#[test]
#[allow(clippy::disallowed_methods, reason = "reads and writes a page")]
fn the_page_lists_every_case() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/dialects.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (text, _) = page
        .split_once(BEGIN)
        .expect("the line that begins the tables");
    let mut out = format!("{text}{BEGIN}");
    let columns = ["as before", "decided otherwise", "not reproduced"];
    out.push_str(&format!(
        "\n| dialect | {} |\n|---|---|---|---|\n",
        columns.join(" | ")
    ));
    let mut tables = String::new();
    for (file, _, title) in FILES {
        let cases = cases(file);
        let count = |word: &str| cases.iter().filter(|c| c.outcome().0 == word).count();
        let counts: Vec<_> = columns.iter().map(|word| count(word).to_string()).collect();
        out.push_str(&format!("| {title} | {} |\n", counts.join(" | ")));
        tables.push_str(&format!(
            "\n### {title}\n\n| case | class | outcome |\n|---|---|---|\n"
        ));
        for case in &cases {
            let (word, why) = case.outcome();
            let outcome = if why.is_empty() {
                word.into()
            } else {
                format!("{word}: {why}")
            };
            assert!(
                word == "as before" || !why.is_empty(),
                "{}: no reason",
                case.name
            );
            tables.push_str(&format!("| {} | {} | {outcome} |\n", case.name, case.class));
        }
    }
    out.push_str(&tables);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &out).unwrap();
    }
    let fresh = std::fs::read_to_string(&path).unwrap() == out;
    assert!(
        fresh,
        "docs/dialects.md is stale: UPDATE=1 cargo test -p firn-server dialects"
    );
}
