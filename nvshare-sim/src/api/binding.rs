//! Objects that memory is bound to, which keep its physical pages: of them there is no more than who may be bound. Memory of
//! `cuMemAlloc` is nothing for multicast objects; logical endpoints take any.

use std::ffi::c_void;

use cudarc::driver::sys::{CUdevice, CUdeviceptr, CUmemGenericAllocationHandle, CUresult};

use crate::call::Outcome;
use crate::export::export;
use crate::memory::space::{self, Kind};

export! {
    fn cuMulticastBindAddr(
        object: CUmemGenericAllocationHandle, offset: usize, pointer: CUdeviceptr, bytes: usize, flags: u64,
    ) |cx| {
        multicast(pointer)
    }

    fn cuMulticastBindAddr_v2(
        object: CUmemGenericAllocationHandle, of: CUdevice, offset: usize, pointer: CUdeviceptr, bytes: usize,
        flags: u64,
    ) |cx| {
        multicast(pointer)
    }

    fn cuLogicalEndpointBindAddr(
        endpoint: u32, of: CUdevice, offset: u64, pointer: *mut c_void, bytes: u64, flags: u64,
    ) |cx| {
        space::find(pointer as u64).map(|_| ()).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
    }
}

fn multicast(pointer: CUdeviceptr) -> Outcome {
    match space::find(pointer).map(|area| matches!(area.kind, Kind::Reserved(_))) {
        Some(true) => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
        _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }
}
