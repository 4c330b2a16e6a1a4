//! The end of a piece of work: where in its stream the work is, whether the end came, when it came by the card's clocks, and waiting
//! for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// A place in a stream. Of two in one stream, the one that comes later has the larger number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// The stream's number.
    pub(crate) stream: u64,
    /// Different for all work of all streams.
    pub(crate) number: u64,
}

static NUMBERS: AtomicU64 = AtomicU64::new(0);

impl Place {
    /// Of the work that is submitted to the stream next; nobody else may submit to it until that was done.
    fn next(stream: u64) -> Place {
        Place { stream, number: NUMBERS.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Of the last work that was submitted to the stream.
    pub(crate) fn last(stream: u64) -> Place {
        Place { stream, number: NUMBERS.load(Ordering::Relaxed) }
    }

    /// Whether it is this place or comes before it.
    pub(crate) fn is_up_to(self, other: Place) -> bool {
        self.stream == other.stream && self.number <= other.number
    }
}

/// Set once, when the work is over, to the (virtual) time of its end.
#[derive(Default)]
pub(crate) struct Completion {
    /// Where the work is.
    pub(crate) place: Place,
    /// Nanoseconds of CLOCK_MONOTONIC; 0 while the work is not over.
    at: AtomicU64,
    lock: Mutex<()>,
    over: Condvar,
}

impl Completion {
    /// Of the work that is submitted to a stream next: see [`Place::next`].
    pub(crate) fn of_next(stream: u64) -> Completion {
        Completion { place: Place::next(stream), ..Completion::default() }
    }

    /// When the work ended; `None` while it has not.
    pub(crate) fn finished(&self) -> Option<u64> {
        match self.at.load(Ordering::Acquire) {
            0 => None,
            at => Some(at),
        }
    }

    /// Ends the wait of everybody.
    pub(crate) fn finish(&self, at: u64) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.at.store(at.max(1), Ordering::Release);
        drop(guard);
        self.over.notify_all();
    }

    /// Waits for the end, but not for ever: whether it came.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.finished().is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self.over.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits for the end and returns its time.
    pub(crate) fn wait(&self) -> u64 {
        if let Some(at) = self.finished() {
            return at;
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(at) = self.finished() {
                return at;
            }
            guard = self.over.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
