//! What is decided, and what that sends: the policy's decisions are booked in the ledger first.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};
use nvshare_common::protocol::ToShim;

use super::{Command, Core, Outcome};
use crate::decision::{At, Decision};
use crate::ledger::{Client, Told};
use crate::moment::Moment;
use crate::policy;

impl Core {
    /// Takes away who is gone.
    pub fn bury(&mut self, now: Moment) -> Vec<Client> {
        let buried = self.ledger.bury(&self.settings, now);
        for client in &buried {
            self.hindered.remove(&client.id());
            self.told.forget(client.id());
            self.switches.forget(client.id());
            if client.overdue() {
                tracing::warn!(
                    pid = client.process().pid,
                    "its memory is still in use after its end: counted as foreign"
                );
            }
        }
        buried
    }

    /// Decides, books the decisions and says what to send.
    pub fn decide(&mut self, now: Moment) -> Outcome {
        let mut outcome = Outcome { read: self.ledger.awaits_reading(), ..Outcome::default() };
        if self.held_back {
            return outcome;
        }
        self.close_switches(now);
        for (client, device) in self.ledger.doubted(now) {
            let reclaim = Decision::Reclaim(At { client, device }, Bytes::ZERO);
            outcome.commands.extend(self.book(&reclaim, now));
        }
        for (client, what) in self.ledger.overdue(&self.settings, now) {
            tracing::warn!(client = client.0, what, "unyielding: others are served around it");
        }
        self.ledger.account(&self.settings, now);
        for (client, device) in self.ledger.admit(&self.settings, now) {
            self.told.late(client, device);
        }
        let pause = policy::lease_length(&self.settings, self.ledger.switch_cost());
        self.ledger.weigh_rooms(pause, now);
        // Before anything is decided: for what cannot be, nobody is stopped.
        for refusal in policy::impossible_rooms(&self.ledger, now) {
            outcome.commands.extend(self.book(&refusal, now));
        }
        let (answers, waits) = self.asks.answer(&mut self.ledger, now);
        outcome.commands.extend(answers);
        let decisions = policy::decide(&self.ledger, &self.settings, now);
        outcome.pressing = decisions.pressing || waits;
        outcome.read |= waits;
        for decision in decisions.todo {
            match decision {
                Decision::Read => outcome.read = true,
                other => outcome.commands.extend(self.book(&other, now)),
            }
        }
        outcome.commands.extend(self.paces());
        self.hindered =
            decisions.hindered.into_iter().map(|hindrance| (hindrance.client, hindrance.why)).collect();
        self.told.hindered(&self.hindered, now);
        debug_assert_eq!(self.ledger.check(), Ok(()));
        outcome
    }

    /// Books a decision, and what is measured of it. Says what to send.
    fn book(&mut self, decision: &Decision, now: Moment) -> Option<Command> {
        if let Decision::Stop { client, gains } = decision
            && let Some(stops) = self.ledger.client(*client)
        {
            let (gains, quiet) = (gains.map(|gains| gains.0), now.since(stops.active_at()));
            tracing::debug!(client = client.0, gains, lease = ?stops.lease(), ?quiet, "stop");
        }
        let booked = self.ledger.book(decision, &self.settings, now)?;
        if let Some(wanted) = booked.wanted {
            self.waiting_seconds.record(now.since(wanted).as_secs_f64());
        }
        match (decision, &booked.message) {
            (Decision::Stop { client, gains }, ToShim::Stop { ticket, .. }) => {
                self.switches.stop(*client, *ticket, *gains, now);
            }
            (Decision::SwapOut { gains, .. }, ToShim::SwapOut { ticket, .. }) => {
                self.switches.swap_out(*ticket, *gains, now);
            }
            _ => {}
        }
        self.command(booked.client, booked.message)
    }

    /// Who runs keeps its work short while somebody else waits.
    fn paces(&mut self) -> Vec<Command> {
        let waits =
            |client: &&Client| client.wants().is_some() && client.lease().is_none() && !client.held_out();
        let waiting = self.ledger.clients().values().filter(waits);
        let waiting: Vec<ClientId> = waiting.map(Client::id).collect();
        let changed: Vec<(ClientId, bool)> = self
            .ledger
            .clients()
            .values()
            .filter(|client| client.commandable())
            .map(|client| (client.id(), waiting.iter().any(|id| *id != client.id())))
            .filter(|(id, on)| self.ledger.client(*id).is_some_and(|client| client.paced() != *on))
            .collect();
        changed
            .into_iter()
            .filter_map(|(id, on)| {
                self.ledger.pace(id, on);
                self.command(id, ToShim::Pace { on })
            })
            .collect()
    }

    /// The sizes and limits that clients have to be told (again).
    pub fn limits(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        for Told { client, device, size, limit } in self.ledger.untold() {
            let size = size.map(|bytes| ToShim::Size { device, bytes });
            let limit = limit.map(|bytes| ToShim::Limit { device, bytes });
            commands
                .extend(size.into_iter().chain(limit).filter_map(|message| self.command(client, message)));
        }
        commands
    }

    /// The limits and the sizes that a client is told as it is welcomed.
    pub fn first_limits(&mut self, client: ClientId) -> [Vec<(DeviceId, Bytes)>; 2] {
        let told = self.ledger.untold_of(client);
        let limits = told.iter().filter_map(|told| Some((told.device, told.limit?))).collect();
        let sizes = told.iter().filter_map(|told| Some((told.device, told.size?))).collect();
        [limits, sizes]
    }

    pub(super) fn close_switches(&mut self, now: Moment) {
        for (client, took) in self.switches.close(&self.ledger, now) {
            self.ledger.switched(client, took);
        }
    }
}
