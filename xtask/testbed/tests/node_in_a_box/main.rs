//! A node in a box: the agent in a container as the DaemonSet describes it, and pods in containers of their own, made of
//! what the device plugin hands out, without any privilege. Only the kubelet, the API server and the card are stand-ins.

mod churn;
mod manifest;
mod node;

use std::sync::{Mutex, MutexGuard, PoisonError};

use nvshare_testbed::{Artifacts, Container, containers_work};

use crate::manifest::Manifest;
use crate::node::{ClusterNode, name};

/// Each wants three quarters of the card.
const PODS: usize = 4;
const BYTES: &str = "68M";
/// So many switches before the agent is replaced, and again after it: two for each pod.
const TURNS: u64 = 8;

fn possible() -> bool {
    if Artifacts::find().ebpf().is_none() {
        eprintln!(
            "SKIPPED: the node in a box was not tried: the eBPF programs were not built, see `cargo xtask setup`"
        );
        return false;
    }
    containers_work()
}

/// Every agent looks at all processes of the machine: what one test starts would be counted in another.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the agent's container goes.
enum Replaced {
    /// It dies, and is started again.
    Killed,
    /// It is stopped in order, and the init container of its successor runs first.
    Updated,
}

/// Four pods share the card, while the agent's container is replaced by a new one.
fn four_pods_share_a_card(manifest: Manifest, replaced: Replaced) {
    let _alone = alone();
    let node = ClusterNode::new(manifest);
    node.install();
    assert!(node.has_library(), "the init container put no library on the node");
    let agent = node.agent();
    let mut pods: Vec<Container> = (0..PODS).map(|number| node.pod(number, BYTES)).collect();
    agent.wait_for_turns(PODS, TURNS);
    let owners: Vec<String> = (0..PODS).map(|number| format!("ml/{}/trainer", name(number))).collect();
    assert_eq!(agent.owners(), owners);

    match replaced {
        Replaced::Killed => agent.kill(),
        Replaced::Updated => {
            agent.stop();
            node.install();
        }
    }
    let agent = node.agent();
    agent.wait_for_turns(PODS, TURNS);
    assert_eq!(agent.owners(), owners);
    assert_eq!(node.kubelet.registrations(), 2, "the new agent's plugin registers too");

    for pod in &mut pods {
        assert!(pod.ended().is_none(), "a pod noticed: {}", pod.errors());
    }
    node.finish();
    for (number, pod) in pods.iter_mut().enumerate() {
        let report = pod.succeed();
        assert!(report["iterations"].as_u64() >= Some(2), "a pod hardly ran: {report}");
        assert_eq!(pod.errors(), "", "a pod noticed");
        let limited = report["device_bytes"] == node::LIMITED.1;
        assert_eq!(limited, number == node::LIMITED.0, "pod {number} asked how much there is: {report}");
    }
    agent.wait_until_forgotten();
    assert_eq!(node.violations(), Vec::<String>::new());
}

#[test]
fn pods_share_a_card_and_do_not_notice_that_a_privileged_agent_is_updated() {
    if possible() {
        four_pods_share_a_card(Manifest::privileged(), Replaced::Updated);
    }
}

#[test]
fn pods_share_a_card_and_do_not_notice_that_an_agent_with_four_capabilities_is_killed() {
    if possible() {
        four_pods_share_a_card(Manifest::unprivileged(), Replaced::Killed);
    }
}
