#![allow(
    unsafe_code,
    reason = "system calls that the standard library does not offer"
)]
//! Memory straight from the operating system, which goes back there when it is dropped.
//!
//! What the general allocator is given back it often keeps: a freed block between two that live is
//! a hole, and memory that one thread takes and another frees, in blocks of a megabyte, makes many.
//! [`Pages`] are for what is large, lives long and goes at once, such as the memory of a memtable:
//! the process is never larger than what it holds.
//!
//! On Linux all of them are there from the beginning, which costs far less than to have them come one
//! by one as they are touched. Where the system offers no mappings (and under Miri, for speed) they
//! come from the general allocator.

use std::fmt;
use std::ptr::NonNull;

/// What lengths are rounded up to, and starts are aligned to at least.
pub const PAGE_BYTES: usize = 4096;

/// A block of memory, zeros at first, that this value alone owns.
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the process, not to a thread, and nothing else has its address.
unsafe impl Send for Pages {}
// SAFETY: a shared `Pages` gives out an address and a length, which do not change.
unsafe impl Sync for Pages {}

impl Pages {
    /// At least `len` bytes; `None` if the system has no more, or `len` is 0 or absurd.
    pub fn new(len: usize) -> Option<Self> {
        let len = len.checked_next_multiple_of(PAGE_BYTES)?;
        if len == 0 || len > isize::MAX as usize {
            return None;
        }
        Some(Self {
            start: sys::take(len)?,
            len,
        })
    }

    /// Where it begins: aligned to [`PAGE_BYTES`], valid for reads and writes of
    /// [`len`](Self::len) bytes until the value is dropped.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes, a multiple of [`PAGE_BYTES`].
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Asks the general allocator to give back what it keeps of the memory that was freed: after large
/// work whose buffers lie between small blocks that stay. Does nothing where the allocator has no such
/// call.
pub fn trim_allocator() {
    sys::trim_allocator();
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: exactly what `take` gave for this length, given back once.
        unsafe { sys::give_back(self.start, self.len) }
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(all(unix, not(miri)))]
mod sys {
    use std::ptr::{self, NonNull};

    /// `len` is not 0.
    pub(super) fn take(len: usize) -> Option<NonNull<u8>> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        #[cfg(target_os = "linux")]
        let flags = flags | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        NonNull::new(start.cast())
    }

    pub(super) fn trim_allocator() {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: no memory is passed; it takes the locks of the C library's allocator. If the program
        // has another allocator there is nothing to give back.
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// # Safety
    ///
    /// `start` must come from `take` for the same `len`, and nothing may use the memory any more.
    pub(super) unsafe fn give_back(start: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise. It cannot fail: the range is one that was mapped.
        let _ = unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

#[cfg(not(all(unix, not(miri))))]
mod sys {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::NonNull;

    use crate::pages::PAGE_BYTES;

    pub(super) fn trim_allocator() {}

    /// `len` is not 0.
    pub(super) fn take(len: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(len, PAGE_BYTES).ok()?;
        // SAFETY: `len` is not 0.
        NonNull::new(unsafe { alloc_zeroed(layout) })
    }

    /// # Safety
    ///
    /// `start` must come from `take` for the same `len`, and nothing may use the memory any more.
    pub(super) unsafe fn give_back(start: NonNull<u8>, len: usize) {
        if let Ok(layout) = Layout::from_size_align(len, PAGE_BYTES) {
            // SAFETY: the caller's promise.
            unsafe { dealloc(start.as_ptr(), layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeros_and_can_be_written() {
        let pages = Pages::new(PAGE_BYTES + 1).unwrap();
        assert_eq!(pages.len(), 2 * PAGE_BYTES);
        assert_eq!(pages.start().addr().get() % PAGE_BYTES, 0);
        assert!(!pages.is_empty());
        // SAFETY: `len` bytes from `start` on are this test's own.
        let bytes = unsafe { std::slice::from_raw_parts_mut(pages.start().as_ptr(), pages.len()) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes.fill(7);
        // SAFETY: as above.
        assert_eq!(unsafe { *pages.start().as_ptr().add(PAGE_BYTES) }, 7);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(Pages::new(0).is_none());
        assert!(Pages::new(usize::MAX).is_none());
        assert!(Pages::new(isize::MAX as usize - PAGE_BYTES).is_none());
    }
}
