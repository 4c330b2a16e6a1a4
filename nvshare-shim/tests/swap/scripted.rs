//! A scripted agent: it stops the client, swaps it out and in, and what it hears.

use std::time::Duration;

use nvshare_common::protocol::{ToAgent, ToShim};

use super::agent::Listener;
use super::led::{Led, led};
use super::{MIB, client, is_real, no_violations, node};

#[test]
fn an_agent_swaps_a_client_out_and_in() {
    let node = node();
    let listener = Listener::bind(&node.socket());
    let mut client = Led::start(client(&node, "scripted"));
    let mut agent = listener.welcome();
    assert!(agent.hello.running && agent.hello.devices.is_empty());
    assert_eq!(client.answer(), "ready");
    assert_ne!(client.ask(&format!("alloc {}", 16 * MIB)), "out of memory");
    // Nothing is granted: the client has an address, and waits at the gate.
    let (device, total) = agent.wanted();
    assert_eq!(total, 16 * MIB);
    client.say("store 0 5");
    agent.grant(device, 16 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "stored");
    agent.arena(1, 64 * MIB);
    agent.until("ArenaReady", |message| matches!(message, ToAgent::ArenaReady { .. }).then_some(()));
    agent.stop();
    let (released, last) = agent.swap_out(device, 16 * MIB);
    assert_eq!(released, 16 * MIB);
    assert!(matches!(last, ToAgent::SwapOutDone { copied, .. } if copied.0 == 16 * MIB), "{last:?}");
    client.say("wrong 0 5");
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.send(&ToShim::Run);
    agent.grant(device, 8 * MIB);
    assert!(agent.is_silent(Duration::from_millis(200)), "half of it is not all of it");
    agent.grant(device, 8 * MIB);
    assert_eq!(agent.resident(), 16 * MIB);
    assert_eq!(client.answer(), "0");
    // Nothing was written since: the second time everything is clean.
    agent.stop();
    let (released, last) = agent.swap_out(device, 16 * MIB);
    assert_eq!(released, 16 * MIB);
    assert!(
        matches!(last, ToAgent::SwapOutDone { copied, clean, .. } if copied.0 == 0 && clean.0 == 16 * MIB),
        "{last:?}"
    );
    agent.grant(device, 16 * MIB);
    agent.send(&ToShim::Run);
    assert_eq!(agent.resident(), 16 * MIB);
    assert_eq!(client.ask("wrong 0 5"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn a_swap_out_that_fails_half_way_after_which_the_contents_return_to_an_older_value_loses_nothing() {
    if is_real() {
        return;
    }
    let node = node();
    // Arenas of one block: every block is a copy of its own. Out 4, in 4, and the last one of the next four fails.
    let mut command = client(&node, "scripted");
    command.env("NVSHARE_SIM_FAULTS", "copy:12=oom");
    let (mut client, _listener, mut agent, device) = led(&node, command, 8 * MIB, 4);
    assert_eq!(client.ask("store 0 1"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 8 * MIB).0, 8 * MIB);
    agent.grant(device, 8 * MIB);
    agent.send(&ToShim::Run);
    assert_eq!(agent.resident(), 8 * MIB);
    assert_eq!(client.ask("store 0 2"), "stored");
    agent.stop();
    let (released, last) = agent.swap_out(device, 8 * MIB);
    assert!(matches!(last, ToAgent::SwapFailed { .. }), "{last:?}");
    assert_eq!(released, 4 * MIB, "the extent whose copy failed is resident");
    agent.grant(device, 4 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    // What the half-overwritten shadow held before the failure.
    assert_eq!(client.ask("store 0 1"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 8 * MIB).0, 8 * MIB);
    agent.grant(device, 8 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 0 1"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn a_swap_in_without_room_keeps_the_shadow_and_tries_again() {
    if is_real() {
        return;
    }
    let node = node();
    let mut command = client(&node, "scripted");
    // Two extents are made at first; the first two tries to make them again fail.
    command.env("NVSHARE_SIM_FAULTS", "create:3=oom,create:4=oom");
    let (mut client, _listener, mut agent, device) = led(&node, command, 8 * MIB, 4);
    assert_eq!(client.ask("store 0 9"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 8 * MIB).0, 8 * MIB);
    agent.send(&ToShim::Run);
    agent.grant(device, 8 * MIB);
    assert_eq!(agent.resident(), 8 * MIB);
    assert_eq!(client.ask("wrong 0 9"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn a_copy_into_a_captured_stream_waits_for_its_memory_as_the_replay_does() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 8);
    assert_ne!(client.ask(&format!("alloc {}", 8 * MIB)), "out of memory");
    agent.grant(device, 8 * MIB);
    agent.resident();
    assert_eq!(client.ask("store 0 5"), "stored");
    assert_eq!(client.ask("capture"), "captures");
    agent.stop();
    assert_eq!(agent.swap_out(device, 16 * MIB).0, 16 * MIB);
    client.say("copy 0 1");
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.send(&ToShim::Run);
    agent.grant(device, 16 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "copied");
    agent.stop();
    assert_eq!(agent.swap_out(device, 16 * MIB).0, 16 * MIB);
    client.say("replay");
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.send(&ToShim::Run);
    agent.grant(device, 16 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "replayed");
    assert_eq!(client.ask("wrong 1 5"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn memory_that_other_hardware_may_hold_stays_on_the_device_and_is_reported() {
    let node = node();
    let (mut client, listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 8);
    assert_ne!(client.ask(&format!("alloc {}", 8 * MIB)), "out of memory");
    agent.grant(device, 8 * MIB);
    agent.resident();
    assert_eq!(client.ask("store 0 5"), "stored");
    client.say("share 0");
    let kept = agent.until("Unswappable", |message| match message {
        ToAgent::Unswappable { bytes, reason, .. } if reason == "exported" => Some(bytes.0),
        _ => None,
    });
    assert_eq!(kept, 4 * MIB);
    assert_eq!(client.answer(), "shared");
    // A new agent hears of it, too.
    drop(agent);
    let mut agent = listener.welcome();
    let still = agent.until("Unswappable", |message| match message {
        ToAgent::Unswappable { bytes, reason, .. } if reason == "exported" => Some(bytes.0),
        _ => None,
    });
    assert_eq!(still, 4 * MIB);
    agent.stop();
    let (released, last) = agent.swap_out(device, 12 * MIB);
    assert_eq!(released, 8 * MIB, "{last:?}");
    agent.grant(device, 8 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 0 5"), "0");
    client.say("free 0");
    agent.until("nothing unswappable", |message| match message {
        ToAgent::Unswappable { bytes, reason, .. } if reason == "exported" && bytes.0 == 0 => Some(()),
        _ => None,
    });
    assert_eq!(client.answer(), "freed");
    client.end();
}

#[test]
fn a_kernel_that_does_not_end_stalls_the_drain_and_the_client_goes_on() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 2);
    assert_eq!(client.ask("spin 1500000000"), "spinning");
    let ticket = agent.ticket();
    agent.send(&ToShim::Stop { ticket, stall_ms: 200 });
    agent.until("DrainStalled", |message| (*message == ToAgent::DrainStalled { ticket }).then_some(()));
    let (released, last) = agent.swap_out(device, 4 * MIB);
    assert_eq!(released, 0);
    assert!(matches!(&last, ToAgent::SwapFailed { why, .. } if why.contains("not stopped")), "{last:?}");
    assert_eq!(client.ask("store 0 4"), "stored");
    assert_eq!(client.ask("wrong 0 4"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn unused_grant_is_given_back_on_request_and_freed_memory_with_it() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    agent.grant(device, 6 * MIB);
    assert_eq!(client.ask("free 0"), "freed");
    let ticket = agent.ticket();
    agent.send(&ToShim::Reclaim { ticket, device });
    let mut released = 0;
    agent.until("SwapOutDone", |message| match message {
        ToAgent::Released { ticket: Some(of), bytes, .. } if *of == ticket => {
            released += bytes.0;
            None
        }
        ToAgent::SwapOutDone { ticket: of, .. } => (*of == ticket).then_some(()),
        _ => None,
    });
    assert_eq!(released, 14 * MIB);
    client.end();
}
