//! What the uprobes saw of one process, client or not.

use std::collections::BTreeMap;

use nvshare_common::probe::Call;
use nvshare_common::units::{Bytes, DevicePtr};

use crate::moment::Moment;
use crate::observation::{Counts, Observation};

/// How many live allocations of one process are remembered.
const ALLOCATIONS: usize = 65_536;

/// A process as it was observed.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Its name.
    pub name: String,
    /// All its calls.
    pub counts: Counts,
    /// Its last call.
    pub last_call: Moment,
    /// Its last launch.
    pub last_launch: Moment,
    /// Records about it that were lost.
    pub lost: u64,
    /// Too much to remember: the figures below are inexact even if nothing was lost.
    pub overflowed: bool,
    /// Device memory it allocated and has not freed.
    pub allocated: Bytes,
    /// Managed memory it allocated and has not freed.
    pub managed: Bytes,
    /// Calls that asked for managed memory to be moved, and their bytes.
    pub prefetched: Bytes,
    /// Faults of managed memory.
    pub uvm_faults: u64,
    /// Managed bytes that moved, both ways.
    pub uvm_bytes: Bytes,
    live: BTreeMap<u64, (Bytes, bool)>,
}

impl Observed {
    /// How many processes are remembered at a time.
    pub const PROCESSES: usize = 8192;

    /// Whether figures may be wrong.
    pub fn inexact(&self) -> bool {
        self.lost > 0 || self.overflowed
    }

    /// Books one observation about it.
    pub fn book(&mut self, observation: &Observation) {
        match *observation {
            Observation::Activity { counts, last_call, last_launch, lost, .. } => {
                self.counts = counts;
                self.last_call = last_call;
                self.last_launch = last_launch;
                self.lost = lost;
            }
            Observation::Allocated { call, range, .. } => {
                self.freed(range.start);
                if self.live.len() >= ALLOCATIONS {
                    self.overflowed = true;
                    return;
                }
                let managed = call == Call::AllocManaged;
                self.live.insert(range.start.0, (range.bytes, managed));
                let sum = if managed { &mut self.managed } else { &mut self.allocated };
                sum.0 = sum.0.saturating_add(range.bytes.0);
            }
            Observation::Freed { address, .. } => self.freed(address),
            Observation::Prefetched { range, .. } => {
                self.prefetched.0 = self.prefetched.0.saturating_add(range.bytes.0);
            }
            Observation::Uvm { faults, to_device, to_host, .. } => {
                self.uvm_faults += faults;
                self.uvm_bytes.0 = self.uvm_bytes.0.saturating_add(to_device.0).saturating_add(to_host.0);
            }
            Observation::ContextDestroyed { .. } | Observation::Exec { .. } => self.forget_memory(),
            _ => {}
        }
    }

    fn freed(&mut self, address: DevicePtr) {
        if let Some((bytes, managed)) = self.live.remove(&address.0) {
            let sum = if managed { &mut self.managed } else { &mut self.allocated };
            *sum = sum.saturating_sub(bytes);
        }
    }

    fn forget_memory(&mut self) {
        self.live.clear();
        self.allocated = Bytes::ZERO;
        self.managed = Bytes::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observation::Process;
    use nvshare_common::units::DeviceRange;

    #[test]
    fn memory_is_counted_until_it_is_freed_or_its_context_goes() {
        let process = Process { pid: 1, start: 1 };
        let mut observed = Observed::default();
        let allocated = |start, call| Observation::Allocated {
            process,
            call,
            range: DeviceRange { start: DevicePtr(start), bytes: Bytes(10) },
        };
        observed.book(&allocated(100, Call::Alloc));
        observed.book(&allocated(200, Call::AllocManaged));
        assert_eq!((observed.allocated, observed.managed), (Bytes(10), Bytes(10)));
        // The same address again: the free in between was lost.
        observed.book(&allocated(100, Call::Alloc));
        assert_eq!(observed.allocated, Bytes(10));
        observed.book(&Observation::Freed { process, address: DevicePtr(200) });
        observed.book(&Observation::Freed { process, address: DevicePtr(300) });
        assert_eq!(observed.managed, Bytes::ZERO);
        observed.book(&Observation::ContextDestroyed { process });
        assert_eq!(observed.allocated, Bytes::ZERO);
    }
}
