//! Which processes use a card, and how much of its memory each.

use std::ffi::{c_uint, c_void};

use crate::device::{Device, card};
use crate::{Outcome, Return, export};

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

/// Fills the caller's array, or says how long it has to be.
///
/// # Safety
/// `count` is null or valid; `to` is null or has room for as many `T` as `count` says.
unsafe fn list<T: From<(u32, u64)>>(found: &[(u32, u64)], count: *mut c_uint, to: *mut c_void) -> Outcome {
    if count.is_null() {
        return Err(Return::InvalidArgument);
    }
    // SAFETY: by this function's contract.
    let room = unsafe { count.replace(found.len() as c_uint) } as usize;
    if found.len() > room {
        return Err(Return::InsufficientSize);
    }
    if found.is_empty() {
        return Ok(());
    }
    if to.is_null() {
        return Err(Return::InvalidArgument);
    }
    for (index, process) in found.iter().enumerate() {
        // SAFETY: there is room for all of them, as was checked.
        unsafe { to.cast::<T>().add(index).write(T::from(*process)) };
    }
    Ok(())
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
    fn nvmlDeviceGetComputeRunningProcesses(device: Device, count: *mut c_uint, to: *mut c_void) {
        // SAFETY: the caller's array of `nvmlProcessInfo_v1_t`.
        unsafe { list::<Process1>(&computing(device)?, count, to) }
    }

    fn nvmlDeviceGetComputeRunningProcesses_v2(device: Device, count: *mut c_uint, to: *mut c_void) {
        // SAFETY: the caller's array of `nvmlProcessInfo_v2_t`.
        unsafe { list::<Process2>(&computing(device)?, count, to) }
    }

    fn nvmlDeviceGetComputeRunningProcesses_v3(device: Device, count: *mut c_uint, to: *mut c_void) {
        // SAFETY: the caller's array of `nvmlProcessInfo_t`.
        unsafe { list::<Process2>(&computing(device)?, count, to) }
    }

    fn nvmlDeviceGetGraphicsRunningProcesses(device: Device, count: *mut c_uint, to: *mut c_void) {
        // SAFETY: the caller's array of `nvmlProcessInfo_v1_t`.
        unsafe { list::<Process1>(&none(device)?, count, to) }
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v2(device: Device, count: *mut c_uint, to: *mut c_void) {
        // SAFETY: the caller's array of `nvmlProcessInfo_v2_t`.
        unsafe { list::<Process2>(&none(device)?, count, to) }
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: Device, count: *mut c_uint, to: *mut c_void) {
        // SAFETY: the caller's array of `nvmlProcessInfo_t`.
        unsafe { list::<Process2>(&none(device)?, count, to) }
    }

    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(device: Device, count: *mut c_uint, to: *mut c_void) {
        // SAFETY: the caller's array of `nvmlProcessInfo_t`.
        unsafe { list::<Process2>(&none(device)?, count, to) }
    }
}
