//! Green contexts: a part of a device's multiprocessors with streams of its own in the primary context, which they keep.
//! Their memory, events and functions are the primary context's (as an H200 answered); how many multiprocessors one has
//! makes no difference here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::driver::sys::{CUcontext, CUgreenCtx, CUresult};

use crate::call::Outcome;
use crate::context::Context;
use crate::handles::{Registry, handle_of};
use crate::primary;
use crate::stream::Stream;

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
    /// Makes one on a device.
    pub(crate) fn create(device: usize, multiprocessors: u32) -> Outcome<Arc<Green>> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let green = Arc::new(Green {
            primary: primary::keep(device)?,
            multiprocessors,
            id: NUMBERS.fetch_add(1, Ordering::Relaxed),
            destroyed: AtomicBool::new(false),
        });
        GREENS.insert::<()>(Arc::clone(&green));
        Ok(green)
    }

    /// Ends it at once: work of its streams runs on, its streams cannot be used any more.
    pub(crate) fn destroy(self: &Arc<Green>) {
        if GREENS.remove(self.handle()).is_some() {
            self.destroyed.store(true, Ordering::Release);
            primary::let_go(self.primary.device);
        }
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

    /// Its streams that still exist.
    pub(crate) fn streams(self: &Arc<Green>) -> Vec<Arc<Stream>> {
        let mut streams = self.primary.streams().all();
        streams.retain(|stream| stream.green.as_ref().is_some_and(|green| Arc::ptr_eq(green, self)));
        streams
    }
}

/// The green context that a handle names.
pub(crate) fn by_handle(handle: CUgreenCtx) -> Outcome<Arc<Green>> {
    GREENS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)
}
