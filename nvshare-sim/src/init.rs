//! The driver's life in a process: not initialised, initialised, gone. A forked child never becomes initialised, as with
//! the real driver; a process that is exiting is answered `CUDA_ERROR_DEINITIALIZED`.

#![expect(unsafe_code, reason = "handlers for the end of the process and for its child")]

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use cudarc::driver::sys::CUresult;

use crate::call::Outcome;

/// What `cuDriverGetVersion` answers.
pub(crate) const DRIVER_VERSION: i32 = 12090;

/// What the first instruction of every export compares with [`DEINITIALIZED`].
pub(crate) static STATE_WORD: AtomicU32 = AtomicU32::new(0);

/// The value of [`STATE_WORD`] once the process is exiting: every function then returns `CUDA_ERROR_DEINITIALIZED`.
const DEINITIALIZED: u32 = 0x321c_ba00;

static INITIALIZED: AtomicBool = AtomicBool::new(false);
static FORKED: AtomicBool = AtomicBool::new(false);

/// Refuses calls that need an initialised driver.
pub(crate) fn check() -> Outcome {
    if INITIALIZED.load(Ordering::Acquire) && !FORKED.load(Ordering::Relaxed) {
        Ok(())
    } else {
        Err(CUresult::CUDA_ERROR_NOT_INITIALIZED)
    }
}

/// `cuInit`; faults can be asked for of functions that `can_fail`.
pub(crate) fn initialize(can_fail: impl Fn(&str) -> bool) -> Outcome {
    static HOOKS: Once = Once::new();
    if FORKED.load(Ordering::Relaxed) {
        return Err(CUresult::CUDA_ERROR_NOT_INITIALIZED);
    }
    if INITIALIZED.load(Ordering::Acquire) {
        return Ok(());
    }
    crate::device::open(can_fail)?;
    HOOKS.call_once(|| {
        // SAFETY: the functions live as long as the process; the one in the child only stores to an atomic.
        unsafe {
            libc::pthread_atfork(None, None, Some(forked));
            libc::atexit(exiting);
        }
    });
    INITIALIZED.store(true, Ordering::Release);
    Ok(())
}

extern "C" fn forked() {
    // A child of a process that had initialised the driver: its threads and its place on the card are the parent's.
    FORKED.store(true, Ordering::Relaxed);
}

extern "C" fn exiting() {
    STATE_WORD.store(DEINITIALIZED, Ordering::Relaxed);
    if !FORKED.load(Ordering::Relaxed) {
        crate::memory::report_leaks();
    }
}
