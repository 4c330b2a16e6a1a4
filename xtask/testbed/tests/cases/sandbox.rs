//! Programs that give up rights after they began.

use super::run::{bare, card, run, swapped};

#[test]
fn the_gate_is_sound_where_membarrier_is_refused_later() {
    let membarrier = libc::SYS_membarrier.to_string();
    run(bare(&card("256M"), "sandbox", &membarrier)).assert_well("bare");
    let node = card("256M");
    run(swapped(&node, "sandbox", &membarrier, "20ms")).assert_well("under forced swaps");
    assert_eq!(node.violations(), [""; 0]);
}
