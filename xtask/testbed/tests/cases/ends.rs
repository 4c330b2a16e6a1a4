//! Copies between cards, and contexts that end, are not ended, or are reset.

use super::run::{agent, as_bare, bare, card, cards, hooked, run, swapped};

#[test]
fn memory_is_copied_between_cards_that_cannot_reach_each_other() {
    as_bare(
        || cards(2, "256M").build(),
        "copies_between_devices",
        "copy",
        |node| hooked(node, "copies_between_devices", "copy"),
    );
}

#[test]
fn memory_of_one_card_is_copied_and_filled_under_a_context_of_the_other() {
    as_bare(
        || cards(2, "256M").build(),
        "copies_between_devices",
        "other",
        |node| hooked(node, "copies_between_devices", "other"),
    );
}

#[test]
fn a_copy_is_carried_between_cards_in_whichever_form_it_is_described() {
    let nodes = ["add", "add_any", "add_any_v2", "set", "set_elsewhere", "set_any", "set_any_v2"];
    let others = ["set_ready", "set_ready_any", "row", "box", "row_taken", "box_taken"];
    for form in nodes.into_iter().chain(others) {
        eprintln!("{form}");
        let node = || cards(2, "256M").build();
        as_bare(node, "copies_described", form, |node| hooked(node, "copies_described", form));
        let node = node();
        run(swapped(&node, "copies_described", form, "20ms")).assert_well("under forced swaps");
        assert_eq!(node.violations(), [""; 0], "{form}");
    }
}

#[test]
fn a_context_whose_end_is_refused_keeps_its_memory() {
    as_bare(|| card("256M"), "context_end_refused", "", |node| hooked(node, "context_end_refused", ""));
}

/// `memory`: whether it is allocated with the primary or the green context current.
fn a_green_context(memory: &str) {
    as_bare(|| card("256M"), "green_context", memory, |node| hooked(node, "green_context", memory));
    let node = card("256M");
    let ended = run(hooked(&node, "green_context", &format!("{memory} swapped")));
    ended.assert_well("with swaps at every step");
    assert!(!ended.said.contains("cannot"), "{}", ended.said);
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn work_and_memory_of_a_green_context_outlive_it_and_the_primarys_release() {
    a_green_context("primary");
}

#[test]
fn memory_allocated_under_a_green_context_outlives_it() {
    a_green_context("green");
}

#[test]
fn a_reset_releases_no_reference() {
    let node = card("1G");
    run(bare(&node, "reset_keeps_references", "")).assert_well("the simulator, bare");
    run(hooked(&node, "reset_keeps_references", "")).assert_well("under the library");
}

#[test]
fn after_a_reset_the_programs_events_are_its_own() {
    as_bare(|| card("256M"), "events_after_reset", "", |node| hooked(node, "events_after_reset", ""));
}

#[test]
fn after_a_device_error_a_reset_mends_nothing_and_nothing_hangs() {
    as_bare(|| card("1G"), "life_after_reset", "", |node| hooked(node, "life_after_reset", ""));
}

#[test]
fn an_error_on_one_card_is_one_on_the_other_too() {
    let node = || cards(2, "256M").build();
    as_bare(node, "error_on_one_card", "", |node| hooked(node, "error_on_one_card", ""));
    run(hooked(&node(), "error_on_one_card", "swapped")).assert_well("with swaps at every step");
}

#[test]
fn managed_memory_is_given_back_with_its_context() {
    let node = card("1G");
    let _agent = agent(&node, &[]);
    run(hooked(&node, "held_after_context", "managed")).assert_well("managed memory");
}

#[test]
fn stream_ordered_memory_outlives_its_context_and_is_given_back_when_it_is_freed() {
    let node = card("1G");
    let _agent = agent(&node, &[]);
    run(bare(&node, "held_after_context", "pool")).assert_well("bare");
    run(hooked(&node, "held_after_context", "pool")).assert_well("stream-ordered memory");
}

#[test]
fn a_free_answers_where_its_context_cannot_be_entered() {
    let node = card("256M");
    let mut command = hooked(&node, "frees_answer", "");
    command.env("NVSHARE_SIM_FAULTS", "cuCtxPushCurrent_v2:20+=fail");
    run(command).assert_well("frees whose context cannot be entered");
}
