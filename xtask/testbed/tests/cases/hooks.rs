//! Others who listen: hooks below ours, and what the observer books of processes without the library.

use std::fs;
use std::time::Duration;

use nvshare_testbed::{Agent, Node, wait_for};

use super::programs;
use super::run::{LIMIT, Running, TURNS, bare, card, cards, hooked, observed, run};

#[test]
fn hooks_in_the_driver_itself_hear_of_every_allocation_and_free() {
    programs::library("inline_hooks", "HOOKS");
    let node = card("256M");
    run(hooked(&node, "inline_hooks", "1 near")).assert_well("a program that hooks the driver inline");
}

/// What the agent says that this process, which has no library, allocated, in MiB.
fn allocated_mib(agent: &Agent, process: u32) -> f64 {
    let (_, text) = agent.get("/api/v1/state").expect("the state");
    let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let foreign = state["processes"].as_array().expect("a list of processes without the library");
    let of = foreign.iter().find(|of| of["process"]["pid"] == process).expect("the process is listed");
    of["allocated"].as_f64().expect("bytes") / 1024.0 / 1024.0
}

/// What is booked of a program that maps memory in this way; `None` where nothing can be observed.
fn booked(how: &str) -> Option<f64> {
    let node = observed(cards(1, "1G"))?;
    let agent = node.agent(TURNS);
    let mut program = Running::start(&mut bare(&node, "foreign", how));
    program.wait_for("ready");
    // The observer reports a few times a second.
    std::thread::sleep(Duration::from_secs(2));
    Some(allocated_mib(&agent, program.id()))
}

#[test]
fn memory_that_a_foreign_process_maps_is_booked_too() {
    let Some(booked) = booked("") else { return };
    assert!((booked - 30.0).abs() < 0.1, "of 30 MiB {booked} are booked");
}

#[test]
fn a_foreign_process_that_gives_one_of_two_references_back_keeps_its_memory_in_the_books() {
    let Some(booked) = booked("release") else { return };
    assert!((booked - 30.0).abs() < 0.1, "of 30 MiB {booked} are booked");
}

#[test]
fn one_process_that_maps_many_libraries_does_not_blind_the_observer_for_others() {
    let Some(node) = observed(cards(1, "256M")) else { return };
    let small = node.path().join("small");
    let stripped =
        std::process::Command::new("strip").arg("-o").arg(&small).arg(node.artifacts().libcuda()).status();
    assert!(stripped.expect("binutils' strip").success());
    let _agent = node.agent(TURNS);
    let copies: Vec<String> = (0..70)
        .map(|number| {
            let copy = node.card().expect("a simulated card").join(format!("libcuda.so.{number}"));
            fs::copy(&small, &copy).expect("a copy of the driver");
            copy.to_string_lossy().into_owned()
        })
        .collect();
    let mut many = Running::start(&mut bare(&node, "many_libraries", &copies.join(" ")));
    many.wait_for("ready");
    std::thread::sleep(Duration::from_secs(3));
    let late = node.path().join("late");
    fs::create_dir(&late).expect("a directory");
    fs::copy(node.artifacts().libcuda(), late.join("libcuda.so.1")).expect("a copy of the driver");
    let mut command = bare(&node, "idle", "60");
    command.env("LD_LIBRARY_PATH", &late);
    let mut newcomer = Running::start(&mut command);
    newcomer.wait_for("ready");
    wait_for("a library that was loaded after 70 others is observed", 2 * LIMIT, || {
        probes(&node).contains("/late/libcuda.so.1").then_some(())
    });
}

fn probes(node: &Node) -> String {
    let mut command = node.client(node.artifacts().agent());
    command.args(["probes", "--admin-socket"]).arg(node.admin_socket());
    String::from_utf8_lossy(&command.output().expect("the agent's program runs").stdout).into_owned()
}
