//! Copies. Those that the host waits for, those that it does not, and the ones between which the kind of memory decides.

#![expect(unsafe_code, reason = "the application's bytes, which a copy reads at the call")]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUresult, CUstream};

use super::described::{Boxes, Rows, Slices, between, boxes, rows, slices};
use crate::call::{Call, Outcome};
use crate::context;
use crate::execution::capture;
use crate::execution::work::{self, Plane, Transfer, Work, device_end};
use crate::export::export;
use crate::failure;
use crate::memory::{self, Location};
use crate::parameters::{Count, In, List, Maybe};

/// Up to this size the driver takes the bytes of pageable memory at the call.
const STAGED: u64 = 64 << 10;

export! {
    fn cuMemcpy / cuMemcpy_ptds(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) |cx| {
        synchronous(cx, Transfer::linear(to, from, bytes as u64))
    }

    fn cuMemcpyAsync / cuMemcpyAsync_ptsz(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) |cx| {
        asynchronous(cx, Transfer::linear(to, from, bytes as u64), stream)
    }

    fn cuMemcpyHtoD_v2 / cuMemcpyHtoD_v2_ptds(to: CUdeviceptr, from: *const c_void, bytes: usize) |cx| {
        let transfer = host_to_device(cx, to, from, bytes)?;
        synchronous(cx, transfer)
    }

    fn cuMemcpyDtoH_v2 / cuMemcpyDtoH_v2_ptds(to: *mut c_void, from: CUdeviceptr, bytes: usize) |cx| {
        let transfer = device_to_host(cx, to, from, bytes)?;
        synchronous(cx, transfer)
    }

    fn cuMemcpyDtoD_v2 / cuMemcpyDtoD_v2_ptds(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) |cx| {
        let transfer = device_to_device(cx, to, from, bytes)?;
        synchronous(cx, transfer)
    }

    fn cuMemcpyHtoDAsync_v2 / cuMemcpyHtoDAsync_v2_ptsz(
        to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream,
    ) |cx| {
        let transfer = host_to_device(cx, to, from, bytes)?;
        asynchronous(cx, transfer, stream)
    }

    fn cuMemcpyDtoHAsync_v2 / cuMemcpyDtoHAsync_v2_ptsz(
        to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream,
    ) |cx| {
        let transfer = device_to_host(cx, to, from, bytes)?;
        asynchronous(cx, transfer, stream)
    }

    fn cuMemcpyDtoDAsync_v2 / cuMemcpyDtoDAsync_v2_ptsz(
        to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream,
    ) |cx| {
        let transfer = device_to_device(cx, to, from, bytes)?;
        asynchronous(cx, transfer, stream)
    }

    fn cuMemcpyPeer / cuMemcpyPeer_ptds(
        to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize,
    ) |cx| {
        let by = Some([context::by_handle(from_context)?.device, context::by_handle(to_context)?.device]);
        let transfer = Transfer { by, ..device_to_device(cx, to, from, bytes)? };
        not_captured(cx, std::ptr::null_mut())?;
        synchronous(cx, transfer)
    }

    fn cuMemcpyPeerAsync / cuMemcpyPeerAsync_ptsz(
        to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize,
        stream: CUstream,
    ) |cx| {
        let by = Some([context::by_handle(from_context)?.device, context::by_handle(to_context)?.device]);
        let transfer = Transfer { by, ..device_to_device(cx, to, from, bytes)? };
        not_captured(cx, stream)?;
        asynchronous(cx, transfer, stream)
    }

    fn cuMemcpyBatchAsync / cuMemcpyBatchAsync_ptsz(
        to: List<CUdeviceptr>, from: List<CUdeviceptr>, bytes: List<usize>, count: Count,
        attributes: *const c_void, indices: *const usize, attribute_count: usize, failed: Maybe<usize>,
        stream: CUstream,
    ) |cx| {
        let (to, from, bytes) = (to.of(count)?, from.of(count)?, bytes.of(count)?);
        // The default streams would give the copies of a batch an order; the driver refuses them.
        if stream.is_null() || to.is_empty() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        for (index, ((to, from), bytes)) in to.iter().zip(from).zip(bytes).enumerate() {
            failed.set(index);
            asynchronous(cx, Transfer::linear(*to, *from, *bytes as u64), stream)?;
        }
        failed.set(usize::MAX);
        Ok(())
    }

    fn cuMemcpy3DBatchAsync / cuMemcpy3DBatchAsync_ptsz(
        count: Count, list: List<Boxes>, failed: Maybe<usize>, flags: u64, stream: CUstream,
    ) |cx| {
        let list = list.of(count)?;
        if stream.is_null() || list.is_empty() || flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        for (index, copy) in list.iter().enumerate() {
            failed.set(index);
            asynchronous(cx, boxes(copy)?, stream)?;
        }
        failed.set(usize::MAX);
        Ok(())
    }

    fn cuMemcpyWithAttributesAsync / cuMemcpyWithAttributesAsync_ptsz(
        to: CUdeviceptr, from: CUdeviceptr, bytes: usize, attributes: In<u32>, stream: CUstream,
    ) |cx| {
        // The order stands first in them.
        let order = *attributes.get()?;
        ordered(cx, Transfer::linear(to, from, bytes as u64), stream, order)
    }

    fn cuMemcpy3DWithAttributesAsync / cuMemcpy3DWithAttributesAsync_ptsz(
        copy: In<Boxes>, flags: u64, stream: CUstream,
    ) |cx| {
        let copy = copy.given().filter(|_| flags == 0).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        ordered(cx, boxes(copy)?, stream, copy.order)
    }

    fn cuMemcpy2D_v2 / cuMemcpy2D_v2_ptds(copy: In<Rows>) |cx| {
        cx.context()?;
        synchronous(cx, rows(copy.get()?)?)
    }

    fn cuMemcpy2DUnaligned_v2 / cuMemcpy2DUnaligned_v2_ptds(copy: In<Rows>) |cx| {
        cx.context()?;
        synchronous(cx, rows(copy.get()?)?)
    }

    fn cuMemcpy2DAsync_v2 / cuMemcpy2DAsync_v2_ptsz(copy: In<Rows>, stream: CUstream) |cx| {
        cx.stream(stream)?;
        asynchronous(cx, rows(copy.get()?)?, stream)
    }

    fn cuMemcpy3D_v2 / cuMemcpy3D_v2_ptds(copy: In<Slices>) |cx| {
        cx.context()?;
        synchronous(cx, slices(copy.get()?)?)
    }

    fn cuMemcpy3DAsync_v2 / cuMemcpy3DAsync_v2_ptsz(copy: In<Slices>, stream: CUstream) |cx| {
        cx.stream(stream)?;
        asynchronous(cx, slices(copy.get()?)?, stream)
    }

    fn cuMemcpy3DPeer / cuMemcpy3DPeer_ptds(copy: In<Slices>) |cx| {
        let transfer = between(copy.get()?)?;
        not_captured(cx, std::ptr::null_mut())?;
        synchronous(cx, transfer)
    }

    fn cuMemcpy3DPeerAsync / cuMemcpy3DPeerAsync_ptsz(copy: In<Slices>, stream: CUstream) |cx| {
        let transfer = between(copy.get()?)?;
        not_captured(cx, stream)?;
        asynchronous(cx, transfer, stream)
    }
}

/// The forms that name a context for each end cannot be captured, whatever memory they are about.
fn not_captured(cx: &Call, stream: CUstream) -> Outcome {
    capture::forbid(&cx.stream(stream)?, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
}

fn host_to_device(cx: &Call, to: CUdeviceptr, from: *const c_void, bytes: usize) -> Outcome<Transfer> {
    cx.context()?;
    if bytes > 0 {
        not_null(from as u64)?;
        device_end(to)?;
    }
    Ok(Transfer::linear(to, from as u64, bytes as u64))
}

fn device_to_host(cx: &Call, to: *mut c_void, from: CUdeviceptr, bytes: usize) -> Outcome<Transfer> {
    cx.context()?;
    if bytes > 0 {
        not_null(to as u64)?;
        device_end(from)?;
    }
    Ok(Transfer::linear(to as u64, from, bytes as u64))
}

fn device_to_device(cx: &Call, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Outcome<Transfer> {
    cx.context()?;
    if bytes > 0 {
        device_end(to)?;
        device_end(from)?;
    }
    Ok(Transfer::linear(to, from, bytes as u64))
}

pub(super) fn not_null(address: u64) -> Outcome {
    if address == 0 { Err(CUresult::CUDA_ERROR_INVALID_VALUE) } else { Ok(()) }
}

fn is_host(plane: &Plane) -> bool {
    matches!(memory::classify(plane.address), Location::Pinned | Location::Pageable)
}

/// A copy in the default stream; the host waits where it has an end in its own memory.
pub(super) fn synchronous(cx: &Call, transfer: Transfer) -> Outcome {
    let stream = cx.stream(std::ptr::null_mut())?;
    if transfer.bytes() == 0 {
        return Ok(());
    }
    if is_host(&transfer.from) || is_host(&transfer.to) {
        work::submit_and_wait(&stream, Work::Transfer(transfer))
    } else {
        work::submit(&stream, Work::Transfer(transfer)).map(|_| ())
    }
}

/// A copy in a stream. The host does not wait, except for pageable memory: a little of it is taken at the call, more is
/// copied before the call returns, as nobody could tell when the driver has read or written it.
pub(super) fn asynchronous(cx: &Call, mut transfer: Transfer, stream: CUstream) -> Outcome {
    let stream = cx.stream(stream)?;
    if transfer.bytes() == 0 {
        return Ok(());
    }
    let pageable = |plane: &Plane| memory::classify(plane.address) == Location::Pageable;
    let (from, to) = (pageable(&transfer.from), pageable(&transfer.to));
    if (!from && !to) || capture::is_capturing(&stream) {
        return work::submit(&stream, Work::Transfer(transfer)).map(|_| ());
    }
    if !to && transfer.bytes() <= STAGED && transfer.height * transfer.depth == 1 {
        // SAFETY: the application's memory, as long as it says.
        let bytes = unsafe {
            std::slice::from_raw_parts(transfer.from.address as *const u8, transfer.width as usize)
        };
        let staged: Arc<[u8]> = bytes.into();
        transfer.from.address = staged.as_ptr() as u64;
        transfer.staged = Some(staged);
        return work::submit(&stream, Work::Transfer(transfer)).map(|_| ());
    }
    let sample = from.then(|| Sample::take(&transfer));
    if let work::Submitted::Running(done) = work::submit(&stream, Work::Transfer(transfer.clone()))? {
        done.wait();
    }
    if let Some(sample) = sample
        && sample != Sample::take(&transfer)
    {
        crate::strict::report(&format!(
            "{}: pageable memory of {} changed while the copy read it",
            cx.name,
            transfer.bytes()
        ));
    }
    failure::check()
}

/// `CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL`.
const DURING_API_CALL: u32 = 2;

/// A copy in a stream that says when its source is read.
fn ordered(cx: &Call, transfer: Transfer, stream: CUstream, order: u32) -> Outcome {
    let in_stream = cx.stream(stream)?;
    if order == DURING_API_CALL && transfer.bytes() > 0 && !capture::is_capturing(&in_stream) {
        return work::submit_and_wait(&in_stream, Work::Transfer(transfer));
    }
    asynchronous(cx, transfer, stream)
}

/// Some bytes of the source, to notice that somebody changes it.
#[derive(PartialEq, Eq)]
struct Sample(Vec<u8>);

impl Sample {
    fn take(transfer: &Transfer) -> Sample {
        const PLACES: u64 = 64;
        let last = transfer.bytes() - 1;
        let byte = |index: u64| {
            let at = transfer.from.address + transfer.offset_in_source(last / PLACES * index);
            // SAFETY: within the application's source, which must stay readable during the call.
            unsafe { (at as *const u8).read_volatile() }
        };
        Sample((0..=PLACES).map(byte).collect())
    }
}
