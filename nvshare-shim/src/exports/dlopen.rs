//! What is done before the application opens a library.

#![expect(unsafe_code, reason = "stands where programs call the loader and the driver")]

use std::ffi::{CStr, c_char, c_int, c_void};

use super::needed;
#[cfg(not(test))]
use super::pointers;
use crate::life;
use crate::swap::dma;
use crate::uncancelled::Uncancelled;

/// The application is about to open a library: some wait until its memory is in. Says with which flags it is opened: those of
/// the application, but for `RTLD_DEEPBIND` in a program that uses CUDA, and where the file itself needs libcuda or cudart: what
/// is bound so deeply finds the driver, or the C library's `dlsym`, before us, and its kernels would not know what is out. To
/// take the flag from all would be worse: a plugin may count on its own names coming first. What is bound deeply before the
/// program uses CUDA, and in another way (through a library that it needs, by a name without a slash), calls the driver past
/// us, which the agent sees.
pub(super) unsafe extern "C" fn about_to_open(
    path: *const c_char,
    flags: c_int,
    caller: *const c_void,
) -> c_int {
    if path.is_null() {
        return flags;
    }
    let _whole = Uncancelled::begin();
    let _as_it_was = Errno::keep();
    // SAFETY: the application passed it to `dlopen`.
    let path = unsafe { CStr::from_ptr(path) };
    // A panic must not unwind into it; there is none expected here.
    let decided = std::panic::catch_unwind(|| {
        dma::opening(path);
        if needed::is_libcuda(path.to_bytes()) {
            begins_to_look(caller);
        }
        let deep = flags & libc::RTLD_DEEPBIND != 0;
        let without = deep && (life::active() || needed::names_cuda(path));
        if without { flags & !libc::RTLD_DEEPBIND } else { flags }
    });
    decided.unwrap_or(flags)
}

/// The code at `caller` will look the driver's functions up.
pub(super) fn begins_to_look(caller: *const c_void) {
    #[cfg(not(test))]
    pointers::met(caller);
    #[cfg(test)]
    let _ = caller;
}

/// The thread's `errno`, which what we do before a call must leave as it was.
struct Errno(c_int);

impl Errno {
    fn keep() -> Errno {
        // SAFETY: the calling thread's own.
        Errno(unsafe { *libc::__errno_location() })
    }
}

impl Drop for Errno {
    fn drop(&mut self) {
        // SAFETY: the calling thread's own.
        unsafe { *libc::__errno_location() = self.0 };
    }
}
