//! Who came first goes on, and nobody is believed for ever: newcomers beside a client that needs nearly the whole card, and
//! claims that an earlier agent is said to have granted.

use nvshare_agent_core::conductor::Core;
use nvshare_agent_core::ledger::SessionId;
use nvshare_agent_world::{GIB, MIB, World, card, settings};
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, Ticket};
use nvshare_common::protocol::ToAgent;

/// One that needs all but a little of a card of 16 GiB, and has run.
fn incumbent() -> (World, usize) {
    let mut world = World::new(&[16 * GIB]);
    let big = world.worker(15 * GIB + 256 * MIB);
    world.shims[big].overhead = 300 * MIB;
    world.run(5_000);
    (world, big)
}

fn newcomer(world: &mut World, overhead: u64) -> usize {
    let small = world.start();
    world.strict = false;
    world.shims[small].overhead = overhead;
    small
}

#[test]
fn a_newcomer_whose_context_fits_into_the_reserve_takes_turns_with_one_that_needs_the_card() {
    let (mut world, big) = incumbent();
    let ran = world.shims[big].ran;
    let small = newcomer(&mut world, 450 * MIB);
    world.allocate(small, 0, 256 * MIB);
    world.shims[small].works = true;
    world.run(120_000);
    let more = world.shims[big].ran - ran;
    assert!(more > 20_000, "the first ran for {more} of 120000 ms more");
    assert!(world.shims[small].ran > 20_000, "the second ran for {} ms", world.shims[small].ran);
    assert!(world.core.ledger.device(card(0)).unwrap().reserve() < settings().reserve);
    world.kill(small);
    world.run(15_000);
    assert_eq!(world.core.ledger.device(card(0)).unwrap().reserve(), settings().reserve, "it is given back");
}

#[test]
fn a_newcomer_whose_context_leaves_the_first_no_room_gets_no_memory_and_both_are_told() {
    let (mut world, big) = incumbent();
    let small = newcomer(&mut world, 700 * MIB);
    // It has met the card, and its next question for memory is refused as on a full one.
    world.shims[small].total.insert(card(0), 0);
    world.hear_from(small, ToAgent::Met { device: card(0) });
    world.run(3_000);
    assert_eq!(world.shims[small].limit.get(&card(0)), Some(&0));
    let (first, last) = (world.shims[big].id, world.shims[small].id);
    assert_eq!(world.core.ledger.device(card(0)).unwrap().latecomers(), [last]);
    if let Some(why) = world.core.hindered.get(&first) {
        assert!(why.contains(&format!("client {} came last", last.0)), "{why}");
    }
    // It ends, as programs do without memory, and nothing is left of it.
    world.kill(small);
    let ran = world.shims[big].ran;
    world.run(20_000);
    assert!(world.shims[big].ran - ran > 10_000);
    assert!(world.core.ledger.device(card(0)).unwrap().latecomers().is_empty());
}

/// Two that ran with 12 GiB each of 16, and then hold 5 GiB each that cannot be moved any more: no turn is possible.
fn two_that_ran() -> (World, usize, usize) {
    let mut world = World::new(&[16 * GIB]);
    let (first, second) = (world.worker(12 * GIB), world.worker(12 * GIB));
    world.run(60_000);
    assert!(world.shims[first].ran > 10_000 && world.shims[second].ran > 10_000);
    // In the middle of a switch, when both have so much there.
    let both = |world: &World| [first, second].iter().all(|one| world.resident(*one, 0) > 5 * GIB);
    world.until(60_000, both);
    for one in [first, second] {
        world.shims[one].fixed = 5 * GIB;
    }
    (world, first, second)
}

/// Two that ran with less than they asked for since, and were told that they may have it.
fn two_newcomers() -> (World, usize, usize) {
    let mut world = World::new(&[16 * GIB]);
    let (first, second) = (world.worker(7 * GIB), world.worker(7 * GIB));
    world.run(5_000);
    for one in [first, second] {
        world.shims[one].fixed = 5 * GIB;
        world.allocate(one, 0, 3 * GIB + 512 * MIB);
    }
    for one in [first, second] {
        world.shims[one].fixed = 6 * GIB;
    }
    (world, first, second)
}

#[test]
fn of_two_that_make_each_other_impossible_the_youngest_gets_no_more_and_both_are_told() {
    for (mut world, first, second) in [two_that_ran(), two_newcomers()] {
        world.strict = false;
        world.run(90_000);
        let (older, younger) = (world.shims[first].id, world.shims[second].id);
        let ran = (world.shims[first].ran, world.shims[second].ran);
        assert_eq!(
            world.core.ledger.device(card(0)).unwrap().latecomers(),
            [younger],
            "{}",
            world.describe()
        );
        let said = &world.core.hindered;
        assert!(said[&older].contains(&format!("client {} came last", younger.0)), "{said:?}");
        assert!(said[&younger].contains("beside what cannot be moved"), "{said:?}");

        // Whatever asks for memory is refused at once, on every way; whoever waits to run waits, and keeps all it has.
        let has = world.shims[second].total[&card(0)];
        assert_eq!(world.shims[second].limit[&card(0)], has);
        world.want_room(second, 1, 64 * MIB);
        world.shims[second].rooms.insert(2, None);
        let more = ToAgent::MayHave { ticket: Ticket(2), device: card(0), total: Bytes(has + MIB) };
        world.hear_from(second, more);
        world.run(500);
        assert_eq!(
            (world.shims[second].rooms[&1], world.shims[second].rooms[&2]),
            (Some(false), Some(false))
        );
        world.run(60_000);
        assert_eq!((world.shims[first].ran, world.shims[second].ran), ran, "neither runs");
        let kept = world.core.ledger.client(younger).unwrap();
        assert!(kept.wants().is_some() && kept.dead().is_none() && kept.unyielding().is_none(), "{kept:?}");

        // It fails by that, or is ended, and the first goes on with everything it had.
        world.kill(second);
        world.run(20_000);
        assert!(world.shims[first].ran - ran.0 > 10_000, "{}", world.describe());
        assert!(world.core.hindered.is_empty() && world.running(first));
    }
}

#[test]
fn of_two_that_make_each_other_impossible_both_go_on_when_one_frees_enough() {
    let (mut world, first, second) = two_that_ran();
    world.strict = false;
    world.run(90_000);
    let ran = (world.shims[first].ran, world.shims[second].ran);
    world.shims[second].fixed = GIB;
    world.shims[first].fixed = GIB;
    world.run(120_000);
    assert!(world.core.ledger.device(card(0)).unwrap().latecomers().is_empty());
    for (one, before) in [(first, ran.0), (second, ran.1)] {
        assert!(world.shims[one].ran - before > 20_000, "{}", world.describe());
    }
}

#[test]
fn without_host_memory_nobody_is_promised_what_another_cannot_leave() {
    let mut world = World::new(&[16 * GIB]);
    world.host_memory = 0;
    let (first, second) = (world.worker(6 * GIB), world.worker(6 * GIB));
    world.run(2_000);
    // Together with this one they need more than there is, and host memory, of which there is none.
    let third = world.worker(6 * GIB);
    world.run(1_000);
    // Less than the card, and more than is left beside the other: each would wait for the other for ever.
    for one in [first, second] {
        world.shims[one].rooms.insert(1, None);
        let more = ToAgent::MayHave { ticket: Ticket(1), device: card(0), total: Bytes(12 * GIB) };
        world.hear_from(one, more);
        world.run(500);
        assert_eq!(world.shims[one].rooms[&1], Some(false));
        assert!(world.shims[one].limit[&card(0)] < 11 * GIB && world.running(one));
    }
    // With host memory it may: one leaves for the other.
    world.kill(third);
    world.host_memory = 1 << 40;
    world.run(3_000);
    assert!(world.shims[first].limit[&card(0)] > 12 * GIB);
}

#[test]
fn nobody_came_too_late_for_one_that_lost_its_connection_or_ended_a_moment_ago() {
    let mut world = World::new(&[16 * GIB]);
    let (first, second) = (world.worker(12 * GIB), world.worker(12 * GIB));
    let third = world.worker(GIB);
    world.run(60_000);
    let both = |world: &World| [first, second].iter().all(|one| world.resident(*one, 0) > 5 * GIB);
    world.until(60_000, both);
    world.strict = false;
    world.disconnect(second);
    let none = |world: &World| world.core.ledger.device(card(0)).unwrap().latecomers().is_empty();
    for _ in 0..300 {
        world.run(10);
        assert!(none(&world), "{}", world.describe());
    }
    world.connect(second);
    world.until(60_000, both);
    world.kill(second);
    for _ in 0..300 {
        world.run(10);
        assert!(none(&world), "{}", world.describe());
    }
    assert!(world.running(first) && world.running(third));
}

#[test]
fn nobody_came_too_late_for_what_somebody_without_the_library_took() {
    let mut world = World::new(&[16 * GIB]);
    let (first, second) = (world.worker(12 * GIB), world.worker(2 * GIB));
    world.run(5_000);
    world.strict = false;
    world.foreign.insert(card(0), 6 * GIB);
    world.run(10_000);
    let device = world.core.ledger.device(card(0)).unwrap();
    assert!(device.latecomers().is_empty(), "without the second the first could not run either");
    assert!(world.core.hindered.contains_key(&world.shims[first].id));
    assert!(world.running(second));
}

#[test]
fn a_newcomers_driver_gets_no_room_that_the_first_could_never_do_without() {
    let (mut world, _big) = incumbent();
    let small = newcomer(&mut world, 0);
    world.want_room(small, 1, 4 * GIB);
    world.run(1_000);
    assert_eq!(world.shims[small].rooms[&1], Some(false), "at once, as on a full card");
}

#[test]
fn a_driver_gets_room_from_one_that_came_first_and_rests() {
    let mut world = World::new(&[16 * GIB]);
    let first = world.worker(12 * GIB);
    world.run(5_000);
    world.shims[first].works = false;
    world.run(5_000);
    let second = world.start();
    world.want_room(second, 1, 8 * GIB);
    world.until(20_000, |world| world.shims[second].rooms[&1].is_some());
    assert_eq!(world.shims[second].rooms[&1], Some(true));
}

#[test]
fn a_claim_in_the_takeover_is_not_believed_for_ever() {
    let mut world = World::new(&[16 * GIB]);
    world.core = Core::new(settings());
    world.core.held_back = true;
    let _liar = world.stranger(1 << 40, false);
    world.core.begin_granting(world.moment());
    world.strict = false;
    let honest = world.worker(4 * GIB);
    world.run(300_000);
    assert!(world.shims[honest].ran > 200_000, "the honest one ran for {} ms", world.shims[honest].ran);
}

/// One that claims to have been granted what there is, no more, and holds nothing of it; and one that needs half the card.
fn beside_a_claim_that_can_be_true() -> (World, (ClientId, SessionId), usize) {
    let mut world = World::new(&[16 * GIB]);
    world.core = Core::new(settings());
    world.core.held_back = true;
    let liar = world.stranger(15 * GIB, false);
    world.run(500);
    world.core.begin_granting(world.moment());
    let honest = world.worker(8 * GIB);
    world.run(5_000);
    let of = world.core.ledger.client(liar.0).unwrap();
    assert_eq!(of.devices()[&card(0)].booked(), Bytes(15 * GIB), "it may be true");
    assert_eq!((world.shims[honest].ran, &of.untrusted()), (0, &None));
    (world, liar, honest)
}

#[test]
fn a_claim_that_can_be_true_is_believed_until_the_time_for_an_answer_is_up() {
    let (mut world, _liar, honest) = beside_a_claim_that_can_be_true();
    world.run(60_000);
    assert!(world.shims[honest].ran > 20_000, "the honest one ran for {} ms", world.shims[honest].ran);
}

#[test]
fn a_claim_is_not_believed_for_longer_by_whoever_makes_it_again_or_leaves() {
    for leaves in [true, false] {
        let (mut world, liar, honest) = beside_a_claim_that_can_be_true();
        for _ in 0..12 {
            if leaves {
                let now = world.moment();
                world.core.ledger.disconnected(liar.0, liar.1, now);
            } else {
                world.stranger(15 * GIB, false);
            }
            world.run(5_000);
        }
        let ran = world.shims[honest].ran;
        assert!(ran > 20_000, "leaves: {leaves}; the honest one ran for {ran} ms");
    }
}

#[test]
fn whoever_answers_and_keeps_what_he_does_not_use_is_disbelieved() {
    let (mut world, liar, honest) = beside_a_claim_that_can_be_true();
    let asked = world.core.ledger.client(liar.0).unwrap().devices()[&card(0)].reclaiming().unwrap();
    world.hear(liar, ToAgent::SwapOutDone { ticket: asked.ticket, copied: Bytes(0), clean: Bytes(0) });
    world.run(20_000);
    assert!(world.shims[honest].ran > 10_000, "the honest one ran for {} ms", world.shims[honest].ran);
    assert!(world.core.ledger.client(liar.0).unwrap().untrusted().is_some());
}

#[test]
fn one_that_has_more_granted_than_it_uses_keeps_its_good_name_through_a_takeover() {
    let mut world = World::new(&[16 * GIB]);
    let client = world.worker(8 * GIB);
    world.run(3_000);
    world.free(client, 0, 5 * GIB);
    world.run(200);
    assert!(world.shims[client].balance[&card(0)] > 5 * GIB, "it was not asked back yet");
    world.core = Core::new(settings());
    world.core.held_back = true;
    world.connect(client);
    world.run(500);
    world.core.begin_granting(world.moment());
    world.strict = false;
    world.run(3_000);
    let of = world.core.ledger.client(world.shims[client].id).unwrap();
    assert_eq!(of.untrusted(), None);
    assert_eq!(of.devices()[&card(0)].granted(), Bytes(world.shims[client].balance[&card(0)]));
}

#[test]
fn one_that_never_gives_back_what_it_does_not_use_is_booked_at_what_is_seen() {
    let mut world = World::new(&[16 * GIB]);
    let client = world.worker(8 * GIB);
    world.run(3_000);
    // From now on it is deaf: a reclaim has no answer, and the other needs what it does not use.
    world.free(client, 0, 7 * GIB);
    world.shims[client].deaf = true;
    world.strict = false;
    let other = world.worker(12 * GIB);
    world.run(120_000);
    let of = world.core.ledger.client(world.shims[client].id).unwrap();
    assert!(of.devices()[&card(0)].booked() < Bytes(2 * GIB), "{:?}", of.devices());
    assert!(world.shims[other].ran > 30_000, "the other ran for {} ms", world.shims[other].ran);
}

#[test]
fn what_no_card_has_nobody_can_need() {
    let mut world = World::new(&[16 * GIB]);
    let liar = world.stranger(0, false);
    let claim = ToAgent::Want {
        device: card(0),
        total: Bytes(1 << 47),
        purpose: nvshare_common::protocol::Purpose::Allocation,
    };
    world.hear(liar, claim);
    world.run(1_000);
    let of = world.core.ledger.client(liar.0).unwrap();
    assert!(of.devices()[&card(0)].needed() <= Bytes(16 * GIB));
}

#[test]
fn one_container_does_not_fill_the_list_of_requests_for_room() {
    let mut world = World::new(&[16 * GIB]);
    world.worker(15 * GIB);
    world.run(3_000);
    let mut refused = 0;
    for _ in 0..20 {
        let client = world.start();
        world.core.ledger.named(world.shims[client].id, String::new(), "/one".to_owned());
        for ticket in 0..10 {
            let session = world.shims[client].session.unwrap();
            let message =
                ToAgent::WantRoom { ticket: Ticket(ticket), device: card(0), bytes: Bytes(8 * GIB) };
            let now = world.moment();
            refused += world.core.hear(world.shims[client].id, session, message, now).commands.len();
        }
    }
    assert_eq!(refused, 200 - 128);
}
