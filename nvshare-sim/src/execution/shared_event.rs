//! What makes an event one of several processes: its records count on the card, and each process sees how far the work before
//! them is, whoever recorded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::{EventId, Progress, Recorded, ShareError, SharedEvent, Ticket, now};

use crate::call::Outcome;
use crate::device::card;
use crate::failure;
use crate::strict;
use crate::timeline::Timeline;

/// How often those who wait look.
const POLL: Duration = Duration::from_micros(50);
/// How often, in looks, they look whether the others still live.
const SOME: u32 = 500;

/// An event on the card, of this process or opened.
pub(super) struct Shared {
    event: SharedEvent,
    /// It ends with this one.
    is_own: bool,
    /// The last record when this process recorded it in a capture.
    at_capture: Mutex<Option<Recorded>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.is_own {
            card().end_event(self.event);
        }
    }
}

impl Shared {
    /// An event that others can open.
    pub(super) fn make() -> Outcome<Shared> {
        let event = card().make_event().ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        Ok(Shared { event, is_own: true, at_capture: Mutex::default() })
    }

    /// The event of another process that a ticket is for.
    pub(super) fn open(ticket: &Ticket) -> Outcome<Shared> {
        let id: EventId = card().event_of(ticket).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let event = card().open_event(id).map_err(|error| match error {
            ShareError::Gone => CUresult::CUDA_ERROR_INVALID_VALUE,
            ShareError::Own => CUresult::CUDA_ERROR_INVALID_CONTEXT,
        })?;
        Ok(Shared { event, is_own: false, at_capture: Mutex::default() })
    }

    /// What others open it by; what was opened cannot be handed on.
    pub(super) fn ticket(&self) -> Outcome<Ticket> {
        self.is_own.then(|| card().event_ticket(self.event)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }

    /// One more record.
    pub(super) fn record(&self) -> Reach {
        Reach(card().record(self.event))
    }

    /// This process records it in a capture.
    pub(super) fn captured(&self) {
        *self.at_capture.lock().unwrap_or_else(PoisonError::into_inner) = card().last_record(self.event);
    }

    /// Whether it was recorded in a stream since then.
    pub(super) fn is_recorded_since(&self) -> bool {
        card().last_record(self.event) != *self.at_capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last record, in whatever process.
    pub(super) fn last(&self) -> Option<Awaited> {
        card().last_record(self.event).map(Awaited)
    }
}

/// The work before a record, in its stream. It is reached when this is gone: done, or abandoned with its context.
pub(crate) struct Reach(Recorded);

impl Drop for Reach {
    fn drop(&mut self) {
        card().reach(self.0);
    }
}

/// A record that somebody asks about or waits for.
#[derive(Clone, Copy)]
pub(crate) struct Awaited(Recorded);

impl Awaited {
    /// Whether the work before it is over. What can no longer be told is as good as over; where the event was destroyed the
    /// program is wrong.
    pub(crate) fn is_over(self) -> bool {
        static SAID: AtomicBool = AtomicBool::new(false);
        match card().progress(self.0) {
            Progress::Pending => false,
            Progress::Over | Progress::Orphaned => true,
            Progress::Destroyed => {
                if !SAID.swap(true, Ordering::Relaxed) {
                    strict::report("an event of another process is used that was destroyed there");
                }
                true
            }
        }
    }

    /// The host waits for it.
    pub(crate) fn wait(self) -> Outcome {
        self.look(|| {
            std::thread::sleep(POLL);
            failure::check()
        })
    }

    /// A stream waits for it.
    pub(super) fn wait_in(self, timeline: &mut Timeline<'_>) -> Outcome {
        self.look(|| {
            timeline.check()?;
            timeline.at = now() + POLL.as_nanos() as u64;
            timeline.sleep();
            Ok(())
        })?;
        timeline.at = timeline.at.max(now());
        Ok(())
    }

    fn look(self, mut pause: impl FnMut() -> Outcome) -> Outcome {
        let mut looks = 0;
        while !self.is_over() {
            looks += 1;
            // What a process recorded that was killed is over once that is noticed.
            if looks % SOME == 0 {
                card().reclaim();
            }
            pause()?;
        }
        Ok(())
    }
}
