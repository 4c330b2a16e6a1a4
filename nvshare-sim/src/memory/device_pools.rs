//! The pools of each device: the one that it has from the start, and the one that its streams allocate from.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::{CUmemoryPool, CUresult};

use super::pool::{POOLS, Pool};
use crate::call::Outcome;

#[derive(Default)]
struct Current {
    default: HashMap<usize, CUmemoryPoolAddress>,
    chosen: HashMap<usize, CUmemoryPoolAddress>,
}

type CUmemoryPoolAddress = usize;

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

fn with_current<T>(act: impl FnOnce(&mut Current) -> T) -> T {
    act(CURRENT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// The pool that a device has from the start.
pub(crate) fn default_of(device: usize) -> CUmemoryPool {
    with_current(|current| {
        let made = || POOLS.insert::<std::ffi::c_void>(Pool::new(device, 0)) as usize;
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
        pool.end();
    }
    Ok(())
}
