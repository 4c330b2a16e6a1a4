//! A jam: a thread is blocked in a launch or copy into a full stream. On an H200 with driver 580 these then wait until the
//! head of that stream moves: asking it, recording or waiting for an event in it, and, anywhere in the context, making an
//! event or a stream, allocating, pinning and freeing memory, destroying a stream. Everything else goes on, and everything
//! in other contexts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The threads that are blocked, in one stream or in all of a context.
#[derive(Default)]
pub(crate) struct Jam {
    blocked: AtomicUsize,
    /// How often one of them got on.
    moves: Mutex<u64>,
    moved: Condvar,
}

impl Jam {
    /// The calling thread is blocked from here on.
    pub(crate) fn enter(&self) {
        self.blocked.fetch_add(1, Ordering::SeqCst);
    }

    /// The calling thread is blocked no more: whoever waited for it gets on too.
    pub(crate) fn leave(&self) {
        *self.lock() += 1;
        self.blocked.fetch_sub(1, Ordering::SeqCst);
        self.moved.notify_all();
    }

    /// Waits until no thread is blocked, or one of those got on.
    pub(crate) fn pass(&self) {
        if self.blocked.load(Ordering::SeqCst) == 0 || crate::threads::is_ours() {
            return;
        }
        let mut moves = self.lock();
        let begun = *moves;
        while *moves == begun && self.blocked.load(Ordering::SeqCst) > 0 {
            moves = self.moved.wait(moves).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
