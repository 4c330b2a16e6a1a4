//! The records that the eBPF programs write and the agent reads.
