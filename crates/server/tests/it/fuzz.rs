//! Whatever bytes arrive: the server answers or closes, and lives.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::Running;

/// Something like a request: pieces that mean something, in an order that may not.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let text = |s: &'static str| Just(s.as_bytes().to_vec());
    let piece = prop_oneof![
        4 => prop_oneof![
            text("GET "), text("PUT "), text("DELETE "), text("POST "), text("HEAD "), text("OPTIONS "),
        ],
        4 => prop_oneof![
            text("/v1/keys/"), text("/v1/range"), text("/v1/batch"), text("/v1/mget"), text("/v1/ns/"),
            text("/v1/ns/default/keys/"), text("/v1/admin/stats"), text("/readyz"), text("*"), text("/%"),
            text("?limit="), text("?cursor="), text("&start=%ff"), text("?ttl="), text("?enc=utf8"),
        ],
        4 => prop_oneof![
            text(" HTTP/1.1\r\n"), text(" HTTP/1.0\r\n"), text(" HTTP/1.1\r\nhost: localhost\r\n"),
            text("\r\n"), text("\r\n\r\n"),
        ],
        3 => prop_oneof![
            text("content-length: 3\r\n"), text("content-length: 99999999999999999999\r\n"),
            text("content-length: 100000000\r\n"),
            text("transfer-encoding: chunked\r\n"), text("3\r\nabc\r\n"), text("0\r\n\r\n"),
            text("if-match: \"1\"\r\n"), text("if-none-match: *\r\n"), text("accept: application/x-ndjson\r\n"),
            text("expect: 100-continue\r\n"), text("kv-cursor: AQ\r\n"), text("connection: close\r\n"),
            text("{\"ops\":[{\"op\":\"put\",\"key\":\"a\",\"value\":\"b\"}]}"), text("{\"keys\":[\"a\"]}"),
        ],
        2 => proptest::collection::vec(any::<u8>(), 0..20),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

#[test]
fn any_bytes_are_answered_or_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Running::start());
    proptest!(ProptestConfig::with_cases(400), |(bytes in request())| {
        runtime.block_on(async {
            let mut stream = server.connect().await;
            // The server may have closed already; that is an answer too.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let reading = stream.read_to_end(&mut answer);
            let ended = tokio::time::timeout(std::time::Duration::from_secs(30), reading).await;
            prop_assert!(ended.is_ok(), "neither answered nor closed");
            prop_assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."));
            prop_assert!(!answer.windows(12).any(|w| w == b"\"internal\"," || w.starts_with(b" 500 ")));
            Ok(())
        })?;
    });
    runtime.block_on(async {
        assert_eq!(server.get("/livez").await.status, 200);
        server.stop().await;
    });
}
