//! Marks: an event after the work that a thread has submitted to one stream, by the thread that did.

use std::sync::Arc;

use super::capture::is_capturing;
use super::current::Relaxed;
use super::event::Event;
use super::green::owner_under;
use super::table::{Refusal, context_of, entry_of, known};
use crate::cuda::CUresult;
use crate::cuda::sys::{CUcontext, CUstream};

/// Complete when the work before it is.
#[must_use]
#[derive(Debug)]
pub struct Mark(pub(super) Event);

impl Mark {
    /// Makes `stream`, of the calling thread, wait for the work before it. Inside a pass of the gate.
    pub(crate) fn holds_back(&self, stream: CUstream) -> Result<(), CUresult> {
        let _relaxed = Relaxed::new();
        self.0.holds_back(stream)
    }

    /// Whether all work before it is known to be complete, or the driver's error. Polls, never blocks.
    pub(crate) fn answer(&self) -> Result<bool, CUresult> {
        let _relaxed = Relaxed::new();
        self.0.done()
    }
}

/// Marks what is in `stream`, for the thread that has just called into it. `Ok(None)` where nothing can be: it is being
/// captured, or its context ends.
pub(crate) fn mark(stream: CUstream) -> Result<Option<Mark>, CUresult> {
    let _relaxed = Relaxed::new();
    if is_capturing(stream) {
        return Ok(None);
    }
    let (context, here) = match entry_of(stream) {
        Some(entry) => (Arc::clone(&entry.events), None),
        None => match context_of(stream) {
            Some(context) => {
                let here: CUcontext = std::ptr::with_exposed_provenance_mut(context);
                (known().context(owner_under(here)), Some(here))
            }
            None => return Ok(None),
        },
    };
    match Event::record_under(&context, stream, here) {
        Ok(event) => Ok(Some(Mark(event))),
        Err(Refusal::Gone | Refusal::Leaving) => Ok(None),
        Err(Refusal::Error(error)) => Err(error),
    }
}
