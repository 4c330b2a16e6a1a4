//! How large a device is, asked of the driver without a context. (With one: `cuMemGetInfo`; of NVML: [`super::nvml`].)

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::Bare;
use crate::cuda::CUresult;
use crate::cuda::sys::CUdevice;
use crate::device::{self, sizes};
use crate::life;

pub(crate) unsafe fn total<F: Fn() -> CUresult>(bare: &Bare<F>, bytes: *mut usize, of: CUdevice) -> CUresult {
    let result = bare.call();
    if result.ok() && !bytes.is_null() {
        // SAFETY: the driver has just stored the size there.
        unsafe { bytes.write(as_told(bytes.read() as u64, of) as usize) };
    }
    result
}

/// The first form of the question: 32 bits, of a device that has no more.
pub(crate) unsafe fn total_32<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    bytes: *mut u32,
    of: CUdevice,
) -> CUresult {
    let result = bare.call();
    if result.ok() && !bytes.is_null() {
        // SAFETY: the driver has just stored the size there.
        unsafe { bytes.write(as_told(bytes.read().into(), of) as u32) };
    }
    result
}

fn as_told(bare: u64, of: CUdevice) -> u64 {
    match device::id_of(of) {
        Ok(id) if life::active() => sizes::total(id, bare),
        _ => bare,
    }
}
