//! A node in virtual time: simulated clients and cards around the real conductor's core. Messages take time, memory moves
//! at the speed of a link, NVML tells the truth about the moment when it was asked. Every step checks that no card holds
//! more than it has, and nobody more than it was granted.

#![forbid(unsafe_code)]

mod check;
mod crowd;
mod host;
mod managed;
mod shim;
mod steps;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nvshare_agent_core::arena::Wanted;
use nvshare_agent_core::conductor::Core;
use nvshare_agent_core::ledger::SessionId;
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::order::{Order, What};
use nvshare_agent_core::process::Process;
use nvshare_agent_core::reading::Report;
use nvshare_agent_core::settings::Settings;
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ArenaId, ClientId, DeviceId, Ticket};
use nvshare_common::protocol::{Held, Hello, Purpose, ToAgent};

pub use self::managed::Managed;
pub use self::shim::Shim;

/// A MiB.
pub const MIB: u64 = 1 << 20;
/// A GiB.
pub const GIB: u64 = 1 << 30;
/// What the link moves in a millisecond, each way: 16 GB/s.
const LINK: u64 = 16 * MIB;

/// The card of this number.
pub fn card(number: u8) -> DeviceId {
    DeviceId([number; 16])
}

/// What a node has when a test says nothing else.
pub fn settings() -> Settings {
    Settings {
        lease_floor: Duration::from_millis(500),
        lease_ceiling: Duration::from_secs(20),
        reserve: Bytes(64 * MIB),
        ..Settings::default()
    }
}

/// The node.
pub struct World {
    /// The real conductor's core.
    pub core: Core,
    /// How large the cards are.
    pub cards: BTreeMap<DeviceId, u64>,
    /// What processes without a shim hold on them.
    pub foreign: BTreeMap<DeviceId, u64>,
    /// Everybody who ever started.
    pub shims: Vec<Shim>,
    /// In microseconds.
    pub now: u64,
    readings: VecDeque<(u64, Report)>,
    /// A create that the card had no memory for: the agent granted too much.
    pub refused_by_card: u64,
    /// How much host memory there is for shadows. Pinned, it takes nothing of a card here.
    pub host_memory: u64,
    /// How long a GiB of it takes to be made, in milliseconds; about 200 on a real node.
    pub making: u64,
    /// Arenas that are being made, one after another, and when the first of them is there.
    ordered: VecDeque<Wanted>,
    made_at: u64,
    sessions: u64,
    next_decision: u64,
    /// What pinned clients had moved out when they were pinned: never more.
    pinned: BTreeMap<usize, u64>,
    /// Managed memory, by client.
    pub managed: BTreeMap<usize, Managed>,
    /// Whether it is an error when a card is too full (not while foreigners come).
    pub strict: bool,
    /// How long the core took for each of its turns, in real time: for what came since the last one, and for deciding.
    pub turns: Vec<Duration>,
    spent: Duration,
}

impl World {
    /// A node with cards of these sizes, on which granting has begun.
    pub fn new(cards: &[u64]) -> World {
        let mut world = World {
            core: Core::new(settings()),
            cards: cards.iter().enumerate().map(|(index, bytes)| (card(index as u8), *bytes)).collect(),
            foreign: BTreeMap::new(),
            shims: Vec::new(),
            now: 1_000_000_000,
            readings: VecDeque::new(),
            refused_by_card: 0,
            host_memory: 1 << 40,
            making: 0,
            ordered: VecDeque::new(),
            made_at: 0,
            sessions: 0,
            next_decision: 0,
            pinned: BTreeMap::new(),
            managed: BTreeMap::new(),
            strict: true,
            turns: Vec::new(),
            spent: Duration::ZERO,
        };
        world.core.begin_granting(world.moment());
        world.run(10);
        world
    }

    /// The time.
    pub fn moment(&self) -> Moment {
        Moment(self.now * 1000)
    }

    /// A process starts, with an open gate and nothing allocated.
    pub fn start(&mut self) -> usize {
        let pid = 100 + self.shims.len() as u32;
        self.shims.push(Shim::new(Process { pid, start: 1 }));
        self.connect(self.shims.len() - 1);
        self.shims.len() - 1
    }

    /// A process that keeps to nothing says `Hello`.
    pub fn stranger(&mut self, granted: u64, running: bool) -> (ClientId, SessionId) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let held = Held { device: card(0), granted: Bytes(granted), resident: Bytes(0), total: Bytes(0) };
        let hello = Hello { release: "x".into(), running, bypass: false, arenas: 0, devices: vec![held] };
        let now = self.moment();
        (self.core.hello(Process { pid: 9999, start: 1 }, session, &hello, now), session)
    }

    /// ... and sends this.
    pub fn hear(&mut self, (client, session): (ClientId, SessionId), message: ToAgent) {
        let now = self.moment();
        let heard = self.core.hear(client, session, message, now);
        self.deliver(heard.commands);
    }

    /// A client says this, whatever it does.
    pub fn hear_from(&mut self, index: usize, message: ToAgent) {
        self.say(index, message);
    }

    /// A process starts, allocates on the first card, and works without pause.
    pub fn worker(&mut self, bytes: u64) -> usize {
        let index = self.start();
        self.allocate(index, 0, bytes);
        self.shims[index].works = true;
        index
    }

    /// Its session begins.
    pub fn connect(&mut self, index: usize) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let shim = &mut self.shims[index];
        shim.session = Some(session);
        shim.inbox.clear();
        shim.outbox.clear();
        shim.outs.clear();
        shim.draining = None;
        shim.waiting = false;
        shim.said_resident.clear();
        let devices: Vec<Held> = shim
            .total
            .iter()
            .map(|(device, total)| Held {
                device: *device,
                granted: Bytes(shim.balance.get(device).copied().unwrap_or_default()),
                resident: Bytes(shim.resident.get(device).copied().unwrap_or_default()),
                total: Bytes(*total),
            })
            .collect();
        let arenas = shim.arenas.len() as u32;
        let hello = Hello { release: "test".into(), running: shim.lease, devices, arenas, bypass: false };
        let process = shim.process;
        let id = self.core.hello(process, session, &hello, self.moment());
        self.shims[index].id = id;
        let kept: Vec<ArenaId> = self.shims[index].arenas.keys().copied().collect();
        for arena in kept {
            self.say(index, ToAgent::ArenaHeld { arena });
        }
    }

    /// Its session ends.
    pub fn disconnect(&mut self, index: usize) {
        if let Some(session) = self.shims[index].session.take() {
            let now = self.moment();
            self.core.disconnected(self.shims[index].id, session, now);
        }
        let shim = &mut self.shims[index];
        shim.inbox.clear();
        shim.outbox.clear();
        for answer in shim.rooms.values_mut() {
            answer.get_or_insert(false);
        }
    }

    /// It is killed.
    pub fn kill(&mut self, index: usize) {
        let now = self.moment();
        let shim = &mut self.shims[index];
        shim.alive = false;
        shim.works = false;
        shim.resident.clear();
        shim.overhead = 0;
        shim.inbox.clear();
        shim.outbox.clear();
        self.core.exited(self.shims[index].id, now);
    }

    /// It needs more.
    pub fn allocate(&mut self, index: usize, device: u8, bytes: u64) {
        let shim = &mut self.shims[index];
        *shim.total.entry(card(device)).or_default() += bytes;
        shim.said_resident.insert(card(device), false);
        self.say(
            index,
            ToAgent::Want {
                device: card(device),
                total: Bytes(self.shims[index].total[&card(device)]),
                purpose: Purpose::Allocation,
            },
        );
    }

    /// Frees; what is then granted and unused stays so until somebody asks.
    pub fn free(&mut self, index: usize, device: u8, bytes: u64) {
        let shim = &mut self.shims[index];
        let total = shim.total.entry(card(device)).or_default();
        *total = total.saturating_sub(bytes);
        let resident = shim.resident.entry(card(device)).or_default();
        *resident = (*resident).min(*total);
        let (most, shadow) = (*total - *resident, shim.shadow.entry(card(device)).or_default());
        *shadow = (*shadow).min(most);
    }

    /// It asks for room on the first card.
    pub fn want_room(&mut self, index: usize, ticket: u64, bytes: u64) {
        self.want_room_on(index, card(0), ticket, bytes);
    }

    /// It asks for room.
    pub fn want_room_on(&mut self, index: usize, device: DeviceId, ticket: u64, bytes: u64) {
        self.shims[index].rooms.insert(ticket, None);
        self.say(index, ToAgent::WantRoom { ticket: Ticket(ticket), device, bytes: Bytes(bytes) });
    }

    /// Orders something for a client.
    pub fn order(&mut self, index: usize, what: What) -> Result<(), String> {
        let now = self.moment();
        self.core.order(Order { client: self.shims[index].id, what }, now)
    }

    /// Bytes of the client on that card.
    pub fn resident(&self, index: usize, device: u8) -> u64 {
        self.shims[index].resident.get(&card(device)).copied().unwrap_or_default()
    }

    pub(crate) fn say(&mut self, index: usize, message: ToAgent) {
        let at = self.now + 200;
        let shim = &mut self.shims[index];
        if let Some(session) = shim.session {
            shim.outbox.push_back((at, session, message));
        }
    }

    /// What is in use of a card.
    pub fn used(&self, device: DeviceId) -> u64 {
        let first = *self.cards.keys().next().unwrap();
        let managed = if device == first { self.managed_here() } else { 0 };
        managed
            + self.foreign.get(&device).copied().unwrap_or_default()
            + self
                .shims
                .iter()
                .map(|shim| {
                    shim.resident.get(&device).copied().unwrap_or_default()
                        + if device == first { shim.overhead } else { 0 }
                })
                .sum::<u64>()
    }

    /// Whether it can work.
    pub fn running(&self, index: usize) -> bool {
        let shim = &self.shims[index];
        shim.alive && shim.open()
    }

    /// Lets `ms` milliseconds pass.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.step();
        }
    }

    /// Lets time pass until `done`, at most `ms`.
    pub fn until(&mut self, ms: u64, mut done: impl FnMut(&World) -> bool) -> u64 {
        for passed in 0..ms {
            if done(self) {
                return passed;
            }
            self.step();
        }
        panic!("not within {ms} ms; {}", self.describe());
    }

    /// How everybody is, for a failed test.
    pub fn describe(&self) -> String {
        let clients: Vec<String> = self
            .core
            .ledger
            .clients()
            .values()
            .map(|client| {
                let holding = client.devices().values().next();
                format!(
                    "\n  {:?}: lease {} wants {} stop {} runtime {:.2?} granted {:?} needed {:?} complete {}",
                    client.id(),
                    client.lease().is_some(),
                    client.wants().is_some(),
                    client.stop().is_some(),
                    client.runtime(),
                    holding.map(nvshare_agent_core::ledger::Holding::granted),
                    holding.map(nvshare_agent_core::ledger::Holding::needed),
                    client.complete()
                )
            })
            .collect();
        format!("{} {:?}", clients.concat(), self.core.hindered)
    }
}
