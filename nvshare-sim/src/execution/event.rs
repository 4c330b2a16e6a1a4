//! Events: what was recorded last in each, on a stream, into a graph that is being captured, or in another process.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUevent, CUresult};
use nvshare_sim_card::Ticket;

use super::capture::Mark;
use super::shared_event::{Awaited, Shared};
use super::work::Work;
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
    /// It is one of several processes.
    shared: Option<Shared>,
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
    /// The same of an event that processes share, whichever recorded it.
    Shared(Awaited),
}

impl Event {
    /// Makes an event.
    pub(crate) fn new(context: Arc<Context>, untimed: bool) -> Arc<Event> {
        Event::made(context, untimed, None)
    }

    /// Makes an event that other processes can open.
    pub(crate) fn interprocess(context: Arc<Context>) -> Outcome<Arc<Event>> {
        Ok(Event::made(context, true, Some(Shared::make()?)))
    }

    /// Opens an event of another process.
    pub(crate) fn open(context: Arc<Context>, ticket: &Ticket) -> Outcome<Arc<Event>> {
        Ok(Event::made(context, true, Some(Shared::open(ticket)?)))
    }

    fn made(context: Arc<Context>, untimed: bool, shared: Option<Shared>) -> Arc<Event> {
        let event = Arc::new(Event { context, untimed, record: Mutex::default(), shared });
        EVENTS.insert::<()>(Arc::clone(&event));
        event
    }

    /// What other processes open it by.
    pub(crate) fn ticket(&self) -> Outcome<Ticket> {
        self.shared.as_ref().ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?.ticket()
    }

    /// The handle.
    pub(crate) fn handle(self: &Arc<Event>) -> CUevent {
        handle_of(self)
    }

    /// What was recorded last.
    pub(crate) fn record(&self) -> Record {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (&self.shared, record) {
            (None, record) => record,
            (Some(shared), captured @ Record::Captured(_)) if !shared.is_recorded_since() => captured,
            (Some(shared), _) => shared.last().map_or(Record::None, Record::Shared),
        }
    }

    /// What a stream executes as it is recorded there.
    pub(crate) fn to_record(&self) -> Work {
        self.shared.as_ref().map_or(Work::Nothing, |shared| Work::Reach(Arc::new(shared.record())))
    }

    /// Replaces what was recorded.
    pub(crate) fn set(&self, record: Record) {
        if let (Some(shared), Record::Captured(_)) = (&self.shared, &record) {
            shared.captured();
        }
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
