//! libcuda.so.1 for machines without a GPU: a strict simulator of the CUDA driver API.
//!
//! - `export`: how functions are exported; `parameters`: what they are called with, typed, and where a caller's pointers
//!   end; `api`: the functions, a file per family, thin. What is not simulated answers `CUDA_ERROR_NOT_SUPPORTED`.
//! - `call`: a call, and how it ends, as all the rest sees it.
//! - `init`, `device`: the process and its cards. `context`, `primary`, `green`: contexts. `handles`: what the
//!   application holds of all these.
//! - `stream`, `event`, `completion`, `jam`: queues of work, their threads, and waiting. `work`: everything that a stream
//!   executes, and what of it is in flight. `timeline`: the card's time that it takes.
//! - `module`, `ptx`, `kernel`, `builtin`: code. `graph`, `executable`, `capture`, `capture_mode`: graphs.
//! - `memory`: addresses and what is behind them. `array`: memory with a form. `texture`: views of both.
//! - `failure`: the error for good. `strict`, `faults`: what the simulator punishes, and what it breaks on demand.

#![deny(unsafe_code)]

mod api;
mod array;
mod builtin;
mod call;
mod capture;
mod capture_mode;
mod completion;
mod context;
mod device;
mod event;
mod executable;
mod export;
mod failure;
mod faults;
mod graph;
mod green;
mod handles;
mod init;
mod jam;
mod jit;
mod kernel;
mod memory;
mod module;
mod parameters;
mod primary;
mod ptx;
mod stream;
mod strict;
mod texture;
mod threads;
mod timeline;
mod work;
