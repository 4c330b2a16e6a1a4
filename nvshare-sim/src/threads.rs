//! The simulator's own threads, and what each does first.

#![expect(unsafe_code, reason = "a thread that the standard library does not know")]

use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

thread_local! {
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Starts a thread as a driver in C does. The standard library registers destructors for what it keeps for each thread, and
/// glibc takes the loader's lock for that: a library whose constructor uses the card would wait for a thread that waits for it.
pub(crate) fn start<F: FnOnce() + Send + 'static>(name: &'static CStr, run: F) -> std::io::Result<()> {
    extern "C" fn main<F: FnOnce()>(start: *mut c_void) -> *mut c_void {
        // SAFETY: `start` made it, for this thread alone.
        let start = unsafe { Box::from_raw(start.cast::<(&'static CStr, F)>()) };
        let (name, run) = *start;
        // SAFETY: a C string that lives for ever.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
        prepare();
        // The hook has said what happened.
        let _ = catch_unwind(AssertUnwindSafe(run));
        null_mut()
    }
    let start = Box::into_raw(Box::new((name, run)));
    let mut thread = 0;
    // SAFETY: `thread` is where the handle goes; `main` takes over what `start` points to.
    let code = unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), main::<F>, start.cast()) };
    if code != 0 {
        // SAFETY: no thread took it over.
        drop(unsafe { Box::from_raw(start) });
        return Err(std::io::Error::from_raw_os_error(code));
    }
    // SAFETY: a thread that was started just now and that nobody joins.
    unsafe { libc::pthread_detach(thread) };
    Ok(())
}

/// Signals are the application's threads' business, and sleeps must not overshoot by the usual 50 microseconds.
fn prepare() {
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
