//! One decision over a thousand clients on two cards that want a hundred times what there is, a third of them at work.

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

criterion_group!(benches, decision);
criterion_main!(benches);
