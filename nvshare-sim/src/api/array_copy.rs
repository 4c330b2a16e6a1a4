//! Copies of bytes of one row to and from arrays: of the first one, where there are several.

use std::ffi::c_void;

use cudarc::driver::sys::{CUarray, CUdeviceptr, CUresult, CUstream};

use super::copy::{asynchronous, not_null, synchronous};
use crate::array::Array;
use crate::call::Outcome;
use crate::execution::work::{Plane, Transfer, device_end};
use crate::export::export;

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

export! {
    fn cuMemcpyHtoA_v2 / cuMemcpyHtoA_v2_ptds(to: CUarray, offset: usize, from: *const c_void, bytes: usize) |cx| {
        cx.context()?;
        synchronous(cx, row(part(to, offset, bytes)?, host(from)?, bytes))
    }

    fn cuMemcpyAtoH_v2 / cuMemcpyAtoH_v2_ptds(to: *mut c_void, from: CUarray, offset: usize, bytes: usize) |cx| {
        cx.context()?;
        synchronous(cx, row(host(to)?, part(from, offset, bytes)?, bytes))
    }

    fn cuMemcpyDtoA_v2 / cuMemcpyDtoA_v2_ptds(to: CUarray, offset: usize, from: CUdeviceptr, bytes: usize) |cx| {
        cx.context()?;
        synchronous(cx, row(part(to, offset, bytes)?, memory(from)?, bytes))
    }

    fn cuMemcpyAtoD_v2 / cuMemcpyAtoD_v2_ptds(to: CUdeviceptr, from: CUarray, offset: usize, bytes: usize) |cx| {
        cx.context()?;
        synchronous(cx, row(memory(to)?, part(from, offset, bytes)?, bytes))
    }

    fn cuMemcpyAtoA_v2 / cuMemcpyAtoA_v2_ptds(
        to: CUarray, to_offset: usize, from: CUarray, from_offset: usize, bytes: usize,
    ) |cx| {
        cx.context()?;
        let element = |array| Array::by_handle(array).map(|array| array.form.element());
        if element(to) != element(from) {
            return Err(INVALID);
        }
        let (to, from) = (part(to, to_offset, bytes)?, part(from, from_offset, bytes)?);
        synchronous(cx, row(to, from, bytes))
    }

    fn cuMemcpyHtoAAsync_v2 / cuMemcpyHtoAAsync_v2_ptsz(
        to: CUarray, offset: usize, from: *const c_void, bytes: usize, stream: CUstream,
    ) |cx| {
        cx.stream(stream)?;
        asynchronous(cx, row(part(to, offset, bytes)?, host(from)?, bytes), stream)
    }

    fn cuMemcpyAtoHAsync_v2 / cuMemcpyAtoHAsync_v2_ptsz(
        to: *mut c_void, from: CUarray, offset: usize, bytes: usize, stream: CUstream,
    ) |cx| {
        cx.stream(stream)?;
        asynchronous(cx, row(host(to)?, part(from, offset, bytes)?, bytes), stream)
    }
}

fn row(to: Plane, from: Plane, bytes: usize) -> Transfer {
    let linear = Transfer::linear(0, 0, bytes as u64);
    Transfer { to, from, ..linear }
}

/// Bytes of an array's first row.
fn part(array: CUarray, offset: usize, bytes: usize) -> Outcome<Plane> {
    Array::by_handle(array).ok_or(INVALID)?.plane([offset, 0, 0], [bytes, 1, 1])
}

fn host<T>(address: *const T) -> Outcome<Plane> {
    not_null(address as u64)?;
    Ok(Plane { address: address as u64, pitch: 0, slice: 0 })
}

fn memory(address: CUdeviceptr) -> Outcome<Plane> {
    device_end(address)?;
    Ok(Plane { address, pitch: 0, slice: 0 })
}
