//! What a call costs under the uprobes: bare, counted (a launch), counted with a sample each time, and followed to its return
//! with a record (a free). Needs root and the built eBPF programs (`cargo xtask build`); elsewhere it measures nothing.

#[path = "../tests/observer/fake.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod fake;

use std::sync::mpsc;

use criterion::{Criterion, criterion_group, criterion_main};
use nvshare_agent::observation::Observation;
use nvshare_agent::observer::{MODULES, Observer, Options, SCAN_EVERY};

use fake::Fake;

type Call = extern "C" fn(u64, u64, u64, u64) -> i32;

fn observe(fake: &Fake, sample_every: u32) -> Option<Observer> {
    let (sender, told) = mpsc::channel();
    let options = Options {
        object: nvshare_testbed::Artifacts::find().ebpf()?,
        libraries: vec![fake.path()],
        discover: false,
        sample_every,
        modules: MODULES.into(),
        scan_every: SCAN_EVERY,
        single: false,
    };
    let tell = move |batch: Vec<Observation>| {
        for seen in batch {
            if let Observation::Observer(health) = seen {
                // Nobody listens after the first.
                let _ = sender.send(health.loaded);
            }
        }
        true
    };
    let observer = Observer::start(options, tell).ok()?;
    told.recv().ok().filter(|loaded| *loaded).map(|_| observer)
}

fn probes(criterion: &mut Criterion) {
    let fake = Fake::new();
    // SAFETY: it has no initialisers.
    let library = unsafe { libloading::Library::new(fake.path()) }.expect("the fake library");
    // SAFETY: all its functions take whatever is in the registers.
    let function = |name: &str| unsafe { *library.get::<Call>(name.as_bytes()).expect("a function") };
    let (launch, free) = (function("cuLaunchKernel"), function("cuMemFree_v2"));
    let mut group = criterion.benchmark_group("probe");
    group.bench_function("bare", |bench| bench.iter(|| launch(0, 0, 0, 0)));
    for (name, sample_every, call) in
        [("launch", 64, launch), ("launch_sampled", 1, launch), ("free_followed", 64, free)]
    {
        let Some(observer) = observe(&fake, sample_every) else {
            eprintln!("SKIPPED: no uprobes here (root, cargo xtask build): their cost was not measured");
            return;
        };
        group.bench_function(name, |bench| bench.iter(|| call(0, 0, 0, 0)));
        observer.stop();
    }
    group.finish();
}

criterion_group!(benches, probes);
criterion_main!(benches);
