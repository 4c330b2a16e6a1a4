//! The workload on a simulated card: bare, with managed memory, and with the shim alone, which swaps it out and in
//! behind its back.

use std::time::Duration;

use nvshare_testbed::{Client, Node, wait_for};

const LIMIT: Duration = Duration::from_mins(1);

fn no_violations(node: &Node) {
    assert_eq!(node.violations(), Vec::<String>::new());
}

#[test]
fn a_bare_workload_finds_its_bytes() {
    let node = Node::builder().env("NVSHARE_SIM_CARD_BYTES", "128M").build();
    let report =
        Client::start(&mut node.workload("--bytes 64M --iterations 3 --read-only-share 0.25")).succeed();
    assert_eq!(report["iterations"], 3);
    no_violations(&node);
}

#[test]
fn a_bare_workload_that_asks_for_more_than_the_card_has_fails() {
    let node = Node::builder().env("NVSHARE_SIM_CARD_BYTES", "64M").build();
    let mut client = Client::start(&mut node.workload("--bytes 96M --buffers 4"));
    assert_eq!(client.end().code(), Some(1));
}

#[test]
fn managed_memory_may_exceed_the_card_and_turns_are_taken() {
    let node = Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "64M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "1000000000")
        .build();
    let turns = node.path().join("turns");
    let flags = "--bytes 40M --buffers 4 --iterations 3 --memory managed --quantum 10ms --turns";
    let start = || Client::start(node.workload(flags).arg(&turns));
    let mut clients = [start(), start()];
    let switches: u64 =
        clients.iter_mut().map(|client| client.succeed()["switches"].as_u64().expect("switches")).sum();
    assert!(switches >= 2, "two processes that take turns switch at least twice, not {switches} times");
    no_violations(&node);
}

#[test]
fn the_shim_alone_changes_nothing_for_the_program() {
    let node = Node::builder().env("NVSHARE_SIM_CARD_BYTES", "128M").build();
    Client::start(&mut node.workload("--bytes 64M --iterations 3").with_shim()).succeed();
    no_violations(&node);
}

/// A workload with these flags, whose memory leaves and returns all the time.
fn swapped(node: &Node, flags: &str) -> Client {
    let mut client = node.workload(flags).with_shim();
    Client::start(client.env("NVSHARE_DEBUG_SWAP_EVERY", "50ms").env("NVSHARE_LOG", "info"))
}

#[test]
fn swaps_behind_the_back_of_a_program_lose_nothing() {
    let node =
        Node::builder().env("NVSHARE_SIM_CARD_BYTES", "256M").env("NVSHARE_EXTENT_BYTES", "4M").build();
    let mut clients = [
        swapped(&node, "--bytes 48M --buffers 5 --seconds 4"),
        swapped(&node, "--bytes 32M --buffers 64 --seconds 4 --read-only-share 0.5 --pause 50%"),
    ];
    for client in &mut clients {
        let iterations = client.succeed()["iterations"].as_u64().expect("iterations");
        assert!(iterations >= 2, "only {iterations} iterations in 4 seconds");
    }
    no_violations(&node);
}

#[test]
fn swaps_beside_graphs_and_beside_who_opens_the_memory_lose_nothing() {
    let node =
        Node::builder().env("NVSHARE_SIM_CARD_BYTES", "128M").env("NVSHARE_EXTENT_BYTES", "4M").build();
    let mut clients = [
        swapped(&node, "--bytes 24M --buffers 4 --iterations 6 --memory graph"),
        swapped(&node, "--bytes 24M --buffers 4 --iterations 6 --memory ipc --read-only-share 0.25"),
    ];
    for client in &mut clients {
        client.succeed();
    }
    no_violations(&node);
}

#[test]
fn a_workload_fails_when_the_process_ends_that_shares_its_memory() {
    let node = Node::builder().env("NVSHARE_SIM_CARD_BYTES", "128M").build();
    let mut client = Client::start(&mut node.workload("--bytes 16M --memory ipc --seconds 60"));
    let other = wait_for("the other process", LIMIT, || {
        let children = format!("/proc/{0}/task/{0}/children", client.id());
        std::fs::read_to_string(children).ok()?.trim().parse().ok()
    });
    nvshare_testbed::signal(other, libc::SIGKILL).expect("it lives");
    assert_eq!(client.end().code(), Some(1));
}
