//! Where the pages of managed memory are: the behaviour of the driver's own paging, which nvshare exists to replace.
//!
//! Bytes never move (managed memory is host memory of its process at one address); what moves is the claim on a block
//! of the card, with the time that the real move would take. A page that another process evicted finds its block
//! claimed by somebody else: nobody has to be told.

use crate::ledger::{Counter, Ledger, MANAGED};

/// Pages of managed memory have the size of a block.
pub const PAGE_BYTES: u64 = crate::config::BLOCK_BYTES;

/// A page's number, unique in its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageKey(pub(crate) u32);

/// One allocation of managed memory, kept by its process.
#[derive(Debug)]
pub struct ManagedRange {
    first: u32,
    pages: Vec<Page>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// No byte exists anywhere.
    Untouched,
    Host,
    Device {
        card: u32,
        block: u32,
    },
}

/// What an access or a prefetch had to do, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Came from the host.
    pub to_device: u32,
    /// Came into being on the card.
    pub created: u32,
    /// Left the card, of whatever process.
    pub to_host: u32,
}

impl ManagedRange {
    /// `pages` untouched pages; `first` is a number that no other page of the process has.
    pub fn new(first: u32, pages: usize) -> ManagedRange {
        ManagedRange { first, pages: vec![Page::Untouched; pages] }
    }

    /// How many pages.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Whether the page was never touched by anybody, as far as known.
    pub fn is_untouched(&self, page: usize) -> bool {
        self.pages[page] == Page::Untouched
    }
}

impl Ledger<'_> {
    /// The host touched a page of which nothing existed. What it does with pages on a card the simulator does not see.
    pub(crate) fn host_touched(&self, slot: usize, range: &mut ManagedRange, page: usize) {
        if range.is_untouched(page) {
            range.pages[page] = Page::Host;
            self.count(slot, None, Counter::HostFaults, 1);
        }
    }

    /// The block that holds the page, if it is still the page's.
    fn resident(&self, slot: usize, range: &ManagedRange, page: usize) -> Option<usize> {
        let Page::Device { card, block } = range.pages[page] else { return None };
        let index = card as usize * self.per_card + block as usize;
        let entry = self.blocks[index];
        (entry.owner == MANAGED | slot as u32 && entry.next == range.first + page as u32).then_some(index)
    }

    /// A kernel touches a page: it faults where it is not resident, evicting the page used longest ago on a full card.
    /// Where plain memory fills the card the page is read over the link and stays on the host.
    pub(crate) fn touch(&mut self, card: usize, slot: usize, range: &mut ManagedRange, page: usize) -> Moved {
        if let Some(index) = self.resident(slot, range, page) {
            self.blocks[index].stamp = self.tick();
            return Moved::default();
        }
        self.count(slot, Some(card), Counter::Faults, 1);
        self.bring(card, slot, range, page)
    }

    /// Puts a page that is not resident on the card.
    fn bring(&mut self, card: usize, slot: usize, range: &mut ManagedRange, page: usize) -> Moved {
        let mut moved = Moved::default();
        let untouched = range.pages[page] == Page::Untouched;
        if untouched {
            moved.created = 1;
        } else {
            moved.to_device = 1;
        }
        match self.make_room(card, 1) {
            Ok(evicted) => {
                moved.to_host = evicted;
                let block = self.take_managed(card, slot, PageKey(range.first + page as u32));
                range.pages[page] = Page::Device { card: card as u32, block };
                if !untouched {
                    self.count(slot, Some(card), Counter::ToDevice, PAGE_BYTES);
                }
            }
            Err(_) => range.pages[page] = Page::Host,
        }
        moved
    }

    /// The driver's prefetch: nothing for a page that has no bytes yet, nothing on a full card.
    pub(crate) fn prefetch(
        &mut self,
        card: usize,
        slot: usize,
        range: &mut ManagedRange,
        page: usize,
    ) -> Moved {
        let on_host = range.pages[page] != Page::Untouched && self.resident(slot, range, page).is_none();
        if on_host && self.totals.free[card] > 0 {
            return self.bring(card, slot, range, page);
        }
        Moved::default()
    }

    /// The page goes to the host, if it is on a card.
    pub(crate) fn fetch_to_host(&mut self, slot: usize, range: &mut ManagedRange, page: usize) -> Moved {
        let mut moved = Moved::default();
        if let Some(index) = self.resident(slot, range, page) {
            self.free_block(index);
            self.count(slot, Some(index / self.per_card), Counter::ToHost, PAGE_BYTES);
            moved.to_host = 1;
        }
        if range.pages[page] != Page::Untouched {
            range.pages[page] = Page::Host;
        }
        moved
    }

    /// Gives the blocks of a range back.
    pub(crate) fn forget(&mut self, slot: usize, range: &ManagedRange) {
        for page in 0..range.pages.len() {
            if let Some(index) = self.resident(slot, range, page) {
                self.free_block(index);
            }
        }
    }
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, other: Moved) {
        self.to_device += other.to_device;
        self.created += other.created;
        self.to_host += other.to_host;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Block, Handle, Process, Space, Totals};
    use crate::process::Identity;

    fn on_a_card(blocks: usize, test: impl FnOnce(&mut Ledger<'_>, usize)) {
        let mut totals = Totals::default();
        totals.free[0] = blocks as u32;
        let mut tables =
            (vec![Process::default(); 4], vec![Handle::default(); 4], vec![Block::default(); blocks]);
        let mut ledger = Ledger {
            processes: &mut tables.0,
            handles: &mut tables.1,
            blocks: &mut tables.2,
            per_card: blocks,
            totals: &mut totals,
            shares: &mut [],
            events: &[],
            spaces: &std::array::from_fn::<_, 4, _>(|_| Space::default()),
        };
        let slot = ledger.join(Identity { pid: 1, start: 1 }).unwrap().0;
        test(&mut ledger, slot);
    }

    /// What was counted of a process: bytes to the card and to the host in pages, faults of the card and of the host.
    fn counted(ledger: &Ledger<'_>, slot: usize) -> [u64; 4] {
        let space = &ledger.spaces[ledger.processes[slot].space as usize - 1];
        let pages = |counter| space.read(Some(0), counter) / PAGE_BYTES;
        let faults = space.read(Some(0), Counter::Faults);
        [pages(Counter::ToDevice), pages(Counter::ToHost), faults, space.read(None, Counter::HostFaults)]
    }

    fn touch_all(ledger: &mut Ledger<'_>, slot: usize, range: &mut ManagedRange) -> Moved {
        let mut moved = Moved::default();
        for page in 0..range.pages() {
            moved += ledger.touch(0, slot, range, page);
        }
        moved
    }

    #[test]
    fn memory_that_fits_faults_in_once() {
        on_a_card(4, |ledger, slot| {
            let mut range = ManagedRange::new(0, 3);
            ledger.host_touched(slot, &mut range, 2);
            assert_eq!(touch_all(ledger, slot, &mut range), Moved { to_device: 1, created: 2, to_host: 0 });
            assert_eq!(touch_all(ledger, slot, &mut range), Moved::default());
            assert_eq!(ledger.totals.free[0], 1);
            ledger.forget(slot, &range);
            assert_eq!(ledger.totals.free[0], 4);
        });
    }

    #[test]
    fn a_sweep_over_more_than_the_card_faults_on_every_page() {
        on_a_card(4, |ledger, slot| {
            let mut range = ManagedRange::new(0, 6);
            touch_all(ledger, slot, &mut range);
            assert_eq!(touch_all(ledger, slot, &mut range), Moved { to_device: 6, created: 0, to_host: 6 });
        });
    }

    #[test]
    fn one_process_evicts_the_pages_of_another() {
        on_a_card(4, |ledger, one| {
            let two = ledger.join(Identity { pid: 2, start: 1 }).unwrap().0;
            let (mut first, mut second) = (ManagedRange::new(0, 3), ManagedRange::new(0, 3));
            touch_all(ledger, one, &mut first);
            assert_eq!(touch_all(ledger, two, &mut second), Moved { to_device: 0, created: 3, to_host: 2 });
            assert_eq!(
                touch_all(ledger, one, &mut first).to_device,
                3,
                "LRU: each return evicts the next one needed"
            );
        });
    }

    #[test]
    fn a_prefetch_of_untouched_pages_or_onto_a_full_card_does_nothing() {
        on_a_card(2, |ledger, slot| {
            let mut range = ManagedRange::new(0, 4);
            assert_eq!(ledger.prefetch(0, slot, &mut range, 0), Moved::default());
            ledger.host_touched(slot, &mut range, 0);
            assert_eq!(ledger.prefetch(0, slot, &mut range, 0).to_device, 1);
            ledger.touch(0, slot, &mut range, 1);
            ledger.host_touched(slot, &mut range, 2);
            assert_eq!(ledger.prefetch(0, slot, &mut range, 2), Moved::default());
            assert_eq!(ledger.fetch_to_host(slot, &mut range, 0).to_host, 1);
            assert_eq!(ledger.prefetch(0, slot, &mut range, 2).to_device, 1);
        });
    }

    #[test]
    fn what_happens_is_counted_of_whose_pages_it_happens_to() {
        on_a_card(4, |ledger, one| {
            let two = ledger.join(Identity { pid: 2, start: 1 }).unwrap().0;
            let (mut first, mut second) = (ManagedRange::new(0, 3), ManagedRange::new(0, 3));
            for page in [0, 1, 0] {
                ledger.host_touched(one, &mut first, page);
            }
            touch_all(ledger, one, &mut first);
            assert_eq!((counted(ledger, one), counted(ledger, two)), ([2, 0, 3, 2], [0; 4]));
            touch_all(ledger, two, &mut second);
            assert_eq!((counted(ledger, one), counted(ledger, two)), ([2, 2, 3, 2], [0, 0, 3, 0]));
            ledger.forget(two, &second);
            ledger.prefetch(0, one, &mut first, 0);
            ledger.fetch_to_host(one, &mut first, 0);
            assert_eq!(counted(ledger, one), [3, 3, 3, 2], "prefetches are no faults");
            // Another one's plain memory takes the place of the one page that is left.
            ledger.create(two, 0, 4, 0).unwrap();
            touch_all(ledger, one, &mut first);
            assert_eq!(counted(ledger, one), [3, 4, 6, 2], "what is read over the link does not move");
            assert_eq!(counted(ledger, two), [0, 0, 3, 0]);
        });
    }

    #[test]
    fn pages_stay_on_the_host_where_plain_memory_fills_the_card() {
        on_a_card(2, |ledger, slot| {
            ledger.create(slot, 0, 2, 0).unwrap();
            let mut range = ManagedRange::new(0, 1);
            ledger.touch(0, slot, &mut range, 0);
            assert_eq!(ledger.touch(0, slot, &mut range, 0), Moved { to_device: 1, created: 0, to_host: 0 });
        });
    }
}
