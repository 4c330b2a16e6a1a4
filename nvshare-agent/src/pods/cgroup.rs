//! What the kernel says of where a process runs: `/proc/PID/cgroup`, read as the pod and the container that it names.
//! Pure; what the names mean in the cluster is `directory`'s business.
//!
//! The kubelet names a pod's cgroup by the pod's UID, the runtime names the container's by its id, and each of them in
//! two ways, for the drivers `cgroupfs` and `systemd`:
//!
//! | who | cgroupfs | systemd |
//! | --- | --- | --- |
//! | kubelet | `kubepods/burstable/pod1-2-3` | `kubepods-burstable-pod1_2_3.slice` |
//! | containerd | `ID` | `cri-containerd-ID.scope`, or `SLICE:cri-containerd:ID` where the two disagree on the driver |
//! | CRI-O | `crio-ID` | `crio-ID.scope`, crun adds `/container` |
//! | Docker, Podman | `ID`, `libpod-ID` | `docker-ID.scope`, `libpod-ID.scope` |
//!
//! Everything before these names depends on who looks (a cgroup namespace cuts it off, or shows `/../..`), and what comes
//! behind them on the container itself.

use std::fmt;

/// A container id is so many hex digits.
const ID_DIGITS: usize = 64;
/// So many of them name a container to people.
const SHORT_DIGITS: usize = 12;

/// A pod's UID as the API server writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(String);

impl PodUid {
    /// As the API server has it.
    pub fn new(uid: impl Into<String>) -> PodUid {
        PodUid(uid.into())
    }

    /// A UID in a cgroup's name: with `_` for `-` under systemd, and without either for pods from files on the node.
    fn of_cgroup(text: &str) -> Option<PodUid> {
        let uid = text.replace('_', "-");
        let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
        let dashes = uid.bytes().filter(|byte| *byte == b'-').count();
        let whole = digits == 32 && digits + dashes == uid.len() && matches!(dashes, 0 | 4);
        whole.then_some(PodUid(uid))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A container's id, without the runtime's name before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// As the API server has it: `containerd://0123...`. `None` before the container was created.
    pub fn of_status(text: &str) -> Option<ContainerId> {
        let id = text.rsplit_once("://").map_or(text, |(_, id)| id);
        (!id.is_empty()).then(|| ContainerId(id.to_owned()))
    }

    /// The first digits, as `docker ps` and `crictl ps` show them.
    pub fn short(&self) -> &str {
        self.0.get(..SHORT_DIGITS).unwrap_or(&self.0)
    }
}

/// Where a process runs, as far as its cgroup tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// In which pod.
    pub pod: Option<PodUid>,
    /// In which container.
    pub container: Option<ContainerId>,
}

impl Place {
    /// Reads one cgroup's path. The outermost pod counts, and what it starts inside of its container does not: a container
    /// that may make cgroups can give them any name, another pod's as well.
    pub fn of_path(path: &str) -> Place {
        let mut place = Place::default();
        for name in path.split('/') {
            if place.pod.is_none()
                && let Some(uid) = pod(name)
            {
                place = Place { pod: Some(uid), container: container(name) };
            } else if place.pod.is_none() || place.container.is_none() {
                place.container = container(name).or(place.container);
            }
        }
        place
    }

    fn knows(&self) -> u8 {
        u8::from(self.container.is_some()) * 2 + u8::from(self.pod.is_some())
    }
}

/// The path in `/proc/PID/cgroup` that tells most: there is one per line, of the one hierarchy (v2) or of each (v1), and
/// not all of them are used by every runtime. Of equals the last, which is v2's where there are both.
pub fn path(text: &str) -> &str {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.max_by_key(|path| Place::of_path(path).knows()).unwrap_or_default()
}

/// The pod that the kubelet named a directory after.
fn pod(name: &str) -> Option<PodUid> {
    // Before a `:` is the slice that the runtime should have used as a directory.
    let name = name.split(':').next().unwrap_or(name);
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.rsplit_once("-pod")?.1,
    };
    PodUid::of_cgroup(uid)
}

/// The container that a runtime named a directory after.
fn container(name: &str) -> Option<ContainerId> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let is_id = |part: &&str| part.len() == ID_DIGITS && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.rsplit(['-', ':']).find(is_id).map(|id| ContainerId(id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "4a6f2d3c-11aa-4f0e-9d7b-5f8f6c0b1e22";
    const UID_: &str = "4a6f2d3c_11aa_4f0e_9d7b_5f8f6c0b1e22";
    const STATIC: &str = "0f3b5a9c7d1e2f405162738495a6b7c8";

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn read(path: &str) -> (Option<String>, Option<char>) {
        let place = Place::of_path(path);
        (place.pod.map(|pod| pod.to_string()), place.container.and_then(|id| id.short().chars().next()))
    }

    #[test]
    fn pods_and_containers_are_recognised_in_the_paths_of_usual_nodes() {
        let (a, b) = (id('a'), id('b'));
        let slice =
            |class: &str| format!("/kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{UID_}.slice");
        for path in [
            // containerd, systemd: the three classes of service, v1 and v2 alike.
            format!("{}/cri-containerd-{a}.scope", slice("besteffort")),
            format!("{}/cri-containerd-{a}.scope", slice("burstable")),
            format!("/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{a}.scope"),
            // containerd, cgroupfs.
            format!("/kubepods/besteffort/pod{UID}/{a}"),
            format!("/kubepods/burstable/pod{UID}/{a}"),
            format!("/kubepods/pod{UID}/{a}"),
            // containerd with cgroupfs under a kubelet with systemd.
            format!("/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{a}"),
            format!("/kubepods-besteffort-pod{UID_}.slice:cri-containerd:{a}"),
            // CRI-O with runc, with crun, with cgroupfs.
            format!("{}/crio-{a}.scope", slice("burstable")),
            format!("{}/crio-{a}.scope/container", slice("burstable")),
            format!("/kubepods/burstable/pod{UID}/crio-{a}"),
            // Docker by cri-dockerd.
            format!("{}/docker-{a}.scope", slice("besteffort")),
            format!("/kubepods/besteffort/pod{UID}/{a}"),
            // kind and other nodes in containers: the outer container is the node.
            format!(
                "/docker/{b}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                 kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{a}.scope"
            ),
            format!("/docker/{b}/kubelet/kubepods/besteffort/pod{UID}/{a}"),
            format!(
                "/system.slice/docker-{b}.scope/kubelet.slice/kubelet-kubepods-pod{UID_}.slice/cri-containerd-{a}.scope"
            ),
            // A kubelet with --cgroup-root.
            format!("/podruntime/kubelet/kubepods/burstable/pod{UID}/{a}"),
            // Without the class directories, as `--cgroups-per-qos=false` has it.
            format!("/pod{UID}/{a}"),
            // From inside the agent's own cgroup namespace.
            format!("/../../kubepods-burstable-pod{UID_}.slice/cri-containerd-{a}.scope"),
            format!("/../../../burstable/pod{UID}/{a}"),
            format!("/../../../../kubepods/pod{UID}/{a}"),
            // What the container starts inside of itself is still the container.
            format!("{}/cri-containerd-{a}.scope/init.scope", slice("burstable")),
            format!("/kubepods/burstable/pod{UID}/{a}/docker/{b}"),
            format!("/kubepods/burstable/pod{UID}/{a}/system.slice/docker-{b}.scope"),
        ] {
            assert_eq!(read(&path), (Some(UID.to_owned()), Some('a')), "{path}");
        }
    }

    #[test]
    fn pods_from_files_on_the_node_have_a_uid_without_dashes() {
        let a = id('a');
        for path in [
            format!("/kubepods/burstable/pod{STATIC}/{a}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/crio-{a}.scope"
            ),
        ] {
            assert_eq!(read(&path), (Some(STATIC.to_owned()), Some('a')), "{path}");
        }
    }

    #[test]
    fn containers_without_a_pod_and_pods_without_a_container_are_recognised_too() {
        let a = id('a');
        for path in [
            format!("/docker/{a}"),
            format!("/system.slice/docker-{a}.scope"),
            format!("/machine.slice/libpod-{a}.scope"),
            format!("/machine.slice/libpod-{a}.scope/container"),
            format!("/libpod_parent/libpod-{a}"),
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{a}.scope"),
            format!("/ecs/task/{a}"),
            format!("/k8s.io/{a}"),
            // A neighbour in the agent's own pod, seen from its cgroup namespace.
            format!("/../cri-containerd-{a}.scope"),
            format!("/../{a}"),
            format!("/system.slice:docker:{a}"),
        ] {
            assert_eq!(read(&path), (None, Some('a')), "{path}");
        }
        assert_eq!(read(&format!("/kubepods/burstable/pod{UID}")), (Some(UID.to_owned()), None));
    }

    #[test]
    fn a_container_cannot_take_the_name_of_another_pod() {
        let (a, b) = (id('a'), id('b'));
        let other = "deadbeef-11aa-4f0e-9d7b-5f8f6c0b1e22";
        for path in [
            format!("/kubepods/burstable/pod{UID}/{a}/kubepods/burstable/pod{other}/{b}"),
            format!("/kubepods/burstable/pod{UID}/{a}/pod{other}"),
        ] {
            assert_eq!(read(&path), (Some(UID.to_owned()), Some('a')), "{path}");
        }
    }

    #[test]
    fn nothing_is_read_into_other_paths() {
        let a = id('a');
        for path in [
            "",
            "/",
            "/../..",
            "/init.scope",
            "/user.slice/user-1000.slice/session-2.scope",
            "/system.slice/podman.service",
            "/kubepods.slice/kubepods-burstable.slice",
            "/podinfo/pod-of-somebody",
            "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope",
            // Not the length of an id, not its digits, and not a UID.
            &a[..63],
            &"g".repeat(64),
            "/kubepods/pod1234/x",
            "/kubepods/pod4a6f2d3c-11aa-4f0e-9d7b-5f8f6c0b1eZZ",
            "/kubepods/pod4a6f2d3c11aa-4f0e-9d7b-5f8f6c0b1e22",
        ] {
            assert_eq!(Place::of_path(path), Place::default(), "{path}");
        }
    }

    #[test]
    fn the_line_that_tells_most_counts() {
        let a = id('a');
        let v1 = format!(
            "12:devices:/kubepods/burstable/pod{UID}/{a}\n11:misc:/\n3:cpu,cpuacct:/kubepods/burstable/pod{UID}/{a}\n\
             1:name=systemd:/kubepods/burstable/pod{UID}/{a}\n0::/system.slice/containerd.service\n"
        );
        assert_eq!(path(&v1), format!("/kubepods/burstable/pod{UID}/{a}"));
        let only_memory = format!("9:name=systemd:/\n4:memory:/docker/{a}\n0::/\n");
        assert_eq!(path(&only_memory), format!("/docker/{a}"));
        assert_eq!(path("0::/user.slice/a:b/session-2.scope\n"), "/user.slice/a:b/session-2.scope");
        assert_eq!(path("1:name=systemd:/a\n0::/b\n"), "/b");
        assert_eq!(path(""), "");
    }

    #[test]
    fn ids_of_the_api_lose_their_runtime() {
        let a = id('a');
        for text in [format!("containerd://{a}"), format!("cri-o://{a}"), format!("docker://{a}"), a.clone()]
        {
            let id = ContainerId::of_status(&text).unwrap();
            assert_eq!(Some(&id), Place::of_path(&format!("/docker/{a}")).container.as_ref(), "{text}");
            assert_eq!(id.short(), "aaaaaaaaaaaa");
        }
        assert_eq!(ContainerId::of_status(""), None);
        assert_eq!(ContainerId::of_status("containerd://"), None);
    }
}
