//! Work in flight: submitted and not over, and what memory it may touch. Freeing or unmapping that is the mistake that the
//! strict simulator exists to find.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};

/// Memory that work may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    /// The first byte.
    pub(crate) start: u64,
    /// How many.
    pub(crate) bytes: u64,
    /// Whether they may be written.
    pub(crate) write: bool,
}

/// Names a piece of work in flight.
pub(crate) struct Ticket(u64);

struct Flying {
    touches: Vec<Touch>,
    describe: Box<dyn Fn() -> String + Send>,
    stream: u64,
}

static FLYING: LazyLock<Mutex<HashMap<u64, Flying>>> = LazyLock::new(Mutex::default);
static LANDED: Condvar = Condvar::new();

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// Tells the work that was submitted up to now from what comes later.
pub(crate) fn submitted_so_far() -> u64 {
    NUMBERS.load(Ordering::Relaxed)
}

/// Work that touches this is in flight from here on, in the stream of this number; `describe` it for messages.
pub(crate) fn enter(
    touches: Vec<Touch>,
    stream: u64,
    describe: impl Fn() -> String + Send + 'static,
) -> Ticket {
    let ticket = NUMBERS.fetch_add(1, Ordering::Relaxed);
    if !touches.is_empty() {
        let flying = Flying { touches, describe: Box::new(describe), stream };
        FLYING.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, flying);
    }
    Ticket(ticket)
}

/// It is over.
#[expect(clippy::needless_pass_by_value, reason = "a ticket is used up")]
pub(crate) fn leave(ticket: Ticket) {
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
    first(start, bytes, |ticket, _| ticket < submitted)
}

/// The same of all work but that of one stream.
pub(crate) fn in_flight_elsewhere(start: u64, bytes: u64, stream: u64) -> Option<String> {
    first(start, bytes, |_, flying| flying.stream != stream)
}

fn first(start: u64, bytes: u64, counts: impl Fn(u64, &Flying) -> bool) -> Option<String> {
    let flying = FLYING.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, found) = flying
        .iter()
        .filter(|(ticket, flying)| counts(**ticket, flying) && flying.touches(start, bytes))
        .min_by_key(|(ticket, _)| **ticket)?;
    Some(format!("{} in stream {}", (found.describe)(), found.stream))
}

/// Waits until no work touches the range. After a violation the contexts have failed, so that the work ends soon and the
/// memory can go without the process dying of a fault that a GPU would have reported as an error.
pub(crate) fn stop_touching(start: u64, bytes: u64) {
    let mut flying = FLYING.lock().unwrap_or_else(PoisonError::into_inner);
    while flying.values().any(|flying| flying.touches(start, bytes)) {
        flying = LANDED.wait(flying).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every test has its own addresses: what is in flight is one list for all.
    fn touching(start: u64, name: &'static str) -> Ticket {
        let touch = |start| Touch { start, bytes: 4096, write: true };
        enter(vec![touch(start), touch(start + (1 << 20))], 7, move || name.to_owned())
    }

    #[test]
    fn work_is_found_where_it_may_touch_and_nowhere_else_until_it_is_over() {
        let ticket = touching(0x1000_0000, "a copy");
        let found = |start, bytes| in_flight(start, bytes, u64::MAX);
        assert_eq!(found(0x1000_0fff, 1).as_deref(), Some("a copy in stream 7"));
        assert_eq!(found(0x0fff_ffff, 2).as_deref(), Some("a copy in stream 7"), "the end of the range");
        assert_eq!(found(0x1010_0fff, 0x10_0000).as_deref(), Some("a copy in stream 7"), "its second piece");
        assert_eq!((found(0x1000_1000, 0x1000), found(0x0fff_ffff, 1)), (None, None));
        leave(ticket);
        assert_eq!(found(0x1000_0fff, 1), None);
    }

    #[test]
    fn of_several_the_earliest_is_named_and_later_ones_can_be_left_out() {
        let before = submitted_so_far();
        let tickets = [touching(0x2000_0000, "the first"), touching(0x2000_0000, "the second")];
        assert_eq!(in_flight(0x2000_0000, 1, u64::MAX).as_deref(), Some("the first in stream 7"));
        assert_eq!(in_flight(0x2000_0000, 1, before), None, "it was submitted after that");
        assert_eq!(in_flight_elsewhere(0x2000_0000, 1, 7), None, "both are that stream's");
        assert_eq!(in_flight_elsewhere(0x2000_0000, 1, 8).as_deref(), Some("the first in stream 7"));
        let [first, second] = tickets;
        leave(first);
        assert_eq!(in_flight(0x2000_0000, 1, u64::MAX).as_deref(), Some("the second in stream 7"));
        leave(second);
    }

    #[test]
    fn whoever_waits_for_memory_gets_on_when_the_last_work_is_over() {
        let tickets = [touching(0x3000_0000, "one"), touching(0x3000_0800, "two")];
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = std::sync::Arc::clone(&over);
        let waiting = std::thread::spawn(move || {
            stop_touching(0x3000_0800, 1);
            seen.load(Ordering::SeqCst)
        });
        let [first, second] = tickets;
        leave(first);
        std::thread::yield_now();
        over.store(true, Ordering::SeqCst);
        leave(second);
        assert!(waiting.join().expect("the waiting thread"), "not before the second was over");
    }
}
