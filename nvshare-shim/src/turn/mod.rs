//! Whether the application may run: its turn, and how that ends.
//!
//! - [`run_state`]: the one place that decides about the gate; [`dead`]: devices that failed for good.
//! - [`stop`]: stopping the client; [`drain`]: waiting until its work is finished, of which [`drained`] is the proof; [`calm`]: while it
//!   is stopped, calls that would wait for it; [`pace`]: so that a drain does not take long.
//! - [`pass`](mod@pass): its way through the gate; [`want`]: what it wants of the agent.

pub mod calm;
pub mod dead;
pub mod drain;
pub mod drained;
pub mod pace;
mod pass;
pub mod run_state;
pub mod stop;
pub mod want;

pub use self::pass::{pass, pass_into};
