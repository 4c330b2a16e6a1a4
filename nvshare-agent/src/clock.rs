//! The clock, for all of the agent that may ask for the time: `CLOCK_MONOTONIC`, that of the eBPF records too.

use nvshare_agent_core::moment::Moment;
use rustix::time::{ClockId, clock_gettime};

/// The time now.
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Monotonic);
    Moment(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
