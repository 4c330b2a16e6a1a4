//! How programs find the driver's functions, answered with ours: `dlsym`, `dlopen` and `cuGetProcAddress`.
//!
//! `dlsym` and `dlopen` must keep their caller's identity (`RTLD_NEXT` and run paths depend on the return address), so
//! they are naked functions that jump to the real ones. Names that begin with neither `cu` nor `nv` cost two comparisons.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::driver::{Driver, driver};
use crate::object::Object;
use crate::swap::dma;
use crate::table::{HOOKS, Hook};
use crate::uncancelled::Uncancelled;
use crate::{nvml, stderr};

mod needed;
// A test binary has no exports that anything could be bound to.
#[cfg(not(test))]
mod pointers;
#[cfg(not(test))]
mod relocations;
pub(crate) mod variants;
#[cfg(not(test))]
mod weak;

pub(crate) use variants::substitute;

static REAL_DLSYM: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
static REAL_DLOPEN: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

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

/// The application is about to open a library: some wait until its memory is in. Says with which flags it is opened: those of
/// the application, but for `RTLD_DEEPBIND` in a program that uses CUDA, and where the file itself needs libcuda or cudart: what
/// is bound so deeply finds the driver, or the C library's `dlsym`, before us, and its kernels would not know what is out. To
/// take the flag from all would be worse: a plugin may count on its own names coming first. What is bound deeply before the
/// program uses CUDA, and in another way (through a library that it needs, by a name without a slash), calls the driver past
/// us, which the agent sees.
unsafe extern "C" fn about_to_open(path: *const c_char, flags: c_int, caller: *const c_void) -> c_int {
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
        let without = deep && (crate::life::active() || needed::names_cuda(path));
        if without { flags & !libc::RTLD_DEEPBIND } else { flags }
    });
    decided.unwrap_or(flags)
}

/// The code at `caller` will look the driver's functions up.
fn begins_to_look(caller: *const c_void) {
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

extern "C" fn find_real_dlsym() -> *mut c_void {
    ensure(&REAL_DLSYM, c"dlsym")
}

extern "C" fn find_real_dlopen() -> *mut c_void {
    ensure(&REAL_DLOPEN, c"dlopen")
}

/// What the look-up of a `cu` name says: an answer, or that the real `dlsym` shall give it.
#[repr(C)]
struct Answer {
    address: *const c_void,
    decided: usize,
}

const ASK_THE_REAL_ONE: Answer = Answer { address: std::ptr::null(), decided: 0 };

/// Looks up a name that begins with `cu` or `nv`, asked for with `handle` from the code at `caller`.
unsafe extern "C" fn look_up(handle: *mut c_void, name: *const c_char, caller: *const c_void) -> Answer {
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

/// The hook of that name.
pub(crate) fn hook_named(name: &[u8]) -> Option<&'static Hook> {
    static ORDER: OnceLock<Vec<&'static Hook>> = OnceLock::new();
    let order = ORDER.get_or_init(|| {
        let mut order: Vec<_> = HOOKS.iter().collect();
        order.sort_unstable_by_key(|hook| hook.name());
        order
    });
    order.binary_search_by_key(&name, |hook| hook.name().as_bytes()).ok().map(|at| order[at])
}

/// dlsym(3).
///
/// # Safety
/// As for the real one.
#[cfg(target_arch = "x86_64")]
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
#[cfg(target_arch = "x86_64")]
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

/// dlsym(3).
///
/// # Safety
/// As for the real one.
#[cfg(target_arch = "aarch64")]
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
#[cfg(target_arch = "aarch64")]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Symbol;

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

    #[test]
    fn hooks_are_found_by_their_whole_name() {
        assert_eq!(hook_named(b"cuMemAlloc_v2").map(|hook| hook.symbol), Some(Symbol::cuMemAlloc_v2));
        assert!(hook_named(b"cuMemAlloc_v").is_none());
        assert!(hook_named(b"cuDriverGetVersion").is_none());
    }
}
