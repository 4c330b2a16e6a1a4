//! Questions about memory that the application maps itself, as [`super::questions`] has them about plain memory: the answers are those
//! that the driver gives while it is on the device (an H200's), wherever it is.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::ffi::c_void;

use super::Bare;
use crate::cuda::sys::{CUdevice, CUdeviceptr, CUmemLocation};
use crate::cuda::{CEnum, CUresult};
use crate::driver::driver;
use crate::memory::virtuals::{self, Found};
use crate::{allocation, device, life, streams, turn};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;
/// `CU_POINTER_ATTRIBUTE_P2P_TOKENS`.
const P2P_TOKENS: CEnum = 5;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const DEVICE: u32 = 1;

/// What of ours is mapped at an address.
#[inline]
pub(super) fn known(at: CUdeviceptr) -> Option<Found> {
    if virtuals::are_there() && life::active() { virtuals::look().find(at) } else { None }
}

/// What a device may do there.
fn flags_of(found: &Found, device: CUdevice) -> u32 {
    let own = found.mapping.access.iter().find(|access| (access.kind, access.id) == (DEVICE, device));
    own.map_or(0, |access| access.flags)
}

pub(super) unsafe fn address_range(found: &Found, start: *mut CUdeviceptr, bytes: *mut usize) -> CUresult {
    if let Err(error) = streams::check_current() {
        return error;
    }
    // SAFETY: each is the application's place for its number, or null where it does not want it.
    unsafe {
        if !start.is_null() {
            start.write(found.start);
        }
        if !bytes.is_null() {
            bytes.write(found.mapping.bytes as usize);
        }
    }
    CUresult::CUDA_SUCCESS
}

pub(super) unsafe fn attribute<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    found: &Found,
    data: *mut c_void,
    wanted: CEnum,
    at: CUdeviceptr,
) -> CUresult {
    if wanted == P2P_TOKENS {
        return with_tokens(bare, at);
    }
    // SAFETY: `data` is the application's place for this attribute's value.
    unsafe { answer(found, data, wanted, at) }.unwrap_or_else(|| here(bare))
}

/// The driver judges the arguments; what it says of the memory is written over.
pub(super) unsafe fn attributes<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    found: &Found,
    count: u32,
    wanted: *mut CEnum,
    data: *mut *mut c_void,
    at: CUdeviceptr,
) -> CUresult {
    if wanted.is_null() || data.is_null() {
        return bare.call();
    }
    // SAFETY: the application's array of that length.
    let wanted = |index: usize| unsafe { wanted.add(index).read() };
    let tokens = (0..count as usize).any(|index| wanted(index) == P2P_TOKENS);
    let result = if tokens { with_tokens(bare, at) } else { bare.call() };
    if result.ok() {
        for index in 0..count as usize {
            // SAFETY: the driver has accepted both arrays of `count` elements.
            unsafe {
                let place = data.add(index).read();
                // What cannot be asked for alone is zero in a list: addresses, both of them.
                if !place.is_null() && answer(found, place, wanted(index), at) == Some(INVALID) {
                    place.cast::<u64>().write(0);
                }
            }
        }
    }
    result
}

/// Whoever gets the tokens finds the physical pages by them: they are given out while the memory is there, and it stays.
fn with_tokens<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr) -> CUresult {
    let _pass = turn::pass();
    let result = bare.call();
    if result.ok() {
        allocation::stays(at, 1);
    }
    result
}

/// The driver's answer while the memory is there.
pub(super) fn here<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    let _pass = turn::pass();
    bare.call()
}

pub(super) unsafe fn access<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    found: &Found,
    flags: *mut u64,
    location: *const CUmemLocation,
) -> CUresult {
    // SAFETY: the application's location; its type is read as a number, it may be newer than this build.
    let (kind, id) = unsafe { (location.cast::<u32>().read(), (*location).id) };
    if kind != DEVICE {
        return here(bare);
    }
    let mut devices = 0;
    // SAFETY: `devices` is where the answer goes.
    let counted = unsafe { driver().cuDeviceGetCount(&raw mut devices) };
    if counted.ok() && !(0..devices).contains(&id) {
        return CUresult::CUDA_ERROR_INVALID_DEVICE;
    }
    // SAFETY: the application's place for the flags.
    unsafe { flags.write(flags_of(found, id).into()) };
    CUresult::CUDA_SUCCESS
}

/// Writes the attribute's value; `None` leaves it to the driver.
unsafe fn answer(found: &Found, data: *mut c_void, attribute: CEnum, at: CUdeviceptr) -> Option<CUresult> {
    let own_flags = || streams::current_device().map_or(0, |here| flags_of(found, here));
    let (start, bytes) = found.reserved.unwrap_or((found.start, found.mapping.bytes));
    let device = device::by_index(found.handle.device).map_or(0, |device| device.kind.ordinal);
    // SAFETY: `data` is the place for this attribute, and the header gives each attribute the type that is written here.
    unsafe {
        match attribute {
            1 | 17 => data.cast::<usize>().write(0), // CONTEXT, MEMPOOL_HANDLE
            2 => data.cast::<u32>().write(2),        // MEMORY_TYPE: device
            // DEVICE_POINTER, for who has access
            3 if own_flags() == 0 => return Some(INVALID),
            3 => data.cast::<u64>().write(at),
            4 => return Some(INVALID),                           // HOST_POINTER
            6 => data.cast::<u8>().write(SYNC_MEMOPS),           // SYNC_MEMOPS
            7 => data.cast::<u64>().write(found.mapping.number), // BUFFER_ID: another one for each mapping
            // IS_MANAGED, IS_LEGACY_CUDA_IPC_CAPABLE, IS_HW_DECOMPRESS_CAPABLE
            8 | 10 | 21 => data.cast::<u8>().write(0),
            9 => data.cast::<i32>().write(device), // DEVICE_ORDINAL
            11 => data.cast::<u64>().write(start), // RANGE_START_ADDR
            12 => data.cast::<u64>().write(bytes), // RANGE_SIZE
            13 => data.cast::<u8>().write(1),      // MAPPED
            14 => data.cast::<u64>().write(found.handle.asked.types.into()), // ALLOWED_HANDLE_TYPES
            15 => data.cast::<u8>().write(u8::from(found.handle.asked.rdma)), // IS_GPU_DIRECT_RDMA_CAPABLE
            16 => data.cast::<u32>().write(own_flags()), // ACCESS_FLAGS
            18 => data.cast::<u64>().write(found.mapping.bytes), // MAPPING_SIZE
            19 => data.cast::<u64>().write(found.start), // MAPPING_BASE_ADDR
            20 => data.cast::<u64>().write(found.mapping.handle), // MEMORY_BLOCK_ID
            _ => return None,
        }
    }
    Some(CUresult::CUDA_SUCCESS)
}

/// What the driver says of all mapped memory.
const SYNC_MEMOPS: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::virtuals::{Access, Asked, Handle, Mapping};

    #[test]
    fn memory_is_described_from_the_records_as_the_driver_describes_what_is_mapped() {
        let access = vec![Access { kind: DEVICE, id: 1, flags: 3 }];
        let mapping = Mapping { bytes: 0x40, handle: 0x99, number: 0x55, access };
        let handle = Handle::new(usize::MAX, 0x9000, 0x40, Asked { types: 1, rdma: true, tiles: false });
        let found = Found { start: 0x1000, mapping, handle, reserved: Some((0x800, 0x1000)) };
        let ask = |attribute| {
            let mut value = 0_u64;
            // SAFETY: no attribute is wider than the eight bytes of `value`.
            let result = unsafe { answer(&found, (&raw mut value).cast(), attribute, 0x1007) };
            (result, value)
        };
        let ok = Some(CUresult::CUDA_SUCCESS);
        for (attribute, value) in [
            (1, 0),
            (2, 2),
            (7, 0x55),
            (8, 0),
            (11, 0x800),
            (12, 0x1000),
            (13, 1),
            (14, 1),
            (15, 1),
            (17, 0),
            (18, 0x40),
            (19, 0x1000),
            (20, 0x99),
        ] {
            assert_eq!(ask(attribute), (ok, value), "attribute {attribute}");
        }
        assert_eq!(ask(4), (Some(INVALID), 0));
        assert_eq!(ask(P2P_TOKENS), (None, 0), "the driver makes them");
        assert_eq!((flags_of(&found, 1), flags_of(&found, 0)), (3, 0));
    }
}
