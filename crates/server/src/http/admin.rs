//! Namespaces and administration over HTTP.

use firn_api::code::Code;
use firn_api::http::{CheckpointBody, CheckpointReply, NamespacesReply, Object};
use http::{Method, StatusCode};

use crate::http::body::{Upload, receive};
use crate::http::query::Params;
use crate::http::{Door, Reply, empty, json};
use crate::service::DEFAULT_NAMESPACE;
use crate::service::error::{Error, Result};

/// `GET /v1/ns`.
pub(crate) async fn namespaces(door: &Door, query: Option<&str>) -> Result<Reply> {
    Params::parse(query, &[])?;
    let namespaces = door.service.namespaces().await?;
    Ok(json(StatusCode::OK, &NamespacesReply { namespaces }))
}

/// `GET`, `PUT` and `DELETE /v1/ns/{ns}`.
pub(crate) async fn namespace(
    door: &Door,
    name: &str,
    method: &Method,
    query: Option<&str>,
) -> Result<Reply> {
    Params::parse(query, &[])?;
    match *method {
        Method::PUT => {
            let created = door.service.create_namespace(name).await?;
            Ok(empty(if created {
                StatusCode::CREATED
            } else {
                StatusCode::NO_CONTENT
            }))
        }
        Method::DELETE => {
            door.service.drop_namespace(name).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Ok(json(
            StatusCode::OK,
            &door.service.namespace_info(name).await?,
        )),
    }
}

/// `POST /v1/admin/flush`.
pub(crate) async fn flush(door: &Door, query: Option<&str>) -> Result<Reply> {
    Params::parse(query, &[])?;
    door.service.flush().await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `POST /v1/admin/compact`.
pub(crate) async fn compact(door: &Door, query: Option<&str>) -> Result<Reply> {
    let params = Params::parse(query, &["ns", "start", "end", "prefix", "key_enc"])?;
    let range = params.range()?;
    if range.is_empty() {
        return Err(Error::invalid(
            "the start of the range is not before its end",
        ));
    }
    door.service
        .compact(params.text("ns")?.unwrap_or(DEFAULT_NAMESPACE), range)
        .await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `POST /v1/admin/checkpoint`. An empty body asks for a name of the server's choice.
pub(crate) async fn checkpoint(
    door: &Door,
    query: Option<&str>,
    body: &mut Upload,
) -> Result<Reply> {
    Params::parse(query, &[])?;
    let (code, limit) = (Code::BodyTooLarge, 64 << 10);
    let name = "the body of a checkpoint";
    let received = receive(&door.service, body, door.body_timeout, code, name, limit).await?;
    let body = match &*received.bytes {
        b"" => CheckpointBody::default(),
        bytes => {
            let parsed = serde_json::from_slice::<Object<CheckpointBody>>(bytes);
            parsed
                .map_err(|e| Error::new(Code::InvalidJson, e.to_string()))?
                .0
        }
    };
    let path = door.service.checkpoint(body.name).await?;
    Ok(json(StatusCode::CREATED, &CheckpointReply { path }))
}

/// `POST /v1/admin/verify`.
pub(crate) async fn verify(door: &Door, query: Option<&str>) -> Result<Reply> {
    Params::parse(query, &[])?;
    Ok(json(StatusCode::OK, &door.service.verify().await?))
}

/// `GET /v1/admin/stats`.
pub(crate) async fn stats(door: &Door, query: Option<&str>) -> Result<Reply> {
    Params::parse(query, &[])?;
    let stats = door.stats().await?;
    Ok(json(StatusCode::OK, &stats))
}
