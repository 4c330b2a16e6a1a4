//! libcuda.so.1 for machines without a GPU: a strict simulator of the CUDA driver API.
//!
//! A call of an application comes in through [`export`] and its function in [`api`], which is thin: what it is about lives
//! below. What is not simulated answers `CUDA_ERROR_NOT_SUPPORTED`.
//!
//! # Floors
//!
//! A module may use those below it, never one above; of two on one floor the one that is named first is below. Within a folder
//! anything goes. `tests/floors.rs` compares this table with every path in the sources.
//!
//! | floor | modules | what lives there |
//! | --- | --- | --- |
//! | 9 | `api` | the functions, a file per family |
//! | 8 | `export` | how functions are exported, and what every call checks first |
//! | 7 | `lifetime`, `init` | contexts that are made and end, with all that belongs to them; the process, likewise |
//! | 6 | `module`, `array`, `stream_ordered` | code that is loaded; memory with a form; memory that streams allocate |
//! | 5 | `execution` | what streams execute: work, kernels, graphs, captures, events |
//! | 4 | `memory` | addresses, and what is behind them |
//! | 3 | `flight`, `timeline` | work that is not over, and the memory it may touch; the card's time that work takes |
//! | 2 | `context` | what a context is, and which one a thread works in |
//! | 1 | `call`, `handles`, `threads`, `completion`, `jam`, `parameters`, `ptx`, `jit`, `texture`, `failure`, `device`, `strict`, `faults` | a call, and what C passes with it; the end of a piece of work, and waiting; code as a text; the error for good; the cards; what the simulator punishes, and what it breaks on demand |

#![deny(unsafe_code)]

mod api;
mod array;
mod call;
mod completion;
mod context;
mod device;
mod execution;
mod export;
mod failure;
mod faults;
mod flight;
mod handles;
mod init;
mod jam;
mod jit;
mod lifetime;
mod memory;
mod module;
mod parameters;
mod ptx;
mod stream_ordered;
mod strict;
mod texture;
mod threads;
mod timeline;
