//! libnvidia-ml.so.1 over the simulated cards: what monitors ask for, answered from the control block that the processes
//! using the cards share. It never joins the cards: a monitor holds no memory.
//!
//! [`session`]: initialisation and the cards; [`parameters`]: what functions are called with; [`system`], [`device`], [`processes`]: the functions by what they are
//! about. Functions of NVML that are not here are missing from the library, as they are from older drivers.

#![deny(unsafe_code)]

mod device;
mod parameters;
mod processes;
mod session;
mod system;

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

/// Defines exported functions, each guarded by [`serve`]. Pointers are types of [`parameters`].
macro_rules! export {
    ($(fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $body:block)*) => {$(
        #[expect(unsafe_code, reason = "a program finds a function of C by its name")]
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $ty),*) -> $crate::Return {
            #[deny(unsafe_code, reason = "the types of the parameters have it")]
            fn body($($arg: $ty),*) -> $crate::Outcome $body
            $crate::serve(stringify!($name), || body($($arg),*))
        }
    )*};
}
use export;
