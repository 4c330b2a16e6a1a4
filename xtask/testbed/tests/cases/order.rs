//! What waits for what: drains, frees and the loader's lock must order nothing that is not ordered bare.

use super::programs;
use super::run::{LIMIT, Running, as_bare, bare, card, cards, hooked, run, swapped};

#[test]
fn a_drain_that_is_given_up_leaves_no_barrier_between_streams() {
    as_bare(
        || card("256M"),
        "drain_legacy_barrier",
        "streams 30",
        |node| swapped(node, "drain_legacy_barrier", "streams 30", "300ms"),
    );
}

#[test]
fn a_drain_that_is_given_up_leaves_no_barrier_between_threads() {
    as_bare(
        || card("256M"),
        "drain_legacy_barrier",
        "threads 30",
        |node| swapped(node, "drain_legacy_barrier", "threads 30", "300ms"),
    );
}

#[test]
fn a_drain_does_not_wait_in_the_driver_for_room_in_a_full_stream() {
    as_bare(
        || card("256M"),
        "drain_full_queue",
        "1021 5",
        |node| swapped(node, "drain_full_queue", "1021 5", "50ms"),
    );
}

#[test]
fn drains_that_are_given_up_do_not_fill_a_stream() {
    as_bare(
        || card("256M"),
        "drain_full_queue",
        "1019 9",
        |node| swapped(node, "drain_full_queue", "1019 9", "50ms"),
    );
}

#[test]
fn a_drain_lets_alone_a_stream_in_which_a_thread_waits_for_room() {
    as_bare(
        || card("256M"),
        "drain_full_queue",
        "1100 5 inside",
        |node| swapped(node, "drain_full_queue", "1100 5 inside", "50ms"),
    );
}

#[test]
fn a_free_does_not_wait_for_the_other_card() {
    as_bare(
        || cards(2, "256M").build(),
        "waits_for_other_device",
        "free",
        |node| hooked(node, "waits_for_other_device", "free"),
    );
}

#[test]
fn a_free_takes_no_longer_because_the_other_card_works() {
    as_bare(
        || cards(2, "256M").build(),
        "waits_for_other_device",
        "time",
        |node| hooked(node, "waits_for_other_device", "time"),
    );
}

#[test]
fn the_end_of_a_context_waits_for_the_other_card() {
    as_bare(
        || cards(2, "256M").build(),
        "waits_for_other_device",
        "context",
        |node| hooked(node, "waits_for_other_device", "context"),
    );
}

#[test]
fn a_library_may_use_the_card_while_it_is_loaded() {
    programs::library("constructor", "LIBRARY");
    let node = card("256M");
    run(swapped(&node, "constructor", "1", "50ms")).assert_well("a constructor that uses the card");
    let first = swapped(&node, "constructor", "1 64 0.3 first", "50ms");
    run(first).assert_well("a constructor that makes the first allocation of the process");
}

#[test]
fn memory_is_freed_in_exit_handlers_while_others_still_call() {
    let node = card("256M");
    let end = |what: &str, command| {
        let ended = run(command);
        assert_eq!(ended.status.and_then(|status| status.code()), Some(43), "{what}: {}", ended.said);
    };
    end("bare", bare(&node, "exit_handlers", ""));
    end("under the library", hooked(&node, "exit_handlers", ""));
    end("under forced swaps", swapped(&node, "exit_handlers", "", "20ms"));
}

/// The inline hooks of communication libraries: the agent's probes come afterwards, and must not be put into them.
fn a_program_with_its_own_hooks(shim: bool) {
    programs::library("inline_hooks", "HOOKS");
    let Some(node) = super::run::observed(cards(1, "256M")) else { return };
    let mut command = super::run::bare(&node, "inline_hooks", "4 far");
    if shim {
        command = command.with_shim();
    }
    let mut program = Running::start(&mut command);
    program.wait_for("installed");
    let _agent = node.agent(super::run::TURNS);
    program.end(LIMIT).assert_well("a program that hooks the driver inline");
}

#[test]
fn the_agents_start_lets_a_bystander_live_that_hooks_the_driver_inline() {
    a_program_with_its_own_hooks(false);
}

#[test]
fn the_agents_start_lets_a_client_live_that_hooks_the_driver_inline() {
    a_program_with_its_own_hooks(true);
}
