//! The end of a piece of work: whether it came, when it came by the card's clocks, and waiting for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Set once, when the work is over, to the (virtual) time of its end.
#[derive(Default)]
pub(crate) struct Completion {
    /// Nanoseconds of CLOCK_MONOTONIC; 0 while the work is not over.
    at: AtomicU64,
    lock: Mutex<()>,
    over: Condvar,
}

impl Completion {
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
