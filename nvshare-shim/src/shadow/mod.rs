//! Shadows: pinned host memory in arenas, given out in blocks. Arenas are memfds that the agent made and passed, or, with
//! no agent, our own. Each is mapped once, left to the parent in a fork, and pinned piece by piece by the swap threads.
//!
//! Here arenas come and go. [`arena`]: one of them; [`pinning`]: pinning and unpinning its pieces; [`pins`]: keeping all as they are
//! while copies are under way; [`blocks`]: what extents get of them; [`available`]: how much may be taken for our own.

mod arena;
pub mod available;
mod blocks;
mod pinning;
pub mod pins;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::ArenaId;

use self::arena::{Arena, Piece, Pin};
use self::blocks::forget_resident;
pub use self::blocks::{address, forget, free_blocks, give_back, take};
pub use self::pinning::{is_to_be_pinned, is_to_be_unpinned, pin_one, unpin_one, while_context_may_end};
use crate::config::BLOCK_BYTES;
use crate::memory::extent::{Presence, Slot};
use crate::memory::ranges::Ranges;
use crate::{descriptors, device};

/// The least size of arenas of our own.
const OWN_ARENA: u64 = 64 << 20;

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
