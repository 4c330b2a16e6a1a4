//! Who runs, who stops, and whose memory moves: a pure function of the ledger, the settings and the time. No I/O, no
//! clock, no async. The same ledger always gives the same decisions, and what was decided before is in the ledger, so that
//! deciding again at once decides nothing.
//!
//! Everything that fits runs at once, untouched. Otherwise clients take turns: see `choose` for who runs (priorities,
//! weights and their bounds), `age` for who waited too long, `most` for who never could, `memory` for whose memory moves
//! (and that of clients swapped out by order), `gangs` for what is stopped and resumed as one, `lacks` for what those who
//! run are to get.

mod age;
mod choose;
mod gangs;
mod lacks;
mod memory;
mod most;
mod rooms;

use std::time::Duration;

use nvshare_common::ids::ClientId;

use crate::decision::Decision;
use crate::ledger::Ledger;
use crate::moment::Moment;
use crate::settings::Settings;

/// Why a client that wants to run does not, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// Who.
    pub client: ClientId,
    /// Why, and what would help.
    pub why: String,
}

/// What was decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// What to do, in this order.
    pub todo: Vec<Decision>,
    /// Clients that can never run as things are.
    pub hindered: Vec<Hindrance>,
    /// Somebody waits for memory or for the lease: time matters.
    pub pressing: bool,
}

/// Decides.
pub fn decide(ledger: &Ledger, settings: &Settings, now: Moment) -> Decisions {
    let gangs = gangs::gangs(ledger, settings, now);
    let chosen = choose::choose(ledger, settings, &gangs, now);
    memory::arrange(ledger, &gangs, chosen, now)
}

/// Refuses the requests for room that could not be met by anything.
pub fn impossible_rooms(ledger: &Ledger, now: Moment) -> Vec<Decision> {
    rooms::impossible(ledger, now)
}

/// How long a lease lasts that a switch of this cost began.
pub fn lease_length(settings: &Settings, cost: Duration) -> Duration {
    let paid =
        Duration::try_from_secs_f64(cost.as_secs_f64() * settings.lease_factor).unwrap_or(Duration::MAX);
    paid.clamp(settings.lease_floor, settings.lease_ceiling)
}
