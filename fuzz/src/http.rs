//! What clients send.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use firn_api::cursor::{self, Query};
use firn_api::text::{self, Enc};
use firn_api::{duration, size};
use firn_engine::{Db, Options, WriteBatch, WriteOptions};
use firn_io::Env;
use firn_io::clock::ManualClock;
use firn_io::exec::{Executor, ThreadPool};
use firn_io::fs::mem::MemFs;
use firn_io::rng::SeededEntropy;
use firn_server::dialect::Dialect;
use firn_server::grpc::loopback::GrpcLoopback;
use firn_server::http::loopback::{Loopback, MEMORY_BYTES};

use crate::START_MS;

/// Text that clients send as parameters: percent-encoding, base64, cursors, durations, sizes. What
/// is read and printed again is the same.
pub fn text(data: &[u8]) {
    let mut out = Vec::new();
    let _ = text::push_member(&mut out, "key", data, Enc::Auto);
    assert_eq!(
        text::percent_decode(&text::percent_encode(data, false)),
        Ok(data.to_vec())
    );
    assert_eq!(
        text::base64url_decode(&text::base64url_encode(data)),
        Ok(data.to_vec())
    );
    assert_eq!(
        text::base64_decode(&text::base64_encode(data)),
        Ok(data.to_vec())
    );
    let query = Query {
        namespace: "default",
        start: Some(b"a"),
        end: None,
        reverse: data.len() % 2 == 1,
    };
    assert_eq!(
        cursor::decode(&query, &cursor::encode(&query, data)),
        Ok(data.to_vec())
    );
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = (
        text::percent_decode(text),
        text::base64url_decode(text),
        text::base64_decode(text),
    );
    if let Ok(key) = cursor::decode(&query, text) {
        assert_eq!(
            cursor::decode(&query, &cursor::encode(&query, &key)),
            Ok(key)
        );
    }
    if let Ok(read) = duration::parse(text) {
        assert_eq!(duration::parse(&duration::print(read)), Ok(read));
    }
    if let Ok(read) = size::parse(text) {
        assert_eq!(size::parse(&size::print(read)), Ok(read));
    }
    text::push_json_string(&mut out, text);
}

/// The bytes of a connection: requests as HTTP has them on the wire. Each input meets a new database
/// with a few keys. Every answer must begin as HTTP does, and none may be an internal error.
pub fn http(data: &[u8]) {
    let reply = exchange(None, data);
    for status in ["500", "502"] {
        let line = format!("HTTP/1.1 {status} ");
        let found = reply
            .windows(line.len())
            .any(|window| window == line.as_bytes());
        assert!(!found, "{}", reply.escape_ascii());
    }
}

/// The same in a dialect, which the first byte chooses. There a 500 may be the right answer.
pub fn dialects(data: &[u8]) {
    let (&first, bytes) = data.split_first().unwrap_or((&0, &[]));
    let (dialect, _, _) = Dialect::ALL[usize::from(first) % Dialect::ALL.len()];
    exchange(Some(dialect), bytes);
}

/// Messages of gRPC: the low bits of the first byte choose the method. If its highest bit is set, what
/// follows are the frames of the request as they are, else the message of a single frame. Every call
/// must end with a status, and none may be an internal error.
pub fn grpc(data: &[u8]) {
    const INTERNAL: i32 = 13;
    let (&first, bytes) = data.split_first().unwrap_or((&0, &[]));
    let mut frames = Vec::new();
    if first & 0x80 == 0 {
        let len = u32::try_from(bytes.len()).expect("inputs are small");
        frames.push(0);
        frames.extend_from_slice(&len.to_be_bytes());
    }
    frames.extend_from_slice(bytes);
    let (db, env) = database();
    let door = GrpcLoopback::new(&Loopback::new(db.clone(), &env));
    let call = door.call(usize::from(first & 0x7f), frames.into());
    let most = Duration::from_secs(10);
    let code = runtime()
        .block_on(async { tokio::time::timeout(most, call).await })
        .expect("a status within ten seconds");
    let framed = first & 0x80 == 0;
    assert!(!framed || code != INTERNAL, "an internal error");
    drop(door);
    db.close().expect("closed");
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().max_blocking_threads(2);
        builder.build().expect("a runtime")
    })
}

fn exchange(dialect: Option<Dialect>, data: &[u8]) -> Vec<u8> {
    let (db, env) = database();
    let mut door = Loopback::new(db.clone(), &env);
    if let Some(dialect) = dialect {
        door = door.speaking(dialect);
    }
    let most = Duration::from_secs(10);
    let exchange = async { tokio::time::timeout(most, door.exchange(data)).await };
    let reply = runtime()
        .block_on(exchange)
        .expect("an answer within ten seconds");
    assert!(
        reply.is_empty() || reply.starts_with(b"HTTP/1."),
        "{}",
        reply.escape_ascii()
    );
    db.close().expect("closed");
    reply
}

fn database() -> (Db, Env) {
    static THREADS: OnceLock<Arc<ThreadPool>> = OnceLock::new();
    let exec: Arc<dyn Executor> = THREADS.get_or_init(|| Arc::new(ThreadPool::new(1))).clone();
    let env = Env {
        fs: Arc::new(MemFs::new()),
        clock: Arc::new(ManualClock::new(START_MS)),
        entropy: Arc::new(SeededEntropy::new(1)),
        exec,
    };
    let options = Options {
        memory_bytes: MEMORY_BYTES,
        log_segment_bytes: Some(8 << 10),
        ballast_bytes: 0,
        background_sync: None,
        ..Options::default()
    };
    let db = Db::open_with(env.clone(), "/db", options).expect("a database");
    let ns = db.default_namespace();
    let mut batch = WriteBatch::new();
    for key in ["a", "b", "key", "k/\u{e9}"] {
        batch.put(&ns, key.as_bytes(), b"value").expect("short");
    }
    db.write(batch, &WriteOptions::buffered()).expect("written");
    (db, env)
}
