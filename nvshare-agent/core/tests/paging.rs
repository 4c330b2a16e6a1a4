//! Programs whose managed memory thrashes take turns, and nobody else does for that.

use nvshare_agent_world::{GIB, World, card};

fn worked(world: &World, client: usize) -> u64 {
    world.managed[&client].worked
}

#[test]
fn two_that_thrash_take_turns_and_work() {
    let mut world = World::new(&[16 * GIB]);
    let clients = [world.pager(12 * GIB), world.pager(12 * GIB)];
    world.run(240_000);
    let all: Vec<u64> = clients.iter().map(|client| worked(&world, *client)).collect();
    // Side by side neither would ever have all that it needs: 8 of 12 GiB each, at most.
    assert!(all.iter().all(|worked| *worked > 60_000), "{all:?}");
    let stops: u64 = clients.iter().map(|client| world.shims[*client].stops).sum();
    assert!((8..20).contains(&stops), "{stops} turns of 20 s in 240");
    let waited = clients.iter().map(|client| world.shims[*client].waited_most).max();
    assert!(waited < Some(22_000), "{waited:?} ms for a turn");
}

#[test]
fn who_has_room_is_never_stopped() {
    let mut world = World::new(&[16 * GIB]);
    let clients = [world.pager(7 * GIB), world.pager(7 * GIB), world.worker(GIB)];
    world.run(60_000);
    assert!(clients.iter().all(|client| world.shims[*client].stops == 0));
}

#[test]
fn one_that_thrashes_alone_is_left_alone_and_so_is_who_does_not() {
    let mut world = World::new(&[16 * GIB]);
    let large = world.pager(12 * GIB);
    let other = world.pager(12 * GIB);
    let plain = world.worker(GIB);
    world.until(20_000, |world| world.shims[large].stops + world.shims[other].stops > 0);
    world.kill(other);
    world.run(1000);
    let stops = world.shims[large].stops;
    world.run(120_000);
    assert_eq!((world.shims[large].stops, world.shims[plain].stops), (stops, 0));
    assert!(worked(&world, large) > 110_000);
}

#[test]
fn one_that_rests_gives_way_at_once() {
    let mut world = World::new(&[16 * GIB]);
    let [first, second] = [world.pager(12 * GIB), world.pager(12 * GIB)];
    world.until(20_000, |world| world.shims[first].stops + world.shims[second].stops > 0);
    world.run(5000);
    let (runs, waits) = if world.running(first) { (first, second) } else { (second, first) };
    assert!(world.running(runs) && !world.running(waits));
    world.shims[runs].works = false;
    let took = world.until(5000, |world| world.running(waits));
    assert!(took < 1000, "{took} ms");
}

#[test]
fn one_that_cannot_be_stopped_keeps_nobody_waiting() {
    let mut world = World::new(&[16 * GIB]);
    let stubborn = world.pager(12 * GIB);
    world.shims[stubborn].never_drains = true;
    let other = world.pager(12 * GIB);
    world.run(240_000);
    assert!(world.shims[other].ran > 150_000, "{} ms; {}", world.shims[other].ran, world.describe());
}

#[test]
fn plain_memory_and_what_thrashes_take_turns_each_for_its_own_reason() {
    let mut world = World::new(&[16 * GIB]);
    let pagers = [world.pager(12 * GIB), world.pager(12 * GIB)];
    let plain = world.worker(2 * GIB);
    world.run(120_000);
    assert_eq!(world.shims[plain].stops, 0);
    assert!(pagers.iter().all(|client| worked(&world, *client) > 20_000));
}

#[test]
fn managed_memory_that_rests_keeps_nobody_from_the_card() {
    let mut world = World::new(&[16 * GIB]);
    let pager = world.pager(12 * GIB);
    world.run(10_000);
    world.shims[pager].works = false;
    world.run(1000);
    // 4 GiB are free. The other 8 are there as soon as they are asked for.
    let plain = world.worker(12 * GIB);
    let took = world.until(20_000, |world| world.running(plain));
    assert!(took < 4000, "{took} ms; {}", world.describe());
    assert_eq!(world.refused_by_card, 0);
    world.run(20_000);
    assert!(world.shims[plain].ran > 19_000);
    // It was not on the card any more, and comes back as far as there is room.
    world.shims[pager].works = true;
    world.run(20_000);
    assert!(world.managed[&pager].here > 2 * GIB);
    assert_eq!(world.shims[plain].stops, 0);
}

#[test]
fn managed_memory_that_is_on_the_host_makes_no_room() {
    let mut world = World::new(&[16 * GIB]);
    world.strict = false;
    world.foreign.insert(card(0), 12 * GIB);
    let pager = world.pager(12 * GIB);
    world.shims[pager].works = false;
    let small = world.worker(2 * GIB);
    world.until(10_000, |world| world.running(small));
    // It is promised what cannot be had: that is found out, it is told, and nobody else is harmed.
    let large = world.worker(8 * GIB);
    let id = world.shims[large].id;
    let took = world.until(30_000, |world| world.core.hindered.contains_key(&id));
    assert!((4000..12_000).contains(&took), "{took} ms");
    world.run(20_000);
    assert!(!world.running(large) && world.shims[small].ran > 20_000, "{}", world.describe());
    // And when that changes it runs.
    world.foreign.clear();
    world.until(40_000, |world| world.running(large));
}
