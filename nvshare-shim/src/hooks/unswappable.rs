//! Memory that cannot be moved (yet): passed through, and booked with its bytes and the reason ([`crate::allocation::unswappable`]).
//! Arrays: [`super::arrays`].

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::cell::Cell;
use std::ffi::c_void;

use super::{Bare, questions, room};
use crate::allocation::unswappable::{self, Expected, MANAGED, PLAIN, VMM};
use crate::allocation::{self, pools, stream_ordered};
use crate::cuda::CUresult;
use crate::cuda::sys::{
    CUDA_MEM_ALLOC_NODE_PARAMS, CUdeviceptr, CUmemAllocationProp, CUmemGenericAllocationHandle,
};
use crate::memory::held::Held;
use crate::streams::{self, current_device};
use crate::{life, turn};

/// Whether the client may not have so much more on the current device: its limit holds for what passes by the engine, too.
pub(super) fn beyond_limit(bytes: u64) -> bool {
    life::active() && current_device().is_some_and(|device| allocation::exceeds_limit(device, bytes))
}

/// The allocating call, again after room was made; what it made in the current context is noted.
pub(super) unsafe fn noted<F: Fn() -> CUresult, H>(
    bare: &Bare<F>,
    reason: &'static str,
    at: *mut H,
    number: impl Fn(H) -> u64,
    bytes: u64,
) -> CUresult {
    let Some(device) = current_device().filter(|_| life::active() && !at.is_null()) else {
        return bare.call();
    };
    let context = streams::current_context().map_or(0, <*mut _>::addr);
    // Managed memory takes none of the device as it is made, but what the driver needs to keep it.
    let wants = (reason != MANAGED).then_some(bytes);
    let (result, expected) = booked(bare, reason, Held { device, bytes, context }, wants);
    if let Some(expected) = expected {
        // SAFETY: the driver has just stored the handle there.
        expected.made(number(unsafe { at.read() }));
    }
    result
}

/// The allocating call, again after room was made. Its memory is in the books during each attempt, not while it waits.
fn booked<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    reason: &'static str,
    held: Held,
    wants: Option<u64>,
) -> (CUresult, Option<Expected>) {
    if wants.is_some_and(|bytes| !room::is_granted(held.device, bytes)) {
        return (CUresult::CUDA_ERROR_OUT_OF_MEMORY, None);
    }
    let made = Cell::new(None);
    let result = room::retry_with(bare, Some(held.device), wants, || {
        let expected = unswappable::expect(reason, held);
        let result = bare.call();
        if result.ok() {
            made.set(Some(expected));
        }
        result
    });
    (result, made.take())
}

/// Managed memory may exceed a device, and no limit holds for it.
pub(crate) unsafe fn managed<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
) -> CUresult {
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, MANAGED, at, |address| address, bytes as u64) }
}

/// What `cuMemAlloc` gives where the application wants the driver's own memory.
pub(crate) unsafe fn plain<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
) -> CUresult {
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, PLAIN, at, |address| address, bytes as u64) }
}

/// A `cuMemFree` of memory that is not the engine's.
pub(crate) fn freed(at: CUdeviceptr) {
    unswappable::gave_back(MANAGED, at);
    unswappable::gave_back(PLAIN, at);
    pools::changed();
}

/// A call after which graphs hold less.
pub(crate) unsafe fn trims_graphs<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    let result = bare.call();
    if result.ok() && life::active() {
        pools::graphs_trimmed();
    }
    result
}

/// The call's own properties name the device, which need not be the current one.
pub(crate) unsafe fn create<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: *mut CUmemGenericAllocationHandle,
    bytes: usize,
    property: *const CUmemAllocationProp,
) -> CUresult {
    if !life::active() || property.is_null() || handle.is_null() {
        return bare.call();
    }
    // SAFETY: the driver reads it too; the location's type is its second number, read as one (it may be of a kind that
    // is newer than this build).
    let (kind, device) = unsafe {
        let location = &raw const (*property).location;
        ((&raw const (*location).type_).cast::<u32>().read(), (&raw const (*location).id).read())
    };
    if kind != DEVICE_LOCATION {
        return room::retry(bare, None);
    }
    if allocation::exceeds_limit(device, bytes as u64) {
        return CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    }
    let bytes = bytes as u64;
    let (result, expected) = booked(bare, VMM, Held { device, bytes, context: 0 }, Some(bytes));
    if let Some(expected) = expected {
        // SAFETY: the driver has just stored the handle there.
        expected.made_physical(unsafe { handle.read() });
    }
    result
}

/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const DEVICE_LOCATION: u32 = 1;

pub(crate) unsafe fn release<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: CUmemGenericAllocationHandle,
) -> CUresult {
    let result = bare.call();
    if result.ok() && life::active() {
        unswappable::physical(|physical| physical.released(handle).into_iter().collect());
    }
    result
}

pub(crate) unsafe fn map<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: CUdeviceptr,
    bytes: usize,
    handle: CUmemGenericAllocationHandle,
) -> CUresult {
    if questions::known(at).is_some() {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    let result = room::retry(bare, None);
    if result.ok() && life::active() {
        unswappable::physical(|physical| {
            physical.mapped(at, bytes as u64, handle);
            Vec::new()
        });
    }
    result
}

pub(crate) unsafe fn unmap<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr, bytes: usize) -> CUresult {
    if questions::known(at).is_some() {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    let result = bare.call();
    if result.ok() && life::active() {
        unswappable::physical(|physical| physical.unmapped(at, bytes as u64));
    }
    result
}

/// The memory is counted by the process that made it.
pub(crate) unsafe fn import<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: *mut CUmemGenericAllocationHandle,
) -> CUresult {
    let result = room::retry(bare, None);
    if result.ok()
        && !handle.is_null()
        && life::active()
        && let Some(device) = current_device()
    {
        // SAFETY: the driver has just stored the handle there.
        unswappable::expect(VMM, Held { device, bytes: 0, context: 0 })
            .made_physical(unsafe { handle.read() });
    }
    result
}

/// The memory at `at` is shared with somebody who keeps its physical pages: from now on it stays where it is. (What is not the
/// engine's stays anyway, and is in the books already.)
pub(crate) unsafe fn export<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr, bytes: usize) -> CUresult {
    if !life::active() {
        return bare.call();
    }
    // Inside the pass nothing leaves the device, so that what is shared is what stays.
    if stream_ordered::pool_of(at).is_some() {
        // Of what lies in a pool no other can be given a part (seen on an H200).
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    let _pass = turn::pass();
    let result = bare.call();
    if result.ok() {
        allocation::stays(at, bytes as u64);
    }
    result
}

/// Memory is bound to a multicast object, which keeps its physical pages. Of plain memory the driver refuses that.
pub(crate) unsafe fn bind<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr, bytes: usize) -> CUresult {
    if life::active() && allocation::describe(at).is_some() {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    // SAFETY: the application's own arguments.
    unsafe { export(bare, at, bytes) }
}

/// As [`export`], with the types of another call.
pub(crate) unsafe fn export_all<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut c_void,
    bytes: u64,
) -> CUresult {
    // SAFETY: the application's own arguments.
    unsafe { export(bare, at.expose_provenance() as u64, bytes as usize) }
}

/// As [`export`], of whatever is there.
pub(crate) unsafe fn export_one<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr) -> CUresult {
    // SAFETY: the application's own arguments.
    unsafe { export(bare, at, 1) }
}

/// The application takes a handle of the physical memory behind `at`: one more reference to it.
pub(crate) unsafe fn retain<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: *mut CUmemGenericAllocationHandle,
    at: *mut c_void,
) -> CUresult {
    let at = at.addr() as u64;
    // SAFETY: the application's own arguments.
    let result = unsafe { export(bare, at, 1) };
    if result.ok() && !handle.is_null() && life::active() {
        unswappable::physical(|physical| {
            // SAFETY: the driver has just stored the handle there.
            physical.retained(at, unsafe { handle.read() });
            Vec::new()
        });
    }
    result
}

/// A graph that allocates: its memory lives in the device's graph pool from its first launch until that is trimmed, and is
/// counted by the driver's figure for that pool, not by the nodes.
pub(crate) unsafe fn graph_node<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    parameters: *mut CUDA_MEM_ALLOC_NODE_PARAMS,
) -> CUresult {
    let result = bare.call();
    if result.ok() && !parameters.is_null() && life::active() {
        pools::graph_allocates();
    }
    result
}
