//! A stand-in for the API server: lists and watches the pods of one node as JSON over plain HTTP, takes events, and
//! refuses or forgets on demand.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The one node that there is.
pub const NODE: &str = "gpu-node-1";

#[derive(Default)]
struct Cluster {
    pods: BTreeMap<String, Value>,
    history: Vec<(u64, Value)>,
    version: u64,
    /// Versions before this are forgotten.
    oldest: u64,
    events: Vec<Value>,
    lists: u64,
    denied: bool,
}

/// The server; it ends with the test's runtime.
#[derive(Clone)]
pub struct Api {
    address: SocketAddr,
    cluster: Arc<Mutex<Cluster>>,
    changed: watch::Sender<u64>,
}

/// A pod as the API server shows it.
pub fn pod(name: &str, uid: &str, container: Option<(&str, &str)>, annotations: Value) -> Value {
    let status = |(name, id): (&str, &str)| {
        json!({"name": name, "containerID": format!("containerd://{id}"), "image": "", "imageID": "", "ready": true,
            "restartCount": 0})
    };
    json!({
        "metadata": {"name": name, "namespace": "ml", "uid": uid, "annotations": annotations},
        "spec": {"nodeName": NODE, "containers": []},
        "status": {"containerStatuses": container.map(status).into_iter().collect::<Vec<_>>()},
    })
}

impl Api {
    /// Begins to serve on `listener`.
    pub fn start(listener: TcpListener) -> Api {
        let address = listener.local_addr().unwrap();
        let api = Api { address, cluster: Arc::default(), changed: watch::channel(0).0 };
        let routes = Router::new()
            .route("/api/v1/pods", get(pods))
            .route("/api/v1/namespaces/{namespace}/events", post(events))
            .with_state(api.clone());
        tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
        api
    }

    /// Where it is.
    pub fn url(&self) -> Uri {
        format!("http://{}", self.address).parse().unwrap()
    }

    /// There is this pod, as it is now.
    pub fn put(&self, pod: Value) {
        self.change(|cluster| {
            let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
            let kind = if cluster.pods.contains_key(&uid) { "MODIFIED" } else { "ADDED" };
            let pod = stamped(pod, cluster.version);
            cluster.pods.insert(uid, pod.clone());
            cluster.history.push((cluster.version, json!({"type": kind, "object": pod})));
        });
    }

    /// The pod is gone.
    pub fn delete(&self, uid: &str) {
        self.change(|cluster| {
            let pod = stamped(cluster.pods.remove(uid).unwrap(), cluster.version);
            cluster.history.push((cluster.version, json!({"type": "DELETED", "object": pod})));
        });
    }

    /// The pod is gone, and a watch has missed it: versions until now are forgotten.
    pub fn delete_and_forget(&self, uid: &str) {
        self.change(|cluster| {
            cluster.pods.remove(uid).unwrap();
            cluster.history.clear();
            cluster.oldest = cluster.version;
        });
    }

    /// Whether everything is refused.
    pub fn deny(&self, denied: bool) {
        self.change(|cluster| cluster.denied = denied);
    }

    /// The events that were posted.
    pub fn events(&self) -> Vec<Value> {
        self.cluster.lock().unwrap().events.clone()
    }

    /// How often the pods were listed.
    pub fn lists(&self) -> u64 {
        self.cluster.lock().unwrap().lists
    }

    fn change(&self, change: impl FnOnce(&mut Cluster)) {
        let mut cluster = self.cluster.lock().unwrap();
        cluster.version += 1;
        change(&mut cluster);
        self.changed.send_replace(cluster.version);
    }
}

fn stamped(mut pod: Value, version: u64) -> Value {
    pod["metadata"]["resourceVersion"] = json!(version.to_string());
    pod
}

fn failure(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message,
        "reason": if code == 410 { "Expired" } else { "Forbidden" }})
}

fn refused() -> Response {
    (StatusCode::FORBIDDEN, Json(failure(403, "pods is forbidden: User \"agent\" cannot list")))
        .into_response()
}

async fn pods(State(api): State<Api>, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default().to_owned();
    let selector = format!("fieldSelector=spec.nodeName%3D{NODE}");
    assert!(query.contains(&selector), "pods of all nodes are asked for: {query}");
    if api.cluster.lock().unwrap().denied {
        return refused();
    }
    if !query.contains("watch=true") {
        let mut cluster = api.cluster.lock().unwrap();
        cluster.lists += 1;
        let items: Vec<&Value> = cluster.pods.values().collect();
        return Json(json!({"kind": "PodList", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": cluster.version.to_string()}}))
        .into_response();
    }
    let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap();
    let from: u64 = version.parse().unwrap();
    let changed = api.changed.subscribe();
    let lines = futures_util::stream::unfold(Some((api, changed, from)), watch_on);
    Body::from_stream(lines).into_response()
}

/// The next line of a watch, and from where it goes on.
async fn watch_on(
    at: Option<(Api, watch::Receiver<u64>, u64)>,
) -> Option<(Result<Bytes, Infallible>, Option<(Api, watch::Receiver<u64>, u64)>)> {
    let (api, mut changed, from) = at?;
    let line = |event: &Value| Ok(Bytes::from(format!("{event}\n")));
    loop {
        changed.borrow_and_update();
        {
            let cluster = api.cluster.lock().unwrap();
            if cluster.denied {
                return None;
            }
            if from < cluster.oldest {
                let event = json!({"type": "ERROR", "object": failure(410, "too old resource version")});
                return Some((line(&event), None));
            }
            if let Some((version, event)) = cluster.history.iter().find(|(version, _)| *version > from) {
                let next = (api.clone(), changed, *version);
                return Some((line(event), Some(next)));
            }
        }
        changed.changed().await.ok()?;
    }
}

async fn events(State(api): State<Api>, Json(event): Json<Value>) -> Response {
    let mut cluster = api.cluster.lock().unwrap();
    if cluster.denied {
        return refused();
    }
    let same = |other: &Value| other["metadata"]["name"] == event["metadata"]["name"];
    if cluster.events.iter().any(same) {
        return (StatusCode::CONFLICT, Json(failure(409, "already exists"))).into_response();
    }
    cluster.events.push(event.clone());
    (StatusCode::CREATED, Json(event)).into_response()
}
