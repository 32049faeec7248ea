//! The limit of the rate, through both doors, by a clock that the test moves.

use std::sync::Arc;
use std::time::Duration;

use firn_io::Env;
use firn_io::clock::ManualClock;
use firn_server::grpc::proto::{GetRequest, GetResponse};
use tonic::Code;

use crate::grpc::{Rpc, refused};
use crate::support::Running;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_a_burst_and_then_its_rate_through_all_doors() {
    let clock = Arc::new(ManualClock::new(1_800_000_000_000));
    let env = Env {
        clock: clock.clone(),
        ..Env::os(2)
    };
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start_by(env, dir, |config| {
        config.limits.rate = 2;
        config.limits.rate_burst = 4;
    })
    .await;
    let reply = server.put("/v1/keys/a", b"1").await;
    assert_eq!(reply.status, 204);
    assert_eq!(reply.header("ratelimit-policy"), Some("\"client\";q=4;w=2"));
    assert_eq!(reply.header("ratelimit"), Some("\"client\";r=3;t=1"));
    let reply = server.get("/v1/keys/none").await;
    assert_eq!(reply.header("ratelimit"), Some("\"client\";r=2;t=1"));
    // gRPC takes from the same burst.
    let rpc = Rpc::to(&server).await;
    let get = async || {
        rpc.call::<GetResponse>("/firn.v1.KV/Get", GetRequest::default())
            .await
    };
    for _ in 0..2 {
        refused(get().await, Code::NotFound, "not_found");
    }
    let details = refused(get().await, Code::ResourceExhausted, "rate_limited");
    let delay = details.retry_info().unwrap().retry_delay;
    assert_eq!(delay, Some(Duration::from_millis(500)));
    assert_eq!(details.error_info().unwrap().metadata["limit"], "2");
    let reply = server.get("/v1/keys/a").await;
    let problem = reply.problem(429, "rate_limited");
    assert_eq!(problem["retry_after_ms"], 500);
    assert_eq!(problem["limit"], 2);
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(reply.header("ratelimit"), Some("\"client\";r=0;t=2"));
    // Who asks whether it lives is answered, and pays nothing.
    for _ in 0..10 {
        let reply = server.get("/livez").await;
        assert_eq!((reply.status, reply.header("ratelimit")), (200, None));
        assert_eq!(server.get("/readyz").await.status, 200);
    }
    let path = "/grpc.health.v1.Health/Check";
    let asked = tonic_health::pb::HealthCheckRequest::default();
    let _: tonic_health::pb::HealthCheckResponse = rpc.call(path, asked).await.unwrap();
    clock.advance(Duration::from_millis(499));
    assert_eq!(server.get("/v1/keys/a").await.status, 429);
    clock.advance(Duration::from_millis(1));
    assert_eq!(server.get("/v1/keys/a").await.status, 200);
    refused(get().await, Code::ResourceExhausted, "rate_limited");
    assert_eq!(server.metric("firn_rate_clients").await, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_rate_nothing_is_said_of_it() {
    let server = Running::start().await;
    for _ in 0..50 {
        let reply = server.get("/v1/keys/none").await;
        assert_eq!((reply.status, reply.header("ratelimit")), (404, None));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dialects_are_limited_too_and_health_is_not() {
    let server = Running::start_with(|config| {
        config.http_dialect = firn_server::dialect::Speech::parse("put-read").unwrap();
        config.limits.rate = 1;
        config.limits.rate_burst = 2;
    })
    .await;
    for _ in 0..2 {
        assert_eq!(server.get("/read?key=a").await.status, 404);
    }
    let refused = server.get("/read?key=a").await;
    refused.problem(429, "rate_limited");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(server.get("/health-check").await.status, 200);
    server.stop().await;
}
