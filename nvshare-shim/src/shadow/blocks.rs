//! Blocks of shadows: taken for extents that leave, and given up.

use super::shadows;
use crate::config::BLOCK_BYTES;
use crate::device::{self, Device};
use crate::memory::extent::{Presence, Shadow, Slot};

/// Takes `count` blocks for `device`, in few runs; none if there are not that many.
pub fn take(device: &Device, count: usize) -> Option<Vec<Slot>> {
    let mut shadows = shadows();
    if shadows.free.free() < count as u64 {
        return None;
    }
    let mut slots = Vec::with_capacity(count);
    while slots.len() < count {
        let Some((start, length)) = shadows.free.take_up_to((count - slots.len()) as u64) else {
            for slot in slots {
                let Slot(slot) = slot;
                shadows.free.give_back(u64::from(slot), 1);
            }
            return None;
        };
        slots.extend((start..start + length).map(|slot| Slot(slot as u32)));
    }
    drop(shadows);
    count_shadow(device, (count as u64 * BLOCK_BYTES).cast_signed());
    Some(slots)
}

/// Gives blocks of `device` back. Nothing copies to or from them any more.
pub fn give_back(device: &Device, slots: impl IntoIterator<Item = Slot>) {
    let mut shadows = shadows();
    let mut count = 0_u64;
    for Slot(slot) in slots {
        shadows.free.give_back(u64::from(slot), 1);
        count += 1;
    }
    drop(shadows);
    count_shadow(device, -(count * BLOCK_BYTES).cast_signed());
}

/// How many blocks are free.
pub fn free_blocks() -> u64 {
    shadows().free.free()
}

/// Where a block is in host memory.
pub fn address(Slot(slot): Slot) -> *mut std::ffi::c_void {
    let slot = u64::from(slot);
    let shadows = shadows();
    let (first, (blocks, host)) =
        shadows.places.range(..=slot).next_back().expect("a block's arena stays while the block is taken");
    debug_assert!(slot < first + blocks, "S4: a block of an arena that is gone");
    std::ptr::with_exposed_provenance_mut(host + ((slot - first) * BLOCK_BYTES) as usize)
}

/// Resident extents give up about `count` blocks of their shadows.
pub fn forget(count: usize) {
    let wanted = free_blocks() + count as u64;
    for device in device::all() {
        if free_blocks() >= wanted {
            break;
        }
        forget_where(device, |_| true, count);
    }
}

/// Resident extents give up their shadows in these blocks.
pub(super) fn forget_resident(first: u64, blocks: u64) {
    for device in device::all() {
        forget_where(device, |Slot(slot)| (first..first + blocks).contains(&u64::from(slot)), usize::MAX);
    }
}

/// Resident extents of `device` give up at most `most` blocks of shadow that are `wanted`.
fn forget_where(device: &Device, wanted: impl Fn(Slot) -> bool, most: usize) {
    let mut slots = Vec::new();
    let mut state = device.state();
    let ids: Vec<_> = state
        .space
        .extents()
        .filter(|(_, extent)| extent.presence() == Presence::Resident)
        .map(|(id, _)| id)
        .collect();
    for id in ids {
        for block in &mut state.space.extent_mut(id).blocks {
            if let Shadow::Slot(slot) = block.shadow
                && slots.len() < most
                && wanted(slot)
            {
                (block.shadow, block.print) = (Shadow::None, None);
                slots.push(slot);
            }
        }
    }
    drop(state);
    give_back(device, slots);
}

fn count_shadow(device: &Device, delta: i64) {
    if let Some(counters) = device.counters() {
        use std::sync::atomic::Ordering::AcqRel;
        if delta >= 0 {
            counters.shadow.fetch_add(delta.unsigned_abs(), AcqRel);
        } else {
            counters.shadow.fetch_sub(delta.unsigned_abs(), AcqRel);
        }
    }
}
