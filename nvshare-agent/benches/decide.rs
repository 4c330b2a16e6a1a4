//! One decision over a thousand clients on two cards that want a hundred times what there is, a third of them at work.

#[path = "../tests/world/mod.rs"]
mod world;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nvshare_agent::policy::decide;
use world::{GIB, World};

fn decision(criterion: &mut Criterion) {
    let mut world = World::new(&[16 * GIB, 16 * GIB]);
    for number in 0..1000_u64 {
        let client = world.start();
        world.allocate(client, (number % 2) as u8, (1 + number % 7) * GIB);
        world.shims[client].works = number % 3 == 0;
    }
    world.run(3000);
    let (core, now) = (&world.core, world.moment());
    criterion.bench_function("decide/1000_clients", |bencher| {
        bencher.iter(|| black_box(decide(&core.ledger, &core.settings, now)));
    });
}

criterion_group!(benches, decision);
criterion_main!(benches);
