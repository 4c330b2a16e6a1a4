//! To whom each process belongs that the conductor knows, and what its pod has already ordered. Looked up when a process
//! is first seen and when the directory of pods changes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::order::Order;
use nvshare_agent_core::process::Process;
use nvshare_agent_core::snapshot::Owner;
use nvshare_common::ids::ClientId;

use super::{Conductor, Input};
use crate::pods::annotations::{self, Annotations, Problem};
use crate::pods::cgroup::Place;
use crate::pods::directory::{Certainty, Directory, Found};
use crate::pods::environ;

/// All of them. As many as there are clients and observed processes; whoever forgets these forgets here too.
#[derive(Debug, Default)]
pub(super) struct Owners {
    directory: Arc<Directory>,
    known: HashMap<Process, Known>,
    /// Whose environment is read when another has been.
    later: VecDeque<Process>,
    environs: environ::Reader,
}

#[derive(Debug, Default)]
struct Known {
    place: Place,
    devices: Devices,
    found: Found,
    /// The annotations that were last made into orders.
    ordered: Annotations,
    problems: Vec<Problem>,
}

/// The device ids in its environment: looked for only where nothing else tells.
#[derive(Debug, Default)]
enum Devices {
    #[default]
    Unread,
    Asked,
    Read(Vec<String>),
}

impl Owners {
    /// Who belongs to whom from now on.
    fn learn(&mut self, directory: Arc<Directory>) {
        self.directory = directory;
        for known in self.known.values_mut() {
            known.look(&self.directory);
        }
    }

    /// A process was seen, in this cgroup.
    fn meet(&mut self, process: Process, cgroup: &str) {
        let known = self.known.entry(process).or_default();
        known.place = Place::of_path(cgroup);
        known.look(&self.directory);
    }

    /// These device ids were found in the environment of a process.
    fn device_ids(&mut self, process: Process, ids: Vec<String>) {
        if let Some(known) = self.known.get_mut(&process) {
            known.devices = Devices::Read(ids);
            known.look(&self.directory);
        }
    }

    /// Those whose device ids should be looked for.
    fn unread(&self) -> Vec<Process> {
        self.known.keys().copied().filter(|process| self.is_unread(*process)).collect()
    }

    fn is_unread(&self, process: Process) -> bool {
        let unread = |known: &Known| {
            known.found.certainty == Certainty::Unknown && matches!(known.devices, Devices::Unread)
        };
        self.directory.has_allocations() && self.known.get(&process).is_some_and(unread)
    }

    /// What is new in the annotations of the client's pod, as orders. An administrator's orders are left alone until then.
    fn orders(&mut self, process: Process, client: ClientId) -> Vec<Order> {
        let Some(known) = self.known.get_mut(&process) else { return Vec::new() };
        if known.found.annotations == known.ordered {
            return Vec::new();
        }
        known.ordered = known.found.annotations.clone();
        let (orders, problems) = annotations::orders(&known.ordered, client);
        known.problems = problems;
        orders
    }

    /// An earlier agent made these annotations of the process's pod into orders, which may have been changed since.
    pub(super) fn recall(&mut self, process: Process, annotations: Annotations) {
        self.known.entry(process).or_default().ordered = annotations;
    }

    /// What was made into orders of its pod's annotations.
    pub(super) fn ordered(&self, process: Process) -> Annotations {
        self.known.get(&process).map(|known| known.ordered.clone()).unwrap_or_default()
    }

    /// To whom the process belongs.
    pub(super) fn owner(&self, process: Process) -> Owner {
        self.known.get(&process).map(|known| known.found.owner.clone()).unwrap_or_default()
    }

    /// What of its pod's annotations is ignored, for people.
    pub(super) fn notes(&self, process: Process) -> impl Iterator<Item = String> {
        self.known.get(&process).into_iter().flat_map(|known| &known.problems).map(ToString::to_string)
    }

    fn forget(&mut self, process: Process) {
        self.known.remove(&process);
    }
}

impl Known {
    /// Looks the owner up. What was known better is kept: a pod may be gone before its last process is.
    fn look(&mut self, directory: &Directory) {
        let ids = match &self.devices {
            Devices::Read(ids) => ids.as_slice(),
            Devices::Unread | Devices::Asked => &[],
        };
        let found = directory.find(&self.place, ids);
        if found.certainty >= self.found.certainty {
            self.found = found;
        }
    }
}

impl Conductor {
    /// A process was seen.
    pub(super) fn meet(&mut self, process: Process, cgroup: &str, now: Moment) {
        self.owners.meet(process, cgroup);
        // This one only: a wave of jobs must not cost its square.
        if let Some(client) = self.core.ledger.client_of(process) {
            self.ordered_by_pod(process, client, now);
        }
        if self.owners.is_unread(process) {
            self.look_for_ids(process);
        }
    }

    /// Pods came, changed or went.
    pub(super) fn pods(&mut self, directory: Arc<Directory>, now: Moment) {
        self.owners.learn(directory);
        self.attributed(now);
    }

    /// An environment was read.
    pub(super) fn device_ids(&mut self, process: Process, ids: Vec<String>) {
        self.owners.device_ids(process, ids);
        while let Some(next) = self.owners.later.pop_front() {
            if self.owners.is_unread(next) {
                self.look_for_ids(next);
                break;
            }
        }
    }

    /// Neither a client nor observed any more.
    pub(super) fn forget(&mut self, process: Process) {
        self.core.ledger.observed_gone(process);
        self.owners.forget(process);
    }

    /// Does what follows from new owners, of all.
    fn attributed(&mut self, now: Moment) {
        let clients = self.core.ledger.clients().values().map(|client| (client.process(), client.id()));
        for (process, client) in clients.collect::<Vec<_>>() {
            self.ordered_by_pod(process, client, now);
        }
        self.owners.later.clear();
        for process in self.owners.unread() {
            self.look_for_ids(process);
        }
    }

    fn ordered_by_pod(&mut self, process: Process, client: ClientId, now: Moment) {
        for order in self.owners.orders(process, client) {
            // Limits, priorities and weights are refused only of a client that has ended.
            if let Err(why) = self.core.order(order, now) {
                tracing::debug!(client = client.0, why, "its pod's annotations come too late");
            }
            self.memory.pressing = true;
        }
    }

    fn look_for_ids(&mut self, process: Process) {
        let inputs = self.inputs.clone();
        let begun = self.owners.environs.read(process, move |ids| {
            // The conductor may be gone: then nobody wants it.
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.blocking_send(Input::DeviceIds(process, ids));
            }
        });
        match self.owners.known.get_mut(&process) {
            Some(known) if begun => known.devices = Devices::Asked,
            Some(_) => self.owners.later.push_back(process),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nvshare_agent_core::order::{Priority, What};

    use super::*;
    use crate::pods::cgroup::{ContainerId, PodUid};
    use crate::pods::directory::{Allocated, Pod};

    const PROCESS: Process = Process { pid: 7, start: 1 };
    const CLIENT: ClientId = ClientId(3);

    fn cgroup() -> String {
        format!("/kubepods/pod4a6f2d3c-11aa-4f0e-9d7b-5f8f6c0b1e22/{}", "a".repeat(64))
    }

    fn directory(container: Option<&str>, annotations: &[(&str, &str)]) -> Arc<Directory> {
        let id = ContainerId::of_status(&"a".repeat(64)).unwrap();
        let annotations: BTreeMap<String, String> =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let pod = Pod {
            namespace: "ml".to_owned(),
            name: "train-0".to_owned(),
            annotations: Annotations::of(&annotations),
            containers: container.map(|name| (id, name.to_owned())).into_iter().collect(),
            alias: None,
        };
        let uid = PodUid::new("4a6f2d3c-11aa-4f0e-9d7b-5f8f6c0b1e22");
        Arc::new(Directory::new([(uid, pod)].into(), Allocated::new()))
    }

    fn owner(owners: &Owners) -> String {
        owners.owner(PROCESS).to_string()
    }

    #[test]
    fn an_owner_becomes_known_better_and_not_worse() {
        let mut owners = Owners::default();
        owners.meet(PROCESS, &cgroup());
        assert_eq!(owner(&owners), "aaaaaaaaaaaa");
        owners.learn(directory(None, &[]));
        assert_eq!(owner(&owners), "ml/train-0/aaaaaaaaaaaa");
        owners.learn(directory(Some("trainer"), &[]));
        assert_eq!(owner(&owners), "ml/train-0/trainer");
        // The container restarted, then the pod was deleted; the process is still there.
        owners.learn(directory(None, &[]));
        owners.learn(Arc::default());
        assert_eq!(owner(&owners), "ml/train-0/trainer");
        owners.forget(PROCESS);
        assert_eq!(owner(&owners), "-");
    }

    #[test]
    fn environments_are_read_only_where_nothing_else_tells_and_device_ids_are_of_use() {
        let mut owners = Owners::default();
        owners.meet(PROCESS, "/docker/x");
        assert!(owners.unread().is_empty());
        let infer =
            Owner { namespace: "ml".to_owned(), pod: "infer".to_owned(), container: "server".to_owned() };
        let allocated = Allocated::from([("GPU-1::3".to_owned(), infer)]);
        owners.learn(Arc::new(Directory::new(BTreeMap::new(), allocated.clone())));
        assert_eq!(owners.unread(), [PROCESS]);
        owners.device_ids(PROCESS, vec!["GPU-1::3".to_owned()]);
        assert!(owners.unread().is_empty());
        assert_eq!(owner(&owners), "ml/infer/server");
        // The API server is there again, and the kernel's word goes before the environment's.
        owners.meet(PROCESS, &cgroup());
        owners.learn(directory(Some("trainer"), &[]));
        assert_eq!(owner(&owners), "ml/train-0/trainer");
    }

    #[test]
    fn annotations_become_orders_when_they_change_and_not_again() {
        let mut owners = Owners::default();
        owners.learn(directory(Some("trainer"), &[]));
        owners.meet(PROCESS, &cgroup());
        assert_eq!(owners.orders(PROCESS, CLIENT), []);
        let high =
            directory(Some("trainer"), &[(annotations::PRIORITY, "high"), (annotations::WEIGHT, "much")]);
        owners.learn(high.clone());
        let orders = owners.orders(PROCESS, CLIENT);
        assert!(
            orders.contains(&Order { client: CLIENT, what: What::Priority(Priority::High) }),
            "{orders:?}"
        );
        let notes: Vec<String> = owners.notes(PROCESS).collect();
        assert!(notes.len() == 1 && notes[0].contains("nvshare.com/weight"), "{notes:?}");
        owners.learn(high);
        assert_eq!(owners.orders(PROCESS, CLIENT), []);
        // Without the annotation it is as it was before.
        owners.learn(directory(Some("trainer"), &[]));
        let orders = owners.orders(PROCESS, CLIENT);
        assert!(
            orders.contains(&Order { client: CLIENT, what: What::Priority(Priority::Normal) }),
            "{orders:?}"
        );
        assert_eq!(owners.notes(PROCESS).count(), 0);
    }
}
