//! Programs that give up rights after they began.

use nvshare_testbed::is_root;

use super::run::{LIMIT, Running, TURNS, agent, bare, card, hooked, run, swapped};

#[test]
fn the_gate_is_sound_where_membarrier_is_refused_later() {
    let membarrier = libc::SYS_membarrier.to_string();
    run(bare(&card("256M"), "sandbox", &membarrier)).assert_well("bare");
    let node = card("256M");
    run(swapped(&node, "sandbox", &membarrier, "20ms")).assert_well("under forced swaps");
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn a_client_with_another_root_comes_to_the_next_agent() {
    if !is_root() {
        eprintln!("SKIPPED: only root can change its root");
        return;
    }
    let node = card("256M");
    let first = agent(&node, &TURNS);
    let root = node.path().join("root");
    std::fs::create_dir(&root).expect("a directory");
    let mut client = Running::start(&mut hooked(&node, "rooted", &root.to_string_lossy()));
    client.wait_for("ready");
    first.stop();
    let second = agent(&node, &TURNS);
    nvshare_testbed::wait_for("the client is the new agent's", 5 * LIMIT, || {
        second.state()["clients"].as_array().is_some_and(|clients| !clients.is_empty()).then_some(())
    });
    client.tell();
    client.end(LIMIT).assert_well("a client with another root");
}
