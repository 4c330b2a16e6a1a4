//! Whom to ask about pods, and what of that flags say.

use std::path::{Path, PathBuf};

use clap::Args;
use nvshare_agent_core::value;

/// Where the kubelet's pod-resources socket is unless told otherwise.
pub const POD_RESOURCES: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";

/// The API server to ask.
#[derive(Clone, Debug, Default)]
pub struct ApiServer {
    /// Where, without an account; `None`: by the pod's service account.
    pub url: Option<axum::http::Uri>,
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

/// How pods are found.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Flags {
    /// The name of this node in Kubernetes: whose pods are watched
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = value::node_name)]
    pub node_name: Option<String>,

    /// Do not find out to which pods clients belong; their annotations then do nothing
    #[arg(long, env = "NVSHARE_AGENT_NO_PODS")]
    pub no_pods: bool,

    /// The kubelet's pod-resources socket: tells whose a client is without the API server
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_POD_RESOURCES", default_value = POD_RESOURCES,
        value_parser = value::socket_path)]
    pub pod_resources: PathBuf,

    /// The API server, without an account, as by `kubectl proxy` [default: by the service account, in a cluster]
    #[arg(long, value_name = "URL", env = "NVSHARE_AGENT_KUBE_API", value_parser = server)]
    pub kube_api: Option<axum::http::Uri>,
}

impl Flags {
    /// Whom that means, where this process runs.
    pub fn options(&self) -> Options {
        if self.no_pods {
            return Options::default();
        }
        let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let asked = in_cluster || self.kube_api.is_some();
        // On a machine without a kubelet nobody misses its socket, unless told where it is.
        let chosen = self.pod_resources != Path::new(POD_RESOURCES);
        let on_a_node = in_cluster || chosen || self.pod_resources.parent().is_some_and(Path::exists);
        Options {
            node: self.node_name.clone(),
            api: asked.then(|| ApiServer { url: self.kube_api.clone() }),
            pod_resources: on_a_node.then(|| self.pod_resources.clone()),
        }
    }
}

/// The address of an API server.
pub fn server(text: &str) -> Result<axum::http::Uri, String> {
    let uri = text.parse::<axum::http::Uri>().ok();
    uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
        .ok_or_else(|| "expected a URL such as http://127.0.0.1:8001".to_owned())
}
