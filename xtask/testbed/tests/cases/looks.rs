//! Who may use a program's memory without a call is seen, or the memory stays: however hard the program is to look at.

use nvshare_testbed::is_root;

use super::run::{bare, card, hooked, run};

/// What was said when all memory was told to leave, after the program `who` became `how`.
fn told_to_leave(who: &str, how: &str) -> String {
    let node = card("256M");
    run(bare(&node, "looked_at", &format!("{who} {how}"))).assert_well("bare");
    let ended = run(hooked(&node, "looked_at", &format!("{who} {how} ordered")));
    ended.assert_well("under forced swaps");
    let (before, after) = ended.said.split_once("now\n").expect("two swaps");
    assert!(!before.contains("not complete"), "{before}");
    after.to_owned()
}

/// The ways of being hard to look at in which it is still seen who is there.
fn ways() -> Vec<&'static str> {
    let mut ways = vec!["plain", "full", "name", "leader", "closed"];
    if is_root() {
        ways.push("root");
    } else {
        eprintln!("SKIPPED: another root needs root");
    }
    ways
}

#[test]
fn memory_leaves_where_nobody_uses_it_however_the_program_is_looked_at() {
    for how in ways() {
        let said = told_to_leave("none", how);
        assert!(!said.contains("not complete"), "{how}: {said}");
    }
}

#[test]
fn memory_stays_where_somebody_uses_it_however_the_program_is_looked_at() {
    for how in ways() {
        for (who, name) in [("engine", "libnvcuvid.so.1"), ("device", "infiniband/uverbs0")] {
            let said = told_to_leave(who, how);
            assert!(said.contains("not complete") && said.contains(name), "{who} {how}: {said}");
        }
    }
}

#[test]
fn memory_stays_where_nobody_can_look() {
    if !is_root() {
        eprintln!("SKIPPED: another root needs root");
        return;
    }
    for who in ["none", "engine"] {
        let said = told_to_leave(who, "root-closed");
        assert!(said.contains("not complete: cannot look"), "{who}: {said}");
    }
}
