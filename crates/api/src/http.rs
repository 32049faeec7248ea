//! The bodies of the HTTP door: `application/problem+json`, range pages, batches, multi-gets,
//! namespaces, statistics; and the headers of our own.
//!
//! Keys and values in JSON come in two forms. `"key": "text"` is text; `"key_b64": "..."` is any
//! bytes in standard base64. Exactly one of the two is present; the same goes for `value`, `start`,
//! `end` and `prefix`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::code::Code;
use crate::text::{self, Enc, NotUtf8};

/// The media type of errors.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The media type of streamed ranges: one JSON object a line.
pub const NDJSON: &str = "application/x-ndjson";
/// The media type of server-sent events.
pub const SSE: &str = "text/event-stream";
/// Reply header: the durability with which a write was acknowledged.
pub const KV_DURABILITY: &str = "kv-durability";
/// Reply header: the consistency with which a read was answered.
pub const KV_CONSISTENCY: &str = "kv-consistency";
/// Reply header: when the entry expires, in Unix seconds with up to three decimals.
pub const KV_EXPIRES_AT: &str = "kv-expires-at";
/// Reply header of writes: the version (sequence number) of the write.
pub const KV_VERSION: &str = "kv-version";
/// Request header: a cursor that is too long for the query.
pub const KV_CURSOR: &str = "kv-cursor";

/// An error, as RFC 9457 has it, with our members. Absent members are not written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:firn:error:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// One line, the same for every occurrence of the code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// The path of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// The name of the code (see [`Code`]).
    pub code: String,
    /// The value of the limit that was exceeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// What was asked for instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<u64>,
    /// The version that the key has now, where a condition failed; absent if it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The position of the operation in the batch that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The oldest version that a watch can begin at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_version: Option<u64>,
    /// When it is worth trying again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Where the leader of the cluster answers HTTP, where only it can help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
}

impl Problem {
    /// A problem of this code; the caller fills what else applies.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: code.type_uri(),
            title: code.title().into(),
            status: code.http_status(),
            detail: detail.into(),
            code: code.name().into(),
            ..Self::default()
        }
    }
}

/// A node, as its cluster knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReply {
    /// Its number.
    pub node: u64,
    /// `leader`, `voter` or `learner`.
    pub role: String,
    /// Where it listens for the others.
    pub peer: String,
    /// Where it answers HTTP; empty: not known.
    pub http: String,
    /// Where it answers RESP; empty: nowhere.
    pub resp: String,
    /// As the leader knows it: how many entries it lacks; `null` if that is not known.
    pub lag: Option<u64>,
    /// As the leader knows it: how long ago it was last heard of.
    pub heard_ms: Option<u64>,
}

/// `GET /v1/cluster`: a cluster, as one of its nodes sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterReply {
    /// Names the cluster.
    pub cluster: String,
    /// The node that answers.
    pub node: u64,
    /// What it does: `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub role: String,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
    /// The last entry of its log.
    pub last_index: Option<u64>,
    /// Up to here it knows that a majority has the entries.
    pub committed_index: Option<u64>,
    /// The last entry in its state.
    pub applied_index: Option<u64>,
    /// Why it is not ready, or has stopped.
    pub trouble: Option<String>,
    /// Everybody, by number.
    pub members: Vec<MemberReply>,
}

/// `POST /v1/cluster/members`: a node wants to belong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinBody {
    /// Where it listens for the others.
    pub peer: String,
    /// Where it answers HTTP.
    #[serde(default)]
    pub http: String,
    /// Where it answers RESP; empty: nowhere.
    #[serde(default)]
    pub resp: String,
    /// The number it wants, which no node ever had; absent: the cluster gives it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
}

/// It belongs now, without a vote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// Names the cluster.
    pub cluster: String,
    /// The number of the new node.
    pub node: u64,
}

/// `POST /v1/cluster/promote`, `demote`, `remove`, `transfer`: which node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeBody {
    /// Its number; to transfer to, may be absent: whoever has most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
    /// Remove it although the rest is then no majority that can be reached.
    #[serde(default)]
    pub force: bool,
}

/// Appends the JSON object of one entry, as pages, streams and multi-gets carry it:
/// `{"key":"a","value":"x","version":12,"expires_at_ms":1700000000000}`.
///
/// # Errors
/// [`NotUtf8`] if `enc` wants text and the bytes are none; `out` then ends with half an object.
pub fn push_entry(
    out: &mut Vec<u8>,
    key: &[u8],
    value: Option<&[u8]>,
    version: u64,
    expires_at_ms: Option<u64>,
    enc: Enc,
) -> Result<(), NotUtf8> {
    out.push(b'{');
    text::push_member(out, "key", key, enc)?;
    if let Some(value) = value {
        out.push(b',');
        text::push_member(out, "value", value, enc)?;
    }
    out.extend_from_slice(b",\"version\":");
    text::push_number(out, version);
    if let Some(ms) = expires_at_ms {
        out.extend_from_slice(b",\"expires_at_ms\":");
        text::push_number(out, ms);
    }
    out.push(b'}');
    Ok(())
}

/// One entry of a page, a stream or a multi-get, as a client reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryBody {
    /// The key, if text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_b64: Option<String>,
    /// The value, if text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_b64: Option<String>,
    /// The sequence number of the write; absent if the key was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// When it expires, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// A page of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageBody {
    /// In the order of the range.
    pub entries: Vec<EntryBody>,
    /// How many there are.
    pub count: u64,
    /// Continues after the last entry; `null` if this was all.
    pub next_cursor: Option<String>,
}

/// The last line of a streamed range: a stream without it was cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEnd {
    /// Always true.
    pub end: bool,
    /// The number of entries before this line.
    pub count: u64,
    /// Continues after the last entry; `null` if this was all.
    pub next_cursor: Option<String>,
}

/// A line of a changefeed, and the `data` of a server-sent event. One of four things, told by its
/// members: a change (`op`), progress alone (`progress`), the orderly end (`end`), or an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchLine {
    /// `put`, `delete`, `delete_range` or `drop_namespace`. More may come: skip what is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
    /// The sequence number of the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The last sequence number of its batch: the changes of one batch have it in common.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<u64>,
    /// Another change of the same batch follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// The namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns: Option<String>,
    /// `put`, `delete`: the key, if text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The same, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_b64: Option<String>,
    /// `put`: the value, if text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The same, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_b64: Option<String>,
    /// `put`: when it expires, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// `delete_range`: the inclusive start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// The same, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_b64: Option<String>,
    /// `delete_range`: the exclusive end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The same, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_b64: Option<String>,
    /// Everything up to this version was told or passed over: a watch from the next one on follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u64>,
    /// The server ends the stream; connect again and go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub end: bool,
    /// The stream cannot go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

/// A write of a batch. `op` says which of the members it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchOp {
    /// `put`, `delete`, `delete_range`, or `check` (conditions only).
    pub op: String,
    /// The namespace, if not that of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns: Option<String>,
    /// The key, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_b64: Option<String>,
    /// `put`: the value, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// `put`: the value, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_b64: Option<String>,
    /// `put`: time to live, as `30s` or in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// `put`: when it expires, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// `delete_range`: the inclusive start; absent: from the first key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// The same, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_b64: Option<String>,
    /// `delete_range`: the exclusive end; absent: to the last key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// The same, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_b64: Option<String>,
    /// `delete_range`: every key with this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The same, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_b64: Option<String>,
    /// Condition: the key must not exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_absent: bool,
    /// Condition: the key must exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_exists: bool,
    /// Condition: the key must have this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_version: Option<u64>,
}

/// A time to live: a number of seconds, or a text like `30s`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a ttl is a number of seconds or a text like \"30s\""
)]
pub enum Ttl {
    /// Seconds.
    Seconds(u64),
    /// As [`crate::duration::parse`] reads it.
    Text(String),
}

impl Eq for Ttl {}

/// A JSON object, and nothing else: serde by itself also takes an array of the members' values for a
/// structure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        from.deserialize_map(Members(PhantomData))
    }
}

fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::<Object<T>>::deserialize(from)?;
    Ok(list.into_iter().map(|object| object.0).collect())
}

/// `POST /v1/batch`: all or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchBody {
    /// In order; a later operation on a key wins. Conditions look at the state before the batch.
    #[serde(deserialize_with = "objects")]
    pub ops: Vec<BatchOp>,
}

/// The reply to a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchReply {
    /// For each operation the version it wrote; `null` for `check`.
    pub versions: Vec<Option<u64>>,
    /// The durability with which the batch was acknowledged.
    pub durability: String,
}

/// A key in a list: text, or `{"b64": "..."}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a key is a text or {\"b64\": \"...\"}")]
pub enum KeyRef {
    /// As text.
    Text(String),
    /// Any bytes.
    Bytes {
        /// In base64.
        b64: String,
    },
}

impl KeyRef {
    /// Text where the bytes are text, else base64.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.into()),
            Err(_) => Self::Bytes {
                b64: text::base64_encode(bytes),
            },
        }
    }
}

/// `POST /v1/mget`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MgetBody {
    /// The keys, in any order, repeated if you like.
    pub keys: Vec<KeyRef>,
}

/// The reply to a multi-get: an entry for each key, in the order asked; those that do not exist
/// are `null`. All are of one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MgetReply {
    /// As asked.
    pub entries: Vec<Option<EntryBody>>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceBody {
    /// Its name.
    pub name: String,
    /// Keys, estimated.
    pub approximate_keys: u64,
    /// Bytes in SSTables.
    pub disk_bytes: u64,
    /// Bytes in memtables.
    pub memtable_bytes: u64,
}

/// `GET /v1/ns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacesReply {
    /// By name.
    pub namespaces: Vec<NamespaceBody>,
}

/// `POST /v1/admin/checkpoint`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointBody {
    /// Letters, digits, `-`, `_` and `.`; absent: the time of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The reply to a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointReply {
    /// Where it is, on the server's disk.
    pub path: String,
}

/// The reply to a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReply {
    /// Whether nothing is wrong.
    pub clean: bool,
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Entries of SSTables.
    pub entries: u64,
    /// Operations in the log.
    #[serde(default)]
    pub log_operations: u64,
    /// What is wrong.
    pub problems: Vec<VerifyProblem>,
}

/// Something that verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProblem {
    /// In which file.
    pub path: String,
    /// Where in it.
    pub offset: Option<u64>,
    /// What.
    pub detail: String,
}

/// A level of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelBody {
    /// Its number.
    pub level: u64,
    /// SSTables.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// `GET /v1/admin/stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReply {
    /// The server's version.
    pub server_version: String,
    /// Milliseconds since the server started.
    pub uptime_ms: u64,
    /// Open connections.
    pub connections: u64,
    /// The last sequence number.
    pub last_version: u64,
    /// All files together.
    pub disk_bytes: u64,
    /// Bytes that compaction has yet to move.
    pub compaction_debt_bytes: u64,
    /// Snapshots held.
    pub snapshots: u64,
    /// The oldest of them.
    pub oldest_snapshot_version: u64,
    /// Whether the disk is full.
    pub disk_full: bool,
    /// Why writes are refused, if they are.
    pub poisoned: Option<String>,
    /// What keeps background work from going on, if something does.
    pub background_error: Option<String>,
    /// By part: `memtables`, `block_cache`, `tables`, and `budget`. In bytes.
    pub memory: BTreeMap<String, u64>,
    /// `segments`, `disk_bytes`, `unsynced_bytes`.
    pub log: BTreeMap<String, u64>,
    /// `files`, `bytes`, `garbage_bytes`.
    pub blobs: BTreeMap<String, u64>,
    /// From L0 down.
    pub levels: Vec<LevelBody>,
    /// By name.
    pub namespaces: Vec<NamespaceBody>,
    /// Everything that only grows, since the start.
    pub counters: BTreeMap<String, u64>,
}

/// Bytes from a pair of members of which one is text and the other base64.
///
/// # Errors
/// A sentence that names the member.
pub fn bytes_member(
    name: &str,
    text: Option<&str>,
    b64: Option<&str>,
) -> Result<Option<Vec<u8>>, String> {
    match (text, b64) {
        (Some(_), Some(_)) => Err(format!("{name} and {name}_b64 exclude each other")),
        (Some(text), None) => Ok(Some(text.as_bytes().to_vec())),
        (None, Some(b64)) => text::base64_decode(b64)
            .map(Some)
            .map_err(|e| format!("{name}_b64 is {e}")),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_written_as_they_are_read() {
        let mut out = Vec::new();
        push_entry(&mut out, b"k\xff", Some(b"v"), 7, Some(9), Enc::Auto).unwrap();
        let entry: EntryBody = serde_json::from_slice(&out).unwrap();
        let key = bytes_member("key", entry.key.as_deref(), entry.key_b64.as_deref());
        assert_eq!(key, Ok(Some(b"k\xff".to_vec())));
        assert_eq!(entry.value.as_deref(), Some("v"));
        assert_eq!((entry.version, entry.expires_at_ms), (Some(7), Some(9)));
    }

    #[test]
    fn problems_leave_out_what_does_not_apply() {
        let text = serde_json::to_string(&Problem::new(Code::NotFound, "no such key")).unwrap();
        assert_eq!(
            text,
            r#"{"type":"urn:firn:error:not_found","title":"The key does not exist","status":404,"detail":"no such key","code":"not_found"}"#
        );
    }

    #[test]
    fn unknown_members_are_refused() {
        let error = serde_json::from_str::<BatchBody>(r#"{"ops":[{"op":"put","kee":"a"}]}"#);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("unknown field `kee`")
        );
    }
}
