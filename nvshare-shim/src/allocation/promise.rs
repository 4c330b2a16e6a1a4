//! What the application is promised. Near the limit no allocation is accepted by the records alone: the agent is asked, which
//! looks at the device first, because what the driver took a moment ago (a context, a module) counts there and nowhere else.
//! Asked at most once a second while nothing is known to have grown; refusals are asked about again, for others may have ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::DeviceId;
use nvshare_common::protocol::ToAgent;

use super::pools;
use crate::cuda::sys;
use crate::device::{self, Answered, Device, sizes};
use crate::line;

/// Nearer to the limit than this, or than an eighth of it, the agent is asked.
const NEAR: u64 = 1 << 30;
/// How long a yes counts.
const AGREED: Duration = Duration::from_secs(1);
/// How long the agent may take to say whether more can be needed: a reading of the device.
const MAY_HAVE_LIMIT: Duration = Duration::from_secs(2);
/// How long a no counts.
const REFUSED: Duration = Duration::from_millis(50);

/// The driver took memory for itself since the agent was last asked.
static GREW: AtomicBool = AtomicBool::new(true);

/// The driver may have taken memory for itself: a module, a context.
pub fn driver_grew() {
    GREW.store(true, Ordering::Relaxed);
}

/// Whether so much is far from the limit.
fn is_far(after: u64, limit: u64) -> bool {
    after <= limit.saturating_sub(NEAR.min(limit / 8))
}

/// What is known without asking; `None`: ask.
fn known(after: u64, limit: u64, last: Option<Answered>, grew: bool, now: Instant) -> Option<bool> {
    if is_far(after, limit) {
        return Some(true);
    }
    let last = last?;
    let age = now.saturating_duration_since(last.at);
    match last.may {
        false if after >= last.total && age < REFUSED => Some(false),
        true if after <= limit && !grew && age < AGREED => Some(true),
        _ => None,
    }
}

/// Whether the process may come to need `bytes` more on the device. A thread that asks here waits at most a moment, and holds
/// no lock.
pub fn may_grow(device: &Device, bytes: u64) -> bool {
    let look = || {
        let state = device.state();
        let accounts = state.space.accounts();
        Some((accounts.needed().saturating_add(bytes), accounts.limit?, state.answered))
    };
    let Some((after, limit, _)) = look() else { return true };
    if is_far(after, limit) {
        return true;
    }
    // What pools took unseen counts here.
    pools::refresh();
    let Some((after, limit, last)) = look() else { return true };
    let grew = GREW.swap(false, Ordering::Relaxed);
    if let Some(known) = known(after, limit, last, grew, Instant::now()) {
        if grew {
            driver_grew();
        }
        return known;
    }
    if let Some(may) = may_have(device.id, after) {
        device.state().answered = Some(Answered { at: Instant::now(), total: after, may });
        return may;
    }
    driver_grew();
    after <= limit
}

/// Whether this client may come to need `total` on the device, by a look that the agent takes now; the limit that follows is
/// known here before the answer is. `None`: nobody can say.
fn may_have(device: DeviceId, total: u64) -> Option<bool> {
    if !line::is_open() || !sizes::is_limited(device) {
        return None;
    }
    line::answered(|ticket| ToAgent::MayHave { ticket, device, total: Bytes(total) }, MAY_HAVE_LIMIT).ok()
}

/// A context was made on the device of that number: what it costs is known to the agent before anything is promised.
pub(crate) fn context_made(ordinal: sys::CUdevice) {
    if line::is_open()
        && let Ok(id) = device::id_of(ordinal)
    {
        let _ = may_have(id, 0);
        sizes::is_settled(id);
    }
}

/// Whether the client may not have `bytes` more, taken through the driver on the device with that number: its limit holds for
/// what passes by the engine, too.
pub fn exceeds_limit(ordinal: sys::CUdevice, bytes: u64) -> bool {
    // What is larger than the device the driver refuses itself, by the right error.
    device::of_ordinal(ordinal).is_some_and(|device| bytes <= device.total && !may_grow(device, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_asked_near_the_limit_and_not_twice_in_a_moment() {
        let now = Instant::now();
        let said = |may, total, age| Some(Answered { at: now.checked_sub(age).unwrap(), total, may });
        let soon = Duration::from_millis(10);
        assert_eq!(known(700, 1000, None, true, now), Some(true), "far away");
        assert_eq!(known(900, 1000, None, false, now), None);
        assert_eq!(known(900, 1000, said(true, 880, soon), false, now), Some(true));
        assert_eq!(known(900, 1000, said(true, 880, soon), true, now), None, "a module was loaded");
        assert_eq!(known(1001, 1000, said(true, 880, soon), false, now), None, "somebody may have ended");
        assert_eq!(known(900, 1000, said(true, 880, 2 * AGREED), false, now), None);
        assert_eq!(known(900, 1000, said(false, 900, soon), false, now), Some(false));
        assert_eq!(known(899, 1000, said(false, 900, soon), false, now), None, "less than was refused");
        assert_eq!(known(900, 1000, said(false, 900, 2 * REFUSED), false, now), None);
    }
}
