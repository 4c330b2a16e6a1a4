//! The error for good: what a kernel did wrong ends every context of the process, on all its cards, those made afterwards
//! included, and is never over (700, 710, 715, 716, 718 and 719, provoked one by one on an H200).

use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::CUresult;

use crate::call::Outcome;

/// The errors that are for good.
const FOR_GOOD: [CUresult; 6] = [
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult::CUDA_ERROR_ASSERT,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
    CUresult::CUDA_ERROR_INVALID_PC,
    CUresult::CUDA_ERROR_LAUNCH_FAILED,
];

/// The first one, as a number; 0 while there is none.
static FIRST: AtomicU32 = AtomicU32::new(0);

/// The error, if there was one.
pub(crate) fn get() -> Option<CUresult> {
    let first = FIRST.load(Ordering::Acquire);
    FOR_GOOD.into_iter().find(|error| *error as u32 == first)
}

/// The error as the answer of a call.
pub(crate) fn check() -> Outcome {
    get().map_or(Ok(()), Err)
}

/// From now on every call that uses a context answers `error`, or what it answered before; of what cannot be for good it
/// is the one that tells least.
pub(crate) fn set(error: CUresult) {
    let error = if FOR_GOOD.contains(&error) { error } else { CUresult::CUDA_ERROR_LAUNCH_FAILED };
    let _ = FIRST.compare_exchange(0, error as u32, Ordering::AcqRel, Ordering::Relaxed);
}
