//! What every thread of the simulator does first.

use std::cell::Cell;

thread_local! {
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Signals are the application's threads' business, and sleeps must not overshoot by the usual 50 microseconds.
pub(crate) fn prepare() {
    OURS.set(true);
    // SAFETY: both calls touch only this thread's own attributes.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_000, 0, 0, 0);
    }
}

/// Whether the calling thread is one of the simulator's.
pub(crate) fn is_ours() -> bool {
    OURS.get()
}
