//! Blocks: whose each is, and making room among them.

use super::{Block, CONTEXT, Counter, END, FREE, KIND, Ledger, MANAGED, Refused};
use crate::config::BLOCK_BYTES;
use crate::managed::PageKey;

impl Ledger<'_> {
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

    /// Evicts managed pages, least recently used first, until `count` blocks are free. It is counted of those whose pages they were.
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
            let at = card * self.per_card + index;
            let owner = (self.blocks[at].owner & !KIND) as usize;
            self.count(owner, Some(card), Counter::ToHost, BLOCK_BYTES);
            self.free_block(at);
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

    /// Takes `count` free blocks (there must be as many) for `owner`, in one run where there is one, and chains them.
    pub(super) fn take(&mut self, card: usize, count: u32, owner: u32) -> u32 {
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
