//! The table by which a process is joined with its pod: pods by UID and by their containers' ids, as the API server
//! lists them, and containers by the device ids that the kubelet gave them. Pure; made anew when something changed.

use std::collections::{BTreeMap, HashMap};

use nvshare_agent_core::snapshot::Owner;

use super::annotations::Annotations;
use super::cgroup::{ContainerId, Place, PodUid};

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it wants of us.
    pub annotations: Annotations,
    /// The names of its containers, those that ended too. One that was just created may be missing.
    pub containers: BTreeMap<ContainerId, String>,
    /// By which its cgroup is named, where that is not its UID: pods from files on the node.
    pub alias: Option<PodUid>,
}

/// To whom the kubelet gave each device id.
pub type Allocated = BTreeMap<String, Owner>;

/// How well an owner is known; the later the better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Certainty {
    /// Not at all: what there is comes from the cgroup's name.
    #[default]
    Unknown,
    /// By the device ids in its environment, which its pod could have written itself.
    Claimed,
    /// By its cgroup: the pod, but not yet the container's name.
    Pod,
    /// By its cgroup, all of it.
    Container,
}

/// To whom a process belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// As far as it is known.
    pub owner: Owner,
    /// How well.
    pub certainty: Certainty,
    /// What the pod wants; only of a pod that the kernel vouches for.
    pub annotations: Annotations,
}

/// All pods of this node that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    pods: BTreeMap<PodUid, Pod>,
    allocated: Allocated,
    containers: HashMap<ContainerId, PodUid>,
    aliases: HashMap<PodUid, PodUid>,
}

impl Directory {
    /// Of these pods and allocations.
    pub fn new(pods: BTreeMap<PodUid, Pod>, allocated: Allocated) -> Directory {
        let containers = pods
            .iter()
            .flat_map(|(uid, pod)| pod.containers.keys().map(|id| (id.clone(), uid.clone())))
            .collect();
        let aliases = pods.iter().filter_map(|(uid, pod)| Some((pod.alias.clone()?, uid.clone()))).collect();
        Directory { pods, allocated, containers, aliases }
    }

    /// The pods.
    pub fn pods(&self) -> &BTreeMap<PodUid, Pod> {
        &self.pods
    }

    /// Whether device ids are of use.
    pub fn has_allocations(&self) -> bool {
        !self.allocated.is_empty()
    }

    /// The owner of a process that runs in `place`; `devices` are the device ids in its environment.
    pub fn find(&self, place: &Place, devices: &[String]) -> Found {
        let short = place.container.as_ref().map_or("", ContainerId::short).to_owned();
        let by_container = place.container.as_ref().and_then(|id| self.containers.get(id));
        let by_pod = place.pod.as_ref().map(|uid| self.aliases.get(uid).unwrap_or(uid));
        if let Some(pod) = by_container.or(by_pod).and_then(|uid| self.pods.get(uid)) {
            let name = place.container.as_ref().and_then(|id| pod.containers.get(id));
            let certainty = if name.is_some() { Certainty::Container } else { Certainty::Pod };
            let owner = Owner {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: name.cloned().unwrap_or(short),
            };
            return Found { owner, certainty, annotations: pod.annotations.clone() };
        }
        // A device id belongs to one container: any of them tells.
        match devices.iter().find_map(|id| self.allocated.get(id)) {
            Some(owner) => Found {
                owner: owner.clone(),
                certainty: Certainty::Claimed,
                annotations: Annotations::default(),
            },
            None => Found { owner: Owner { container: short, ..Owner::default() }, ..Found::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "4a6f2d3c-11aa-4f0e-9d7b-5f8f6c0b1e22";
    const HASH: &str = "0f3b5a9c7d1e2f405162738495a6b7c8";

    fn id(digit: char) -> ContainerId {
        ContainerId::of_status(&format!("containerd://{}", digit.to_string().repeat(64))).unwrap()
    }

    fn owner(namespace: &str, pod: &str, container: &str) -> Owner {
        Owner { namespace: namespace.to_owned(), pod: pod.to_owned(), container: container.to_owned() }
    }

    fn directory() -> Directory {
        let annotations = BTreeMap::from([("nvshare.com/priority".to_owned(), "high".to_owned())]);
        let train = Pod {
            namespace: "ml".to_owned(),
            name: "train-0".to_owned(),
            annotations: Annotations::of(&annotations),
            containers: BTreeMap::from([(id('a'), "trainer".to_owned())]),
            alias: None,
        };
        let from_file = Pod {
            namespace: "kube-system".to_owned(),
            name: "exporter".to_owned(),
            alias: Some(PodUid::new(HASH)),
            ..Pod::default()
        };
        let pods = BTreeMap::from([(PodUid::new(UID), train), (PodUid::new("mirror"), from_file)]);
        Directory::new(pods, BTreeMap::from([("GPU-1::3".to_owned(), owner("ml", "infer", "server"))]))
    }

    fn find(path: &str, devices: &[&str]) -> (Owner, Certainty) {
        let devices: Vec<String> = devices.iter().map(|id| (*id).to_owned()).collect();
        let found = directory().find(&Place::of_path(path), &devices);
        (found.owner, found.certainty)
    }

    #[test]
    fn a_container_is_known_by_its_id_wherever_its_cgroup_lies() {
        let a = "a".repeat(64);
        for path in
            [format!("/kubepods/pod{UID}/{a}"), format!("/../cri-containerd-{a}.scope"), format!("/x/{a}")]
        {
            assert_eq!(find(&path, &[]), (owner("ml", "train-0", "trainer"), Certainty::Container), "{path}");
        }
    }

    #[test]
    fn a_container_that_was_just_created_is_known_by_its_pod() {
        let path = format!("/kubepods/pod{UID}/{}", "b".repeat(64));
        assert_eq!(find(&path, &[]), (owner("ml", "train-0", "bbbbbbbbbbbb"), Certainty::Pod));
        let from_file = format!("/kubepods/burstable/pod{HASH}/{}", "c".repeat(64));
        assert_eq!(find(&from_file, &[]).0, owner("kube-system", "exporter", "cccccccccccc"));
    }

    #[test]
    fn without_a_known_pod_the_device_ids_tell_and_without_these_the_containers_id() {
        let path = format!("/docker/{}", "d".repeat(64));
        let infer = (owner("ml", "infer", "server"), Certainty::Claimed);
        assert_eq!(find(&path, &["GPU-1::9", "GPU-1::3"]), infer);
        assert_eq!(find(&path, &["GPU-1::9"]), (owner("", "", "dddddddddddd"), Certainty::Unknown));
        assert_eq!(find("/user.slice", &[]), (Owner::default(), Certainty::Unknown));
    }

    #[test]
    fn what_the_kernel_says_goes_before_what_the_environment_says() {
        let path = format!("/kubepods/pod{UID}/{}", "a".repeat(64));
        assert_eq!(find(&path, &["GPU-1::3"]).0, owner("ml", "train-0", "trainer"));
    }

    #[test]
    fn annotations_come_only_from_a_pod_that_the_kernel_vouches_for() {
        let directory = directory();
        let place = Place::of_path(&format!("/kubepods/pod{UID}/{}", "a".repeat(64)));
        assert_ne!(directory.find(&place, &[]).annotations, Annotations::default());
        let claimed = directory.find(&Place::default(), &["GPU-1::3".to_owned()]);
        assert_eq!(claimed.annotations, Annotations::default());
    }
}
