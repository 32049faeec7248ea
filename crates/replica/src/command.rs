//! What an entry makes the state machine do: the writes of many clients, under one time.
//!
//! ```text
//! command      version u8 (1) | time u64 (Unix milliseconds) | n varint, n times: write (bytes)
//! write        kind u8 | body (the rest)
//!              1  requirements, then a batch as `firn_engine::batch` has it
//!              2  make a namespace: its name        3  drop a namespace: its name
//! requirements n varint, n times: namespace varint | key bytes | condition
//! condition    0  absent      1  exists      2 version varint  last written by that operation
//! outcome      kind u8 | numbers as varints (see the code); version 1 of messages
//! ```
//!
//! A write is encoded once, by the node that took it from a client, checked once by the leader that
//! proposes it, and from then on copied as it is. Several writes in one entry are decided and applied
//! in their order, each seeing those before it; each stands or falls alone.
//! **Stored on disk and sent: kinds are never changed or used again.**

use bytes::Bytes;
use firn_engine::batch::{BatchReader, Condition, Requirement};
use firn_engine::external::apply::Change;
use firn_engine::key::{Kind, NamespaceId};
use firn_engine::options::{MAX_BATCH_BYTES, MAX_KEY_BYTES, MAX_NAMESPACE_BYTES, MAX_VALUE_BYTES};
use firn_engine::{Outcome, SeqNo, WriteBatch};
use firn_io::codec::{Reader, put_bytes, put_u8, put_u64, put_varint_u32, put_varint_u64};

use crate::codec::{DecodeError, decode_all, get_option, put_option};

/// The version of commands that this build writes and reads.
pub const COMMAND_VERSION: u8 = 1;
/// Most requirements of one write.
pub const MAX_REQUIREMENTS: usize = 1 << 16;
/// Largest write, encoded, in bytes.
pub const MAX_WRITE_BYTES: usize = MAX_BATCH_BYTES + (64 << 20);

const KIND_BATCH: u8 = 1;
const KIND_CREATE: u8 = 2;
const KIND_DROP: u8 = 3;

/// One client's write, encoded. All or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write(Bytes);

impl Write {
    /// A batch with its conditions.
    pub fn batch(batch: &mut WriteBatch) -> Self {
        let mut out = vec![KIND_BATCH];
        put_varint_u64(&mut out, batch.requirements().len() as u64);
        for requirement in batch.requirements() {
            put_varint_u32(&mut out, requirement.namespace.0);
            put_bytes(&mut out, &requirement.key);
            match requirement.condition {
                Condition::Absent => put_u8(&mut out, 0),
                Condition::Exists => put_u8(&mut out, 1),
                Condition::VersionEquals(version) => {
                    put_u8(&mut out, 2);
                    put_varint_u64(&mut out, version.0);
                }
            }
        }
        out.extend_from_slice(batch.seal(SeqNo::ZERO));
        Self(out.into())
    }

    /// A new namespace.
    pub fn create_namespace(name: &str) -> Self {
        Self([&[KIND_CREATE], name.as_bytes()].concat().into())
    }

    /// The end of a namespace and of everything in it.
    pub fn drop_namespace(name: &str) -> Self {
        Self([&[KIND_DROP], name.as_bytes()].concat().into())
    }

    /// A write that another node encoded: every part of it is checked, limits too.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, DecodeError> {
        let error = |detail| DecodeError {
            what: "write",
            detail,
        };
        if bytes.len() > MAX_WRITE_BYTES {
            return Err(error("it is too large"));
        }
        let parsed = Parsed::read(&bytes)?;
        if let Parsed::Batch {
            requirements,
            batch,
        } = parsed
        {
            if requirements.iter().any(|r| r.key.len() > MAX_KEY_BYTES) {
                return Err(error("the key of a condition is too long"));
            }
            let mut bytes = 0;
            for operation in batch.operations() {
                let operation = operation.map_err(error)?;
                let is_range = operation.kind == Kind::RangeDelete;
                let most = match operation.kind {
                    Kind::RangeDelete => MAX_KEY_BYTES,
                    Kind::PutExpiring => MAX_VALUE_BYTES + 8,
                    _ => MAX_VALUE_BYTES,
                };
                if operation.key.len() > MAX_KEY_BYTES || operation.value.len() > most {
                    return Err(error("a key or value is too long"));
                }
                if is_range && operation.key >= operation.value {
                    return Err(error("the start of a range is not before its end"));
                }
                bytes += operation.key.len() + operation.value.len();
            }
            if bytes > MAX_BATCH_BYTES {
                return Err(error("the batch is too large"));
            }
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// A write, taken apart.
enum Parsed<'a> {
    Batch {
        requirements: Vec<Requirement>,
        batch: BatchReader<'a>,
    },
    Create(&'a str),
    Drop(&'a str),
}

impl<'a> Parsed<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let error = |detail| DecodeError {
            what: "write",
            detail,
        };
        let mut r = Reader::new(bytes);
        let kind = r.u8().ok_or(error("no byte"))?;
        if kind == KIND_BATCH {
            let requirements = get_requirements(&mut r).ok_or(error("conditions"))?;
            let batch = BatchReader::new(r.rest()).map_err(error)?;
            // One that claims more operations than it has, or has more, is malformed as a whole.
            let mut operations = batch.clone().operations();
            if operations.by_ref().any(|operation| operation.is_err()) {
                return Err(error("an operation of its batch"));
            }
            return Ok(Self::Batch {
                requirements,
                batch,
            });
        }
        let name = str::from_utf8(r.rest()).map_err(|_| error("the name is no text"))?;
        if name.is_empty() || name.len() > MAX_NAMESPACE_BYTES {
            return Err(error("the name of a namespace has 1 to 255 bytes"));
        }
        match kind {
            KIND_CREATE => Ok(Self::Create(name)),
            KIND_DROP => Ok(Self::Drop(name)),
            _ => Err(error("its kind is not known to this build")),
        }
    }
}

fn get_requirements(r: &mut Reader<'_>) -> Option<Vec<Requirement>> {
    let mut requirements = Vec::new();
    for _ in 0..r.varint_u64().filter(|&n| n <= MAX_REQUIREMENTS as u64)? {
        let namespace = NamespaceId(r.varint_u32()?);
        let key = r.bytes()?.to_vec();
        let condition = match r.u8()? {
            0 => Condition::Absent,
            1 => Condition::Exists,
            2 => Condition::VersionEquals(SeqNo(r.varint_u64()?)),
            _ => return None,
        };
        requirements.push(Requirement {
            namespace,
            key,
            condition,
        });
    }
    Some(requirements)
}

/// Puts writes together to what an entry carries.
#[derive(Debug, Default)]
pub struct CommandBuilder {
    bytes: Vec<u8>,
    count: u64,
}

impl CommandBuilder {
    /// Adds a write.
    pub fn add(&mut self, write: &Write) {
        put_bytes(&mut self.bytes, &write.0);
        self.count += 1;
    }

    /// Bytes of the writes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no write yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The command, and the builder empty again.
    pub fn finish(&mut self, time_ms: u64) -> Bytes {
        let mut out = Vec::with_capacity(self.bytes.len() + 20);
        put_u8(&mut out, COMMAND_VERSION);
        put_u64(&mut out, time_ms);
        put_varint_u64(&mut out, self.count);
        out.append(&mut self.bytes);
        self.count = 0;
        out.into()
    }
}

/// What an entry carries, taken apart.
#[derive(Debug)]
pub struct Command<'a> {
    /// When the leader made it, by its wall clock, in Unix milliseconds.
    pub time_ms: u64,
    writes: Vec<&'a [u8]>,
}

impl<'a> Command<'a> {
    /// Takes the bytes apart. The writes themselves are looked at by [`Command::with_changes`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes
            .first()
            .is_some_and(|&version| version != COMMAND_VERSION)
        {
            return Err(DecodeError {
                what: "command",
                detail: "its version is not known to this build",
            });
        }
        decode_all("command", bytes, |r| {
            r.u8()?;
            let time_ms = r.u64()?;
            let mut writes = Vec::new();
            for _ in 0..r.varint_u64()? {
                writes.push(r.bytes()?);
            }
            Some(Self { time_ms, writes })
        })
    }

    /// The number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether there is no write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Hands the writes to `f` in the form that the engine takes.
    pub fn with_changes<T>(&self, f: impl FnOnce(&[Change<'_>]) -> T) -> Result<T, DecodeError> {
        let parsed: Result<Vec<_>, _> = self.writes.iter().map(|w| Parsed::read(w)).collect();
        let parsed = parsed?;
        let changes: Vec<Change<'_>> = parsed
            .iter()
            .map(|write| match write {
                Parsed::Batch {
                    requirements,
                    batch,
                } => Change::Write {
                    requirements,
                    batch: batch.clone(),
                },
                Parsed::Create(name) => Change::CreateNamespace(name),
                Parsed::Drop(name) => Change::DropNamespace(name),
            })
            .collect();
        Ok(f(&changes))
    }
}

pub(crate) fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    match outcome {
        Outcome::Written { first, last } => {
            put_u8(out, 1);
            put_varint_u64(out, first.0);
            put_varint_u64(out, last.0);
        }
        Outcome::ConditionFailed { index, actual } => {
            put_u8(out, 2);
            put_varint_u32(out, *index);
            put_option(out, actual.as_ref(), |out, version| {
                put_varint_u64(out, version.0);
            });
        }
        Outcome::NamespaceNotFound => put_u8(out, 3),
        Outcome::NamespaceExists(id) => {
            put_u8(out, 4);
            put_varint_u32(out, id.0);
        }
        Outcome::Created(id) => {
            put_u8(out, 5);
            put_varint_u32(out, id.0);
        }
        Outcome::Dropped => put_u8(out, 6),
        Outcome::Refused => put_u8(out, 7),
    }
}

pub(crate) fn get_outcome(r: &mut Reader<'_>) -> Option<Outcome> {
    Some(match r.u8()? {
        1 => Outcome::Written {
            first: SeqNo(r.varint_u64()?),
            last: SeqNo(r.varint_u64()?),
        },
        2 => Outcome::ConditionFailed {
            index: r.varint_u32()?,
            actual: get_option(r, |r| r.varint_u64().map(SeqNo))?,
        },
        3 => Outcome::NamespaceNotFound,
        4 => Outcome::NamespaceExists(NamespaceId(r.varint_u32()?)),
        5 => Outcome::Created(NamespaceId(r.varint_u32()?)),
        6 => Outcome::Dropped,
        7 => Outcome::Refused,
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn any_write() -> impl Strategy<Value = Write> {
        let bytes = || vec(any::<u8>(), 0..12);
        let operation = (0..4_u8, 0..3_u32, bytes(), bytes(), any::<u64>());
        let condition = (0..3_u8, bytes(), 0..1000_u64);
        let batch = (vec(operation, 0..5), vec(condition, 0..3)).prop_map(|(ops, conditions)| {
            let mut batch = WriteBatch::new();
            for (kind, namespace, key, value, time) in ops {
                let namespace = NamespaceId(namespace);
                match kind {
                    0 => batch.put(namespace, &key, &value).map(drop),
                    1 => batch.put_expiring(namespace, &key, &value, time).map(drop),
                    2 => batch.delete(namespace, &key).map(drop),
                    _ => {
                        let end = [&key[..], &[0]].concat();
                        batch.delete_range(namespace, &key, &end).map(drop)
                    }
                }
                .expect("within the limits");
            }
            for (kind, key, version) in conditions {
                let condition = match kind {
                    0 => Condition::Absent,
                    1 => Condition::Exists,
                    _ => Condition::VersionEquals(SeqNo(version)),
                };
                batch
                    .require(NamespaceId(1), &key, condition)
                    .expect("short");
            }
            Write::batch(&mut batch)
        });
        prop_oneof![
            4 => batch,
            1 => "[a-z]{1,9}".prop_map(|name| Write::create_namespace(&name)),
            1 => "[a-z]{1,9}".prop_map(|name| Write::drop_namespace(&name)),
        ]
    }

    pub(crate) fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            (any::<u64>(), any::<u64>()).prop_map(|(first, last)| Outcome::Written {
                first: SeqNo(first),
                last: SeqNo(last)
            }),
            (any::<u32>(), any::<Option<u64>>()).prop_map(|(index, actual)| {
                let actual = actual.map(SeqNo);
                Outcome::ConditionFailed { index, actual }
            }),
            any::<u32>().prop_map(|id| Outcome::NamespaceExists(NamespaceId(id))),
            any::<u32>().prop_map(|id| Outcome::Created(NamespaceId(id))),
            Just(Outcome::NamespaceNotFound),
            Just(Outcome::Dropped),
            Just(Outcome::Refused),
        ]
    }

    #[test]
    fn golden_bytes() {
        let mut batch = WriteBatch::new();
        batch.put(NamespaceId(2), b"k", b"v").unwrap();
        let version = Condition::VersionEquals(SeqNo(300));
        batch.require(NamespaceId(2), b"k", version).unwrap();
        let mut command = CommandBuilder::default();
        command.add(&Write::batch(&mut batch));
        command.add(&Write::create_namespace("n"));
        #[rustfmt::skip]
        let want: &[&[u8]] = &[
            &[1], &[0xe8, 3, 0, 0, 0, 0, 0, 0], &[2],
            &[22, 1, 1, 2, 1], b"k", &[2, 0xac, 2],
            &[0, 0, 0, 0, 0, 0, 0, 1], &[1, 2, 1], b"k", &[1], b"v",
            &[2, 2], b"n",
        ];
        assert_eq!(command.finish(1000), want.concat());
        assert!(command.is_empty());
    }

    #[test]
    fn limits_hold_for_what_others_encoded() {
        let with_value = |len: usize| {
            let mut out = vec![KIND_BATCH, 0];
            out.extend([0; 7]);
            out.extend([1, Kind::Put as u8, 0]);
            put_bytes(&mut out, &vec![b'k'; len]);
            put_bytes(&mut out, b"v");
            Write::from_bytes(out.into())
        };
        assert!(with_value(MAX_KEY_BYTES).is_ok());
        assert!(with_value(MAX_KEY_BYTES + 1).is_err());
        let long = "n".repeat(MAX_NAMESPACE_BYTES + 1);
        let refused = [
            Write::create_namespace(&long).0,
            Write::create_namespace("").0,
            Bytes::from_static(&[9, b'n']),
            Bytes::new(),
        ];
        for bytes in refused {
            assert!(Write::from_bytes(bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn writes_pass_the_check(write in any_write()) {
            prop_assert_eq!(Write::from_bytes(write.0.clone()), Ok(write));
        }

        #[test]
        fn commands_are_decoded_as_encoded(writes in vec(any_write(), 0..6), time_ms: u64) {
            let mut builder = CommandBuilder::default();
            writes.iter().for_each(|write| builder.add(write));
            let bytes = builder.finish(time_ms);
            let command = Command::decode(&bytes).unwrap();
            prop_assert_eq!(command.time_ms, time_ms);
            prop_assert_eq!(command.len(), writes.len());
            prop_assert_eq!(command.with_changes(|changes| changes.len()), Ok(writes.len()));
        }

        #[test]
        fn outcomes_are_decoded_as_encoded(outcome in any_outcome()) {
            let mut out = Vec::new();
            put_outcome(&mut out, &outcome);
            prop_assert_eq!(decode_all("outcome", &out, get_outcome), Ok(outcome));
        }

        #[test]
        fn no_bytes_panic(mut bytes in vec(any::<u8>(), 0..80), kind in 0..4_u8) {
            for first in [kind, COMMAND_VERSION] {
                if let Some(byte) = bytes.first_mut() {
                    *byte = first;
                }
                let _ = Write::from_bytes(bytes.clone().into());
                if let Ok(command) = Command::decode(&bytes) {
                    let _ = command.with_changes(|_| ());
                }
            }
        }
    }
}
