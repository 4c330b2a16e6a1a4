//! The node agent: decides who holds a GPU's memory, from what uprobes see and shims say.
//!
//! Data flows one way: [`observer`] and [`control`] feed the [`conductor`], the one task that owns the [`ledger`] and
//! asks the [`policy`] what to do; its commands go back through `control`. [`pods`] tells it to whom processes belong. Everything anybody else may know is in the
//! [`snapshot`], published after each change; [`metrics`], [`http`] and [`admin`] only read it.

pub mod admin;
pub mod agent;
pub mod change;
pub mod conductor;
pub mod config;
pub mod control;
pub mod device;
mod full;
pub mod health;
pub mod hostmem;
pub mod http;
pub mod install;
pub mod keep;
pub mod ledger;
pub mod log;
pub mod metrics;
pub mod moment;
pub mod observation;
pub mod observer;
pub mod order;
pub mod plugin;
pub mod pods;
pub mod policy;
pub mod reading;
mod roll;
pub mod settings;
pub mod snapshot;
pub mod value;
