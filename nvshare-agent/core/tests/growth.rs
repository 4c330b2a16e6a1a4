//! Clients that fill their memory bit by bit, on a card that is too small for them.

use nvshare_agent_world::{GIB, MIB, World, card};

const STEP: u64 = 64 * MIB;

/// Each allocates the next piece as soon as it has the one before, until it has `most`. How long that took each, in ms.
fn fill(world: &mut World, clients: &[usize], most: u64, limit: u64) -> Vec<u64> {
    let (began, mut done) = (world.moment().0 / 1_000_000, vec![None; clients.len()]);
    for _ in 0..limit {
        for (at, client) in clients.iter().enumerate() {
            if done[at].is_some() || !world.shims[*client].open() {
                continue;
            }
            if world.shims[*client].total.get(&card(0)).copied().unwrap_or_default() < most {
                world.allocate(*client, 0, STEP);
            } else {
                done[at] = Some(world.moment().0 / 1_000_000 - began);
            }
        }
        if done.iter().all(Option::is_some) {
            break;
        }
        world.run(1);
    }
    done.into_iter().map(|done| done.unwrap_or(limit)).collect()
}

fn grower(world: &mut World) -> usize {
    let client = world.start();
    world.shims[client].works = true;
    client
}

/// A card with a client that has three quarters of it and does nothing.
fn beside_an_idle_one() -> (World, usize) {
    let mut world = World::new(&[16 * GIB + 64 * MIB]);
    let idle = world.worker(12 * GIB);
    world.until(10_000, |world| world.running(idle));
    world.shims[idle].works = false;
    world.run(3000);
    (world, idle)
}

/// How long it takes one that has the card for itself.
fn alone() -> u64 {
    let mut world = World::new(&[16 * GIB + 64 * MIB]);
    let client = grower(&mut world);
    fill(&mut world, &[client], 12 * GIB, 60_000)[0]
}

#[test]
fn who_grows_into_memory_of_somebody_idle_takes_it_in_few_steps() {
    let (mut world, idle) = beside_an_idle_one();
    let grows = grower(&mut world);
    let took = fill(&mut world, &[grows], 12 * GIB, 60_000)[0];
    assert!(took <= alone() * 3 / 2, "{took} ms, and {} alone", alone());
    let moved = world.shims[idle].moved_out;
    assert!(
        (8 * GIB..9 * GIB).contains(&moved),
        "{} MiB, and hardly more than 8192 are needed in the end",
        moved / MIB
    );
    // One for each piece of 64 MiB it was.
    assert!(world.core.switches.count() <= 12, "{} switches", world.core.switches.count());
}

#[test]
fn two_that_fill_a_card_at_the_same_time_get_there_in_a_turn_each() {
    let mut world = World::new(&[16 * GIB + 64 * MIB]);
    let both = [grower(&mut world), grower(&mut world)];
    let took = fill(&mut world, &both, 12 * GIB, 60_000);
    let first = *took.iter().min().expect("two");
    assert!(first <= alone() * 3 / 2, "{took:?} ms, and {} alone", alone());
    // The other's turn comes after a lease.
    assert!(took.iter().all(|took| *took < 8000), "{took:?} ms");
    for client in both {
        let shim = &world.shims[client];
        assert!(
            shim.stops <= 2 && shim.moved_out <= 12 * GIB,
            "{} stops, {} out",
            shim.stops,
            shim.moved_out
        );
    }
    assert!(world.core.switches.count() <= 24, "{} switches", world.core.switches.count());
}

#[test]
fn what_was_given_ahead_is_given_back_where_it_is_not_used() {
    let (mut world, idle) = beside_an_idle_one();
    let grows = grower(&mut world);
    // It stops in the middle, and works on: what it has beyond that is nobody's loss.
    fill(&mut world, &[grows], 7 * GIB, 60_000);
    world.shims[idle].works = true;
    world.until(60_000, |world| world.running(idle));
    world.until(60_000, |world| world.running(grows));
    assert_eq!(world.refused_by_card, 0);
    let balance = world.shims[grows].balance[&card(0)];
    assert!(balance <= 7 * GIB + 64 * MIB, "it keeps {} MiB", balance / MIB);
}

#[test]
fn who_comes_and_grows_beside_one_that_works_gets_its_turn_like_one_that_allocates_at_once() {
    let began = |steps: bool| {
        let mut world = World::new(&[16 * GIB + 64 * MIB]);
        let works = world.worker(12 * GIB);
        world.until(10_000, |world| world.running(works));
        world.run(200);
        if steps {
            let comes = grower(&mut world);
            return fill(&mut world, &[comes], 12 * GIB, 60_000)[0];
        }
        let comes = world.worker(12 * GIB);
        world.until(60_000, |world| world.running(comes))
    };
    let (at_once, stepwise) = (began(false), began(true));
    assert!(stepwise.abs_diff(at_once) < 2000, "{stepwise} ms, and {at_once} for one that allocates at once");
}

#[test]
fn who_grows_without_end_keeps_its_turn_no_longer_than_anybody_and_the_other_gets_as_much() {
    let mut world = World::new(&[16 * GIB + 64 * MIB]);
    let grows = world.worker(10 * GIB);
    world.until(10_000, |world| world.running(grows));
    let waits = world.worker(10 * GIB);
    let (mut stood, mut longest) = (0, 0);
    for ms in 0..300_000_u64 {
        if ms % 100 == 0 {
            world.allocate(grows, 0, MIB);
        }
        world.run(1);
        stood = if world.running(waits) { 0 } else { stood + 1 };
        longest = longest.max(stood);
    }
    assert!(longest <= 2 * 20_000 + 5_000, "it waited for {longest} ms");
    let [grew, other] = [grows, waits].map(|client| world.shims[client].ran);
    assert!(other * 5 > grew * 4, "who grows ran for {grew} ms, the other for {other}");
}

#[test]
fn the_last_crumb_that_somebody_lacks_is_asked_back_from_who_does_not_use_it() {
    let mut world = World::new(&[8 * GIB]);
    let has = world.worker(4 * GIB);
    world.until(10_000, |world| world.running(has));
    world.free(has, 0, 2 * MIB);
    world.run(500);
    let promised = world.core.ledger.devices()[&card(0)].promised() as u64;
    let lacks = world.worker(promised - 4 * GIB + 2 * MIB);
    world.until(5000, |world| world.running(lacks));
    assert_eq!(world.shims[has].stops, 0, "both fit");
}
