//! Host memory: none, none needed, and given back.

use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::{ToAgent, ToShim};

use super::led::led;
use super::{MIB, client, no_violations, node};

#[test]
fn without_host_memory_a_swap_out_is_refused_and_nothing_is_lost() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 2);
    assert_eq!(client.ask("store 0 3"), "stored");
    agent.stop();
    let (released, last) = agent.swap_out(device, 8 * MIB);
    assert_eq!(released, 4 * MIB);
    assert!(matches!(&last, ToAgent::SwapFailed { why, .. } if why.contains("host memory")), "{last:?}");
    agent.grant(device, 4 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 0 3"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn zeros_need_no_host_memory_and_only_what_changed_is_copied() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 16 * MIB, 1);
    assert_eq!(client.ask("store 0 0"), "stored");
    assert_eq!(client.ask(&format!("store_part 0 {} 4096 77", 5 * MIB)), "stored");
    agent.stop();
    let (released, last) = agent.swap_out(device, 16 * MIB);
    assert_eq!(released, 16 * MIB);
    assert!(matches!(last, ToAgent::SwapOutDone { copied, .. } if copied.0 == 2 * MIB), "{last:?}");
    agent.grant(device, 16 * MIB);
    agent.send(&ToShim::Run);
    assert_eq!(agent.resident(), 2 * MIB);
    assert_eq!(client.ask("wrong 0 0"), "512");
    client.end();
    no_violations(&node);
}

#[test]
fn host_memory_that_only_resident_extents_use_is_given_back_on_request() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 3);
    assert_eq!(client.ask("store 0 6"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 4 * MIB).0, 4 * MIB);
    // Two of three arenas hold the only copy.
    agent.send(&ToShim::Trim { bytes: Bytes(6 * MIB) });
    agent.until("ArenaReturned", |message| matches!(message, ToAgent::ArenaReturned { .. }).then_some(()));
    assert!(agent.is_silent(Duration::from_millis(200)), "a shadow that is needed was given up");
    agent.grant(device, 4 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    agent.send(&ToShim::Trim { bytes: Bytes(6 * MIB) });
    for _ in 0..2 {
        agent
            .until("ArenaReturned", |message| matches!(message, ToAgent::ArenaReturned { .. }).then_some(()));
    }
    assert_eq!(client.ask("wrong 0 6"), "0");
    client.end();
    no_violations(&node);
}
