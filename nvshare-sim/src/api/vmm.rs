//! Virtual memory: addresses reserved, physical memory created, the one mapped behind the other.

#![expect(unsafe_code, reason = "a descriptor that the caller passes as a pointer")]

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

use cudarc::driver::sys::{CUdeviceptr, CUresult};
use nvshare_sim_card::Point;

use crate::call::Outcome;
use crate::device;
use crate::export::export;
use crate::memory::grant::{Grant, Location, ON_DEVICE, ON_HOST, ON_HOST_NODE};
use crate::memory::physical::HandleValue;
use crate::memory::space::{Area, Kind};
use crate::memory::{GRANULARITY, mapping, physical};
use crate::parameters::{Count, In, List, Out};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Properties {
    kind: c_uint,
    handle_types: c_uint,
    location: Location,
    win32: *mut c_void,
    compression: u8,
    rdma_capable: u8,
    usage: u16,
    reserved: [u8; 4],
}

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
const PINNED: c_uint = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub(super) const DESCRIPTOR: c_uint = 1;

/// `CU_MEM_CREATE_USAGE_TILE_POOL` and `_HW_DECOMPRESS`.
const USAGES: u16 = 3;

impl Properties {
    /// The device that memory with these properties would be on.
    fn device(&self) -> Outcome<usize> {
        if self.kind != PINNED {
            return Err(INVALID);
        }
        match self.location.kind {
            ON_DEVICE => {}
            ON_HOST | ON_HOST_NODE => return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
            _ => return Err(INVALID),
        }
        if self.handle_types & !DESCRIPTOR != 0 || self.usage & !USAGES != 0 {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        device::index(self.location.id)
    }
}

fn no_flags(flags: c_ulonglong) -> Outcome {
    if flags == 0 { Ok(()) } else { Err(INVALID) }
}

/// A size or address that physical memory can have.
fn whole(value: u64) -> Outcome<u64> {
    if value > 0 && value.is_multiple_of(GRANULARITY) { Ok(value) } else { Err(INVALID) }
}

export! {
    fn cuMemAddressReserve(
        pointer: Out<CUdeviceptr>, bytes: usize, alignment: usize, hint: CUdeviceptr, flags: c_ulonglong,
    ) |cx| {
        no_flags(flags)?;
        // The header speaks of the host's page size; an H200 with driver 580 refuses what is not whole blocks.
        let placed = alignment == 0 || alignment.is_power_of_two();
        if pointer.is_null() || !placed {
            return Err(INVALID);
        }
        whole(bytes as u64)?;
        let start = mapping::reserve(bytes as u64, alignment as u64, hint)?;
        pointer.set(start)
    }

    fn cuMemAddressFree(start: CUdeviceptr, bytes: usize) |cx| {
        mapping::free(start, bytes as u64)
    }

    fn cuMemCreate(
        handle: Out<c_ulonglong>, bytes: usize, properties: In<Properties>, flags: c_ulonglong,
    ) |cx| {
        no_flags(flags)?;
        handle.needed()?;
        let properties = properties.get()?;
        let device = properties.device()?;
        let bytes = whole(bytes as u64)?;
        crate::faults::at_call(Point::Create)?;
        let rdma = if properties.rdma_capable != 0 { physical::RDMA_CAPABLE } else { 0 };
        let usage = u32::from(properties.usage) << physical::USAGE_SHIFT;
        let id = physical::create(device, bytes, properties.handle_types | rdma | usage)?;
        handle.set(id.0)
    }

    fn cuMemRelease(handle: c_ulonglong) |cx| {
        physical::release(HandleValue(handle))
    }

    fn cuMemMap(start: CUdeviceptr, bytes: usize, offset: usize, handle: c_ulonglong, flags: c_ulonglong) |cx| {
        no_flags(flags)?;
        if !start.is_multiple_of(GRANULARITY) {
            return Err(INVALID);
        }
        if offset != 0 {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        crate::faults::at_call(Point::Map)?;
        mapping::map(start, whole(bytes as u64)?, HandleValue(handle))
    }

    fn cuMemUnmap(start: CUdeviceptr, bytes: usize) |cx| {
        mapping::unmap(start, whole(bytes as u64)?)
    }

    fn cuMemSetAccess(start: CUdeviceptr, bytes: usize, grants: List<Grant>, count: Count) |cx| {
        let grants = grants.of(count)?;
        if grants.is_empty() {
            return Err(INVALID);
        }
        let granted = |grant: &Grant| {
            let access = match grant.flags {
                0 => mapping::NO_ACCESS,
                1 => mapping::READ,
                3 => mapping::READ_WRITE,
                _ => return Err(INVALID),
            };
            match grant.location.kind {
                ON_DEVICE => Ok((device::index(grant.location.id)?, access)),
                ON_HOST | ON_HOST_NODE => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
                _ => Err(INVALID),
            }
        };
        let grants: Vec<_> = grants.iter().map(granted).collect::<Outcome<_>>()?;
        crate::faults::at_call(Point::Access)?;
        mapping::set_access(start, whole(bytes as u64)?, &grants)
    }

    fn cuMemGetAccess(flags: Out<c_ulonglong>, location: In<Location>, address: CUdeviceptr) |cx| {
        let location = location.get()?;
        if location.kind != ON_DEVICE {
            return Err(INVALID);
        }
        let device = device::index(location.id)?;
        // Of plain memory an H200 says that nobody has access.
        if crate::memory::space::find(address).is_some_and(|area| matches!(area.kind, Kind::Plain(_))) {
            return flags.set(0);
        }
        flags.set(mapping::look(address)?.access[device].into())
    }

    fn cuMemGetHandleForAddressRange(
        handle: *mut c_void, address: CUdeviceptr, bytes: usize, kind: c_uint, flags: c_ulonglong,
    ) |cx| {
        match crate::memory::space::find(address).as_deref() {
            Some(Area { kind: Kind::Plain(Some(_)), .. }) => Err(INVALID),
            _ => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
        }
    }

    fn cuMemGetAllocationGranularity(granularity: Out<usize>, properties: In<Properties>, option: c_uint) |cx| {
        properties.given().filter(|_| option <= 1).ok_or(INVALID)?.device()?;
        granularity.set(GRANULARITY as usize)
    }

    fn cuMemGetAllocationPropertiesFromHandle(properties: Out<Properties>, handle: c_ulonglong) |cx| {
        let (device, _, known) = physical::describe(HandleValue(handle))?;
        let answer = Properties {
            kind: PINNED,
            handle_types: known & 0xffff,
            location: Location { kind: ON_DEVICE, id: device as c_int },
            win32: std::ptr::null_mut(),
            compression: 0,
            rdma_capable: u8::from(known & physical::RDMA_CAPABLE != 0),
            usage: (known >> physical::USAGE_SHIFT) as u16,
            reserved: [0; 4],
        };
        properties.set(answer)
    }

    fn cuMemRetainAllocationHandle(handle: Out<c_ulonglong>, address: *mut c_void) |cx| {
        handle.needed()?;
        let id = mapping::retain(address as u64)?;
        handle.set(id.0)
    }

    fn cuMemExportToShareableHandle(
        shareable: Out<c_int>, handle: c_ulonglong, kind: c_uint, flags: c_ulonglong,
    ) |cx| {
        no_flags(flags)?;
        shareable.needed()?;
        let (_, _, known) = physical::describe(HandleValue(handle))?;
        // Only what was asked for at its creation.
        if kind != DESCRIPTOR || known & DESCRIPTOR == 0 {
            return Err(INVALID);
        }
        let descriptor = physical::export(HandleValue(handle))?;
        shareable.set(descriptor.as_raw_fd())?;
        // The caller closes it.
        let _ = descriptor.into_raw_fd();
        Ok(())
    }

    fn cuMemImportFromShareableHandle(handle: Out<c_ulonglong>, shareable: *mut c_void, kind: c_uint) |cx| {
        let descriptor = shareable as usize as c_int;
        if handle.is_null() || descriptor < 0 {
            return Err(INVALID);
        }
        if kind != DESCRIPTOR {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        // SAFETY: for this kind the argument is a descriptor that the caller keeps open during the call.
        let id = physical::import(unsafe { BorrowedFd::borrow_raw(descriptor) })?;
        handle.set(id.0)
    }
}
