//! The conductor without its task: what each message does to the ledger (`hear`), and what each decision sends (`decide`).
//! Deterministic and without I/O, so that simulations and model tests run exactly this.

mod asks;
mod decide;
mod hear;
mod hindrance;
mod host;
pub mod refusals;
pub mod shortage;
pub mod switches;
mod terms;

use std::collections::BTreeMap;

use nvshare_common::ids::ClientId;
use nvshare_common::protocol::ToShim;

use self::asks::Asks;
use self::hindrance::Said;
use self::host::HostMemory;
use self::switches::Switchboard;
use crate::ledger::{Ledger, SessionId};
use crate::moment::Moment;
use crate::settings::Settings;
use crate::snapshot::Histogram;

pub use self::hear::{Fate, Heard};
pub use self::host::Arenas;

/// A message to be sent to a client, if its session still stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// To whom.
    pub client: ClientId,
    /// On which session.
    pub session: SessionId,
    /// What.
    pub message: ToShim,
}

/// What came of deciding.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To be sent, in this order.
    pub commands: Vec<Command>,
    /// NVML should be read now.
    pub read: bool,
    /// Somebody waits: decide again soon.
    pub pressing: bool,
}

/// Ledger, policy and what is measured about them.
#[derive(Debug, Default)]
pub struct Core {
    /// Who holds what.
    pub ledger: Ledger,
    /// What the operator chose.
    pub settings: Settings,
    /// Nothing is decided yet: a previous agent's clients may still come.
    pub held_back: bool,
    /// Why clients cannot run.
    pub hindered: BTreeMap<ClientId, String>,
    /// Switches, measured.
    pub switches: Switchboard,
    /// From wanting to run until running.
    pub waiting_seconds: Histogram,
    /// Of swap outs.
    pub swap_out_seconds: Histogram,
    /// Of swap ins.
    pub swap_in_seconds: Histogram,
    /// What NVML cannot do.
    pub devices_problem: Option<String>,
    /// When the last report of all devices began.
    reported: Moment,
    /// Clients that ask before they promise.
    asks: Asks,
    /// Arenas on their way.
    host: HostMemory,
    /// What the log has of those that cannot run.
    told: Said,
}

impl Core {
    /// With nothing in it.
    pub fn new(settings: Settings) -> Core {
        Core { settings, ..Core::default() }
    }

    /// A previous agent's clients have come, or will not: decisions begin.
    pub fn begin_granting(&mut self, now: Moment) {
        self.held_back = false;
        self.ledger.grant_from(now);
    }

    fn command(&self, client: ClientId, message: ToShim) -> Option<Command> {
        let session = self.ledger.client(client)?.session()?;
        Some(Command { client, session, message })
    }
}
