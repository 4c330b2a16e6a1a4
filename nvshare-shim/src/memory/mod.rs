//! Allocations: addresses that never change, and the extents behind them.
//!
//! - [`map`]: every allocation by address; [`space`]: spans, extents and accounts of one device, pure; [`ranges`]: free
//!   pieces of slabs (and blocks of arenas), pure; [`extent`]: one extent.
//! - [`books`]: what passes by the engine; [`held`], [`physical`], [`pools`]: how long which of it lives. [`promise`]: what may be
//!   promised; [`room`]: what must stay free where there is no agent. [`owner`]: whose an address is.
//! - [`mod@back`]: putting memory behind an extent; [`mod@free`].
//!
//! An allocation never waits for memory, and for a word of the agent only near the limit ([`promise`]). What the grant does not cover stays absent, the gate is shut, and the swap
//! thread backs it when grants come. No lock is held during a driver call.

pub mod back;
pub mod books;
pub mod extent;
pub mod free;
pub mod held;
pub mod map;
pub mod owner;
pub mod physical;
pub mod pools;
pub mod promise;
pub mod ranges;
pub mod room;
pub mod space;

use nvshare_common::protocol::{Purpose, ToAgent};
use nvshare_common::units::Bytes;

use self::back::{Backed, back, bury};
use self::books::{account, report};
use self::map::{ALLOCATIONS, Allocation};
use crate::config::BLOCK_BYTES;
use crate::cuda::{CUresult, sys};
use crate::device::{self, Device, home, sizes, vmm};
use crate::driver::driver;
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
    let (start, taken, piece) = if bytes < SMALL {
        let taken = bytes.next_multiple_of(PIECE_UNIT);
        (take_piece(device, taken)?, taken, true)
    } else {
        let taken =
            bytes.checked_next_multiple_of(device.granularity).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        (take_span(device, taken, context)?, taken, false)
    };
    ALLOCATIONS.insert(
        start,
        Allocation { bytes, taken, piece, device: device.index, context, number: map::number(), sync: true },
    );
    Ok(start)
}

/// Frees what starts at `pointer`; `None`: it is not ours.
pub fn free(pointer: sys::CUdeviceptr) -> Option<CUresult> {
    free::free(pointer)
}

/// Frees what starts at `pointer` once the work before in `stream` is finished; `None`: it is not ours to free.
pub fn free_in_order(pointer: sys::CUdeviceptr, stream: sys::CUstream) -> Option<CUresult> {
    free::free_in_order(pointer, stream)
}

/// The start and length of the allocation that `pointer` lies in.
pub fn find(pointer: sys::CUdeviceptr) -> Option<(sys::CUdeviceptr, usize)> {
    let (start, allocation) = ALLOCATIONS.find(pointer)?;
    Some((start, allocation.bytes as usize))
}

/// What is known of an allocation.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its first byte.
    pub start: sys::CUdeviceptr,
    /// What the application asked for.
    pub bytes: u64,
    /// Its context.
    pub context: sys::CUcontext,
    /// Its device, as the driver numbers it.
    pub device: sys::CUdevice,
    /// Whether network cards may reach it.
    pub rdma: bool,
    /// A number that no other allocation has, or had.
    pub number: u64,
    /// What the application believes of `SYNC_MEMOPS`.
    pub sync: bool,
}

/// Sets what the application believes of `SYNC_MEMOPS` of the allocation that starts there.
pub fn set_sync(start: sys::CUdeviceptr, sync: bool) {
    ALLOCATIONS.set_sync(start, sync);
}

/// Whether an allocation of ours starts at `pointer`.
pub fn is_allocation(pointer: sys::CUdeviceptr) -> bool {
    ALLOCATIONS.find(pointer).is_some_and(|(start, _)| start == pointer)
}

/// What is known of the allocation that `pointer` lies in.
pub fn describe(pointer: sys::CUdeviceptr) -> Option<Described> {
    let (start, allocation) = ALLOCATIONS.find(pointer)?;
    let device = device::by_index(allocation.device)?;
    Some(Described {
        start,
        bytes: allocation.bytes,
        context: std::ptr::with_exposed_provenance_mut(allocation.context),
        device: device.kind.ordinal,
        rdma: device.kind.rdma,
        number: allocation.number,
        sync: allocation.sync,
    })
}

/// Free and total memory as this client may see it, where the agent set a limit.
pub fn info() -> Option<(usize, usize)> {
    let (device, _) = device::current().ok()??;
    pools::refresh();
    let needed = device.state().space.accounts().needed();
    let (total, free) = sizes::figures(device.id, device.total, needed)?;
    Some((free as usize, total as usize))
}

/// Whether the client may not have `bytes` more, taken through the driver on the device with that number: its limit holds for
/// what passes by the engine, too.
pub fn exceeds_limit(ordinal: sys::CUdevice, bytes: u64) -> bool {
    // What is larger than the device the driver refuses itself, by the right error.
    device::of_ordinal(ordinal)
        .is_some_and(|device| bytes <= device.total && !promise::may_grow(device, bytes))
}

/// Whoever holds the physical memory of this range keeps it: it stays on the device. Whether it is ours.
pub fn stays(start: sys::CUdeviceptr, bytes: u64) -> bool {
    let Some((_, allocation)) = ALLOCATIONS.find(start) else { return false };
    let Some(device) = device::by_index(allocation.device) else { return false };
    let kept = device.state().space.keep(start, bytes);
    if kept {
        report_kept(device);
    }
    kept
}

/// Tells the agent how much stays on the device because others hold it.
fn report_kept(device: &Device) {
    let bytes = Bytes(device.state().space.kept());
    line::send(&ToAgent::Unswappable { device: device.id, bytes, reason: "exported".to_owned() });
}

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
    books::context_ended(context.addr());
    sizes::own_end();
}

/// A green context is gone. What was allocated in it is the primary context's and stays.
pub fn green_context_ended(context: sys::CUcontext, primary: Option<sys::CUcontext>) {
    let primary = primary.map_or(0, <*mut _>::addr);
    ALLOCATIONS.inherit(context.addr(), primary);
    books::inherit(context.addr(), primary);
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
        let mapped = state.space.extents().filter(|(_, extent)| extent.handle != 0);
        let resident: Vec<_> =
            mapped.map(|(id, extent)| (id, extent.handle, extent.start, extent.bytes)).collect();
        (device.readers(&state), resident)
    };
    for (id, handle, start, bytes) in resident {
        if let Err(code) = vmm::set_access(start, bytes, &readers) {
            // Nothing keeps an extent from leaving, or from being freed, between the look and the call.
            let is_there = device.state().space.get(id).is_some_and(|extent| extent.handle == handle);
            if is_there {
                crate::log::warning!("cannot let a peer reach {start:#x}: {}", driver().error_name(code));
            }
        }
    }
}

/// Tells the agent when more is needed than is granted.
fn want(device: &Device) {
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
    if !promise::may_grow(device, bytes) {
        return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
    let start = vmm::reserve(bytes, device.granularity)?;
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
            // SAFETY: nobody has seen these addresses.
            let _ = unsafe { vmm::unreserve(start, bytes) };
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        state.announce = true;
        (state.space.add_span(start, bytes, device.extent_bytes, context), unlimited)
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
    {
        let mut state = device.state();
        state.space.span_is_made(start);
        device.publish(&state);
    }
    want(device);
    turn::want::is_missed();
    device.wake();
    run_state::reconsider();
    Ok(start)
}
