//! Host memory that the device can reach: allocated by the driver, or the program's own, registered.

#![expect(unsafe_code, reason = "mappings that are its own")]

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::Point;

use super::space::{self, Area, Kind};
use super::{address, piece, pins, plain};
use crate::call::Outcome;
use crate::context::Context;
use crate::flight;

const PAGE: u64 = 4096;

/// Pinned memory.
pub(crate) struct Pinned {
    /// The flags it was allocated or registered with.
    pub(crate) flags: u32,
    /// It was registered, and is the program's.
    pub(crate) registered: bool,
}

impl Pinned {
    pub(super) fn dispose(&self, area: &Area) {
        pins::remove(area.device, area.bytes);
        if !self.registered {
            // SAFETY: allocated by `allocate`, and in the space no more.
            unsafe { address::release(area.start, area.bytes.next_multiple_of(PAGE)) };
        }
    }
}

/// `cuMemHostAlloc`.
pub(crate) fn allocate(context: &Context, bytes: u64, flags: u32) -> Outcome<u64> {
    let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    if bytes == 0 || flags & !7 != 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    crate::faults::at_call(Point::Host)?;
    let whole = bytes.checked_next_multiple_of(PAGE).ok_or(full)?;
    let start = address::reserve(whole, PAGE.max(super::GRANULARITY)).ok_or(full)?;
    // SAFETY: reserved just now, for this.
    unsafe { address::open(start, whole) }.map_err(|_| full)?;
    if let Err(error) = pins::add(context.device, bytes) {
        // SAFETY: as above.
        unsafe { address::release(start, whole) };
        return Err(error);
    }
    let kind = Kind::Pinned(Pinned { flags, registered: false });
    space::write().insert(Area::new(start, bytes, context.id, context.device, kind));
    Ok(start)
}

/// `cuMemFreeHost`: waits as `cuMemFree` does.
pub(crate) fn free(start: u64) -> Outcome {
    let area = space::find(start).filter(|area| area.start == start);
    let area = area.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    if !matches!(&area.kind, Kind::Pinned(pinned) if !pinned.registered) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    plain::wait_for_owner(&area)?;
    plain::remove(&area, "cuMemFreeHost")
}

/// `cuMemHostRegister`. All of the range must be there; none of it may be pinned already.
pub(crate) fn register(context: &Context, start: u64, bytes: u64, flags: u32) -> Outcome {
    if bytes == 0 || start == 0 || flags & !15 != 0 || start.checked_add(bytes).is_none() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    crate::faults::at_call(Point::Host)?;
    let first = start / PAGE * PAGE;
    let length = (start + bytes).next_multiple_of(PAGE) - first;
    if !is_mapped(first, length) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    pins::add(context.device, bytes)?;
    let mut space = space::write();
    if space.overlaps(start, bytes) {
        pins::remove(context.device, bytes);
        return Err(CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    }
    let kind = Kind::Pinned(Pinned { flags, registered: true });
    space.insert(Area::new(start, bytes, context.id, context.device, kind));
    Ok(())
}

/// `cuMemHostUnregister`: waits for the work of the context that registered the memory. Under work of others: a violation.
pub(crate) fn unregister(start: u64) -> Outcome {
    let area = space::find(start).filter(|area| area.start == start);
    let registered = |area: &Area| matches!(&area.kind, Kind::Pinned(pinned) if pinned.registered);
    let area = area.filter(|area| registered(area)).ok_or(CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED)?;
    plain::wait_for_owner(&area)?;
    if let Some(work) = flight::in_flight(area.start, area.bytes, u64::MAX) {
        let what = piece(area.start, area.bytes);
        crate::strict::violation(&format!("cuMemHostUnregister of {what}: {work} still uses it"));
    }
    let gone = space::write().areas.remove(&area.start);
    if let Some(gone) = gone {
        pins::remove(gone.device, gone.bytes);
    }
    Ok(())
}

/// The flags of pinned memory that contains an address.
pub(crate) fn flags(address: u64) -> Outcome<u32> {
    let area = space::find(address).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    match &area.kind {
        Kind::Pinned(pinned) => Ok(pinned.flags),
        _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }
}

/// Whether every page of a range is mapped, by whoever.
fn is_mapped(start: u64, bytes: u64) -> bool {
    const PIECE: u64 = 1 << 30;
    let mut pages = vec![0; (bytes.min(PIECE) / PAGE) as usize];
    (start..start + bytes).step_by(PIECE as usize).all(|at| {
        let length = (start + bytes - at).min(PIECE);
        // SAFETY: mincore only reads the process's page tables, into a vector with a byte for each page asked for.
        unsafe { libc::mincore(at as *mut _, length as usize, pages.as_mut_ptr()) == 0 }
    })
}
