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
        "cmp byte ptr [rsi], 0x63", // 'c'
        "jne 4f",
        "cmp byte ptr [rsi + 1], 0x75", // 'u'
        "jne 2f",
        "5:",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "mov rdx, [rsp + 24]", // the return address: who asks
        "call {look_up}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "test rdx, rdx",
        "je 2f",
        "ret",
        "2:",
        "mov rax, [rip + {real}]",
        "test rax, rax",
        "je 3f",
        "jmp rax",
        "4:",
        "cmp byte ptr [rsi], 0x6e", // 'n'
        "jne 2b",
        "cmp byte ptr [rsi + 1], 0x76", // 'v'
        "jne 2b",
        "jmp 5b",
        "3:",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {find}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "jmp rax",
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
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "mov rdx, [rsp + 24]", // the return address: who asks
        "call {about}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "mov esi, eax", // the flags
        "mov rax, [rip + {real}]",
        "test rax, rax",
        "je 3f",
        "jmp rax",
        "3:",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {find}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "jmp rax",
        about = sym about_to_open,
        real = sym REAL_DLOPEN,
        find = sym find_real_dlopen,
    )
}
