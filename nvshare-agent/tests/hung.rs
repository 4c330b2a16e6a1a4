//! A card whose driver hangs: a question about it is never answered. The others are read as before; programs on it run as
//! without an agent before long, those that were swapped out too; and when it answers again they are managed again.

use std::time::Duration;

use nvshare_sim_card::{Bus, Cards, Config};
use nvshare_testbed::{Agent, Client, Node, wait_for};
use serde_json::Value;

/// No wait is longer, whatever else the machine does.
const LIMIT: Duration = Duration::from_mins(1);

fn node() -> Node {
    Node::builder()
        .env("NVSHARE_SIM_CARDS", "2")
        .env("NVSHARE_SIM_CARD_BYTES", "96M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "400000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .build()
}

/// A workload on one of the cards.
fn start(node: &Node, device: u32, flags: &str, seed: u32) -> Client {
    let flags = format!("--device {device} --bytes 64M --buffers 4 --seed {seed} {flags}");
    Client::start(&mut node.workload(&flags).with_shim())
}

/// What the agent says of the client that is this process.
fn client(agent: &Agent, client: &Client) -> Option<Value> {
    let state = agent.state();
    let of = state["clients"].as_array()?.iter().find(|of| of["process"]["pid"] == client.id())?;
    Some(of.clone())
}

fn is_unmanaged(agent: &Agent, of: &Client) -> bool {
    client(agent, of).is_some_and(|client| client["notes"].to_string().contains("as without an agent"))
}

/// How old the reading of a card is; `None`: it is not managed.
fn age(agent: &Agent, index: u64) -> Option<f64> {
    let state = agent.state();
    let device = state["devices"].as_array()?.iter().find(|device| device["index"] == index)?.clone();
    device["reading_age_seconds"].as_f64()
}

#[test]
fn one_card_that_hangs_stops_neither_the_other_nor_its_own_programs() {
    let node = node();
    let leases = ["--no-uprobes", "--reserve=2M", "--lease-floor=200ms", "--lease-ceiling=200ms"];
    let agent = node.agent(leases);
    let until = |name: &str| node.path().join(name);
    let flags = |name: &str| format!("--until {}", until(name).display());
    // On each card two that need more than it has.
    let mut well = [start(&node, 0, &flags("first"), 1), start(&node, 0, &flags("first"), 2)];
    let mut hung = [start(&node, 1, &flags("second"), 3), start(&node, 1, &flags("second"), 4)];
    // And have all they want: without an agent who asks for more than there is gets no more.
    let swaps = |of: &Client| {
        let client = client(&agent, of)?;
        let needed = client["devices"][0]["needed"].as_u64()?;
        (client["totals"]["stops"].as_u64() >= Some(1) && needed >= 64 << 20).then_some(())
    };
    for of in well.iter().chain(&hung) {
        wait_for("all take turns", LIMIT, || swaps(of));
    }

    let cards = Cards::open(node.card().expect("simulated cards"), &Config::default()).expect("the cards");
    cards.set_bus(1, Bus::Hung).expect("a file");
    let mut oldest: f64 = 0.0;
    wait_for("its clients are told", LIMIT, || {
        oldest = oldest.max(age(&agent, 0).expect("the first card is managed"));
        hung.iter().all(|of| is_unmanaged(&agent, of)).then_some(())
    });
    assert!(oldest < 5.0, "the other card was not read for {oldest} s");
    assert_eq!(age(&agent, 1), None);
    assert!(well.iter().all(|of| !is_unmanaged(&agent, of)));
    assert_eq!(agent.get("/readyz").expect("an answer").0, 200, "an agent with a card is ready");
    let turns = || agent.state()["switches"]["count"].as_u64().expect("a count");
    let before = turns();
    wait_for("turns are taken on the other card", LIMIT, || (turns() >= before + 2).then_some(()));

    // One of the two was swapped out: it brings its memory back itself as soon as the other has ended.
    std::fs::write(until("second"), "").expect("a file");
    for of in &mut hung {
        of.succeed();
    }
    let mut late = start(&node, 1, &flags("first"), 5);
    wait_for("a newcomer is told", LIMIT, || is_unmanaged(&agent, &late).then_some(()));

    cards.set_bus(1, Bus::There).expect("a file goes");
    wait_for("it is managed after all", LIMIT, || {
        let devices = client(&agent, &late)?["devices"].as_array()?.len();
        (devices == 1 && !is_unmanaged(&agent, &late)).then_some(())
    });
    std::fs::write(until("first"), "").expect("a file");
    late.succeed();
    for of in &mut well {
        of.succeed();
    }
    assert!(!agent.log().contains("running without a part"), "{}", agent.log());
    assert_eq!(node.violations(), [""; 0]);
}
