//! Work in flight: submitted and not over. Freeing or unmapping memory that it may touch is the mistake that the strict
//! simulator exists to find.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};

use super::{Touch, Work};
use crate::stream::Stream;

/// Names a piece of work in flight.
pub(crate) struct Ticket(u64);

struct Flying {
    touches: Vec<Touch>,
    work: Work,
    stream: u64,
}

static FLYING: LazyLock<Mutex<HashMap<u64, Flying>>> = LazyLock::new(Mutex::default);
static LANDED: Condvar = Condvar::new();

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// Tells the work that was submitted up to now from what comes later.
pub(crate) fn submitted_so_far() -> u64 {
    NUMBERS.load(Ordering::Relaxed)
}

pub(super) fn enter(work: &Work, stream: &Arc<Stream>) -> Ticket {
    let ticket = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let touches = work.touches();
    if !touches.is_empty() {
        let flying = Flying { touches, work: work.clone(), stream: stream.id };
        FLYING.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, flying);
    }
    Ticket(ticket)
}

#[expect(clippy::needless_pass_by_value, reason = "a ticket is used up")]
pub(super) fn leave(ticket: Ticket) {
    if FLYING.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket.0).is_some() {
        LANDED.notify_all();
    }
}

impl Flying {
    fn touches(&self, start: u64, bytes: u64) -> bool {
        self.touches.iter().any(|touch| {
            touch.start < start.saturating_add(bytes) && start < touch.start.saturating_add(touch.bytes)
        })
    }
}

/// A description of unfinished work that may touch the range, if there is any that was submitted before `submitted`.
pub(crate) fn in_flight(start: u64, bytes: u64, submitted: u64) -> Option<String> {
    let flying = FLYING.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, found) = flying
        .iter()
        .filter(|(ticket, flying)| **ticket < submitted && flying.touches(start, bytes))
        .min_by_key(|(ticket, _)| **ticket)?;
    Some(format!("{} in stream {}", found.work.describe(), found.stream))
}

/// Waits until no work touches the range. After a violation the contexts have failed, so that the work ends soon and the
/// memory can go without the process dying of a fault that a GPU would have reported as an error.
pub(crate) fn stop_touching(start: u64, bytes: u64) {
    let mut flying = FLYING.lock().unwrap_or_else(PoisonError::into_inner);
    while flying.values().any(|flying| flying.touches(start, bytes)) {
        flying = LANDED.wait(flying).unwrap_or_else(PoisonError::into_inner);
    }
}
