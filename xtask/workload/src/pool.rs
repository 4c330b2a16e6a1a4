//! Memory of a pool that could be given to other processes: nobody moves it.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use cudarc::driver::sys::{
    self, CUdeviceptr, CUmemAllocationHandleType, CUmemAllocationType, CUmemLocationType, CUmemPoolProps,
};

/// Allocates of this process's exportable pool, in the order of the default stream.
pub(crate) fn allocate(bytes: u64) -> Result<CUdeviceptr> {
    static POOL: OnceLock<usize> = OnceLock::new();
    let pool = if let Some(pool) = POOL.get() {
        *pool
    } else {
        let made = make()?;
        *POOL.get_or_init(|| made)
    };
    let mut address = 0;
    // SAFETY: a context is current, `address` is where the answer goes, and the pool lives as long as the process.
    unsafe {
        let pool = std::ptr::with_exposed_provenance_mut(pool);
        sys::cuMemAllocFromPoolAsync(&raw mut address, bytes as usize, pool, std::ptr::null_mut())
            .result()?;
    }
    ensure!(address != 0, "the driver gave no address");
    Ok(address)
}

fn make() -> Result<usize> {
    let mut device = 0;
    // SAFETY: a place for the answer.
    unsafe { sys::cuCtxGetDevice(&raw mut device).result()? };
    // SAFETY: a plain C structure, for which zeros mean nothing asked for.
    let mut properties: CUmemPoolProps = unsafe { std::mem::zeroed() };
    properties.allocType = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.handleTypes = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties.location.type_ = CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = device;
    let mut pool = std::ptr::null_mut();
    // SAFETY: places for the answer and for what is asked for.
    unsafe { sys::cuMemPoolCreate(&raw mut pool, &raw const properties).result()? };
    Ok(pool.expose_provenance())
}
