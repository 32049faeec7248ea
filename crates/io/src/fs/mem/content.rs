//! The bytes of one file in memory: shared pages under a shared table.
//!
//! ```text
//! Content --chunks--> Arc<[slot; up to 256]> --slot--> None (a hole: reads as zeros)
//!                                                 \--> Some(Arc<4 KiB page>)
//! ```
//!
//! A copy of a `Content` shares all chunks; a write copies the one chunk and the one page that it
//! touches, if they are shared. So the state of a file at its last sync, or at a crash, costs a few
//! pointers, and two states are compared by pointers.
//!
//! Invariant: bytes at and beyond `len` are zero, in every page that is there.

use std::sync::{Arc, LazyLock};

use crate::rng::Rng;

/// The unit of allocation and of sharing.
pub(super) const PAGE_BYTES: usize = 4096;
/// What a disk writes as a whole, unless power fails in the middle of it.
const SECTOR_BYTES: usize = 512;
const CHUNK_PAGES: usize = 256;

type Page = [u8; PAGE_BYTES];
type Slot = Option<Arc<Page>>;

/// What an allocated page that was never written points at.
static ZERO_PAGE: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE_BYTES]));

/// There are no free pages left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    chunks: Vec<Arc<Vec<Slot>>>,
    /// How many slots hold a page.
    pages: u64,
}

impl Content {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        let mut budget = u64::MAX;
        // An unlimited budget does not run out.
        let _ = content.write(0, bytes, &mut budget);
        content
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    fn page(&self, index: usize) -> Option<&Arc<Page>> {
        self.chunks
            .get(index / CHUNK_PAGES)?
            .get(index % CHUNK_PAGES)?
            .as_ref()
    }

    /// How many slots the table has room for; all beyond are holes.
    fn slots(&self) -> usize {
        self.chunks.len() * CHUNK_PAGES
    }

    fn slot_mut(&mut self, index: usize) -> &mut Slot {
        let (chunk, slot) = (index / CHUNK_PAGES, index % CHUNK_PAGES);
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, Arc::default);
        }
        let chunk = Arc::make_mut(&mut self.chunks[chunk]);
        if chunk.len() <= slot {
            chunk.resize(slot + 1, None);
        }
        &mut chunk[slot]
    }

    /// The page for writing; takes one from `budget` if there was a hole.
    fn page_mut(&mut self, index: usize, budget: &mut u64) -> Result<&mut Page, Full> {
        if self.page(index).is_none() {
            *budget = budget.checked_sub(1).ok_or(Full)?;
            self.pages += 1;
        }
        let slot = self.slot_mut(index);
        Ok(Arc::make_mut(
            slot.get_or_insert_with(|| Arc::clone(&ZERO_PAGE)),
        ))
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let available = self.len.saturating_sub(offset);
        let wanted = usize::try_from(available).map_or(buf.len(), |n| n.min(buf.len()));
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let (index, start) = split(at);
            let count = (PAGE_BYTES - start).min(wanted - done);
            let to = &mut buf[done..done + count];
            match self.page(index) {
                Some(page) => to.copy_from_slice(&page[start..start + count]),
                None => to.fill(0),
            }
            done += count;
        }
        done
    }

    /// Writes page by page; on `Full` the pages before are written.
    pub(super) fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        budget: &mut u64,
    ) -> Result<(), Full> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (index, start) = split(at);
            let count = (PAGE_BYTES - start).min(bytes.len() - done);
            let page = self.page_mut(index, budget)?;
            page[start..start + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
            self.len = self.len.max(at + count as u64);
        }
        Ok(())
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (index, start) = split(len);
            let first_gone = if start == 0 { index } else { index + 1 };
            if start != 0 && self.page(index).is_some() {
                // The page is there, so nothing is taken from the budget.
                if let Ok(page) = self.page_mut(index, &mut 0) {
                    page[start..].fill(0);
                }
            }
            for gone in first_gone..self.slots() {
                self.pages -= u64::from(self.page(gone).is_some());
            }
            self.chunks.truncate(first_gone.div_ceil(CHUNK_PAGES));
            if let Some(last) = self.chunks.get_mut(first_gone / CHUNK_PAGES) {
                Arc::make_mut(last).truncate(first_gone % CHUNK_PAGES);
            }
        }
        self.len = len;
    }

    /// Gives each of the first `len` bytes a page and grows the file to at least `len`.
    pub(super) fn allocate(&mut self, len: u64, budget: &mut u64) -> Result<(), Full> {
        let pages = page_count(len);
        let missing = (0..pages)
            .filter(|&index| self.page(index).is_none())
            .count() as u64;
        *budget = budget.checked_sub(missing).ok_or(Full)?;
        for index in 0..pages {
            if self.page(index).is_none() {
                *self.slot_mut(index) = Some(Arc::clone(&ZERO_PAGE));
            }
        }
        self.pages += missing;
        self.len = self.len.max(len);
        Ok(())
    }

    pub(super) fn is_allocated(&self, len: u64) -> bool {
        (0..page_count(len)).all(|index| self.page(index).is_some())
    }

    /// Flips one bit; the byte must exist. Answers whether it does.
    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) -> bool {
        if offset >= self.len {
            return false;
        }
        let (index, start) = split(offset);
        let mut unlimited = u64::MAX;
        let Ok(page) = self.page_mut(index, &mut unlimited) else {
            return false;
        };
        page[start] ^= 1 << (bit % 8);
        true
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len).unwrap_or(0)];
        self.read(&mut bytes, 0);
        bytes
    }

    /// What a power loss may leave of a file that was `self` at its last sync and `newer` when the
    /// power went: each sector that differs is old, new, or new up to some byte; the length is the
    /// old one, the new one, or between.
    pub(super) fn torn(&self, newer: &Self, rng: &mut Rng) -> Self {
        let mut result = self.clone();
        // Sometimes nearly all, sometimes nearly nothing reached the disk.
        let keep = [0.05, 0.5, 0.95][rng.index(3)];
        let slots = self.slots().max(newer.slots());
        let mut index = 0;
        while index < slots {
            let chunk = index / CHUNK_PAGES;
            if let (Some(a), Some(b)) = (self.chunks.get(chunk), newer.chunks.get(chunk))
                && Arc::ptr_eq(a, b)
            {
                index += CHUNK_PAGES;
                continue;
            }
            result.tear_page(index, self.page(index), newer.page(index), keep, rng);
            index += 1;
        }
        let (low, high) = (self.len.min(newer.len), self.len.max(newer.len));
        let len = match rng.below(3) {
            0 => self.len,
            1 => newer.len,
            _ => rng.between(low, high),
        };
        // Sectors may have been kept beyond the length.
        result.len = high;
        result.set_len(len);
        result
    }

    fn tear_page(
        &mut self,
        index: usize,
        old: Option<&Arc<Page>>,
        new: Option<&Arc<Page>>,
        keep: f64,
        rng: &mut Rng,
    ) {
        let (old, new) = match (old, new) {
            (None, None) => return,
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) => return,
            (old, new) => (old.unwrap_or(&ZERO_PAGE), new.unwrap_or(&ZERO_PAGE)),
        };
        let mut unlimited = u64::MAX;
        for start in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
            let sector = start..start + SECTOR_BYTES;
            if old[sector.clone()] == new[sector] {
                continue;
            }
            let count = if rng.one_in(8) {
                rng.index(SECTOR_BYTES)
            } else if rng.chance(keep) {
                SECTOR_BYTES
            } else {
                0
            };
            if count > 0
                && let Ok(page) = self.page_mut(index, &mut unlimited)
            {
                page[start..start + count].copy_from_slice(&new[start..start + count]);
            }
        }
    }
}

/// The page of a byte and the byte's place in it.
fn split(offset: u64) -> (usize, usize) {
    let page_bytes = PAGE_BYTES as u64;
    (
        (offset / page_bytes) as usize,
        (offset % page_bytes) as usize,
    )
}

fn page_count(len: u64) -> usize {
    len.div_ceil(PAGE_BYTES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_unmoved_by_later_writes() {
        let mut content = Content::from_bytes(&[1; 10_000]);
        let copy = content.clone();
        let mut budget = 10;
        content.write(4_000, &[2; 200], &mut budget).unwrap();
        assert_eq!(copy.to_vec(), vec![1; 10_000]);
        assert_eq!(content.to_vec()[4_000..4_200], [2; 200]);
        assert_eq!(budget, 10);
        // Page 2 was not touched and is still one page.
        assert!(Arc::ptr_eq(copy.page(2).unwrap(), content.page(2).unwrap()));
    }

    #[test]
    fn pages_are_counted() {
        let mut content = Content::default();
        let mut budget = 5;
        content.write(3 * 4096, &[1], &mut budget).unwrap();
        assert_eq!(
            (content.pages(), budget, content.len()),
            (1, 4, 3 * 4096 + 1)
        );
        content.allocate(2 * 4096 + 1, &mut budget).unwrap();
        assert_eq!(
            (content.pages(), budget, content.len()),
            (4, 1, 3 * 4096 + 1)
        );
        assert_eq!(content.write(4 * 4096, &[7; 8192], &mut budget), Err(Full));
        // What fitted was written.
        assert_eq!((content.pages(), budget, content.len()), (5, 0, 5 * 4096));
        assert_eq!(content.allocate(1 << 20, &mut 3), Err(Full));
        content.set_len(4097);
        assert_eq!(content.pages(), 2);
        content.set_len(0);
        assert_eq!(content.pages(), 0);
    }

    #[test]
    fn shrinking_and_growing_gives_zeros() {
        let mut content = Content::from_bytes(&[9; 3 << 20]);
        content.set_len(100);
        content.set_len(3 << 20);
        let bytes = content.to_vec();
        assert!(bytes[..100].iter().all(|&b| b == 9) && bytes[100..].iter().all(|&b| b == 0));
    }

    #[test]
    fn a_torn_sector_is_old_new_or_new_up_to_a_byte() {
        let old = Content::from_bytes(&[1; 8192]);
        let mut new = old.clone();
        new.write(512, &[2; 6000], &mut 0).unwrap();
        let (mut kept, mut dropped, mut half) = (0, 0, 0);
        for seed in 0..200 {
            let bytes = old.torn(&new, &mut Rng::new(seed)).to_vec();
            assert_eq!(bytes.len(), 8192);
            for sector in bytes.chunks(512) {
                let cut = sector.iter().position(|&b| b == 1).unwrap_or(512);
                let is_edge = sector.as_ptr() == bytes[6144..].as_ptr();
                assert!(is_edge || sector[cut..].iter().all(|&b| b == 1));
                kept += u32::from(cut == 512);
                dropped += u32::from(cut == 0);
                half += u32::from(cut > 0 && cut < 512);
            }
            assert!(bytes[..512].iter().all(|&b| b == 1) && bytes[6512..].iter().all(|&b| b == 1));
        }
        assert!(kept > 100 && dropped > 100 && half > 100);
    }
}
