//! How programs find the driver's functions, answered with ours: `dlsym`, `dlopen` and `cuGetProcAddress`.
//!
//! `dlsym` and `dlopen` must keep their caller's identity (`RTLD_NEXT` and run paths depend on the return address), so
//! they are naked functions that jump to the real ones. Names that begin with neither `cu` nor `nv` cost two comparisons.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::driver::{Driver, driver};
use crate::nvml;
use crate::swap::dma;
use crate::table::{HOOKS, Hook};

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
        eprintln!(
            "nvshare: there is no {} {} in this process: remove libnvshare.so from LD_PRELOAD",
            name.to_string_lossy(),
            OLDEST_VERSION.to_string_lossy()
        );
        std::process::abort();
    }
    at.store(found, Ordering::Release);
    found
}

/// The application is about to open a library: some wait until its memory is in.
unsafe extern "C" fn about_to_open(path: *const c_char) {
    if !path.is_null() {
        // SAFETY: the application passed it to `dlopen`. A panic must not unwind into it; there is none expected here.
        let _ = std::panic::catch_unwind(|| dma::opening(unsafe { CStr::from_ptr(path) }));
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
    // The next object after the caller: an interposer that stands behind us and wants what is behind it.
    // And the driver, looking up its own.
    if handle == libc::RTLD_NEXT || Driver::is_within(caller) {
        return ASK_THE_REAL_ONE;
    }
    // SAFETY: handle and name are the application's own arguments.
    let bare = unsafe { real_dlsym(handle, name.as_ptr()) };
    if bare.is_null() {
        return ASK_THE_REAL_ONE;
    }
    if std::ptr::eq(bare, hook.address) {
        // Our own export, found in the global scope. It answers for a libcuda there; without one there is no such name.
        // SAFETY: as above; the name is one that we do not export.
        let global = unsafe { real_dlsym(handle, NEVER_HOOKED.as_ptr()) };
        if global.is_null() {
            return Answer { address: std::ptr::null(), decided: 1 };
        }
        return Answer { address: hook.address, decided: 1 };
    }
    if driver().owns(bare) { Answer { address: hook.address, decided: 1 } } else { ASK_THE_REAL_ONE }
}

/// A function that every libcuda has and that is in the pass-through list.
const NEVER_HOOKED: &CStr = c"cuDriverGetVersion";

/// The hook of that name.
pub(crate) fn hook_named(name: &[u8]) -> Option<&'static Hook> {
    static ORDER: OnceLock<Vec<&'static Hook>> = OnceLock::new();
    let order = ORDER.get_or_init(|| {
        let mut order: Vec<_> = HOOKS.iter().collect();
        order.sort_unstable_by_key(|hook| hook.name);
        order
    });
    order.binary_search_by_key(&name, |hook| hook.name.as_bytes()).ok().map(|at| order[at])
}

/// What the application shall get where the real `cuGetProcAddress` answered `address` to a question for `name`: the
/// hook whose real function is there, so that all rules about versions and flags are the driver's; else by name, where
/// the address is that of no exported variant; else the address itself.
pub(crate) fn substitute(name: &CStr, address: *mut c_void, version: c_int, flags: u64) -> *const c_void {
    static BY_ADDRESS: OnceLock<Vec<(usize, &'static Hook)>> = OnceLock::new();
    let by_address = BY_ADDRESS.get_or_init(|| {
        let mut map: Vec<_> =
            HOOKS.iter().filter_map(|hook| Some((driver().entry(hook.symbol)?.addr(), hook))).collect();
        map.sort_unstable_by_key(|(real, _)| *real);
        map
    });
    if let Ok(at) = by_address.binary_search_by_key(&address.addr(), |(real, _)| *real) {
        return by_address[at].1.address;
    }
    by_name(name.to_bytes(), address, version, flags).map_or(address.cast_const(), |hook| hook.address)
}

/// The per-thread default stream flag of `cuGetProcAddress`.
const PER_THREAD_DEFAULT_STREAM: u64 = 2;

fn by_name(name: &[u8], address: *mut c_void, version: c_int, flags: u64) -> Option<&'static Hook> {
    let variants: Vec<&Hook> = HOOKS.iter().filter(|hook| base_name(hook.name).as_bytes() == name).collect();
    // An address of a variant that is exported and not hooked is the driver's right answer.
    if variants.is_empty() || exported(name, address) {
        return None;
    }
    let per_thread = flags & PER_THREAD_DEFAULT_STREAM != 0
        && variants.iter().any(|hook| hook.symbol.per_thread_default());
    variants
        .into_iter()
        .filter(|hook| hook.symbol.per_thread_default() == per_thread && since(hook.name) <= version)
        .max_by_key(|hook| since(hook.name))
}

fn exported(name: &[u8], address: *mut c_void) -> bool {
    ["", "_v2", "_v3", "_v4", "_ptsz", "_ptds", "_v2_ptsz", "_v2_ptds", "_v3_ptsz"].into_iter().any(
        |suffix| {
            let mut full = name.to_vec();
            full.extend(suffix.as_bytes());
            full.push(0);
            driver().export(&full) == Some(address)
        },
    )
}

/// A symbol's name without what tells its variants apart.
fn base_name(symbol: &str) -> &str {
    let base = symbol.strip_suffix("_ptsz").or_else(|| symbol.strip_suffix("_ptds")).unwrap_or(symbol);
    let stem = base.trim_end_matches(|c: char| c.is_ascii_digit());
    match stem.strip_suffix("_v") {
        Some(name) if stem.len() < base.len() => name,
        _ => base,
    }
}

/// The CUDA version that brought the variant, as `cuGetProcAddress` counts; from the prototypes' type names in NVIDIA's
/// `cudaTypedefs.h`. Used only for drivers whose answers are not exported symbols.
fn since(symbol: &str) -> c_int {
    let base = symbol.strip_suffix("_ptsz").or_else(|| symbol.strip_suffix("_ptds")).unwrap_or(symbol);
    match base {
        "cuMemcpyBatchAsync_v2" | "cuMemcpy3DBatchAsync_v2" | "cuCtxSynchronize_v2" => 13000,
        "cuCtxCreate_v4" => 12050,
        "cuMemPrefetchAsync_v2" | "cuMemAdvise_v2" => 12020,
        "cuGetProcAddress_v2" => 12000,
        name if name.starts_with("cuStream") && name.ends_with("_v2") && name.contains("Value") => 11070,
        "cuStreamBatchMemOp_v2" => 11070,
        "cuCtxCreate_v3" => 11040,
        "cuDevicePrimaryCtxRelease_v2" | "cuDevicePrimaryCtxReset_v2" | "cuGraphInstantiate_v2" => 11000,
        "cuStreamBeginCapture_v2" => 10010,
        "cuCtxDestroy_v2" | "cuStreamDestroy_v2" => 4000,
        name if name.ends_with("_v2") => 3020,
        _ => 2000,
    }
}

/// dlsym(3).
///
/// # Safety
/// As for the real one.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
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

/// dlopen(3), without `RTLD_DEEPBIND`: a library bound to its own libcuda first would not find our exports.
///
/// # Safety
/// As for the real one.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void {
    std::arch::naked_asm!(
        "and esi, {flags}",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {about}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
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
        flags = const !libc::RTLD_DEEPBIND,
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
#[cfg_attr(not(test), unsafe(no_mangle))]
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

/// dlopen(3), without `RTLD_DEEPBIND`: a library bound to its own libcuda first would not find our exports.
///
/// # Safety
/// As for the real one.
#[cfg(target_arch = "aarch64")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void {
    std::arch::naked_asm!(
        "mov w9, #{deepbind}",
        "bic w1, w1, w9",
        "stp x29, x30, [sp, #-32]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "bl {about}",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
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
        deepbind = const libc::RTLD_DEEPBIND,
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

    #[test]
    fn an_address_that_is_exported_nowhere_gets_the_variant_of_its_version_and_flags() {
        let stranger = std::ptr::without_provenance_mut(0x1234);
        let chosen = |name: &str, version, flags| {
            by_name(name.as_bytes(), stranger, version, flags).map(|hook| hook.name)
        };
        assert_eq!(chosen("cuMemAlloc", 2000, 0), Some("cuMemAlloc"));
        assert_eq!(chosen("cuMemAlloc", 12090, 0), Some("cuMemAlloc_v2"));
        assert_eq!(chosen("cuMemcpyHtoD", 12090, 2), Some("cuMemcpyHtoD_v2_ptds"));
        assert_eq!(chosen("cuMemPrefetchAsync", 12000, 0), Some("cuMemPrefetchAsync"));
        assert_eq!(chosen("cuMemPrefetchAsync", 12020, 2), Some("cuMemPrefetchAsync_v2_ptsz"));
        assert_eq!(chosen("cuLaunchKernel", 12090, 2), Some("cuLaunchKernel_ptsz"));
        assert_eq!(chosen("cuMemAlloc", 12090, 2), Some("cuMemAlloc_v2"));
        assert_eq!(chosen("cuDriverGetVersion", 12090, 0), None);
    }

    #[test]
    fn variants_share_their_base_name() {
        for (symbol, base) in [
            ("cuMemcpyHtoD_v2_ptds", "cuMemcpyHtoD"),
            ("cuLaunchKernel_ptsz", "cuLaunchKernel"),
            ("cuCtxCreate_v4", "cuCtxCreate"),
            ("cuStreamWriteValue32_v2", "cuStreamWriteValue32"),
            ("cuMemsetD2D32", "cuMemsetD2D32"),
        ] {
            assert_eq!(base_name(symbol), base);
        }
    }
}
