//! The administrator's socket: one JSON object per line each way, for root and the agent's own user only. It lies in a
//! directory that is never mounted into a container, because root there is root here as far as uids go.
//!
//! `{"request":"status"}` answers `{"answer":"state",...}`; `{"request":"set","changes":["lease-floor=200ms"]}` answers
//! `{"answer":"settings",...}`; anything else answers `{"answer":"error","why":...}`.

pub mod client;
pub mod command;
pub mod server;
pub mod top;
mod view;
mod wire;

pub use wire::{MAX_LINE_BYTES, Request, Response};
