//! Device memory: allocation, free, and questions about it, answered by the engine where the memory is its own.

use std::ffi::c_void;

use super::Bare;
use crate::cuda::sys::CUdeviceptr;
use crate::cuda::{CEnum, CUresult};
use crate::{memory, start, streams};

/// What `cuMemAllocPitch` rounds a row up to: attribute `TEXTURE_ALIGNMENT` of all devices so far.
const PITCH: usize = 512;

pub(crate) unsafe fn alloc<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
) -> CUresult {
    if !start::active() || at.is_null() || bytes == 0 {
        return bare.call();
    }
    note_context();
    match memory::allocate(bytes) {
        Ok(address) => {
            // SAFETY: the application's place for the address.
            unsafe { at.write(address) };
            CUresult::CUDA_SUCCESS
        }
        Err(error) => error,
    }
}

pub(crate) unsafe fn alloc_pitch<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    pitch: *mut usize,
    width: usize,
    height: usize,
    element: u32,
) -> CUresult {
    let row = width.checked_next_multiple_of(PITCH);
    let bytes = row.and_then(|row| row.checked_mul(height)).unwrap_or(0);
    if !start::active() || at.is_null() || pitch.is_null() || bytes == 0 || !matches!(element, 4 | 8 | 16) {
        return bare.call();
    }
    note_context();
    match memory::allocate(bytes) {
        Ok(address) => {
            // SAFETY: the application's places for address and pitch.
            unsafe {
                at.write(address);
                pitch.write(row.unwrap_or(0));
            }
            CUresult::CUDA_SUCCESS
        }
        Err(error) => error,
    }
}

pub(crate) unsafe fn free<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr) -> CUresult {
    if !start::active() || at == 0 {
        return bare.call();
    }
    memory::free(at).unwrap_or_else(|| {
        let result = bare.call();
        if result.ok() {
            super::unswappable::freed(at);
        }
        result
    })
}

pub(crate) unsafe fn info<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    free: *mut usize,
    total: *mut usize,
) -> CUresult {
    if !start::active() || free.is_null() || total.is_null() {
        return bare.call();
    }
    let Some((free_bytes, total_bytes)) = memory::info() else { return bare.call() };
    // SAFETY: the application's places for the two numbers.
    unsafe {
        free.write(free_bytes);
        total.write(total_bytes);
    }
    CUresult::CUDA_SUCCESS
}

pub(crate) unsafe fn address_range<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    start: *mut CUdeviceptr,
    bytes: *mut usize,
    at: CUdeviceptr,
) -> CUresult {
    let Some(found) = known(at) else { return bare.call() };
    // SAFETY: each is the application's place for its number, or null where it does not want it.
    unsafe {
        if !start.is_null() {
            start.write(found.start);
        }
        if !bytes.is_null() {
            bytes.write(found.bytes as usize);
        }
    }
    CUresult::CUDA_SUCCESS
}

pub(crate) unsafe fn attribute<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    data: *mut c_void,
    wanted: CEnum,
    at: CUdeviceptr,
) -> CUresult {
    if data.is_null() {
        return bare.call();
    }
    let Some(found) = known(at) else { return bare.call() };
    // SAFETY: `data` is the application's place for this attribute's value.
    match unsafe { answer(&found, data, wanted, at) } {
        Some(result) => result,
        None => bare.call(),
    }
}

/// The driver answers what it can; what is known better here is put over it.
pub(crate) unsafe fn attributes<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    count: u32,
    wanted: *mut CEnum,
    data: *mut *mut c_void,
    at: CUdeviceptr,
) -> CUresult {
    let result = bare.call();
    if !result.ok() || wanted.is_null() || data.is_null() {
        return result;
    }
    if let Some(found) = known(at) {
        for index in 0..count as usize {
            // SAFETY: the driver has accepted both arrays of `count` elements.
            unsafe {
                let place = data.add(index).read();
                if !place.is_null() {
                    let _ = answer(&found, place, wanted.add(index).read(), at);
                }
            }
        }
    }
    result
}

/// `SYNC_MEMOPS` on memory of ours is refused to nobody, but such memory stays where it is.
pub(crate) unsafe fn set_attribute<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    _attribute: CEnum,
    _at: CUdeviceptr,
) -> CUresult {
    bare.call()
}

/// A context that was made behind our back would be drained by nobody.
fn note_context() {
    if let Some(context) = streams::current_context() {
        streams::context_seen(context);
    }
}

fn known(at: CUdeviceptr) -> Option<memory::Described> {
    if start::active() { memory::describe(at) } else { None }
}

/// Writes the attribute's value, for memory of ours; `None` leaves it to the driver. The driver knows the pieces that
/// back an allocation, not the allocation, and of swapped memory it knows nothing.
unsafe fn answer(
    found: &memory::Described,
    data: *mut c_void,
    attribute: CEnum,
    at: CUdeviceptr,
) -> Option<CUresult> {
    // SAFETY: `data` is the place for this attribute, and the header gives each attribute the type that is written here.
    unsafe {
        match attribute {
            1 => data.cast::<usize>().write(found.context.expose_provenance()), // CONTEXT
            2 => data.cast::<u32>().write(2),                                   // MEMORY_TYPE: device
            3 => data.cast::<u64>().write(at),                                  // DEVICE_POINTER
            4 => return Some(CUresult::CUDA_ERROR_INVALID_VALUE),               // HOST_POINTER: none
            8 | 10 => data.cast::<u8>().write(0), // IS_MANAGED, IS_LEGACY_CUDA_IPC_CAPABLE
            9 => data.cast::<i32>().write(found.device), // DEVICE_ORDINAL
            11 => data.cast::<u64>().write(found.start), // RANGE_START_ADDR
            12 => data.cast::<u64>().write(found.bytes), // RANGE_SIZE
            13 => data.cast::<u8>().write(1),     // MAPPED
            14 => data.cast::<u64>().write(0),    // ALLOWED_HANDLE_TYPES
            16 => data.cast::<u32>().write(3),    // ACCESS_FLAGS: read and write
            17 => data.cast::<usize>().write(0),  // MEMPOOL_HANDLE
            _ => return None,
        }
    }
    Some(CUresult::CUDA_SUCCESS)
}
