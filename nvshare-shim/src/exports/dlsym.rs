//! How programs find the driver's functions by `dlsym`, answered with ours.

#![expect(unsafe_code, reason = "stands where programs call the loader and the driver")]

use std::ffi::{CStr, c_char, c_void};

use super::dlopen::begins_to_look;
use super::table::{Hook, hook_named};
use crate::driver::object::Object;
use crate::driver::real::real_dlsym;
use crate::driver::{Driver, driver};
use crate::hooks::nvml;
use crate::uncancelled::Uncancelled;

/// What the look-up of a `cu` name says: an answer, or that the real `dlsym` shall give it.
#[repr(C)]
pub(super) struct Answer {
    address: *const c_void,
    decided: usize,
}

const ASK_THE_REAL_ONE: Answer = Answer { address: std::ptr::null(), decided: 0 };

/// Looks up a name that begins with `cu` or `nv`, asked for with `handle` from the code at `caller`.
pub(super) unsafe extern "C" fn look_up(
    handle: *mut c_void,
    name: *const c_char,
    caller: *const c_void,
) -> Answer {
    let _whole = Uncancelled::begin();
    // SAFETY: the application passed it to `dlsym`.
    let name = unsafe { CStr::from_ptr(name) };
    // A hook's panic must not unwind into the caller; there is none expected here.
    std::panic::catch_unwind(|| decide(handle, name, caller)).unwrap_or(ASK_THE_REAL_ONE)
}

fn decide(handle: *mut c_void, name: &CStr, caller: *const c_void) -> Answer {
    if name.to_bytes().starts_with(b"nvml") {
        return match nvml::look_up(handle, name) {
            Some(address) => Answer { address, decided: 1 },
            None => ASK_THE_REAL_ONE,
        };
    }
    let Some(hook) = hook_named(name.to_bytes()) else { return ASK_THE_REAL_ONE };
    begins_to_look(caller);
    // The driver, looking up its own.
    if Driver::is_within(caller) {
        return ASK_THE_REAL_ONE;
    }
    if handle == libc::RTLD_NEXT {
        return next_after(name, caller);
    }
    // SAFETY: handle and name are the application's own arguments.
    let bare = unsafe { real_dlsym(handle, name.as_ptr()) };
    if bare.is_null() {
        return ASK_THE_REAL_ONE;
    }
    if std::ptr::eq(bare, hook.address) {
        return instead_of_ours(hook, beyond_us(name, caller), caller);
    }
    if driver().owns(bare, caller) { Answer { address: hook.address, decided: 1 } } else { ASK_THE_REAL_ONE }
}

/// The next object after the caller: an interposer that stands behind us and wants what is behind it. Where nobody behind us
/// has the name, and nobody before, what the real one would find is ours only.
fn next_after(name: &CStr, caller: *const c_void) -> Answer {
    let Some(hook) = hook_named(name.to_bytes()) else { return ASK_THE_REAL_ONE };
    // SAFETY: the application's name.
    let first = unsafe { real_dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if !std::ptr::eq(first, hook.address) || !beyond_us(name, caller).is_null() {
        return ASK_THE_REAL_ONE;
    }
    Answer { address: std::ptr::null(), decided: 1 }
}

/// What the application gets where our export was found for it, and without us `found` would have been: nothing, so that
/// a process without a driver finds none; the hook, for the driver's own; else just that.
fn instead_of_ours(hook: &Hook, found: *mut c_void, caller: *const c_void) -> Answer {
    let address =
        if found.is_null() || !driver().owns(found, caller) { found.cast_const() } else { hook.address };
    Answer { address, decided: 1 }
}

/// What a look-up from `caller` that met our export would have met without it: what is behind us, or in the caller's own
/// scope. Where that is nothing, `dlerror` says so of this very name, as it would.
fn beyond_us(name: &CStr, caller: *const c_void) -> *mut c_void {
    // SAFETY: the application's name; this library is the caller, and asks what comes after it.
    let next = || unsafe { real_dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    let found = next();
    if !found.is_null() {
        return found;
    }
    let own = Object::open(caller).map(|library| {
        // SAFETY: a handle opened just now, and given back.
        unsafe {
            let found = real_dlsym(library, name.as_ptr());
            libc::dlclose(library);
            found
        }
    });
    match own.filter(|found| !found.is_null() && !Object::is_ours(*found)) {
        Some(found) => found,
        // For the error.
        None => next(),
    }
}

#[cfg(test)]
mod tests {
    use crate::exports::dl::{dlopen, dlsym};

    #[test]
    fn the_look_up_passes_other_names_on_and_knows_nothing_without_a_driver() {
        // SAFETY: all names are C strings.
        unsafe {
            for name in [c"getenv", c"c", c"", c"cut", c"n", c"nv", c"nvmlInit_v2", c"no_such_name"] {
                let bare = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
                assert_eq!(dlsym(libc::RTLD_DEFAULT, name.as_ptr()), bare, "{name:?}");
            }
            assert!(dlsym(libc::RTLD_DEFAULT, c"cuLaunchKernel".as_ptr()).is_null());
            let itself = dlopen(std::ptr::null(), libc::RTLD_LAZY | libc::RTLD_DEEPBIND);
            assert!(!itself.is_null());
        }
    }
}
