//! A node in virtual time: simulated clients and cards around the real conductor's core. Messages take time, memory moves
//! at the speed of a link, NVML tells the truth about the moment when it was asked. Every step checks that no card holds
//! more than it has, and nobody more than it was granted.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use nvshare_agent::conductor::core::{Command, Core};
use nvshare_agent::device::{Reading, Report};
use nvshare_agent::ledger::{Page, SessionId};
use nvshare_agent::moment::Moment;
use nvshare_agent::observation::{Observation, Process};
use nvshare_agent::order::{Order, What};
use nvshare_agent::settings::Settings;
use nvshare_common::counters::Holdings;
use nvshare_common::probe::Call;
use nvshare_common::protocol::{Held, Hello, Purpose, ToAgent, ToShim};
use nvshare_common::units::{ArenaId, Bytes, ClientId, DeviceId, DevicePtr, DeviceRange, Ticket};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
/// What the link moves in a millisecond, each way: 16 GB/s.
const LINK: u64 = 16 * MIB;

pub(crate) fn card(number: u8) -> DeviceId {
    DeviceId([number; 16])
}

pub(crate) fn settings() -> Settings {
    Settings {
        lease_floor: Duration::from_millis(500),
        lease_ceiling: Duration::from_secs(20),
        reserve: Bytes(64 * MIB),
        ..Settings::default()
    }
}

/// One process with a shim.
#[derive(Clone, Debug)]
pub(crate) struct Shim {
    pub process: Process,
    pub id: ClientId,
    pub session: Option<SessionId>,
    pub alive: bool,
    /// By card: what it may hold, needs, holds.
    pub balance: BTreeMap<DeviceId, u64>,
    pub total: BTreeMap<DeviceId, u64>,
    pub resident: BTreeMap<DeviceId, u64>,
    pub overhead: u64,
    /// So much of what it holds on each card can not be moved (any more).
    pub fixed: u64,
    pub lease: bool,
    /// It works for so many ms, then pauses for so many.
    pub rhythm: (u64, u64),
    phase: u64,
    /// It has work to do at all.
    pub works: bool,
    pub never_drains: bool,
    pub ignores_stop: bool,
    /// It answers no `Reclaim`.
    pub deaf: bool,
    /// How it answers every swap out without doing anything: with a failure, or as if it had.
    pub swaps_nothing: Option<bool>,
    waiting: bool,
    draining: Option<(Ticket, u64)>,
    outs: Vec<(Ticket, DeviceId, u64, u64)>,
    said_resident: BTreeMap<DeviceId, bool>,
    brought: u64,
    inbox: VecDeque<(u64, ToShim)>,
    outbox: VecDeque<(u64, SessionId, ToAgent)>,
    launches: u64,
    /// Milliseconds in which it ran.
    pub ran: u64,
    /// The longest it waited at the gate, in ms.
    pub waited_most: u64,
    waits_since: Option<u64>,
    pub stops: u64,
    pub moved_out: u64,
    pub moved_in: u64,
    pub limit: BTreeMap<DeviceId, u64>,
    pub rooms: BTreeMap<u64, Option<bool>>,
}

pub(crate) struct World {
    pub core: Core,
    pub cards: BTreeMap<DeviceId, u64>,
    pub foreign: BTreeMap<DeviceId, u64>,
    pub shims: Vec<Shim>,
    /// In microseconds.
    pub now: u64,
    readings: VecDeque<(u64, Report)>,
    /// A create that the card had no memory for: the agent granted too much.
    pub refused_by_card: u64,
    /// Every client has as much host memory as this says.
    pub arena: u64,
    sessions: u64,
    next_decision: u64,
    /// What pinned clients had moved out when they were pinned: never more.
    pinned: BTreeMap<usize, u64>,
    /// Whether it is an error when a card is too full (not while foreigners come).
    pub strict: bool,
    /// How long the core took for each of its turns, in real time: for what came since the last one, and for deciding.
    pub turns: Vec<Duration>,
    spent: Duration,
}

impl World {
    /// A thousand clients on two cards that together want a hundred times what there is, a third of them at work.
    pub(crate) fn crowd() -> World {
        let mut world = World::new(&[16 * GIB, 16 * GIB]);
        for number in 0..1000_u64 {
            let client = world.start();
            world.allocate(client, (number % 2) as u8, (1 + number % 7) * GIB);
            world.shims[client].works = number % 3 == 0;
        }
        world.run(3000);
        world
    }

    /// A thousand clients on eight cards, of which all but a few have to wait, with a thousand pieces of memory each.
    pub(crate) fn throng() -> World {
        let mut world = World::new(&[16 * GIB; 8]);
        for number in 0..1000_u64 {
            let client = world.start();
            world.allocate(client, (number % 8) as u8, (1 + number % 7) * GIB);
            world.shims[client].works = number % 3 == 0;
            let id = world.shims[client].id;
            world.core.ledger.named(id, String::new(), format!("/kubepods/pod{number}"));
            let process = world.shims[client].process;
            for piece in 0..1000_u64 {
                // With a gap behind each, or they would be one.
                let range = DeviceRange { start: DevicePtr(piece << 28), bytes: Bytes(2 * MIB) };
                let mapped = Observation::Mapped { process, range, handle: piece };
                world.core.ledger.warm(id, &mapped, Moment(piece * 7919 % 1000));
            }
        }
        world.run(3000);
        world
    }

    pub(crate) fn new(cards: &[u64]) -> World {
        let mut world = World {
            core: Core::new(settings()),
            cards: cards.iter().enumerate().map(|(index, bytes)| (card(index as u8), *bytes)).collect(),
            foreign: BTreeMap::new(),
            shims: Vec::new(),
            now: 1_000_000_000,
            readings: VecDeque::new(),
            refused_by_card: 0,
            arena: 1 << 40,
            sessions: 0,
            next_decision: 0,
            pinned: BTreeMap::new(),
            strict: true,
            turns: Vec::new(),
            spent: Duration::ZERO,
        };
        world.core.begin_granting(world.moment());
        world.run(10);
        world
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment(self.now * 1000)
    }

    /// A process starts, with an open gate and nothing allocated.
    pub(crate) fn start(&mut self) -> usize {
        let pid = 100 + self.shims.len() as u32;
        self.shims.push(Shim {
            process: Process { pid, start: 1 },
            id: ClientId(0),
            session: None,
            alive: true,
            balance: BTreeMap::new(),
            total: BTreeMap::new(),
            resident: BTreeMap::new(),
            overhead: 0,
            fixed: 0,
            lease: true,
            rhythm: (1, 0),
            phase: 0,
            works: false,
            never_drains: false,
            ignores_stop: false,
            deaf: false,
            swaps_nothing: None,
            waiting: false,
            draining: None,
            outs: Vec::new(),
            said_resident: BTreeMap::new(),
            brought: 0,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            launches: 0,
            ran: 0,
            waited_most: 0,
            waits_since: None,
            stops: 0,
            moved_out: 0,
            moved_in: 0,
            limit: BTreeMap::new(),
            rooms: BTreeMap::new(),
        });
        self.connect(self.shims.len() - 1);
        self.shims.len() - 1
    }

    /// A process that keeps to nothing says `Hello`.
    pub(crate) fn stranger(&mut self, granted: u64, running: bool) -> (ClientId, SessionId) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let held = Held { device: card(0), granted: Bytes(granted), resident: Bytes(0), total: Bytes(0) };
        let hello = Hello { release: "x".into(), running, bypass: false, arenas: 0, devices: vec![held] };
        let now = self.moment();
        (self.core.hello(Process { pid: 9999, start: 1 }, session, &hello, now), session)
    }

    /// ... and sends this.
    pub(crate) fn hear(&mut self, (client, session): (ClientId, SessionId), message: ToAgent) {
        let now = self.moment();
        let commands = self.core.hear(client, session, message, now);
        self.deliver(commands);
    }

    /// A client says this, whatever it does.
    pub(crate) fn hear_from(&mut self, index: usize, message: ToAgent) {
        self.say(index, message);
    }

    /// A process starts, allocates on the first card, and works without pause.
    pub(crate) fn worker(&mut self, bytes: u64) -> usize {
        let index = self.start();
        self.allocate(index, 0, bytes);
        self.shims[index].works = true;
        index
    }

    pub(crate) fn connect(&mut self, index: usize) {
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
        let hello = Hello { release: "test".into(), running: shim.lease, devices, arenas: 0, bypass: false };
        let process = shim.process;
        let id = self.core.hello(process, session, &hello, self.moment());
        self.core.ledger.arena(id, ArenaId(0), Bytes(self.arena), true);
        self.shims[index].id = id;
    }

    pub(crate) fn disconnect(&mut self, index: usize) {
        if let Some(session) = self.shims[index].session.take() {
            let now = self.moment();
            self.core.ledger.disconnected(self.shims[index].id, session, now);
        }
        let shim = &mut self.shims[index];
        shim.inbox.clear();
        shim.outbox.clear();
        for answer in shim.rooms.values_mut() {
            answer.get_or_insert(false);
        }
    }

    pub(crate) fn kill(&mut self, index: usize) {
        let now = self.moment();
        let shim = &mut self.shims[index];
        shim.alive = false;
        shim.works = false;
        shim.resident.clear();
        shim.overhead = 0;
        shim.inbox.clear();
        shim.outbox.clear();
        self.core.ledger.exited(self.shims[index].id, now);
    }

    pub(crate) fn allocate(&mut self, index: usize, device: u8, bytes: u64) {
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
    pub(crate) fn free(&mut self, index: usize, device: u8, bytes: u64) {
        let shim = &mut self.shims[index];
        let total = shim.total.entry(card(device)).or_default();
        *total = total.saturating_sub(bytes);
        let resident = shim.resident.entry(card(device)).or_default();
        *resident = (*resident).min(*total);
    }

    pub(crate) fn want_room(&mut self, index: usize, ticket: u64, bytes: u64) {
        self.want_room_on(index, card(0), ticket, bytes);
    }

    pub(crate) fn want_room_on(&mut self, index: usize, device: DeviceId, ticket: u64, bytes: u64) {
        self.shims[index].rooms.insert(ticket, None);
        self.say(index, ToAgent::WantRoom { ticket: Ticket(ticket), device, bytes: Bytes(bytes) });
    }

    /// Orders something for a client.
    pub(crate) fn order(&mut self, index: usize, what: What) -> Result<(), String> {
        let now = self.moment();
        self.core.order(Order { client: self.shims[index].id, what }, now)
    }

    /// Bytes of the client on that card.
    pub(crate) fn resident(&self, index: usize, device: u8) -> u64 {
        self.shims[index].resident.get(&card(device)).copied().unwrap_or_default()
    }

    fn say(&mut self, index: usize, message: ToAgent) {
        let at = self.now + 200;
        let shim = &mut self.shims[index];
        if let Some(session) = shim.session {
            shim.outbox.push_back((at, session, message));
        }
    }

    pub(crate) fn used(&self, device: DeviceId) -> u64 {
        let first = *self.cards.keys().next().unwrap();
        self.foreign.get(&device).copied().unwrap_or_default()
            + self
                .shims
                .iter()
                .map(|shim| {
                    shim.resident.get(&device).copied().unwrap_or_default()
                        + if device == first { shim.overhead } else { 0 }
                })
                .sum::<u64>()
    }

    pub(crate) fn running(&self, index: usize) -> bool {
        let shim = &self.shims[index];
        shim.alive && shim.open()
    }

    /// Lets `ms` milliseconds pass.
    pub(crate) fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.step();
        }
    }

    /// Lets time pass until `done`, at most `ms`.
    pub(crate) fn until(&mut self, ms: u64, mut done: impl FnMut(&World) -> bool) -> u64 {
        for passed in 0..ms {
            if done(self) {
                return passed;
            }
            self.step();
        }
        panic!("not within {ms} ms; {}", self.describe());
    }

    pub(crate) fn describe(&self) -> String {
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
                    holding.map(nvshare_agent::ledger::Holding::granted),
                    holding.map(nvshare_agent::ledger::Holding::needed),
                    client.complete()
                )
            })
            .collect();
        format!("{} {:?}", clients.concat(), self.core.hindered)
    }

    fn step(&mut self) {
        self.now += 1000;
        let (mut news, mut read) = (false, false);
        for index in 0..self.shims.len() {
            self.act(index);
            while let Some((at, session, message)) = self.shims[index].outbox.pop_front() {
                if at > self.now {
                    self.shims[index].outbox.push_front((at, session, message));
                    break;
                }
                news = true;
                let now = self.moment();
                let began = Instant::now();
                let commands = self.core.hear(self.shims[index].id, session, message, now);
                self.spent += began.elapsed();
                self.deliver(commands);
            }
        }
        while self.readings.front().is_some_and(|(at, _)| *at <= self.now) {
            let (_, report) = self.readings.pop_front().unwrap();
            let began = Instant::now();
            self.sample();
            let now = self.moment();
            self.core.devices(&report, now);
            self.core.bury(now);
            self.spent += began.elapsed();
            news = true;
        }
        if news || self.now >= self.next_decision {
            let began = Instant::now();
            self.sample();
            let now = self.moment();
            let outcome = self.core.decide(now);
            let limits = self.core.limits();
            self.turns.push(std::mem::take(&mut self.spent) + began.elapsed());
            self.deliver(limits);
            self.deliver(outcome.commands);
            read = outcome.read;
            self.next_decision = self.now + Core::pause(outcome.pressing).as_micros() as u64;
        }
        if (read || self.now.is_multiple_of(100_000)) && self.readings.is_empty() {
            let report = self.report();
            self.readings.push_back((self.now + 2000, report));
        }
        self.check();
        self.check_pinned();
    }

    fn report(&self) -> Report {
        let devices = self
            .cards
            .iter()
            .enumerate()
            .map(|(index, (device, total))| Reading {
                device: *device,
                index: index as u32,
                name: "card".into(),
                total: Bytes(*total),
                used: Bytes(self.used(*device)),
                link: None,
                per_process: self
                    .shims
                    .iter()
                    .filter(|shim| shim.alive)
                    .map(|shim| {
                        let held = shim.resident.get(device).copied().unwrap_or_default() + shim.overhead;
                        (shim.process.pid, Bytes(held))
                    })
                    .collect(),
            })
            .collect();
        Report { began: self.moment(), devices, complete: true, problem: None }
    }

    fn sample(&mut self) {
        let now = self.moment();
        for shim in self.shims.iter().filter(|shim| shim.alive) {
            let mut page = Page::default();
            page.calls.application[Call::Launch as usize] = shim.launches;
            for (device, total) in &shim.total {
                let resident = shim.resident.get(device).copied().unwrap_or_default();
                let fixed = shim.fixed.min(resident);
                let held = Holdings {
                    resident: Bytes(resident - fixed),
                    unswappable: Bytes(fixed),
                    swapped: Bytes(total - resident),
                    shadow: Bytes(total - resident),
                    ..Holdings::default()
                };
                page.holdings.push((*device, held));
            }
            self.core.sample(shim.id, &page, now);
        }
    }

    fn deliver(&mut self, commands: Vec<Command>) {
        for command in commands {
            let at = self.now + 200;
            if let Some(shim) = self.shims.iter_mut().find(|shim| shim.id == command.client && shim.alive)
                && shim.session == Some(command.session)
            {
                shim.inbox.push_back((at, command.message));
            }
        }
    }

    fn act(&mut self, index: usize) {
        if !self.shims[index].alive {
            return;
        }
        while self.shims[index].inbox.front().is_some_and(|(at, _)| *at <= self.now) {
            let (_, message) = self.shims[index].inbox.pop_front().unwrap();
            self.obey(index, message);
        }
        let now = self.now;
        if let Some((ticket, until)) = self.shims[index].draining
            && now >= until
        {
            self.shims[index].draining = None;
            if self.shims[index].never_drains {
                self.shims[index].lease = true;
                self.say(index, ToAgent::DrainStalled { ticket });
            } else {
                self.say(index, ToAgent::Stopped { ticket });
            }
        }
        self.move_out(index);
        self.move_in(index);
        self.work(index);
    }

    fn obey(&mut self, index: usize, message: ToShim) {
        let now = self.now;
        match message {
            ToShim::Limit { device, bytes } => {
                self.shims[index].limit.insert(device, bytes.0);
            }
            ToShim::Grant { device, bytes } => {
                *self.shims[index].balance.entry(device).or_default() += bytes.0;
            }
            ToShim::Run => {
                assert!(!self.shims[index].lease, "a second lease for client {index}");
                self.shims[index].lease = true;
            }
            ToShim::Stop { ticket, .. } => {
                let shim = &mut self.shims[index];
                assert!(shim.lease, "client {index} is stopped and does not run");
                shim.stops += 1;
                if !shim.ignores_stop {
                    shim.lease = false;
                    shim.waiting = false;
                    shim.draining = Some((ticket, now + 3000));
                }
            }
            ToShim::SwapOut { ticket, device, bytes, .. } => {
                assert!(!self.shims[index].lease, "client {index} is swapped out while it runs");
                self.shims[index].said_resident.insert(device, false);
                if let Some(admits) = self.shims[index].swaps_nothing {
                    let why = "copy failed".to_owned();
                    let done = ToAgent::SwapOutDone { ticket, copied: Bytes(0), clean: Bytes(0) };
                    self.say(index, if admits { ToAgent::SwapFailed { ticket, why } } else { done });
                    return;
                }
                self.shims[index].outs.push((ticket, device, bytes.0, 0));
            }
            ToShim::Reclaim { .. } if self.shims[index].deaf => {}
            ToShim::Reclaim { ticket, device } => {
                let shim = &mut self.shims[index];
                let balance = shim.balance.entry(device).or_default();
                let kept = shim
                    .resident
                    .get(&device)
                    .copied()
                    .unwrap_or_default()
                    .max(shim.total[&device])
                    .min(*balance);
                let bytes = *balance - kept;
                *balance = kept;
                self.say(index, ToAgent::Released { ticket: Some(ticket), device, bytes: Bytes(bytes) });
                self.say(index, ToAgent::SwapOutDone { ticket, copied: Bytes(0), clean: Bytes(0) });
            }
            ToShim::Room { ticket, made } => {
                self.shims[index].rooms.insert(ticket.0, Some(made));
            }
            // The programs of this world do not ask how large a card is; who is told to run as without an agent is run by
            // the test that is about it.
            ToShim::Size { .. }
            | ToShim::Unmanaged { .. }
            | ToShim::Bypassed
            | ToShim::Arena { .. }
            | ToShim::Trim { .. }
            | ToShim::Pace { .. } => {}
        }
    }

    fn move_out(&mut self, index: usize) {
        let Some((ticket, device, left, copied)) = self.shims[index].outs.first().copied() else { return };
        let shim = &mut self.shims[index];
        let balance = shim.balance.entry(device).or_default();
        let resident = shim.resident.entry(device).or_default();
        let unused = (*balance - *resident).min(left);
        let moved = (left - unused).min(LINK).min(resident.saturating_sub(shim.fixed));
        *resident -= moved;
        *balance -= unused + moved;
        shim.moved_out += moved;
        let rest = left - unused - moved;
        let stuck = unused + moved == 0;
        shim.outs[0] = (ticket, device, rest, copied + moved);
        if unused + moved > 0 {
            self.say(index, ToAgent::Released { ticket: Some(ticket), device, bytes: Bytes(unused + moved) });
        }
        if rest == 0 || stuck {
            self.shims[index].outs.remove(0);
            self.say(index, ToAgent::SwapOutDone { ticket, copied: Bytes(copied + moved), clean: Bytes(0) });
        }
    }

    fn move_in(&mut self, index: usize) {
        if !self.shims[index].outs.is_empty() {
            return;
        }
        let devices: Vec<DeviceId> = self.shims[index].total.keys().copied().collect();
        for device in devices {
            let free = self.cards[&device].saturating_sub(self.used(device));
            let shim = &mut self.shims[index];
            let total = shim.total[&device];
            let balance = shim.balance.get(&device).copied().unwrap_or_default();
            let resident = shim.resident.entry(device).or_default();
            let lacks = total.min(balance).saturating_sub(*resident).min(LINK);
            if lacks > free {
                self.refused_by_card += 1;
                assert!(!self.strict, "the card had no memory for what was granted");
                continue;
            }
            *resident += lacks;
            shim.moved_in += lacks;
            shim.brought += lacks;
            if *resident == total && shim.said_resident.get(&device) == Some(&false) {
                shim.said_resident.insert(device, true);
                let copied = Bytes(std::mem::take(&mut shim.brought));
                self.say(index, ToAgent::Resident { device, copied });
            }
        }
    }

    fn work(&mut self, index: usize) {
        let now = self.now;
        let shim = &mut self.shims[index];
        if !shim.works {
            return;
        }
        if shim.phase >= shim.rhythm.0 {
            shim.phase = (shim.phase + 1) % (shim.rhythm.0 + shim.rhythm.1);
            return;
        }
        if shim.open() {
            shim.phase = (shim.phase + 1) % (shim.rhythm.0 + shim.rhythm.1);
            shim.launches += 1;
            shim.ran += 1;
            shim.waiting = false;
            shim.waits_since = None;
            return;
        }
        let since = *shim.waits_since.get_or_insert(now);
        shim.waited_most = shim.waited_most.max((now - since) / 1000);
        if !shim.waiting {
            shim.waiting = true;
            let total = shim.total.clone();
            for (device, total) in total {
                self.say(index, ToAgent::Want { device, total: Bytes(total), purpose: Purpose::Work });
            }
        }
    }

    /// From the moment when nothing is under way any more, a pinned client loses nothing.
    fn check_pinned(&mut self) {
        for (index, shim) in self.shims.iter().enumerate() {
            let client =
                self.core.ledger.client(shim.id).filter(|client| shim.alive && client.orders().pinned);
            let Some(client) = client else {
                self.pinned.remove(&index);
                continue;
            };
            let under_way = !shim.outs.is_empty()
                || client.devices().values().any(|holding| holding.outgoing().is_some());
            if let Some(before) = self.pinned.get(&index) {
                assert_eq!(shim.moved_out, *before, "client {index} is pinned and was swapped out");
            } else if !under_way {
                self.pinned.insert(index, shim.moved_out);
            }
        }
    }

    fn check(&self) {
        for (index, shim) in self.shims.iter().enumerate() {
            for (device, resident) in &shim.resident {
                let balance = shim.balance.get(device).copied().unwrap_or_default();
                assert!(*resident <= balance, "client {index} holds {resident} with a balance of {balance}");
                if let Some(client) = self.core.ledger.client(shim.id)
                    && shim.alive
                {
                    let booked = client.devices().get(device).map_or(0, |holding| holding.granted().0);
                    assert!(booked >= balance, "client {index} has {balance}, booked are {booked}");
                }
            }
        }
        for (device, total) in &self.cards {
            assert!(!self.strict || self.used(*device) <= *total, "card over-full");
            let granted = self.core.ledger.granted(*device).0;
            assert!(!self.strict || granted <= *total, "granted {granted} of {total}");
        }
    }
}

impl Shim {
    pub(crate) fn open(&self) -> bool {
        let all = self
            .total
            .iter()
            .all(|(device, total)| self.resident.get(device).copied().unwrap_or_default() == *total);
        self.lease && self.draining.is_none() && all
    }
}
