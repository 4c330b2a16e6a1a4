//! What makes a node of some processes of the machine: a cgroup of their own, of which an agent can be told.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Cgroups;
use crate::process::enter_at_birth;

/// A cgroup of the second version that is all of a node. An agent with `--node-cgroup` and its path observes what runs there
/// and below; whatever else of the machine uses a CUDA library is nothing to it. It is removed with this value, when everything
/// that ran there has ended.
#[derive(Debug)]
pub struct NodeCgroup {
    path: PathBuf,
    _cgroups: Cgroups,
}

impl NodeCgroup {
    /// An empty one; `None`, said loudly, where none can be made: then the machine is the node.
    pub fn new() -> Option<NodeCgroup> {
        let cgroups = Cgroups::new();
        // The first version has no such files.
        let Some(path) = cgroups.make("node").filter(|path| path.join("cgroup.controllers").exists()) else {
            eprintln!(
                "no cgroup of the second version can be made here (run as root): other programs that use a CUDA library may \
                 disturb this test"
            );
            return None;
        };
        Some(NodeCgroup { path, _cgroups: cgroups })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the command's process begin its life there: it has its cgroup before it has any library.
    ///
    /// # Panics
    /// Where the cgroup is gone.
    pub fn enter(&self, command: &mut Command) {
        let members = OpenOptions::new().write(true).open(self.path.join("cgroup.procs"));
        enter_at_birth(command, members.expect("the cgroup's list of members"));
    }
}
