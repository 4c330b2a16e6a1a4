//! Managed memory: allocated, advised about, prefetched.

#![expect(unsafe_code, reason = "an attribute's value, whose length the caller says")]

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::sys::{CUdevice, CUdeviceptr, CUresult, CUstream};

use crate::call::{Call, Outcome};
use crate::device;
use crate::execution::work::{Custom, Work};
use crate::export::export;
use crate::memory::grant::{Location, ON_DEVICE, ON_HOST, ON_HOST_NODE, ON_NEAREST_NODE};
use crate::memory::managed::{self, HOST, NOWHERE};
use crate::parameters::{Count, List, Out};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CU_MEM_ADVISE_*`.
const READ_MOSTLY: c_uint = 1;
const NOT_READ_MOSTLY: c_uint = 2;
const PREFERRED: c_uint = 3;
const NOT_PREFERRED: c_uint = 4;
const ACCESSED: c_uint = 5;
const NOT_ACCESSED: c_uint = 6;

/// A device's number, or the host's.
fn place(device: CUdevice) -> Outcome<i32> {
    if device == HOST { Ok(HOST) } else { device::index(device).map(|index| index as i32) }
}

impl Location {
    /// The number of the device, or the host's.
    fn place(self) -> Outcome<i32> {
        match self.kind {
            ON_DEVICE => place(self.id),
            ON_HOST | ON_HOST_NODE | ON_NEAREST_NODE => Ok(HOST),
            _ => Err(INVALID),
        }
    }
}

fn prefetch(cx: &Call, start: u64, bytes: usize, to: i32, stream: CUstream) -> Outcome {
    let stream = cx.stream(stream)?;
    let area = managed::around(start, bytes as u64)?;
    let custom = Custom {
        name: "cuMemPrefetchAsync",
        touches: Vec::new(),
        run: Box::new(move |timeline| {
            timeline.at = managed::prefetch(&area, start, bytes as u64, to, timeline.at);
            Ok(())
        }),
    };
    crate::execution::work::submit(&stream, Work::Custom(Arc::new(custom))).map(|_| ())
}

fn advise(start: u64, bytes: usize, advice: c_uint, place: Outcome<i32>) -> Outcome {
    let area = managed::around(start, bytes as u64)?;
    let known = managed::advice(&area);
    match advice {
        READ_MOSTLY => known.read_mostly.store(1, Ordering::Relaxed),
        NOT_READ_MOSTLY => known.read_mostly.store(0, Ordering::Relaxed),
        PREFERRED => known.preferred.store(place?, Ordering::Relaxed),
        NOT_PREFERRED => known.preferred.store(NOWHERE, Ordering::Relaxed),
        ACCESSED => known.accessor.store(place?, Ordering::Relaxed),
        NOT_ACCESSED => known.accessor.store(NOWHERE, Ordering::Relaxed),
        _ => return Err(INVALID),
    }
    Ok(())
}

/// One attribute of a range, as the numbers that are written.
fn attribute(start: u64, bytes: usize, attribute: c_uint, count: usize) -> Outcome<Vec<c_int>> {
    let area = managed::around(start, bytes as u64)?;
    let known = managed::advice(&area);
    let value = |value: &std::sync::atomic::AtomicI32| vec![value.load(Ordering::Relaxed)];
    match attribute {
        1 if count == 1 => Ok(value(&known.read_mostly)),
        2 if count == 1 => Ok(value(&known.preferred)),
        3 if count >= 1 => {
            let mut accessors = vec![NOWHERE; count];
            accessors[0] = known.accessor.load(Ordering::Relaxed);
            Ok(accessors)
        }
        4 if count == 1 => Ok(value(&known.prefetched)),
        _ => Err(INVALID),
    }
}

/// Writes one attribute to the caller's memory.
///
/// # Safety
/// `data` is null or valid for writes of `bytes`.
unsafe fn answer(data: *mut c_void, bytes: usize, asked: c_uint, start: u64, range: usize) -> Outcome {
    if data.is_null() || bytes == 0 || !bytes.is_multiple_of(size_of::<c_int>()) {
        return Err(INVALID);
    }
    let numbers = attribute(start, range, asked, bytes / size_of::<c_int>())?;
    // SAFETY: as many numbers as fit, by this function's contract.
    unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), data.cast(), numbers.len()) };
    Ok(())
}

export! {
    fn cuMemAllocManaged(pointer: Out<CUdeviceptr>, bytes: usize, flags: c_uint) |cx| {
        let context = cx.context()?;
        crate::execution::capture::unsafe_call()?;
        pointer.needed()?;
        let start = managed::allocate(&context, bytes as u64, flags)?;
        pointer.set(start)
    }

    fn cuMemPrefetchAsync / cuMemPrefetchAsync_ptsz(start: CUdeviceptr, bytes: usize, to: CUdevice, stream: CUstream) |cx| {
        prefetch(cx, start, bytes, place(to)?, stream)
    }

    fn cuMemPrefetchAsync_v2 / cuMemPrefetchAsync_v2_ptsz(start: CUdeviceptr, bytes: usize, to: Location, flags: c_uint, stream: CUstream) |cx| {
        if flags != 0 {
            return Err(INVALID);
        }
        prefetch(cx, start, bytes, to.place()?, stream)
    }

    fn cuStreamAttachMemAsync / cuStreamAttachMemAsync_ptsz(stream: CUstream, start: CUdeviceptr, bytes: usize, flags: c_uint) |cx| {
        cx.stream(stream)?;
        let area = managed::around(start, 1)?;
        // All of it or, which means the same, zero; to every stream, to the host, or to this stream: no page moves.
        if !(bytes == 0 || (start == area.start && bytes as u64 == area.bytes)) || !matches!(flags, 1 | 2 | 4) {
            return Err(INVALID);
        }
        Ok(())
    }

    fn cuMemAdvise(start: CUdeviceptr, bytes: usize, advice: c_uint, device: CUdevice) |cx| {
        advise(start, bytes, advice, place(device))
    }

    fn cuMemAdvise_v2(start: CUdeviceptr, bytes: usize, advice: c_uint, location: Location) |cx| {
        advise(start, bytes, advice, location.place())
    }

    fn cuMemRangeGetAttribute(data: *mut c_void, bytes: usize, asked: c_uint, start: CUdeviceptr, range: usize) |cx| {
        // SAFETY: the caller passes room for `bytes`.
        unsafe { answer(data, bytes, asked, start, range) }
    }

    fn cuMemRangeGetAttributes(
        data: List<*mut c_void>, sizes: List<usize>, asked: List<c_uint>, count: Count, start: CUdeviceptr,
        range: usize,
    ) |cx| {
        data.needed()?;
        sizes.needed()?;
        asked.needed()?;
        for ((data, bytes), asked) in data.of(count)?.iter().zip(sizes.of(count)?).zip(asked.of(count)?) {
            // SAFETY: the caller passes room for as many bytes as it says.
            unsafe { answer(*data, *bytes, *asked, start, range)? };
        }
        Ok(())
    }
}
