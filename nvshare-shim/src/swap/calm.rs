//! Calls of the driver that wait, inside the driver, for the application: for kernels that run in the context, or beside a
//! thread that is stuck in submitting to a full stream (both seen on an H200, see docs/driver-assumptions.md). What they wait
//! for may need a thread that waits at the gate, and the gate may need ours. So threads of ours make them in calm only: while
//! nothing of the application runs and the gate stays shut.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::standing::{self, HeldBack};
use crate::life;
use crate::table::Symbol;
use crate::turn::dead;

/// How long the application's work may take to end, where a swap thread wants calm: it tries again later.
const PATIENCE: Duration = Duration::from_millis(2);

thread_local! {
    static HERE: Cell<bool> = const { Cell::new(false) };
}

/// As long as it lives the calling thread may make calls that wait.
#[must_use]
#[derive(Debug)]
pub struct Calm {
    // Before the turn goes to the next.
    _held: Option<HeldBack>,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// One swap thread at a time: what one has stopped opens when it is done.
static TURN: Mutex<()> = Mutex::new(());

impl Calm {
    /// While the client is stopped, or where it can be stopped for a moment.
    pub fn now() -> Option<Calm> {
        // Then the gate stays open whoever stops whom.
        if dead::is_dead() {
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let held = standing::hold_back_for_a_moment(PATIENCE);
        // Who stops it just now, and perhaps waits for this thread, has drained it, or else has to be left to that.
        (held.is_some() || standing::is_drained()).then(|| Calm::over(held, Some(turn)))
    }

    /// There is none, and the call cannot be put off: the application waits for what is swapped out, and its context is gone.
    pub fn none_to_be_had() -> Calm {
        Calm::over(None, None)
    }

    fn over(held: Option<HeldBack>, turn: Option<MutexGuard<'static, ()>>) -> Calm {
        HERE.set(true);
        Calm { _held: held, _turn: turn }
    }
}

impl Drop for Calm {
    fn drop(&mut self) {
        HERE.set(false);
    }
}

/// Whether the driver may let the caller wait for the application's work. Not in the list, because they were seen not to:
/// `cuStreamIsCapturing`, `cuStreamGetCtx`, `cuEventQuery`, `cuMemGetInfo`, making current, all calls of virtual memory
/// management, copies, launches, records and waits in streams of our own, pinning host memory, figures of pools. `cuStreamQuery`
/// of the application's streams waits too: it is asked by the drain's thread, for which nobody waits without a limit.
const fn may_wait(symbol: Symbol) -> bool {
    matches!(
        symbol,
        Symbol::cuEventCreate
            | Symbol::cuStreamCreate
            | Symbol::cuStreamDestroy_v2
            | Symbol::cuMemAlloc_v2
            | Symbol::cuMemFree_v2
            | Symbol::cuMemHostUnregister
            | Symbol::cuMemFreeHost
            | Symbol::cuModuleLoadData
            | Symbol::cuModuleUnload
    )
}

/// The shim itself makes a call.
#[inline]
pub(crate) fn check(symbol: Symbol) {
    debug_assert!(
        !may_wait(symbol) || !life::is_engine() || HERE.get(),
        "{} may wait for the application, on a thread of ours",
        symbol.name()
    );
}
