//! The life of the library in this process: whether it is active, and which threads are its own. In the child of a fork it
//! does nothing ever again: CUDA does not survive a fork either, and the engine's threads are not there.

#![expect(unsafe_code, reason = "a handler for forks is registered")]

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Once, OnceLock};

use crate::descriptors;

const ASLEEP: u8 = 0;
const ACTIVE: u8 = 1;
const INERT: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(ASLEEP);

thread_local! {
    static ENGINE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the shim manages this process. Hooks pass everything through where it does not: before the first `cuInit`,
/// when switched off, and in the child after a fork.
#[inline]
pub fn active() -> bool {
    STATE.load(Ordering::Acquire) == ACTIVE
}

/// Whether it has not been decided yet.
pub(crate) fn is_asleep() -> bool {
    STATE.load(Ordering::Acquire) == ASLEEP
}

/// All is prepared: from now on hooks do their work.
pub(crate) fn begin() {
    STATE.store(ACTIVE, Ordering::Release);
}

/// It will never do anything.
pub(crate) fn switch_off() {
    STATE.store(INERT, Ordering::Release);
}

/// Whether the calling thread is the shim's own.
#[inline]
pub fn is_engine() -> bool {
    ENGINE.get()
}

/// The calling thread is.
pub(crate) fn thread_is_ours() {
    ENGINE.set(true);
}

/// What others do in the child of a fork.
static IN_CHILD: [OnceLock<fn()>; 4] = [const { OnceLock::new() }; 4];

/// Makes the child of a later fork inert.
pub(crate) fn watch_forks() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        // SAFETY: the handler only stores to atomics and closes files, which is allowed in the child of a process with threads.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// In the child of a later fork `leave` is called, once: it may only store to atomics.
pub(crate) fn in_child_of_a_fork(leave: fn()) {
    let placed = IN_CHILD.iter().any(|place| place.set(leave).is_ok());
    debug_assert!(placed, "there are more places than modules that need one");
    watch_forks();
}

extern "C" fn in_child() {
    switch_off();
    for leave in IN_CHILD.iter().filter_map(OnceLock::get) {
        leave();
    }
    descriptors::leave_to_parent();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn the_child_of_a_fork_is_inert_and_tells_who_asked_to_be_told() {
        static TOLD: AtomicBool = AtomicBool::new(false);
        in_child_of_a_fork(|| TOLD.store(true, Ordering::Relaxed));
        // SAFETY: the child looks at atomics and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let inert = TOLD.load(Ordering::Relaxed) && !active() && !is_asleep();
            // SAFETY: ends the child at once, whatever the process has running.
            unsafe { libc::_exit(if inert { 7 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for that child; a place for what it says.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(libc::WEXITSTATUS(status), 7);
        assert!(!TOLD.load(Ordering::Relaxed) && is_asleep(), "the parent is what it was");
    }
}
