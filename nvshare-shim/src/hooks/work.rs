//! Calls that submit work to the device: copies, memsets, launches, graphs, stream memory operations. They pass the gate
//! before and are otherwise untouched.

use super::Bare;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUlaunchConfig, CUstream};
use crate::{gate, pace, streams};

/// Work in `stream`.
#[inline]
pub(crate) unsafe fn on<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    let stream = bare.stream(stream);
    let _pass = gate::pass_into(stream);
    streams::note_use(stream);
    bare.call()
}

/// Work in the default stream; most of these calls return when it is done.
#[inline]
pub(crate) unsafe fn blocking<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    // SAFETY: the null stream is what these functions use.
    unsafe { on(bare, std::ptr::null_mut()) }
}

/// Kernels and graphs in `stream`: work that may be long, and queued up faster than it is done.
#[inline]
pub(crate) unsafe fn launch<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    // SAFETY: the application's own stream.
    let result = unsafe { on(bare, stream) };
    pace::after_launch(bare.stream(stream));
    result
}

/// A launch whose stream stands in `config`.
#[inline]
pub(crate) unsafe fn launch_ex<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    config: *const CUlaunchConfig,
) -> CUresult {
    if config.is_null() {
        return bare.call();
    }
    // SAFETY: not null, so the driver would read it too; only the stream's field is read.
    let stream = unsafe { (&raw const (*config).hStream).read() };
    // SAFETY: the application's own stream.
    unsafe { launch(bare, stream) }
}
