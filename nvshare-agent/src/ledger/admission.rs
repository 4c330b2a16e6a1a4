//! Who makes whom impossible. A newcomer's context and the memory of it that cannot be moved stay on the device whoever
//! runs, so beside a client that needs nearly all of it both cannot be: then the one that came first goes on. The reserve,
//! which is there for what drivers take, gives way first; where that is not enough those who came last get no more memory,
//! as on a full card, and whoever cannot run meanwhile is told because of whom.

use std::cmp::Reverse;

use nvshare_common::units::{Bytes, ClientId, DeviceId};

use super::{Client, Device, Holding, Ledger};
use crate::moment::Moment;
use crate::settings::Settings;

impl Client {
    /// Who came first: by the start of its process, because an agent may have begun later.
    pub(super) fn age(&self) -> (u64, ClientId) {
        (self.process.start, self.id)
    }

    /// It ran with what it needs now, or was promised that: nothing but others can have made that impossible.
    fn ran(&self) -> bool {
        let needed: Bytes = self.devices.values().map(|holding| holding.needed).sum();
        let ran = self.accustomed > Bytes::ZERO && needed <= self.accustomed;
        self.commandable() && (ran || self.was_promised())
    }

    /// It asked before it came to need so much, and was told that it may: what its driver took since is no reason to break
    /// that.
    fn was_promised(&self) -> bool {
        let promised = |device| self.promised.get(device).copied().unwrap_or_default();
        !self.promised.is_empty()
            && self.devices.iter().all(|(device, holding)| holding.needed <= promised(device))
    }

    /// It has work to do.
    fn works(&self, now: Moment) -> bool {
        self.wants.is_some() || (self.lease.is_some() && self.busy(now))
    }

    /// What stays on the device whatever it is told.
    fn stays(&self, holding: &Holding) -> Bytes {
        if self.movable() { holding.immovable() } else { holding.booked() }
    }
}

impl Ledger {
    /// How much of the reserve each device lends to a client that ran before and could not any more without it; and who
    /// came too late beside it. Says who is new among those.
    pub fn admit(&mut self, settings: &Settings) -> Vec<(ClientId, DeviceId)> {
        let mut news = Vec::new();
        let ids: Vec<DeviceId> = self.devices.keys().copied().collect();
        for id in ids {
            let shadows = self.shadows_on(id);
            if let Some(at) = self.devices.get_mut(&id) {
                at.shadows = shadows;
            }
            let Some(at) = self.devices.get(&id) else { continue };
            let reserve = at.whole_reserve(settings);
            let (short, first) = self.shortest(id, at, reserve);
            let lent = Bytes(short.clamp(0, reserve.0 as i64) as u64);
            let late = match first {
                Some(first) if short > reserve.0 as i64 => self.latecomers(id, first, short - lent.0 as i64),
                _ => Vec::new(),
            };
            let Some(at) = self.devices.get_mut(&id) else { continue };
            at.lent = lent;
            at.reserve = reserve.saturating_sub(lent);
            news.extend(
                late.iter().filter(|client| !at.latecomers.contains(client)).map(|client| (*client, id)),
            );
            at.latecomers = late;
        }
        news
    }

    /// The host memory for shadows of all clients on the device.
    pub fn shadows_on(&self, id: DeviceId) -> Bytes {
        self.holdings(id).map(|(client, _)| client.arena_bytes()).sum()
    }

    /// How much the first client that ran before lacks of the device without its reserve, even with all that others can
    /// give; and who that is.
    fn shortest(&self, id: DeviceId, at: &Device, reserve: Bytes) -> (i64, Option<ClientId>) {
        let stay: Bytes = self.holdings(id).map(|(client, holding)| client.stays(holding)).sum();
        let lacks = self.holdings(id).filter(|(client, _)| client.ran()).map(|(client, holding)| {
            let others = stay.saturating_sub(client.stays(holding));
            let most = at.capacity.0 as i64 - at.foreign.0 as i64 - others.0 as i64;
            (holding.needed.0 as i64 - most + reserve.0 as i64, client)
        });
        let worst = lacks.filter(|(short, _)| *short > 0).min_by_key(|(_, client)| client.age());
        worst.map_or((0, None), |(short, client)| (short, Some(client.id)))
    }

    /// The last of those who came after `first` whose floors together are what is `short`.
    fn latecomers(&self, id: DeviceId, first: ClientId, mut short: i64) -> Vec<ClientId> {
        let Some(first) = self.clients.get(&first).map(Client::age) else { return Vec::new() };
        let mut later: Vec<(&Client, &Holding)> =
            self.holdings(id).filter(|(client, _)| client.age() > first && client.exited.is_none()).collect();
        later.sort_by_key(|(client, _)| Reverse(client.age()));
        let floor = |client: &Client, holding: &Holding| {
            let overhead = holding.measured.unwrap_or_default().saturating_sub(holding.held());
            (overhead + client.stays(holding)).0 as i64
        };
        let mut late = Vec::new();
        for (client, holding) in later {
            if short <= 0 {
                break;
            }
            short -= floor(client, holding);
            late.push(client.id);
        }
        late
    }

    /// How much a newcomer may take on the device to begin with, beside those who came before it and have work to do: each
    /// of them must still be able to run. None: there are none, or it is no newcomer: who uses the device waits for room
    /// as others do; what its driver takes is given back some day, and until then [`Ledger::admit`] sees to the first.
    pub fn beside_incumbents(&self, id: DeviceId, client: ClientId, now: Moment) -> Option<i64> {
        let (at, client) = (self.devices.get(&id)?, self.clients.get(&client)?);
        if client.devices.contains_key(&id) {
            return None;
        }
        let newcomer = client.age();
        let stay: Bytes = self.holdings(id).map(|(client, holding)| client.stays(holding)).sum();
        let incumbents =
            self.holdings(id).filter(|(other, _)| other.age() < newcomer && other.ran() && other.works(now));
        let left = incumbents.map(|(other, holding)| {
            let others = stay.saturating_sub(other.stays(holding));
            at.capacity.0 as i64 - at.foreign.0 as i64 - others.0 as i64 - holding.needed.0 as i64
        });
        left.min()
    }
}
