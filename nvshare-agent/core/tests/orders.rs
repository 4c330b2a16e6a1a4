//! What orders for single clients do, in sentences: priorities, weights, pins, swaps by order, limits.

use std::time::Duration;

use nvshare_agent_core::order::{Priority, Weight, What};
use nvshare_agent_world::{GIB, MIB, World, card};
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::ClientId;

const CEILING_MS: u64 = 20_000;

fn weight(weight: f64) -> What {
    What::Weight(Weight::try_from(weight).unwrap())
}

/// How long each of them ran within `ms`.
fn ran(world: &mut World, clients: &[usize], ms: u64) -> Vec<u64> {
    let before: Vec<u64> = clients.iter().map(|client| world.shims[*client].ran).collect();
    world.run(ms);
    clients.iter().zip(before).map(|(client, before)| world.shims[*client].ran - before).collect()
}

#[test]
fn weights_share_the_time_in_proportion() {
    for weights in [[1.0, 2.0, 4.0], [0.1, 0.2, 0.1]] {
        let mut world = World::new(&[16 * GIB]);
        let clients: Vec<usize> = weights.iter().map(|_| world.worker(12 * GIB)).collect();
        for (client, each) in clients.iter().zip(weights) {
            world.order(*client, weight(each)).unwrap();
        }
        world.run(100_000);
        let ran = ran(&mut world, &clients, 900_000);
        let all: u64 = ran.iter().sum();
        assert!(all > 800_000, "the card worked for {all} of 900000 ms");
        let total: f64 = weights.iter().sum();
        for (ran, weight) in ran.iter().zip(weights) {
            let (share, due) = (*ran as f64 / all as f64, weight / total);
            // A lease lasts 20 s: over 15 min nobody is off by more than two of them.
            assert!((share - due).abs() < 0.05, "{share:.3} of the time where {due:.3} was due");
        }
    }
}

#[test]
fn a_weight_changes_nothing_where_everybody_fits() {
    let mut world = World::new(&[16 * GIB]);
    let clients = [world.worker(7 * GIB), world.worker(7 * GIB)];
    world.order(clients[0], weight(0.01)).unwrap();
    world.run(2000);
    assert!(ran(&mut world, &clients, 10_000).iter().all(|ran| *ran > 9900));
}

#[test]
fn a_high_priority_ends_a_lower_lease_after_its_floor_and_not_before() {
    let mut world = World::new(&[16 * GIB]);
    world.core.settings.lease_floor = Duration::from_secs(3);
    let (usual, other) = (world.worker(12 * GIB), world.worker(12 * GIB));
    let both = [usual, other];
    world.run(30_000);
    // One of the two has just begun a lease of 20 s.
    let begun = |world: &World, client: usize| {
        let lease = world.core.ledger.client(world.shims[client].id)?.lease()?;
        lease.began.map(|began| world.moment().since(began))
    };
    world.until(60_000, |world| {
        both.iter().any(|client| begun(world, *client).is_some_and(|for_| for_ < Duration::from_millis(100)))
    });
    let holder = *both.iter().find(|client| world.running(**client)).unwrap();
    let stops = world.shims[holder].stops;
    let urgent = world.worker(12 * GIB);
    world.order(urgent, What::Priority(Priority::High)).unwrap();
    world.run(2500);
    assert_eq!(world.shims[holder].stops, stops, "stopped before the floor");
    world.until(3000, |world| world.running(urgent));
    // And it keeps the card: nobody of its own priority waits.
    let ran = ran(&mut world, &[urgent], 3 * CEILING_MS);
    assert!(ran[0] > 3 * CEILING_MS - 100, "{ran:?}");
}

#[test]
fn an_equal_does_not_end_a_lease_early() {
    let mut world = World::new(&[16 * GIB]);
    let first = world.worker(12 * GIB);
    world.order(first, What::Priority(Priority::High)).unwrap();
    let second = world.worker(12 * GIB);
    world.order(second, What::Priority(Priority::High)).unwrap();
    world.run(60_000);
    let stops = world.shims[first].stops + world.shims[second].stops;
    world.run(60_000);
    let more = world.shims[first].stops + world.shims[second].stops - stops;
    assert!((2..=4).contains(&more), "{more} stops in 60 s");
}

#[test]
fn lower_priorities_run_last_and_are_not_starved() {
    let mut world = World::new(&[16 * GIB]);
    let high = world.worker(12 * GIB);
    world.order(high, What::Priority(Priority::High)).unwrap();
    let normal = world.worker(12 * GIB);
    let low: Vec<usize> = (0..3).map(|_| world.worker(12 * GIB)).collect();
    for client in &low {
        world.order(*client, What::Priority(Priority::Low)).unwrap();
    }
    world.run(30_000);
    let all = [high, normal, low[0], low[1], low[2]];
    // Five that have aged a round, each after four ceilings and with a lease of one: two rounds.
    let ran = ran(&mut world, &all, 2 * 4 * 6 * CEILING_MS);
    let sum: u64 = ran.iter().sum();
    assert!(ran[0] * 10 > sum * 7, "the high one ran for {} of {sum} ms", ran[0]);
    assert!(ran[1..].iter().all(|ran| *ran > CEILING_MS / 2), "{ran:?}");
    // Each turn is a whole lease: lower ones do not thrash.
    for client in &all[1..] {
        let shim = &world.shims[*client];
        assert!(shim.ran / (shim.stops + 1) > CEILING_MS / 2, "{} ms in {} turns", shim.ran, shim.stops);
    }
}

#[test]
fn a_low_client_has_what_others_leave_it() {
    let mut world = World::new(&[16 * GIB]);
    let high = world.worker(10 * GIB);
    world.order(high, What::Priority(Priority::High)).unwrap();
    let low = world.worker(5 * GIB);
    world.order(low, What::Priority(Priority::Low)).unwrap();
    world.run(3000);
    assert!(ran(&mut world, &[high, low], 20_000).iter().all(|ran| *ran > 19_900), "they fit");
}

#[test]
fn what_is_pinned_never_loses_memory_and_runs_whenever_it_wants() {
    let mut world = World::new(&[16 * GIB]);
    let pinned = world.worker(6 * GIB);
    world.shims[pinned].rhythm = (20, 2000);
    world.order(pinned, What::Pin(true)).unwrap();
    let others: Vec<usize> = (0..3).map(|_| world.worker(9 * GIB)).collect();
    world.run(5000);
    let waited = std::mem::take(&mut world.shims[pinned].waited_most);
    assert!(waited < 5000, "{waited}");
    for _ in 0..120 {
        world.run(1000);
        assert_eq!(world.resident(pinned, 0), 6 * GIB);
    }
    let shim = &world.shims[pinned];
    assert_eq!((shim.stops, shim.moved_out, shim.waited_most), (0, 0, 0));
    assert!(others.iter().all(|client| world.shims[*client].ran > 20_000));
    // Without the pin it is as idle as any other.
    world.order(pinned, What::Pin(false)).unwrap();
    world.shims[pinned].works = false;
    let large = world.worker(15 * GIB);
    world.until(200_000, |world| world.running(large));
    assert!(world.shims[pinned].stops > 0);
}

#[test]
fn a_pinned_client_that_is_out_comes_in_as_soon_as_leases_allow() {
    let mut world = World::new(&[16 * GIB]);
    let clients: Vec<usize> = (0..3).map(|_| world.worker(12 * GIB)).collect();
    world.run(10_000);
    let waits = *clients.iter().find(|client| !world.running(**client)).unwrap();
    world.order(waits, What::Pin(true)).unwrap();
    let took = world.until(5000, |world| world.running(waits));
    assert!(took < 4000, "{took}");
    assert!(ran(&mut world, &[waits], 60_000)[0] > 59_900);
    // A pin can end: nobody's allocations fail because of it.
    assert!(clients.iter().all(|client| world.shims[*client].limit[&card(0)] > 15 * GIB));
    // The others cannot run any more, and hear why.
    for client in clients.iter().filter(|client| **client != waits) {
        let why = &world.core.hindered[&world.shims[*client].id];
        assert!(why.contains("nvshare-agent unpin"), "{why}");
    }
    world.order(waits, What::Pin(false)).unwrap();
    let others: Vec<usize> = clients.iter().copied().filter(|client| *client != waits).collect();
    assert!(ran(&mut world, &others, 120_000).iter().all(|ran| *ran > 10_000));
}

#[test]
fn a_pin_that_does_not_fit_beside_others_is_refused_with_the_reason() {
    let mut world = World::new(&[16 * GIB]);
    let first = world.worker(9 * GIB);
    let second = world.worker(9 * GIB);
    world.run(3000);
    world.order(first, What::Pin(true)).unwrap();
    let why = world.order(second, What::Pin(true)).unwrap_err();
    for part in ["9 GiB", &card(0).to_string(), &format!("client {}", world.shims[first].id.0), "unpin"] {
        assert!(why.contains(part), "`{why}` says nothing of {part}");
    }
    world.order(first, What::Pin(false)).unwrap();
    world.order(second, What::Pin(true)).unwrap();
}

#[test]
fn pinned_clients_that_grow_beyond_the_card_hold_up_nobody_else() {
    let mut world = World::new(&[16 * GIB, 16 * GIB]);
    let pinned = [world.worker(7 * GIB), world.worker(7 * GIB)];
    for client in pinned {
        world.order(client, What::Pin(true)).unwrap();
    }
    world.run(3000);
    let elsewhere = world.start();
    world.allocate(elsewhere, 1, 10 * GIB);
    world.shims[elsewhere].works = true;
    for client in pinned {
        world.allocate(client, 0, GIB + 512 * MIB);
    }
    world.run(5000);
    assert!(ran(&mut world, &[elsewhere], 10_000)[0] > 9900);
    let hindered: Vec<_> =
        pinned.iter().filter_map(|client| world.core.hindered.get(&world.shims[*client].id)).collect();
    assert!(hindered.len() == 1 && hindered[0].contains("unpin"), "{hindered:?}");
    assert!(pinned.iter().any(|client| world.running(*client)));
}

#[test]
fn who_is_swapped_out_by_order_gives_all_and_comes_back_whole() {
    let mut world = World::new(&[16 * GIB, 16 * GIB]);
    let out = world.worker(6 * GIB);
    world.allocate(out, 1, 3 * GIB);
    let idle = world.start();
    world.allocate(idle, 0, 4 * GIB);
    world.run(3000);
    for client in [out, idle] {
        world.order(client, What::SwapOut).unwrap();
    }
    // Nothing is granted either: all of it can be given to others.
    let gone = |world: &World, client: usize| {
        let devices = &world.core.ledger.client(world.shims[client].id).unwrap().devices();
        world.resident(client, 0) + world.resident(client, 1) == 0
            && devices.values().all(|holding| holding.granted() == Bytes::ZERO)
    };
    world.until(3000, |world| gone(world, out) && gone(world, idle));
    // It wants to run, there is all the room, and it does not.
    assert_eq!(ran(&mut world, &[out], 60_000), [0]);
    assert!(gone(&world, out) && gone(&world, idle));
    let other = world.worker(15 * GIB);
    world.until(3000, |world| world.running(other));
    world.order(out, What::SwapIn).unwrap();
    world.until(30_000, |world| world.running(out));
    assert_eq!((world.resident(out, 0), world.resident(out, 1)), (6 * GIB, 3 * GIB));
    assert!(ran(&mut world, &[out, other], 120_000).iter().all(|ran| *ran > 40_000));
}

#[test]
fn who_waits_by_order_keeps_nobody_elses_work_short_and_owes_no_time() {
    let mut world = World::new(&[16 * GIB]);
    let out = world.worker(12 * GIB);
    world.run(3000);
    world.order(out, What::SwapOut).unwrap();
    let works = world.worker(12 * GIB);
    world.run(200_000);
    let client =
        |world: &World, index: usize| world.core.ledger.client(world.shims[index].id).unwrap().clone();
    assert!(client(&world, out).wants().is_some() && !client(&world, works).paced());
    world.order(out, What::SwapIn).unwrap();
    // It begins level, not with 200 s to its credit.
    let ran = ran(&mut world, &[out, works], 120_000);
    assert!(ran[0].abs_diff(ran[1]) < 2 * CEILING_MS + 5000, "{ran:?}");
}

#[test]
fn a_swap_out_by_order_goes_as_far_as_host_memory_does() {
    let mut world = World::new(&[16 * GIB]);
    (world.host_memory, world.making) = (2 * GIB, 1500);
    let client = world.worker(6 * GIB);
    world.run(3000);
    world.order(client, What::SwapOut).unwrap();
    world.run(2000);
    // More may still come: nothing is begun that would fail half way.
    assert_eq!(world.resident(client, 0), 6 * GIB);
    world.until(3000, |world| world.resident(client, 0) < 6 * GIB);
    world.run(2000);
    assert!(world.resident(client, 0) >= 4 * GIB);
}

#[test]
fn an_order_outlives_the_session_of_its_client() {
    let mut world = World::new(&[16 * GIB]);
    let client = world.worker(6 * GIB);
    world.run(1000);
    world.order(client, What::SwapOut).unwrap();
    world.order(client, What::Limit(Some(Bytes(8 * GIB)))).unwrap();
    world.until(3000, |world| world.resident(client, 0) == 0);
    world.disconnect(client);
    world.run(50);
    // Meanwhile it might have helped itself: it comes back with an open gate.
    world.shims[client].lease = true;
    world.shims[client].limit.clear();
    world.connect(client);
    assert_eq!(ran(&mut world, &[client], 5000), [0]);
    assert_eq!(world.shims[client].limit[&card(0)], 8 * GIB);
}

#[test]
fn orders_that_cannot_be_carried_out_are_refused_with_what_to_do() {
    let mut world = World::new(&[16 * GIB]);
    let client = world.worker(6 * GIB);
    world.run(1000);
    let id = world.shims[client].id.0;
    let refused = |world: &mut World, what, expected: &[&str]| {
        let why = world.order(client, what).unwrap_err();
        for part in expected {
            assert!(why.contains(part), "`{why}` says nothing of {part}");
        }
    };
    world.order(client, What::Pin(true)).unwrap();
    refused(&mut world, What::SwapOut, &["pinned", &format!("nvshare-agent unpin {id}")]);
    world.order(client, What::Pin(false)).unwrap();
    world.order(client, What::SwapOut).unwrap();
    refused(&mut world, What::Pin(true), &["swapped out", &format!("nvshare-agent swap in {id}")]);
    world.order(client, What::SwapIn).unwrap();
    world.shims[client].ignores_stop = true;
    world.until(5000, |world| world.running(client));
    world.order(client, What::SwapOut).unwrap();
    world.run(60_000);
    world.order(client, What::SwapIn).unwrap();
    refused(&mut world, What::SwapOut, &["does not yield", "try again"]);
    world.disconnect(client);
    refused(&mut world, What::SwapOut, &["not connected"]);

    world.shims[client].id = ClientId(999);
    refused(&mut world, What::SwapIn, &["no client 999", &format!("{id} (pid 100)")]);
    let mut empty = World::new(&[GIB]);
    let order = nvshare_agent_core::order::Order { client: ClientId(1), what: What::SwapIn };
    let now = empty.moment();
    assert!(empty.core.order(order, now).unwrap_err().contains("no client is connected"));
}

#[test]
fn a_limit_is_told_and_so_is_its_end() {
    let mut world = World::new(&[16 * GIB]);
    let client = world.worker(6 * GIB);
    world.run(1000);
    let device = world.shims[client].limit[&card(0)];
    assert!(device > 15 * GIB);
    let told = |world: &mut World, limit: Option<u64>| {
        world.order(client, What::Limit(limit.map(Bytes))).unwrap();
        world.run(200);
        world.shims[client].limit[&card(0)]
    };
    assert_eq!(told(&mut world, Some(8 * GIB)), 8 * GIB);
    // Below what it uses: it keeps that, and runs on.
    assert_eq!(told(&mut world, Some(512 * MIB)), 512 * MIB);
    assert!(ran(&mut world, &[client], 2000)[0] > 1990);
    // More than there is changes nothing.
    assert_eq!(told(&mut world, Some(64 * GIB)), device);
    assert_eq!(told(&mut world, None), device);
}
