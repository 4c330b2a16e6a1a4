//! What the driver's own pools hold (those that may be exported or were imported, and what streams took that nobody saw made), and the
//! memory of graphs: counted by the driver's own figures, what its pools have reserved, not call by call. So a pool that keeps freed memory counts as what it is, whoever empties it (a synchronisation, a trim, the
//! end of a context) need not be known, and a warm allocation costs one atomic subtraction.
//!
//! Each device has headroom: what may be taken before the figures are looked at again, at most 1/64 of the device and never
//! beyond the limit. Beyond that, and every [`AGAIN`] while there is traffic, they are read; a thread of its own does the
//! latter, for a driver may make whoever asks wait, and nobody waits for that thread. No lock is held while they are read.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::promise::may_grow;
use super::unswappable::{account, account_with, report};
use crate::cuda::sys;
use crate::device::{self, Device, State};
use crate::driver::driver;
use crate::{life, log, threads};

/// How long after a change the figures are read at the latest.
const AGAIN: Duration = Duration::from_millis(100);
/// How often they are read while a pool holds memory and nothing is heard of it: a synchronisation gives it back silently.
const SELDOM: Duration = Duration::from_secs(1);
/// What may be taken unseen: this part of the device.
const UNSEEN: u64 = 64;
/// Devices with a headroom of their own; allocations on others are always looked at.
const DEVICES: usize = 64;

/// Labels of the two accounts.
pub const STREAM_ORDERED: &str = "stream_ordered";
/// See [`STREAM_ORDERED`].
pub const GRAPH: &str = "graph";

/// `CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT`, `CU_MEMPOOL_ATTR_USED_MEM_CURRENT`.
const RESERVED: u32 = 5;
const USED: u32 = 7;
/// `CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT`.
const GRAPH_RESERVED: u32 = 2;

static HEADROOM: [AtomicI64; DEVICES] = [const { AtomicI64::new(0) }; DEVICES];
/// Pools that the application made, with their devices. (Each device has one from the start besides.)
static MADE: Mutex<Vec<(usize, sys::CUdevice)>> = Mutex::new(Vec::new());
/// Something may have changed since the figures were read.
static STALE: AtomicBool = AtomicBool::new(false);
/// There is a pool in use, or a graph that allocates: without one no figure is ever read.
static USED_AT_ALL: AtomicBool = AtomicBool::new(false);
/// Some graph allocates.
static GRAPHS: AtomicBool = AtomicBool::new(false);
/// Numbers the readings: an older one never replaces a newer one.
static READINGS: AtomicU64 = AtomicU64::new(0);

fn made() -> MutexGuard<'static, Vec<(usize, sys::CUdevice)>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pool was made on a device.
pub fn pool_made(pool: sys::CUmemoryPool, device: sys::CUdevice) {
    made().push((pool.addr(), device));
    USED_AT_ALL.store(true, Ordering::Relaxed);
}

/// A pool is gone. What is still allocated from it shows in no figure but NVML's.
pub fn pool_gone(pool: sys::CUmemoryPool) {
    made().retain(|(known, _)| *known != pool.addr());
    changed();
}

/// The device of a pool that the application made.
pub fn device_of(pool: sys::CUmemoryPool) -> Option<sys::CUdevice> {
    made().iter().find(|(known, _)| *known == pool.addr()).map(|(_, device)| *device)
}

/// Takes `bytes` of the device's headroom; `false` where it has not so much: then [`allows`] decides.
#[inline]
pub fn unseen(ordinal: sys::CUdevice, bytes: usize) -> bool {
    let (Some(headroom), Ok(bytes)) = (HEADROOM.get(ordinal as usize), i64::try_from(bytes)) else {
        return false;
    };
    if headroom.fetch_sub(bytes, Ordering::Relaxed) >= bytes {
        return true;
    }
    headroom.fetch_add(bytes, Ordering::Relaxed);
    false
}

/// Reads the figures and says whether so much more may come from the pools of that device.
#[cold]
pub fn allows(ordinal: sys::CUdevice, bytes: usize) -> bool {
    let Some(device) = device::of_ordinal(ordinal) else {
        // Nobody counts what is taken there.
        if let Some(headroom) = HEADROOM.get(ordinal as usize) {
            headroom.store(i64::MAX / 2, Ordering::Relaxed);
        }
        return true;
    };
    USED_AT_ALL.store(true, Ordering::Relaxed);
    read();
    let grows = growth(ordinal, bytes);
    grows == 0 || may_grow(device, grows)
}

/// What the pools of that device lack for an allocation of `bytes`.
pub fn growth(ordinal: sys::CUdevice, bytes: usize) -> u64 {
    let (reserved, used) = figures(ordinal);
    (bytes as u64).saturating_sub(reserved.saturating_sub(used))
}

/// So much more may be reserved in a moment: it is booked until the next reading says what it was.
pub fn expect(ordinal: sys::CUdevice, bytes: usize) {
    if let Some(device) = device::of_ordinal(ordinal) {
        let grows = growth(ordinal, bytes);
        account(device, STREAM_ORDERED, |held| held.saturating_add(grows));
    }
}

/// Memory was taken or given back: the figures are read again soon.
#[inline]
pub fn changed() {
    if !STALE.load(Ordering::Relaxed) && USED_AT_ALL.load(Ordering::Relaxed) {
        wake();
    }
}

/// There is something to be said to the agent, not at once.
pub fn say_soon() {
    if !STALE.load(Ordering::Relaxed) {
        wake();
    }
}

/// A graph that allocates was made; from now on launches of graphs change the figures.
pub fn graph_allocates() {
    GRAPHS.store(true, Ordering::Relaxed);
    USED_AT_ALL.store(true, Ordering::Relaxed);
    changed();
}

/// A graph was launched.
#[inline]
pub fn graph_launched() {
    if GRAPHS.load(Ordering::Relaxed) {
        changed();
    }
}

/// Reads the figures if they may have changed: an answer about free memory follows.
pub fn refresh() {
    if STALE.load(Ordering::Relaxed) || HELD.load(Ordering::Relaxed) {
        read();
    }
}

/// Whether a pool or a graph held memory when they were last read.
static HELD: AtomicBool = AtomicBool::new(false);

/// Reads the figures of all devices that are in use, and books them.
pub fn read() {
    if !USED_AT_ALL.load(Ordering::Relaxed) {
        return;
    }
    let mut held = false;
    for device in device::all() {
        let number = READINGS.fetch_add(1, Ordering::AcqRel) + 1;
        let (reserved, _) = figures(device.kind.ordinal);
        let graphs = if GRAPHS.load(Ordering::Relaxed) { graph_memory(device.kind.ordinal) } else { 0 };
        held |= reserved > 0 || graphs > 0;
        book(device, number, reserved, graphs);
    }
    HELD.store(held, Ordering::Relaxed);
}

fn book(device: &'static Device, number: u64, reserved: u64, graphs: u64) {
    let newer = {
        let mut state = device.state();
        let newer = number > state.pools_read;
        state.pools_read = state.pools_read.max(number);
        newer
    };
    if !newer {
        return;
    }
    // What was read since stands.
    let stands = |state: &State| state.pools_read > number;
    account_with(device, STREAM_ORDERED, |state, held| if stands(state) { held } else { reserved });
    account_with(
        device,
        GRAPH,
        |state, held| {
            if stands(state) { held } else { graphs.max(state.graphs_claim) }
        },
    );
    if let Some(headroom) = HEADROOM.get(device.kind.ordinal as usize) {
        let left = device.state().space.accounts().left();
        headroom.store(left.min(device.total / UNSEEN) as i64, Ordering::Relaxed);
    }
}

/// Gives back what graphs keep for their next launch, where all work is over: that launch takes it again, so it is owed to the
/// application before it runs. What is allocated stays.
pub fn trim_graphs(device: &'static Device) {
    if !GRAPHS.load(Ordering::Relaxed) {
        return;
    }
    let before = graph_memory(device.kind.ordinal);
    // SAFETY: a device that the driver has; what a graph has allocated, or uses, stays.
    if before == 0 || !unsafe { driver().cuDeviceGraphMemTrim(device.kind.ordinal) }.ok() {
        return;
    }
    // Whoever reads the figures just now, and may have read the old one, has a lower number.
    let number = READINGS.fetch_add(1, Ordering::AcqRel) + 1;
    let after = graph_memory(device.kind.ordinal);
    account_with(device, GRAPH, |state, _| {
        state.graphs_claim = 0;
        state.pools_read = state.pools_read.max(number);
        state.space.owe(before.saturating_sub(after));
        state.announce = true;
        after
    });
}

/// What graphs gave back is booked for them again, once the grant covers it, in one step: nobody else takes that room between.
/// Whether it was just now.
pub fn graphs_return(device: &'static Device) -> bool {
    let mut returned = false;
    account_with(device, GRAPH, |state, held| match state.space.pay() {
        Some(bytes) => {
            (state.graphs_claim, returned) = (bytes, true);
            held + bytes
        }
        None => held,
    });
    returned
}

/// The application gave back what its graphs keep.
pub fn graphs_trimmed() {
    for device in device::all() {
        device.state().graphs_claim = 0;
    }
    changed();
}

/// Reserved and used, of all pools of a device.
fn figures(ordinal: sys::CUdevice) -> (u64, u64) {
    let mut pools: Vec<usize> =
        made().iter().filter(|(_, device)| *device == ordinal).map(|(pool, _)| *pool).collect();
    let mut default = std::ptr::null_mut();
    // SAFETY: `default` is where the answer goes.
    if unsafe { driver().cuDeviceGetDefaultMemPool(&raw mut default, ordinal) }.ok() {
        pools.push(default.expose_provenance());
    }
    let ask = |pool: usize, attribute| {
        let mut bytes = 0_u64;
        // SAFETY: both attributes are 64 bits wide; a pool that was destroyed meanwhile is refused with an error.
        let asked = unsafe {
            driver().cuMemPoolGetAttribute(
                std::ptr::with_exposed_provenance_mut(pool),
                attribute,
                (&raw mut bytes).cast(),
            )
        };
        // What cannot be asked shows in NVML's figures, as other overhead does.
        if asked.ok() { bytes } else { 0 }
    };
    pools.into_iter().fold((0, 0), |(reserved, used), pool| {
        (reserved.saturating_add(ask(pool, RESERVED)), used.saturating_add(ask(pool, USED)))
    })
}

fn graph_memory(ordinal: sys::CUdevice) -> u64 {
    let mut bytes = 0_u64;
    // SAFETY: the attribute is 64 bits wide.
    let asked =
        unsafe { driver().cuDeviceGetGraphMemAttribute(ordinal, GRAPH_RESERVED, (&raw mut bytes).cast()) };
    if asked.ok() { bytes } else { 0 }
}

static BELL: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

#[cold]
fn wake() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if !life::active() {
        return;
    }
    if !STARTED.swap(true, Ordering::AcqRel)
        && let Err(error) = threads::engine_thread("books", keep_reading)
    {
        log::warning!(
            "cannot start the thread that looks after pools: {error}; they are looked at when they grow"
        );
    }
    let _held = BELL.0.lock().unwrap_or_else(PoisonError::into_inner);
    STALE.store(true, Ordering::Relaxed);
    BELL.1.notify_one();
}

fn keep_reading() {
    loop {
        let bell = BELL.0.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = |(): &mut ()| !STALE.load(Ordering::Relaxed);
        if HELD.load(Ordering::Relaxed) {
            drop(BELL.1.wait_timeout_while(bell, SELDOM, quiet));
        } else {
            drop(BELL.1.wait_while(bell, quiet));
        }
        std::thread::sleep(AGAIN);
        // Before the look: what changes during it is looked at again.
        STALE.store(false, Ordering::Relaxed);
        read();
        report();
    }
}
