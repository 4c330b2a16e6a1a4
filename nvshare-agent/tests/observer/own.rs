//! A node of a test's own, where an observer looks for libraries by itself: what other tests and programs bring to the machine
//! takes none of its room and none of its time.

use std::path::{Path, PathBuf};

use nvshare_agent::observer::{Options, Part};
use nvshare_testbed::NodeCgroup;

use crate::client::Client;
use crate::seen::{Observing, observe_with};

/// The node; the machine, where no cgroup can be made. Its clients and observers end before it.
pub(crate) struct Own(Option<NodeCgroup>);

impl Own {
    /// An empty one.
    pub(crate) fn new() -> Own {
        Own(NodeCgroup::new())
    }

    /// A client that belongs to it.
    pub(crate) fn client(&self, library: &Path) -> Client {
        Client::prepared(library, |command| {
            if let Some(cgroup) = &self.0 {
                cgroup.enter(command);
            }
        })
    }

    /// Observes it as asked.
    pub(crate) fn observe(&self, options: impl FnOnce(PathBuf) -> Options) -> Option<Observing> {
        let part = self.0.as_ref().map(|cgroup| Part::at(cgroup.path().to_str().unwrap()).unwrap());
        observe_with(|object| Options { part, ..options(object) })
    }
}
