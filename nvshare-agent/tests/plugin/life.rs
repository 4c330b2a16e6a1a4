//! From registration to allocation, and what happens when the kubelet, the plugin's socket or the library go and come.

use std::time::Duration;

use nvshare_testbed::kubernetes::Kubelet;
use nvshare_testbed::{Agent, wait_for};
use serde_json::Value;

use crate::node::KubernetesNode;

const LIMIT: Duration = Duration::from_mins(1);

/// Why the plugin does not work, if so.
fn problem(agent: &Agent) -> Option<String> {
    let answer = agent.get("/readyz").expect("an answer").1;
    let readiness: Value = serde_json::from_str(&answer).expect("JSON");
    let missing = readiness["missing"].as_array().expect("a list");
    let plugin = missing.iter().find(|missing| missing["part"] == "plugin")?;
    assert_eq!(plugin["needed"], false, "an agent without it is ready: {answer}");
    plugin["why"].as_str().map(str::to_owned)
}

fn wait_for_problem(agent: &Agent, what: &str) {
    wait_for(&format!("the plugin's problem is {what}"), LIMIT, || {
        problem(agent).filter(|problem| problem.contains(what))
    });
}

fn wait_until_well(agent: &Agent) {
    wait_for("the plugin works", LIMIT, || problem(agent).is_none().then_some(()));
}

fn ids(kubelet: &Kubelet, all: usize) -> Vec<String> {
    kubelet.devices(all, all).into_iter().map(|device| device.id).collect()
}

#[test]
fn a_kubelet_hears_of_the_plugin_and_gets_shares_of_every_card() {
    let node = KubernetesNode::new(2);
    node.install();
    let kubelet = Kubelet::start(&node.kubelet());
    let agent = node.agent(&[]);
    let request = kubelet.registration(1);
    assert_eq!((request.resource_name.as_str(), request.version.as_str()), ("nvshare.com/gpu", "v1beta1"));
    assert!(request.options.unwrap().get_preferred_allocation_available);
    assert_eq!(kubelet.options(), request.options.unwrap());

    let cards: Vec<String> = agent.state()["devices"]
        .as_array()
        .expect("devices")
        .iter()
        .map(|device| device["uuid"].as_str().expect("a UUID").to_owned())
        .collect();
    let all = ids(&kubelet, 6);
    for card in &cards {
        let shares = (0..3).all(|number| all.contains(&format!("{card}::{number}")));
        assert!(shares, "not three shares of {card}: {all:?}");
    }

    let chosen = kubelet.prefer(&all, &[], 2).unwrap();
    assert_ne!(chosen[0].split("::").next(), chosen[1].split("::").next(), "one of each card");
    let mine = all.iter().filter(|id| id.starts_with(&cards[1])).cloned().collect::<Vec<_>>();
    assert!(kubelet.prefer(&all, &mine[..2], 3).unwrap().contains(&mine[1]));
    assert!(kubelet.prefer(&all, &[], 7).unwrap_err().message().contains("7 devices wanted, of 6"));

    let given = kubelet.allocate(&mine[2..]).unwrap();
    assert_eq!(given.envs["NVIDIA_VISIBLE_DEVICES"], cards[1]);
    assert_eq!(given.envs["NVSHARE_DEVICE_IDS"], mine[2]);
    for mount in &given.mounts {
        assert!(mount.read_only && std::path::Path::new(&mount.host_path).exists(), "{mount:?}");
    }
    let refused = kubelet.allocate(&["GPU-none::0".to_owned()]).unwrap_err();
    assert!(refused.message().contains("GPU-none::0"), "{refused}");
    assert_eq!(problem(&agent), None);

    agent.stop();
    assert!(!node.kubelet().join("nvshare.sock").exists(), "a stopped agent leaves no socket");
}

#[test]
fn the_plugin_comes_back_when_the_kubelet_restarts_or_its_own_socket_is_removed() {
    let node = KubernetesNode::new(1);
    node.install();
    let kubelet = Kubelet::start(&node.kubelet());
    let agent = node.agent(&[]);
    kubelet.devices(3, 3);
    for _ in 0..2 {
        drop(kubelet_of(&node, 1));
    }
    let kubelet = kubelet_of(&node, 1);
    std::fs::remove_file(node.kubelet().join("nvshare.sock")).unwrap();
    kubelet.registration(2);
    let devices = ids(&kubelet, 3);
    kubelet.allocate(&devices[..1]).unwrap();
    wait_until_well(&agent);
}

#[test]
fn a_kubelet_that_lost_sight_of_the_plugin_is_reminded() {
    let node = KubernetesNode::new(1);
    node.install();
    let kubelet = Kubelet::start(&node.kubelet());
    let _agent = node.agent(&[]);
    kubelet.devices(3, 3);
    kubelet.lose_sight();
    kubelet.registration(2);
    kubelet.devices(3, 3);
}

/// A kubelet that just started, once it knows the plugin and follows its devices.
fn kubelet_of(node: &KubernetesNode, registration: usize) -> Kubelet {
    let kubelet = Kubelet::start(&node.kubelet());
    kubelet.registration(registration);
    kubelet.devices(3, 3);
    kubelet
}

#[test]
fn a_kubelet_that_is_not_there_is_reported_once_and_found_when_it_comes() {
    let node = KubernetesNode::new(1);
    node.install();
    let agent = node.agent(&[]);
    wait_for_problem(&agent, "kubelet");
    // The directory comes first.
    std::fs::create_dir(node.kubelet()).unwrap();
    wait_for_problem(&agent, "kubelet.sock is missing");
    assert!(node.node.path().join("run/agent.sock").exists(), "the rest of the agent runs");
    let kubelet = Kubelet::start(&node.kubelet());
    kubelet.devices(3, 3);
    wait_until_well(&agent);
    let log = agent.log();
    assert_eq!(log.matches("kubelet.sock is missing").count(), 1, "logged once:\n{log}");
}

#[test]
fn without_the_library_no_share_is_given_and_with_it_they_are() {
    let node = KubernetesNode::new(1);
    let kubelet = Kubelet::start(&node.kubelet());
    let agent = node.agent(&[]);
    let devices: Vec<String> = kubelet.devices(3, 0).into_iter().map(|device| device.id).collect();
    wait_for_problem(&agent, "libnvshare.so");
    let refused = kubelet.allocate(&devices[..1]).unwrap_err();
    assert!(refused.message().contains("--library-dir"), "{refused}");
    node.install();
    kubelet.devices(3, 3);
    kubelet.allocate(&devices[..1]).unwrap();
    wait_until_well(&agent);
}
