//! What arrives on a connection of another node: frames, and the hello in the first one. Frames that are
//! taken must be the bytes that came, and the bytes of a hello that is taken those of one that says the
//! same.

use bytes::BytesMut;
use firn_io::checksum::{crc32c, crc32c_append};
use firn_peer::frame::{Decoded, Frame, HEADER_BYTES, decode};
use firn_peer::hello::{Hello, Refusal, Welcome};

/// Longest body: small, so that limits are met.
const MOST: usize = 4096;

/// Bytes of a connection, as they are, and with the checksums that frames of these lengths would have.
pub fn peer(data: &[u8]) {
    frames(data);
    frames(&with_checksums(data));
    hellos(data);
}

fn frames(data: &[u8]) {
    // As a whole, and a few bytes at a time: the frames are the same.
    let (mut whole, mut found) = (BytesMut::from(data), Vec::new());
    let end = loop {
        match decode(&mut whole, MOST) {
            Ok(Decoded::Frame(frame)) => found.push(frame),
            Ok(Decoded::More(more)) => {
                assert!(more > 0, "nothing is missing");
                break Ok(());
            }
            Err(error) => break Err(error),
        }
    };
    let taken: Vec<u8> = found.iter().flat_map(Frame::encode).collect();
    assert!(data.starts_with(&taken), "a frame changed on its way");
    for frame in &found {
        hellos(&frame.body);
    }
    let mut again = BytesMut::new();
    let mut frames = found.iter();
    for piece in data.chunks(7) {
        again.extend_from_slice(piece);
        loop {
            match decode(&mut again, MOST) {
                Ok(Decoded::Frame(frame)) => assert_eq!(Some(&frame), frames.next()),
                Ok(Decoded::More(_)) => break,
                Err(error) => {
                    assert_eq!((frames.next(), Err(error)), (None, end));
                    return;
                }
            }
        }
    }
    assert_eq!((frames.next(), end), (None, Ok(())));
}

/// Frames that begin where the lengths say, with the right checksums.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (data.to_vec(), 0);
    while let Some(frame) = bytes
        .get_mut(at..)
        .filter(|rest| rest.len() >= HEADER_BYTES)
    {
        let len = usize::from(frame[0]) + 256 * usize::from(frame[1] % 16);
        let len = len.clamp(HEADER_BYTES - 8, frame.len() - 8);
        frame[0..4].copy_from_slice(&(len as u32).to_le_bytes());
        frame[8] = 1 + frame[8] % 8;
        frame[9..14].fill(0);
        let crc = crc32c_append(crc32c(&frame[0..4]), &frame[8..8 + len]);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
        at += 8 + len;
    }
    bytes
}

fn hellos(data: &[u8]) {
    if let Some(hello) = Hello::decode(data) {
        assert_eq!(hello.encode(), data);
        let _ = hello.version();
    }
    if let Some(welcome) = Welcome::decode(data) {
        assert_eq!(welcome.encode(), data);
    }
    if let Some(refusal) = Refusal::decode(data) {
        assert_eq!(refusal.encode(), data);
        let _ = refusal.to_string();
    }
}
