//! The node agent: decides who holds a GPU's memory, from what uprobes see and shims say.
//!
//! What it decides, and on what grounds, is in [`nvshare_agent_core`]; here is what reaches out. Data flows one way:
//! [`observer`] and [`control`] feed the [`conductor`], the one task that owns the core; its commands go back through
//! `control`. [`pods`] tells it to whom processes belong. Everything anybody else may know is in the core's `snapshot`,
//! published after each change; [`metrics`], [`http`] and [`admin`] only read it.

pub mod admin;
pub mod agent;
pub mod clock;
pub mod conductor;
pub mod config;
pub mod control;
pub mod device;
pub mod health;
pub mod hostmem;
pub mod http;
pub mod install;
pub mod keep;
pub mod log;
mod lost_cards;
pub mod metrics;
mod no_space;
pub mod observer;
pub mod plugin;
pub mod pods;
pub mod proc;
mod ready;
mod tasks;
