//! Names: what a program finds, and is told, is what it would find without the library.

use super::run::{bare, card, hooked, run};

#[test]
fn without_a_driver_in_the_process_none_is_found() {
    let node = card("256M");
    let mut command = hooked(&node, "weak", "");
    command.env("LD_LIBRARY_PATH", "");
    run(command).assert_well("a program without the driver");
}

#[test]
fn every_look_up_finds_and_says_what_it_does_bare() {
    let node = card("256M");
    let (alone, under) = (run(bare(&node, "dlnames", "")), run(hooked(&node, "dlnames", "")));
    alone.assert_well("bare");
    under.assert_well("under the library");
    for (alone, under) in alone.said.lines().zip(under.said.lines()) {
        assert_eq!(alone, under);
    }
    assert_eq!(alone.said.lines().count(), under.said.lines().count());
}
