//! A node with a kubelet's directory and the library where the agent's init container would put it.

use std::fs;
use std::path::PathBuf;

use nvshare_testbed::{Agent, Node};

/// A node under Kubernetes.
pub(crate) struct KubernetesNode {
    pub(crate) node: Node,
}

impl KubernetesNode {
    /// Two cards of 96 MiB behind a link so slow that a switch lasts half a second.
    pub(crate) fn new(cards: u32) -> KubernetesNode {
        let node = Node::builder()
            .env("NVSHARE_SIM_CARDS", cards.to_string())
            .env("NVSHARE_SIM_CARD_BYTES", "96M")
            .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "100000000")
            .env("NVSHARE_EXTENT_BYTES", "4M")
            .build();
        KubernetesNode { node }
    }

    /// The kubelet's directory of plugins.
    pub(crate) fn kubelet(&self) -> PathBuf {
        self.node.path().join("kubelet")
    }

    /// Where the library is on the node: a link to one of its versions.
    pub(crate) fn library(&self) -> PathBuf {
        self.node.path().join("library/current")
    }

    /// Where CDI specifications are.
    pub(crate) fn cdi(&self) -> PathBuf {
        self.node.path().join("cdi")
    }

    /// Puts the library on the node.
    pub(crate) fn install(&self) {
        let version = self.node.path().join("library/0.0.1");
        fs::create_dir_all(&version).unwrap();
        fs::copy(self.node.artifacts().shim(), version.join("libnvshare.so")).unwrap();
        std::os::unix::fs::symlink("0.0.1", self.library()).unwrap();
    }

    /// The agent as the DaemonSet starts it, with some flags more.
    pub(crate) fn agent(&self, flags: &[&str]) -> Agent {
        let paths =
            [("--kubelet-dir", self.kubelet()), ("--library-dir", self.library()), ("--cdi-dir", self.cdi())];
        let mut all: Vec<String> = ["--device-plugin=on", "--shares=3", "--no-uprobes", "--reserve=2M"]
            .into_iter()
            .chain(["--lease-floor=200ms", "--lease-ceiling=200ms"])
            .chain(flags.iter().copied())
            .map(str::to_owned)
            .collect();
        for (flag, path) in paths {
            all.push(format!("{flag}={}", path.display()));
        }
        self.node.agent(all)
    }
}
