//! `cuMemAlloc`: whole blocks for large pieces, slots of a shared block for small ones.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::{HandleId, Point};

use super::chunk::Chunk;
use super::space::{self, Area, Kind};
use super::{GRANULARITY, piece, pool, shared};
use crate::call::Outcome;
use crate::context::{CONTEXTS, Context};
use crate::flight;

/// Pieces up to this size share blocks.
const SMALL: u64 = GRANULARITY / 2;
/// Small arrays share blocks as small pieces do, in slots of these sizes: what an H200 took for arrays of many shapes.
const ARRAY_SLOTS: [u64; 3] = [16 << 10, 128 << 10, SMALL];
/// Every allocation starts at a multiple of this.
const ALIGNMENT: u64 = 512;

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

/// Allocates in a context.
pub(crate) fn allocate(context: &Context, bytes: u64) -> Outcome<Arc<Area>> {
    if bytes == 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    crate::faults::at_call(Point::Alloc)?;
    let start = take(context, bytes, slot_bytes(bytes))?;
    Ok(space::write().insert(Area::new(start, bytes, context.id, context.device, Kind::Plain(None))))
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
    let in_chunk = |chunk: &Chunk| chunk.part(area.start);
    if let Kind::Plain(Some(pool)) = &area.kind {
        return pool.part(area.start);
    }
    let chunks = chunks();
    if let Some(chunk) = chunks.large.get(&area.start) {
        return Some(in_chunk(chunk));
    }
    let slabs = chunks.small.get(&(area.context, slot_bytes(area.bytes)))?;
    slabs.get(&(area.start / GRANULARITY * GRANULARITY)).map(|slab| in_chunk(&slab.chunk))
}

/// Gives back the memory of an allocation that is in the space no more.
pub(super) fn dispose(area: &Area) {
    shared::end(area);
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

/// `cuMemFree`: waits for the work of the context that owns the memory, as the driver does, and for nobody else's; for a piece of a
/// pool it waits for nobody.
pub(crate) fn free(start: u64) -> Outcome {
    let area = space::find(start).filter(|area| area.start == start);
    let area = area.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    if let Kind::Graph(allocation) = &area.kind {
        return super::graph::free(allocation, &area);
    }
    if let Kind::Plain(Some(_)) = &area.kind {
        return pool::free_at_once(&area);
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
        super::wait_for(&context)
    })
}

/// Takes an area away. Under work that may touch it: a violation.
pub(crate) fn remove(area: &Arc<Area>, call: &str) -> Outcome {
    remove_before(area, call, u64::MAX)
}

/// As [`remove`], where only the work submitted before `submitted` may still have used it.
pub(crate) fn remove_before(area: &Arc<Area>, call: &str, submitted: u64) -> Outcome {
    check_unused(area.start, area.bytes, call, submitted);
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

/// A violation if work that was submitted before `submitted` may still touch the memory.
pub(crate) fn check_unused(start: u64, bytes: u64, call: &str, submitted: u64) {
    if let Some(work) = flight::in_flight(start, bytes, submitted) {
        crate::strict::violation(&format!("{call} of {}: {work} still uses it", piece(start, bytes)));
        flight::stop_touching(start, bytes);
    }
}
