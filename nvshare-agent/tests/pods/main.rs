//! Pods, against stand-ins for what a cluster has: an API server, a kubelet, and cgroups as a container runtime makes
//! them.

mod agent;
mod directory;
mod kubelet;
