//! What an administrator ordered, and what an agent learned, when the agent is killed or stopped and another one comes: real
//! shims live on beside both.

use std::process::Command;

use nvshare_testbed::{Agent, Client, Node, wait_for};
use serde_json::Value;

use crate::home::LIMIT;

const LEASES: [&str; 7] =
    ["--lease-floor", "200ms", "--lease-ceiling", "200ms", "--reserve", "2M", "--no-uprobes"];

fn done(node: &Node, words: &str) {
    let mut command = Command::new(node.artifacts().agent());
    let output =
        command.args(words.split(' ')).arg("--admin-socket").arg(node.admin_socket()).output().unwrap();
    assert!(output.status.success(), "{words}: {output:?}");
}

fn seen(agent: &Agent, client: &Client) -> Option<Value> {
    let state = agent.try_state().ok()?;
    state["clients"].as_array()?.iter().find(|seen| seen["process"]["pid"] == client.id()).cloned()
}

fn held(client: &Value, what: &str) -> u64 {
    client["devices"].as_array().into_iter().flatten().filter_map(|device| device[what].as_u64()).sum()
}

/// What the clients did by their own totals, together: times they were stopped, bytes swapped out.
fn done_by(agent: &Agent, clients: &[&Client]) -> [u64; 2] {
    ["stops", "copied_out"].map(|what| {
        let all = clients.iter().filter_map(|client| seen(agent, client)?["totals"][what].as_u64());
        all.sum()
    })
}

/// The agent's own sums of the same.
fn counted(agent: &Agent) -> [u64; 2] {
    let page = agent.get("/metrics").unwrap().1;
    ["nvshare_stops_total", "nvshare_swap_bytes_total{direction=\"out\"}"].map(|series| {
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        line.and_then(|count| count.trim().parse::<f64>().ok()).unwrap_or_else(|| panic!("{page}")) as u64
    })
}

/// What the agent has written of the client for the next one.
fn kept(node: &Node, client: &Client) -> Option<Value> {
    let file = node.admin_socket().with_file_name(nvshare_agent::keep::FILE);
    let kept: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    kept["clients"].as_array()?.iter().find(|kept| kept["process"]["pid"] == client.id()).cloned()
}

#[test]
fn orders_and_what_was_learned_survive_an_agent_that_is_killed_and_still_act() {
    let node = Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "96M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "200000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .build();
    let mut first = node.agent(LEASES);
    let over = node.path().join("over");
    let start = |bytes: &str, seed| {
        let flags = format!("--buffers 4 --bytes {bytes} --seed {seed} --until {}", over.display());
        Client::start(&mut node.workload(&flags).with_shim())
    };
    // They take turns, so that there are stops and run times to remember.
    let (ordered, out, other) = (start("32M", 1), start("40M", 2), start("40M", 3));
    let stops = |agent: &Agent, client: &Client| seen(agent, client)?["totals"]["stops"].as_u64();
    wait_for("one of them was stopped", LIMIT, || {
        [&ordered, &out, &other].into_iter().find(|client| stops(&first, client) >= Some(1)).map(Client::id)
    });
    let pid = ordered.id();
    done(&node, &format!("swap out pid:{}", out.id()));
    done(&node, &format!("set limit pid:{} 64M", out.id()));
    done(&node, &format!("set priority pid:{pid} high"));
    done(&node, &format!("set weight pid:{pid} 2.5"));
    done(&node, &format!("pin pid:{pid}"));
    let stopped = wait_for("all of it is kept", LIMIT, || {
        let known = kept(&node, &ordered)?;
        let all = known["pinned"] == true
            && known["weight"] == 2.5
            && known["runtime"].as_f64()? > 0.0
            && kept(&node, &out)?["held_out"] == true
            && kept(&node, &out)?["limit"] == 64 << 20;
        let stopped = [&ordered, &out, &other].map(|client| kept(&node, client)?["totals"][0].as_u64());
        (all && stopped.iter().flatten().sum::<u64>() >= 1).then_some(stopped)
    });

    let all = [&ordered, &out, &other];
    let copied = wait_for("something was copied", LIMIT, || {
        let [_, copied] = done_by(&first, &all);
        (copied > 0).then_some(copied)
    });
    first.kill();
    drop(first);
    let second = node.agent(LEASES);
    let back = wait_for("the client is back and runs", LIMIT, || {
        seen(&second, &ordered).filter(|seen| seen["activity"] == "running")
    });
    assert_eq!(
        (&back["priority"], back["weight"].as_f64(), back["pinned"].as_bool()),
        (&Value::from("high"), Some(2.5), Some(true)),
        "{back}"
    );
    for (client, before) in [&ordered, &out, &other].into_iter().zip(stopped) {
        wait_for("it is back, with what it was stopped before", LIMIT, || {
            stops(&second, client).filter(|stops| Some(*stops) >= before)
        });
    }
    // What was done before is not counted by the new one as well.
    let [new_stops, new_copied] = counted(&second);
    let [all_stops, all_copied] = done_by(&second, &all);
    assert!(all_stops - new_stops >= stopped.iter().flatten().sum(), "{new_stops} of {all_stops}");
    assert!(all_copied - new_copied >= copied, "{new_copied} of {all_copied}, {copied} before");
    let pinned_since = stops(&second, &ordered);
    // They act: what was ordered out stays out, beside much that is free, and has no more than its limit.
    let stays = wait_for("the one that is held out is back, and out", LIMIT, || {
        seen(&second, &out)
            .filter(|seen| seen["held_out"] == true && held(seen, "limit") > 0 && held(seen, "resident") == 0)
    });
    assert_eq!(stays["ordered_limit"], 64 << 20, "{stays}");
    assert!(held(&stays, "limit") <= 64 << 20, "{stays}");
    // And the one that is pinned is not stopped while the others take turns.
    done(&node, &format!("swap in pid:{}", out.id()));
    wait_for("the others take turns", LIMIT, || {
        (second.state()["switches"]["count"].as_u64()? >= 3).then_some(())
    });
    let later = seen(&second, &ordered).unwrap();
    assert_eq!(
        (later["totals"]["stops"].as_u64(), &later["pinned"]),
        (pinned_since, &Value::from(true)),
        "{later}"
    );
    done(&node, &format!("unpin pid:{pid}"));
    std::fs::write(&over, "").unwrap();
    for mut client in [ordered, out, other] {
        client.succeed();
    }
    assert_eq!(node.violations(), Vec::<String>::new());
}

#[test]
fn orders_that_were_answered_just_before_the_agent_is_stopped_survive_it() {
    let node = Node::builder().env("NVSHARE_SIM_CARD_BYTES", "96M").build();
    let first = node.agent(LEASES);
    let over = node.path().join("over");
    let flags = format!("--buffers 4 --bytes 32M --until {}", over.display());
    let mut client = Client::start(&mut node.workload(&flags).with_shim());
    wait_for("the client is there", LIMIT, || seen(&first, &client));
    // The first is written at once, the others by the way: so soon after it there is no time for that before the end.
    let pid = client.id();
    for words in
        ["set priority pid:PID low", "set weight pid:PID 2.5", "set limit pid:PID 64M", "pin pid:PID"]
    {
        done(&node, &words.replace("PID", &pid.to_string()));
    }
    assert!(first.stop().success());

    let second = node.agent(LEASES);
    let back = wait_for("the client is back", LIMIT, || seen(&second, &client));
    assert_eq!(
        (&back["priority"], &back["weight"], &back["ordered_limit"], &back["pinned"]),
        (&"low".into(), &2.5.into(), &(64 << 20).into(), &true.into()),
        "{back}"
    );
    std::fs::write(&over, "").unwrap();
    client.succeed();
    assert_eq!(node.violations(), Vec::<String>::new());
}
