//! What is known of an allocation, for who answers questions about addresses; and how much memory there is.

use super::{opened, pools, stream_ordered};
use crate::cuda::sys;
use crate::device::{self, sizes};
use crate::memory::map::{ALLOCATIONS, Of};

/// The start and length of the allocation that `pointer` lies in.
pub fn find(pointer: sys::CUdeviceptr) -> Option<(sys::CUdeviceptr, usize)> {
    let (start, allocation) = ALLOCATIONS.find(pointer)?;
    Some((start, allocation.bytes as usize))
}

/// What is known of an allocation.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its first byte.
    pub start: sys::CUdeviceptr,
    /// What the application asked for.
    pub bytes: u64,
    /// Its context.
    pub context: sys::CUcontext,
    /// Its device, as the driver numbers it.
    pub device: sys::CUdevice,
    /// Whether network cards may reach it.
    pub rdma: bool,
    /// Whether it can be shared by CUDA IPC.
    pub ipc: bool,
    /// A number that no other allocation has, or had.
    pub number: u64,
    /// What the application believes of `SYNC_MEMOPS`.
    pub sync: bool,
    /// The pool that it is a piece of.
    pub pool: Option<stream_ordered::Found>,
}

/// Sets what the application believes of `SYNC_MEMOPS` of the allocation that starts there.
pub fn set_sync(start: sys::CUdeviceptr, sync: bool) {
    ALLOCATIONS.set_sync(start, sync);
}

/// Whether an allocation of ours starts at `pointer`.
pub fn is_allocation(pointer: sys::CUdeviceptr) -> bool {
    ALLOCATIONS.find(pointer).is_some_and(|(start, _)| start == pointer)
}

/// What is known of the allocation that `pointer` lies in, if it is ours, or another process's and opened here.
pub fn describe(pointer: sys::CUdeviceptr) -> Option<Described> {
    let Some((start, allocation)) = ALLOCATIONS.find(pointer) else { return opened::describe(pointer) };
    let device = device::by_index(allocation.device)?;
    let pool = matches!(allocation.of, Of::Pool(_)).then(|| stream_ordered::pool_of(start)).flatten();
    Some(Described {
        start,
        bytes: allocation.bytes,
        context: std::ptr::with_exposed_provenance_mut(allocation.context),
        device: device.kind.ordinal,
        rdma: device.kind.rdma && pool.is_none(),
        ipc: device.kind.is_exportable() && pool.is_none(),
        number: allocation.number,
        sync: allocation.sync,
        pool,
    })
}

/// Free and total memory as this client may see it, where the agent set a limit.
pub fn info() -> Option<(usize, usize)> {
    let (device, _) = device::current().ok()??;
    stream_ordered::settle();
    pools::refresh();
    let needed = device.state().space.accounts().needed();
    let (total, free) = sizes::figures(device.id, device.total, needed)?;
    Some((free as usize, total as usize))
}
