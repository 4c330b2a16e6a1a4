//! Stream-ordered memory and its pools ([`crate::allocation::stream_ordered`]); what of it is not ours is passed and counted
//! ([`crate::allocation::pools`]).

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::ffi::c_void;

use super::{Bare, below, room};
use crate::allocation::{self, pools, stream_ordered};
use crate::cuda::sys::{CUdevice, CUdeviceptr, CUmemAccessDesc, CUmemPoolProps, CUmemoryPool, CUstream};
use crate::cuda::{CEnum, CUresult, STREAM_LEGACY};
use crate::streams::{self, current_device};
use crate::{config, life, log};

/// `CU_MEM_ALLOCATION_TYPE_PINNED` and `CU_MEM_LOCATION_TYPE_DEVICE`.
const PINNED: u32 = 1;
const DEVICE: u32 = 1;
/// `CU_MEMPOOL_ATTR_*`: up to here they are 32 bits wide.
const LAST_FLAG: u32 = 3;

/// From the pool that the stream's device uses.
#[inline]
pub(crate) unsafe fn alloc<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    // SAFETY: the application's own arguments.
    unsafe { alloc_from(bare, at, bytes, None, stream) }
}

/// From a pool that the application names.
#[inline]
pub(crate) unsafe fn alloc_from_pool<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
    pool: CUmemoryPool,
    stream: CUstream,
) -> CUresult {
    if pool.is_null() {
        return bare.call();
    }
    // SAFETY: the application's own arguments.
    unsafe { alloc_from(bare, at, bytes, Some(pool), stream) }
}

#[inline]
unsafe fn alloc_from<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
    pool: Option<CUmemoryPool>,
    stream: CUstream,
) -> CUresult {
    if !life::active() || at.is_null() || bytes == 0 {
        return bare.call();
    }
    let order = bare.stream(stream);
    if streams::capturing() {
        // Perhaps it becomes a part of a graph, which takes memory when it is launched.
        pools::graph_allocates();
        // Beside a capture the driver may refuse the legacy stream.
        if order == STREAM_LEGACY || streams::is_capturing(order) {
            return bare.call();
        }
    }
    let Some(taken) = stream_ordered::take(pool, bytes as u64, order) else {
        return passed(bare, pool, bytes);
    };
    match taken {
        Ok(start) => {
            // SAFETY: the application's place for the address.
            unsafe { at.write(start) };
            CUresult::CUDA_SUCCESS
        }
        Err(code) => code,
    }
}

/// From a pool of the driver's. The warm path takes no lock: what those pools hold is read from the driver now and then.
fn passed<F: Fn() -> CUresult>(bare: &Bare<F>, pool: Option<CUmemoryPool>, bytes: usize) -> CUresult {
    let Some(device) = pool.and_then(pools::device_of).or_else(current_device) else { return bare.call() };
    if !pools::unseen(device, bytes) {
        return beyond_headroom(bare, device, bytes);
    }
    let result = bare.call();
    pools::changed();
    room::again(bare, result, Some(device), Some(bytes as u64), || bare.call())
}

#[cold]
fn beyond_headroom<F: Fn() -> CUresult>(bare: &Bare<F>, device: CUdevice, bytes: usize) -> CUresult {
    if !pools::allows(device, bytes) || !room::is_granted(device, pools::growth(device, bytes)) {
        return CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    }
    let result = room::retry_with(bare, Some(device), Some(bytes as u64), || {
        pools::expect(device, bytes);
        let result = bare.call();
        // What it is in fact.
        pools::read();
        result
    });
    pools::changed();
    result
}

pub(crate) unsafe fn free<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: CUdeviceptr,
    stream: CUstream,
) -> CUresult {
    if !life::active() {
        return bare.call();
    }
    let order = bare.stream(stream);
    if let Some(result) = stream_ordered::freed(at, order).or_else(|| allocation::free_in_order(at, order)) {
        below::hear(bare);
        return result;
    }
    let result = bare.call();
    if result.ok() && config::get().plain && !streams::is_capturing(order) {
        super::unswappable::freed(at);
    }
    pools::changed();
    result
}

/// A pool is made: its memory is on the device that its properties name.
pub(crate) unsafe fn create<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    pool: *mut CUmemoryPool,
    properties: *const CUmemPoolProps,
) -> CUresult {
    let result = room::retry(bare, None);
    if result.ok() && !pool.is_null() && !properties.is_null() && life::active() {
        // SAFETY: the driver has read the properties and stored the handle; what is an enumeration is read as a number, it may be
        // newer than this build.
        unsafe {
            let location = &raw const (*properties).location;
            let kind = (&raw const (*properties).allocType).cast::<u32>().read();
            let types = (&raw const (*properties).handleTypes).cast::<u32>().read();
            if (&raw const (*location).type_).cast::<u32>().read() == DEVICE {
                let device = (&raw const (*location).id).read();
                pools::pool_made(pool.read(), device);
                let usage = (*properties).usage;
                if (kind, types, usage) == (PINNED, 0, 0) {
                    stream_ordered::pool_made(pool.read(), device, (*properties).maxSize as u64);
                } else {
                    log::info!("a pool stays on the card: kind {kind}, exported as {types:#x}, usage {usage:#x}");
                }
            }
        }
    }
    result
}

pub(crate) unsafe fn destroy<F: Fn() -> CUresult>(bare: &Bare<F>, pool: CUmemoryPool) -> CUresult {
    let result = bare.call();
    if result.ok() && life::active() {
        pools::pool_gone(pool);
        stream_ordered::pool_gone(pool);
    }
    result
}

pub(crate) unsafe fn trim<F: Fn() -> CUresult>(bare: &Bare<F>, pool: CUmemoryPool, keep: usize) -> CUresult {
    let result = bare.call();
    if result.ok() && life::active() {
        stream_ordered::trim(pool, keep as u64);
    }
    pools::changed();
    result
}

/// From now on a device's streams allocate from another pool.
pub(crate) unsafe fn choose<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    let result = bare.call();
    if life::active() {
        stream_ordered::another_is_current();
    }
    result
}

pub(crate) unsafe fn set_attribute<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    pool: CUmemoryPool,
    attribute: CEnum,
    value: *const c_void,
) -> CUresult {
    let result = bare.call();
    if result.ok() && !value.is_null() && life::active() {
        // SAFETY: the driver has read a value of this width.
        let value = unsafe {
            if attribute <= LAST_FLAG {
                u64::from(value.cast::<u32>().read())
            } else {
                value.cast::<u64>().read()
            }
        };
        stream_ordered::is_set(pool, attribute, value);
        stream_ordered::reset(pool, attribute);
    }
    pools::changed();
    result
}

pub(crate) unsafe fn attribute<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    pool: CUmemoryPool,
    attribute: CEnum,
    value: *mut c_void,
) -> CUresult {
    let result = bare.call();
    if result.ok()
        && !value.is_null()
        && life::active()
        && let Some(ours) = stream_ordered::figure(pool, attribute)
    {
        // SAFETY: the driver has just stored a figure of 64 bits there.
        unsafe { value.cast::<u64>().write(value.cast::<u64>().read().saturating_add(ours)) };
    }
    result
}

/// Another device may reach the pool's memory. Ours is reached by all who may reach any of its device's.
pub(crate) unsafe fn set_access<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    pool: CUmemoryPool,
    access: *const CUmemAccessDesc,
    count: usize,
) -> CUresult {
    let result = bare.call();
    if !result.ok() || access.is_null() || !life::active() {
        return result;
    }
    let Some(of) = stream_ordered::device_of(pool) else { return result };
    for index in 0..count {
        // SAFETY: the driver has read so many; what is an enumeration is read as a number.
        let (kind, id, flags) = unsafe {
            let one = access.add(index);
            let location = &raw const (*one).location;
            let kind = (&raw const (*location).type_).cast::<u32>().read();
            (kind, (*location).id, (&raw const (*one).flags).cast::<u32>().read())
        };
        if kind == DEVICE && flags != 0 && id != of {
            allocation::on_peer_access(of, id);
        }
    }
    result
}
