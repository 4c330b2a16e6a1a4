//! Whether the application may run: the one place that decides about the gate. It is open exactly while the client holds
//! the lease, nothing it could touch is missing, and nobody is about to stop it; or for good, once a device is dead and
//! nothing is missing on those that live.
//!
//! Its lock is taken before a device's, see the head of the library.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::drained::Drained;
use super::{dead, want};
use crate::{device, gate};

/// See the module.
#[derive(Debug)]
struct RunState {
    /// Held until `Stop`; always, without an agent.
    lease: bool,
    /// Somebody drains, or keeps the client stopped for a moment.
    held_back: bool,
    open: bool,
    /// A drain waits for calls of the application: the gate may stand ajar.
    ajar: bool,
    /// It does.
    stands_ajar: bool,
    /// Nothing of the application has run since, because the gate has not opened since.
    drained: Option<Drained>,
    /// It was opened for good.
    for_good: bool,
}

static RUN_STATE: Mutex<RunState> = Mutex::new(RunState {
    lease: true,
    held_back: false,
    open: true,
    ajar: false,
    stands_ajar: false,
    drained: None,
    for_good: false,
});
/// How often the gate has opened. Memory that arrived since the last time is untouched.
static OPENINGS: AtomicU64 = AtomicU64::new(0);

fn run_state() -> MutexGuard<'static, RunState> {
    RUN_STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens or shuts the gate as it should be. Call it after anything it depends on has changed, without a device's lock.
pub fn reconsider() {
    decide(&mut run_state());
}

fn decide(state: &mut RunState) {
    let complete = missing() == 0;
    let wanted = dead::is_over() || complete && (dead::is_dead() || state.lease && !state.held_back);
    if wanted && !state.open {
        state.drained = None;
        state.open = true;
        OPENINGS.fetch_add(1, Ordering::AcqRel);
        want::runs();
        gate::open();
    } else if !wanted && state.open {
        state.open = false;
        gate::shut();
    }
    if wanted && dead::is_dead() && !state.for_good {
        state.for_good = true;
        gate::open_for_good();
    }
    // What is missing must not be touched by those who pass meanwhile.
    let ajar = state.ajar && complete;
    if ajar != state.stands_ajar {
        state.stands_ajar = ajar;
        gate::stand_ajar(ajar);
    }
}

/// Bytes that are not resident and could be touched, on all devices that live.
pub fn missing() -> u64 {
    let living = device::all().into_iter().filter(|device| !dead::has_failed(device));
    living.map(|device| device.state().space.accounts().missing).sum()
}

/// How often the gate has opened, if the application is drained now: what arrives now is untouched as long as this stays
/// the same. Otherwise nothing can be said: work from before, or calls through a gate that stands ajar, may use it.
pub fn untouched_since() -> Option<u64> {
    while_drained(|| OPENINGS.load(Ordering::Acquire))
}

/// Whether what arrived at `arrived` cannot have been touched since.
pub fn is_untouched(arrived: Option<u64>) -> bool {
    arrived == Some(OPENINGS.load(Ordering::Acquire))
}

/// The lease was given, or there is no agent.
pub fn give_lease() {
    let mut state = run_state();
    state.lease = true;
    decide(&mut state);
}

/// Whether the client holds the lease.
pub fn holds_lease() -> bool {
    run_state().lease
}

/// The device that was dead is not any more: the gate may be shut again.
pub(crate) fn may_stop_again() {
    run_state().for_good = false;
    gate::may_shut_again();
}

/// Whether everything submitted is finished and nothing can be submitted (S2). Stays true for the engine's work on
/// extents that are missing, because with those the gate does not open.
pub fn is_drained() -> bool {
    let state = run_state();
    !state.open && state.drained.is_some()
}

/// Does `what` if everything submitted is finished and nothing can be submitted before it returns (S2): what makes memory
/// missing here keeps the gate shut afterwards. Only with no lock, or with a session's.
pub fn while_drained<T>(what: impl FnOnce() -> T) -> Option<T> {
    let state = run_state();
    (!state.open && state.drained.is_some()).then(what)
}

/// While the guard lives everybody passes the shut gate, as long as nothing is missing.
pub fn ajar() -> Ajar {
    let mut state = run_state();
    state.ajar = true;
    decide(&mut state);
    Ajar
}

/// See [`ajar`].
#[derive(Debug)]
pub struct Ajar;

impl Drop for Ajar {
    fn drop(&mut self) {
        let mut state = run_state();
        state.ajar = false;
        decide(&mut state);
    }
}

/// Somebody drains, or keeps the client stopped from now on. Whether it is drained already.
pub(super) fn begin_holding() -> bool {
    let mut state = run_state();
    state.held_back = true;
    decide(&mut state);
    !state.open && state.drained.is_some()
}

/// Nobody does any more.
pub(super) fn end_holding() {
    let mut state = run_state();
    state.held_back = false;
    decide(&mut state);
}

/// A drain has ended, with the gate shut since it began.
pub(super) fn is_drained_now(drained: Drained) {
    run_state().drained = Some(drained);
}

/// The lease is over.
pub(super) fn end_lease() {
    run_state().lease = false;
}
