//! Pinned host memory.

use std::ffi::{c_uint, c_void};

use cudarc::driver::sys::{CUdeviceptr, CUresult};

use crate::export::{export, put};
use crate::memory::{host, space};

/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`: with unified addresses, all pinned memory is both.
const UNIFIED: c_uint = 3;

export! {
    fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint) |cx| {
        let context = cx.context()?;
        crate::capture::unsafe_call()?;
        if pointer.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        context.jam.pass();
        let start = host::allocate(&context, bytes as u64, flags)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pointer, start as *mut c_void) }
    }

    fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) |cx| {
        let context = cx.context()?;
        crate::capture::unsafe_call()?;
        if pointer.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        context.jam.pass();
        let start = host::allocate(&context, bytes as u64, 0)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pointer, start as *mut c_void) }
    }

    fn cuMemFreeHost(pointer: *mut c_void) |cx| {
        cx.context()?;
        crate::capture::unsafe_call()?;
        host::free(pointer as u64)
    }

    fn cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, flags: c_uint) |cx| {
        let context = cx.context()?;
        context.jam.pass();
        host::register(&context, pointer as u64, bytes as u64, flags)
    }

    fn cuMemHostUnregister(pointer: *mut c_void) |cx| {
        cx.context()?;
        host::unregister(pointer as u64)
    }

    fn cuMemHostGetDevicePointer_v2(device: *mut CUdeviceptr, pointer: *mut c_void, flags: c_uint) |cx| {
        cx.context()?;
        let pinned = matches!(space::classify(pointer as u64), space::Location::Pinned);
        if flags != 0 || !pinned {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(device, pointer as u64) }
    }

    fn cuMemHostGetFlags(flags: *mut c_uint, pointer: *mut c_void) |cx| {
        cx.context()?;
        let known = host::flags(pointer as u64)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(flags, known | UNIFIED) }
    }
}
