//! What the conductor learns of one client: a verb for each piece of news. With `book` these are all that changes a client;
//! nobody outside the ledger is handed one to change.

use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ArenaId, ClientId, DeviceId, Ticket};

use super::{Arena, Client, Ledger, Outgoing, Page, Past};
use crate::moment::Moment;
use crate::observation::Paged;
use crate::settings::Settings;

/// What the end of a swap in means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Since when memory was granted for it.
    pub granting_since: Option<Moment>,
    /// Since when the client had wanted to run, if it does from now on.
    pub wanted: Option<Moment>,
    /// All that the client needs is resident, on all of its devices.
    pub complete: bool,
}

/// By its counters a client has all that it needs, and its lease begins with that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Since when it had wanted to run, if it had to wait.
    pub wanted: Option<Moment>,
}

impl Ledger {
    /// To change one of them in what concerns nobody else.
    pub(super) fn client_mut(&mut self, client: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(&client)
    }

    /// The process's name and cgroup.
    pub fn named(&mut self, client: ClientId, name: String, cgroup: String) {
        if let Some(client) = self.client_mut(client) {
            (client.name, client.cgroup) = (name, cgroup);
        }
    }

    /// What an earlier agent learned of it.
    pub fn recall(&mut self, client: ClientId, past: &Past) {
        if let Some(client) = self.client_mut(client) {
            client.recall(past);
        }
    }

    /// It uses the device from now on; its context is there. Says why it runs there as without an agent, if it does.
    pub fn met(&mut self, client: ClientId, device: DeviceId, now: Moment) -> Option<String> {
        let user = self.client_mut(client)?;
        user.limits.remove(&device);
        if user.holding(device).is_some() {
            user.met.insert(device, now);
            return None;
        }
        let why = "this process uses too many devices".to_owned();
        let why = user.unmanaged.get(&device).cloned().unwrap_or(why);
        user.unmanage(device, &why);
        Some(why)
    }

    /// It said what it needs on `device`.
    pub fn needs(&mut self, client: ClientId, device: DeviceId, total: Bytes, now: Moment) {
        if let Some(client) = self.client_mut(client) {
            client.needs(device, total, now);
        }
    }

    /// It was told that it may have so much on `device`.
    pub fn promise(&mut self, client: ClientId, device: DeviceId, most: Bytes) {
        if let Some(client) = self.client_mut(client) {
            client.promised.insert(device, most);
        }
    }

    /// It said what it cannot move.
    pub fn unswappable(&mut self, client: ClientId, device: DeviceId, reason: &str, bytes: Bytes) {
        if let Some(client) = self.client_mut(client) {
            client.unswappable(device, reason, bytes);
        }
    }

    /// All of `device` is resident, it says.
    pub fn resident(&mut self, client: ClientId, device: DeviceId, now: Moment) -> Option<Arrived> {
        let client = self.client_mut(client)?;
        let wanted = client.wants();
        let granting_since = client.resident(device, now);
        let wanted = wanted.filter(|_| client.wants().is_none());
        Some(Arrived { granting_since, wanted, complete: client.complete() })
    }

    /// Its counter page was looked at. Says whether its lease begins with that.
    pub fn sample(&mut self, client: ClientId, page: &Page, now: Moment) -> Option<Begun> {
        let sampled = self.client_mut(client).filter(|client| client.exited.is_none())?;
        let wanted = sampled.wants();
        let less = sampled.sample(page, now);
        let begins = sampled.begin_lease(now);
        for (device, bytes) in less {
            self.unbooked(device, bytes, now);
        }
        begins.then_some(Begun { wanted })
    }

    /// So much is no longer booked on `device`, by a client's word: no reading shows yet that it is free.
    fn unbooked(&mut self, device: DeviceId, bytes: Bytes, now: Moment) {
        if let Some(device) = self.devices.get_mut(&device) {
            device.given_back(bytes, now);
        }
    }

    /// It has no counter page, or none that can be looked at.
    pub fn unpaged(&mut self, client: ClientId) {
        if let Some(client) = self.client_mut(client) {
            client.paged = false;
        }
    }

    /// The driver moved some of its managed memory, to or from a card: where it cannot say which, that is the only one there is.
    pub fn paged(
        &mut self,
        client: ClientId,
        device: Option<DeviceId>,
        more: Paged,
        settings: &Settings,
        now: Moment,
    ) {
        let only = || Some(*self.devices.keys().next()?).filter(|_| self.devices.len() == 1);
        let Some(device) = device.or_else(only) else { return };
        let Some(card) = self.devices.get(&device).map(|card| (card.total(), card.used())) else { return };
        if let Some(client) = self.client_mut(client) {
            client.paged(device, card, more, settings, now);
        }
    }

    /// It showed a sign of work.
    pub fn active(&mut self, client: ClientId, at: Moment) {
        if let Some(client) = self.client_mut(client) {
            client.active(at);
        }
    }

    /// It has stopped. `false` when nobody asked for that.
    pub fn stopped(&mut self, client: ClientId, ticket: Ticket) -> bool {
        self.client_mut(client).is_some_and(|client| client.stopped(ticket))
    }

    /// Its drain stalled. `false` when nobody asked for one.
    pub fn stalled(&mut self, client: ClientId, ticket: Ticket, settings: &Settings, now: Moment) -> bool {
        self.client_mut(client).is_some_and(|client| client.stalled(ticket, settings, now))
    }

    /// A swap out is over, it says. Says which it was; one that did not bring the greater part of what was asked for has failed.
    pub fn swap_out_done(&mut self, client: ClientId, ticket: Ticket, now: Moment) -> Option<Outgoing> {
        let client = self.client_mut(client)?;
        let outgoing = client.swap_out_done(ticket, now)?;
        if outgoing.left == Bytes::ZERO {
            client.swapped_out();
        } else if outgoing.fell_short() {
            client.swapped_short(now);
        } else {
            client.swap_failed(&format!("said to be done, without {}", outgoing.left), now);
        }
        Some(outgoing)
    }

    /// A swap out could not be done. `false` when nobody asked for it.
    pub fn swap_failed(&mut self, client: ClientId, ticket: Ticket, why: &str, now: Moment) -> bool {
        let Some(client) = self.client_mut(client) else { return false };
        let asked = client.swap_out_done(ticket, now).is_some();
        if asked {
            client.swap_failed(why, now);
        }
        asked
    }

    /// It is told to keep its work in flight short, or need not any more.
    pub fn pace(&mut self, client: ClientId, on: bool) {
        if let Some(client) = self.client_mut(client) {
            client.turns.paced = on;
        }
    }

    /// A switch to it took this long: its lease lasts the longer, and so do those of others from now on.
    pub fn switched(&mut self, client: ClientId, took: Duration) {
        self.switch_cost = if self.switch_cost.is_zero() { took } else { (self.switch_cost * 3 + took) / 4 };
        if let Some(lease) = self.client_mut(client).and_then(|client| client.turns.turn.lease_mut()) {
            lease.cost = lease.cost.max(took);
        }
    }

    /// It has this arena, from this session or an earlier one.
    pub fn arena(&mut self, client: ClientId, arena: ArenaId, bytes: Bytes, ready: bool) {
        if let Some(client) = self.client_mut(client) {
            client.moves.arenas.insert(arena, Arena { bytes, ready });
        }
    }

    /// It has mapped and registered the arena.
    pub fn arena_ready(&mut self, client: ClientId, arena: ArenaId) {
        if let Some(arena) = self.client_mut(client).and_then(|client| client.moves.arenas.get_mut(&arena)) {
            arena.ready = true;
        }
    }

    /// It gave the arena back.
    pub fn arena_returned(&mut self, client: ClientId, arena: ArenaId) {
        if let Some(client) = self.client_mut(client) {
            client.moves.arenas.remove(&arena);
        }
    }

    /// Whether no more host memory can be had for it.
    pub fn host_exhausted(&mut self, client: ClientId, exhausted: bool) {
        if let Some(client) = self.client_mut(client) {
            client.moves.host_exhausted = exhausted;
        }
    }

    /// Driver work was seen that its shim did not pass: it is never moved from now on.
    pub fn bypassed(&mut self, client: ClientId) {
        if let Some(client) = self.client_mut(client) {
            client.bypass = true;
        }
    }

    /// It said what cannot be true: it is booked at what NVML shows from now on. `false`: that is known.
    pub fn distrust(&mut self, client: ClientId, why: String) -> bool {
        let news = self.client_mut(client).filter(|client| client.untrusted.is_none());
        news.map(|client| client.distrust(why)).is_some()
    }

    /// A device error ended it, it says. `false`: that is known.
    pub fn died(&mut self, client: ClientId, why: &str) -> bool {
        let Some(client) = self.client_mut(client).filter(|client| client.dead.is_none()) else {
            return false;
        };
        client.dead = Some(why.chars().filter(|c| !c.is_control()).take(100).collect());
        true
    }

    /// Its device works again.
    pub fn revived(&mut self, client: ClientId) {
        if let Some(client) = self.client_mut(client) {
            client.dead = None;
        }
    }
}
