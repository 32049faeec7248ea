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
//! large value went there. This one copies a fixed number of bytes, more than are wanted where there is
//! room (the reference implementation's "wild copy"; what follows overwrites the surplus), and of what is
//! nearer than that the repeated pattern. It needs no `unsafe`: whatever the bytes say, nothing outside of
//! `out` is touched.
//!
//! [LZ4 block specification]: https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md

/// Literals and matches up to this length are copied in fixed pieces, where there is room.
const SHORT: usize = 64;
/// The pieces. No longer, as the processor has to wait where one is read that was written in several.
const PIECE: usize = 16;
/// The pieces of what was put out nearer than one.
const NEAR: usize = 8;

/// Decompresses `bytes` to the front of `out` and returns how long that is; `None` if they are no LZ4 block
/// or do not fit.
pub(super) fn decompress(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    let mut end = 0;
    // Before these there is room for what the first loop does without asking: a token, `SHORT` literals and
    // an offset to read; `SHORT` literals and a match of `SHORT` bytes, by pieces, to write.
    let roomy_in = bytes.len().saturating_sub(SHORT + PIECE);
    let roomy_out = out.len().saturating_sub(2 * SHORT + PIECE);
    while at < roomy_in && end < roomy_out {
        let token = bytes[at];
        at += 1;
        let mut literals = usize::from(token >> 4);
        copy::<PIECE>(bytes, at, out, end)?;
        if literals == MORE_LITERALS {
            literals = more(bytes, &mut at, literals)?;
            if literals <= SHORT && at < roomy_in {
                copy::<SHORT>(bytes, at, out, end)?;
            } else {
                copy_all(bytes, at, literals, out, end)?;
                if at + literals == bytes.len() {
                    return Some(end + literals);
                }
            }
        }
        at += literals;
        end += literals;
        let (start, repeated) = repetition(bytes, &mut at, token, end)?;
        if repeated <= SHORT && end < roomy_out + SHORT {
            repeat_short(out, start, end, repeated)?;
        } else {
            repeat(out, start, end, repeated)?;
        }
        end += repeated;
    }
    loop {
        let token = *bytes.get(at)?;
        at += 1;
        let mut literals = usize::from(token >> 4);
        if literals == MORE_LITERALS {
            literals = more(bytes, &mut at, literals)?;
        }
        copy_all(bytes, at, literals, out, end)?;
        at += literals;
        end += literals;
        if at == bytes.len() {
            return Some(end);
        }
        let (start, repeated) = repetition(bytes, &mut at, token, end)?;
        repeat(out, start, end, repeated)?;
        end += repeated;
    }
}

/// A token with so many literals, or so long a match, has more of the length behind it.
const MORE_LITERALS: usize = 15;
const MIN_MATCH: usize = 4;
const MORE_MATCH: usize = 15 + MIN_MATCH;

/// The length of which `first` is known and the rest begins at `at`.
#[inline(always)]
fn more(bytes: &[u8], at: &mut usize, first: usize) -> Option<usize> {
    let mut length = first;
    loop {
        let more = *bytes.get(*at)?;
        *at += 1;
        length = length.checked_add(usize::from(more))?;
        if more != 255 {
            return Some(length);
        }
    }
}

/// Where the match at `at` repeats from and how long it is, if `end` bytes were put out.
#[inline(always)]
fn repetition(bytes: &[u8], at: &mut usize, token: u8, end: usize) -> Option<(usize, usize)> {
    let offset = u16::from_le_bytes(*bytes.get(*at..)?.first_chunk()?);
    *at += 2;
    let start = end.checked_sub(usize::from(offset))?;
    let mut length = usize::from(token & 15) + MIN_MATCH;
    if length == MORE_MATCH {
        length = more(bytes, at, length)?;
    }
    Some((start, length))
}

#[inline(always)]
fn copy<const N: usize>(bytes: &[u8], at: usize, out: &mut [u8], end: usize) -> Option<()> {
    *out.get_mut(end..)?.first_chunk_mut::<N>()? = *bytes.get(at..)?.first_chunk()?;
    Some(())
}

#[inline(always)]
fn copy_all(bytes: &[u8], at: usize, len: usize, out: &mut [u8], end: usize) -> Option<()> {
    let from = bytes.get(at..at.checked_add(len)?)?;
    out.get_mut(end..end.checked_add(len)?)?
        .copy_from_slice(from);
    Some(())
}

/// Puts `len` bytes, at most [`SHORT`], to `end` that repeat what begins at `start`; `None` if there is
/// nothing. Behind `end` there must be room for [`SHORT`] and a piece.
#[inline(always)]
fn repeat_short(out: &mut [u8], start: usize, end: usize, len: usize) -> Option<()> {
    let distance = end - start;
    if distance >= PIECE {
        let both = out.get_mut(start..end + SHORT)?;
        repeat_piece::<PIECE>(both, 0, distance)?;
        if len > PIECE {
            repeat_piece::<PIECE>(both, PIECE, distance)?;
            if len > 2 * PIECE {
                repeat_piece::<PIECE>(both, 2 * PIECE, distance)?;
                repeat_piece::<PIECE>(both, 3 * PIECE, distance)?;
            }
        }
    } else if distance >= NEAR {
        let both = out.get_mut(start..end + SHORT)?;
        let mut done = 0;
        while done < len {
            repeat_piece::<NEAR>(both, done, distance)?;
            done += NEAR;
        }
    } else if distance > 0 {
        let (before, after) = out.split_at_mut_checked(end)?;
        let mut from = before[start..].iter().cycle();
        let mut pattern = [0; NEAR];
        pattern.fill_with(|| *from.next().unwrap_or(&0));
        // Whole repetitions, so that the pattern begins anew after each.
        let step = NEAR - NEAR % distance;
        let mut done = 0;
        while done < len {
            *after.get_mut(done..)?.first_chunk_mut()? = pattern;
            done += step;
        }
    } else {
        return None;
    }
    Some(())
}

/// Copies `N` bytes from `at` to `distance` behind it, which is no less than `N`.
#[inline(always)]
fn repeat_piece<const N: usize>(both: &mut [u8], at: usize, distance: usize) -> Option<()> {
    let piece: [u8; N] = *both.get(at..)?.first_chunk()?;
    *both.get_mut(at + distance..)?.first_chunk_mut()? = piece;
    Some(())
}

/// Puts `len` bytes to `end` that repeat what begins at `start`; `None` if there is nothing or no room.
fn repeat(out: &mut [u8], start: usize, end: usize, len: usize) -> Option<()> {
    let distance = end - start;
    if distance == 0 || len > out.len().checked_sub(end)? {
        return None;
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
