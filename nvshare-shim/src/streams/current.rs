//! What belongs to the calling thread while it calls the driver: its capture mode, and its current context.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::atomic::{AtomicBool, Ordering};

use crate::cuda::sys::{CUcontext, CUdevice};
use crate::cuda::{CAPTURE_MODE_RELAXED, CUresult};
use crate::driver::driver;

/// The calling thread's capture mode set to relaxed until the guard goes: calls that could disturb other threads'
/// captures are then allowed, and leave them alone.
pub struct Relaxed(u32);

impl Relaxed {
    /// Exchanges the mode.
    #[expect(clippy::new_without_default, reason = "it is an act, not a value")]
    pub fn new() -> Relaxed {
        let mut mode = CAPTURE_MODE_RELAXED;
        // SAFETY: the driver reads and writes one number.
        let done = unsafe { driver().cuThreadExchangeStreamCaptureMode(&raw mut mode) };
        Relaxed(if done.ok() { mode } else { CAPTURE_MODE_RELAXED })
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        if self.0 != CAPTURE_MODE_RELAXED {
            // SAFETY: as above.
            let _ = unsafe { driver().cuThreadExchangeStreamCaptureMode(&raw mut self.0) };
        }
    }
}

/// A context made current until the guard goes.
pub struct Current(());

impl Current {
    /// Pushes `context`.
    #[expect(
        clippy::not_unsafe_ptr_arg_deref,
        reason = "the driver checks the handle, we do not look behind it"
    )]
    pub fn push(context: CUcontext) -> Result<Current, CUresult> {
        // SAFETY: a stale handle is refused by the driver with an error.
        unsafe { driver().cuCtxPushCurrent_v2(context) }.result()?;
        Ok(Current(()))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: this thread pushed a context and hooks between leave the stack as they found it.
        let _ = unsafe { driver().cuCtxPopCurrent_v2(&raw mut popped) };
    }
}

/// The calling thread's current context.
pub fn current_context() -> Option<CUcontext> {
    let mut context: CUcontext = std::ptr::null_mut();
    // SAFETY: `context` is where the driver stores the answer.
    unsafe { driver().cuCtxGetCurrent(&raw mut context) }.result().ok()?;
    (!context.is_null()).then_some(context)
}

/// The device of the current context.
pub(crate) fn current_device() -> Option<CUdevice> {
    let mut device = 0;
    // SAFETY: the driver stores a number.
    unsafe { driver().cuCtxGetDevice(&raw mut device) }.result().ok()?;
    Some(device)
}

/// Whether any context of the process has ended.
static ENDED: AtomicBool = AtomicBool::new(false);

/// A context is gone. Its handle may be current still, in this thread or another one.
pub(super) fn one_ended() {
    ENDED.store(true, Ordering::Release);
}

/// The driver's error where the calling thread's current context is gone: a primary one's handle stays current over a reset,
/// and every call under it is refused until somebody retains it again; `cuCtxGetDevice` is not (seen on an H200). For what is
/// answered here without a call that the driver would refuse.
#[inline]
pub(crate) fn check_current() -> Result<(), CUresult> {
    if ENDED.load(Ordering::Acquire) { ask_current() } else { Ok(()) }
}

#[cold]
fn ask_current() -> Result<(), CUresult> {
    let mut version = 0;
    // Neither waits beside a thread that is stuck in a full stream, nor disturbs a capture (seen on an H200).
    // SAFETY: no handle, for the current context; a place for the answer.
    match unsafe { driver().cuCtxGetApiVersion(std::ptr::null_mut(), &raw mut version) } {
        gone @ CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED => Err(gone),
        _ => Ok(()),
    }
}
