//! Questions to the agent that a thread waits for. Each has a ticket; with the session all that wait are told that nobody
//! answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvshare_common::ids::Ticket;
use nvshare_common::protocol::ToAgent;

/// Who waits for an answer of the agent, by ticket.
static ASKING: Mutex<Option<HashMap<u64, Sender<bool>>>> = Mutex::new(None);

fn asking() -> MutexGuard<'static, Option<HashMap<u64, Sender<bool>>>> {
    ASKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a question and waits for its answer; disconnected when the session ends.
pub(crate) fn answered(
    ask: impl FnOnce(Ticket) -> ToAgent,
    limit: Duration,
) -> Result<bool, RecvTimeoutError> {
    static TICKETS: AtomicU64 = AtomicU64::new(1);
    let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
    let (answer, told) = channel();
    asking().get_or_insert_default().insert(ticket, answer);
    super::send(&ask(Ticket(ticket)));
    // Where the session ended before, nobody is there to tell.
    let made = if super::is_open() { told.recv_timeout(limit) } else { Err(RecvTimeoutError::Disconnected) };
    asking().get_or_insert_default().remove(&ticket);
    made
}

/// The agent answers.
pub(crate) fn answer(ticket: Ticket, yes: bool) {
    if let Some(waiter) = asking().as_ref().and_then(|asking| asking.get(&ticket.0)) {
        let _ = waiter.send(yes);
    }
}

/// Nobody answers any more what was asked.
pub(super) fn nobody_answers() {
    asking().take();
}
