//! Whether the application may run.
//!
//! - [`want`]: what it wants of the agent.

pub(crate) mod want;
