//! Containers made of what the plugin returned and nothing else: the library is in their programs, the agent knows them,
//! and they share a card.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nvshare_agent::plugin::api::ContainerAllocateResponse;
use nvshare_testbed::kubernetes::{Kubelet, allocated};
use nvshare_testbed::{Agent, Container, ContainerBuilder, containers_work, wait_for};
use serde_json::Value;

use crate::node::KubernetesNode;

const LIMIT: Duration = Duration::from_mins(2);

/// What the kubelet and the container runtime make of an allocation.
fn with(
    given: &ContainerAllocateResponse,
    cdi: Option<&Value>,
    container: ContainerBuilder,
) -> ContainerBuilder {
    let mut container = allocated(given, Path::new("/"), container);
    for device in &given.cdi_devices {
        let (kind, name) = device.name.split_once('=').expect("a qualified name");
        let specification = cdi.expect("a CDI specification");
        assert_eq!(specification["kind"], kind);
        let devices = specification["devices"].as_array().expect("devices");
        let device = devices.iter().find(|device| device["name"] == name).expect("the device");
        for mount in device["containerEdits"]["mounts"].as_array().expect("mounts") {
            let path = |what: &str| mount[what].as_str().expect("a path").to_owned();
            container = container.mount_read_only(path("hostPath"), path("containerPath"));
        }
    }
    container
}

/// The pids of the agent's clients.
fn clients(agent: &Agent) -> Vec<u32> {
    let state = agent.state();
    let clients = state["clients"].as_array().expect("clients");
    clients.iter().filter_map(|client| client["process"]["pid"].as_u64()).map(|pid| pid as u32).collect()
}

fn wait_until_client(agent: &Agent, container: &Container) {
    wait_for("the container is a client of the agent", LIMIT, || {
        clients(agent).contains(&container.id()).then_some(())
    });
}

fn share(kubelet: &Kubelet, number: usize) -> ContainerAllocateResponse {
    let devices: Vec<String> = kubelet.devices(3, 3).into_iter().map(|device| device.id).collect();
    kubelet.allocate(&devices[number..=number]).unwrap()
}

#[test]
fn two_containers_with_shares_of_one_card_take_turns_on_it() {
    if !containers_work() {
        return;
    }
    let node = KubernetesNode::new(1);
    node.install();
    let kubelet = Kubelet::start(&node.kubelet());
    let agent = node.agent(&[]);
    let mut containers = [0, 1].map(|number| {
        let flags = format!("--bytes 64M --buffers 4 --seconds 8 --seed {}", number + 1);
        with(&share(&kubelet, number), None, node.node.workload_container(&flags)).start()
    });
    for container in &containers {
        wait_until_client(&agent, container);
    }
    for container in &mut containers {
        let report = container.succeed();
        assert!(report["iterations"].as_u64() >= Some(1), "a container did not run: {report}");
    }
    let switches = agent.state()["switches"]["count"].as_u64();
    assert!(switches >= Some(2), "they did not take turns: {switches:?}");
    assert_eq!(node.node.violations(), Vec::<String>::new());
}

/// How the library can be handed over.
const WAYS: [&str; 3] = ["ld-so-preload", "env", "cdi"];

/// A node whose plugin hands the library over that way, and one allocation of it.
struct Way {
    node: KubernetesNode,
    _kubelet: Kubelet,
    agent: Agent,
    given: ContainerAllocateResponse,
    cdi: Option<Value>,
}

impl Way {
    fn new(preload: &str) -> Way {
        let node = KubernetesNode::new(1);
        node.install();
        let kubelet = Kubelet::start(&node.kubelet());
        let agent = node.agent(&["--preload", preload]);
        let given = share(&kubelet, 0);
        let cdi = std::fs::read(node.cdi().join("nvshare.com-gpu.json")).ok();
        let cdi: Option<Value> = cdi.map(|text| serde_json::from_slice(&text).unwrap());
        assert_eq!(cdi.is_some(), preload == "cdi");
        Way { node, _kubelet: kubelet, agent, given, cdi }
    }
}

#[test]
fn every_way_of_preloading_makes_a_container_a_client_unless_it_opts_out() {
    if !containers_work() {
        return;
    }
    for preload in WAYS {
        let Way { node, agent, given, cdi, .. } = Way::new(preload);
        let container = || node.node.workload_container("--bytes 16M --seconds 3");
        let mut client = with(&given, cdi.as_ref(), container()).start();
        wait_until_client(&agent, &client);
        client.succeed();
        let mut other = with(&given, cdi.as_ref(), container()).env("NVSHARE_DISABLE", "1").start();
        other.succeed();
        // Of the two the first alone was ever a client.
        let opened = agent.state()["sessions"]["opened"].as_u64();
        assert_eq!(opened, Some(1), "with {preload}: a container that opted out is a client");
        assert_eq!(node.node.violations(), Vec::<String>::new());
    }
}

/// As in an image of Alpine Linux: musl's loader loads whatever it finds under a path in `LD_PRELOAD`, and ends the program
/// where it cannot; it knows no `$LIB`, finds nothing there and goes on; and it never reads `/etc/ld.so.preload`.
#[test]
fn programs_with_another_c_library_run_however_the_library_is_handed_over() {
    if !containers_work() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (directory.path().join("program.c"), directory.path().join("program"));
    std::fs::write(&source, "#include <stdio.h>\nint main(void) { return puts(\"runs\") < 0; }\n").unwrap();
    let compiled = Command::new("musl-gcc").arg("-o").arg(&program).arg(&source).status();
    if !compiled.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: no program of musl was tried: `apt-get install musl-tools`");
    }
    let musl = || ContainerBuilder::new(["/musl/program"]).mount_read_only(directory.path(), "/musl");
    for preload in WAYS {
        let way = Way::new(preload);
        let mut container = with(&way.given, way.cdi.as_ref(), musl()).start();
        assert!(container.end().success(), "with {preload}: {}", container.errors());
        assert_eq!(container.output(), "runs\n", "with {preload}");
        // What is avoided.
        let plain = musl().mount_read_only(way.node.library(), "/plain");
        let status = plain.env("LD_PRELOAD", "/plain/libnvshare.so").start().end();
        assert_eq!(status.code(), Some(127), "this musl loads a library that was made for glibc");
    }
}

#[test]
fn a_container_cannot_write_where_the_agent_listens() {
    if !containers_work() {
        return;
    }
    let node = KubernetesNode::new(1);
    node.install();
    let kubelet = Kubelet::start(&node.kubelet());
    let _agent = node.agent(&[]);
    let script = "for path in /run/nvshare /var/lib/nvshare/current; do \
                  test -d $path && ! touch $path/mine || exit 9; done; \
                  test -S /run/nvshare/agent.sock && cat /etc/ld.so.preload";
    let mut container =
        with(&share(&kubelet, 0), None, ContainerBuilder::new(["/bin/sh", "-c", script])).start();
    assert!(container.end().success(), "{}", container.errors());
    assert_eq!(container.output(), "/var/lib/nvshare/current/libnvshare.so\n");
}
