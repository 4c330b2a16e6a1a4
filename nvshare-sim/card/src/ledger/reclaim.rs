//! Who comes and who is gone: slots for processes, and what happens to what the dead held.

use super::{Block, FREE, HandleId, KIND, LIVE, Ledger, Process, holds, is_unreferenced};
use crate::process::Identity;

impl Ledger<'_> {
    /// Takes a slot and a space for a process; what an earlier program under the same identity held (it called exec) is freed.
    pub(crate) fn join(&mut self, identity: Identity) -> Option<(usize, u32)> {
        if let Some(slot) = self.processes.iter().position(|process| process.identity == identity) {
            self.remove_process(slot);
        }
        let slot = self.processes.iter().position(|process| process.identity.pid == 0)?;
        let space = self.free_space();
        self.processes[slot] = Process { identity, space };
        Some((slot, space))
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
        self.forget_shares(slot);
        self.forget_events(slot);
        self.processes[slot] = Process::default();
    }

    /// Frees what belongs to processes that are not `alive`; says how many there were.
    pub(crate) fn reclaim(&mut self, alive: impl Fn(&Process) -> bool) -> usize {
        let mut dead = 0;
        for slot in 0..self.processes.len() {
            let process = &self.processes[slot];
            if process.identity.pid != 0 && !alive(process) {
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
        self.repair_shares();
        self.repair_events();
        for card in 0..self.blocks.len() / self.per_card {
            let free = self.card(card).iter().filter(|block| block.owner == FREE).count();
            self.totals.free[card] = free as u32;
        }
        self.totals.cursor = 0;
        self.totals.used = self.handles.len() as u32;
    }
}
