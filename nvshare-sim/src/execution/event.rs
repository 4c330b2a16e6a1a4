//! Events: what was recorded last in each, on a stream or into a graph that is being captured.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUevent, CUresult};

use super::capture::Mark;
use crate::call::{Call, Outcome};
use crate::completion::Completion;
use crate::context::Context;
use crate::handles::{Registry, handle_of};

/// All events.
pub(crate) static EVENTS: Registry<Event> = Registry::new();

/// An event.
pub(crate) struct Event {
    /// Where it belongs.
    pub(crate) context: Arc<Context>,
    /// Whether it has no time.
    pub(crate) untimed: bool,
    record: Mutex<Record>,
}

/// What was recorded.
#[derive(Clone, Default)]
pub(crate) enum Record {
    /// Nothing yet: as good as complete.
    #[default]
    None,
    /// The end of what was before it in a stream.
    Work(Arc<Completion>),
    /// A place in a capture.
    Captured(Mark),
}

impl Event {
    /// Makes an event.
    pub(crate) fn new(context: Arc<Context>, untimed: bool) -> Arc<Event> {
        let event = Arc::new(Event { context, untimed, record: Mutex::default() });
        EVENTS.insert::<()>(Arc::clone(&event));
        event
    }

    /// The handle.
    pub(crate) fn handle(self: &Arc<Event>) -> CUevent {
        handle_of(self)
    }

    /// What was recorded last.
    pub(crate) fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces what was recorded.
    pub(crate) fn set(&self, record: Record) {
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = record;
    }
}

impl Call {
    /// The event that `handle` names.
    #[expect(clippy::unused_self, reason = "what a call asks about its surroundings it asks of one thing")]
    pub(crate) fn event(&self, handle: CUevent) -> Outcome<Arc<Event>> {
        let event = EVENTS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        event.context.usable()?;
        Ok(event)
    }
}
