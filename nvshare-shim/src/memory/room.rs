//! What must stay free on a device where no agent keeps a reserve, so that what is out can come back: nobody may take its place,
//! and pinned host memory takes some of the device (on an H200 2 MiB for each GiB).

use crate::driver::driver;

/// What drivers take meanwhile, on a large device; on a small one a thousandth of it.
const MARGIN: u64 = 64 << 20;
/// Pinned host memory takes this part of its size.
const PINNED: u64 = 512;

/// What must be free besides `out` bytes that are, or shall be, out.
pub fn beside(total: u64, out: u64) -> u64 {
    MARGIN.min(total / 1024) + out / PINNED
}

/// Whether `bytes` can be taken of the current context's device, of which `out` bytes are to come back.
pub fn is_left(bytes: u64, out: u64) -> bool {
    let (mut free, mut total) = (0, 0);
    // SAFETY: places for the two answers.
    let asked = unsafe { driver().cuMemGetInfo_v2(&raw mut free, &raw mut total) }.ok();
    let needed = bytes.saturating_add(out).saturating_add(beside(total as u64, out));
    !asked || free as u64 >= needed
}
