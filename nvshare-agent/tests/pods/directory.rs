//! What is known of pods, from a stand-in API server and a stand-in kubelet, when these work and when they do not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nvshare_agent::health::{Health, Part};
use nvshare_agent::pods::cgroup::Place;
use nvshare_agent::pods::directory::{Certainty, Directory};
use nvshare_agent::pods::{self, ApiServer, Options, events};
use nvshare_testbed::kubernetes::{Api, NODE, pod};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::kubelet;

const LIMIT: Duration = Duration::from_mins(1);
const UID: &str = "4a6f2d3c-11aa-4f0e-9d7b-5f8f6c0b1e22";
const OTHER: &str = "5b6f2d3c-11aa-4f0e-9d7b-5f8f6c0b1e22";

struct Kept {
    directory: watch::Receiver<Arc<Directory>>,
    health: Health,
}

impl Kept {
    fn start(options: Options) -> Kept {
        let health = Health::new();
        for part in Part::ALL.into_iter().filter(|part| *part != Part::Pods) {
            health.works(part);
        }
        let (directory, keeper) = pods::start(options, health.clone());
        tokio::spawn(keeper);
        Kept { directory, health }
    }

    fn with(api: &Api) -> Kept {
        Kept::start(Options { pod_resources: None, ..options(api.url()) })
    }

    /// `namespace/pod/container` of a container, once it is that.
    async fn owner(&mut self, cgroup: &str, devices: &[&str], expected: &str) {
        let devices: Vec<String> = devices.iter().map(|id| (*id).to_owned()).collect();
        let place = Place::of_path(cgroup);
        let is = |directory: &Arc<Directory>| directory.find(&place, &devices).owner.to_string() == expected;
        let found = tokio::time::timeout(LIMIT, self.directory.wait_for(is)).await;
        found.unwrap_or_else(|_| panic!("{cgroup} never belonged to {expected}")).unwrap();
    }

    /// What is missing of the part, once it says all of `parts`; nothing missing if there are none.
    async fn says(&self, parts: &[&str]) -> String {
        let end = tokio::time::Instant::now() + LIMIT;
        loop {
            let missing = self.health.readiness().missing;
            let why = missing.first().map(|missing| missing.why.clone()).unwrap_or_default();
            if missing.is_empty() == parts.is_empty() && parts.iter().all(|part| why.contains(part)) {
                return why;
            }
            assert!(tokio::time::Instant::now() < end, "it never says {parts:?}; it says {why:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn options(url: axum::http::Uri) -> Options {
    Options {
        node: Some(NODE.to_owned()),
        api: Some(ApiServer { url: Some(url) }),
        pod_resources: Some(PathBuf::from("/nowhere/kubelet.sock")),
    }
}

async fn api() -> Api {
    Api::start(TcpListener::bind("127.0.0.1:0").await.unwrap())
}

fn id(digit: &str) -> String {
    digit.repeat(64)
}

fn cgroup(uid: &str, digit: &str) -> String {
    format!("/kubepods/burstable/pod{uid}/{}", id(digit))
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_change_and_go_with_the_api_server() {
    let api = api().await;
    api.put(pod("train-0", UID, None, json!({})));
    let mut kept = Kept::with(&api);
    kept.owner(&cgroup(UID, "a"), &[], "ml/train-0/aaaaaaaaaaaa").await;
    kept.says(&[]).await;
    api.put(pod("train-0", UID, Some(("trainer", &id("a"))), json!({})));
    kept.owner(&cgroup(UID, "a"), &[], "ml/train-0/trainer").await;
    api.put(pod("train-1", OTHER, Some(("trainer", &id("b"))), json!({})));
    kept.owner(&format!("/../{}", id("b")), &[], "ml/train-1/trainer").await;
    api.delete(UID);
    kept.owner(&cgroup(UID, "a"), &[], "aaaaaaaaaaaa").await;
    assert_eq!(api.lists(), 1, "changes come by the watch, not by listing again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_missed_changes_lists_again() {
    let api = api().await;
    api.put(pod("train-0", UID, Some(("trainer", &id("a"))), json!({})));
    let mut kept = Kept::with(&api);
    kept.owner(&cgroup(UID, "a"), &[], "ml/train-0/trainer").await;
    api.delete_and_forget(UID);
    kept.owner(&cgroup(UID, "a"), &[], "aaaaaaaaaaaa").await;
    kept.says(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_reported_with_the_rights_that_are_missing_and_what_was_known_is_kept() {
    let api = api().await;
    api.put(pod("train-0", UID, Some(("trainer", &id("a"))), json!({})));
    let mut kept = Kept::with(&api);
    kept.owner(&cgroup(UID, "a"), &[], "ml/train-0/trainer").await;
    api.deny(true);
    kept.says(&["pods is forbidden", "get, list and watch on pods"]).await;
    assert!(kept.health.readiness().ready, "the agent does without");
    kept.owner(&cgroup(UID, "a"), &[], "ml/train-0/trainer").await;
    api.deny(false);
    kept.says(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_api_server_the_kubelet_tells_by_device_ids_until_there_is_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let home = TempDir::with_prefix("nvshare-pods-").unwrap();
    let socket = home.path().join("kubelet.sock");
    let url = format!("http://{address}").parse().unwrap();
    let mut kept = Kept::start(Options { pod_resources: Some(socket.clone()), ..options(url) });
    kept.says(&["cannot reach the API server", "refused", "no pod-resources socket", "--pod-resources"])
        .await;

    kubelet::serve(&socket, "GPU-1::3");
    kept.owner(&cgroup(UID, "a"), &["GPU-1::3"], "ml/infer/server").await;
    kept.owner(&cgroup(UID, "a"), &["GPU-1::4"], "aaaaaaaaaaaa").await;
    kept.says(&["cannot reach the API server", "meanwhile the kubelet"]).await;

    let api = Api::start(TcpListener::bind(address).await.unwrap());
    api.put(pod("train-0", UID, Some(("trainer", &id("a"))), json!({})));
    kept.owner(&cgroup(UID, "a"), &["GPU-1::3"], "ml/train-0/trainer").await;
    kept.says(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_of_kubernetes_nothing_is_missing_and_in_it_a_node_needs_its_name() {
    Kept::start(Options::default()).says(&[]).await;
    let nameless =
        Options { node: None, pod_resources: None, ..options("http://127.0.0.1:1".parse().unwrap()) };
    Kept::start(nameless).says(&["NODE_NAME", "spec.nodeName", "--node-name"]).await;
    let kubelet_only = Options { api: None, node: None, ..options("http://127.0.0.1:1".parse().unwrap()) };
    Kept::start(kubelet_only).says(&["/nowhere/kubelet.sock", "--pod-resources"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_that_makes_no_sense_is_told_to_the_pods_owner_once() {
    let api = api().await;
    let annotations = json!({"nvshare.com/priority": "urgent", "nvshare.com/memory-limit": "8Gi"});
    api.put(pod("train-0", UID, None, annotations.clone()));
    let mut kept = Kept::with(&api);
    // It changes in something else, and another pod has nothing wrong.
    api.put(pod("train-0", UID, Some(("trainer", &id("a"))), annotations));
    api.put(pod("train-1", OTHER, Some(("trainer", &id("b"))), json!({"nvshare.com/priority": "low"})));
    kept.owner(&cgroup(UID, "a"), &[], "ml/train-0/trainer").await;
    kept.owner(&cgroup(OTHER, "b"), &[], "ml/train-1/trainer").await;
    api.put(pod("train-0", UID, None, json!({"nvshare.com/weight": "heavy"})));
    let end = tokio::time::Instant::now() + LIMIT;
    while api.events().len() < 2 {
        assert!(tokio::time::Instant::now() < end, "events: {:?}", api.events());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let [priority, weight] = api.events().try_into().expect("two events");
    assert_eq!(priority["reason"], events::REASON);
    assert_eq!((&priority["type"], &priority["source"]["host"]), (&json!("Warning"), &json!(NODE)));
    assert_eq!(priority["involvedObject"]["uid"], UID);
    assert_eq!(priority["involvedObject"]["name"], "train-0");
    let message = priority["message"].as_str().unwrap();
    for part in ["nvshare.com/priority", "urgent", "high, normal or low", "the priority is normal"] {
        assert!(message.contains(part), "{message} says nothing of {part}");
    }
    assert!(weight["message"].as_str().unwrap().contains("nvshare.com/weight"), "{weight}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_pods_leave_nothing_behind() {
    let api = api().await;
    let mut kept = Kept::with(&api);
    for number in 0..200 {
        let uid = format!("4a6f2d3c-11aa-4f0e-9d7b-{number:012}");
        let container = format!("{number:064x}");
        api.put(pod(
            &format!("job-{number}"),
            &uid,
            Some(("main", &container)),
            json!({"nvshare.com/weight": "?"}),
        ));
        if number >= 10 {
            api.delete(&format!("4a6f2d3c-11aa-4f0e-9d7b-{:012}", number - 10));
        }
    }
    for number in 190..200 {
        api.delete(&format!("4a6f2d3c-11aa-4f0e-9d7b-{number:012}"));
    }
    api.put(pod("last", UID, Some(("main", &id("a"))), json!({})));
    kept.owner(&cgroup(UID, "a"), &[], "ml/last/main").await;
    let directory = kept.directory.borrow().clone();
    assert_eq!(directory.pods().len(), 1);
    let gone = Place::of_path(&format!("/x/{:064x}", 150));
    assert_eq!(directory.find(&gone, &[]).certainty, Certainty::Unknown);
}
