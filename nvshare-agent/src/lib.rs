//! The node agent: decides who holds a GPU's memory, from what uprobes see and shims say.

pub mod admin;
pub mod change;
pub mod config;
pub mod device;
pub mod health;
pub mod value;
