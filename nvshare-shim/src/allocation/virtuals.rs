//! Physical memory that the application maps itself (`cuMemCreate`). The handle it gets is ours, and stands for a span like any
//! other: made as far as the grant goes, moved by the engine, counted once. Where it is mapped, and who may use it there, is in
//! [`memory::virtuals`](crate::memory::virtuals): whoever moves it maps it there again, and the application does not notice.

use super::allocate::{fill, in_place};
use super::back::bury;
use super::unswappable::report_kept;
use super::{free, promise};
use crate::config::BLOCK_BYTES;
use crate::cuda::{CUresult, sys};
use crate::device::{self, Device, home, vmm};
use crate::memory::extent::Presence;
use crate::memory::space::Space;
use crate::memory::virtuals::{self, Asked, Behind, Handle};
use crate::memory::{map, virtuals::Virtuals};
use crate::streams::{self, Relaxed};
use crate::turn::dead;

/// Makes memory of `bytes` on the device of that number, and answers a handle of ours. `None`: it is not for the engine, the driver
/// makes it. Never waits for memory.
pub fn create(ordinal: sys::CUdevice, bytes: u64, asked: Asked) -> Option<Result<u64, CUresult>> {
    let device = device::of_ordinal(ordinal)?;
    let is_whole = bytes > 0 && bytes.is_multiple_of(device.granularity) && bytes.is_multiple_of(BLOCK_BYTES);
    if !is_whole || bytes > device.total || dead::has_failed(device) {
        return None;
    }
    let _relaxed = Relaxed::new();
    free::sweep(device);
    adopt(device);
    if !promise::may_grow(device, bytes) {
        return Some(Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    }
    let start = take_home(device, bytes)?;
    let number = map::number();
    let behind = Behind { number, asked };
    // Before anybody can move it: whoever does asks where it is mapped.
    virtuals::change(|virtuals| virtuals.made(number, Handle::new(device.index, start, bytes, asked)));
    let add = |space: &mut Space| space.add_behind(start, bytes, device.extent_bytes, behind);
    let filled = fill(device, start, bytes, add, in_place, || {
        device.state().homes.give_back(start, bytes);
    });
    if let Err(code) = filled {
        virtuals::change(|virtuals| virtuals.released(number));
        return Some(Err(code));
    }
    Some(Ok(number))
}

/// The engine may be at home in the context that is current, if it is one of `device`.
fn adopt(device: &Device) {
    if device.state().home.is_none()
        && let Ok(Some((current, context))) = device::current()
        && current.index == device.index
    {
        if let Some(context) = streams::current_context() {
            streams::context_seen(context);
        }
        home::adopt(device, context);
    }
}

/// Addresses for the engine's use, cut from a reservation as large as the device: a call for each handle would be a tenth of its
/// price.
pub(super) fn take_home(device: &Device, bytes: u64) -> Option<u64> {
    loop {
        if let Some(start) = device.state().homes.take(bytes) {
            return Some(start);
        }
        let length = device.total.max(bytes).next_multiple_of(device.granularity);
        let start = vmm::reserve(length, device.granularity).ok()?;
        device.state().homes.add(start, length);
    }
}

/// A reference to the handle is given back; `None`: it is not ours.
pub fn release(number: u64) -> Option<CUresult> {
    match virtuals::change(|virtuals| {
        virtuals.released(number).ok_or_else(|| virtuals.handle(number).is_some())
    }) {
        Ok(ended) => {
            if let Some(handle) = ended {
                dispose(&handle);
            }
            Some(CUresult::CUDA_SUCCESS)
        }
        Err(true) => Some(CUresult::CUDA_ERROR_INVALID_VALUE),
        Err(false) => None,
    }
}

/// Nothing stands for the memory any more, and it is mapped nowhere: no work can reach it.
pub fn dispose(handle: &Handle) {
    let Some(device) = device::by_index(handle.device) else { return };
    let _relaxed = Relaxed::new();
    let (kept, remains) = {
        let mut state = device.state();
        (state.space.is_kept(handle.span), state.space.remove_span(handle.span))
    };
    bury(device, remains);
    if kept {
        report_kept(device);
    }
}

/// A handle of ours that a call is made with: it does not end meanwhile.
#[derive(Debug)]
pub struct Held {
    number: u64,
    /// What it is.
    pub handle: Handle,
}

/// See [`Held`]; `None`: it is not ours.
pub fn hold(number: u64) -> Option<Held> {
    let handle = virtuals::change(|virtuals| virtuals.hold(number))?;
    let held = Held { number, handle };
    if let Some(device) = device::by_index(held.handle.device) {
        adopt(device);
    }
    Some(held)
}

/// A piece of a handle: where in it, how long, and what the driver knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// How far into the handle it begins.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// The driver's handle.
    pub handle: u64,
}

impl Held {
    /// What the driver knows it by, if all of it is on the device; it stays so while a pass of the gate lives.
    pub fn pieces(&self) -> Option<Vec<Piece>> {
        let state = device::by_index(self.handle.device)?.state();
        let span = state.space.span(self.handle.span)?;
        let piece = |id: &crate::memory::extent::ExtentId| {
            let extent = state.space.extent(*id);
            let piece =
                Piece { offset: extent.start - extent.span, bytes: extent.bytes, handle: extent.handle };
            (extent.presence() == Presence::Resident).then_some(piece)
        };
        span.extents.iter().map(piece).collect()
    }

    /// It was mapped there.
    pub fn mapped(&self, at: u64) {
        virtuals::change(|virtuals| virtuals.mapped(at, self.number));
    }

    /// Whoever got hold of its physical memory keeps it: it stays on the device.
    pub fn stays(&self) {
        let _ = stays(&self.handle);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(ended) = virtuals::change(|virtuals| virtuals.let_go(self.number)) {
            dispose(&ended);
        }
    }
}

fn stays(handle: &Handle) -> bool {
    let Some(device) = device::by_index(handle.device) else { return false };
    let kept = device.state().space.keep(handle.span, handle.bytes);
    if kept {
        report_kept(device);
    }
    kept
}

/// What is mapped in the range stays on the device. Whether there is any.
pub(super) fn mapped_stay(start: u64, bytes: u64) -> bool {
    let handles: Vec<Handle> = {
        let virtuals = virtuals::look();
        let first = virtuals.find(start).map(|found| found.handle);
        let within = virtuals.within(start, bytes).map(|(_, _, handle)| handle.clone());
        first.into_iter().chain(within).collect()
    };
    handles.iter().filter(|handle| stays(handle)).count() > 0
}

/// Takes the mappings in the range out of the records, if there are any and all that is behind them is out: then nothing is mapped
/// there, and nothing needs to be waited for. `false`: nothing was done.
pub fn forget_what_is_out(start: u64, bytes: u64) -> bool {
    let device = {
        let virtuals = virtuals::look();
        let Some(device) = virtuals.within(start, bytes).next().map(|(_, _, handle)| handle.device) else {
            return false;
        };
        device
    };
    let Some(device) = device::by_index(device) else { return false };
    let ended = {
        // What is out begins to come in under this lock only.
        let state = device.state();
        let is_out = |handle: &Handle| {
            let span = state.space.span(handle.span);
            handle.device == device.index
                && span.is_some_and(|span| {
                    span.extents.iter().all(|id| {
                        let presence = state.space.extent(*id).presence();
                        matches!(presence, Presence::Absent | Presence::Swapped)
                    })
                })
        };
        // So that the driver has nothing to say against it.
        let is_plain = |virtuals: &Virtuals| {
            let reserved = virtuals.reservation(start);
            reserved.is_some_and(|(from, length)| start - from + bytes <= length)
                && bytes.is_multiple_of(BLOCK_BYTES)
                && !virtuals.is_cut(start, bytes)
        };
        virtuals::change(|virtuals| {
            let all_out = virtuals.within(start, bytes).all(|(_, _, handle)| is_out(handle));
            (all_out && is_plain(virtuals)).then(|| {
                let taken = virtuals.take(start, bytes);
                virtuals.unmapped(taken)
            })
        })
    };
    let Some(ended) = ended else { return false };
    ended.iter().for_each(dispose);
    true
}
