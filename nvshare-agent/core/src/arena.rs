//! Arenas, the host memory that shadows lie in: which are wanted, and why one cannot be had.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ArenaId, ClientId};

/// An arena that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// For whom.
    pub client: ClientId,
    /// Its number.
    pub arena: ArenaId,
    /// Its size.
    pub bytes: Bytes,
}

/// The memory behind an arena that a client has kept from an earlier session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// How much of it is there: holes cost nobody anything.
    pub bytes: Bytes,
    /// Which file it is, by device and inode.
    pub file: (u64, u64),
}

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The node, or the agent's cgroup, has no room for it.
    #[error(
        "an arena of {bytes} does not fit: {free} of host memory are available ({whose}), {margin} of it are left \
         alone; lower --host-memory to what the node can spare, or lift the limit of the agent's container"
    )]
    NoRoom {
        /// Its size.
        bytes: Bytes,
        /// What could be had.
        free: Bytes,
        /// What is kept of it.
        margin: Bytes,
        /// Whose limit that is.
        whose: &'static str,
    },
    /// The system refused.
    #[error("cannot {act} for an arena of {bytes}: {error}")]
    System {
        /// What was tried.
        act: &'static str,
        /// Its size.
        bytes: Bytes,
        /// What the system said.
        error: String,
    },
}
