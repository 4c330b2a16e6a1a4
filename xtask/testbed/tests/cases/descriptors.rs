//! The library's descriptors in programs that fork, and in programs that close what they did not open.

use super::run::{LIMIT, Running, TURNS, agent, bare, card, hooked, run, swapped};

#[test]
fn a_child_keeps_no_descriptor_of_ours() {
    run(bare(&card("256M"), "descriptors", "forks")).assert_well("bare");
    let node = card("256M");
    let alone = run(swapped(&node, "descriptors", "forks nvshare-counters", "20ms"));
    alone.assert_well("without an agent");
    let _agent = agent(&node, &TURNS);
    let managed = run(hooked(&node, "descriptors", "forks socket:"));
    managed.assert_well("beside an agent");
    for ended in [alone, managed] {
        assert!(!ended.said.contains("0 of ours"), "{}", ended.said);
    }
}

#[test]
fn what_a_program_opens_in_the_place_of_ours_is_left_alone() {
    let node = card("256M");
    let agent = agent(&node, &TURNS);
    // Two, so that each is stopped and swapped out now and then.
    let other = Running::start(&mut node.workload("--bytes 160M --buffers 4 --seconds 20").with_shim());
    let program = run(hooked(&node, "descriptors", "closes socket:"));
    program.assert_well("a program that closes everything");
    assert!(!program.said.contains("0 of ours"), "{}", program.said);
    other.end(LIMIT).assert_well("its neighbour");
    drop(agent);
}

#[test]
fn what_a_program_prints_into_a_closed_descriptor_is_nowhere_and_not_in_our_memory() {
    run(bare(&card("256M"), "descriptors", "stops_printing")).assert_well("bare");
    let node = card("256M");
    run(swapped(&node, "descriptors", "stops_printing", "50ms")).assert_well("without an agent");
    let agent = agent(&node, &TURNS);
    let neighbour = Running::start(&mut node.workload("--bytes 216M --buffers 4 --seconds 6").with_shim());
    // First its memory: of two that come at the same time and do not fit, one may be refused. Nor more than goes beside two contexts:
    // where the first could not go on the second is refused, too.
    nvshare_testbed::wait_for("the neighbour has its memory", LIMIT, || {
        (agent.try_state().ok()?["devices"][0]["needed"].as_u64()? >= 216 << 20).then_some(())
    });
    run(hooked(&node, "descriptors", "stops_printing")).assert_well("beside an agent");
    neighbour.end(LIMIT).assert_well("its neighbour");
    drop(agent);
}

#[test]
fn a_child_made_past_the_handlers_of_fork_does_not_wait_at_its_parents_gate() {
    let node = card("256M");
    run(bare(&node, "descriptors", "forks_past_handlers")).assert_well("bare");
    run(swapped(&node, "descriptors", "forks_past_handlers", "5ms")).assert_well("swapped");
}

#[test]
fn our_lines_harm_nobody_whatever_standard_error_is() {
    for what in ["broken", "full", "reopened", "small"] {
        eprintln!("{what}");
        let node = card("256M");
        run(bare(&node, "standard_error", what)).assert_well("bare");
        let mut said_much = swapped(&node, "standard_error", what, "20ms");
        said_much.env("NVSHARE_LOG", "debug");
        run(said_much).assert_well("with many lines");
    }
}
