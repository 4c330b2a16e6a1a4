//! Forced swaps, without an agent.

use super::{builder, client, node, run, two_cards};

#[test]
fn random_work_with_swaps_at_random_moments_loses_nothing() {
    for seed in 1..=3 {
        let node = node();
        let mut command = client(&node, "random");
        command
            .env("SEED", seed.to_string())
            .env("OPERATIONS", "4000")
            .env("NVSHARE_DEBUG_SWAP_EVERY", "15ms");
        run(&node, command);
    }
}

#[test]
fn a_hundred_thousand_small_allocations_cost_hardly_more_than_their_bytes() {
    let node = builder().env("NVSHARE_SIM_CARD_BYTES", "600M").build();
    let mut command = client(&node, "small");
    command.env("COUNT", "100000");
    run(&node, command);
}

#[test]
fn small_allocations_survive_swaps() {
    let node = node();
    let mut command = client(&node, "small");
    command.env("COUNT", "5000").env("NVSHARE_DEBUG_SWAP_EVERY", "40ms");
    run(&node, command);
}

#[test]
fn memory_freed_while_a_kernel_still_writes_it_is_reused_by_nobody_until_that_kernel_is_done() {
    let node = node();
    run(&node, client(&node, "freed"));
}

#[test]
fn plain_memory_may_be_freed_in_the_order_of_a_stream() {
    let node = node();
    run(&node, client(&node, "ordered"));
}

#[test]
fn a_free_during_a_capture_waits_as_the_drivers_does_and_gives_the_memory_to_nobody() {
    let node = node();
    run(&node, client(&node, "quarantine"));
}

#[test]
fn captures_and_allocations_go_on_while_swaps_are_forced() {
    let node = node();
    let mut command = client(&node, "capture");
    command.env("MILLISECONDS", "3000").env("NVSHARE_DEBUG_SWAP_EVERY", "20ms");
    run(&node, command);
}

#[test]
fn contexts_come_and_go_while_swaps_are_forced() {
    let node = node();
    let mut command = client(&node, "contexts");
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "20ms");
    run(&node, command);
}

#[test]
fn two_devices_swap_at_the_same_time() {
    let Some(node) = two_cards() else { return };
    let mut command = client(&node, "devices");
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "15ms");
    run(&node, command);
}

#[test]
fn a_context_of_one_device_goes_while_the_other_swaps() {
    let Some(node) = two_cards() else { return };
    let mut command = client(&node, "leaving");
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "15ms");
    run(&node, command);
}
