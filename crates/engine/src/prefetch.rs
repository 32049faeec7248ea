//! A word to the processor: this memory will be read soon.
#![allow(unsafe_code, reason = "there is no safe prefetch")]

/// The same for a value, up to its first eight lines, every `step`th of them.
#[inline]
pub(crate) fn prefetch_lines<T>(value: &T, step: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of::<T>().div_ceil(64).min(8)).step_by(step) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = std::ptr::from_ref(value)
            .cast::<i8>()
            .wrapping_add(64 * line);
        // SAFETY: as below; the address is inside of the value.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (value, step);
}

/// Asks the processor to have the cache line of `byte` ready, if there is a byte. Costs one instruction
/// and never a wait. Does nothing on processors other than x86-64.
#[inline]
pub(crate) fn prefetch(byte: Option<&u8>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(byte) = byte {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch changes nothing that the program could see and cannot fault, whatever the
        // address; this one is a reference's besides. Not run under Miri, which has no prefetch.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(byte).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = byte;
}
