//! Where texts and messages about pods come in, each as a function of these bytes alone: what the fuzzer (`xtask/fuzz`)
//! knocks at. What is not here (cgroups, annotations, quantities) is public where it is.

use k8s_openapi::api::core::v1 as api;
use prost::Message;

use super::cgroup::PodUid;
use super::directory::{Allocated, Pod};
use super::{cluster, environ, kubelet};

/// The device ids in the bytes of a process' `/proc/PID/environ`.
pub fn environ(bytes: &[u8]) -> Vec<String> {
    environ::device_ids(bytes)
}

/// Who got which device, by the kubelet's answer.
pub fn pod_resources(answer: &[u8]) -> Option<Allocated> {
    Some(kubelet::allocated(kubelet::ListResponse::decode(answer).ok()?))
}

/// A pod, by the API server's.
pub fn pod(json: &[u8]) -> Option<(PodUid, Pod)> {
    cluster::read(&serde_json::from_slice::<api::Pod>(json).ok()?)
}
