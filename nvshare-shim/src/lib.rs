//! libnvshare.so: interposes the CUDA driver in a client and swaps its device memory.
//!
//! The way of a call: the application finds a hook instead of the driver's function ([`exports`]); the
//! hook ([`hooks`]) passes the [`gate`] and calls the real function ([`driver`]), or answers from
//! our records ([`allocation`]). Nothing happens before the first `cuInit` ([`start`]).
//!
//! # Floors
//!
//! A module may use those below it, never one above; of two on one floor the one that is named first is below. Within a folder
//! anything goes. `tests/floors.rs` compares this table with every path in the sources.
//!
//! | floor | modules | what lives there |
//! | --- | --- | --- |
//! | 14 | `exports` | what programs find instead of the driver's functions |
//! | 13 | `start`, `hooks` | first use; what a call does, a file per family |
//! | 12 | `link` | the control thread: connect, reconnect, obey |
//! | 11 | `swap` | the engine: what copies, and who else may use the memory |
//! | 10 | `allocation` | allocations, the accounts of what cannot be moved, what is promised |
//! | 9 | `shadow` | shadows: pinned host memory |
//! | 8 | `turn` | whether the application may run: the run state, stopping it, draining |
//! | 7 | `device` | the devices in use, and what is held on each |
//! | 6 | `streams`, `threads` | what the application submitted, and whether it is finished; the shim's own threads, which use the driver once before they begin |
//! | 5 | `driver` | the real driver's entry points |
//! | 4 | `counters`, `line` | the calls made, as the agent sees them; what any thread may say to the agent |
//! | 3 | `memory` | pure: addresses, extents, accounts |
//! | 2 | `gate` | who may submit work; it knows neither agent nor streams |
//! | 1 | `cuda`, `uncancelled`, `stderr`, `config`, `log`, `descriptors`, `life`, `proc` | the driver's types; what the environment says, and what is said on stderr; whether the library is active; the process: it may fork, close what it likes, and end its threads |
//!
//! # Locks
//!
//! A lock is taken only with locks of rows above it held; it is not the order of the floors.
//!
//! 1. turns of whole procedures: `RETURNING`, `TURN`, `MEETING`, then `STOPPING`
//! 2. the line (`SHARED`): what is booked and what is said are one step
//! 3. the terms (`TERMS`)
//! 4. the run state (`RUN_STATE`), and with it the gate
//! 5. contexts that may be ending (`LEAVING`), then a device's state, one at a time
//! 6. leaves: `SHADOWS`, the list of devices, the address map, the handles, the tables of streams, the
//!    pools and then what their thread is asked for, the gate's own
//!
//! None of rows 2 to 6 is held during a driver call, nor while a thread waits for the agent.

// Standard error is not ours: `stderr` knows how to use it.
#![cfg_attr(not(test), warn(clippy::print_stderr, clippy::print_stdout))]
#![cfg_attr(sanitized, allow(dead_code, reason = "names are not looked up here"))]

pub mod allocation;
pub mod config;
pub mod counters;
pub mod cuda;
pub mod descriptors;
pub mod device;
pub mod driver;
mod exports;
pub mod gate;
mod hooks;
pub mod life;
mod line;
pub mod link;
pub mod log;
pub mod memory;
mod proc;
pub mod shadow;
pub mod start;
mod stderr;
pub mod streams;
pub mod swap;
mod threads;
pub mod turn;
mod uncancelled;
