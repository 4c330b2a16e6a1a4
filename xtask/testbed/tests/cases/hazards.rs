//! What is dangerous to whoever is preloaded: signals, exits without handlers, a driver that is closed and opened again, children
//! that run in their parent's memory.

use super::run::{LIMIT, Running, agent, as_bare, card, hooked, swapped};

/// Bare, under the library, and with everything swapped all the time.
#[track_caller]
fn whatever_happens(program: &str) {
    as_bare(|| card("256M"), program, "", |node| hooked(node, program, ""));
    let node = card("256M");
    super::run::run(swapped(&node, program, "", "3ms")).assert_well("under forced swaps");
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn a_signal_handler_may_call_the_driver_and_runs_on_no_thread_of_the_library() {
    whatever_happens("signals");
}

#[test]
fn a_driver_that_is_closed_and_opened_again_is_the_same() {
    whatever_happens("reopened");
}

#[test]
fn a_child_that_runs_in_its_parents_memory_disturbs_nothing() {
    whatever_happens("vforks");
}

#[test]
fn an_exit_in_the_middle_of_a_drain_or_a_copy_ends_the_program_at_once_and_leaves_nothing_on_the_card() {
    let node = card("256M");
    for round in 0..25 {
        let mut command = swapped(&node, "leaves", &(round * 1500).to_string(), "2ms");
        let ended = Running::start(&mut command).end(LIMIT);
        assert_eq!(ended.status.and_then(|status| status.code()), Some(43), "round {round}: {}", ended.said);
    }
    // All that they had has come back: one that wants most of it gets it, beside an agent, too.
    let _agent = agent(&node, &[]);
    let node = &node;
    let mut command = node.workload("--bytes 192M --iterations 1").with_shim();
    let ended = Running::start(&mut command).end(LIMIT);
    ended.assert_well("after all of them");
}
