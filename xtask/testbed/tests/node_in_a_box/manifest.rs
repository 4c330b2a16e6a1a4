//! The DaemonSet as `deploy` describes it: what a kubelet would tell a container runtime of its containers.

use std::fs;
use std::path::{Path, PathBuf};

use nvshare_testbed::kubernetes::NODE;
use nvshare_testbed::{Artifacts, ContainerBuilder};
use serde_json::Value;

/// Where the image's files are in our containers, whose `/usr` is this machine's.
const IMAGE: &str = "/opt/nvshare";

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The pod that the DaemonSet makes on every node.
pub(crate) struct Manifest {
    spec: Value,
}

impl Manifest {
    /// `deploy/base`.
    pub(crate) fn privileged() -> Manifest {
        Manifest { spec: pod("base/daemonset.yaml") }
    }

    /// `deploy/overlays/unprivileged`: what it says of the agent's container replaces what the base says.
    pub(crate) fn unprivileged() -> Manifest {
        let mut spec = pod("base/daemonset.yaml");
        let overlay = pod("overlays/unprivileged/unprivileged.yaml");
        let patch = overlay["containers"][0]["securityContext"].as_object().expect("a security context");
        let context = &mut spec["containers"][0]["securityContext"];
        context.as_object_mut().expect("a security context").extend(patch.clone());
        Manifest { spec }
    }

    /// The container that puts the library on the node, with the node's files below `root`.
    pub(crate) fn install(&self, artifacts: &Artifacts, root: &Path) -> ContainerBuilder {
        self.container(&self.spec["initContainers"][0], &[], artifacts, root)
    }

    /// The agent's container, with some flags more.
    pub(crate) fn agent(&self, flags: &[String], artifacts: &Artifacts, root: &Path) -> ContainerBuilder {
        self.container(&self.spec["containers"][0], flags, artifacts, root)
    }

    fn container(
        &self,
        spec: &Value,
        flags: &[String],
        artifacts: &Artifacts,
        root: &Path,
    ) -> ContainerBuilder {
        let words = list(&spec["command"]).iter().map(text).map(|word| match Path::new(word).file_name() {
            Some(name) if word.starts_with("/usr/") => format!("{IMAGE}/{}", name.display()),
            _ => word.to_owned(),
        });
        let mut container = ContainerBuilder::new(words.chain(flags.iter().cloned()));
        for file in [Some(artifacts.agent()), Some(artifacts.shim()), artifacts.ebpf()].into_iter().flatten()
        {
            let name = file.file_name().expect("a name").to_owned();
            container = container.mount_read_only(file, Path::new(IMAGE).join(name));
        }
        // The image has certificates, without which there is no client for the API server.
        if Path::new(CERTIFICATES).exists() {
            container = container.mount_read_only(CERTIFICATES, CERTIFICATES);
        }
        for variable in list(&spec["env"]) {
            container = container.env(text(&variable["name"]), value_of(variable));
        }
        for mount in list(&spec["volumeMounts"]) {
            let host = self.on_the_node(text(&mount["name"]), root);
            let inside = text(&mount["mountPath"]);
            container = if mount["readOnly"] == true {
                container.mount_read_only(host, inside)
            } else {
                container.mount(host, inside)
            };
        }
        secured(container, &spec["securityContext"], self.spec["hostPID"] == true)
    }

    /// The directory of a volume, which the kubelet makes where it is missing.
    fn on_the_node(&self, volume: &str, root: &Path) -> PathBuf {
        let volumes = list(&self.spec["volumes"]);
        let known = volumes.iter().find(|known| known["name"] == volume);
        let path = text(&known.unwrap_or_else(|| panic!("no volume {volume}"))["hostPath"]["path"]);
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(&path).expect("a directory of the node");
        path
    }
}

/// With what the security context allows. A missing `privileged` or `readOnlyRootFilesystem` is `false`.
fn secured(mut container: ContainerBuilder, context: &Value, host_pid: bool) -> ContainerBuilder {
    if context["readOnlyRootFilesystem"] == true {
        container = container.read_only();
    }
    if host_pid {
        container = container.host_pid();
    }
    if context["privileged"] == true {
        return container.privileged();
    }
    let capabilities = &context["capabilities"];
    assert_eq!(capabilities["drop"], serde_json::json!(["ALL"]), "a runtime's own set is not known here");
    let added: Vec<&str> = capabilities["add"].as_array().into_iter().flatten().map(text).collect();
    container.capabilities(&added)
}

fn value_of(variable: &Value) -> String {
    if let Some(value) = variable["value"].as_str() {
        return value.to_owned();
    }
    let from = &variable["valueFrom"];
    if from["fieldRef"]["fieldPath"] == "spec.nodeName" {
        return NODE.to_owned();
    }
    assert_eq!(from["resourceFieldRef"]["resource"], "requests.memory", "unknown to this test: {variable}");
    // In bytes, as the kubelet gives it: 1 GiB, which this machine surely has.
    (1_u64 << 30).to_string()
}

/// The pod's specification in a DaemonSet's file below `deploy`.
fn pod(file: &str) -> Value {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy")).join(file);
    let manifest = fs::read_to_string(&path).expect("a manifest");
    let manifest: Value = serde_saphyr::from_str(&manifest)
        .unwrap_or_else(|error| panic!("{} is no YAML: {error}", path.display()));
    manifest["spec"]["template"]["spec"].clone()
}

/// A list that may be missing.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("expected a text, found {value}"))
}
