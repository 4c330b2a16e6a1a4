//! What clients ask before they promise memory to their programs, and whether it is kept.

use nvshare_agent_world::{GIB, MIB, World, card};
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::Ticket;
use nvshare_common::protocol::ToAgent;

/// The client asks whether it may come to need so much; the answer, which a reading from then on gives.
fn may_have(world: &mut World, client: usize, total: u64) -> bool {
    let ticket = 1000 + world.shims[client].rooms.len() as u64;
    world.shims[client].rooms.insert(ticket, None);
    world
        .hear_from(client, ToAgent::MayHave { ticket: Ticket(ticket), device: card(0), total: Bytes(total) });
    world.until(3000, |world| world.shims[client].rooms[&ticket].is_some());
    world.shims[client].rooms[&ticket].unwrap()
}

#[test]
fn what_a_driver_took_a_moment_ago_counts_before_more_is_promised() {
    let mut world = World::new(&[16 * GIB]);
    let client = world.worker(GIB);
    world.run(1000);
    let before = world.shims[client].limit[&card(0)];
    // A second context, say. No reading has shown it.
    world.shims[client].overhead += GIB;
    assert!(!may_have(&mut world, client, before));
    let after = world.shims[client].limit[&card(0)];
    assert!(after <= before - GIB, "the limit that follows is told before the answer: {before}, {after}");
    assert!(may_have(&mut world, client, after));
}

#[test]
fn what_was_promised_can_be_had_though_the_driver_takes_a_little_more() {
    let mut world = World::new(&[16 * GIB]);
    let client = world.worker(GIB);
    world.run(1000);
    let limit = world.shims[client].limit[&card(0)];
    assert!(may_have(&mut world, client, limit));
    world.allocate(client, 0, limit - GIB);
    // A module that is loaded lazily, before anything of that is there; the reserve has room for it.
    world.shims[client].overhead += 32 * MIB;
    world.until(5000, |world| world.resident(client, 0) == limit);
    assert_eq!(world.resident(client, 0), limit);
    assert!(world.running(client), "{}", world.describe());
}
