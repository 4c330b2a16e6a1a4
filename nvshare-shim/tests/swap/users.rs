//! Who else uses the memory, and what the engine has in the application's context.

use nvshare_common::protocol::{ToAgent, ToShim};

use super::led::led;
use super::{MIB, client, no_violations, node};

#[test]
fn nothing_leaves_while_the_library_of_an_engine_is_loaded() {
    let node = node();
    let directory = tempfile::tempdir().unwrap();
    let engine = directory.path().join("libnvcuvid.so.1");
    let made = std::process::Command::new("cc")
        .args(["-shared", "-x", "c", "/dev/null", "-o"])
        .arg(&engine)
        .status()
        .expect("a C compiler called `cc` is needed for these tests");
    assert!(made.success());
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 8);
    assert_eq!(client.ask("store 0 5"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 8 * MIB).0, 8 * MIB);
    // It would not find the memory: who opens it waits until that is back.
    client.say(&format!("open {}", engine.display()));
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.grant(device, 8 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.answer(), "opened");
    agent.stop();
    let (released, last) = agent.swap_out(device, 8 * MIB);
    assert_eq!(released, 0);
    assert!(matches!(&last, ToAgent::SwapFailed { why, .. } if why.contains("libnvcuvid")), "{last:?}");
    agent.send(&ToShim::Run);
    assert_eq!(client.ask("wrong 0 5"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn a_fingerprint_kernel_that_found_no_memory_is_loaded_later() {
    if super::is_real() {
        return;
    }
    let node = node();
    let mut command = client(&node, "scripted");
    // The client's own comes first.
    command.env("NVSHARE_SIM_FAULTS", "module:2=oom");
    let (mut client, _listener, mut agent, device) = led(&node, command, 8 * MIB, 8);
    assert_eq!(client.ask("store 0 5"), "stored");
    for round in 0..2 {
        std::thread::sleep(std::time::Duration::from_millis(200));
        agent.stop();
        let (released, last) = agent.swap_out(device, 8 * MIB);
        assert_eq!(released, 8 * MIB);
        let copied = if round == 0 { 8 * MIB } else { 0 };
        assert!(
            matches!(last, ToAgent::SwapOutDone { copied: crossed, .. } if crossed.0 == copied),
            "round {round}: {last:?}"
        );
        agent.grant(device, 8 * MIB);
        agent.send(&ToShim::Run);
        agent.resident();
        // Work in between: what did not change is known by its fingerprint only.
        assert_eq!(client.ask("wrong 0 5"), "0");
    }
    client.end();
    no_violations(&node);
}
