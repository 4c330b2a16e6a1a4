//! What the strict simulator says when a program does what a GPU would punish, or worse, would let pass.

use std::sync::LazyLock;

use cudarc::driver::sys::CUresult;

use crate::context::{CONTEXTS, Context};

/// Whether `NVSHARE_SIM_STRICT` asks for the checks (the default).
pub(crate) static STRICT: LazyLock<bool> =
    LazyLock::new(|| std::env::var("NVSHARE_SIM_STRICT").map_or(true, |value| value != "0"));

/// Writes a violation down. What a GPU would do about it is the caller's business.
pub(crate) fn report(text: &str) {
    if !*STRICT {
        return;
    }
    crate::device::card().violation(text);
}

/// Work touched what it must not: reports it and returns the error that every context of the process on that card keeps from
/// now on (seen on an H200).
pub(crate) fn illegal(context: &Context, text: &str) -> CUresult {
    report(text);
    context.fail(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    CONTEXTS.for_each(|other| {
        if other.device == context.device {
            other.fail(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        }
    });
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
}

/// Something was taken away from work in flight: reports it, and every context of the process keeps the error.
pub(crate) fn violation(text: &str) {
    report(text);
    CONTEXTS.for_each(|context| context.fail(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
}
