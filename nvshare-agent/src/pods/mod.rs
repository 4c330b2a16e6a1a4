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
mod options;
pub mod quantity;
mod trouble;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

pub use self::options::{ApiServer, Flags, Options, POD_RESOURCES, server};

use self::cgroup::PodUid;
use self::directory::{Allocated, Directory, Pod};
use self::trouble::Trouble;
use crate::health::Health;

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

/// The keeper, to be run, and what it knows from then on. It ends when nobody looks any more.
pub fn start(
    options: Options,
    health: Health,
) -> (watch::Receiver<Arc<Directory>>, impl Future<Output = ()> + Send) {
    let (publish, directory) = watch::channel(Arc::new(Directory::default()));
    (directory, keeper::Keeper::run(options, publish, health))
}
