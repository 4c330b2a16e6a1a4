//! Linking: PTX text becomes an image that needs no compiler.

use std::ffi::{c_char, c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUlinkState, CUresult};

use crate::export::{Outcome, export, put};
use crate::jit::{LINKERS, Linker};

/// `CU_JIT_INPUT_PTX`.
const PTX: c_uint = 1;

export! {
    fn cuLinkCreate_v2(
        count: c_uint, options: *const c_uint, values: *const *mut c_void, made: *mut CUlinkState,
    ) |cx| {
        cx.context()?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(made, LINKERS.insert(Arc::new(Linker::default()))) }
    }

    fn cuLinkAddData_v2(
        state: CUlinkState, kind: c_uint, data: *const c_void, bytes: usize, name: *const c_char, count: c_uint,
        options: *const c_uint, values: *const *mut c_void,
    ) |cx| {
        if kind != PTX {
            eprintln!("nvshare-sim: only PTX text can be linked");
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        if data.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: an array of that many bytes, as the driver API demands.
        linker(state)?.add(unsafe { std::slice::from_raw_parts(data.cast(), bytes) })
    }

    fn cuLinkComplete(state: CUlinkState, image: *mut *mut c_void, bytes: *mut usize) |cx| {
        let (at, length) = linker(state)?.complete()?;
        // SAFETY: out-parameters of the driver API.
        unsafe {
            put(image, at)?;
            if bytes.is_null() { Ok(()) } else { put(bytes, length) }
        }
    }

    fn cuLinkDestroy(state: CUlinkState) |cx| {
        LINKERS.remove(state).map(|_| ()).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }
}

fn linker(state: CUlinkState) -> Outcome<Arc<Linker>> {
    LINKERS.get(state).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
}
