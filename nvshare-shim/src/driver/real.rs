//! The real `dlsym` and `dlopen`, which the library's own stand in front of.

#![expect(unsafe_code, reason = "the loader's and the driver's functions are found and called")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::stderr;

pub(crate) static REAL_DLSYM: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
pub(crate) static REAL_DLOPEN: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

#[cfg(target_arch = "x86_64")]
const OLDEST_VERSION: &CStr = c"GLIBC_2.2.5";
#[cfg(target_arch = "aarch64")]
const OLDEST_VERSION: &CStr = c"GLIBC_2.17";

/// The real `dlsym`, with this library as its caller.
///
/// # Safety
/// As for dlsym(3).
pub(crate) unsafe fn real_dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    let real = ensure(&REAL_DLSYM, c"dlsym");
    // SAFETY: libc's `dlsym` has this signature.
    let real: unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void =
        unsafe { std::mem::transmute(real) };
    // SAFETY: the caller's promise.
    unsafe { real(handle, name) }
}

/// The real `dlopen`, with this library as its caller.
///
/// # Safety
/// As for dlopen(3).
pub(crate) unsafe fn real_dlopen(path: *const c_char, flags: c_int) -> *mut c_void {
    let real = ensure(&REAL_DLOPEN, c"dlopen");
    // SAFETY: libc's `dlopen` has this signature.
    let real: unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void =
        unsafe { std::mem::transmute(real) };
    // SAFETY: the caller's promise.
    unsafe { real(path, flags) }
}

fn ensure(at: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let known = at.load(Ordering::Acquire);
    if !known.is_null() {
        return known;
    }
    // SAFETY: both are C strings; `RTLD_NEXT` means the object after this one, never this one.
    let found = unsafe { libc::dlvsym(libc::RTLD_NEXT, name.as_ptr(), OLDEST_VERSION.as_ptr()) };
    if found.is_null() {
        // Without the real function no program could run; there is nothing to pass through to.
        stderr::say(format_args!(
            "there is no {} {} in this process: remove libnvshare.so from LD_PRELOAD",
            name.to_string_lossy(),
            OLDEST_VERSION.to_string_lossy()
        ));
        std::process::abort();
    }
    at.store(found, Ordering::Release);
    found
}

/// For a jump to it.
pub(crate) extern "C" fn find_real_dlsym() -> *mut c_void {
    ensure(&REAL_DLSYM, c"dlsym")
}

/// For a jump to it.
pub(crate) extern "C" fn find_real_dlopen() -> *mut c_void {
    ensure(&REAL_DLOPEN, c"dlopen")
}
