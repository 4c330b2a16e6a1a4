//! What NVML says of the devices, and what follows from it: who holds what, who is gone, which devices are managed.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};

use super::{Client, Headroom, Ledger};
use crate::moment::Moment;
use crate::reading::Reading;
use crate::settings::Settings;

impl Ledger {
    /// What may be granted on `device` right now: NVML was read lately, and what was given back since does not count.
    pub fn grantable(&self, device: DeviceId, now: Moment) -> Option<i64> {
        self.devices.get(&device)?.grantable(now, || self.free(device))
    }

    /// Everybody who could hold memory without being in here is known by now, or gone: a reading that began earlier may
    /// have missed what one of them took since, and is no reason to grant anything.
    pub fn grant_from(&mut self, now: Moment) {
        self.granting_from = now;
        for device in self.devices.values_mut() {
            device.settled = false;
        }
    }

    /// NVML was read, from `began` on, and the counter pages were looked at just now. Says who claims more than can be
    /// true; nothing is booked for that.
    pub fn reading(
        &mut self,
        reading: &Reading,
        began: Moment,
        settings: &Settings,
        now: Moment,
    ) -> Vec<ClientId> {
        let id = reading.device;
        let device = self.devices.entry(id).or_default();
        device.read(reading, began, settings);
        let settled = self.granting_from != Moment::NEVER && began >= self.granting_from;
        let (mut least, mut most, mut overclaims) = (Bytes::ZERO, Bytes::ZERO, Vec::new());
        for client in self.clients.values_mut() {
            let measured = reading.per_process.get(&client.process.pid).copied();
            let gone = client.exited.is_some_and(|exited| {
                let overdue = now.since(exited) > settings.burial;
                client.overdue |= overdue && measured.is_some();
                began > exited && (measured.is_none() || overdue)
            });
            if gone {
                client.devices.remove(&id);
            }
            let paged = client.paged;
            let Some(holding) = client.devices.get_mut(&id) else { continue };
            if holding.prove(device.plausible(client.process.pid), settled, began) {
                overclaims.push(client.id);
            }
            let (low, high) = holding.between(began, measured, device.rest, paged);
            least += low;
            most += high;
        }
        device.settle(least, most, began >= self.granting_from);
        self.weigh_managed(id, now);
        overclaims
    }

    /// Takes away the dead whose memory is gone from every device, or whose time is long up.
    pub fn bury(&mut self, settings: &Settings, now: Moment) -> Vec<Client> {
        let done = |client: &mut Client| {
            let Some(exited) = client.exited else { return false };
            let overdue = now.since(exited) > 2 * settings.burial;
            client.overdue |= overdue;
            client.devices.is_empty() || overdue
        };
        let buried: Vec<Client> =
            self.clients.extract_if(.., |_, client| done(client)).map(|(_, client)| client).collect();
        for client in &buried {
            self.cooled(&client.recency);
            if self.by_pid.get(&client.process.pid) == Some(&client.id) {
                self.by_pid.remove(&client.process.pid);
            }
        }
        buried
    }

    /// The devices that were last read before `since`.
    pub fn unread(&self, since: Moment) -> Vec<DeviceId> {
        self.devices.iter().filter(|(_, device)| device.read_began < since).map(|(id, _)| *id).collect()
    }

    /// The device is managed no more (A6). Says whose requests for room there are void.
    pub fn lose(&mut self, device: DeviceId) -> Vec<Headroom> {
        self.devices.remove(&device).map(|device| device.rooms).unwrap_or_default()
    }

    /// The client runs on `device` as without an agent: nothing is booked for it there. `false`: it was told that.
    pub fn unmanage(&mut self, client: ClientId, device: DeviceId, why: &str) -> bool {
        self.clients.get_mut(&client).is_some_and(|client| client.unmanage(device, why))
    }

    /// Clients that use devices which are not managed and were not told so, with when they began to.
    pub fn strays(&self) -> Vec<(ClientId, DeviceId, Moment)> {
        let of = |client: &Client| {
            let strays = client.devices.keys().filter(|device| !self.devices.contains_key(device));
            let since = |device| client.met.get(device).copied().unwrap_or(client.greeted);
            strays.map(|device| (client.id, *device, since(device))).collect::<Vec<_>>()
        };
        self.clients.values().flat_map(of).collect()
    }

    /// Whether a client waits for its first limit, which a reading from now on would give.
    pub fn awaits_reading(&self) -> bool {
        let awaits = |client: &Client| {
            client
                .met
                .iter()
                .any(|(device, met)| self.devices.get(device).is_some_and(|device| device.read_began < *met))
        };
        self.clients.values().any(awaits)
    }

    /// Whose grants are beyond what they have and need, on their word alone: they are to give back the rest. Each is
    /// named once a session.
    pub fn doubted(&mut self, now: Moment) -> Vec<(ClientId, DeviceId)> {
        let mut doubted = Vec::new();
        for client in self.clients.values_mut() {
            let (id, commandable) = (client.id, client.commandable());
            let asked = client
                .devices
                .iter_mut()
                .filter_map(|(device, holding)| holding.ask_back(commandable, now).then_some((id, *device)));
            doubted.extend(asked);
        }
        doubted
    }

    /// Devices that NVML no longer lists are forgotten once nobody holds anything there.
    pub fn forget_devices_but(&mut self, listed: &[DeviceId]) {
        let held: Vec<DeviceId> =
            self.clients.values().flat_map(|client| client.devices.keys().copied()).collect();
        self.devices.retain(|id, _| listed.contains(id) || held.contains(id));
    }

    /// Capacity and reserve follow the settings.
    pub fn set(&mut self, settings: &Settings) {
        for device in self.devices.values_mut() {
            device.limit(settings);
        }
    }
}
