//! Requests for room: who waits on which device for how much, before it is an allocation.

use std::collections::BTreeMap;
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::ClientId;

use super::{Client, Headroom, Ledger};
use crate::moment::Moment;

impl Ledger {
    pub(super) fn no_rooms(&mut self, client: ClientId) {
        for device in self.devices.values_mut() {
            device.rooms.retain(|room| room.client != client);
        }
    }

    /// A client's driver wants room. `false` when it has asked too often at once.
    pub fn room_wanted(&mut self, room: Headroom) -> bool {
        let clients = &self.clients;
        let Some(device) = self.devices.get_mut(&room.device) else { return false };
        let cgroup = |client| clients.get(&client).map(|client| client.cgroup.as_str());
        let asker = cgroup(room.client);
        let (mut own, mut siblings) = (0, 0);
        for other in &device.rooms {
            own += usize::from(other.client == room.client);
            siblings += usize::from(cgroup(other.client) == asker);
        }
        if own >= Headroom::AT_ONCE || siblings >= Headroom::OF_A_CGROUP {
            return false;
        }
        device.rooms.push(room);
        true
    }

    /// Decides for which requests memory is taken from others: small ones; large ones of a client that runs, or when nobody
    /// else wants to run; and of these one every `pause`.
    pub fn weigh_rooms(&mut self, pause: Duration, now: Moment) {
        let clients = &self.clients;
        if self.devices.values().all(|device| device.rooms.is_empty()) {
            return;
        }
        // Whether anybody else contends is asked for each request: the sum does not depend on who asks.
        let contends = |client: &Client| client.lease().is_some() || client.wants().is_some();
        let contenders = clients.values().filter(|client| contends(client)).count();
        for device in self.devices.values_mut() {
            let mut asked: BTreeMap<ClientId, (Bytes, bool)> = BTreeMap::new();
            for room in &mut device.rooms {
                let (small, large) = asked.entry(room.client).or_default();
                room.large = *small + room.bytes > Headroom::SMALL;
                if !room.large {
                    *small += room.bytes;
                }
                let (Some(client), None) = (clients.get(&room.client), room.made) else { continue };
                let recently = client.large_room.is_some_and(|made| now.since(made) < pause);
                let others = contenders - usize::from(contends(client));
                let turn = client.lease().is_some() || others == 0;
                room.presses = !room.large || (turn && !recently && !std::mem::replace(large, true));
            }
        }
    }
}
