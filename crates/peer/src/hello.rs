//! The first words of a connection: who calls whom, and whether they may talk.
//!
//! ```text
//! hello     "FIRNPEER" | min u16 | max u16 | class u8 | cluster 16 bytes
//!           | from u64 | from's incarnation u64 | to u64
//! welcome   version u16 | cluster 16 bytes | node u64 | its incarnation u64
//!           | window u64 | requests u32
//! refusal   code u8 | text (UTF-8, at most 1024 bytes)
//! ```
//!
//! These are the bodies of the frames of these kinds (see [`crate::frame`]); their layout is the same in
//! every version of the protocol. The caller says which versions it speaks, the other side picks the
//! newest that both do. *Window* is how many bytes of requests, *requests* how many of them may be
//! without an answer; see the module `incoming`.

use std::fmt;
use std::str::FromStr;

use firn_io::codec::{Reader, put_u8, put_u16, put_u32, put_u64};
use firn_replica::NodeId;
use firn_replica::transport::Class;

const MAGIC: &[u8; 8] = b"FIRNPEER";
/// The oldest version of the protocol that this build speaks.
pub const MIN_VERSION: u16 = 1;
/// The newest.
pub const MAX_VERSION: u16 = 1;
/// Longest body of any of the three.
pub const MAX_HELLO_BYTES: usize = 2048;
const MAX_TEXT_BYTES: usize = 1024;

/// Which cluster: drawn when it is made, the same on all of its nodes. Nodes of different clusters do
/// not talk, whatever their addresses say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no id of a cluster: 32 hexadecimal digits");
        let is_hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hex {
            return Err(wrong());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| wrong())?;
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (number >> (120 - 8 * i)) as u8;
        }
        Ok(Self(bytes))
    }
}

/// The number of a class, in hellos and as `stream` of frames.
pub(crate) fn class_code(class: Class) -> u8 {
    match class {
        Class::Urgent => 1,
        Class::Log => 2,
        Class::Bulk => 3,
    }
}

fn class_from_code(code: u8) -> Option<Class> {
    Some(match code {
        1 => Class::Urgent,
        2 => Class::Log,
        3 => Class::Bulk,
        _ => return None,
    })
}

/// Who calls, and whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version of the protocol that the caller speaks.
    pub min: u16,
    /// The newest.
    pub max: u16,
    /// What the connection is for.
    pub class: Class,
    /// The caller's cluster.
    pub cluster: ClusterId,
    /// The caller.
    pub from: NodeId,
    /// Its incarnation.
    pub incarnation: u64,
    /// Whom it believes it is talking to.
    pub to: NodeId,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that is spoken from here on.
    pub version: u16,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Who.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: u64,
    /// Bytes of requests that may be without an answer.
    pub window: u64,
    /// Requests that may be without an answer.
    pub requests: u32,
}

/// Why they may not talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which reason.
    pub reason: Reason,
    /// In words, for the caller's operator.
    pub text: String,
}

/// Reasons of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No version of the protocol is common.
    Version,
    /// They belong to different clusters.
    Cluster,
    /// The caller wanted somebody else.
    Node,
    /// The caller has the number of a node that was another one.
    Incarnation,
    /// There are too many connections.
    Busy,
    /// What was said makes no sense.
    Malformed,
    /// The caller says so: another node answers than it wanted.
    Welcome,
    /// A reason that this build does not know.
    Other(u8),
}

impl Reason {
    fn code(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::Cluster => 2,
            Self::Node => 3,
            Self::Incarnation => 4,
            Self::Busy => 5,
            Self::Malformed => 6,
            Self::Welcome => 7,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Version,
            2 => Self::Cluster,
            3 => Self::Node,
            4 => Self::Incarnation,
            5 => Self::Busy,
            6 => Self::Malformed,
            7 => Self::Welcome,
            code => Self::Other(code),
        }
    }
}

impl Refusal {
    pub(crate) fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }

    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        put_u8(&mut out, self.reason.code());
        let mut end = self.text.len().min(MAX_TEXT_BYTES);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        out.extend_from_slice(&self.text.as_bytes()[..end]);
        out
    }

    /// Reads the bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&code, text) = bytes.split_first()?;
        let text = Some(text).filter(|text| text.len() <= MAX_TEXT_BYTES)?;
        Some(Self {
            reason: Reason::from_code(code),
            text: str::from_utf8(text).ok()?.to_owned(),
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It goes into logs: no line of theirs may look like one of ours.
        let shown = self.text.chars().filter(|c| !c.is_control());
        f.write_str(&shown.collect::<String>())
    }
}

impl Hello {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_u16(&mut out, self.min);
        put_u16(&mut out, self.max);
        put_u8(&mut out, class_code(self.class));
        out.extend_from_slice(&self.cluster.0);
        put_u64(&mut out, self.from);
        put_u64(&mut out, self.incarnation);
        put_u64(&mut out, self.to);
        out
    }

    /// Reads the bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        if r.array::<8>()? != *MAGIC {
            return None;
        }
        let hello = Self {
            min: r.u16()?,
            max: r.u16()?,
            class: class_from_code(r.u8()?)?,
            cluster: ClusterId(r.array()?),
            from: r.u64()?,
            incarnation: r.u64()?,
            to: r.u64()?,
        };
        (r.is_empty() && hello.min <= hello.max).then_some(hello)
    }

    /// The version that this build and the caller speak.
    ///
    /// # Errors
    /// There is none.
    pub fn version(&self) -> Result<u16, Refusal> {
        let version = self.max.min(MAX_VERSION);
        if version < self.min.max(MIN_VERSION) {
            let text = format!(
                "the caller speaks versions {} to {} of the protocol, this node {MIN_VERSION} to \
                 {MAX_VERSION}",
                self.min, self.max
            );
            return Err(Refusal::new(Reason::Version, text));
        }
        Ok(version)
    }
}

impl Welcome {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        put_u16(&mut out, self.version);
        out.extend_from_slice(&self.cluster.0);
        put_u64(&mut out, self.node);
        put_u64(&mut out, self.incarnation);
        put_u64(&mut out, self.window);
        put_u32(&mut out, self.requests);
        out
    }

    /// Reads the bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let welcome = Self {
            version: r.u16()?,
            cluster: ClusterId(r.array()?),
            node: r.u64()?,
            incarnation: r.u64()?,
            window: r.u64()?,
            requests: r.u32()?,
        };
        r.is_empty().then_some(welcome)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn hello() -> Hello {
        Hello {
            min: 1,
            max: 2,
            class: Class::Log,
            cluster: ClusterId([7; 16]),
            from: 1,
            incarnation: 0x0102_0304,
            to: 2,
        }
    }

    #[test]
    fn golden_bytes() {
        let want = [
            b"FIRNPEER\x01\0\x02\0\x02".as_slice(),
            &[7; 16],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[4, 3, 2, 1, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(hello().encode(), want);
        assert_eq!(Hello::decode(&want), Some(hello()));
        let welcome = Welcome {
            version: 1,
            cluster: ClusterId([7; 16]),
            node: 2,
            incarnation: 9,
            window: 1 << 20,
            requests: 256,
        };
        let want = [
            [1, 0].as_slice(),
            &[7; 16],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[9, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 16, 0, 0, 0, 0, 0],
            &[0, 1, 0, 0],
        ]
        .concat();
        assert_eq!(welcome.encode(), want);
        assert_eq!(Welcome::decode(&want), Some(welcome));
        let refusal = Refusal::new(Reason::Cluster, "no");
        assert_eq!(refusal.encode(), b"\x02no");
        assert_eq!(Refusal::decode(b"\x02no"), Some(refusal));
        assert_eq!(
            Refusal::decode(b"\x63no").map(|r| r.reason),
            Some(Reason::Other(99))
        );
    }

    #[test]
    fn versions_meet_or_say_why_not() {
        let speaks = |min, max| {
            Hello {
                min,
                max,
                ..hello()
            }
            .version()
        };
        assert_eq!(speaks(1, 1), Ok(1));
        assert_eq!(speaks(0, 9), Ok(1));
        let error = speaks(2, 3).unwrap_err();
        assert_eq!(error.reason, Reason::Version);
        assert!(error.text.contains("2 to 3"), "{error}");
        assert!(speaks(0, 0).is_err());
    }

    #[test]
    fn cluster_ids_are_hexadecimal() {
        let id = ClusterId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "",
            "00",
            "+00102030405060708090a0b0c0d0eff",
            "g00102030405060708090a0b0c0d0eff",
        ] {
            assert!(wrong.parse::<ClusterId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn texts_are_cut_between_characters_and_hold_no_line_ends() {
        let long = Refusal::new(Reason::Busy, "\u{e4}".repeat(600));
        let back = Refusal::decode(&long.encode()).unwrap();
        assert_eq!(back.text.len(), 1024);
        let line = Refusal::new(Reason::Busy, "a\nb").to_string();
        assert_eq!(line, "ab");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..80)) {
            let _ = (Hello::decode(&bytes), Welcome::decode(&bytes), Refusal::decode(&bytes));
            let marked = [MAGIC.as_slice(), &bytes].concat();
            if let Some(hello) = Hello::decode(&marked) {
                prop_assert_eq!(hello.encode(), marked);
            }
        }
    }
}
