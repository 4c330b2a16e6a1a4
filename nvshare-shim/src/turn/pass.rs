//! The way of a call of the application through the gate.

use super::want::want_to_run;
use crate::cuda::sys::CUstream;
use crate::gate::{self, Pass};
use crate::streams;

/// Passes the gate; where it is shut the agent is told that the application wants to run, and the thread waits.
#[inline]
pub fn pass() -> Pass {
    gate::pass(|| false, want_to_run)
}

/// Passes the gate with a call into `stream` (already resolved: never null). While the stream is being captured
/// such a call executes nothing, and passes a shut gate.
#[inline]
pub fn pass_into(stream: CUstream) -> Pass {
    gate::pass(|| streams::is_capturing(stream), want_to_run)
}
