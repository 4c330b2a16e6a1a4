//! Pods, not pids: to which namespace, pod and container a process belongs, and what its pod wants of us.
//!
//! A process is joined with its pod by its [`cgroup`], which the kernel keeps and the process cannot choose, and the
//! [`directory`] of this node's pods, which the API server keeps. Without the API server the device ids in the process'
//! environment (`environ`) are looked up at the kubelet ([`kubelet`]). The `keeper` task owns the directory and
//! publishes it; the conductor looks owners up in it when a process is first seen and when the directory changes.
//! [`annotations`] become orders to the conductor; one that makes no sense is told to its pod's owner ([`events`]).

pub mod annotations;
pub mod cgroup;
mod cluster;
pub mod directory;
pub mod doors;
pub(crate) mod environ;
pub mod events;
mod keeper;
pub mod kubelet;
pub mod quantity;
mod trouble;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::cgroup::PodUid;
use self::directory::{Allocated, Directory, Pod};
use self::trouble::Trouble;
use crate::config::Config;
use crate::health::Health;

/// Where the kubelet's pod-resources socket is unless told otherwise.
pub const POD_RESOURCES: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";

/// The API server to ask.
#[derive(Clone, Debug, Default)]
pub struct ApiServer {
    /// Where, without an account; `None`: by the pod's service account.
    pub url: Option<axum::http::Uri>,
}

/// The address of an API server.
pub fn server(text: &str) -> Result<axum::http::Uri, String> {
    let uri = text.parse::<axum::http::Uri>().ok();
    uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
        .ok_or_else(|| "expected a URL such as http://127.0.0.1:8001".to_owned())
}

/// Whom to ask about pods.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The name of this node.
    pub node: Option<String>,
    /// The API server, in a cluster.
    pub api: Option<ApiServer>,
    /// The kubelet's pod-resources socket, on its node.
    pub pod_resources: Option<PathBuf>,
}

impl Options {
    /// What is configured, where this process runs.
    pub fn of(config: &Config) -> Options {
        if config.no_pods {
            return Options::default();
        }
        let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let asked = in_cluster || config.kube_api.is_some();
        // On a machine without a kubelet nobody misses its socket, unless told where it is.
        let chosen = config.pod_resources != Path::new(POD_RESOURCES);
        let on_a_node = in_cluster || chosen || config.pod_resources.parent().is_some_and(Path::exists);
        Options {
            node: config.node_name.clone(),
            api: asked.then(|| ApiServer { url: config.kube_api.clone() }),
            pod_resources: on_a_node.then(|| config.pod_resources.clone()),
        }
    }
}

/// What the keeper hears.
enum News {
    /// These are all of them.
    Pods(BTreeMap<PodUid, Pod>),
    /// There is this one, or it is different now.
    Pod(PodUid, Pod),
    /// It is gone.
    NoPod(PodUid),
    /// The API server does not say.
    ApiTrouble(Trouble),
    /// Which devices the kubelet gave to whom: all of them.
    Allocated(Allocated),
    /// The kubelet does not say.
    KubeletTrouble(Trouble),
}

/// Starts the keeper: what it knows, from now on. It ends when nobody looks any more.
pub fn start(options: Options, health: Health) -> (watch::Receiver<Arc<Directory>>, JoinHandle<()>) {
    let (publish, directory) = watch::channel(Arc::new(Directory::default()));
    (directory, tokio::spawn(keeper::Keeper::run(options, publish, health)))
}
