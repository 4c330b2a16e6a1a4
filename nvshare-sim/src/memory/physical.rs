//! Handles of physical memory in this process: references from `cuMemCreate`, `cuMemRetainAllocationHandle` and imports,
//! and mappings. The card frees the memory when no process has either.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::RwLockWriteGuard;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::{HandleId, Run, now};

use super::space::{self, Space};
use crate::call::Outcome;
use crate::device::card;

/// What the application holds. Memory that is imported has another one each time, also in the process that made it (as on an
/// H200).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HandleValue(pub(crate) u64);

/// One handle, as this process knows it.
pub(crate) struct Physical {
    /// The memory, which is held while any handle of it is here.
    memory: HandleId,
    /// The card it is on.
    pub(crate) device: usize,
    /// Its size.
    pub(crate) bytes: u64,
    /// Types of shareable handles that it may be exported as (none, where it was imported: seen on an H200), and flags from bit
    /// 16 on.
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
/// Where their `usage` begins, and the one that says that the memory is mapped behind arrays and nothing else
/// (`CU_MEM_CREATE_USAGE_TILE_POOL`).
pub(crate) const USAGE_SHIFT: u32 = 17;
/// See [`USAGE_SHIFT`].
pub(super) const TILE_POOL: u32 = 1 << USAGE_SHIFT;

/// Set in the values of those handles that are not the first of their memory in this process.
const AGAIN: u64 = 1 << 63;

/// Allocates physical memory.
pub(crate) fn create(device: usize, bytes: u64, properties: u32) -> Outcome<HandleValue> {
    let memory = card().create(device, bytes, properties).map_err(|_| CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
    adopt(space::write(), memory, u32::MAX)
}

/// Makes a handle of memory that this process holds, with these of its properties.
fn adopt(mut space: RwLockWriteGuard<'_, Space>, memory: HandleId, kept: u32) -> Outcome<HandleValue> {
    static NUMBERS: AtomicU64 = AtomicU64::new(AGAIN);
    let known = card().allocation(memory).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    let mut value = HandleValue(memory.0);
    if space.handles.contains_key(&value) {
        value = HandleValue(NUMBERS.fetch_add(1, Ordering::Relaxed));
    }
    let physical = Physical {
        memory,
        device: known.card,
        bytes: known.bytes,
        properties: known.properties & kept,
        runs: known.runs.clone(),
        references: 1,
        mappings: 0,
        loose_since: now(),
    };
    space.handles.insert(value, physical);
    drop(space);
    // Outside of any lock: memory that was never used takes a millisecond a block.
    for run in &known.runs {
        card().prepare(known.card, *run);
    }
    Ok(value)
}

/// Gives one reference back.
pub(crate) fn release(id: HandleValue) -> Outcome {
    let mut space = space::write();
    referenced(&mut space, id)?.references -= 1;
    settle(&mut space, id);
    Ok(())
}

/// The handle, if the application still has a reference to it.
pub(super) fn referenced(space: &mut Space, id: HandleValue) -> Outcome<&mut Physical> {
    space
        .handles
        .get_mut(&id)
        .filter(|handle| handle.references > 0)
        .ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
}

/// The handle, if anything keeps it.
pub(super) fn living(space: &mut Space, id: HandleValue) -> Outcome<&mut Physical> {
    space.handles.get_mut(&id).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
}

/// Lets the memory go if neither a reference nor a mapping is left.
pub(super) fn settle(space: &mut Space, id: HandleValue) {
    if space.handles.get(&id).is_some_and(|handle| handle.references == 0 && handle.mappings == 0) {
        let gone = space.handles.remove(&id).map(|handle| handle.memory);
        let memory = gone.filter(|memory| space.handles.values().all(|other| other.memory != *memory));
        if let Some(memory) = memory {
            card().let_go(memory);
        }
    }
}

/// One mapping less.
pub(super) fn unmapped(space: &mut Space, id: HandleValue) {
    if let Some(handle) = space.handles.get_mut(&id) {
        handle.mappings -= 1;
        handle.loose_since = now();
    }
    settle(space, id);
}

/// Device, size and properties of a handle.
pub(crate) fn describe(id: HandleValue) -> Outcome<(usize, u64, u32)> {
    let mut space = space::write();
    let handle = referenced(&mut space, id)?;
    Ok((handle.device, handle.bytes, handle.properties))
}

/// Device and properties of a handle that is mapped, released or not.
pub(crate) fn properties(id: HandleValue) -> Option<(usize, u32)> {
    space::read().handles.get(&id).map(|handle| (handle.device, handle.properties))
}

/// A descriptor that other processes can import.
pub(crate) fn export(id: HandleValue) -> Outcome<OwnedFd> {
    let memory = referenced(&mut space::write(), id)?.memory;
    card().export(memory).map_err(|error| {
        eprintln!("nvshare-sim: cannot export a handle: {error}");
        CUresult::CUDA_ERROR_OPERATING_SYSTEM
    })
}

/// A handle of the memory that a descriptor stands for.
pub(crate) fn import(descriptor: BorrowedFd<'_>) -> Outcome<HandleValue> {
    // Locked before: the end of another handle of it does not let go of it meanwhile.
    let space = space::write();
    let memory = card().import(descriptor).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
    adopt(space, memory, !(RDMA_CAPABLE - 1))
}
