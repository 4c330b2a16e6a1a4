//! First use of the driver, and the look-up of its functions by the driver itself.

#![expect(unsafe_code, reason = "stands where programs call the loader and the driver")]

use std::ffi::{CStr, c_char, c_void};

use super::variants::substitute;
use crate::cuda::CUresult;
use crate::hooks::Bare;
use crate::start;

pub(crate) unsafe fn init<F: Fn() -> CUresult>(bare: &Bare<F>, _flags: u32) -> CUresult {
    let result = bare.call();
    if result.ok() {
        start::first_use();
    }
    result
}

/// The driver answers first; what it found is replaced by our hook for it.
pub(crate) unsafe fn address<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    symbol: *const c_char,
    found: *mut *mut c_void,
    version: i32,
    flags: u64,
) -> CUresult {
    let result = bare.call();
    if result.ok() && !found.is_null() && !symbol.is_null() {
        // SAFETY: the driver has just stored an address there, and read the name.
        unsafe {
            let address = found.read();
            if !address.is_null() {
                found.write(substitute(CStr::from_ptr(symbol), address, version, flags).cast_mut());
            }
        }
    }
    result
}
