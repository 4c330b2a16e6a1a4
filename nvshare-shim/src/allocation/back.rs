//! Putting memory behind an extent, within the grant; and taking a span apart.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::stream_ordered;
use crate::cuda::CUresult;
use crate::device::{self, Device, vmm};
use crate::driver::driver;
use crate::memory::extent::{Extent, ExtentId, Presence};
use crate::memory::space::{Addresses, Piece, Remains};
use crate::turn::{dead, run_state};
use crate::{log, shadow};

/// What came of [`back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backed {
    /// It is arriving, mapped, with access set and undefined contents.
    Yes,
    /// The grant is used up.
    NoGrant,
    /// It is not missing (any more).
    NotMissing,
    /// The driver refused; the extent is as it was.
    Refused(CUresult),
}

/// Makes memory for a missing extent and maps it at its address; what the application maps itself is mapped nowhere yet.
pub fn back(device: &Device, id: ExtentId) -> Backed {
    let (start, bytes, readers, asked) = {
        let mut state = device.state();
        match state.space.get(id).map(Extent::presence) {
            Some(Presence::Absent | Presence::Swapped) => {}
            _ => return Backed::NotMissing,
        }
        if !state.space.begin_arrival(id) {
            return Backed::NoGrant;
        }
        // Before the driver has made it: whoever reads the device meanwhile must not take it for somebody else's.
        device.publish(&state);
        let extent = state.space.extent(id);
        let asked = state.space.behind(id).map(|(behind, _)| behind.asked);
        (extent.start, extent.bytes, device.readers(&state), asked)
    };
    let made = device.kind.create(bytes, asked).and_then(|(handle, exportable)| {
        if asked.is_some() {
            return Ok((handle, exportable));
        }
        // SAFETY: an arriving extent has reserved addresses with nothing behind them, and is ours alone; the handle is
        // new and has its size.
        match unsafe { vmm::map(start, bytes, handle, &readers) } {
            Ok(()) => Ok((handle, exportable)),
            Err(code) => {
                // SAFETY: the handle is new and mapping it failed.
                let _ = unsafe { vmm::release(handle) };
                Err(code)
            }
        }
    });
    let mut state = device.state();
    match made {
        Ok((handle, exportable)) => {
            let extent = state.space.extent_mut(id);
            (extent.handle, extent.exportable, extent.at_home) = (handle, exportable, asked.is_none());
            let now = device.readers(&state);
            device.publish(&state);
            drop(state);
            // A peer came meanwhile, and found this extent without memory. (It arrives: nobody else moves or frees it.)
            if now != readers
                && asked.is_none()
                && let Err(code) = vmm::set_access(start, bytes, &now)
            {
                log::warning!("cannot let a peer reach {start:#x}: {}", driver().error_name(code));
            }
            Backed::Yes
        }
        Err(code) => {
            drop(state);
            abandon(device, id);
            Backed::Refused(code)
        }
    }
}

/// Takes the memory of an arriving extent back that could not be put where it belongs, which ended in `code`.
pub fn unback(device: &Device, id: ExtentId, code: CUresult) {
    if code.is_final() {
        dead::on_device_error(code);
    }
    let handle = device.state().space.extent(id).handle;
    // SAFETY: the handle is the extent's, and nobody used it.
    if let Err(code) = unsafe { vmm::release(handle) } {
        log::warning!("cannot take back memory: {}", driver().error_name(code));
    }
    abandon(device, id);
}

/// An arriving extent has no memory after all.
fn abandon(device: &Device, id: ExtentId) {
    let mut state = device.state();
    state.space.abandon_arrival(id);
    device.publish(&state);
    let span = state.space.extent(id).span;
    let remains = state.space.reap(span);
    drop(state);
    bury(device, remains);
}

/// What could not be given back because a device had failed, by the index of its device.
static LEFT: Mutex<Vec<(usize, Remains)>> = Mutex::new(Vec::new());

fn left() -> MutexGuard<'static, Vec<(usize, Remains)>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No device of this process has failed any more: what was freed meanwhile is given back.
pub fn bury_what_was_left() {
    for (index, remains) in std::mem::take(&mut *left()) {
        if let Some(device) = device::by_index(index) {
            bury(device, Some(remains));
        }
    }
}

/// Gives what is left of a span back to the driver and to the arenas. No work can reach it any more. What the driver does
/// not take while a device has failed waits until its contexts are gone.
pub fn bury(device: &Device, remains: Option<Remains>) {
    let Some(mut remains) = remains else { return };
    if dead::is_over() {
        return;
    }
    let mut resident = 0;
    let mut whole = true;
    while let Some(&Piece { start, bytes, handle, mapped }) = remains.pieces.last() {
        // SAFETY: the span is out of the records, so nobody else unmaps it, and whoever freed it waited for the work
        // that could reach it (S5).
        let unmapped = if mapped { unsafe { vmm::unmap(start, bytes) } } else { Ok(()) };
        if unmapped == Err(CUresult::CUDA_ERROR_DEINITIALIZED) {
            // The process ends, and the driver has taken everything back already.
            dead::on_device_error(CUresult::CUDA_ERROR_DEINITIALIZED);
            return;
        }
        if unmapped.is_err() && dead::has_failed(device) {
            left().push((device.index, remains));
            given_back(device, resident);
            return;
        }
        remains.pieces.pop();
        resident += bytes;
        if let Err(code) = unmapped {
            log::warning!("cannot unmap freed memory at {start:#x}: {}", driver().error_name(code));
            whole = false;
        }
        // SAFETY: the handle is the one that was mapped there.
        if let Err(code) = unsafe { vmm::release(handle) }
            && code != CUresult::CUDA_ERROR_DEINITIALIZED
        {
            log::warning!("cannot release freed memory at {start:#x}: {}", driver().error_name(code));
        }
    }
    if whole {
        // Before the addresses can be somebody else's.
        device.state().space.parted(remains.start);
    }
    if whole && remains.addresses == Addresses::Home {
        device.state().homes.give_back(remains.start, remains.bytes);
    } else if whole && remains.addresses == Addresses::Pool {
        stream_ordered::chunk_gone(remains.start);
    } else if whole {
        // SAFETY: nothing is mapped in it now, and its addresses are in no record.
        if let Err(code) = unsafe { vmm::unreserve(remains.start, remains.bytes) }
            && code != CUresult::CUDA_ERROR_DEINITIALIZED
        {
            log::warning!(
                "cannot give back the addresses at {:#x}: {}",
                remains.start,
                driver().error_name(code)
            );
        }
    }
    shadow::give_back(device, remains.slots);
    given_back(device, resident);
}

/// `resident` bytes are the driver's again.
fn given_back(device: &Device, resident: u64) {
    let mut state = device.state();
    state.space.forget(resident);
    device.publish(&state);
    // What is missing may find room now; and if what went was the last that was missing, somebody is to hear that all is there.
    let concerns = state.space.accounts().missing > 0 || state.announce;
    drop(state);
    if concerns {
        device.wake();
    }
    run_state::reconsider();
}
