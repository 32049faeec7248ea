//! Votes, log ids, memberships and log entries: ours, in memory, on disk and between nodes.
//!
//! ```text
//! log id      term varint | index varint
//! vote        term varint | node varint | committed u8
//! membership  n varint (at most 2), n times: set | m varint, m times: node varint | member
//! member      address bytes | http bytes | resp bytes
//! set         n varint, n times: node varint, ascending
//! entry       version u8 (1) | kind u8 | group u32 | term u64 | index u64 | body (the rest)
//!             kind 0: nothing; 1: a command (see `command`); 2: a membership
//! ```
//!
//! An entry has these bytes in the log and in messages alike: it is encoded once, by the leader.
//! **Stored on disk and sent: kinds are never changed or used again.**
//!
//! A membership has one set of voters, or two while it changes from one to the other: then a
//! majority of each is needed. Nodes that are in no set are learners. An empty membership, without
//! sets, is that of a node that was not started yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use firn_io::codec::{Reader, put_bytes, put_u8, put_u32, put_u64, put_varint_u64};

use crate::codec::{DecodeError, decode_all, get_bool, put_bool};

/// The number of a node. It is given once: a node that lost its disk comes back under a new one.
pub type NodeId = u64;

/// The replicated log that entries belong to. There is one so far, number 0; files and messages name
/// it from the start.
pub const GROUP: u32 = 0;

/// Longest address of a node, each, in bytes.
pub const MAX_ADDRESS_BYTES: usize = 255;
/// Most nodes of a cluster, voters and learners.
pub const MAX_NODES: usize = 64;
/// The version of entries that this build writes and reads.
pub const ENTRY_VERSION: u8 = 1;
/// Bytes of an entry before its body.
pub const ENTRY_HEADER_BYTES: usize = 22;

/// The place of an entry: under which leader it was made, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// Of its leader. There is at most one in a term.
    pub term: u64,
    /// Counts from 0, without gaps.
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

impl LogId {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint_u64(out, self.term);
        put_varint_u64(out, self.index);
    }

    pub(crate) fn get(r: &mut Reader<'_>) -> Option<Self> {
        let (term, index) = (r.varint_u64()?, r.varint_u64()?);
        // So that the next index is a number too.
        (index < u64::MAX).then_some(Self { term, index })
    }
}

/// Whom a node follows: it voted for `node` in `term`, or knows that a majority did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// The candidate or leader.
    pub node: NodeId,
    /// It is the leader: a majority voted for it.
    pub committed: bool,
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.committed {
            "leader"
        } else {
            "candidate"
        };
        write!(f, "term {}, {role} {}", self.term, self.node)
    }
}

impl Vote {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint_u64(out, self.term);
        put_varint_u64(out, self.node);
        put_bool(out, self.committed);
    }

    pub(crate) fn get(r: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            term: r.varint_u64()?,
            node: r.varint_u64()?,
            committed: get_bool(r)?,
        })
    }
}

/// What the members know of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Where it listens for the others.
    pub address: String,
    /// Where clients reach it by HTTP; empty: not known.
    pub http: String,
    /// Where clients reach it by RESP; empty: nowhere.
    pub resp: String,
}

impl Member {
    fn put(&self, out: &mut Vec<u8>) {
        for text in [&self.address, &self.http, &self.resp] {
            put_bytes(out, text.as_bytes());
        }
    }

    fn get(r: &mut Reader<'_>) -> Option<Self> {
        let mut text = || {
            let bytes = r.bytes().filter(|bytes| bytes.len() <= MAX_ADDRESS_BYTES)?;
            Some(str::from_utf8(bytes).ok()?.to_owned())
        };
        Some(Self {
            address: text()?,
            http: text()?,
            resp: text()?,
        })
    }
}

/// Who belongs to the cluster; see the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The sets of voters.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// All nodes, voters and learners.
    pub nodes: BTreeMap<NodeId, Member>,
}

impl Membership {
    /// Whether a node has a vote.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.iter().any(|set| set.contains(&node))
    }

    /// The nodes without a vote.
    pub fn learners(&self) -> impl Iterator<Item = NodeId> {
        let ids = self.nodes.keys().copied();
        ids.filter(|&id| !self.is_voter(id))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint_u64(out, self.voters.len() as u64);
        for set in &self.voters {
            put_varint_u64(out, set.len() as u64);
            set.iter().for_each(|&id| put_varint_u64(out, id));
        }
        put_varint_u64(out, self.nodes.len() as u64);
        for (&id, member) in &self.nodes {
            put_varint_u64(out, id);
            member.put(out);
        }
    }

    pub(crate) fn get(r: &mut Reader<'_>) -> Option<Self> {
        let mut membership = Self::default();
        let sets = r.varint_u64().filter(|&count| count <= 2)?;
        let few = |count: &u64| *count <= MAX_NODES as u64;
        for _ in 0..sets {
            let mut set = BTreeSet::new();
            for _ in 0..r.varint_u64().filter(few)? {
                let id = r.varint_u64()?;
                if set.last().is_some_and(|&last| last >= id) {
                    return None;
                }
                set.insert(id);
            }
            if set.is_empty() {
                return None;
            }
            membership.voters.push(set);
        }
        for _ in 0..r.varint_u64().filter(few)? {
            let id = r.varint_u64()?;
            let member = Member::get(r)?;
            let last = membership.nodes.last_key_value();
            if last.is_some_and(|(&last, _)| last >= id) {
                return None;
            }
            membership.nodes.insert(id, member);
        }
        let known = |id| membership.nodes.contains_key(id);
        membership
            .voters
            .iter()
            .flatten()
            .all(known)
            .then_some(membership)
    }
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a new leader begins its term with it.
    Blank,
    /// Writes of clients: an encoded [`Command`](crate::command::Command).
    Command(Bytes),
    /// From here on this is the membership.
    Membership(Membership),
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub id: LogId,
    /// What it says.
    pub payload: Payload,
}

const KIND_BLANK: u8 = 0;
const KIND_COMMAND: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;

impl Entry {
    /// The bytes: the header, and the body. A command's body is shared, not copied.
    pub fn encode(&self) -> ([u8; ENTRY_HEADER_BYTES], Bytes) {
        let (kind, body) = match &self.payload {
            Payload::Blank => (KIND_BLANK, Bytes::new()),
            Payload::Command(bytes) => (KIND_COMMAND, bytes.clone()),
            Payload::Membership(membership) => {
                let mut out = Vec::new();
                membership.put(&mut out);
                (KIND_MEMBERSHIP, out.into())
            }
        };
        let mut header = Vec::with_capacity(ENTRY_HEADER_BYTES);
        put_u8(&mut header, ENTRY_VERSION);
        put_u8(&mut header, kind);
        put_u32(&mut header, GROUP);
        put_u64(&mut header, self.id.term);
        put_u64(&mut header, self.id.index);
        let mut fixed = [0; ENTRY_HEADER_BYTES];
        fixed.copy_from_slice(&header);
        (fixed, body)
    }

    /// The bytes in one piece.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (header, body) = self.encode();
        [&header[..], &body].concat()
    }

    /// Reads an entry; it takes all of `bytes`, of which a command's body stays a part. The body of
    /// a command is not looked at.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let error = |detail| DecodeError {
            what: "entry",
            detail,
        };
        let mut r = Reader::new(bytes);
        match r.u8() {
            Some(ENTRY_VERSION) => {}
            Some(_) => return Err(error("its version is not known to this build")),
            None => return Err(error("no byte")),
        }
        let header = r.u8().zip(r.u32()).zip(r.u64()).zip(r.u64());
        let Some((((kind, group), term), index)) = header else {
            return Err(error("the header is cut short"));
        };
        if group != GROUP {
            return Err(error("it belongs to another group"));
        }
        if index == u64::MAX {
            return Err(error("the index is out of range"));
        }
        let body = bytes.slice(ENTRY_HEADER_BYTES..);
        let payload = match kind {
            KIND_BLANK if body.is_empty() => Payload::Blank,
            KIND_BLANK => return Err(error("a blank one with a body")),
            KIND_COMMAND => Payload::Command(body),
            KIND_MEMBERSHIP => {
                Payload::Membership(decode_all("membership", &body, Membership::get)?)
            }
            _ => return Err(error("its kind is not known to this build")),
        };
        let id = LogId { term, index };
        Ok(Self { id, payload })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn any_log_id() -> impl Strategy<Value = LogId> {
        (any::<u64>(), 0..u64::MAX).prop_map(|(term, index)| LogId { term, index })
    }

    pub(crate) fn any_vote() -> impl Strategy<Value = Vote> {
        (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| Vote {
            term,
            node,
            committed,
        })
    }

    pub(crate) fn any_membership() -> impl Strategy<Value = Membership> {
        let texts = (".{0,20}", ".{0,20}", ".{0,20}");
        let member = texts.prop_map(|(address, http, resp)| Member {
            address,
            http,
            resp,
        });
        let nodes = btree_map(any::<u64>(), member, 1..6);
        (nodes, vec(btree_set(0..6_usize, 1..4), 0..3)).prop_map(|(nodes, sets)| {
            let ids: Vec<NodeId> = nodes.keys().copied().collect();
            let pick = |at: usize| ids[at % ids.len()];
            let voters = sets.into_iter();
            Membership {
                voters: voters
                    .map(|set| set.into_iter().map(pick).collect())
                    .collect(),
                nodes,
            }
        })
    }

    pub(crate) fn any_entry() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(Payload::Blank),
            vec(any::<u8>(), 0..40).prop_map(|bytes| Payload::Command(bytes.into())),
            any_membership().prop_map(Payload::Membership),
        ];
        (any_log_id(), payload).prop_map(|(id, payload)| Entry { id, payload })
    }

    #[test]
    fn golden_bytes() {
        let membership = Membership {
            voters: vec![BTreeSet::from([1, 300])],
            nodes: [(1, "a:1", "h:3"), (300, "b:2", "")]
                .map(|(id, address, http)| {
                    let member = Member {
                        address: address.to_owned(),
                        http: http.to_owned(),
                        resp: String::new(),
                    };
                    (id, member)
                })
                .into(),
        };
        let entry = Entry {
            id: LogId { term: 2, index: 9 },
            payload: Payload::Membership(membership),
        };
        #[rustfmt::skip]
        let want: &[&[u8]] = &[
            &[1, 2, 0, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0], &[9, 0, 0, 0, 0, 0, 0, 0],
            &[1, 2, 1, 0xac, 2], &[2, 1, 3], b"a:1", &[3], b"h:3", &[0], &[0xac, 2, 3], b"b:2",
            &[0, 0],
        ];
        assert_eq!(entry.to_bytes(), want.concat());
        let blank = Entry {
            id: LogId { term: 1, index: 0 },
            payload: Payload::Blank,
        };
        let mut want = vec![0; ENTRY_HEADER_BYTES];
        (want[0], want[6]) = (1, 1);
        assert_eq!(blank.to_bytes(), want);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let entry = Entry {
            id: LogId { term: 1, index: 0 },
            payload: Payload::Blank,
        };
        let good = entry.to_bytes();
        for (at, byte) in [(0, 2), (1, 3), (2, 1)] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            assert!(Entry::decode(&bytes.into()).is_err(), "byte {at}");
        }
        let with_body = [&good[..], &[0]].concat();
        assert!(Entry::decode(&with_body.into()).is_err());
        // A voter that is no node; sets in disorder; three sets.
        for bytes in [&[1, 1, 7, 0][..], &[1, 2, 7, 7, 1, 7, 0], &[3, 0, 0]] {
            assert!(decode_all("membership", bytes, Membership::get).is_err());
        }
    }

    proptest! {
        #[test]
        fn entries_are_decoded_as_encoded(entry in any_entry()) {
            prop_assert_eq!(Entry::decode(&entry.to_bytes().into()), Ok(entry));
        }

        #[test]
        fn votes_and_ids_are_decoded_as_encoded(vote in any_vote(), id in any_log_id()) {
            let mut out = Vec::new();
            vote.put(&mut out);
            prop_assert_eq!(decode_all("vote", &out, Vote::get), Ok(vote));
            out.clear();
            id.put(&mut out);
            prop_assert_eq!(decode_all("log id", &out, LogId::get), Ok(id));
        }

        #[test]
        fn no_bytes_panic(mut bytes in vec(any::<u8>(), 0..80), kind in 0..4_u8) {
            let _ = Entry::decode(&bytes.clone().into());
            if bytes.len() > 6 {
                bytes[..6].copy_from_slice(&[1, kind, 0, 0, 0, 0]);
            }
            if let Ok(entry) = Entry::decode(&bytes.clone().into()) {
                // What is taken has one form only, but for varints that are longer than they must be.
                prop_assert_eq!(Entry::decode(&entry.to_bytes().into()), Ok(entry));
            }
        }
    }
}
