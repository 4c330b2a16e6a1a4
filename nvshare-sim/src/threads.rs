//! What every thread of the simulator does first.

/// Signals are the application's threads' business, and sleeps must not overshoot by the usual 50 microseconds.
pub(crate) fn prepare() {
    // SAFETY: both calls touch only this thread's own attributes.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_000, 0, 0, 0);
    }
}
