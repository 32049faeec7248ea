//! One durable change of the trees, and its bytes.
//!
//! An edit is all or nothing: it is one frame of the manifest. It says which files come and go,
//! which namespaces, and up to where the logs are no longer needed.
//!
//! ```text
//! edit      format u8 (1) | field*
//! field     tag varint | length varint | body
//! body of   1 create namespace   namespace varint | name (the rest, UTF-8)
//!           2 drop namespace     namespace varint
//!           3 add SSTable        namespace varint | level u8 | file
//!           4 remove SSTable     namespace varint | level u8 | number varint
//!           5 add blob file      namespace varint | number, file bytes, values, value bytes varint
//!           6 flushed            namespace varint | sequence number varint
//!          16 next file number   varint
//!          17 last sequence no.  varint
//!          18 log start          varint
//!          19 applied position   term varint | index varint
//!          20 next namespace     varint
//!          21 end of snapshot    (empty)
//!          22 applied state      bytes, whose meaning is the replicated log's
//!         128 log whole from     varint
//! file      number, file bytes, raw bytes, entries, tombstones, range tombstones varint
//!           | smallest bytes | largest bytes | flags u8 (1: the largest is exclusive)
//!           | min seqno, max seqno varint | n varint, n times: blob number, count, bytes varint
//!           | field* (none yet, same rule for unknown tags)
//! ```
//!
//! A reader that meets an unknown tag below 128 must not open the database: the field changes what
//! the others mean. An unknown tag from 128 on may be skipped. **Stored on disk: tags are never
//! changed or used again.**

use std::fmt;
use std::sync::Arc;

use firn_io::codec::{Reader, put_bytes, put_u8, put_varint_u32, put_varint_u64};

use crate::key::{FileId, NamespaceId, SeqNo};
use crate::options::LEVELS;
use crate::version::{BlobMeta, BlobRef, FileMeta};

const FORMAT: u8 = 1;

/// Tags. **Stored on disk: never change these values.**
mod tag {
    pub(super) const CREATE_NAMESPACE: u32 = 1;
    pub(super) const DROP_NAMESPACE: u32 = 2;
    pub(super) const ADD_FILE: u32 = 3;
    pub(super) const REMOVE_FILE: u32 = 4;
    pub(super) const ADD_BLOB: u32 = 5;
    pub(super) const FLUSHED: u32 = 6;
    pub(super) const NEXT_FILE: u32 = 16;
    pub(super) const LAST_SEQNO: u32 = 17;
    pub(super) const LOG_START: u32 = 18;
    pub(super) const APPLIED: u32 = 19;
    pub(super) const NEXT_NAMESPACE: u32 = 20;
    pub(super) const SNAPSHOT_END: u32 = 21;
    pub(super) const APPLIED_STATE: u32 = 22;
    pub(super) const LOG_WHOLE_FROM: u32 = 128;
    pub(super) const FIRST_OPTIONAL: u32 = 128;
}

const FLAG_LARGEST_EXCLUSIVE: u8 = 1;

/// The position of the last replicated command whose effect the SSTables have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Applied {
    /// The term of its leader.
    pub term: u64,
    /// Its log index.
    pub index: u64,
}

/// One part of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new, empty namespace.
    CreateNamespace {
        /// Its number, never used before.
        id: NamespaceId,
        /// Its name, which no other namespace has.
        name: String,
    },
    /// A namespace and all its files go.
    DropNamespace {
        /// Which.
        id: NamespaceId,
    },
    /// An SSTable is put into a level. After a removal of the same file in the same edit: it moves.
    AddFile {
        /// In this namespace.
        namespace: NamespaceId,
        /// Into this level.
        level: usize,
        /// The file.
        meta: FileMeta,
    },
    /// An SSTable is taken out of a level.
    RemoveFile {
        /// In this namespace.
        namespace: NamespaceId,
        /// Out of this level.
        level: usize,
        /// The file.
        id: FileId,
    },
    /// A new blob file. The same edit adds an SSTable that refers to it. It leaves without an
    /// operation of its own when no SSTable refers to it any more.
    AddBlob {
        /// In this namespace.
        namespace: NamespaceId,
        /// The file.
        meta: BlobMeta,
    },
    /// The SSTables have all operations of this namespace up to this one.
    Flushed {
        /// In this namespace.
        namespace: NamespaceId,
        /// The last operation.
        seqno: SeqNo,
    },
}

/// One durable change of the trees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionEdit {
    /// Files and namespaces, applied in this order.
    pub ops: Vec<Op>,
    /// Files from this number on were never made. The version set fills it in.
    pub next_file: Option<FileId>,
    /// Namespaces from this number on were never made. The version set fills it in.
    pub next_namespace: Option<NamespaceId>,
    /// No SSTable has a later operation.
    pub last_seqno: Option<SeqNo>,
    /// The lowest log position that recovery needs.
    pub log_start: Option<u64>,
    /// The SSTables have what the log had before this position, and the log may have lost it.
    pub log_whole_from: Option<u64>,
    /// The last replicated command that the SSTables have.
    pub applied: Option<Applied>,
    /// What the replicated log wants to know of itself as of `applied`; the engine gives it no
    /// meaning.
    pub applied_state: Option<Arc<[u8]>>,
    /// The edits so far describe the whole state: the end of what a new manifest starts with.
    pub snapshot_end: bool,
}

/// Why bytes are no edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// At this offset of the payload they are malformed.
    Malformed(usize, String),
    /// They are of a newer format, which this says.
    Unknown(String),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(at, detail) => write!(f, "malformed edit at byte {at}: {detail}"),
            Self::Unknown(detail) => f.write_str(detail),
        }
    }
}

fn put_file(out: &mut Vec<u8>, meta: &FileMeta) {
    put_varint_u64(out, meta.id.0);
    put_varint_u64(out, meta.file_bytes);
    put_varint_u64(out, meta.raw_bytes);
    put_varint_u64(out, meta.entry_count);
    put_varint_u64(out, meta.tombstone_count);
    put_varint_u64(out, meta.range_tombstone_count);
    put_bytes(out, &meta.smallest);
    put_bytes(out, &meta.largest);
    put_u8(
        out,
        if meta.largest_exclusive {
            FLAG_LARGEST_EXCLUSIVE
        } else {
            0
        },
    );
    put_varint_u64(out, meta.min_seqno.0);
    put_varint_u64(out, meta.max_seqno.0);
    put_varint_u64(out, meta.blob_refs.len() as u64);
    for blob in &meta.blob_refs {
        put_varint_u64(out, blob.file.0);
        put_varint_u64(out, blob.count);
        put_varint_u64(out, blob.bytes);
    }
}

fn get_file(r: &mut Reader<'_>) -> Option<Result<FileMeta, DecodeError>> {
    let mut meta = FileMeta {
        id: FileId(r.varint_u64()?),
        file_bytes: r.varint_u64()?,
        raw_bytes: r.varint_u64()?,
        entry_count: r.varint_u64()?,
        tombstone_count: r.varint_u64()?,
        range_tombstone_count: r.varint_u64()?,
        smallest: r.bytes()?.into(),
        largest: r.bytes()?.into(),
        largest_exclusive: false,
        min_seqno: SeqNo(0),
        max_seqno: SeqNo(0),
        blob_refs: Vec::new(),
    };
    let flags = r.u8()?;
    if flags & !FLAG_LARGEST_EXCLUSIVE != 0 {
        return Some(Err(DecodeError::Unknown(format!(
            "SSTable flags {flags:#x} are unknown"
        ))));
    }
    meta.largest_exclusive = flags & FLAG_LARGEST_EXCLUSIVE != 0;
    meta.min_seqno = SeqNo(r.varint_u64()?);
    meta.max_seqno = SeqNo(r.varint_u64()?);
    // The count is not trusted with an allocation: each reference takes three bytes at least.
    for _ in 0..r.varint_u64()? {
        let (file, count, bytes) = (FileId(r.varint_u64()?), r.varint_u64()?, r.varint_u64()?);
        meta.blob_refs.push(BlobRef { file, count, bytes });
    }
    while !r.is_empty() {
        let tag = r.varint_u32()?;
        if tag < tag::FIRST_OPTIONAL {
            return Some(Err(DecodeError::Unknown(format!(
                "SSTable field {tag} is unknown"
            ))));
        }
        r.bytes()?;
    }
    Some(Ok(meta))
}

fn put_field(out: &mut Vec<u8>, tag: u32, body: &[u8]) {
    put_varint_u32(out, tag);
    put_bytes(out, body);
}

impl Op {
    fn encode(&self, out: &mut Vec<u8>, body: &mut Vec<u8>) {
        body.clear();
        let tag = match self {
            Self::CreateNamespace { id, name } => {
                put_varint_u32(body, id.0);
                body.extend_from_slice(name.as_bytes());
                tag::CREATE_NAMESPACE
            }
            Self::DropNamespace { id } => {
                put_varint_u32(body, id.0);
                tag::DROP_NAMESPACE
            }
            Self::AddFile {
                namespace,
                level,
                meta,
            } => {
                put_varint_u32(body, namespace.0);
                put_u8(body, *level as u8);
                put_file(body, meta);
                tag::ADD_FILE
            }
            Self::RemoveFile {
                namespace,
                level,
                id,
            } => {
                put_varint_u32(body, namespace.0);
                put_u8(body, *level as u8);
                put_varint_u64(body, id.0);
                tag::REMOVE_FILE
            }
            Self::AddBlob { namespace, meta } => {
                put_varint_u32(body, namespace.0);
                put_varint_u64(body, meta.id.0);
                put_varint_u64(body, meta.file_bytes);
                put_varint_u64(body, meta.value_count);
                put_varint_u64(body, meta.value_bytes);
                tag::ADD_BLOB
            }
            Self::Flushed { namespace, seqno } => {
                put_varint_u32(body, namespace.0);
                put_varint_u64(body, seqno.0);
                tag::FLUSHED
            }
        };
        put_field(out, tag, body);
    }
}

fn level(r: &mut Reader<'_>) -> Option<usize> {
    r.u8().map(usize::from).filter(|&level| level < LEVELS)
}

impl VersionEdit {
    /// An edit with these operations.
    pub fn of(ops: Vec<Op>) -> Self {
        Self {
            ops,
            ..Self::default()
        }
    }

    /// Appends the bytes. REQUIRES: levels are below [`LEVELS`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u8(out, FORMAT);
        let mut body = Vec::new();
        for op in &self.ops {
            op.encode(out, &mut body);
        }
        let numbers = [
            (tag::NEXT_FILE, self.next_file.map(|id| id.0)),
            (tag::LAST_SEQNO, self.last_seqno.map(|seqno| seqno.0)),
            (tag::LOG_START, self.log_start),
            (
                tag::NEXT_NAMESPACE,
                self.next_namespace.map(|id| u64::from(id.0)),
            ),
            (tag::LOG_WHOLE_FROM, self.log_whole_from),
        ];
        for (tag, number) in numbers {
            if let Some(number) = number {
                body.clear();
                put_varint_u64(&mut body, number);
                put_field(out, tag, &body);
            }
        }
        if let Some(applied) = self.applied {
            body.clear();
            put_varint_u64(&mut body, applied.term);
            put_varint_u64(&mut body, applied.index);
            put_field(out, tag::APPLIED, &body);
        }
        if let Some(state) = &self.applied_state {
            put_field(out, tag::APPLIED_STATE, state);
        }
        if self.snapshot_end {
            put_field(out, tag::SNAPSHOT_END, &[]);
        }
    }

    /// Reads an edit; it takes all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let malformed = |at: usize, what: &str| DecodeError::Malformed(at, what.to_owned());
        match r.u8() {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(DecodeError::Unknown(format!(
                    "edit format {other} is unknown"
                )));
            }
            None => return Err(malformed(0, "no byte")),
        }
        let mut edit = Self::default();
        while !r.is_empty() {
            let at = r.position();
            let field = r.varint_u32().zip(r.bytes());
            let Some((tag, body)) = field else {
                return Err(malformed(at, "a field ends early"));
            };
            let mut body = Reader::new(body);
            match edit.field(tag, &mut body) {
                Some(result) => result?,
                None => return Err(malformed(at, &format!("field {tag} does not parse"))),
            }
            if !body.is_empty() {
                return Err(malformed(at, &format!("field {tag} is too long")));
            }
        }
        Ok(edit)
    }

    /// Takes one field. `None` if its body does not parse.
    fn field(&mut self, tag: u32, r: &mut Reader<'_>) -> Option<Result<(), DecodeError>> {
        let namespace = |r: &mut Reader<'_>| r.varint_u32().map(NamespaceId);
        match tag {
            tag::CREATE_NAMESPACE => {
                let id = namespace(r)?;
                let name = str::from_utf8(r.take(r.remaining())?).ok()?.to_owned();
                self.ops.push(Op::CreateNamespace { id, name });
            }
            tag::DROP_NAMESPACE => self.ops.push(Op::DropNamespace { id: namespace(r)? }),
            tag::ADD_FILE => {
                let (namespace, level) = (namespace(r)?, level(r)?);
                match get_file(r)? {
                    Ok(meta) => self.ops.push(Op::AddFile {
                        namespace,
                        level,
                        meta,
                    }),
                    Err(e) => return Some(Err(e)),
                }
            }
            tag::REMOVE_FILE => {
                let (namespace, level) = (namespace(r)?, level(r)?);
                self.ops.push(Op::RemoveFile {
                    namespace,
                    level,
                    id: FileId(r.varint_u64()?),
                });
            }
            tag::ADD_BLOB => {
                let namespace = namespace(r)?;
                let meta = BlobMeta {
                    id: FileId(r.varint_u64()?),
                    file_bytes: r.varint_u64()?,
                    value_count: r.varint_u64()?,
                    value_bytes: r.varint_u64()?,
                };
                self.ops.push(Op::AddBlob { namespace, meta });
            }
            tag::FLUSHED => {
                let namespace = namespace(r)?;
                self.ops.push(Op::Flushed {
                    namespace,
                    seqno: SeqNo(r.varint_u64()?),
                });
            }
            tag::NEXT_FILE => self.next_file = Some(FileId(r.varint_u64()?)),
            tag::LAST_SEQNO => self.last_seqno = Some(SeqNo(r.varint_u64()?)),
            tag::LOG_START => self.log_start = Some(r.varint_u64()?),
            tag::LOG_WHOLE_FROM => self.log_whole_from = Some(r.varint_u64()?),
            tag::NEXT_NAMESPACE => self.next_namespace = Some(NamespaceId(r.varint_u32()?)),
            tag::APPLIED => {
                self.applied = Some(Applied {
                    term: r.varint_u64()?,
                    index: r.varint_u64()?,
                });
            }
            tag::APPLIED_STATE => self.applied_state = Some(r.take(r.remaining())?.into()),
            tag::SNAPSHOT_END => self.snapshot_end = true,
            other if other >= tag::FIRST_OPTIONAL => {
                r.take(r.remaining())?;
            }
            _ => {
                return Some(Err(DecodeError::Unknown(format!(
                    "edit field {tag} is unknown"
                ))));
            }
        }
        Some(Ok(()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn sample() -> VersionEdit {
        let namespace = NamespaceId(1);
        let meta = FileMeta {
            id: FileId(300),
            file_bytes: 4096,
            raw_bytes: 9000,
            entry_count: 70,
            tombstone_count: 2,
            range_tombstone_count: 1,
            smallest: b"aa".as_slice().into(),
            largest: b"b".as_slice().into(),
            largest_exclusive: true,
            min_seqno: SeqNo(5),
            max_seqno: SeqNo(1000),
            blob_refs: vec![BlobRef {
                file: FileId(7),
                count: 3,
                bytes: 200,
            }],
        };
        let blob = BlobMeta {
            id: FileId(7),
            file_bytes: 500,
            value_count: 4,
            value_bytes: 260,
        };
        VersionEdit {
            ops: vec![
                Op::CreateNamespace {
                    id: namespace,
                    name: "users".into(),
                },
                Op::DropNamespace { id: NamespaceId(2) },
                Op::RemoveFile {
                    namespace,
                    level: 6,
                    id: FileId(299),
                },
                Op::AddBlob {
                    namespace,
                    meta: blob,
                },
                Op::AddFile {
                    namespace,
                    level: 2,
                    meta,
                },
                Op::Flushed {
                    namespace,
                    seqno: SeqNo(1000),
                },
            ],
            next_file: Some(FileId(301)),
            next_namespace: Some(NamespaceId(3)),
            last_seqno: Some(SeqNo(1000)),
            log_start: Some(65536),
            log_whole_from: Some(65000),
            applied: Some(Applied {
                term: 2,
                index: 128,
            }),
            applied_state: Some(b"raft".as_slice().into()),
            snapshot_end: true,
        }
    }

    #[test]
    fn golden_bytes() {
        let mut out = Vec::new();
        sample().encode(&mut out);
        #[rustfmt::skip]
        let want: &[&[u8]] = &[
            &[1],
            &[1, 6, 1], b"users",
            &[2, 1, 2],
            &[4, 4, 1, 6, 0xab, 2],
            &[5, 7, 1, 7, 0xf4, 3, 4, 0x84, 2],
            &[3, 25, 1, 2, 0xac, 2, 0x80, 0x20, 0xa8, 0x46, 70, 2, 1, 2], b"aa", &[1], b"b",
            &[1, 5, 0xe8, 7, 1, 7, 3, 0xc8, 1],
            &[6, 3, 1, 0xe8, 7],
            &[16, 2, 0xad, 2],
            &[17, 2, 0xe8, 7],
            &[18, 3, 0x80, 0x80, 4],
            &[20, 1, 3],
            &[128, 1, 3, 0xe8, 0xfb, 3],
            &[19, 3, 2, 0x80, 1],
            &[22, 4], b"raft",
            &[21, 0],
        ];
        assert_eq!(out, want.concat());
        assert_eq!(VersionEdit::decode(&out), Ok(sample()));
    }

    #[test]
    fn unknown_fields_stop_or_are_skipped() {
        let unknown = |bytes: &[u8]| match VersionEdit::decode(bytes) {
            Err(DecodeError::Unknown(_)) => true,
            Ok(_) => false,
            Err(other) => panic!("{other}"),
        };
        assert!(unknown(&[2]));
        assert!(unknown(&[1, 7, 0]));
        assert!(unknown(&[1, 127, 0]));
        assert!(!unknown(&[1, 0x81, 1, 2, 9, 9]));
        let mut file = vec![0; 6];
        file.extend([0, 1, b'a', 0, 0, 0, 0]);
        let edit = |file: &[u8]| {
            let body = [&[0, 0], file].concat();
            [&[1, 3, body.len() as u8][..], &body].concat()
        };
        assert!(!unknown(&edit(&file)));
        assert!(!unknown(&edit(&[&file[..], &[0x80, 1, 1, 9]].concat())));
        assert!(unknown(&edit(&[&file[..], &[5, 1, 9]].concat())));
        file[9] = 2;
        assert!(unknown(&edit(&file)));
    }

    #[test]
    fn malformed_bytes_are_refused() {
        for bytes in [
            &[][..],
            &[1, 1],
            &[1, 16, 2, 1, 1],
            &[1, 4, 3, 0, 7, 1],
            &[1, 1, 2, 0, 0xff],
        ] {
            let result = VersionEdit::decode(bytes);
            assert!(
                matches!(result, Err(DecodeError::Malformed(..))),
                "{bytes:?}: {result:?}"
            );
        }
        let mut out = Vec::new();
        sample().encode(&mut out);
        for cut in 1..out.len() {
            // A cut between fields is a shorter edit; the frame around it knows the length.
            let _ = VersionEdit::decode(&out[..cut]);
        }
    }

    pub(crate) fn any_meta() -> impl Strategy<Value = FileMeta> {
        let key = || vec(any::<u8>(), 0..20);
        let numbers = proptest::array::uniform6(any::<u64>());
        let blobs = vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..4);
        (
            numbers,
            key(),
            key(),
            any::<bool>(),
            any::<u64>(),
            any::<u64>(),
            blobs,
        )
            .prop_map(
                |(n, smallest, largest, largest_exclusive, min, max, blobs)| FileMeta {
                    id: FileId(n[0]),
                    file_bytes: n[1],
                    raw_bytes: n[2],
                    entry_count: n[3],
                    tombstone_count: n[4],
                    range_tombstone_count: n[5],
                    smallest: smallest.into(),
                    largest: largest.into(),
                    largest_exclusive,
                    min_seqno: SeqNo(min),
                    max_seqno: SeqNo(max),
                    blob_refs: blobs
                        .into_iter()
                        .map(|(file, count, bytes)| BlobRef {
                            file: FileId(file),
                            count,
                            bytes,
                        })
                        .collect(),
                },
            )
    }

    fn any_op() -> impl Strategy<Value = Op> {
        let ns = || any::<u32>().prop_map(NamespaceId);
        prop_oneof![
            (ns(), ".{0,8}").prop_map(|(id, name)| Op::CreateNamespace { id, name }),
            ns().prop_map(|id| Op::DropNamespace { id }),
            (ns(), 0..LEVELS, any_meta()).prop_map(|(namespace, level, meta)| Op::AddFile {
                namespace,
                level,
                meta
            }),
            (ns(), 0..LEVELS, any::<u64>()).prop_map(|(namespace, level, id)| Op::RemoveFile {
                namespace,
                level,
                id: FileId(id)
            }),
            (ns(), proptest::array::uniform4(any::<u64>())).prop_map(|(namespace, n)| {
                let (id, file_bytes, value_count, value_bytes) = (FileId(n[0]), n[1], n[2], n[3]);
                let meta = BlobMeta {
                    id,
                    file_bytes,
                    value_count,
                    value_bytes,
                };
                Op::AddBlob { namespace, meta }
            }),
            (ns(), any::<u64>()).prop_map(|(namespace, n)| Op::Flushed {
                namespace,
                seqno: SeqNo(n)
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            ops in vec(any_op(), 0..6),
            numbers in proptest::array::uniform5(any::<Option<u64>>()),
            next_namespace: Option<u32>,
            snapshot_end: bool,
            applied_state: Option<Vec<u8>>,
        ) {
            let edit = VersionEdit {
                ops,
                next_file: numbers[0].map(FileId),
                next_namespace: next_namespace.map(NamespaceId),
                last_seqno: numbers[1].map(SeqNo),
                log_start: numbers[2],
                log_whole_from: numbers[4],
                applied: numbers[3].map(|n| Applied { term: n >> 32, index: n }),
                applied_state: applied_state.map(Into::into),
                snapshot_end,
            };
            let mut out = Vec::new();
            edit.encode(&mut out);
            prop_assert_eq!(VersionEdit::decode(&out), Ok(edit));
        }

        #[test]
        fn no_bytes_panic(mut bytes in vec(any::<u8>(), 0..80)) {
            let _ = VersionEdit::decode(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            let _ = VersionEdit::decode(&bytes);
        }

        #[test]
        fn no_flipped_bit_panics(at: usize, bit in 0..8) {
            let mut out = Vec::new();
            sample().encode(&mut out);
            let at = at % out.len();
            out[at] ^= 1u8 << bit;
            let _ = VersionEdit::decode(&out);
        }
    }
}
