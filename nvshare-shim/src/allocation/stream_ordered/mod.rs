//! Stream-ordered memory. The driver's pools are what the application knows, by their handles and with all that can be set of them;
//! the memory behind is ours: chunks that are spans like any other, moved by the engine. A warm allocation or free makes no
//! call of the driver, and tells the agent nothing.
//!
//! - [`mod@take`], [`mod@give`]: a piece, and back. [`finish`]: what work is known to be finished, so that its memory is anybody's.
//! - [`release`]: chunks go back to the card; [`answers`]: the figures of a pool.
//!
//! Pools that are somebody else's affair too (exported, imported, of other memory) stay the driver's: [`super::pools`].

mod answers;
mod finish;
mod give;
mod release;
mod take;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::answers::{figure, is_set, reset};
pub use self::finish::stream_leaves;
pub(crate) use self::finish::{After, before, context_over, synchronised};
pub use self::give::{freed, give};
pub use self::release::{chunk_gone, settle, spare, trim};
pub use self::take::{holds, take};
use crate::cuda::sys::{CUdevice, CUmemoryPool};
use crate::device::{self, Device};
use crate::memory::map::{ALLOCATIONS, Of};
use crate::memory::pool::{Lane, Pool, chunk_of};
use crate::streams::{Mark, Relaxed};

/// `CU_MEMPOOL_ATTR_*`: may a stream have what another freed when that is seen to be finished, or wait for it; the threshold.
const REUSE_ALLOW_OPPORTUNISTIC: u32 = 2;
const REUSE_ALLOW_INTERNAL_DEPENDENCIES: u32 = 3;
const RELEASE_THRESHOLD: u32 = 4;

/// A pool of ours.
struct Entry {
    pool: Pool,
    device: &'static Device,
    /// The driver's.
    handle: usize,
    /// The most that it may reserve.
    limit: u64,
    /// What it keeps over a synchronisation.
    threshold: u64,
    opportunistic: bool,
    dependencies: bool,
    /// Whether the application destroyed it: what it holds goes with its last piece.
    destroyed: bool,
    /// The application has synchronised: what is above this goes.
    due: Option<u64>,
}

#[derive(Default)]
struct Pools {
    entries: BTreeMap<u64, Entry>,
    /// By the driver's handle.
    numbers: BTreeMap<usize, u64>,
    /// Handles of pools that the application made and that may be ours: their device, and the most they may reserve.
    made: BTreeMap<usize, (CUdevice, u64)>,
    /// What `cuMemAllocAsync` uses on a device.
    current: BTreeMap<CUdevice, usize>,
    /// Behind what was freed in a lane up to a number.
    marks: BTreeMap<Lane, Vec<(u64, Arc<Mark>)>>,
    /// How many frees there were.
    frees: u64,
    /// The last number given to a pool.
    last: u64,
}

static POOLS: Mutex<Option<Pools>> = Mutex::new(None);
/// Something was freed that is not known to be finished, or a pool holds more than its threshold.
static UNSETTLED: AtomicBool = AtomicBool::new(false);
/// There is a pool of ours.
static ANY: AtomicBool = AtomicBool::new(false);

struct Locked(MutexGuard<'static, Option<Pools>>);

/// Not held during any call of the driver, nor with a device's state.
fn pools() -> Locked {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    pools.get_or_insert_default();
    Locked(pools)
}

impl std::ops::Deref for Locked {
    type Target = Pools;
    fn deref(&self) -> &Pools {
        self.0.as_ref().expect("made before it is lent")
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Pools {
        self.0.as_mut().expect("made before it is lent")
    }
}

/// What the pools of a device grow by.
fn chunk(device: &Device) -> u64 {
    chunk_of(device.total, device.granularity)
}

/// The application made a pool of device memory that nobody else is given; it may reserve at most `limit` bytes, if that is not zero.
pub fn pool_made(pool: CUmemoryPool, device: CUdevice, limit: u64) {
    pools().made.insert(pool.addr(), (device, if limit == 0 { u64::MAX } else { limit }));
}

/// The application destroyed one. What is allocated from it stays.
pub fn pool_gone(pool: CUmemoryPool) {
    let mut pools = pools();
    pools.made.remove(&pool.addr());
    pools.current.retain(|_, current| *current != pool.addr());
    let number = pools.numbers.remove(&pool.addr());
    if let Some(entry) = number.and_then(|number| pools.entries.get_mut(&number)) {
        (entry.destroyed, entry.due) = (true, Some(0));
    }
    drop(pools);
    if number.is_some() {
        finish::wake();
    }
}

/// The application chose another pool for a device.
pub fn another_is_current() {
    pools().current.clear();
}

/// The number of the pool that a call means, `None` where it is not ours. The driver is asked about each once.
fn number_of(device: &'static Device, named: Option<CUmemoryPool>) -> Option<u64> {
    let ordinal = device.kind.ordinal;
    {
        let pools = pools();
        let handle = named.map(<*mut _>::addr).or_else(|| pools.current.get(&ordinal).copied());
        if let Some(number) = handle.and_then(|handle| pools.numbers.get(&handle)) {
            return (pools.entries[number].device.index == device.index).then_some(*number);
        }
    }
    let _relaxed = Relaxed::new();
    let handle = match named {
        Some(pool) => pool,
        None => answers::current(ordinal)?,
    };
    let made = pools().made.get(&handle.addr()).copied();
    let limit = match made {
        Some((on, limit)) if on == ordinal => limit,
        None if answers::default(ordinal) == Some(handle) => u64::MAX,
        _ => return None,
    };
    let asked = |attribute| answers::of_driver(handle, attribute);
    let threshold = asked(RELEASE_THRESHOLD)?;
    let (opportunistic, dependencies) =
        (asked(REUSE_ALLOW_OPPORTUNISTIC)? != 0, asked(REUSE_ALLOW_INTERNAL_DEPENDENCIES)? != 0);
    let mut pools = pools();
    if named.is_none() {
        pools.current.insert(ordinal, handle.addr());
    }
    if let Some(number) = pools.numbers.get(&handle.addr()) {
        return (pools.entries[number].device.index == device.index).then_some(*number);
    }
    pools.last += 1;
    let number = pools.last;
    let entry = Entry {
        pool: Pool::new(chunk(device)),
        device,
        handle: handle.expose_provenance(),
        limit,
        threshold,
        opportunistic,
        dependencies,
        destroyed: false,
        due: None,
    };
    pools.entries.insert(number, entry);
    pools.numbers.insert(handle.addr(), number);
    ANY.store(true, Ordering::Relaxed);
    Some(number)
}

/// The pool that an address is a piece of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The driver's handle.
    pub handle: usize,
    /// A number that no other pool has.
    pub number: u64,
    /// What it grows by.
    pub chunk: u64,
}

/// See [`Found`].
pub fn pool_of(at: u64) -> Option<Found> {
    let (_, allocation) = ALLOCATIONS.find(at)?;
    let Of::Pool(number) = allocation.of else { return None };
    pools().entries.get(&number).map(|entry| Found { handle: entry.handle, number, chunk: entry.pool.chunk })
}

/// Whether the chunk that begins there holds nothing that matters: it need not be copied.
pub fn is_unused(start: u64) -> bool {
    ANY.load(Ordering::Relaxed) && pools().entries.values().any(|entry| entry.pool.is_unused(start))
}

/// The device of a pool that is ours, or will be with its first piece.
pub fn device_of(pool: CUmemoryPool) -> Option<CUdevice> {
    let (made, number) = {
        let pools = pools();
        let number = pools.numbers.get(&pool.addr());
        (
            pools.made.get(&pool.addr()).map(|(device, _)| *device),
            number.map(|number| pools.entries[number].device),
        )
    };
    let is_default = |device: &&'static Device| answers::default(device.kind.ordinal) == Some(pool);
    made.or_else(|| {
        Some(number.or_else(|| device::all().into_iter().find(|device| is_default(device)))?.kind.ordinal)
    })
}
