//! Who runs, who stops, and whose memory moves: a pure function of the ledger, the settings and the time. No I/O, no
//! clock, no async. The same ledger always gives the same decisions, and what was decided before is in the ledger, so that
//! deciding again at once decides nothing.
//!
//! Everything that fits runs at once, untouched. Otherwise clients take turns: see `choose` for who runs (priorities,
//! weights and their bounds), `memory` for whose memory moves (and that of clients swapped out by order), `units` for what
//! is stopped and resumed as one.

mod choose;
mod memory;
mod rooms;
mod units;

use std::time::Duration;

use nvshare_common::units::{Bytes, ClientId, DeviceId, Ticket};

use crate::ledger::Ledger;
use crate::moment::Moment;
use crate::settings::Settings;

/// Something to be done. The conductor books it in the ledger and sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The client gets the lease.
    Run {
        /// Who.
        client: ClientId,
        /// The lease ends at this moment at the latest: somebody's turn is near.
        cap: Option<Moment>,
    },
    /// The lease that the client has, or just gets, is out of turn, after a long wait: it begins now.
    Favour {
        /// Who.
        client: ClientId,
    },
    /// The client gives up the lease.
    Stop {
        /// Who.
        client: ClientId,
        /// Who gains.
        gains: Option<ClientId>,
    },
    /// The client's grant grows.
    Grant {
        /// Who.
        client: ClientId,
        /// Where.
        device: DeviceId,
        /// By how much.
        bytes: Bytes,
    },
    /// The client, which is stopped, gives memory back.
    SwapOut {
        /// Who.
        client: ClientId,
        /// Where.
        device: DeviceId,
        /// How much.
        bytes: Bytes,
        /// Who gains.
        gains: Option<ClientId>,
    },
    /// The client gives back what it does not use.
    Reclaim {
        /// Who.
        client: ClientId,
        /// Where.
        device: DeviceId,
        /// How much that may be.
        expected: Bytes,
    },
    /// A driver's request for room is answered.
    Room {
        /// Whose.
        client: ClientId,
        /// Which.
        ticket: Ticket,
        /// Whether there is room.
        made: bool,
    },
    /// Somebody is to get memory, and NVML has to confirm first that it is there.
    Read,
}

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
    let units = units::units(ledger, settings, now);
    let chosen = choose::choose(ledger, settings, &units, now);
    memory::arrange(ledger, &units, chosen, now)
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
