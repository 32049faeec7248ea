#![allow(
    unsafe_code,
    reason = "a system call that the standard library does not offer"
)]
//! The priority that the operating system gives a thread.

/// Lowers the priority of the calling thread: on Linux by ten steps, which leaves it about a tenth of
/// a processor that others want, too. Elsewhere, and if the system refuses, it stays as it is.
pub(crate) fn lower() {
    sys::lower();
}

#[cfg(all(target_os = "linux", not(miri)))]
mod sys {
    /// Steps by which the thread is nicer than it was.
    const NICER: libc::c_int = 10;
    /// As nice as a thread can be.
    const NICEST: libc::c_int = 19;

    pub(super) fn lower() {
        // SAFETY: no memory is passed. On Linux 0 names the calling thread, not its process.
        unsafe {
            let nice = libc::getpriority(libc::PRIO_PROCESS, 0);
            let _ = libc::setpriority(libc::PRIO_PROCESS, 0, (nice + NICER).min(NICEST));
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod sys {
    pub(super) fn lower() {}
}
