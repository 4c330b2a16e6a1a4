//! The gate: every call that submits device work passes it. On the fast path a pass is one store to the thread's own
//! cache line, one load of a word that hardly ever changes, and a store on leaving. Who shuts the gate pays for that:
//! with `membarrier`, or where the kernel has none, by making every pass take a fence.
//!
//! Here is the one gate of the process and its threads' marks; how it works is in `core`.

#![expect(unsafe_code, reason = "a thread's slot outlives it, and the kernel is asked for barriers")]

mod core;
mod membarrier;
mod sync;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::ptr::null;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use self::core::Pass;
use self::core::{AJAR, FENCED, Gate, Slot};
use crate::life;
static GATE: Gate = Gate::new(|| SLOT.set(null()));

thread_local! {
    /// This thread's slot; without a destructor, so that it can be read at any time in a thread's life.
    static SLOT: Cell<*const Slot> = const { Cell::new(null()) };
    /// Gives the slot back when the thread ends.
    static REGISTERED: Registered = const { Registered };
}

struct Registered;

impl Drop for Registered {
    fn drop(&mut self) {
        let slot = SLOT.replace(null());
        if !slot.is_null() {
            // SAFETY: slots are never freed.
            unsafe { &*slot }.give_back();
        }
    }
}

/// Passes the gate; where it is shut, and `may_pass_shut` does not say that this call passes all the same, the thread calls
/// `about_to_wait` and waits until it opens. Inside a pass it never waits.
#[inline]
pub fn pass(may_pass_shut: impl FnOnce() -> bool, about_to_wait: impl FnMut()) -> Pass {
    GATE.enter(slot(), || may_pass_shut() || is_elsewhere(), about_to_wait)
}

/// Passes the gate whether it is shut or not, for a call that submits nothing: as long as the pass lives no drain ends.
#[inline]
pub(crate) fn pass_at_once() -> Pass {
    GATE.enter(slot(), || true, || ())
}

/// Shuts the gate to new passes and returns at once; threads that are inside stay inside. Idempotent.
pub fn shut() {
    GATE.shut(|| {
        if !GATE.is_fenced() && !membarrier::issue() {
            // From now on every pass fences itself; one that began before has long been seen after this.
            GATE.change(0, FENCED);
            std::thread::sleep(UNFENCED);
        }
    });
}

/// A store is seen by all others within microseconds, whatever a thread does; its thread may have been preempted at most.
const UNFENCED: Duration = Duration::from_millis(50);

/// Shuts the gate and waits until no thread is inside. Never call it from inside a pass. A thread may stay inside
/// for as long as its call takes, so a drain does this with a limit instead.
pub fn close() {
    shut();
    while inside() != 0 {
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
}

/// Opens the gate.
pub fn open() {
    GATE.open();
}

/// Whether calls wait at the gate now.
pub fn is_shut() -> bool {
    !GATE.passable()
}

/// How often default streams were used; see [`Gate::default_uses`].
pub(crate) fn default_uses() -> u64 {
    GATE.default_uses()
}

/// How many threads are inside now.
pub fn inside() -> usize {
    GATE.inside()
}

/// Opens the gate and ignores every later order to shut it: the device is dead, and the application shall see so.
pub fn open_for_good() {
    GATE.open_for_good();
}

/// Ends [`open_for_good`]: the gate is open, and may be shut.
pub fn may_shut_again() {
    GATE.may_shut_again();
}

/// Lets the gate stand ajar: shut as far as its owner is concerned, but everybody passes; or ends that.
pub(crate) fn stand_ajar(ajar: bool) {
    if ajar {
        GATE.change(0, AJAR);
        return;
    }
    GATE.change(AJAR, 0);
    if is_shut() {
        // The barrier for threads that passed meanwhile.
        shut();
    }
}

/// Chooses the closer's half of the fence; at first use, while the gate is open.
pub(crate) fn prepare() {
    OWNER.store(std::process::id(), Ordering::Relaxed);
    life::in_child_of_a_fork(leave_to_parent);
    if !membarrier::register() {
        GATE.change(0, FENCED);
    }
}

/// The process whose gate it is; 0 before [`prepare`].
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Whether this is a child that was made past the handlers of `fork`: nobody will ever open the gate for it either, and CUDA
/// does not work in it.
#[cold]
fn is_elsewhere() -> bool {
    let owner = OWNER.load(Ordering::Relaxed);
    owner != 0 && owner != std::process::id()
}

/// In the child after a fork: nobody will ever open the gate for it.
fn leave_to_parent() {
    GATE.abandon();
}

#[inline]
fn slot() -> &'static Slot {
    let slot = SLOT.get();
    if slot.is_null() {
        return register();
    }
    // SAFETY: slots are never freed.
    unsafe { &*slot }
}

#[cold]
fn register() -> &'static Slot {
    let slot = GATE.register();
    SLOT.set(slot);
    if REGISTERED.try_with(|_| ()).is_err() {
        slot.lend();
    }
    slot
}
