//! The allocator: the C library's, with one setting; or jemalloc, behind a feature.
#![allow(
    unsafe_code,
    reason = "the C library has no other way to set its allocator"
)]

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Makes the process give memory back. Called first, before any thread is started.
///
/// A memory budget is only as good as the allocator below it. Left to itself, the C library's raises
/// the size from which blocks are mapped on their own as such blocks are freed; the megabytes of a
/// memtable then land between small blocks and stay when it is gone. A fixed threshold keeps them
/// apart. (An import of 2 GiB of files at a budget of 128 MiB: 182 MiB without it, 106 MiB with it,
/// and no slower.)
pub(crate) fn tune() {
    #[cfg(all(target_os = "linux", target_env = "gnu", not(feature = "jemalloc")))]
    {
        const MAP_FROM_BYTES: libc::c_int = 256 << 10;
        // SAFETY: it sets a number of the allocator, and no other thread exists yet.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAP_FROM_BYTES) };
    }
}
