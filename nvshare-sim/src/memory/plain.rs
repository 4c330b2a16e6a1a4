//! `cuMemAlloc`: whole blocks for large pieces, slots of a shared block for small ones.

#![expect(unsafe_code, reason = "mappings that are its own")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::{HandleId, Point};

use super::pool::Pool;
use super::space::{self, Area, Kind};
use super::{GRANULARITY, address, piece, shared};
use crate::call::Outcome;
use crate::context::{CONTEXTS, Context};
use crate::device::card;
use crate::flight;

/// Pieces up to this size share blocks.
const SMALL: u64 = GRANULARITY / 2;
/// Small arrays share blocks as small pieces do, in slots of these sizes: what an H200 took for arrays of many shapes.
const ARRAY_SLOTS: [u64; 3] = [16 << 10, 128 << 10, SMALL];
/// Every allocation starts at a multiple of this.
const ALIGNMENT: u64 = 512;

/// Physical memory behind addresses of its own.
pub(super) struct Chunk {
    pub(super) start: u64,
    pub(super) bytes: u64,
    handle: HandleId,
}

/// A block cut into slots of one size.
struct Slab {
    chunk: Chunk,
    free: Vec<u32>,
    used: u32,
}

#[derive(Default)]
struct Chunks {
    /// Behind one large allocation each, by first address.
    large: BTreeMap<u64, Chunk>,
    /// By context and size of a slot, then by first address.
    small: BTreeMap<(u64, u64), BTreeMap<u64, Slab>>,
}

static CHUNKS: Mutex<Chunks> = Mutex::new(Chunks { large: BTreeMap::new(), small: BTreeMap::new() });

fn chunks() -> MutexGuard<'static, Chunks> {
    CHUNKS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Chunk {
    pub(super) fn allocate(device: usize, bytes: u64) -> Outcome<Chunk> {
        let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let handle = card().create(device, bytes, 0).map_err(|_| full)?;
        let runs = card().allocation(handle).ok_or(full)?.runs;
        for run in &runs {
            card().prepare(device, *run);
        }
        let Some(start) = address::reserve(bytes, GRANULARITY) else {
            card().let_go(handle);
            return Err(full);
        };
        let chunk = Chunk { start, bytes, handle };
        // SAFETY: reserved just now, for this.
        if unsafe { address::back(start, device, &runs) }.is_err() {
            chunk.release();
            return Err(full);
        }
        Ok(chunk)
    }

    pub(super) fn release(self) {
        // SAFETY: the last allocation in it was disposed of, which happens after all work that may touch it.
        unsafe { address::release(self.start, self.bytes) };
        card().let_go(self.handle);
    }
}

/// Allocates in a context; from a pool if one is given.
pub(crate) fn allocate(context: &Context, bytes: u64, pool: Option<Arc<Pool>>) -> Outcome<Arc<Area>> {
    if bytes == 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    crate::faults::at_call(Point::Alloc)?;
    let start = match &pool {
        Some(pool) => pool.take(bytes)?,
        None => take(context, bytes, slot_bytes(bytes))?,
    };
    Ok(space::write().insert(Area::new(start, bytes, context.id, context.device, Kind::Plain(pool))))
}

/// Allocates the memory of an array.
pub(crate) fn allocate_array(context: &Context, bytes: u64) -> Outcome<Arc<Area>> {
    crate::faults::at_call(Point::Alloc)?;
    let start = take(context, bytes, array_slot(bytes))?;
    Ok(space::write().insert(Area::new(start, bytes, context.id, context.device, Kind::Array)))
}

fn take(context: &Context, bytes: u64, slot: u64) -> Outcome<u64> {
    if slot <= SMALL {
        return small(context, slot);
    }
    let whole = bytes.checked_next_multiple_of(GRANULARITY).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
    let chunk = Chunk::allocate(context.device, whole)?;
    let start = chunk.start;
    chunks().large.insert(start, chunk);
    Ok(start)
}

fn slot_bytes(bytes: u64) -> u64 {
    bytes.max(ALIGNMENT).checked_next_power_of_two().unwrap_or(u64::MAX)
}

fn array_slot(bytes: u64) -> u64 {
    ARRAY_SLOTS.into_iter().find(|slot| bytes <= *slot).unwrap_or(u64::MAX)
}

fn small(context: &Context, slot: u64) -> Outcome<u64> {
    let mut chunks = chunks();
    let slabs = chunks.small.entry((context.id, slot)).or_default();
    // The newest first: the older ones are usually full.
    if let Some(slab) = slabs.values_mut().rev().find(|slab| !slab.free.is_empty()) {
        return Ok(slab.take(slot));
    }
    let chunk = Chunk::allocate(context.device, GRANULARITY)?;
    let free = (0..(GRANULARITY / slot) as u32).rev().collect();
    let mut slab = Slab { chunk, free, used: 0 };
    let start = slab.take(slot);
    slabs.insert(slab.chunk.start, slab);
    Ok(start)
}

impl Slab {
    fn take(&mut self, slot: u64) -> u64 {
        let index = self.free.pop().expect("a slab with a free slot");
        self.used += 1;
        self.chunk.start + u64::from(index) * slot
    }
}

/// The handle that an allocation is a part of, and its first byte in that.
pub(super) fn backing(area: &Area) -> Option<(HandleId, u64)> {
    let in_chunk = |chunk: &Chunk| (chunk.handle, area.start - chunk.start);
    if let Kind::Plain(Some(pool)) = &area.kind {
        return pool.with_chunk(area.start, in_chunk);
    }
    let chunks = chunks();
    if let Some(chunk) = chunks.large.get(&area.start) {
        return Some(in_chunk(chunk));
    }
    let slabs = chunks.small.get(&(area.context, slot_bytes(area.bytes)))?;
    slabs.get(&(area.start / GRANULARITY * GRANULARITY)).map(|slab| in_chunk(&slab.chunk))
}

/// Gives back the memory of an allocation that is in the space no more.
pub(super) fn dispose(area: &Area, pool: Option<&Pool>) {
    shared::end(area);
    if let Some(pool) = pool {
        return pool.give_back(area);
    }
    let mut chunks = chunks();
    if let Some(chunk) = chunks.large.remove(&area.start) {
        chunk.release();
        return;
    }
    let slot = if matches!(area.kind, Kind::Array) { array_slot(area.bytes) } else { slot_bytes(area.bytes) };
    let Some(slabs) = chunks.small.get_mut(&(area.context, slot)) else { return };
    let start = area.start / GRANULARITY * GRANULARITY;
    let Some(slab) = slabs.get_mut(&start) else { return };
    slab.free.push(((area.start - start) / slot) as u32);
    slab.used -= 1;
    if slab.used == 0
        && let Some(slab) = slabs.remove(&start)
    {
        slab.chunk.release();
    }
}

/// Nothing of the context is left.
pub(super) fn forget_context(context: u64) {
    chunks().small.retain(|(of, _), slabs| *of != context || !slabs.is_empty());
}

/// `cuMemFree`: waits for the work of the context that owns the memory, as the driver does, and for nobody else's.
pub(crate) fn free(start: u64) -> Outcome {
    let area = space::find(start).filter(|area| area.start == start);
    let area = area.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    if let Kind::Graph(allocation) = &area.kind {
        return super::graph::free(allocation, &area);
    }
    let is_ours = match &area.kind {
        Kind::Plain(_) | Kind::Managed(_) => true,
        Kind::Opened(opened) => opened.is_piece,
        _ => false,
    };
    if !is_ours {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    wait_for_owner(&area)?;
    remove(&area, "cuMemFree")
}

/// Waits for all work of the context that an area belongs to.
pub(crate) fn wait_for_owner(area: &Area) -> Outcome {
    CONTEXTS.find(|context| context.id == area.context).map_or(Ok(()), |context| {
        context.jam.pass();
        super::synchronize(&context)
    })
}

/// Takes an area away. Under work that may touch it: a violation.
pub(crate) fn remove(area: &Arc<Area>, call: &str) -> Outcome {
    remove_before(area, call, u64::MAX)
}

/// As [`remove`], where only the work submitted before `submitted` may still have used it.
pub(crate) fn remove_before(area: &Arc<Area>, call: &str, submitted: u64) -> Outcome {
    check_unused(area, call, submitted);
    let mut space = space::write();
    // Somebody else may have freed it in the meantime.
    let there = space.areas.get(&area.start).is_some_and(|there| Arc::ptr_eq(there, area));
    if !there {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    space.areas.remove(&area.start);
    drop(space);
    area.dispose();
    Ok(())
}

/// A violation if work that was submitted before `submitted` may still touch the area.
pub(crate) fn check_unused(area: &Area, call: &str, submitted: u64) {
    if let Some(work) = flight::in_flight(area.start, area.bytes, submitted) {
        crate::strict::violation(&format!(
            "{call} of {}: {work} still uses it",
            piece(area.start, area.bytes)
        ));
        flight::stop_touching(area.start, area.bytes);
    }
}
