//! What processes share by handles of 64 bytes: memory and events, and the pieces of exported pools.

#![expect(unsafe_code, reason = "a descriptor that the caller passes as a pointer")]

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::Ordering;

use cudarc::driver::sys::{CUdeviceptr, CUevent, CUmemoryPool, CUresult};
use nvshare_sim_card::Ticket;

use super::vmm::DESCRIPTOR;
use crate::call::{Call, Outcome};
use crate::device::{self, card};
use crate::execution::capture;
use crate::execution::event::Event;
use crate::export::export;
use crate::memory::pool::{POOLS, Pool};
use crate::memory::shared;
use crate::parameters::{In, Out};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, which must be asked for.
const LAZY_PEER_ACCESS: c_uint = 1;

/// `CUipcMemHandle`, `CUipcEventHandle` and `CUmemPoolPtrExportData`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Handle(Ticket);

export! {
    fn cuIpcGetMemHandle(handle: Out<Handle>, address: CUdeviceptr) |cx| {
        handle.needed()?;
        cx.context()?;
        handle.set(Handle(shared::ticket(address)?))
    }

    fn cuIpcOpenMemHandle(pointer: Out<CUdeviceptr>, handle: Handle, flags: c_uint) |cx| {
        open(cx, pointer, &handle, flags)
    }

    fn cuIpcOpenMemHandle_v2(pointer: Out<CUdeviceptr>, handle: Handle, flags: c_uint) |cx| {
        open(cx, pointer, &handle, flags)
    }

    fn cuIpcCloseMemHandle(pointer: CUdeviceptr) |cx| {
        cx.context()?;
        capture::unsafe_call()?;
        shared::close(pointer)
    }

    fn cuIpcGetEventHandle(handle: Out<Handle>, event: CUevent) |cx| {
        handle.needed()?;
        handle.set(Handle(cx.event(event)?.ticket()?))
    }

    fn cuIpcOpenEventHandle(made: Out<CUevent>, handle: Handle) |cx| {
        made.needed()?;
        let context = cx.context()?;
        context.jam.pass();
        made.set(Event::open(context, &handle.0)?.handle())
    }

    fn cuMemPoolExportToShareableHandle(
        shareable: Out<c_int>, pool: CUmemoryPool, kind: c_uint, flags: c_ulonglong,
    ) |cx| {
        shareable.needed()?;
        let pool = Pool::by_handle(pool)?;
        // Only what was asked for when it was made, and by who made it.
        let is_given = kind == DESCRIPTOR && flags == 0 && !pool.is_imported;
        let name = pool.name().filter(|_| is_given).ok_or(INVALID)?;
        let descriptor = card().export_pool(name).map_err(|error| {
            eprintln!("nvshare-sim: cannot export a pool: {error}");
            CUresult::CUDA_ERROR_OPERATING_SYSTEM
        })?;
        pool.is_exported.store(true, Ordering::Release);
        shareable.set(descriptor.as_raw_fd())?;
        // The caller closes it.
        let _ = descriptor.into_raw_fd();
        Ok(())
    }

    fn cuMemPoolImportFromShareableHandle(
        made: Out<CUmemoryPool>, shareable: *mut c_void, kind: c_uint, flags: c_ulonglong,
    ) |cx| {
        made.needed()?;
        let descriptor = shareable as usize as c_int;
        if kind != DESCRIPTOR || flags != 0 || descriptor < 0 {
            return Err(INVALID);
        }
        // SAFETY: for this kind the argument is a descriptor that the caller keeps open during the call.
        let name = card().import_pool(unsafe { BorrowedFd::borrow_raw(descriptor) }).ok_or(INVALID)?;
        if name.card >= device::count() {
            return Err(INVALID);
        }
        made.set(POOLS.insert(Pool::imported(name)))
    }

    fn cuMemPoolExportPointer(data: Out<Handle>, pointer: CUdeviceptr) |cx| {
        data.needed()?;
        data.set(Handle(shared::ticket_of_piece(pointer)?))
    }

    fn cuMemPoolImportPointer(pointer: Out<CUdeviceptr>, pool: CUmemoryPool, data: In<Handle>) |cx| {
        pointer.needed()?;
        let (pool, data) = (Pool::by_handle(pool)?, data.get()?);
        pointer.set(shared::import(&*cx.context()?, &pool, &data.0)?)
    }
}

fn open(cx: &Call, pointer: Out<CUdeviceptr>, handle: &Handle, flags: c_uint) -> Outcome {
    pointer.needed()?;
    let context = cx.context()?;
    if flags != LAZY_PEER_ACCESS {
        return Err(INVALID);
    }
    capture::unsafe_call()?;
    pointer.set(shared::open(&context, &handle.0)?)
}
