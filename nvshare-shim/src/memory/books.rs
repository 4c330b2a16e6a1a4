//! The accounts of what passes by the engine: what they stand at is in the counter page at once, and is said to the agent in
//! messages when it has changed by 1/64 of the device, or else every 100 ms: however often a program takes and gives back,
//! the agent hears of it at a pace of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nvshare_common::protocol::ToAgent;
use nvshare_common::units::Bytes;

use super::held::{self, Held};
use super::physical::{Physical, Piece};
use super::{pools, want};
use crate::device::{self, Device};
use crate::line;

/// A change of less is said with the next one, or when so much time has passed.
const PART: u64 = 64;
const PAUSE: Duration = Duration::from_millis(100);

/// Managed memory moves by itself and may exceed every device: it is nobody's obligation, and counts in an account of its own.
pub const MANAGED: &str = "managed";
/// Physical handles that the application made.
pub const VMM: &str = "vmm";

/// What the agent was told of one device, and when.
#[derive(Debug, Default)]
pub struct Said {
    bytes: BTreeMap<&'static str, u64>,
    at: Option<Instant>,
}

impl Said {
    fn is_due(&self, now_held: &BTreeMap<&'static str, u64>, device_total: u64, now: Instant) -> bool {
        let differs = now_held
            .iter()
            .map(|(reason, bytes)| bytes.abs_diff(self.bytes.get(reason).copied().unwrap_or_default()));
        let differs: u64 = differs.sum();
        differs >= (device_total / PART).max(1)
            || (differs > 0 && self.at.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE))
    }
}

/// Sets the account of one reason on a device.
pub(super) fn account(device: &Device, reason: &'static str, change: impl FnOnce(u64) -> u64) {
    let (due, less) = {
        let mut state = device.state();
        let before = state.unswappable.get(reason).copied().unwrap_or_default();
        let after = change(before);
        if after == before {
            return;
        }
        state.unswappable.insert(reason, after);
        let all = state.unswappable.values().sum();
        state.space.set_terms(|terms| terms.unswappable = all);
        device.publish(&state);
        (state.said.is_due(&state.unswappable, device.total, Instant::now()), after < before)
    };
    if less {
        device.wake();
    }
    if due {
        say(device);
    } else {
        pools::say_soon();
    }
}

/// Says what has changed since it was last said, on all devices.
pub(super) fn report() {
    for device in device::all() {
        say(device);
    }
}

/// A new agent knows of nothing.
pub(crate) fn forget_said() {
    for device in device::all() {
        device.state().said = Said::default();
    }
    if device::all().iter().any(|device| !device.state().unswappable.is_empty()) {
        pools::say_soon();
    }
}

fn say(device: &Device) {
    let reasons: Vec<&'static str> = device.state().unswappable.keys().copied().collect();
    for reason in reasons {
        // The figure is looked up as it is sent, so that the last one said is the last one there was.
        line::tell(|| {
            let mut state = device.state();
            let bytes = state.unswappable.get(reason).copied().unwrap_or_default();
            state.said.at = Some(Instant::now());
            let news = state.said.bytes.insert(reason, bytes).unwrap_or_default() != bytes;
            news.then(|| ToAgent::Unswappable {
                device: device.id,
                bytes: Bytes(bytes),
                reason: reason.to_owned(),
            })
        });
    }
    want(device);
}

/// Memory that the driver is about to be asked for is booked before: whoever reads the device meanwhile must not take it for
/// somebody else's. Unless it is kept, it is taken out of the books again. `reason` becomes a metric label.
#[derive(Debug)]
pub struct Expected {
    reason: &'static str,
    held: Held,
}

/// See [`Expected`].
pub fn expect(reason: &'static str, held: Held) -> Expected {
    change(reason, held, |bytes| bytes + held.bytes);
    Expected { reason, held }
}

impl Expected {
    /// The driver has made it, under that handle.
    pub fn made(self, handle: u64) {
        let before = held::table().add(self.reason, handle, self.held);
        if let Some(before) = before {
            change(self.reason, before, |bytes| bytes.saturating_sub(before.bytes));
        }
        std::mem::forget(self);
    }

    /// The driver has made physical memory, under that handle.
    pub fn made_physical(self, handle: u64) {
        physical(|physical| {
            physical.made(handle, Piece { device: self.held.device, bytes: self.held.bytes });
            Vec::new()
        });
        std::mem::forget(self);
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        change(self.reason, self.held, |bytes| bytes.saturating_sub(self.held.bytes));
    }
}

fn change(reason: &'static str, held: Held, change: impl FnOnce(u64) -> u64) {
    let Some(device) = device::of_ordinal(held.device) else { return };
    if reason == MANAGED {
        let mut state = device.state();
        state.managed = change(state.managed);
        device.publish(&state);
    } else {
        account(device, reason, change);
    }
}

/// It gave back what it held under that handle, if it held anything.
pub fn gave_back(reason: &'static str, handle: u64) {
    let held = held::table().remove(reason, handle);
    if let Some(held) = held {
        change(reason, held, |bytes| bytes.saturating_sub(held.bytes));
    }
}

/// A green context is gone; what was made in it belongs to another one from now on.
pub(super) fn inherit(context: usize, heir: usize) {
    held::table().inherit(context, heir);
}

/// A context is gone, and what was made in it.
pub(super) fn context_ended(context: usize) {
    let gone = held::table().end_of(context);
    for (reason, held) in gone {
        change(reason, held, |bytes| bytes.saturating_sub(held.bytes));
    }
    // Pools may have lost memory with it.
    pools::changed();
}

/// Does `what` to the physical memory that the application made; what that ends is given back.
pub fn physical(what: impl FnOnce(&mut Physical) -> Vec<Piece>) {
    use std::sync::{Mutex, PoisonError};
    static PHYSICAL: Mutex<Physical> = Mutex::new(Physical::new());
    let ended = what(&mut PHYSICAL.lock().unwrap_or_else(PoisonError::into_inner));
    for piece in ended {
        if let Some(device) = device::of_ordinal(piece.device) {
            account(device, VMM, |bytes| bytes.saturating_sub(piece.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_are_said_together_and_large_ones_at_once() {
        let now = Instant::now();
        let held = |bytes| BTreeMap::from([("array", bytes)]);
        let said = Said { bytes: held(100), at: Some(now) };
        assert!(!said.is_due(&held(100), 6400, now + 2 * PAUSE), "nothing changed");
        assert!(!said.is_due(&held(150), 6400, now));
        assert!(said.is_due(&held(150), 6400, now + PAUSE));
        assert!(said.is_due(&held(200), 6400, now));
        assert!(said.is_due(&held(0), 6400, now), "also when it is less");
        assert!(Said::default().is_due(&held(1), 6400, now), "the first word");
    }
}
