//! What a pass through the open gate costs: a call of nothing, without and with it.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nvshare::turn;

extern "C" fn nothing(argument: u64) -> u64 {
    argument
}

fn pass(criterion: &mut Criterion) {
    let call: extern "C" fn(u64) -> u64 = black_box(nothing);
    let mut group = criterion.benchmark_group("gate");
    group.bench_function("bare", |bencher| bencher.iter(|| call(black_box(1))));
    group.bench_function("open", |bencher| {
        bencher.iter(|| {
            let _pass = turn::pass();
            call(black_box(1))
        });
    });
    group.finish();
}

criterion_group!(benches, pass);
criterion_main!(benches);
