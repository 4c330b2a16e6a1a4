//! Shadows: pinned host memory in arenas, given out in blocks. Arenas are memfds that the agent made and passed, or, with
//! no agent, our own. Each is mapped once, left to the parent in a fork, and registered with the driver by a swap thread.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nvshare_common::protocol::ToAgent;
use nvshare_common::units::{ArenaId, Bytes};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{lending, spare};
use crate::config::BLOCK_BYTES;
use crate::driver::driver;
use crate::memory::device::{self, Device};
use crate::memory::extent::{Presence, Shadow, Slot};
use crate::memory::ranges::Ranges;
use crate::{link, log};

/// `CU_MEMHOSTREGISTER_PORTABLE`: every context may use it as pinned.
const PORTABLE: u32 = 1;
/// The slots of neighbouring arenas are apart, so that no run of blocks crosses from one into the next.
const GAP: u64 = 1;
/// In the place of the context in which an arena is registered: it could not be pinned, and stays because bytes are in it.
/// Copies are slower, and right.
const UNPINNED: usize = usize::MAX;
/// The least size of arenas of our own.
const OWN_ARENA: u64 = 64 << 20;

#[derive(Debug)]
struct Arena {
    /// None: it is our own.
    id: Option<ArenaId>,
    first: u64,
    blocks: u64,
    host: usize,
    file: OwnedFd,
    /// The context that it is registered in.
    registered: Option<usize>,
    /// Whether the agent was told that it is in use.
    reported: bool,
}

#[derive(Debug)]
struct Shadows {
    arenas: Vec<Arena>,
    free: Ranges,
    next: u64,
    waiting: VecDeque<usize>,
}

static SHADOWS: Mutex<Shadows> =
    Mutex::new(Shadows { arenas: Vec::new(), free: Ranges::new(), next: 0, waiting: VecDeque::new() });

fn shadows() -> MutexGuard<'static, Shadows> {
    SHADOWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes an arena into service: maps it now; a swap thread registers it.
pub fn offer(id: Option<ArenaId>, file: OwnedFd) -> Result<(), String> {
    let size = rustix::fs::fstat(&file)
        .map_err(|error| format!("cannot ask an arena's size: {error}"))?
        .st_size as u64;
    let bytes = size / BLOCK_BYTES * BLOCK_BYTES;
    if bytes == 0 {
        return Err(format!("an arena of {size} bytes is too small, expected at least {BLOCK_BYTES}"));
    }
    // SAFETY: a fresh mapping that the kernel places touches nothing that exists.
    let host = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            bytes as usize,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &file,
            0,
        )
    }
    .map_err(|error| format!("cannot map an arena of {}: {error}", Bytes(bytes)))?;
    // SAFETY: the range was mapped just now; the advice changes what a child of a fork sees, nothing here.
    let _ = unsafe { rustix::mm::madvise(host, bytes as usize, Advice::LinuxDontFork) };
    let mut shadows = shadows();
    let (first, blocks) = (shadows.next, bytes / BLOCK_BYTES);
    shadows.next += blocks + GAP;
    shadows.arenas.push(Arena {
        id,
        first,
        blocks,
        host: host.expose_provenance(),
        file,
        registered: None,
        reported: false,
    });
    drop(shadows);
    for device in device::all() {
        device.wake();
    }
    Ok(())
}

/// Registers one arena that is not registered yet, in the calling thread's current context `context`. Says whether there
/// was one.
pub fn register_one(context: usize) -> bool {
    let (first, host, bytes) = {
        let mut shadows = shadows();
        let shadows = &mut *shadows;
        let waiting = &mut shadows.waiting;
        let found =
            shadows.arenas.iter().find(|arena| arena.registered.is_none() && !waiting.contains(&arena.host));
        let Some(arena) = found else { return false };
        waiting.push_back(arena.host);
        (arena.first, arena.host, arena.blocks * BLOCK_BYTES)
    };
    let pointer = std::ptr::with_exposed_provenance_mut(host);
    // SAFETY: the range is mapped and stays so while it is registered.
    let registered = unsafe { driver().cuMemHostRegister_v2(pointer, bytes as usize, PORTABLE) }.result();
    let mut shadows = shadows();
    shadows.waiting.retain(|waiting| *waiting != host);
    let Some(index) = shadows.arenas.iter().position(|arena| arena.first == first) else { return true };
    match registered {
        Ok(()) => {
            let arena = &mut shadows.arenas[index];
            arena.registered = Some(context);
            let (blocks, id, new) = (arena.blocks, arena.id, !std::mem::replace(&mut arena.reported, true));
            if shadows.free.region(first).is_none() {
                shadows.free.add(first, blocks);
            }
            drop(shadows);
            if let Some(arena) = id.filter(|_| new) {
                link::send(&ToAgent::ArenaReady { arena });
            }
        }
        Err(code) => {
            let in_use = shadows.free.region(first).is_some() && !shadows.free.remove(first);
            let arena = if in_use {
                shadows.arenas[index].registered = Some(UNPINNED);
                None
            } else {
                Some(shadows.arenas.swap_remove(index))
            };
            drop(shadows);
            log::warning!(
                "cannot pin {} of host memory for shadows: {} (is RLIMIT_MEMLOCK or the container's memory limit in the way?)",
                Bytes(bytes),
                driver().error_name(code)
            );
            if let Some(arena) = arena {
                dissolve(arena);
            }
        }
    }
    true
}

/// Makes an arena of our own that holds at least `bytes` more, for the time without an agent.
pub fn make_own(bytes: u64) -> Result<(), String> {
    let bytes = bytes.max(OWN_ARENA).next_multiple_of(BLOCK_BYTES);
    let spare = spare::bytes();
    if bytes > spare {
        return Err(format!(
            "{} of host memory would be needed, and {} can be spared here; raise the container's memory limit",
            Bytes(bytes),
            Bytes(spare)
        ));
    }
    let cannot = |error: rustix::io::Errno| format!("cannot make {} of host memory: {error}", Bytes(bytes));
    let file = rustix::fs::memfd_create(c"nvshare-arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(cannot)?;
    rustix::fs::ftruncate(&file, bytes).map_err(cannot)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).map_err(cannot)?;
    offer(None, file)
}

/// Takes `count` blocks for `device`, in few runs; none if there are not that many.
pub fn take(device: &Device, count: usize) -> Option<Vec<Slot>> {
    let mut shadows = shadows();
    if shadows.free.free() < count as u64 {
        return None;
    }
    let mut slots = Vec::with_capacity(count);
    while slots.len() < count {
        let Some((start, length)) = shadows.free.take_up_to((count - slots.len()) as u64) else {
            for slot in slots {
                let Slot(slot) = slot;
                shadows.free.give_back(u64::from(slot), 1);
            }
            return None;
        };
        slots.extend((start..start + length).map(|slot| Slot(slot as u32)));
    }
    drop(shadows);
    count_shadow(device, (count as u64 * BLOCK_BYTES).cast_signed());
    Some(slots)
}

/// Gives blocks of `device` back. Nothing copies to or from them any more.
pub fn give_back(device: &Device, slots: impl IntoIterator<Item = Slot>) {
    let mut shadows = shadows();
    let mut count = 0_u64;
    for Slot(slot) in slots {
        shadows.free.give_back(u64::from(slot), 1);
        count += 1;
    }
    drop(shadows);
    count_shadow(device, -(count * BLOCK_BYTES).cast_signed());
}

/// How many blocks are free.
pub fn free_blocks() -> u64 {
    shadows().free.free()
}

/// Where a block is in host memory.
pub fn address(Slot(slot): Slot) -> *mut std::ffi::c_void {
    let slot = u64::from(slot);
    let shadows = shadows();
    let arena = shadows
        .arenas
        .iter()
        .find(|arena| (arena.first..arena.first + arena.blocks).contains(&slot))
        .expect("a block's arena stays while the block is taken");
    let offset = (slot - arena.first) * BLOCK_BYTES;
    std::ptr::with_exposed_provenance_mut(arena.host + offset as usize)
}

/// Gives up shadows of resident extents until whole arenas of about `bytes` could be dissolved; says how much that was.
/// Called by a swap thread with no copy of its own under way; extents that other engines move are not resident.
pub fn trim(bytes: u64) -> u64 {
    let mut given = 0;
    let mut busy = busy_slots();
    busy.sort_unstable();
    let candidates: Vec<(u64, u64)> = {
        let shadows = shadows();
        let unused = |arena: &&Arena| {
            let from = busy.partition_point(|slot| *slot < arena.first);
            busy.get(from).is_none_or(|slot| *slot >= arena.first + arena.blocks)
        };
        shadows.arenas.iter().filter(unused).map(|arena| (arena.first, arena.blocks)).collect()
    };
    for (first, blocks) in candidates {
        if given >= bytes {
            break;
        }
        forget_resident(first, blocks);
        let arena = {
            let mut shadows = shadows();
            let known = shadows.free.region(first).is_some();
            if known && !shadows.free.remove(first) {
                continue;
            }
            let Some(index) = shadows.arenas.iter().position(|arena| arena.first == first) else { continue };
            if shadows.waiting.contains(&shadows.arenas[index].host) {
                continue;
            }
            shadows.arenas.swap_remove(index)
        };
        given += blocks * BLOCK_BYTES;
        dissolve(arena);
    }
    given
}

/// The arenas of the agent, for a new session: their numbers and descriptors.
pub fn with_agents_arenas<T>(each: impl FnMut((ArenaId, std::os::fd::BorrowedFd<'_>)) -> T) -> Vec<T> {
    let shadows = shadows();
    shadows.arenas.iter().filter_map(|arena| Some((arena.id?, arena.file.as_fd()))).map(each).collect()
}

/// `context` may end while `may_end` runs, which says whether it did: then what was pinned in it is not any more, and must
/// be pinned elsewhere. Meanwhile no engine copies to or from what is. Called by the engine that leaves it, with no copy
/// of its own under way.
pub fn while_context_may_end(context: usize, may_end: impl FnOnce() -> bool) -> bool {
    if !shadows().arenas.iter().any(|arena| arena.registered == Some(context)) {
        return may_end();
    }
    let mut gone = true;
    lending::recalled(|| {
        gone = may_end();
        if gone {
            for arena in shadows().arenas.iter_mut().filter(|arena| arena.registered == Some(context)) {
                arena.registered = None;
            }
        }
    });
    for device in device::all() {
        device.wake();
    }
    gone
}

/// Slots that must stay: of extents that are not on the device, or move just now.
fn busy_slots() -> Vec<u64> {
    let mut busy = Vec::new();
    for device in device::all() {
        let state = device.state();
        for (_, extent) in state.space.extents().filter(|(_, extent)| extent.presence() != Presence::Resident)
        {
            busy.extend(extent.slots().map(|Slot(slot)| u64::from(slot)));
        }
    }
    busy
}

/// Resident extents give up about `count` blocks of their shadows.
pub fn forget(count: usize) {
    let wanted = free_blocks() + count as u64;
    for device in device::all() {
        if free_blocks() >= wanted {
            break;
        }
        forget_where(device, |_| true, count);
    }
}

/// Resident extents give up their shadows in these blocks.
fn forget_resident(first: u64, blocks: u64) {
    for device in device::all() {
        forget_where(device, |Slot(slot)| (first..first + blocks).contains(&u64::from(slot)), usize::MAX);
    }
}

/// Resident extents of `device` give up at most `most` blocks of shadow that are `wanted`.
fn forget_where(device: &Device, wanted: impl Fn(Slot) -> bool, most: usize) {
    let mut slots = Vec::new();
    let mut state = device.state();
    let ids: Vec<_> = state
        .space
        .extents()
        .filter(|(_, extent)| extent.presence() == Presence::Resident)
        .map(|(id, _)| id)
        .collect();
    for id in ids {
        for block in &mut state.space.extent_mut(id).blocks {
            if let Shadow::Slot(slot) = block.shadow
                && slots.len() < most
                && wanted(slot)
            {
                (block.shadow, block.print) = (Shadow::None, None);
                slots.push(slot);
            }
        }
    }
    drop(state);
    give_back(device, slots);
}

fn dissolve(arena: Arena) {
    let pointer = std::ptr::with_exposed_provenance_mut(arena.host);
    if arena.registered.is_some_and(|context| context != UNPINNED) {
        // SAFETY: it was registered; none of its blocks is taken, so nothing copies.
        if let Err(code) = unsafe { driver().cuMemHostUnregister(pointer) }.result() {
            log::warning!("cannot unpin an arena: {}", driver().error_name(code));
        }
    }
    // SAFETY: the mapping is ours alone, and none of its blocks is taken.
    let _ = unsafe { rustix::mm::munmap(pointer, (arena.blocks * BLOCK_BYTES) as usize) };
    drop(arena.file);
    if let Some(arena) = arena.id {
        link::send(&ToAgent::ArenaReturned { arena });
    }
}

fn count_shadow(device: &Device, delta: i64) {
    if let Some(counters) = device.counters() {
        use std::sync::atomic::Ordering::AcqRel;
        if delta >= 0 {
            counters.shadow.fetch_add(delta.unsigned_abs(), AcqRel);
        } else {
            counters.shadow.fetch_sub(delta.unsigned_abs(), AcqRel);
        }
    }
}
