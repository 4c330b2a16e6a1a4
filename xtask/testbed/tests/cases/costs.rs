//! Costs that must not grow with what a program has.

use std::collections::BTreeMap;
use std::process::Command;

use nvshare_testbed::Node;

use super::programs;
use super::run::{TURNS, agent, bare, card, hooked, run, swapped};

#[test]
fn fingerprints_are_tried_again_after_a_failed_module_load() {
    let node = card("1G");
    let mut command = swapped(&node, "fingerprints_come_back", "", "200ms");
    command.env("NVSHARE_SIM_FAULTS", "module:1=oom").env("NVSHARE_LOG", "debug");
    let ended = run(command);
    ended.assert_well("a program under forced swaps");
    let told = ended.said.lines().find(|line| line.contains("every swap-out copies everything"));
    assert_eq!(told, None);
}

#[test]
fn allocating_and_freeing_again_and_again_costs_few_messages() {
    if Command::new("strace").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no strace (Debian: apt-get install strace)");
        return;
    }
    for kind in ["ordered", "plain", "mapped"] {
        let node = card("1G");
        let _agent = agent(&node, &TURNS);
        let calls = node.path().join("calls");
        let mut command = node.client("strace");
        command.args(["-f", "-e", "trace=sendmsg", "-o"]).arg(&calls).arg("-E");
        command.arg(format!("LD_PRELOAD={}", node.artifacts().shim().display()));
        command.arg(programs::program("messages_per_allocation")).args(["2000", kind]);
        let ended = run(command);
        ended.assert_well(kind);
        let text = std::fs::read_to_string(calls).expect("what strace wrote");
        let messages = text.lines().filter(|line| line.contains("sendmsg(")).count();
        assert!(messages > 0, "{kind}: none was seen, not even the first");
        assert!(messages < 200, "{kind}: {messages} messages for 2000 pairs");
    }
}

/// What the program measured, by name, in nanoseconds.
fn measured(node: &Node, shim: bool) -> BTreeMap<String, f64> {
    let command = if shim { hooked(node, "growing_costs", "") } else { bare(node, "growing_costs", "") };
    let ended = run(command);
    ended.assert_well("a program that measures");
    let figures = ended.said.lines().filter_map(|line| line.split_once(' '));
    figures.filter_map(|(name, figure)| Some((name.to_owned(), figure.parse().ok()?))).collect()
}

#[test]
fn frees_questions_and_waits_cost_no_more_the_more_there_is() {
    let node = card("1G");
    let alone = measured(&node, false);
    let under = measured(&node, true);
    for (few, many) in [
        ("free-3-streams", "free-195-streams"),
        ("ask-2-extents", "ask-128-extents"),
        ("wait", "wait-while-captured"),
    ] {
        let (bare, grows) = (alone[many] / alone[few], under[many] / under[few]);
        assert!(grows < (1.5 * bare).max(2.0), "{few} to {many}: x{grows:.1}, bare x{bare:.1}");
    }
}
