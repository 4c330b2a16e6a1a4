//! Memory pools: `cuMemAllocAsync` and what it takes its memory from. Memory goes back to the card as soon as its free is
//! reached in stream order, whatever the release threshold says.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUmemoryPool, CUresult};

use super::space::{self, Kind};
use super::{piece, plain};
use crate::device::card;
use crate::export::Outcome;
use crate::handles::Registry;
use crate::stream::Stream;
use crate::work::{Custom, Submitted, Work};

/// All pools that were not destroyed.
pub(crate) static POOLS: Registry<Pool> = Registry::new();

/// What allocations in stream order come from.
pub(crate) struct Pool {
    /// Where its memory is.
    pub(crate) device: usize,
    /// Attributes that can be set and have no effect, by number.
    pub(crate) attributes: Mutex<HashMap<u32, u64>>,
    used: AtomicU64,
    high: AtomicU64,
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
        Arc::new(Pool {
            device,
            attributes: Mutex::default(),
            used: AtomicU64::new(0),
            high: AtomicU64::new(0),
        })
    }

    /// Bytes in use now, and the most there ever were.
    pub(crate) fn used(&self) -> (u64, u64) {
        (self.used.load(Ordering::Relaxed), self.high.load(Ordering::Relaxed))
    }

    /// The high-water mark starts anew.
    pub(crate) fn reset_high(&self) {
        self.high.store(self.used.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) fn gave_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
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
    POOLS.remove(handle);
    Ok(())
}

/// Allocates at once: the address is valid in the stream from here on.
pub(crate) fn allocate(stream: &Arc<Stream>, pool: CUmemoryPool, bytes: u64) -> Outcome<u64> {
    let pool = Pool::by_handle(pool)?;
    refuse_capture(stream)?;
    if pool.device >= card().config().cards as usize {
        return Err(CUresult::CUDA_ERROR_INVALID_DEVICE);
    }
    let area = plain::allocate(&stream.context, bytes, Some(Arc::clone(&pool)))?;
    let used = pool.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
    pool.high.fetch_max(used, Ordering::Relaxed);
    Ok(area.start)
}

/// Frees in stream order. Work of other streams that still uses the memory then is a violation.
pub(crate) fn free(stream: &Arc<Stream>, start: u64) -> Outcome {
    let area = space::find(start).filter(|area| area.start == start && matches!(area.kind, Kind::Plain(_)));
    let area = area.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    refuse_capture(stream)?;
    let custom = Custom {
        name: "cuMemFreeAsync",
        touches: Vec::new(),
        run: Box::new(move |timeline| {
            timeline.sleep();
            plain::remove(&area, "cuMemFreeAsync").map_err(|_| {
                let what = piece(area.start, area.bytes);
                crate::strict::violation(&format!(
                    "cuMemFreeAsync of {what}: it was freed before its turn came"
                ));
                CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            })
        }),
    };
    match crate::work::submit(stream, Work::Custom(Arc::new(custom)))? {
        Submitted::Running(_) => Ok(()),
        Submitted::Captured => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
    }
}

/// Memory nodes of graphs are not simulated.
fn refuse_capture(stream: &Arc<Stream>) -> Outcome {
    if crate::capture::is_capturing(stream) { Err(CUresult::CUDA_ERROR_NOT_SUPPORTED) } else { Ok(()) }
}
