//! A node in a temporary directory, for tests and the demo: a simulated card, an agent, clients.
//!
//! Every [`Node`] has its own copy of the driver library (its own inode, so that uprobes of one test do not fire in
//! another), its own simulated card and its own sockets. Nothing of the machine outside is touched.

mod agent;
mod artifacts;
mod cgroup;
mod client;
mod container;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod node;
mod node_cgroup;
mod nvidia;
mod pages;
mod process;
mod running;
mod wait;

pub use agent::Agent;
pub use artifacts::Artifacts;
pub use cgroup::Cgroups;
pub use client::ClientCommand;
pub use container::{Container, ContainerBuilder, containers_work};
pub use node::{Node, NodeBuilder};
pub use node_cgroup::NodeCgroup;
pub use nvidia::{NvidiaLibrary, nvidia_libraries, static_cudart};
pub use pages::Pages;
pub use process::{is_root, signal};
pub use running::Client;
pub use wait::wait_for;
