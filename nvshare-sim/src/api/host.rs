//! Pinned host memory.

use std::ffi::{c_uint, c_void};

use cudarc::driver::sys::{CUdeviceptr, CUresult};

use crate::export::export;
use crate::memory::{host, space};
use crate::parameters::Out;

/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`: with unified addresses, all pinned memory is both.
const UNIFIED: c_uint = 3;

export! {
    fn cuMemHostAlloc(pointer: Out<*mut c_void>, bytes: usize, flags: c_uint) |cx| {
        let context = cx.context()?;
        crate::execution::capture::unsafe_call()?;
        pointer.needed()?;
        context.jam.pass();
        let start = host::allocate(&context, bytes as u64, flags)?;
        pointer.set(start as *mut c_void)
    }

    fn cuMemAllocHost_v2(pointer: Out<*mut c_void>, bytes: usize) |cx| {
        let context = cx.context()?;
        crate::execution::capture::unsafe_call()?;
        pointer.needed()?;
        context.jam.pass();
        let start = host::allocate(&context, bytes as u64, 0)?;
        pointer.set(start as *mut c_void)
    }

    fn cuMemFreeHost(pointer: *mut c_void) |cx| {
        cx.context()?;
        crate::execution::capture::unsafe_call()?;
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

    fn cuMemHostGetDevicePointer_v2(device: Out<CUdeviceptr>, pointer: *mut c_void, flags: c_uint) |cx| {
        cx.context()?;
        let pinned = matches!(space::classify(pointer as u64), space::Location::Pinned);
        if flags != 0 || !pinned {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        device.set(pointer as u64)
    }

    fn cuMemHostGetFlags(flags: Out<c_uint>, pointer: *mut c_void) |cx| {
        cx.context()?;
        let known = host::flags(pointer as u64)?;
        flags.set(known | UNIFIED)
    }
}
