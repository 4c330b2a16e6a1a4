//! The accounts of what passes by the engine: what they stand at is in the counter page at once, and is said to the agent in
//! messages now and then ([`said`](crate::device::said)): however often a program takes and gives back, the agent hears of it at a
//! pace of its own.

use std::time::Instant;

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::{Purpose, ToAgent};

use super::pools;
use crate::cuda::sys::CUdeviceptr;
use crate::device::said::Said;
use crate::device::{self, Device, State};
use crate::line;
use crate::memory::held::{self, Held};
use crate::memory::map::ALLOCATIONS;
use crate::memory::physical::{Physical, Piece};
use crate::memory::virtuals;

/// Managed memory moves by itself and may exceed every device: it is nobody's obligation, and counts in an account of its own.
pub const MANAGED: &str = "managed";
/// What `cuMemAlloc` gave where the application wants the driver's own memory (`NVSHARE_IPC=plain`).
pub const PLAIN: &str = "plain";
/// Physical handles that the application made.
pub const VMM: &str = "vmm";

/// Sets the account of one reason on a device.
pub(super) fn account(device: &Device, reason: &'static str, change: impl FnOnce(u64) -> u64) {
    account_with(device, reason, |_, before| change(before));
}

/// The same, with what else changes in the same step.
pub(super) fn account_with(
    device: &Device,
    reason: &'static str,
    change: impl FnOnce(&mut State, u64) -> u64,
) {
    let (due, less) = {
        let mut state = device.state();
        let before = state.unswappable.get(reason).copied().unwrap_or_default();
        let after = change(&mut state, before);
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
        let kept = {
            let mut state = device.state();
            state.said = Said::default();
            state.space.kept()
        };
        if kept > 0 {
            report_kept(device);
        }
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

/// Tells the agent when more is needed than is granted.
pub(super) fn want(device: &Device) {
    let total = {
        let mut state = device.state();
        let accounts = state.space.accounts();
        let needed = accounts.needed();
        if accounts.unlimited || needed <= accounts.granted || needed == state.wanted {
            return;
        }
        state.wanted = needed;
        needed
    };
    line::send(&ToAgent::Want { device: device.id, total: Bytes(total), purpose: Purpose::Allocation });
}

/// Whoever holds the physical memory of this range keeps it: it stays on the device. Whether it is ours.
pub fn stays(start: CUdeviceptr, bytes: u64) -> bool {
    let Some((_, allocation)) = ALLOCATIONS.find(start) else {
        return virtuals::are_there() && super::virtuals::mapped_stay(start, bytes);
    };
    let Some(device) = device::by_index(allocation.device) else { return false };
    let kept = device.state().space.keep(start, bytes);
    if kept {
        report_kept(device);
    }
    kept
}

/// Tells the agent how much stays on the device because others hold it.
pub(super) fn report_kept(device: &Device) {
    let bytes = Bytes(device.state().space.kept());
    line::send(&ToAgent::Unswappable { device: device.id, bytes, reason: "exported".to_owned() });
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
