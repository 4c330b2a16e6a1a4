//! `dlsym` and `dlopen` as the application calls them. They must keep their caller's identity (`RTLD_NEXT` and run paths depend
//! on the return address), so they are naked functions that jump to the real ones. Names that begin with neither `cu` nor `nv`
//! cost two comparisons.

#![expect(unsafe_code, reason = "stands where programs call the loader and the driver")]

use std::ffi::{c_char, c_int, c_void};

use super::dlopen::about_to_open;
use super::dlsym::look_up;
use crate::driver::real::{REAL_DLOPEN, REAL_DLSYM, find_real_dlopen, find_real_dlsym};

/// dlsym(3).
///
/// # Safety
/// As for the real one.
#[cfg_attr(not(any(test, sanitized)), unsafe(no_mangle))]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    std::arch::naked_asm!(
        "ldrb w9, [x1]",
        "cmp w9, #0x63", // 'c'
        "b.ne 4f",
        "ldrb w9, [x1, #1]",
        "cmp w9, #0x75", // 'u'
        "b.ne 2f",
        "5:",
        "stp x29, x30, [sp, #-32]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "mov x2, x30", // the return address: who asks
        "bl {look_up}",
        "mov x9, x0",
        "mov x10, x1",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "cbz x10, 2f",
        "mov x0, x9",
        "ret",
        "2:",
        "adrp x9, {real}",
        "ldr x9, [x9, :lo12:{real}]",
        "cbz x9, 3f",
        "br x9",
        "4:",
        "cmp w9, #0x6e", // 'n'
        "b.ne 2b",
        "ldrb w9, [x1, #1]",
        "cmp w9, #0x76", // 'v'
        "b.ne 2b",
        "b 5b",
        "3:",
        "stp x29, x30, [sp, #-32]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "bl {find}",
        "mov x9, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "br x9",
        look_up = sym look_up,
        real = sym REAL_DLSYM,
        find = sym find_real_dlsym,
    )
}

/// dlopen(3), with the flags that [`about_to_open`] says.
///
/// # Safety
/// As for the real one.
#[cfg_attr(not(any(test, sanitized)), unsafe(no_mangle))]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void {
    std::arch::naked_asm!(
        "stp x29, x30, [sp, #-32]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "mov x2, x30", // the return address: who asks
        "bl {about}",
        "mov w9, w0", // the flags
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "mov w1, w9",
        "adrp x9, {real}",
        "ldr x9, [x9, :lo12:{real}]",
        "cbz x9, 3f",
        "br x9",
        "3:",
        "stp x29, x30, [sp, #-32]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "bl {find}",
        "mov x9, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "br x9",
        about = sym about_to_open,
        real = sym REAL_DLOPEN,
        find = sym find_real_dlopen,
    )
}
