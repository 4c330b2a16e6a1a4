//! Each byte counts once, for as long as it lives.

use std::time::Duration;

use super::run::{Running, TURNS, agent, as_bare, bare, card, cards, heard, hooked, run, swapped};

#[test]
fn managed_memory_is_no_memory_of_the_card() {
    let node = card("1G");
    let _agent = agent(&node, &[]);
    run(hooked(&node, "managed_account", "")).assert_well("managed memory of twice the card");
}

#[test]
fn mapped_memory_counts_once_before_and_after_its_handle_is_released() {
    let node = card("1G");
    let _agent = agent(&node, &[]);
    run(hooked(&node, "released_while_mapped", "")).assert_well("memory that is mapped and released");
}

#[test]
fn graphs_that_are_destroyed_hold_nothing() {
    let node = card("1G");
    run(bare(&node, "graphs_give_back", "")).assert_well("bare");
    let _agent = agent(&node, &[]);
    run(hooked(&node, "graphs_give_back", "")).assert_well("under the library");
    run(swapped(&node, "graphs_give_back", "", "20ms")).assert_well("under the library, swapped");
}

#[test]
fn free_memory_does_not_grow_and_the_card_keeps_its_size_while_neighbours_end() {
    let node = cards(1, "1G").env("NVSHARE_SIM_CONTEXT_BYTES", "48M").build();
    let _agent = agent(&node, &[]);
    let neighbours: Vec<Running> = (0..3)
        .map(|_| {
            let mut workload = node.workload("--bytes 100M --buffers 2 --seconds 4").with_shim();
            Running::start(&mut workload)
        })
        .collect();
    // They have begun when it asks first, and ended when it asks again.
    std::thread::sleep(Duration::from_millis(1500));
    run(hooked(&node, "profile", "40 5")).assert_well("a program that measures its own use");
    drop(neighbours);
}

#[test]
fn a_limit_is_the_size_of_the_card_in_every_answer() {
    let node = card("256M");
    let _agent = agent(&node, &TURNS);
    let mut program = Running::start(&mut hooked(&node, "limit", ""));
    program.wait_for("pid");
    let mut order = node.client(node.artifacts().agent());
    order.args(["set", "limit", &format!("pid:{}", program.id()), "96M", "--admin-socket"]);
    order.arg(node.admin_socket());
    // The agent may not have met it yet.
    nvshare_testbed::wait_for("the limit is ordered", super::run::LIMIT, || {
        order.output().expect("the agent's program runs").status.success().then_some(())
    });
    // A message of the agent has to arrive.
    std::thread::sleep(Duration::from_millis(500));
    program.tell();
    program.end(super::run::LIMIT).assert_well("a program with a limit");
}

#[test]
fn questions_have_one_answer_wherever_the_memory_is() {
    as_bare(
        || card("1G"),
        "questions_while_out",
        "",
        |node| swapped(node, "questions_while_out", "", "20ms"),
    );
}

/// What the agent hears of memory of the one client that stays because others know where it is, in MiB, when it says that
/// it is ready.
fn kept(how: &str) -> u64 {
    let node = card("256M");
    let agent = agent(&node, &[]);
    let mut program = Running::start(&mut hooked(&node, "kept", how));
    program.wait_for("ready");
    let expected = if matches!(how, "tokens" | "endpoint") { 8 } else { 0 };
    let kept = heard(&agent, program.id(), "exported", expected);
    program.tell();
    program.end(super::run::LIMIT).assert_well(how);
    kept
}

#[test]
fn memory_whose_tokens_are_told_or_that_is_bound_stays_and_no_other() {
    assert_eq!(["nothing", "tokens", "endpoint", "multicast"].map(kept), [0, 8, 8, 0]);
}

#[test]
fn memory_that_the_driver_binds_to_no_multicast_object_is_refused_as_it_is_bare() {
    let node = card("256M");
    for mut command in [bare(&node, "kept", "multicast"), hooked(&node, "kept", "multicast")] {
        let mut program = Running::start(&mut command);
        program.wait_for("ready");
        program.tell();
        program.end(super::run::LIMIT).assert_well("memory that cannot be bound");
    }
}
