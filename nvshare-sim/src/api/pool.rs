//! Allocation in stream order, and the pools it takes from.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::Ordering;

use cudarc::driver::sys::{CUdevice, CUdeviceptr, CUmemoryPool, CUresult, CUstream};

use super::vmm::{Location, ON_DEVICE};
use crate::device;
use crate::export::{Outcome, export, put};
use crate::memory::pool::{self, POOLS, Pool};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CUmemPoolProps`, as far as it is looked at.
#[repr(C)]
#[derive(Clone, Copy)]
struct Properties {
    kind: c_uint,
    handle_types: c_uint,
    location: Location,
}

/// `CU_MEMPOOL_ATTR_*` that are C ints; the others are 64 bits wide.
const FLAGS: std::ops::RangeInclusive<c_uint> = 1..=3;
const RELEASE_THRESHOLD: c_uint = 4;
const RESERVED_NOW: c_uint = 5;
const RESERVED_HIGH: c_uint = 6;
const USED_NOW: c_uint = 7;
const USED_HIGH: c_uint = 8;

fn set(pool: &Pool, attribute: c_uint, value: u64) -> Outcome {
    match attribute {
        RELEASE_THRESHOLD => pool.threshold.store(value, Ordering::Relaxed),
        _ if FLAGS.contains(&attribute) => {
            let mut attributes = pool.attributes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            attributes.insert(attribute, value);
        }
        RESERVED_HIGH if value == 0 => pool.reset_reserved_high(),
        USED_HIGH if value == 0 => pool.reset_used_high(),
        _ => return Err(INVALID),
    }
    Ok(())
}

fn get(pool: &Pool, attribute: c_uint) -> Outcome<u64> {
    match attribute {
        _ if FLAGS.contains(&attribute) => {
            let attributes = pool.attributes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // They are on from the start.
            Ok(attributes.get(&attribute).copied().unwrap_or(1))
        }
        RELEASE_THRESHOLD => Ok(pool.threshold.load(Ordering::Relaxed)),
        RESERVED_NOW => Ok(pool.reserved().0),
        RESERVED_HIGH => Ok(pool.reserved().1),
        USED_NOW => Ok(pool.used().0),
        USED_HIGH => Ok(pool.used().1),
        _ => Err(INVALID),
    }
}

/// The device of a place that pools can be at.
///
/// # Safety
/// `location` is null or a `CUmemLocation`.
unsafe fn device_at(location: *const Location, kind: c_uint) -> Outcome<usize> {
    if location.is_null() || kind != 1 {
        return Err(INVALID);
    }
    // SAFETY: not null, by this function's contract.
    match unsafe { location.read() } {
        Location { kind: ON_DEVICE, id } => device::index(id),
        _ => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
    }
}

export! {
    fn cuMemAllocAsync / cuMemAllocAsync_ptsz(pointer: *mut CUdeviceptr, bytes: usize, stream: CUstream) |cx| {
        if pointer.is_null() {
            return Err(INVALID);
        }
        let stream = cx.stream(stream)?;
        let pool = pool::of_device(stream.context.device);
        let start = pool::allocate(&stream, pool, bytes as u64)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pointer, start) }
    }

    fn cuMemAllocFromPoolAsync / cuMemAllocFromPoolAsync_ptsz(pointer: *mut CUdeviceptr, bytes: usize, pool: CUmemoryPool, stream: CUstream) |cx| {
        if pointer.is_null() {
            return Err(INVALID);
        }
        let stream = cx.stream(stream)?;
        let start = pool::allocate(&stream, pool, bytes as u64)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pointer, start) }
    }

    fn cuMemFreeAsync / cuMemFreeAsync_ptsz(pointer: CUdeviceptr, stream: CUstream) |cx| {
        let stream = cx.stream(stream)?;
        pool::free(&stream, pointer)
    }

    fn cuDeviceGetDefaultMemPool(pool: *mut CUmemoryPool, device: CUdevice) |cx| {
        let device = device::index(device)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pool, pool::default_of(device)) }
    }

    fn cuDeviceGetMemPool(pool: *mut CUmemoryPool, device: CUdevice) |cx| {
        let device = device::index(device)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pool, pool::of_device(device)) }
    }

    fn cuDeviceSetMemPool(device: CUdevice, pool: CUmemoryPool) |cx| {
        let device = device::index(device)?;
        if Pool::by_handle(pool)?.device != device {
            return Err(INVALID);
        }
        pool::choose(device, pool);
        Ok(())
    }

    fn cuMemGetDefaultMemPool(pool: *mut CUmemoryPool, location: *mut Location, kind: c_uint) |cx| {
        // SAFETY: the caller passes a `CUmemLocation`.
        let device = unsafe { device_at(location, kind)? };
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pool, pool::default_of(device)) }
    }

    fn cuMemGetMemPool(pool: *mut CUmemoryPool, location: *mut Location, kind: c_uint) |cx| {
        // SAFETY: the caller passes a `CUmemLocation`.
        let device = unsafe { device_at(location, kind)? };
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pool, pool::of_device(device)) }
    }

    fn cuMemSetMemPool(location: *mut Location, kind: c_uint, pool: CUmemoryPool) |cx| {
        // SAFETY: the caller passes a `CUmemLocation`.
        let device = unsafe { device_at(location, kind)? };
        if Pool::by_handle(pool)?.device != device {
            return Err(INVALID);
        }
        pool::choose(device, pool);
        Ok(())
    }

    fn cuMemPoolCreate(pool: *mut CUmemoryPool, properties: *const c_void) |cx| {
        if pool.is_null() || properties.is_null() {
            return Err(INVALID);
        }
        // SAFETY: the caller passes a `CUmemPoolProps`, which begins so.
        let properties = unsafe { properties.cast::<Properties>().read() };
        if properties.handle_types != 0 {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        // SAFETY: a location on the stack.
        let device = unsafe { device_at(&raw const properties.location, properties.kind)? };
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pool, POOLS.insert(Pool::new(device))) }
    }

    fn cuMemPoolDestroy(pool: CUmemoryPool) |cx| {
        pool::destroy(pool)
    }

    fn cuMemPoolTrimTo(pool: CUmemoryPool, keep: usize) |cx| {
        Pool::by_handle(pool)?.trim(keep as u64);
        Ok(())
    }

    fn cuMemPoolSetAttribute(pool: CUmemoryPool, attribute: c_uint, value: *mut c_void) |cx| {
        let pool = Pool::by_handle(pool)?;
        if value.is_null() {
            return Err(INVALID);
        }
        // SAFETY: the caller passes a value of the attribute's type.
        let value = unsafe {
            if FLAGS.contains(&attribute) { value.cast::<c_int>().read() as u64 } else { value.cast::<u64>().read() }
        };
        set(&pool, attribute, value)
    }

    fn cuMemPoolGetAttribute(pool: CUmemoryPool, attribute: c_uint, value: *mut c_void) |cx| {
        let known = get(&*Pool::by_handle(pool)?, attribute)?;
        // SAFETY: the caller passes room for a value of the attribute's type.
        unsafe {
            if FLAGS.contains(&attribute) { put(value.cast::<c_int>(), known as c_int) } else { put(value.cast(), known) }
        }
    }

    fn cuMemPoolSetAccess(pool: CUmemoryPool, grants: *const c_void, count: usize) |cx| {
        // Every device reaches every pool.
        Pool::by_handle(pool).map(|_| ())
    }

    fn cuMemPoolGetAccess(flags: *mut c_uint, pool: CUmemoryPool, location: *mut Location) |cx| {
        Pool::by_handle(pool)?;
        // SAFETY: the caller passes a `CUmemLocation`.
        unsafe { device_at(location, 1)? };
        // SAFETY: an out-parameter of the driver API; read and write.
        unsafe { put(flags, 3) }
    }
}
