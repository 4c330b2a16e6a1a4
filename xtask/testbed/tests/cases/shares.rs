//! Memory that processes share by CUDA IPC.

use super::run::{TURNS, agent, as_bare, card, hooked, run, swapped};

#[test]
fn memory_can_be_shared_with_another_process_where_no_agent_runs() {
    as_bare(|| card("256M"), "ipc", "", |node| hooked(node, "ipc", ""));
}

#[test]
fn what_one_process_writes_the_other_reads_however_often_memory_moves() {
    as_bare(|| card("256M"), "shares", "", |node| hooked(node, "shares", ""));
    let node = card("256M");
    run(swapped(&node, "shares", "0.01", "5ms")).assert_well("under forced swaps");
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn processes_that_share_memory_take_turns() {
    let node = card("128M");
    let agent = agent(&node, &TURNS);
    // What is shared stays: beside that it has room, and beside what moves it has not.
    let mut beside = node.workload("--bytes 48M --iterations 60").with_shim();
    let beside = super::run::Running::start(&mut beside);
    run(hooked(&node, "shares", "0.02")).assert_well("beside another one");
    beside.end(super::run::LIMIT).assert_well("the one beside");
    drop(agent);
    assert_eq!(node.violations(), [""; 0]);
}
