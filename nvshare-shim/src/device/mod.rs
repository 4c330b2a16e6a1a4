//! The devices that this process uses, each with what it holds there under one lock. A device is met with the first
//! allocation in one of its contexts; a swap thread takes it up then.
//!
//! - [`vmm`]: the driver calls that put memory behind addresses; [`tiles`]: behind arrays; [`image`]: the fingerprint kernel, compiled for a kind of device.
//! - [`tasks`]: what the swap threads are told to do; [`home`]: the context that one works in.
//! - [`quarantine`]: freed, and perhaps still used; [`said`]: what the agent was told of what cannot be moved.
//! - [`terms`]: on what terms a device is used; [`sizes`]: what this process is told of its size.

#![expect(unsafe_code, reason = "the driver is called")]

pub mod home;
pub mod image;
pub mod quarantine;
pub mod said;
pub mod sizes;
pub mod tasks;
pub mod terms;
pub mod tiles;
pub mod vmm;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nvshare_common::bytes::Bytes;
use nvshare_common::counters::DeviceCounters;
use nvshare_common::ids::DeviceId;

use self::quarantine::Quarantined;
use self::said::Said;
use self::tasks::Task;
use self::vmm::Kind;
use crate::config::{self, BLOCK_BYTES, LARGEST_EXTENT};
use crate::cuda::{CUresult, sys};
use crate::driver::driver;
use crate::memory::ranges::Ranges;
use crate::memory::space::Space;
use crate::{counters, log};

/// Attributes of a device, as `cuda.h` numbers them.
const VIRTUAL_MEMORY_SUPPORTED: u32 = 102;
const RDMA_WITH_VIRTUAL_MEMORY_SUPPORTED: u32 = 110;
const DESCRIPTORS_SUPPORTED: u32 = 103;

/// One device that this process uses.
#[derive(Debug)]
pub struct Device {
    /// Its index in [`all`].
    pub index: usize,
    /// Its UUID.
    pub id: DeviceId,
    /// The memory that extents are made of.
    pub kind: Kind,
    /// Every span is a multiple of it.
    pub granularity: u64,
    /// The largest extent.
    pub extent_bytes: u64,
    /// All memory that the device has.
    pub total: u64,
    state: Mutex<State>,
    changed: Condvar,
    counters: Option<&'static DeviceCounters>,
}

/// What changes.
#[derive(Debug, Default)]
pub struct State {
    /// Spans, extents and accounts.
    pub space: Space,
    /// The free pieces of slabs.
    pub slabs: Ranges,
    /// Free addresses for what the application maps itself elsewhere: where the engine maps it.
    pub homes: Ranges,
    /// Freed, but perhaps still used by work under way.
    pub quarantine: Vec<Quarantined>,
    /// The context whose streams the engine uses.
    pub home: Option<usize>,
    /// Devices that may reach this one's memory, besides itself.
    pub peers: Vec<sys::CUdevice>,
    /// Counts what the swap thread should look at.
    pub news: u64,
    /// What the swap thread shall do.
    pub tasks: VecDeque<Task>,
    /// Contexts that the engine leaves or is about to, one for each call: what it does there ends early.
    pub leaving: Vec<usize>,
    /// Bytes of unswappable memory by reason.
    pub unswappable: BTreeMap<&'static str, u64>,
    /// What the agent was told of them.
    pub said: Said,
    /// Bytes of managed memory.
    pub managed: u64,
    /// The number of the reading of pools that is booked.
    pub pools_read: u64,
    /// What graphs may take again, of what they gave back when memory last left: booked for them until they did, or it leaves again.
    pub graphs_claim: u64,
    /// What the agent last said to a question whether more may be needed.
    pub answered: Option<Answered>,
    /// Whether `Resident` is to be said once nothing is missing.
    pub announce: bool,
    /// Bytes copied in since the last `Resident`.
    pub copied_in: u64,
    /// Whether the agent was told what this client needs since that last grew.
    pub wanted: u64,
}

/// What the agent last said to a question whether more may be needed.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// When.
    pub(crate) at: Instant,
    /// How much in all.
    pub(crate) total: u64,
    /// Whether it may.
    pub(crate) may: bool,
}

impl Device {
    /// What the process holds here.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for [`Device::wake`], at most for `limit`.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// There is something new for the swap thread. Not with the lock held.
    pub fn wake(&self) {
        self.state().news += 1;
        self.changed.notify_all();
    }

    /// Hands a task to the swap thread.
    pub fn order(&self, task: Task) {
        self.state().tasks.push_back(task);
        self.wake();
    }

    /// The devices that get access to an extent.
    pub fn readers(&self, state: &State) -> Vec<sys::CUdevice> {
        let mut readers = vec![self.kind.ordinal];
        readers.extend(state.peers.iter().copied().filter(|peer| *peer != self.kind.ordinal));
        readers
    }

    /// Writes what is held to the page that the agent reads.
    pub fn publish(&self, state: &State) {
        use std::sync::atomic::Ordering::Release;
        if let Some(counters) = self.counters {
            let accounts = state.space.accounts();
            counters.resident.store(accounts.resident, Release);
            counters.swapped.store(accounts.total.saturating_sub(accounts.resident), Release);
            counters.unswappable.store(accounts.unswappable, Release);
            counters.managed.store(state.managed, Release);
        }
    }

    /// Whether an agent can be told of it: one that it cannot see is used as without an agent.
    pub const fn is_manageable(&self) -> bool {
        self.counters.is_some()
    }

    /// Its counters on that page, where there was room for one more device.
    pub const fn counters(&self) -> Option<&'static DeviceCounters> {
        self.counters
    }
}

/// What is known of a device number.
#[derive(Clone, Copy, Debug)]
enum Known {
    Managed(&'static Device),
    /// Used as without the shim: it cannot do what swapping needs.
    Plain,
}

static KNOWN: RwLock<Vec<(sys::CUdevice, Known)>> = RwLock::new(Vec::new());
static MEETING: Mutex<()> = Mutex::new(());
/// How many devices the driver has, once one of them was met.
static SEEN: AtomicUsize = AtomicUsize::new(0);

/// All devices under nvshare, in the order in which they were met.
pub fn all() -> Vec<&'static Device> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    known
        .iter()
        .filter_map(|(_, known)| match known {
            Known::Managed(device) => Some(*device),
            Known::Plain => None,
        })
        .collect()
}

/// The device with that index in [`all`].
pub fn by_index(index: usize) -> Option<&'static Device> {
    find(|device| device.index == index)
}

/// The device with that UUID.
pub fn by_id(id: DeviceId) -> Option<&'static Device> {
    find(|device| device.id == id)
}

fn find(wanted: impl Fn(&Device) -> bool) -> Option<&'static Device> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    known.iter().find_map(|(_, known)| match known {
        Known::Managed(device) if wanted(device) => Some(*device),
        _ => None,
    })
}

/// Whether this process can work on more than one device. It need not have been met there: a copy that is made on a device
/// without any memory of ours can be one of memory of ours.
#[inline]
pub fn several() -> bool {
    SEEN.load(Ordering::Relaxed) > 1
}

/// The device of the current context, with the context that owns what is allocated now. `Ok(None)`: it is not under nvshare.
pub fn current() -> Result<Option<(&'static Device, usize)>, CUresult> {
    let mut context = std::ptr::null_mut();
    // SAFETY: `context` is where the answer goes.
    unsafe { driver().cuCtxGetCurrent(&raw mut context) }.result()?;
    if context.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
    crate::streams::check_current()?;
    let mut ordinal = 0;
    // SAFETY: `ordinal` is where the answer goes.
    unsafe { driver().cuCtxGetDevice(&raw mut ordinal) }.result()?;
    let owner = crate::streams::owner_under(context);
    Ok(of_ordinal(ordinal).map(|device| (device, owner)))
}

/// The device with that number, meeting it if this is the first time.
pub fn of_ordinal(ordinal: sys::CUdevice) -> Option<&'static Device> {
    let look_up = || {
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(number, _)| *number == ordinal).map(|(_, known)| *known)
    };
    let known = look_up().unwrap_or_else(|| {
        let _meeting = MEETING.lock().unwrap_or_else(PoisonError::into_inner);
        look_up().unwrap_or_else(|| meet(ordinal))
    });
    match known {
        Known::Managed(device) => Some(device),
        Known::Plain => None,
    }
}

fn meet(ordinal: sys::CUdevice) -> Known {
    let (index, mut devices) = (all().len(), 0);
    // SAFETY: `devices` is where the answer goes.
    if unsafe { driver().cuDeviceGetCount(&raw mut devices) }.ok() {
        SEEN.store(usize::try_from(devices).unwrap_or(1), Ordering::Relaxed);
    }
    let described = Device::describe(ordinal, index).and_then(|device| {
        let device: &'static Device = Box::leak(Box::new(device));
        // What is missing there could never come back without.
        if tasks::start(device) { Ok(device) } else { Err("there is no thread to swap it".to_owned()) }
    });
    let known = match described {
        Ok(device) => Known::Managed(device),
        Err(why) => {
            log::warning!("device {ordinal} is used without nvshare: {why}");
            Known::Plain
        }
    };
    let make_known = || {
        KNOWN.write().unwrap_or_else(PoisonError::into_inner).push((ordinal, known));
    };
    if let Known::Managed(device) = known {
        terms::met(device, make_known);
    } else {
        make_known();
    }
    known
}

/// The UUID of the device with that number; it need not be in use.
pub fn id_of(ordinal: sys::CUdevice) -> Result<DeviceId, CUresult> {
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: `uuid` is where the answer goes. The second form names a MIG slice.
    let asked = unsafe { driver().cuDeviceGetUuid_v2(&raw mut uuid, ordinal) };
    if !asked.ok() {
        // SAFETY: as above.
        unsafe { driver().cuDeviceGetUuid(&raw mut uuid, ordinal) }.result()?;
    }
    Ok(DeviceId(uuid.bytes.map(|byte| byte as u8)))
}

impl Device {
    fn describe(ordinal: sys::CUdevice, index: usize) -> Result<Device, String> {
        let attribute = |number| {
            let mut value = 0;
            // SAFETY: `value` is where the answer goes.
            unsafe { driver().cuDeviceGetAttribute(&raw mut value, number, ordinal) }.result().map(|()| value)
        };
        let name = |code| driver().error_name(code);
        if attribute(VIRTUAL_MEMORY_SUPPORTED).map_err(name)? == 0 {
            return Err("it has no virtual memory management (attribute 102), which swapping needs".into());
        }
        let rdma = attribute(RDMA_WITH_VIRTUAL_MEMORY_SUPPORTED).is_ok_and(|value| value != 0);
        let id = id_of(ordinal).map_err(name)?;
        let descriptors = attribute(DESCRIPTORS_SUPPORTED).is_ok_and(|value| value != 0);
        let kind = Kind { ordinal, rdma, shareable: Box::leak(Box::new(AtomicBool::new(descriptors))) };
        let granularity = kind.granularity().map_err(name)?;
        // Extents are multiples of the block; a granularity that does not divide it is met nowhere.
        if granularity == 0 || !granularity.is_power_of_two() {
            return Err(format!("its memory comes in units of {granularity} bytes, expected a power of two"));
        }
        let granularity = granularity.max(BLOCK_BYTES);
        let mut total = 0;
        // SAFETY: `total` is where the answer goes.
        unsafe { driver().cuDeviceTotalMem_v2(&raw mut total, ordinal) }.result().map_err(name)?;
        let extent_bytes = extent_bytes(total as u64).next_multiple_of(granularity);
        let counters = counters::page().device(id);
        if counters.is_none() {
            log::warning!("device {id} is one too many for the counter page: it is used as without an agent");
        }
        let state = State { space: Space::new(), ..State::default() };
        Ok(Device {
            index,
            id,
            kind,
            granularity,
            extent_bytes,
            total: total as u64,
            state: Mutex::new(state),
            changed: Condvar::new(),
            counters,
        })
    }
}

/// The largest extent on a device of `total` bytes: a swap of much of it should have many.
fn extent_bytes(total: u64) -> u64 {
    let share = (total / 64 / BLOCK_BYTES * BLOCK_BYTES).clamp(BLOCK_BYTES, LARGEST_EXTENT);
    config::get().extent_bytes.unwrap_or(share)
}

/// As the agent is told it.
pub fn held(device: &Device) -> nvshare_common::protocol::Held {
    let state = device.state();
    let accounts = state.space.accounts();
    nvshare_common::protocol::Held {
        device: device.id,
        granted: Bytes(accounts.granted),
        resident: Bytes(accounts.resident + accounts.unswappable),
        total: Bytes(accounts.needed()),
    }
}
