//! The death of devices. After an error for good no call in a failed device's contexts succeeds any more: the gate opens for
//! good, so that the application meets its own error, and nothing is moved until the contexts with that error are gone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nvshare_common::protocol::ToAgent;

use super::run_state;
use crate::cuda::CUresult;
use crate::cuda::sys::CUdevice;
use crate::device::{self, Device};
use crate::driver::driver;
use crate::{line, log, streams};

static DEAD: AtomicBool = AtomicBool::new(false);
/// The driver has shut down: the process ends.
static OVER: AtomicBool = AtomicBool::new(false);
/// The devices that failed. An error for good ends all contexts of the process on its card, those that are made later too
/// (an illegal address on an H200).
static FAILED: Mutex<Failed> = Mutex::new(Failed { devices: BTreeSet::new(), unknown: false });
/// See [`FAILED`].
#[derive(Debug)]
struct Failed {
    devices: BTreeSet<CUdevice>,
    /// There was an error that no context answers with: it may be any.
    unknown: bool,
}

/// Whether the driver has shut down, and taken everything back.
pub(crate) fn is_over() -> bool {
    OVER.load(Ordering::Acquire)
}

/// Whether a device failed in a way that no call in its contexts survives.
pub(crate) fn is_dead() -> bool {
    DEAD.load(Ordering::Acquire)
}

/// Whether it was this device, as far as is known.
pub(crate) fn has_failed(device: &Device) -> bool {
    if !is_dead() {
        return false;
    }
    let failed = failed();
    is_over() || failed.unknown || failed.devices.contains(&device.kind.ordinal)
}

/// A call returned a sticky error: the gate opens for good, so that the application sees its own error, as soon as the devices
/// that live have all of their memory; nothing is moved out any more, until the contexts with that error are gone.
pub(crate) fn on_device_error(code: CUresult) {
    if code == CUresult::CUDA_ERROR_DEINITIALIZED {
        OVER.store(true, Ordering::Release);
    } else {
        if is_dead() && streams::current_device().is_some_and(|here| failed().devices.contains(&here)) {
            return;
        }
        let (broken, unknown) = streams::broken();
        let mut failed = failed();
        failed.unknown |= unknown || (broken.is_empty() && failed.devices.is_empty());
        failed.devices.extend(broken);
    }
    if !DEAD.swap(true, Ordering::AcqRel) && code != CUresult::CUDA_ERROR_DEINITIALIZED {
        let name = driver().error_name(code);
        log::warning!("{name}: every further CUDA call on this device will fail; nothing is moved any more");
        line::send(&ToAgent::Dead { why: name });
    }
    // Where the process is only ending, there is nobody to tell; but its last calls must not wait at the gate.
    for device in device::all() {
        if !has_failed(device) && device.state().space.accounts().missing > 0 {
            // No agent grants anything to who is dead.
            device.state().space.set_terms(|terms| terms.unlimited = true);
        }
        device.wake();
    }
    run_state::reconsider();
}

fn failed() -> MutexGuard<'static, Failed> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A context is gone. If it was the last with an error, the process lives on as without one, and what could not be given back
/// before can be: says whether that is so.
pub(crate) fn context_ended() -> bool {
    if !is_dead() || is_over() {
        return false;
    }
    let (broken, unknown) = streams::broken();
    let healthy = {
        let mut failed = failed();
        failed.devices = broken;
        failed.unknown = unknown || (failed.unknown && streams::has_context());
        failed.devices.is_empty() && !failed.unknown
    };
    if !healthy || !DEAD.swap(false, Ordering::AcqRel) {
        return false;
    }
    log::info!("the contexts with the error are gone: memory may move again");
    run_state::may_stop_again();
    line::send(&ToAgent::Revived);
    true
}
