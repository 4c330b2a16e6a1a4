//! What one client says, asks or fails to do takes nothing from the others.

use std::collections::VecDeque;
use std::time::Duration;

use nvshare_agent_core::ledger::Page;
use nvshare_agent_world::{GIB, MIB, World, card};
use nvshare_common::bytes::Bytes;
use nvshare_common::counters::Holdings;
use nvshare_common::ids::Ticket;
use nvshare_common::protocol::ToAgent;

/// More than any device has.
const ABSURD: u64 = 1 << 48;

fn page(resident: u64) -> Page {
    let held = Holdings { resident: Bytes(resident), ..Holdings::default() };
    Page { holdings: vec![(card(0), held)], ..Page::default() }
}

#[test]
fn what_one_client_claims_is_booked_as_far_as_it_can_be_true() {
    for claim in 0..4 {
        let mut world = World::new(&[16 * GIB]);
        if claim == 3 {
            world.run(200);
        } else {
            // Before the first reading everything is believed, and nothing granted.
            world.strict = false;
        }
        let stranger = world.stranger(if claim == 2 { 0 } else { ABSURD }, false);
        if claim > 0 {
            let now = world.moment();
            world.core.sample(stranger.0, &page(ABSURD), now);
            let (device, bytes, reason) = (card(0), Bytes(ABSURD), "array".to_owned());
            world.hear(stranger, ToAgent::Unswappable { device, bytes, reason });
        }
        let clients = [world.worker(4 * GIB), world.worker(4 * GIB)];
        world.run(5000);
        for client in clients {
            let shim = &world.shims[client];
            assert!(shim.ran > 4000, "claim {claim}: {} ms; {}", shim.ran, world.describe());
            assert!(shim.limit[&card(0)] > 15 * GIB, "claim {claim}: {:?}", shim.limit);
        }
        assert!(world.core.ledger.client(stranger.0).unwrap().untrusted().is_some(), "claim {claim}");
    }
}

#[test]
fn a_client_that_comes_back_has_at_most_what_it_was_granted() {
    let mut world = World::new(&[16 * GIB]);
    let client = world.worker(4 * GIB);
    world.run(1000);
    world.shims[client].balance.insert(card(0), ABSURD);
    world.disconnect(client);
    world.connect(client);
    let booked = world.core.ledger.client(world.shims[client].id).unwrap().devices()[&card(0)].granted();
    assert_eq!(booked, Bytes(4 * GIB));
}

#[test]
fn a_grant_of_a_previous_agent_is_believed_up_to_the_device() {
    let mut world = World::new(&[16 * GIB]);
    world.core = nvshare_agent_core::conductor::Core::new(nvshare_agent_world::settings());
    world.core.held_back = true;
    let stranger = world.stranger(12 * GIB, false);
    world.run(300);
    assert_eq!(world.core.ledger.granted(card(0)), Bytes(12 * GIB));
    let (client, session) = stranger;
    let released = ToAgent::Released { ticket: None, device: card(0), bytes: Bytes(12 * GIB - MIB) };
    let now = world.moment();
    world.core.hear(client, session, released, now);
    assert!(world.core.ledger.client(client).unwrap().untrusted().is_none());
}

#[test]
fn a_stream_of_new_processes_does_not_keep_a_large_client_waiting() {
    for (every, longest) in [(10_000, 120_000), (3000, 90_000)] {
        let mut world = World::new(&[16 * GIB]);
        let mut small: VecDeque<usize> = (0..3).map(|_| world.worker(5 * GIB)).collect();
        world.run(2000);
        let large = world.worker(14 * GIB);
        for _ in 0..300_000 / every {
            world.run(every);
            world.kill(small.pop_front().unwrap());
            small.push_back(world.worker(5 * GIB));
        }
        let shim = &world.shims[large];
        assert!(
            shim.ran > 30_000 && shim.waited_most < longest,
            "{} ran, waited {}",
            shim.ran,
            shim.waited_most
        );
    }
}

#[test]
fn beside_a_client_that_is_never_stopped_the_others_keep_their_order() {
    let mut world = World::new(&[16 * GIB]);
    let never = world.worker(GIB);
    world.run(500);
    let id = world.shims[never].id;
    world.core.ledger.bypassed(id);
    let large = world.worker(14 * GIB);
    let small: Vec<usize> = (0..6).map(|_| world.worker(5 * GIB)).collect();
    world.run(300_000);
    let shim = &world.shims[large];
    assert!(shim.ran > 30_000 && shim.waited_most < 120_000, "{} ran, waited {}", shim.ran, shim.waited_most);
    assert!(small.iter().all(|client| world.shims[*client].ran > 20_000), "{}", world.describe());
}

#[test]
fn a_client_whose_swap_outs_keep_failing_is_served_around() {
    for admits in [true, false] {
        let mut world = World::new(&[16 * GIB]);
        let fails = world.worker(10 * GIB);
        world.run(2000);
        world.shims[fails].swaps_nothing = Some(admits);
        let large = world.worker(10 * GIB);
        world.run(60_000);
        // Nothing can be taken from it: it runs, the one that fits beside it too, and the other one hears why it waits.
        let small = world.worker(4 * GIB);
        let before = world.shims[fails].ran;
        world.run(60_000);
        let ran = (world.shims[fails].ran - before, world.shims[small].ran);
        assert!(ran.0 > 40_000 && ran.1 > 40_000, "{admits}: {ran:?} {}", world.describe());
        assert!(!world.running(large));
        let client = world.core.ledger.client(world.shims[fails].id).unwrap();
        assert!(client.swap_failures_total() < 20, "{}", client.swap_failures_total());
    }
}

#[test]
fn failures_of_swap_outs_that_nobody_ordered_count_for_nothing() {
    let mut world = World::new(&[16 * GIB]);
    let stranger = world.stranger(0, false);
    for number in 0..10 {
        let ticket = Ticket(number);
        world.hear(stranger, ToAgent::SwapFailed { ticket, why: "x".repeat(60_000) });
    }
    let client = world.core.ledger.client(stranger.0).unwrap();
    assert_eq!((client.swap_failures_total(), client.unyielding()), (0, None));
}

#[test]
fn a_client_that_connects_again_and_again_keeps_no_longer_than_its_turn() {
    let mut world = World::new(&[16 * GIB]);
    let again = world.worker(10 * GIB);
    world.run(2000);
    let other = world.worker(10 * GIB);
    for _ in 0..150 {
        world.run(400);
        world.shims[again].lease = true;
        world.connect(again);
    }
    let ran = (world.shims[again].ran, world.shims[other].ran);
    assert!(ran.1 > 20_000, "{ran:?}");
}

#[test]
fn a_stop_that_a_new_session_leaves_unanswered_counts_from_its_beginning() {
    let mut world = World::new(&[16 * GIB]);
    world.core.settings.command_deadline = Duration::from_secs(1);
    world.core.settings.stall = Duration::from_secs(1);
    world.core.settings.lease_ceiling = Duration::from_secs(1);
    let hangs = world.worker(10 * GIB);
    world.shims[hangs].ignores_stop = true;
    world.run(2000);
    let other = world.worker(10 * GIB);
    for _ in 0..25 {
        world.run(400);
        world.connect(hangs);
    }
    let small = world.worker(4 * GIB);
    world.run(1000);
    assert!(world.core.ledger.client(world.shims[hangs].id).unwrap().unyielding().is_some());
    assert!(world.running(small) && !world.running(other), "{}", world.describe());
}

/// What two clients that take turns got done in a minute while a third one asks for room.
fn beside_requests_for_room(running: bool, bytes: u64, every: u64) -> (World, u64) {
    let mut world = World::new(&[16 * GIB]);
    let stranger = world.stranger(0, running);
    let clients = [world.worker(10 * GIB), world.worker(10 * GIB)];
    world.run(40_000);
    let ran = |world: &World| clients.iter().map(|client| world.shims[*client].ran).sum::<u64>();
    let before = ran(&world);
    for number in 0..60_000 / every {
        let (ticket, device, bytes) = (Ticket(number), card(0), Bytes(bytes));
        world.hear(stranger, ToAgent::WantRoom { ticket, device, bytes });
        world.run(every);
    }
    let ran = ran(&world) - before;
    (world, ran)
}

#[test]
fn room_that_can_never_be_is_refused_without_stopping_anybody() {
    let mut world = World::new(&[16 * GIB]);
    let stranger = world.stranger(0, true);
    let clients = [world.worker(6 * GIB), world.worker(6 * GIB)];
    world.run(40_000);
    for number in 0..200 {
        let (ticket, device, bytes) = (Ticket(number), card(0), Bytes(ABSURD));
        world.hear(stranger, ToAgent::WantRoom { ticket, device, bytes });
        world.run(50);
    }
    for client in clients {
        let shim = &world.shims[client];
        assert_eq!((shim.stops, shim.moved_out), (0, 0), "{}", world.describe());
    }
}

#[test]
fn whoever_asks_for_room_all_the_time_does_not_starve_the_others() {
    for running in [false, true] {
        for bytes in [15 * GIB, GIB / 2] {
            let (world, ran) = beside_requests_for_room(running, bytes, 10);
            assert!(ran > 30_000, "{running} {bytes}: {ran} of 60000 ms; {}", world.describe());
        }
    }
}

#[test]
fn what_a_client_no_longer_claims_is_not_free_before_a_reading_shows_it() {
    let mut world = World::new(&[16 * GIB]);
    // Held past its shim by the stranger, whom NVML does not list.
    world.foreign.insert(card(0), 8 * GIB);
    let stranger = world.stranger(0, false);
    for _ in 0..300 {
        let now = world.moment();
        world.core.sample(stranger.0, &page(8 * GIB), now);
        world.run(1);
    }
    let now = world.moment();
    assert_eq!(world.core.ledger.granted(card(0)), Bytes(8 * GIB));
    world.core.sample(stranger.0, &page(0), now);
    let really = (16 * GIB - world.used(card(0))) as i64;
    let grantable = world.core.ledger.grantable(card(0), now);
    assert!(grantable.is_none_or(|bytes| bytes <= really), "{grantable:?} of {really}");
}
