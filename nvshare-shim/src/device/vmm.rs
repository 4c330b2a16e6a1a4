//! The driver calls that put memory behind addresses. They are synchronous and wait for nothing; what may be unmapped or
//! released when is decided elsewhere.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::atomic::{AtomicBool, Ordering};

use crate::cuda::{CUresult, sys};
use crate::driver::driver;
use crate::memory::virtuals::{Access, Asked};

/// Which physical memory is asked for: plain device memory of one device.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The device, as the driver numbers it.
    pub ordinal: sys::CUdevice,
    /// Whether network cards may reach it.
    pub rdma: bool,
    /// Whether it can be given to other processes, by descriptors.
    pub shareable: &'static AtomicBool,
}

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const DESCRIPTOR: u32 = 1;
/// `CU_MEM_CREATE_USAGE_TILE_POOL`.
const TILE_POOL: u16 = 1;

impl Kind {
    /// Whether what is made now can be given to other processes.
    pub fn is_exportable(self) -> bool {
        self.shareable.load(Ordering::Relaxed)
    }

    /// What plain memory is made of.
    fn plain(self, exportable: bool) -> Asked {
        Asked { types: if exportable { DESCRIPTOR } else { 0 }, rdma: self.rdma, tiles: false }
    }

    /// The properties of memory that was asked for so.
    pub fn properties(self, asked: Asked) -> sys::CUmemAllocationProp {
        sys::CUmemAllocationProp {
            type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: sys::CUmemAllocationHandleType(asked.types),
            location: device(self.ordinal),
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
                compressionType: 0,
                gpuDirectRDMACapable: u8::from(asked.rdma),
                usage: if asked.tiles { TILE_POOL } else { 0 },
                reserved: [0; 4],
            },
        }
    }

    /// The smallest unit of memory of this kind.
    pub fn granularity(self) -> Result<u64, CUresult> {
        let mut granularity = 0;
        let properties = self.properties(self.plain(self.is_exportable()));
        // SAFETY: both pointers are valid for the call; 0 asks for the minimum.
        unsafe { driver().cuMemGetAllocationGranularity(&raw mut granularity, &raw const properties, 0) }
            .result()?;
        Ok(granularity as u64)
    }

    /// Makes physical memory, as the application asked for it or for plain memory. Whether it can be given to other processes comes
    /// with it; that costs nothing (docs/gpu.md), but a driver may refuse it where it is said to be supported: then plain memory is
    /// not asked for so again.
    pub fn create(self, bytes: u64, asked: Option<Asked>) -> Result<(u64, bool), CUresult> {
        let make = |asked: Asked| {
            let mut handle = 0;
            let properties = self.properties(asked);
            // SAFETY: both pointers are valid for the call.
            unsafe { driver().cuMemCreate(&raw mut handle, bytes as usize, &raw const properties, 0) }
                .result()
                .map(|()| (handle, asked.is_exportable()))
        };
        if let Some(asked) = asked {
            return make(asked);
        }
        match make(self.plain(self.is_exportable())) {
            Err(
                CUresult::CUDA_ERROR_INVALID_VALUE
                | CUresult::CUDA_ERROR_NOT_PERMITTED
                | CUresult::CUDA_ERROR_NOT_SUPPORTED,
            ) if self.is_exportable() => {
                let plain = make(self.plain(false));
                if plain.is_ok() {
                    self.shareable.store(false, Ordering::Relaxed);
                }
                plain
            }
            answered => answered,
        }
    }
}

fn device(ordinal: sys::CUdevice) -> sys::CUmemLocation {
    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: ordinal }
}

/// Reserves addresses.
pub fn reserve(bytes: u64, alignment: u64) -> Result<u64, CUresult> {
    let mut start = 0;
    // SAFETY: `start` is where the address goes.
    unsafe { driver().cuMemAddressReserve(&raw mut start, bytes as usize, alignment as usize, 0, 0) }
        .result()?;
    Ok(start)
}

/// Gives a whole reservation back.
///
/// # Safety
/// `reserve` returned it, nothing is mapped in it, and nobody uses its addresses any more.
pub unsafe fn unreserve(start: u64, bytes: u64) -> Result<(), CUresult> {
    // SAFETY: the caller's promise.
    unsafe { driver().cuMemAddressFree(start, bytes as usize) }.result()
}

/// Puts memory behind addresses of a reservation and lets `devices` read and write it.
///
/// # Safety
/// The addresses are reserved and unmapped; the handle has that many bytes and is not mapped anywhere.
pub unsafe fn map(start: u64, bytes: u64, handle: u64, devices: &[sys::CUdevice]) -> Result<(), CUresult> {
    // SAFETY: the caller's promise.
    unsafe { driver().cuMemMap(start, bytes as usize, 0, handle, 0) }.result()?;
    let set = set_access(start, bytes, devices);
    if set.is_err() {
        // SAFETY: without access nothing can have used the mapping.
        let _ = unsafe { unmap(start, bytes) };
    }
    set
}

/// Puts memory behind addresses of a reservation, with that access.
///
/// # Safety
/// The addresses are reserved and unmapped; the handle has that many bytes.
pub unsafe fn map_for(start: u64, bytes: u64, handle: u64, access: &[Access]) -> Result<(), CUresult> {
    // SAFETY: the caller's promise.
    unsafe { driver().cuMemMap(start, bytes as usize, 0, handle, 0) }.result()?;
    if access.is_empty() {
        return Ok(());
    }
    // SAFETY: as the header describes access, with numbers where it has enums; the list lives through the call.
    let set = unsafe {
        driver().cuMemSetAccess(start, bytes as usize, access.as_ptr().cast(), access.len()).result()
    };
    if set.is_err() {
        // SAFETY: without access nothing can have used the mapping.
        let _ = unsafe { unmap(start, bytes) };
    }
    set
}

const _: () = assert!(size_of::<Access>() == size_of::<sys::CUmemAccessDesc>());

/// Lets `devices` read and write mapped addresses.
pub fn set_access(start: u64, bytes: u64, devices: &[sys::CUdevice]) -> Result<(), CUresult> {
    let access: Vec<sys::CUmemAccessDesc> = devices
        .iter()
        .map(|ordinal| sys::CUmemAccessDesc {
            location: device(*ordinal),
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        })
        .collect();
    // SAFETY: the list lives through the call; what is not mapped is refused with an error.
    unsafe { driver().cuMemSetAccess(start, bytes as usize, access.as_ptr(), access.len()) }.result()
}

/// Takes the memory from behind addresses.
///
/// # Safety
/// Whole mappings; no work that can reach them is unfinished.
pub unsafe fn unmap(start: u64, bytes: u64) -> Result<(), CUresult> {
    // SAFETY: the caller's promise.
    unsafe { driver().cuMemUnmap(start, bytes as usize) }.result()
}

/// Gives physical memory back.
///
/// # Safety
/// The handle came from [`Kind::create`], is mapped nowhere, and is given back once.
pub unsafe fn release(handle: u64) -> Result<(), CUresult> {
    // SAFETY: the caller's promise.
    unsafe { driver().cuMemRelease(handle) }.result()
}
