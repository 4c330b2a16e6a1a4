//! Memsets. One of our memory that the stream's device has no access to is made by the device that the memory is on,
//! between an event before and one after it in the application's stream. (The bare driver refuses it, by an H200's answer;
//! mapped memory could otherwise end in an error for good.)

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::reach::{context_of, is_out_of_reach};
use super::{Bare, work};
use crate::allocation::owner;
use crate::cuda::sys::{CUcontext, CUdeviceptr, CUstream};
use crate::cuda::{CUresult, EVENT_DISABLE_TIMING};
use crate::driver::driver;
use crate::streams::{Current, Relaxed};

/// What a memset repeats.
pub(crate) trait Element: Copy {
    /// Starts a memset of rows, `pitch` apart (nothing for one row).
    unsafe fn fill(self, area: Area, stream: CUstream) -> CUresult;
}

/// What is filled: elements in a row, and rows.
#[derive(Clone, Copy)]
pub(crate) struct Area {
    to: CUdeviceptr,
    pitch: usize,
    width: usize,
    rows: Option<usize>,
}

macro_rules! element {
    ($type:ident $row:ident $rows:ident) => {
        impl Element for $type {
            unsafe fn fill(self, Area { to, pitch, width, rows }: Area, stream: CUstream) -> CUresult {
                // SAFETY: the application's own arguments.
                unsafe {
                    match rows {
                        Some(height) => driver().$rows(to, pitch, self, width, height, stream),
                        None => driver().$row(to, self, width, stream),
                    }
                }
            }
        }
    };
}
element!(u8 cuMemsetD8Async cuMemsetD2D8Async);
element!(u16 cuMemsetD16Async cuMemsetD2D16Async);
element!(u32 cuMemsetD32Async cuMemsetD2D32Async);

pub(crate) unsafe fn row_now<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: CUdeviceptr,
    value: impl Element,
    width: usize,
) -> CUresult {
    // SAFETY: the application's own arguments, and the stream that these functions use.
    unsafe { any(bare, value, Area { to, pitch: 0, width, rows: None }, std::ptr::null_mut()) }
}

pub(crate) unsafe fn row<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: CUdeviceptr,
    value: impl Element,
    width: usize,
    stream: CUstream,
) -> CUresult {
    // SAFETY: the application's own arguments.
    unsafe { any(bare, value, Area { to, pitch: 0, width, rows: None }, stream) }
}

pub(crate) unsafe fn rows_now<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: CUdeviceptr,
    pitch: usize,
    value: impl Element,
    width: usize,
    height: usize,
) -> CUresult {
    // SAFETY: the application's own arguments, and the stream that these functions use.
    unsafe { any(bare, value, Area { to, pitch, width, rows: Some(height) }, std::ptr::null_mut()) }
}

pub(crate) unsafe fn rows<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: CUdeviceptr,
    pitch: usize,
    value: impl Element,
    width: usize,
    height: usize,
    stream: CUstream,
) -> CUresult {
    // SAFETY: the application's own arguments.
    unsafe { any(bare, value, Area { to, pitch, width, rows: Some(height) }, stream) }
}

unsafe fn any<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    value: impl Element,
    area: Area,
    stream: CUstream,
) -> CUresult {
    let in_stream = bare.stream(stream);
    if is_out_of_reach(in_stream, &[area.to])
        && let Some(owner) = owner::owner(area.to)
    {
        // SAFETY: the application's own memset.
        let fill = |stream| unsafe { value.fill(area, stream) };
        let across = bare.instead(|| in_order_of(in_stream, owner.context, fill));
        // SAFETY: the application's own call in another form.
        return unsafe { work::at_addresses(&across, stream) };
    }
    // SAFETY: the application's own call.
    unsafe { work::at_addresses(bare, stream) }
}

/// Submits `work` to a stream of `context`, after everything in `stream` and before what comes there later.
fn in_order_of(stream: CUstream, context: CUcontext, work: impl Fn(CUstream) -> CUresult) -> CUresult {
    let Some(here) = context_of(stream) else { return CUresult::CUDA_ERROR_INVALID_CONTEXT };
    let _relaxed = Relaxed::new();
    submit(stream, here, context, work).err().unwrap_or(CUresult::CUDA_SUCCESS)
}

fn submit(
    stream: CUstream,
    here: CUcontext,
    there: CUcontext,
    work: impl Fn(CUstream) -> CUresult,
) -> Result<(), CUresult> {
    let _here = Current::push(here)?;
    let before = Event::new()?;
    // SAFETY: the event is new, and of the stream's context.
    unsafe { driver().cuEventRecord(before.0, stream) }.result()?;
    let after = {
        let _there = Current::push(there)?;
        let (after, other) = (Event::new()?, Stream::new()?);
        // SAFETY: both are ours, and live until the calls return.
        unsafe {
            driver().cuStreamWaitEvent(other.0, before.0, 0).result()?;
            work(other.0).result()?;
            driver().cuEventRecord(after.0, other.0).result()?;
        }
        after
    };
    // SAFETY: the application's stream, and an event of ours.
    unsafe { driver().cuStreamWaitEvent(stream, after.0, 0) }.result()
}

/// An event of the current context. Destroyed while it is waited for, it is still waited for.
struct Event(crate::cuda::sys::CUevent);

impl Event {
    fn new() -> Result<Event, CUresult> {
        let mut event = std::ptr::null_mut();
        // SAFETY: `event` is where the handle goes.
        unsafe { driver().cuEventCreate(&raw mut event, EVENT_DISABLE_TIMING) }.result()?;
        Ok(Event(event))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this.
        let _ = unsafe { driver().cuEventDestroy_v2(self.0) };
    }
}

/// A stream of the current context. Its work goes on when it is destroyed.
struct Stream(CUstream);

impl Stream {
    fn new() -> Result<Stream, CUresult> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: `stream` is where the handle goes. 1 is `CU_STREAM_NON_BLOCKING`.
        unsafe { driver().cuStreamCreate(&raw mut stream, 1) }.result()?;
        Ok(Stream(stream))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this.
        let _ = unsafe { driver().cuStreamDestroy_v2(self.0) };
    }
}
