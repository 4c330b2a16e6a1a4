//! Loads and attaches the eBPF programs and turns their records into observations.
