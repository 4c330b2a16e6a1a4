//! The right to run, and the order to give it up.

use std::time::Duration;

use nvshare_common::ids::Ticket;

use crate::moment::Moment;

/// The right to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When `Run` was sent, or the client said that it runs.
    pub given: Moment,
    /// When everything was resident: from then on it counts.
    pub began: Option<Moment>,
    /// What the switch took that began it.
    pub cost: Duration,
    /// It ends at this moment at the latest: it was given while somebody else's turn was near.
    pub cap: Option<Moment>,
    /// It began a second time, because its holder had to wait for memory.
    pub renewed: bool,
    /// It was given out of turn, after a long wait: no priority ends it early.
    pub aged: bool,
}

impl Lease {
    pub(super) fn given(now: Moment, began: Option<Moment>, cap: Option<Moment>) -> Lease {
        Lease { given: now, began, cost: Duration::ZERO, cap, renewed: false, aged: false }
    }

    /// Of one that runs without having been told to: it is over already, and never begins anew.
    pub(super) fn unearned() -> Lease {
        Lease { renewed: true, ..Lease::given(Moment::NEVER, Some(Moment::NEVER), None) }
    }
}

/// A `Stop` without an answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Its number.
    pub ticket: Ticket,
    /// When it was sent; sooner, if it was sent before and the session ended without an answer.
    pub at: Moment,
}
