//! The modes of captures and of threads: what calls of others a capture bears.

use std::cell::Cell;

use cudarc::driver::sys::CUresult;

use crate::call::Outcome;

/// How a capture and other threads' calls get along; the values are the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Mode {
    /// Nobody makes potentially unsafe calls meanwhile.
    Global = 0,
    /// The capturing thread makes none.
    ThreadLocal = 1,
    /// Everybody may.
    Relaxed = 2,
}

impl Mode {
    /// The mode with this value.
    pub(crate) fn from_value(value: u32) -> Outcome<Mode> {
        [Mode::Global, Mode::ThreadLocal, Mode::Relaxed]
            .into_iter()
            .find(|mode| *mode as u32 == value)
            .ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
    }
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// Sets the calling thread's mode and returns the one before.
pub(crate) fn exchange_mode(mode: Mode) -> Mode {
    MODE.replace(mode)
}

/// The calling thread's mode.
pub(crate) fn current() -> Mode {
    MODE.get()
}
