//! What pinned host memory takes of a card, so that it can be reached from there: on an H200 2 MiB for each GiB, in whole steps.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::HandleId;
use nvshare_sim_card::config::MAX_CARDS;

use super::GRANULARITY;
use crate::call::Outcome;
use crate::device::card;

/// Pinned memory for which one step is taken.
const STEP: u64 = 1 << 30;

/// Pinned memory of this process on one card, and what is taken for it.
struct Pins {
    bytes: u64,
    taken: Vec<HandleId>,
}

static PINS: [Mutex<Pins>; MAX_CARDS] =
    [const { Mutex::new(Pins { bytes: 0, taken: Vec::new() }) }; MAX_CARDS];

fn pins(device: usize) -> MutexGuard<'static, Pins> {
    PINS[device].lock().unwrap_or_else(PoisonError::into_inner)
}

/// So much is to be pinned; an error if the card has no room for what it takes.
pub(super) fn add(device: usize, bytes: u64) -> Outcome {
    let mut pins = pins(device);
    while pins.taken.len() < ((pins.bytes + bytes) / STEP) as usize {
        let taken = card().create(device, GRANULARITY, 0);
        let Ok(taken) = taken else {
            trim(&mut pins);
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        };
        pins.taken.push(taken);
    }
    pins.bytes += bytes;
    Ok(())
}

/// So much is not pinned any more.
pub(super) fn remove(device: usize, bytes: u64) {
    let mut pins = pins(device);
    pins.bytes -= bytes;
    trim(&mut pins);
}

fn trim(pins: &mut Pins) {
    while pins.taken.len() > (pins.bytes / STEP) as usize {
        if let Some(taken) = pins.taken.pop() {
            card().let_go(taken);
        }
    }
}
