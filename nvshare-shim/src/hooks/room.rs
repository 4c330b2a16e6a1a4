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
    retry_with(bare, device, || bare.call())
}

/// As [`retry_on`], the call being made by `attempt`.
pub(crate) fn retry_with<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    device: Option<CUdevice>,
    attempt: impl Fn() -> CUresult,
) -> CUresult {
    let result = attempt();
    if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY && start::active() && link::want_room(device) {
        crate::log::debug!("{} is tried again after room was made", bare.symbol().name());
        return attempt();
    }
    result
}
