//! Parts of graphs, described one by one: in the forms for one kind, and in the form for any. Whatever holds for a kind holds
//! in both, so both come here.
//!
//! A copy names one context for both ends, and there is no form of it that names two: so the device that it runs on gets
//! access to memory of ours on another card, where the cards allow it. (Memsets of another card's memory are refused bare,
//! plain memory as well, by an H200's answer.)

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::ffi::c_void;

use super::across::Slices;
use super::contexts::device_of;
use super::reach::{distant, grant};
use super::{Bare, work};
use crate::allocation::{owner, pools};
use crate::cuda::CUresult;
use crate::cuda::sys::{CUDA_MEMCPY_NODE_PARAMS, CUcontext, CUdevice, CUgraphNodeParams};
use crate::streams::current_device;
use crate::{device, life};

/// `CU_GRAPH_NODE_TYPE_MEMCPY` and `_MEM_ALLOC`.
const COPY: u32 = 1;
const ALLOCATION: u32 = 10;

/// `CUgraphNodeParams` of a copy, up to its end.
#[repr(C)]
struct AnyCopy {
    kind: u32,
    reserved: [u32; 3],
    flags: u32,
    reserved_too: u32,
    context: CUcontext,
    copy: Slices,
}

const _: () = assert!(
    size_of::<AnyCopy>() == 16 + size_of::<CUDA_MEMCPY_NODE_PARAMS>()
        && size_of::<AnyCopy>() <= size_of::<CUgraphNodeParams>()
);

/// A copy is added, or changed, that will run in `context`.
pub(crate) unsafe fn copy<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    copy: *const c_void,
    context: CUcontext,
) -> CUresult {
    // SAFETY: null, or the application's description, which the driver would read too.
    if let Some(copy) = unsafe { copy.cast::<Slices>().as_ref() } {
        let runs_on = if context.is_null() { current_device() } else { device_of(context) };
        let_reach(copy, runs_on);
    }
    // SAFETY: the application's own call.
    unsafe { work::described(bare) }
}

/// A copy is changed that runs where it did: in the context that it was added with, which is not asked for again.
pub(crate) unsafe fn copy_as_before<F: Fn() -> CUresult>(bare: &Bare<F>, copy: *const c_void) -> CUresult {
    // SAFETY: null, or the application's description, which the driver would read too.
    if let Some(copy) = unsafe { copy.cast::<Slices>().as_ref() } {
        let_reach_from_anywhere(copy);
    }
    // SAFETY: the application's own call.
    unsafe { work::described(bare) }
}

/// A part of any kind is added: the kind stands first in its parameters.
pub(crate) unsafe fn any<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    parameters: *const CUgraphNodeParams,
) -> CUresult {
    // SAFETY: the application's own arguments.
    let result = unsafe { changed(bare, parameters) };
    // SAFETY: the driver has accepted the parameters; the kind is read as a number, it may be newer than this build.
    if result.ok() && life::active() && unsafe { parameters.cast::<u32>().read() } == ALLOCATION {
        pools::graph_allocates();
    }
    result
}

/// A part of any kind is changed.
pub(crate) unsafe fn changed<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    parameters: *const CUgraphNodeParams,
) -> CUresult {
    // SAFETY: null, or the application's parameters, which the driver would read too.
    if !parameters.is_null() && unsafe { parameters.cast::<u32>().read() } == COPY {
        // SAFETY: of this kind.
        let any = unsafe { &*parameters.cast::<AnyCopy>() };
        if any.context.is_null() {
            let_reach_from_anywhere(&any.copy);
        } else {
            let_reach(&any.copy, device_of(any.context));
        }
    }
    // SAFETY: the application's own call.
    unsafe { work::described(bare) }
}

fn let_reach(copy: &Slices, runs_on: Option<CUdevice>) {
    if device::several() && life::active() {
        grant(&distant(&copy.addresses(), || runs_on));
    }
}

/// As [`let_reach`], where it is not said what it runs on: the current device, or one that an end is on.
fn let_reach_from_anywhere(copy: &Slices) {
    if device::several() && life::active() {
        let ends = copy.addresses();
        let owners = ends.iter().filter_map(|end| owner::owner(*end)).map(|owner| owner.device);
        for runs_on in owners.chain(current_device()) {
            grant(&distant(&ends, || Some(runs_on)));
        }
    }
}
