//! The conductor without its task: what each message does to the ledger, and what each decision sends. Deterministic and
//! without I/O, so that simulations and model tests run exactly this.

use std::collections::BTreeMap;
use std::time::Duration;

use nvshare_common::protocol::{Held, Hello, Purpose, ToAgent, ToShim};
use nvshare_common::units::{Bytes, ClientId, DeviceId};

use super::asks::{Ask, Asks};
use super::hindrance::Said;
use super::switches::Switchboard;
use crate::device::Report;
use crate::ledger::{Client, Ledger, Page, Room, SessionId, Told};
use crate::moment::Moment;
use crate::observation::Process;
use crate::policy::{self, Decision};
use crate::settings::Settings;
use crate::snapshot::Histogram;

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
    pub(super) reported: Moment,
    /// Clients that ask before they promise.
    pub(super) asks: Asks,
    /// What the log has of those that cannot run.
    pub(super) told: Said,
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

    /// A session begins.
    pub fn hello(&mut self, process: Process, session: SessionId, hello: &Hello, now: Moment) -> ClientId {
        let client = self.ledger.hello(process, session, hello, now);
        let booked = |device| Some(self.ledger.client(client)?.devices().get(&device)?.granted());
        let boast = |held: &&Held| booked(held.device).is_some_and(|booked| booked < held.granted);
        if let Some(Held { device, granted, .. }) = hello.devices.iter().find(boast) {
            self.distrust(client, format!("says that it was granted {granted} on {device}"));
        }
        client
    }

    /// A message came on `session`. One of an older session of the client is void: `Hello` has said how things stand.
    pub fn hear(
        &mut self,
        client: ClientId,
        session: SessionId,
        message: ToAgent,
        now: Moment,
    ) -> Vec<Command> {
        let current = self.ledger.client(client).is_some_and(|client| client.session() == Some(session));
        if !current {
            return Vec::new();
        }
        match message {
            ToAgent::Met { device } => return self.met(client, device, now),
            ToAgent::Want { device, total, purpose } => self.want(client, device, total, purpose, now),
            ToAgent::WantRoom { ticket, device, bytes } => {
                let bytes = bytes.min(Bytes(1 << 48));
                let room = Room {
                    client,
                    ticket,
                    device,
                    bytes,
                    since: now,
                    made: None,
                    large: false,
                    presses: false,
                };
                if !self.ledger.room_wanted(room) {
                    let message = ToShim::Room { ticket, made: false };
                    return vec![Command { client, session, message }];
                }
            }
            ToAgent::MayHave { ticket, device, total } => {
                self.asks.open(Ask { client, session, ticket, device, total, since: now });
            }
            ToAgent::Released { ticket, device, bytes } => {
                let believed = self.ledger.released(client, ticket, device, bytes, now);
                if believed < bytes {
                    self.distrust(client, format!("released {bytes} on {device}, where it had {believed}"));
                }
            }
            ToAgent::SwapOutDone { ticket, copied, clean } => {
                if let Some(outgoing) = self.ledger.swap_out_done(client, ticket, now) {
                    self.swap_out_seconds.record(now.since(outgoing.at).as_secs_f64());
                }
                self.switches.swapped_out(ticket, copied, clean);
                self.close_switches(now);
            }
            ToAgent::Resident { device, copied } => self.resident(client, device, copied, now),
            other => self.hear_of_itself(client, other, now),
        }
        Vec::new()
    }

    /// The messages that concern nobody but their sender.
    fn hear_of_itself(&mut self, client: ClientId, message: ToAgent, now: Moment) {
        match message {
            ToAgent::Stopped { ticket } => {
                let was_stopping = self.ledger.stopped(client, ticket);
                if was_stopping {
                    self.switches.drained(ticket, now);
                }
            }
            ToAgent::DrainStalled { ticket } => {
                let was_stopping = self.ledger.stalled(client, ticket, &self.settings, now);
                if was_stopping {
                    if let Some(sender) = self.ledger.client(client) {
                        let (pid, stalls) = (sender.process().pid, sender.stalls());
                        tracing::info!(client = client.0, pid, stalls, "drain stalled");
                    }
                    self.switches.drained(ticket, now);
                }
            }
            ToAgent::SwapFailed { ticket, why } => {
                // Of a command that there is: whoever invents failures fills no log.
                if self.ledger.swap_failed(client, ticket, &why, now)
                    && let Some(sender) = self.ledger.client(client)
                {
                    let why = sender.swap_problem();
                    tracing::warn!(client = client.0, pid = sender.process().pid, why, "swap out failed");
                }
            }
            ToAgent::Unswappable { device, bytes, reason } => {
                self.ledger.unswappable(client, device, &reason, bytes);
            }
            ToAgent::ArenaReady { arena } => self.ledger.arena_ready(client, arena),
            ToAgent::ArenaReturned { arena } => self.ledger.arena_returned(client, arena),
            ToAgent::Dead { why } => {
                if self.ledger.died(client, &why)
                    && let Some(sender) = self.ledger.client(client)
                {
                    tracing::warn!(
                        client = client.0,
                        pid = sender.process().pid,
                        why = sender.dead(),
                        "device error: its memory stays until it exits"
                    );
                }
            }
            ToAgent::Revived => self.ledger.revived(client),
            // Of an arena that a client holds, the descriptor matters, which the task has: see `conductor::said`.
            _ => {}
        }
    }

    fn want(&mut self, client: ClientId, device: DeviceId, total: Bytes, purpose: Purpose, now: Moment) {
        self.ledger.needs(client, device, total);
        if purpose == Purpose::Work {
            self.ledger.wants(client, now);
        }
    }

    fn resident(&mut self, client: ClientId, device: DeviceId, copied: Bytes, now: Moment) {
        let Some(arrived) = self.ledger.resident(client, device, now) else { return };
        if let Some(since) = arrived.granting_since {
            self.swap_in_seconds.record(now.since(since).as_secs_f64());
        }
        if let Some(wanted) = arrived.wanted {
            self.waiting_seconds.record(now.since(wanted).as_secs_f64());
        }
        self.switches.swapped_in(client, copied, arrived.complete.then_some(now));
        self.close_switches(now);
    }

    fn close_switches(&mut self, now: Moment) {
        for (client, took) in self.switches.close(&self.ledger, now) {
            self.ledger.switched(client, took);
        }
    }

    fn distrust(&mut self, client: ClientId, why: String) {
        if self.ledger.distrust(client, why)
            && let Some(client) = self.ledger.client(client)
        {
            let why = client.untrusted();
            tracing::warn!(
                client = client.id().0,
                pid = client.process().pid,
                why,
                "said what cannot be true"
            );
        }
    }

    /// A client's counter page was looked at.
    pub fn sample(&mut self, client: ClientId, page: &Page, now: Moment) {
        if let Some(begun) = self.ledger.sample(client, page, now) {
            if let Some(wanted) = begun.wanted {
                self.waiting_seconds.record(now.since(wanted).as_secs_f64());
            }
            self.switches.looks_arrived(client, now);
        }
    }

    /// NVML was read. Counter pages were looked at just before this is called.
    pub fn devices(&mut self, report: &Report, now: Moment) {
        if report.complete || report.problem.is_some() {
            self.devices_problem.clone_from(&report.problem);
        }
        if report.complete {
            self.reported = report.began;
        }
        for reading in &report.devices {
            for client in self.ledger.reading(reading, report.began, &self.settings, now) {
                let device = reading.device;
                self.distrust(client, format!("says that it has more on {device} than NVML shows"));
            }
        }
        if report.complete && report.problem.is_none() {
            let listed: Vec<DeviceId> = report.devices.iter().map(|reading| reading.device).collect();
            self.ledger.forget_devices_but(&listed);
        }
    }

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
            outcome
                .commands
                .extend(self.book(&Decision::Reclaim { client, device, expected: Bytes::ZERO }, now));
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
            (Decision::Stop { gains, .. }, ToShim::Stop { ticket, .. }) => {
                self.switches.stop(*ticket, *gains, now);
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

    pub(super) fn command(&self, client: ClientId, message: ToShim) -> Option<Command> {
        let session = self.ledger.client(client)?.session()?;
        Some(Command { client, session, message })
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

    /// How long until time alone could change a decision.
    pub fn pause(pressing: bool) -> Duration {
        Duration::from_millis(if pressing { 10 } else { 100 })
    }
}
