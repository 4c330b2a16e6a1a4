//! Which memory the device of a stream has access to. Between two devices bare memory is carried by the driver; mapped memory, as
//! ours is, a device reaches only where it has been given access.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::contexts::device_of;
use crate::allocation::{self, owner};
use crate::cuda::sys::{CUcontext, CUdevice, CUstream};
use crate::cuda::{STREAM_LEGACY, STREAM_PER_THREAD};
use crate::driver::driver;
use crate::streams::{self, current_device};
use crate::{device, life};

/// The context that work in `stream` runs in.
pub(super) fn context_of(stream: CUstream) -> Option<CUcontext> {
    if stream == STREAM_LEGACY || stream == STREAM_PER_THREAD {
        return streams::current_context();
    }
    let mut context = std::ptr::null_mut();
    // SAFETY: the application's own stream; `context` is where the answer goes.
    unsafe { driver().cuStreamGetCtx(stream, &raw mut context) }.result().ok()?;
    (!context.is_null()).then_some(context)
}

/// The device that work in `stream` runs on.
pub(super) fn device_below(stream: CUstream) -> Option<CUdevice> {
    if stream == STREAM_LEGACY || stream == STREAM_PER_THREAD {
        return current_device();
    }
    context_of(stream).and_then(device_of)
}

/// Whether there is memory of ours at one of the addresses that the device of `stream` cannot reach. While the stream is
/// captured the forms for that break the capture (seen on an H200); there the device gets access, where it can have it.
pub(super) fn is_out_of_reach(stream: CUstream, addresses: &[u64]) -> bool {
    if !device::several() || !life::active() {
        return false;
    }
    let distant = distant(addresses, || device_below(stream));
    if distant.is_empty() {
        return false;
    }
    if streams::is_capturing(stream) {
        grant(&distant);
        return false;
    }
    true
}

/// The devices that have memory of ours at the addresses, each with `here`, which cannot reach it.
pub(super) fn distant(
    addresses: &[u64],
    here: impl FnOnce() -> Option<CUdevice>,
) -> Vec<(CUdevice, CUdevice)> {
    let owners: Vec<_> = addresses.iter().filter_map(|address| owner::owner(*address)).collect();
    if owners.is_empty() {
        return Vec::new();
    }
    let Some(here) = here() else { return Vec::new() };
    let distant = owners.iter().filter(|owner| !owner.is_reachable(here));
    distant.map(|owner| (owner.device, here)).collect()
}

/// Gives the second device of each pair access to all memory of the first, as the application could by itself.
pub(super) fn grant(pairs: &[(CUdevice, CUdevice)]) {
    for &(of, from) in pairs {
        let mut can = 0;
        // SAFETY: `can` is where the answer goes.
        let asked = unsafe { driver().cuDeviceCanAccessPeer(&raw mut can, from, of) };
        if asked.ok() && can != 0 {
            allocation::on_peer_access(of, from);
        }
    }
}
