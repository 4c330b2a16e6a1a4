//! Physical memory behind reserved addresses: `cuMemAddressReserve`, `cuMemMap`, `cuMemSetAccess` and back.

#![expect(unsafe_code, reason = "mappings that are its own")]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::config::MAX_CARDS;

use super::physical::HandleValue;
use super::space::{self, Area, Kind, Space};
use super::{GRANULARITY, address, physical, piece};
use crate::call::Outcome;
use crate::flight;

/// What devices may do with mapped memory: the values of `CUmemAccess_flags`.
pub(crate) const NO_ACCESS: u8 = 0;
pub(crate) const READ: u8 = 1;
pub(crate) const READ_WRITE: u8 = 3;

/// One `cuMemMap`.
pub(crate) struct Mapping {
    /// How much is mapped.
    pub(crate) bytes: u64,
    /// What is mapped.
    pub(crate) handle: HandleValue,
    /// A number that no other mapping has.
    pub(crate) number: u64,
    /// What each device may do with it.
    pub(crate) access: [u8; MAX_CARDS],
    /// The memory is behind the address. It is put there with the first access that is granted.
    backed: bool,
}

type Mappings = BTreeMap<u64, Mapping>;

fn lock(mappings: &Mutex<Mappings>) -> MutexGuard<'_, Mappings> {
    mappings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mapping that contains an address.
fn at(mappings: &Mappings, address: u64) -> Option<(u64, &Mapping)> {
    let (start, mapping) = mappings.range(..=address).next_back()?;
    (address < start + mapping.bytes).then_some((*start, mapping))
}

/// Whether something is mapped at the address.
pub(super) fn is_there(mappings: &Mutex<Mappings>, address: u64) -> bool {
    at(&mappings.lock().unwrap_or_else(PoisonError::into_inner), address).is_some()
}

/// Whether `device` may touch all of the range.
pub(super) fn access(
    mappings: &Mappings,
    address: u64,
    bytes: u64,
    write: bool,
    device: usize,
) -> Result<(), String> {
    let (mut next, end) = (address, address + bytes);
    while next < end {
        let Some((start, mapping)) = at(mappings, next) else {
            return Err(format!("{} is reserved, but nothing is mapped at {next:#x}", piece(address, bytes)));
        };
        let allowed = mapping.access[device];
        if allowed == NO_ACCESS || (write && allowed != READ_WRITE) {
            let may = if allowed == READ { "may only read" } else { "has no access to" };
            return Err(format!("device {device} {may} {}", piece(start, mapping.bytes)));
        }
        next = start + mapping.bytes;
    }
    Ok(())
}

/// Reserves addresses; a hint that is taken, or not aligned, is not followed.
pub(crate) fn reserve(bytes: u64, align: u64, hint: u64) -> Outcome<u64> {
    let align = align.max(GRANULARITY);
    let hinted = hint != 0 && hint.is_multiple_of(align) && address::reserve_at(hint, bytes);
    let start = if hinted { Some(hint) } else { address::reserve(bytes, align) };
    let start = start.ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
    space::write().insert(Area::new(start, bytes, 0, 0, Kind::Reserved(Mutex::default())));
    Ok(start)
}

/// Gives reserved addresses back. Nothing may be mapped there.
pub(crate) fn free(start: u64, bytes: u64) -> Outcome {
    let mut space = space::write();
    let area = space.areas.get(&start).filter(|area| area.bytes == bytes);
    match area.map(|area| &area.kind) {
        Some(Kind::Reserved(mappings)) if lock(mappings).is_empty() => {}
        _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }
    space.areas.remove(&start);
    // SAFETY: nothing is mapped there, and nobody finds the area any more.
    unsafe { address::release(start, bytes) };
    Ok(())
}

/// The reservation around a range, with its mappings.
fn reservation(space: &Space, start: u64, bytes: u64) -> Outcome<&Mutex<Mappings>> {
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let area = space.find(start).ok_or(invalid)?;
    let end = start.checked_add(bytes).ok_or(invalid)?;
    match &area.kind {
        Kind::Reserved(mappings) if end <= area.end() => Ok(mappings),
        _ => Err(invalid),
    }
}

/// Whether nothing is mapped in a range.
fn is_bare(mappings: &Mappings, start: u64, bytes: u64) -> bool {
    let last = mappings.range(..start + bytes).next_back();
    last.is_none_or(|(at, mapping)| at + mapping.bytes <= start)
}

/// The first addresses of the mappings that make up a range: all of each, and no gap.
fn whole(mappings: &Mappings, start: u64, bytes: u64) -> Outcome<Vec<u64>> {
    let mut next = start;
    let mut found = Vec::new();
    while next < start + bytes {
        let mapping = mappings.get(&next).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        found.push(next);
        next += mapping.bytes;
    }
    if next == start + bytes { Ok(found) } else { Err(CUresult::CUDA_ERROR_INVALID_VALUE) }
}

/// Maps all of a handle. No device has access yet.
pub(crate) fn map(start: u64, bytes: u64, id: HandleValue) -> Outcome {
    let mut space = space::write();
    // A handle that was released is as good as any for as long as it is mapped somewhere (seen on an H200).
    let handle = physical::living(&mut space, id)?;
    if handle.properties & physical::TILE_POOL != 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    if bytes != handle.bytes {
        return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
    let number = space::number();
    {
        let mut mappings = lock(reservation(&space, start, bytes)?);
        if !is_bare(&mappings, start, bytes) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let mapping = Mapping { bytes, handle: id, number, access: [NO_ACCESS; MAX_CARDS], backed: false };
        mappings.insert(start, mapping);
    }
    physical::living(&mut space, id)?.mappings += 1;
    Ok(())
}

/// The first addresses of the mappings in a range: all of each, and whatever gaps.
fn inside(mappings: &Mappings, start: u64, bytes: u64) -> Outcome<Vec<u64>> {
    let end = start + bytes;
    let cut = |edge: u64| at(mappings, edge).is_some_and(|(first, _)| first < edge);
    if cut(start) || cut(end) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    Ok(mappings.range(start..end).map(|(at, _)| *at).collect())
}

/// Takes away what is mapped in a range: whole mappings, gaps between them or nothing at all. Under work that may touch it: a
/// violation.
pub(crate) fn unmap(start: u64, bytes: u64) -> Outcome {
    {
        let space = space::read();
        let mappings = lock(reservation(&space, start, bytes)?);
        if is_bare(&mappings, start, bytes) {
            return Ok(());
        }
        inside(&mappings, start, bytes)?;
    }
    if let Some(work) = flight::in_flight(start, bytes, u64::MAX) {
        crate::strict::violation(&format!("cuMemUnmap of {}: {work} still uses it", piece(start, bytes)));
        flight::stop_touching(start, bytes);
    }
    let mut space = space::write();
    let gone: Vec<HandleValue> = {
        let mut mappings = lock(reservation(&space, start, bytes)?);
        let starts = inside(&mappings, start, bytes)?;
        for at in &starts {
            let mapping = &mappings[at];
            if mapping.backed {
                // SAFETY: inside a reservation of ours; no work in flight touches it, and none that comes may.
                unsafe { address::unback(*at, mapping.bytes) };
            }
        }
        starts.iter().filter_map(|at| mappings.remove(at)).map(|mapping| mapping.handle).collect()
    };
    for id in gone {
        physical::unmapped(&mut space, id);
    }
    Ok(())
}

/// Sets what devices may do in a range of whole mappings.
pub(crate) fn set_access(start: u64, bytes: u64, grants: &[(usize, u8)]) -> Outcome {
    let space = space::read();
    let mut mappings = lock(reservation(&space, start, bytes)?);
    let starts = whole(&mappings, start, bytes)?;
    for at in &starts {
        let mapping = mappings.get_mut(at).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        if !mapping.backed && grants.iter().any(|(_, access)| *access != NO_ACCESS) {
            let handle = space.handles.get(&mapping.handle).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
            // SAFETY: inside a reservation of ours, where nothing was mapped so far.
            unsafe { address::back(*at, handle.device, &handle.runs) }.map_err(|error| {
                eprintln!("nvshare-sim: cannot map {}: {error}", piece(*at, mapping.bytes));
                CUresult::CUDA_ERROR_OUT_OF_MEMORY
            })?;
            mapping.backed = true;
        }
        for (device, access) in grants {
            mapping.access[*device] = *access;
        }
    }
    Ok(())
}

/// A mapping as it is seen.
pub(crate) struct Seen {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) handle: HandleValue,
    /// See [`Mapping`].
    pub(crate) number: u64,
    /// What each device may do with it.
    pub(crate) access: [u8; MAX_CARDS],
}

/// The mapping that contains an address.
pub(crate) fn look(address: u64) -> Outcome<Seen> {
    let space = space::read();
    let mappings = lock(reservation(&space, address, 1)?);
    let (start, mapping) = at(&mappings, address).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    let (bytes, handle, number, access) = (mapping.bytes, mapping.handle, mapping.number, mapping.access);
    Ok(Seen { start, bytes, handle, number, access })
}

/// One more reference to the handle behind an address.
pub(crate) fn retain(address: u64) -> Outcome<HandleValue> {
    let id = look(address)?.handle;
    let mut space = space::write();
    space.handles.get_mut(&id).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?.references += 1;
    Ok(id)
}
