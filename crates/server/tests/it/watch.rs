//! The changefeed through the door and the client: order, filters, resumption, refusals.

use std::time::Duration;

use firn_client::{
    Batch, Change, Client, Durability, PutOptions, ScanOptions, WatchEvent, WatchOptions,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::Running;

/// A stream that is read line by line as it comes.
struct Lines {
    stream: TcpStream,
    head: String,
    raw: Vec<u8>,
    text: Vec<u8>,
}

impl Lines {
    async fn open(server: &Running, target: &str, headers: &str) -> Self {
        let mut stream = server.connect().await;
        let head = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut lines = Self {
            stream,
            head: String::new(),
            raw: Vec::new(),
            text: Vec::new(),
        };
        let end = loop {
            if let Some(end) = lines.raw.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
            assert!(lines.more().await, "no head");
        };
        lines.head = String::from_utf8(lines.raw.drain(..end + 4).collect()).unwrap();
        assert!(lines.head.starts_with("HTTP/1.1 200 "), "{}", lines.head);
        lines
    }

    async fn more(&mut self) -> bool {
        let reading = self.stream.read_buf(&mut self.raw);
        let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
        read.expect("nothing came").unwrap() > 0
    }

    /// The next line; `None` at the orderly end of the stream.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            let size = self.raw.windows(2).position(|w| w == b"\r\n").map(|at| {
                let text = std::str::from_utf8(&self.raw[..at]).unwrap();
                (at, usize::from_str_radix(text, 16).unwrap())
            });
            match size {
                Some((at, size)) if self.raw.len() >= at + size + 4 => {
                    if size == 0 {
                        return None;
                    }
                    self.text
                        .extend_from_slice(&self.raw[at + 2..at + 2 + size]);
                    self.raw.drain(..at + size + 4);
                }
                _ => {
                    if !self.more().await {
                        panic!("cut");
                    }
                }
            }
        }
    }

    /// The next line that is no sign of life.
    async fn change(&mut self) -> Value {
        loop {
            let line: Value = serde_json::from_str(&self.next().await.unwrap()).unwrap();
            if line.get("progress").is_none() {
                return line;
            }
        }
    }
}

#[tokio::test]
async fn changes_come_as_lines_in_order() {
    let server = Running::start().await;
    server.client.put("a", "1").await.unwrap();
    let mut lines = Lines::open(&server, "/v1/watch?from=1", "").await;
    assert!(lines.head.contains("content-type: application/x-ndjson"));
    assert_eq!(lines.next().await.unwrap(), r#"{"progress":0}"#);
    assert_eq!(
        lines.next().await.unwrap(),
        r#"{"op":"put","version":1,"commit":1,"ns":"default","key":"a","value":"1"}"#
    );
    let batch = Batch::new()
        .put("b", b"\xff")
        .delete("a")
        .delete_prefix("c");
    server.client.batch(batch).await.unwrap();
    let put = json!({"op":"put","version":2,"commit":4,"more":true,"ns":"default","key":"b","value_b64":"/w=="});
    assert_eq!(lines.change().await, put);
    let delete = json!({"op":"delete","version":3,"commit":4,"more":true,"ns":"default","key":"a"});
    assert_eq!(lines.change().await, delete);
    let range =
        json!({"op":"delete_range","version":4,"commit":4,"ns":"default","start":"c","to":"d"});
    assert_eq!(lines.change().await, range);
    server.put("/v1/keys/e?expires_at=4000000000", b"x").await;
    assert_eq!(lines.change().await["expires_at_ms"], 4_000_000_000_000_u64);
    // A buffered write comes when it is durable.
    server.put("/v1/keys/f?durability=buffered", b"x").await;
    assert_eq!(lines.change().await["version"], 6);
    assert_eq!(server.metric("firn_watches").await, 1);
    assert_eq!(server.metric("firn_watch_events_total").await, 6);
    server.stop().await;
}

#[tokio::test]
async fn a_browser_resumes_by_the_last_event_id() {
    let server = Running::start().await;
    for key in ["a", "b", "c"] {
        server.client.put(key, "1").await.unwrap();
    }
    let accept = "accept: text/event-stream\r\n";
    let mut lines = Lines::open(&server, "/v1/watch?from=2&keys_only", accept).await;
    assert!(lines.head.contains("content-type: text/event-stream"));
    let mut got = Vec::new();
    for _ in 0..10 {
        got.push(lines.next().await.unwrap());
    }
    let expected = [
        "retry: 1000",
        ": progress",
        "id: 1",
        "",
        "id: 2",
        r#"data: {"op":"put","version":2,"commit":2,"ns":"default","key":"b"}"#,
        "",
        "id: 3",
        r#"data: {"op":"put","version":3,"commit":3,"ns":"default","key":"c"}"#,
        "",
    ];
    assert_eq!(got, expected);
    let resumed = format!("{accept}last-event-id: 2\r\n");
    let mut lines = Lines::open(&server, "/v1/watch?from=1&keys_only", &resumed).await;
    for line in ["retry: 1000", ": progress", "id: 2", "", "id: 3"] {
        assert_eq!(lines.next().await.unwrap(), line);
    }
    server.stop().await;
}

#[tokio::test]
async fn filters_and_a_dropped_namespace() {
    let server = Running::start().await;
    server.client.create_namespace("x/y").await.unwrap();
    let other = server.client.namespace("x/y");
    let mut all = Lines::open(&server, "/v1/watch?all_ns&from=1", "").await;
    let mut one = Lines::open(&server, "/v1/ns/x%2Fy/watch?prefix=k", "").await;
    let mut same = Lines::open(&server, "/v1/watch?ns=x/y&start=k&end=l", "").await;
    other.put("j", "1").await.unwrap();
    server.client.put("k1", "2").await.unwrap();
    other.put("k2", "3").await.unwrap();
    server.client.drop_namespace("x/y").await.unwrap();
    for version in 1..=4 {
        assert_eq!(all.change().await["version"], version);
    }
    for lines in [&mut one, &mut same] {
        assert_eq!(lines.change().await["key"], "k2");
        let drop = json!({"op":"drop_namespace","version":4,"commit":4,"ns":"x/y"});
        assert_eq!(lines.change().await, drop);
    }
    server
        .get("/v1/ns/x%2Fy/watch")
        .await
        .problem(404, "namespace_not_found");
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    let server = Running::start_with(|config| config.limits.watches = 1).await;
    for (target, status, code) in [
        ("/v1/watch?from=x", 400, "invalid_argument"),
        ("/v1/watch?from=9", 400, "invalid_argument"),
        ("/v1/watch?heartbeat=1ms", 400, "invalid_argument"),
        ("/v1/watch?ns=default&all_ns", 400, "invalid_argument"),
        ("/v1/ns/default/watch?ns=default", 400, "invalid_argument"),
        ("/v1/watch?start=b&end=a", 400, "invalid_argument"),
        ("/v1/watch?enc=rot13", 400, "invalid_argument"),
        ("/v1/watch?limit=1", 400, "unknown_parameter"),
        ("/v1/watch?ns=none", 404, "namespace_not_found"),
    ] {
        server.get(target).await.problem(status, code);
    }
    let bad = server
        .send("GET", "/v1/watch", &[("last-event-id", "x")], b"")
        .await;
    bad.problem(400, "invalid_argument");
    server
        .send("POST", "/v1/watch", &[], b"")
        .await
        .problem(405, "method_not_allowed");
    let lines = Lines::open(&server, "/v1/watch?heartbeat=100ms", "").await;
    let refused = server.get("/v1/watch").await;
    assert_eq!(refused.problem(503, "overloaded")["limit"], 1);
    assert!(refused.header("retry-after").is_some());
    // Who goes away leaves the place to others.
    drop(lines);
    while server.metric("firn_watches").await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Lines::open(&server, "/v1/watch", "").await;
    // The stream cannot go on: the last line says why.
    while server.metric("firn_watches").await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.put("/v1/keys/%ff", b"").await;
    let mut lines = Lines::open(&server, "/v1/watch?enc=utf8&from=1", "").await;
    assert_eq!(lines.change().await["error"]["code"], "not_utf8");
    assert!(lines.next().await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_version_that_is_gone_is_410_with_the_oldest() {
    let server = Running::start_with(|config| {
        config.memory_bytes = 8 << 20;
        config.changefeed_bytes = 0;
    })
    .await;
    for _ in 0..4 {
        server.put("/v1/keys/large", &vec![b'x'; 900 << 10]).await;
        server.client.flush().await.unwrap();
    }
    let problem = server
        .get("/v1/watch?from=1")
        .await
        .problem(410, "version_too_old");
    let oldest = problem["oldest_version"].as_u64().unwrap();
    assert!(oldest > 1 && oldest <= 5, "{problem}");
    let target = format!("/v1/watch?from={oldest}&keys_only");
    Lines::open(&server, &target, "").await;
    let mut watch = server.client.watch(WatchOptions::from(1));
    let error = watch.next().await.unwrap_err();
    assert_eq!(error.problem().unwrap().oldest_version, Some(oldest));
    assert_eq!(error.exit_code(), 1);
    assert_eq!(server.metric("firn_watch_too_old_total").await, 2);
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_stops_ends_its_watches() {
    let server =
        Running::start_with(|config| config.drain_timeout = Duration::from_secs(600)).await;
    server.client.put("a", "1").await.unwrap();
    let mut lines = Lines::open(&server, "/v1/watch?from=1", "").await;
    assert_eq!(lines.change().await["version"], 1);
    let (ended, _dir) = server.begin_stop();
    assert_eq!(lines.next().await.unwrap(), r#"{"end":true,"progress":1}"#);
    assert!(lines.next().await.is_none());
    ended.await.unwrap().unwrap();
}

/// A client that reads nothing holds nothing back, and misses nothing once it reads.
#[tokio::test]
async fn a_slow_client_misses_nothing() {
    let server = Running::start().await;
    let mut lines = Lines::open(&server, "/v1/watch?from=1", "").await;
    let value = "v".repeat(100 << 10);
    for key in 0..100 {
        server
            .client
            .put(format!("{key}"), value.clone())
            .await
            .unwrap();
    }
    for version in 1..=100 {
        assert_eq!(lines.change().await["version"], version);
    }
    server.stop().await;
}

async fn versions(watch: &mut firn_client::Watch, count: usize) -> Vec<u64> {
    let mut got = Vec::new();
    while got.len() < count {
        got.push(watch.next().await.unwrap().version);
    }
    got
}

#[tokio::test]
async fn the_client_goes_on_across_a_restart() {
    let server = Running::start().await;
    let (address, client) = (server.address, server.client.clone());
    let mut watch = client.watch(WatchOptions::from(1));
    let batch = Batch::new().put("a", b"1").put("b", b"2");
    server.client.batch(batch).await.unwrap();
    let event = WatchEvent {
        version: 1,
        commit: 2,
        more: true,
        namespace: "default".into(),
        change: Change::Put {
            key: "a".into(),
            value: "1".into(),
            expires_at_ms: None,
        },
    };
    // In the middle of the batch the server goes.
    assert_eq!(watch.next().await.unwrap(), event);
    assert_eq!(watch.next_version(), Some(2));
    let dir = server.stop().await;
    let server = Running::start_in(dir, |config| config.http = address.to_string()).await;
    server.client.put("c", "3").await.unwrap();
    assert_eq!(versions(&mut watch, 2).await, [2, 3]);
    server.stop().await;
    // Nobody is there any more: it gives up after its patience.
    let mut watch = client.watch(WatchOptions {
        patience: Duration::from_millis(200),
        ..WatchOptions::from(1)
    });
    assert_eq!(watch.next().await.unwrap_err().exit_code(), 3);
}

/// Connections that are cut after so many bytes, wherever that is.
#[tokio::test]
async fn connections_that_break_cost_no_change() {
    let server = Running::start().await;
    for key in 0..60 {
        server
            .client
            .put(format!("{key:03}"), "value")
            .await
            .unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, target) = (listener.local_addr().unwrap(), server.address);
    let proxy = tokio::spawn(async move {
        for allowed in (300..).step_by(71) {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(target).await.unwrap();
            let (mut from, mut to) = client.split();
            let (mut reply, mut request) = server.split();
            let mut left = (&mut reply).take(allowed);
            tokio::select! {
                _ = tokio::io::copy(&mut left, &mut to) => {}
                _ = tokio::io::copy(&mut from, &mut request) => {}
            }
        }
    });
    let client = Client::connect(&address.to_string()).unwrap();
    let mut watch = client.watch(WatchOptions::from(1));
    assert_eq!(versions(&mut watch, 60).await, (1..=60).collect::<Vec<_>>());
    proxy.abort();
    server.stop().await;
}

#[tokio::test]
async fn the_blocking_client_iterates() {
    let server = Running::start().await;
    server.client.put("a", "1").await.unwrap();
    let address = server.address.to_string();
    let read = tokio::task::spawn_blocking(move || {
        let client = firn_client::blocking::Client::connect(&address).unwrap();
        let mut watch = client.watch(WatchOptions::from(1).prefix("a"));
        let event = watch.next().unwrap().unwrap();
        (event.version, watch.next_version())
    });
    assert_eq!(read.await.unwrap(), (1, Some(2)));
    server.stop().await;
}

/// What a follower knows of a key.
type State = std::collections::BTreeMap<bytes::Bytes, (u64, bytes::Bytes)>;

async fn state(client: &Client) -> State {
    let mut scan = client.scan(ScanOptions {
        page: Some(7),
        ..ScanOptions::default()
    });
    let mut state = State::new();
    while let Some(entry) = scan.next().await.unwrap() {
        state.insert(entry.key, (entry.version, entry.value));
    }
    state
}

fn apply(state: &mut State, event: WatchEvent) {
    let version = event.version;
    match event.change {
        Change::Put { key, value, .. } => {
            let known = state.entry(key).or_default();
            if known.0 < version {
                *known = (version, value);
            }
        }
        Change::Delete { key } => {
            if state.get(&key).is_some_and(|known| known.0 < version) {
                state.remove(&key);
            }
        }
        Change::DeleteRange { start, end } => {
            state.retain(|key, known| known.0 > version || *key < start || *key >= end);
        }
        other => panic!("{other:?}"),
    }
}

/// Whoever opens a watch, reads the state in pages while others write, and then follows, has the state.
#[tokio::test(flavor = "multi_thread")]
async fn the_state_read_during_a_watch_and_the_changes_applied_are_the_state() {
    let server = Running::start_with(|config| config.memory_bytes = 8 << 20).await;
    let writer = async |seed| {
        let mut rng = firn_io::rng::Rng::new(seed);
        let key = |n: u64| format!("{n:03}");
        for round in 0..150 {
            let at = rng.below(200);
            match rng.below(8) {
                0 => drop(server.client.delete(key(at)).await.unwrap()),
                1 => {
                    let end = key(at + rng.below(9) + 1);
                    server.client.delete_range(key(at), end).await.unwrap();
                }
                2 => {
                    let batch = Batch::new().delete_prefix(&key(at)[..2]);
                    let batch = batch.put(key(at), "again").delete(key(at + 1));
                    server.client.batch(batch).await.unwrap();
                }
                3 if round % 16 == 0 => server.client.flush().await.unwrap(),
                _ => {
                    let value = vec![b'v'; 1 + rng.below(4_000) as usize];
                    let options = PutOptions {
                        durability: rng.one_in(2).then_some(Durability::Buffered),
                        ..PutOptions::default()
                    };
                    let put = server.client.put_with(key(at), value, &options);
                    put.await.unwrap();
                }
            }
        }
    };
    let follower = async || {
        let mut watch = server.client.watch(WatchOptions::default());
        watch.begin().await.unwrap();
        (state(&server.client).await, watch)
    };
    let ((), (), (), early, late) =
        tokio::join!(writer(1), writer(2), writer(3), follower(), async {
            // Somewhere in the middle.
            while server.client.stats().await.unwrap().last_version < 200 {}
            follower().await
        });
    let last = server.client.put("last", "").await.unwrap().version;
    let expected = state(&server.client).await;
    assert!(expected.len() > 20);
    for (mut state, mut watch) in [early, late] {
        while watch.next_version().unwrap() <= last {
            apply(&mut state, watch.next().await.unwrap());
        }
        assert_eq!(state, expected);
    }
    server.stop().await;
}
