//! Freeing. A free waits for what the bare call waits for, and for nothing else (S10): the work of the context that owns the
//! memory. Other contexts and cards are not waited for, by the driver neither: a program that lets them use the memory has
//! seen to it before. What may not be waited for here (a free in the order of a stream), or cannot be, goes to quarantine
//! and is taken apart later; until then its address is nobody's (S5).

use super::back::bury;
use super::{stream_ordered, unswappable};
use crate::cuda::{CUresult, sys};
use crate::device::quarantine::{Quarantined, Until};
use crate::device::{self, Device, State};
use crate::memory::extent::Presence;
use crate::memory::map::{ALLOCATIONS, Allocation, Of};
use crate::streams::{self, Relaxed};
use crate::turn::dead;

/// The driver's answer about work, which may be the first that tells of a device's end.
fn note(error: CUresult) {
    if error.is_final() {
        dead::on_device_error(error);
    }
}

/// Frees what starts at `pointer`; `None`: it is not ours.
pub fn free(pointer: u64) -> Option<CUresult> {
    if let Err(error) = streams::check_current() {
        return ALLOCATIONS.find(pointer).map(|_| error);
    }
    let allocation = ALLOCATIONS.remove(pointer)?;
    let device = device::by_index(allocation.device)?;
    if let Of::Pool(pool) = allocation.of {
        // Who frees it so has waited for what uses it, says the driver, which does not wait either (seen on an H200).
        stream_ordered::give(pool, pointer, allocation.bytes);
        return Some(CUresult::CUDA_SUCCESS);
    }
    let _relaxed = Relaxed::new();
    sweep(device);
    if reachable(&device.state(), pointer, allocation.taken)
        && let Err((code, unfinished)) = streams::finish(owner(device, &allocation))
    {
        note(code);
        quarantine(device, pointer, allocation, Until::Finished(unfinished));
        return Some(code);
    }
    dispose(device, pointer, allocation);
    Some(CUresult::CUDA_SUCCESS)
}

/// The context that the memory belongs to; where that was a green one that is gone, another of its device.
fn owner(device: &Device, allocation: &Allocation) -> usize {
    match allocation.context {
        0 => device.state().home.unwrap_or(0),
        context => context,
    }
}

fn quarantine(device: &Device, start: u64, allocation: Allocation, until: Until) {
    device.state().quarantine.push(Quarantined { start, allocation, until });
    device.wake();
}

/// Frees what starts at `pointer` once the work before in `stream` is finished, without waiting for it; `None`: it is not
/// ours, or the stream is being captured, and the driver decides.
pub fn free_in_order(pointer: u64, stream: sys::CUstream) -> Option<CUresult> {
    ALLOCATIONS.find(pointer).filter(|(start, _)| *start == pointer)?;
    // Work in other streams may be ordered before this call by events; what is marked here is after all of it.
    let mark = match streams::mark(stream) {
        Ok(mark) => mark?,
        // The legacy stream, beside a blocking stream that is captured: so the bare call is refused, and as little freed.
        Err(error @ CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) => return Some(error),
        // Later than asked for, but not before its time.
        Err(_) => return free(pointer),
    };
    let allocation = ALLOCATIONS.remove(pointer)?;
    let device = device::by_index(allocation.device)?;
    quarantine(device, pointer, allocation, Until::Marked(mark));
    Some(CUresult::CUDA_SUCCESS)
}

/// Frees everything that belonged to a context that is gone: its own work ended with it, as the bare memory would have,
/// whoever else still uses it.
pub fn free_context(context: usize) {
    dispose_all(ALLOCATIONS.remove_context(context));
    // Nor is a slab kept for later: who destroys contexts does not expect to find memory in use.
    for device in device::all() {
        let spare: Vec<u64> = device.state().slabs.unused().collect();
        for base in spare {
            let mut state = device.state();
            if state.slabs.remove(base) {
                let remains = state.space.remove_span(base);
                drop(state);
                bury(device, remains);
            }
        }
    }
}

/// Frees what is on `device` and belongs to no context any more.
pub fn free_orphans(device: &Device) {
    dispose_all(ALLOCATIONS.remove_orphans(device.index));
}

fn dispose_all(gone: Vec<(u64, Allocation)>) {
    let _relaxed = Relaxed::new();
    for (start, allocation) in gone {
        if let Some(device) = device::by_index(allocation.device) {
            dispose(device, start, allocation);
        }
    }
}

/// Whether nothing uses it any more. After an error of the device nothing is known to be complete.
fn is_over(quarantined: &Quarantined) -> bool {
    quarantined.until.is_over().inspect_err(|error| note(*error)) == Ok(true)
}

/// Takes apart what is in quarantine and no longer used.
pub fn sweep(device: &Device) {
    let done: Vec<Quarantined> = {
        let mut state = device.state();
        if state.quarantine.is_empty() {
            return;
        }
        let all = std::mem::take(&mut state.quarantine);
        drop(state);
        let (done, mut kept): (Vec<_>, Vec<_>) = all.into_iter().partition(is_over);
        device.state().quarantine.append(&mut kept);
        done
    };
    for quarantined in done {
        dispose(device, quarantined.start, quarantined.allocation);
    }
}

/// Whether work can be under way on a part of the range: only what is on the device can be used.
fn reachable(state: &State, start: u64, bytes: u64) -> bool {
    let mut at = start;
    while at < start + bytes {
        let Some(id) = state.space.at(at) else { return true };
        let extent = state.space.extent(id);
        if !matches!(extent.presence(), Presence::Absent | Presence::Swapped) {
            return true;
        }
        at = extent.start + extent.bytes;
    }
    false
}

fn dispose(device: &Device, start: u64, allocation: Allocation) {
    if let Of::Pool(pool) = allocation.of {
        stream_ordered::give(pool, start, allocation.bytes);
        return;
    }
    let mut state = device.state();
    let span = if allocation.of == Of::Slab {
        let unused = state.slabs.give_back(start, allocation.taken);
        // One slab is kept for the next small allocation.
        match unused {
            Some(base) if state.slabs.unused().count() > 1 => {
                state.slabs.remove(base);
                base
            }
            _ => return,
        }
    } else {
        start
    };
    let kept = state.space.is_kept(span);
    let remains = state.space.remove_span(span);
    drop(state);
    bury(device, remains);
    if kept {
        unswappable::report_kept(device);
    }
}
