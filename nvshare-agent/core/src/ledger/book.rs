//! Decisions, booked. Whatever is sent is booked first, and in this one place: the conductor and the model of the grant
//! protocol (tests/grants.rs) call the same function, so that what the model proves is what runs.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, Ticket};
use nvshare_common::protocol::ToShim;

use super::{Ledger, Outgoing, Reclaiming};
use crate::decision::{At, Decision};
use crate::moment::Moment;
use crate::settings::Settings;

/// How many cold ranges a `SwapOut` names at most.
const COLDEST: usize = 256;

/// A decision that is in the books and has to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booked {
    /// To whom.
    pub client: ClientId,
    /// What.
    pub message: ToShim,
    /// Since when the client had wanted to run, if it does from now on.
    pub wanted: Option<Moment>,
}

impl Ledger {
    /// Books a whole decision. Says what its client has to be told, if anything: nothing of a client or a holding that is
    /// gone.
    pub fn book(&mut self, decision: &Decision, settings: &Settings, now: Moment) -> Option<Booked> {
        let mut wanted = None;
        let (client, message) = match *decision {
            Decision::Run(client, cap) => {
                wanted = self.run(client, cap, now);
                (client, ToShim::Run)
            }
            Decision::Age(client) => {
                self.age(client, now);
                return None;
            }
            Decision::Stop { client, .. } => {
                let ticket = self.begin_stop(client, now)?;
                let stall_ms = u32::try_from(settings.stall.as_millis()).unwrap_or(u32::MAX);
                (client, ToShim::Stop { ticket, stall_ms })
            }
            Decision::Grant(at, bytes) => {
                self.grant(at, bytes, now);
                (at.client, ToShim::Grant { device: at.device, bytes })
            }
            Decision::SwapOut { at, bytes, .. } => {
                let ticket = self.begin_swap_out(at, bytes, now)?;
                let coldest = self.clients.get(&at.client)?.recency.coldest(COLDEST);
                (at.client, ToShim::SwapOut { ticket, device: at.device, bytes, coldest })
            }
            Decision::Reclaim(at, expected) => {
                let ticket = self.begin_reclaim(at, expected, now)?;
                (at.client, ToShim::Reclaim { ticket, device: at.device })
            }
            Decision::Room { client, ticket, made } => {
                self.room_answered(client, ticket, made, now);
                (client, ToShim::Room { ticket, made })
            }
            Decision::Read => return None,
        };
        Some(Booked { client, message, wanted })
    }

    /// A number for a command.
    fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// `Run` is sent to `client`. Says since when it had wanted that, if it runs at once.
    fn run(&mut self, client: ClientId, cap: Option<Moment>, now: Moment) -> Option<Moment> {
        let runs = self.clients.get_mut(&client)?;
        let wanted = runs.wants();
        runs.run(cap, now);
        wanted.filter(|_| runs.wants().is_none())
    }

    /// The lease of `client` is given out of turn, now.
    fn age(&mut self, client: ClientId, now: Moment) {
        let Some(client) = self.clients.get_mut(&client) else { return };
        let cards = client.devices.keys().filter(|device| self.devices.contains_key(device));
        self.aged_at.extend(cards.map(|device| (*device, now)));
        let began = client.complete().then_some(now);
        if let Some(lease) = client.turns.turn.lease_mut() {
            (lease.given, lease.began, lease.aged) = (now, began, true);
        }
    }

    /// `Stop` is sent to `client`, with this number.
    fn begin_stop(&mut self, client: ClientId, now: Moment) -> Option<Ticket> {
        let ticket = self.ticket();
        self.client_mut(client)?.stopping(ticket, now).then_some(ticket)
    }

    /// The grant of `client` grows.
    fn grant(&mut self, At { client, device }: At, bytes: Bytes, now: Moment) {
        debug_assert!(
            self.grantable(device, now).is_some_and(|free| free >= bytes.0 as i64),
            "a grant of {bytes} exceeds what is seen to be free on {device}"
        );
        if let Some(client) = self.clients.get_mut(&client) {
            let holding = client.devices.entry(device).or_default();
            holding.granted += bytes;
            holding.granting_since.get_or_insert(now);
        }
        debug_assert_eq!(self.check(), Ok(()));
    }

    /// `SwapOut` is sent to `client`, with this number. What leaves stays granted until it is released.
    fn begin_swap_out(&mut self, at: At, bytes: Bytes, now: Moment) -> Option<Ticket> {
        let ticket = self.ticket();
        let holding = self.client_mut(at.client)?.devices.get_mut(&at.device)?;
        holding.outgoing = Some(Outgoing { ticket, at: now, asked: bytes, left: bytes });
        holding.complete = false;
        Some(ticket)
    }

    /// `Reclaim` is sent to `client`, with this number.
    fn begin_reclaim(&mut self, at: At, expected: Bytes, now: Moment) -> Option<Ticket> {
        let ticket = self.ticket();
        let holding = self.client_mut(at.client)?.devices.get_mut(&at.device)?;
        holding.reclaiming = Some(Reclaiming { ticket, at: now, expected });
        Some(ticket)
    }

    /// The request was answered: room that was made is kept free until a reading shows what became of it.
    fn room_answered(&mut self, client: ClientId, ticket: Ticket, made: bool, now: Moment) {
        for device in self.devices.values_mut() {
            if let Some(at) =
                device.rooms.iter().position(|room| room.client == client && room.ticket == ticket)
            {
                if made {
                    device.rooms[at].made = Some(now);
                    if device.rooms[at].large
                        && let Some(client) = self.clients.get_mut(&client)
                    {
                        client.large_room = Some(now);
                    }
                } else {
                    device.rooms.remove(at);
                }
            }
        }
    }
}
