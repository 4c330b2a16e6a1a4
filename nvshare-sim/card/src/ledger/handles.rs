//! Handles: physical allocations, who holds them, and when nobody does any more.

use super::{END, FREE, Handle, HandleId, LIVE, Ledger, MAX_PROCESSES, Refused, Run};
use super::{holds, in_this_order, is_unreferenced};

impl Ledger<'_> {
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
        let generation = self.next_generation();
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

    pub(super) fn id(&self, index: usize) -> HandleId {
        HandleId(u64::from(self.handles[index].generation) << 32 | (index as u64 + 1))
    }

    pub(super) fn payer(&self, handle: &Handle) -> Option<usize> {
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

    pub(super) fn drop_holder(&mut self, index: usize, slot: usize) {
        self.handles[index].holders[slot / 64] &= !(1 << (slot % 64));
        self.free_if_unreferenced(index);
    }

    pub(super) fn free_if_unreferenced(&mut self, index: usize) {
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
