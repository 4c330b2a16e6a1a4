//! The uprobes in this machine's kernel: what they count is what was called, exactly. Where the kernel does not let the
//! tests load eBPF programs they say so loudly and pass.

mod client;
mod counts;
mod fake;
mod groups;
mod hooks;
mod kernel;
mod libraries;
mod losses;
mod nvidia;
mod own;
mod seen;
mod simulator;
