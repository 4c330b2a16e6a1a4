//! Linking: PTX text becomes an image that needs no compiler.

use std::ffi::{c_char, c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUlinkState, CUresult};

use crate::call::Outcome;
use crate::export::export;
use crate::jit::{LINKERS, Linker};
use crate::parameters::{Count, List, Maybe, Out};

/// `CU_JIT_INPUT_PTX`.
const PTX: c_uint = 1;

export! {
    fn cuLinkCreate_v2(
        count: c_uint, options: *const c_uint, values: *const *mut c_void, made: Out<CUlinkState>,
    ) |cx| {
        cx.context()?;
        made.set(LINKERS.insert(Arc::new(Linker::default())))
    }

    fn cuLinkAddData_v2(
        state: CUlinkState, kind: c_uint, data: List<u8>, bytes: Count, name: *const c_char, count: c_uint,
        options: *const c_uint, values: *const *mut c_void,
    ) |cx| {
        if kind != PTX {
            eprintln!("nvshare-sim: only PTX text can be linked");
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        data.needed()?;
        linker(state)?.add(data.of(bytes)?)
    }

    fn cuLinkComplete(state: CUlinkState, image: Out<*mut c_void>, bytes: Maybe<usize>) |cx| {
        let (at, length) = linker(state)?.complete()?;
        image.set(at)?;
        bytes.set(length);
        Ok(())
    }

    fn cuLinkDestroy(state: CUlinkState) |cx| {
        LINKERS.remove(state).map(|_| ()).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }
}

fn linker(state: CUlinkState) -> Outcome<Arc<Linker>> {
    LINKERS.get(state).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
}
