//! Stand-ins for what a node of a cluster talks to: the kubelet and the API server.

use std::path::Path;

use nvshare_agent::plugin::api::ContainerAllocateResponse;

use crate::ContainerBuilder;

mod api;
mod kubelet;

pub use api::{Api, NODE, pod};
pub use kubelet::Kubelet;

/// What the kubelet and the container runtime make of an allocation, on a node whose files are below `root`.
///
/// # Panics
/// Where the container could write to what the plugin gives it, or the node lacks it.
#[must_use]
pub fn allocated(
    given: &ContainerAllocateResponse,
    root: &Path,
    mut container: ContainerBuilder,
) -> ContainerBuilder {
    for (name, value) in &given.envs {
        container = container.env(name, value);
    }
    for mount in &given.mounts {
        assert!(mount.read_only, "{mount:?}");
        let path = root.join(mount.host_path.trim_start_matches('/'));
        container = container.mount_read_only(path, &mount.container_path);
    }
    container
}
