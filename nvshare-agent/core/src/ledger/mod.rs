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
mod heat;
mod holding;
mod lease;
mod limits;
mod moves;
mod news;
mod observed;
mod orders;
mod readers;
mod seen;
mod session;
mod turn;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use nvshare_common::protocol::Hello;
use nvshare_common::units::{Bytes, ClientId, DeviceId, Ticket};

use holding::Plausible;
use session::Word;

pub use admission::Incumbents;
pub use book::Booked;
pub use client::{Client, GangId, Page};
pub use device::{Device, Room};
pub use heat::Heat;
pub use holding::{Holding, Outgoing, Reclaiming};
pub use lease::{Lease, Stop};
pub use limits::Told;
pub use moves::Arena;
pub use news::{Arrived, Begun};
pub use observed::Observed;
pub use orders::Orders;
pub use session::{Past, SessionId};

use crate::moment::Moment;
use crate::order::{Order, Priority};
use crate::process::Process;
use crate::reading::Reading;
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
    /// What all of that and the heat of clients take: see `seen`.
    remembered: usize,
    last_client: u64,
    last_ticket: u64,
    /// What a switch has cost lately.
    switch_cost: Duration,
    /// No reading that began before this is a reason to grant anything.
    granting_from: Moment,
    /// When somebody last ran out of turn.
    favoured_at: Moment,
}

/// By priority: only equals are compared by their runtimes.
#[derive(Clone, Copy)]
struct LeastRuntimes([Duration; 3]);

impl LeastRuntimes {
    fn of(self, priority: Priority) -> Duration {
        self.0[priority as usize]
    }
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

    /// When somebody last ran out of turn, after a long wait.
    pub fn favoured_at(&self) -> Moment {
        self.favoured_at
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
                client.turns.runtime = client.turns.runtime.max(least.of(after.priority));
            }
            if before.priority != after.priority {
                client.turns.runtime = client.turns.runtime.max(least.of(after.priority));
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
        let new = !self.clients.contains_key(&id);
        let least = if new { self.least_runtimes(now).of(Priority::default()) } else { Duration::ZERO };
        let client = self.clients.entry(id).or_insert_with(|| Client::new(id, process, least));
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

    fn no_rooms(&mut self, client: ClientId) {
        for device in self.devices.values_mut() {
            device.rooms.retain(|room| room.client != client);
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
        let (mut least, mut most, mut boasts) = (Bytes::ZERO, Bytes::ZERO, Vec::new());
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
                boasts.push(client.id);
            }
            let (low, high) = holding.between(began, measured, device.rest, paged);
            least += low;
            most += high;
        }
        device.settle(least, most, began >= self.granting_from);
        boasts
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
            self.cooled(&client.heat);
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
    pub fn lose(&mut self, device: DeviceId) -> Vec<Room> {
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

    /// A client's driver wants room. `false` when it has asked too often at once.
    pub fn room_wanted(&mut self, room: Room) -> bool {
        let clients = &self.clients;
        let Some(device) = self.devices.get_mut(&room.device) else { return false };
        let cgroup = |client| clients.get(&client).map(|client| client.cgroup.as_str());
        let asker = cgroup(room.client);
        let (mut own, mut siblings) = (0, 0);
        for other in &device.rooms {
            own += usize::from(other.client == room.client);
            siblings += usize::from(cgroup(other.client) == asker);
        }
        if own >= Room::AT_ONCE || siblings >= Room::OF_A_CGROUP {
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
                room.large = *small + room.bytes > Room::SMALL;
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

    /// What a switch costs, as an earlier agent measured it.
    pub fn switches_cost(&mut self, cost: Duration) {
        self.switch_cost = cost;
    }

    /// Charges the time since the last call to those who ran. Nobody's runtime is left so far behind, or so far ahead,
    /// that the others would wait for ever.
    pub fn account(&mut self, settings: &Settings, now: Moment) {
        for client in self.clients.values_mut() {
            client.account(now);
        }
        let least = self.least_runtimes(now);
        for client in self.clients.values_mut() {
            let ahead = (2 * settings.lease_ceiling).div_f64(client.orders.weight.value());
            client.turns.runtime = client.turns.runtime.min(least.of(client.orders.priority) + ahead);
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
                client.turns.runtime = client.turns.runtime.max(least.of(client.orders.priority));
            }
            client.active(now);
        }
    }

    /// The smallest runtimes of those who run or want to.
    fn least_runtimes(&self, now: Moment) -> LeastRuntimes {
        let (mut least, mut most) = ([None; 3], [Duration::ZERO; 3]);
        for client in self.clients.values() {
            let class = client.orders.priority as usize;
            most[class] = most[class].max(client.runtime());
            let contends = client.wants().is_some() || (client.lease().is_some() && client.busy(now));
            if client.commandable() && !client.held_out() && contends {
                let smallest = least[class].get_or_insert(client.runtime());
                *smallest = client.runtime().min(*smallest);
            }
        }
        LeastRuntimes(std::array::from_fn(|class| least[class].unwrap_or(most[class])))
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
