//! What nodes say to each other.
//!
//! ```text
//! request   version u8 (1) | kind u8 | group u32 | body
//! answer    version u8 (1) | kind u8 | group u32 | body
//! ```
//!
//! The bodies are in the code, field by field, in the order in which they are written. An entry in a
//! message has the bytes that it has in the log, so whoever receives it can store them as they are.
//! How messages find their way (frames, checksums, who is who) is the transport's matter; see
//! [`crate::transport`]. **Sent between versions: kinds are never changed or used again.**
//!
//! A snapshot goes over in four steps, each of which can be repeated: an *offer* says which files
//! make it up; the answer says how much of each is there already; *chunks* bring the rest, each
//! with its own checksum; *install* puts the whole into place, after which the answer comes.
//!
//! A node whose files are damaged in some place asks others for a *view* of the keys there.

use bytes::Bytes;
use firn_engine::key::NamespaceId;
use firn_engine::version::KeyRange;
use firn_engine::{Outcome, RangeView, SeqNo, ViewEntry};
use firn_io::codec::{Reader, put_bytes, put_u8, put_u32, put_u64, put_varint_u32, put_varint_u64};

use crate::codec::{DecodeError, decode_all, get_bool, get_option, put_bool, put_option};
use crate::command::{Write, get_outcome, put_outcome};
use crate::types::{Entry, GROUP, LogId, Membership, NodeId, Vote};

/// The version of messages that this build sends and takes.
pub const MESSAGE_VERSION: u8 = 1;
/// Most files of a snapshot.
pub const MAX_SNAPSHOT_FILES: usize = 1 << 20;
/// Longest name of a file in a snapshot, in bytes.
pub const MAX_FILE_NAME_BYTES: usize = 64;
/// Largest chunk of a file, in bytes.
pub const MAX_CHUNK_BYTES: usize = 4 << 20;

/// The leader's entries, or its heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendRequest {
    /// The leader's.
    pub vote: Vote,
    /// What must be just before the entries.
    pub previous: Option<LogId>,
    /// Up to here a majority has the entries.
    pub committed: Option<LogId>,
    /// In order, without gaps.
    pub entries: Vec<Entry>,
}

/// A candidate asks for a vote, or whether it would get one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// The candidate's.
    pub vote: Vote,
    /// The end of its log.
    pub last: Option<LogId>,
    /// The leader asked it to: nobody waits for the leader's lease to end.
    pub transfer: bool,
}

/// The leader wants somebody else to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferRequest {
    /// The leader's.
    pub from: Vote,
    /// Who shall lead.
    pub to: NodeId,
    /// What it must have in its log before.
    pub last: Option<LogId>,
}

/// What a snapshot is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry in it.
    pub last: Option<LogId>,
    /// The entry that its membership came with.
    pub membership_id: Option<LogId>,
    /// The membership as of `last`.
    pub membership: Membership,
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// As in the engine's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// XXH3 of its bytes.
    pub checksum: u64,
}

/// A part of a file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// Which snapshot.
    pub last: Option<LogId>,
    /// Which file, by its place in the offer.
    pub file: u32,
    /// Where in it.
    pub offset: u64,
    /// CRC-32C of the bytes.
    pub crc: u32,
    /// The bytes.
    pub bytes: Bytes,
}

/// A node asks for what is visible in a range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewRequest {
    /// In which namespace.
    pub namespace: NamespaceId,
    /// Which keys.
    pub range: KeyRange,
    /// It must see this operation.
    pub at_least: SeqNo,
}

/// What one node asks of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Take these entries.
    Append(AppendRequest),
    /// Vote for me.
    Vote(VoteRequest),
    /// Would you vote for me?
    PreVote(VoteRequest),
    /// Lead.
    Transfer(TransferRequest),
    /// Up to which entry must I have applied what I read?
    ReadIndex,
    /// Write this for my clients.
    Propose(Vec<Write>),
    /// A snapshot is at hand.
    SnapshotOffer {
        /// The leader's.
        vote: Vote,
        /// What it is of.
        meta: SnapshotMeta,
        /// What it is made of.
        files: Vec<SnapshotFile>,
    },
    /// A part of it.
    SnapshotChunk(SnapshotChunk),
    /// All parts are there: put it into place.
    SnapshotInstall {
        /// The leader's.
        vote: Vote,
        /// Which.
        last: Option<LogId>,
    },
    /// What do you have there?
    View(ViewRequest),
}

/// How entries were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAnswer {
    /// All are on the disk.
    Taken,
    /// Those up to here are.
    TakenUpTo(Option<LogId>),
    /// What should have been before them is not there.
    Conflict,
    /// There is another leader.
    HigherVote(Vote),
}

/// A vote, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteAnswer {
    /// Whom the node follows.
    pub vote: Vote,
    /// Whether the candidate got it.
    pub granted: bool,
    /// The end of the node's log.
    pub last: Option<LogId>,
}

/// What became of a transfer of the lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferAnswer {
    /// The node stands for election.
    Begun,
    /// It follows somebody else.
    VoteChanged(Vote),
    /// Its log is not as long on its disk.
    LogTooShort(Option<LogId>),
}

/// Why a node does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not lead; this one may.
    NotLeader(Option<NodeId>),
    /// It leads, but cannot be sure: a majority did not answer in time. Nothing was written.
    NoQuorum,
    /// It was written to the log, but whether it will be in force is not known.
    Unknown(String),
    /// There is too much to do already; nothing was written.
    Overloaded,
    /// What was asked is malformed or not known to this build.
    Malformed(String),
    /// The node has failed and leaves the cluster.
    Failed(String),
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::Append`].
    Append(AppendAnswer),
    /// To [`Request::Vote`] and [`Request::PreVote`].
    Vote(VoteAnswer),
    /// To [`Request::Transfer`].
    Transfer(TransferAnswer),
    /// To [`Request::ReadIndex`]: up to this index.
    ReadIndex(u64),
    /// To [`Request::Propose`]: where they are in the log, and what became of each.
    Propose(LogId, Vec<Outcome>),
    /// To [`Request::SnapshotOffer`]: how many bytes of each file are there.
    SnapshotHave(Vec<u64>),
    /// To [`Request::SnapshotChunk`]: it is on the disk.
    ChunkTaken,
    /// To [`Request::SnapshotInstall`]: it is in place, if the vote is still the leader's.
    Installed(Vote),
    /// To any: no.
    Refused(Refusal),
    /// To [`Request::View`]: this, or the beginning of it; `None`: not now, or never.
    View(Option<RangeView>),
}

fn get_key(r: &mut Reader<'_>) -> Option<Vec<u8>> {
    r.bytes().map(<[u8]>::to_vec)
}

fn put_range(out: &mut Vec<u8>, range: &KeyRange) {
    put_bytes(out, &range.start);
    put_option(out, range.end.as_ref(), |out, end| put_bytes(out, end));
    put_bool(out, range.end_exclusive);
}

fn get_range(r: &mut Reader<'_>) -> Option<KeyRange> {
    Some(KeyRange {
        start: get_key(r)?,
        end: get_option(r, get_key)?,
        end_exclusive: get_bool(r)?,
    })
}

fn put_view(out: &mut Vec<u8>, view: &RangeView) {
    put_range(out, &view.range);
    put_varint_u64(out, view.seqno.0);
    put_varint_u64(out, view.time_ms);
    put_option(out, view.next.as_ref(), |out, next| put_bytes(out, next));
    put_varint_u64(out, view.entries.len() as u64);
    for entry in &view.entries {
        put_bytes(out, &entry.key);
        put_varint_u64(out, entry.version.0);
        put_option(out, entry.expires_at_ms.as_ref(), |out, &at| {
            put_varint_u64(out, at);
        });
        put_bytes(out, &entry.value);
    }
}

fn get_view(r: &mut Reader<'_>) -> Option<RangeView> {
    let mut view = RangeView {
        range: get_range(r)?,
        seqno: SeqNo(r.varint_u64()?),
        time_ms: r.varint_u64()?,
        next: get_option(r, get_key)?,
        entries: Vec::new(),
    };
    for _ in 0..r.varint_u64()? {
        view.entries.push(ViewEntry {
            key: get_key(r)?,
            version: SeqNo(r.varint_u64()?),
            expires_at_ms: get_option(r, |r| r.varint_u64())?,
            value: get_key(r)?,
        });
    }
    Some(view)
}

fn put_id(out: &mut Vec<u8>, id: &Option<LogId>) {
    put_option(out, id.as_ref(), |out, id| id.put(out));
}

fn get_id(r: &mut Reader<'_>) -> Option<Option<LogId>> {
    get_option(r, LogId::get)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn get_text(r: &mut Reader<'_>, most: usize) -> Option<String> {
    let bytes = r.bytes().filter(|bytes| bytes.len() <= most)?;
    Some(str::from_utf8(bytes).ok()?.to_owned())
}

/// The part of `whole` that `bytes`, which lie in it, are.
fn slice_of(whole: &Bytes, bytes: &[u8]) -> Bytes {
    whole.slice_ref(bytes)
}

impl VoteRequest {
    fn put(&self, out: &mut Vec<u8>) {
        self.vote.put(out);
        put_id(out, &self.last);
        put_bool(out, self.transfer);
    }

    fn get(r: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            vote: Vote::get(r)?,
            last: get_id(r)?,
            transfer: get_bool(r)?,
        })
    }
}

impl SnapshotMeta {
    /// Appends the bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_id(out, &self.last);
        put_id(out, &self.membership_id);
        self.membership.put(out);
    }

    /// Reads the bytes.
    pub fn get(r: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            last: get_id(r)?,
            membership_id: get_id(r)?,
            membership: Membership::get(r)?,
        })
    }
}

fn begin(kind: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put_u8(&mut out, MESSAGE_VERSION);
    put_u8(&mut out, kind);
    put_u32(&mut out, GROUP);
    out
}

/// The kind and the body.
fn split<'a>(what: &'static str, bytes: &'a [u8]) -> Result<(u8, &'a [u8]), DecodeError> {
    let error = |detail| DecodeError { what, detail };
    let mut r = Reader::new(bytes);
    let version = r.u8().ok_or(error("no byte"))?;
    if version != MESSAGE_VERSION {
        return Err(error("its version is not known to this build"));
    }
    let (kind, group) = r
        .u8()
        .zip(r.u32())
        .ok_or(error("the header is cut short"))?;
    if group != GROUP {
        return Err(error("the group is not known"));
    }
    Ok((kind, r.rest()))
}

impl Request {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Append(append) => {
                let mut out = begin(1);
                append.vote.put(&mut out);
                put_id(&mut out, &append.previous);
                put_id(&mut out, &append.committed);
                put_varint_u64(&mut out, append.entries.len() as u64);
                for entry in &append.entries {
                    let (header, body) = entry.encode();
                    put_varint_u64(&mut out, (header.len() + body.len()) as u64);
                    out.extend_from_slice(&header);
                    out.extend_from_slice(&body);
                }
                out
            }
            Self::Vote(request) => {
                let mut out = begin(2);
                request.put(&mut out);
                out
            }
            Self::PreVote(request) => {
                let mut out = begin(3);
                request.put(&mut out);
                out
            }
            Self::Transfer(request) => {
                let mut out = begin(4);
                request.from.put(&mut out);
                put_varint_u64(&mut out, request.to);
                put_id(&mut out, &request.last);
                out
            }
            Self::ReadIndex => begin(5),
            Self::Propose(writes) => {
                let mut out = begin(6);
                put_varint_u64(&mut out, writes.len() as u64);
                for write in writes {
                    put_bytes(&mut out, write.as_bytes());
                }
                out
            }
            Self::SnapshotOffer { vote, meta, files } => {
                let mut out = begin(7);
                vote.put(&mut out);
                meta.put(&mut out);
                put_varint_u64(&mut out, files.len() as u64);
                for file in files {
                    put_text(&mut out, &file.name);
                    put_varint_u64(&mut out, file.bytes);
                    put_u64(&mut out, file.checksum);
                }
                out
            }
            Self::SnapshotChunk(chunk) => {
                let mut out = begin(8);
                put_id(&mut out, &chunk.last);
                put_varint_u32(&mut out, chunk.file);
                put_varint_u64(&mut out, chunk.offset);
                put_u32(&mut out, chunk.crc);
                put_bytes(&mut out, &chunk.bytes);
                out
            }
            Self::SnapshotInstall { vote, last } => {
                let mut out = begin(9);
                vote.put(&mut out);
                put_id(&mut out, last);
                out
            }
            Self::View(asked) => {
                let mut out = begin(10);
                put_varint_u32(&mut out, asked.namespace.0);
                put_range(&mut out, &asked.range);
                put_varint_u64(&mut out, asked.at_least.0);
                out
            }
        }
    }

    /// Reads a request. Entries, writes and chunks stay parts of `bytes`. Writes are checked, the
    /// commands of entries are not: their leader did.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        const WHAT: &str = "request";
        let (kind, body) = split(WHAT, bytes)?;
        match kind {
            1 => decode_append(bytes, body).map(Self::Append),
            2 => decode_all(WHAT, body, VoteRequest::get).map(Self::Vote),
            3 => decode_all(WHAT, body, VoteRequest::get).map(Self::PreVote),
            4 => decode_all(WHAT, body, |r| {
                Some(Self::Transfer(TransferRequest {
                    from: Vote::get(r)?,
                    to: r.varint_u64()?,
                    last: get_id(r)?,
                }))
            }),
            5 => decode_all(WHAT, body, |_| Some(Self::ReadIndex)),
            6 => {
                let parts = decode_all(WHAT, body, |r| {
                    let mut parts = Vec::new();
                    for _ in 0..r.varint_u64()? {
                        parts.push(slice_of(bytes, r.bytes()?));
                    }
                    Some(parts)
                })?;
                let writes: Result<_, _> = parts.into_iter().map(Write::from_bytes).collect();
                Ok(Self::Propose(writes?))
            }
            7 => decode_all(WHAT, body, |r| {
                let (vote, meta) = (Vote::get(r)?, SnapshotMeta::get(r)?);
                let mut files = Vec::new();
                for _ in 0..r.varint_u64().filter(|&n| n <= MAX_SNAPSHOT_FILES as u64)? {
                    files.push(SnapshotFile {
                        name: get_text(r, MAX_FILE_NAME_BYTES)?,
                        bytes: r.varint_u64()?,
                        checksum: r.u64()?,
                    });
                }
                Some(Self::SnapshotOffer { vote, meta, files })
            }),
            8 => decode_all(WHAT, body, |r| {
                Some(Self::SnapshotChunk(SnapshotChunk {
                    last: get_id(r)?,
                    file: r.varint_u32()?,
                    offset: r.varint_u64()?,
                    crc: r.u32()?,
                    bytes: r
                        .bytes()
                        .filter(|bytes| bytes.len() <= MAX_CHUNK_BYTES)
                        .map(|part| slice_of(bytes, part))?,
                }))
            }),
            9 => decode_all(WHAT, body, |r| {
                Some(Self::SnapshotInstall {
                    vote: Vote::get(r)?,
                    last: get_id(r)?,
                })
            }),
            10 => decode_all(WHAT, body, |r| {
                Some(Self::View(ViewRequest {
                    namespace: NamespaceId(r.varint_u32()?),
                    range: get_range(r)?,
                    at_least: SeqNo(r.varint_u64()?),
                }))
            }),
            _ => Err(DecodeError {
                what: WHAT,
                detail: "its kind is not known to this build",
            }),
        }
    }
}

fn decode_append(bytes: &Bytes, body: &[u8]) -> Result<AppendRequest, DecodeError> {
    let mut parts = Vec::new();
    let mut append = decode_all("append request", body, |r| {
        let append = AppendRequest {
            vote: Vote::get(r)?,
            previous: get_id(r)?,
            committed: get_id(r)?,
            entries: Vec::new(),
        };
        for _ in 0..r.varint_u64()? {
            parts.push(slice_of(bytes, r.bytes()?));
        }
        Some(append)
    })?;
    let mut next = append.previous.map(|id| id.index + 1);
    for part in &parts {
        let entry = Entry::decode(part)?;
        if next.is_some_and(|next| entry.id.index != next) {
            return Err(DecodeError {
                what: "append request",
                detail: "its entries do not follow each other",
            });
        }
        next = Some(entry.id.index + 1);
        append.entries.push(entry);
    }
    Ok(append)
}

impl Answer {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Append(answer) => {
                let mut out = begin(1);
                match answer {
                    AppendAnswer::Taken => put_u8(&mut out, 0),
                    AppendAnswer::TakenUpTo(id) => {
                        put_u8(&mut out, 1);
                        put_id(&mut out, id);
                    }
                    AppendAnswer::Conflict => put_u8(&mut out, 2),
                    AppendAnswer::HigherVote(vote) => {
                        put_u8(&mut out, 3);
                        vote.put(&mut out);
                    }
                }
                out
            }
            Self::Vote(answer) => {
                let mut out = begin(2);
                answer.vote.put(&mut out);
                put_bool(&mut out, answer.granted);
                put_id(&mut out, &answer.last);
                out
            }
            Self::Transfer(answer) => {
                let mut out = begin(3);
                match answer {
                    TransferAnswer::Begun => put_u8(&mut out, 0),
                    TransferAnswer::VoteChanged(vote) => {
                        put_u8(&mut out, 1);
                        vote.put(&mut out);
                    }
                    TransferAnswer::LogTooShort(id) => {
                        put_u8(&mut out, 2);
                        put_id(&mut out, id);
                    }
                }
                out
            }
            Self::ReadIndex(index) => {
                let mut out = begin(4);
                put_varint_u64(&mut out, *index);
                out
            }
            Self::Propose(id, outcomes) => {
                let mut out = begin(5);
                id.put(&mut out);
                put_varint_u64(&mut out, outcomes.len() as u64);
                for outcome in outcomes {
                    put_outcome(&mut out, outcome);
                }
                out
            }
            Self::SnapshotHave(bytes) => {
                let mut out = begin(6);
                put_varint_u64(&mut out, bytes.len() as u64);
                for &bytes in bytes {
                    put_varint_u64(&mut out, bytes);
                }
                out
            }
            Self::ChunkTaken => begin(7),
            Self::Installed(vote) => {
                let mut out = begin(8);
                vote.put(&mut out);
                out
            }
            Self::Refused(refusal) => {
                let mut out = begin(9);
                match refusal {
                    Refusal::NotLeader(leader) => {
                        put_u8(&mut out, 1);
                        put_option(&mut out, leader.as_ref(), |out, &id| {
                            put_varint_u64(out, id);
                        });
                    }
                    Refusal::NoQuorum => put_u8(&mut out, 2),
                    Refusal::Unknown(text) => {
                        put_u8(&mut out, 3);
                        put_text(&mut out, text);
                    }
                    Refusal::Overloaded => put_u8(&mut out, 4),
                    Refusal::Malformed(text) => {
                        put_u8(&mut out, 5);
                        put_text(&mut out, text);
                    }
                    Refusal::Failed(text) => {
                        put_u8(&mut out, 6);
                        put_text(&mut out, text);
                    }
                }
                out
            }
            Self::View(view) => {
                let mut out = begin(10);
                put_option(&mut out, view.as_ref(), put_view);
                out
            }
        }
    }

    /// Reads an answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "answer";
        const MAX_TEXT_BYTES: usize = 1 << 16;
        let (kind, body) = split(WHAT, bytes)?;
        decode_all(WHAT, body, |r| {
            Some(match kind {
                1 => Self::Append(match r.u8()? {
                    0 => AppendAnswer::Taken,
                    1 => AppendAnswer::TakenUpTo(get_id(r)?),
                    2 => AppendAnswer::Conflict,
                    3 => AppendAnswer::HigherVote(Vote::get(r)?),
                    _ => return None,
                }),
                2 => Self::Vote(VoteAnswer {
                    vote: Vote::get(r)?,
                    granted: get_bool(r)?,
                    last: get_id(r)?,
                }),
                3 => Self::Transfer(match r.u8()? {
                    0 => TransferAnswer::Begun,
                    1 => TransferAnswer::VoteChanged(Vote::get(r)?),
                    2 => TransferAnswer::LogTooShort(get_id(r)?),
                    _ => return None,
                }),
                4 => Self::ReadIndex(r.varint_u64()?),
                5 => {
                    let id = LogId::get(r)?;
                    let mut outcomes = Vec::new();
                    for _ in 0..r.varint_u64()? {
                        outcomes.push(get_outcome(r)?);
                    }
                    Self::Propose(id, outcomes)
                }
                6 => {
                    let mut have = Vec::new();
                    for _ in 0..r.varint_u64()? {
                        have.push(r.varint_u64()?);
                    }
                    Self::SnapshotHave(have)
                }
                7 => Self::ChunkTaken,
                8 => Self::Installed(Vote::get(r)?),
                9 => Self::Refused(match r.u8()? {
                    1 => Refusal::NotLeader(get_option(r, |r| r.varint_u64())?),
                    2 => Refusal::NoQuorum,
                    3 => Refusal::Unknown(get_text(r, MAX_TEXT_BYTES)?),
                    4 => Refusal::Overloaded,
                    5 => Refusal::Malformed(get_text(r, MAX_TEXT_BYTES)?),
                    6 => Refusal::Failed(get_text(r, MAX_TEXT_BYTES)?),
                    _ => return None,
                }),
                10 => Self::View(get_option(r, get_view)?),
                _ => return None,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;
    use crate::command::tests::{any_outcome, any_write};
    use crate::types::tests::{any_entry, any_log_id, any_membership, any_vote};

    fn any_append() -> impl Strategy<Value = AppendRequest> {
        (
            any_vote(),
            of(any_log_id()),
            vec(any_entry(), 0..4),
            0..1000_u64,
        )
            .prop_map(|(vote, committed, mut entries, first)| {
                for (at, entry) in entries.iter_mut().enumerate() {
                    entry.id.index = first + at as u64;
                }
                let previous = first.checked_sub(1).map(|index| LogId { term: 1, index });
                AppendRequest {
                    vote,
                    previous,
                    committed,
                    entries,
                }
            })
    }

    fn any_vote_request() -> impl Strategy<Value = VoteRequest> {
        (any_vote(), of(any_log_id()), any::<bool>()).prop_map(|(vote, last, transfer)| {
            VoteRequest {
                vote,
                last,
                transfer,
            }
        })
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let meta = (of(any_log_id()), of(any_log_id()), any_membership()).prop_map(
            |(last, membership_id, membership)| SnapshotMeta {
                last,
                membership_id,
                membership,
            },
        );
        let file =
            ("[a-z0-9.]{1,20}", any::<u64>(), any::<u64>()).prop_map(|(name, bytes, checksum)| {
                SnapshotFile {
                    name,
                    bytes,
                    checksum,
                }
            });
        prop_oneof![
            any_append().prop_map(Request::Append),
            any_vote_request().prop_map(Request::Vote),
            any_vote_request().prop_map(Request::PreVote),
            (any_vote(), any::<u64>(), of(any_log_id()))
                .prop_map(|(from, to, last)| Request::Transfer(TransferRequest { from, to, last })),
            Just(Request::ReadIndex),
            vec(any_write(), 0..4).prop_map(Request::Propose),
            (any_vote(), meta, vec(file, 0..4))
                .prop_map(|(vote, meta, files)| Request::SnapshotOffer { vote, meta, files }),
            (
                of(any_log_id()),
                any::<u32>(),
                any::<u64>(),
                vec(any::<u8>(), 0..20)
            )
                .prop_map(|(last, file, offset, bytes)| Request::SnapshotChunk(
                    SnapshotChunk {
                        last,
                        file,
                        offset,
                        crc: 7,
                        bytes: bytes.into(),
                    }
                )),
            (any_vote(), of(any_log_id()))
                .prop_map(|(vote, last)| Request::SnapshotInstall { vote, last }),
            (any::<u32>(), any_range(), any::<u64>()).prop_map(|(namespace, range, at_least)| {
                Request::View(ViewRequest {
                    namespace: NamespaceId(namespace),
                    range,
                    at_least: SeqNo(at_least),
                })
            }),
        ]
    }

    fn any_key() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..5)
    }

    fn any_range() -> impl Strategy<Value = KeyRange> {
        (any_key(), of(any_key()), any::<bool>()).prop_map(|(start, end, end_exclusive)| KeyRange {
            start,
            end,
            end_exclusive,
        })
    }

    fn any_view() -> impl Strategy<Value = RangeView> {
        let entry = (any_key(), any::<u64>(), of(any::<u64>()), any_key());
        let entry = entry.prop_map(|(key, version, expires_at_ms, value)| ViewEntry {
            key,
            version: SeqNo(version),
            expires_at_ms,
            value,
        });
        let at = (any::<u64>(), any::<u64>());
        let view = (any_range(), at, vec(entry, 0..4), of(any_key()));
        view.prop_map(|(range, (seqno, time_ms), entries, next)| RangeView {
            range,
            seqno: SeqNo(seqno),
            time_ms,
            entries,
            next,
        })
    }

    fn any_answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            of(any_log_id()).prop_map(|id| Answer::Append(AppendAnswer::TakenUpTo(id))),
            any_vote().prop_map(|vote| Answer::Append(AppendAnswer::HigherVote(vote))),
            Just(Answer::Append(AppendAnswer::Taken)),
            Just(Answer::Append(AppendAnswer::Conflict)),
            (any_vote(), any::<bool>(), of(any_log_id())).prop_map(|(vote, granted, last)| {
                Answer::Vote(VoteAnswer {
                    vote,
                    granted,
                    last,
                })
            }),
            Just(Answer::Transfer(TransferAnswer::Begun)),
            any_vote().prop_map(|vote| Answer::Transfer(TransferAnswer::VoteChanged(vote))),
            of(any_log_id()).prop_map(|id| Answer::Transfer(TransferAnswer::LogTooShort(id))),
            any::<u64>().prop_map(Answer::ReadIndex),
            (any_log_id(), vec(any_outcome(), 0..5))
                .prop_map(|(id, outcomes)| Answer::Propose(id, outcomes)),
            vec(any::<u64>(), 0..5).prop_map(Answer::SnapshotHave),
            Just(Answer::ChunkTaken),
            any_vote().prop_map(Answer::Installed),
            of(any::<u64>()).prop_map(|id| Answer::Refused(Refusal::NotLeader(id))),
            Just(Answer::Refused(Refusal::NoQuorum)),
            Just(Answer::Refused(Refusal::Overloaded)),
            ".{0,9}".prop_map(|text| Answer::Refused(Refusal::Unknown(text))),
            ".{0,9}".prop_map(|text| Answer::Refused(Refusal::Malformed(text))),
            ".{0,9}".prop_map(|text| Answer::Refused(Refusal::Failed(text))),
            of(any_view()).prop_map(Answer::View),
        ]
    }

    #[test]
    fn golden_bytes() {
        let vote = Vote {
            term: 3,
            node: 2,
            committed: true,
        };
        let request = Request::Vote(VoteRequest {
            vote,
            last: Some(LogId {
                term: 1,
                index: 200,
            }),
            transfer: false,
        });
        let want = [1, 2, 0, 0, 0, 0, 3, 2, 1, 1, 1, 0xc8, 1, 0];
        assert_eq!(request.encode(), want);
        let answer = Answer::Append(AppendAnswer::HigherVote(vote));
        assert_eq!(answer.encode(), [1, 1, 0, 0, 0, 0, 3, 3, 2, 1]);
        let range = KeyRange {
            start: b"a".to_vec(),
            end: Some(b"b".to_vec()),
            end_exclusive: true,
        };
        let request = Request::View(ViewRequest {
            namespace: NamespaceId(1),
            range: range.clone(),
            at_least: SeqNo(200),
        });
        let want = b"\x01\x0a\0\0\0\0\x01\x01a\x01\x01b\x01\xc8\x01";
        assert_eq!(request.encode(), want);
        let view = RangeView {
            range,
            seqno: SeqNo(201),
            time_ms: 9,
            entries: vec![ViewEntry {
                key: b"ab".to_vec(),
                version: SeqNo(7),
                expires_at_ms: Some(5),
                value: b"v".to_vec(),
            }],
            next: None,
        };
        let want =
            b"\x01\x0a\0\0\0\0\x01\x01a\x01\x01b\x01\xc9\x01\x09\0\x01\x02ab\x07\x01\x05\x01v";
        assert_eq!(Answer::View(Some(view)).encode(), want);
    }

    /// The seeds of the fuzz targets, which were made after `docs/file-format.md` and not with the
    /// encoders.
    #[test]
    fn what_others_write_after_the_page_is_taken() {
        macro_rules! seed {
            ($name:literal) => {
                include_bytes!(concat!("../../../fuzz/corpus/", $name)).as_slice()
            };
        }
        for bytes in [
            seed!("replica_message/append"),
            seed!("replica_message/vote"),
            seed!("replica_message/read_index"),
        ] {
            let request = Request::decode(&Bytes::from_static(bytes)).unwrap();
            assert_eq!(request.encode(), bytes);
        }
        for bytes in [
            seed!("replica_message/higher"),
            seed!("replica_message/done"),
        ] {
            assert_eq!(Answer::decode(bytes).unwrap().encode(), bytes);
        }
        let command = crate::command::Command::decode(seed!("replica_command/two")).unwrap();
        assert_eq!(command.with_changes(|changes| changes.len()), Ok(2));
        let entry = Bytes::from_static(seed!("replica_entry/members"));
        assert_eq!(Entry::decode(&entry).unwrap().to_bytes(), entry);
    }

    #[test]
    fn entries_with_a_gap_are_refused() {
        let blank = |index| Entry {
            id: LogId { term: 1, index },
            payload: crate::types::Payload::Blank,
        };
        let append = |previous, entries| {
            let vote = Vote {
                term: 1,
                node: 1,
                committed: true,
            };
            let request = Request::Append(AppendRequest {
                vote,
                previous,
                committed: None,
                entries,
            });
            Request::decode(&request.encode().into())
        };
        assert!(append(None, vec![blank(0), blank(1)]).is_ok());
        assert!(append(None, vec![blank(0), blank(2)]).is_err());
        assert!(append(Some(LogId { term: 1, index: 4 }), vec![blank(6)]).is_err());
    }

    proptest! {
        #[test]
        fn requests_are_decoded_as_encoded(request in any_request()) {
            prop_assert_eq!(Request::decode(&request.encode().into()), Ok(request));
        }

        #[test]
        fn answers_are_decoded_as_encoded(answer in any_answer()) {
            prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }

        #[test]
        fn no_bytes_panic(mut bytes in vec(any::<u8>(), 0..80), kind in 0..12_u8) {
            for _ in 0..2 {
                let _ = Request::decode(&bytes.clone().into());
                let _ = Answer::decode(&bytes);
                if bytes.len() > 6 {
                    bytes[..6].copy_from_slice(&[1, kind, 0, 0, 0, 0]);
                }
            }
        }

        #[test]
        fn no_flipped_bit_panics(request in any_request(), at: usize, bit in 0..8) {
            let mut bytes = request.encode();
            let at = at % bytes.len();
            bytes[at] ^= 1_u8 << bit;
            let _ = Request::decode(&bytes.into());
        }
    }
}
