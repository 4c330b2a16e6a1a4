//! What the node agent decides: values in, values out. Nothing here opens a file, starts a thread or asks for the time;
//! all of it is tested in virtual time, and `Cargo.toml` keeps it so.
//!
//! The [`conductor`] hears what happens, books it in the [`ledger`], which knows what everybody holds, and asks the
//! [`policy`] who runs and whose memory moves. [`snapshot`] is what others may see of it. The rest are words of these:
//! [`observation`] (what uprobes saw), [`reading`] (what NVML said), [`order`] and [`change`] (what people want),
//! [`settings`], [`process`], [`moment`], [`arena`]; [`value`] reads and writes sizes and times as people do.

#![forbid(unsafe_code)]

pub mod arena;
pub mod change;
pub mod conductor;
pub mod ledger;
pub mod moment;
pub mod observation;
pub mod order;
pub mod policy;
pub mod process;
pub mod reading;
pub mod settings;
pub mod snapshot;
pub mod value;
