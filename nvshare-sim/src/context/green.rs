//! Green contexts: a part of a device's multiprocessors with streams of its own in the primary context, which they keep.
//! Their memory, events and functions are the primary context's (as an H200 answered); how many multiprocessors one has
//! makes no difference here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::driver::sys::{CUcontext, CUgreenCtx, CUresult};

use super::Context;
use crate::call::Outcome;
use crate::handles::{Registry, handle_of};

/// All green contexts that were not destroyed.
pub(crate) static GREENS: Registry<Green> = Registry::new();

/// A green context.
pub(crate) struct Green {
    /// The context that its streams are in.
    pub(crate) primary: Arc<Context>,
    /// How many multiprocessors it has.
    pub(crate) multiprocessors: u32,
    /// A number.
    pub(crate) id: u64,
    destroyed: AtomicBool,
}

impl Green {
    /// One in a primary context, which is not known yet.
    pub(crate) fn new(primary: Arc<Context>, multiprocessors: u32) -> Arc<Green> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let id = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Arc::new(Green { primary, multiprocessors, id, destroyed: AtomicBool::new(false) })
    }

    /// From now on it cannot be used.
    pub(crate) fn destroy(&self) {
        self.destroyed.store(true, Ordering::Release);
    }

    /// The handle.
    pub(crate) fn handle(self: &Arc<Green>) -> CUgreenCtx {
        handle_of(self)
    }

    /// The handle as one of a context, which it can be used as.
    pub(crate) fn context_handle(self: &Arc<Green>) -> CUcontext {
        handle_of(self)
    }

    /// An error if it was destroyed.
    pub(crate) fn usable(&self) -> Outcome {
        if self.destroyed.load(Ordering::Acquire) {
            return Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
        self.primary.usable()
    }
}

/// The green context that a handle names.
pub(crate) fn by_handle(handle: CUgreenCtx) -> Outcome<Arc<Green>> {
    GREENS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)
}
