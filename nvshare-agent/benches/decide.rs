//! One decision over a thousand clients on two cards that want a hundred times what there is, a third of them at work; and a
//! whole turn of the conductor's core (decide, book, limits, bury) with a request for room of each of them open.

#[path = "../tests/world/mod.rs"]
mod world;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nvshare_agent::policy::decide;
use world::World;

fn decision(criterion: &mut Criterion) {
    let world = World::crowd();
    let (core, now) = (&world.core, world.moment());
    criterion.bench_function("decide_1000_clients", |bencher| {
        bencher.iter(|| black_box(decide(&core.ledger, &core.settings, now)));
    });
}

fn turn(criterion: &mut Criterion) {
    let mut world = World::crowd();
    for client in 0..world.shims.len() {
        world.want_room(client, client as u64 + 1, 64 << 20);
    }
    world.run(1);
    let now = world.moment();
    criterion.bench_function("turn_1000_clients", |bencher| {
        bencher.iter(|| {
            black_box(world.core.decide(now));
            black_box(world.core.limits());
            black_box(world.core.bury(now));
        });
    });
}

criterion_group!(benches, decision, turn);
criterion_main!(benches);
