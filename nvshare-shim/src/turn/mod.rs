//! Whether the application may run.
//!
//! - [`dead`]: devices that failed for good.
//! - [`want`]: what it wants of the agent.

pub(crate) mod dead;
pub(crate) mod want;
