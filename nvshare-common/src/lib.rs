//! What two sides of nvshare must agree on, and nothing else.
//!
//! - [`probe`]: which driver functions are observed, under which heading (eBPF programs, agent, shim).
//! - [`event`]: the records the eBPF programs write and the agent reads.
//! - [`uvm`]: what the kernel module for managed memory tells, by driver.
//! - [`counters`]: the page a client shares with the agent: what it holds, and the driver calls it made.
//! - [`fingerprint`]: the keyed hash of a block, in Rust and as the kernel the swap engine launches.
//! - [`protocol`]: the messages between agent and shim; [`frame`] and [`wire`] carry them, [`bytes`] and [`ids`] are their words.
//! - [`share`]: what two processes say that share memory by CUDA IPC.
//!
//! Without the feature `std` only what the eBPF programs need is left.
#![cfg_attr(not(feature = "std"), no_std)]

#[cfg(feature = "std")]
pub mod bytes;
#[cfg(feature = "std")]
pub mod counters;
pub mod event;
pub mod fingerprint;
#[cfg(feature = "std")]
pub mod frame;
#[cfg(feature = "std")]
pub mod ids;
pub mod probe;
#[cfg(feature = "std")]
pub mod protocol;
#[cfg(feature = "std")]
pub mod share;
#[cfg(test)]
mod unobserved;
pub mod uvm;
#[cfg(feature = "wire")]
pub mod wire;
