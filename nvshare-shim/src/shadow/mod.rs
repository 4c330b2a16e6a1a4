//! Shadows: pinned host memory in arenas, given out in blocks. Arenas are memfds that the agent made and passed, or, with
//! no agent, our own. Each is mapped once, left to the parent in a fork, and pinned piece by piece by the swap threads.

mod arena;
pub mod available;
pub mod pins;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvshare_common::protocol::ToAgent;
use nvshare_common::units::{ArenaId, Bytes};

use self::arena::{Arena, Piece, Pin};
use crate::config::BLOCK_BYTES;
use crate::cuda::CUresult;
use crate::device::{self, Device};
use crate::driver::driver;
use crate::memory::extent::{Presence, Shadow, Slot};
use crate::memory::ranges::Ranges;
use crate::turn::calm::Calm;
use crate::{descriptors, line, log};

/// The least size of arenas of our own.
const OWN_ARENA: u64 = 64 << 20;
/// How often pinning is tried again where the driver has no memory for it: others give some back.
const REFUSALS: u32 = 8;
const REFUSAL_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Shadows {
    arenas: Vec<Arena>,
    /// Arenas given up, piece by piece.
    parting: Vec<Arena>,
    /// Where the blocks of each piece are, by the number of the first: how many, and where in memory.
    places: BTreeMap<u64, (u64, usize)>,
    free: Ranges,
    next: u64,
    /// How often in a row the driver had no memory to pin a piece with.
    refusals: u32,
    /// When the next is tried after such a refusal.
    not_before: Option<Instant>,
}

static SHADOWS: Mutex<Shadows> = Mutex::new(Shadows {
    arenas: Vec::new(),
    parting: Vec::new(),
    places: BTreeMap::new(),
    free: Ranges::new(),
    next: 0,
    refusals: 0,
    not_before: None,
});

fn shadows() -> MutexGuard<'static, Shadows> {
    SHADOWS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shadows {
    fn pieces(&mut self) -> impl Iterator<Item = &mut Piece> {
        self.arenas.iter_mut().flat_map(|arena| arena.pieces.iter_mut())
    }

    /// Whether there is something to pin, now.
    fn is_to_be_pinned(&mut self) -> bool {
        self.not_before.is_none_or(|at| at <= Instant::now())
            && self.pieces().any(|piece| piece.pin == Pin::Missing)
    }

    /// A piece was refused: whether it is tried again, because the driver had no memory for that just now.
    fn tries_again(&mut self, code: CUresult) -> bool {
        if code != CUresult::CUDA_ERROR_OUT_OF_MEMORY || self.refusals >= REFUSALS {
            (self.refusals, self.not_before) = (0, None);
            return false;
        }
        self.refusals += 1;
        self.not_before = Some(Instant::now() + REFUSAL_PAUSE);
        true
    }

    /// Takes the arena at `index` out of use, if none of its blocks is taken and nobody is pinning it. Whether it was.
    fn part_with(&mut self, index: usize) -> bool {
        if self.arenas[index].pieces.iter().any(|piece| piece.pin == Pin::UnderWay) {
            return false;
        }
        let mut removed = Vec::new();
        for piece in &self.arenas[index].pieces {
            if self.free.region(piece.first).is_none() {
                continue;
            }
            if !self.free.remove(piece.first) {
                for (first, blocks) in removed {
                    self.free.add(first, blocks);
                }
                return false;
            }
            removed.push((piece.first, piece.blocks));
        }
        let arena = self.arenas.swap_remove(index);
        for piece in &arena.pieces {
            self.places.remove(&piece.first);
        }
        self.parting.push(arena);
        true
    }
}

/// Takes an arena into service: maps it now; the swap threads pin it.
pub fn offer(id: Option<ArenaId>, file: OwnedFd) -> Result<(), String> {
    let mut shadows = shadows();
    let (arena, next) = Arena::map(id, file, shadows.next)?;
    shadows.next = next;
    shadows.places.extend(arena.pieces.iter().map(|piece| (piece.first, (piece.blocks, piece.host))));
    shadows.arenas.push(arena);
    drop(shadows);
    for device in device::all() {
        device.wake();
    }
    Ok(())
}

/// Pins one piece that is not pinned yet, in the calling thread's current context `context`. Says whether there was one.
pub fn pin_one(context: usize) -> bool {
    let (first, host, blocks) = {
        let mut shadows = shadows();
        if !shadows.is_to_be_pinned() {
            return false;
        }
        let Some(piece) = shadows.pieces().find(|piece| piece.pin == Pin::Missing) else { return false };
        piece.pin = Pin::UnderWay;
        (piece.first, piece.host, piece.blocks)
    };
    let pinned = arena::pin(host, blocks);
    let mut shadows = shadows();
    let of = |arena: &Arena| arena.pieces.iter().position(|piece| piece.first == first);
    let Some((index, at)) =
        shadows.arenas.iter().enumerate().find_map(|(index, arena)| Some((index, of(arena)?)))
    else {
        return true;
    };
    match pinned {
        Ok(()) => {
            shadows.refusals = 0;
            shadows.arenas[index].pieces[at].pin = Pin::In(context);
            if shadows.free.region(first).is_none() {
                shadows.free.add(first, blocks);
            }
        }
        Err(code) if shadows.tries_again(code) => {
            shadows.arenas[index].pieces[at].pin = Pin::Missing;
            return true;
        }
        Err(code) => {
            shadows.arenas[index].pieces[at].pin = Pin::Refused;
            let bytes = Bytes(shadows.arenas[index].bytes());
            log::warning!(
                "cannot pin {} of {bytes} of host memory for shadows: {} (is RLIMIT_MEMLOCK or the container's memory limit in the way?)",
                Bytes(blocks * BLOCK_BYTES),
                driver().error_name(code)
            );
            if shadows.part_with(index) {
                // With nothing to unpin it need not wait for calm: its agent counts on it until it is back.
                let is_unpinned =
                    |arena: &mut Arena| !arena.pieces.iter().any(|piece| matches!(piece.pin, Pin::In(_)));
                let unpinned = shadows.parting.pop_if(is_unpinned);
                drop(shadows);
                if let Some(mut arena) = unpinned {
                    for piece in arena.pieces.drain(..) {
                        let _ = piece.give_up();
                    }
                    returned(arena);
                }
                return true;
            }
        }
    }
    let arena = &mut shadows.arenas[index];
    if arena.is_settled() && !std::mem::replace(&mut arena.reported, true) {
        let id = arena.id;
        drop(shadows);
        if let Some(arena) = id {
            line::send(&ToAgent::ArenaReady { arena });
        }
    }
    true
}

/// All of it is unmapped.
fn returned(arena: Arena) {
    drop(arena.file);
    if let Some(arena) = arena.id {
        line::send(&ToAgent::ArenaReturned { arena });
    }
}

/// Whether there is something to pin.
pub fn is_to_be_pinned() -> bool {
    shadows().is_to_be_pinned()
}

/// Whether there is something to unpin.
pub fn is_to_be_unpinned() -> bool {
    !shadows().parting.is_empty()
}

/// Unpins one piece of an arena that was given up, and with the last one gives the arena back. Says whether there was one.
/// It waits for the kernels that run in the context it is pinned in (seen on an H200).
pub fn unpin_one(_calm: &Calm) -> bool {
    let (piece, done) = {
        let mut shadows = shadows();
        let Some(arena) = shadows.parting.last_mut() else { return false };
        let piece = arena.pieces.pop();
        let done = if arena.pieces.is_empty() { shadows.parting.pop() } else { None };
        (piece, done)
    };
    if let Some(Err(code)) = piece.map(Piece::give_up) {
        log::warning!("cannot unpin a piece of an arena: {}", driver().error_name(code));
    }
    if let Some(arena) = done {
        returned(arena);
    }
    true
}

/// Makes an arena of our own that holds at least `bytes` more, for the time without an agent.
pub fn make_own(bytes: u64) -> Result<(), String> {
    let bytes = bytes.max(OWN_ARENA).next_multiple_of(BLOCK_BYTES);
    let spare = available::bytes();
    if bytes > spare {
        return Err(format!(
            "{} of host memory would be needed, and {} can be spared here; raise the container's memory limit",
            Bytes(bytes),
            Bytes(spare)
        ));
    }
    let cannot = |error: rustix::io::Errno| format!("cannot make {} of host memory: {error}", Bytes(bytes));
    let file = descriptors::memory(c"nvshare-arena", bytes).map_err(cannot)?;
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
    let (first, (blocks, host)) =
        shadows.places.range(..=slot).next_back().expect("a block's arena stays while the block is taken");
    debug_assert!(slot < first + blocks, "S4: a block of an arena that is gone");
    std::ptr::with_exposed_provenance_mut(host + ((slot - first) * BLOCK_BYTES) as usize)
}

/// Gives up shadows of resident extents until whole arenas of `bytes` at the most are free of them (what is left is needed);
/// says how much that was. They go back when they are unpinned. Called by a swap thread with no copy of its own under way; extents that other engines
/// move are not resident.
pub fn trim(bytes: u64) -> u64 {
    let mut given = 0;
    let mut busy = busy_slots();
    busy.sort_unstable();
    let is_unused = |piece: &Piece| {
        let from = busy.partition_point(|slot| *slot < piece.first);
        busy.get(from).is_none_or(|slot| !piece.slots().contains(slot))
    };
    let candidates: Vec<Vec<(u64, u64)>> = {
        let shadows = shadows();
        let unused = shadows.arenas.iter().filter(|arena| arena.pieces.iter().all(is_unused));
        unused.map(|arena| arena.pieces.iter().map(|piece| (piece.first, piece.blocks)).collect()).collect()
    };
    for pieces in candidates {
        if given + pieces.iter().map(|(_, blocks)| blocks * BLOCK_BYTES).sum::<u64>() > bytes {
            continue;
        }
        for (first, blocks) in &pieces {
            forget_resident(*first, *blocks);
        }
        let mut shadows = shadows();
        let is_it = |arena: &Arena| {
            arena.pieces.first().map(|piece| piece.first) == pieces.first().map(|piece| piece.0)
        };
        if let Some(index) = shadows.arenas.iter().position(is_it)
            && shadows.part_with(index)
        {
            given += pieces.iter().map(|(_, blocks)| blocks * BLOCK_BYTES).sum::<u64>();
        }
    }
    given
}

/// The arenas of the agent, for a new session: their numbers and descriptors.
pub fn with_agents_arenas<T>(each: impl FnMut((ArenaId, std::os::fd::BorrowedFd<'_>)) -> T) -> Vec<T> {
    let shadows = shadows();
    shadows
        .arenas
        .iter()
        .filter_map(|arena| Some((arena.id?, arena.file.as_ref()?.get().ok()?)))
        .map(each)
        .collect()
}

/// `context` may end while `may_end` runs, which says whether it did: then what was pinned in it is not any more, and must
/// be pinned elsewhere. Meanwhile no engine copies to or from what is. Called by the engine that leaves it, with no copy
/// of its own under way.
pub fn while_context_may_end(context: usize, may_end: impl FnOnce() -> bool) -> bool {
    if !shadows().pieces().any(|piece| piece.pin == Pin::In(context)) {
        return may_end();
    }
    let mut gone = true;
    pins::recalled(|| {
        gone = may_end();
        if gone {
            let mut shadows = shadows();
            let parting = shadows.parting.iter_mut().flat_map(|arena| arena.pieces.iter_mut());
            for piece in parting.filter(|piece| piece.pin == Pin::In(context)) {
                piece.pin = Pin::Refused;
            }
            for piece in shadows.pieces().filter(|piece| piece.pin == Pin::In(context)) {
                piece.pin = Pin::Missing;
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
