//! Calls that make the driver take device memory: for the application (pools, physical handles, arrays), or for itself (contexts,
//! modules, lazily loaded kernels, graphs, streams). Where one fails for want of memory the agent is asked for room, as much as
//! the call needs, and the call is made again, until it succeeds or is refused.
//!
//! Nobody waits for room inside a pass of the gate: a drain would wait for it. And no call into a capture is repeated: what a
//! failed call leaves of it is the driver's own affair.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::time::Instant;

use super::Bare;
use crate::allocation::promise;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUdevice, CUstream};
use crate::driver::{Symbol, driver};
use crate::{life, line, link, streams};

/// What a call takes whose size nobody says. If that was too little, twice as much is asked for; if it cannot be had, half as
/// much, but no less than the least.
const GUESS: u64 = 64 << 20;
/// See [`GUESS`].
const LEAST: u64 = 4 << 20;
/// What is asked for before it is taken.
const LARGE: u64 = 64 << 20;
/// How often room is asked for: guesses go up to 2 GiB.
const TRIES: u32 = 6;

/// A call that takes memory for the driver itself.
pub(crate) unsafe fn retried<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    retry(bare, None)
}

/// A call that may take a little, mostly none: what is loaded lazily is loaded in it, or a table grows.
#[inline]
pub(crate) unsafe fn lazy<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    again(bare, bare.call(), None, None, || bare.call())
}

/// A call that takes about so many bytes on the current device, or nobody knows how many.
pub(crate) fn retry<F: Fn() -> CUresult>(bare: &Bare<F>, bytes: Option<u64>) -> CUresult {
    retry_with(bare, None, bytes, || bare.call())
}

/// A call that makes a context on `device`, or keeps it: there may be no current one to tell the device by. Before it returns the
/// agent has seen what the context costs, so that the first answer about free memory counts it.
pub(crate) fn retry_on<F: Fn() -> CUresult>(bare: &Bare<F>, device: Option<CUdevice>) -> CUresult {
    let was_there = device.is_some_and(|device| life::active() && keeps(bare, device));
    let result = retry_with(bare, device, None, || bare.call());
    if let Some(device) = device
        && result.ok()
        && life::active()
        && !was_there
    {
        promise::context_made(device);
    }
    result
}

/// Whether the call only adds a reference to a primary context that is there.
fn keeps<F: Fn() -> CUresult>(bare: &Bare<F>, device: CUdevice) -> bool {
    let (mut flags, mut active) = (0, 0);
    bare.symbol() == Symbol::cuDevicePrimaryCtxRetain
        // SAFETY: places for the two answers.
        && unsafe { driver().cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) }.ok()
        && active != 0
}

/// As [`retry`], on a device, the call being made by `attempt`.
pub(crate) fn retry_with<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    device: Option<CUdevice>,
    bytes: Option<u64>,
    attempt: impl Fn() -> CUresult,
) -> CUresult {
    let result = attempt();
    if life::active() {
        promise::driver_grew();
    }
    again(bare, result, device, bytes, attempt)
}

/// Memory for the application takes a grant first (A1): what is free at this moment may have been granted to somebody who is
/// about to take it. So the agent is asked for room for a large piece that the grant does not cover, before the driver is
/// asked for it. Small ones are not worth the time; the agent sees them afterwards. `false`: it cannot be had.
pub(crate) fn is_granted(device: CUdevice, bytes: u64) -> bool {
    let granted = |device: &crate::device::Device| device.state().space.accounts().slack() >= bytes;
    bytes < LARGE
        || !line::is_open()
        || crate::device::of_ordinal(device).is_none_or(granted)
        || link::want_room(Some(device), bytes, Instant::now() + link::ROOM_LIMIT)
}

/// The call was made, and answered `result`: again, as long as it is memory that it lacks and room is made for it.
#[inline]
pub(crate) fn again<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    result: CUresult,
    device: Option<CUdevice>,
    bytes: Option<u64>,
    attempt: impl Fn() -> CUresult,
) -> CUresult {
    if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return make_room(bare, device, bytes, attempt);
    }
    result
}

/// As [`again`], for work in `stream`.
#[inline]
pub(crate) fn again_in<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    result: CUresult,
    stream: CUstream,
    attempt: impl Fn() -> CUresult,
) -> CUresult {
    if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return if life::active() && streams::is_capturing(stream) {
            result
        } else {
            make_room(bare, None, None, attempt)
        };
    }
    result
}

#[cold]
fn make_room<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    device: Option<CUdevice>,
    bytes: Option<u64>,
    attempt: impl Fn() -> CUresult,
) -> CUresult {
    let mut result = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    if !life::active() {
        return result;
    }
    let deadline = Instant::now() + link::ROOM_LIMIT;
    let mut wanted = bytes.unwrap_or(GUESS).max(1);
    // So much cannot be had.
    let mut refused = u64::MAX;
    for _ in 0..TRIES {
        if wanted >= refused {
            break;
        }
        if !link::want_room(device, wanted, deadline) {
            if bytes.is_some() || wanted <= LEAST {
                break;
            }
            (refused, wanted) = (wanted, wanted / 2);
            continue;
        }
        crate::log::debug!("{} is tried again after room for {wanted} bytes was made", bare.symbol().name());
        result = attempt();
        if result != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            promise::driver_grew();
            break;
        }
        // Rounded up by the driver, in pieces, or only guessed.
        wanted = if bytes.is_some() { wanted.saturating_add(GUESS) } else { wanted.saturating_mul(2) };
    }
    result
}
