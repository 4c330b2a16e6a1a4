//! Without the agent: another one comes, it stays away, it refuses the client, the card is dead.

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::{ToAgent, ToShim};

use super::agent::Listener;
use super::led::{Led, led};
use super::{MIB, builder, client, is_real, no_violations, node};

#[test]
fn a_new_agent_hears_what_the_client_holds() {
    let node = node();
    let (mut client, listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 4);
    assert_eq!(client.ask("store 0 8"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 4 * MIB).0, 4 * MIB);
    drop(agent);
    let mut agent = listener.welcome();
    let held = agent.hello.devices[0];
    assert_eq!((held.granted.0, held.resident.0, held.total.0), (4 * MIB, 4 * MIB, 8 * MIB));
    assert!(!agent.hello.running && agent.hello.arenas == 4);
    agent.grant(device, 4 * MIB);
    agent.send(&ToShim::Run);
    assert_eq!(agent.resident(), 4 * MIB);
    assert_eq!(client.ask("wrong 0 8"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn a_swapped_client_whose_agent_stays_away_helps_itself() {
    let node = node();
    let mut command = client(&node, "scripted");
    command.env("NVSHARE_AGENT_GONE_AFTER", "300ms");
    let (mut client, listener, mut agent, device) = led(&node, command, 8 * MIB, 4);
    assert_eq!(client.ask("store 0 8"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 8 * MIB).0, 8 * MIB);
    drop((agent, listener));
    std::fs::remove_file(node.socket()).unwrap();
    assert_eq!(client.ask("wrong 0 8"), "0");
    // And goes on without one, within what the device has.
    assert_ne!(client.ask(&format!("alloc {}", 32 * MIB)), "out of memory");
    assert_eq!(client.ask("store 1 2"), "stored");
    client.end();
    no_violations(&node);
}

#[test]
fn without_an_agent_clients_that_do_not_fit_together_help_themselves_one_at_a_time() {
    let node = builder()
        .env("NVSHARE_SIM_CARD_BYTES", "64M")
        .env("NVSHARE_SIM_CONTEXT_BYTES", "1M")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .env("NVSHARE_AGENT_GONE_AFTER", "300ms")
        .build();
    let bytes = 40 * MIB;
    let mut clients = Vec::new();
    for value in 0..2_u64 {
        let (mut client, listener, mut agent, device) = led(&node, client(&node, "scripted"), bytes, 20);
        assert_eq!(client.ask(&format!("store 0 {}", value + 1)), "stored");
        agent.stop();
        assert_eq!(agent.swap_out(device, bytes).0, bytes);
        clients.push((client, listener, agent));
    }
    let mut led = Vec::new();
    for (client, listener, agent) in clients {
        drop((listener, agent));
        led.push(client);
    }
    std::fs::remove_file(node.socket()).unwrap();
    led[0].say("wrong 0 1");
    led[1].say("wrong 0 2");
    // One of them gets its memory; the other when that one has ended.
    let ended = std::thread::scope(|scope| {
        let answers: Vec<_> = led
            .into_iter()
            .map(|mut client| {
                scope.spawn(move || {
                    let wrong = client.answer();
                    client.end();
                    wrong
                })
            })
            .collect();
        answers.into_iter().map(|answer| answer.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(ended, ["0", "0"]);
    no_violations(&node);
}

#[test]
fn a_refused_client_runs_bare() {
    let node = node();
    let listener = Listener::bind(&node.socket());
    let mut client = Led::start(client(&node, "scripted"));
    listener.refuse();
    assert_eq!(client.answer(), "ready");
    assert_ne!(client.ask(&format!("alloc {}", 16 * MIB)), "out of memory");
    assert_eq!(client.ask("store 0 1"), "stored");
    assert_eq!(client.ask("wrong 0 1"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn after_a_failure_that_no_call_survives_the_application_sees_its_own_error() {
    if is_real() {
        return;
    }
    let node = node();
    let mut command = client(&node, "scripted");
    command.env("NVSHARE_SIM_FAULTS", "copy:2=fail");
    let (mut client, _listener, mut agent, device) = led(&node, command, 8 * MIB, 4);
    assert_eq!(client.ask("store 0 1"), "stored");
    agent.stop();
    let ticket = agent.ticket();
    agent.send(&ToShim::SwapOut { ticket, device, bytes: Bytes(8 * MIB), coldest: Vec::new() });
    agent.until("Dead", |message| matches!(message, ToAgent::Dead { .. }).then_some(()));
    // Its gate is open: the next call returns, with an error.
    client.say("store 0 2");
    assert!(!client.child.wait().unwrap().success());
}
