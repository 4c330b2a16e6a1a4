//! The counter page: one memfd that a client creates, seals against resizing and hands to the agent with its `Hello`.
//! The client writes, the agent reads, at any time and also after the client's death. Nothing in it is trusted: the
//! agent checks seals and size before it maps the page, and believes NVML where the two disagree.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bytes::Bytes;
use crate::ids::DeviceId;
use crate::probe::Call;

/// The page's size in bytes: exactly the memfd's, whatever [`Counters`] needs of it.
pub const PAGE_BYTES: usize = 4096;

/// How many devices one client can use under nvshare: more than any node has cards. Further ones run unmanaged.
pub const MAX_DEVICES: usize = 32;

/// Driver calls by [`Call`], of those that are compared: index `call as usize`.
pub type CallCounts = [AtomicU64; Call::COMPARED];

/// The layout of the page. All zero is a valid, empty page.
#[repr(C)]
pub struct Counters {
    /// Calls on probed functions made by the application's threads. Counted *before* the call is made, so that at any
    /// moment the uprobes have seen at most this many, unless something bypassed the shim.
    pub application: CallCounts,
    /// The same for the shim's own threads ([`crate::probe::ENGINE_THREAD_PREFIX`]): the swap engine's calls.
    pub engine: CallCounts,
    /// Threads of the application that are inside a call that waits for the device right now: such a client is not
    /// idle, however long ago its last launch was.
    pub waiting: AtomicU64,
    /// What the client holds on each device it uses, in the order in which it first used them.
    pub devices: [DeviceCounters; MAX_DEVICES],
    /// One more than the number of a descriptor through which the agent may reach the client, where its directory was
    /// removed; 0: none.
    pub door: AtomicU64,
    /// The cookie (`SO_COOKIE`) of the socket that this number means: numbers are given out again. Written before `door`.
    pub door_cookie: AtomicU64,
}

/// One device's part of the page. `uuid` is written before `in_use` is set (release) and never changes afterwards.
#[derive(Debug)]
#[repr(C)]
pub struct DeviceCounters {
    /// 1 once the entry is valid.
    pub in_use: AtomicU64,
    /// The device's UUID, as two native-endian words of its 16 bytes.
    pub uuid: [AtomicU64; 2],
    /// Bytes of extents with physical memory on the device.
    pub resident: AtomicU64,
    /// Bytes of extents without.
    pub swapped: AtomicU64,
    /// Bytes of host shadows that hold contents.
    pub shadow: AtomicU64,
    /// Bytes passed through that cannot be moved.
    pub unswappable: AtomicU64,
    /// Bytes copied to the host by swap out, and to the device by swap in, since the start.
    pub copied_out: AtomicU64,
    /// See `copied_out`.
    pub copied_in: AtomicU64,
    /// Bytes that a swap out released without copying because the shadow already held them, or they were zero.
    pub clean: AtomicU64,
    /// Bytes of managed memory, wherever they are: the driver moves them, and they are in no other figure here.
    pub managed: AtomicU64,
}

/// A copy of one device's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// See [`DeviceCounters`].
    pub resident: Bytes,
    /// See [`DeviceCounters`].
    pub swapped: Bytes,
    /// See [`DeviceCounters`].
    pub shadow: Bytes,
    /// See [`DeviceCounters`].
    pub unswappable: Bytes,
    /// See [`DeviceCounters`].
    pub copied_out: Bytes,
    /// See [`DeviceCounters`].
    pub copied_in: Bytes,
    /// See [`DeviceCounters`].
    pub clean: Bytes,
    /// See [`DeviceCounters`].
    pub managed: Bytes,
}

const _: () = assert!(size_of::<Counters>() <= PAGE_BYTES);

impl Counters {
    /// An empty page.
    pub const fn new() -> Counters {
        Counters {
            application: [const { AtomicU64::new(0) }; Call::COMPARED],
            engine: [const { AtomicU64::new(0) }; Call::COMPARED],
            waiting: AtomicU64::new(0),
            devices: [const { DeviceCounters::new() }; MAX_DEVICES],
            door: AtomicU64::new(0),
            door_cookie: AtomicU64::new(0),
        }
    }

    /// The entry of `device`, taking a free one on first use; `None` when [`MAX_DEVICES`] others are in use.
    /// Only the client calls this, from one thread at a time.
    pub fn device(&self, device: DeviceId) -> Option<&DeviceCounters> {
        for entry in &self.devices {
            match entry.id() {
                Some(id) if id == device => return Some(entry),
                Some(_) => {}
                None => {
                    entry.uuid[0].store(word(device, 0), Ordering::Relaxed);
                    entry.uuid[1].store(word(device, 8), Ordering::Relaxed);
                    entry.in_use.store(1, Ordering::Release);
                    return Some(entry);
                }
            }
        }
        None
    }

    /// All calls counted so far: the application's, then the engine's. Those that are not compared are 0.
    pub fn calls(&self) -> ([u64; Call::COUNT], [u64; Call::COUNT]) {
        let read = |counts: &CallCounts| {
            std::array::from_fn(|index| counts.get(index).map_or(0, |count| count.load(Ordering::Acquire)))
        };
        (read(&self.application), read(&self.engine))
    }

    /// What is held on each device in use.
    pub fn holdings(&self) -> impl Iterator<Item = (DeviceId, Holdings)> + '_ {
        self.devices.iter().filter_map(|entry| Some((entry.id()?, entry.holdings())))
    }
}

impl Default for Counters {
    fn default() -> Counters {
        Counters::new()
    }
}

impl DeviceCounters {
    const fn new() -> DeviceCounters {
        DeviceCounters {
            in_use: AtomicU64::new(0),
            uuid: [const { AtomicU64::new(0) }; 2],
            resident: AtomicU64::new(0),
            swapped: AtomicU64::new(0),
            shadow: AtomicU64::new(0),
            unswappable: AtomicU64::new(0),
            copied_out: AtomicU64::new(0),
            copied_in: AtomicU64::new(0),
            clean: AtomicU64::new(0),
            managed: AtomicU64::new(0),
        }
    }

    fn id(&self) -> Option<DeviceId> {
        if self.in_use.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.uuid[0].load(Ordering::Relaxed).to_ne_bytes());
        id[8..].copy_from_slice(&self.uuid[1].load(Ordering::Relaxed).to_ne_bytes());
        Some(DeviceId(id))
    }

    fn holdings(&self) -> Holdings {
        let read = |counter: &AtomicU64| Bytes(counter.load(Ordering::Acquire));
        Holdings {
            resident: read(&self.resident),
            swapped: read(&self.swapped),
            shadow: read(&self.shadow),
            unswappable: read(&self.unswappable),
            copied_out: read(&self.copied_out),
            copied_in: read(&self.copied_in),
            clean: read(&self.clean),
            managed: read(&self.managed),
        }
    }
}

fn word(device: DeviceId, at: usize) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|index| device.0[at + index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_its_entry_and_a_full_page_refuses() {
        let page = Counters::new();
        for number in 0..MAX_DEVICES as u8 {
            page.device(DeviceId([number; 16])).unwrap().resident.store(u64::from(number), Ordering::Relaxed);
        }
        assert_eq!(page.device(DeviceId([3; 16])).unwrap().resident.load(Ordering::Relaxed), 3);
        assert!(page.device(DeviceId([99; 16])).is_none());
        assert_eq!(page.holdings().count(), MAX_DEVICES);
    }
}
