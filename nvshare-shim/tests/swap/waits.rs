//! Memory is missing while the application cannot wait for it: nothing of ours may wait for the application then.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::time::Duration;

use cudarc::driver::sys;
use nvshare_common::protocol::{Purpose, ToAgent, ToShim};
use nvshare_testbed::ClientCommand;

use super::agent::{Agent, Listener};
use super::gpu::{Gpu, alloc, cu, free, others, stream, synchronize};
use super::led::Led;
use super::{MIB, client, no_violations, node};

/// More than a stream holds behind a kernel that waits.
const MANY: usize = 1100;

/// A client that has said that it is ready and holds nothing yet, with its agent.
fn empty_handed(command: ClientCommand, listener: &Listener) -> (Led, Agent) {
    let mut client = Led::start(command);
    let agent = listener.welcome();
    assert_eq!(client.answer(), "ready");
    (client, agent)
}

#[test]
fn memory_comes_while_a_thread_is_stuck_in_a_full_stream() {
    // On an H200 an allocation waits there for the head of the stream, with the library as bare.
    if super::is_real() {
        return;
    }
    let node = node();
    let listener = Listener::bind(&node.socket());
    let (mut client, mut agent) = empty_handed(client(&node, "jammed"), &listener);
    let (device, total) = agent.wanted();
    assert_eq!(total, 8 * MIB);
    std::thread::sleep(Duration::from_millis(300));
    agent.grant(device, 8 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "went on");
    client.end();
    no_violations(&node);
}

pub(crate) fn jammed() {
    let gpu = Gpu::open();
    super::roles::say("ready");
    let (full, other) = (stream(), stream());
    let (mut flag, mut on_device) = (std::ptr::null_mut(), 0);
    cu!(cuMemHostAlloc(&raw mut flag, 4096, 2));
    cu!(cuMemHostGetDevicePointer_v2(&raw mut on_device, flag, 0));
    let flag = flag.cast::<u32>();
    // SAFETY: pinned memory of that size.
    unsafe { flag.write_volatile(0) };
    let (stuck, context) = (full.expose_provenance(), super::roles::current());
    let turns = std::sync::Arc::new(std::sync::Barrier::new(2));
    let submits = std::thread::spawn({
        let turns = std::sync::Arc::clone(&turns);
        move || {
            super::roles::make_current(context);
            // Loaded before: that would wait for the kernel, too.
            let gpu = Gpu::load();
            turns.wait();
            turns.wait();
            for _ in 0..MANY {
                gpu.launch("nvshare_spin", std::ptr::with_exposed_provenance_mut(stuck), &[1]);
            }
        }
    });
    turns.wait();
    gpu.launch("nvshare_wait_flag", full, &[on_device]);
    turns.wait();
    std::thread::sleep(Duration::from_millis(300));
    // The first memory of all: the engine has nothing in the context yet.
    let memory = alloc(8 << 20);
    gpu.launch("nvshare_store", other, &[memory, (8 << 20) / 8, 2]);
    synchronize(other);
    // SAFETY: as above; the kernel reads it.
    unsafe { flag.write_volatile(1) };
    submits.join().expect("it ends when the stream has room");
    assert_eq!(others(memory, 8 << 20, 2), 0);
    free(memory);
    super::roles::say("went on");
    super::roles::await_end();
}

#[test]
fn who_waits_for_the_end_of_a_drain_asks_when_memory_is_missed_meanwhile() {
    let node = node();
    let listener = Listener::bind(&node.socket());
    let (mut client, mut agent) = empty_handed(client(&node, "missing"), &listener);
    let (device, total) = agent.wanted();
    assert_eq!(total, 8 * MIB);
    agent.grant(device, 8 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "busy");
    let ticket = agent.ticket();
    agent.send(&ToShim::Stop { ticket, stall_ms: 2000 });
    // A thread launches, and waits for the end of the drain; then another allocates. The drain stalls, and nothing opens.
    agent.until("a wish to run", |message| match message {
        ToAgent::Want { total, purpose: Purpose::Work, .. } => (total.0 == 16 * MIB).then_some(()),
        _ => None,
    });
    agent.grant(device, 8 * MIB);
    assert_eq!(client.answer(), "went on");
    client.end();
    no_violations(&node);
}

pub(crate) fn missing() {
    let gpu = Gpu::open();
    super::roles::say("ready");
    let (busy, other) = (stream(), stream());
    let (mut flag, mut on_device) = (std::ptr::null_mut(), 0);
    cu!(cuMemHostAlloc(&raw mut flag, 4096, 2));
    cu!(cuMemHostGetDevicePointer_v2(&raw mut on_device, flag, 0));
    let flag = flag.cast::<u32>();
    // SAFETY: pinned memory of that size.
    unsafe { flag.write_volatile(0) };
    let memory = alloc(8 << 20);
    gpu.launch("nvshare_store", other, &[memory, (8 << 20) / 8, 2]);
    synchronize(other);
    let (stream, context) = (other.expose_provenance(), super::roles::current());
    let turns = std::sync::Arc::new(std::sync::Barrier::new(2));
    let launches = std::thread::spawn({
        let turns = std::sync::Arc::clone(&turns);
        move || {
            super::roles::make_current(context);
            // Loaded before: that would wait for the kernel, too.
            let gpu = Gpu::load();
            turns.wait();
            turns.wait();
            let stream = std::ptr::with_exposed_provenance_mut(stream);
            gpu.launch("nvshare_store", stream, &[memory, (8 << 20) / 8, 3]);
        }
    });
    turns.wait();
    gpu.launch("nvshare_wait_flag", busy, &[on_device]);
    super::roles::say("busy");
    std::thread::sleep(Duration::from_millis(500));
    turns.wait();
    std::thread::sleep(Duration::from_millis(500));
    let more = alloc(8 << 20);
    launches.join().expect("it is granted what is missing");
    synchronize(other);
    assert_eq!(others(memory, 8 << 20, 3), 0);
    // SAFETY: as above; the kernel reads it.
    unsafe { flag.write_volatile(1) };
    synchronize(busy);
    free(more);
    free(memory);
    super::roles::say("went on");
    super::roles::await_end();
}

#[test]
fn a_library_that_is_the_first_to_use_memory_may_do_so_while_it_is_loaded() {
    const SOURCE: &str = "#include <stdint.h>
        int cuMemAlloc_v2(uint64_t *, uint64_t), cuMemsetD8_v2(uint64_t, uint8_t, uint64_t), cuCtxSynchronize(void);
        __attribute__((constructor)) static void start(void) {
            uint64_t at;
            if (cuMemAlloc_v2(&at, 8 << 20) || cuMemsetD8_v2(at, 1, 8 << 20) || cuCtxSynchronize()) __builtin_trap();
        }";
    let node = node();
    let directory = tempfile::tempdir().unwrap();
    let (source, library) = (directory.path().join("first.c"), directory.path().join("libfirst.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let made =
        std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(made.expect("a C compiler called `cc` is needed for these tests").success());
    let listener = Listener::bind(&node.socket());
    let (mut client, mut agent) = empty_handed(client(&node, "scripted"), &listener);
    client.say(&format!("open {}", library.display()));
    let (device, total) = agent.wanted();
    assert_eq!(total, 8 * MIB);
    std::thread::sleep(Duration::from_millis(300));
    agent.grant(device, 8 * MIB);
    agent.resident();
    assert_eq!(client.answer(), "opened");
    client.end();
    no_violations(&node);
}
