//! Memory pools: what allocation in stream order takes its memory from. Who may have a piece again is [`super::freed`]'s; what a
//! pool holds beyond its release threshold goes back to the card when the host has waited for the frees, and the rest when it is
//! trimmed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::sys::{CUmemoryPool, CUresult};
use nvshare_sim_card::{HandleId, Point, PoolName};

use super::blocks::{Asker, Blocks, Refused, Taken};
use super::freed::{Freed, Reuse};
use super::leaving::{self, Leaving};
use super::space::{self, Area, Kind};
use crate::call::Outcome;
use crate::completion::{Completion, Place};
use crate::context::Context;
use crate::device::card;
use crate::handles::{Registry, handle_of};

/// All pools that were not destroyed.
pub(crate) static POOLS: Registry<Pool> = Registry::new();

/// Those that were, too, as long as there are pieces of them.
static ALL: Mutex<Vec<Weak<Pool>>> = Mutex::new(Vec::new());

/// What allocations in stream order come from.
pub(crate) struct Pool {
    /// Where its memory is.
    pub(crate) device: usize,
    /// What all its pieces have as `CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID`.
    pub(crate) id: u64,
    /// Attributes that are C ints, by number, where they were set.
    pub(crate) attributes: Mutex<HashMap<u32, u64>>,
    /// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
    pub(crate) threshold: AtomicU64,
    /// What other processes know it by, if it can be exported.
    name: Option<PoolName>,
    /// It is another process's: nothing is allocated from it here.
    pub(crate) is_imported: bool,
    /// Others may have it: before that none of its pieces can be exported.
    pub(crate) is_exported: AtomicBool,
    destroyed: AtomicBool,
    blocks: Mutex<Blocks>,
}

/// `CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES`, `.._ALLOW_OPPORTUNISTIC` and `.._ALLOW_INTERNAL_DEPENDENCIES`.
const REUSE: [u32; 3] = [1, 2, 3];

impl Pool {
    /// A pool that takes no more of the card than `limit` bytes, if that is not 0.
    pub(crate) fn new(device: usize, limit: u64) -> Arc<Pool> {
        Pool::named(device, limit, None, false)
    }

    /// A pool that can be exported.
    pub(crate) fn exportable(device: usize, limit: u64) -> Arc<Pool> {
        let name = PoolName { number: card().pool_number(), card: device };
        Pool::named(device, limit, Some(name), false)
    }

    /// Another process's pool.
    pub(crate) fn imported(name: PoolName) -> Arc<Pool> {
        Pool::named(name.card, 0, Some(name), true)
    }

    fn named(device: usize, limit: u64, name: Option<PoolName>, is_imported: bool) -> Arc<Pool> {
        let pool = Arc::new(Pool {
            device,
            id: space::number(),
            attributes: Mutex::default(),
            threshold: AtomicU64::new(0),
            name,
            is_imported,
            is_exported: AtomicBool::new(false),
            destroyed: AtomicBool::new(false),
            blocks: Mutex::new(Blocks::new(device, name.is_some(), limit)),
        });
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|pool| pool.strong_count() > 0);
        all.push(Arc::downgrade(&pool));
        pool
    }

    /// The handle.
    pub(crate) fn handle(self: &Arc<Pool>) -> CUmemoryPool {
        handle_of(self)
    }

    /// What other processes know it by, if it can be exported or was imported.
    pub(crate) fn name(&self) -> Option<PoolName> {
        self.name
    }

    /// The chunk that a piece begins in: first address and size.
    pub(crate) fn chunk(&self, piece: u64) -> Option<(u64, u64)> {
        self.blocks().chunk(piece).map(|chunk| (chunk.start, chunk.bytes))
    }

    /// Its handle, and where in that the piece begins.
    pub(super) fn part(&self, piece: u64) -> Option<(HandleId, u64)> {
        self.blocks().chunk(piece).map(|chunk| chunk.part(piece))
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in use now, and the most there ever were.
    pub(crate) fn used(&self) -> (u64, u64) {
        self.blocks().used
    }

    /// Bytes taken from the card now, and the most there ever were.
    pub(crate) fn reserved(&self) -> (u64, u64) {
        self.blocks().reserved
    }

    /// The high-water marks start anew.
    pub(crate) fn reset_used_high(&self) {
        let mut blocks = self.blocks();
        blocks.used.1 = blocks.used.0;
    }

    /// As [`Pool::reset_used_high`].
    pub(crate) fn reset_reserved_high(&self) {
        let mut blocks = self.blocks();
        blocks.reserved.1 = blocks.reserved.0;
    }

    fn reuse(&self) -> Reuse {
        let attributes = self.attributes.lock().unwrap_or_else(PoisonError::into_inner);
        // They are on from the start.
        let [followers, finished, waiting] =
            REUSE.map(|attribute| attributes.get(&attribute).is_none_or(|value| *value != 0));
        Reuse { followers, finished, waiting }
    }

    /// A piece for a stream, of the number given: where it begins, and what the stream must wait for before it uses it.
    pub(crate) fn allocate(
        self: &Arc<Pool>,
        stream: u64,
        bytes: u64,
    ) -> Outcome<(u64, Vec<Arc<Completion>>)> {
        crate::faults::at_call(Point::Alloc)?;
        if bytes > card().config().card_bytes {
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        let Taken { start, waits } = self.take(bytes, Asker { stream, reuse: self.reuse() })?;
        let kind = Kind::Plain(Some(Arc::clone(self)));
        space::write().insert(Area::new(start, bytes, 0, self.device, kind));
        Ok((start, waits))
    }

    /// Of what is there, else of new chunks; where there can be none, of what others have freed.
    fn take(&self, bytes: u64, asker: Asker) -> Outcome<Taken> {
        let mut blocks = self.blocks();
        if let Some(taken) = blocks.take(bytes, asker, false) {
            return Ok(taken);
        }
        let mut grown = blocks.grow(bytes, asker);
        if grown.is_err() {
            blocks.trim(0);
            grown = blocks.grow(bytes, asker);
        }
        if grown.is_err()
            && asker.reuse.waiting
            && let Some(taken) = blocks.take(bytes, asker, true)
        {
            return Ok(taken);
        }
        let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        match grown {
            Ok(()) => {}
            Err(Refused::Limit) => return Err(full),
            Err(Refused::Card) => {
                // It lies in too many places: once it is nobody's, the card has room for it in one.
                let ends: Vec<_> = blocks.freed().map(|freed| Arc::clone(&freed.done)).collect();
                drop(blocks);
                for end in ends {
                    end.wait();
                }
                blocks = self.blocks();
                blocks.settle(|freed| freed.done.finished().is_some());
                blocks.trim(0);
                if let Some(taken) = blocks.take(bytes, asker, false) {
                    return Ok(taken);
                }
                blocks.grow(bytes, asker).map_err(|_| full)?;
            }
        }
        blocks.take(bytes, asker, false).ok_or(full)
    }

    /// A piece was freed in a stream of that context; the free ends with `done`.
    pub(crate) fn freed(&self, area: &Area, context: u64, done: Arc<Completion>) {
        self.blocks().give_back(area.start, area.bytes, Some(Freed::new(done, context)));
    }

    /// It was destroyed: what holds no piece is the card's from here on.
    pub(super) fn end(&self) {
        self.destroyed.store(true, Ordering::Relaxed);
        self.trim(0);
    }

    /// Gives back to the card what holds no piece, down to `keep` bytes.
    pub(crate) fn trim(&self, keep: u64) {
        self.blocks().trim(keep);
    }

    /// The host has waited for frees.
    fn settle(&self, is_over: impl Fn(&Freed) -> bool) {
        let mut blocks = self.blocks();
        blocks.settle(is_over);
        let destroyed = self.destroyed.load(Ordering::Relaxed);
        blocks.trim(if destroyed { 0 } else { self.threshold.load(Ordering::Relaxed) });
    }

    /// The pool that a handle names.
    pub(crate) fn by_handle(handle: CUmemoryPool) -> Outcome<Arc<Pool>> {
        POOLS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
    }
}

/// `cuMemFree` of a piece: waits for nobody, and the memory is its pool's at once.
pub(super) fn free_at_once(area: &Arc<Area>) -> Outcome {
    let Kind::Plain(Some(pool)) = &area.kind else { return Err(CUresult::CUDA_ERROR_INVALID_VALUE) };
    let leaving = Leaving::begin(area)?;
    if leaving.is_used() {
        leaving::keep(leaving);
    }
    pool.blocks().give_back(area.start, area.bytes, None);
    Ok(())
}

fn all() -> Vec<Arc<Pool>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
}

/// The work at `place` in a stream waits for other work.
pub(crate) fn follow<'a>(place: Place, awaited: impl Iterator<Item = &'a Arc<Completion>>) {
    let mut awaited = awaited.peekable();
    if awaited.peek().is_none() {
        return;
    }
    let pools = all();
    for awaited in awaited {
        for pool in &pools {
            pool.blocks().freed().for_each(|freed| freed.follow(place, awaited.place));
        }
    }
}

/// The host has waited for the work at these places, of a device's streams.
pub(crate) fn reached(device: usize, places: &[Place]) {
    settle(device, |freed| places.iter().any(|place| freed.is_before(*place)));
}

/// The host has waited for all work of a context.
pub(crate) fn drained(context: &Context) {
    settle(context.device, |freed| freed.context == context.id && freed.done.finished().is_some());
}

/// Pools give back what is beyond their thresholds: at whichever of these moments.
fn settle(device: usize, is_over: impl Fn(&Freed) -> bool) {
    leaving::let_go();
    for pool in all() {
        // Another device's streams may have freed pieces of it.
        if pool.device == device || pool.blocks().freed().any(|freed| is_over(freed)) {
            pool.settle(&is_over);
        }
    }
}
