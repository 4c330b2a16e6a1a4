//! Which processes use a card, and how much of its memory each.

use std::ffi::c_uint;

use crate::device::{Device, card};
use crate::parameters::{Places, Room};
use crate::{Return, export};

/// `nvmlProcessInfo_v1_t`.
#[repr(C)]
struct Process1 {
    pid: c_uint,
    used: u64,
}

/// `nvmlProcessInfo_v2_t`, and `nvmlProcessInfo_t` since: with the MIG slice, of which there is none.
#[repr(C)]
struct Process2 {
    pid: c_uint,
    used: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

const NO_SLICE: c_uint = u32::MAX;

impl From<(u32, u64)> for Process1 {
    fn from((pid, used): (u32, u64)) -> Process1 {
        Process1 { pid, used }
    }
}

impl From<(u32, u64)> for Process2 {
    fn from((pid, used): (u32, u64)) -> Process2 {
        Process2 { pid, used, gpu_instance: NO_SLICE, compute_instance: NO_SLICE }
    }
}

/// Processes that hold memory of the card.
fn computing(device: Device) -> Result<Vec<(u32, u64)>, Return> {
    let (cards, index) = card(device)?;
    Ok(cards.usage(index).processes)
}

/// There is no graphics and no MPS on a simulated card.
fn none(device: Device) -> Result<Vec<(u32, u64)>, Return> {
    card(device).map(|_| Vec::new())
}

export! {
    fn nvmlDeviceGetComputeRunningProcesses(device: Device, count: Room, to: Places<Process1>) {
        to.fill(count, computing(device)?.into_iter().map(Process1::from))
    }

    fn nvmlDeviceGetComputeRunningProcesses_v2(device: Device, count: Room, to: Places<Process2>) {
        to.fill(count, computing(device)?.into_iter().map(Process2::from))
    }

    fn nvmlDeviceGetComputeRunningProcesses_v3(device: Device, count: Room, to: Places<Process2>) {
        to.fill(count, computing(device)?.into_iter().map(Process2::from))
    }

    fn nvmlDeviceGetGraphicsRunningProcesses(device: Device, count: Room, to: Places<Process1>) {
        to.fill(count, none(device)?.into_iter().map(Process1::from))
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v2(device: Device, count: Room, to: Places<Process2>) {
        to.fill(count, none(device)?.into_iter().map(Process2::from))
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: Device, count: Room, to: Places<Process2>) {
        to.fill(count, none(device)?.into_iter().map(Process2::from))
    }

    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(device: Device, count: Room, to: Places<Process2>) {
        to.fill(count, none(device)?.into_iter().map(Process2::from))
    }
}
