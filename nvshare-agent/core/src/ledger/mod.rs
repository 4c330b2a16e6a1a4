//! What every client and process holds and does, per device: pure data. Nothing here knows sockets, clocks or CUDA; the
//! conductor tells it what happened and when, and [`crate::policy`] reads it. Its methods are the only way to change it:
//! decisions are booked in `book`, what is learned in `news`, and no field can be written from outside. They keep the
//! invariants of docs/architecture.md (see `check`); that the files use nothing but plain data, tests/pure.rs makes sure.

mod activity;
mod admission;
mod book;
mod check;
mod client;
mod device;
mod evictable;
mod growth;
mod holding;
mod lease;
mod level;
mod limits;
mod moves;
mod news;
mod observed;
mod orders;
mod paging;
mod readers;
mod readings;
mod recency;
mod rooms;
mod seen;
mod session;
mod turn;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId, Ticket};
use nvshare_common::protocol::Hello;

use holding::Plausible;
use session::Word;

pub use admission::Incumbents;
pub use book::Booked;
pub use client::{Client, GangId, Page};
pub use device::{Device, Headroom};
pub use holding::{Holding, Outgoing, Reclaiming};
pub use lease::{Lease, Stop};
pub use limits::Told;
pub use moves::Arena;
pub use news::{Arrived, Begun};
pub use observed::Observed;
pub use orders::Orders;
pub use recency::Recency;
pub use session::{Past, SessionId};

use crate::moment::Moment;
use crate::order::Order;
use crate::process::Process;
use crate::settings::Settings;

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    devices: BTreeMap<DeviceId, Device>,
    clients: BTreeMap<ClientId, Client>,
    by_process: HashMap<Process, ClientId>,
    /// The latest client of a pid, until it is buried.
    by_pid: HashMap<u32, ClientId>,
    observed: HashMap<Process, Observed>,
    /// What all of that and the recency of clients take: see `seen`.
    remembered: usize,
    last_client: u64,
    last_ticket: u64,
    /// What a switch has cost lately.
    switch_cost: Duration,
    /// No reading that began before this is a reason to grant anything.
    granting_from: Moment,
    /// When somebody last ran out of turn, by card.
    aged_at: BTreeMap<DeviceId, Moment>,
}

impl Ledger {
    /// An empty one.
    pub fn new() -> Ledger {
        Ledger::default()
    }

    /// The devices that NVML shows.
    pub fn devices(&self) -> &BTreeMap<DeviceId, Device> {
        &self.devices
    }

    /// One of them.
    pub fn device(&self, device: DeviceId) -> Option<&Device> {
        self.devices.get(&device)
    }

    /// The clients, dead ones too until their memory is gone.
    pub fn clients(&self) -> &BTreeMap<ClientId, Client> {
        &self.clients
    }

    /// One of them.
    pub fn client(&self, client: ClientId) -> Option<&Client> {
        self.clients.get(&client)
    }

    /// The client that is this process.
    pub fn client_of(&self, process: Process) -> Option<ClientId> {
        self.by_process.get(&process).copied()
    }

    /// The latest client that had this pid, dead or alive.
    pub fn latest_of(&self, pid: u32) -> Option<&Client> {
        self.clients.get(self.by_pid.get(&pid)?)
    }

    /// What a switch has cost lately; zero before the first.
    pub fn switch_cost(&self) -> Duration {
        self.switch_cost
    }

    /// When somebody last ran out of turn on `device`, after a long wait.
    pub fn aged_at(&self, device: DeviceId) -> Moment {
        self.aged_at.get(&device).copied().unwrap_or(Moment::NEVER)
    }

    /// Books an order that can be done. It holds for the client's gang.
    pub fn order(&mut self, order: Order, now: Moment) {
        let Some(gang) = self.client(order.client).map(|client| client.gang) else { return };
        let least = self.least_runtimes(now);
        for client in self.clients.values_mut().filter(|client| client.gang == gang) {
            let before = client.orders;
            client.orders.book(order.what, now);
            let after = client.orders;
            // It was kept from running: that was no waiting for its turn.
            if before.held_out.is_some() && after.held_out.is_none() {
                client.turns.wants = client.turns.wants.map(|_| now);
                client.turns.runtime = client.turns.runtime.max(least.level(client, after.priority));
            }
            if before.priority != after.priority {
                client.turns.runtime = client.turns.runtime.max(least.level(client, after.priority));
            }
        }
    }

    /// The sum of all grants on `device`, those of the dead too, and of what is held beyond them.
    pub fn granted(&self, device: DeviceId) -> Bytes {
        self.holdings(device).map(|(_, holding)| holding.booked()).sum()
    }

    /// What clients hold on `device`, by their counter pages.
    pub fn held(&self, device: DeviceId) -> Bytes {
        self.holdings(device).map(|(_, holding)| holding.held()).sum()
    }

    /// All that is held on `device`, with its holder.
    pub fn holdings(&self, device: DeviceId) -> impl Iterator<Item = (&Client, &Holding)> {
        self.clients.values().filter_map(move |client| Some((client, client.devices.get(&device)?)))
    }

    /// What could be granted on `device`: negative when the agent must take back. Room promised to drivers is not in it.
    pub fn free(&self, device: DeviceId) -> i64 {
        let Some(at) = self.devices.get(&device) else { return 0 };
        at.budget() - self.granted(device).0 as i64
    }

    /// A shim said `Hello`. The same process again is the same client; what it says of its grants is the truth, because
    /// its previous session is over; but it cannot have been granted more than it was, nor hold more than NVML shows.
    pub fn hello(&mut self, process: Process, session: SessionId, hello: &Hello, now: Moment) -> ClientId {
        let known = self.by_process.get(&process).copied();
        let word = match known {
            Some(_) => Word::Known,
            None if self.granting_from == Moment::NEVER => Word::Takeover,
            None => Word::Stranger,
        };
        let id = known.unwrap_or_else(|| {
            self.last_client += 1;
            ClientId(self.last_client)
        });
        let client = self.clients.entry(id).or_insert_with(|| Client::new(id, process));
        self.by_process.insert(process, id);
        self.by_pid.insert(process.pid, id);
        let before: Vec<(DeviceId, Bytes)> =
            client.devices.iter().map(|(device, holding)| (*device, holding.booked())).collect();
        let devices = &self.devices;
        let plausible = |id| devices.get(&id).map_or(Plausible::Unknown, |at| at.plausible(process.pid));
        client.begin(session, hello, word, plausible, now);
        for (device, before) in before {
            let after = client.devices.get(&device).map(Holding::booked).unwrap_or_default();
            if let Some(device) = self.devices.get_mut(&device) {
                device.given_back(before.saturating_sub(after), now);
            }
        }
        id
    }

    /// The session is over. The process may live on, and keeps its grants.
    pub fn disconnected(&mut self, client: ClientId, session: SessionId, now: Moment) {
        if let Some(client) = self.clients.get_mut(&client)
            && client.session == Some(session)
        {
            let id = client.id;
            client.end_session(now);
            self.no_rooms(id);
        }
    }

    /// The process has ended. Its grants stay booked until NVML shows its memory gone.
    pub fn exited(&mut self, client: ClientId, now: Moment) {
        let Some(dead) = self.clients.get_mut(&client) else { return };
        dead.end_session(now);
        dead.exited.get_or_insert(now);
        self.by_process.remove(&dead.process);
        self.no_rooms(client);
    }

    /// The shim gave back a part of its grant. Says how much was plausible: no more than it had.
    pub fn released(
        &mut self,
        client: ClientId,
        ticket: Option<Ticket>,
        device: DeviceId,
        bytes: Bytes,
        now: Moment,
    ) -> Bytes {
        let Some(holder) = self.clients.get_mut(&client) else { return Bytes::ZERO };
        let Some(holding) = holder.devices.get_mut(&device) else { return Bytes::ZERO };
        let believed = holding.release(ticket, bytes);
        if let Some(device) = self.devices.get_mut(&device)
            && believed > Bytes::ZERO
        {
            device.given_back(believed, now);
        }
        believed
    }

    /// What a switch costs, as an earlier agent measured it.
    pub fn switches_cost(&mut self, cost: Duration) {
        self.switch_cost = cost;
    }

    /// Charges the time since the last call to those who ran. Nobody's runtime is left so far behind, or so far ahead,
    /// that the others on its cards would wait for ever.
    pub fn account(&mut self, settings: &Settings, now: Moment) {
        for client in self.clients.values_mut() {
            client.account(now);
        }
        let least = self.least_runtimes(now);
        for client in self.clients.values_mut() {
            let priority = client.orders.priority;
            if !client.turns.levelled && !client.devices.is_empty() {
                client.turns.runtime = client.turns.runtime.max(least.level(client, priority));
                client.turns.levelled = true;
            }
            let Some(lowest) = least.lowest(client, priority) else { continue };
            let ahead = (2 * settings.lease_ceiling).div_f64(client.orders.weight.value());
            client.turns.runtime = client.turns.runtime.min(lowest + ahead);
        }
    }

    /// Looks for commands without an answer. Says who is served around from now on, and why.
    pub fn overdue(&mut self, settings: &Settings, now: Moment) -> Vec<(ClientId, &'static str)> {
        let late = |client: &mut Client| Some((client.id, client.late(settings, now)?));
        self.clients.values_mut().filter_map(late).collect()
    }

    /// The client wants to run: one that comes back after a long pause begins level with the others.
    pub fn wants(&mut self, client: ClientId, now: Moment) {
        let least = self.least_runtimes(now);
        if let Some(client) = self.clients.get_mut(&client) {
            if client.wants().is_none() {
                client.turns.wants = Some(now);
                client.turns.runtime = client.turns.runtime.max(least.level(client, client.orders.priority));
            }
            client.active(now);
        }
    }

    /// Takes two clients as one from now on: they run together or not at all.
    pub fn join(&mut self, one: ClientId, other: ClientId) {
        let (Some(one), Some(other)) = (self.clients.get(&one), self.clients.get(&other)) else { return };
        let (gang, joined) = (one.gang, other.gang);
        for client in self.clients.values_mut().filter(|client| client.gang == joined) {
            client.gang = gang;
        }
    }

    /// The processes that the uprobes saw.
    pub fn observed(&self) -> &HashMap<Process, Observed> {
        &self.observed
    }
}
