//! Device memory: allocation, free, and how much there is; the engine has it.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::{Bare, below, unswappable};
use crate::cuda::CUresult;
use crate::cuda::sys::CUdeviceptr;
use crate::driver::driver;
use crate::{allocation, config, life, streams};

/// What `cuMemAllocPitch` rounds a row up to: attribute `TEXTURE_ALIGNMENT` of all devices so far.
const PITCH: usize = 512;

pub(crate) unsafe fn alloc<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
) -> CUresult {
    if !life::active() || at.is_null() || bytes == 0 {
        return bare.call();
    }
    note_context();
    if config::get().plain {
        // SAFETY: the application's own arguments.
        return unsafe { unswappable::plain(bare, at, bytes) };
    }
    below::hear_of_allocation(bare.symbol());
    match allocation::allocate(bytes) {
        Ok(address) => {
            // SAFETY: the application's place for the address.
            unsafe { at.write(address) };
            CUresult::CUDA_SUCCESS
        }
        Err(error) => error,
    }
}

pub(crate) unsafe fn alloc_pitch<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    pitch: *mut usize,
    width: usize,
    height: usize,
    element: u32,
) -> CUresult {
    let row = width.checked_next_multiple_of(PITCH);
    let bytes = row.and_then(|row| row.checked_mul(height)).unwrap_or(0);
    if !life::active() || at.is_null() || pitch.is_null() || bytes == 0 || !matches!(element, 4 | 8 | 16) {
        return bare.call();
    }
    note_context();
    if config::get().plain {
        // SAFETY: the application's own arguments.
        return unsafe { unswappable::plain(bare, at, bytes) };
    }
    below::hear_of_allocation(bare.symbol());
    match allocation::allocate(bytes) {
        Ok(address) => {
            // SAFETY: the application's places for address and pitch.
            unsafe {
                at.write(address);
                pitch.write(row.unwrap_or(0));
            }
            CUresult::CUDA_SUCCESS
        }
        Err(error) => error,
    }
}

pub(crate) unsafe fn free<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr) -> CUresult {
    if !life::active() || at == 0 {
        return bare.call();
    }
    if allocation::is_allocation(at) {
        // After its shutdown the driver answers so, whatever it is asked.
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` is where the answer goes.
        let alive = unsafe { driver().cuCtxGetCurrent(&raw mut context) };
        if alive == CUresult::CUDA_ERROR_DEINITIALIZED {
            return alive;
        }
        below::hear(bare);
    }
    allocation::free(at).unwrap_or_else(|| {
        let result = bare.call();
        if result.ok() {
            unswappable::freed(at);
        }
        result
    })
}

pub(crate) unsafe fn info<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    free: *mut usize,
    total: *mut usize,
) -> CUresult {
    if !life::active() || free.is_null() || total.is_null() {
        return bare.call();
    }
    let Some((free_bytes, total_bytes)) = allocation::info() else { return bare.call() };
    // SAFETY: the application's places for the two numbers.
    unsafe {
        free.write(free_bytes);
        total.write(total_bytes);
    }
    CUresult::CUDA_SUCCESS
}

/// A context that was made behind our back would be drained by nobody.
fn note_context() {
    if let Some(context) = streams::current_context()
        && streams::check_current().is_ok()
    {
        streams::context_seen(context);
    }
}
