//! Handles of physical memory in this process: references from `cuMemCreate`, `cuMemRetainAllocationHandle` and imports,
//! and mappings. The card frees the memory when no process has either.

use std::os::fd::{BorrowedFd, OwnedFd};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::{HandleId, Run, now};

use super::space::{self, Space};
use crate::call::Outcome;
use crate::device::card;

/// One handle, as this process knows it.
pub(crate) struct Physical {
    /// The card it is on.
    pub(crate) device: usize,
    /// Its size.
    pub(crate) bytes: u64,
    /// Types of shareable handles that it may be exported as, and flags above bit 16.
    pub(crate) properties: u32,
    pub(super) runs: Vec<Run>,
    /// References that `cuMemRelease` has not given back.
    pub(super) references: u32,
    /// Places it is mapped at.
    pub(super) mappings: u32,
    /// When it was last unmapped, or created.
    pub(super) loose_since: u64,
}

/// Flag among the properties: `gpuDirectRDMACapable`.
pub(crate) const RDMA_CAPABLE: u32 = 1 << 16;

/// Allocates physical memory.
pub(crate) fn create(device: usize, bytes: u64, properties: u32) -> Outcome<HandleId> {
    let id = card().create(device, bytes, properties).map_err(|_| CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
    adopt(id)?;
    Ok(id)
}

/// Takes a reference to a handle that the card says this process holds.
fn adopt(id: HandleId) -> Outcome {
    let known = card().allocation(id).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    // Outside of any lock: memory that was never used takes a millisecond a block.
    for run in &known.runs {
        card().prepare(known.card, *run);
    }
    let mut space = space::write();
    let handle = space.handles.entry(id).or_insert(Physical {
        device: known.card,
        bytes: known.bytes,
        properties: known.properties,
        runs: known.runs,
        references: 0,
        mappings: 0,
        loose_since: now(),
    });
    handle.references += 1;
    Ok(())
}

/// Gives one reference back.
pub(crate) fn release(id: HandleId) -> Outcome {
    let mut space = space::write();
    referenced(&mut space, id)?.references -= 1;
    settle(&mut space, id);
    Ok(())
}

/// The handle, if the application still has a reference to it.
pub(super) fn referenced(space: &mut Space, id: HandleId) -> Outcome<&mut Physical> {
    space
        .handles
        .get_mut(&id)
        .filter(|handle| handle.references > 0)
        .ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
}

/// The handle, if anything keeps it.
pub(super) fn living(space: &mut Space, id: HandleId) -> Outcome<&mut Physical> {
    space.handles.get_mut(&id).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
}

/// Lets the memory go if neither a reference nor a mapping is left.
pub(super) fn settle(space: &mut Space, id: HandleId) {
    if space.handles.get(&id).is_some_and(|handle| handle.references == 0 && handle.mappings == 0) {
        space.handles.remove(&id);
        card().let_go(id);
    }
}

/// Device, size and properties of a handle.
pub(crate) fn describe(id: HandleId) -> Outcome<(usize, u64, u32)> {
    let mut space = space::write();
    let handle = referenced(&mut space, id)?;
    Ok((handle.device, handle.bytes, handle.properties))
}

/// Device and properties of a handle that is mapped, released or not.
pub(crate) fn properties(id: HandleId) -> Option<(usize, u32)> {
    space::read().handles.get(&id).map(|handle| (handle.device, handle.properties))
}

/// A descriptor that other processes can import.
pub(crate) fn export(id: HandleId) -> Outcome<OwnedFd> {
    describe(id)?;
    card().export(id).map_err(|error| {
        eprintln!("nvshare-sim: cannot export a handle: {error}");
        CUresult::CUDA_ERROR_OPERATING_SYSTEM
    })
}

/// The handle that a descriptor stands for.
pub(crate) fn import(descriptor: BorrowedFd<'_>) -> Outcome<HandleId> {
    let id = card().import(descriptor).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
    adopt(id)?;
    Ok(id)
}
