//! Memory that the program maps itself (`cuMemCreate`): it moves like any other, and the program does not notice.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::DeviceId;
use nvshare_common::protocol::{ToAgent, ToShim};

use super::agent::Agent;
use super::led::{Led, heard, led};
use super::{MIB, client, no_violations, node, run};

#[test]
fn random_handles_and_mappings_keep_their_contents_under_swaps_at_random_moments() {
    for seed in 1..=3 {
        let node = node();
        let mut command = client(&node, "mapped");
        command
            .env("SEED", seed.to_string())
            .env("OPERATIONS", "800")
            .env("NVSHARE_DEBUG_SWAP_EVERY", "15ms");
        run(&node, command);
    }
}

/// As PyTorch has it: one large reservation, 2 MiB and 20 MiB at a time, which may be exported and are not.
#[test]
fn a_segment_that_grows_shrinks_and_grows_again_keeps_what_it_holds() {
    let node = node();
    let mut command = client(&node, "segments");
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "40ms");
    run(&node, command);
}

/// Makes memory, maps it at an address of its own, and names it as the next buffer. Its handle and its address.
fn mapped(client: &mut Led, bytes: u64, types: u64) -> (u64, u64) {
    let handle: u64 = client.ask(&format!("handle {bytes} {types}")).parse().unwrap();
    let at: u64 = client.ask(&format!("reserve {bytes}")).parse().unwrap();
    assert_eq!(client.ask(&format!("map {at} {bytes} {handle}")), "0");
    assert_eq!(client.ask(&format!("access {at} {bytes} 3")), "0");
    assert_eq!(client.ask(&format!("use {at} {bytes}")), "used");
    (handle, at)
}

/// The client has made `bytes`, and the agent grants them.
fn granted(agent: &mut Agent, device: DeviceId, bytes: u64) {
    agent.until("a Want", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.grant(device, bytes);
    agent.resident();
}

#[test]
fn an_agent_swaps_out_and_in_what_the_program_maps_itself() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 10);
    agent.grant(device, 16 * MIB);
    heard(&mut agent, device);
    agent.grant(device, 16 * MIB);
    let (_, at) = mapped(&mut client, 10 * MIB, 0);
    let (kept, elsewhere) = mapped(&mut client, 6 * MIB, 1);
    assert_eq!(client.ask("store 1 7"), "stored");
    assert_eq!(client.ask("store 2 8"), "stored");
    // The one is released while it is mapped, the other unmapped while it is held.
    assert_eq!(client.ask(&format!("unmap {elsewhere} {}", 6 * MIB)), "unmapped");
    agent.stop();
    let (released, last) = agent.swap_out(device, 20 * MIB);
    assert_eq!(released, 20 * MIB, "{last:?}");
    client.say("wrong 1 7");
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.send(&ToShim::Run);
    agent.grant(device, 20 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "0");
    assert_eq!(client.ask(&format!("map {elsewhere} {} {kept}", 6 * MIB)), "0");
    assert_eq!(client.ask(&format!("access {elsewhere} {} 1", 6 * MIB)), "0");
    assert_eq!(client.ask("wrong 2 8"), "0", "it has its contents although it was mapped nowhere");
    // For reading only, and nothing was written since: out again without a copy of it, and in again.
    agent.stop();
    assert_eq!(agent.swap_out(device, 20 * MIB).0, 20 * MIB);
    agent.grant(device, 20 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 2 8"), "0");
    assert_eq!(client.ask(&format!("flags {elsewhere}")), "1");
    assert_eq!(client.ask(&format!("flags {at}")), "3");
    client.end();
    no_violations(&node);
}

#[test]
fn memory_is_made_before_it_is_granted_and_mapping_it_waits_for_the_grant() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 4);
    let handle: u64 = client.ask(&format!("handle {} 0", 8 * MIB)).parse().unwrap();
    let at: u64 = client.ask(&format!("reserve {}", 8 * MIB)).parse().unwrap();
    client.say(&format!("map {at} {} {handle}", 8 * MIB));
    granted(&mut agent, device, 8 * MIB);
    assert_eq!(client.answer(), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn what_is_out_is_unmapped_and_released_without_a_turn() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 8);
    agent.grant(device, 8 * MIB);
    let (handle, at) = mapped(&mut client, 8 * MIB, 0);
    assert_eq!(client.ask("store 1 7"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 12 * MIB).0, 12 * MIB);
    assert_eq!(client.ask(&format!("unmap {at} {}", 8 * MIB)), "unmapped");
    assert_eq!(client.ask(&format!("release {handle}")), "0");
    assert_eq!(client.ask(&format!("release {handle}")), "1", "it is gone");
    assert_eq!(client.ask(&format!("unreserve {at} {}", 8 * MIB)), "0");
    agent.send(&ToShim::Run);
    agent.grant(device, 4 * MIB);
    assert!(agent.resident() <= 4 * MIB, "what was released does not come back");
    client.end();
    no_violations(&node);
}

/// As vLLM and SGLang put a model to sleep and wake it: the address stays, the memory goes and comes.
#[test]
fn a_place_that_gets_new_memory_after_a_sleep_has_that_and_not_the_old() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 8);
    agent.grant(device, 8 * MIB);
    let (handle, at) = mapped(&mut client, 8 * MIB, 0);
    assert_eq!(client.ask("store 1 7"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 12 * MIB).0, 12 * MIB);
    agent.grant(device, 12 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 1 7"), "0");
    assert_eq!(client.ask(&format!("unmap {at} {}", 8 * MIB)), "unmapped");
    assert_eq!(client.ask(&format!("release {handle}")), "0");
    let handle: u64 = client.ask(&format!("handle {} 0", 8 * MIB)).parse().unwrap();
    assert_eq!(client.ask(&format!("map {at} {} {handle}", 8 * MIB)), "0");
    assert_eq!(client.ask(&format!("access {at} {} 3", 8 * MIB)), "0");
    assert_eq!(client.ask("store 1 9"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 12 * MIB).0, 12 * MIB);
    agent.grant(device, 12 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 1 9"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn memory_that_is_exported_stays_on_the_device_from_then_on_and_is_reported() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 8);
    agent.grant(device, 8 * MIB);
    let (handle, _) = mapped(&mut client, 8 * MIB, 1);
    assert_eq!(client.ask("store 1 7"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 12 * MIB).0, 12 * MIB, "that it may be exported keeps it from nothing");
    client.say(&format!("export {handle}"));
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.grant(device, 12 * MIB);
    agent.send(&ToShim::Run);
    let kept = agent.until("Unswappable", |message| match message {
        ToAgent::Unswappable { bytes, reason, .. } if reason == "exported" => Some(bytes.0),
        _ => None,
    });
    assert_eq!(kept, 8 * MIB);
    assert_eq!(client.answer(), "0");
    agent.stop();
    assert_eq!(agent.swap_out(device, 12 * MIB).0, 4 * MIB);
    agent.grant(device, 4 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 1 7"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn no_more_can_be_made_than_the_limit_allows_and_what_is_unmapped_and_released_is_free_again() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 0);
    agent.send(&ToShim::Limit { device, bytes: Bytes(16 * MIB) });
    agent.grant(device, 12 * MIB);
    heard(&mut agent, device);
    agent.allow(&Arc::new(AtomicU64::new(16 * MIB)));
    let free = |client: &mut Led| {
        let said = client.ask("info");
        said.split(' ').next().unwrap().parse::<u64>().unwrap() / MIB
    };
    assert_eq!(client.ask(&format!("handle {} 0", 14 * MIB)), "out of memory");
    assert_eq!(free(&mut client), 12);
    let handle: u64 = client.ask(&format!("handle {} 0", 8 * MIB)).parse().unwrap();
    assert_eq!(free(&mut client), 4);
    assert_eq!(client.ask(&format!("release {handle}")), "0");
    assert_eq!(free(&mut client), 12);
    client.end();
    no_violations(&node);
}

#[test]
fn memory_outlives_the_context_that_it_was_made_in() {
    let node = node();
    let mut command = client(&node, "mapped contexts");
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "15ms");
    run(&node, command);
}
