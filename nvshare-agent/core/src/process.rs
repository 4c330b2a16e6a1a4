//! Which process: half of the agent speaks of these.

use serde::{Deserialize, Serialize};

/// A process, so that a reused pid is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// In the initial pid namespace.
    pub pid: u32,
    /// Its start in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start: u64,
}
