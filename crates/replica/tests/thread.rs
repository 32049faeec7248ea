//! A node on a thread and a disk of its own. Clusters are tested by `crates/sim`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use firn_engine::WriteBatch;
use firn_engine::key::NamespaceId;
use firn_io::Env;
use firn_replica::transport::{BoxFuture, Class, Peer, Transport, TransportError};
use firn_replica::{Error, Member, Node, NodeOptions, ReadLevel, Replicator, World, Write};

#[derive(Debug)]
struct Nobody;

fn nobody<T: Send + 'static>() -> BoxFuture<'static, Result<T, TransportError>> {
    Box::pin(async { Err(TransportError::Unreachable("there is nobody".into())) })
}

impl Transport for Nobody {
    fn call(
        &self,
        _: &Peer,
        _: Class,
        _: Bytes,
        _: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        nobody()
    }
}

fn put(key: &[u8], value: &[u8]) -> Write {
    let mut batch = WriteBatch::new();
    batch.put(NamespaceId(0), key, value).unwrap();
    Write::batch(&mut batch)
}

#[test]
fn a_node_on_a_thread_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("node");
    let open = |root: &Path| {
        let world = World {
            env: Env::os(2),
            log_env: Env::os(1),
            transport: Arc::new(Nobody),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        Node::start_thread(NodeOptions::new(1, root), world, runtime)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for round in 0..2_u8 {
        let thread = open(&root).unwrap();
        let node = thread.node().clone();
        runtime.block_on(async {
            if round == 0 {
                let member = Member {
                    address: "here".into(),
                    ..Member::default()
                };
                let members = [(1, member)].into();
                node.initialize(members).await.unwrap();
            }
            let writes = (0..100_u8).map(|n| {
                let node = node.clone();
                async move { node.propose(put(&[round, n], b"v")).await }
            });
            for written in futures_util::future::join_all(writes).await {
                written.unwrap();
            }
            let point = node.read_barrier(ReadLevel::Linearizable).await.unwrap();
            for round in 0..=round {
                assert!(point.db.get(&[round, 99]).unwrap().is_some());
            }
            drop(point);
            node.shutdown().await.unwrap();
            let late = node.propose(put(b"k", b"v")).await;
            assert!(matches!(late, Err(Error::Closed)));
        });
    }
    let other = open(&root.join("..").join("node")).unwrap();
    drop(other);
}
