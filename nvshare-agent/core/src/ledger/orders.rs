//! What was ordered for one client, by the administrator or by its pod. It outlives sessions of the client, and the agent: see
//! the agent's `keep`.

use nvshare_common::bytes::Bytes;

use crate::moment::Moment;
use crate::order::{Priority, Weight, What};

/// How a client is to be treated.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Orders {
    /// Who waits longer than others.
    pub priority: Priority,
    /// Its share of the time.
    pub weight: Weight,
    /// It is never swapped out.
    pub pinned: bool,
    /// It is stopped and swapped out until further orders; since then.
    pub held_out: Option<Moment>,
    /// The most it may have of each device, if it is to be less than there is.
    pub limit: Option<Bytes>,
}

impl Orders {
    /// Books what is ordered. Whether it can be done was asked before.
    pub(super) fn book(&mut self, what: What, now: Moment) {
        match what {
            What::SwapOut => {
                self.held_out.get_or_insert(now);
            }
            What::SwapIn => self.held_out = None,
            What::Pin(pinned) => self.pinned = pinned,
            What::Priority(priority) => self.priority = priority,
            What::Weight(weight) => self.weight = weight,
            What::Limit(limit) => self.limit = limit,
        }
    }
}
