//! A word to the processor: this memory will be read soon. Costs an instruction for each cache line and
//! never a wait for it. Does nothing on processors other than x86-64.
#![allow(unsafe_code, reason = "there is no safe prefetch")]

/// The memory of a value, up to its first eight lines, every `step`th of them.
#[inline]
pub(crate) fn prefetch_lines<T>(value: &T, step: usize) {
    let at = std::ptr::from_ref(value).cast::<u8>();
    for line in (0..size_of::<T>().div_ceil(64).min(8)).step_by(step) {
        prefetch(at.wrapping_add(64 * line));
    }
}

/// The lines of the `len` bytes from `at` on; there need be nothing.
#[inline]
pub(crate) fn prefetch_span(at: *const u8, len: usize) {
    let before = at.addr() % 64;
    for offset in (0..before + len).step_by(64) {
        prefetch(at.wrapping_sub(before).wrapping_add(offset));
    }
}

#[inline]
fn prefetch(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch changes nothing that the program could see and cannot fault, whatever the
        // address. Miri, which has no prefetch, leaves it out.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}
