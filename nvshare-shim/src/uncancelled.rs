//! No thread of the application is cancelled (`pthread_cancel`) in code of ours. A driver call may hold a cancellation
//! point, and bare the thread just ends there; with frames of ours on its stack the unwinding would meet Rust's, which ends
//! the whole program, or leave a call that is counted as under way for ever. So the thread ends at its next cancellation
//! point after the call. (Who lets a thread be cancelled anywhere, `PTHREAD_CANCEL_ASYNCHRONOUS`, may not call anything.)

#![expect(unsafe_code, reason = "a thread's cancellation is put off")]

use std::ffi::c_int;

/// As pthread.h has it, in glibc and musl.
const DISABLE: c_int = 1;

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
}

/// While it lives its thread is not cancelled.
pub(crate) struct Uncancelled {
    before: c_int,
}

impl Uncancelled {
    #[inline]
    pub(crate) fn begin() -> Uncancelled {
        let mut before = 0;
        // SAFETY: a valid state, and a place for the old one.
        unsafe { pthread_setcancelstate(DISABLE, &raw mut before) };
        Uncancelled { before }
    }
}

impl Drop for Uncancelled {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the state that it told.
        unsafe { pthread_setcancelstate(self.before, std::ptr::null_mut()) };
    }
}
