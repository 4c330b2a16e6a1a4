//! The engine on a simulated card, with forced swaps and with a scripted agent. The clients are this binary itself.

mod across;
mod agent;
mod driver_memory;
mod ends;
mod gpu;
mod roles;
mod users;
mod waits;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent::Listener;
use nvshare_common::protocol::{ToAgent, ToShim};
use nvshare_common::units::{Bytes, DeviceId};
use nvshare_testbed::{Client, ClientCommand, Node, NodeBuilder};

const MIB: u64 = 1 << 20;

/// Not a test: the client program, when one of the tests below starts it.
#[test]
fn role() {
    if let Ok(role) = std::env::var("NVSHARE_TEST_ROLE") {
        roles::run(&role);
    }
}

/// With `NVSHARE_TEST_REAL=N` the tests run on the machine's own GPUs, of which there are N (those that need a simulated
/// fault do not).
fn builder() -> NodeBuilder {
    if is_real() { Node::builder().real() } else { Node::builder() }
}

fn is_real() -> bool {
    std::env::var_os("NVSHARE_TEST_REAL").is_some()
}

/// A node with two cards, if there is one.
fn two_cards() -> Option<Node> {
    if std::env::var("NVSHARE_TEST_REAL").is_ok_and(|cards| cards == "1") {
        return None;
    }
    Some(builder().env("NVSHARE_SIM_CARDS", "2").env("NVSHARE_SIM_CARD_BYTES", "64M").build())
}

fn node() -> Node {
    builder()
        .env("NVSHARE_SIM_CARD_BYTES", "256M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "4000000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .build()
}

fn client(node: &Node, role: &str) -> ClientCommand {
    let mut command = node.client(std::env::current_exe().unwrap()).with_shim();
    command
        .args(["role", "--exact", "--nocapture"])
        .env("NVSHARE_TEST_ROLE", role)
        .env("NVSHARE_LOG", "info");
    command
}

fn no_violations(node: &Node) {
    assert_eq!(node.violations(), Vec::<String>::new());
}

fn run(node: &Node, mut command: ClientCommand) {
    let status = Client::start(&mut command).end();
    assert!(status.success(), "the client ended with {status}");
    no_violations(node);
}

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

/// A client that a test leads line by line.
struct Led {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Led {
    fn start(mut command: ClientCommand) -> Led {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Led { child, input, output }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "the client ended: {:?}",
                self.child.wait()
            );
            // The test harness of the client writes to the same pipe.
            if let Some((_, said)) = line.split_once('@') {
                return said.trim().to_owned();
            }
        }
    }

    fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.answer()
    }

    fn end(mut self) {
        self.say("end");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the client ended with {status}");
    }
}

impl Drop for Led {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_agent_swaps_a_client_out_and_in() {
    let node = node();
    let listener = Listener::bind(&node.socket());
    let mut client = Led::start(client(&node, "scripted"));
    let mut agent = listener.welcome();
    assert!(agent.hello.running && agent.hello.devices.is_empty());
    assert_eq!(client.answer(), "ready");
    assert_ne!(client.ask(&format!("alloc {}", 16 * MIB)), "out of memory");
    // Nothing is granted: the client has an address, and waits at the gate.
    let (device, total) = agent.wanted();
    assert_eq!(total, 16 * MIB);
    client.say("store 0 5");
    agent.grant(device, 16 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "stored");
    agent.arena(1, 64 * MIB);
    agent.until("ArenaReady", |message| matches!(message, ToAgent::ArenaReady { .. }).then_some(()));
    agent.stop();
    let (released, last) = agent.swap_out(device, 16 * MIB);
    assert_eq!(released, 16 * MIB);
    assert!(matches!(last, ToAgent::SwapOutDone { copied, .. } if copied.0 == 16 * MIB), "{last:?}");
    client.say("wrong 0 5");
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.send(&ToShim::Run);
    agent.grant(device, 8 * MIB);
    assert!(agent.is_silent(Duration::from_millis(200)), "half of it is not all of it");
    agent.grant(device, 8 * MIB);
    assert_eq!(agent.resident(), 16 * MIB);
    assert_eq!(client.answer(), "0");
    // Nothing was written since: the second time everything is clean.
    agent.stop();
    let (released, last) = agent.swap_out(device, 16 * MIB);
    assert_eq!(released, 16 * MIB);
    assert!(
        matches!(last, ToAgent::SwapOutDone { copied, clean, .. } if copied.0 == 0 && clean.0 == 16 * MIB),
        "{last:?}"
    );
    agent.grant(device, 16 * MIB);
    agent.send(&ToShim::Run);
    assert_eq!(agent.resident(), 16 * MIB);
    assert_eq!(client.ask("wrong 0 5"), "0");
    client.end();
    no_violations(&node);
}

/// A led client with `blocks` arenas of one block each and one allocation of `bytes`, running.
fn led(
    node: &Node,
    command: ClientCommand,
    bytes: u64,
    arenas: u64,
) -> (Led, Listener, agent::Agent, DeviceId) {
    let listener = Listener::bind(&node.socket());
    let mut client = Led::start(command);
    let mut agent = listener.welcome();
    assert_eq!(client.answer(), "ready");
    assert_ne!(client.ask(&format!("alloc {bytes}")), "out of memory");
    let (device, total) = agent.wanted();
    assert_eq!(total, bytes);
    agent.grant(device, bytes);
    agent.resident();
    for number in 0..arenas {
        agent.arena(number, 2 * MIB);
        agent.until("ArenaReady", |message| matches!(message, ToAgent::ArenaReady { .. }).then_some(()));
    }
    (client, listener, agent, device)
}

#[test]
fn a_swap_out_that_fails_half_way_after_which_the_contents_return_to_an_older_value_loses_nothing() {
    if is_real() {
        return;
    }
    let node = node();
    // Arenas of one block: every block is a copy of its own. Out 4, in 4, and the last one of the next four fails.
    let mut command = client(&node, "scripted");
    command.env("NVSHARE_SIM_FAULTS", "copy:12=oom");
    let (mut client, _listener, mut agent, device) = led(&node, command, 8 * MIB, 4);
    assert_eq!(client.ask("store 0 1"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 8 * MIB).0, 8 * MIB);
    agent.grant(device, 8 * MIB);
    agent.send(&ToShim::Run);
    assert_eq!(agent.resident(), 8 * MIB);
    assert_eq!(client.ask("store 0 2"), "stored");
    agent.stop();
    let (released, last) = agent.swap_out(device, 8 * MIB);
    assert!(matches!(last, ToAgent::SwapFailed { .. }), "{last:?}");
    assert_eq!(released, 4 * MIB, "the extent whose copy failed is resident");
    agent.grant(device, 4 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    // What the half-overwritten shadow held before the failure.
    assert_eq!(client.ask("store 0 1"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 8 * MIB).0, 8 * MIB);
    agent.grant(device, 8 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 0 1"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn a_swap_in_without_room_keeps_the_shadow_and_tries_again() {
    if is_real() {
        return;
    }
    let node = node();
    let mut command = client(&node, "scripted");
    // Two extents are made at first; the first two tries to make them again fail.
    command.env("NVSHARE_SIM_FAULTS", "create:3=oom,create:4=oom");
    let (mut client, _listener, mut agent, device) = led(&node, command, 8 * MIB, 4);
    assert_eq!(client.ask("store 0 9"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 8 * MIB).0, 8 * MIB);
    agent.send(&ToShim::Run);
    agent.grant(device, 8 * MIB);
    assert_eq!(agent.resident(), 8 * MIB);
    assert_eq!(client.ask("wrong 0 9"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn a_copy_into_a_captured_stream_waits_for_its_memory_as_the_replay_does() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 8);
    assert_ne!(client.ask(&format!("alloc {}", 8 * MIB)), "out of memory");
    agent.grant(device, 8 * MIB);
    agent.resident();
    assert_eq!(client.ask("store 0 5"), "stored");
    assert_eq!(client.ask("capture"), "captures");
    agent.stop();
    assert_eq!(agent.swap_out(device, 16 * MIB).0, 16 * MIB);
    client.say("copy 0 1");
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.send(&ToShim::Run);
    agent.grant(device, 16 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "copied");
    agent.stop();
    assert_eq!(agent.swap_out(device, 16 * MIB).0, 16 * MIB);
    client.say("replay");
    agent.until("a Want for work", |message| matches!(message, ToAgent::Want { .. }).then_some(()));
    agent.send(&ToShim::Run);
    agent.grant(device, 16 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "replayed");
    assert_eq!(client.ask("wrong 1 5"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn memory_that_other_hardware_may_hold_stays_on_the_device_and_is_reported() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 8);
    assert_ne!(client.ask(&format!("alloc {}", 8 * MIB)), "out of memory");
    agent.grant(device, 8 * MIB);
    agent.resident();
    assert_eq!(client.ask("store 0 5"), "stored");
    client.say("share 0");
    let kept = agent.until("Unswappable", |message| match message {
        ToAgent::Unswappable { bytes, reason, .. } if reason == "exported" => Some(bytes.0),
        _ => None,
    });
    assert_eq!(kept, 4 * MIB);
    assert_eq!(client.answer(), "shared");
    agent.stop();
    let (released, last) = agent.swap_out(device, 12 * MIB);
    assert_eq!(released, 8 * MIB, "{last:?}");
    agent.grant(device, 8 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 0 5"), "0");
    client.say("free 0");
    agent.until("nothing unswappable", |message| match message {
        ToAgent::Unswappable { bytes, reason, .. } if reason == "exported" && bytes.0 == 0 => Some(()),
        _ => None,
    });
    assert_eq!(client.answer(), "freed");
    client.end();
}

#[test]
fn without_host_memory_a_swap_out_is_refused_and_nothing_is_lost() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 2);
    assert_eq!(client.ask("store 0 3"), "stored");
    agent.stop();
    let (released, last) = agent.swap_out(device, 8 * MIB);
    assert_eq!(released, 4 * MIB);
    assert!(matches!(&last, ToAgent::SwapFailed { why, .. } if why.contains("host memory")), "{last:?}");
    agent.grant(device, 4 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    assert_eq!(client.ask("wrong 0 3"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn zeros_need_no_host_memory_and_only_what_changed_is_copied() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 16 * MIB, 1);
    assert_eq!(client.ask("store 0 0"), "stored");
    assert_eq!(client.ask(&format!("store_part 0 {} 4096 77", 5 * MIB)), "stored");
    agent.stop();
    let (released, last) = agent.swap_out(device, 16 * MIB);
    assert_eq!(released, 16 * MIB);
    assert!(matches!(last, ToAgent::SwapOutDone { copied, .. } if copied.0 == 2 * MIB), "{last:?}");
    agent.grant(device, 16 * MIB);
    agent.send(&ToShim::Run);
    assert_eq!(agent.resident(), 2 * MIB);
    assert_eq!(client.ask("wrong 0 0"), "512");
    client.end();
    no_violations(&node);
}

#[test]
fn beyond_the_limit_an_allocation_fails_at_once_and_the_client_sees_only_its_limit() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    agent.send(&ToShim::Size { device, bytes: Bytes(16 * MIB) });
    agent.send(&ToShim::Limit { device, bytes: Bytes(16 * MIB) });
    heard(&mut agent, device);
    agent.allow(&Arc::new(AtomicU64::new(16 * MIB)));
    assert_eq!(client.ask("info"), format!("{} {}", 8 * MIB, 16 * MIB));
    assert_eq!(client.ask(&format!("alloc {}", 12 * MIB)), "out of memory");
    // Nor by ways that do not lead through the engine.
    assert_eq!(client.ask(&format!("pool {}", 12 * MIB)), "out of memory");
    assert_eq!(client.ask(&format!("create {}", 12 * MIB)), "out of memory");
    assert_eq!(client.ask(&format!("pool {}", 2 * MIB)), "done");
    assert_eq!(client.ask(&format!("create {}", 2 * MIB)), "done");
    assert_ne!(client.ask(&format!("alloc {}", 4 * MIB)), "out of memory");
    assert_eq!(client.ask("alloc 1048576"), "out of memory");
    drop(client);
}

#[test]
fn the_first_question_for_memory_is_answered_by_the_limit_of_the_welcome() {
    let node = node();
    let (first, listener, _agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 0);
    first.end();
    let mut second = Led::start(client(&node, "scripted"));
    let _agent = listener.welcome_within(vec![(device, Bytes(16 * MIB))]);
    assert_eq!(second.answer(), "ready");
    assert_eq!(second.ask("info"), format!("{0} {0}", 16 * MIB));
    second.end();
}

#[test]
fn a_limit_below_what_is_in_use_takes_nothing_away_and_lets_nothing_in() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    let limit = Arc::new(AtomicU64::new(0));
    let order = |agent: &agent::Agent, bytes| {
        limit.store(bytes, Ordering::Relaxed);
        agent.send(&ToShim::Size { device, bytes: Bytes(bytes) });
        agent.send(&ToShim::Limit { device, bytes: Bytes(bytes) });
    };
    order(&agent, 6 * MIB);
    heard(&mut agent, device);
    let says = agent.twin();
    agent.allow(&limit);
    let total = 6 * MIB;
    assert_eq!(client.ask("info"), format!("0 {total}"));
    assert_eq!(client.ask("store 0 7"), "stored");
    assert_eq!(client.ask("wrong 0 7"), "0");
    assert_eq!(client.ask(&format!("alloc {}", 2 * MIB)), "out of memory");
    assert_eq!(client.ask("free 0"), "freed");
    assert_eq!(client.ask("info"), format!("{total} {total}"));
    assert_ne!(client.ask(&format!("alloc {}", 4 * MIB)), "out of memory");
    assert_eq!(client.ask(&format!("alloc {}", 4 * MIB)), "out of memory");
    // The order is undone: there is more again, and the device is as large as it was said to be.
    order(&says, 200 * MIB);
    sees(&mut client, total - 4 * MIB, total);
    assert_ne!(client.ask(&format!("alloc {}", 4 * MIB)), "out of memory");
    client.end();
    no_violations(&node);
}

#[test]
fn the_size_of_a_device_and_its_free_memory_do_not_grow_when_others_go() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    agent.send(&ToShim::Limit { device, bytes: Bytes(100 * MIB) });
    heard(&mut agent, device);
    let card = 256 * MIB;
    assert_eq!(client.ask("info"), format!("{} {card}", 92 * MIB));
    for (limit, free) in [(180, 92), (90, 82), (200, 82)] {
        agent.send(&ToShim::Limit { device, bytes: Bytes(limit * MIB) });
        sees(&mut client, free * MIB, card);
    }
    // An order is no neighbour: what it changes is said, but for the size.
    agent.send(&ToShim::Size { device, bytes: Bytes(150 * MIB) });
    agent.send(&ToShim::Size { device, bytes: Bytes(160 * MIB) });
    agent.send(&ToShim::Limit { device, bytes: Bytes(160 * MIB) });
    sees(&mut client, 152 * MIB, card);
    drop(client);
}

/// The client has heard all that was said before.
fn heard(agent: &mut agent::Agent, device: DeviceId) {
    let ticket = agent.ticket();
    agent.send(&ToShim::Reclaim { ticket, device });
    agent.until("SwapOutDone", |message| match message {
        ToAgent::SwapOutDone { ticket: of, .. } => (*of == ticket).then_some(()),
        _ => None,
    });
}

/// Waits until the client is told that it has so much free memory of so much.
fn sees(client: &mut Led, free: u64, total: u64) {
    let expected = format!("{free} {total}");
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = client.ask("info");
        if answer == expected {
            return;
        }
        assert!(Instant::now() < limit, "the client sees {answer} instead of {expected}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_kernel_that_does_not_end_stalls_the_drain_and_the_client_goes_on() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 2);
    assert_eq!(client.ask("spin 1500000000"), "spinning");
    let ticket = agent.ticket();
    agent.send(&ToShim::Stop { ticket, stall_ms: 200 });
    agent.until("DrainStalled", |message| (*message == ToAgent::DrainStalled { ticket }).then_some(()));
    let (released, last) = agent.swap_out(device, 4 * MIB);
    assert_eq!(released, 0);
    assert!(matches!(&last, ToAgent::SwapFailed { why, .. } if why.contains("not stopped")), "{last:?}");
    assert_eq!(client.ask("store 0 4"), "stored");
    assert_eq!(client.ask("wrong 0 4"), "0");
    client.end();
    no_violations(&node);
}

#[test]
fn unused_grant_is_given_back_on_request_and_freed_memory_with_it() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 8 * MIB, 0);
    agent.grant(device, 6 * MIB);
    assert_eq!(client.ask("free 0"), "freed");
    let ticket = agent.ticket();
    agent.send(&ToShim::Reclaim { ticket, device });
    let mut released = 0;
    agent.until("SwapOutDone", |message| match message {
        ToAgent::Released { ticket: Some(of), bytes, .. } if *of == ticket => {
            released += bytes.0;
            None
        }
        ToAgent::SwapOutDone { ticket: of, .. } => (*of == ticket).then_some(()),
        _ => None,
    });
    assert_eq!(released, 14 * MIB);
    client.end();
}

#[test]
fn host_memory_that_only_resident_extents_use_is_given_back_on_request() {
    let node = node();
    let (mut client, _listener, mut agent, device) = led(&node, client(&node, "scripted"), 4 * MIB, 3);
    assert_eq!(client.ask("store 0 6"), "stored");
    agent.stop();
    assert_eq!(agent.swap_out(device, 4 * MIB).0, 4 * MIB);
    // Two of three arenas hold the only copy.
    agent.send(&ToShim::Trim { bytes: Bytes(6 * MIB) });
    agent.until("ArenaReturned", |message| matches!(message, ToAgent::ArenaReturned { .. }).then_some(()));
    assert!(agent.is_silent(Duration::from_millis(200)), "a shadow that is needed was given up");
    agent.grant(device, 4 * MIB);
    agent.send(&ToShim::Run);
    agent.resident();
    agent.send(&ToShim::Trim { bytes: Bytes(6 * MIB) });
    for _ in 0..2 {
        agent
            .until("ArenaReturned", |message| matches!(message, ToAgent::ArenaReturned { .. }).then_some(()));
    }
    assert_eq!(client.ask("wrong 0 6"), "0");
    client.end();
    no_violations(&node);
}

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

/// Not a check: prints how long swap-out and swap-in of `BYTES_MIB` take, dirty and clean.
#[test]
#[ignore = "measures; run it alone"]
fn how_long_a_swap_takes() {
    let bytes = std::env::var("BYTES_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(512) * MIB;
    let node = builder().env("NVSHARE_SIM_CARD_BYTES", "1G").build();
    let listener = Listener::bind(&node.socket());
    let mut client = Led::start(client(&node, "scripted"));
    let mut agent = listener.welcome();
    client.answer();
    client.ask(&format!("alloc {bytes}"));
    let (device, _) = agent.wanted();
    agent.grant(device, bytes);
    agent.resident();
    for number in 0..bytes.div_ceil(256 * MIB) {
        agent.arena(number, 256 * MIB);
        agent.until("ArenaReady", |message| matches!(message, ToAgent::ArenaReady { .. }).then_some(()));
    }
    client.ask("store 0 1");
    for round in 0..8 {
        if round < 6 {
            client.ask(&format!("store 0 {}", round + 2));
        }
        let began = Instant::now();
        agent.stop();
        let stopped = began.elapsed();
        let began = Instant::now();
        let (_, last) = agent.swap_out(device, bytes);
        let out = began.elapsed();
        let began = Instant::now();
        agent.send(&ToShim::Run);
        agent.grant(device, bytes);
        agent.resident();
        let back = began.elapsed();
        let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
        println!(
            "drain {stopped:?}, out {out:?} ({:.2} GB/s), in {back:?} ({:.2} GB/s), {last:?}",
            rate(out),
            rate(back)
        );
    }
    assert_eq!(client.ask("wrong 0 7"), "0");
    client.end();
}

/// Not a check: prints how long it takes to exchange one client of `BYTES_MIB` for another on a card that holds one.
#[test]
#[ignore = "measures; run it alone"]
fn how_long_an_exchange_takes() {
    let bytes = std::env::var("BYTES_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(512) * MIB;
    let node = builder().env("NVSHARE_SIM_CARD_BYTES", "600M").build();
    let mut both = Vec::new();
    for value in 1..=2 {
        let listener = Listener::bind(&node.socket());
        let mut client = Led::start(client(&node, "scripted"));
        let mut agent = listener.welcome();
        client.answer();
        client.ask(&format!("alloc {bytes}"));
        let (device, _) = agent.wanted();
        for number in 0..bytes.div_ceil(256 * MIB) {
            agent.arena(number, 256 * MIB);
            agent.until("ArenaReady", |message| matches!(message, ToAgent::ArenaReady { .. }).then_some(()));
        }
        agent.grant(device, bytes);
        agent.resident();
        client.ask(&format!("store 0 {value}"));
        if value == 1 {
            agent.stop();
            agent.swap_out(device, bytes);
        }
        both.push((client, agent, listener, device));
    }
    for round in 0..10_u64 {
        let (left, right) = both.split_at_mut(1);
        let (going, coming) =
            if round % 2 == 0 { (&mut right[0], &mut left[0]) } else { (&mut left[0], &mut right[0]) };
        let device = going.3;
        let began = Instant::now();
        going.1.stop();
        coming.1.send(&ToShim::Run);
        let ticket = going.1.ticket();
        going.1.send(&ToShim::SwapOut { ticket, device, bytes: Bytes(bytes), coldest: Vec::new() });
        going.1.until("SwapOutDone", |message| match message {
            ToAgent::Released { bytes, .. } => {
                coming.1.grant(device, bytes.0);
                None
            }
            ToAgent::SwapOutDone { .. } => Some(()),
            _ => None,
        });
        let out = began.elapsed();
        coming.1.resident();
        println!("out after {out:?}, exchanged after {:?}", began.elapsed());
        let stored = if round < 2 { round + 1 } else { round };
        assert_eq!(coming.0.ask(&format!("wrong 0 {stored}")), "0");
        coming.0.ask(&format!("store 0 {}", round + 2));
    }
}
