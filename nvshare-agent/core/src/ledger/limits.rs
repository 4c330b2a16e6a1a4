//! What clients are told of the devices: the most that they may have there, and how large these are to them. All pairs of a
//! client and a device are looked at in every turn, so each is a few steps, and what is the same for all is summed up once.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};

use super::{Client, Device, Holding, Ledger};

/// A limit that moved up by less is not told again.
const STEP: u64 = 16 << 20;

/// What a client has to be told of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whom.
    pub client: ClientId,
    /// Of which.
    pub device: DeviceId,
    /// How large it is to it, if that is news.
    pub size: Option<Bytes>,
    /// The most that it may have there, if that is news.
    pub limit: Option<Bytes>,
}

impl Ledger {
    /// What all clients together hold on `device` for good, or for want of host memory: who grew into that would wait for
    /// others that may wait for it. What is pinned does not count: a program that grows beside it waits for the end of the pin
    /// instead of failing.
    pub fn stays(&self, device: DeviceId) -> Bytes {
        self.holdings(device).map(|(client, holding)| keeps(client, holding)).sum()
    }

    /// The most that `client` can have on `device`: all but what is reserved, foreign, or held by others for good (all
    /// clients hold `stays`); and what was ordered, if that is less.
    pub fn limit(&self, client: ClientId, device: DeviceId, stays: Bytes) -> Bytes {
        match (self.devices.get(&device), self.clients.get(&client)) {
            (Some(at), Some(client)) => limit(client, device, at, stays),
            _ => Bytes::ZERO,
        }
    }

    /// What `client` may have when it asks: a little more than its limit of now, because its program goes by the one of a
    /// moment ago, and its own driver and engine took something since.
    pub fn may_have(&self, client: ClientId, device: DeviceId, stays: Bytes) -> Bytes {
        let now = self.limit(client, device, stays);
        let (Some(at), Some(client)) = (self.devices.get(&device), self.clients.get(&client)) else {
            return now;
        };
        let ordered = client.orders.limit.unwrap_or(Bytes(u64::MAX));
        if at.latecomers.contains(&client.id) { now } else { now.max((now + at.slippage()).min(ordered)) }
    }

    /// What commandable clients have to be told (again); it counts as told.
    pub fn untold(&mut self) -> Vec<Told> {
        let devices = self.devices.iter().map(|(id, at)| (*id, at, self.stays(*id)));
        let devices: Vec<(DeviceId, &Device, Bytes)> = devices.collect();
        let clients = self.clients.values_mut().filter(|client| client.commandable());
        let mut untold = Vec::new();
        for client in clients {
            untold.extend(devices.iter().filter_map(|(device, at, stays)| tell(client, *device, at, *stays)));
        }
        untold
    }

    /// The same for one client, whoever it is.
    pub fn untold_of(&mut self, client: ClientId) -> Vec<Told> {
        let devices: Vec<_> = self.devices.iter().map(|(id, at)| (*id, at, self.stays(*id))).collect();
        let Some(client) = self.clients.get_mut(&client) else { return Vec::new() };
        devices.iter().filter_map(|(device, at, stays)| tell(client, *device, at, *stays)).collect()
    }
}

fn keeps(client: &Client, holding: &Holding) -> Bytes {
    holding.immovable() + client.homeless(holding)
}

fn limit(client: &Client, device: DeviceId, at: &Device, stays: Bytes) -> Bytes {
    let holding = client.devices.get(&device);
    let own = holding.map(|holding| keeps(client, holding)).unwrap_or_default();
    let left = at.promised() - stays.saturating_sub(own).0 as i64;
    let most = Bytes(left.max(0) as u64 / (2 << 20) * (2 << 20));
    let needed = holding.map(|holding| holding.needed).unwrap_or_default();
    // It came when there was no room for it: what it takes more, another that came before would lack.
    let most = if at.latecomers.contains(&client.id) { Bytes::ZERO } else { most };
    // An order may be below what it uses: then it can only give back.
    most.max(needed).min(client.orders.limit.unwrap_or(Bytes(u64::MAX)))
}

fn tell(client: &mut Client, device: DeviceId, at: &Device, stays: Bytes) -> Option<Told> {
    // How large it is to it, whatever else is on it.
    let size = client.orders.limit.map_or(at.capacity, |ordered| ordered.min(at.capacity));
    let size = (client.sizes.get(&device) != Some(&size)).then_some(size);
    if let Some(size) = size {
        client.sizes.insert(device, size);
    }
    // Its context may not be in any reading yet: the first limit is the one that its program goes by.
    let early = client.met.get(&device).is_some_and(|met| at.read_began < *met);
    let bytes = limit(client, device, at, stays);
    let news = |old: &Bytes| old.0.abs_diff(bytes.0) >= STEP || bytes < *old;
    let limit = (!early && client.limits.get(&device).is_none_or(news)).then_some(bytes);
    if let Some(limit) = limit {
        client.limits.insert(device, limit);
    }
    (size.is_some() || limit.is_some()).then_some(Told { client: client.id, device, size, limit })
}
