//! Arrays, memory of graphs, views: what the driver keeps for itself, beside memory that is out and in again.

use nvshare_testbed::wait_for;

use super::run::{LIMIT, Running, TURNS, agent, bare, card, cards, heard, hooked, needs, resident, run};

#[test]
fn what_is_in_arrays_and_graphs_comes_of_memory_that_is_out_and_in_again() {
    run(bare(&card("256M"), "arrays_in_turns", "")).assert_well("bare");
    run(hooked(&card("256M"), "arrays_in_turns", "swaps")).assert_well("under the library");
}

#[test]
fn arrays_of_every_form_leave_and_come_back_as_they_were() {
    let plain = card("256M");
    run(bare(&plain, "arrays_leave", "")).assert_well("bare");
    assert_eq!(plain.violations(), [""; 0]);
    let node = card("256M");
    run(hooked(&node, "arrays_leave", "swaps")).assert_well("under the library");
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn arrays_and_the_memory_of_graphs_are_told_under_their_names_as_long_as_they_live() {
    let kinds = [
        ("array", "array", 16),
        ("levels", "mipmapped", 20),
        ("context", "array", 16),
        ("graph", "graph", 16),
        ("left", "graph", 16),
    ];
    for (how, reason, bytes) in kinds {
        let node = card("256M");
        let agent = agent(&node, &[]);
        let mut program = Running::start(&mut hooked(&node, "stays", how));
        program.wait_for("made");
        let process = program.id();
        assert_eq!(heard(&agent, process, reason, bytes), bytes, "{how}");
        program.tell();
        program.wait_for("gone");
        assert_eq!(heard(&agent, process, reason, 0), 0, "{how}, which is gone");
        program.tell();
        program.end(LIMIT).assert_well(how);
    }
}

#[test]
fn who_makes_a_texture_of_memory_that_is_out_waits_until_it_is_in() {
    run(bare(&card("256M"), "textures", "")).assert_well("bare");
    run(hooked(&card("256M"), "textures", "swaps")).assert_well("under the library");
}

#[test]
fn what_graphs_keep_leaves_with_the_rest_and_is_theirs_again_before_they_run() {
    let node = card("256M");
    let agent = agent(&node, &TURNS);
    let mut program = Running::start(&mut hooked(&node, "graph_leaves", ""));
    program.wait_for("made");
    let process = program.id();
    assert_eq!(heard(&agent, process, "graph", 16), 16, "what the graph keeps");
    let needed = needs(&agent, process);
    node.swap("out", process);
    wait_for("all is out", LIMIT, || (resident(&agent, process)? == 0).then_some(()));
    assert_eq!(heard(&agent, process, "graph", 0), 0, "it was given back");
    assert_eq!(needs(&agent, process), needed, "the program needs it all the same");
    program.tell();
    node.swap("in", process);
    program.wait_for("again");
    assert_eq!(heard(&agent, process, "graph", 16), 16, "it has it again");
    assert_eq!(needs(&agent, process), needed);
    program.tell();
    program.wait_for("gone");
    assert_eq!(heard(&agent, process, "graph", 0), 0, "the program gave it back");
    program.tell();
    program.end(LIMIT).assert_well("a program whose graph allocates");
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn who_makes_an_array_waits_for_no_kernel_whoever_makes_it_in_the_end() {
    for command in [bare, hooked] {
        let node = card("256M");
        run(command(&node, "arrays_end", "kernel")).assert_well("beside a kernel");
        assert_eq!(node.violations(), [""; 0]);
    }
}

#[test]
fn arrays_of_few_rows_take_no_more_than_they_do_bare() {
    for command in [bare, hooked] {
        run(command(&card("256M"), "arrays_end", "low")).assert_well("few rows");
    }
}

#[test]
fn arrays_go_on_when_the_green_context_that_was_current_is_gone() {
    for (command, arguments) in [(bare as fn(&_, _, _) -> _, "green"), (hooked, "green swaps")] {
        let node = card("256M");
        run(command(&node, "arrays_end", arguments)).assert_well(arguments);
        assert_eq!(node.violations(), [""; 0]);
    }
}

#[test]
fn arrays_that_end_with_their_context_are_moved_no_more() {
    let node = card("256M");
    let mut command = hooked(&node, "arrays_end", "contexts swaps");
    // What else went with the context takes its time to be given back.
    command.env("NVSHARE_SIM_FAULTS", "cuMemAddressFree:*=slow/4");
    run(command).assert_well("contexts that end");
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn threads_make_and_end_arrays_while_everything_leaves_and_comes_back() {
    run(bare(&card("256M"), "arrays_hammer", "0 60")).assert_well("bare");
    for arguments in ["0 150 swaps", "1 100 swaps", "0 100 swaps captures"] {
        let node = cards(2, "256M").build();
        run(hooked(&node, "arrays_hammer", arguments)).assert_well(arguments);
        assert_eq!(node.violations(), [""; 0], "{arguments}");
    }
}

#[test]
fn programs_with_arrays_take_turns_on_a_card_that_has_room_for_one() {
    let node = card("160M");
    let agent = agent(&node, &TURNS);
    let programs: Vec<Running> =
        (0..2).map(|_| Running::start(&mut hooked(&node, "arrays_hammer", "0 150 alone"))).collect();
    for program in programs {
        program.end(LIMIT).assert_well("beside another");
    }
    assert_eq!(node.violations(), [""; 0]);
    drop(agent);
}
