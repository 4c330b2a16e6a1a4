//! Follows this node's pods at the API server: a list, then a watch from where the list ended, again and again. Needs
//! get, list and watch on pods, and nothing more.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1 as api;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::Resource;
use tokio::sync::mpsc;

use super::News;
use super::annotations::Annotations;
use super::cgroup::{ContainerId, PodUid};
use super::directory::Pod;
use super::trouble::Trouble;

/// After so long a watch begins anew: a connection that silently broke is noticed then at the latest.
const WATCH_SECONDS: u32 = 120;
/// A list may take so long.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Set by the kubelet on the API server's image of a pod from a file: by which its cgroup is named.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// The connection to the API server: `url` without an account (a proxy, or a test), or the pod's service account.
pub(super) fn connect(url: Option<axum::http::Uri>) -> Result<kube::Client, Trouble> {
    let config = match url {
        Some(url) => kube::Config::new(url),
        None => kube::Config::incluster().map_err(|error| Trouble::no_account(&error))?,
    };
    kube::Client::try_from(config).map_err(|error| Trouble::of_api(&error))
}

/// Follows the pods of `node` until nobody wants to know.
pub(super) async fn follow(client: kube::Client, node: String, tell: mpsc::Sender<News>) {
    let pods: Api<api::Pod> = Api::all(client);
    let mut pause = FIRST_PAUSE;
    while !tell.is_closed() {
        let began = tokio::time::Instant::now();
        if let Err(trouble) = list_and_watch(&pods, &node, &tell).await {
            let _ = tell.send(News::ApiTrouble(trouble)).await;
        }
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Ends when the watch cannot go on from where it is, or nobody wants to know.
async fn list_and_watch(pods: &Api<api::Pod>, node: &str, tell: &mpsc::Sender<News>) -> Result<(), Trouble> {
    let field = format!("spec.nodeName={node}");
    let failed = |error| Trouble::of_api(&error);
    let list = ListParams::default().fields(&field);
    let list = tokio::time::timeout(LIST_LIMIT, pods.list(&list)).await;
    let list = list.map_err(|_| Trouble::silent())?.map_err(failed)?;
    let mut version = list.metadata.resource_version.unwrap_or_default();
    let all = list.items.iter().filter_map(read).collect();
    if tell.send(News::Pods(all)).await.is_err() {
        return Ok(());
    }
    let watch = WatchParams::default().fields(&field).timeout(WATCH_SECONDS);
    loop {
        let began = tokio::time::Instant::now();
        let limit = Duration::from_secs(u64::from(WATCH_SECONDS)) + LIST_LIMIT;
        let events = tokio::time::timeout(LIST_LIMIT, pods.watch(&watch, &version)).await;
        let mut events = match events.map_err(|_| Trouble::silent())? {
            Ok(events) => events.boxed(),
            Err(error) if expired(&error) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        loop {
            let event = tokio::time::timeout(limit, events.try_next()).await;
            let news = match event.map_err(|_| Trouble::silent())?.map_err(failed)? {
                // The server ends every watch after a while.
                None => break,
                Some(WatchEvent::Bookmark(mark)) => {
                    version = mark.metadata.resource_version;
                    continue;
                }
                Some(WatchEvent::Error(status)) => {
                    let error = kube::Error::Api(status);
                    return if expired(&error) { Ok(()) } else { Err(failed(error)) };
                }
                Some(WatchEvent::Added(pod) | WatchEvent::Modified(pod)) => {
                    version = pod.metadata.resource_version.clone().unwrap_or(version);
                    read(&pod).map(|(uid, pod)| News::Pod(uid, pod))
                }
                Some(WatchEvent::Deleted(pod)) => {
                    version = pod.metadata.resource_version.clone().unwrap_or(version);
                    pod.metadata.uid.map(|uid| News::NoPod(PodUid::new(uid)))
                }
            };
            if let Some(news) = news
                && tell.send(news).await.is_err()
            {
                return Ok(());
            }
        }
        // A server that ends watches at once is not asked in a frenzy.
        tokio::time::sleep(FIRST_PAUSE.saturating_sub(began.elapsed())).await;
    }
}

/// The version is too old to watch from: the pods have to be listed again.
fn expired(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

/// What we need of a pod; `None` for one without a name or UID, which no API server sends.
pub(super) fn read(pod: &api::Pod) -> Option<(PodUid, Pod)> {
    let meta = pod.meta();
    let uid = PodUid::new(meta.uid.clone()?);
    let status = pod.status.as_ref();
    let statuses = status.into_iter().flat_map(|status| {
        let kinds = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        kinds.into_iter().flatten().flatten()
    });
    let ended = |status: &api::ContainerStatus| {
        let ends = [status.state.as_ref(), status.last_state.as_ref()].into_iter().flatten();
        let ids = ends.filter_map(|state| state.terminated.as_ref()?.container_id.clone());
        ids.collect::<Vec<_>>()
    };
    let containers = statuses.flat_map(|status| {
        let ids = status.container_id.clone().into_iter().chain(ended(status));
        ids.filter_map(|id| Some((ContainerId::of_status(&id)?, status.name.clone())))
    });
    let annotations = meta.annotations.as_ref();
    let pod = Pod {
        namespace: meta.namespace.clone()?,
        name: meta.name.clone()?,
        annotations: Annotations::of(annotations.into_iter().flatten()),
        containers: containers.collect::<BTreeMap<_, _>>(),
        alias: annotations.and_then(|all| all.get(CONFIG_HASH)).map(PodUid::new),
    };
    Some((uid, pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::cgroup::Place;
    use crate::pods::directory::Directory;
    use crate::pods::trouble::Kind;

    #[tokio::test]
    async fn a_server_that_is_asked_over_tls_and_is_not_there_is_reported() {
        let url = "https://127.0.0.1:1".parse().unwrap();
        let mut config = kube::Config::new(url);
        config.root_cert = Some(Vec::new());
        let error = kube::Client::try_from(config).unwrap().apiserver_version().await.unwrap_err();
        let trouble = Trouble::of_api(&error);
        assert_eq!(trouble.kind, Kind::Unreached);
        assert!(trouble.why.contains("Connection refused"), "{}", trouble.why);
    }

    #[test]
    fn containers_of_all_kinds_are_known_and_those_before_a_restart() {
        let id = |digit: &str| format!("containerd://{}", digit.repeat(64));
        let pod: api::Pod = serde_json::from_value(serde_json::json!({
            "metadata": {
                "uid": "u", "namespace": "ml", "name": "train-0",
                "annotations": {"kubernetes.io/config.hash": "0f3b5a9c7d1e2f405162738495a6b7c8", "nvshare.com/weight": "2"},
            },
            "status": {
                "initContainerStatuses": [{"name": "fetch", "containerID": id("1"), "image": "", "imageID": "",
                    "ready": false, "restartCount": 0}],
                "containerStatuses": [{"name": "trainer", "containerID": id("2"), "image": "", "imageID": "",
                    "ready": true, "restartCount": 1, "lastState": {"terminated": {"containerID": id("3"), "exitCode": 1}}},
                    {"name": "waits", "image": "", "imageID": "", "ready": false, "restartCount": 0}],
                "ephemeralContainerStatuses": [{"name": "debug", "containerID": id("4"), "image": "", "imageID": "",
                    "ready": false, "restartCount": 0}],
            },
        }))
        .unwrap();
        let directory = Directory::new([read(&pod).unwrap()].into(), BTreeMap::new());
        for (digit, name) in [("1", "fetch"), ("2", "trainer"), ("3", "trainer"), ("4", "debug")] {
            let found = directory.find(&Place::of_path(&format!("/x/{}", digit.repeat(64))), &[]);
            assert_eq!((found.owner.pod.as_str(), found.owner.container.as_str()), ("train-0", name));
        }
        let from_file = Place::of_path("/kubepods/pod0f3b5a9c7d1e2f405162738495a6b7c8");
        assert_eq!(directory.find(&from_file, &[]).owner.pod, "train-0");
    }
}
