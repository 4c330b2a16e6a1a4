//! `cuInit`, the driver's version, and the tables that NVIDIA's own libraries exchange (not here).

use std::ffi::{c_int, c_uint, c_void};

use cudarc::driver::sys::CUresult;

use crate::export::export;
use crate::init;
use crate::parameters::Out;

export! {
    @early fn cuInit(flags: c_uint) |cx| {
        if flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        init::initialize(super::can_fail)
    }

    @early fn cuDriverGetVersion(version: Out<c_int>) |cx| {
        version.set(init::DRIVER_VERSION)
    }

    @early fn cuGetExportTable(table: *mut *const c_void, id: *const c_void) |cx| {
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }
}
