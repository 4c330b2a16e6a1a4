//! Events of ours. None is ever destroyed: one that is not needed any more waits in its context for the next who needs one,
//! and goes with the context. So there are never more than were needed at once, no handle of ours is destroyed that may be
//! somebody else's by then, and nobody makes one in a hurry (a driver with a thread stuck in a full stream makes none).

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::{Arc, PoisonError};

use super::current::{Current, current_context};
use super::table::{Context, Refusal};
use crate::cuda::sys::{CUcontext, CUevent, CUstream};
use crate::cuda::{CUresult, EVENT_DISABLE_TIMING};
use crate::driver::driver;
use crate::life::is_engine;

/// An event of ours that was recorded.
#[derive(Debug)]
pub(crate) struct Event {
    handle: usize,
    context: Arc<Context>,
}

fn create() -> Result<usize, CUresult> {
    let mut event: CUevent = std::ptr::null_mut();
    // SAFETY: `event` is where the driver stores the new handle.
    unsafe { driver().cuEventCreate(&raw mut event, EVENT_DISABLE_TIMING) }.result()?;
    Ok(event.expose_provenance())
}

/// Has an event more ready in `context`.
pub(super) fn provide(context: &Arc<Context>) {
    // Where that fails, it is tried again when one is needed.
    if let Ok(event) = context.within(create) {
        keep(context, event);
    }
}

fn keep(context: &Context, event: usize) {
    context.spare.lock().unwrap_or_else(PoisonError::into_inner).push(event);
}

fn spare(context: &Context) -> Option<usize> {
    context.spare.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

impl Event {
    /// Records an event of `context` in `stream`. A thread of ours makes none, for which it might wait: there is one, or not.
    pub(super) fn record(context: &Arc<Context>, stream: CUstream) -> Result<Event, Refusal> {
        Event::record_under(context, stream, None)
    }

    /// As [`Event::record`], in a default stream of the context `here`: of a green one, whose work goes on when it is gone, and whose
    /// events are those of the primary one below it.
    pub(super) fn record_under(
        context: &Arc<Context>,
        stream: CUstream,
        here: Option<CUcontext>,
    ) -> Result<Event, Refusal> {
        context.within(|| {
            let make = || if is_engine() { Err(CUresult::CUDA_ERROR_NOT_READY) } else { create() };
            let handle = spare(context).map_or_else(make, Ok)?;
            let event = Event { handle, context: Arc::clone(context) };
            let _here = here.map(Current::push).transpose()?;
            // SAFETY: the event is of this life of the context, which does not end meanwhile; the stream is the caller's.
            unsafe { driver().cuEventRecord(event.handle(), stream) }.result()?;
            Ok(event)
        })
    }

    fn handle(&self) -> CUevent {
        std::ptr::with_exposed_provenance_mut(self.handle)
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Makes `stream`, of the calling thread, wait for the work before it.
    pub(super) fn holds_back(&self, stream: CUstream) -> Result<(), CUresult> {
        let current = current_context();
        let waits = self.context.within(|| {
            // A default stream is the current context's, which need not be the event's.
            let _here = current.map(Current::push).transpose()?;
            // SAFETY: the event is of this life of the context, which does not end meanwhile; the stream is the caller's.
            unsafe { driver().cuStreamWaitEvent(stream, self.handle(), 0) }.result()
        });
        match waits {
            // Where it ended its work did with it.
            Ok(()) | Err(Refusal::Gone) => Ok(()),
            Err(Refusal::Leaving) => Err(CUresult::CUDA_ERROR_NOT_READY),
            Err(Refusal::Error(error)) => Err(error),
        }
    }

    /// Whether the work before it is finished; it is when its context is gone. Never waits in the driver (seen on an H200
    /// with threads stuck in full streams, in frees and in module loads).
    pub(super) fn done(&self) -> Result<bool, CUresult> {
        let asked = self.context.within(|| {
            // SAFETY: the event is of this life of the context, which does not end meanwhile.
            match unsafe { driver().cuEventQuery(self.handle()) } {
                CUresult::CUDA_ERROR_NOT_READY => Ok(false),
                done => done.result().map(|()| true),
            }
        });
        match asked {
            Ok(done) => Ok(done),
            Err(Refusal::Gone) => Ok(true),
            Err(Refusal::Leaving) => Ok(false),
            Err(Refusal::Error(error)) => Err(error),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.context.is_gone() {
            keep(&self.context, self.handle);
        }
    }
}
