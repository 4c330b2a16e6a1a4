//! Device memory: allocation, free, and questions about it, answered by the engine where the memory is its own.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Bare;
use crate::cuda::sys::CUdeviceptr;
use crate::cuda::{CEnum, CUresult};
use crate::{gate, memory, start, streams};

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

/// `SYNC_MEMOPS` is asked for before memory is given to other hardware: where the driver allows it, the memory stays where
/// it is. For mapped memory, as ours is, it answers 801 (seen on an H200).
pub(crate) unsafe fn set_attribute<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    attribute: CEnum,
    at: CUdeviceptr,
) -> CUresult {
    if !start::active() || attribute != SYNC_MEMOPS {
        return bare.call();
    }
    let _pass = gate::pass();
    let result = bare.call();
    if result.ok() {
        memory::stays(at, 1);
    }
    result
}

/// `CU_POINTER_ATTRIBUTE_SYNC_MEMOPS`.
const SYNC_MEMOPS: CEnum = 6;

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
/// back an allocation, not the allocation, and of swapped memory it knows nothing. The buffer's number stands for its
/// physical memory: it changes with every swap-in, and while there is none no two answers are the same.
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
            11 | 19 => data.cast::<u64>().write(found.start), // RANGE_START_ADDR, MAPPING_BASE_ADDR
            12 | 18 => data.cast::<u64>().write(found.bytes), // RANGE_SIZE, MAPPING_SIZE
            13 => data.cast::<u8>().write(1),     // MAPPED
            14 => data.cast::<u64>().write(0),    // ALLOWED_HANDLE_TYPES
            16 => data.cast::<u32>().write(3),    // ACCESS_FLAGS: read and write
            17 => data.cast::<usize>().write(0),  // MEMPOOL_HANDLE
            // SYNC_MEMOPS, IS_GPU_DIRECT_RDMA_CAPABLE, IS_HW_DECOMPRESS_CAPABLE
            6 | 15 | 21 if !found.resident => data.cast::<u8>().write(0),
            7 | 20 if !found.resident => data.cast::<u64>().write(passing_number()), // BUFFER_ID, MEMORY_BLOCK_ID
            _ => return None,
        }
    }
    Some(CUresult::CUDA_SUCCESS)
}

/// A number that the driver gives to nothing and that is never given twice.
fn passing_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(found: &memory::Described, attribute: CEnum) -> (Option<CUresult>, u64) {
        let mut value = 0_u64;
        // SAFETY: no attribute is wider than the eight bytes of `value`.
        let result = unsafe { answer(found, (&raw mut value).cast(), attribute, found.start + 7) };
        (result, value)
    }

    #[test]
    fn what_is_swapped_is_described_from_the_records_and_never_by_the_driver() {
        let context = std::ptr::without_provenance_mut(0x77);
        let mut found = memory::Described { start: 0x1000, bytes: 300, context, device: 2, resident: false };
        let ok = Some(CUresult::CUDA_SUCCESS);
        for (attribute, value) in [
            (1, 0x77),
            (2, 2),
            (3, 0x1007),
            (6, 0),
            (8, 0),
            (9, 2),
            (11, 0x1000),
            (12, 300),
            (13, 1),
            (16, 3),
        ] {
            assert_eq!(ask(&found, attribute), (ok, value), "attribute {attribute}");
        }
        assert_eq!(ask(&found, 4), (Some(CUresult::CUDA_ERROR_INVALID_VALUE), 0));
        assert_ne!(
            ask(&found, 7).1,
            ask(&found, 7).1,
            "nobody may keep the number of memory that is not there"
        );
        found.resident = true;
        assert_eq!(ask(&found, 7), (None, 0));
        assert_eq!(ask(&found, 12), (ok, 300));
    }
}
