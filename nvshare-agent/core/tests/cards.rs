//! Cards are independent (A5): what happens on one delays nobody who does not use it.

use nvshare_agent_core::order::{Priority, What};
use nvshare_agent_core::settings::Settings;
use nvshare_agent_world::{GIB, MIB, World, settings};
use nvshare_common::bytes::Bytes;

const CEILING_MS: u64 = 20_000;

/// A node of this many cards of 16 GiB.
fn node(cards: usize) -> World {
    let mut world = World::new(&vec![16 * GIB; cards]);
    world.core.settings = Settings { reserve: Bytes(64 * MIB), ..settings() };
    world
}

/// Works without pause on that card, where two of it do not fit.
fn on(world: &mut World, card: u8) -> usize {
    let client = world.start();
    world.allocate(client, card, 12 * GIB);
    world.shims[client].works = true;
    client
}

/// The longest time that any of these stood still, in milliseconds.
fn longest_wait(world: &mut World, clients: &[usize], ms: u64) -> u64 {
    let (mut since, mut longest) = (vec![0; clients.len()], 0);
    for _ in 0..ms {
        world.run(1);
        for (since, client) in since.iter_mut().zip(clients) {
            *since = if world.running(*client) { 0 } else { *since + 1 };
            longest = longest.max(*since);
        }
    }
    longest
}

#[test]
fn a_crowd_on_one_card_makes_nobody_wait_longer_on_another() {
    let waits = [0, 4, 16].map(|crowd| {
        let mut world = node(2);
        let pair = [on(&mut world, 1), on(&mut world, 1)];
        for _ in 0..crowd {
            on(&mut world, 0);
        }
        world.run(5_000);
        longest_wait(&mut world, &pair, 300_000)
    });
    assert!(waits[0] <= CEILING_MS + 5_000, "alone: {waits:?}");
    assert!(waits[1..].iter().all(|wait| *wait <= waits[0] + 2_000), "beside 0, 4 and 16 others: {waits:?}");
}

#[test]
fn a_card_whose_worker_ends_goes_to_who_waits_there_at_once_whatever_waits_elsewhere() {
    let mut world = node(2);
    let pair = [on(&mut world, 1), on(&mut world, 1)];
    world.run(100_000);
    for _ in 0..8 {
        on(&mut world, 0);
    }
    world.run(300_000);
    let (ends, stays) = if world.running(pair[0]) { (pair[0], pair[1]) } else { (pair[1], pair[0]) };
    world.kill(ends);
    let took = world.until(CEILING_MS, |world| world.running(stays));
    assert!(took < 5_000, "card 1 was empty for {took} ms");
}

#[test]
fn who_comes_to_a_quiet_card_is_level_with_who_is_there_and_not_with_a_crowd_elsewhere() {
    let mut world = node(2);
    let first = on(&mut world, 1);
    for _ in 0..8 {
        on(&mut world, 0);
    }
    // Alone on its card it has run for all of that time; each of the crowd for an eighth.
    world.run(200_000);
    let newcomer = on(&mut world, 1);
    let longest = longest_wait(&mut world, &[first, newcomer], 120_000);
    assert!(longest <= CEILING_MS + 5_000, "one of them waited for {longest} ms");
}

#[test]
fn a_job_on_two_cards_gets_its_turn_between_crowds_on_both() {
    let mut world = node(2);
    let both = world.start();
    world.allocate(both, 0, 12 * GIB);
    world.allocate(both, 1, 12 * GIB);
    world.shims[both].works = true;
    for _ in 0..3 {
        on(&mut world, 0);
        on(&mut world, 1);
    }
    world.run(10_000);
    let longest = longest_wait(&mut world, &[both], 600_000);
    // Three others on each card, and both cards have to come together.
    assert!(longest <= 6 * CEILING_MS, "{longest} ms");
    assert!(world.shims[both].ran > 600_000 / 8, "{} ms", world.shims[both].ran);
}

#[test]
fn who_waited_long_on_one_card_is_next_there_whoever_was_on_another() {
    let mut world = node(3);
    let lows: Vec<usize> = (0..3)
        .map(|card| {
            for _ in 0..2 {
                let high = on(&mut world, card);
                world.order(high, What::Priority(Priority::High)).unwrap();
            }
            let low = on(&mut world, card);
            world.order(low, What::Priority(Priority::Low)).unwrap();
            low
        })
        .collect();
    world.run(10_000);
    // Each ages after four ceilings, on its own card: none waits until another has.
    let longest = longest_wait(&mut world, &lows, 400_000);
    assert!(longest <= 6 * CEILING_MS, "{longest} ms");
}
