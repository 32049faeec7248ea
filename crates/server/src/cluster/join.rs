//! How a new node asks a cluster to take it in, and later for its vote.
//!
//! It speaks to the HTTP door of the members, as a person with curl would: `POST
//! /v1/cluster/members`, then, when it has caught up, `POST /v1/cluster/promote`. Whoever does not
//! lead names the leader, which is asked next.

use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use firn_api::http::{JoinBody, JoinReply, NodeBody, Problem};
use firn_replica::{Member, Replicator};
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body::Body as _;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::cluster::Cluster;
use crate::cluster::identity::{ClusterId, Identity};

/// How long a member may take to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Pause before all are asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// Leaders that are followed from one to the next.
const HOPS: usize = 3;
/// Longest answer.
const ANSWER_BYTES: usize = 1 << 20;

/// Why nobody took it in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refused {
    /// Nobody could be asked, or nobody leads: worth trying again.
    Later(String),
    /// Whoever was asked is no member of a cluster.
    NoCluster(String),
    /// The cluster does not want it.
    Never(String),
}

async fn post(
    address: &str,
    path: &str,
    body: &impl Serialize,
) -> Result<(StatusCode, Vec<u8>), String> {
    // Plain members: cannot fail.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let work = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        // A name is no foreign origin only if the server listens beyond its machine; it says so.
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, address)
            .header(CONTENT_TYPE, "application/json")
            .body(OneChunk(Some(Bytes::from(body))))
            .map_err(std::io::Error::other)?;
        let reply = sender.send_request(request).await;
        let reply = reply.map_err(std::io::Error::other)?;
        let status = reply.status();
        let mut incoming = reply.into_body();
        let mut received = Vec::new();
        loop {
            let mut pinned = std::pin::Pin::new(&mut incoming);
            let frame = std::future::poll_fn(|cx| pinned.as_mut().poll_frame(cx)).await;
            let Some(frame) = frame else {
                break;
            };
            let frame = frame.map_err(std::io::Error::other)?;
            if let Some(data) = frame.data_ref() {
                received.extend_from_slice(data);
            }
            if received.len() > ANSWER_BYTES {
                return Err(std::io::Error::other("the answer is too long"));
            }
        }
        Ok((status, received))
    };
    match timeout(ANSWER, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no answer in {}s", ANSWER.as_secs())),
    }
}

/// A body of one chunk.
struct OneChunk(Option<Bytes>);

impl http_body::Body for OneChunk {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}

/// Asks at `address`, and whom it names; answers the body of a success.
async fn ask(address: &str, path: &str, body: &impl Serialize) -> Result<Vec<u8>, Refused> {
    let mut address = address.to_owned();
    for _ in 0..HOPS {
        let (status, answer) = post(&address, path, body).await.map_err(Refused::Later)?;
        if status.is_success() {
            return Ok(answer);
        }
        let problem: Problem = serde_json::from_slice(&answer).unwrap_or_default();
        let detail = format!("{address}: {status}: {}", problem.detail);
        let is = |code: Code| problem.code == code.name();
        if is(Code::NotLeader)
            && let Some(leader) = problem.leader
        {
            address = leader;
            continue;
        }
        return Err(if is(Code::Unsupported) || is(Code::RouteNotFound) {
            Refused::NoCluster(detail)
        } else if status.is_server_error() {
            Refused::Later(detail)
        } else {
            Refused::Never(detail)
        });
    }
    Err(Refused::Later(format!("{address}: nobody knows who leads")))
}

/// Asks the members at `addresses` in turn until one takes the node in.
///
/// `Ok(None)`: `or_alone` and nobody there is a member of a cluster.
///
/// # Errors
/// The cluster refuses the node, and why.
pub async fn join(
    addresses: &[String],
    member: &Member,
    wish: Option<u64>,
    or_alone: bool,
) -> Result<Option<Identity>, String> {
    let body = JoinBody {
        peer: member.address.clone(),
        http: member.http.clone(),
        resp: member.resp.clone(),
        node: wish,
    };
    loop {
        let mut is_alone = true;
        for address in addresses {
            match ask(address, "/v1/cluster/members", &body).await {
                Ok(answer) => {
                    let reply: JoinReply = serde_json::from_slice(&answer)
                        .map_err(|error| format!("{address}: {error}"))?;
                    let cluster = ClusterId::parse(&reply.cluster)
                        .ok_or_else(|| format!("{address}: no name of a cluster"))?;
                    tracing::info!(node = reply.node, %cluster, "joined");
                    let node = reply.node;
                    return Ok(Some(Identity { cluster, node }));
                }
                Err(Refused::Never(detail)) => return Err(detail),
                Err(Refused::NoCluster(detail)) => tracing::info!(detail, "no member"),
                Err(Refused::Later(detail)) => {
                    // Who refuses the connection is not there; who answers late may be a member.
                    is_alone &= detail.contains("refused") || detail.contains("lookup");
                    tracing::info!(detail, "cannot join yet");
                }
            }
        }
        if or_alone && is_alone {
            return Ok(None);
        }
        sleep(AGAIN).await;
    }
}

/// Asks for a vote until the node has one, or is closed.
pub async fn become_voter(cluster: std::sync::Weak<Cluster>, addresses: Vec<String>) {
    loop {
        sleep(AGAIN / 2).await;
        let Some(cluster) = cluster.upgrade() else {
            return;
        };
        let status = cluster.node().status();
        let me = status.node;
        if status.membership.is_voter(me) {
            return;
        }
        let is_member = status.membership.nodes.contains_key(&me);
        if !is_member || cluster.trouble().is_some() {
            continue;
        }
        let leader = cluster.leader_http();
        drop(cluster);
        let body = NodeBody {
            node: Some(me),
            force: false,
        };
        for address in leader.iter().chain(&addresses) {
            match ask(address, "/v1/cluster/promote", &body).await {
                Ok(_) => {
                    tracing::info!(node = me, "has a vote");
                    break;
                }
                Err(error) => tracing::debug!(?error, "no vote yet"),
            }
        }
    }
}
