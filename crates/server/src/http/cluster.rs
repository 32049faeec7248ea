//! The cluster over HTTP: who belongs, and changes of that. What only the leader can do, others
//! refuse with its address.

use firn_api::http::{JoinBody, JoinReply, NodeBody};
use firn_replica::Member;
use http::StatusCode;

use crate::cluster::Cluster;
use crate::http::body::Upload;
use crate::http::query::Params;
use crate::http::route::Target;
use crate::http::{Door, Reply, empty, json};
use crate::service::error::{Error, Result};
use firn_api::code::Code;

fn cluster(door: &Door) -> Result<&Cluster> {
    door.service
        .cluster()
        .map(|cluster| &**cluster)
        .ok_or_else(|| {
            let detail =
                "this server is no node of a cluster; docs/cluster.md says how it becomes one";
            Error::new(Code::Unsupported, detail)
        })
}

/// `GET /v1/cluster`.
pub(crate) fn describe(door: &Door, query: Option<&str>) -> Result<Reply> {
    Params::parse(query, &[])?;
    Ok(json(StatusCode::OK, &cluster(door)?.describe()))
}

/// `POST /v1/cluster/members`.
pub(crate) async fn admit(door: &Door, query: Option<&str>, body: &mut Upload) -> Result<Reply> {
    Params::parse(query, &[])?;
    let cluster = cluster(door)?;
    let (asked, _room): (JoinBody, _) = door.json_body(body, |_, asked| Ok(asked)).await?;
    let member = Member {
        address: asked.peer,
        http: asked.http,
        resp: asked.resp,
    };
    let node = cluster.admit(member, asked.node).await?;
    let cluster = cluster.identity().cluster.to_string();
    Ok(json(StatusCode::CREATED, &JoinReply { cluster, node }))
}

/// `POST /v1/cluster/promote`, `demote`, `remove` and `transfer`.
pub(crate) async fn change(
    door: &Door,
    target: Target<'_>,
    query: Option<&str>,
    body: &mut Upload,
) -> Result<Reply> {
    Params::parse(query, &[])?;
    let cluster = cluster(door)?;
    let (asked, _room): (NodeBody, _) = door.json_body(body, |_, asked| Ok(asked)).await?;
    if asked.force && !matches!(target, Target::Remove) {
        return Err(Error::invalid("force is for remove only"));
    }
    if matches!(target, Target::Transfer) {
        let node = Some(cluster.transfer(asked.node).await?);
        let force = false;
        return Ok(json(StatusCode::OK, &NodeBody { node, force }));
    }
    let Some(node) = asked.node else {
        return Err(Error::invalid("node: a number is needed"));
    };
    match target {
        Target::Promote => cluster.promote(node).await?,
        Target::Demote => cluster.demote(node).await?,
        _ => cluster.remove(node, asked.force).await?,
    }
    Ok(empty(StatusCode::NO_CONTENT))
}
