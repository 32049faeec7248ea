//! Mutations of an input: what a damaged disk, a cut connection or an enemy makes of it.

use firn_io::rng::Rng;

/// Numbers at which decoders go wrong.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0xffff_ffff, u64::MAX];
/// Inputs do not grow beyond this.
const MOST_BYTES: usize = 16 << 10;

/// Changes `bytes` in one to eight places; `other` is another input of the same target.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + rng.below(8).min(rng.below(8)) {
        once(rng, bytes, other);
    }
    bytes.truncate(MOST_BYTES);
}

fn range(rng: &mut Rng, len: usize) -> std::ops::Range<usize> {
    let start = rng.index(len + 1);
    let most = if rng.one_in(4) { len } else { 16 };
    start..start + rng.index((len - start).min(most) + 1)
}

fn once(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let len = bytes.len();
    if len == 0 {
        bytes.push(rng.next_u64() as u8);
        return;
    }
    let at = rng.index(len);
    match rng.below(10) {
        0 | 1 => bytes[at] ^= 1 << rng.below(8),
        2 => bytes[at] = rng.next_u64() as u8,
        3 => bytes[at] = bytes[at].wrapping_add(if rng.one_in(2) { 1 } else { 255 }),
        4 => {
            let number = EDGES[rng.index(EDGES.len())].to_le_bytes();
            let width = [1, 2, 4, 8][rng.index(4)].min(len - at);
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
        5 => bytes.truncate(at),
        6 => {
            let cut = range(rng, len);
            bytes.drain(cut);
        }
        7 => {
            let part = range(rng, len);
            let part = bytes[part].to_vec();
            bytes.splice(at..at, part);
        }
        8 => {
            let part = range(rng, other.len());
            let gone = at..len.min(at + rng.index(part.len() + 1));
            bytes.splice(gone, other[part].iter().copied());
        }
        _ => {
            let mut part = vec![0; 1 + rng.index(8)];
            rng.fill_bytes(&mut part);
            bytes.splice(at..at, part);
        }
    }
}
