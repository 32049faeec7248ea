//! What the gRPC door refuses because it is too much.

use bytes::Bytes;
use firn_server::grpc::proto::batch_request::{Op, Put, op};
use firn_server::grpc::proto::*;
use tonic::{Code, Request, Status};

use crate::grpc::{Rpc, put_of, refused};
use crate::support::Running;

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_named_with_their_values() {
    let server = Running::start_with(|config| {
        config.limits.key_bytes = 100;
        config.limits.value_bytes = 1_000;
        config.limits.body_bytes = 10_000;
        config.limits.batch_ops = 3;
        config.limits.mget_keys = 2;
    })
    .await;
    let rpc = Rpc::to(&server).await;
    let put = async |key: usize, value: usize| -> Result<PutResponse, Status> {
        let asked = put_of(&vec![1; key], &vec![2; value]);
        rpc.call("/firn.v1.KV/Put", asked).await
    };
    put(100, 1_000).await.unwrap();
    let details = refused(put(101, 1).await, Code::InvalidArgument, "key_too_large");
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!((&*metadata["limit"], &*metadata["actual"]), ("100", "101"));
    assert_eq!(
        details.bad_request().unwrap().field_violations[0].field,
        "key"
    );
    let details = refused(
        put(1, 1_001).await,
        Code::InvalidArgument,
        "value_too_large",
    );
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(
        (&*metadata["limit"], &*metadata["actual"]),
        ("1000", "1001")
    );
    // Far beyond: not even read.
    refused(
        put(1, 10 << 20).await,
        Code::InvalidArgument,
        "value_too_large",
    );
    // The connection goes on.
    put(1, 1).await.unwrap();

    let op = |value: usize| Op {
        kind: Some(op::Kind::Put(Put {
            key: "k".into(),
            value: vec![0; value].into(),
            expiry: None,
        })),
        ..Op::default()
    };
    let batch = async |ops| -> Result<BatchResponse, Status> {
        let asked = BatchRequest {
            ops,
            ..BatchRequest::default()
        };
        rpc.call("/firn.v1.KV/Batch", asked).await
    };
    let (path, code) = ("/firn.v1.KV/MultiGet", Code::InvalidArgument);
    refused(batch(vec![op(1); 4]).await, code, "limit_exceeded");
    refused(batch(vec![op(9_000); 2]).await, code, "body_too_large");
    let details = refused(batch(vec![op(1), op(1_001)]).await, code, "value_too_large");
    assert_eq!(details.error_info().unwrap().metadata["index"], "1");
    let keys = MultiGetRequest {
        keys: vec!["k".into(); 3],
        ..MultiGetRequest::default()
    };
    let outcome: Result<MultiGetResponse, _> = rpc.call(path, keys).await;
    refused(outcome, code, "limit_exceeded");
    let small = Request::new(Bytes::from(vec![0; 300 << 10]));
    let outcome = rpc.raw("/firn.v1.Admin/Flush", small).await;
    refused(outcome, code, "body_too_large");
    assert_eq!(server.metric("firn_request_body_bytes").await, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_memory_are_bounded() {
    let server = Running::start_with(|config| {
        config.limits.value_bytes = 1 << 20;
        config.limits.body_bytes = 1 << 20;
        config.limits.inflight_bytes = 1 << 20;
    })
    .await;
    // Somebody holds almost all of it.
    let held = server.connect().await;
    let head = b"PUT /v1/keys/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1048576\r\n\r\n";
    let mut held = held;
    tokio::io::AsyncWriteExt::write_all(&mut held, head)
        .await
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut held, &vec![0; (1 << 20) - 1])
        .await
        .unwrap();
    while server.metric("firn_request_body_bytes").await < (1 << 20) - 1 {
        tokio::task::yield_now().await;
    }
    let rpc = Rpc::to(&server).await;
    let outcome: Result<PutResponse, _> =
        rpc.call("/firn.v1.KV/Put", put_of(b"k", &[0; 100])).await;
    let details = refused(outcome, Code::ResourceExhausted, "overloaded");
    assert!(details.retry_info().is_some());
    drop(held);
    while server.metric("firn_request_body_bytes").await > 0 {
        tokio::task::yield_now().await;
    }
    rpc.put(b"k", &[0; 100]).await;
    server.stop().await;
}
