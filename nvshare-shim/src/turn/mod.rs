//! Whether the application may run.
//!
//! - [`dead`]: devices that failed for good.
//! - [`pass`]: through the gate; [`want`]: what it wants of the agent.

pub(crate) mod dead;
mod pass;
pub(crate) mod want;

pub use self::pass::{pass, pass_into};
