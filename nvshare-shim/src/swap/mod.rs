//! The swap engine.

pub mod plan;
