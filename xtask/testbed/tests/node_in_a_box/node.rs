//! The node: its kubelet, its API server, a card, the agent's pod, and pods that share the card.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nvshare_testbed::kubernetes::{Api, Kubelet, allocated, pod};
use nvshare_testbed::{Cgroups, Container, Node, Pages, wait_for};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::manifest::Manifest;

/// For everything that ought to happen at once, even beside a busy compiler.
pub(crate) const LIMIT: Duration = Duration::from_mins(2);
/// A pod whose annotation limits its memory, and to how much.
pub(crate) const LIMITED: (usize, u64) = (1, 80 << 20);
/// How many shares a card has unless configured otherwise.
const SHARES: usize = 10;

/// A node of a cluster. Agents and pods end before it.
pub(crate) struct ClusterNode {
    pub(crate) kubelet: Kubelet,
    manifest: Manifest,
    api: Api,
    _runtime: Runtime,
    node: Node,
    /// Go when everything in them has ended.
    cgroups: Cgroups,
}

/// The agent's container.
pub(crate) struct AgentPod {
    container: Container,
    pages: Pages,
}

impl ClusterNode {
    /// A node with one card of 96 MiB behind a link so slow that a switch lasts a third of a second.
    pub(crate) fn new(manifest: Manifest) -> ClusterNode {
        let node = Node::builder()
            .env("NVSHARE_SIM_CARD_BYTES", "96M")
            .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "200000000")
            .env("NVSHARE_EXTENT_BYTES", "4M")
            .build();
        let runtime = Runtime::new().expect("a runtime");
        let listen = async { Api::start(TcpListener::bind("127.0.0.1:0").await.expect("a free port")) };
        let api = runtime.block_on(listen);
        let kubelet = Kubelet::start(&node.path().join("root/var/lib/kubelet/device-plugins"));
        ClusterNode { kubelet, manifest, api, _runtime: runtime, node, cgroups: Cgroups::new() }
    }

    /// Where the node's files are.
    fn root(&self) -> PathBuf {
        self.node.path().join("root")
    }

    /// Runs the agent's pod as far as its init container.
    pub(crate) fn install(&self) {
        let mut container = self.manifest.install(self.node.artifacts(), &self.root()).start();
        let status = container.end();
        assert!(status.success(), "install-shim ended with {status}: {}", container.errors());
    }

    /// Starts the agent's container and waits until nothing of the agent is missing.
    pub(crate) fn agent(&self) -> AgentPod {
        let pages = Pages::at_a_free_address();
        // In a cluster it would find the API server by its service account, and have an address of its own.
        let flags = [
            format!("--kube-api={}", self.api.url()),
            format!("--listen={}", pages.address()),
            "--reserve=2M".to_owned(),
            "--lease-floor=200ms".to_owned(),
            "--lease-ceiling=200ms".to_owned(),
        ];
        let container = self.manifest.agent(&flags, self.node.artifacts(), &self.root());
        let container = self.node.card_in(container.host_network());
        let cgroup = self.cgroups.container(&uid(99), &id(99));
        let mut agent = AgentPod { container: container.cgroup(cgroup).start(), pages };
        agent.wait_until_complete();
        agent
    }

    /// Starts pod `number` of those that share the card, a workload that goes on until [`ClusterNode::finish`].
    pub(crate) fn pod(&self, number: usize, bytes: &str) -> Container {
        const SHARED: &str = "/shared";
        let shared = self.node.path().join("shared");
        fs::create_dir_all(&shared).expect("a directory");
        let device = self.kubelet.devices(SHARES, SHARES).swap_remove(number).id;
        let given = self.kubelet.allocate(&[device]).expect("a share");
        let flags = format!("--bytes {bytes} --buffers 4 --seed {} --until {SHARED}/finish", number + 1);
        let container = allocated(&given, &self.root(), self.node.workload_container(&flags));
        let (uid, id) = (uid(number), id(number));
        let annotations =
            if number == LIMITED.0 { json!({"nvshare.com/memory-limit": "80Mi"}) } else { json!({}) };
        self.api.put(pod(&name(number), &uid, Some(("trainer", &id)), annotations));
        container.mount_read_only(shared, SHARED).cgroup(self.cgroups.container(&uid, &id)).start()
    }

    /// Lets every pod come to its end.
    pub(crate) fn finish(&self) {
        fs::write(self.node.path().join("shared/finish"), "").expect("a file");
    }

    /// What the simulated card complained about.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.node.violations()
    }

    /// Whether the library is where pods get it from.
    pub(crate) fn has_library(&self) -> bool {
        self.root().join("var/lib/nvshare/current/libnvshare.so").is_file()
    }
}

/// The name of a pod.
pub(crate) fn name(number: usize) -> String {
    format!("train-{number}")
}

fn uid(number: usize) -> String {
    format!("4a6f2d3c-11aa-4f0e-9d7b-{number:012}")
}

fn id(number: usize) -> String {
    format!("{:064x}", 0xc0de_0000 + number)
}

impl AgentPod {
    /// Waits until every part works, the uprobes among them.
    fn wait_until_complete(&mut self) {
        let mut last = String::new();
        let complete = in_time(|| {
            let ended = self.container.ended();
            assert!(ended.is_none(), "the agent ended ({ended:?})");
            let Ok((_, answer)) = self.pages.get("/readyz") else { return false };
            last = answer;
            let readiness: Value = serde_json::from_str(&last).expect("JSON");
            readiness["ready"] == true && readiness["missing"] == json!([])
        });
        assert!(complete, "not every part of the agent works; /readyz: {last}");
    }

    /// Waits until the agent has switched so often, all of its clients work and the uprobes have seen each of them.
    pub(crate) fn wait_for_turns(&self, clients: usize, switches: u64) {
        let mut last = Value::Null;
        let turns = in_time(|| {
            let Ok(state) = self.pages.state() else { return false };
            last = state;
            let known = last["clients"].as_array().map_or(&[][..], Vec::as_slice);
            let seen = known.iter().filter(|client| calls_seen(client) > 0).count();
            let often = last["switches"]["count"].as_u64() >= Some(switches);
            often && (known.len(), seen) == (clients, clients)
        });
        assert!(turns, "{clients} clients did not take {switches} turns; state: {last:#}");
        assert_eq!(last["observer"]["lost"], 0, "records of the uprobes were lost");
        assert_eq!(last["observer"]["problems"], json!([]));
        if !Path::new("/sys/module/nvidia_uvm").exists() {
            let uvm = &last["observer"]["uvm"];
            assert_eq!(uvm["why"], "the module nvidia_uvm is not loaded");
            let metrics = self.pages.get("/metrics").expect("metrics").1;
            assert!(
                metrics.contains("\nnvshare_uvm_observed 0\n") && !metrics.contains("nvshare_uvm_faults")
            );
        }
    }

    /// `namespace/pod/container` of every client in the metrics, in order.
    pub(crate) fn owners(&self) -> Vec<String> {
        let metrics = self.pages.get("/metrics").expect("metrics").1;
        let infos = metrics.lines().filter(|line| line.starts_with("nvshare_client_info{"));
        let mut owners: Vec<String> = infos
            .map(|line| ["namespace", "pod", "container"].map(|name| label(line, name)).join("/"))
            .collect();
        owners.sort();
        owners
    }

    /// Waits until no series names a pod.
    pub(crate) fn wait_until_forgotten(&self) {
        wait_for("no series is left of the pods", LIMIT, || {
            let metrics = self.pages.get("/metrics").ok()?.1;
            (!metrics.contains("pod=\"train-")).then_some(())
        });
    }

    /// SIGTERM, as in an update.
    pub(crate) fn stop(mut self) {
        let status = self.container.stop();
        assert!(status.success(), "the agent ended with {status}: {}", self.container.errors());
    }

    /// `kill -9` and the end of the container, as when a node replaces it.
    pub(crate) fn kill(mut self) {
        self.container.kill();
    }
}

/// Whether it comes true before the limit.
fn in_time(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + LIMIT;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// How many calls the uprobes saw of a client.
fn calls_seen(client: &Value) -> u64 {
    let calls = client["totals"]["application_seen"].as_object();
    calls.into_iter().flat_map(serde_json::Map::values).filter_map(Value::as_u64).sum()
}

fn label(line: &str, name: &str) -> String {
    let value = line.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
    value.unwrap_or_else(|| panic!("no {name} in {line}")).0.to_owned()
}
