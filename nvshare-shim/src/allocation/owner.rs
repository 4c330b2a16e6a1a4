//! Whose an address is. The driver carries plain memory between devices by itself; mapped memory, as ours is, it touches
//! from the device that has access and from no other, so who copies or fills asks here first.

use crate::cuda::sys::{CUcontext, CUdevice};
use crate::device;
use crate::memory::map::{ALLOCATIONS, Allocation};
use crate::streams::order;

/// An allocation of ours at some address.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The device that the memory is on, as the driver numbers it.
    pub device: CUdevice,
    /// A context of that device.
    pub context: CUcontext,
    allocation: Allocation,
}

impl Owner {
    /// Whether work on the device `from` can reach the memory.
    pub fn is_reachable(&self, from: CUdevice) -> bool {
        self.device == from
            || device::by_index(self.allocation.device)
                .is_some_and(|device| device.state().peers.contains(&from))
    }
}

/// Whose the memory at `address` is; `None`: not ours.
pub fn owner(address: u64) -> Option<Owner> {
    let (_, allocation) = ALLOCATIONS.find(address)?;
    let device = device::by_index(allocation.device)?;
    // Memory left behind by a context that is gone is reached by another one of its device.
    let home = if allocation.context == 0 { device.state().home } else { Some(allocation.context) };
    let context = home.or_else(|| order::context_on(device.kind.ordinal)).unwrap_or(0);
    Some(Owner {
        device: device.kind.ordinal,
        context: std::ptr::with_exposed_provenance_mut(context),
        allocation,
    })
}
