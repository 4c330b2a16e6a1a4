//! Memory that processes share by CUDA IPC.

use std::time::Duration;

use nvshare_testbed::wait_for;

use super::run::{LIMIT, Running, TURNS, agent, as_bare, card, heard, hooked, resident, run, swapped};

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
fn where_the_owner_is_told_so_a_process_without_the_library_can_open_its_memory() {
    as_bare(
        || card("256M"),
        "shares",
        "0.01 apart",
        |node| {
            let mut command = swapped(node, "shares", "0.01 apart", "5ms");
            command.env("NVSHARE_IPC", "plain");
            command
        },
    );
    let node = card("256M");
    let agent = agent(&node, &TURNS);
    let mut command = hooked(&node, "lent", "");
    let mut program = Running::start(command.env("NVSHARE_IPC", "plain"));
    program.wait_for("named");
    assert_eq!(heard(&agent, program.id(), "plain", 16), 16, "it stays, and is told");
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

#[test]
fn memory_stays_while_it_is_lent_and_moves_between_whiles() {
    let node = card("256M");
    let agent = agent(&node, &TURNS);
    let mut program = Running::start(&mut hooked(&node, "lent", ""));
    program.wait_for("named");
    let owner = program.id();
    let exported = |expected| heard(&agent, owner, "exported", expected);
    assert_eq!(exported(0), 0, "nobody has opened it");
    program.tell();
    program.wait_for("open");
    assert_eq!(exported(8), 8, "it is open");
    node.swap("out", owner);
    let rest = |expected: u64| {
        wait_for("all that can leave is out", LIMIT, || {
            (resident(&agent, owner)? == expected << 20).then_some(())
        });
    };
    rest(8);
    program.tell();
    program.wait_for("closed");
    assert_eq!(exported(0), 0, "it was closed");
    rest(0);
    // Who opens it now waits until its owner may come back.
    program.tell();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!program.said().contains("open again"));
    node.swap("in", owner);
    program.wait_for("open again");
    assert_eq!(exported(8), 8, "it is open again");
    program.tell();
    program.wait_for("lost");
    // Its sockets are gone, and what they led to: it can use the memory as before.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(exported(8), 8, "who has lost its sockets still has it open");
    program.tell();
    program.wait_for("written");
    program.tell();
    program.wait_for("ended");
    assert_eq!(exported(0), 0, "its process has ended");
    program.tell();
    program.end(LIMIT).assert_well("a program that lends memory");
    assert_eq!(node.violations(), [""; 0]);
}
