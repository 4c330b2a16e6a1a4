//! The ledger over tables of its own: what is given, kept, taken back and repaired.

use super::*;
use crate::managed::PageKey;

pub(super) struct Tables(Vec<Process>, Vec<Handle>, Vec<Block>, Totals, Vec<Share>, Vec<Event>, Vec<Space>);

impl Tables {
    pub(super) fn new(blocks: usize) -> Tables {
        let mut totals = Totals::default();
        totals.free[0] = blocks as u32;
        Tables(
            vec![Process::default(); 256],
            vec![Handle::default(); 32],
            vec![Block::default(); blocks],
            totals,
            vec![Share::default(); 4],
            (0..4).map(|_| Event::default()).collect(),
            (0..300).map(|_| Space::default()).collect(),
        )
    }
    pub(super) fn spaces(&mut self, count: usize) {
        self.6.truncate(count);
    }
    pub(super) fn ledger(&mut self) -> Ledger<'_> {
        Ledger {
            processes: &mut self.0,
            handles: &mut self.1,
            per_card: self.2.len(),
            blocks: &mut self.2,
            totals: &mut self.3,
            shares: &mut self.4,
            events: &self.5,
            spaces: &self.6,
        }
    }
}

pub(super) fn process(pid: u32) -> Identity {
    Identity { pid, start: 1 }
}

#[test]
fn an_allocation_that_fits_succeeds_however_fragmented_the_card_is() {
    let mut tables = Tables::new(8);
    let mut ledger = tables.ledger();
    let slot = ledger.join(process(1)).unwrap().0;
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
    let slot = ledger.join(process(1)).unwrap().0;
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
    let (one, two) = (ledger.join(process(1)).unwrap().0, ledger.join(process(2)).unwrap().0);
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
    let one = ledger.join(process(1)).unwrap().0;
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
    let (one, two) = (ledger.join(process(1)).unwrap().0, ledger.join(process(2)).unwrap().0);
    for slot in [one, two] {
        ledger.charge_context(slot, 0, 1).unwrap();
        ledger.create(slot, 0, 2, 0).unwrap();
    }
    assert_eq!(ledger.totals.free[0], 2);
    assert_eq!(ledger.reclaim(|process| process.identity.pid == 2), 1);
    assert_eq!(ledger.totals.free[0], 5);
    assert_eq!(ledger.charged(0)[two], 3);
}

#[test]
fn a_program_that_follows_by_exec_starts_with_nothing() {
    let mut tables = Tables::new(8);
    let mut ledger = tables.ledger();
    let slot = ledger.join(process(1)).unwrap().0;
    ledger.create(slot, 0, 3, 0).unwrap();
    ledger.join(process(1)).unwrap();
    assert_eq!(ledger.totals.free[0], 8);
}

#[test]
fn a_change_cut_short_is_repaired() {
    let mut tables = Tables::new(8);
    let mut ledger = tables.ledger();
    let slot = ledger.join(process(1)).unwrap().0;
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
    let slot = ledger.join(process(1)).unwrap().0;
    for page in 0..4 {
        ledger.take_managed(0, slot, PageKey(page));
    }
    let stamp = ledger.tick();
    ledger.card_mut(0)[0].stamp = stamp;
    let (_, evicted) = ledger.create(slot, 0, 2, 0).unwrap();
    assert_eq!(evicted, 2);
    let left: Vec<u32> =
        ledger.card(0).iter().filter(|block| block.owner & MANAGED != 0).map(|block| block.next).collect();
    assert_eq!(left, [0, 3]);
    assert_eq!(ledger.create(slot, 0, 3, 0), Err(Refused::Full));
}

#[test]
fn plain_memory_evicts_managed_pages_of_other_processes_and_that_is_counted_there() {
    let mut tables = Tables::new(4);
    let mut ledger = tables.ledger();
    let (plain, managed) = (ledger.join(process(1)).unwrap().0, ledger.join(process(2)).unwrap().0);
    for page in 0..3 {
        ledger.take_managed(0, managed, PageKey(page));
    }
    let (_, evicted) = ledger.create(plain, 0, 3, 0).unwrap();
    assert_eq!(evicted, 2);
    let to_host = |slot: usize| {
        let space = ledger.processes[slot].space as usize;
        ledger.spaces[space - 1].read(Some(0), Counter::ToHost)
    };
    assert_eq!([to_host(plain), to_host(managed)], [0, 2 * crate::config::BLOCK_BYTES]);
}

#[test]
fn shared_memory_lives_as_long_as_its_owner_or_somebody_who_has_it_open() {
    let mut tables = Tables::new(4);
    let mut ledger = tables.ledger();
    let (owner, other) = (ledger.join(process(1)).unwrap().0, ledger.join(process(2)).unwrap().0);
    let handle = ledger.create(owner, 0, 2, 0).unwrap().0;
    let share = ledger.share(owner, handle, (512, 1024), 0).unwrap();
    assert_eq!(ledger.share(owner, handle, (512, 1024), 0), Some(share), "the same again");
    assert_eq!(ledger.open_share(share, owner).err(), Some(ShareError::Own));
    let opened = ledger.open_share(share, other).unwrap();
    assert_eq!((opened.handle(), opened.start, opened.bytes, opened.owner()), (handle, 512, 1024, owner));
    assert_eq!(ledger.unshare(share), 1);
    ledger.let_go(handle, owner);
    assert_eq!(ledger.totals.free[0], 2, "the other one holds it");
    assert_eq!(ledger.open_share(share, other).err(), Some(ShareError::Gone));
    ledger.close_share(share, other);
    ledger.let_go(handle, other);
    assert_eq!(ledger.totals.free[0], 4);
}

#[test]
fn what_is_shared_anew_is_another_share() {
    let mut tables = Tables::new(4);
    let mut ledger = tables.ledger();
    let (owner, other) = (ledger.join(process(1)).unwrap().0, ledger.join(process(2)).unwrap().0);
    let handle = ledger.create(owner, 0, 1, 0).unwrap().0;
    let first = ledger.share(owner, handle, (0, 512), 0).unwrap();
    let beside = ledger.share(owner, handle, (512, 512), 0).unwrap();
    assert_ne!(first, beside);
    assert_eq!(ledger.unshare(first), 0, "nobody has it open");
    let second = ledger.share(owner, handle, (0, 512), 0).unwrap();
    assert_ne!(first, second);
    assert!(ledger.open_share(first, other).is_err() && ledger.open_share(second, other).is_ok());
    ledger.close_share(second, other);
    assert_eq!(ledger.unshare(second), 0, "it was closed");
}

#[test]
fn the_dead_share_nothing_and_have_nothing_open() {
    let mut tables = Tables::new(4);
    let mut ledger = tables.ledger();
    let [one, two] = [1, 2].map(|pid| ledger.join(process(pid)).unwrap().0);
    let handle = ledger.create(one, 0, 1, 0).unwrap().0;
    let share = ledger.share(one, handle, (0, 512), 0).unwrap();
    ledger.open_share(share, two).unwrap();
    ledger.reclaim(|process| process.identity.pid == 1);
    assert_eq!(ledger.join(process(3)).unwrap().0, two, "somebody else has its place");
    assert_eq!(ledger.unshare(share), 0);
    let share = ledger.share(one, handle, (0, 512), 0).unwrap();
    ledger.open_share(share, two).unwrap();
    ledger.reclaim(|process| process.identity.pid == 3);
    assert!(ledger.shared(share).is_none());
    assert_eq!(ledger.totals.free[0], 3, "who has it open keeps the memory");
    ledger.let_go(handle, two);
    assert_eq!(ledger.totals.free[0], 4);
}

#[test]
fn a_share_or_an_event_that_was_cut_short_is_repaired() {
    let mut tables = Tables::new(4);
    let mut ledger = tables.ledger();
    let slot = ledger.join(process(1)).unwrap().0;
    let handle = ledger.create(slot, 0, 1, 0).unwrap().0;
    let share = ledger.share(slot, handle, (0, 512), 0).unwrap();
    let event = ledger.make_event(slot).unwrap();
    ledger.repair();
    assert!(ledger.shared(share).is_some() && ledger.event(event).is_some(), "they are whole");
    ledger.let_go(handle, slot);
    ledger.processes[slot] = Process::default();
    ledger.repair();
    assert!(ledger.shared(share).is_none() && ledger.event(event).is_none());
}

#[test]
fn a_record_of_an_event_is_reached_when_its_work_is_over_or_its_process_is_gone() {
    let mut tables = Tables::new(4);
    let mut ledger = tables.ledger();
    let (owner, other) = (ledger.join(process(1)).unwrap().0, ledger.join(process(2)).unwrap().0);
    let id = ledger.make_event(owner).unwrap();
    let (event, of) = ledger.event(id).unwrap();
    assert_eq!((of, event.recorded()), (owner, 0));
    let (first, second) = (event.record(owner), event.record(owner));
    event.reach(first);
    assert!(event.is_reached(first) && !event.is_reached(second));
    event.reach(second);
    let third = event.record(other);
    assert!(!event.is_reached(third));
    ledger.reclaim(|process| process.identity.pid == 1);
    let (event, _) = ledger.event(id).unwrap();
    assert!(event.is_reached(third), "nothing of it will come any more");
    ledger.end_event(id);
    assert!(ledger.event(id).is_none());
    assert_ne!(ledger.make_event(owner), Some(id));
}
