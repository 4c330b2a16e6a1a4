//! Copies. Where an end is memory of ours that the stream's device has no access to, the plain form would be refused (seen
//! on an H200) or end in an error for good, and bare the driver stages such copies: the form that names the contexts of
//! both ends is used in its place, in the same stream. A process with one device pays a load for that.
//!
//! In captures, for copies described as parts of graphs ([`super::nodes`]), and for arrays in batches there is no such form: the stream's device
//! gets access to the memory where the cards allow it, else they pass and the driver refuses them.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::ffi::c_void;

use super::across::{ORDER_DURING_API_CALL, Rows, SliceEnd, Slices, linear_across, returned};
use super::reach::is_out_of_reach;
use super::{Bare, work};
use crate::cuda::CUresult;
use crate::cuda::sys::{CUDA_MEMCPY2D, CUDA_MEMCPY3D, CUarray, CUdeviceptr, CUmemcpyAttributes, CUstream};

/// An address, as the calls pass it.
pub(crate) trait Address: Copy {
    /// Its value.
    fn number(self) -> u64;
}

impl Address for CUdeviceptr {
    fn number(self) -> u64 {
        self
    }
}

impl Address for *const c_void {
    fn number(self) -> u64 {
        self.expose_provenance() as u64
    }
}

impl Address for *mut c_void {
    fn number(self) -> u64 {
        self.expose_provenance() as u64
    }
}

/// A copy of `bytes` in a row, in the default stream.
pub(crate) unsafe fn linear_now<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: impl Address,
    from: impl Address,
    bytes: usize,
) -> CUresult {
    let stream = bare.stream(std::ptr::null_mut());
    let (to, from) = (to.number(), from.number());
    if is_out_of_reach(stream, &[to, from]) {
        let across = bare.instead(|| linear_across(stream, to, from, bytes, true));
        // SAFETY: the application's own call in another form.
        return unsafe { work::blocking(&across) };
    }
    // SAFETY: the same.
    unsafe { work::blocking(bare) }
}

/// A copy of `bytes` in a row, in `stream`.
pub(crate) unsafe fn linear<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: impl Address,
    from: impl Address,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    let (in_stream, to, from) = (bare.stream(stream), to.number(), from.number());
    if is_out_of_reach(in_stream, &[to, from]) {
        let across = bare.instead(|| linear_across(in_stream, to, from, bytes, false));
        // SAFETY: the application's own call in another form.
        return unsafe { work::at_addresses(&across, stream) };
    }
    // SAFETY: the same.
    unsafe { work::at_addresses(bare, stream) }
}

/// As [`linear`], with a word on when the source is read.
pub(crate) unsafe fn linear_with<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
    attributes: *const CUmemcpyAttributes,
    stream: CUstream,
) -> CUresult {
    let in_stream = bare.stream(stream);
    if !attributes.is_null() && is_out_of_reach(in_stream, &[to, from]) {
        // SAFETY: the application's; the order is read as a number, it may be newer than this build.
        let order = unsafe { attributes.cast::<u32>().read() };
        let across = bare.instead(|| {
            returned(
                in_stream,
                linear_across(in_stream, to, from, bytes, false),
                order == ORDER_DURING_API_CALL,
            )
        });
        // SAFETY: the application's own call in another form.
        return unsafe { work::at_addresses(&across, stream) };
    }
    // SAFETY: the same.
    unsafe { work::at_addresses(bare, stream) }
}

/// Rows of bytes, in the default stream.
pub(crate) unsafe fn rows_now<F: Fn() -> CUresult>(bare: &Bare<F>, copy: *const CUDA_MEMCPY2D) -> CUresult {
    let stream = bare.stream(std::ptr::null_mut());
    // SAFETY: null, or the application's description, which the driver would read too.
    let slices = unsafe { copy.cast::<Rows>().as_ref() }.map(Slices::from);
    if let Some(slices) = slices.filter(|slices| slices.is_out_of_reach(stream)) {
        let across = bare.instead(|| slices.across(stream, true));
        // SAFETY: the application's own call in another form.
        return unsafe { work::blocking(&across) };
    }
    // SAFETY: the same.
    unsafe { work::blocking(bare) }
}

/// Rows of bytes, in `stream`.
pub(crate) unsafe fn rows<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    copy: *const CUDA_MEMCPY2D,
    stream: CUstream,
) -> CUresult {
    let in_stream = bare.stream(stream);
    // SAFETY: null, or the application's description, which the driver would read too.
    let slices = unsafe { copy.cast::<Rows>().as_ref() }.map(Slices::from);
    if let Some(slices) = slices.filter(|slices| slices.is_out_of_reach(in_stream)) {
        let across = bare.instead(|| slices.across(in_stream, false));
        // SAFETY: the application's own call in another form.
        return unsafe { work::at_addresses(&across, stream) };
    }
    // SAFETY: the same.
    unsafe { work::at_addresses(bare, stream) }
}

/// Slices of rows, in the default stream.
pub(crate) unsafe fn slices_now<F: Fn() -> CUresult>(bare: &Bare<F>, copy: *const CUDA_MEMCPY3D) -> CUresult {
    let stream = bare.stream(std::ptr::null_mut());
    // SAFETY: null, or the application's description, which the driver would read too.
    let slices = unsafe { copy.cast::<Slices>().as_ref() }.copied();
    if let Some(slices) = slices.filter(|slices| slices.is_out_of_reach(stream)) {
        let across = bare.instead(|| slices.across(stream, true));
        // SAFETY: the application's own call in another form.
        return unsafe { work::blocking(&across) };
    }
    // SAFETY: the same.
    unsafe { work::blocking(bare) }
}

/// Slices of rows, in `stream`.
pub(crate) unsafe fn slices<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    copy: *const CUDA_MEMCPY3D,
    stream: CUstream,
) -> CUresult {
    let in_stream = bare.stream(stream);
    // SAFETY: null, or the application's description, which the driver would read too.
    let slices = unsafe { copy.cast::<Slices>().as_ref() }.copied();
    if let Some(slices) = slices.filter(|slices| slices.is_out_of_reach(in_stream)) {
        let across = bare.instead(|| slices.across(in_stream, false));
        // SAFETY: the application's own call in another form.
        return unsafe { work::at_addresses(&across, stream) };
    }
    // SAFETY: the same.
    unsafe { work::at_addresses(bare, stream) }
}

/// Bytes of a row into an array of one dimension.
pub(crate) unsafe fn into_array<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: CUarray,
    offset: usize,
    from: CUdeviceptr,
    bytes: usize,
) -> CUresult {
    // SAFETY: the application's own call.
    unsafe { with_array(bare, SliceEnd::row(from, bytes), SliceEnd::array(array, offset), bytes) }
}

/// Bytes of a row out of an array of one dimension.
pub(crate) unsafe fn out_of_array<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: CUdeviceptr,
    array: CUarray,
    offset: usize,
    bytes: usize,
) -> CUresult {
    // SAFETY: the application's own call.
    unsafe { with_array(bare, SliceEnd::array(array, offset), SliceEnd::row(to, bytes), bytes) }
}

unsafe fn with_array<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    from: SliceEnd,
    to: SliceEnd,
    bytes: usize,
) -> CUresult {
    let stream = bare.stream(std::ptr::null_mut());
    let slices = Slices { from, to, width: bytes, height: 1, depth: 1 };
    if slices.is_out_of_reach(stream) {
        let across = bare.instead(|| slices.across(stream, true));
        // SAFETY: the application's own call in another form.
        return unsafe { work::blocking(&across) };
    }
    // SAFETY: the application's own call.
    unsafe { work::blocking(bare) }
}
