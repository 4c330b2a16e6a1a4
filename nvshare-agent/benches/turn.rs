//! Turns of the conductor's core (what came is heard, pages and readings are looked at, it is decided, booked and said) with a
//! thousand clients on eight cards, a thousand pieces of memory of each, and always a request for room of each of them open:
//! small ones, which somebody gives memory for, and large ones, which wait.
//!
//! The budget is about the slow turns, and a mean has none: each turn is timed by itself, in the course of a simulated
//! while in which clients come to run, are stopped and swapped out. The times are kept in criterion's form, beside what it
//! measures.

#[path = "../tests/world/mod.rs"]
mod world;

use std::path::Path;
use std::time::Duration;

use world::{GIB, MIB, World, card};

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
    if measures {
        keep("turn_1000_clients", &times);
    }
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
