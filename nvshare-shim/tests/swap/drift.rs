//! A thousand switches of the same client, as a model that answers in turns makes them: the last hundred move what the first
//! hundred moved, and take as long.

use std::time::{Duration, Instant};

use nvshare_common::protocol::{ToAgent, ToShim};

use super::agent::Listener;
use super::led::Led;
use super::{MIB, client, no_violations, node};

/// Is never written again: weights.
const STAYS: u64 = 6 * MIB;
/// Is written in each turn.
const CHANGES: u64 = 2 * MIB;
const ALL: u64 = STAYS + CHANGES;
const SWITCHES: u64 = 1000;
const HUNDRED: usize = 100;

/// One switch.
#[derive(Clone, Copy, Debug)]
struct Switch {
    out: u64,
    into: u64,
    took: Duration,
}

#[test]
fn a_thousand_switches_later_a_switch_moves_and_takes_what_it_did() {
    let node = node();
    let listener = Listener::bind(&node.socket());
    let mut client = Led::start(client(&node, "scripted"));
    let mut agent = listener.welcome();
    assert_eq!(client.answer(), "ready");
    client.ask(&format!("alloc {STAYS}"));
    let (device, _) = agent.wanted();
    agent.grant(device, STAYS);
    agent.resident();
    client.ask("store 0 7");
    client.ask(&format!("alloc {CHANGES}"));
    agent.wanted();
    agent.grant(device, CHANGES);
    agent.resident();
    agent.arena(1, 64 * MIB);
    agent.until("ArenaReady", |message| matches!(message, ToAgent::ArenaReady { .. }).then_some(()));
    let mut switches = Vec::new();
    for number in 0..SWITCHES {
        assert_eq!(client.ask(&format!("store 1 {number}")), "stored");
        let began = Instant::now();
        agent.stop();
        // Now and then only a part is wanted first, as for somebody's room.
        let part = if number % 7 == 3 { 4 * MIB } else { 0 };
        let mut out = 0;
        for bytes in [part, ALL - part].into_iter().filter(|bytes| *bytes > 0) {
            let (released, last) = agent.swap_out(device, bytes);
            assert_eq!(released, bytes);
            let ToAgent::SwapOutDone { copied, .. } = last else { panic!("{last:?}") };
            out += copied.0;
        }
        agent.grant(device, ALL);
        agent.send(&ToShim::Run);
        let into = agent.resident();
        switches.push(Switch { out, into, took: began.elapsed() });
        if number % 100 == 99 {
            assert_eq!(client.ask(&format!("wrong 1 {number}")), "0");
            assert_eq!(client.ask("wrong 0 7"), "0");
        }
    }
    client.end();
    no_violations(&node);
    // The first ones fill the shadows.
    let (first, last) = (&switches[HUNDRED..2 * HUNDRED], &switches[switches.len() - HUNDRED..]);
    let sum = |of: &[Switch], what: fn(&Switch) -> u64| of.iter().map(what).sum::<u64>();
    let (out, into) = (sum(first, |one| one.out), sum(first, |one| one.into));
    assert!(
        out <= HUNDRED as u64 * CHANGES * 5 / 4,
        "{} MiB went out, {} were written",
        out / MIB,
        HUNDRED as u64 * CHANGES / MIB
    );
    assert!(
        sum(last, |one| one.out) <= out + out / 20,
        "{} MiB went out, then {}",
        out / MIB,
        sum(last, |one| one.out) / MIB
    );
    assert_eq!(sum(last, |one| one.into), into);
    let median = |of: &[Switch]| {
        let mut took: Vec<Duration> = of.iter().map(|one| one.took).collect();
        took.sort_unstable();
        took[took.len() / 2]
    };
    println!("{:?} {:?} {} {}", median(first), median(last), out / MIB, into / MIB);
    // Other programs use the machine, too.
    assert!(median(last) < median(first) * 3, "a switch took {:?}, then {:?}", median(first), median(last));
}
