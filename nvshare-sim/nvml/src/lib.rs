//! libnvidia-ml.so.1 over the simulated cards: what monitors ask for, answered from the control block that the processes
//! using the cards share. It never joins the cards: a monitor holds no memory.
//!
//! [`session`]: initialisation and the cards; [`system`], [`device`], [`processes`]: the functions by what they are
//! about. Functions of NVML that are not here are missing from the library, as they are from older drivers.

mod device;
mod processes;
mod session;
mod system;

use std::ffi::{c_char, c_uint};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `nvmlReturn_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Return {
    /// It worked.
    Success = 0,
    /// `nvmlInit` was not called, or `nvmlShutdown` was.
    Uninitialized = 1,
    /// A null pointer, or a number or handle that means nothing.
    InvalidArgument = 2,
    /// Known, and not simulated.
    NotSupported = 3,
    /// No such device or process.
    NotFound = 6,
    /// The caller's buffer is too small.
    InsufficientSize = 7,
    /// The cards cannot be opened.
    DriverNotLoaded = 9,
    /// The card fell off the bus.
    GpuIsLost = 15,
    /// The version in a structure is not one that exists.
    ArgumentVersionMismatch = 25,
    /// A defect of this library.
    Unknown = 999,
}

type Outcome = Result<(), Return>;

/// Runs the body of an exported function: no panic leaves it.
fn serve(name: &str, body: impl FnOnce() -> Outcome) -> Return {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Return::Success,
        Ok(Err(error)) => error,
        Err(_) => {
            eprintln!("nvshare-sim: {name} panicked");
            Return::Unknown
        }
    }
}

/// Writes an out-parameter that must be there.
///
/// # Safety
/// `to` is null or valid for a write.
unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(Return::InvalidArgument);
    }
    // SAFETY: not null, and valid by this function's contract.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes a text and its final zero into the caller's buffer.
///
/// # Safety
/// `to` is null or valid for writes of `length` bytes.
unsafe fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Outcome {
    if to.is_null() {
        return Err(Return::InvalidArgument);
    }
    if text.len() >= length as usize {
        return Err(Return::InsufficientSize);
    }
    // SAFETY: text and zero fit, by the check above and this function's contract.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// Defines exported functions, each guarded by [`serve`]. Pointers are null or what NVML's header wants there.
macro_rules! export {
    ($(fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $ty),*) -> $crate::Return {
            $crate::serve(stringify!($name), || $body)
        }
    )*};
}
use export;
