//! `grpc.health.v1`: what `/readyz` says, for those who ask in gRPC.
//!
//! The name of a service, or none, means the server: it is `SERVING` while it is ready. A watch
//! looks once a second and ends when the server is about to stop, after it has said so.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use firn_api::code::Code;
use tokio::sync::mpsc;
use tonic::codegen::Service as _;
use tonic::codegen::tokio_stream::Stream;
use tonic::{Request as Call, Response as Answer, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::grpc::unary::CallBody;
use crate::grpc::{Calling, METHODS, Reply};
use crate::health;
use crate::service::Service;

pub(crate) const CHECK: &str = "/grpc.health.v1.Health/Check";
pub(crate) const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// How often a watch looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Serves `Health`.
pub(crate) async fn call(service: &Service, call: Calling<'_>) -> Reply {
    let mut server = HealthServer::new(Probe(service.clone()));
    let running = call.running;
    running.set_code("ok");
    let reply = match server.call(call.into_request()).await {
        Ok(reply) => reply,
        Err(never) => match never {},
    };
    // Refused before there was anything to stream: no such service, or a broken message.
    match reply.extensions().get::<Status>().map(Status::code) {
        None | Some(tonic::Code::Ok) => {}
        Some(tonic::Code::NotFound) => running.set_code(Code::NotFound.name()),
        Some(_) => running.set_code(Code::InvalidArgument.name()),
    }
    reply.map(CallBody::Stream)
}

struct Probe(Service);

fn is_known(name: &str) -> bool {
    name.is_empty()
        || METHODS
            .iter()
            .filter_map(|row| row.0.strip_prefix('/')?.split_once('/'))
            .any(|(service, _)| service == name)
}

async fn status(service: &Service) -> ServingStatus {
    let of = service.clone();
    let checks = service.blocking(move || Ok(health::ready(&of))).await;
    match checks {
        Ok(checks) if checks.iter().all(|check| check.failure.is_none()) => ServingStatus::Serving,
        _ => ServingStatus::NotServing,
    }
}

fn message(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for Probe {
    async fn check(
        &self,
        call: Call<HealthCheckRequest>,
    ) -> Result<Answer<HealthCheckResponse>, Status> {
        if !is_known(&call.get_ref().service) {
            return Err(Status::not_found("there is no such service"));
        }
        Ok(Answer::new(message(status(&self.0).await)))
    }

    type WatchStream = Changes;

    async fn watch(&self, call: Call<HealthCheckRequest>) -> Result<Answer<Changes>, Status> {
        let (say, changes) = mpsc::channel(1);
        let service = self.0.clone();
        let known = is_known(&call.get_ref().service);
        tokio::spawn(async move {
            let mut said = None;
            loop {
                let draining = service.is_draining();
                let now = match known {
                    true => status(&service).await,
                    false => ServingStatus::ServiceUnknown,
                };
                if said != Some(now) && say.send(message(now)).await.is_err() {
                    return;
                }
                said = Some(now);
                if draining {
                    return;
                }
                tokio::select! {
                    () = say.closed() => return,
                    () = service.draining() => {}
                    () = tokio::time::sleep(INTERVAL) => {}
                }
            }
        });
        Ok(Answer::new(Changes(changes)))
    }
}

/// What a watch says.
struct Changes(mpsc::Receiver<HealthCheckResponse>);

impl Stream for Changes {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|next| next.map(Ok))
    }
}
