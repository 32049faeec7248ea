//! The gRPC door: every method, every refusal, streams that end early, deadlines, drain.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use firn_server::grpc::proto::batch_request::{Check, Delete, Op, Put, op, put};
use firn_server::grpc::proto::put_request::Expiry;
use firn_server::grpc::proto::*;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::tokio_stream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt as _;

use crate::support::Running;

/// Sends bytes that somebody else encoded, and gives back bytes.
#[derive(Clone, Copy)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(to, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A client that knows paths and messages, and nothing of ours.
#[derive(Clone)]
pub(crate) struct Rpc(Channel);

impl Rpc {
    pub(crate) async fn to(server: &Running) -> Self {
        Self::at(&format!("http://{}", server.address)).await
    }

    async fn at(uri: &str) -> Self {
        let endpoint = Endpoint::from_shared(uri.to_owned()).unwrap();
        Self(endpoint.connect().await.unwrap())
    }

    pub(crate) async fn raw(&self, path: &str, request: Request<Bytes>) -> Result<Bytes, Status> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone()).max_decoding_message_size(1 << 30);
        grpc.ready().await.unwrap();
        let path = PathAndQuery::try_from(path).unwrap();
        Ok(grpc.unary(request, path, Raw).await?.into_inner())
    }

    pub(crate) async fn call<R: Message + Default>(
        &self,
        path: &str,
        message: impl Message,
    ) -> Result<R, Status> {
        let request = Request::new(message.encode_to_vec().into());
        let reply = self.raw(path, request).await?;
        Ok(R::decode(reply).unwrap())
    }

    pub(crate) async fn stream(
        &self,
        path: &str,
        request: Request<Bytes>,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.0.clone()).max_decoding_message_size(1 << 30);
        grpc.ready().await.unwrap();
        let path = PathAndQuery::try_from(path.to_owned()).unwrap();
        Ok(grpc
            .server_streaming(request, path, Raw)
            .await?
            .into_inner())
    }

    pub(crate) async fn range(&self, asked: RangeRequest) -> Result<(Vec<Entry>, String), Status> {
        let request = Request::new(asked.encode_to_vec().into());
        let mut stream = self.stream("/firn.v1.KV/Range", request).await?;
        let (mut entries, mut cursor) = (Vec::new(), String::new());
        while let Some(message) = stream.message().await? {
            assert!(cursor.is_empty(), "a message after the last one");
            let message = RangeResponse::decode(message).unwrap();
            entries.extend(message.entries);
            cursor = message.next_cursor;
        }
        Ok((entries, cursor))
    }

    pub(crate) async fn put(&self, key: &[u8], value: &[u8]) -> u64 {
        let reply: PutResponse = self
            .call("/firn.v1.KV/Put", put_of(key, value))
            .await
            .unwrap();
        reply.version
    }

    async fn get(&self, key: &[u8]) -> Result<GetResponse, Status> {
        self.call("/firn.v1.KV/Get", get_of(key)).await
    }
}

pub(crate) fn put_of(key: &[u8], value: &[u8]) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        ..PutRequest::default()
    }
}

fn get_of(key: &[u8]) -> GetRequest {
    GetRequest {
        key: Bytes::copy_from_slice(key),
        ..GetRequest::default()
    }
}

fn condition(kind: condition::Kind) -> Option<Condition> {
    Some(Condition { kind: Some(kind) })
}

fn bounds(start: &'static str, end: &'static str) -> Option<KeyRange> {
    Some(KeyRange {
        start: Some(start.into()),
        end: Some(end.into()),
        prefix: None,
    })
}

/// Checks status and code of a refusal and gives its details back.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(
    outcome: Result<T, Status>,
    code: Code,
    reason: &str,
) -> tonic_types::ErrorDetails {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(!status.message().is_empty());
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("{status:?}"));
    assert_eq!((&*info.reason, &*info.domain), (reason, "firn"));
    assert_eq!(status.metadata().get("firn-code").unwrap(), reason);
    details
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_is_got_through_both_doors_until_it_is_deleted() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    let key = b"\x00\xff/any \r\n bytes";
    let version = rpc.put(key, b"value\x00\xfe").await;
    let found = rpc.get(key).await.unwrap();
    assert_eq!(
        (&*found.value, found.version),
        (&b"value\x00\xfe"[..], version)
    );
    assert_eq!(found.expires_at_ms, None);
    let over_http = server.client.get(key).await.unwrap().unwrap();
    assert_eq!(
        (&*over_http.value, over_http.version),
        (&found.value[..], version)
    );

    let delete = DeleteRequest {
        key: Bytes::from_static(key),
        durability: Durability::Buffered.into(),
        ..DeleteRequest::default()
    };
    let gone: DeleteResponse = rpc
        .call("/firn.v1.KV/Delete", delete.clone())
        .await
        .unwrap();
    assert!(gone.version > version);
    assert_eq!(gone.durability(), Durability::Buffered);
    refused(rpc.get(key).await, Code::NotFound, "not_found");
    // Deleting what is not there succeeds.
    let _: DeleteResponse = rpc.call("/firn.v1.KV/Delete", delete).await.unwrap();
    // An empty key and an empty value are a key and a value.
    rpc.put(b"", b"").await;
    assert_eq!(rpc.get(b"").await.unwrap().value, "");

    let page = server.get("/metrics").await;
    let counted = r#"firn_requests_total{proto="grpc",op="get",code="not_found"} 1"#;
    assert!(page.text().contains(counted), "{}", page.text());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_goes_both_ways() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    let value: Vec<u8> = (0..20 << 20).map(|i: u32| (i >> 3) as u8).collect();
    rpc.put(b"large", &value).await;
    assert!(rpc.get(b"large").await.unwrap().value == value);
    let (entries, _) = rpc.range(RangeRequest::default()).await.unwrap();
    assert!(entries.len() == 1 && entries[0].value == value);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_and_expiry() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    let put = async |condition, expiry| -> Result<PutResponse, Status> {
        let asked = PutRequest {
            condition,
            expiry,
            ..put_of(b"k", b"v")
        };
        rpc.call("/firn.v1.KV/Put", asked).await
    };
    let exists = condition(condition::Kind::Exists(true));
    let details = refused(
        put(exists, None).await,
        Code::FailedPrecondition,
        "condition_failed",
    );
    assert!(
        !details
            .error_info()
            .unwrap()
            .metadata
            .contains_key("version")
    );
    let absent = condition(condition::Kind::Absent(true));
    let first = put(absent, None).await.unwrap();
    let details = refused(
        put(absent, None).await,
        Code::FailedPrecondition,
        "condition_failed",
    );
    let now = &details.error_info().unwrap().metadata["version"];
    assert_eq!(*now, first.version.to_string());
    let same = condition(condition::Kind::Version(first.version));
    let second = put(same, Some(Expiry::TtlMs(3_600_000))).await.unwrap();
    assert!(put(same, None).await.is_err());
    let expires = rpc.get(b"k").await.unwrap().expires_at_ms.unwrap();
    assert!(expires > 1_700_000_000_000);
    let at = Some(Expiry::ExpiresAtMs(4_000_000_000_123));
    let same = condition(condition::Kind::Version(second.version));
    put(same, at).await.unwrap();
    let found = rpc.get(b"k").await.unwrap();
    assert_eq!(found.expires_at_ms, Some(4_000_000_000_123));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_all_or_nothing() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    let _: CreateNamespaceResponse = rpc
        .call(
            "/firn.v1.Namespaces/Create",
            CreateNamespaceRequest { name: "n".into() },
        )
        .await
        .unwrap();
    let of = |kind| Op {
        kind: Some(kind),
        ..Op::default()
    };
    let put = |key: &'static str| {
        of(op::Kind::Put(Put {
            key: key.into(),
            value: "v".into(),
            expiry: None,
        }))
    };
    let batch = async |ops| -> Result<BatchResponse, Status> {
        let asked = BatchRequest {
            ops,
            ..BatchRequest::default()
        };
        rpc.call("/firn.v1.KV/Batch", asked).await
    };
    let check = Op {
        condition: condition(condition::Kind::Absent(true)),
        ..of(op::Kind::Check(Check { key: "x".into() }))
    };
    let elsewhere = Op {
        namespace: "n".into(),
        ..put("there")
    };
    let delete = of(op::Kind::Delete(Delete { key: "b".into() }));
    let expiring = of(op::Kind::Put(Put {
        key: "e".into(),
        value: "v".into(),
        expiry: Some(put::Expiry::TtlMs(60_000)),
    }));
    let ops = vec![
        put("a"),
        put("b"),
        check.clone(),
        elsewhere,
        delete,
        expiring,
    ];
    let done = batch(ops).await.unwrap();
    assert_eq!(done.versions.len(), 6);
    assert_eq!(done.versions[2], 0);
    assert!(done.versions[1] > done.versions[0]);
    assert_eq!(done.durability(), Durability::Sync);
    let keys = MultiGetRequest {
        keys: vec!["a".into(), "b".into(), "e".into(), "there".into()],
        ..MultiGetRequest::default()
    };
    let found: MultiGetResponse = rpc.call("/firn.v1.KV/MultiGet", keys).await.unwrap();
    let there: Vec<_> = found.found.iter().map(|f| f.entry.is_some()).collect();
    assert_eq!(there, [true, false, true, false]);
    assert_eq!(found.found[0].entry.as_ref().unwrap().key, "a");
    let there = GetRequest {
        namespace: "n".into(),
        ..get_of(b"there")
    };
    let _: GetResponse = rpc.call("/firn.v1.KV/Get", there).await.unwrap();

    // The second operation's condition does not hold: nothing of the first is done.
    let failing = Op {
        condition: condition(condition::Kind::Version(1 << 60)),
        ..put("a")
    };
    let details = refused(
        batch(vec![put("new"), failing]).await,
        Code::FailedPrecondition,
        "condition_failed",
    );
    assert_eq!(details.error_info().unwrap().metadata["index"], "1");
    refused(rpc.get(b"new").await, Code::NotFound, "not_found");

    let bad: &[(Op, &str)] = &[
        (Op::default(), "kind"),
        (of(op::Kind::Check(Check::default())), "a check needs one"),
        (of(op::Kind::DeleteRange(KeyRange::default())), "is needed"),
        (
            Op {
                condition: condition(condition::Kind::Exists(true)),
                ..of(op::Kind::DeleteRange(bounds("a", "b").unwrap()))
            },
            "takes none",
        ),
        (
            of(op::Kind::DeleteRange(bounds("b", "a").unwrap())),
            "not before",
        ),
        (
            Op {
                condition: Some(Condition::default()),
                ..put("a")
            },
            "one of absent",
        ),
    ];
    for (op, part) in bad {
        let outcome = batch(vec![put("a"), op.clone()]).await;
        assert!(outcome.as_ref().unwrap_err().message().contains(part));
        let details = refused(outcome, Code::InvalidArgument, "invalid_argument");
        let violation = &details.bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, "[1]");
    }
    refused(
        batch(vec![]).await,
        Code::InvalidArgument,
        "invalid_argument",
    );
    refused(
        batch(vec![check]).await,
        Code::InvalidArgument,
        "invalid_argument",
    );
    let nowhere = Op {
        namespace: "nowhere".into(),
        ..put("a")
    };
    refused(
        batch(vec![nowhere]).await,
        Code::NotFound,
        "namespace_not_found",
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_in_both_directions_by_pages_and_whole() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    for i in 0..100 {
        rpc.put(format!("k{i:02}").as_bytes(), &vec![i; 4_000])
            .await;
    }
    let all = RangeRequest::default();
    let (entries, cursor) = rpc.range(all.clone()).await.unwrap();
    assert_eq!((entries.len(), &*cursor), (100, ""));
    assert!(entries.is_sorted_by(|a, b| a.key < b.key && a.version < b.version));
    assert!(entries.iter().all(|e| e.value.len() == 4_000));

    for reverse in [false, true] {
        let mut asked = RangeRequest {
            range: bounds("k10", "k20"),
            reverse,
            keys_only: true,
            limit: Some(4),
            ..all.clone()
        };
        let (mut keys, mut pages) = (Vec::new(), 0);
        loop {
            let (entries, cursor) = rpc.range(asked.clone()).await.unwrap();
            assert!(entries.iter().all(|e| e.value.is_empty()));
            keys.extend(
                entries
                    .into_iter()
                    .map(|e| String::from_utf8(e.key.into()).unwrap()),
            );
            pages += 1;
            if cursor.is_empty() {
                break;
            }
            asked.cursor = cursor;
        }
        let mut expected: Vec<_> = (10..20).map(|i| format!("k{i}")).collect();
        if reverse {
            expected.reverse();
        }
        assert_eq!((keys, pages), (expected, 3));
    }
    let few_bytes = RangeRequest {
        max_bytes: Some(10_000),
        ..all.clone()
    };
    let (entries, cursor) = rpc.range(few_bytes).await.unwrap();
    assert_eq!(entries.len(), 2);
    // A cursor belongs to its query.
    let foreign = RangeRequest {
        cursor,
        reverse: true,
        ..all.clone()
    };
    refused(
        rpc.range(foreign).await,
        Code::InvalidArgument,
        "invalid_cursor",
    );
    let none = RangeRequest {
        limit: Some(0),
        ..all.clone()
    };
    refused(
        rpc.range(none).await,
        Code::InvalidArgument,
        "invalid_argument",
    );
    let empty = RangeRequest {
        range: bounds("x", "a"),
        ..all.clone()
    };
    assert_eq!(rpc.range(empty).await.unwrap().0, []);
    let nowhere = RangeRequest {
        namespace: "nowhere".into(),
        ..all.clone()
    };
    refused(
        rpc.range(nowhere).await,
        Code::NotFound,
        "namespace_not_found",
    );

    let delete = async |range, everything| -> Result<DeleteRangeResponse, Status> {
        let asked = DeleteRangeRequest {
            range,
            all: everything,
            ..DeleteRangeRequest::default()
        };
        rpc.call("/firn.v1.KV/DeleteRange", asked).await
    };
    for (range, everything) in [
        (None, false),
        (bounds("a", "b"), true),
        (bounds("b", "a"), false),
    ] {
        let outcome = delete(range, everything).await;
        refused(outcome, Code::InvalidArgument, "invalid_argument");
    }
    let prefix = KeyRange {
        prefix: Some("k0".into()),
        ..KeyRange::default()
    };
    assert!(delete(Some(prefix), false).await.unwrap().version > 0);
    assert_eq!(rpc.range(all.clone()).await.unwrap().0.len(), 90);
    delete(None, true).await.unwrap();
    assert_eq!(rpc.range(all).await.unwrap().0, []);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_and_administration() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    let create = CreateNamespaceRequest { name: "app".into() };
    let path = "/firn.v1.Namespaces/Create";
    let made: CreateNamespaceResponse = rpc.call(path, create.clone()).await.unwrap();
    let again: CreateNamespaceResponse = rpc.call(path, create).await.unwrap();
    assert_eq!((made.created, again.created), (true, false));
    let nameless: Result<CreateNamespaceResponse, _> =
        rpc.call(path, CreateNamespaceRequest::default()).await;
    refused(nameless, Code::InvalidArgument, "invalid_argument");
    let list: ListNamespacesResponse = rpc
        .call("/firn.v1.Namespaces/List", ListNamespacesRequest {})
        .await
        .unwrap();
    let names: Vec<_> = list.namespaces.into_iter().map(|ns| ns.name).collect();
    assert_eq!(names, ["app", "default"]);
    let asked = GetNamespaceRequest { name: "app".into() };
    let path = "/firn.v1.Namespaces/Get";
    let info: Namespace = rpc.call(path, asked.clone()).await.unwrap();
    assert_eq!(info.name, "app");
    let drop = DropNamespaceRequest { name: "app".into() };
    let _: DropNamespaceResponse = rpc.call("/firn.v1.Namespaces/Drop", drop).await.unwrap();
    let gone: Result<Namespace, _> = rpc.call(path, asked).await;
    refused(gone, Code::NotFound, "namespace_not_found");

    rpc.put(b"a", b"1").await;
    let _: FlushResponse = rpc
        .call("/firn.v1.Admin/Flush", FlushRequest {})
        .await
        .unwrap();
    let path = "/firn.v1.Admin/Compact";
    let _: CompactResponse = rpc.call(path, CompactRequest::default()).await.unwrap();
    let upside_down = CompactRequest {
        range: bounds("b", "a"),
        ..CompactRequest::default()
    };
    let outcome: Result<CompactResponse, _> = rpc.call(path, upside_down).await;
    refused(outcome, Code::InvalidArgument, "invalid_argument");
    let name = CheckpointRequest { name: "c1".into() };
    let path = "/firn.v1.Admin/Checkpoint";
    let made: CheckpointResponse = rpc.call(path, name.clone()).await.unwrap();
    assert!(made.path.ends_with("/c1"), "{}", made.path);
    let again: Result<CheckpointResponse, _> = rpc.call(path, name).await;
    refused(again, Code::AlreadyExists, "checkpoint_exists");
    let report: VerifyResponse = rpc
        .call("/firn.v1.Admin/Verify", VerifyRequest {})
        .await
        .unwrap();
    assert!(report.clean && report.files > 0 && report.problems.is_empty());
    let stats: StatsResponse = rpc
        .call("/firn.v1.Admin/Stats", StatsRequest {})
        .await
        .unwrap();
    assert_eq!(stats.connections, 1);
    assert!(stats.last_version >= 1 && stats.memory.contains_key("budget"));
    assert!(!stats.levels.is_empty() && stats.counters["flushes"] >= 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_messages_and_unknown_things_are_the_clients_fault() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    // Not a message; a name that is not UTF-8; lengths that lie; a group that never ends.
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        b"\x0a\x02\xff\xfe",
        b"\x12\x7fabc",
        b"\x0b",
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ] {
        for path in [
            "/firn.v1.KV/Get",
            "/firn.v1.KV/Batch",
            "/firn.v1.Admin/Compact",
        ] {
            let request = Request::new(Bytes::copy_from_slice(bytes));
            let outcome = rpc.raw(path, request).await;
            refused(outcome, Code::InvalidArgument, "invalid_encoding");
        }
        let request = Request::new(Bytes::copy_from_slice(bytes));
        let outcome = rpc.stream("/firn.v1.KV/Range", request).await;
        refused(outcome.map(drop), Code::InvalidArgument, "invalid_encoding");
    }
    for path in ["/firn.v1.KV/Nonsense", "/firn.v2.KV/Get", "/", "/v1/keys/a"] {
        let outcome = rpc.raw(path, Request::new(Bytes::new())).await;
        refused(outcome, Code::Unimplemented, "route_not_found");
    }
    let get = |consistency| GetRequest {
        consistency,
        ..get_of(b"k")
    };
    let path = "/firn.v1.KV/Get";
    let outcome: Result<GetResponse, _> = rpc.call(path, get(9)).await;
    let details = refused(outcome, Code::InvalidArgument, "invalid_argument");
    let violation = &details.bad_request().unwrap().field_violations[0];
    assert_eq!(violation.field, "consistency");
    for consistency in 0..4 {
        let outcome: Result<GetResponse, _> = rpc.call(path, get(consistency)).await;
        refused(outcome, Code::NotFound, "not_found");
    }
    let put = |change: &dyn Fn(&mut PutRequest)| {
        let mut asked = put_of(b"k", b"v");
        change(&mut asked);
        asked
    };
    let false_ = condition(condition::Kind::Absent(false));
    for (asked, field) in [
        (put(&|p| p.durability = 7), "durability"),
        (put(&|p| p.durability = -1), "durability"),
        (put(&|p| p.condition = false_), "condition"),
        (put(&|p| p.expiry = Some(Expiry::TtlMs(0))), "ttl_ms"),
        (put(&|p| p.expiry = Some(Expiry::TtlMs(u64::MAX))), "ttl_ms"),
        (
            put(&|p| p.expiry = Some(Expiry::ExpiresAtMs(u64::MAX))),
            "expires_at_ms",
        ),
    ] {
        let outcome: Result<PutResponse, _> = rpc.call("/firn.v1.KV/Put", asked).await;
        let details = refused(outcome, Code::InvalidArgument, "invalid_argument");
        let violation = &details.bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, field);
    }
    let absent = DeleteRequest {
        condition: condition(condition::Kind::Absent(true)),
        ..DeleteRequest::default()
    };
    let outcome: Result<DeleteResponse, _> = rpc.call("/firn.v1.KV/Delete", absent).await;
    refused(outcome, Code::InvalidArgument, "invalid_argument");
    // Compression that nobody offered.
    let mut squeezed = Request::new(Bytes::new());
    squeezed
        .metadata_mut()
        .insert("grpc-encoding", "gzip".parse().unwrap());
    let outcome = rpc.raw("/firn.v1.KV/Get", squeezed).await;
    assert_eq!(outcome.unwrap_err().code(), Code::Unimplemented);
    let mut hurried = Request::new(Bytes::new());
    hurried
        .metadata_mut()
        .insert("grpc-timeout", "soon".parse().unwrap());
    let outcome = rpc.raw("/firn.v1.KV/Get", hurried).await;
    refused(outcome, Code::InvalidArgument, "invalid_argument");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_client_leaves_is_freed() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    for i in 0..24_u8 {
        rpc.put(&[i], &vec![i; 1 << 20]).await;
    }
    let mut stream = rpc
        .stream("/firn.v1.KV/Range", Request::new(Bytes::new()))
        .await
        .unwrap();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(server.metric("firn_requests_in_flight").await, 2);
    drop(stream);
    let freed = async {
        // The page is a request itself.
        while server.metric("firn_requests_in_flight").await > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), freed)
        .await
        .unwrap();
    let page = server.get("/metrics").await;
    let counted = r#"firn_requests_total{proto="grpc",op="range",code="cancelled"} 1"#;
    assert!(page.text().contains(counted), "{}", page.text());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_are_kept_before_and_during_a_reply() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    // The message never comes.
    let mut grpc = tonic::client::Grpc::new(rpc.0.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::pending::<Bytes>());
    request
        .metadata_mut()
        .insert("grpc-timeout", "20m".parse().unwrap());
    let path = PathAndQuery::from_static("/firn.v1.KV/Put");
    let outcome = grpc.client_streaming(request, path, Raw).await;
    // The client's own clock may be the first.
    assert!(matches!(
        outcome.unwrap_err().code(),
        Code::DeadlineExceeded | Code::Cancelled
    ));

    // The reader rests longer than it allowed the reply to take.
    for i in 0..24_u8 {
        rpc.put(&[i], &vec![i; 1 << 20]).await;
    }
    let mut request = Request::new(Bytes::new());
    request
        .metadata_mut()
        .insert("grpc-timeout", "1S".parse().unwrap());
    let mut stream = rpc.stream("/firn.v1.KV/Range", request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let outcome = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    refused(outcome, Code::DeadlineExceeded, "deadline_exceeded");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_this_machine_is_answered_without_a_password() {
    let server = Running::start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let foreign = endpoint.origin("http://evil.example".parse().unwrap());
    let rpc = Rpc(foreign.connect().await.unwrap());
    refused(
        rpc.get(b"a").await,
        Code::PermissionDenied,
        "foreign_origin",
    );
    drop(rpc);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_and_watched_until_the_server_stops() {
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    let check = async |service: &str| -> Result<HealthCheckResponse, Status> {
        let service = service.into();
        rpc.call(
            "/grpc.health.v1.Health/Check",
            HealthCheckRequest { service },
        )
        .await
    };
    for name in ["", "firn.v1.KV", "firn.v1.Admin"] {
        assert_eq!(check(name).await.unwrap().status(), ServingStatus::Serving);
    }
    let unknown = check("nonsense").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let watch = Request::new(Bytes::new());
    let mut watch = rpc
        .stream("/grpc.health.v1.Health/Watch", watch)
        .await
        .unwrap();
    let read = |bytes: Option<Bytes>| {
        HealthCheckResponse::decode(bytes.unwrap())
            .unwrap()
            .status()
    };
    let first = watch.message().await.unwrap();
    assert_eq!(read(first), ServingStatus::Serving);

    // A range in flight when the server is told to stop is finished.
    for i in 0..24_u8 {
        rpc.put(&[i], &vec![i; 1 << 20]).await;
    }
    let range = Request::new(Bytes::new());
    let mut range = rpc.stream("/firn.v1.KV/Range", range).await.unwrap();
    assert!(range.message().await.unwrap().is_some());
    let (ended, _dir) = server.begin_stop();
    let last = watch.message().await.unwrap();
    assert_eq!(read(last), ServingStatus::NotServing);
    assert!(watch.message().await.unwrap().is_none());
    assert!(!ended.is_finished());
    let mut messages = 1;
    while range.message().await.unwrap().is_some() {
        messages += 1;
    }
    assert_eq!(messages, 24);
    ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_can_be_asked_for() {
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
    let server = Running::start().await;
    let rpc = Rpc::to(&server).await;
    for version in ["v1", "v1alpha"] {
        let ask = |request| ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let asked = [
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol("firn.v1.KV".into())),
            ask(MessageRequest::FileContainingSymbol(
                "firn.v1.Nonsense".into(),
            )),
        ];
        let asked = asked.map(|request| Bytes::from(request.encode_to_vec()));
        let mut grpc = tonic::client::Grpc::new(rpc.0.clone());
        grpc.ready().await.unwrap();
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let path = PathAndQuery::try_from(path).unwrap();
        let requests = Request::new(tokio_stream::iter(asked));
        let mut replies = grpc
            .streaming(requests, path, Raw)
            .await
            .unwrap()
            .into_inner();
        let mut next = async || {
            let bytes = replies.message().await.unwrap().unwrap();
            let reply = ServerReflectionResponse::decode(bytes).unwrap();
            reply.message_response.unwrap()
        };
        let MessageResponse::ListServicesResponse(list) = next().await else {
            panic!("no list");
        };
        let names: Vec<_> = list.service.iter().map(|s| &*s.name).collect();
        for name in [
            "firn.v1.KV",
            "firn.v1.Namespaces",
            "firn.v1.Admin",
            "grpc.health.v1.Health",
        ] {
            assert!(names.contains(&name), "{names:?}");
        }
        let MessageResponse::FileDescriptorResponse(files) = next().await else {
            panic!("no file");
        };
        assert!(!files.file_descriptor_proto.is_empty());
    }
    server.stop().await;
}

/// Any bytes as the message of any method: an answer or a refusal with a reason, and the server goes
/// on.
#[test]
fn any_bytes_are_answered() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    const METHODS: &[&str] = &[
        "/firn.v1.KV/Get",
        "/firn.v1.KV/Put",
        "/firn.v1.KV/Delete",
        "/firn.v1.KV/MultiGet",
        "/firn.v1.KV/Batch",
        "/firn.v1.KV/DeleteRange",
        "/firn.v1.Namespaces/Get",
        "/firn.v1.Admin/Compact",
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Running::start());
    let rpc = runtime.block_on(Rpc::to(&server));
    // Tags and lengths that may be right, so that not only the first byte is tried.
    let field = (1..9_u8, 0..6_u8, prop::collection::vec(any::<u8>(), 0..6));
    let field = field.prop_map(|(number, kind, bytes)| {
        let head = [number << 3 | kind, bytes.len() as u8];
        [&head[..], &bytes].concat()
    });
    let message = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(field, 0..6).prop_map(|fields| fields.concat()),
    ];
    let mut runner = TestRunner::new(Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&(0..METHODS.len(), message), |(method, message)| {
        let request = Request::new(Bytes::from(message));
        if let Err(status) = runtime.block_on(rpc.raw(METHODS[method], request)) {
            prop_assert!(status.metadata().contains_key("firn-code"), "{:?}", status);
            prop_assert!(!matches!(status.code(), Code::Internal | Code::Unknown));
        }
        Ok(())
    });
    outcome.unwrap();
    runtime.block_on(server.stop());
}
