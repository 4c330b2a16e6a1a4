//! What a client is told of the card, and may have of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::ToShim;

use super::agent;
use super::led::{Led, heard, led, sees};
use super::{MIB, client, no_violations, node};

#[test]
fn beyond_the_limit_an_allocation_fails_at_once_and_the_client_sees_only_its_limit() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    agent.send(&ToShim::Size { device, bytes: Bytes(48 * MIB) });
    agent.send(&ToShim::Limit { device, bytes: Bytes(48 * MIB) });
    heard(&mut agent, device);
    agent.allow(&Arc::new(AtomicU64::new(48 * MIB)));
    assert_eq!(client.ask("info"), format!("{} {}", 40 * MIB, 48 * MIB));
    assert_eq!(client.ask(&format!("alloc {}", 44 * MIB)), "out of memory");
    assert_eq!(client.ask(&format!("pool {}", 34 * MIB)), "out of memory", "it would take 48");
    // Nor by ways that do not lead through the engine.
    assert_eq!(client.ask(&format!("create {}", 44 * MIB)), "out of memory");
    // That takes a chunk of 16, as the driver's own pool would.
    assert_eq!(client.ask(&format!("pool {}", 2 * MIB)), "done");
    assert_eq!(client.ask(&format!("pool {}", 30 * MIB)), "done");
    assert_eq!(client.ask(&format!("pool {MIB}")), "out of memory");
    assert_eq!(client.ask(&format!("create {}", 2 * MIB)), "done");
    assert_ne!(client.ask(&format!("alloc {}", 6 * MIB)), "out of memory");
    assert_eq!(client.ask("alloc 1048576"), "out of memory");
    drop(client);
}

#[test]
fn the_first_question_for_memory_is_answered_by_the_limit_of_the_welcome() {
    let node = node();
    let (first, listener, _agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 0);
    first.end();
    let mut second = Led::start(client(&node, "scripted"));
    let _agent = listener.welcome_within(vec![(device, Bytes(16 * MIB))]);
    assert_eq!(second.answer(), "ready");
    assert_eq!(second.ask("info"), format!("{0} {0}", 16 * MIB));
    second.end();
}

#[test]
fn a_limit_below_what_is_in_use_takes_nothing_away_and_lets_nothing_in() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    let limit = Arc::new(AtomicU64::new(0));
    let order = |agent: &agent::Agent, bytes| {
        limit.store(bytes, Ordering::Relaxed);
        agent.send(&ToShim::Size { device, bytes: Bytes(bytes) });
        agent.send(&ToShim::Limit { device, bytes: Bytes(bytes) });
    };
    order(&agent, 6 * MIB);
    heard(&mut agent, device);
    let says = agent.twin();
    agent.allow(&limit);
    let total = 6 * MIB;
    assert_eq!(client.ask("info"), format!("0 {total}"));
    assert_eq!(client.ask("store 0 7"), "stored");
    assert_eq!(client.ask("wrong 0 7"), "0");
    assert_eq!(client.ask(&format!("alloc {}", 2 * MIB)), "out of memory");
    assert_eq!(client.ask("free 0"), "freed");
    assert_eq!(client.ask("info"), format!("{total} {total}"));
    assert_ne!(client.ask(&format!("alloc {}", 4 * MIB)), "out of memory");
    assert_eq!(client.ask(&format!("alloc {}", 4 * MIB)), "out of memory");
    // The order is undone: there is more again, and the device is as large as it was said to be.
    order(&says, 200 * MIB);
    sees(&mut client, total - 4 * MIB, total);
    nvshare_testbed::wait_for("more is let in", std::time::Duration::from_secs(10), || {
        (client.ask(&format!("alloc {}", 4 * MIB)) != "out of memory").then_some(())
    });
    client.end();
    no_violations(&node);
}

#[test]
fn the_size_of_a_device_and_its_free_memory_do_not_grow_when_others_go() {
    // The figures are those of a card of this size.
    if super::is_real() {
        return;
    }
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    agent.send(&ToShim::Limit { device, bytes: Bytes(100 * MIB) });
    heard(&mut agent, device);
    let card = 256 * MIB;
    assert_eq!(client.ask("info"), format!("{} {card}", 92 * MIB));
    for (limit, free) in [(180, 92), (90, 82), (200, 82)] {
        agent.send(&ToShim::Limit { device, bytes: Bytes(limit * MIB) });
        sees(&mut client, free * MIB, card);
    }
    // An order is no neighbour: what it changes is said, but for the size.
    agent.send(&ToShim::Size { device, bytes: Bytes(150 * MIB) });
    agent.send(&ToShim::Size { device, bytes: Bytes(160 * MIB) });
    agent.send(&ToShim::Limit { device, bytes: Bytes(160 * MIB) });
    sees(&mut client, 152 * MIB, card);
    drop(client);
}
