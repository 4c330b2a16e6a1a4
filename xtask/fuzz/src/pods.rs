//! What an API server and a kubelet send: pods and their annotations, who has which device, requests for shares.

use std::collections::BTreeMap;

use nvshare_agent::plugin::allocate::Hand;
use nvshare_agent::plugin::api::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest,
    PreferredAllocationRequest,
};
use nvshare_agent::plugin::devices::{Roster, Share};
use nvshare_agent::plugin::options::Preload;
use nvshare_agent::plugin::prefer::prefer;
use nvshare_agent::pods::kubelet::{ContainerDevices, ContainerResources, ListResponse, PodResources};
use nvshare_agent::pods::{annotations, doors};
use nvshare_common::ids::ClientId;
use prost::Message;

/// More shares than this are not asked for in one request: a message of the kubelet is 4 MiB at most.
const MOST_SHARES: usize = 4096;

/// A pod as JSON; its annotations become orders, and never more than there are settings.
pub(crate) fn pods(json: &[u8]) {
    let Some((uid, pod)) = doors::pod(json) else { return };
    let _ = uid.to_string();
    let (orders, problems) = annotations::orders(&pod.annotations, ClientId(1));
    assert_eq!(orders.len(), 3, "one order for each setting");
    for problem in problems {
        let said = problem.to_string();
        assert!(said.len() < 2000 && !said.contains('\n'), "{said}");
    }
}

/// A pod with annotations that are good, bad and unknown.
pub(crate) fn pod_seeds() -> Vec<Vec<u8>> {
    let id = |digit: &str| format!("containerd://{}", digit.repeat(64));
    let pod = serde_json::json!({
        "metadata": {
            "uid": "u", "namespace": "ml", "name": "train-0",
            "annotations": {"kubernetes.io/config.hash": "0f3b5a9c7d1e2f405162738495a6b7c8", "nvshare.com/weight": "2",
                "nvshare.com/memory-limit": "1.5e3Gi", "nvshare.com/priority": "high", "nvshare.com/x": "1"},
        },
        "status": {
            "initContainerStatuses": [{"name": "fetch", "containerID": id("1"), "image": "", "imageID": "",
                "ready": false, "restartCount": 0}],
            "containerStatuses": [{"name": "trainer", "containerID": id("2"), "image": "", "imageID": "",
                "ready": true, "restartCount": 1, "lastState": {"terminated": {"containerID": id("3"), "exitCode": 1}}}],
        },
    });
    vec![pod.to_string().into_bytes(), br#"{"metadata":{"uid":"u","namespace":"n","name":"p"}}"#.to_vec()]
}

/// The first byte says which message the others are: the kubelet's answer about resources, a request for shares, a
/// question which shares.
pub(crate) fn kubelet(bytes: &[u8]) {
    let Some((kind, message)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => drop(doors::pod_resources(message)),
        1 => {
            let Ok(request) = AllocateRequest::decode(message) else { return };
            let roster = Roster::new(4);
            let hand = Hand {
                socket: "/run/nvshare/agent.sock".into(),
                library: "/var/lib/nvshare/current".into(),
                preload: Preload::Env,
            };
            for one in &request.container_requests {
                let given = hand.give(&one.device_ids, &roster);
                assert!(given.is_err() || one.device_ids.is_empty(), "no GPU was seen, and one was given");
            }
        }
        _ => {
            let Ok(request) = PreferredAllocationRequest::decode(message) else { return };
            for one in &request.container_requests {
                let (free, included) = (&one.available_device_ids, &one.must_include_device_ids);
                if free.len() > MOST_SHARES {
                    continue;
                }
                if let Ok(chosen) = prefer(free, included, one.allocation_size, 4, &BTreeMap::new()) {
                    assert!(chosen.len() <= one.allocation_size as usize, "more than was asked for");
                    assert!(chosen.iter().all(|id| id.parse::<Share>().is_ok()), "{chosen:?}");
                }
            }
        }
    }
}

/// One of each.
pub(crate) fn kubelet_seeds() -> Vec<Vec<u8>> {
    let ids =
        |numbers: std::ops::Range<u32>| numbers.map(|number| format!("GPU-1::{number}")).collect::<Vec<_>>();
    let devices = ContainerDevices { resource: "nvshare.com/gpu".into(), ids: ids(0..3) };
    let container = ContainerResources { name: "server".into(), devices: vec![devices] };
    let pod = PodResources { name: "infer".into(), namespace: "ml".into(), containers: vec![container] };
    let list = ListResponse { pods: vec![pod] };
    let allocate =
        AllocateRequest { container_requests: vec![ContainerAllocateRequest { device_ids: ids(0..2) }] };
    let preferred = PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_ids: ids(0..4),
            must_include_device_ids: ids(1..2),
            allocation_size: 2,
        }],
    };
    let framed = |kind: u8, message: Vec<u8>| [vec![kind], message].concat();
    vec![
        framed(0, list.encode_to_vec()),
        framed(1, allocate.encode_to_vec()),
        framed(2, preferred.encode_to_vec()),
    ]
}
