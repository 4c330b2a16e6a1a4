//! Calls of the driver that wait, inside the driver, for the application: for kernels that run in the context, or beside a
//! thread that is stuck in submitting to a full stream (both seen on an H200, see docs/driver-assumptions.md). What they wait
//! for may need a thread that waits at the gate, and the gate may need ours. So threads of ours make them in calm only: while
//! nothing of the application runs and the gate stays shut.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::stop::{self, HeldBack};
use super::{dead, run_state};
use crate::driver::waits;

/// How long the application's work may take to end, where a swap thread wants calm: it tries again later.
const PATIENCE: Duration = Duration::from_millis(2);

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
        let held = stop::hold_back_for_a_moment(PATIENCE);
        // Who stops it just now, and perhaps waits for this thread, has drained it, or else has to be left to that.
        (held.is_some() || run_state::is_drained()).then(|| Calm::over(held, Some(turn)))
    }

    /// There is none, and the call cannot be put off: the application waits for what is swapped out, and its context is gone.
    pub fn none_to_be_had() -> Calm {
        Calm::over(None, None)
    }

    fn over(held: Option<HeldBack>, turn: Option<MutexGuard<'static, ()>>) -> Calm {
        waits::allow(true);
        Calm { _held: held, _turn: turn }
    }
}

impl Drop for Calm {
    fn drop(&mut self) {
        waits::allow(false);
    }
}
