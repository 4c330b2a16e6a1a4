//! Memory that the program makes and maps itself, as frameworks' allocators do: in handles of 20 MiB, which live by their mappings.

#![expect(unsafe_code, reason = "the driver is called")]

use anyhow::Result;
use cudarc::driver::sys::{
    self, CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationProp, CUmemAllocationType,
    CUmemLocation, CUmemLocationType,
};

/// What memory is made and mapped in.
const UNIT: u64 = 2 << 20;
/// The largest handle.
const HANDLE: u64 = 20 << 20;

/// Maps at least so much memory of the current context's device. Its address, and how much it is.
pub(crate) fn map(bytes: u64) -> Result<(CUdeviceptr, u64)> {
    let bytes = bytes.next_multiple_of(UNIT);
    let (mut device, mut address) = (0, 0);
    // SAFETY: places for the answers.
    unsafe {
        sys::cuCtxGetDevice(&raw mut device).result()?;
        sys::cuMemAddressReserve(&raw mut address, bytes as usize, 0, 0, 0).result()?;
    }
    let made = fill(address, bytes, device);
    if made.is_err() {
        unmap(address, bytes);
    }
    made.map(|()| (address, bytes))
}

fn fill(address: CUdeviceptr, bytes: u64, device: i32) -> Result<()> {
    let location = CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device };
    // SAFETY: a plain C structure, for which zeros mean nothing asked for.
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = location;
    for offset in (0..bytes).step_by(HANDLE as usize) {
        let length = HANDLE.min(bytes - offset) as usize;
        let mut handle = 0;
        // SAFETY: the properties live through the call, and the addresses are reserved and nobody else's.
        unsafe {
            sys::cuMemCreate(&raw mut handle, length, &raw const properties, 0).result()?;
            let mapped = sys::cuMemMap(address + offset, length, 0, handle, 0).result();
            sys::cuMemRelease(handle).result()?;
            mapped?;
        }
    }
    let flags = CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    let access = CUmemAccessDesc { location, flags };
    // SAFETY: all of it is mapped.
    unsafe { sys::cuMemSetAccess(address, bytes as usize, &raw const access, 1).result()? };
    Ok(())
}

/// Gives back what [`map`] mapped.
pub(crate) fn unmap(address: CUdeviceptr, bytes: u64) {
    // SAFETY: nobody uses it any more. Errors at the end are of no use to anybody.
    unsafe {
        let _ = sys::cuMemUnmap(address, bytes as usize);
        let _ = sys::cuMemAddressFree(address, bytes as usize);
    }
}
