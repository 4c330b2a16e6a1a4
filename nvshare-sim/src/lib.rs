//! libcuda.so.1 for machines without a GPU: a strict simulator of the CUDA driver API.
//!
//! - [`export`]: how functions are exported; [`api`]: the functions, a file per family, thin.
//! - [`init`], [`device`]: the process and its cards.

mod api;
mod device;
mod export;
mod init;
