//! Stream-ordered memory: it moves like any other, and the pools say what the driver's say.

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::{ToAgent, ToShim};

use super::led::led;
use super::{MIB, client, no_violations, node, run};

/// What a pool grows by: a sixteenth of these small cards.
fn chunk() -> u64 {
    if super::is_real() { 32 * MIB } else { 16 * MIB }
}

#[test]
fn random_pieces_in_four_streams_keep_their_contents_under_swaps_at_random_moments() {
    for seed in 1..=3 {
        let node = node();
        let mut command = client(&node, "pools");
        command
            .env("SEED", seed.to_string())
            .env("OPERATIONS", "1500")
            .env("NVSHARE_DEBUG_SWAP_EVERY", "15ms");
        run(&node, command);
    }
}

#[test]
fn pieces_outlive_contexts_and_pools() {
    let node = node();
    let mut command = client(&node, "pool contexts");
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "15ms");
    run(&node, command);
}

#[test]
fn a_pool_answers_as_the_drivers_own() {
    let node = super::builder().env("NVSHARE_SIM_CARD_BYTES", "512M").build();
    run(&node, client(&node, "pool answers"));
    let mut command = client(&node, "pool answers");
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "20ms");
    run(&node, command);
}

#[test]
fn what_a_pool_cannot_have_leaves_nothing_behind() {
    // It weighs a whole card, on which nobody else is.
    if super::is_real() {
        return;
    }
    let node = node();
    run(&node, client(&node, "pool too much"));
}

#[test]
fn a_default_stream_waits_for_what_another_context_freed() {
    let node = node();
    run(&node, client(&node, "pool behind"));
}

#[test]
fn nobody_has_what_a_green_context_that_is_gone_still_writes() {
    for role in ["pool green", "plain green"] {
        let node = node();
        run(&node, client(&node, role));
    }
}

#[test]
fn an_agent_swaps_out_and_in_what_is_allocated_in_stream_order() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 20);
    agent.grant(device, chunk());
    let at: u64 = client.ask(&format!("piece {}", 10 * MIB)).parse().unwrap();
    assert_eq!(client.ask(&format!("use {at} {}", 10 * MIB)), "used");
    assert_eq!(client.ask("store 1 7"), "stored");
    agent.stop();
    let (released, last) = agent.swap_out(device, 4 * MIB + chunk());
    assert_eq!(released, 4 * MIB + chunk(), "nothing stays: {last:?}");
    client.say("wrong 1 7");
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.send(&ToShim::Run);
    agent.grant(device, 4 * MIB + chunk());
    agent.resident();
    assert_eq!(client.answer(), "0");
    // A chunk with nothing in it is not copied.
    assert_eq!(client.ask(&format!("free_piece {at}")), "0");
    agent.stop();
    let (released, last) = agent.swap_out(device, 4 * MIB + chunk());
    assert_eq!(released, 4 * MIB + chunk());
    match last {
        ToAgent::SwapOutDone { copied, .. } => assert!(copied <= Bytes(4 * MIB), "{copied:?}"),
        other => panic!("{other:?}"),
    }
    client.end();
    no_violations(&node);
}

#[test]
fn a_pool_grows_before_it_is_granted_and_its_work_waits_for_the_grant() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 4);
    let at: u64 = client.ask(&format!("piece {}", 10 * MIB)).parse().unwrap();
    assert_eq!(client.ask(&format!("use {at} {}", 10 * MIB)), "used");
    client.say("store 1 7");
    agent.until("a Want", |message| match message {
        ToAgent::Want { total, .. } => {
            assert_eq!(*total, Bytes(4 * MIB + chunk()));
            Some(())
        }
        _ => None,
    });
    agent.grant(device, chunk());
    assert_eq!(client.answer(), "stored");
    assert_eq!(client.ask("wrong 1 7"), "0");
    client.end();
    no_violations(&node);
}
