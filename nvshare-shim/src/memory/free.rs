//! Freeing. As the bare call does, a free waits until the work that can reach the memory is finished; where the calling
//! thread must not wait (a capture is going on) the memory goes to quarantine and is taken apart later. Until then its
//! address is nobody's (S5).

use std::time::Duration;

use super::back::bury;
use super::device::{self, Device, State};
use super::map::Allocation;
use super::{ALLOCATIONS, extent::Presence};
use crate::cuda::{CUresult, sys};
use crate::streams::{self, Mark, Relaxed};
use crate::swap::standing;

/// Freed by the application, perhaps still used by work that was submitted before.
#[derive(Debug)]
pub struct Quarantined {
    start: u64,
    allocation: Allocation,
    mark: Mark,
}

/// Frees what starts at `pointer`; `None`: it is not ours.
pub fn free(pointer: u64) -> Option<CUresult> {
    let allocation = ALLOCATIONS.remove(pointer)?;
    let device = device::by_index(allocation.device)?;
    let _relaxed = Relaxed::new();
    sweep(device);
    if reachable(&device.state(), pointer, allocation.taken) {
        let mark = streams::mark();
        if !mark.done() {
            if streams::capturing() {
                device.state().quarantine.push(Quarantined { start: pointer, allocation, mark });
                device.wake();
                return Some(CUresult::CUDA_SUCCESS);
            }
            if let Err((mark, code)) = wait(mark) {
                // The bare call would answer so too; the memory waits for the work that may still use it.
                device.state().quarantine.push(Quarantined { start: pointer, allocation, mark });
                return Some(code);
            }
        }
    }
    dispose(device, pointer, allocation);
    Some(CUresult::CUDA_SUCCESS)
}

/// Frees what starts at `pointer` once the work before in `stream` is finished, without waiting for it; `None`: it is not
/// ours, or the stream is being captured, and the driver decides.
pub fn free_in_order(pointer: u64, stream: sys::CUstream) -> Option<CUresult> {
    ALLOCATIONS.find(pointer).filter(|(start, _)| *start == pointer)?;
    // Work in other streams may be ordered before this call by events; what is marked here is after all of it.
    let mark = streams::mark_one(stream)?;
    let allocation = ALLOCATIONS.remove(pointer)?;
    let device = device::by_index(allocation.device)?;
    device.state().quarantine.push(Quarantined { start: pointer, allocation, mark });
    device.wake();
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

/// Takes apart what is in quarantine and no longer used.
pub fn sweep(device: &Device) {
    let done: Vec<Quarantined> = {
        let mut state = device.state();
        if state.quarantine.is_empty() {
            return;
        }
        let all = std::mem::take(&mut state.quarantine);
        drop(state);
        let (done, mut kept): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|quarantined| quarantined.mark.done());
        if !streams::capturing() {
            // What could not be marked because of a capture can be now.
            for quarantined in kept.iter_mut().filter(|quarantined| quarantined.mark.is_partial()) {
                quarantined.mark = streams::mark();
            }
        }
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

/// How often in a row an event may answer with an error before it is believed.
const ERRORS: u32 = 1000;

/// Waits as long as it takes, as the bare call would; the gate is not held and no lock is. Ends with the mark and the error
/// that its events answer with, again and again.
fn wait(mut mark: Mark) -> Result<(), (Mark, CUresult)> {
    let mut pause = Duration::from_micros(5);
    let mut errors = 0;
    while !mark.done() && !standing::is_dead() {
        match mark.unfinished() {
            Err(code) if errors >= ERRORS => return Err((mark, code)),
            Err(_) => errors += 1,
            Ok(_) => errors = 0,
        }
        if mark.is_partial() && !streams::capturing() {
            mark = streams::mark();
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
    Ok(())
}

fn dispose(device: &Device, start: u64, allocation: Allocation) {
    let mut state = device.state();
    let span = if allocation.piece {
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
        super::report_kept(device);
    }
}
