//! Memory that the driver itself makes, and what is said of memory: accounts, room, and one truth about sizes.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::{ToAgent, ToShim};

use super::led::{Led, heard, led};
use super::{MIB, client, node};

/// The next request for room.
fn room(agent: &mut super::agent::Agent) -> (nvshare_common::ids::Ticket, u64) {
    agent.until("WantRoom", |message| match message {
        ToAgent::WantRoom { ticket, bytes, .. } => Some((*ticket, bytes.0)),
        _ => None,
    })
}

#[test]
fn a_large_piece_takes_room_first_and_is_tried_again_until_room_is_refused() {
    if super::is_real() {
        return;
    }
    let node = node();
    let (mut client, _listener, mut agent, _) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    for (made, answer) in [(false, "out of memory"), (true, "done")] {
        client.say(&format!("create {}", 100 * MIB));
        let (ticket, bytes) = room(&mut agent);
        assert_eq!(bytes, 100 * MIB, "as much as the call needs");
        agent.send(&ToShim::Room { ticket, made });
        assert_eq!(client.answer(), answer);
    }
    // The card has 144 MiB left, whatever this agent says.
    client.say(&format!("create {}", 200 * MIB));
    for (wanted, made) in [(200, true), (200, true), (264, false)] {
        let (ticket, bytes) = room(&mut agent);
        assert_eq!(bytes, wanted * MIB);
        agent.send(&ToShim::Room { ticket, made });
    }
    assert_eq!(client.answer(), "out of memory");
    client.end();
}

#[test]
fn memory_counts_once_from_its_making_until_its_last_mapping_is_gone() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    agent.send(&ToShim::Limit { device, bytes: Bytes(100 * MIB) });
    heard(&mut agent, device);
    agent.allow(&Arc::new(AtomicU64::new(100 * MIB)));
    let free = |client: &mut Led| {
        let said = client.ask("info");
        said.split(' ').next().unwrap().parse::<u64>().unwrap() / MIB
    };
    assert_eq!(free(&mut client), 92);
    let at = client.ask(&format!("map_and_release {}", 12 * MIB));
    assert_eq!(free(&mut client), 80);
    assert_eq!(client.ask(&format!("unmap {at} {}", 12 * MIB)), "unmapped");
    assert_eq!(free(&mut client), 92);
    // Managed memory is no card memory, however much of it there is.
    assert_eq!(client.ask(&format!("managed {}", 400 * MIB)), "done");
    assert_eq!(free(&mut client), 92);
    // A pool counts with the blocks that it took from the device.
    assert_eq!(client.ask(&format!("pool {}", 4 * MIB)), "done");
    let left = free(&mut client);
    assert!((92 - 32..=92 - 4).contains(&left), "{left} MiB are free beside a pool with 4 MiB in use");
    client.end();
}

#[test]
fn driver_and_nvml_tell_the_same_size_and_free_memory() {
    if super::is_real() {
        return;
    }
    let bare = node();
    let (mut first, _listener, _agent, _) = led(&bare, client(&bare, "scripted"), 8 * MIB, 0);
    assert_eq!(
        first.ask("nvml"),
        format!("{} {}", 256 * MIB, 244 * MIB),
        "without terms it is NVML's answer"
    );
    assert_eq!(first.ask("total"), format!("{}", 256 * MIB));
    first.end();

    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    agent.send(&ToShim::Size { device, bytes: Bytes(100 * MIB) });
    agent.send(&ToShim::Limit { device, bytes: Bytes(90 * MIB) });
    heard(&mut agent, device);
    let told = format!("{} {}", 100 * MIB, 82 * MIB);
    assert_eq!(client.ask("nvml"), told);
    assert_eq!(client.ask("total"), format!("{}", 100 * MIB));
    assert_eq!(client.ask("info"), format!("{} {}", 82 * MIB, 100 * MIB));
    client.end();
}
