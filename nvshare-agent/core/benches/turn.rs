//! Turns of the conductor's core (what came is heard, pages and readings are looked at, it is decided, booked and said) with a
//! thousand clients on eight cards, a thousand pieces of memory of each, and always a request for room of each of them open:
//! small ones, which somebody gives memory for, and large ones, which wait.
//!
//! The budget is about the slow turns, and a mean has none: each turn is timed by itself, in the course of a simulated
//! while in which clients come to run, are stopped and swapped out. The times are kept in criterion's form, beside what it
//! measures.

use std::path::Path;
use std::time::{Duration, Instant};

use nvshare_agent_core::conductor::Core;
use nvshare_agent_core::ledger::SessionId;
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::process::Process;
use nvshare_agent_world::{GIB, MIB, World, card};
use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::{Held, Hello};

/// Virtual milliseconds.
const WHILE: u64 = 3000;

fn main() {
    // `cargo test --benches` only wants to see it run.
    let measures = std::env::args().any(|argument| argument == "--bench");
    let mut world = World::throng();
    world.strict = false;
    world.turns.clear();
    let mut asked = 0;
    for _ in 0..if measures { WHILE } else { 20 } {
        for client in 0..world.shims.len() {
            let answered = world.shims[client].rooms.values().all(Option::is_some);
            if answered && world.shims[client].session.is_some() {
                asked += 1;
                world.shims[client].rooms.clear();
                let bytes = if client % 2 == 0 { 64 * MIB } else { 4 * GIB };
                world.want_room_on(client, card((client % 8) as u8), asked, bytes);
            }
        }
        world.run(1);
    }
    let mut times: Vec<Duration> = world.turns.clone();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
    println!(
        "turn_1000_clients: {} turns, {asked} requests, p50 {:?}, p99 {:?}, longest {:?}",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    wave(if measures { 4000 } else { 400 });
    if measures {
        keep("turn_1000_clients", &times);
    }
}

/// Processes say hello one after another, as after a restart of the agent: what the last hundred cost, and the first.
fn wave(many: u64) {
    let mut core = Core::new(nvshare_agent_world::settings());
    core.begin_granting(Moment(1));
    let mut times: Vec<Duration> = Vec::new();
    for number in 0..many {
        let (device, bytes) = (card((number % 8) as u8), Bytes(GIB));
        let held = Held { device, granted: bytes, resident: bytes, total: bytes };
        let hello =
            Hello { release: "x".into(), running: false, bypass: false, arenas: 0, devices: vec![held] };
        let process = Process { pid: 1000 + number as u32, start: 1 };
        let begun = Instant::now();
        let client = core.hello(process, SessionId(number + 1), &hello, Moment(1000 + number));
        core.first_limits(client);
        times.push(begun.elapsed());
    }
    let mean = |times: &[Duration]| times.iter().sum::<Duration>() / times.len() as u32;
    let (first, last) = (mean(&times[..100]), mean(&times[times.len() - 100..]));
    println!("hello of {many} processes: the first hundred {first:?} each, the last {last:?}");
}

/// As criterion keeps samples, each of one iteration.
fn keep(id: &str, times: &[Duration]) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a folder of the target directory");
    let directory = target.join("criterion").join(id).join("new");
    let times: Vec<f64> = times.iter().map(|time| time.as_nanos() as f64).collect();
    let sample =
        serde_json::json!({"sampling_mode": "Flat", "iters": vec![1.0; times.len()], "times": times});
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(directory.join("sample.json"), sample.to_string()))
        .unwrap_or_else(|error| panic!("cannot keep the times in {}: {error}", directory.display()));
}
