//! Functions of the application that streams call.

#![expect(unsafe_code, reason = "the application's functions, with its own arguments")]

use std::ffi::c_void;

use cudarc::driver::sys::{CUresult, CUstream};

/// `cuLaunchHostFunc`.
#[derive(Clone, Copy)]
pub(crate) struct HostCall {
    /// Takes its argument alone.
    pub(crate) function: unsafe extern "C" fn(*mut c_void),
    /// The argument.
    pub(crate) argument: usize,
}

impl HostCall {
    /// Calls it.
    pub(super) fn run(&self) {
        // SAFETY: the application vouches for the function and its argument until it has run.
        unsafe { (self.function)(self.argument as *mut c_void) };
    }
}

/// `cuStreamAddCallback`.
#[derive(Clone, Copy)]
pub(crate) struct Callback {
    /// Gets the stream's handle, its state and the argument.
    pub(crate) function: unsafe extern "C" fn(CUstream, CUresult, *mut c_void),
    /// The stream as the application named it.
    pub(crate) stream: usize,
    /// The argument.
    pub(crate) argument: usize,
}

impl Callback {
    /// Calls it.
    pub(super) fn run(&self) {
        // SAFETY: as for `HostCall`.
        unsafe {
            (self.function)(self.stream as CUstream, CUresult::CUDA_SUCCESS, self.argument as *mut c_void);
        };
    }
}
