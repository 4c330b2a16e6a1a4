//! libnvshare.so: interposes the CUDA driver in a client and swaps its device memory.

pub mod config;
pub mod log;

pub mod memory;
pub mod swap;
