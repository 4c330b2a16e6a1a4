//! Whether the application may run: the one place that decides about the gate. It is open exactly while the client holds
//! the lease, nothing it could touch is missing, and nobody is about to stop it; or for good, once a device is dead and
//! nothing is missing on those that live.
//!
//! Lock order: this one before a device's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use crate::drain::{self, Drained, Stalled};
use crate::driver::driver;
use crate::turn::{dead, want};
use crate::{device, gate};

/// See the module.
#[derive(Debug)]
struct Standing {
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

static STANDING: Mutex<Standing> = Mutex::new(Standing {
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
/// Serialises those who stop the client: the agent's orders and the debugging tool.
static STOPPING: Mutex<()> = Mutex::new(());

fn standing() -> MutexGuard<'static, Standing> {
    STANDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens or shuts the gate as it should be. Call it after anything it depends on has changed, without a device's lock.
pub fn reconsider() {
    decide(&mut standing());
}

fn decide(standing: &mut Standing) {
    let complete = missing() == 0;
    let wanted = dead::is_over() || complete && (dead::is_dead() || standing.lease && !standing.held_back);
    if wanted && !standing.open {
        standing.drained = None;
        standing.open = true;
        OPENINGS.fetch_add(1, Ordering::AcqRel);
        want::runs();
        gate::open();
    } else if !wanted && standing.open {
        standing.open = false;
        gate::shut();
    }
    if wanted && dead::is_dead() && !standing.for_good {
        standing.for_good = true;
        gate::open_for_good();
    }
    // What is missing must not be touched by those who pass meanwhile.
    let ajar = standing.ajar && complete;
    if ajar != standing.stands_ajar {
        standing.stands_ajar = ajar;
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
    let mut standing = standing();
    standing.lease = true;
    decide(&mut standing);
}

/// Whether the client holds the lease.
pub fn holds_lease() -> bool {
    standing().lease
}

/// The device that was dead is not any more: the gate may be shut again.
pub(crate) fn may_stop_again() {
    standing().for_good = false;
    gate::may_shut_again();
}

/// Whether everything submitted is finished and nothing can be submitted (S2). Stays true for the engine's work on
/// extents that are missing, because with those the gate does not open.
pub fn is_drained() -> bool {
    let standing = standing();
    !standing.open && standing.drained.is_some()
}

/// Does `what` if everything submitted is finished and nothing can be submitted before it returns (S2): what makes memory
/// missing here keeps the gate shut afterwards. Only with no lock, or with a session's.
pub fn while_drained<T>(what: impl FnOnce() -> T) -> Option<T> {
    let standing = standing();
    (!standing.open && standing.drained.is_some()).then(what)
}

/// While the guard lives everybody passes the shut gate, as long as nothing is missing.
pub fn ajar() -> Ajar {
    let mut standing = standing();
    standing.ajar = true;
    decide(&mut standing);
    Ajar
}

/// See [`ajar`].
#[derive(Debug)]
pub struct Ajar;

impl Drop for Ajar {
    fn drop(&mut self) {
        let mut standing = standing();
        standing.ajar = false;
        decide(&mut standing);
    }
}

/// Stops the client: shuts the gate and drains. On success it holds no lease any more and stays stopped; on a stall
/// everything is as before, and what was waited for is returned.
pub fn stop(stall: Duration) -> Result<(), String> {
    let held = hold_back(stall)?;
    let mut standing = standing();
    standing.lease = false;
    drop(standing);
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
    let already = {
        let mut standing = standing();
        standing.held_back = true;
        decide(&mut standing);
        !standing.open && standing.drained.is_some()
    };
    let held = HeldBack { _stopping: stopping };
    if already || dead::is_dead() {
        return Ok(held);
    }
    match drain::drain(stall) {
        Ok(drained) => {
            standing().drained = Some(drained);
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
        let mut standing = standing();
        standing.held_back = false;
        decide(&mut standing);
    }
}
