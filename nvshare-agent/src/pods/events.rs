//! Tells the owner of a pod which of its annotations are ignored, and why: by an event that `kubectl describe pod` shows.
//! Needs create on events; without it the log has to do.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::mpsc;

use super::annotations::Problem;
use super::cgroup::PodUid;

/// Why the event is there, as programs read it.
pub const REASON: &str = "NvshareAnnotationIgnored";
/// Who says so.
const COMPONENT: &str = "nvshare-agent";
/// How many may wait to be posted; more are only logged.
pub(super) const QUEUE: usize = 64;

/// A problem of a pod.
#[derive(Debug)]
pub(super) struct Complaint {
    /// Whose.
    pub(super) namespace: String,
    /// Its name.
    pub(super) pod: String,
    /// Which of that name.
    pub(super) uid: PodUid,
    /// What is wrong.
    pub(super) problem: Problem,
}

/// Posts complaints one after another, until there can be none any more. What cannot be posted is said once.
pub(super) async fn post(client: kube::Client, node: String, mut complaints: mpsc::Receiver<Complaint>) {
    let mut failed = false;
    while let Some(complaint) = complaints.recv().await {
        let events: Api<api::Event> = Api::namespaced(client.clone(), &complaint.namespace);
        match events.create(&PostParams::default(), &event(&complaint, &node)).await {
            // An earlier agent said it already.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(
                    %error,
                    "cannot post events on pods: grant create on events to the agent's service account, or read here \
                     which annotations are ignored"
                );
            }
            Err(_) => {}
            Ok(_) => failed = false,
        }
    }
}

fn event(complaint: &Complaint, node: &str) -> api::Event {
    let Complaint { namespace, pod, uid, problem } = complaint;
    // The same complaint has the same name: a second agent does not repeat it.
    let mut hash = DefaultHasher::new();
    (uid, problem.to_string()).hash(&mut hash);
    let now = Time(Timestamp::now());
    api::Event {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}.{:016x}",
                pod.get(..200).unwrap_or(pod).trim_end_matches(['-', '.']),
                hash.finish()
            )),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: api::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.clone()),
            namespace: Some(namespace.clone()),
            uid: Some(uid.to_string()),
            ..api::ObjectReference::default()
        },
        reason: Some(REASON.to_owned()),
        message: Some(problem.to_string()),
        type_: Some("Warning".to_owned()),
        source: Some(api::EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..api::Event::default()
    }
}
