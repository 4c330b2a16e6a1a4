//! Room on the card: what is said to be free can be had, and whoever needs memory gets it from those who can yield.

use nvshare_testbed::{Agent, Node};

use super::run::{LIMIT, Running, TURNS, agent, card, cards, hooked, run};

#[test]
fn all_that_is_said_to_be_free_can_be_taken_in_one_piece() {
    let node = cards(1, "1G").env("NVSHARE_SIM_CONTEXT_BYTES", "128M").build();
    let _agent = agent(&node, &[]);
    run(hooked(&node, "take_all", "free")).assert_well("all that is free");
}

/// Its own shadows and the neighbour's, once they are pinned, take 6 MiB of the card: more than the reserve for drivers.
#[test]
fn what_was_taken_whole_comes_back_although_pinned_memory_takes_some_of_the_card() {
    // Two GiB go to host memory that has to be filled first.
    let long = 4 * LIMIT;
    let node = card("2G");
    let _agent = agent(&node, &TURNS);
    let mut neighbour = Running::start(&mut hooked(&node, "driver_memory", "late 1100 3"));
    neighbour.wait_within(long, "context");
    let mut whole = Running::start(&mut hooked(&node, "take_all", "free told"));
    whole.wait_within(long, "round 1");
    neighbour.tell();
    neighbour.wait_within(long, "rests");
    let rounds = whole.said().matches("round ").count();
    whole.wait_within(long, &format!("round {}", rounds + 2));
    whole.tell();
    whole.end(long).assert_well("all that is free");
    neighbour.tell();
    neighbour.end(long).assert_well("the neighbour");
}

/// A neighbour holds most of the card and works on it; 600 MiB more are taken in this way.
fn beside_a_neighbour(how: &str) {
    let node = card("1G");
    let _agent = agent(&node, &[]);
    let mut neighbour = Running::start(&mut hooked(&node, "driver_memory", "fill 700 12"));
    neighbour.wait_for("ready");
    let wanted = Running::start(&mut hooked(&node, "driver_memory", &format!("{how} 600"))).end(LIMIT / 3);
    wanted.assert_well(how);
}

#[test]
fn an_allocation_waits_for_room_that_others_can_make() {
    beside_a_neighbour("plain");
}

#[test]
fn a_stream_ordered_allocation_waits_for_room_that_others_can_make() {
    beside_a_neighbour("pool");
}

#[test]
fn memory_that_is_mapped_by_the_program_waits_for_room_that_others_can_make() {
    beside_a_neighbour("vmm");
}

#[test]
fn a_launch_that_finds_no_memory_is_tried_again() {
    let node = card("1G");
    let _agent = agent(&node, &[]);
    let mut command = hooked(&node, "launch_out_of_memory", "");
    command.env("NVSHARE_SIM_FAULTS", "launch:4=oom");
    run(command).assert_well("a launch without memory");
}

/// The program's calls succeed although each of `calls` finds no memory at these times (of the engine's own, where it makes
/// such calls, none is among them).
#[track_caller]
fn tried_again(how: &str, times: &str, calls: &[&str]) {
    let node = card("1G");
    let _agent = agent(&node, &[]);
    let mut command = hooked(&node, "calls_out_of_memory", how);
    let faults: Vec<String> = calls.iter().map(|call| format!("{call}:{times}=oom")).collect();
    command.env("NVSHARE_SIM_FAULTS", faults.join(",")).env("NVSHARE_LOG", "debug");
    let ended = run(command);
    ended.assert_well(how);
    for call in calls {
        assert!(ended.said.contains(&format!("{call} is tried again")), "{call}: {}", ended.said);
    }
}

#[test]
fn a_graph_that_finds_no_memory_is_tried_again() {
    tried_again("graph", "1", &["cuGraphUpload", "cuGraphLaunch", "cuGraphInstantiateWithFlags"]);
}

/// What a launch needs nobody says: more is asked for than this card can ever have free.
#[test]
fn less_room_is_asked_for_where_so_much_can_never_be_had() {
    let node = card("96M");
    let _agent = agent(&node, &TURNS);
    let mut command = node.workload("--bytes 48M --buffers 4 --iterations 2 --memory graph").with_shim();
    command.env("NVSHARE_SIM_FAULTS", "cuGraphLaunch:1=oom");
    run(command).assert_well("a graph that allocates 3 MiB");
}

#[test]
fn what_is_loaded_lazily_and_finds_no_memory_is_tried_again() {
    let calls = ["cuLibraryLoadData", "cuLibraryGetModule", "cuLibraryGetKernel", "cuKernelGetFunction"];
    tried_again("lazy", "1", &calls);
    tried_again("lazy", "1-2", &["cuFuncLoad"]);
}

#[test]
fn a_stream_that_finds_no_memory_is_tried_again() {
    tried_again("stream", "9", &["cuStreamCreate", "cuStreamCreateWithPriority"]);
}

#[test]
fn a_link_that_finds_no_memory_is_tried_again() {
    tried_again("link", "7", &["cuLinkComplete"]);
}

#[test]
fn nothing_that_finds_no_memory_is_tried_twice_into_a_capture() {
    let node = card("1G");
    let _agent = agent(&node, &[]);
    let mut command = hooked(&node, "calls_out_of_memory", "capture");
    let faults = "cuLaunchCooperativeKernel:3=oom,cuGraphLaunch:2=oom,cuMemAllocAsync:1=oom";
    command.env("NVSHARE_SIM_FAULTS", faults);
    run(command).assert_well("calls into a capture");
}

/// Two that need more than the card together, one of which can pin no host memory: the driver refuses it each time.
#[test]
fn who_can_pin_nothing_keeps_what_it_has_and_its_neighbour_waits_for_it_and_does_not_fail() {
    let node = card("256M");
    let agent = agent(&node, &TURNS);
    let mut pinless = node.workload("--bytes 160M --buffers 4 --seconds 5").with_shim();
    pinless.env("NVSHARE_SIM_FAULTS", "cuMemHostRegister_v2:*=fail");
    let pinless = Running::start(&mut pinless);
    nvshare_testbed::wait_for("it holds its memory", LIMIT, || {
        let state = agent.state();
        let held = state["clients"][0]["devices"][0]["resident"].as_u64()?;
        (held >= 160 << 20).then_some(())
    });
    let neighbour = Running::start(&mut node.workload("--bytes 160M --buffers 4 --iterations 3").with_shim());
    let (pinless, neighbour) = (pinless.end(LIMIT), neighbour.end(LIMIT));
    eprintln!("{}\n{}", pinless.said, neighbour.said);
    pinless.assert_well("who can pin nothing");
    neighbour.assert_well("its neighbour");
}

/// Managed memory on the card is used, as NVML counts, and the driver moves it away for whoever needs room, as it does bare.
fn beside_managed_memory_that_rests(node: &Node, agent: &Agent, library: bool) {
    let flags = "--memory managed --bytes 192M --buffers 4 --iterations 2 --wait --progress";
    let mut workload = node.workload(flags);
    if library {
        workload = workload.with_shim();
    }
    let mut rests = Running::start(&mut workload);
    rests.wait_for("filled");
    run(node.workload("--bytes 192M --buffers 4 --iterations 3").with_shim())
        .assert_well("plain memory beside it");
    rests.tell();
    rests.end(LIMIT).assert_well("managed memory");
    assert!(agent.try_state().is_ok());
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn managed_memory_of_a_client_that_rests_keeps_nobody_from_the_card() {
    let node = card("256M");
    let agent = agent(&node, &TURNS);
    beside_managed_memory_that_rests(&node, &agent, true);
}

#[test]
fn managed_memory_of_a_program_without_the_library_keeps_nobody_from_the_card() {
    let Some(node) = super::run::observed(cards(1, "256M")) else { return };
    let agent = node.agent(TURNS);
    beside_managed_memory_that_rests(&node, &agent, false);
}
