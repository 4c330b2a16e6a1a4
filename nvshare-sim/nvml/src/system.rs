//! Questions about the driver.

use std::ffi::{c_char, c_int, c_uint};

use nvshare_sim_card::DRIVER_VERSION;

use crate::parameters::{Buffer, Length, Out};
use crate::{Return, export, session};

/// What a simulated driver supports: 12.9.
const CUDA_VERSION: c_int = 12090;

/// The text of an error.
#[expect(unsafe_code, reason = "a program finds a function of C by its name")]
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(error: c_uint) -> *const c_char {
    let text = match error {
        0 => c"The operation was successful",
        1 => c"NVML was not first initialized with nvmlInit",
        2 => c"A supplied argument is invalid",
        3 => c"The requested operation is not available on target device",
        6 => c"A query to find an object was unsuccessful",
        7 => c"An input argument is not large enough",
        9 => c"The simulated cards cannot be opened",
        25 => c"The version of a structure is not supported",
        _ => c"An unknown error occurred",
    };
    text.as_ptr()
}

export! {
    fn nvmlSystemGetDriverVersion(version: Buffer, length: Length) {
        session::cards()?;
        version.set(length, DRIVER_VERSION)
    }

    fn nvmlSystemGetNVMLVersion(version: Buffer, length: Length) {
        session::cards()?;
        version.set(length, &format!("12.{DRIVER_VERSION}"))
    }

    fn nvmlSystemGetCudaDriverVersion(version: Out<c_int>) {
        version.set(CUDA_VERSION)
    }

    fn nvmlSystemGetCudaDriverVersion_v2(version: Out<c_int>) {
        version.set(CUDA_VERSION)
    }

    fn nvmlSystemGetProcessName(process: c_uint, name: Buffer, length: Length) {
        session::cards()?;
        let command = std::fs::read(format!("/proc/{process}/cmdline")).map_err(|_| Return::NotFound)?;
        let path = command.split(|byte| *byte == 0).next().unwrap_or_default();
        name.set(length, &String::from_utf8_lossy(path))
    }
}
