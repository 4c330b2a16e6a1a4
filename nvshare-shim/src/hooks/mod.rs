//! The hooks, a file per family. Which symbol has which hook, and with what arguments, is said in [`crate::driver::functions`](mod@crate::driver::functions). Each
//! hook gets the real call as a [`Bare`] and the arguments it needs; it never panics into the application, and no
//! thread is cancelled in it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::cuda::sys::CUstream;
use crate::cuda::{CUresult, STREAM_LEGACY, STREAM_PER_THREAD};
use crate::driver::Symbol;
use crate::turn::dead;
use crate::uncancelled::Uncancelled;

mod across;
pub(crate) mod arrays;
pub(crate) mod batches;
pub(crate) mod below;
mod between;
pub(crate) mod bound;
pub(crate) mod contexts;
pub(crate) mod copies;
pub(crate) mod ipc;
mod mapped;
pub(crate) mod memory;
pub(crate) mod memsets;
pub(crate) mod nodes;
pub(crate) mod nvml;
pub(crate) mod plain;
pub(crate) mod pools;
pub(crate) mod questions;
mod reach;
pub(crate) mod room;
pub(crate) mod size;
pub(crate) mod streams;
pub(crate) mod unswappable;
pub(crate) mod virtuals;
pub(crate) mod waiting;
pub(crate) mod work;

/// The call as the application made it, to the real function.
pub(crate) struct Bare<F> {
    symbol: Symbol,
    call: F,
    answered: Cell<Option<CUresult>>,
}

impl<F: Fn() -> CUresult> Bare<F> {
    /// Makes the call.
    #[inline]
    pub(crate) fn call(&self) -> CUresult {
        let result = (self.call)();
        self.answered.set(Some(result));
        if !result.ok() {
            note_error(result);
        }
        result
    }

    /// The stream that `stream` means in this variant of the function.
    #[inline]
    pub(crate) fn stream(&self, stream: CUstream) -> CUstream {
        if !stream.is_null() {
            stream
        } else if self.symbol.per_thread_default() {
            STREAM_PER_THREAD
        } else {
            STREAM_LEGACY
        }
    }

    /// The same call made in another form, by `call`: what that answers is this call's answer.
    pub(crate) fn instead<G: Fn() -> CUresult>(&self, call: G) -> Bare<impl Fn() -> CUresult> {
        let call = move || {
            let result = call();
            self.answered.set(Some(result));
            result
        };
        Bare { symbol: self.symbol, call, answered: Cell::new(None) }
    }

    /// Its arguments mean nothing to the driver: it never gets to see them, not even where the hook panics.
    pub(crate) fn keep_from_driver(&self) {
        self.answered.set(Some(CUresult::CUDA_ERROR_UNKNOWN));
    }

    pub(crate) fn symbol(&self) -> Symbol {
        self.symbol
    }
}

/// Runs `hook`; should it panic, the call is passed through unless it was already made.
#[inline]
pub(crate) fn guarded<F: Fn() -> CUresult>(
    symbol: Symbol,
    call: F,
    hook: impl FnOnce(&Bare<F>) -> CUresult,
) -> CUresult {
    let _whole = (!symbol.launches()).then(Uncancelled::begin);
    let bare = Bare { symbol, call, answered: Cell::new(None) };
    match catch_unwind(AssertUnwindSafe(|| hook(&bare))) {
        Ok(result) => result,
        Err(_) => after_panic(&bare),
    }
}

#[cold]
fn after_panic<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    match bare.answered.get() {
        Some(result) => result,
        None => (bare.call)(),
    }
}

/// A sticky error means that the device is lost to this process: nothing more is swapped, and the gate stays open so
/// that the application meets its error wherever it looks.
#[cold]
fn note_error(error: CUresult) {
    if error.is_sticky() && crate::life::active() {
        dead::on_device_error(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_hook_passes_the_call_through_once() {
        let calls = Cell::new(0);
        let call = || {
            calls.set(calls.get() + 1);
            CUresult(7)
        };
        assert_eq!(guarded(Symbol::cuInit, call, |_| panic!("on purpose")), CUresult(7));
        assert_eq!(calls.get(), 1);
        let after = |bare: &Bare<_>| {
            assert_eq!(bare.call(), CUresult(7));
            panic!("on purpose")
        };
        assert_eq!(guarded(Symbol::cuInit, call, after), CUresult(7));
        assert_eq!(calls.get(), 2);
    }

    #[test]
    fn the_null_stream_means_what_the_variant_says() {
        let bare = |symbol| Bare { symbol, call: || CUresult(0), answered: Cell::new(None) };
        let null = std::ptr::null_mut();
        assert_eq!(bare(Symbol::cuLaunchKernel).stream(null), STREAM_LEGACY);
        assert_eq!(bare(Symbol::cuLaunchKernel_ptsz).stream(null), STREAM_PER_THREAD);
        assert_eq!(bare(Symbol::cuMemcpyHtoD_v2_ptds).stream(null), STREAM_PER_THREAD);
        assert_eq!(bare(Symbol::cuLaunchKernel_ptsz).stream(STREAM_LEGACY), STREAM_LEGACY);
    }
}
