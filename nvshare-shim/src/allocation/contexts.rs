//! What becomes of memory when a context ends, and when another device may reach it.

use super::{back, free, opened, unswappable};
use crate::cuda::sys;
use crate::device::{self, sizes, vmm};
use crate::driver::driver;
use crate::log;
use crate::memory::map::ALLOCATIONS;
use crate::turn::{dead, run_state};

/// A context is gone, and so is everything that was allocated in it; with the primary context of the device `primary` also
/// what was allocated in its green contexts.
pub fn context_ended(context: sys::CUcontext, primary: Option<sys::CUdevice>) {
    if dead::context_ended() {
        back::bury_what_was_left();
        run_state::reconsider();
        for device in device::all() {
            device.wake();
        }
    }
    free::free_context(context.addr());
    if let Some(device) = primary.and_then(device::of_ordinal) {
        free::free_orphans(device);
    }
    opened::context_ended(context.addr());
    unswappable::context_ended(context.addr());
    sizes::own_end();
}

/// A green context is gone. What was allocated in it is the primary context's and stays.
pub fn green_context_ended(context: sys::CUcontext, primary: Option<sys::CUcontext>) {
    let primary = primary.map_or(0, <*mut _>::addr);
    ALLOCATIONS.inherit(context.addr(), primary);
    unswappable::inherit(context.addr(), primary);
}

/// `peer` may now reach all memory of the device with that number.
pub fn on_peer_access(ordinal: sys::CUdevice, peer: sys::CUdevice) {
    let Some(device) = device::of_ordinal(ordinal) else { return };
    let (readers, resident) = {
        let mut state = device.state();
        // First: what comes in from now on is given to the peer, too, by whoever brings it in.
        if !state.peers.contains(&peer) {
            state.peers.push(peer);
        }
        // What the application maps itself it gives to whom it likes.
        let mapped = state
            .space
            .extents()
            .filter(|(id, extent)| extent.handle != 0 && state.space.behind(*id).is_none());
        let resident: Vec<_> =
            mapped.map(|(id, extent)| (id, extent.handle, extent.start, extent.bytes)).collect();
        (device.readers(&state), resident)
    };
    for (id, handle, start, bytes) in resident {
        if let Err(code) = vmm::set_access(start, bytes, &readers) {
            // Nothing keeps an extent from leaving, or from being freed, between the look and the call.
            let is_there = device.state().space.get(id).is_some_and(|extent| extent.handle == handle);
            if is_there {
                log::warning!("cannot let a peer reach {start:#x}: {}", driver().error_name(code));
            }
        }
    }
}
