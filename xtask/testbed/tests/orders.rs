//! Orders for single clients, as an administrator types them: the agent's own commands, a real agent, real shims.

use std::process::{Command, Output};
use std::time::Duration;

use nvshare_testbed::{Agent, Client, Node, wait_for};
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(2);
const LEASES: [&str; 6] = ["--lease-floor", "200ms", "--lease-ceiling", "200ms", "--reserve", "2M"];

fn node() -> Node {
    Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "96M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "200000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .build()
}

fn client(node: &Node, flags: &str) -> Client {
    Client::start(&mut node.workload(&format!("--buffers 4 {flags}")).with_shim())
}

/// `nvshare-agent` with these words.
fn ask(node: &Node, words: &str) -> Output {
    let mut command = Command::new(node.artifacts().agent());
    command
        .args(words.split(' '))
        .arg("--admin-socket")
        .arg(node.admin_socket())
        .output()
        .expect("nvshare-agent")
}

fn done(node: &Node, words: &str) {
    let output = ask(node, words);
    assert!(output.status.success(), "{words}: {output:?}");
}

/// What the agent publishes of the client.
fn seen(agent: &Agent, client: &Client) -> Option<Value> {
    let state = agent.state();
    state["clients"].as_array()?.iter().find(|seen| seen["process"]["pid"] == client.id()).cloned()
}

fn held(client: &Value, what: &str) -> u64 {
    client["devices"].as_array().into_iter().flatten().filter_map(|device| device[what].as_u64()).sum()
}

#[test]
fn a_client_swapped_out_by_order_waits_says_why_and_finds_its_bytes() {
    let node = node();
    let agent = node.agent(LEASES);
    let mut client = client(&node, "--bytes 32M --seconds 10");
    wait_for("the client runs", LIMIT, || {
        seen(&agent, &client)
            .filter(|seen| held(seen, "resident") >= 32 << 20 && seen["activity"] == "running")
    });
    let pid = client.id();
    done(&node, &format!("swap out pid:{pid}"));
    let seen_out = wait_for("it is out, all of it, and wants to run", LIMIT, || {
        seen(&agent, &client).filter(|seen| {
            held(seen, "resident") == 0 && held(seen, "granted") == 0 && seen["activity"] == "waiting"
        })
    });
    assert!(held(&seen_out, "swapped") >= 32 << 20, "{seen_out}");
    let why = seen_out["notes"][0].as_str().expect("a reason");
    assert!(why.contains("administrator") && why.contains("nvshare-agent swap in"), "{why}");
    let status = ask(&node, "status");
    assert!(String::from_utf8_lossy(&status.stdout).contains("held out"), "{status:?}");
    // The card is empty and it stays out.
    let stays = seen(&agent, &client).expect("the client");
    assert_eq!((held(&stays, "resident"), stays["held_out"].as_bool()), (0, Some(true)));

    let refused = ask(&node, &format!("pin pid:{pid}"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("swap in"), "{refused:?}");

    done(&node, &format!("swap in pid:{pid}"));
    wait_for("it runs again", LIMIT, || {
        seen(&agent, &client).filter(|seen| held(seen, "resident") >= 32 << 20)
    });
    client.succeed();
    assert_eq!(node.violations(), Vec::<String>::new());
}

#[test]
fn a_pinned_client_is_not_stopped_while_others_take_turns() {
    let node = node();
    let agent = node.agent(LEASES);
    let mut pinned = client(&node, "--bytes 32M --seconds 8");
    wait_for("the first is there", LIMIT, || seen(&agent, &pinned));
    done(&node, &format!("pin pid:{}", pinned.id()));
    let mut others = [1, 2].map(|seed| client(&node, &format!("--bytes 40M --seconds 8 --seed {seed}")));
    wait_for("the others take turns", LIMIT, || {
        (agent.state()["switches"]["count"].as_u64() >= Some(3)).then_some(())
    });
    let seen = seen(&agent, &pinned).expect("the pinned one");
    assert_eq!((seen["pinned"].as_bool(), seen["totals"]["stops"].as_u64()), (Some(true), Some(0)), "{seen}");
    let refused = wait_for("the others need what they need", LIMIT, || {
        done(&node, &format!("unpin pid:{}", others[1].id()));
        let pins = others.each_ref().map(|other| ask(&node, &format!("pin pid:{}", other.id())));
        pins.into_iter().find(|pin| !pin.status.success())
    });
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("unpin") && why.contains("MiB"), "{why}");
    for other in &others {
        done(&node, &format!("unpin pid:{}", other.id()));
    }
    pinned.succeed();
    for client in &mut others {
        client.succeed();
    }
    assert_eq!(node.violations(), Vec::<String>::new());
}

#[test]
fn what_is_set_for_a_client_is_seen_everywhere() {
    let node = node();
    let agent = node.agent(LEASES);
    let mut client = client(&node, "--bytes 8M --seconds 4");
    let number = wait_for("the client is there", LIMIT, || seen(&agent, &client)?["client"].as_u64());
    done(&node, &format!("set priority {number} high"));
    done(&node, &format!("set weight pid:{} 2.5", client.id()));
    done(&node, &format!("set limit {number} 64M"));
    let seen = wait_for("the orders are published", LIMIT, || {
        seen(&agent, &client)
            .filter(|seen| seen["ordered_limit"] == 64 << 20 && held(seen, "limit") == 64 << 20)
    });
    assert_eq!((&seen["priority"], seen["weight"].as_f64()), (&Value::from("high"), Some(2.5)));
    let metrics = agent.get("/metrics").expect("the metrics").1;
    let series = |name: &str, more: &str, value: &str| {
        metrics.lines().any(|line| line.starts_with(name) && line.contains(more) && line.ends_with(value))
    };
    assert!(series("nvshare_client_weight{", &format!("client=\"{number}\""), " 2.5"), "{metrics}");
    assert!(series("nvshare_client_priority{", "priority=\"high\"", " 1"), "{metrics}");
    let status = ask(&node, "status");
    assert!(
        String::from_utf8_lossy(&status.stdout).contains("high, weight 2.5, at most 64 MiB"),
        "{status:?}"
    );

    let unknown = ask(&node, "set priority 4242 low");
    assert_eq!(unknown.status.code(), Some(2));
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(said.contains("no client 4242") && said.contains(&format!("pid:{}", client.id())), "{said}");
    client.succeed();
    assert_eq!(ask(&node, &format!("swap out pid:{}", client.id())).status.code(), Some(2));
}
