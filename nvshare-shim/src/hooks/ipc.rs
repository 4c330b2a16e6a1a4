//! CUDA IPC. The driver shares plain memory only, by a handle of its own; of memory of ours the application gets a ticket in a
//! handle's place, which the library in another process knows. Handles of the driver's own go to the driver.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use nvshare_common::share::Ticket;

use super::{Bare, below, room, unswappable};
use crate::cuda::CUresult;
use crate::cuda::sys::{CUdeviceptr, CUipcMemHandle};
use crate::link::share;
use crate::{allocation, life, streams, turn};

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`: the one flag there is, and it must be given.
const LAZY_PEER_ACCESS: u32 = 1;

pub(crate) unsafe fn get<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: *mut CUipcMemHandle,
    at: CUdeviceptr,
) -> CUresult {
    let none_current = || streams::current_context().is_none();
    if !life::active() || handle.is_null() || allocation::find(at).is_none() || none_current() {
        // SAFETY: the application's own arguments.
        return unsafe { unswappable::export_one(bare, at) };
    }
    if let Err(error) = streams::check_current() {
        return error;
    }
    // The thread that answers begins outside the pass.
    if share::place().is_none() {
        return bare.call();
    }
    below::hear(bare);
    let _pass = turn::pass();
    match share::ticket(at) {
        Some(ticket) => {
            // SAFETY: the application's place for the handle, which is as long as a ticket.
            unsafe { handle.cast::<[u8; 64]>().write(ticket) };
            CUresult::CUDA_SUCCESS
        }
        None => bare.call(),
    }
}

pub(crate) unsafe fn open<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    handle: CUipcMemHandle,
    flags: u32,
) -> CUresult {
    let bytes = handle.reserved.map(|byte| byte as u8);
    let Some(ticket) = Ticket::read(&bytes).filter(|_| life::active()) else {
        // SAFETY: the application's own arguments.
        return unsafe { room::lazy(bare) };
    };
    if at.is_null() || flags != LAZY_PEER_ACCESS {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    match share::open(ticket) {
        Ok(address) => {
            // SAFETY: the application's place for the address.
            unsafe { at.write(address) };
            CUresult::CUDA_SUCCESS
        }
        Err(error) => error,
    }
}

pub(crate) unsafe fn close<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr) -> CUresult {
    if !life::active() {
        return bare.call();
    }
    allocation::opened::close(at).unwrap_or_else(|| bare.call())
}
