//! Clients that together want more than the card has, under an agent: they take turns, and whatever is killed in the
//! middle of a switch, nobody who lives loses a byte or hangs.

use std::time::Duration;

use nvshare_testbed::{Agent, Client, Node, wait_for};
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(2);
/// Leases short enough for many switches in a short test.
const LEASES: [&str; 6] = ["--lease-floor", "200ms", "--lease-ceiling", "200ms", "--reserve", "2M"];

/// A card of 96 MiB behind a link so slow that a switch lasts half a second.
fn node() -> Node {
    Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "96M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "100000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .env("NVSHARE_AGENT_GONE_AFTER", "1s")
        .build()
}

/// A client that wants two thirds of the card.
fn client(node: &Node, seed: u32, flags: &str) -> Client {
    let flags = format!("--bytes 64M --buffers 4 --seed {seed} {flags}");
    Client::start(&mut node.workload(&flags).with_shim())
}

fn clients(state: &Value) -> &[Value] {
    state["clients"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn held(client: &Value, what: &str) -> u64 {
    client["devices"].as_array().into_iter().flatten().filter_map(|device| device[what].as_u64()).sum()
}

/// The process that is being moved right now: part of its memory is on the card, part on the host, and it is not the
/// one that merely lent a part of its room.
fn in_the_middle_of_a_switch(agent: &Agent) -> Option<u32> {
    let state = agent.state();
    // Before the first switch a client that is only beginning looks the same.
    if state["switches"]["count"].as_u64() == Some(0) {
        return None;
    }
    let moving = clients(&state).iter().find(|client| {
        let (resident, swapped) = (held(client, "resident"), held(client, "swapped"));
        resident > 0 && swapped > 0 && matches!(client["activity"].as_str(), Some("waiting" | "stopping"))
    });
    moving.and_then(|client| client["process"]["pid"].as_u64()).map(|pid| pid as u32)
}

fn switches(agent: &Agent) -> u64 {
    agent.state()["switches"]["count"].as_u64().expect("the number of switches")
}

fn no_violations(node: &Node) {
    assert_eq!(node.violations(), Vec::<String>::new());
}

#[test]
fn clients_that_fit_together_are_never_stopped() {
    let node = node();
    let agent = node.agent(LEASES);
    // With a piece for small memory a client has 34 MiB; foreign memory is measured to within an extent while it moves.
    let start = |seed| {
        let flags = format!("--bytes 32M --buffers 4 --iterations 4 --seed {seed}");
        Client::start(&mut node.workload(&flags).with_shim())
    };
    let mut clients = [start(1), start(2)];
    for client in &mut clients {
        client.succeed();
    }
    assert_eq!(switches(&agent), 0);
    no_violations(&node);
}

#[test]
fn clients_that_do_not_fit_take_turns_and_find_their_bytes() {
    let node = node();
    let agent = node.agent(LEASES);
    let mut clients = [1, 2, 3].map(|seed| client(&node, seed, "--seconds 8"));
    for client in &mut clients {
        let report = client.succeed();
        assert!(report["iterations"].as_u64() >= Some(2), "a client hardly ran: {report}");
    }
    assert!(switches(&agent) >= 3, "only {} switches", switches(&agent));
    no_violations(&node);
}

#[test]
fn a_client_killed_in_the_middle_of_a_switch_leaves_the_card_to_the_others() {
    let node = node();
    let agent = node.agent(LEASES);
    let mut clients = Vec::from([1, 2, 3, 4].map(|seed| client(&node, seed, "--seconds 12")));
    for _ in 0..2 {
        let victim = wait_for("a switch is under way", LIMIT, || in_the_middle_of_a_switch(&agent));
        let victim = clients.iter().position(|client| client.id() == victim).expect("one of ours");
        let mut victim = clients.swap_remove(victim);
        victim.kill();
        wait_for("the agent sees the death", LIMIT, || {
            self::clients(&agent.state())
                .iter()
                .all(|client| client["process"]["pid"] != victim.id())
                .then_some(())
        });
    }
    let before = switches(&agent);
    for client in &mut clients {
        client.succeed();
    }
    assert!(switches(&agent) > before, "the others go on taking turns");
    no_violations(&node);
}

#[test]
fn a_new_agent_takes_over_from_one_killed_in_the_middle_of_a_switch() {
    let node = node();
    let mut agent = node.agent(LEASES);
    let mut clients = [1, 2, 3].map(|seed| client(&node, seed, "--seconds 14"));
    for _ in 0..2 {
        wait_for("a switch is under way", LIMIT, || in_the_middle_of_a_switch(&agent));
        agent.kill();
        agent = node.agent(LEASES);
        wait_for("the new agent switches too", LIMIT, || (switches(&agent) >= 1).then_some(()));
    }
    for client in &mut clients {
        client.succeed();
    }
    no_violations(&node);
}

#[test]
fn without_an_agent_clients_help_themselves_one_after_another() {
    let node = node();
    let mut agent = node.agent(LEASES);
    let mut clients = [1, 2, 3].map(|seed| client(&node, seed, "--iterations 12"));
    wait_for("a switch is under way", LIMIT, || in_the_middle_of_a_switch(&agent));
    agent.kill();
    for client in &mut clients {
        client.succeed();
    }
    no_violations(&node);
}
