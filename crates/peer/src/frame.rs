//! The bytes between two nodes: frames.
//!
//! ```text
//! frame   len u32 | crc u32 | kind u8 | flags u8 | group u32 | stream u32 | id u64 | body
//! ```
//!
//! Integers are little-endian. `len` counts the bytes after `crc`: 18 and the body. `crc` is the
//! CRC-32C of `len` and of everything after `crc`; it stays under TLS, where it protects against
//! mistakes of our own. A kind that is not in [`Kind`], and any flag, is refused: nothing is ever
//! skipped. `group` is the replicated log that a request is about (there is one so far), `stream` the
//! class of the connection, `id` the number by which a request and its answer, or a ping and its
//! pong, belong together. **Sent between versions: numbers are never changed or used again.**
//!
//! [`decode`] takes bytes as they come from a socket: it asks for more, gives a frame, or says what is
//! wrong, after which nothing that follows can be trusted and the connection ends.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use firn_io::checksum::{crc32c, crc32c_append};
use firn_replica::command::MAX_WRITE_BYTES;
use firn_replica::types::GROUP;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 26;
/// What `len` counts without a body.
const COUNTED_BYTES: usize = HEADER_BYTES - 8;
/// Longest body: the largest write there is, with what surrounds it.
pub const MAX_BODY_BYTES: usize = MAX_WRITE_BYTES + (64 << 20);

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who calls, and whom; the first frame of a connection.
    Hello,
    /// Who answers; the first frame back.
    Welcome,
    /// Why not; the only frame back.
    Refusal,
    /// A request.
    Request,
    /// Its answer.
    Answer,
    /// So many more bytes of requests may be sent.
    Credit,
    /// Is somebody there?
    Ping,
    /// Yes.
    Pong,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Welcome => 2,
            Self::Refusal => 3,
            Self::Request => 4,
            Self::Answer => 5,
            Self::Credit => 6,
            Self::Ping => 7,
            Self::Pong => 8,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refusal,
            4 => Self::Request,
            5 => Self::Answer,
            6 => Self::Credit,
            7 => Self::Ping,
            8 => Self::Pong,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: Kind,
    /// The class of the connection.
    pub stream: u32,
    /// Which request or ping.
    pub id: u64,
    /// The rest.
    pub body: Bytes,
}

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// `len` is beyond the limit.
    TooLong {
        /// What it says.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// `len` is less than a header has.
    TooShort(u32),
    /// Other bytes arrived than were sent.
    Checksum,
    /// A kind that this build does not know.
    Kind(u8),
    /// A flag that this build does not know.
    Flags(u8),
    /// A group that this build does not know.
    Group(u32),
    /// It is the beginning of a TLS connection.
    Tls,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes, limit } => {
                write!(f, "a frame of {bytes} bytes, at most {limit} are allowed")
            }
            Self::TooShort(bytes) => write!(f, "a frame of {bytes} bytes, which has no header"),
            Self::Checksum => f.write_str("the checksum of a frame is wrong"),
            Self::Kind(kind) => write!(f, "a frame of kind {kind}, which is not known here"),
            Self::Flags(flags) => {
                write!(
                    f,
                    "a frame with flags {flags:#04x}, which are not known here"
                )
            }
            Self::Group(group) => write!(f, "a frame for group {group}, which is not known here"),
            Self::Tls => f.write_str("it speaks TLS, and this node does not"),
        }
    }
}

impl std::error::Error for FrameError {}

/// The header of a frame with this body.
pub fn header(kind: Kind, stream: u32, id: u64, body: &[u8]) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    // No body is longer than the limit, which fits.
    let len = (COUNTED_BYTES + body.len()) as u32;
    out[0..4].copy_from_slice(&len.to_le_bytes());
    out[8] = kind.code();
    out[10..14].copy_from_slice(&GROUP.to_le_bytes());
    out[14..18].copy_from_slice(&stream.to_le_bytes());
    out[18..26].copy_from_slice(&id.to_le_bytes());
    let crc = crc32c_append(crc32c(&out[0..4]), &out[8..]);
    let crc = crc32c_append(crc, body);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    firn_io::codec::get_u32(bytes, at).unwrap_or_default()
}

/// What [`decode`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A frame, which is no longer in the buffer.
    Frame(Frame),
    /// At least so many bytes more are needed.
    More(usize),
}

/// Takes the first frame out of `buffer`, with a body of at most `most` bytes.
///
/// # Errors
/// What is wrong. The buffer is of no use then.
pub fn decode(buffer: &mut BytesMut, most: usize) -> Result<Decoded, FrameError> {
    if buffer.len() < 4 {
        return Ok(Decoded::More(HEADER_BYTES - buffer.len()));
    }
    let len = u32_at(buffer, 0);
    let limit = COUNTED_BYTES + most.min(MAX_BODY_BYTES);
    if (len as usize) < COUNTED_BYTES {
        return Err(FrameError::TooShort(len));
    }
    if len as usize > limit {
        // A handshake record of TLS 1.x, which as a length is far beyond what a hello may have. (Below the limit it
        // is the length of a frame: there are frames of 66,326 bytes.)
        if buffer[0] == 0x16 && buffer[1] == 3 && (1..=4).contains(&buffer[2]) {
            return Err(FrameError::Tls);
        }
        return Err(FrameError::TooLong {
            bytes: u64::from(len),
            limit: limit as u64,
        });
    }
    if buffer.len() < HEADER_BYTES {
        return Ok(Decoded::More(HEADER_BYTES - buffer.len()));
    }
    // Before the body is waited for.
    let kind = Kind::from_code(buffer[8]).ok_or(FrameError::Kind(buffer[8]))?;
    if buffer[9] != 0 {
        return Err(FrameError::Flags(buffer[9]));
    }
    let group = u32_at(buffer, 10);
    if group != GROUP {
        return Err(FrameError::Group(group));
    }
    let whole = 8 + len as usize;
    if buffer.len() < whole {
        return Ok(Decoded::More(whole - buffer.len()));
    }
    let crc = crc32c_append(crc32c(&buffer[0..4]), &buffer[8..whole]);
    if crc != u32_at(buffer, 4) {
        return Err(FrameError::Checksum);
    }
    let (stream, id) = (
        u32_at(buffer, 14),
        firn_io::codec::get_u64(buffer, 18).unwrap_or_default(),
    );
    let mut bytes = buffer.split_to(whole).freeze();
    bytes.advance(HEADER_BYTES);
    Ok(Decoded::Frame(Frame {
        kind,
        stream,
        id,
        body: bytes,
    }))
}

impl Frame {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let header = header(self.kind, self.stream, self.id, &self.body);
        [&header[..], &self.body].concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn frame(body: &'static [u8]) -> Frame {
        Frame {
            kind: Kind::Request,
            stream: 2,
            id: 0x0102,
            body: Bytes::from_static(body),
        }
    }

    fn decoded(bytes: &[u8], most: usize) -> Result<Decoded, FrameError> {
        decode(&mut BytesMut::from(bytes), most)
    }

    #[test]
    fn golden_bytes() {
        let bytes = frame(b"abc").encode();
        let want = [
            21, 0, 0, 0, // len
            0xf6, 0x7d, 0x80, 0x2e, // crc
            4, 0, // kind, flags
            0, 0, 0, 0, // group
            2, 0, 0, 0, // stream
            2, 1, 0, 0, 0, 0, 0, 0, // id
            b'a', b'b', b'c',
        ];
        assert_eq!(bytes, want, "{bytes:x?}");
        assert_eq!(decoded(&want, 3), Ok(Decoded::Frame(frame(b"abc"))));
    }

    /// The seeds of the fuzz target, which were made after `docs/peer-protocol.md` and not with the
    /// encoders.
    #[test]
    fn what_others_write_after_the_page_is_taken() {
        macro_rules! seed {
            ($name:literal) => {
                include_bytes!(concat!("../../../fuzz/corpus/peer/", $name)).as_slice()
            };
        }
        use crate::hello::{Hello, Refusal, Welcome};
        let frames = |bytes: &[u8]| {
            let (mut buffer, mut found) = (BytesMut::from(bytes), Vec::new());
            while let Ok(Decoded::Frame(frame)) = decode(&mut buffer, 1 << 20) {
                found.push(frame);
            }
            assert!(buffer.is_empty());
            found
        };
        let kinds = |bytes| frames(bytes).iter().map(|f| f.kind).collect::<Vec<_>>();
        assert_eq!(kinds(seed!("ask")), [Kind::Request, Kind::Ping]);
        assert_eq!(
            kinds(seed!("told")),
            [Kind::Answer, Kind::Pong, Kind::Credit]
        );
        let hello = Hello::decode(seed!("hello")).unwrap();
        assert_eq!((hello.from, hello.incarnation, hello.to), (1, 77, 2));
        assert_eq!(frames(seed!("called"))[0].body, hello.encode());
        assert_eq!(Welcome::decode(seed!("welcome")).unwrap().requests, 64);
        let refusal = Refusal::decode(seed!("refusal")).unwrap();
        assert_eq!(frames(seed!("refused"))[0].body, refusal.encode());
    }

    #[test]
    fn what_is_not_known_is_refused_before_its_body_comes() {
        let head = |at: usize, value: u8| {
            let mut bytes = frame(b"abc").encode();
            bytes[at] = value;
            bytes.truncate(HEADER_BYTES);
            decoded(&bytes, 100)
        };
        assert_eq!(head(8, 99), Err(FrameError::Kind(99)));
        assert_eq!(head(9, 1), Err(FrameError::Flags(1)));
        assert_eq!(head(10, 7), Err(FrameError::Group(7)));
        assert_eq!(head(0, 3), Err(FrameError::TooShort(3)));
        let too_long = FrameError::TooLong {
            bytes: 200,
            limit: 118,
        };
        assert_eq!(head(0, 200), Err(too_long));
        assert_eq!(head(8, 4), Ok(Decoded::More(3)));
        // The shortest record there may be of each version.
        for version in 1..=4 {
            let hello = [0x16, 3, version, 0, 41];
            let found = decoded(&hello, crate::hello::MAX_HELLO_BYTES);
            assert_eq!(found, Err(FrameError::Tls));
        }
    }

    #[test]
    fn no_length_of_a_frame_is_taken_for_something_else() {
        // Those that begin like a record of TLS, and their neighbours.
        for version in 0..=5_usize {
            for len in [0x0315, 0x0316, 0x0317].map(|low| version << 16 | low) {
                let frame = Frame {
                    body: vec![7; len - COUNTED_BYTES].into(),
                    ..frame(b"")
                };
                let bytes = frame.encode();
                assert_eq!(bytes[..4], (len as u32).to_le_bytes());
                assert_eq!(
                    decoded(&bytes[..4], 1 << 20),
                    Ok(Decoded::More(HEADER_BYTES - 4))
                );
                assert_eq!(decoded(&bytes, 1 << 20), Ok(Decoded::Frame(frame)));
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = frame(b"some body").encode();
        for at in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[at / 8] ^= 1 << (at % 8);
            let found = decoded(&bytes, 1 << 20);
            assert!(!matches!(found, Ok(Decoded::Frame(_))), "bit {at}");
        }
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            bodies in vec(vec(any::<u8>(), 0..60), 1..5),
            cuts in vec(1..40_usize, 1..20),
        ) {
            let frames: Vec<Frame> = bodies.into_iter().enumerate().map(|(id, body)| Frame {
                kind: Kind::Answer,
                stream: 1,
                id: id as u64,
                body: body.into(),
            }).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
            let (mut buffer, mut rest, mut found) = (BytesMut::new(), &bytes[..], Vec::new());
            for cut in cuts.iter().cycle() {
                match decode(&mut buffer, 60) {
                    Ok(Decoded::Frame(frame)) => found.push(frame),
                    Ok(Decoded::More(more)) => {
                        prop_assert!(more > 0);
                        let (now, later) = rest.split_at((*cut).min(rest.len()));
                        buffer.extend_from_slice(now);
                        rest = later;
                        if now.is_empty() {
                            break;
                        }
                    }
                    Err(error) => prop_assert!(false, "{}", error),
                }
            }
            prop_assert_eq!(found, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..80)) {
            let _ = decoded(&bytes, 1 << 20);
        }
    }
}
