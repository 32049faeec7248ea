//! axum over a hash map: `GET` and `PUT /v1/keys/{key}`, nothing else. What it does per request is the
//! least that any server in Rust does; the ratio to it is what FirnDB adds.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;

type Map = Arc<RwLock<HashMap<String, Bytes>>>;

async fn read(State(map): State<Map>, Path(key): Path<String>) -> Result<Bytes, StatusCode> {
    let found = map.read().unwrap().get(&key).cloned();
    found.ok_or(StatusCode::NOT_FOUND)
}

async fn write(State(map): State<Map>, Path(key): Path<String>, value: Bytes) -> StatusCode {
    // A copy, so that the map does not hold on to the connection's buffer.
    map.write()
        .unwrap()
        .insert(key, Bytes::copy_from_slice(&value));
    StatusCode::NO_CONTENT
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:0".into());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("ready http={}", listener.local_addr()?);
    let app = Router::new()
        .route("/v1/keys/{key}", get(read).put(write))
        .with_state(Map::default());
    axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |stream| {
            let _ = stream.set_nodelay(true);
        }),
        app,
    )
    .await
}
