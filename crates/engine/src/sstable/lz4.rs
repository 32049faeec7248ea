//! Decompression of LZ4 blocks.
//!
//! The format is that of the [LZ4 block specification]: sequences of
//!
//! ```text
//! token u8: literals (high 4 bits), match (low 4 bits; 4 is added)
//! | more length of the literals, if 15: bytes that are added, up to the first that is not 255
//! | literals | offset u16, from 1 | more length of the match, if 15
//! ```
//!
//! where a match repeats what was put out `offset` bytes before, itself included. The last sequence has
//! literals alone.
//!
//! Compressing is left to `lz4_flex`. Its decompression copies byte by byte whenever a match ends close
//! behind where it came from, which records of like length have all the time: about half of a read of a
//! large value went there. This one copies 32 bytes at a time, 16 of what is nearer than that, doubles what
//! is nearer still, and is faster without `unsafe`: whatever the bytes say, nothing outside of `out` is
//! touched.
//!
//! [LZ4 block specification]: https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md

/// What is copied at once, where so much can be.
const STEP: usize = 32;
/// What is copied at once of what was put out nearer than that.
const NEAR_STEP: usize = 16;
/// Copies of at most so many bytes are made in steps, which may write beyond the end of what is copied (and
/// have that overwritten by what follows); larger ones by one call.
const SHORT: usize = 64;
/// So few bytes that repeat what is nearer than a step are copied one by one.
const FEW: usize = 20;

/// Decompresses `bytes` to the front of `out` and returns how long that is; `None` if they are no LZ4 block
/// or do not fit.
pub(super) fn decompress(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    let mut end = 0;
    loop {
        let token = *bytes.get(at)?;
        at += 1;
        let literals = length(bytes, &mut at, usize::from(token >> 4))?;
        let is_roomy = at + SHORT <= bytes.len() && end + SHORT <= out.len();
        if literals <= SHORT && is_roomy {
            let mut done = 0;
            while done < literals {
                let step: [u8; STEP] = *bytes[at + done..].first_chunk()?;
                out[end + done..end + done + STEP].copy_from_slice(&step);
                done += STEP;
            }
        } else {
            let from = bytes.get(at..at.checked_add(literals)?)?;
            out.get_mut(end..end.checked_add(literals)?)?
                .copy_from_slice(from);
        }
        at += literals;
        end += literals;
        if at == bytes.len() {
            return Some(end);
        }
        let offset = u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
        at += 2;
        let start = end.checked_sub(usize::from(offset))?;
        let repeated = length(bytes, &mut at, usize::from(token & 15))?.checked_add(4)?;
        repeat(out, start, end, repeated)?;
        end += repeated;
    }
}

/// A length of which the token has `first`.
#[inline(always)]
fn length(bytes: &[u8], at: &mut usize, first: usize) -> Option<usize> {
    let mut length = first;
    if first == 15 {
        loop {
            let more = *bytes.get(*at)?;
            *at += 1;
            length = length.checked_add(usize::from(more))?;
            if more != 255 {
                break;
            }
        }
    }
    Some(length)
}

/// Puts `len` bytes to `end` that repeat what begins at `start`; `None` if there is nothing or no room.
#[inline(always)]
fn repeat(out: &mut [u8], start: usize, end: usize, len: usize) -> Option<()> {
    let distance = end - start;
    if len <= SHORT && end + SHORT <= out.len() {
        if distance >= STEP {
            return repeat_in_steps::<STEP>(out, start, end, len);
        }
        if distance >= NEAR_STEP {
            return repeat_in_steps::<NEAR_STEP>(out, start, end, len);
        }
    }
    if distance == 0 || len > out.len() - end {
        return None;
    }
    if len <= FEW {
        let both = &mut out[start..end + len];
        for at in distance..both.len() {
            both[at] = both[at - distance];
        }
        return Some(());
    }
    let mut done = 0;
    while done < len {
        // What lies from `start` on repeats itself every `distance` bytes, of which `end + done` is a
        // multiple away, as `done` is `distance` times one less than a power of two.
        let step = (distance + done).min(len - done);
        out.copy_within(start..start + step, end + done);
        done += step;
    }
    Some(())
}

/// The same from at least `N` bytes away, where there is room for [`SHORT`] bytes and `len` is no more.
#[inline(always)]
fn repeat_in_steps<const N: usize>(
    out: &mut [u8],
    start: usize,
    end: usize,
    len: usize,
) -> Option<()> {
    let mut done = 0;
    while done < len {
        // From before `end + done`: each step repeats what is there already.
        let step: [u8; N] = *out[start + done..].first_chunk()?;
        out[end + done..end + done + N].copy_from_slice(&step);
        done += N;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What another decoder makes of it, which says how long the result would be at most.
    fn other(bytes: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; room];
        let len = lz4_flex::block::decompress_into(bytes, &mut out).ok()?;
        out.truncate(len);
        Some(out)
    }

    fn ours(bytes: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut out = vec![0xee; room];
        let len = decompress(bytes, &mut out)?;
        out.truncate(len);
        Some(out)
    }

    #[test]
    fn small_blocks_by_hand() {
        assert_eq!(ours(&[0], 0), Some(vec![]));
        assert_eq!(ours(&[0x30, 1, 2, 3], 3), Some(vec![1, 2, 3]));
        assert_eq!(ours(&[0x30, 1, 2, 3], 2), None);
        // Runs: one byte, then three, repeated over themselves.
        assert_eq!(ours(&[0x11, 7, 1, 0, 0], 6), Some(vec![7; 6]));
        let three = [0x36, 1, 2, 3, 3, 0, 0x10, 9];
        let repeated = [&[1, 2, 3].repeat(5)[..13], &[9]].concat();
        assert_eq!(ours(&three, 99), Some(repeated));
        for bad in [
            &[][..],
            // More literals than there are.
            &[0x40, 1, 2, 3],
            // A length without its end.
            &[0xf0, 255],
            &[0x1f, 7, 1, 0, 255],
            // No offset, half of one, none at all, one too far.
            &[0x11, 7, 1],
            &[0x11, 7, 0, 0, 0],
            &[0x11, 7, 2, 0, 0],
            // Nothing behind a match.
            &[0x11, 7, 1, 0],
        ] {
            assert_eq!(ours(bad, 1000), None, "{bad:?}");
        }
    }

    /// Bytes with runs, near and far repetitions.
    fn repetitive() -> impl Strategy<Value = Vec<u8>> {
        let piece = (vec(any::<u8>(), 1..80), 1..40_usize);
        vec(piece, 0..30).prop_map(|pieces| {
            let repeated = pieces.iter().map(|(bytes, times)| bytes.repeat(*times));
            repeated.flatten().collect()
        })
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(bytes in repetitive(), spare in 0..100_usize) {
            let compressed = lz4_flex::block::compress(&bytes);
            prop_assert_eq!(ours(&compressed, bytes.len() + spare), Some(bytes.clone()));
            if let Some(short) = bytes.len().checked_sub(1) {
                prop_assert_eq!(ours(&compressed, short), None);
            }
        }

        #[test]
        fn damaged_bytes_are_refused_or_lead_where_they_say(
            bytes in repetitive(),
            at: prop::sample::Index,
            byte: u8,
            cut: Option<prop::sample::Index>,
        ) {
            let mut compressed = lz4_flex::block::compress(&bytes);
            let at = at.index(compressed.len());
            compressed[at] = byte;
            if let Some(cut) = cut {
                compressed.truncate(cut.index(compressed.len()));
            }
            let room = bytes.len() + 40;
            if let Some(found) = ours(&compressed, room) {
                prop_assert_eq!(other(&compressed, room), Some(found));
            }
        }

        #[test]
        fn any_bytes_are_safe(bytes in vec(any::<u8>(), 0..200), room in 0..400_usize) {
            if let Some(found) = ours(&bytes, room) {
                prop_assert_eq!(other(&bytes, room), Some(found));
            }
        }
    }
}
