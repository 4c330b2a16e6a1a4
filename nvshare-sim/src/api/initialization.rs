//! `cuInit`, the driver's version, and the tables that NVIDIA's own libraries exchange (not here).

use std::ffi::{c_int, c_uint, c_void};

use cudarc::driver::sys::CUresult;

use crate::export::{export, put};
use crate::init;

export! {
    @early fn cuInit(flags: c_uint) |cx| {
        if flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        init::initialize()
    }

    @early fn cuDriverGetVersion(version: *mut c_int) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(version, init::DRIVER_VERSION) }
    }

    @early fn cuGetExportTable(table: *mut *const c_void, id: *const c_void) |cx| {
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }
}
