//! Calls that make the driver take device memory for itself. Where one fails for want of memory the agent is asked for
//! room and the call is made once more.

use super::Bare;
use crate::cuda::CUresult;
use crate::cuda::sys::CUdevice;
use crate::link;
use crate::start;

pub(crate) unsafe fn retried<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    retry(bare)
}

pub(crate) fn retry<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    retry_on(bare, None)
}

/// As [`retry`], for a call that makes a context on `device`: there may be no current one to tell the device by.
pub(crate) fn retry_on<F: Fn() -> CUresult>(bare: &Bare<F>, device: Option<CUdevice>) -> CUresult {
    let result = bare.call();
    if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY && start::active() && link::want_room(device) {
        crate::log::debug!("{} is tried again after room was made", bare.symbol().name());
        return bare.call();
    }
    result
}
