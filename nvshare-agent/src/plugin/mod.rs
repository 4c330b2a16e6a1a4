//! The kubelet's device plugin (API v1beta1): pods ask for `nvshare.com/gpu` and get a share of a GPU.
//!
//! [`devices`] says what there is, [`prefer`] which of it a pod should get, [`allocate`] what goes into its containers
//! ([`cdi`] says the same to a container runtime, [`library`] looks whether it is there); all of these are pure but for
//! the files they name. [`service`] answers the kubelet with them, [`registration`] introduces the plugin to it, and
//! [`run`] does so again whenever the kubelet restarts.

pub mod allocate;
pub mod api;
pub mod cdi;
pub mod devices;
mod file;
pub mod library;
mod life;
pub mod options;
pub mod prefer;
mod problems;
pub mod registration;
pub mod service;
mod socket;
mod watch;

pub use life::run;
pub use options::Options;

/// What pods ask for.
pub const RESOURCE: &str = "nvshare.com/gpu";
/// The plugin's socket, in the kubelet's directory.
pub const OWN_SOCKET: &str = "nvshare.sock";
