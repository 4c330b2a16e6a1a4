//! The gate itself, apart from threads and from the process it stands in: a state, and a mark for each thread. It is
//! built from the primitives of `super::sync`, so that the model test can try all interleavings of it.
//!
//! Why it holds: a thread stores "inside", then loads the state; the closer stores "shut", makes every thread of the
//! process execute a barrier, then loads all the "inside" marks. Whatever the order, either the closer sees the mark or
//! the thread sees the shut gate; then it takes the mark back and waits, holding nothing.

use std::marker::PhantomData;
use std::sync::PoisonError;

use super::sync::{AtomicBool, AtomicU32, AtomicU64, Condvar, Mutex, Ordering, fence, light_fence};

/// The gate is shut.
const SHUT: u32 = 1;
/// It lets everybody pass all the same (see `ajar` of the run state).
pub(crate) const AJAR: u32 = 2;
/// There is no `membarrier`: passes take a fence.
pub(crate) const FENCED: u32 = 4;

/// A thread's mark, on a cache line pair of its own.
#[repr(align(128))]
pub(crate) struct Slot {
    /// How many passes of the thread are nested in one another; written by the thread only.
    depth: AtomicU32,
    /// Whether a thread has it.
    taken: AtomicBool,
    /// Whether it goes back after the pass: its thread is past its thread-local storage.
    guest: AtomicBool,
    /// How often a thread that had it used a default stream; written by the thread only.
    default_uses: AtomicU64,
    /// That of its gate.
    forget: fn(),
}

/// See the module.
pub(crate) struct Gate {
    state: AtomicU32,
    for_good: AtomicBool,
    slots: Mutex<Vec<&'static Slot>>,
    /// Called by a thread whose slot is its own no longer.
    forget: fn(),
    /// How often it was opened.
    lock: Mutex<u64>,
    opened: Condvar,
}

/// As long as it lives, its thread is inside: what it submits is waited for by the next drain.
#[must_use]
pub struct Pass {
    slot: &'static Slot,
    outer: u32,
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Pass {
    #[inline]
    fn drop(&mut self) {
        self.slot.depth.store(self.outer, Ordering::Release);
        if self.slot.guest.load(Ordering::Relaxed) && self.outer == 0 {
            self.slot.leave();
        }
    }
}

impl Pass {
    /// What is submitted next goes into a default stream.
    #[inline]
    pub(crate) fn uses_default(&self) {
        let uses = self.slot.default_uses.load(Ordering::Relaxed);
        self.slot.default_uses.store(uses + 1, Ordering::Release);
    }
}

impl Slot {
    /// Gives the slot back for another thread's use.
    pub(crate) fn give_back(&self) {
        self.guest.store(false, Ordering::Relaxed);
        self.depth.store(0, Ordering::Release);
        self.taken.store(false, Ordering::Release);
    }

    /// The slot goes back after the pass.
    pub(crate) fn lend(&self) {
        self.guest.store(true, Ordering::Relaxed);
    }

    /// The pass of a thread past its thread-local storage is over.
    fn leave(&self) {
        (self.forget)();
        self.give_back();
    }
}

impl Gate {
    super::sync::const_fn! {
        pub(crate) fn new(forget: fn()) -> Gate {
            Gate {
                forget,
                state: AtomicU32::new(0),
                for_good: AtomicBool::new(false),
                slots: Mutex::new(Vec::new()),
                lock: Mutex::new(0),
                opened: Condvar::new(),
            }
        }
    }

    /// A slot for a new thread: one that another thread gave back, or a new one (they are never freed: the closer may
    /// be looking at any of them).
    pub(crate) fn register(&self) -> &'static Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in slots.iter() {
            if slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return slot;
            }
        }
        let slot: &'static Slot = Box::leak(Box::new(Slot {
            depth: AtomicU32::new(0),
            taken: AtomicBool::new(true),
            guest: AtomicBool::new(false),
            default_uses: AtomicU64::new(0),
            forget: self.forget,
        }));
        slots.push(slot);
        slot
    }

    /// Enters with `slot`. `pass_shut` decides, where the gate is shut, whether this call may pass all the same;
    /// `waiting` is called each time before the thread waits.
    #[inline]
    pub(crate) fn enter(
        &self,
        slot: &'static Slot,
        pass_shut: impl FnOnce() -> bool,
        waiting: impl FnMut(),
    ) -> Pass {
        let outer = slot.depth.load(Ordering::Relaxed);
        slot.depth.store(outer + 1, Ordering::Relaxed);
        light_fence();
        if self.state.load(Ordering::Acquire) != 0 && outer == 0 {
            self.enter_slowly(slot, pass_shut, waiting);
        }
        Pass { slot, outer, of_this_thread: PhantomData }
    }

    #[cold]
    fn enter_slowly(&self, slot: &Slot, pass_shut: impl FnOnce() -> bool, mut waiting: impl FnMut()) {
        fence(Ordering::SeqCst);
        if self.passable() || pass_shut() {
            return;
        }
        slot.depth.store(0, Ordering::Release);
        loop {
            // Said again after each opening, also one that was over before this thread woke, or fell asleep: whoever shut
            // the gate then believes that nobody waits.
            let openings = *self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            waiting();
            let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            while !self.passable() && *guard == openings {
                guard = self.opened.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            drop(guard);
            slot.depth.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.passable() {
                return;
            }
            slot.depth.store(0, Ordering::Release);
        }
    }

    /// Whether a thread outside may come in.
    pub(crate) fn passable(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        state & SHUT == 0 || state & AJAR != 0
    }

    /// Shuts the gate; `barrier` is the closer's half of the asymmetric fence.
    pub(crate) fn shut(&self, barrier: impl FnOnce()) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if self.for_good.load(Ordering::Acquire) {
            return;
        }
        self.state.fetch_or(SHUT, Ordering::SeqCst);
        drop(guard);
        fence(Ordering::SeqCst);
        barrier();
    }

    /// Clears and sets bits of the state, and wakes whoever waits for that.
    pub(crate) fn change(&self, clear: u32, set: u32) {
        let mut openings = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if clear & SHUT != 0 {
            *openings += 1;
        }
        self.state.fetch_and(!clear, Ordering::SeqCst);
        self.state.fetch_or(set, Ordering::SeqCst);
        self.opened.notify_all();
    }

    /// Opens it.
    pub(crate) fn open(&self) {
        self.change(SHUT | AJAR, 0);
    }

    /// Opens the gate, and lets no later order shut it.
    pub(crate) fn open_for_good(&self) {
        self.for_good.store(true, Ordering::Release);
        self.open();
    }

    /// Orders to shut it count again.
    pub(crate) fn may_shut_again(&self) {
        self.for_good.store(false, Ordering::Release);
    }

    /// As [`open_for_good`](Gate::open_for_good), without a lock or a wake-up: for the only thread of a forked child.
    pub(crate) fn abandon(&self) {
        self.for_good.store(true, Ordering::Release);
        self.state.store(0, Ordering::Release);
    }

    /// Whether passes take a fence of their own.
    pub(crate) fn is_fenced(&self) -> bool {
        self.state.load(Ordering::Relaxed) & FENCED != 0
    }

    /// How often default streams were used, by all threads. It only grows. Whoever takes it, sees nobody inside after that,
    /// and then that the default streams are idle, knows that they are as long as it stays the same.
    pub(crate) fn default_uses(&self) -> u64 {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.iter().map(|slot| slot.default_uses.load(Ordering::Acquire)).sum()
    }

    /// How many threads are inside.
    pub(crate) fn inside(&self) -> usize {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.iter().filter(|slot| slot.depth.load(Ordering::Acquire) != 0).count()
    }
}
