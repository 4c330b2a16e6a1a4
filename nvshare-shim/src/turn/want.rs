//! What the application wants of the agent: to run, when a thread meets the shut gate, and memory for that.

use std::sync::atomic::{AtomicBool, Ordering};

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::{Purpose, ToAgent};

use super::run_state;
use crate::device::{self, home};
use crate::line;

/// Threads wait at the gate and the agent should know.
static WAITING: AtomicBool = AtomicBool::new(false);
/// One of them found nothing to ask for as it came: see [`is_missed`].
static UNASKED: AtomicBool = AtomicBool::new(false);

/// Whether a thread has waited at the gate since it was open.
pub(crate) fn is_waiting() -> bool {
    WAITING.load(Ordering::Acquire)
}

/// Called by a thread that is about to wait at the gate.
pub(crate) fn want_to_run() {
    // The agent knows clients by their devices: meet the one this thread uses. And where the engine has lost its context,
    // this one does.
    if let Ok(Some((device, context))) = device::current() {
        home::adopt(device, context);
    }
    WAITING.store(true, Ordering::Release);
    want_work();
}

/// The gate opened.
pub(crate) fn runs() {
    WAITING.store(false, Ordering::Release);
}

/// Memory is missing since just now. Who waits at the gate for the end of a drain, and found nothing to ask for as it came,
/// waits for that memory from now on: there may be no opening between, after which it would ask itself.
pub(crate) fn is_missed() {
    if UNASKED.load(Ordering::SeqCst) && WAITING.load(Ordering::Acquire) {
        want_work();
    }
}

/// Tells the agent what this client needs in order to run, unless it only waits for the end of a drain.
pub(crate) fn want_work() {
    // Before the look: if memory is missed only after it, who misses it asks.
    UNASKED.store(true, Ordering::SeqCst);
    if run_state::holds_lease() && run_state::missing() == 0 {
        // A drain is under way; if it ends with a stop, `stop` asks.
        return;
    }
    UNASKED.store(false, Ordering::SeqCst);
    for device in device::all() {
        let total = {
            let mut state = device.state();
            let needed = state.space.accounts().needed();
            state.wanted = needed;
            needed
        };
        line::send(&ToAgent::Want { device: device.id, total: Bytes(total), purpose: Purpose::Work });
    }
}
