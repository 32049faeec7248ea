//! The client and its calls.

use std::time::Duration;

use bytes::Bytes;
use firn_api::code::Code;
use firn_api::http::{
    CheckpointBody, CheckpointReply, ClusterReply, KV_DURABILITY, KV_EXPIRES_AT, KV_VERSION,
    KeyRef, MgetBody, MgetReply, NamespaceBody, NamespacesReply, NodeBody, StatsReply, VerifyReply,
    bytes_member,
};
use firn_api::{duration, text};
use http::Method;
use http::header::{ETAG, HeaderMap};
use serde::de::DeserializeOwned;

use crate::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::scan::{Scan, ScanOptions};
use crate::transport::{Answer, Call, Transport};
use crate::watch::{Watch, WatchOptions};

/// A value with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// The sequence number of the write.
    pub version: u64,
    /// When it expires, in Unix milliseconds.
    pub expires_at_ms: Option<u64>,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it survives power loss.
    Sync,
    /// When it survives the death of the server's process.
    Buffered,
}

impl Durability {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Buffered => "buffered",
        }
    }
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent,
    /// It does.
    Exists,
    /// It has this version.
    Version(u64),
}

/// How a key is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// How long it lives from now on.
    pub ttl: Option<Duration>,
    /// When it expires, in Unix milliseconds. Excludes `ttl`.
    pub expires_at_ms: Option<u64>,
    /// What must hold.
    pub condition: Option<Condition>,
    /// When it is acknowledged; `None`: as the server is set.
    pub durability: Option<Durability>,
}

/// How a key is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// What must hold; `Absent` makes no sense here.
    pub condition: Option<Condition>,
    /// When it is acknowledged; `None`: as the server is set.
    pub durability: Option<Durability>,
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version of the key from now on.
    pub version: u64,
    /// What was promised.
    pub durability: Durability,
}

/// Makes a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    address: String,
    deadline: Duration,
    retries: u32,
    repeat_writes: bool,
}

impl Builder {
    /// How long a call may take, with its repetitions. Default: 30 s.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// How often a call is repeated where that is safe. Default: 4.
    #[must_use]
    pub fn retries(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    /// Whether writes without conditions are repeated too when a connection broke and nobody knows
    /// whether they happened. Then they may happen twice, the second time over what somebody else
    /// wrote in between. Default: no.
    #[must_use]
    pub fn repeat_writes(self, repeat_writes: bool) -> Self {
        Self {
            repeat_writes,
            ..self
        }
    }

    /// The client. Nothing is sent yet.
    ///
    /// # Errors
    /// If the address is none.
    pub fn build(self) -> Result<Client> {
        let transport = Transport::new(
            &self.address,
            self.deadline,
            self.retries,
            self.repeat_writes,
        )?;
        Ok(Client {
            transport,
            namespace: "default".into(),
        })
    }
}

/// A client of one namespace of one server. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    namespace: String,
}

impl Client {
    /// A client of the default namespace at `host:port` or `http://host:port`. Nothing is sent yet.
    ///
    /// # Errors
    /// If the address is none.
    pub fn connect(address: &str) -> Result<Self> {
        Self::builder(address).build()
    }

    /// A client that is not as [`Client::connect`] makes it.
    pub fn builder(address: &str) -> Builder {
        Builder {
            address: address.into(),
            deadline: Duration::from_secs(30),
            retries: 4,
            repeat_writes: false,
        }
    }

    /// The same connections, another namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Self {
        Self {
            namespace: name.into(),
            ..self.clone()
        }
    }

    /// The same connections, another deadline for every call.
    #[must_use]
    pub fn deadline(&self, deadline: Duration) -> Self {
        Self {
            transport: self.transport.with_deadline(deadline),
            namespace: self.namespace.clone(),
        }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// The server's, or that it could not be asked. A missing key is `None`.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Entry>> {
        let key = key.as_ref();
        let Some(target) = self.key_target(key) else {
            return Ok(self.multi_get(&[key]).await?.pop().flatten());
        };
        match self.transport.call(Call::new(Method::GET, target)).await {
            Ok(answer) => entry(answer).map(Some),
            Err(error) if error.code() == Some(Code::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads many keys at one instant, in their order.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Entry>>> {
        let keys = keys
            .iter()
            .map(|key| KeyRef::from_bytes(key.as_ref()))
            .collect();
        let mut call = Call::new(Method::POST, self.target("mget"));
        call.repeatable = true;
        call.body = encode(&MgetBody { keys })?;
        let reply: MgetReply = self.json(call).await?;
        let read = |body: firn_api::http::EntryBody| -> Result<Entry> {
            let value = bytes_member("value", body.value.as_deref(), body.value_b64.as_deref());
            let value = value
                .map_err(|e| Error::new(ErrorKind::Protocol, e))?
                .unwrap_or_default();
            let version = body.version.unwrap_or_default();
            Ok(Entry {
                value: value.into(),
                version,
                expires_at_ms: body.expires_at_ms,
            })
        };
        reply
            .entries
            .into_iter()
            .map(|body| body.map(read).transpose())
            .collect()
    }

    /// Writes a key.
    ///
    /// # Errors
    /// The server's, or that it could not be asked; see [`ErrorKind`] for what is known then.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<Written> {
        self.put_with(key, value, &PutOptions::default()).await
    }

    /// Writes a key: with a time to live, under a condition, with another durability.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        options: &PutOptions,
    ) -> Result<Written> {
        let (key, value) = (key.as_ref(), value.into());
        let Some(target) = self.key_target(key) else {
            let batch = Batch::new().put_with(key, &value, options);
            return self.batch_of_one(batch, options.durability).await;
        };
        let mut query = Query::default();
        query.add("ttl", options.ttl.map(duration::print));
        let expires = options
            .expires_at_ms
            .map(|ms| format!("{}.{:03}", ms / 1_000, ms % 1_000));
        query.add("expires_at", expires);
        query.add(
            "durability",
            options.durability.map(|d| d.name().to_owned()),
        );
        let mut call = Call::new(Method::PUT, query.after(target));
        call.absolute = options.condition.is_none();
        call.headers.extend(options.condition.map(condition_header));
        call.body = value;
        written(&self.transport.call(call).await?.headers)
    }

    /// Deletes a key, which need not exist.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Written> {
        self.delete_with(key, &DeleteOptions::default()).await
    }

    /// Deletes a key: under a condition, with another durability.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete_with(
        &self,
        key: impl AsRef<[u8]>,
        options: &DeleteOptions,
    ) -> Result<Written> {
        let key = key.as_ref();
        let Some(target) = self.key_target(key) else {
            let batch = Batch::new().delete_with(key, options.condition);
            return self.batch_of_one(batch, options.durability).await;
        };
        let mut query = Query::default();
        query.add(
            "durability",
            options.durability.map(|d| d.name().to_owned()),
        );
        let mut call = Call::new(Method::DELETE, query.after(target));
        call.absolute = options.condition.is_none();
        call.headers.extend(options.condition.map(condition_header));
        written(&self.transport.call(call).await?.headers)
    }

    /// Deletes every key from `start` (inclusive) to `end` (exclusive), at once.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete_range(
        &self,
        start: impl AsRef<[u8]>,
        end: impl AsRef<[u8]>,
    ) -> Result<Written> {
        self.batch_of_one(Batch::new().delete_range(start, end), None)
            .await
    }

    /// Deletes every key with a prefix, at once. An empty prefix means every key.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete_prefix(&self, prefix: impl AsRef<[u8]>) -> Result<Written> {
        self.batch_of_one(Batch::new().delete_prefix(prefix), None)
            .await
    }

    /// Writes a batch, all or nothing.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn batch(&self, batch: Batch) -> Result<firn_api::http::BatchReply> {
        self.batch_with(batch, None).await
    }

    /// The same with another durability.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn batch_with(
        &self,
        batch: Batch,
        durability: Option<Durability>,
    ) -> Result<firn_api::http::BatchReply> {
        let mut query = Query::default();
        query.add("durability", durability.map(|d| d.name().to_owned()));
        let mut call = Call::new(Method::POST, query.after(self.target("batch")));
        call.absolute = !batch.has_conditions();
        call.body = encode(&batch.into_body())?;
        self.json(call).await
    }

    async fn batch_of_one(&self, batch: Batch, durability: Option<Durability>) -> Result<Written> {
        let reply = self.batch_with(batch, durability).await?;
        let version = reply.versions.first().copied().flatten();
        let durability = durability_of(&reply.durability);
        match (version, durability) {
            (Some(version), Some(durability)) => Ok(Written {
                version,
                durability,
            }),
            _ => Err(Error::new(
                ErrorKind::Protocol,
                "a batch's reply without a version",
            )),
        }
    }

    /// Walks a range. Nothing is sent until the first [`Scan::next`].
    pub fn scan(&self, options: ScanOptions) -> Scan {
        Scan::new(self.clone(), options)
    }

    /// Watches: every durable change from a version on, in order. Nothing is sent until the first
    /// [`Watch::next`].
    pub fn watch(&self, options: WatchOptions) -> Watch {
        Watch::new(self.clone(), options)
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Every namespace, by name.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn namespaces(&self) -> Result<Vec<NamespaceBody>> {
        let reply: NamespacesReply = self.json(Call::new(Method::GET, "/v1/ns".into())).await?;
        Ok(reply.namespaces)
    }

    /// Creates a namespace; `false` if it was there.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn create_namespace(&self, name: &str) -> Result<bool> {
        let mut call = Call::new(Method::PUT, namespace_target(name));
        call.repeatable = true;
        Ok(self.transport.call(call).await?.status == http::StatusCode::CREATED)
    }

    /// Drops a namespace with everything in it.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn drop_namespace(&self, name: &str) -> Result<()> {
        self.transport
            .call(Call::new(Method::DELETE, namespace_target(name)))
            .await
            .map(drop)
    }

    /// The engine's gauges and counters.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn stats(&self) -> Result<StatsReply> {
        self.json(Call::new(Method::GET, "/v1/admin/stats".into()))
            .await
    }

    /// Writes memtables to SSTables.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn flush(&self) -> Result<()> {
        self.transport
            .call(Call::new(Method::POST, "/v1/admin/flush".into()))
            .await
            .map(drop)
    }

    /// Compacts a range of this client's namespace; `None`: to its end.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn compact(&self, start: Option<&[u8]>, end: Option<&[u8]>) -> Result<()> {
        let mut query = Query::default();
        query.add("ns", Some(self.namespace.clone()));
        query.add_bytes("start", start);
        query.add_bytes("end", end);
        let call = Call::new(Method::POST, query.after("/v1/admin/compact".into()));
        self.transport.call(call).await.map(drop)
    }

    /// Makes a checkpoint on the server's disk and returns its path there.
    ///
    /// # Errors
    /// As [`Client::get`]; the name is taken.
    pub async fn checkpoint(&self, name: Option<&str>) -> Result<String> {
        let mut call = Call::new(Method::POST, "/v1/admin/checkpoint".into());
        call.body = encode(&CheckpointBody {
            name: name.map(str::to_owned),
        })?;
        let reply: CheckpointReply = self.json(call).await?;
        Ok(reply.path)
    }

    /// Has the server check every checksum and invariant.
    ///
    /// # Errors
    /// As [`Client::get`]. Damage is in the reply.
    pub async fn verify(&self) -> Result<VerifyReply> {
        self.json(Call::new(Method::POST, "/v1/admin/verify".into()))
            .await
    }

    /// The cluster, as the server sees it.
    ///
    /// # Errors
    /// As [`Client::get`]; the server is no node of one.
    pub async fn cluster(&self) -> Result<ClusterReply> {
        self.json(Call::new(Method::GET, "/v1/cluster".into()))
            .await
    }

    async fn change_cluster(&self, what: &str, body: NodeBody) -> Result<Answer> {
        let mut call = Call::new(Method::POST, format!("/v1/cluster/{what}"));
        call.body = encode(&body)?;
        self.transport.call(call).await
    }

    /// Gives a node that has caught up a vote.
    ///
    /// # Errors
    /// As [`Client::get`]; the server does not lead, and says who does.
    pub async fn promote(&self, node: u64) -> Result<()> {
        let body = NodeBody {
            node: Some(node),
            force: false,
        };
        self.change_cluster("promote", body).await.map(drop)
    }

    /// Takes the vote of a node.
    ///
    /// # Errors
    /// As [`Client::promote`].
    pub async fn demote(&self, node: u64) -> Result<()> {
        let body = NodeBody {
            node: Some(node),
            force: false,
        };
        self.change_cluster("demote", body).await.map(drop)
    }

    /// Removes a node; with `force` also if the rest is then no majority that can be reached.
    ///
    /// # Errors
    /// As [`Client::promote`].
    pub async fn remove(&self, node: u64, force: bool) -> Result<()> {
        let body = NodeBody {
            node: Some(node),
            force,
        };
        self.change_cluster("remove", body).await.map(drop)
    }

    /// Makes another node lead, and answers which.
    ///
    /// # Errors
    /// As [`Client::promote`].
    pub async fn transfer(&self, node: Option<u64>) -> Result<u64> {
        let body = NodeBody { node, force: false };
        let answer = self.change_cluster("transfer", body).await?;
        let reply: NodeBody =
            serde_json::from_slice(&answer.body).map_err(|e| Error::new(ErrorKind::Protocol, e))?;
        Ok(reply.node.unwrap_or_default())
    }

    pub(crate) fn target(&self, what: &str) -> String {
        if self.namespace == "default" {
            return format!("/v1/{what}");
        }
        format!("{}/{what}", namespace_target(&self.namespace))
    }

    /// The path of a key; `None` if it is too long for one.
    fn key_target(&self, key: &[u8]) -> Option<String> {
        let target = self.target(&format!("keys/{}", text::percent_encode(key, true)));
        // What the options add is short.
        let longest = firn_api::limits::MAX_TARGET_BYTES - 1_000;
        // A dot segment would be folded by whoever normalizes paths on the way.
        let folded = key
            .split(|b| *b == b'/')
            .any(|part| part == b"." || part == b"..");
        (target.len() <= longest && !folded).then_some(target)
    }

    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let answer = self.transport.call(call).await?;
        serde_json::from_slice(&answer.body).map_err(|e| Error::new(ErrorKind::Protocol, e))
    }
}

fn namespace_target(name: &str) -> String {
    format!("/v1/ns/{}", text::percent_encode(name.as_bytes(), false))
}

fn encode(body: &impl serde::Serialize) -> Result<Bytes> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|e| Error::new(ErrorKind::Usage, e))
}

fn condition_header(condition: Condition) -> (&'static str, String) {
    match condition {
        Condition::Absent => ("if-none-match", "*".into()),
        Condition::Exists => ("if-match", "*".into()),
        Condition::Version(version) => ("if-match", format!("\"{version}\"")),
    }
}

fn entry(answer: Answer) -> Result<Entry> {
    let missing = || Error::new(ErrorKind::Protocol, "a value without a version");
    let tag = answer
        .headers
        .get(ETAG)
        .and_then(|v| v.to_str().ok())
        .ok_or_else(missing)?;
    let version = tag.trim_matches('"').parse().map_err(|_| missing())?;
    let expires = answer
        .headers
        .get(KV_EXPIRES_AT)
        .and_then(|v| v.to_str().ok());
    let expires = expires.and_then(|text| duration::parse(text).ok());
    let expires_at_ms = expires.and_then(|time| u64::try_from(time.as_millis()).ok());
    Ok(Entry {
        value: answer.body,
        version,
        expires_at_ms,
    })
}

fn durability_of(name: &str) -> Option<Durability> {
    [Durability::Sync, Durability::Buffered]
        .into_iter()
        .find(|d| d.name() == name)
}

fn written(headers: &HeaderMap) -> Result<Written> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let version = text(KV_VERSION).and_then(|v| v.parse().ok());
    match (version, text(KV_DURABILITY).and_then(durability_of)) {
        (Some(version), Some(durability)) => Ok(Written {
            version,
            durability,
        }),
        _ => Err(Error::new(
            ErrorKind::Protocol,
            "a write's reply without version or durability",
        )),
    }
}

/// Builds a query.
#[derive(Debug, Default)]
pub(crate) struct Query(String);

impl Query {
    pub(crate) fn add(&mut self, name: &str, value: Option<String>) {
        self.add_bytes(name, value.as_deref().map(str::as_bytes));
    }

    pub(crate) fn add_bytes(&mut self, name: &str, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.0.push(if self.0.is_empty() { '?' } else { '&' });
            self.0
                .push_str(&format!("{name}={}", text::percent_encode(value, true)));
        }
    }

    pub(crate) fn after(self, path: String) -> String {
        path + &self.0
    }
}
