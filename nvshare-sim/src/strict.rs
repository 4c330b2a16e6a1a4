//! What the strict simulator says when a program does what a GPU would punish, or worse, would let pass.

use std::sync::LazyLock;

use cudarc::driver::sys::CUresult;

use crate::failure;

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

/// Work touched what it must not: reports it and returns the error, which is for good.
pub(crate) fn illegal(text: &str) -> CUresult {
    violation(text);
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
}

/// Something was taken away from work in flight: reports it, and the error is for good.
pub(crate) fn violation(text: &str) {
    report(text);
    failure::set(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}
