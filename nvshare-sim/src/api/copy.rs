//! Copies. Those that the host waits for, those that it does not, and the ones between which the kind of memory decides.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUresult, CUstream};

use crate::capture;
use crate::context;
use crate::export::{Call, Outcome, export, put_if};
use crate::memory::{self, Location};
use crate::work::{self, Plane, Transfer, Work, device_end};

/// `CU_MEMORYTYPE_HOST`.
const HOST: u32 = 1;

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
        synchronous(cx, transfer)
    }

    fn cuMemcpyPeerAsync / cuMemcpyPeerAsync_ptsz(
        to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize,
        stream: CUstream,
    ) |cx| {
        let by = Some([context::by_handle(from_context)?.device, context::by_handle(to_context)?.device]);
        let transfer = Transfer { by, ..device_to_device(cx, to, from, bytes)? };
        asynchronous(cx, transfer, stream)
    }

    fn cuMemcpyBatchAsync / cuMemcpyBatchAsync_ptsz(
        to: *const CUdeviceptr, from: *const CUdeviceptr, bytes: *const usize, count: usize,
        attributes: *const c_void, indices: *const usize, attribute_count: usize, failed: *mut usize,
        stream: CUstream,
    ) |cx| {
        // The default streams would give the copies of a batch an order; the driver refuses them.
        if stream.is_null() || to.is_null() || from.is_null() || bytes.is_null() || count == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        for index in 0..count {
            // SAFETY: the caller's arrays of that many, and an optional out-parameter.
            let copied = unsafe {
                put_if(failed, index);
                let (to, from) = (to.add(index).read(), from.add(index).read());
                asynchronous(cx, Transfer::linear(to, from, bytes.add(index).read() as u64), stream)
            };
            copied?;
        }
        // SAFETY: an optional out-parameter.
        unsafe { put_if(failed, usize::MAX) };
        Ok(())
    }

    fn cuMemcpy3DBatchAsync / cuMemcpy3DBatchAsync_ptsz(
        count: usize, list: *const Boxes, failed: *mut usize, flags: u64, stream: CUstream,
    ) |cx| {
        if stream.is_null() || list.is_null() || count == 0 || flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        for index in 0..count {
            // SAFETY: the caller's array of that many, and an optional out-parameter.
            let copied = unsafe {
                put_if(failed, index);
                boxes(&*list.add(index)).and_then(|transfer| asynchronous(cx, transfer, stream))
            };
            copied?;
        }
        // SAFETY: an optional out-parameter.
        unsafe { put_if(failed, usize::MAX) };
        Ok(())
    }

    fn cuMemcpyWithAttributesAsync / cuMemcpyWithAttributesAsync_ptsz(
        to: CUdeviceptr, from: CUdeviceptr, bytes: usize, attributes: *const u32, stream: CUstream,
    ) |cx| {
        // SAFETY: null, or attributes as the driver API demands them, the order first.
        let order = unsafe { attributes.as_ref() }.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        ordered(cx, Transfer::linear(to, from, bytes as u64), stream, *order)
    }

    fn cuMemcpy3DWithAttributesAsync / cuMemcpy3DWithAttributesAsync_ptsz(
        copy: *const Boxes, flags: u64, stream: CUstream,
    ) |cx| {
        // SAFETY: a description as the driver API demands it.
        let copy = unsafe { copy.as_ref() }.filter(|_| flags == 0).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        ordered(cx, boxes(copy)?, stream, copy.order)
    }

    fn cuMemcpy2D_v2 / cuMemcpy2D_v2_ptds(copy: *const Rows) |cx| {
        // SAFETY: a description as the driver API demands it.
        let transfer = unsafe { rows(copy) }?;
        synchronous(cx, transfer)
    }

    fn cuMemcpy2DUnaligned_v2 / cuMemcpy2DUnaligned_v2_ptds(copy: *const Rows) |cx| {
        // SAFETY: a description as the driver API demands it.
        let transfer = unsafe { rows(copy) }?;
        synchronous(cx, transfer)
    }

    fn cuMemcpy2DAsync_v2 / cuMemcpy2DAsync_v2_ptsz(copy: *const Rows, stream: CUstream) |cx| {
        // SAFETY: a description as the driver API demands it.
        let transfer = unsafe { rows(copy) }?;
        asynchronous(cx, transfer, stream)
    }

    fn cuMemcpy3D_v2 / cuMemcpy3D_v2_ptds(copy: *const Slices) |cx| {
        // SAFETY: a description as the driver API demands it.
        let transfer = unsafe { slices(copy) }?;
        synchronous(cx, transfer)
    }

    fn cuMemcpy3DAsync_v2 / cuMemcpy3DAsync_v2_ptsz(copy: *const Slices, stream: CUstream) |cx| {
        // SAFETY: a description as the driver API demands it.
        let transfer = unsafe { slices(copy) }?;
        asynchronous(cx, transfer, stream)
    }

    fn cuMemcpy3DPeer / cuMemcpy3DPeer_ptds(copy: *const Slices) |cx| {
        // SAFETY: a description as the driver API demands it; contexts stand where the others have reserved words.
        let transfer = unsafe { between(copy) }?;
        synchronous(cx, transfer)
    }

    fn cuMemcpy3DPeerAsync / cuMemcpy3DPeerAsync_ptsz(copy: *const Slices, stream: CUstream) |cx| {
        // SAFETY: as above.
        let transfer = unsafe { between(copy) }?;
        asynchronous(cx, transfer, stream)
    }
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

fn not_null(address: u64) -> Outcome {
    if address == 0 { Err(CUresult::CUDA_ERROR_INVALID_VALUE) } else { Ok(()) }
}

fn is_host(plane: &Plane) -> bool {
    matches!(memory::classify(plane.address), Location::Pinned | Location::Pageable)
}

/// A copy in the default stream; the host waits where it has an end in its own memory.
fn synchronous(cx: &Call, transfer: Transfer) -> Outcome {
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
fn asynchronous(cx: &Call, mut transfer: Transfer, stream: CUstream) -> Outcome {
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
    stream.context.failure().map_or(Ok(()), Err)
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

/// `CUDA_MEMCPY2D`, with plain numbers where it has enums.
#[repr(C)]
pub(crate) struct Rows {
    from: RowEnd,
    to: RowEnd,
    width: usize,
    height: usize,
}

#[repr(C)]
struct RowEnd {
    x: usize,
    y: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: u64,
    pitch: usize,
}

/// `CUDA_MEMCPY3D` and `CUDA_MEMCPY3D_PEER`, with plain numbers where they have enums.
#[repr(C)]
pub(crate) struct Slices {
    from: SliceEnd,
    to: SliceEnd,
    width: usize,
    height: usize,
    depth: usize,
}

#[repr(C)]
struct SliceEnd {
    x: usize,
    y: usize,
    z: usize,
    lod: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: u64,
    context: u64,
    pitch: usize,
    height: usize,
}

/// `CUDA_MEMCPY3D_BATCH_OP`.
#[repr(C)]
pub(crate) struct Boxes {
    from: BoxEnd,
    to: BoxEnd,
    width: usize,
    height: usize,
    depth: usize,
    order: u32,
    flags: u32,
}

/// `CUmemcpy3DOperand` of a pointer.
#[repr(C)]
struct BoxEnd {
    kind: u32,
    address: u64,
    row: usize,
    rows: usize,
    hint: u64,
}

/// `CU_MEMCPY_OPERAND_TYPE_POINTER`.
const POINTER: u32 = 1;

/// One copy of a batch; arrays are not simulated.
fn boxes(copy: &Boxes) -> Outcome<Transfer> {
    let end = |end: &BoxEnd| {
        if end.kind != POINTER {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        let row = if end.row == 0 { copy.width } else { end.row };
        let rows = if end.rows == 0 { copy.height } else { end.rows };
        if row < copy.width || rows < copy.height {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        not_null(end.address)?;
        Ok(Plane { address: end.address, pitch: row as u64, slice: (row * rows) as u64 })
    };
    let (from, to) = (end(&copy.from)?, end(&copy.to)?);
    let [width, height, depth] = [copy.width, copy.height, copy.depth].map(|length| length as u64);
    Ok(Transfer { to, from, width, height, depth, by: None, staged: None })
}

/// Where the memory is that an end of a copy describes; arrays are not simulated.
fn base(kind: u32, host: u64, device: u64) -> Outcome<u64> {
    match kind {
        HOST => not_null(host).map(|()| host),
        2 => device_end(device).map(|()| device),
        3 => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
        4 => Ok(device),
        _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }
}

/// # Safety
/// `copy` is null or a description whose ends are memory as it says.
unsafe fn rows(copy: *const Rows) -> Outcome<Transfer> {
    // SAFETY: the caller's.
    let copy = unsafe { copy.as_ref() }.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    let end = |end: &RowEnd| {
        let pitch = if end.pitch == 0 { copy.width } else { end.pitch };
        if pitch < copy.width && copy.height > 1 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let address = base(end.kind, end.host, end.device)? + (end.y * pitch + end.x) as u64;
        Ok(Plane { address, pitch: pitch as u64, slice: (pitch * copy.height) as u64 })
    };
    let (from, to) = (end(&copy.from)?, end(&copy.to)?);
    Ok(Transfer {
        to,
        from,
        width: copy.width as u64,
        height: copy.height as u64,
        depth: 1,
        by: None,
        staged: None,
    })
}

/// # Safety
/// As [`rows`].
pub(crate) unsafe fn slices(copy: *const Slices) -> Outcome<Transfer> {
    // SAFETY: the caller's.
    let copy = unsafe { copy.as_ref() }.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    let end = |end: &SliceEnd| {
        let pitch = if end.pitch == 0 { copy.width } else { end.pitch };
        let height = if end.height == 0 { copy.height } else { end.height };
        if (pitch < copy.width && copy.height > 1) || (height < copy.height && copy.depth > 1) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let slice = pitch * height;
        let address = base(end.kind, end.host, end.device)? + (end.z * slice + end.y * pitch + end.x) as u64;
        Ok(Plane { address, pitch: pitch as u64, slice: slice as u64 })
    };
    let (from, to) = (end(&copy.from)?, end(&copy.to)?);
    let [width, height, depth] = [copy.width, copy.height, copy.depth].map(|length| length as u64);
    Ok(Transfer { to, from, width, height, depth, by: None, staged: None })
}

/// Like [`slices`], with the contexts of both ends.
///
/// # Safety
/// As [`rows`].
unsafe fn between(copy: *const Slices) -> Outcome<Transfer> {
    // SAFETY: the caller's.
    let (transfer, ends) = unsafe { (slices(copy)?, [&(*copy).from, &(*copy).to]) };
    // An end in the host's memory names no context.
    let [from, to] = ends.map(|end| match end.kind {
        HOST => Ok(0),
        _ => context::by_handle(end.context as CUcontext).map(|context| context.device),
    });
    Ok(Transfer { by: Some([from?, to?]), ..transfer })
}
