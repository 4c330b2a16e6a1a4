//! Memory in stream order and pools, for the tests of these.

use super::Word;
use crate::ok;

pub(crate) fn default_pool() -> Word {
    let mut pool = 0;
    ok!(cuDeviceGetDefaultMemPool(&raw mut pool, 0_i32));
    pool
}

/// A pool of device 0; a limit of 0 is none.
pub(crate) fn made_pool(limit: usize) -> Word {
    let mut pool = 0;
    // `CUmemPoolProps`: pinned memory of a device, and after two words of handles its most bytes.
    let mut properties = [0_u64; 11];
    (properties[0], properties[1], properties[3]) = (1, 1, limit as u64);
    ok!(cuMemPoolCreate(&raw mut pool, properties.as_ptr()));
    pool
}

/// A pool's attribute: 5 and 6 are what it took from the card now and at most, 7 and 8 what is in use of it.
pub(crate) fn pool_bytes(pool: Word, attribute: u32) -> u64 {
    let mut value = 0_u64;
    ok!(cuMemPoolGetAttribute(pool, attribute, &raw mut value));
    value
}

/// The same in MiB.
pub(crate) fn pool_mib(pool: Word, attribute: u32) -> u64 {
    pool_bytes(pool, attribute) >> 20
}

pub(crate) fn set_threshold(pool: Word, mut bytes: u64) {
    ok!(cuMemPoolSetAttribute(pool, 4_u32, &raw mut bytes));
}

/// A piece of the default pool.
pub(crate) fn in_stream_order(bytes: usize, stream: Word) -> Word {
    let mut start = 0;
    ok!(cuMemAllocAsync(&raw mut start, bytes, stream));
    start
}

pub(crate) fn from_pool(bytes: usize, pool: Word, stream: Word) -> Word {
    let mut start = 0;
    ok!(cuMemAllocFromPoolAsync(&raw mut start, bytes, pool, stream));
    start
}
