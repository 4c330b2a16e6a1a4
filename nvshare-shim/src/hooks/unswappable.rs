//! Memory that cannot be moved (yet): passed through, and reported to the engine with its bytes and the reason.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use super::Bare;
use super::contexts::current_device;
use crate::cuda::CUresult;
use crate::cuda::sys::{
    CUDA_ARRAY_DESCRIPTOR, CUDA_ARRAY3D_DESCRIPTOR, CUDA_MEM_ALLOC_NODE_PARAMS, CUarray, CUdeviceptr,
    CUgraphNodeParams, CUmemAllocationProp, CUmemGenericAllocationHandle, CUmipmappedArray, CUstream,
};
use crate::gate;
use crate::memory;
use crate::start;

/// What is held, by reason and handle: the device and how many bytes.
type Held = BTreeMap<(&'static str, u64), (i32, u64)>;

static HELD: Mutex<Held> = Mutex::new(BTreeMap::new());

const ARRAY: &str = "array";
const MIPMAPPED: &str = "mipmapped";
const MANAGED: &str = "managed";
const STREAM_ORDERED: &str = "stream_ordered";
const VMM: &str = "vmm";
const GRAPH: &str = "graph";
const EXPORTED: &str = "exported";
const IMPORTED: &str = "imported";

fn took(reason: &'static str, handle: u64, bytes: u64) {
    if !start::active() {
        return;
    }
    let Some(device) = current_device() else { return };
    let before =
        HELD.lock().unwrap_or_else(PoisonError::into_inner).insert((reason, handle), (device, bytes));
    if let Some((device, bytes)) = before {
        // The driver uses the address again, and nobody said that it was free.
        memory::pass_through(device, reason, -(bytes as i64));
    }
    memory::pass_through(device, reason, bytes as i64);
}

fn gave_back(reason: &'static str, handle: u64) {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).remove(&(reason, handle));
    if let Some((device, bytes)) = held
        && start::active()
    {
        memory::pass_through(device, reason, -(bytes as i64));
    }
}

/// Whether the client may not have so much more: its limit holds for what passes by the engine, too. (Managed memory may
/// exceed a device.)
fn beyond_limit(bytes: u64) -> bool {
    start::active() && current_device().is_some_and(|device| memory::exceeds_limit(device, bytes))
}

/// The allocating call, once more after room was made; what it made is noted.
unsafe fn noted<F: Fn() -> CUresult, H>(
    bare: &Bare<F>,
    reason: &'static str,
    at: *mut H,
    number: impl Fn(H) -> u64,
    bytes: impl FnOnce() -> u64,
) -> CUresult {
    let result = super::room::retry(bare);
    if result.ok() && !at.is_null() {
        // SAFETY: the driver has just stored the handle there.
        took(reason, number(unsafe { at.read() }), bytes());
    }
    result
}

pub(crate) unsafe fn managed<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
) -> CUresult {
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, MANAGED, at, |address| address, || bytes as u64) }
}

/// A `cuMemFree` of memory that is not the engine's.
pub(crate) fn freed(at: CUdeviceptr) {
    gave_back(MANAGED, at);
    gave_back(STREAM_ORDERED, at);
}

pub(crate) unsafe fn stream_ordered<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
) -> CUresult {
    if beyond_limit(bytes as u64) {
        return CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    }
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, STREAM_ORDERED, at, |address| address, || bytes as u64) }
}

pub(crate) unsafe fn free_async<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: CUdeviceptr,
    stream: CUstream,
) -> CUresult {
    if start::active()
        && let Some(result) = memory::free_in_order(at, bare.stream(stream))
    {
        super::below::hear(bare);
        return result;
    }
    let result = bare.call();
    if result.ok() {
        gave_back(STREAM_ORDERED, at);
    }
    result
}

pub(crate) unsafe fn create<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: *mut CUmemGenericAllocationHandle,
    bytes: usize,
    property: *const CUmemAllocationProp,
) -> CUresult {
    // SAFETY: the driver reads it too; the location's type is its second number, read as one (it may be of a kind that
    // is newer than this build).
    let on_device = !property.is_null()
        && unsafe { (&raw const (*property).location.type_).cast::<u32>().read() } == DEVICE_LOCATION;
    let held = if on_device { bytes as u64 } else { 0 };
    if held > 0 && beyond_limit(held) {
        return CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    }
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, VMM, handle, |handle| handle, || held) }
}

/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const DEVICE_LOCATION: u32 = 1;

pub(crate) unsafe fn release<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: CUmemGenericAllocationHandle,
) -> CUresult {
    let result = bare.call();
    if result.ok() {
        gave_back(VMM, handle);
        gave_back(IMPORTED, handle);
    }
    result
}

pub(crate) unsafe fn import<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: *mut CUmemGenericAllocationHandle,
) -> CUresult {
    // SAFETY: the application's own arguments. The memory is counted by the process that made it.
    unsafe { noted(bare, IMPORTED, handle, |handle| handle, || 0) }
}

/// The memory at `at` is shared with somebody who keeps its physical pages: from now on it stays where it is.
pub(crate) unsafe fn export<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr, bytes: usize) -> CUresult {
    if !start::active() {
        return bare.call();
    }
    // Inside the pass nothing leaves the device, so that what is shared is what stays.
    let _pass = gate::pass();
    let result = bare.call();
    if result.ok() && !memory::stays(at, bytes as u64) {
        took(EXPORTED, at, 0);
    }
    result
}

/// Memory is bound to a multicast object, which keeps its physical pages. Of plain memory the driver refuses that.
pub(crate) unsafe fn bind<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr, bytes: usize) -> CUresult {
    if start::active() && memory::describe(at).is_some() {
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

/// The application takes a handle of the physical memory behind `at`.
pub(crate) unsafe fn retain<F: Fn() -> CUresult>(bare: &Bare<F>, at: *mut c_void) -> CUresult {
    // SAFETY: the application's own arguments.
    unsafe { export(bare, at.addr() as u64, 1) }
}

pub(crate) unsafe fn array<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: *mut CUarray,
    descriptor: *const CUDA_ARRAY_DESCRIPTOR,
) -> CUresult {
    let bytes = || {
        // SAFETY: the driver has accepted the descriptor; its format is read as a number.
        unsafe {
            let format = (&raw const (*descriptor).Format).cast::<u32>().read();
            array_bytes([(*descriptor).Width, (*descriptor).Height, 1], format, (*descriptor).NumChannels)
        }
    };
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, ARRAY, array, |array| array.addr() as u64, bytes) }
}

pub(crate) unsafe fn array_3d<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: *mut CUarray,
    descriptor: *const CUDA_ARRAY3D_DESCRIPTOR,
) -> CUresult {
    // SAFETY: the application's own arguments; the descriptor is read after the driver accepted it.
    unsafe { noted(bare, ARRAY, array, |array| array.addr() as u64, || array_3d_bytes(descriptor)) }
}

pub(crate) unsafe fn mipmapped<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: *mut CUmipmappedArray,
    descriptor: *const CUDA_ARRAY3D_DESCRIPTOR,
    levels: u32,
) -> CUresult {
    // Each level has an eighth (a quarter, a half) of the one before; twice the first bounds them all.
    let bytes = || {
        // SAFETY: as above.
        let first = unsafe { array_3d_bytes(descriptor) };
        if levels > 1 { first.saturating_mul(2) } else { first }
    };
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, MIPMAPPED, array, |array| array.addr() as u64, bytes) }
}

pub(crate) unsafe fn array_destroy<F: Fn() -> CUresult>(bare: &Bare<F>, array: CUarray) -> CUresult {
    let result = bare.call();
    if result.ok() {
        gave_back(ARRAY, array.addr() as u64);
    }
    result
}

pub(crate) unsafe fn mipmapped_destroy<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: CUmipmappedArray,
) -> CUresult {
    let result = bare.call();
    if result.ok() {
        gave_back(MIPMAPPED, array.addr() as u64);
    }
    result
}

/// A graph that allocates: its memory lives in the device's graph pool from the first launch on.
pub(crate) unsafe fn graph_node<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    parameters: *mut CUDA_MEM_ALLOC_NODE_PARAMS,
) -> CUresult {
    let result = bare.call();
    if result.ok() && !parameters.is_null() {
        // SAFETY: the driver has read the size and stored the address.
        let (address, bytes) = unsafe { ((*parameters).dptr, (*parameters).bytesize) };
        took(GRAPH, address, bytes as u64);
    }
    result
}

/// A node of any kind: the kind stands first in its parameters, an allocation's parameters behind three more words.
pub(crate) unsafe fn any_graph_node<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    parameters: *mut CUgraphNodeParams,
) -> CUresult {
    // SAFETY: nothing is asked of the caller beyond the application's own arguments.
    let result = unsafe { super::work::described(bare) };
    // SAFETY: the driver has accepted the parameters; the kind is read as a number, it may be newer than this build.
    if result.ok() && unsafe { parameters.cast::<u32>().read() } == MEMORY_ALLOCATION_NODE {
        // SAFETY: of this kind, so this is what the union holds; the driver has stored the address.
        let (address, bytes) = unsafe {
            let allocation = (&raw const (*parameters).__bindgen_anon_1.alloc).read();
            (allocation.dptr, allocation.bytesize)
        };
        took(GRAPH, address, bytes as u64);
    }
    result
}

/// `CU_GRAPH_NODE_TYPE_MEM_ALLOC`.
const MEMORY_ALLOCATION_NODE: u32 = 10;

unsafe fn array_3d_bytes(descriptor: *const CUDA_ARRAY3D_DESCRIPTOR) -> u64 {
    // SAFETY: the caller's driver has accepted the descriptor; its format is read as a number.
    unsafe {
        let format = (&raw const (*descriptor).Format).cast::<u32>().read();
        array_bytes(
            [(*descriptor).Width, (*descriptor).Height, (*descriptor).Depth],
            format,
            (*descriptor).NumChannels,
        )
    }
}

/// What an array takes at least: zero extents count as one; formats as `CUarray_format` numbers them.
fn array_bytes(extents: [usize; 3], format: u32, channels: u32) -> u64 {
    let element = match format {
        0x01 | 0x08 => 1,        // 8-bit integers
        0x03 | 0x0a | 0x20 => 4, // 32-bit integers, float
        _ => 2,                  // 16-bit integers, half, and a guess for packed and compressed formats
    };
    extents.iter().map(|extent| (*extent).max(1) as u64).product::<u64>()
        * element
        * u64::from(channels.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_counts_all_its_elements_and_a_missing_extent_as_one() {
        assert_eq!(array_bytes([16, 0, 0], 0x20, 1), 64);
        assert_eq!(array_bytes([16, 16, 4], 0x01, 4), 16 * 16 * 4 * 4);
    }
}
