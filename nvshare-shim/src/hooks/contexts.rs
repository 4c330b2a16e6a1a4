//! Contexts come and go: the streams in them are drained, and what the engine holds in one is given up before it goes.

use super::Bare;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUcontext, CUdevice};
use crate::driver::driver;
use crate::memory;
use crate::{start, streams};

pub(crate) unsafe fn create<F: Fn() -> CUresult>(bare: &Bare<F>, context: *mut CUcontext) -> CUresult {
    start::first_use();
    let result = super::room::retry(bare);
    // SAFETY: the driver has just stored the new handle there.
    unsafe { held(result, context) }
}

pub(crate) unsafe fn retain<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    context: *mut CUcontext,
    _device: CUdevice,
) -> CUresult {
    start::first_use();
    let result = super::room::retry(bare);
    // SAFETY: the driver has just stored the handle there.
    unsafe { held(result, context) }
}

pub(crate) unsafe fn attach<F: Fn() -> CUresult>(bare: &Bare<F>, context: *mut CUcontext) -> CUresult {
    let result = bare.call();
    // SAFETY: the driver has just stored the handle there.
    unsafe { held(result, context) }
}

pub(crate) unsafe fn from_green<F: Fn() -> CUresult>(bare: &Bare<F>, context: *mut CUcontext) -> CUresult {
    let result = bare.call();
    // SAFETY: the driver has just stored the handle there.
    unsafe { held(result, context) }
}

unsafe fn held(result: CUresult, context: *mut CUcontext) -> CUresult {
    if result.ok() && !context.is_null() && start::active() {
        // SAFETY: the caller's promise.
        streams::context_held(unsafe { context.read() });
    }
    result
}

pub(crate) unsafe fn destroy<F: Fn() -> CUresult>(bare: &Bare<F>, context: CUcontext) -> CUresult {
    go(bare, context, true)
}

pub(crate) unsafe fn detach<F: Fn() -> CUresult>(bare: &Bare<F>, context: CUcontext) -> CUresult {
    go(bare, context, streams::held_once(context))
}

pub(crate) unsafe fn release<F: Fn() -> CUresult>(bare: &Bare<F>, device: CUdevice) -> CUresult {
    match primary(device) {
        Some(context) => go(bare, context, streams::held_once(context)),
        None => bare.call(),
    }
}

pub(crate) unsafe fn reset<F: Fn() -> CUresult>(bare: &Bare<F>, device: CUdevice) -> CUresult {
    match primary(device) {
        Some(context) => go(bare, context, true),
        None => bare.call(),
    }
}

fn go<F: Fn() -> CUresult>(bare: &Bare<F>, context: CUcontext, last: bool) -> CUresult {
    if !start::active() || context.is_null() {
        return bare.call();
    }
    if !last {
        streams::context_given_back(context);
        return bare.call();
    }
    memory::on_context_destroyed(context);
    let result = bare.call();
    if result.ok() {
        streams::context_gone(context);
    }
    result
}

/// The primary context of `device`, where it exists.
fn primary(device: CUdevice) -> Option<CUcontext> {
    let (mut flags, mut active) = (0, 0);
    // SAFETY: the driver stores two numbers.
    let known = unsafe { driver().cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) };
    if !known.ok() || active == 0 {
        return None;
    }
    let mut context = std::ptr::null_mut();
    // SAFETY: the context is active, so retaining it makes nothing; it is given back at once.
    unsafe {
        driver().cuDevicePrimaryCtxRetain(&raw mut context, device).result().ok()?;
        let _ = driver().cuDevicePrimaryCtxRelease_v2(device);
    }
    Some(context)
}
