//! Memsets: elements of one, two and four bytes, in one row or several, in the default stream or a given one. None of them
//! lets the host wait.

use std::ffi::{c_uchar, c_uint, c_ushort};

use cudarc::driver::sys::{CUdeviceptr, CUresult, CUstream};

use crate::call::{Call, Outcome};
use crate::execution::capture;
use crate::execution::work::{self, Fill, Work, device_end};
use crate::export::export;

export! {
    fn cuMemsetD8_v2 / cuMemsetD8_v2_ptds(to: CUdeviceptr, value: c_uchar, count: usize) |cx| {
        set(cx, row(to, u32::from(value), 1, count), std::ptr::null_mut())
    }

    fn cuMemsetD16_v2 / cuMemsetD16_v2_ptds(to: CUdeviceptr, value: c_ushort, count: usize) |cx| {
        set(cx, row(to, u32::from(value), 2, count), std::ptr::null_mut())
    }

    fn cuMemsetD32_v2 / cuMemsetD32_v2_ptds(to: CUdeviceptr, value: c_uint, count: usize) |cx| {
        set(cx, row(to, value, 4, count), std::ptr::null_mut())
    }

    fn cuMemsetD8Async / cuMemsetD8Async_ptsz(to: CUdeviceptr, value: c_uchar, count: usize, stream: CUstream) |cx| {
        set(cx, row(to, u32::from(value), 1, count), stream)
    }

    fn cuMemsetD16Async / cuMemsetD16Async_ptsz(
        to: CUdeviceptr, value: c_ushort, count: usize, stream: CUstream,
    ) |cx| {
        set(cx, row(to, u32::from(value), 2, count), stream)
    }

    fn cuMemsetD32Async / cuMemsetD32Async_ptsz(to: CUdeviceptr, value: c_uint, count: usize, stream: CUstream) |cx| {
        set(cx, row(to, value, 4, count), stream)
    }

    fn cuMemsetD2D8_v2 / cuMemsetD2D8_v2_ptds(
        to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize,
    ) |cx| {
        set(cx, rows(to, pitch, (u32::from(value), 1), width, height), std::ptr::null_mut())
    }

    fn cuMemsetD2D16_v2 / cuMemsetD2D16_v2_ptds(
        to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize,
    ) |cx| {
        set(cx, rows(to, pitch, (u32::from(value), 2), width, height), std::ptr::null_mut())
    }

    fn cuMemsetD2D32_v2 / cuMemsetD2D32_v2_ptds(
        to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize,
    ) |cx| {
        set(cx, rows(to, pitch, (value, 4), width, height), std::ptr::null_mut())
    }

    fn cuMemsetD2D8Async / cuMemsetD2D8Async_ptsz(
        to: CUdeviceptr, pitch: usize, value: c_uchar, width: usize, height: usize, stream: CUstream,
    ) |cx| {
        set(cx, rows(to, pitch, (u32::from(value), 1), width, height), stream)
    }

    fn cuMemsetD2D16Async / cuMemsetD2D16Async_ptsz(
        to: CUdeviceptr, pitch: usize, value: c_ushort, width: usize, height: usize, stream: CUstream,
    ) |cx| {
        set(cx, rows(to, pitch, (u32::from(value), 2), width, height), stream)
    }

    fn cuMemsetD2D32Async / cuMemsetD2D32Async_ptsz(
        to: CUdeviceptr, pitch: usize, value: c_uint, width: usize, height: usize, stream: CUstream,
    ) |cx| {
        set(cx, rows(to, pitch, (value, 4), width, height), stream)
    }
}

fn row(to: CUdeviceptr, value: u32, element: u64, count: usize) -> Fill {
    Fill {
        address: to,
        pitch: (count as u64).saturating_mul(element),
        element,
        value,
        width: count as u64,
        height: 1,
        context: 0,
    }
}

fn rows(to: CUdeviceptr, pitch: usize, (value, element): (u32, u64), width: usize, height: usize) -> Fill {
    let (width, height) = (width as u64, height as u64);
    Fill { address: to, pitch: pitch as u64, element, value, width, height, context: 0 }
}

fn set(cx: &Call, fill: Fill, stream: CUstream) -> Outcome {
    let stream = cx.stream(stream)?;
    check(&fill)?;
    if fill.bytes() == 0 {
        return Ok(());
    }
    let fill = Fill { context: stream.context.id, ..fill };
    // Into a graph it comes all the same, which then cannot be instantiated.
    if fill.is_out_of_reach() && !capture::is_capturing(&stream) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    work::submit(&stream, Work::Fill(fill)).map(|_| ())
}

/// What the driver refuses at the call.
pub(crate) fn check(fill: &Fill) -> Outcome {
    if fill.bytes() == 0 {
        return Ok(());
    }
    let narrow = fill.height > 1 && fill.pitch < fill.width.saturating_mul(fill.element);
    let askew = !fill.address.is_multiple_of(fill.element)
        || (fill.height > 1 && !fill.pitch.is_multiple_of(fill.element));
    if narrow || askew {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    device_end(fill.address)
}
