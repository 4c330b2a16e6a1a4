//! The administrator's socket: one JSON object per line each way, for root and the agent's own user only. It lies in a
//! directory that is never mounted into a container, because root there is root here as far as uids go.
//!
//! `{"request":"status"}` answers `{"answer":"state",...}`; `{"request":"set","changes":["lease-floor=200ms"]}` answers
//! `{"answer":"settings",...}`; `{"request":"order","client":3,"order":"swap_out"}` answers `{"answer":"ordered"}`; anything
//! else answers `{"answer":"error","why":...}`.

pub mod args;
pub mod change;
pub mod client;
pub mod command;
mod foreign;
pub mod orders;
pub mod server;
pub mod top;
mod view;
pub mod who;
mod wire;

pub use wire::{MAX_LINE_BYTES, Request, Response};
