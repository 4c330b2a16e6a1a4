//! Who holds which block of which card: plain data in the control block, changed under its lock.
//!
//! Everything can be derived from two tables, blocks and handles, so that the death of a process in the middle of a
//! change is repaired by [`Ledger::repair`]: a handle is valid once its `state` says so, and a block belongs to a valid
//! handle or to a living process or to nobody.

use crate::managed::PageKey;
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
    pub(crate) fn card(&self, card: usize) -> &[Block] {
        &self.blocks[card * self.per_card..][..self.per_card]
    }

    pub(crate) fn card_mut(&mut self, card: usize) -> &mut [Block] {
        &mut self.blocks[card * self.per_card..][..self.per_card]
    }

    /// Takes a slot for a process; what an earlier program under the same identity held (it called exec) is freed.
    pub(crate) fn join(&mut self, identity: Identity) -> Option<usize> {
        if let Some(slot) = self.processes.iter().position(|process| process.identity == identity) {
            self.remove_process(slot);
        }
        let slot = self.processes.iter().position(|process| process.identity.pid == 0)?;
        self.processes[slot].identity = identity;
        Some(slot)
    }

    /// Frees everything that a process holds, and its slot.
    pub(crate) fn remove_process(&mut self, slot: usize) {
        for index in 0..self.blocks.len() {
            let owner = self.blocks[index].owner;
            if owner & KIND != 0 && (owner & !KIND) as usize == slot {
                self.free_block(index);
            }
        }
        for index in 0..self.totals.used as usize {
            if self.handles[index].state == LIVE && holds(&self.handles[index], slot) {
                self.drop_holder(index, slot);
            }
        }
        self.processes[slot] = Process::default();
    }

    /// Frees what belongs to processes that are not `alive`; says how many there were.
    pub(crate) fn reclaim(&mut self, alive: impl Fn(Identity) -> bool) -> usize {
        let mut dead = 0;
        for slot in 0..self.processes.len() {
            let identity = self.processes[slot].identity;
            if identity.pid != 0 && !alive(identity) {
                self.remove_process(slot);
                dead += 1;
            }
        }
        dead
    }

    /// Drops the reference of export files for which `in_use` says that no descriptor is left.
    pub(crate) fn reclaim_exports(&mut self, in_use: impl Fn(HandleId) -> bool) {
        for index in 0..self.totals.used as usize {
            if self.handles[index].state == LIVE
                && self.handles[index].exported != 0
                && !in_use(self.id(index))
            {
                self.handles[index].exported = 0;
                self.free_if_unreferenced(index);
            }
        }
    }

    /// After a holder of the lock died: frees blocks of nobody and counts anew.
    pub(crate) fn repair(&mut self) {
        for handle in self.handles.iter_mut().filter(|handle| is_unreferenced(handle)) {
            handle.state = FREE;
        }
        for index in 0..self.blocks.len() {
            let owner = self.blocks[index].owner;
            let valid = match owner {
                FREE => true,
                owner if owner & KIND != 0 => self
                    .processes
                    .get((owner & !KIND) as usize)
                    .is_some_and(|process| process.identity.pid != 0),
                owner => self.handles.get(owner as usize - 1).is_some_and(|handle| handle.state == LIVE),
            };
            if !valid {
                self.blocks[index] = Block::default();
            }
        }
        for card in 0..self.blocks.len() / self.per_card {
            let free = self.card(card).iter().filter(|block| block.owner == FREE).count();
            self.totals.free[card] = free as u32;
        }
        self.totals.cursor = 0;
        self.totals.used = self.handles.len() as u32;
    }

    /// Creates a handle of `count` blocks held by `slot`; also says how many managed pages had to leave for it.
    pub(crate) fn create(
        &mut self,
        slot: usize,
        card: usize,
        count: u32,
        properties: u32,
    ) -> Result<(HandleId, u32), Refused> {
        let index = self.free_handle().ok_or(Refused::Handles)?;
        let evicted = self.make_room(card, count)?;
        let generation = self.totals.generation.wrapping_add(1).max(1);
        self.totals.generation = generation;
        self.totals.cursor = index as u32 + 1;
        self.totals.used = self.totals.used.max(index as u32 + 1);
        let mut handle = Handle {
            state: FREE,
            card: card as u32,
            first: END,
            blocks: count,
            generation,
            properties,
            exported: 0,
            creator: slot as u32,
            holders: [0; MAX_PROCESSES / 64],
        };
        handle.holders[slot / 64] |= 1 << (slot % 64);
        handle.first = self.take(card, count, index as u32 + 1);
        self.handles[index] = handle;
        in_this_order();
        self.handles[index].state = LIVE;
        Ok((self.id(index), evicted))
    }

    /// The handle, if it exists.
    pub(crate) fn handle(&self, id: HandleId) -> Option<(usize, &Handle)> {
        let index = id.index().filter(|index| *index < self.handles.len())?;
        let handle = &self.handles[index];
        (handle.state == LIVE && self.id(index) == id).then_some((index, handle))
    }

    /// Adds a process to the holders.
    pub(crate) fn hold(&mut self, id: HandleId, slot: usize) -> bool {
        let Some((index, _)) = self.handle(id) else { return false };
        self.handles[index].holders[slot / 64] |= 1 << (slot % 64);
        true
    }

    /// Takes a process from the holders; the memory is free when nobody is left.
    pub(crate) fn let_go(&mut self, id: HandleId, slot: usize) {
        if let Some((index, _)) = self.handle(id) {
            self.drop_holder(index, slot);
        }
    }

    pub(crate) fn set_exported(&mut self, id: HandleId) {
        if let Some((index, _)) = self.handle(id) {
            self.handles[index].exported = 1;
        }
    }

    /// Where the handle's bytes are on its card, in order.
    pub(crate) fn runs(&self, handle: &Handle) -> Vec<Run> {
        let card = self.card(handle.card as usize);
        let mut runs: Vec<Run> = Vec::new();
        let mut block = handle.first;
        while block != END {
            match runs.last_mut() {
                Some(run) if run.first + run.blocks == block => run.blocks += 1,
                _ => runs.push(Run { first: block, blocks: 1 }),
            }
            block = card[block as usize].next;
        }
        runs
    }

    /// Makes the memory that a context of `slot` occupies `count` blocks more.
    pub(crate) fn charge_context(&mut self, slot: usize, card: usize, count: u32) -> Result<u32, Refused> {
        let evicted = self.make_room(card, count)?;
        self.take(card, count, CONTEXT | slot as u32);
        Ok(evicted)
    }

    /// Frees what the contexts of `slot` occupy.
    pub(crate) fn release_context(&mut self, slot: usize, card: usize) {
        for index in card * self.per_card..(card + 1) * self.per_card {
            if self.blocks[index].owner == CONTEXT | slot as u32 {
                self.free_block(index);
            }
        }
    }

    /// Blocks of a card that each process slot is charged for: a handle counts for its creator, or for its first
    /// holder once that is gone.
    pub(crate) fn charged(&self, card: usize) -> Vec<u32> {
        let mut charged = vec![0; self.processes.len()];
        for block in self.card(card) {
            let slot = match block.owner {
                FREE => None,
                owner if owner & KIND != 0 => Some((owner & !KIND) as usize),
                owner => self.payer(&self.handles[owner as usize - 1]),
            };
            if let Some(count) = slot.and_then(|slot| charged.get_mut(slot)) {
                *count += 1;
            }
        }
        charged
    }

    /// Evicts managed pages, least recently used first, until `count` blocks are free.
    pub(crate) fn make_room(&mut self, card: usize, count: u32) -> Result<u32, Refused> {
        let free = self.totals.free[card];
        if free >= count {
            return Ok(0);
        }
        let wanted = (count - free) as usize;
        let managed = |block: &Block| block.owner & MANAGED != 0;
        let mut candidates: Vec<(u64, usize)> = self
            .card(card)
            .iter()
            .enumerate()
            .filter(|(_, block)| managed(block))
            .map(|(index, block)| (block.stamp, index))
            .collect();
        if candidates.len() < wanted {
            return Err(Refused::Full);
        }
        candidates.select_nth_unstable(wanted - 1);
        for (_, index) in &candidates[..wanted] {
            self.free_block(card * self.per_card + index);
        }
        Ok(wanted as u32)
    }

    /// Takes one free block for a managed page.
    pub(crate) fn take_managed(&mut self, card: usize, slot: usize, page: PageKey) -> u32 {
        let block = self.take(card, 1, MANAGED | slot as u32);
        let stamp = self.tick();
        let entry = &mut self.card_mut(card)[block as usize];
        (entry.next, entry.stamp) = (page.0, stamp);
        block
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.totals.clock += 1;
        self.totals.clock
    }

    pub(crate) fn free_block(&mut self, index: usize) {
        if self.blocks[index].owner != FREE {
            self.blocks[index] = Block::default();
            self.totals.free[index / self.per_card] += 1;
        }
    }

    fn id(&self, index: usize) -> HandleId {
        HandleId(u64::from(self.handles[index].generation) << 32 | (index as u64 + 1))
    }

    fn payer(&self, handle: &Handle) -> Option<usize> {
        let creator = handle.creator as usize;
        if holds(handle, creator) {
            Some(creator)
        } else {
            (0..self.processes.len()).find(|slot| holds(handle, *slot))
        }
    }

    fn free_handle(&self) -> Option<usize> {
        (self.totals.cursor as usize..self.handles.len()).find(|index| self.handles[*index].state != LIVE)
    }

    /// Takes `count` free blocks (there must be as many) for `owner`, in one run where there is one, and chains them.
    fn take(&mut self, card: usize, count: u32, owner: u32) -> u32 {
        let start = contiguous(self.card(card), count as usize).unwrap_or(0);
        let blocks = &mut self.blocks[card * self.per_card..][..self.per_card];
        let (mut first, mut last, mut left) = (END, END, count);
        for (index, block) in blocks.iter_mut().enumerate().skip(start) {
            if left == 0 {
                break;
            }
            if block.owner == FREE {
                // The owner counts from here on; `last` is patched below.
                *block = Block { owner, next: last, stamp: 0 };
                if first == END {
                    first = index as u32;
                }
                last = index as u32;
                left -= 1;
            }
        }
        assert_eq!(left, 0, "the caller made room");
        self.totals.free[card] -= count;
        // So far each block names the one before it: turn the chain round.
        let mut following = END;
        while last != END {
            let block = &mut blocks[last as usize];
            let before = block.next;
            block.next = following;
            following = last;
            last = before;
        }
        first
    }

    fn drop_holder(&mut self, index: usize, slot: usize) {
        self.handles[index].holders[slot / 64] &= !(1 << (slot % 64));
        self.free_if_unreferenced(index);
    }

    fn free_if_unreferenced(&mut self, index: usize) {
        let handle = self.handles[index];
        if !is_unreferenced(&handle) {
            return;
        }
        self.handles[index].state = FREE;
        in_this_order();
        self.totals.cursor = self.totals.cursor.min(index as u32);
        let mut block = handle.first;
        while block != END {
            let at = handle.card as usize * self.per_card + block as usize;
            block = self.blocks[at].next;
            self.free_block(at);
        }
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

/// The first index of `count` free blocks in a row.
fn contiguous(blocks: &[Block], count: usize) -> Option<usize> {
    let mut length = 0;
    for (index, block) in blocks.iter().enumerate() {
        length = if block.owner == FREE { length + 1 } else { 0 };
        if length == count && count > 0 {
            return Some(index + 1 - count);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tables(Vec<Process>, Vec<Handle>, Vec<Block>, Totals);

    impl Tables {
        fn new(blocks: usize) -> Tables {
            let mut totals = Totals::default();
            totals.free[0] = blocks as u32;
            Tables(
                vec![Process::default(); 256],
                vec![Handle::default(); 32],
                vec![Block::default(); blocks],
                totals,
            )
        }
        fn ledger(&mut self) -> Ledger<'_> {
            Ledger {
                processes: &mut self.0,
                handles: &mut self.1,
                per_card: self.2.len(),
                blocks: &mut self.2,
                totals: &mut self.3,
            }
        }
    }

    fn process(pid: u32) -> Identity {
        Identity { pid, start: 1 }
    }

    #[test]
    fn an_allocation_that_fits_succeeds_however_fragmented_the_card_is() {
        let mut tables = Tables::new(8);
        let mut ledger = tables.ledger();
        let slot = ledger.join(process(1)).unwrap();
        let handles: Vec<HandleId> = (0..8).map(|_| ledger.create(slot, 0, 1, 0).unwrap().0).collect();
        for id in handles.iter().step_by(2) {
            ledger.let_go(*id, slot);
        }
        let (id, evicted) = ledger.create(slot, 0, 4, 0).unwrap();
        assert_eq!(evicted, 0);
        let handle = *ledger.handle(id).unwrap().1;
        let runs = ledger.runs(&handle);
        assert_eq!(runs, [0, 2, 4, 6].map(|first| Run { first, blocks: 1 }));
        assert_eq!(ledger.create(slot, 0, 1, 0), Err(Refused::Full));
    }

    #[test]
    fn a_contiguous_place_is_preferred() {
        let mut tables = Tables::new(8);
        let mut ledger = tables.ledger();
        let slot = ledger.join(process(1)).unwrap();
        let first = ledger.create(slot, 0, 1, 0).unwrap().0;
        ledger.create(slot, 0, 1, 0).unwrap();
        ledger.let_go(first, slot);
        let id = ledger.create(slot, 0, 3, 0).unwrap().0;
        let handle = *ledger.handle(id).unwrap().1;
        assert_eq!(ledger.runs(&handle), [Run { first: 2, blocks: 3 }]);
    }

    #[test]
    fn memory_lives_until_its_last_holder_lets_go() {
        let mut tables = Tables::new(4);
        let mut ledger = tables.ledger();
        let (one, two) = (ledger.join(process(1)).unwrap(), ledger.join(process(2)).unwrap());
        let id = ledger.create(one, 0, 2, 0).unwrap().0;
        assert!(ledger.hold(id, two));
        ledger.let_go(id, one);
        assert_eq!(ledger.totals.free[0], 2);
        assert_eq!(ledger.charged(0)[two], 2, "the charge moved to the one that is left");
        ledger.let_go(id, two);
        assert_eq!(ledger.totals.free[0], 4);
        assert!(ledger.handle(id).is_none() && !ledger.hold(id, one));
    }

    #[test]
    fn an_exported_handle_outlives_its_creator_until_no_descriptor_is_left() {
        let mut tables = Tables::new(4);
        let mut ledger = tables.ledger();
        let one = ledger.join(process(1)).unwrap();
        let id = ledger.create(one, 0, 2, 0).unwrap().0;
        ledger.set_exported(id);
        assert_eq!(ledger.reclaim(|_| false), 1);
        assert_eq!(ledger.totals.free[0], 2);
        ledger.reclaim_exports(|_| true);
        assert_eq!(ledger.totals.free[0], 2);
        ledger.reclaim_exports(|_| false);
        assert_eq!(ledger.totals.free[0], 4);
    }

    #[test]
    fn the_dead_are_reclaimed_and_the_living_keep_theirs() {
        let mut tables = Tables::new(8);
        let mut ledger = tables.ledger();
        let (one, two) = (ledger.join(process(1)).unwrap(), ledger.join(process(2)).unwrap());
        for slot in [one, two] {
            ledger.charge_context(slot, 0, 1).unwrap();
            ledger.create(slot, 0, 2, 0).unwrap();
        }
        assert_eq!(ledger.totals.free[0], 2);
        assert_eq!(ledger.reclaim(|identity| identity.pid == 2), 1);
        assert_eq!(ledger.totals.free[0], 5);
        assert_eq!(ledger.charged(0)[two], 3);
    }

    #[test]
    fn a_program_that_follows_by_exec_starts_with_nothing() {
        let mut tables = Tables::new(8);
        let mut ledger = tables.ledger();
        let slot = ledger.join(process(1)).unwrap();
        ledger.create(slot, 0, 3, 0).unwrap();
        ledger.join(process(1)).unwrap();
        assert_eq!(ledger.totals.free[0], 8);
    }

    #[test]
    fn a_change_cut_short_is_repaired() {
        let mut tables = Tables::new(8);
        let mut ledger = tables.ledger();
        let slot = ledger.join(process(1)).unwrap();
        let kept = ledger.create(slot, 0, 2, 0).unwrap().0;
        // As if the creator had died after taking blocks and before making the handle valid.
        ledger.take(0, 3, 9);
        ledger.totals.free[0] = 77;
        ledger.repair();
        assert_eq!(ledger.totals.free[0], 6);
        assert!(ledger.handle(kept).is_some());
    }

    #[test]
    fn plain_memory_evicts_the_managed_pages_used_longest_ago() {
        let mut tables = Tables::new(4);
        let mut ledger = tables.ledger();
        let slot = ledger.join(process(1)).unwrap();
        for page in 0..4 {
            ledger.take_managed(0, slot, PageKey(page));
        }
        let stamp = ledger.tick();
        ledger.card_mut(0)[0].stamp = stamp;
        let (_, evicted) = ledger.create(slot, 0, 2, 0).unwrap();
        assert_eq!(evicted, 2);
        let left: Vec<u32> = ledger
            .card(0)
            .iter()
            .filter(|block| block.owner & MANAGED != 0)
            .map(|block| block.next)
            .collect();
        assert_eq!(left, [0, 3]);
        assert_eq!(ledger.create(slot, 0, 3, 0), Err(Refused::Full));
    }
}
