//! Every kind of memory that the workload knows, beside an agent and swapped out by order: nothing of it is left on the card, or
//! what this table names, and the agent says why.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, Instant};

use nvshare_testbed::{Agent, Client, Node, wait_for};
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(2);
const BYTES: u64 = 48 << 20;

/// A `--memory` of the workload.
struct Family {
    name: &'static str,
    /// Whether the library moves what the workload computes over.
    moves: bool,
    /// The only reason for which anything stays.
    stays: Option<&'static str>,
}

const FAMILIES: [Family; 7] = [
    Family { name: "device", moves: true, stays: None },
    Family { name: "vmm", moves: true, stays: None },
    Family { name: "stream-ordered", moves: true, stays: None },
    // Another process could have the pool's physical pages.
    Family { name: "exportable-pool", moves: false, stays: Some("stream_ordered") },
    // What graphs allocated and freed the driver would keep for the next launch; it is trimmed.
    Family { name: "graph", moves: true, stays: None },
    // While the other process has a buffer open that stays (`exported`); it closes each.
    Family { name: "ipc", moves: true, stays: None },
    // The driver's own to move: it is in an account of its own, and nobody's obligation.
    Family { name: "managed", moves: false, stays: None },
];

/// What the workload's `--memory` takes, by its own words.
fn known(node: &Node) -> Vec<String> {
    let output = node.workload("--memory none-such").output().expect("the workload runs");
    let said = String::from_utf8(output.stderr).expect("text");
    let list = said.split_once("possible values: ").and_then(|(_, rest)| rest.split_once(']'));
    let (list, _) = list.unwrap_or_else(|| panic!("it does not say what it takes: {said}"));
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_table_has_every_kind_of_memory() {
    let mut known = known(&Node::new());
    let mut table: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    known.sort();
    table.sort_unstable();
    assert_eq!(table, known);
}

/// What the agent publishes of the client.
fn seen(agent: &Agent, client: &Client) -> Option<Value> {
    let state = agent.state();
    let mut clients = state["clients"].as_array()?.iter();
    clients.find(|seen| seen["process"]["pid"] == client.id()).cloned()
}

/// The reasons for which memory stays.
fn reasons(seen: &Value) -> BTreeMap<&str, u64> {
    let reasons = seen["devices"][0]["unswappable_reasons"].as_object().into_iter().flatten();
    reasons
        .filter_map(|(why, bytes)| Some((why.as_str(), bytes.as_u64().filter(|bytes| *bytes > 0)?)))
        .collect()
}

/// Whether it stands still, without anything that may not stay.
fn is_out(family: &Family, seen: &Value) -> bool {
    let stands =
        seen["held_out"] == true && ["waiting", "stopped"].map(Value::from).contains(&seen["activity"]);
    let device = &seen["devices"][0];
    let left = device["resident"] == 0 && (!family.moves || device["swapped"].as_u64() >= Some(BYTES));
    stands && left && reasons(seen).keys().copied().eq(family.stays)
}

/// Swaps a client out while it works, and says what is left.
fn swapped_out(family: &Family) {
    let node =
        Node::builder().env("NVSHARE_SIM_CARD_BYTES", "256M").env("NVSHARE_EXTENT_BYTES", "4M").build();
    let agent = node.agent(["--reserve", "2M", "--no-uprobes"]);
    let (until, errors) = (node.path().join("enough"), node.path().join("errors"));
    let flags = format!("--bytes {BYTES} --buffers 4 --progress --memory {} --until", family.name);
    let mut command = node.workload(&flags).with_shim();
    command.arg(&until).stderr(File::create(&errors).expect("a file"));
    let mut client = Client::start(&mut command);
    let said = || std::fs::read_to_string(&errors).expect("what it said");
    wait_for(&format!("{} is used", family.name), LIMIT, || said().contains("iteration 2").then_some(()));
    node.swap("out", client.id());
    let mut last = Value::Null;
    let end = Instant::now() + LIMIT / 4;
    while !is_out(family, &last) {
        assert!(Instant::now() < end, "{}: {:?} may stay; {last}", family.name, family.stays);
        std::thread::sleep(Duration::from_millis(20));
        last = seen(&agent, &client).unwrap_or_default();
    }
    println!("{:16} stays: {:?}", family.name, reasons(&last));
    node.swap("in", client.id());
    File::create(&until).expect("a file");
    client.succeed();
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn nothing_stays_of_a_client_that_is_out_but_what_the_table_says() {
    FAMILIES.iter().for_each(swapped_out);
}
