//! What a scrape of `/metrics` costs the agent with many clients: the budget is 20 ms with 1,000.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use nvshare_agent::health::Health;
use nvshare_agent::metrics::Metrics;
use nvshare_agent_core::snapshot::{Client, ClientDevice, Device, State, Totals};
use nvshare_common::bytes::Bytes;
use serde_json::json;
use tokio::sync::watch;

const GPU: &str = "GPU-01234567-89ab-cdef-1032-547698badcfe";

fn client(number: u64) -> Client {
    let held = ClientDevice {
        uuid: GPU.to_owned(),
        resident: Bytes::GIB,
        unswappable_reasons: BTreeMap::from([("array".to_owned(), Bytes::MIB)]),
        ..ClientDevice::default()
    };
    let totals = Totals { application_calls: Totals::named(&[number + 1; _]), ..Totals::default() };
    serde_json::from_value(json!({
        "client": number, "process": {"pid": number, "start": 1}, "name": "python3", "cgroup": "/", "shim": "0.1.0",
        "owner": {"namespace": "default", "pod": format!("train-{number}-0"), "container": "trainer"},
        "activity": "running", "waiting_seconds": 0.0, "idle_seconds": 0.0, "lease_seconds": 2.0,
        "virtual_runtime_seconds": 3.0, "stalls": 0, "notes": [], "arenas": 1, "arena_bytes": 64,
        "devices": [held], "totals": totals,
    }))
    .expect("a client")
}

fn scrape(criterion: &mut Criterion) {
    let state = State {
        devices: vec![Device { uuid: GPU.to_owned(), ..Device::default() }],
        clients: (0..1000).map(client).collect(),
        ..State::default()
    };
    let (_publish, state) = watch::channel(Arc::new(state));
    let metrics = Metrics::new(state, Health::new());
    criterion.bench_function("scrape_1000_clients", |bencher| bencher.iter(|| black_box(metrics.text())));
}

criterion_group!(benches, scrape);
criterion_main!(benches);
