//! Questions about memory of ours and calls that are not for it. Every answer comes from the records, and is the one that
//! memory of `cuMemAlloc` gets without nvshare, wherever the bytes are (S11; the values are an H200's): the driver knows
//! the pieces that back an allocation, not the allocation, and of swapped memory nothing.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::ffi::c_void;

use super::{Bare, between, mapped, unswappable, work};
use crate::cuda::sys::{CUdeviceptr, CUmemGenericAllocationHandle, CUmemLocation, CUstream};
use crate::cuda::{CEnum, CUresult};
use crate::driver::driver;
use crate::{allocation, life, streams, turn};

/// `CU_POINTER_ATTRIBUTE_P2P_TOKENS` and `_SYNC_MEMOPS`.
const P2P_TOKENS: CEnum = 5;
const SYNC_MEMOPS: CEnum = 6;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const DEVICE: u32 = 1;
/// Device memory has no address for the host.
const NO_HOST_POINTER: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;
/// Numbers of allocations are none like this.
const POOLS: u64 = 3 << 62;
/// What plain memory is mapped in.
const MAPPING: u64 = 2 << 20;

/// The allocation of ours at an address.
pub(super) fn known(at: CUdeviceptr) -> Option<allocation::Described> {
    if life::active() { allocation::describe(at) } else { None }
}

pub(crate) unsafe fn address_range<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    start: *mut CUdeviceptr,
    bytes: *mut usize,
    at: CUdeviceptr,
) -> CUresult {
    if between::is(at) {
        return CUresult::CUDA_ERROR_NOT_FOUND;
    }
    if let Some(found) = mapped::known(at) {
        // SAFETY: the application's own arguments.
        return unsafe { mapped::address_range(&found, start, bytes) };
    }
    let Some(found) = known(at) else { return bare.call() };
    if let Err(error) = streams::check_current() {
        return error;
    }
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
    if between::is(at) {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    if data.is_null() {
        return bare.call();
    }
    if let Some(found) = mapped::known(at) {
        // SAFETY: the application's own arguments.
        return unsafe { mapped::attribute(bare, &found, data, wanted, at) };
    }
    let Some(found) = known(at) else { return bare.call() };
    if wanted == P2P_TOKENS {
        return with_tokens(bare, &found);
    }
    // SAFETY: `data` is the application's place for this attribute's value.
    unsafe { answer(&found, data, wanted, at) }.unwrap_or_else(|| bare.call())
}

/// The driver judges the arguments; what it says of memory of ours is written over.
pub(crate) unsafe fn attributes<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    count: u32,
    wanted: *mut CEnum,
    data: *mut *mut c_void,
    at: CUdeviceptr,
) -> CUresult {
    if between::is(at) {
        // SAFETY: the application's own arguments.
        return unsafe { between::attributes(count, wanted, data, at) };
    }
    if let Some(found) = mapped::known(at) {
        // SAFETY: the application's own arguments.
        return unsafe { mapped::attributes(bare, &found, count, wanted, data, at) };
    }
    let found = known(at).filter(|_| !wanted.is_null() && !data.is_null());
    let Some(found) = found else { return bare.call() };
    // SAFETY: the application's array of that length.
    let wanted = |index: usize| unsafe { wanted.add(index).read() };
    let tokens = (0..count as usize).any(|index| wanted(index) == P2P_TOKENS);
    let result = if tokens { with_tokens(bare, &found) } else { bare.call() };
    if result.ok() {
        for index in 0..count as usize {
            // SAFETY: the driver has accepted both arrays of `count` elements.
            unsafe {
                let place = data.add(index).read();
                // What cannot be asked for alone is zero in a list. (Of memory that is out the driver says something else.)
                if !place.is_null() && answer(&found, place, wanted(index), at) == Some(NO_HOST_POINTER) {
                    place.cast::<u64>().write(0);
                }
            }
        }
    }
    result
}

/// Whoever gets the tokens finds the physical pages by them: they are given out while the memory is there, and it stays.
fn with_tokens<F: Fn() -> CUresult>(bare: &Bare<F>, found: &allocation::Described) -> CUresult {
    let _pass = turn::pass();
    let result = bare.call();
    if result.ok() {
        allocation::stays(found.start, found.bytes);
    }
    result
}

/// `SYNC_MEMOPS` is asked for before memory is given to other hardware: it stays where it is. For mapped memory, as ours is,
/// the attribute is always on and the driver lets nobody change it (seen on an H200); plain memory's answers yes.
pub(crate) unsafe fn set_attribute<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    value: *const c_void,
    attribute: CEnum,
    at: CUdeviceptr,
) -> CUresult {
    if between::is(at) {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    if mapped::known(at).is_some() {
        return mapped::here(bare);
    }
    let found = known(at).filter(|_| attribute == SYNC_MEMOPS && !value.is_null());
    let Some(found) = found else { return bare.call() };
    let _pass = turn::pass();
    allocation::stays(found.start, found.bytes);
    // SAFETY: the application's boolean, of whatever width.
    allocation::set_sync(found.start, unsafe { value.cast::<u8>().read() } != 0);
    CUresult::CUDA_SUCCESS
}

/// Of plain memory the driver says that nobody has access, to whoever asks.
pub(crate) unsafe fn access<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    flags: *mut u64,
    location: *const CUmemLocation,
    at: CUdeviceptr,
) -> CUresult {
    if between::is(at) {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    if flags.is_null() || location.is_null() {
        return bare.call();
    }
    if let Some(found) = mapped::known(at) {
        // SAFETY: the application's own arguments.
        return unsafe { mapped::access(bare, &found, flags, location) };
    }
    if known(at).is_none() {
        return bare.call();
    }
    // SAFETY: the application's location; its type is read as a number, it may be newer than this build.
    let (kind, id) = unsafe { (location.cast::<u32>().read(), (*location).id) };
    let mut devices = 0;
    // SAFETY: `devices` is where the answer goes.
    let counted = unsafe { driver().cuDeviceGetCount(&raw mut devices) };
    if kind == DEVICE && counted.ok() && !(0..devices).contains(&id) {
        return CUresult::CUDA_ERROR_INVALID_DEVICE;
    }
    // SAFETY: the application's place for the flags.
    unsafe { flags.write(0) };
    CUresult::CUDA_SUCCESS
}

/// A handle of the physical memory: of plain memory there is none to be had. (Who got one would go on as with memory that
/// can be exported, and fail there instead of choosing another way.)
pub(crate) unsafe fn retain<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: *mut CUmemGenericAllocationHandle,
    at: *mut c_void,
) -> CUresult {
    if between::is(at.expose_provenance() as u64) {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    if known(at.expose_provenance() as u64).is_some() {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    // SAFETY: the application's own arguments.
    unsafe { unswappable::retain(bare, handle, at) }
}

/// A call about mappings, or managed memory, that plain memory is nothing for.
pub(crate) unsafe fn not_for_plain<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr) -> CUresult {
    if mapped::known(at).is_some() {
        return mapped::here(bare);
    }
    if known(at).is_some() || between::is(at) { CUresult::CUDA_ERROR_INVALID_VALUE } else { bare.call() }
}

/// As [`not_for_plain`], of a call that submits work.
pub(crate) unsafe fn prefetch<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: CUdeviceptr,
    stream: CUstream,
) -> CUresult {
    if known(at).is_some() {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    // SAFETY: the application's own arguments.
    unsafe { work::on(bare, stream) }
}

/// Writes the attribute's value; `None` leaves it to the driver.
unsafe fn answer(
    found: &allocation::Described,
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
            4 => return Some(NO_HOST_POINTER),                                  // HOST_POINTER
            6 => data.cast::<u8>().write(u8::from(found.sync)),                 // SYNC_MEMOPS
            13 => data.cast::<u8>().write(1),                                   // MAPPED
            7 => data.cast::<u64>().write(found.number),                        // BUFFER_ID
            // MEMORY_BLOCK_ID: of a pool's pieces the same.
            20 => data.cast::<u64>().write(found.pool.map_or(found.number, |pool| POOLS | pool.number)),
            10 => data.cast::<u8>().write(u8::from(found.ipc)), // IS_LEGACY_CUDA_IPC_CAPABLE
            // IS_MANAGED, IS_HW_DECOMPRESS_CAPABLE
            8 | 21 => data.cast::<u8>().write(0),
            9 => data.cast::<i32>().write(found.device), // DEVICE_ORDINAL
            11 => data.cast::<u64>().write(found.start), // RANGE_START_ADDR
            12 => data.cast::<u64>().write(found.bytes), // RANGE_SIZE
            14 => data.cast::<u64>().write(0),           // ALLOWED_HANDLE_TYPES
            15 => data.cast::<u8>().write(u8::from(found.rdma)), // IS_GPU_DIRECT_RDMA_CAPABLE
            16 => data.cast::<u32>().write(3),           // ACCESS_FLAGS: read and write
            17 => data.cast::<usize>().write(found.pool.map_or(0, |pool| pool.handle)), // MEMPOOL_HANDLE
            18 => data.cast::<u64>().write(mapping(found).1), // MAPPING_SIZE
            19 => data.cast::<u64>().write(mapping(found).0), // MAPPING_BASE_ADDR
            _ => return None,
        }
    }
    Some(CUresult::CUDA_SUCCESS)
}

/// Where the mapping around an allocation begins and how long it is, in the units of plain memory.
fn mapping(found: &allocation::Described) -> (u64, u64) {
    if let Some(pool) = found.pool {
        return (found.start / pool.chunk * pool.chunk, pool.chunk);
    }
    let start = found.start / MAPPING * MAPPING;
    (start, (found.start + found.bytes).next_multiple_of(MAPPING) - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(found: &allocation::Described, attribute: CEnum) -> (Option<CUresult>, u64) {
        let mut value = 0_u64;
        // SAFETY: no attribute is wider than the eight bytes of `value`.
        let result = unsafe { answer(found, (&raw mut value).cast(), attribute, found.start + 7) };
        (result, value)
    }

    #[test]
    fn memory_is_described_from_the_records_as_plain_memory_is() {
        let context = std::ptr::without_provenance_mut(0x77);
        let start = 3 * MAPPING + 0x1000;
        let found = allocation::Described {
            start,
            bytes: 300,
            context,
            device: 2,
            rdma: true,
            ipc: true,
            number: 0x55,
            sync: true,
            pool: None,
        };
        let ok = Some(CUresult::CUDA_SUCCESS);
        for (attribute, value) in [
            (1, 0x77),
            (2, 2),
            (3, start + 7),
            (6, 1),
            (7, 0x55),
            (8, 0),
            (9, 2),
            (10, 1),
            (11, start),
            (12, 300),
            (13, 1),
            (15, 1),
            (16, 3),
            (18, MAPPING),
            (19, 3 * MAPPING),
            (20, 0x55),
            (21, 0),
        ] {
            assert_eq!(ask(&found, attribute), (ok, value), "attribute {attribute}");
        }
        assert_eq!(ask(&found, 4), (Some(CUresult::CUDA_ERROR_INVALID_VALUE), 0));
        assert_eq!(ask(&found, P2P_TOKENS), (None, 0), "the driver makes them");
    }
}
