//! Streams and captures come and go, so that a drain knows where work can be and where nothing may be recorded.

use super::Bare;
use crate::cuda::CUresult;
use crate::cuda::sys::CUstream;
use crate::{gate, start, streams};

pub(crate) unsafe fn create<F: Fn() -> CUresult>(bare: &Bare<F>, stream: *mut CUstream) -> CUresult {
    let result = super::room::retry(bare, None);
    if result.ok() && !stream.is_null() && start::active() {
        // SAFETY: the driver has just stored the new handle there.
        streams::created(unsafe { stream.read() });
    }
    result
}

pub(crate) unsafe fn destroy<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    if start::active() && !stream.is_null() {
        streams::destroying(stream);
    }
    bare.call()
}

/// Passes the gate, so that no capture begins while a drain looks at the streams.
pub(crate) unsafe fn begin_capture<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    if !start::active() {
        return bare.call();
    }
    let stream = bare.stream(stream);
    let _pass = gate::pass();
    streams::keep_in_sight(stream);
    let result = streams::while_nothing_is_marked(|| bare.call());
    if result.ok() {
        streams::capture_began(stream);
    }
    result
}

pub(crate) unsafe fn end_capture<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    let result = bare.call();
    // Whatever it answers, except to the wrong thread, the capture is over.
    if result != CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD {
        streams::capture_ended(bare.stream(stream));
    }
    result
}

/// A capture reaches another stream through an event: what that stream holds from before stays in sight.
pub(crate) unsafe fn wait_event<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    if !start::active() {
        return bare.call();
    }
    let stream = bare.stream(stream);
    let _pass = gate::pass_into(stream);
    if streams::capturing() {
        streams::keep_in_sight(stream);
        return streams::while_nothing_is_marked(|| bare.call());
    }
    bare.call()
}
