//! Measurements, to be run alone.

use std::time::{Duration, Instant};

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::{ToAgent, ToShim};

use super::agent::Listener;
use super::led::Led;
use super::{MIB, builder, client};

/// Not a check: prints how long swap-out and swap-in of `BYTES_MIB` take, dirty and clean.
#[test]
#[ignore = "measures; run it alone"]
fn how_long_a_swap_takes() {
    let bytes = std::env::var("BYTES_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(512) * MIB;
    let node = builder().env("NVSHARE_SIM_CARD_BYTES", "1G").build();
    let listener = Listener::bind(&node.socket());
    let mut client = Led::start(client(&node, "scripted"));
    let mut agent = listener.welcome();
    client.answer();
    client.ask(&format!("alloc {bytes}"));
    let (device, _) = agent.wanted();
    agent.grant(device, bytes);
    agent.resident();
    for number in 0..bytes.div_ceil(256 * MIB) {
        agent.arena(number, 256 * MIB);
        agent.until("ArenaReady", |message| matches!(message, ToAgent::ArenaReady { .. }).then_some(()));
    }
    client.ask("store 0 1");
    for round in 0..8 {
        if round < 6 {
            client.ask(&format!("store 0 {}", round + 2));
        }
        let began = Instant::now();
        agent.stop();
        let stopped = began.elapsed();
        let began = Instant::now();
        let (_, last) = agent.swap_out(device, bytes);
        let out = began.elapsed();
        let began = Instant::now();
        agent.send(&ToShim::Run);
        agent.grant(device, bytes);
        agent.resident();
        let back = began.elapsed();
        let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
        println!(
            "drain {stopped:?}, out {out:?} ({:.2} GB/s), in {back:?} ({:.2} GB/s), {last:?}",
            rate(out),
            rate(back)
        );
    }
    assert_eq!(client.ask("wrong 0 7"), "0");
    client.end();
}

/// Not a check: prints how long it takes to exchange one client of `BYTES_MIB` for another on a card that holds one.
#[test]
#[ignore = "measures; run it alone"]
fn how_long_an_exchange_takes() {
    let bytes = std::env::var("BYTES_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(512) * MIB;
    let node = builder().env("NVSHARE_SIM_CARD_BYTES", "600M").build();
    let mut both = Vec::new();
    for value in 1..=2 {
        let listener = Listener::bind(&node.socket());
        let mut client = Led::start(client(&node, "scripted"));
        let mut agent = listener.welcome();
        client.answer();
        client.ask(&format!("alloc {bytes}"));
        let (device, _) = agent.wanted();
        for number in 0..bytes.div_ceil(256 * MIB) {
            agent.arena(number, 256 * MIB);
            agent.until("ArenaReady", |message| matches!(message, ToAgent::ArenaReady { .. }).then_some(()));
        }
        agent.grant(device, bytes);
        agent.resident();
        client.ask(&format!("store 0 {value}"));
        if value == 1 {
            agent.stop();
            agent.swap_out(device, bytes);
        }
        both.push((client, agent, listener, device));
    }
    for round in 0..10_u64 {
        let (left, right) = both.split_at_mut(1);
        let (going, coming) =
            if round % 2 == 0 { (&mut right[0], &mut left[0]) } else { (&mut left[0], &mut right[0]) };
        let device = going.3;
        let began = Instant::now();
        going.1.stop();
        coming.1.send(&ToShim::Run);
        let ticket = going.1.ticket();
        going.1.send(&ToShim::SwapOut { ticket, device, bytes: Bytes(bytes), coldest: Vec::new() });
        going.1.until("SwapOutDone", |message| match message {
            ToAgent::Released { bytes, .. } => {
                coming.1.grant(device, bytes.0);
                None
            }
            ToAgent::SwapOutDone { .. } => Some(()),
            _ => None,
        });
        let out = began.elapsed();
        coming.1.resident();
        println!("out after {out:?}, exchanged after {:?}", began.elapsed());
        let stored = if round < 2 { round + 1 } else { round };
        assert_eq!(coming.0.ask(&format!("wrong 0 {stored}")), "0");
        coming.0.ask(&format!("store 0 {}", round + 2));
    }
}
