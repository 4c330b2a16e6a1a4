//! Who makes whom impossible. A client's context and the memory of it that cannot be moved stay on the device whoever
//! runs, so beside a client that needs nearly all of it both cannot be; and two whose memory became unmovable may each make
//! the other impossible. Then the one that came first goes on. The reserve, which is there for what drivers take, gives way
//! first; where that is not enough those who came last get no more memory, neither they nor their drivers, as on a full card.
//! Nobody is failed who waits to run: what it has is kept for it, and it and whoever cannot run meanwhile are told because
//! of whom.

use std::cmp::Reverse;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};

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
        self.wants().is_some() || (self.lease().is_some() && self.busy(now))
    }

    /// What stays on the device whatever it is told. What is so only for a moment is no reason to refuse anybody memory:
    /// what an ended process had is on its way back, and who lost its connection comes back.
    fn stays(&self, holding: &Holding) -> Bytes {
        if self.exited.is_some() {
            return Bytes::ZERO;
        }
        let for_good = self.unyielding().is_some() || self.bypass || self.dead.is_some();
        if for_good { holding.booked() } else { holding.immovable() }
    }
}

impl Ledger {
    /// How much of the reserve each device lends to a client that could not run any more without it; and who came too late
    /// beside it. Says who is new among those.
    pub fn admit(&mut self, settings: &Settings, now: Moment) -> Vec<(ClientId, DeviceId)> {
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
            if at.latecomers.is_empty() {
                at.late_since = now;
            }
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

    /// How much the first client lacks of the device without its reserve, even with all that others can give; and who that
    /// is: of those that ran before with what they need, else of those that wait, if they would not lack it without those
    /// that came later.
    fn shortest(&self, id: DeviceId, at: &Device, reserve: Bytes) -> (i64, Option<ClientId>) {
        let stay: Bytes = self.holdings(id).map(|(client, holding)| client.stays(holding)).sum();
        let lacks = |(client, holding): (&Client, &Holding)| {
            let others = stay.saturating_sub(client.stays(holding));
            let most = at.promised() + at.reserve.0 as i64 - others.0 as i64;
            holding.needed.0 as i64 - most + reserve.0 as i64
        };
        let short = self.holdings(id).map(|held| (lacks(held), held.0)).filter(|(short, _)| *short > 0);
        let mut short: Vec<(i64, &Client)> = short.filter(|(_, client)| client.commandable()).collect();
        short.sort_by_key(|(_, client)| client.age());
        let ran = short.iter().find(|(_, client)| client.ran());
        let waits = || {
            short.iter().find(|(short, client)| {
                let short = short - reserve.0 as i64;
                client.wants().is_some() && short > 0 && !self.latecomers(id, client.id, short).is_empty()
            })
        };
        ran.or_else(waits).map_or((0, None), |(short, client)| (*short, Some(client.id)))
    }

    /// The last of those who came after `first` whose floors together are what is `short`. None where all of them are not
    /// enough: then it is not they who make it impossible.
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
        if short > 0 { Vec::new() } else { late }
    }

    /// What bounds the requests for room on the device, of all clients together.
    pub fn incumbents(&self, id: DeviceId, now: Moment) -> Incumbents {
        let Some(at) = self.devices.get(&id) else { return Incumbents::default() };
        let stay: Bytes = self.holdings(id).map(|(client, holding)| client.stays(holding)).sum();
        let working = self.holdings(id).filter(|(client, _)| client.ran() && client.works(now));
        let left = working.map(|(client, holding)| {
            let others = stay.saturating_sub(client.stays(holding));
            let left = at.promised() + at.reserve.0 as i64 - others.0 as i64 - holding.needed.0 as i64;
            (client.age(), left)
        });
        let mut left: Vec<_> = left.collect();
        left.sort_unstable();
        let mut least = i64::MAX;
        for (_, left) in &mut left {
            least = least.min(*left);
            *left = least;
        }
        Incumbents(left)
    }
}

/// Those who came first, have run on a device and have work to do, by age: each of them must still be able to run beside a
/// newcomer. With how much that leaves at most, beside it and all before it.
#[derive(Clone, Debug, Default)]
pub struct Incumbents(Vec<((u64, ClientId), i64)>);

impl Incumbents {
    /// How much `client` may take on the device to begin with. None: nobody came before it, or it is no newcomer: who uses
    /// the device waits for room as others do; what its driver takes is given back some day, and until then
    /// [`Ledger::admit`] sees to the first.
    pub fn leave(&self, client: &Client, device: DeviceId) -> Option<i64> {
        if client.devices.contains_key(&device) {
            return None;
        }
        let before = self.0.partition_point(|(age, _)| *age < client.age());
        self.0[..before].last().map(|(_, left)| *left)
    }
}
