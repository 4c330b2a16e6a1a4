//! Making an allocation: an address that never changes, and as much memory behind it as the grant covers. It never waits for
//! memory, and for a word of the agent only near the limit (`promise`). What the grant does not cover stays absent, the gate
//! is shut, and the swap thread backs it when grants come.

#![expect(unsafe_code, reason = "the driver is called")]

use super::back::{Backed, back, bury, unback};
use super::unswappable::want;
use super::{free, promise, room, stream_ordered};
use crate::config::BLOCK_BYTES;
use crate::cuda::{CUresult, sys};
use crate::device::{self, Device, home, vmm};
use crate::driver::driver;
use crate::memory::extent::ExtentId;
use crate::memory::map::{self, ALLOCATIONS, Allocation, Of};
use crate::memory::space::Space;
use crate::streams::{self, Relaxed};
use crate::turn::{self, dead, run_state};
use crate::{gate, line};

/// Allocations below this come from slabs.
pub const SMALL: u64 = 1 << 20;
/// Pieces of slabs are multiples of this, which is also their alignment; the bare driver promises 256.
const PIECE_UNIT: u64 = 512;
/// The largest slab.
const LARGEST_SLAB: u64 = 32 << 20;

/// Allocates on the device of the current context. Never waits for memory.
pub fn allocate(bytes: usize) -> Result<sys::CUdeviceptr, CUresult> {
    let bare = || {
        let mut pointer = 0;
        // SAFETY: `pointer` is where the answer goes.
        unsafe { driver().cuMemAlloc_v2(&raw mut pointer, bytes) }.result().map(|()| pointer)
    };
    let Some((device, context)) = device::current()? else { return bare() };
    // Virtual memory belongs to no context, and may be had where no call of a context succeeds any more.
    if dead::has_failed(device) {
        return bare();
    }
    if bytes == 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let bytes = bytes as u64;
    let _relaxed = Relaxed::new();
    free::sweep(device);
    home::adopt(device, context);
    streams::provide(context);
    let (start, taken, of) = if bytes < SMALL {
        let taken = bytes.next_multiple_of(PIECE_UNIT);
        (take_piece(device, taken)?, taken, Of::Slab)
    } else {
        let taken =
            bytes.checked_next_multiple_of(device.granularity).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        (take_span(device, taken, context)?, taken, Of::Span)
    };
    ALLOCATIONS.insert(
        start,
        Allocation { bytes, taken, of, device: device.index, context, number: map::number(), sync: true },
    );
    Ok(start)
}

/// Whether what the engine will give back in a moment, because it was freed, is enough for the rest of `bytes`.
fn comes_free(device: &Device, bytes: u64, extents_done: usize) -> bool {
    let rest = bytes.saturating_sub(extents_done as u64 * device.extent_bytes);
    device.state().space.doomed() >= rest
}

fn take_piece(device: &'static Device, taken: u64) -> Result<u64, CUresult> {
    loop {
        let slab = {
            let mut state = device.state();
            if let Some(start) = state.slabs.take(taken) {
                return Ok(start);
            }
            // Slabs grow with what there is: few large copies instead of many small ones, at most 1/16 unused.
            (state.slabs.total() / 16 / BLOCK_BYTES * BLOCK_BYTES).clamp(BLOCK_BYTES, LARGEST_SLAB)
        };
        let slab = slab.next_multiple_of(device.granularity);
        let start = take_span(device, slab, 0)?;
        device.state().slabs.add(start, slab);
    }
}

fn take_span(device: &'static Device, bytes: u64, context: usize) -> Result<u64, CUresult> {
    match try_span(device, bytes, context) {
        Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) if stream_ordered::spare(device) => {
            try_span(device, bytes, context)
        }
        taken => taken,
    }
}

fn try_span(device: &'static Device, bytes: u64, context: usize) -> Result<u64, CUresult> {
    if !promise::may_grow(device, bytes) {
        return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
    let start = vmm::reserve(bytes, device.granularity)?;
    let add = |space: &mut Space| space.add_span(start, bytes, device.extent_bytes, context);
    fill(device, start, bytes, add, in_place, || {
        // SAFETY: nobody has seen these addresses.
        let _ = unsafe { vmm::unreserve(start, bytes) };
    })?;
    Ok(start)
}

/// Memory is where it belongs as soon as it is made.
#[expect(clippy::unnecessary_wraps, reason = "arrays, for which it must be put there, may fail")]
pub(super) const fn in_place(_handle: u64) -> Result<(), CUresult> {
    Ok(())
}

/// Puts memory behind addresses that nobody has seen, as far as the grant goes: `add` books them, `place` puts new memory where it
/// belongs, and `give_back` gives the addresses back where they are not booked.
pub(super) fn fill(
    device: &'static Device,
    start: u64,
    bytes: u64,
    add: impl FnOnce(&mut Space) -> Vec<ExtentId>,
    place: impl Fn(u64) -> Result<(), CUresult>,
    give_back: impl FnOnce(),
) -> Result<(), CUresult> {
    // Where nothing is granted bit by bit nobody moves the first half out while the second is made: there would be no room
    // for both.
    let _inside = device.state().space.accounts().unlimited.then(gate::pass_at_once);
    let (extents, unlimited) = {
        let mut state = device.state();
        let mut accounts = *state.space.accounts();
        let orphan = line::is_orphan();
        let mut exceeds = orphan && accounts.needed().saturating_add(bytes) > device.total;
        if accounts.unlimited && accounts.missing > 0 && !orphan {
            drop(state);
            exceeds = !room::comes(device, bytes);
            state = device.state();
            accounts = *state.space.accounts();
        }
        let unlimited = accounts.unlimited;
        if exceeds {
            drop(state);
            give_back();
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        (add(&mut state.space), unlimited)
    };
    let back = |device: &Device, id: ExtentId| match back(device, id) {
        Backed::Yes => {
            let handle = device.state().space.extent(id).handle;
            match place(handle) {
                Ok(()) => Backed::Yes,
                Err(code) => {
                    unback(device, id, code);
                    Backed::Refused(code)
                }
            }
        }
        other => other,
    };
    for (done, id) in extents.into_iter().enumerate() {
        let backed = match back(device, id) {
            Backed::Refused(CUresult::CUDA_ERROR_OUT_OF_MEMORY)
                if unlimited && !comes_free(device, bytes, done) =>
            {
                // Or it came just now.
                back(device, id)
            }
            backed => backed,
        };
        match backed {
            Backed::Yes => device.state().space.finish_arrival(id, None),
            Backed::NotMissing => {}
            Backed::Refused(code)
                if code != CUresult::CUDA_ERROR_OUT_OF_MEMORY
                    || (unlimited && !line::is_orphan() && !comes_free(device, bytes, done)) =>
            {
                let remains = device.state().space.remove_span(start);
                bury(device, remains);
                return Err(code);
            }
            // Not granted, or granted and yet the device is full: the swap thread goes on when that changes.
            Backed::NoGrant | Backed::Refused(_) => break,
        }
    }
    let is_missing = {
        let mut state = device.state();
        state.space.span_is_made(start);
        device.publish(&state);
        let is_missing = state.space.accounts().missing > 0;
        // Where all is there nobody needs to know: an allocation costs no message, and wakes nobody.
        state.announce |= is_missing;
        is_missing
    };
    want(device);
    if is_missing {
        turn::want::is_missed();
        device.wake();
    }
    run_state::reconsider();
    Ok(())
}
