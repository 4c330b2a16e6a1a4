//! How the library's functions are exported: the `export!` macro, what every call checks before its body runs, and the
//! table of all of them.
//!
//! Each symbol begins as NVIDIA's own do: a comparison of a global word, a short conditional jump, a jump to the body.
//! Uprobes sit on the second instruction; no export calls another, so one call is one hit.

#![expect(unsafe_code, reason = "a table of addresses, for all threads")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::driver::sys::CUresult;

use crate::call::{Call, Outcome};
use crate::{faults, init};

/// One exported function.
pub(crate) struct Export {
    /// The symbol.
    pub(crate) name: &'static str,
    /// Its address. Nothing is read through it.
    pub(crate) address: *const (),
    /// It works before `cuInit`.
    pub(crate) early: bool,
}

// SAFETY: a name, an address and a flag, which never change.
unsafe impl Sync for Export {}

/// One name of the driver API, whether this library implements it or not.
pub(crate) struct Name {
    /// The exported symbol.
    pub(crate) symbol: &'static str,
    /// What `cuGetProcAddress` calls it.
    pub(crate) base: &'static str,
    /// The first driver version that has this variant.
    pub(crate) version: u32,
}

/// All names of the driver API.
pub(crate) const NAMES: &[Name] = include!(concat!(env!("OUT_DIR"), "/names.rs"));

/// Runs the body of an export: no panic leaves it, and it is refused where the driver is not initialised.
pub(crate) fn serve(
    name: &'static str,
    per_thread: bool,
    early: bool,
    body: impl FnOnce(&Call) -> Outcome,
) -> CUresult {
    if !early && let Err(error) = init::check() {
        return error;
    }
    let call = Call { name, per_thread };
    let body = || {
        if !early {
            faults::of_call(name)?;
        }
        body(&call)
    };
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => CUresult::CUDA_SUCCESS,
        Ok(Err(error)) => error,
        Err(_) => {
            eprintln!("nvshare-sim: {name} panicked");
            CUresult::CUDA_ERROR_UNKNOWN
        }
    }
}

/// Defines exported driver functions and, as `EXPORTS`, the table of them.
///
/// ```text
/// export! {
///     fn cuMemAlloc_v2(pointer: Out<CUdeviceptr>, bytes: usize) |cx| { ...; pointer.set(start) }
///     fn cuMemAllocAsync / cuMemAllocAsync_ptsz (...) |cx| { cx.stream(stream)?; ... }
///     @early fn cuInit(flags: u32) |cx| { ... }
/// }
/// ```
///
/// A body gets what the caller in C passed, as a type of `parameters` where that is a pointer. It returns
/// `Result<(), CUresult>` and may use `?`. `@early` functions work before `cuInit`, and no fault on demand strikes them.
macro_rules! export {
    ($($(@ $early:ident)? fn $name:ident $(/ $twin:ident)* ($($args:tt)*) |$cx:pat_param| $body:block)*) => {
        /// What this file exports: for each function, the symbols it has.
        pub(crate) static EXPORTS: &[&[$crate::export::Export]] = &[
            $($crate::export::export!(@fn [$($early)?] $name [$($twin)*] ($($args)*), $cx, $body),)*
        ];
    };
    (@fn [$($early:ident)?] $name:ident [$($twin:ident)*] $args:tt, $cx:pat_param, $body:block) => {
        &[
            $crate::export::export!(@one $name, false, [$($early)?], $args, $cx, $body),
            $($crate::export::export!(@one $twin, true, [], $args, $cx, $body),)*
        ]
    };
    (@early []) => { false };
    (@early [early]) => { true };
    (@one $name:ident, $per_thread:literal, [$($early:ident)?], ($($arg:ident : $ty:ty),* $(,)?), $cx:pat_param, $body:block) => {{
        #[allow(unused_variables, reason = "not every body uses all its parameters")]
        extern "C" fn body($($arg: $ty),*) -> ::cudarc::driver::sys::CUresult {
            $crate::export::serve(
                stringify!($name), $per_thread, $crate::export::export!(@early [$($early)?]), |$cx| $body,
            )
        }
        #[expect(unsafe_code, reason = "a program finds a function of C by its name")]
        const ADDRESS: *const () = {
            // As in the real library, the function that does the work stands apart from the exported one, and begins with
            // an instruction that the kernel emulates under a probe.
            #[unsafe(naked)]
            extern "C" fn work($($arg: $ty),*) -> ::cudarc::driver::sys::CUresult {
                ::std::arch::naked_asm!("nop", "jmp {body}", body = sym body)
            }
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: $ty),*) -> ::cudarc::driver::sys::CUresult {
                ::std::arch::naked_asm!(
                    "cmp dword ptr [rip + {word}], 0x321cba00",
                    "je 2f",
                    "jmp {work}",
                    "2:",
                    "mov eax, 4",
                    "ret",
                    word = sym $crate::init::STATE_WORD,
                    work = sym work,
                )
            }
            $name as *const ()
        };
        let early = $crate::export::export!(@early [$($early)?]);
        $crate::export::Export { name: stringify!($name), address: ADDRESS, early }
    }};
}
pub(crate) use export;
