//! Memory pools: what allocation in stream order takes its memory from. A piece can be had again as soon as its free is reached
//! in stream order; what a pool holds beyond its release threshold goes back to the card at the next synchronisation, and
//! the rest when it is trimmed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUmemoryPool, CUresult};
use nvshare_sim_card::PoolName;

use super::blocks::Blocks;
use super::plain::Chunk;
use super::space::{self, Area, Kind};
use crate::call::Outcome;
use crate::completion::Completion;
use crate::device::card;
use crate::handles::Registry;

/// All pools that were not destroyed.
pub(crate) static POOLS: Registry<Pool> = Registry::new();

/// What allocations in stream order come from.
pub(crate) struct Pool {
    /// Where its memory is.
    pub(crate) device: usize,
    /// Attributes that can be set, by number. Only the release threshold has an effect.
    pub(crate) attributes: Mutex<HashMap<u32, u64>>,
    /// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
    pub(crate) threshold: AtomicU64,
    /// What other processes know it by, if it can be exported.
    name: Option<PoolName>,
    /// It is another process's: nothing is allocated from it here.
    pub(crate) is_imported: bool,
    destroyed: AtomicBool,
    blocks: Mutex<Blocks>,
    /// Frees whose turn has not come.
    leaving: Mutex<Vec<Leaving>>,
}

/// A piece that was freed in a stream.
struct Leaving {
    area: Arc<Area>,
    stream: u64,
    /// The free's turn.
    done: Arc<Completion>,
    /// Somebody disposes of the piece: the free when its turn comes, or who allocates again in the same stream before.
    taken: Arc<AtomicBool>,
}

#[derive(Default)]
struct Current {
    default: HashMap<usize, CUmemoryPoolAddress>,
    chosen: HashMap<usize, CUmemoryPoolAddress>,
}

type CUmemoryPoolAddress = usize;

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

impl Pool {
    pub(crate) fn new(device: usize) -> Arc<Pool> {
        Pool::named(device, None, false)
    }

    /// A pool that can be exported.
    pub(crate) fn exportable(device: usize) -> Arc<Pool> {
        Pool::named(device, Some(PoolName { number: card().pool_number(), card: device }), false)
    }

    /// Another process's pool.
    pub(crate) fn imported(name: PoolName) -> Arc<Pool> {
        Pool::named(name.card, Some(name), true)
    }

    fn named(device: usize, name: Option<PoolName>, is_imported: bool) -> Arc<Pool> {
        Arc::new(Pool {
            device,
            attributes: Mutex::default(),
            threshold: AtomicU64::new(0),
            name,
            is_imported,
            destroyed: AtomicBool::new(false),
            blocks: Mutex::default(),
            leaving: Mutex::default(),
        })
    }

    /// What other processes know it by, if it can be exported or was imported.
    pub(crate) fn name(&self) -> Option<PoolName> {
        self.name
    }

    /// Shows the block that a piece is of to `see`.
    pub(super) fn with_chunk<T>(&self, piece: u64, see: impl FnOnce(&Chunk) -> T) -> Option<T> {
        self.blocks().chunk(piece).map(see)
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

    /// A piece: of what is held, else of a new block; where the card is full, of what is about to come back.
    pub(super) fn take(&self, bytes: u64) -> Outcome<u64> {
        let mut blocks = self.blocks();
        if let Some(start) = blocks.take(bytes) {
            return Ok(start);
        }
        let mut grown = blocks.grow(self.device, bytes);
        if grown.is_err() {
            blocks.trim(0);
            grown = blocks.grow(self.device, bytes);
        }
        if grown.is_err() {
            drop(blocks);
            for leaving in std::mem::take(&mut *self.leaving()) {
                leaving.done.wait();
            }
            blocks = self.blocks();
            if let Some(start) = blocks.take(bytes) {
                return Ok(start);
            }
            blocks.trim(0);
            blocks.grow(self.device, bytes)?;
        }
        blocks.take(bytes).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)
    }

    pub(super) fn give_back(&self, area: &Area) {
        let mut blocks = self.blocks();
        if !area.leaving.load(Ordering::Relaxed) {
            blocks.leaves(area.bytes);
        }
        blocks.give_back(area.start, area.bytes);
        if self.destroyed.load(Ordering::Relaxed) {
            blocks.trim(0);
        }
    }

    /// A piece of the same size that was freed in this stream of that context: what comes after in the stream can have it at once.
    pub(crate) fn take_back(&self, stream: u64, context: u64, bytes: u64) -> Option<Arc<Area>> {
        let mut leaving = self.leaving();
        leaving.retain(|leaving| !leaving.taken.load(Ordering::Relaxed));
        let free = |leaving: &&Leaving| {
            leaving.stream == stream
                && leaving.area.bytes == bytes
                && leaving.area.context == context
                && !leaving.taken.swap(true, Ordering::AcqRel)
        };
        let old = Arc::clone(&leaving.iter().find(free)?.area);
        drop(leaving);
        self.blocks().stays(bytes);
        let mut space = space::write();
        space.areas.remove(&old.start);
        let pool = match &old.kind {
            Kind::Plain(pool) => pool.clone(),
            _ => None,
        };
        Some(space.insert(Area::new(old.start, bytes, old.context, old.device, Kind::Plain(pool))))
    }

    /// A piece was freed in a stream, whose turn for it is `done`.
    pub(crate) fn leaves(
        &self,
        area: &Arc<Area>,
        stream: u64,
        done: Arc<Completion>,
        taken: Arc<AtomicBool>,
    ) {
        self.blocks().leaves(area.bytes);
        let mut leaving = self.leaving();
        leaving.retain(|leaving| leaving.done.finished().is_none());
        leaving.push(Leaving { area: Arc::clone(area), stream, done, taken });
    }

    /// Gives back to the card what holds no piece, down to `keep` bytes.
    pub(crate) fn trim(&self, keep: u64) {
        self.blocks().trim(keep);
    }

    fn leaving(&self) -> MutexGuard<'_, Vec<Leaving>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool that a handle names.
    pub(crate) fn by_handle(handle: CUmemoryPool) -> Outcome<Arc<Pool>> {
        POOLS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
    }
}

fn with_current<T>(act: impl FnOnce(&mut Current) -> T) -> T {
    act(CURRENT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// The pool that a device has from the start.
pub(crate) fn default_of(device: usize) -> CUmemoryPool {
    with_current(|current| {
        let made = || POOLS.insert::<std::ffi::c_void>(Pool::new(device)) as usize;
        *current.default.entry(device).or_insert_with(made) as CUmemoryPool
    })
}

/// The pool that `cuMemAllocAsync` uses on a device.
pub(crate) fn of_device(device: usize) -> CUmemoryPool {
    let chosen = with_current(|current| current.chosen.get(&device).copied());
    chosen.map_or_else(|| default_of(device), |pool| pool as CUmemoryPool)
}

/// Chooses it.
pub(crate) fn choose(device: usize, pool: CUmemoryPool) {
    with_current(|current| current.chosen.insert(device, pool as usize));
}

/// Destroys a pool that the application made. What was allocated from it stays.
pub(crate) fn destroy(handle: CUmemoryPool) -> Outcome {
    let device = Pool::by_handle(handle)?.device;
    if default_of(device) == handle {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    with_current(|current| current.chosen.retain(|_, chosen| *chosen != handle as usize));
    if let Some(pool) = POOLS.remove(handle) {
        pool.destroyed.store(true, Ordering::Relaxed);
        pool.trim(0);
    }
    Ok(())
}

/// The host has synchronised with a device's work: its pools give back what is beyond their thresholds.
pub(crate) fn synchronised(device: usize) {
    POOLS.for_each(|pool| {
        if pool.device == device {
            pool.trim(pool.threshold.load(Ordering::Relaxed));
        }
    });
}
