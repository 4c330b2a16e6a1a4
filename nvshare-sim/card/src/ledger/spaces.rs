//! Spaces: what happened to each process's managed memory, counted as NVIDIA's module counts it, whoever made it happen. Others
//! read them without the lock (`crate::uvm`).

use std::sync::atomic::{AtomicU64, Ordering};

use super::Ledger;
use crate::config::MAX_CARDS;

/// `UVM_TOTAL_COUNTERS` of the module.
const COUNTERS: usize = 10;

/// What is counted, by its number in the module's `UvmCounterName`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Bytes that moved to a card.
    ToDevice = 0,
    /// Bytes that moved to the host.
    ToHost = 1,
    /// Faults of the host. No card's.
    HostFaults = 2,
    /// Faults of a card.
    Faults = 9,
}

/// The counts of one process: of everything first, then of each card.
#[derive(Debug, Default)]
#[repr(C, align(1024))]
pub(crate) struct Space {
    rows: [[AtomicU64; COUNTERS]; 1 + MAX_CARDS],
}

impl Space {
    /// Counted so far: by a card, or by all.
    #[cfg(test)]
    pub(crate) fn read(&self, card: Option<usize>, counter: Counter) -> u64 {
        self.rows[card.map_or(0, |card| 1 + card)][counter as usize].load(Ordering::Relaxed)
    }
}

impl Ledger<'_> {
    /// A space that is nobody's, with nothing counted yet: its number, which is never 0. One that was somebody's is used again as
    /// late as can be: the last of it may still have to be read.
    pub(super) fn free_space(&mut self) -> u32 {
        let count = self.spaces.len() as u32;
        let taken = |number: u32| self.processes.iter().any(|process| process.space == number);
        let mut following = (0..count).map(|step| (self.totals.space + step) % count + 1);
        let number = following.find(|number| !taken(*number)).expect("more spaces than processes");
        for counter in self.spaces[number as usize - 1].rows.as_flattened() {
            counter.store(0, Ordering::Relaxed);
        }
        self.totals.space = number;
        number
    }

    /// Counts for the process in `slot`: on a card, or on none.
    pub(crate) fn count(&self, slot: usize, card: Option<usize>, counter: Counter, more: u64) {
        let number = self.processes[slot].space as usize;
        let Some(space) = number.checked_sub(1).and_then(|index| self.spaces.get(index)) else { return };
        for row in std::iter::once(0).chain(card.map(|card| 1 + card)) {
            space.rows[row][counter as usize].fetch_add(more, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Tables, process};
    use super::*;

    #[test]
    fn a_space_is_used_again_as_late_as_can_be_and_begins_at_zero() {
        let mut tables = Tables::new(4);
        tables.spaces(4);
        let mut ledger = tables.ledger();
        let (one, first) = ledger.join(process(1)).unwrap();
        ledger.count(one, Some(0), Counter::Faults, 7);
        ledger.remove_process(one);
        let numbers = (2..8).map(|pid| {
            let (slot, number) = ledger.join(process(pid)).unwrap();
            if pid != 3 {
                ledger.remove_process(slot);
            }
            number
        });
        let numbers: Vec<u32> = numbers.collect();
        assert_eq!(
            (first, &numbers[..]),
            (1, &[2, 3, 4, 1, 2, 4][..]),
            "there are four, and the third is in use"
        );
        assert_eq!(ledger.spaces[0].read(Some(0), Counter::Faults), 0);
    }

    #[test]
    fn what_is_counted_on_a_card_is_counted_of_everything_and_of_no_other_process() {
        let mut tables = Tables::new(4);
        let mut ledger = tables.ledger();
        let (one, _) = ledger.join(process(1)).unwrap();
        ledger.join(process(2)).unwrap();
        ledger.count(one, Some(1), Counter::ToHost, 5);
        ledger.count(one, None, Counter::HostFaults, 3);
        let read = |card, counter| ledger.spaces[0].read(card, counter);
        assert_eq!([None, Some(0), Some(1)].map(|card| read(card, Counter::ToHost)), [5, 0, 5]);
        assert_eq!([None, Some(0), Some(1)].map(|card| read(card, Counter::HostFaults)), [3, 0, 0]);
        assert_eq!(ledger.spaces[1].read(None, Counter::ToHost), 0);
    }
}
