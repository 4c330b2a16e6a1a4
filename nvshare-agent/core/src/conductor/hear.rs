//! What comes: sessions, messages, looks at counter pages, readings of devices. Each is booked in the ledger.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ArenaId, ClientId, DeviceId, Ticket};
use nvshare_common::protocol::{Held, Hello, Purpose, ToAgent, ToShim};

use super::asks::Ask;
use super::{Command, Core};
use crate::arena::Memory;
use crate::ledger::{Headroom, Page, SessionId};
use crate::moment::Moment;
use crate::process::Process;
use crate::reading::Report;

/// What comes of a message.
#[derive(Debug, Default)]
pub struct Heard {
    /// To be sent, in this order.
    pub commands: Vec<Command>,
    /// NVML should be read now.
    pub read: bool,
    /// What becomes of the descriptor that an arena was sent with.
    pub arena: Option<(ArenaId, Fate)>,
}

/// What a client did with an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has mapped it: from now on nobody else can.
    Mapped,
    /// It gave it back.
    Returned,
}

impl Core {
    /// A session begins.
    pub fn hello(&mut self, process: Process, session: SessionId, hello: &Hello, now: Moment) -> ClientId {
        let client = self.ledger.hello(process, session, hello, now);
        self.host.opened(client, hello.arenas, now);
        let booked = |device| Some(self.ledger.client(client)?.devices().get(&device)?.granted());
        let overclaim = |held: &&Held| booked(held.device).is_some_and(|booked| booked < held.granted);
        if let Some(Held { device, granted, .. }) = hello.devices.iter().find(overclaim) {
            self.distrust(client, format!("says that it was granted {granted} on {device}"));
        }
        client
    }

    /// A session is over; the client may come again.
    pub fn disconnected(&mut self, client: ClientId, session: SessionId, now: Moment) {
        self.ledger.disconnected(client, session, now);
        self.host.left(client);
    }

    /// A client's process is over.
    pub fn exited(&mut self, client: ClientId, now: Moment) {
        self.ledger.exited(client, now);
        self.host.left(client);
    }

    /// A message came, with no descriptor. See [`Core::hear_with`].
    pub fn hear(&mut self, client: ClientId, session: SessionId, message: ToAgent, now: Moment) -> Heard {
        self.hear_with(client, session, message, || Err("no descriptor".to_owned()), now)
    }

    /// A message came on `session`, with a descriptor that `measure` looks at if it is one of an arena. One of an older session
    /// of the client is void: `Hello` has said how things stand.
    pub fn hear_with(
        &mut self,
        client: ClientId,
        session: SessionId,
        message: ToAgent,
        measure: impl FnOnce() -> Result<Memory, String>,
        now: Moment,
    ) -> Heard {
        let mut heard = Heard::default();
        let current = self.ledger.client(client).is_some_and(|client| client.session() == Some(session));
        if !current {
            return heard;
        }
        match message {
            // A reading that began before is no answer.
            ToAgent::Met { device } => {
                heard.read = true;
                heard.commands = self.met(client, device, now);
            }
            ToAgent::Want { device, total, purpose } => self.want(client, device, total, purpose, now),
            ToAgent::WantRoom { ticket, device, bytes } => {
                if !self.want_room(client, ticket, device, bytes, now) {
                    let message = ToShim::Room { ticket, made: false };
                    heard.commands.push(Command { client, session, message });
                }
            }
            ToAgent::MayHave { ticket, device, total } => {
                self.asks.open(Ask { client, session, ticket, device, total, since: now });
            }
            ToAgent::Stopped { ticket } => {
                if self.ledger.stopped(client, ticket) {
                    self.switches.drained(ticket, now);
                }
            }
            ToAgent::DrainStalled { ticket } => self.stalled(client, ticket, now),
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
            ToAgent::SwapFailed { ticket, why } => self.swap_failed(client, ticket, &why, now),
            ToAgent::Resident { device, copied } => self.resident(client, device, copied, now),
            ToAgent::Unswappable { device, bytes, reason } => {
                self.ledger.unswappable(client, device, &reason, bytes);
            }
            ToAgent::ArenaHeld { arena } => {
                if let Err(why) = self.host.brought(&mut self.ledger, client, arena, measure) {
                    tracing::debug!(client = client.0, arena = arena.0, why, "no arena");
                }
            }
            ToAgent::ArenaReady { arena } => {
                heard.arena = self.host.ready(client, arena).then_some((arena, Fate::Mapped));
                self.ledger.arena_ready(client, arena);
            }
            ToAgent::ArenaReturned { arena } => {
                self.host.returned(client, arena, now);
                heard.arena = Some((arena, Fate::Returned));
                self.ledger.arena_returned(client, arena);
            }
            ToAgent::Dead { why } => self.died(client, &why),
            ToAgent::Revived => self.ledger.revived(client),
        }
        heard
    }

    fn want(&mut self, client: ClientId, device: DeviceId, total: Bytes, purpose: Purpose, now: Moment) {
        self.ledger.needs(client, device, total, now);
        if purpose == Purpose::Work {
            self.ledger.wants(client, now);
        }
    }

    /// Whether it is heard at all: nobody has any number of requests open.
    fn want_room(
        &mut self,
        client: ClientId,
        ticket: Ticket,
        device: DeviceId,
        bytes: Bytes,
        now: Moment,
    ) -> bool {
        let bytes = bytes.min(Bytes(1 << 48));
        let (large, presses) = (false, false);
        self.ledger.room_wanted(Headroom {
            client,
            ticket,
            device,
            bytes,
            since: now,
            made: None,
            large,
            presses,
        })
    }

    fn stalled(&mut self, client: ClientId, ticket: Ticket, now: Moment) {
        if !self.ledger.stalled(client, ticket, &self.settings, now) {
            return;
        }
        if let Some(sender) = self.ledger.client(client) {
            let (pid, stalls) = (sender.process().pid, sender.stalls());
            tracing::info!(client = client.0, pid, stalls, "drain stalled");
        }
        self.switches.drained(ticket, now);
    }

    fn swap_failed(&mut self, client: ClientId, ticket: Ticket, why: &str, now: Moment) {
        // Of a command that there is: whoever invents failures fills no log.
        if !self.ledger.swap_failed(client, ticket, why, now) {
            return;
        }
        self.switches.failed(ticket);
        if let Some(sender) = self.ledger.client(client) {
            let why = sender.swap_problem();
            tracing::warn!(client = client.0, pid = sender.process().pid, why, "swap out failed");
        }
    }

    fn died(&mut self, client: ClientId, why: &str) {
        if self.ledger.died(client, why)
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
}
