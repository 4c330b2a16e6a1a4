//! Streams and captures come and go, so that a drain knows where work can be and where nothing may be recorded.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::Bare;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUevent, CUstream};
use crate::{life, streams, turn};

pub(crate) unsafe fn create<F: Fn() -> CUresult>(bare: &Bare<F>, stream: *mut CUstream) -> CUresult {
    // SAFETY: the application's place for the handle.
    unsafe { made(bare, stream, false) }
}

/// In a green context.
pub(crate) unsafe fn create_green<F: Fn() -> CUresult>(bare: &Bare<F>, stream: *mut CUstream) -> CUresult {
    // SAFETY: the application's place for the handle.
    unsafe { made(bare, stream, true) }
}

unsafe fn made<F: Fn() -> CUresult>(bare: &Bare<F>, stream: *mut CUstream, green: bool) -> CUresult {
    let result = super::room::retry(bare, None);
    if result.ok() && !stream.is_null() && life::active() {
        // SAFETY: the driver has just stored the new handle there.
        streams::created(unsafe { stream.read() }, green);
    }
    result
}

/// The driver may refuse it; and where it does not, another stream may have the handle at once.
pub(crate) unsafe fn destroy<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    if !life::active() || stream.is_null() {
        return bare.call();
    }
    crate::allocation::stream_ordered::stream_leaves(stream);
    let leaving = streams::leaves(stream);
    let result = bare.call();
    if result.ok() {
        leaving.ends();
    }
    result
}

/// Passes the gate, so that no capture begins while a drain looks at the streams.
pub(crate) unsafe fn begin_capture<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    if !life::active() {
        return bare.call();
    }
    let _pass = turn::pass();
    streams::begin(bare.stream(stream), || bare.call())
}

pub(crate) unsafe fn end_capture<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    let result = bare.call();
    // Whatever it answers, except to the wrong thread, the capture is over.
    if result != CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD {
        streams::capture_ended(bare.stream(stream));
    }
    result
}

/// Events recorded in a capture take it to the streams that wait for them.
pub(crate) unsafe fn record_event<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    event: CUevent,
    stream: CUstream,
) -> CUresult {
    if !streams::capturing() || !life::active() {
        return bare.call();
    }
    streams::recorded(event, bare.stream(stream), || bare.call())
}

/// A capture reaches another stream through an event: what that stream holds from before stays in sight.
pub(crate) unsafe fn wait_event<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    stream: CUstream,
    event: CUevent,
) -> CUresult {
    if !life::active() {
        return bare.call();
    }
    let stream = bare.stream(stream);
    let _pass = turn::pass_into(stream);
    if streams::capturing() && streams::leads_into_capture(event) {
        return streams::spread(stream, || bare.call());
    }
    bare.call()
}
