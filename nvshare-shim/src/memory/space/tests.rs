//! Tests of the accounts of one device.

use proptest::prelude::*;

use super::*;
use crate::config::BLOCK_BYTES;
use crate::memory::extent::Shadow;

const LARGEST: u64 = 4 * BLOCK_BYTES;

fn granted(bytes: u64) -> Space {
    let mut space = Space::new();
    space.set_terms(|terms| (terms.unlimited, terms.granted) = (false, bytes));
    space
}

fn arrive(space: &mut Space, id: ExtentId) -> bool {
    if !space.begin_arrival(id) {
        return false;
    }
    space.extent_mut(id).handle = 1;
    space.extent_mut(id).contents = true;
    space.finish_arrival(id, None);
    true
}

#[test]
fn an_extent_becomes_resident_only_within_the_grant() {
    let mut space = granted(6 * BLOCK_BYTES);
    let extents = space.add_span(0x1000_0000, 8 * BLOCK_BYTES, LARGEST, 0);
    assert_eq!(extents.len(), 2);
    assert!(arrive(&mut space, extents[0]));
    assert!(!arrive(&mut space, extents[1]));
    assert_eq!(space.accounts().missing, 4 * BLOCK_BYTES);
    space.set_terms(|terms| terms.granted += 2 * BLOCK_BYTES);
    assert!(arrive(&mut space, extents[1]));
    assert_eq!(space.accounts().missing, 0);
}

#[test]
fn a_departure_takes_the_grant_along_and_a_failed_one_changes_nothing() {
    let mut space = granted(4 * BLOCK_BYTES);
    let id = space.add_span(0, LARGEST, LARGEST, 0)[0];
    assert!(arrive(&mut space, id));
    let before = *space.accounts();
    space.begin_departure(id);
    space.abandon_departure(id);
    assert_eq!(*space.accounts(), before);
    space.begin_departure(id);
    space.extent_mut(id).blocks.fill(crate::memory::extent::Block { shadow: Shadow::Zero, print: None });
    assert_eq!(space.finish_departure(id), LARGEST);
    assert_eq!((space.accounts().granted, space.accounts().resident), (0, 0));
    assert_eq!(space.extent(id).presence(), Presence::Swapped);
}

#[test]
fn what_is_missing_of_a_fixed_span_keeps_no_gate_shut_whether_it_is_let_go_or_goes() {
    let mut space = granted(LARGEST);
    let id = space.add_span(0, LARGEST, LARGEST, 0)[0];
    space.span_is_made(0);
    let before = *space.accounts();
    let fixed = space.fix(0).expect("nobody is at it");
    assert_eq!(space.accounts().missing, 0);
    assert!(!space.is_anybodys(space.extent(id)));
    space.let_go(0, fixed);
    assert_eq!(*space.accounts(), before);
    assert!(arrive(&mut space, id));
    let fixed = space.fix(0).expect("nobody is at it");
    assert!(!space.extent(id).can_leave());
    space.let_go(0, fixed);
    assert!(space.extent(id).can_leave());
    space.add_span(LARGEST, LARGEST, LARGEST, 0);
    assert!(space.fix(LARGEST).is_some() && space.remove_span(LARGEST).is_some());
    assert_eq!((space.accounts().missing, space.accounts().total), (0, LARGEST));
}

#[test]
fn a_span_freed_under_the_engines_hands_goes_when_the_engine_is_done() {
    let mut space = granted(LARGEST);
    let id = space.add_span(0, LARGEST, LARGEST, 0)[0];
    assert!(space.begin_arrival(id));
    space.extent_mut(id).handle = 7;
    assert!(space.remove_span(0).is_none());
    space.finish_arrival(id, None);
    let remains = space.reap(0).unwrap();
    assert_eq!(remains.pieces, [Piece { start: 0, bytes: LARGEST, handle: 7, mapped: false }]);
    assert_eq!(space.accounts().resident, LARGEST, "still there until the driver has it back");
    space.forget(LARGEST);
    assert_eq!((space.accounts().resident, space.accounts().missing, space.accounts().total), (0, 0, 0));
}

#[test]
fn an_address_finds_its_extent() {
    let mut space = granted(0);
    let first = space.add_span(BLOCK_BYTES, 6 * BLOCK_BYTES, LARGEST, 0);
    assert_eq!(space.at(BLOCK_BYTES), Some(first[0]));
    assert_eq!(space.at(5 * BLOCK_BYTES), Some(first[1]));
    assert_eq!(space.at(7 * BLOCK_BYTES - 1), Some(first[1]));
    assert_eq!(space.at(7 * BLOCK_BYTES), None);
    assert_eq!(space.at(0), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 128 }, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_accounts_are_the_sum_of_the_extents(steps in proptest::collection::vec((0_u8..13, any::<usize>(), 1_u64..10), 0..200)) {
        let mut space = granted(0);
        let (mut next, mut lent) = (0, Vec::new());
        for (what, which, blocks) in steps {
            let ids: Vec<ExtentId> = space.extents().map(|(id, _)| id).collect();
            let pick = (!ids.is_empty()).then(|| ids[which % ids.len()]);
            match (what, pick) {
                (0, _) => {
                    space.add_span(next, blocks * BLOCK_BYTES, LARGEST, 0);
                    next += (blocks + 1) * BLOCK_BYTES;
                }
                (1, _) => space.set_terms(|terms| terms.granted += blocks * BLOCK_BYTES),
                (2, Some(id)) if matches!(space.extent(id).presence(), Presence::Absent | Presence::Swapped) && space.begin_arrival(id) => {
 space.extent_mut(id).handle = 1;
}
                (3, Some(id)) if space.extent(id).presence() == Presence::Arriving => space.finish_arrival(id, None),
                (4, Some(id)) if space.extent(id).can_leave() => space.begin_departure(id),
                (5, Some(id)) if space.extent(id).presence() == Presence::Leaving => {
                    space.finish_departure(id);
                }
                (7, Some(id)) if space.extent(id).presence() == Presence::Leaving => space.abandon_departure(id),
                (8, Some(id)) => {
                    let extent = space.extent(id);
                    let (start, bytes) = (extent.start, blocks * BLOCK_BYTES);
                    prop_assert!(space.keep(start, bytes));
                }
                (9, Some(id)) => {
                    let (start, bytes) = (space.extent(id).start, blocks * BLOCK_BYTES);
                    lent.extend(space.lend(start, bytes));
                }
                (10, _) if !lent.is_empty() => space.returned(lent.swap_remove(which % lent.len())),
                (11, _) => space.owe(blocks * BLOCK_BYTES),
                (12, _) => {
                    let (owed, slack) = (space.owed(), space.accounts().slack());
                    prop_assert_eq!(space.pay(), (owed > 0 && owed <= slack).then_some(owed));
                }
                (6, Some(id)) => {
                    let span = space.extent(id).span;
                    if let Some(remains) = space.remove_span(span) {
                        space.forget(remains.pieces.iter().map(|piece| piece.bytes).sum());
                    }
                }
                _ => {}
            }
            let sum = |wanted: &[Presence]| -> u64 {
                space.extents().filter(|(_, extent)| wanted.contains(&extent.presence())).map(|(_, extent)| extent.bytes).sum()
            };
            let accounts = *space.accounts();
            prop_assert_eq!(accounts.resident, sum(&[Presence::Arriving, Presence::Resident, Presence::Leaving]));
            prop_assert_eq!(accounts.total - accounts.missing, sum(&[Presence::Resident]));
            prop_assert_eq!(accounts.total, space.owed() + space.extents().map(|(_, extent)| extent.bytes).sum::<u64>());
            prop_assert!(accounts.resident <= accounts.granted);
            let kept = space.extents().filter(|(_, extent)| extent.stays()).map(|(_, extent)| extent.bytes).sum::<u64>();
            prop_assert_eq!(space.kept(), kept);
            for (id, extent) in space.extents() {
                let times = lent.iter().filter(|lent| lent.names(id, extent)).count();
                prop_assert_eq!(extent.lent as usize, times);
                prop_assert!(times == 0 || extent.presence() == Presence::Resident);
            }
            for (start, span) in space.spans() {
                let whole = span.extents.iter().all(|id| space.extent(*id).presence() == Presence::Resident);
                let keeps = span.extents.iter().any(|id| space.extent(*id).stays());
                prop_assert_eq!((space.is_whole(start), space.is_whole(start + span.bytes - 1)), (whole, whole));
                prop_assert_eq!(space.is_kept(start), keeps);
            }
        }
    }
}
