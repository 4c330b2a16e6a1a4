//! What must stay free on a device where no agent keeps a reserve, so that what is out can come back: nobody may take its place,
//! and pinned host memory takes some of the device (on an H200 2 MiB for each GiB).

#![expect(unsafe_code, reason = "the driver is called")]

use std::time::{Duration, Instant};

use crate::device::Device;
use crate::driver::driver;
use crate::streams;

/// What drivers take meanwhile, on a large device; on a small one a thousandth of it.
const MARGIN: u64 = 64 << 20;
/// How long is waited for what is out.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pinned host memory takes this part of its size.
const PINNED: u64 = 512;

/// What must be free besides `out` bytes that are, or shall be, out.
pub fn beside(total: u64, out: u64) -> u64 {
    MARGIN.min(total / 1024) + out / PINNED
}

/// Whether `bytes` can be taken of the device. While memory is out only a test has put it there, and
/// brings it back in a moment, which is waited for: the bare call would not be refused because of that.
pub fn comes(device: &Device, bytes: u64) -> bool {
    let began = Instant::now();
    loop {
        let (missing, out) = {
            let state = device.state();
            (state.space.accounts().missing, state.space.returning())
        };
        let (mut free, mut total) = (0, 0);
        // SAFETY: places for the two answers. Of another device nothing can be asked.
        let asked = streams::current_device() == Some(device.kind.ordinal)
            && unsafe { driver().cuMemGetInfo_v2(&raw mut free, &raw mut total) }.ok();
        let needed = bytes.saturating_add(out).saturating_add(beside(total as u64, out));
        // What is freed while it is on its way out or in keeps its memory until it is there.
        if !asked || missing == 0 || free as u64 >= needed {
            return true;
        }
        if began.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
