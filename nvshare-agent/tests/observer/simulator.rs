//! The simulator's library is observed as NVIDIA's is: nothing in the observer knows the difference.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;

use nvshare_agent::observer::Library;
use nvshare_common::probe::{Call, PROBES};
use nvshare_testbed::{Artifacts, Node};

use crate::client::Client;
use crate::seen::{named, observe};

#[test]
fn every_function_of_the_simulator_is_found_probed_cheaply_and_counted() {
    let node = Node::new();
    let library = Library::open(&node.libcuda()).unwrap();
    assert_eq!(library.missing, [""; 0]);
    let slow: Vec<_> = library.points.iter().filter(|point| !point.emulated).collect();
    assert!(slow.is_empty(), "single-stepped: {slow:?}");
    assert_eq!(library.points.len(), PROBES.len(), "no two functions are one");

    let Some(seen) = observe(&[&node.libcuda()]) else { return };
    let mut client = Client::start(&node.libcuda());
    let mut expected = [0; Call::COUNT];
    for probe in PROBES {
        // The driver is not initialised: every one of them says so.
        client.run(&format!("call {} 7 3", probe.symbol));
        expected[probe.call as usize] += 21;
    }
    let pid = client.pid();
    client.end();
    assert_eq!(named(&seen.counts_of_dead(pid).application), named(&expected));
    let health = seen.health();
    assert_eq!((health.lost, health.unattributed), (0, 0));
}

#[test]
fn a_workloads_launches_are_all_seen() {
    let node =
        Node::builder().env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "100G").artifacts(Artifacts::find()).build();
    let Some(seen) = observe(&[&node.libcuda()]) else { return };
    let mut command = node.workload("--bytes 16M --iterations 3");
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let counts = seen.counts_of_dead(pid);
    // Fill once, step and verify every iteration, for each buffer: launches are a multiple, and there are some.
    assert!(counts.application[Call::Launch as usize] >= 7, "{:?}", named(&counts.application));
    assert!(counts.application[Call::Alloc as usize] >= 1, "{:?}", named(&counts.application));
    assert_eq!(named(&counts.engine), named(&[0; Call::COUNT]), "its threads are not the engine's");
}

#[test]
fn calls_that_the_shim_counts_are_seen_exactly_while_it_swaps() {
    let node = Node::builder().env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "10G").build();
    let Some(seen) = observe(&[&node.libcuda()]) else { return };
    let mut command = node.workload("--bytes 64M --iterations 6 --pause 50ms").with_shim();
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "50ms").stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id();
    let page = nvshare_testbed::wait_for("the counter page", Duration::from_secs(20), || counter_page(pid));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let counts = seen.counts_of_dead(pid);
    let made = |from: usize| -> [u64; Call::COUNT] {
        std::array::from_fn(|call| {
            if call >= Call::COMPARED {
                return 0;
            }
            let mut word = [0; 8];
            page.read_exact_at(&mut word, 8 * (from + call) as u64).unwrap();
            u64::from_ne_bytes(word)
        })
    };
    assert_eq!(compared(&counts.application), named(&made(0)), "the application's");
    assert_eq!(compared(&counts.engine), named(&made(Call::COMPARED)), "the engine's");
    assert!(counts.engine[Call::Map as usize] > 0, "nothing was swapped in: {:?}", named(&counts.engine));
    let health = seen.health();
    assert_eq!((health.lost, health.unattributed), (0, 0));
    assert_eq!(node.violations(), [""; 0]);
}

/// The counts of what the shim counts as well.
fn compared(counts: &[u64; Call::COUNT]) -> std::collections::BTreeMap<&'static str, u64> {
    let mut counts = *counts;
    counts[Call::COMPARED..].fill(0);
    named(&counts)
}

/// The page that a client shares with the agent, taken from its descriptors: it can be read after its death too.
fn counter_page(pid: u32) -> Option<File> {
    std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().find_map(|entry| {
        let name = std::fs::read_link(entry.path()).ok()?;
        name.to_str()?.contains("nvshare-counters").then(|| File::open(entry.path()).ok())?
    })
}
