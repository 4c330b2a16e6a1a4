//! Driver calls past the library, with real uprobes: found also by an agent that came later than the program, and known to
//! all that come after it.

use nvshare_testbed::{Agent, Node, wait_for};
use serde_json::Value;

use super::run::{LIMIT, Running, TURNS, cards, hooked, observed};

/// What the agent notes of the only client, once there is one.
fn notes(agent: &Agent) -> Option<String> {
    let state: Value = agent.try_state().ok()?;
    let client = state["clients"].as_array()?.first()?.clone();
    Some(client["notes"].to_string())
}

fn is_known(agent: &Agent) -> bool {
    notes(agent).is_some_and(|notes| notes.contains("its memory is never moved"))
}

/// Another agent on the same node, with the client of the last one.
fn next(node: &Node, mut last: Agent) -> Agent {
    last.kill();
    drop(last);
    let agent = node.agent(TURNS);
    wait_for("the client is back", LIMIT, || notes(&agent));
    agent
}

#[test]
fn an_agent_that_came_later_finds_fewer_calls_past_the_library_than_were_made_through_it() {
    let Some(node) = observed(cards(1, "256M")) else { return };
    let agent = node.agent(TURNS);
    let mut program = Running::start(&mut hooked(&node, "bypass", "1000 900"));
    program.wait_for("ready");
    wait_for("the client", LIMIT, || notes(&agent));
    let agent = next(&node, agent);
    assert!(!is_known(&agent), "{:?}", notes(&agent));
    program.tell();
    program.wait_for("bypassed");
    wait_for("the bypass is found", LIMIT, || is_known(&agent).then_some(()));
    // Nothing is called any more: the next agent has it from the last one, and from the library.
    let agent = next(&node, agent);
    assert!(is_known(&agent), "{:?}", notes(&agent));
    program.tell();
    program.end(LIMIT).assert_well("a program with a second driver");
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn a_program_that_makes_all_its_calls_through_the_library_keeps_its_good_name_through_restarts() {
    let Some(node) = observed(cards(1, "256M")) else { return };
    let mut agent = node.agent(TURNS);
    let over = node.path().join("over");
    let flags = format!("--bytes 32M --buffers 4 --until {}", over.display());
    let program = Running::start(&mut node.workload(&flags).with_shim());
    wait_for("the client", LIMIT, || notes(&agent));
    for _ in 0..3 {
        agent = next(&node, agent);
        std::thread::sleep(std::time::Duration::from_millis(600));
        assert!(!is_known(&agent), "{:?}", notes(&agent));
    }
    std::fs::write(over, "").expect("a file");
    program.end(LIMIT).assert_well("a workload");
}
