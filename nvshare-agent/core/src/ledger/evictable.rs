//! Managed memory on a card is no reason to refuse anybody memory there: the driver moves it to the host for whoever needs room. But
//! NVML counts it as used, and nobody tells how much of it is on the card. So what is allocated is the most that it can be; clients
//! may come to need that much more; and it is granted in steps, each of which the driver proves, by finding the memory, or refutes.

use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::DeviceId;

use super::{Client, Device, Holding, Ledger};
use crate::moment::Moment;

/// A step: this part of the card.
const STEP: u64 = 16;
/// A step that is not taken within this time is refuted.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing is lent then.
const AGAIN: Duration = Duration::from_secs(30);

impl Device {
    /// All that clients may come to need together: with what the driver would move out of their way.
    pub fn promised(&self) -> i64 {
        self.capacity.0 as i64 - self.reserve.0 as i64 - self.foreign.0 as i64 + self.evictable.0 as i64
    }

    /// What is granted at a time of what the driver would have to move out of the way first.
    pub fn step(&self) -> Bytes {
        // What is free in truth, for drivers, is taken before anything is moved.
        let least = Bytes(2 * self.reserve.0);
        Bytes(self.total.0 / STEP).max(least).min(self.evictable)
    }

    /// So much managed memory is allocated.
    pub(super) fn managed(&mut self, bytes: Bytes, now: Moment) {
        let refuted = self.refuted.is_some_and(|at| now.since(at) < AGAIN);
        self.evictable = if refuted { Bytes::ZERO } else { bytes.min(self.foreign) };
    }
}

impl Ledger {
    /// How much managed memory there is, of clients and of others. Of others nobody says on which card.
    fn managed_on(&self, device: DeviceId) -> Bytes {
        let clients: Bytes = self.holdings(device).map(|(_, holding)| holding.page().managed).sum();
        if self.devices.len() > 1 {
            return clients;
        }
        let others = self.observed.iter().filter(|(process, _)| !self.by_process.contains_key(process));
        others.map(|(_, observed)| observed.managed_now()).sum::<Bytes>() + clients
    }

    /// After a reading: what of the foreign memory may be managed, and whether a step was refuted.
    pub(super) fn weigh_managed(&mut self, id: DeviceId, now: Moment) {
        let managed = self.managed_on(id);
        let stuck = |(client, holding): (&Client, &Holding)| client.lease().is_some() && holding.stuck(now);
        let stuck = self.holdings(id).any(stuck);
        let Some(device) = self.devices.get_mut(&id) else { return };
        if stuck && device.evictable > Bytes::ZERO {
            device.refuted = Some(now);
        }
        device.managed(managed, now);
    }
}

impl Holding {
    /// It was granted memory, lacks it, and has taken none for long.
    fn stuck(&self, now: Moment) -> bool {
        let long = self.granting_since.is_some_and(|since| now.since(since) > PATIENCE);
        let lately = self.samples.iter().rev().take_while(|(at, _)| now.since(*at) <= PATIENCE);
        long && !self.complete
            && self.granted > self.counted()
            && lately.into_iter().all(|(_, held)| *held == self.counted())
    }
}
