//! One decision over a thousand clients on two cards that want a hundred times what there is, a third of them at work.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nvshare_agent_core::policy::decide;
use nvshare_agent_world::World;

fn decision(criterion: &mut Criterion) {
    let world = World::crowd();
    let (core, now) = (&world.core, world.moment());
    criterion.bench_function("decide_1000_clients", |bencher| {
        bencher.iter(|| black_box(decide(&core.ledger, &core.settings, now)));
    });
}

criterion_group!(benches, decision);
criterion_main!(benches);
