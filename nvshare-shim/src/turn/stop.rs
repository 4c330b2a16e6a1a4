//! Stopping the client: for the agent, until it says `Run`; or for a moment, while a guard lives.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::drain::{self, Stalled};
use super::{dead, run_state};
use crate::driver::driver;

/// Serialises those who stop the client: the agent's orders and the debugging tool.
static STOPPING: Mutex<()> = Mutex::new(());

/// Stops the client: shuts the gate and drains. On success it holds no lease any more and stays stopped; on a stall
/// everything is as before, and what was waited for is returned.
pub fn stop(stall: Duration) -> Result<(), String> {
    let held = hold_back(stall)?;
    run_state::end_lease();
    drop(held);
    Ok(())
}

/// Keeps the client stopped until the guard goes, whoever holds the lease.
pub fn hold_back(stall: Duration) -> Result<HeldBack, String> {
    hold_back_with(STOPPING.lock().unwrap_or_else(PoisonError::into_inner), stall)
}

/// As [`hold_back`], by a swap thread: not where somebody else does just now, who may be waiting for this very thread.
pub fn hold_back_for_a_moment(stall: Duration) -> Option<HeldBack> {
    let stopping = match STOPPING.try_lock() {
        Ok(stopping) => stopping,
        Err(TryLockError::Poisoned(stopping)) => stopping.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    hold_back_with(stopping, stall).ok()
}

fn hold_back_with(stopping: MutexGuard<'static, ()>, stall: Duration) -> Result<HeldBack, String> {
    let already = run_state::begin_holding();
    let held = HeldBack { _stopping: stopping };
    if already || dead::is_dead() {
        return Ok(held);
    }
    match drain::drain(stall) {
        Ok(drained) => {
            run_state::is_drained_now(drained);
            Ok(held)
        }
        Err(Stalled::NoProgress(what)) => Err(format!("no progress for {stall:?} while waiting for {what}")),
        Err(Stalled::Dead(code)) => Err(format!("the device is dead: {}", driver().error_name(code))),
    }
}

/// See [`hold_back`].
#[derive(Debug)]
pub struct HeldBack {
    _stopping: MutexGuard<'static, ()>,
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        run_state::end_holding();
    }
}
