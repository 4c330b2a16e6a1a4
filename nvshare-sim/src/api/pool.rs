//! Allocation in stream order, and the pools it takes from.

#![expect(unsafe_code, reason = "an attribute's value, whose type depends on which it is")]

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::Ordering;

use cudarc::driver::sys::{CUdevice, CUdeviceptr, CUmemoryPool, CUresult, CUstream};

use super::vmm::DESCRIPTOR;
use crate::call::Outcome;
use crate::export::export;
use crate::memory::device_pools;
use crate::memory::grant::{Location, ON_DEVICE};
use crate::memory::pool::{POOLS, Pool};
use crate::parameters::{In, Out};
use crate::{device, stream_ordered};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CUmemPoolProps`, as far as it is looked at.
#[repr(C)]
#[derive(Clone, Copy)]
struct Properties {
    kind: c_uint,
    handle_types: c_uint,
    location: Location,
    win32: *mut c_void,
    most: usize,
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
fn device_at(location: Location, kind: c_uint) -> Outcome<usize> {
    match location {
        _ if kind != 1 => Err(INVALID),
        Location { kind: ON_DEVICE, id } => device::index(id),
        _ => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
    }
}

/// From now on a device's streams allocate from this pool.
fn choose(device: usize, pool: CUmemoryPool) -> Outcome {
    let chosen = Pool::by_handle(pool)?;
    if chosen.device != device || chosen.is_imported {
        return Err(INVALID);
    }
    device_pools::choose(device, pool);
    Ok(())
}

export! {
    fn cuMemAllocAsync / cuMemAllocAsync_ptsz(pointer: Out<CUdeviceptr>, bytes: usize, stream: CUstream) |cx| {
        pointer.needed()?;
        let stream = cx.stream(stream)?;
        let pool = device_pools::of_device(stream.context.device);
        let start = stream_ordered::allocate(&stream, pool, bytes as u64)?;
        pointer.set(start)
    }

    fn cuMemAllocFromPoolAsync / cuMemAllocFromPoolAsync_ptsz(
        pointer: Out<CUdeviceptr>, bytes: usize, pool: CUmemoryPool, stream: CUstream,
    ) |cx| {
        pointer.needed()?;
        let stream = cx.stream(stream)?;
        let start = stream_ordered::allocate(&stream, pool, bytes as u64)?;
        pointer.set(start)
    }

    fn cuMemFreeAsync / cuMemFreeAsync_ptsz(pointer: CUdeviceptr, stream: CUstream) |cx| {
        let stream = cx.stream(stream)?;
        if pointer == 0 {
            return Ok(());
        }
        stream_ordered::free(&stream, pointer)
    }

    fn cuDeviceGetDefaultMemPool(pool: Out<CUmemoryPool>, device: CUdevice) |cx| {
        let device = device::index(device)?;
        pool.set(device_pools::default_of(device))
    }

    fn cuDeviceGetMemPool(pool: Out<CUmemoryPool>, device: CUdevice) |cx| {
        let device = device::index(device)?;
        pool.set(device_pools::of_device(device))
    }

    fn cuDeviceSetMemPool(device: CUdevice, pool: CUmemoryPool) |cx| {
        let device = device::index(device)?;
        choose(device, pool)
    }

    fn cuMemGetDefaultMemPool(pool: Out<CUmemoryPool>, location: In<Location>, kind: c_uint) |cx| {
        let device = device_at(*location.get()?, kind)?;
        pool.set(device_pools::default_of(device))
    }

    fn cuMemGetMemPool(pool: Out<CUmemoryPool>, location: In<Location>, kind: c_uint) |cx| {
        let device = device_at(*location.get()?, kind)?;
        pool.set(device_pools::of_device(device))
    }

    fn cuMemSetMemPool(location: In<Location>, kind: c_uint, pool: CUmemoryPool) |cx| {
        let device = device_at(*location.get()?, kind)?;
        choose(device, pool)
    }

    fn cuMemPoolCreate(pool: Out<CUmemoryPool>, properties: In<Properties>) |cx| {
        pool.needed()?;
        let properties = properties.get()?;
        let device = device_at(properties.location, properties.kind)?;
        pool.set(POOLS.insert(match properties.handle_types {
            0 => Pool::new(device, properties.most as u64),
            DESCRIPTOR => Pool::exportable(device, properties.most as u64),
            _ => return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
        }))
    }

    fn cuMemPoolDestroy(pool: CUmemoryPool) |cx| {
        device_pools::destroy(pool)
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
        if value.is_null() {
            return Err(INVALID);
        }
        // SAFETY: the caller passes room for a value of the attribute's type.
        unsafe {
            if FLAGS.contains(&attribute) {
                value.cast::<c_int>().write(known as c_int);
            } else {
                value.cast::<u64>().write(known);
            }
        }
        Ok(())
    }

    fn cuMemPoolSetAccess(pool: CUmemoryPool, grants: *const c_void, count: usize) |cx| {
        // Every device reaches every pool.
        Pool::by_handle(pool).map(|_| ())
    }

    fn cuMemPoolGetAccess(flags: Out<c_uint>, pool: CUmemoryPool, location: In<Location>) |cx| {
        Pool::by_handle(pool)?;
        device_at(*location.get()?, 1)?;
        // Read and write.
        flags.set(3)
    }
}
