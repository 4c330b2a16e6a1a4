//! How much room a driver can have at best, and the refusals of what cannot be. All clients may ask at once, so what one can
//! have is answered from sums that are made once a device, not by a walk over all clients for each request.

use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};

use super::gangs::takeable;
use crate::decision::Decision;
use crate::ledger::{Device, Incumbents, Ledger};
use crate::moment::Moment;

/// How long a driver's request for room stays open.
pub(super) const ROOM_WAITS: Duration = Duration::from_secs(30);

/// The most that could ever be free on a device while a client runs there; beside those who came before it and work, it may
/// not take for good what they need.
pub(super) struct MostRoom<'a> {
    ledger: &'a Ledger,
    id: DeviceId,
    device: &'a Device,
    now: Moment,
    /// With nobody running.
    most: i64,
    incumbents: Incumbents,
}

impl<'a> MostRoom<'a> {
    pub(super) fn new(ledger: &'a Ledger, id: DeviceId, device: &'a Device, now: Moment) -> MostRoom<'a> {
        let stays: Bytes = ledger
            .holdings(id)
            .map(|(holder, holding)| holding.booked().saturating_sub(takeable(holder, id)))
            .sum();
        let most = device.promised() + device.reserve().0 as i64 - stays.0 as i64;
        MostRoom { ledger, id, device, now, most, incumbents: ledger.incumbents(id, now) }
    }

    pub(super) fn of(&self, client: ClientId) -> i64 {
        let Some(client) = self.ledger.client(client) else { return self.most };
        if self.device.refuses(client.id(), self.now) {
            return 0;
        }
        // What could be taken from it stays there while it runs.
        let own =
            client.devices().get(&self.id).map(|holding| takeable(client, self.id).min(holding.booked()));
        let most = self.most - own.unwrap_or_default().0 as i64;
        most.min(self.incumbents.leave(client, self.id).unwrap_or(i64::MAX))
    }
}

/// Refusals of what no device could ever have free.
pub(super) fn impossible(ledger: &Ledger, now: Moment) -> Vec<Decision> {
    let mut refused = Vec::new();
    for (id, device) in ledger.devices() {
        let mut waiting = device.rooms().iter().filter(|room| room.made.is_none()).peekable();
        if waiting.peek().is_none() {
            continue;
        }
        let most = MostRoom::new(ledger, *id, device, now);
        let never = waiting.filter(|room| room.bytes.0 as i64 > most.of(room.client));
        refused.extend(never.map(|room| Decision::Room {
            client: room.client,
            ticket: room.ticket,
            made: false,
        }));
    }
    refused
}
