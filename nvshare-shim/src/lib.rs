//! libnvshare.so: interposes the CUDA driver in a client and swaps its device memory.
//!
//! The way of a call: the application finds a hook instead of the driver's function ([`resolve`], or our export); the
//! hook ([`hooks`], listed in [`table`]) passes the [`gate`] and calls the real function ([`driver`]), or answers from
//! the records of [`memory`].
//!
//! - [`start`]: first use, forks, the shim's own threads. Nothing happens before the first `cuInit`.
//! - [`cuda`]: the driver's types. [`counters`]: the calls made, as the agent sees them.
//! - [`gate`], [`streams`], [`drain`], [`pace`]: who may submit work, what was submitted, and when it is finished.
//! - [`memory`], [`swap`], [`link`]: what the process holds, how it moves, and what the agent says about it.
//! - `nvml`: what NVML says of memory.
//! - [`descriptors`], `uncancelled`: the application may fork, close what it likes, and end its threads.
//! - [`config`], [`log`]: what the environment says, and what is said on stderr.

// Standard error is not ours: `log` knows how to use it.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]
#![cfg_attr(sanitized, allow(dead_code, reason = "names are not looked up here"))]

pub mod config;
pub mod counters;
pub mod cuda;
pub mod descriptors;
pub mod drain;
pub mod driver;
pub mod gate;
mod hooks;
pub mod link;
pub mod log;
pub mod memory;
mod nvml;
pub mod pace;
#[cfg(test)]
mod pass_through;
mod resolve;
pub mod start;
pub mod streams;
pub mod swap;
mod table;
mod uncancelled;
