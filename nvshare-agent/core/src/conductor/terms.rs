//! Devices that the agent cannot manage (A6). A client that uses one is told so, and runs there as without an agent: it
//! must not wait for grants that never come. That is so without NVML, for what NVML does not list (a MIG slice, a card
//! that the agent's container does not see), and as long as a card is not read: its driver hangs, or it fell off the bus.
//!
//! What is managed after all begins with a new `Hello`: a shim that hears of a limit where it runs without one greets
//! anew, so that nothing is ever booked that was not said.

use std::time::Duration;

use nvshare_common::ids::{ClientId, DeviceId};
use nvshare_common::protocol::ToShim;

use super::{Command, Core};
use crate::moment::Moment;

/// A device that was not read for this long is not managed: the same time after which the agent says that NVML hangs.
const UNREAD: Duration = Duration::from_secs(10);
/// How long a client waits for the first reading of its device, while NVML has not said anything yet.
const FIRST_READING: Duration = Duration::from_secs(2);

impl Core {
    /// A client uses the device from now on; its context is there.
    pub(super) fn met(&mut self, client: ClientId, device: DeviceId, now: Moment) -> Vec<Command> {
        let told = self.ledger.met(client, device, now).map(|why| ToShim::Unmanaged { device, why });
        told.and_then(|message| self.command(client, message)).into_iter().collect()
    }

    /// Tells those who use a device that is not managed.
    pub fn terms(&mut self, now: Moment) -> Vec<Command> {
        let mut commands = Vec::new();
        for device in self.ledger.unread(now - UNREAD) {
            // Why, the agent has told when the card was lost, or the health of NVML: one warning for one fact.
            tracing::info!(%device, "not read for {UNREAD:?}: its clients run there as without an agent until it is");
            for room in self.ledger.lose(device) {
                let message = ToShim::Room { ticket: room.ticket, made: false };
                commands.extend(self.command(room.client, message));
            }
        }
        for (client, device, since) in self.ledger.strays() {
            let Some(why) = self.unmanaged(since, now) else { continue };
            if self.ledger.unmanage(client, device, &why) {
                tracing::info!(client = client.0, %device, why, "not managed: it runs there as without an agent");
                commands.extend(self.command(client, ToShim::Unmanaged { device, why }));
            }
        }
        commands
    }

    /// Why a device that is not in the ledger is not managed for one who uses it `since` then; none while that is open.
    fn unmanaged(&self, since: Moment, now: Moment) -> Option<String> {
        match &self.devices_problem {
            Some(why) => Some(why.clone()),
            None if self.reported >= since && self.reported != Moment::NEVER => Some(
                "NVML lists no such device: it is a MIG slice, or the agent's container does not see it"
                    .to_owned(),
            ),
            None if now.since(since) >= FIRST_READING => {
                Some(format!("NVML has not answered within {FIRST_READING:?}"))
            }
            None => None,
        }
    }
}
