//! Contexts come and go: the streams in them are drained, and what the engine holds in one is given up before it goes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Bare;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUcontext, CUdevice, CUgreenCtx};
use crate::driver::driver;
use crate::memory;
use crate::{start, streams};

pub(crate) unsafe fn create<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    context: *mut CUcontext,
    device: CUdevice,
) -> CUresult {
    start::first_use();
    let result = super::room::retry_on(bare, Some(device));
    // SAFETY: the driver has just stored the new handle there.
    unsafe { held(result, context) }
}

pub(crate) unsafe fn retain<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    context: *mut CUcontext,
    device: CUdevice,
) -> CUresult {
    start::first_use();
    let result = super::room::retry_on(bare, Some(device));
    if result.ok() && !context.is_null() {
        // SAFETY: the driver has just stored the handle there.
        let primary = unsafe { context.read() }.expose_provenance();
        primaries().insert(device, primary);
    }
    // SAFETY: the same.
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
    let absent = streams::context_leaves(context);
    let result = bare.call();
    if result.ok() {
        absent.is_gone();
    } else {
        absent.stays();
    }
    result
}

/// A green context's streams are detached with it, and can be asked nothing any more, while their work goes on.
pub(crate) unsafe fn destroy_green<F: Fn() -> CUresult>(bare: &Bare<F>, green: CUgreenCtx) -> CUresult {
    let mut context = std::ptr::null_mut();
    // SAFETY: the application's handle, and a place for the answer.
    let found = unsafe { driver().cuCtxFromGreenCtx(&raw mut context, green) };
    if !start::active() || !found.ok() || context.is_null() {
        return bare.call();
    }
    memory::leave_green_context(context);
    streams::keep_context_in_sight(context);
    let absent = streams::context_leaves(context);
    let result = bare.call();
    if result.ok() {
        absent.is_gone();
    } else {
        absent.stays();
    }
    result
}

/// Memory of the peer's device becomes reachable from the current context's: what is there now, and what will be.
pub(crate) unsafe fn enable_peer<F: Fn() -> CUresult>(bare: &Bare<F>, peer: CUcontext) -> CUresult {
    let result = bare.call();
    if result.ok()
        && start::active()
        && let (Some(of), Some(from)) = (device_of(peer), current_device())
    {
        memory::on_peer_access(of, from);
    }
    result
}

fn device_of(context: CUcontext) -> Option<CUdevice> {
    let _current = streams::Current::push(context).ok()?;
    current_device()
}

/// The device of the current context.
pub(crate) fn current_device() -> Option<CUdevice> {
    let mut device = 0;
    // SAFETY: the driver stores a number.
    unsafe { driver().cuCtxGetDevice(&raw mut device) }.result().ok()?;
    Some(device)
}

/// The primary context of each device that was retained.
fn primaries() -> MutexGuard<'static, BTreeMap<CUdevice, usize>> {
    static PRIMARIES: Mutex<BTreeMap<CUdevice, usize>> = Mutex::new(BTreeMap::new());
    PRIMARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn primary(device: CUdevice) -> Option<CUcontext> {
    primaries().get(&device).map(|context| std::ptr::with_exposed_provenance_mut(*context))
}
