//! Who holds which block of which card: plain data in the control block, changed under its lock.
//!
//! Everything can be derived from two tables, blocks and handles, so that the death of a process in the middle of a
//! change is repaired by [`Ledger::repair`]: a handle is valid once its `state` says so, and a block belongs to a valid
//! handle or to a living process or to nobody.
//!
//! Here: the tables. `blocks`: which are taken, by whom, and who has to make room; `handles`: physical allocations and who
//! holds them; `shares`: what of them others may open; `events`: events that processes share; `spaces`: what happened to managed
//! memory; `reclaim`: what becomes of what the dead had.

mod blocks;
mod events;
mod handles;
mod reclaim;
mod shares;
mod spaces;
#[cfg(test)]
mod tests;

pub use events::EventId;
pub(crate) use events::{Event, MAX_EVENTS};
pub(crate) use shares::{MAX_SHARES, Share};
pub use shares::{ShareError, ShareId};
pub(crate) use spaces::{Counter, Space};

use crate::process::Identity;

/// The most processes that use the cards at once.
pub(crate) const MAX_PROCESSES: usize = 256;
/// The most handles at once, on all cards.
pub(crate) const MAX_HANDLES: usize = 1 << 16;

const FREE: u32 = 0;
/// Owner of a block: a handle's index + 1, or one of these with a process slot in the low bits.
pub(crate) const CONTEXT: u32 = 0x4000_0000;
pub(crate) const MANAGED: u32 = 0x8000_0000;
const KIND: u32 = CONTEXT | MANAGED;
const END: u32 = u32::MAX;
const LIVE: u32 = 1;

/// A process that joined; all zero is an empty slot.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Process {
    pub(crate) identity: Identity,
    /// The number of its space.
    pub(crate) space: u32,
}

/// One block of a card.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Block {
    pub(crate) owner: u32,
    /// Of a handle: the block that follows in it. Of managed memory: which page of its process.
    pub(crate) next: u32,
    /// Of managed memory: when it was used last.
    pub(crate) stamp: u64,
}

/// One physical allocation.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Handle {
    state: u32,
    pub(crate) card: u32,
    first: u32,
    pub(crate) blocks: u32,
    generation: u32,
    /// Handle types it may be exported as, and other properties of its creator.
    pub(crate) properties: u32,
    /// An export file exists, and descriptors of it may be on their way.
    pub(crate) exported: u32,
    creator: u32,
    holders: [u64; MAX_PROCESSES / 64],
}

/// Scalars beside the tables.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Totals {
    pub(crate) free: [u32; crate::config::MAX_CARDS],
    generation: u32,
    /// No handle below this index is free.
    cursor: u32,
    /// No handle from this index on was ever used.
    used: u32,
    /// The number of the space that was given last.
    space: u32,
    pub(crate) clock: u64,
}

/// Names a physical allocation, in every process. Never 0, and not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleId(pub u64);

impl HandleId {
    fn index(self) -> Option<usize> {
        ((self.0 & 0xffff_ffff) as usize).checked_sub(1).filter(|index| *index < MAX_HANDLES)
    }
}

/// A piece of a card that is contiguous: first block, number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the first block on the card.
    pub first: u32,
    /// How many.
    pub blocks: u32,
}

/// The tables, borrowed from the control block (or from a test).
pub(crate) struct Ledger<'a> {
    pub(crate) processes: &'a mut [Process],
    pub(crate) handles: &'a mut [Handle],
    /// All cards, one after another.
    pub(crate) blocks: &'a mut [Block],
    pub(crate) per_card: usize,
    pub(crate) totals: &'a mut Totals,
    pub(crate) shares: &'a mut [Share],
    /// Looked at by others without the lock.
    pub(crate) events: &'a [Event],
    /// Read by others without the lock.
    pub(crate) spaces: &'a [Space],
}

/// Why an allocation is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not enough memory, even after evicting all managed memory.
    Full,
    /// Too many handles at once.
    Handles,
}

impl Ledger<'_> {
    /// A number that tells what is made now from what had its place before.
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.totals.generation = self.totals.generation.wrapping_add(1).max(1);
        self.totals.generation
    }

    pub(crate) fn card(&self, card: usize) -> &[Block] {
        &self.blocks[card * self.per_card..][..self.per_card]
    }

    pub(crate) fn card_mut(&mut self, card: usize) -> &mut [Block] {
        &mut self.blocks[card * self.per_card..][..self.per_card]
    }
}

fn holds(handle: &Handle, slot: usize) -> bool {
    handle.holders[slot / 64] & (1 << (slot % 64)) != 0
}

fn is_unreferenced(handle: &Handle) -> bool {
    handle.exported == 0 && handle.holders.iter().all(|word| *word == 0)
}

/// A process may be killed between any two stores: those on which [`Ledger::repair`] relies must not change places.
fn in_this_order() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}
