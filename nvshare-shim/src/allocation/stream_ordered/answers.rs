//! What a pool is asked, and told: the figures are ours, with what the driver's own pool holds (it serves captures, and what is no
//! stream of ours); all else is the driver's.

#![expect(unsafe_code, reason = "the driver is called")]

use super::{
    RELEASE_THRESHOLD, REUSE_ALLOW_INTERNAL_DEPENDENCIES, REUSE_ALLOW_OPPORTUNISTIC, finish, pools, release,
};
use crate::cuda::sys::{CUdevice, CUmemoryPool};
use crate::driver::driver;

/// `CU_MEMPOOL_ATTR_*`: reserved now and at most, used now and at most.
const RESERVED: u32 = 5;
const RESERVED_HIGH: u32 = 6;
const USED: u32 = 7;
const USED_HIGH: u32 = 8;

/// The pool that `cuMemAllocAsync` uses on a device.
pub(super) fn current(device: CUdevice) -> Option<CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: `pool` is where the answer goes.
    unsafe { driver().cuDeviceGetMemPool(&raw mut pool, device) }.ok().then_some(pool)
}

/// The pool that a device has from the start.
pub(super) fn default(device: CUdevice) -> Option<CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: `pool` is where the answer goes.
    unsafe { driver().cuDeviceGetDefaultMemPool(&raw mut pool, device) }.ok().then_some(pool)
}

/// An attribute of a pool, as the driver has it.
pub(super) fn of_driver(pool: CUmemoryPool, attribute: u32) -> Option<u64> {
    let mut value = 0_u64;
    // SAFETY: the flags are 32 bits wide, the other attributes 64.
    unsafe { driver().cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()) }.ok().then_some(value)
}

/// Our part of a figure; `None`: the pool, or the attribute, is the driver's alone.
pub fn figure(pool: CUmemoryPool, attribute: u32) -> Option<u64> {
    if !(RESERVED..=USED_HIGH).contains(&attribute) || !pools().numbers.contains_key(&pool.addr()) {
        return None;
    }
    release::settle();
    let pools = pools();
    let pool = &pools.entries.get(pools.numbers.get(&pool.addr())?)?.pool;
    Some(match attribute {
        RESERVED => pool.reserved.now,
        RESERVED_HIGH => pool.reserved.most,
        USED => pool.used.now,
        _ => pool.used.most,
    })
}

/// The driver has agreed to an attribute's new value.
pub fn is_set(pool: CUmemoryPool, attribute: u32, value: u64) {
    let mut pools = pools();
    let Some(number) = pools.numbers.get(&pool.addr()).copied() else { return };
    let Some(entry) = pools.entries.get_mut(&number) else { return };
    match attribute {
        REUSE_ALLOW_OPPORTUNISTIC => entry.opportunistic = value != 0,
        REUSE_ALLOW_INTERNAL_DEPENDENCIES => entry.dependencies = value != 0,
        RELEASE_THRESHOLD => entry.threshold = value,
        _ => return,
    }
    finish::may_be_unsettled(entry);
}

/// So it has that a figure's high mark starts anew.
pub fn reset(pool: CUmemoryPool, attribute: u32) {
    let mut pools = pools();
    let Some(number) = pools.numbers.get(&pool.addr()).copied() else { return };
    let Some(entry) = pools.entries.get_mut(&number) else { return };
    match attribute {
        RESERVED_HIGH => entry.pool.reserved.reset(),
        USED_HIGH => entry.pool.used.reset(),
        _ => {}
    }
}
