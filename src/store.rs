//! One store for the verbs, wherever it is: files opened here, or a server.
//!
//! The verbs speak in [`Batch`], [`Range`] and [`Item`]; this file translates them for
//! `firn_engine` and for `firn_client`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use firn_client::PutOptions;
use firn_engine::{Condition, Db, Namespace, Options, ScanOptions, SeqNo, WriteBatch};
use firn_io::clock::Clock;

use crate::exit::{Failure, Result};
use crate::flags::{Durability, StoreArgs};
use crate::host;

/// The server if none is named.
pub(crate) const DEFAULT_SERVER: &str = "127.0.0.1:8080";
/// The namespace if none is named.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// What a key has.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) value: Vec<u8>,
    pub(crate) version: u64,
    pub(crate) expires_at_ms: Option<u64>,
}

/// What a key must be like for a batch to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Require {
    Absent,
    Exists,
    Version(u64),
}

impl Require {
    fn remote(self) -> firn_client::Condition {
        match self {
            Self::Absent => firn_client::Condition::Absent,
            Self::Exists => firn_client::Condition::Exists,
            Self::Version(version) => firn_client::Condition::Version(version),
        }
    }
}

/// When an entry expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// So long from the moment when the store takes it, by the clock of where the store is.
    After(Duration),
    /// At this moment, in Unix milliseconds.
    AtMs(u64),
}

impl Expiry {
    /// The moment, by this machine's clock.
    fn at_ms(self) -> u64 {
        match self {
            Self::AtMs(at) => at,
            Self::After(ttl) => {
                let now = firn_io::clock::SystemClock::new().unix_ms();
                now.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
            }
        }
    }

    /// The options of a put that leave it to the server.
    fn remote(expiry: Option<Self>) -> PutOptions {
        let (ttl, expires_at_ms) = match expiry {
            None => (None, None),
            Some(Self::After(ttl)) => (Some(ttl), None),
            Some(Self::AtMs(at)) => (None, Some(at)),
        };
        PutOptions {
            ttl,
            expires_at_ms,
            ..PutOptions::default()
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
        expiry: Option<Expiry>,
    },
    Delete {
        key: Vec<u8>,
    },
    DeleteRange {
        start: Vec<u8>,
        end: Vec<u8>,
    },
}

/// Operations that are written together or not at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    pub(crate) requires: Vec<(Vec<u8>, Require)>,
    pub(crate) ops: Vec<Op>,
}

/// Which keys: from `start` (inclusive) to `end` (exclusive; `None`: to the last key).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: Vec<u8>,
    pub(crate) end: Option<Vec<u8>>,
    pub(crate) reverse: bool,
    pub(crate) keys_only: bool,
    pub(crate) limit: Option<u64>,
    /// Everything as it was at one instant, which files give anyway; a server then cannot be asked
    /// to go on when a connection broke.
    pub(crate) one_instant: bool,
}

/// Called with every entry of a scan; answers whether to go on.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8], u64, Option<u64>) -> Result<bool> + 'a;

/// A namespace of a store that is open.
pub(crate) enum Store {
    Embedded { db: Db, ns: Namespace },
    Remote(firn_client::blocking::Client),
}

/// How an embedded database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Leaves every file as it is.
    Read,
    /// The database must be there.
    Write,
    /// Makes the database, and the namespace, if they are not there.
    Create,
}

/// Opens the database in `dir`.
pub(crate) fn open_db(dir: &Path, memory_bytes: Option<usize>, access: Access) -> Result<Db> {
    // The engine reads without a lock; what a server deletes meanwhile would look like damage.
    if access == Access::Read && !host::share_lock(&dir.join(firn_engine::names::LOCK)) {
        return Err(firn_engine::Error::Locked(dir.to_path_buf()).into());
    }
    let mut options = Options {
        create_if_missing: access == Access::Create,
        read_only: access == Access::Read,
        ..Options::default()
    };
    if let Some(bytes) = memory_bytes {
        options.memory_bytes = bytes;
    }
    Db::open(dir, options).map_err(Failure::from)
}

impl Store {
    /// Opens what the flags name.
    pub(crate) fn open(args: &StoreArgs, access: Access) -> Result<Self> {
        let Some(dir) = &args.data_dir else {
            let server = args.server.as_deref().unwrap_or(DEFAULT_SERVER);
            let client = firn_client::blocking::Client::connect(server)?;
            if access == Access::Create && args.ns != DEFAULT_NAMESPACE {
                client.create_namespace(&args.ns)?;
            }
            return Ok(Self::Remote(client.namespace(&args.ns)));
        };
        let db = open_db(dir, args.memory, access)?;
        let ns = match access {
            Access::Create => db.namespace_or_create(&args.ns)?,
            Access::Read | Access::Write => db.namespace(&args.ns)?,
        };
        Ok(Self::Embedded { db, ns })
    }

    /// Ends the work: what was written survives, errors of closing are told.
    pub(crate) fn close(self) -> Result<()> {
        match self {
            Self::Embedded { db, .. } => Ok(db.close()?),
            Self::Remote(_) => Ok(()),
        }
    }

    /// Reads one key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Item>> {
        match self {
            Self::Embedded { db, ns } => Ok(db.get_entry(ns, key)?.map(|entry| Item {
                version: entry.version.0,
                expires_at_ms: entry.expires_at_ms,
                value: entry.value.into_vec(),
            })),
            Self::Remote(client) => Ok(client.get(key)?.map(|entry| Item {
                version: entry.version,
                expires_at_ms: entry.expires_at_ms,
                value: entry.value.into(),
            })),
        }
    }

    /// Writes a batch; returns the version of its last operation.
    pub(crate) fn write(&self, batch: Batch, durability: Durability) -> Result<u64> {
        match self {
            Self::Embedded { db, ns } => {
                let mut encoded = WriteBatch::new();
                for (key, require) in &batch.requires {
                    let condition = match *require {
                        Require::Absent => Condition::Absent,
                        Require::Exists => Condition::Exists,
                        Require::Version(version) => Condition::VersionEquals(SeqNo(version)),
                    };
                    encoded.require(ns, key, condition)?;
                }
                // Taken one by one, so that a large value is not held twice while it is written.
                for op in batch.ops {
                    match op {
                        Op::Put {
                            key,
                            value,
                            expiry: None,
                        } => encoded.put(ns, &key, &value)?,
                        Op::Put {
                            key,
                            value,
                            expiry: Some(expiry),
                        } => encoded.put_expiring(ns, &key, &value, expiry.at_ms())?,
                        Op::Delete { key } => encoded.delete(ns, &key)?,
                        Op::DeleteRange { start, end } => encoded.delete_range(ns, &start, &end)?,
                    };
                }
                Ok(db.write(encoded, &durability.options())?.last.0)
            }
            Self::Remote(client) => remote_write(client, batch, durability),
        }
    }

    /// Calls `visit` with the entries of a range in order, until it answers `false`.
    pub(crate) fn scan(&self, range: &Range, visit: &mut Visit<'_>) -> Result<()> {
        let mut left = range.limit.unwrap_or(u64::MAX);
        match self {
            Self::Embedded { db, ns } => {
                use std::ops::Bound;
                let options = ScanOptions {
                    start: Bound::Included(range.start.clone()),
                    end: range.end.clone().map_or(Bound::Unbounded, Bound::Excluded),
                    reverse: range.reverse,
                    keys_only: range.keys_only,
                };
                let mut scan = db.scan(ns, options)?;
                while left > 0 && scan.next()? {
                    let value = if range.keys_only { &[] } else { scan.value() };
                    if !visit(scan.key(), value, scan.version().0, scan.expires_at_ms())? {
                        break;
                    }
                    left -= 1;
                }
            }
            Self::Remote(client) => {
                let mut scan = client.scan(firn_client::ScanOptions {
                    start: (!range.start.is_empty()).then(|| range.start.clone()),
                    end: range.end.clone(),
                    reverse: range.reverse,
                    keys_only: range.keys_only,
                    limit: range.limit,
                    ..Default::default()
                });
                if range.one_instant {
                    scan = scan.one_instant();
                }
                while left > 0 {
                    let Some(entry) = scan.next().transpose()? else {
                        break;
                    };
                    let value = if range.keys_only {
                        &[]
                    } else {
                        &entry.value[..]
                    };
                    if !visit(&entry.key, value, entry.version, entry.expires_at_ms)? {
                        break;
                    }
                    left -= 1;
                }
            }
        }
        Ok(())
    }

    /// The end that a range delete needs: the range's own, or just after the last key. `None` if
    /// the range holds no key.
    pub(crate) fn end_of(&self, range: &Range) -> Result<Option<Vec<u8>>> {
        if let Some(end) = &range.end {
            return Ok(Some(end.clone()));
        }
        let last = Range {
            reverse: true,
            keys_only: true,
            limit: Some(1),
            ..range.clone()
        };
        let mut end = None;
        self.scan(&last, &mut |key, _, _, _| {
            let mut after = key.to_vec();
            after.push(0);
            end = Some(after);
            Ok(false)
        })?;
        Ok(end)
    }

    /// The names of the namespaces, and how many keys each has (estimated), where known.
    pub(crate) fn namespaces(&self) -> Result<Vec<(String, Option<u64>)>> {
        match self {
            Self::Embedded { db, .. } => Ok(db
                .namespaces()
                .iter()
                .map(|ns| (ns.name().to_owned(), Some(db.approximate_count(ns))))
                .collect()),
            Self::Remote(client) => remote_namespaces(client),
        }
    }

    /// Makes a namespace; `false` if it is there already.
    pub(crate) fn create_namespace(&self, name: &str) -> Result<bool> {
        match self {
            Self::Embedded { db, .. } => match db.create_namespace(name) {
                Ok(_) => Ok(true),
                Err(firn_engine::Error::NamespaceExists(_)) => Ok(false),
                Err(error) => Err(error.into()),
            },
            Self::Remote(client) => Ok(client.create_namespace(name)?),
        }
    }

    /// Drops a namespace with everything in it.
    pub(crate) fn drop_namespace(&self, name: &str) -> Result<()> {
        match self {
            Self::Embedded { db, .. } => Ok(db.drop_namespace(name)?),
            Self::Remote(client) => {
                client.drop_namespace(name)?;
                Ok(())
            }
        }
    }
}

/// Writes through a server. One operation on a key goes as itself, with its bytes raw; more go as
/// a batch.
fn remote_write(
    client: &firn_client::blocking::Client,
    mut batch: Batch,
    durability: Durability,
) -> Result<u64> {
    use firn_client::DeleteOptions;
    let durability = Some(durability.remote());
    let simple = batch.ops.len() == 1
        && match (&batch.ops[0], &batch.requires[..]) {
            (Op::Put { .. } | Op::Delete { .. }, []) => true,
            (Op::Put { key, .. } | Op::Delete { key }, [(required, _)]) => key == required,
            _ => false,
        };
    if simple {
        let condition = batch.requires.pop().map(|(_, require)| require.remote());
        match batch.ops.pop() {
            Some(Op::Put { key, value, expiry }) => {
                let options = PutOptions {
                    condition,
                    durability,
                    ..Expiry::remote(expiry)
                };
                return Ok(client.put_with(key, value, &options)?.version);
            }
            Some(Op::Delete { key }) => {
                let options = DeleteOptions {
                    condition,
                    durability,
                };
                return Ok(client.delete_with(key, &options)?.version);
            }
            _ => {}
        }
    }
    let mut sent = firn_client::Batch::new();
    for (key, require) in batch.requires {
        sent = sent.check(key, require.remote());
    }
    for op in batch.ops {
        sent = match op {
            Op::Put { key, value, expiry } => sent.put_with(key, value, &Expiry::remote(expiry)),
            Op::Delete { key } => sent.delete(key),
            Op::DeleteRange { start, end } => sent.delete_range(start, end),
        };
    }
    let reply = client.batch_with(sent, durability)?;
    Ok(reply.versions.into_iter().flatten().max().unwrap_or(0))
}

fn remote_namespaces(client: &firn_client::blocking::Client) -> Result<Vec<(String, Option<u64>)>> {
    let bodies = client.namespaces()?;
    Ok(bodies
        .into_iter()
        .map(|body| (body.name, Some(body.approximate_keys)))
        .collect())
}

/// The directory that `--data-dir` must name for a verb that works on files only.
pub(crate) fn existing_dir(dir: &Path) -> Result<PathBuf> {
    let dir = crate::host::absolute(dir);
    let env = firn_io::Env::os(1);
    if env.fs.exists(&dir.join(firn_engine::names::CURRENT))? {
        return Ok(dir);
    }
    Err(
        Failure::usage(format!("{} holds no database", dir.display()))
            .advice_for_missing(&env, &dir),
    )
}

impl Failure {
    /// A directory with tables but without `CURRENT` can be repaired; an empty one was mistyped.
    fn advice_for_missing(self, env: &firn_io::Env, dir: &Path) -> Self {
        let names = env.fs.list(dir).unwrap_or_default();
        if names
            .iter()
            .any(|entry| firn_engine::names::parse(&entry.name).is_some())
        {
            self.advise("it has tables but no CURRENT: `firn repair` builds a new one")
        } else {
            self.advise("`firn serve --data-dir DIR` or `firn import --data-dir DIR` makes one")
        }
    }
}
