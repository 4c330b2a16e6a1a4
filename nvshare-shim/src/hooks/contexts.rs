//! Contexts come and go. Whether one really goes is the driver's to say: a release may not be the last one (green
//! contexts, and references that nobody counted, keep a primary context), and an end may be refused. So the engine and the
//! table leave the context, the call is made, and only what the driver says afterwards has an effect.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Bare;
use crate::allocation::stream_ordered;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUcontext, CUdevice, CUgreenCtx};
use crate::device::home::{self, Left};
use crate::driver::{Symbol, driver};
use crate::memory::{arrays, virtuals};
use crate::{allocation, gate, life, start, streams, turn};

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
    if result.ok() && !context.is_null() && life::active() {
        // SAFETY: the driver has just stored the handle there.
        let green = unsafe { context.read() };
        if let Some(primary) = device_of(green).and_then(|device| primary_below(device, green)) {
            streams::green_met(green, primary);
        }
    }
    // SAFETY: the same.
    unsafe { held(result, context) }
}

unsafe fn held(result: CUresult, context: *mut CUcontext) -> CUresult {
    if result.ok() && !context.is_null() && life::active() {
        // SAFETY: the caller's promise.
        streams::context_held(unsafe { context.read() });
    }
    result
}

/// Of a primary context the driver refuses it.
pub(crate) unsafe fn destroy<F: Fn() -> CUresult>(bare: &Bare<F>, context: CUcontext) -> CUresult {
    end(bare, context, None, CUresult::ok)
}

/// Gives back what `cuCtxAttach` took, of the current context; one that ends with it is current no more.
pub(crate) unsafe fn detach<F: Fn() -> CUresult>(bare: &Bare<F>, context: CUcontext) -> CUresult {
    let last = streams::held_once(context);
    end(bare, context, None, |result| result.ok() && (last || streams::current_context() != Some(context)))
}

pub(crate) unsafe fn release<F: Fn() -> CUresult>(bare: &Bare<F>, device: CUdevice) -> CUresult {
    let Some(context) = primary(device).filter(|_| is_active(device)) else { return bare.call() };
    let before = instance(context);
    // Where it is active another thread may have retained it meanwhile: then it is a new one at the old address. One that
    // failed may answer with its error, and be gone.
    let is_gone = |result: CUresult| !is_active(device) || (result.ok() && instance(context) != before);
    end(bare, context, Some(device), is_gone)
}

/// Destroys what is in the context, whoever has retained it; the references stay (seen on an H200).
pub(crate) unsafe fn reset<F: Fn() -> CUresult>(bare: &Bare<F>, device: CUdevice) -> CUresult {
    match primary(device).filter(|_| is_active(device)) {
        Some(context) => end(bare, context, Some(device), |result| result.ok() || !is_active(device)),
        None => bare.call(),
    }
}

/// The call that may end `context`, the primary one of the device `primary` if that is one. `is_gone` says after it, by
/// its answer, whether the context is gone: what was in it is then freed. Before that nothing has an effect.
fn end<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    context: CUcontext,
    primary: Option<CUdevice>,
    is_gone: impl FnOnce(CUresult) -> bool,
) -> CUresult {
    if !life::active() || context.is_null() {
        return bare.call();
    }
    let (result, [gone], left) = aside([context], || {
        let result = bare.call();
        (result, [is_gone(result)])
    });
    if gone {
        allocation::context_ended(context, primary);
    } else {
        streams::context_given_back(context);
    }
    drop(left);
    result
}

/// Makes a call after which these contexts may be destroyed: nothing of ours uses them from before the call until the driver
/// has said which of them live. (A destroyed context that is pushed corrupts the driver.)
fn aside<const N: usize>(
    contexts: [CUcontext; N],
    call: impl FnOnce() -> (CUresult, [bool; N]),
) -> (CUresult, [bool; N], [Left; N]) {
    // Memory that the application maps itself, and that of pools, outlives contexts, and could not come back without one, nor could
    // arrays of one that stays: it is in, and stays so until it is known which of them live.
    let _resident =
        (virtuals::are_there() || arrays::are_there() || stream_ordered::holds()).then(turn::pass);
    // A drain that looks at the streams now would miss those of these contexts: it waits for who is inside.
    let _inside = gate::pass_at_once();
    let numbers = contexts.map(|context| streams::order::context_number(Some(context)));
    let left = home::leave_contexts(contexts.map(<*mut _>::addr));
    let absent = contexts.map(streams::context_leaves);
    let (result, gone) = call();
    for (absent, gone) in absent.into_iter().zip(gone) {
        if gone {
            absent.ends();
        } else {
            absent.stays();
        }
    }
    for (context, _) in contexts.into_iter().zip(gone).filter(|(_, gone)| *gone) {
        allocation::arrays::context_ended(context.addr());
    }
    for number in numbers.into_iter().zip(gone).filter_map(|(number, gone)| number.filter(|_| gone)) {
        stream_ordered::context_over(number);
    }
    for (left, gone) in left.iter().zip(gone) {
        left.told(gone);
    }
    (result, gone, left)
}

/// A green context's streams are detached with it, and can be asked nothing any more, while their work goes on. Its memory
/// is the primary context's, which it keeps alive: where nobody else does, that ends with it.
pub(crate) unsafe fn destroy_green<F: Fn() -> CUresult>(bare: &Bare<F>, green: CUgreenCtx) -> CUresult {
    let mut context = std::ptr::null_mut();
    // SAFETY: the application's handle, and a place for the answer.
    let found = unsafe { driver().cuCtxFromGreenCtx(&raw mut context, green) };
    if !life::active() || !found.ok() || context.is_null() {
        return bare.call();
    }
    let device = device_of(context);
    streams::keep_context_in_sight(context);
    let Some((device, primary)) = device.and_then(|device| Some((device, primary_below(device, context)?)))
    else {
        let (result, [gone], _left) = aside([context], || {
            let result = bare.call();
            (result, [result.ok()])
        });
        if gone {
            allocation::green_context_ended(context, None);
        }
        return result;
    };
    let before = instance(primary);
    let (result, [gone, ended], left) = aside([context, primary], || {
        let result = bare.call();
        let gone = result.ok();
        (result, [gone, gone && (!is_active(device) || instance(primary) != before)])
    });
    if gone {
        streams::green_ended(context);
        allocation::green_context_ended(context, Some(primary));
    }
    if ended {
        allocation::context_ended(primary, Some(device));
    }
    drop(left);
    result
}

/// The primary context that a green one of the device is a part of; it need not have been retained.
fn primary_below(device: CUdevice, green: CUcontext) -> Option<CUcontext> {
    primary(device).or_else(|| streams::primary_under(green))
}

/// Memory of the peer's device becomes reachable from the current context's: what is there now, and what will be.
pub(crate) unsafe fn enable_peer<F: Fn() -> CUresult>(bare: &Bare<F>, peer: CUcontext) -> CUresult {
    let result = bare.call();
    if result.ok()
        && life::active()
        && let (Some(of), Some(from)) = (device_of(peer), streams::current_device())
    {
        allocation::on_peer_access(of, from);
    }
    result
}

/// The device of a context that lives.
pub(crate) fn device_of(context: CUcontext) -> Option<CUdevice> {
    let _current = streams::Current::push(context).ok()?;
    streams::current_device()
}

/// The primary context of each device that was retained. It has the same handle as long as the process runs.
fn primaries() -> MutexGuard<'static, BTreeMap<CUdevice, usize>> {
    static PRIMARIES: Mutex<BTreeMap<CUdevice, usize>> = Mutex::new(BTreeMap::new());
    PRIMARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The primary context of the device, if it was ever retained.
pub(crate) fn primary(device: CUdevice) -> Option<CUcontext> {
    primaries().get(&device).map(|context| std::ptr::with_exposed_provenance_mut(*context))
}

/// Whether the device's primary context exists.
fn is_active(device: CUdevice) -> bool {
    let (mut flags, mut active) = (0, 0);
    // SAFETY: the driver stores two numbers.
    let asked = unsafe { driver().cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) };
    asked.ok() && active != 0
}

/// A number that another context at the same address does not have; none from a driver before 12.0.
fn instance(context: CUcontext) -> Option<u64> {
    let mut number = 0;
    // SAFETY: the context exists, and the driver stores a number.
    let asked =
        driver().has(Symbol::cuCtxGetId) && unsafe { driver().cuCtxGetId(context, &raw mut number) }.ok();
    asked.then_some(number)
}
